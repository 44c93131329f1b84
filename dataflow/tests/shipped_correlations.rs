//! The correlations that ship, in the engine: each fires on the events of its fixture and spares the others, finds what a plain count over all events
//! finds, and says the same whatever the order in which the events come, on any number of workers and from a checkpoint in the middle.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::AsArray as _;
use arrow::datatypes::TimestampNanosecondType;
use arrow::ipc::reader::StreamReader;
use serde_json::Value as Json;
use weir_dataflow::handle::{At, Client, Failure, Read, Request, Response};
use weir_dataflow::{
    CheckpointPart, CheckpointSink, Command, EngineOptions, Feed, RULE_FORMAT, Restore, RuleFile, RuleMatching, RuleOrigin,
    Rules, run,
};
use weir_rules::{Around, CorrelationHit, Correlator, EventFields, Matcher, Matching, RuleSet};
use weir_schema::{AgentIdentity, BatchBuilder, Epoch, JsonEvent, Name, ProcessId, Seq, StampedFrame, parse_line};
use world::{Random, START_MS, World};

/// How late an event comes at most: less than R, with the length of a tick.
const LATE_MS: u64 = 40_000;
/// Seconds of the ticks: most fixtures last some minutes, the longest an hour and a quarter.
fn seconds() -> impl Iterator<Item = u64> {
    (0..700).step_by(5).chain((700..4_600).step_by(15))
}

fn rules() -> Rules {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/rules/correlations.yml");
    let text = std::fs::read_to_string(folder).unwrap();
    let file = RuleFile { name: "correlations.yml".into(), text: text.into(), origin: RuleOrigin::Loaded };
    Rules { format: RULE_FORMAT, matching: RuleMatching::All, files: vec![file] }
}

/// A fixture: what is to fire, or to be spared, and its events. Each is a tenant of its own.
struct Case {
    tenant: String,
    rule: String,
    fires: bool,
    events: Vec<JsonEvent>,
}

/// The events of a line: one, or so many that differ in some columns.
fn events(line: &str) -> Vec<JsonEvent> {
    let mut said: serde_json::Map<String, Json> = serde_json::from_str(line).unwrap();
    let number = |said: &mut serde_json::Map<String, Json>, key: &str| said.remove(key).map_or(1, |it| it.as_i64().unwrap());
    let (times, every_ms) = (number(&mut said, "times"), number(&mut said, "every_ms"));
    let vary: Vec<String> = said.remove("vary").map_or_else(Vec::new, |names| serde_json::from_value(names).unwrap());
    let one = |n: i64| {
        let mut said = said.clone();
        for key in &vary {
            let value = match &said[key] {
                Json::Number(number) => Json::from(number.as_i64().unwrap() + n),
                Json::String(text) if key == "dst_ip" => {
                    let (net, last) = text.rsplit_once('.').unwrap();
                    Json::from(format!("{net}.{}", last.parse::<i64>().unwrap() + n))
                }
                other => Json::from(format!("{}-{n}", other.as_str().unwrap())),
            };
            said.insert(key.clone(), value);
        }
        let mut event = parse_line(&Json::Object(said).to_string()).unwrap();
        event.event.time += n * every_ms * 1_000_000;
        event
    };
    (0..times).map(one).collect()
}

/// All fixtures, their first event at the first tick.
fn cases() -> Vec<Case> {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/rules/correlations.jsonl");
    let mut cases: Vec<Case> = Vec::new();
    for line in std::fs::read_to_string(file).unwrap().lines() {
        let said: Json = serde_json::from_str(line).unwrap();
        let fires = said["fires"].is_string();
        let rule = said["fires"].as_str().or_else(|| said["spares"].as_str()).unwrap().to_owned();
        match cases.iter_mut().find(|case| (&case.rule, case.fires) == (&rule, fires)) {
            Some(case) => case.events.extend(events(line)),
            None => cases.push(Case { tenant: format!("t{}", cases.len()), rule, fires, events: events(line) }),
        }
    }
    let base = cases.iter().flat_map(|case| &case.events).map(|told| told.event.time).min().unwrap();
    for told in cases.iter_mut().flat_map(|case| &mut case.events) {
        told.event.time += (START_MS * 1_000_000).cast_signed() - base;
    }
    cases
}

/// One frame an event, on its host's agent; `late`: so many milliseconds later at most, and some twice.
fn world(cases: &[Case], late: u64, random: &mut Random) -> World {
    let ticks = seconds().map(|second| (START_MS + second * 1_000, vec![Vec::new(); 3])).collect();
    let mut world = World { ticks, ..World::default() };
    let mut seqs: BTreeMap<(String, String, u8), u64> = BTreeMap::new();
    let name = |text: &str| Name::new(text).unwrap();
    for (case, told) in cases.iter().flat_map(|case| case.events.iter().map(move |told| (case, told))) {
        let (event, host) = (&told.event, Arc::new(told.host.clone()));
        let lane = event.kind.lane();
        let seq = seqs.entry((case.tenant.clone(), host.host.to_string(), lane as u8)).or_default();
        let mut builder = BatchBuilder::new(Arc::clone(&host), Epoch(7), lane, Seq(*seq));
        *seq += 1;
        builder.push(event).unwrap();
        let identity = AgentIdentity { tenant: name(&case.tenant), region: name("eu"), agent: name(&host.host) };
        let frame = builder.finish().unwrap().bytes;
        for _ in 0..=u64::from(late > 0) * random.below(2) {
            let at = event.time.cast_unsigned() / 1_000_000 + random.below(late + 1);
            let place = world.ticks.partition_point(|tick| tick.0 < at);
            let log = random.below(3) as usize;
            let received_ms = world.ticks[place].0;
            world.ticks[place].1[log].push(StampedFrame { identity: identity.clone(), received_ms, frame: frame.clone() });
        }
    }
    world
}

struct Parts(Mutex<SyncSender<CheckpointPart>>);

impl CheckpointSink for Parts {
    fn begun(&self, _tick: u64) {}

    fn put(&self, part: CheckpointPart) {
        let _ = self.0.lock().unwrap().send(part);
    }
}

/// Tenant, rule, state, first and last event, evidence, stages.
type Row = (String, String, String, [i64; 2], String, String);

/// The alerts at the end, and the checkpoint that was made in the middle.
fn alerts(name: &str, world: &World, workers: usize, from: Option<Restore>) -> (BTreeSet<Row>, Option<Restore>) {
    let dir = std::env::temp_dir().join(format!("weir-correlations-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let socket = dir.join("engine.sock");
    let after = from.as_ref().map_or(0, Restore::tick);
    let middle = START_MS + 300_000;
    let feed = |worker| {
        let script = world.feed(worker, workers).with_command(START_MS, &Command::SetRules(rules()));
        Box::new(script.with_checkpoints(&[middle]).after(after)) as Box<dyn Feed>
    };
    let (sender, parts): (_, Receiver<CheckpointPart>) = sync_channel(64);
    let checkpoints: Option<Arc<dyn CheckpointSink>> = Some(Arc::new(Parts(Mutex::new(sender))));
    let is_new = from.is_none();
    let (restore, rules) = from.map(|restore| (Arc::new(restore), rules())).unzip();
    let options = EngineOptions { restore, rules, checkpoints, ..EngineOptions::alone(workers, socket.clone()) };
    let feeds = (0..workers).map(feed).collect();
    std::thread::spawn(move || run(options, feeds));
    let mut client = loop {
        match Client::connect(&socket) {
            Ok(client) => break client,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let columns = ["tenant", "rule", "state", "evidence", "stages", "first_seen", "last_seen"].map(str::to_owned).to_vec();
    let read = Read { relation: "alerts".into(), columns: Some(columns), limit: None, rows_max: 10_000, bytes_max: 1 << 30 };
    let mut found = BTreeSet::new();
    // Workers of a busy machine may need longer than one question waits.
    let mut ask = || client.ask(&Request::Peek { id: 1, at: At::Tick(world.end()), reads: vec![read.clone()] }).unwrap();
    let answers =
        (0..20).map(|_| ask()).find(|all| !matches!(all[..], [Response::Failed { failure: Failure::TimedOut { .. }, .. }]));
    for answer in answers.expect("the workers come to the last tick") {
        match answer {
            Response::Rows { ipc, .. } => {
                for batch in StreamReader::try_new(ipc.as_slice(), None).unwrap().map(Result::unwrap) {
                    let text = |column: usize, row: usize| batch.column(column).as_string::<i32>().value(row).to_owned();
                    let time =
                        |column: usize, row: usize| batch.column(column).as_primitive::<TimestampNanosecondType>().value(row);
                    found.extend((0..batch.num_rows()).map(|row| {
                        let state = if text(2, row) == "withdrawn" { "withdrawn" } else { "open" };
                        (text(0, row), text(1, row), state.to_owned(), [time(5, row), time(6, row)], text(3, row), text(4, row))
                    }));
                }
            }
            Response::Done { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let parts: Vec<Vec<u8>> =
        (0..if is_new { workers } else { 0 }).map(|_| parts.recv_timeout(Duration::from_secs(120)).unwrap().bytes).collect();
    let _ = std::fs::remove_dir_all(&dir);
    (found, is_new.then(|| Restore::parse(&parts).unwrap()))
}

/// Tenant, rule, first and last event of each match of a plain count over all events.
fn counted(cases: &[Case]) -> BTreeSet<(String, String, [i64; 2])> {
    let set: RuleSet = rules().compile();
    assert!(set.errors.is_empty(), "{:?}", set.errors);
    let (mut correlator, mut matcher, mut hits) = (Correlator::default(), Matcher::default(), Vec::new());
    let all = cases.iter().flat_map(|case| case.events.iter().map(move |told| (case, told)));
    for (number, (case, told)) in all.enumerate() {
        let (host, event, tenant) = (&told.host, &told.event, case.tenant.as_str());
        let source = EventFields::new(event, &host.host);
        hits.clear();
        matcher.hits(&set, &source, Matching::All, &mut hits);
        let process = event.process.as_deref();
        let process_id = process.map(|it| ProcessId::new(tenant, &host.host, &host.boot_id, it.pid, it.start_ns).0);
        let around = Around { region: Some("eu"), process_id, ..Around::default() };
        correlator.take(&set, &hits, &source, &CorrelationHit { tenant, time: event.time, number, around });
    }
    let found = correlator.finish(&set).into_iter().filter(|one| set.correlations[one.correlation].alerts);
    found.map(|one| (one.keys[0].clone(), set.correlations[one.correlation].name.clone(), one.times.into())).collect()
}

#[test]
fn each_correlation_fires_and_spares_as_its_fixtures_say_in_any_order() {
    let (cases, mut random) = (cases(), Random(77));
    let (found, _) = alerts("in-order", &world(&cases, 0, &mut random), 1, None);
    for case in &cases {
        let fired = found.iter().any(|(tenant, rule, ..)| (tenant, rule) == (&case.tenant, &case.rule));
        assert_eq!(fired, case.fires, "{} in {}", case.rule, case.tenant);
    }
    assert!(found.iter().all(|(_, _, state, ..)| state == "open"));
    let plain: BTreeSet<_> = found.iter().map(|(tenant, rule, _, times, ..)| (tenant.clone(), rule.clone(), *times)).collect();
    assert_eq!(plain, counted(&cases));
    for workers in 1..=3 {
        let late = world(&cases, LATE_MS, &mut random);
        let (told, restore) = alerts(&format!("late-{workers}"), &late, workers, None);
        assert_eq!(told, found, "{workers} workers");
        let (again, _) = alerts(&format!("again-{workers}"), &late, 4 - workers, restore);
        assert_eq!(again, found, "{workers} to {} workers", 4 - workers);
    }
}
