//! `weir rules` as a user calls it: both languages side by side, wrong files, recordings, coverage and its layer.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn own_rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/rules")
}

fn weir(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir")).arg("rules").args(arguments).output().expect("weir runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn both_languages_are_checked_together() {
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join("below");
    std::fs::create_dir(&below).unwrap();
    let falco = "- rule: f\n  desc: d\n  condition: evt.type = execve\n  output: o\n  priority: INFO\n";
    std::fs::write(folder.path().join("a.yaml"), falco).unwrap();
    let sigma =
        "title: s\nlogsource: {category: process_creation, product: linux}\ndetection:\n    s: {Hashes: x}\n    condition: s\n";
    std::fs::write(below.join("b.yml"), sigma).unwrap();
    let hidden = folder.path().join("..2025_10_09");
    std::fs::create_dir(&hidden).unwrap();
    std::fs::write(hidden.join("b.yml"), sigma).unwrap();
    let output = weir(&["check", folder.path().to_str().unwrap()]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert_eq!(said, "f: ok\ns: partly: field Hashes is not supplied\n2 rules: 1 ok, 1 partly; 0 refused\n");

    let correlation =
        "---\ntitle: c\ncorrelation: {type: event_count, rules: [s], group-by: [host], timespan: 1m, condition: {gte: 3}}\n";
    std::fs::write(below.join("b.yml"), format!("name: s\n{sigma}{correlation}")).unwrap();
    let said = text(&weir(&["check", folder.path().to_str().unwrap()]).stdout);
    assert!(said.ends_with("c: partly: its rule \"s\" is not whole\n3 rules: 1 ok, 2 partly; 0 refused\n"), "{said}");

    std::fs::write(below.join("c.yml"), "title: c\ncorrelation:\n    type: event_count\n").unwrap();
    let output = weir(&["check", folder.path().to_str().unwrap()]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("c.yml:3: correlation \"c\": the correlation has no rules"), "{said}");
}

#[test]
fn a_pipeline_supplies_what_a_rule_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let rule = write(
        "rule.yml",
        "title: s\nlogsource: {category: process_creation, product: linux}\ndetection:\n    s: {Hashes: x, User|expand: '%Admins%'}\n    condition: s\n",
    );
    let pipeline = write(
        "pipeline.yml",
        "logsources:\n  - category: process_creation\n    fields: {Hashes: detail.sha256}\nplaceholders: {Admins: [root]}\n",
    );
    let output = weir(&["check", &rule]);
    assert!(text(&output.stdout).contains("no pipeline has values for the placeholder \"Admins\""), "{output:?}");
    let output = weir(&["check", "--pipeline", &pipeline, &rule]);
    assert_eq!(text(&output.stdout), "s: ok\n1 rules: 1 ok, 0 partly; 0 refused\n");
    let wrong = write("wrong.yml", "logsources: [{category: x, fields: {a: nothing}}]\n");
    let output = weir(&["check", "--pipeline", &wrong, &rule]);
    assert!(!output.status.success() && text(&output.stderr).contains("wrong.yml:1"), "{output:?}");
}

#[test]
fn our_rules_run_over_a_recording() {
    let rules = own_rules();
    let events = rules.join("fixtures/impact.jsonl");
    let output = weir(&["run", "--events", events.to_str().unwrap(), rules.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let alerts: Vec<serde_json::Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let miner = alerts.iter().find(|alert| alert["rule"] == "Miner started").expect("the miner is found");
    assert_eq!((miner["priority"].as_str(), miner["line"].as_u64()), (Some("Critical"), Some(1)));
    assert!(miner["rule_id"].is_string() && miner["output"].as_str().unwrap().contains("stratum+tcp://"), "{miner}");
}

#[test]
fn correlations_run_over_a_recording() {
    let folder = tempfile::tempdir().unwrap();
    let events = folder.path().join("events.jsonl");
    let line = |second: u32, port: u16| {
        format!(
            r#"{{"time":"2026-11-23T16:00:{second:02}Z","kind":"connect","host":"h","pid":7,"start_ns":5,"result":111,"dst_ip":"10.0.0.9","dst_port":{port}}}"#
        )
    };
    // A later line may be an earlier event.
    let lines: Vec<String> = (0..20).rev().map(|port| line(port, 1_000 + port as u16)).collect();
    std::fs::write(&events, lines.join("\n")).unwrap();
    let output = weir(&["run", "--events", events.to_str().unwrap(), own_rules().to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let said = text(&output.stdout);
    let alerts: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [scan] = &alerts[..] else { panic!("{said}") };
    assert_eq!(
        (scan["rule"].as_str(), scan["events"].as_u64()),
        (Some("Many ports of one address tried by a process"), Some(20))
    );
    assert_eq!((scan["group"]["DestinationIp"].as_str(), scan["lines"][0].as_u64()), (Some("10.0.0.9"), Some(20)));
    assert!(text(&output.stderr).contains("sequence rules (.sql, .eql, .toml) are left out"), "{output:?}");
}

#[test]
fn coverage_is_a_table_and_a_layer() {
    let folder = tempfile::tempdir().unwrap();
    let layer = folder.path().join("layer.json");
    let stock = folder.path().join("stock.yaml");
    let falco = "- rule: f\n  desc: d\n  condition: evt.type = execve\n  output: o\n  priority: INFO\n  tags: [T1611, T9999]\n";
    std::fs::write(&stock, falco).unwrap();
    let arguments =
        ["coverage", own_rules().to_str().unwrap(), "--stock", stock.to_str().unwrap(), "--layer", layer.to_str().unwrap()]
            .map(str::to_owned);
    let output = weir(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let said = text(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let escape = said.lines().find(|line| line.starts_with("T1611")).unwrap();
    assert!(escape.contains("Escape to Host") && escape.split_whitespace().nth(2) == Some("1"), "{escape}");
    assert!(
        said.contains("T9999") && said.lines().last().unwrap().contains("ATT&CK v18; the stock rules claim 1 of them, too"),
        "{said}"
    );
    let layer: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&layer).unwrap()).unwrap();
    assert_eq!((&layer["versions"]["layer"], &layer["domain"]), (&"4.5".into(), &"enterprise-attack".into()));
    assert!(layer["techniques"].as_array().unwrap().len() >= 60);

    let output = weir(&["coverage", stock.to_str().unwrap()]);
    assert!(!output.status.success() && text(&output.stderr).contains("--attack FILE"), "{output:?}");
}

/// Two programs read the accounts, on two hosts; one of them is the backup's. A shell runs beside them.
const READERS: &str = r#"{"kind":"open","time":"2026-11-23T16:00:00Z","host":"web-7","pid":72,"ppid":7,"comm":"cat","exe":"/bin/cat","path":"/etc/shadow","flags":0,"result":0}
{"kind":"open","time":"2026-11-23T16:01:00Z","host":"web-7","pid":73,"ppid":7,"comm":"cat","exe":"/bin/cat","path":"/etc/shadow","flags":0,"result":0}
{"kind":"open","time":"2026-11-23T16:00:30Z","host":"db-1","pid":80,"ppid":8,"comm":"backup","exe":"/opt/backup","path":"/etc/shadow","flags":0,"result":0}
{"kind":"exec","time":"2026-11-23T16:00:40Z","host":"db-1","pid":81,"ppid":8,"comm":"sh","exe":"/bin/sh","path":"/bin/sh","result":0}
no event
"#;

const ACCOUNTS: &str = "
- rule: Accounts are read
  desc: d
  condition: evt.type in (open, openat) and evt.is_open_read=true and fd.name=/etc/shadow
  output: \"%proc.name read %fd.name\"
  priority: WARNING
- rule: Shell
  desc: d
  condition: evt.type=execve and proc.name=bash
  output: shell
  priority: INFO
";

#[test]
fn a_change_says_which_alerts_it_opens_and_silences() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let (events, rules) = (write("events.jsonl", READERS), write("rules.yaml", ACCOUNTS));
    let exception = write(
        "exception.yaml",
        "- rule: Accounts are read\n  exceptions:\n    - name: backup\n      fields: [proc.name]\n      values: [[backup]]\n  override:\n    exceptions: append\n",
    );
    let ask = |arguments: &[&str]| {
        let output = weir(&[&["what-if", "--events", &events, "--rules", &rules], arguments].concat());
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    // An exception silences the one alert that it is about.
    let (code, said, told) = ask(&[&exception, "--json"]);
    assert_eq!(code, Some(0), "{told}");
    let silenced: serde_json::Value = serde_json::from_str(&said).expect("exactly one alert differs");
    let of = |key: &str| silenced[key].as_str().unwrap_or_default().to_owned();
    assert_eq!((of("change"), of("rule"), of("host")), ("silenced".into(), "Accounts are read".into(), "db-1".into()));
    assert_eq!(
        (of("output"), of("event"), of("time")),
        ("backup read /etc/shadow".into(), "3".into(), "2026-11-23T16:00:30Z".into())
    );
    assert_eq!((&silenced["events_before"], &silenced["events_after"]), (&1.into(), &0.into()));
    assert!(
        told.contains("events.jsonl:5: skipped") && told.contains("4 events: 0 alerts would open, 1 fall silent, 0 change"),
        "{told}"
    );
    // A changed rule opens another; the file has the name of the one that it takes the place of.
    let other = folder.path().join("new");
    std::fs::create_dir(&other).unwrap();
    let changed = other.join("rules.yaml");
    std::fs::write(&changed, ACCOUNTS.replace("proc.name=bash", "proc.name in (bash, sh)")).unwrap();
    let (code, said, told) = ask(&[changed.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{told}");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = said.lines().map(words).collect();
    assert!(lines.contains(&"Shell Informational 0 1 1 0 0".to_owned()), "{said}");
    assert!(lines.contains(&"Accounts are read Warning 2 2 0 0 0".to_owned()), "{said}");
    assert!(lines.contains(&"opened 2026-11-23T16:00:40Z db-1 Shell 1 shell".to_owned()), "{said}");
    // What goes takes its alerts along; what is as it was changes nothing.
    let (code, said, told) = ask(&["--drop", "rules.yaml"]);
    assert!(code == Some(0) && told.contains("0 alerts would open, 2 fall silent"), "{said}{told}");
    let (code, _, told) = ask(&[&rules]);
    assert!(
        code == Some(0) && told.contains("would be as they are") && told.contains("0 alerts would open, 0 fall silent, 0 change"),
        "{told}"
    );
    // What would be refused is refused here.
    let wrong = write("wrong.yaml", "- rule: w\n  desc: d\n  condition: evt.type =\n  output: o\n  priority: INFO\n");
    let (code, _, told) = ask(&[&wrong]);
    assert!(code == Some(1) && told.contains("wrong.yaml:3") && told.contains("nothing is changed"), "{told}");
    let (code, _, told) = ask(&["--drop", "nothing.yaml"]);
    assert!(code == Some(1) && told.contains("no rule file is named"), "{told}");
    let (code, _, told) = ask(&[&write("chain.sql", "CREATE RULE x AS SEQUENCE")]);
    assert!(code == Some(1) && told.contains("sequence rules (.sql) cannot be tried out"), "{told}");
    assert_eq!(ask(&[]).0, Some(2), "a change must be named");
}
