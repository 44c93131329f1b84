//! The systemd units: well formed, they start what exists, and ask for exactly the capabilities that the README explains.

use std::collections::BTreeSet;

use super::{folder, read, service};

#[test]
fn units_start_our_binaries_with_the_config_where_it_is_looked_for() {
    for (file, command, state) in [
        ("systemd/weir-agent.service", "/usr/bin/weir-agent --config /etc/weir/agent.toml", "weir-agent"),
        ("systemd/weir-node.service", "/usr/bin/weir node --config /etc/weir/node.toml", "weir"),
    ] {
        let unit = super::unit(file);
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
    let asked = service("systemd/weir-agent.service", "CapabilityBoundingSet");
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
