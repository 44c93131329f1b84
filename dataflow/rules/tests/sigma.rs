//! Sigma's own rules and events in `../shared/data`: all load, every recorded event matches its rule, an independent engine's
//! answers over recordings.
//!
//! The files are not part of the repository; without them these tests say so and pass.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "a test may print what it measured")]

mod recorded;

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};
use weir_rules::{EventFields, Matcher, Matching, Pipeline, RuleSet};
use weir_schema::{Event, Fields, Kind};

fn load(files: &[(String, String)]) -> RuleSet {
    RuleSet::load(files.iter().map(|(name, text)| (name.as_str(), text.as_str())))
}

#[test]
fn all_linux_rules_load() {
    let Some(data) = recorded::data("sigma/rules/linux") else { return };
    let files = recorded::rule_files(&data);
    let set = load(&files);
    assert_eq!(set.errors, []);
    assert_eq!((files.len(), set.rules.len()), (122, 122));
    let whole = set.rules.iter().filter(|rule| rule.is_fully_evaluable()).count();
    println!("{} of {} evaluate fully; nodes and checks: {:?}", whole, set.rules.len(), set.size());
    for rule in set.rules.iter().filter(|rule| !rule.is_fully_evaluable()) {
        println!("{}: {}", rule.name, rule.verdict());
    }
    let category =
        |name: &str| set.rules.iter().filter(|rule| rule.place.file.contains(&format!("/{name}/"))).collect::<Vec<_>>();
    // What only lacks a name is told by name: hosts of connections.
    for (name, least) in [("process_creation", 70), ("file_event", 7), ("network_connection", 1)] {
        let whole = category(name).iter().filter(|rule| rule.is_fully_evaluable()).count();
        assert!(whole >= least, "{name}: {whole}");
    }
}

/// Fields of a Windows event in one mapping: the parts of `System` and of `EventData`.
fn flat(event: &Json) -> Map<String, Json> {
    let mut all = Map::new();
    let event = event.get("Event").unwrap_or(event);
    for part in ["System", "EventData", "UserData"] {
        for (key, value) in event[part].as_object().into_iter().flatten() {
            match value {
                Json::Object(inner) if inner.contains_key("#attributes") => {
                    for (name, value) in inner["#attributes"].as_object().into_iter().flatten() {
                        all.insert(format!("{key}_{name}"), value.clone());
                    }
                    if let Some(text) = inner.get("#text") {
                        all.insert(key.clone(), text.clone());
                    }
                }
                Json::Null => {}
                other => _ = all.insert(key.clone(), other.clone()),
            }
        }
    }
    if all.is_empty() {
        all = event.as_object().cloned().unwrap_or_default();
    }
    all
}

/// Names that a rule's file uses as keys.
fn keys(text: &str) -> BTreeSet<String> {
    let names = text.lines().filter_map(|line| line.trim_start_matches([' ', '-']).split_once(':')).map(|(key, _)| key);
    let names = names.map(|key| key.split('|').next().unwrap_or("").to_owned());
    names.filter(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).collect()
}

#[test]
fn every_recorded_event_matches_its_rule() {
    let Some(data) = recorded::data("sigma/regression") else { return };
    let (mut tried, mut wrong) = (0, Vec::new());
    for entry in std::fs::read_dir(&data).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        let rule = std::fs::read_to_string(folder.join("rule.yml")).unwrap();
        let events = std::fs::read_to_string(folder.join("event.json")).unwrap();
        let events: Vec<Map<String, Json>> =
            serde_json::Deserializer::from_str(&events).into_iter::<Json>().map(|event| flat(&event.unwrap())).collect();
        let mut names = keys(&rule);
        names.extend(events.iter().flat_map(|event| event.keys().cloned()));
        let mapped: String = names.iter().map(|name| format!("      \"{name}\": \"detail.{name}\"\n")).collect();
        let mut pipeline = Pipeline::default();
        pipeline
            .read("windows", &format!("logsources:\n  - product: windows\n    kinds: [exec]\n    fields:\n{mapped}"))
            .unwrap();
        let set = RuleSet::load_with([("rule.yml", rule.as_str())], &pipeline);
        assert_eq!(set.errors, [], "{}", folder.display());
        let hit = events.into_iter().any(|event| {
            let fields = Fields { detail: Some(Json::Object(event).to_string().into()), ..Fields::default() };
            let event = Event { kind: Kind::Exec, fields, ..Event::default() };
            let mut hits = Vec::new();
            Matcher::default().matches(&set, &EventFields::new(&event, "h"), Matching::All, &mut hits);
            !hits.is_empty()
        });
        tried += 1;
        if !hit {
            wrong.push(format!("{} {}", folder.file_name().unwrap().display(), set.rules[0].verdict()));
        }
    }
    println!("{tried} rules with their events, {} wrong", wrong.len());
    assert_eq!((tried, wrong), (58, Vec::<String>::new()));
}

/// pySigma over SQLite, asked about processes only.
#[test]
fn recordings_fire_what_another_engine_says() {
    let (Some(rules), Some(data)) = (recorded::data("sigma/rules/linux"), recorded::data("recordings/sysflow")) else { return };
    let files = recorded::rule_files(&rules.join("process_creation"));
    let set = load(&files);
    for name in ["shellshock", "setns"] {
        let text = std::fs::read_to_string(data.join(format!("answers/{name}.sigma_oracle.json"))).unwrap();
        let answers: Json = serde_json::from_str(&text).unwrap();
        let ours: BTreeSet<&str> = set.rules.iter().filter_map(|rule| rule.id.as_deref()).collect();
        let wanted: BTreeSet<(String, u64)> = answers["matches"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(id, _)| ours.contains(id.as_str()))
            .flat_map(|(id, of)| of["events"].as_array().unwrap().iter().map(|line| (id.clone(), line.as_u64().unwrap())))
            .collect();
        let mut found = BTreeSet::new();
        for (line, event) in recorded::sysflow(&data.join(format!("{name}.jsonl.gz"))) {
            let mut hits = Vec::new();
            Matcher::default().matches(&set, &EventFields::new(&event.event, "h"), Matching::All, &mut hits);
            found.extend(hits.iter().map(|hit| (set.rules[*hit].id.clone().unwrap(), line as u64)));
        }
        println!("{name}: {wanted:?}");
        assert_eq!(found, wanted, "{name}");
    }
}
