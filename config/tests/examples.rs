//! The example files are true: they parse as they stand, they parse with every comment taken off, and what they show as
//! defaults are the defaults. Every file of `invalid/` gives the one line recorded beside it.
//!
//! A new wrong file needs no code: put `invalid/ROLE-what.toml` and `invalid/ROLE-what.txt` there. `WEIR_RECORD=1` writes
//! the texts anew, to be read before they are committed.

use std::fs;
use std::path::{Path, PathBuf};

use weir_config::{AgentConfig, DemoConfig, Error, Grants, LogLevel, NodeConfig, TlsMode};

#[test]
fn examples_parse_as_they_stand() {
    AgentConfig::parse(&example("agent"), &text("agent"), []).unwrap();
    NodeConfig::parse(&example("node"), &text("node"), []).unwrap();
    let demo = DemoConfig::parse(&example("demo"), &text("demo"), []).unwrap();
    assert_eq!(demo, DemoConfig::default());
}

#[test]
fn values_shown_as_defaults_are_the_defaults() {
    let (file, plain) = (example("agent"), text("agent"));
    let mut shown = AgentConfig::parse(&file, &shown_values(&plain), []).unwrap();
    assert_eq!((shown.host.take().as_deref(), shown.cloud.take().as_deref()), (Some("web-17"), Some("aws")));
    assert_eq!(shown.zone.take().as_deref(), Some("eu-central-1a"));
    assert!(shown.enrol.take().is_some());
    let (kubernetes, cloud) = (&mut shown.metadata.kubernetes, &mut shown.metadata.cloud);
    assert!(kubernetes.kubeconfig.take().is_some_and(|file| file.ends_with("kubeconfig")));
    assert_eq!(kubernetes.node.take().as_deref(), Some("node-17"));
    assert_eq!(cloud.instance_id.take().zip(cloud.instance_type.take()), Some(("i-0123456789".into(), "m7.large".into())));
    assert_eq!(shown, AgentConfig::parse(&file, &plain, []).unwrap());

    let (file, plain) = (example("node"), text("node"));
    let mut shown = NodeConfig::parse(&file, &shown_values(&plain), []).unwrap();
    assert_eq!((std::mem::take(&mut shown.agents.regions), shown.agents.authority.take().is_some()), (vec!["eu".into()], true));
    assert_eq!(
        std::mem::take(&mut shown.rules.paths),
        [Path::new("/etc/falco/falco_rules.yaml"), Path::new("/etc/falco/rules.d")]
    );
    let (tls, roles) = (shown.sql.tls.take(), std::mem::take(&mut shown.sql.roles));
    assert_eq!(tls.map(|tls| tls.mode), Some(TlsMode::default()));
    assert_eq!(roles[0].grants, Grants::default());
    assert_eq!(shown, NodeConfig::parse(&file, &plain, []).unwrap());

    let mut shown = DemoConfig::parse(&example("demo"), &shown_values(&text("demo")), []).unwrap();
    assert!(shown.data_dir.take().is_some());
    assert_eq!(shown, DemoConfig::default());
}

#[test]
fn examples_show_every_key() {
    // serde names all keys of a section when it meets a wrong one: each must stand in the example, as a line of its section.
    for (role, sections) in [
        (
            "agent",
            &[
                "",
                "tls",
                "enrol",
                "collector",
                "collector.open",
                "collector.calls",
                "collector.udp",
                "process",
                "metadata",
                "metadata.limits",
                "metadata.kubernetes",
                "metadata.cloud",
                "batch",
                "spool",
                "apps[0]",
            ][..],
        ),
        (
            "node",
            &[
                "",
                "listen",
                "tls",
                "agents",
                "mesh",
                "mesh.limits",
                "checkpoint",
                "views",
                "limits",
                "log",
                "journal",
                "query",
                "sql",
                "sql.tls",
                "sql.roles[0]",
                "archive",
                "archive.limits",
                "archive.retention[0]",
                "rules",
                "alerts.limits",
                "alerts.sinks[0]",
            ][..],
        ),
        ("demo", &["", "listen"][..]),
    ] {
        let shown = shown_values(&text(role));
        for section in sections {
            let header = match *section {
                "" => String::new(),
                "apps[0]" => "[[apps]]\n".to_owned(),
                "sql.roles[0]" => "[[sql.roles]]\n".to_owned(),
                "archive.retention[0]" => "[[archive.retention]]\n".to_owned(),
                "alerts.sinks[0]" => "[[alerts.sinks]]\n".to_owned(),
                section => format!("[{section}]\n"),
            };
            let error = parse(role, &example(role), &format!("{header}zzzzzzzzzzzzzzzz = 1\n")).unwrap_err().to_string();
            let (_, known) = error.split_once("known here: ").unwrap_or_else(|| panic!("{error}"));
            for key in known.split(", ") {
                let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
                let ways = [format!("{key} ="), format!("[{path}]"), format!("[[{path}]]")];
                let stands = shown.lines().any(|line| ways.iter().any(|way| line.starts_with(way)));
                // One rule need not show all its conditions: the comment above it names them.
                assert!(stands || section.ends_with("[0]"), "examples/{role}.toml does not show {path}");
            }
        }
    }
}

#[test]
fn wrong_files_give_the_recorded_line() {
    let mut cases = 0;
    let mut files: Vec<_> = fs::read_dir(root().join("invalid")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "toml")) {
        let name = file.file_name().unwrap().to_str().unwrap();
        let role = name.split(['-', '.']).next().unwrap();
        let error = match parse(role, Path::new(name), &fs::read_to_string(file).unwrap()) {
            Ok(()) => panic!("{name} was accepted"),
            Err(error) => error.to_string(),
        };
        assert!(!error.contains('\n'), "{name}: not one line: {error}");
        let recorded = file.with_extension("txt");
        if std::env::var_os("WEIR_RECORD").is_some() {
            fs::write(&recorded, format!("{error}\n")).unwrap();
        }
        let expected = fs::read_to_string(&recorded).unwrap_or_else(|_| panic!("{name} has no .txt: {error}"));
        assert_eq!(error, expected.trim_end(), "{name}");
        cases += 1;
    }
    assert!(cases >= 15, "only {cases} wrong files were found");
}

#[test]
fn the_environment_overrides() {
    let file = Path::new("/etc/weir/node.toml");
    let with = |name: &str, value: &str| NodeConfig::parse(file, &text("node"), [(name.to_owned(), value.to_owned())]);
    assert_eq!(with("WEIR_TICK_MS", "250").unwrap().tick_ms, 250);
    assert_eq!(with("WEIR_LISTEN__SQL", "127.0.0.1:8432").unwrap().listen.sql.port(), 8432);
    assert_eq!(with("WEIR_ID", "7").unwrap().id, "7", "text that looks like a number");
    assert_eq!(with("WEIR_MESH__ADVERTISE", "127.0.0.1:1").unwrap().mesh.advertise.unwrap().port(), 1);
    assert_eq!(
        with("WEIR_ARCHIVE__RETENTION", "[{ age_hours_max = 1 }, { bytes_max = 9999999 }]").unwrap().archive.retention.len(),
        2
    );
    assert_eq!(with("WEIR_DATA_DIR", "x").unwrap().data_dir, Path::new("/etc/weir/x"));
    let plain = NodeConfig::parse(file, &text("node"), []).unwrap();
    assert_eq!(with("WEIR_LOG", "debug").unwrap(), plain, "not ours, whatever sections there are");
    assert_eq!(with("WEIR_LOGS", "debug").unwrap(), plain, "not ours: no section, no key");
    let object = with("WEIR_LOG__LEVEL", "object").unwrap();
    assert_eq!((object.log.level, object.tick_ms), (LogLevel::Object, 250));
    let bucket =
        NodeConfig::parse(file, MINIMAL, [("WEIR_LOG__LEVEL", "object"), ("WEIR_LOG__LOCATION", "s3://weir/a/")].map(owned));
    assert_eq!(bucket.unwrap().archive.location, "s3://weir/a/archive", "beside the logs");
    assert_eq!(with("PATH", "1").unwrap(), plain);

    let line = |name, value| with(name, value).unwrap_err().to_string();
    assert_eq!(with("WEIR_COLLECTOR__EBPF", "false").unwrap(), plain, "an agent's, which may share the environment");
    assert_eq!(
        line("WEIR_COLECTOR__EBPF", "false").split(';').next(),
        Some("environment WEIR_COLECTOR__EBPF: colector.ebpf = false: unknown key")
    );
    assert_eq!(line("WEIR_LISTEN__SQK", "1"), "environment WEIR_LISTEN__SQK: listen.sqk = 1: unknown key; did you mean `sql`?");
    assert_eq!(
        line("WEIR_TICK_MS", "1"),
        "environment WEIR_TICK_MS: tick_ms = 1: out of range; write a whole number from 10 to 10000 (default 100)"
    );
    assert_eq!(
        line("WEIR_TICK_MS", "1s"),
        "environment WEIR_TICK_MS: tick_ms = 1s: invalid type: string \"1s\", expected a whole number; write 1000 without quotes: the unit stands in the key"
    );
    assert_eq!(
        line("WEIR_ID__X", "1"),
        "environment WEIR_ID__X: id.x = 1: the file holds a plain value above this key; unset this variable"
    );
}

#[test]
fn paths_are_relative_to_the_file() {
    let config = AgentConfig::parse(Path::new("/etc/weir/agent.toml"), &text("agent"), []).unwrap();
    assert_eq!(config.tls.ca, Path::new("/etc/weir/tls/ca.pem"));
    assert_eq!(config.collector.proc_root, Path::new("/proc"));
    let node = NodeConfig::parse(Path::new("node.toml"), MINIMAL, []).unwrap();
    assert_eq!(node.shared_dir, Path::new("d/shared"));
    assert_eq!((node.log.location.as_str(), node.archive.location.as_str()), ("d/shared/object", "d/shared/archive"));
}

const MINIMAL: &str = "id = \"a\"\ndata_dir = \"d\"\n[tls]\nca = \"a\"\ncert = \"b\"\nkey = \"c\"";

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn an_agent_that_enrols_keeps_its_own_files() {
    let file = Path::new("/etc/weir/agent.toml");
    let parse = |text: &str| AgentConfig::parse(file, &format!("nodes = [\"a:1\"]\ndata_dir = \"d\"\n{text}"), []).unwrap();
    let config = parse("[enrol]\ntoken_file = \"token\"");
    assert_eq!(config.tls.key, Path::new("/etc/weir/d/identity/key.pem"));
    assert_eq!(config.enrol.unwrap().token_file, Path::new("/etc/weir/token"));
    let config = parse("[enrol]\ntoken_file = \"token\"\n[tls]\nca = \"ca.pem\"");
    assert_eq!(config.tls.ca, Path::new("/etc/weir/ca.pem"));
    assert_eq!(config.tls.cert, Path::new("/etc/weir/d/identity/cert.pem"));
}

#[test]
fn load_reads_the_file_and_names_a_missing_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("demo.toml");
    let missing = DemoConfig::load(&file).unwrap_err().to_string();
    assert!(missing.starts_with("could not read config") && missing.ends_with("check the path and its permissions"), "{missing}");
    fs::write(&file, "fleet = 7").unwrap();
    assert_eq!(DemoConfig::load(&file).unwrap().fleet, 7);
}

fn parse(role: &str, file: &Path, text: &str) -> Result<(), Error> {
    match role {
        "agent" => AgentConfig::parse(file, text, []).map(drop),
        "node" => NodeConfig::parse(file, text, []).map(drop),
        "demo" => DemoConfig::parse(file, text, []).map(drop),
        other => panic!("no such role: {other}"),
    }
}

/// The example with every value that it shows in a comment put in force.
fn shown_values(text: &str) -> String {
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.trim_start_matches('[').starts_with(|c: char| c.is_ascii_lowercase()) => rest.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(uncomment).collect::<Vec<_>>().join("\n")
}

fn example(role: &str) -> PathBuf {
    root().join(format!("examples/{role}.toml"))
}

fn text(role: &str) -> String {
    fs::read_to_string(example(role)).expect("the example is there")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}
