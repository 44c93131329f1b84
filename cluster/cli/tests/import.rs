//! `weir import` and `weir agent --record` as a person uses them: recordings of others and of our own, then rules over them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use weir_schema::{JsonEvent, Kind, parse_line};

fn weir(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir")).args(arguments).current_dir(folder).output().unwrap()
}

/// What an import wrote, and what it said.
fn import(folder: &Path, from: &str, files: &[&str]) -> (Vec<JsonEvent>, String) {
    let mut arguments = vec!["import", "--from", from, "--out", "out.jsonl"];
    arguments.extend(files);
    let ran = weir(folder, &arguments);
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success(), "{said}");
    let text = std::fs::read_to_string(folder.join("out.jsonl")).unwrap();
    (text.lines().map(|line| parse_line(line).unwrap()).collect(), said)
}

fn shared(path: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(path).canonicalize().ok();
    if found.is_none() {
        eprintln!("SKIPPED: shared/data/{path} is not here");
    }
    found
}

/// The figures of `answers.json`, which SQLite found in the same logs.
#[test]
fn the_connections_of_two_zeek_sensors_are_all_there_once() {
    let Some(logs) = shared("recordings/zeek_apt29_day1") else { return };
    let answers: serde_json::Value = serde_json::from_slice(&std::fs::read(logs.join("answers.json")).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut opened = Vec::new();
    for (at, sensor) in ["NASHUA", "SCRANTON"].into_iter().enumerate() {
        let zipped = logs.join(format!("day1_{sensor}_conn.log.gz"));
        let Ok(plain) = Command::new("zcat").arg(&zipped).output() else {
            eprintln!("SKIPPED: no zcat");
            return;
        };
        std::fs::write(folder.path().join("conn.log"), plain.stdout).unwrap();
        let (events, said) = import(folder.path(), "zeek", &["conn.log"]);
        assert!(said.ends_with("events; 0 records passed over, 0 lines left out\n"), "{said}");
        let begun: Vec<_> = events.into_iter().filter(|event| event.event.kind != Kind::Close).collect();
        assert_eq!(begun.len() as u64, answers["rows_per_vantage"][at][1].as_u64().unwrap());
        opened.push(begun);
    }
    let all = || opened.iter().flatten().map(|event| &event.event);
    let count = |key: &dyn Fn(&weir_schema::Event) -> String| {
        let mut counts = BTreeMap::new();
        all().for_each(|event| *counts.entry(key(event)).or_insert(0_u64) += 1);
        counts
    };
    let told = |rows: &serde_json::Value, value: usize| -> BTreeMap<String, u64> {
        let rows = rows.as_array().unwrap().iter();
        rows.map(|row| (row[0].as_str().unwrap().to_owned(), row[value].as_u64().unwrap())).collect()
    };
    assert_eq!(count(&|event| event.fields.proto.as_deref().unwrap().to_owned()), told(&answers["by_proto"], 1));
    let state = |event: &weir_schema::Event| {
        let detail: serde_json::Value = serde_json::from_str(event.fields.detail.as_deref().unwrap()).unwrap();
        detail["conn_state"].as_str().unwrap().to_owned()
    };
    assert_eq!(count(&state), told(&answers["by_state"], 1));
    let pairs: BTreeSet<_> = all().map(|event| (event.fields.src_ip.clone(), event.fields.dst_ip.clone())).collect();
    assert_eq!(pairs.len() as u64, answers["distinct_pairs"].as_u64().unwrap());
    let refused = all().filter(|event| event.fields.result == Some(111)).count() as u64;
    assert_eq!(refused, told(&answers["by_state"], 1)["REJ"]);
    // The same five-tuple at both sensors within five seconds.
    let tuple = |event: &weir_schema::Event| {
        let fields = &event.fields;
        (fields.src_ip.clone(), fields.src_port, fields.dst_ip.clone(), fields.dst_port, fields.proto.clone())
    };
    let mut times = BTreeMap::<_, Vec<i64>>::new();
    opened[1].iter().for_each(|event| times.entry(tuple(&event.event)).or_default().push(event.event.time));
    let both = opened[0].iter().filter(|event| {
        let near = |time: &i64| time.abs_diff(event.event.time) <= 5_000_000_000;
        times.get(&tuple(&event.event)).is_some_and(|times| times.iter().any(near))
    });
    assert_eq!(both.count() as u64, answers["same_5tuple_seen_at_2_vantages_within_5s"][0][2].as_u64().unwrap());
}

/// Filters over calls that our events stand for find in an imported capture what sysdig found in it.
#[test]
fn rules_find_in_imported_captures_what_sysdig_found() {
    let Some(conformance) = shared("falco/conformance") else { return };
    let folder = tempfile::tempdir().unwrap();
    let oracle = std::fs::read_to_string(conformance.join("filter_oracle_sysdig0.29.3.jsonl")).unwrap();
    let mut expected = BTreeMap::<String, BTreeMap<String, u64>>::new();
    for line in oracle.lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let filter = case["filter"].as_str().unwrap();
        let returns = filter.contains("evt.dir=<")
            || filter.contains("execve")
            || filter.contains("is_open")
            || filter.contains("procexit");
        if returns && !filter.contains("read or") {
            let capture = case["capture"].as_str().unwrap().to_owned();
            expected.entry(capture).or_default().insert(filter.to_owned(), case["count"].as_u64().unwrap());
        }
    }
    let mut compared = 0;
    for (capture, filters) in &expected {
        let rules: String = filters
            .keys()
            .map(|filter| {
                let quoted = serde_json::Value::from(filter.as_str());
                format!("- rule: {quoted}\n  desc: d\n  condition: {quoted}\n  output: o\n  priority: INFO\n")
            })
            .collect();
        std::fs::write(folder.path().join("rules.yaml"), rules).unwrap();
        let trace = conformance.join(format!("trace_files/{capture}.jsonl"));
        let (_, said) = import(folder.path(), "falco", &[trace.to_str().unwrap()]);
        assert!(said.ends_with(" 0 lines left out\n"), "{said}");
        let ran = weir(folder.path(), &["rules", "run", "--all", "--events", "out.jsonl", "rules.yaml"]);
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let mut found: BTreeMap<String, u64> = filters.keys().map(|filter| (filter.clone(), 0)).collect();
        for line in String::from_utf8(ran.stdout).unwrap().lines() {
            let alert: serde_json::Value = serde_json::from_str(line).unwrap();
            *found.get_mut(alert["rule"].as_str().unwrap()).unwrap() += 1;
        }
        assert_eq!(&found, filters, "{capture}");
        compared += filters.len();
    }
    assert!(compared >= 40, "{compared}");
}

#[test]
fn bad_lines_are_named_and_counted_and_long_ones_do_not_take_the_next_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let long = "x".repeat(3 << 20);
    let text = format!("nonsense\n{long}\n{{\"evt.type\":\"execve\",\"evt.rawtime\":7,\"proc.pid\":1}}");
    std::fs::write(folder.path().join("in"), text).unwrap();
    let (events, said) = import(folder.path(), "falco", &["in"]);
    assert_eq!((events.len(), &*events[0].host.host), (1, "unnamed"));
    assert!(
        said.contains("in:1: left out: no JSON") && said.contains("in:2: left out: the line is 1048577 bytes long"),
        "{said}"
    );
    assert!(said.ends_with("1 events; 0 records passed over, 2 lines left out\n"), "{said}");
    let wrong = weir(folder.path(), &["import", "--from", "zeek", "in"]);
    assert_eq!(wrong.status.code(), Some(1));
    let unknown = weir(folder.path(), &["import", "--from", "scap", "in"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("write falco, sysmon, auditd or zeek"));
}

/// Without a config the agent reports to nobody; it polls here, so that any user can run the test.
#[test]
fn an_agent_records_alone_and_rules_run_over_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events.jsonl");
    let nothing = weir(folder.path(), &["agent"]);
    assert_eq!(nothing.status.code(), Some(2));
    let mut agent = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["agent", "--with-parent", "--record", "events.jsonl", "--record-bytes-max", "10485760"])
        .env("WEIR_COLLECTOR__EBPF", "false")
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let read = || -> Vec<JsonEvent> {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines().filter_map(|line| parse_line(line).ok()).collect()
    };
    let until = |what: &str, fits: &dyn Fn(&JsonEvent) -> bool| {
        let end = Instant::now() + Duration::from_secs(60);
        while !read().iter().any(fits) {
            assert!(Instant::now() < end, "{what} is not in the recording");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    // What runs before the agent does has no exec.
    until("the agent's start", &|event| event.event.kind == Kind::HostStart);
    let mut child = Command::new("/bin/sleep").arg("61").spawn().unwrap();
    let is_childs = |process: &weir_schema::Process| process.pid == child.id();
    until("the child's exec", &|event| event.event.kind == Kind::Exec && event.event.process.as_deref().is_some_and(is_childs));
    drop(agent.stdin.take());
    assert!(agent.wait().unwrap().success());
    let pid = child.id();
    child.kill().unwrap();
    child.wait().unwrap();
    let events = read();
    assert_eq!(events[0].event.kind, Kind::HostStart);
    assert!(events.iter().any(|event| event.event.kind == Kind::HostStop));
    let rule = format!("- rule: r\n  desc: d\n  condition: evt.type=execve and proc.pid={pid}\n  output: o\n  priority: INFO\n");
    std::fs::write(folder.path().join("rules.yaml"), rule).unwrap();
    let ran = weir(folder.path(), &["rules", "run", "--events", "events.jsonl", "rules.yaml"]);
    assert_eq!(String::from_utf8(ran.stdout).unwrap().lines().count(), 1, "{}", String::from_utf8_lossy(&ran.stderr));
}
