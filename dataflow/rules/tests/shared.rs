//! Falco's own files and cases in `../shared/data`: the stock rules, upstream's regression cases, answers of another engine.
//!
//! The files are not part of the repository; without them these tests say so and pass. Every difference from the recorded
//! answer stands here by name, with its reason; a difference that went away fails the test too.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "a test may print what it measured")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use weir_rules::{Field, FieldSource, Many, Matcher, Matching, Priority, RuleSet, Selection, Ty, Value};

/// `../shared/data/falco` beside the repository, or beside the folder of its worktrees.
fn data() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let found =
        ["../shared", "../../shared"].iter().map(|shared| root.join(shared).join("data/falco")).find(|path| path.is_dir());
    if found.is_none() {
        println!("SKIPPED: ../shared/data/falco is not there");
    }
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("could not read {}: {error}", path.display()))
}

fn json_lines(path: &Path) -> Vec<Json> {
    read(path).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A line of a recording: keys are Falco's fields, values as sysdig prints them. What sysdig did not print but other fields
/// imply is derived: the return value, the direction of an open, both ends of a connection.
#[derive(Clone)]
struct Line(BTreeMap<String, String>);

impl Line {
    fn new(line: &Json) -> Self {
        Self(line.as_object().unwrap().iter().map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect())
    }

    fn has(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// A parameter in `evt.args`: `res=-115(EINPROGRESS) `, `fd=3(<f>/x) `.
    fn parameter(&self, name: &str) -> Option<&str> {
        let args = self.has("evt.args")?;
        let start = args.find(&format!("{name}=")).filter(|at| *at == 0 || args.as_bytes()[at - 1] == b' ')? + name.len() + 1;
        args[start..].split(' ').next()
    }

    fn text(&self, field: &Field) -> Option<String> {
        let name = field.to_string();
        let number = |text: &str| text.split(['(', '<']).next().unwrap_or(text).to_owned();
        let is_open = matches!(self.has("evt.type"), Some("open" | "openat"));
        match name.as_str() {
            "evt.rawres" => self.parameter("res").or_else(|| self.parameter("fd").filter(|_| is_open)).map(number),
            "evt.is_open_read" | "evt.is_open_write" => {
                let flags = self.parameter("flags").unwrap_or("");
                let wanted = if name.ends_with("read") { "O_RDONLY" } else { "O_WRONLY" };
                Some((is_open && (flags.contains(wanted) || flags.contains("O_RDWR"))).to_string())
            }
            "fd.ip" | "fd.net" => Some([self.has("fd.cip")?, self.has("fd.sip")?].join("|")),
            "fd.snet" => self.has("fd.sip").map(str::to_owned),
            "proc.aname" => {
                let names = [self.has("proc.pname"), self.has("proc.aname[2]"), self.has("proc.aname[3]")];
                Some(names.into_iter().flatten().collect::<Vec<_>>().join("|")).filter(|names| !names.is_empty())
            }
            // sysdig has no number for it.
            "fd.num" => self.has("fd.num").filter(|number| *number != "-1").map(str::to_owned),
            _ => self.has(&name).map(str::to_owned),
        }
    }
}

impl FieldSource for Line {
    fn get(&self, field: &Field) -> Option<Value<'_>> {
        let text = self.text(field)?;
        let one = |text: &str| match field.def().ty {
            Ty::Text => Some(Value::text(text.to_owned())),
            Ty::Int => text.parse().ok().map(Value::Int),
            Ty::Bool => Some(Value::Bool(text == "true")),
            Ty::Ip => text.parse().ok().map(Value::Ip),
        };
        match field.def().many {
            Many::Same | Many::Any if text.contains('|') => Some(Value::Many(text.split('|').filter_map(one).collect())),
            _ => one(&text),
        }
    }
}

fn recording(data: &Path, name: &str) -> Vec<Line> {
    let mut lines: Vec<Line> =
        json_lines(&data.join("conformance/trace_files").join(format!("{name}.jsonl"))).iter().map(Line::new).collect();
    // The time a call took: from the line of its thread where it began.
    let mut began: BTreeMap<String, i64> = BTreeMap::new();
    for line in &mut lines {
        let time: i64 = line.has("evt.rawtime").unwrap().parse().unwrap();
        let tid = line.has("thread.tid").unwrap_or("").to_owned();
        if line.has("evt.dir") == Some(">") {
            began.insert(tid, time);
        } else if let Some(began) = began.remove(&tid) {
            line.0.insert("evt.latency".into(), (time - began).to_string());
        }
    }
    lines
}

#[test]
fn stock_rules_load_unedited() {
    let Some(data) = data() else { return };
    let (stable, incubating) = (data.join("rules/falco_rules.yaml"), data.join("rules/falco-incubating_rules.yaml"));
    let (stable, incubating) = (read(&stable), read(&incubating));
    for (text, rules) in [(&stable, 25), (&incubating, 31)] {
        let set = RuleSet::load([("rules.yaml", text.as_str())]);
        assert_eq!(set.errors, []);
        assert_eq!(set.rules.len(), rules);
    }
    let set = RuleSet::load([("stable.yaml", stable.as_str()), ("incubating.yaml", incubating.as_str())]);
    assert_eq!(set.errors, []);
    let whole = set.rules.iter().filter(|rule| rule.is_fully_evaluable()).count();
    let printed = set.rules.iter().filter(|rule| rule.is_fully_evaluable() && rule.output_lacks.is_empty()).count();
    println!("{} of 56 load, {whole} conditions evaluate fully, {printed} with every field of their output", set.rules.len());
    for rule in set.rules.iter().filter(|rule| !rule.is_fully_evaluable()) {
        let lacks: Vec<String> = rule.condition_lacks.iter().map(ToString::to_string).collect();
        println!("partly: {}: {} not supplied", rule.name, lacks.join(", "));
    }
    let outputs: BTreeSet<String> = set.rules.iter().flat_map(|rule| &rule.output_lacks).map(ToString::to_string).collect();
    println!("outputs lack: {outputs:?}");
    let (nodes, checks) = set.size();
    println!("graph: {nodes} nodes, {checks} distinct comparisons; notices: {}", set.notices.len());
    let (mut matcher, mut events) = (Matcher::default(), 0u64);
    for capture in ["cat_write", "connect_localhost", "open-multiple-files", "ping_sendto", "syscall"] {
        for line in recording(&data, capture) {
            matcher.matches(&set, &line, Matching::All, &mut Vec::new());
            events += 1;
        }
    }
    println!("recordings: {} comparisons an event, all 56 rules tried", matcher.checks_computed() / events);
    for notice in &set.notices {
        println!("notice: {notice}");
    }
    assert_eq!(set.rules.len(), 56);
    assert!(whole >= WHOLE_MIN, "{whole} rules evaluate fully, there were {WHOLE_MIN}");
}

/// Stock rules whose conditions lack no field.
const WHOLE_MIN: usize = 40;

#[test]
fn filters_answer_as_sysdig_does() {
    let Some(data) = data() else { return };
    let mut wrong = BTreeMap::new();
    let answers = json_lines(&data.join("conformance/filter_oracle_sysdig0.29.3.jsonl"));
    for answer in &answers {
        let (capture, filter) = (answer["capture"].as_str().unwrap(), answer["filter"].as_str().unwrap());
        let file = format!("- rule: r\n  desc: d\n  condition: {}\n  output: o\n  priority: INFO\n", Json::from(filter));
        let set = RuleSet::load([("filter.yaml", file.as_str())]);
        assert_eq!(set.errors, [], "{filter}");
        let mut matcher = Matcher::default();
        let mut matched: Vec<u64> = Vec::new();
        for line in recording(&data, capture) {
            let mut hits = Vec::new();
            matcher.matches(&set, &line, Matching::First, &mut hits);
            if !hits.is_empty() {
                matched.push(line.has("evt.num").unwrap().parse().unwrap());
            }
        }
        let first: Vec<u64> =
            answer["first10_evt_num"].as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect();
        if matched.len() as u64 != answer["count"].as_u64().unwrap() || !matched.starts_with(&first) {
            wrong.insert(format!("{capture}: {filter}"), matched.len());
        }
    }
    println!("{} of {} filter answers are right", answers.len() - wrong.len(), answers.len());
    let named: BTreeSet<&str> = FILTERS_APART.iter().map(|(case, _)| *case).collect();
    let found: BTreeSet<&str> = wrong.keys().map(String::as_str).collect();
    for (case, why) in FILTERS_APART {
        println!("apart: {case}: {why}");
    }
    assert_eq!(found, named);
}

/// Filter answers that cannot come out of the recordings, and why.
const FILTERS_APART: &[(&str, &str)] = &[
    ("cat_write: proc.aname contains sshd", "the recording's text has three ancestors, sshd is above them"),
    ("open-multiple-files: proc.aname contains sshd", "the recording's text has three ancestors, sshd is above them"),
];

#[test]
fn upstreams_cases_come_out_as_upstream_says() {
    let Some(data) = data() else { return };
    let mut wrong = BTreeMap::new();
    let cases = json_lines(&data.join("conformance/cases.jsonl"));
    let mut tried = 0;
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        tried += 1;
        if let Err(why) = tried_case(&data, case) {
            wrong.insert(name.to_owned(), why);
        }
    }
    println!("{} of {tried} cases are right", tried - wrong.len());
    for (case, why) in &wrong {
        println!("apart: {case}: {why}");
    }
    let named: BTreeSet<&str> = CASES_APART.iter().map(|(case, _)| *case).collect();
    let found: BTreeSet<&str> = wrong.keys().map(String::as_str).collect();
    assert_eq!(found, named);
}

/// Upstream's cases that come out otherwise here, and why.
const CASES_APART: &[(&str, &str)] = &[];

fn texts(value: &Json) -> Vec<String> {
    match value {
        Json::String(text) => vec![text.clone()],
        Json::Array(items) => items.iter().filter_map(Json::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// The files of a case, folders spread out in the order of names.
fn files(data: &Path, names: &[String]) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for name in names {
        let path = data.join("conformance").join(name);
        if path.is_dir() {
            let mut inside: Vec<PathBuf> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            inside.sort();
            files.extend(inside.iter().map(|path| (path.display().to_string(), read(path))));
        } else {
            files.push((name.clone(), read(&path)));
        }
    }
    files
}

/// Compares one case; says what came out otherwise.
fn tried_case(data: &Path, case: &Json) -> Result<(), String> {
    let validated = texts(&case["validate_rules_file"]);
    let is_validation = !validated.is_empty();
    let names = if is_validation { validated } else { texts(&case["rules_file"]) };
    let loaded = files(data, &names);
    let mut set = RuleSet::load(loaded.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    if let Some(errors) = case["validate_errors"].as_array() {
        for wanted in errors {
            let item = wanted["item_name"].as_str().unwrap_or("");
            let names_it = |error: &weir_rules::Error| error.to_string().contains(item);
            if !set.errors.iter().any(names_it) {
                return Err(format!("no error about {item:?}: {:?}", set.errors));
            }
        }
        return Ok(());
    }
    if let Some(warnings) = case["validate_warnings"].as_array() {
        let wanted: BTreeSet<&str> = warnings.iter().filter_map(|warning| warning["item_name"].as_str()).collect();
        let found: BTreeSet<&str> = set.notices.iter().map(|notice| notice.rule.as_str()).collect();
        return if wanted == found { Ok(()) } else { Err(format!("warned of {found:?}, upstream of {wanted:?}")) };
    }
    let selected = set.select(&Selection {
        priority_min: case["priority"].as_str().and_then(Priority::parse),
        tags_on: texts(&case["run_tags"]),
        tags_off: texts(&case["disable_tags"]),
        rules_off: texts(&case["disabled_rules"]),
    });
    if case["stderr_contains"].is_string() {
        return selected.map_or(Ok(()), |()| Err("the selection was accepted".to_owned()));
    }
    selected.map_err(|error| error.to_string())?;
    if !set.errors.is_empty() {
        return Err(format!("refused: {}", set.errors[0]));
    }
    let trace = Path::new(case["trace_file"].as_str().unwrap()).file_stem().unwrap().to_str().unwrap();
    let (mut counts, mut levels, mut outputs) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    let mut matcher = Matcher::default();
    for line in recording(data, trace) {
        let mut hits = Vec::new();
        matcher.matches(&set, &line, Matching::First, &mut hits);
        for rule in hits.into_iter().map(|at| &set.rules[at]) {
            *counts.entry(rule.name.clone()).or_insert(0u64) += 1;
            levels.insert(rule.priority);
            outputs.push(format!("{} {}", rule.priority, rule.output.render(&line)));
        }
    }
    let detect = case["detect"].as_bool().unwrap_or(false);
    if counts.is_empty() == detect {
        return Err(format!("detected {counts:?}"));
    }
    for level in texts(&case["detect_level"]).iter().filter(|_| detect) {
        if !levels.contains(&Priority::parse(level).unwrap()) {
            return Err(format!("nothing of level {level}: {levels:?}"));
        }
    }
    for wanted in case["detect_counts"].as_array().into_iter().flatten() {
        for (rule, count) in wanted.as_object().unwrap() {
            let found = counts.get(rule).copied().unwrap_or(0);
            if Some(found) != count.as_u64() {
                return Err(format!("{rule} fired {found} times, upstream {count}"));
            }
        }
    }
    if let Some(wanted) = case["stdout_contains"].as_str().filter(|wanted| !wanted.contains(".*")) {
        let parts: Vec<&str> = wanted.split(" .").collect();
        if !outputs.iter().any(|output| parts.iter().all(|part| output.contains(part.trim_end_matches('.')))) {
            return Err(format!("no output like {wanted:?}: {:?}", outputs.first()));
        }
    }
    Ok(())
}
