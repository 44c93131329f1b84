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

    std::fs::write(below.join("c.yml"), "title: c\ncorrelation:\n    type: event_count\n").unwrap();
    let output = weir(&["check", folder.path().to_str().unwrap()]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("c.yml:1: rule \"c\": correlations are not built yet"), "{said}");
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
