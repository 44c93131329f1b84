//! The rules of `config/rules`: each loads whole, fires on its recorded positive and not on its negative, and names techniques
//! of the pinned table. Real recordings of `../shared/data`: the attack fires, the benign ones raise nothing of high or above.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "a test may print what it measured")]

mod recorded;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use weir_rules::{
    Around, AttackTable, CorrelationHit, Correlator, EventFields, Matcher, Matching, Pipeline, Priority, RuleSet, techniques_of,
};
use weir_schema::parse_line;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/rules")
}

fn load() -> RuleSet {
    let files = recorded::rule_files(&folder());
    RuleSet::load(files.iter().map(|(name, text)| (name.as_str(), text.as_str())))
}

fn table() -> AttackTable {
    AttackTable::parse(&std::fs::read_to_string(folder().join("attack.csv")).unwrap()).unwrap()
}

fn hits<'a>(set: &'a RuleSet, matcher: &mut Matcher, event: &weir_schema::JsonEvent) -> Vec<&'a weir_rules::Rule> {
    let mut hits = Vec::new();
    matcher.matches(set, &EventFields::new(&event.event, &event.host.host), Matching::All, &mut hits);
    hits.into_iter().map(|hit| &set.rules[hit]).collect()
}

#[test]
fn every_rule_is_whole_and_says_what_an_analyst_needs() {
    let (set, table) = (load(), table());
    assert_eq!((&set.errors, &set.notices), (&vec![], &vec![]));
    let mut techniques = BTreeSet::new();
    let (mut ids, mut titles) = (BTreeSet::new(), BTreeSet::new());
    assert!(set.rules.iter().all(|rule| rule.verdict() == "ok"));
    let rules = set.rules.iter().filter(|rule| rule.alerts);
    let rules = rules.map(|rule| (&rule.name, &rule.id, &rule.desc, &rule.false_positives, &rule.tags));
    let counting = set.correlations.iter().filter(|one| one.alerts);
    let counting = counting.map(|one| (&one.name, &one.id, &one.desc, &one.false_positives, &one.tags));
    let all: Vec<_> = rules.chain(counting).collect();
    for (name, id, desc, false_positives, tags) in &all {
        assert!(titles.insert(name) && ids.insert(id.as_ref().expect("a rule has an id")), "{name}: stands twice");
        assert!(!desc.is_empty() && !false_positives.is_empty(), "{name}: description and falsepositives");
        let own = techniques_of(tags);
        assert!(!own.is_empty(), "{name}: no technique");
        let tactics: BTreeSet<&str> =
            tags.iter().filter_map(|tag| tag.strip_prefix("attack.")).filter(|tag| !tag.starts_with("t1")).collect();
        let mut possible = BTreeSet::new();
        for id in &own {
            let technique = table.get(id).unwrap_or_else(|| panic!("{name}: {id} is not in attack.csv"));
            possible.extend(technique.tactics.iter().map(String::as_str));
        }
        assert!(!tactics.is_empty() && tactics.is_subset(&possible), "{name}: tactics {tactics:?} of {possible:?}");
        techniques.extend(own);
    }
    let known: BTreeSet<String> = table.iter().map(|technique| technique.id.clone()).collect();
    assert_eq!(known, techniques, "attack.csv holds what the rules name, no more and no less");
    let parents: BTreeSet<&str> = techniques.iter().map(|id| id.split('.').next().unwrap()).collect();
    println!("{} rules, {} techniques of {} parents", all.len(), techniques.len(), parents.len());
    assert!(set.correlations.len() >= 10 && all.len() >= 80 && techniques.len() >= 60);
    let readme = std::fs::read_to_string(folder().join("../../README.md")).unwrap();
    let said =
        format!("{} in Sigma's format over {} techniques of MITRE ATT&CK v{}", all.len(), techniques.len(), table.version());
    assert!(readme.contains(&said), "the README says other numbers than: {said}");
}

#[test]
fn the_example_of_a_pipeline_is_one() {
    let file = folder().join("../examples/sigma-pipeline.yml");
    Pipeline::default().read("sigma-pipeline.yml", &std::fs::read_to_string(file).unwrap()).unwrap();
}

#[test]
fn every_rule_fires_on_its_positive_and_not_on_its_negative() {
    let set = load();
    let rules = set.rules.iter().filter(|rule| rule.alerts);
    let mut seen: BTreeMap<String, (u32, u32)> = rules.map(|rule| (rule.name.clone(), (0, 0))).collect();
    let (mut matcher, mut wrong) = (Matcher::default(), Vec::new());
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder().join("fixtures")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files {
        for (at, line) in std::fs::read_to_string(&file).unwrap().lines().enumerate() {
            let place = format!("{}:{}", file.file_name().unwrap().display(), at + 1);
            let event = parse_line(line).unwrap_or_else(|error| panic!("{place}: {error}"));
            let said: Json = serde_json::from_str(line).unwrap();
            let fired = hits(&set, &mut matcher, &event);
            let names: BTreeSet<&str> = fired.iter().map(|rule| rule.name.as_str()).collect();
            // What goes on on any server raises nothing that a person has to look at.
            if file.ends_with("ordinary.jsonl") && fired.iter().any(|rule| rule.priority <= Priority::Warning) {
                wrong.push(format!("{place}: an ordinary event fires {names:?}"));
            }
            for (key, wanted) in [("fires", true), ("spares", false)] {
                let Some(title) = said[key].as_str() else { continue };
                let count = seen.get_mut(title).unwrap_or_else(|| panic!("{place}: no rule is called {title:?}"));
                *(if wanted { &mut count.0 } else { &mut count.1 }) += 1;
                if names.contains(title) != wanted {
                    wrong.push(format!("{place}: {key} {title:?}: fired {names:?}"));
                }
                // What is ordinary for one rule is so for all of high or above.
                if !wanted
                    && let Some(loud) = hits(&set, &mut matcher, &event).iter().find(|rule| rule.priority <= Priority::Error)
                {
                    wrong.push(format!("{place}: an ordinary event fires {:?}", loud.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let bare: Vec<&String> =
        seen.iter().filter(|(_, (fires, spares))| *fires == 0 || *spares == 0).map(|(name, _)| name).collect();
    assert!(bare.is_empty(), "without a positive or a negative: {bare:?}");
}

/// A line of the correlations' fixtures: one event, or so many that differ in some columns.
fn events(line: &str) -> Vec<weir_schema::JsonEvent> {
    let mut said: serde_json::Map<String, Json> = serde_json::from_str(line).unwrap();
    let mut take = |key: &str| said.remove(key);
    let (times, every_ms, vary) = (take("times"), take("every_ms"), take("vary"));
    let [times, every_ms] = [times, every_ms].map(|number| number.map_or(1, |number| number.as_i64().unwrap()));
    let vary: Vec<String> = vary.map_or_else(Vec::new, |names| serde_json::from_value(names).unwrap());
    let one = |n: i64| {
        let mut said = said.clone();
        for key in &vary {
            let value = match &said[key] {
                Json::Number(number) => Json::from(number.as_i64().unwrap() + n),
                Json::String(text) if key == "dst_ip" => {
                    let (net, last) = text.rsplit_once('.').unwrap();
                    Json::from(format!("{net}.{}", last.parse::<i64>().unwrap() + n))
                }
                Json::String(text) => Json::from(format!("{text}-{n}")),
                other => panic!("{key}: {other}"),
            };
            said.insert(key.clone(), value);
        }
        let mut event = parse_line(&Json::Object(said).to_string()).unwrap();
        event.event.time += n * every_ms * 1_000_000;
        event
    };
    (0..times).map(one).collect()
}

/// The correlations that find something in these events, if they alert.
fn correlated<'a>(set: &'a RuleSet, events: &[weir_schema::JsonEvent]) -> Vec<&'a weir_rules::Correlation> {
    let (mut correlator, mut matcher, mut hits) = (Correlator::default(), Matcher::default(), Vec::new());
    for (number, told) in events.iter().enumerate() {
        let (host, event) = (&told.host, &told.event);
        let source = EventFields::new(event, &host.host);
        hits.clear();
        matcher.hits(set, &source, Matching::All, &mut hits);
        let process = event.process.as_deref();
        let process_id = process.map(|it| weir_schema::ProcessId::new("t", &host.host, &host.boot_id, it.pid, it.start_ns).0);
        let around = Around { region: Some("eu"), process_id, ..Around::default() };
        correlator.take(set, &hits, &source, &CorrelationHit { tenant: "t", time: event.time, number, around });
    }
    let found = correlator.finish(set).into_iter().map(|one| &set.correlations[one.correlation]);
    found.filter(|one| one.alerts).collect()
}

#[test]
fn every_correlation_fires_on_its_positives_and_not_on_its_negatives() {
    let (set, text) = (load(), std::fs::read_to_string(folder().join("correlations.jsonl")).unwrap());
    let mut cases: BTreeMap<(String, bool), Vec<weir_schema::JsonEvent>> = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let said: Json = serde_json::from_str(line).unwrap();
        let fires = said["fires"].as_str();
        let title = fires.or_else(|| said["spares"].as_str()).unwrap_or_else(|| panic!("line {}: for which rule?", at + 1));
        cases.entry((title.to_owned(), fires.is_some())).or_default().extend(events(line));
    }
    for one in set.correlations.iter().filter(|one| one.alerts) {
        for wanted in [true, false] {
            let mut events = cases.remove(&(one.name.clone(), wanted)).unwrap_or_else(|| panic!("{}: no fixture", one.name));
            let names = |events: &[_]| correlated(&set, events).iter().map(|one| one.name.clone()).collect::<BTreeSet<_>>();
            let found = names(&events);
            assert_eq!(found.contains(&one.name), wanted, "{}: {found:?}", one.name);
            // Whatever the order; of one time the number decides, and no fixture has two.
            events.reverse();
            assert_eq!(names(&events).contains(&one.name), wanted, "{}: backwards", one.name);
        }
    }
    assert!(cases.is_empty(), "no correlations: {:?}", cases.keys());
}

fn fired(set: &RuleSet, path: &Path) -> BTreeMap<String, (Priority, Vec<usize>)> {
    let mut found: BTreeMap<String, (Priority, Vec<usize>)> = BTreeMap::new();
    let mut matcher = Matcher::default();
    let mut events = Vec::new();
    for (line, event) in recorded::sysflow(path) {
        for rule in hits(set, &mut matcher, &event) {
            found.entry(rule.name.clone()).or_insert((rule.priority, Vec::new())).1.push(line);
        }
        events.push(event);
    }
    found.extend(correlated(set, &events).into_iter().map(|one| (one.name.clone(), (one.priority, Vec::new()))));
    found
}

#[test]
fn recordings_of_attacks_fire_and_benign_ones_stay_quiet() {
    let Some(data) = recorded::data("recordings/sysflow") else { return };
    let set = load();
    let of = |name: &str| {
        let found = fired(&set, &data.join(format!("{name}.jsonl.gz")));
        println!("{name}: {found:?}");
        found
    };
    let shellshock = of("shellshock");
    assert!(shellshock.keys().any(|name| name == "Shell started by a web server"), "{shellshock:?}");
    assert!(shellshock.keys().any(|name| name == "Accounts listed below a web server"), "{shellshock:?}");
    let setns = of("setns");
    assert!(setns.keys().any(|name| name == "Namespace of another process entered by a tool"), "{setns:?}");
    for benign in ["setuid", "tcp", "files", "nginx_benign", "iks_17containers_w1", "iks_17containers_w2"] {
        let loud: Vec<_> = of(benign).into_iter().filter(|(_, (priority, _))| *priority <= Priority::Error).collect();
        assert!(loud.is_empty(), "{benign}: {loud:?}");
    }
}
