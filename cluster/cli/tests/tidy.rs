//! Rules that no compiler checks: arrows between crates, file length, headers, and that the documents name what exists.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which crates of ours each crate may use. A new arrow is a decision: it is made here and in ARCHITECTURE.md.
const ARROWS: &[(&str, &str)] = &[
    ("weir-config", ""),
    ("weir-schema", ""),
    ("weir-journal", ""),
    ("weir-transport", "weir-schema weir-config"),
    ("weir-edge", "weir-schema weir-config weir-journal weir-transport"),
    ("weir-plan", "weir-schema"),
    ("weir-rules", "weir-schema"),
    ("weir-dataflow", "weir-schema weir-plan weir-rules"),
    ("weir-alert", "weir-schema weir-config"),
    ("weir-archive", "weir-schema"),
    ("weir-query", "weir-schema weir-config weir-plan weir-dataflow weir-archive"),
    (
        "weir-cluster",
        "weir-config weir-schema weir-journal weir-transport weir-plan weir-dataflow weir-alert weir-archive weir-query",
    ),
    (
        "weir-loadtest",
        "weir-config weir-schema weir-journal weir-transport weir-edge weir-plan weir-dataflow weir-archive weir-query weir-cluster",
    ),
    (
        "weir",
        "weir-config weir-schema weir-journal weir-transport weir-edge weir-plan weir-rules weir-dataflow weir-archive weir-query weir-cluster weir-loadtest",
    ),
];

/// Crates that may link DataFusion directly (sql is to come).
const DATAFUSION: &[&str] = &["weir-plan", "weir-dataflow", "weir-archive", "weir-query"];

/// What an agent, privileged on every host, never links.
const NOT_ON_THE_EDGE: &[&str] = &["datafusion", "datafusion-common", "arrow", "pgwire", "axum", "timely", "sqlparser"];

const LINES_BEFORE_TESTS_MAX: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(root()).output().expect("the program runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn packages() -> Vec<serde_json::Value> {
    let text = run(env!("CARGO"), &["metadata", "--format-version", "1", "--offline", "--no-deps"]);
    let metadata: serde_json::Value = serde_json::from_str(&text).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Direct dependencies by package name, dev-dependencies apart.
fn dependencies(package: &serde_json::Value) -> BTreeSet<String> {
    let all = package["dependencies"].as_array().unwrap().iter();
    all.filter(|d| d["kind"].as_str() != Some("dev")).map(|d| d["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn arrows_between_crates_go_one_way() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(name, uses)| (*name, uses.split_whitespace().collect())).collect();
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let arrows = allowed.get(name).unwrap_or_else(|| panic!("crate {name} has no line in ARROWS"));
        let used = dependencies(&package);
        for ours in used.iter().filter(|used| used.starts_with("weir")) {
            assert!(arrows.contains(ours.as_str()), "{name} may not use {ours}: see ARCHITECTURE.md, Arrows");
        }
        let datafusion = used.iter().any(|used| used.starts_with("datafusion"));
        assert!(!datafusion || DATAFUSION.contains(&name), "{name} may not link DataFusion");
    }
}

#[test]
fn the_agent_stays_lean() {
    let flags = ["tree", "--offline", "-p", "weir-edge", "-e", "normal", "--prefix", "none", "--format", "{p}"];
    let tree = run(env!("CARGO"), &flags);
    for linked in tree.lines().filter_map(|line| line.split(' ').next()) {
        assert!(!NOT_ON_THE_EDGE.contains(&linked), "weir-edge links {linked}");
    }
}

#[test]
fn architecture_names_every_crate_and_readme_both_commands() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        assert!(architecture.contains(&format!("`{name}`")), "ARCHITECTURE.md does not name `{name}`");
    }
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for command in ["cargo demo", "cargo test --workspace"] {
        assert!(readme.contains(command), "README.md does not name `{command}`");
    }
}

/// Every file of ours with this ending, build output apart.
fn files(ending: &str) -> Vec<PathBuf> {
    if !root().join(".git").exists() {
        eprintln!("SKIPPED: not a git checkout, files cannot be listed");
        return Vec::new();
    }
    let listed = run("git", &["ls-files", "-co", "--exclude-standard"]);
    let ours = listed.lines().filter(|path| path.ends_with(ending)).map(|path| root().join(path));
    ours.filter(|path| path.exists()).collect()
}

#[test]
fn a_file_has_a_header_and_few_enough_lines() {
    for path in files(".rs") {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{} has no //! header", path.display());
        let in_tests = path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "benches");
        let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
        assert!(in_tests || lines <= LINES_BEFORE_TESTS_MAX, "{}: {lines} lines before its tests", path.display());
    }
}

#[test]
fn relative_links_in_documents_resolve() {
    for path in files(".md") {
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.starts_with('#') {
                continue;
            }
            let target = path.parent().unwrap().join(link.split('#').next().unwrap());
            assert!(target.exists(), "{} links to {link}, which is not there", path.display());
        }
    }
}
