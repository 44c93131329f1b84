//! The files of `deploy`: units are well formed, start what exists, and ask for exactly the capabilities that the README explains.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(deploy(file)).expect("it ships")
}

/// Section and key to value; a key may stand once.
fn unit(file: &str) -> BTreeMap<(String, String), String> {
    let (mut keys, mut section) = (BTreeMap::new(), String::new());
    for line in read(file).lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.to_owned();
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{file}: {line}: no key=value"));
        assert!(["Unit", "Service", "Install"].contains(&section.as_str()), "{file}: {line}: in section {section:?}");
        let before = keys.insert((section.clone(), key.to_owned()), value.to_owned());
        assert_eq!(before, None, "{file}: {key} stands twice");
    }
    keys
}

#[test]
fn units_start_our_binaries_with_the_config_where_it_is_looked_for() {
    for (file, command, state) in [
        ("systemd/weir-agent.service", "/usr/bin/weir-agent --config /etc/weir/agent.toml", "weir-agent"),
        ("systemd/weir-node.service", "/usr/bin/weir node --config /etc/weir/node.toml", "weir"),
    ] {
        let unit = unit(file);
        let service = |key: &str| unit.get(&("Service".to_owned(), key.to_owned())).map(String::as_str);
        assert_eq!(service("ExecStart"), Some(command));
        // The config's default data_dir is /var/lib/ and this.
        assert_eq!(service("StateDirectory"), Some(state));
        assert_eq!(service("Restart"), Some("always"));
        assert_eq!(unit.get(&("Install".to_owned(), "WantedBy".to_owned())).map(String::as_str), Some("multi-user.target"));
    }
}

#[test]
fn every_capability_is_explained() {
    let unit = unit("systemd/weir-agent.service");
    let asked = &unit[&("Service".to_owned(), "CapabilityBoundingSet".to_owned())];
    let asked: BTreeSet<_> = asked.split(' ').map(str::to_owned).collect();
    let readme = read("README.md");
    let explained: BTreeSet<_> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `CAP_")?.split('`').next().map(|name| format!("CAP_{name}")))
        .collect();
    assert_eq!(asked, explained);
}

#[test]
fn systemd_takes_the_units() {
    for file in ["weir-agent.service", "weir-node.service"] {
        let dir = folder(file);
        // The binaries need not be installed where the test runs.
        let text =
            read(&format!("systemd/{file}")).replace("/usr/bin/weir-agent", "/bin/true").replace("/usr/bin/weir", "/bin/true");
        let path = dir.join(file);
        std::fs::write(&path, text).expect("ours");
        let verify = std::process::Command::new("systemd-analyze").args(["verify", "--recursive-errors=no"]).arg(&path).output();
        let _ = std::fs::remove_dir_all(&dir);
        match verify {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                let ours: Vec<_> = said.lines().filter(|line| line.contains(file)).collect();
                assert!(ours.is_empty(), "{ours:?}");
            }
            Err(error) => eprintln!("skipped: systemd-analyze: {error}"),
        }
    }
}

fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("weir-deploy-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a temporary directory");
    dir
}
