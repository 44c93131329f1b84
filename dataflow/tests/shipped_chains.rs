//! The sequence rules that ship: each fires on the events of its fixture, spares the others, claims techniques of the table, and says the same whatever the
//! order in which the events come.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray as _;
use arrow::ipc::reader::StreamReader;
use weir_dataflow::handle::{At, Client, Read, Request, Response};
use weir_dataflow::{Command, EngineOptions, Feed, rule_definition, rule_definitions, run};
use weir_schema::{AgentIdentity, BatchBuilder, Epoch, JsonEvent, Name, Seq, StampedFrame, parse_line};
use world::{Random, START_MS, World};

fn folder() -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/rules")
}

fn files(folder: &str, ending: &str) -> Vec<String> {
    let entries = std::fs::read_dir(self::folder().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|found| found == ending)).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

/// The statements of all files.
fn statements() -> Vec<String> {
    let texts = files("chains", "sql");
    texts.iter().flat_map(|text| rule_definitions(text).unwrap()).map(|rule| rule.definition.sql).collect()
}

struct Fixture {
    event: JsonEvent,
    /// Which rule fires, or is to spare it.
    rule: String,
    fires: bool,
}

fn fixtures() -> Vec<Fixture> {
    let texts = files("chains/fixtures", "jsonl");
    let lines = texts.iter().flat_map(|text| text.lines());
    let read = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let rule = |key: &str| value.get(key).and_then(|name| name.as_str()).map(str::to_owned);
        let (fires, spares) = (rule("fires"), rule("spares"));
        Fixture { event: parse_line(line).unwrap(), fires: fires.is_some(), rule: fires.or(spares).unwrap() }
    };
    lines.map(read).collect()
}

/// One frame an event, at the second of its time, on its host's agent; `late`: so many milliseconds later at most, and some twice.
fn world(fixtures: &[Fixture], late: u64, random: &mut Random) -> World {
    let base = fixtures.iter().map(|fixture| fixture.event.event.time).min().unwrap();
    let mut world = World::default();
    // Every second for a while; then until what must not happen has not.
    let seconds = (0..90).chain((90..1_000).step_by(20));
    world.ticks = seconds.map(|second| (START_MS + second * 1_000, vec![Vec::new(); 3])).collect();
    let mut seqs: BTreeMap<(String, u8), u64> = BTreeMap::new();
    let name = |text: &str| Name::new(text).unwrap();
    for fixture in fixtures {
        let (mut event, host) = (fixture.event.event.clone(), Arc::new(fixture.event.host.clone()));
        let offset = event.time - base;
        event.time = START_MS as i64 * 1_000_000 + offset;
        let lane = event.kind.lane();
        let seq = seqs.entry((host.host.to_string(), lane as u8)).or_default();
        let mut builder = BatchBuilder::new(Arc::clone(&host), Epoch(7), lane, Seq(*seq));
        *seq += 1;
        builder.push(&event).unwrap();
        let agent = name(&host.host.replace('_', "-"));
        let identity = AgentIdentity { tenant: name("acme"), region: name("eu"), agent };
        let frame = builder.finish().unwrap().bytes;
        for _ in 0..=u64::from(late > 0) * random.below(2) {
            let at = event.time as u64 / 1_000_000 + random.below(late + 1);
            let place = world.ticks.partition_point(|tick| tick.0 < at);
            let log = random.below(3) as usize;
            let received_ms = world.ticks[place].0;
            world.ticks[place].1[log].push(StampedFrame { identity: identity.clone(), received_ms, frame: frame.clone() });
        }
    }
    world
}

/// Rule, host of the first event, evidence.
fn alerts(name: &str, world: &World, workers: usize) -> BTreeSet<[String; 3]> {
    let dir = std::env::temp_dir().join(format!("weir-shipped-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let socket = dir.join("engine.sock");
    let feed = |worker| {
        let create = |sql: &String| Command::CreateView(rule_definition(sql).unwrap().definition);
        let script = statements()
            .iter()
            .map(create)
            .fold(world.feed(worker, workers), |script, command| script.with_command(START_MS, &command));
        Box::new(script) as Box<dyn Feed>
    };
    let (feeds, options) = ((0..workers).map(feed).collect(), EngineOptions::alone(workers, socket.clone()));
    std::thread::spawn(move || run(options, feeds));
    let mut client = loop {
        match Client::connect(&socket) {
            Ok(client) => break client,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let columns = ["rule", "host", "evidence"].map(str::to_owned).to_vec();
    let read = Read { relation: "alerts".into(), columns: Some(columns), limit: None, rows_max: 10_000, bytes_max: 1 << 30 };
    let answers = client.ask(&Request::Peek { id: 1, at: At::Tick(world.end()), reads: vec![read] }).unwrap();
    let mut found = BTreeSet::new();
    for answer in answers {
        match answer {
            Response::Rows { ipc, .. } => {
                for batch in StreamReader::try_new(ipc.as_slice(), None).unwrap().map(Result::unwrap) {
                    let cell = |column: usize, row: usize| batch.column(column).as_string::<i32>().value(row).to_owned();
                    found.extend((0..batch.num_rows()).map(|row| [cell(0, row), cell(1, row), cell(2, row)]));
                }
            }
            Response::Done { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let _ = std::fs::remove_dir_all(&dir);
    found
}

#[test]
fn each_rule_fires_and_spares_as_its_fixtures_say_in_any_order() {
    let names: Vec<String> = statements().iter().map(|sql| rule_definition(sql).unwrap().definition.name).collect();
    let distinct: BTreeSet<&String> = names.iter().collect();
    assert!(names.len() >= 20 && distinct.len() == names.len());
    let fixtures = fixtures();
    for name in &names {
        let of = |fires: bool| fixtures.iter().any(|fixture| fixture.rule == *name && fixture.fires == fires);
        assert!(of(true) && of(false), "{name} has no fixture that fires, or none that it spares");
    }
    let mut random = Random(77);
    let found = alerts("in-order", &world(&fixtures, 0, &mut random), 1);
    let told: BTreeSet<(String, bool)> =
        found.iter().map(|[rule, host, _]| (rule.clone(), host.starts_with(&format!("fires-{rule}")))).collect();
    let expected: BTreeSet<(String, bool)> = names.iter().map(|name| (name.clone(), true)).collect();
    // A rule may also fire on the fixtures of another; never on its own that it is to spare.
    let spared = |[rule, host, _]: &&[String; 3]| host.starts_with(&format!("spares-{rule}"));
    assert_eq!(found.iter().find(spared), None);
    let missing: Vec<_> = expected.difference(&told).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for workers in 1..=3 {
        let late = world(&fixtures, 50_000, &mut random);
        assert_eq!(alerts(&format!("late-{workers}"), &late, workers), found, "{workers} workers");
    }
}

#[test]
fn each_rule_claims_techniques_of_the_table() {
    let table = std::fs::read_to_string(folder().join("attack.csv")).unwrap();
    let known: BTreeSet<&str> = table.lines().filter_map(|line| line.split(',').next()).collect();
    for sql in statements() {
        let claimed: Vec<&str> =
            sql.split('\'').filter(|word| word.starts_with('T') && word[1..].starts_with(char::is_numeric)).collect();
        assert!(!claimed.is_empty(), "{sql}");
        assert_eq!(claimed.iter().find(|technique| !known.contains(**technique)), None, "{sql}");
    }
}
