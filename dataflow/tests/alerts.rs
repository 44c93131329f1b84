//! `alerts` over random fleets: equal to a plain recount of the events, on any number of workers, whatever order the frames come in, over
//! changes of the rules and from checkpoints.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimestampNanosecondType};
use arrow::ipc::reader::StreamReader;
use weir_dataflow::handle::{At, Client, Digest, Read, Request, Response};
use weir_dataflow::{
    CheckpointPart, CheckpointSink, Command, EngineOptions, Feed, RULE_FORMAT, Restore, RuleFile, RuleMatching, RuleOrigin,
    Rules, TableRows, TableWrite, ViewDefinition, relation, run, shipped,
};
use world::{Random, START_MS, TICK_MS, World};

const FIRST: &str = "
- rule: refused
  desc: d
  condition: evt.type=connect and evt.failed=true
  output: \"refused by %fd.sip (%container.id)\"
  priority: WARNING
  tags: [network, mitre_discovery, T1046]
- rule: connects
  desc: d
  condition: evt.type=connect
  output: \"to %fd.sip\"
  priority: NOTICE
- rule: nothing
  desc: d
  condition: evt.type=execve
  output: o
  priority: INFO
";

/// One rule is the same, one says something else, one is gone, one is new.
const SECOND: &str = "
- rule: refused
  desc: another word on it
  condition: evt.type=connect and evt.failed=true
  output: \"refused by %fd.sip (%container.id)\"
  priority: WARNING
  tags: [network, mitre_discovery, T1046]
- rule: nothing
  desc: d
  condition: evt.type=execve
  output: other
  priority: INFO
- rule: accepts
  desc: d
  condition: evt.type in (accept, accept4)
  output: \"from %fd.cip\"
  priority: NOTICE
";

fn rules(text: &str) -> Rules {
    let file = RuleFile { name: "r.yaml".into(), text: text.into(), origin: RuleOrigin::Loaded };
    Rules { format: RULE_FORMAT, matching: RuleMatching::All, files: vec![file] }
}

fn tick(place: usize) -> u64 {
    START_MS + TICK_MS * place as u64
}

struct Parts(Mutex<SyncSender<CheckpointPart>>);

impl CheckpointSink for Parts {
    fn begun(&self, _tick: u64) {}

    fn put(&self, part: CheckpointPart) {
        let _ = self.0.lock().unwrap().send(part);
    }
}

struct Engine {
    client: Client,
    dir: PathBuf,
    parts: Receiver<CheckpointPart>,
    workers: usize,
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Engine {
    fn start(name: &str, world: &World, workers: usize, commands: &[(u64, Command)], from: Option<(Restore, Rules)>) -> Self {
        Self::start_with(name, world, workers, commands, from, vec![])
    }

    /// `views`: what was made when the checkpoint was.
    fn start_with(
        name: &str,
        world: &World,
        workers: usize,
        commands: &[(u64, Command)],
        from: Option<(Restore, Rules)>,
        views: Vec<ViewDefinition>,
    ) -> Self {
        let dir = std::env::temp_dir().join(format!("weir-alerts-{}-{name}-{workers}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("engine.sock");
        let after = from.as_ref().map_or(0, |(restore, _)| restore.tick());
        let feed = |worker| {
            let script =
                commands.iter().fold(world.feed(worker, workers), |script, (at, command)| script.with_command(*at, command));
            Box::new(script.after(after)) as Box<dyn Feed>
        };
        let feeds = (0..workers).map(feed).collect();
        let (restore, rules) = from.map_or((None, None), |(restore, rules)| (Some(Arc::new(restore)), Some(rules)));
        let (sender, parts) = sync_channel(64);
        let checkpoints: Option<Arc<dyn CheckpointSink>> = Some(Arc::new(Parts(Mutex::new(sender))));
        let options = EngineOptions { restore, rules, views, checkpoints, ..EngineOptions::alone(workers, socket.clone()) };
        std::thread::spawn(move || run(options, feeds));
        for _ in 0..6_000 {
            if let Ok(client) = Client::connect(&socket) {
                return Self { client, dir, parts, workers };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the workers did not listen");
    }

    fn peek(&mut self, at: u64, name: &str) -> RecordBatch {
        let read = Read { relation: name.into(), columns: None, limit: None, rows_max: 1_000_000, bytes_max: 1 << 30 };
        let mut batches = Vec::new();
        for response in self.client.ask(&Request::Peek { id: 1, at: At::Tick(at), reads: vec![read] }).unwrap() {
            match response {
                Response::Rows { ipc, .. } => {
                    batches.extend(StreamReader::try_new(ipc.as_slice(), None).unwrap().map(Result::unwrap))
                }
                Response::Done { .. } => {
                    let schema = batches.first().map_or_else(|| Arc::clone(&relation(name).unwrap().schema), RecordBatch::schema);
                    return concat_batches(&schema, &batches).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("no answer")
    }

    fn digest(&mut self, at: u64) -> Digest {
        match self.client.ask(&Request::Digest { id: 1, at: At::Tick(at) }).unwrap().pop() {
            Some(Response::Digests { views, .. }) => views.into_iter().find(|view| view.relation == "alerts").unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn checkpoint(&self) -> Restore {
        let parts: Vec<Vec<u8>> =
            (0..self.workers).map(|_| self.parts.recv_timeout(Duration::from_secs(120)).unwrap().bytes).collect();
        Restore::parse(&parts).unwrap()
    }
}

fn text<'a>(batch: &'a RecordBatch, column: &str, row: usize) -> &'a str {
    let column = batch.column_by_name(column).unwrap().as_string::<i32>();
    if column.is_null(row) { "NULL" } else { column.value(row) }
}

fn time(batch: &RecordBatch, column: &str, row: usize) -> i64 {
    batch.column_by_name(column).unwrap().as_primitive::<TimestampNanosecondType>().value(row)
}

fn int(batch: &RecordBatch, column: &str, row: usize) -> Option<i64> {
    let column = batch.column_by_name(column).unwrap().as_primitive::<Int64Type>();
    (!column.is_null(row)).then(|| column.value(row))
}

/// Everything of an alert that is a function of the events.
fn shown(alerts: &RecordBatch) -> Vec<String> {
    let names: Vec<String> = alerts.schema().fields().iter().map(|field| field.name().clone()).collect();
    let mut rows: Vec<String> = (0..alerts.num_rows())
        .map(|row| {
            let cell = |name: &String| match name.as_str() {
                "closed_through" | "lost_events" => String::new(),
                "revision" => int(alerts, name, row).unwrap().to_string(),
                "time" | "first_seen" | "last_seen" => time(alerts, name, row).to_string(),
                _ => text(alerts, name, row).to_owned(),
            };
            names.iter().map(cell).collect::<Vec<_>>().join("|")
        })
        .collect();
    rows.sort();
    rows
}

/// Per rule and container: (time, event id) of the admitted events that it is about, ascending.
fn recount(events: &RecordBatch) -> BTreeMap<(String, String), Vec<(i64, String)>> {
    let late = events.column_by_name("late").unwrap().as_boolean();
    let mut hits: BTreeMap<(String, String), Vec<(i64, String)>> = BTreeMap::new();
    for row in (0..events.num_rows()).filter(|row| !late.value(*row) && text(events, "kind", *row) == "connect") {
        let failed = int(events, "result", row).is_some_and(|result| result != 0);
        for rule in ["connects", "refused"].into_iter().filter(|rule| *rule == "connects" || failed) {
            let key = (rule.to_owned(), text(events, "container_id", row).to_owned());
            hits.entry(key).or_default().push((time(events, "time", row), text(events, "event_id", row).to_owned()));
        }
    }
    hits.values_mut().for_each(|hits| hits.sort());
    hits
}

fn check_against_recount(engine: &mut Engine, at: u64) -> usize {
    let (alerts, events) = (engine.peek(at, "alerts"), engine.peek(at, "events"));
    let expected = recount(&events);
    assert_eq!(alerts.num_rows(), expected.len());
    for row in 0..alerts.num_rows() {
        let key = (text(&alerts, "rule", row).to_owned(), text(&alerts, "container_id", row).to_owned());
        let hits = &expected[&key];
        assert_eq!(int(&alerts, "revision", row), Some(hits.len() as i64), "{key:?}");
        assert_eq!(text(&alerts, "state", row), if hits.len() == 1 { "open" } else { "updated" });
        let first = hits.first().unwrap().0;
        assert_eq!((time(&alerts, "time", row), time(&alerts, "first_seen", row)), (first, first));
        assert_eq!(time(&alerts, "last_seen", row), hits.last().unwrap().0);
        let evidence: Vec<String> = serde_json::from_str(text(&alerts, "evidence", row)).unwrap();
        let ids: Vec<&String> = hits.iter().take(16).map(|(_, id)| id).collect();
        assert_eq!(evidence.iter().collect::<Vec<_>>(), ids);
        let is_refused = key.0 == "refused";
        assert_eq!(text(&alerts, "severity", row), if is_refused { "warning" } else { "notice" });
        assert_eq!(text(&alerts, "techniques", row), if is_refused { r#"["T1046"]"# } else { "[]" });
        assert_eq!(text(&alerts, "tactics", row), if is_refused { r#"["discovery"]"# } else { "[]" });
        assert!(text(&alerts, "stages", row).contains(&format!("\"events\":{}", hits.len())));
        assert_eq!(text(&alerts, "hosts", row), format!("[\"{}\"]", text(&alerts, "host", row)));
        let summary = if is_refused { "refused by 10.0.0." } else { "to 10.0.0." };
        assert!(text(&alerts, "summary", row).starts_with(summary));
        assert_ne!(text(&alerts, "process_id", row), "NULL");
    }
    alerts.num_rows()
}

fn seed() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = std::env::var("WEIR_SEED").map_or(clock.as_nanos() as u64, |seed| seed.parse().unwrap());
    eprintln!("WEIR_SEED={seed}");
    seed
}

#[test]
fn alerts_are_a_plain_recount_of_the_admitted_events_on_any_number_of_workers() {
    let seed = seed();
    let world = World::new(seed, 150).disturbed(seed);
    let commands = [(tick(0), Command::SetRules(rules(FIRST)))];
    let mut expected = None;
    for workers in 1..=3 {
        let mut engine = Engine::start("recount", &world, workers, &commands, None);
        for place in [149, 140, 120] {
            assert!(check_against_recount(&mut engine, tick(place)) > 6, "seed {seed}");
        }
        let digest = engine.digest(world.end());
        assert_eq!(*expected.get_or_insert_with(|| digest.clone()), digest, "{workers} workers, seed {seed}");
    }
}

#[test]
fn the_order_and_the_way_of_frames_change_nothing() {
    let seed = seed();
    let mut one = World::new(seed, 80);
    one.ticks.extend((80..120).map(|place| (tick(place), vec![Vec::new(); 2])));
    let commands = [(tick(0), Command::SetRules(rules(FIRST)))];
    let mut engine = Engine::start("order", &one, 2, &commands, None);
    let expected = shown(&engine.peek(one.end(), "alerts"));
    assert!(expected.len() > 6);
    for round in 0..4 {
        let (mut random, mut other) = (Random((seed + round) | 1), one.clone());
        other.ticks.iter_mut().for_each(|tick| tick.1 = vec![Vec::new(); 3]);
        for (place, (_, logs)) in one.ticks.iter().enumerate() {
            for frame in logs.iter().flatten() {
                // All of it within the retention, some of it twice.
                for _ in 0..=random.below(2) {
                    let to = (place + random.below(38) as usize).min(one.ticks.len() - 1);
                    other.ticks[to].1[random.below(3) as usize].push(frame.clone());
                }
            }
        }
        let mut engine = Engine::start(&format!("order-{round}"), &other, 1 + round as usize % 3, &commands, None);
        assert_eq!(shown(&engine.peek(other.end(), "alerts")), expected, "seed {seed}, round {round}");
    }
}

#[test]
fn rules_change_at_a_tick_and_live_on_in_checkpoints() {
    let seed = seed();
    let world = World::new(seed, 120).disturbed(seed);
    let commands = [
        (tick(0), Command::SetRules(rules(FIRST))),
        (tick(40), Command::Checkpoint),
        (tick(60), Command::SetRules(rules(SECOND))),
        (tick(80), Command::Checkpoint),
    ];
    let mut expected: Option<Vec<Digest>> = None;
    let at = [tick(119), tick(100)];
    for workers in 1..=3 {
        let mut engine = Engine::start("change", &world, workers, &commands, None);
        let digests: Vec<Digest> = at.iter().map(|at| engine.digest(*at)).collect();
        assert_eq!(*expected.get_or_insert_with(|| digests.clone()), digests, "{workers} workers, seed {seed}");
        let alerts = engine.peek(tick(119), "alerts");
        let of = |rule: &str, state: &str| {
            (0..alerts.num_rows())
                .filter(|row| text(&alerts, "rule", *row) == rule && text(&alerts, "state", *row) == state)
                .count()
        };
        assert!(of("connects", "withdrawn") > 0 && of("connects", "updated") + of("connects", "open") == 0, "seed {seed}");
        assert!(of("refused", "updated") + of("refused", "open") > 0 && of("refused", "withdrawn") == 0, "seed {seed}");
        assert!(of("accepts", "updated") + of("accepts", "open") > 0, "seed {seed}");
        let later = [(tick(60), Command::SetRules(rules(SECOND)))];
        for (name, rules, commands) in [("before", rules(FIRST), &later[..]), ("behind", rules(SECOND), &[])] {
            let restore = engine.checkpoint();
            let mut again = Engine::start(name, &world, 4 - workers, commands, Some((restore, rules)));
            let found: Vec<Digest> = at.iter().map(|at| again.digest(*at)).collect();
            assert_eq!(Some(found), expected, "{name}, {workers} to {} workers, seed {seed}", 4 - workers);
        }
    }
}

/// A change of `rule_exceptions`: rows of (rule, name, field, comparator, value) that come (1) and go (-1).
fn except(rows: &[([&str; 5], i64)]) -> Command {
    let column = |place: usize| Arc::new(StringArray::from_iter_values(rows.iter().map(|(row, _)| row[place]))) as ArrayRef;
    let fields = shipped::EXCEPTION_COLUMNS.map(|name| Field::new(name, DataType::Utf8, false));
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields.to_vec())), (0..5).map(column).collect()).unwrap();
    let rows = TableRows::encode(&batch, rows.iter().map(|(_, diff)| *diff).collect()).unwrap();
    let (table, bytes) = (shipped::EXCEPTIONS.to_owned(), 0);
    Command::WriteTable(TableWrite {
        table,
        read_at: 0,
        follows_rows: false,
        rows,
        added_bytes: bytes,
        removed_bytes: bytes,
        bytes_max: 1 << 20,
    })
}

/// Rule, container, first, last, events of the alerts that are not withdrawn.
type Alert = (String, String, i64, i64, usize);

fn stand(alerts: &RecordBatch) -> Vec<Alert> {
    let rows = (0..alerts.num_rows()).filter(|row| text(alerts, "state", *row) != "withdrawn");
    let alert = |row: usize| {
        let stages: serde_json::Value = serde_json::from_str(text(alerts, "stages", row)).unwrap();
        let events = stages[0]["events"].as_u64().unwrap() as usize;
        let (rule, container) = (text(alerts, "rule", row).to_owned(), text(alerts, "container_id", row).to_owned());
        (rule, container, time(alerts, "first_seen", row), time(alerts, "last_seen", row), events)
    };
    let mut stand: Vec<Alert> = rows.map(alert).collect();
    stand.sort();
    stand
}

/// The alerts of these events without those that `silent` excepts by rule, port and image.
fn recount_without(events: &RecordBatch, silent: impl Fn(&str, i64, &str) -> bool) -> Vec<Alert> {
    let late = events.column_by_name("late").unwrap().as_boolean();
    let admitted: Vec<usize> = (0..events.num_rows()).filter(|row| !late.value(*row)).collect();
    let container = |row: usize| text(events, "container_id", row);
    let named = admitted.iter().filter(|row| text(events, "image", **row) != "NULL");
    let images: BTreeMap<&str, &str> = named.map(|row| (container(*row), text(events, "image", *row))).collect();
    let mut hits: BTreeMap<(&str, &str), Vec<i64>> = BTreeMap::new();
    for row in admitted.into_iter().filter(|row| text(events, "kind", *row) == "connect") {
        let failed = int(events, "result", row).is_some_and(|result| result != 0);
        let image = images.get(container(row)).copied().unwrap_or("NULL");
        for rule in ["connects", "refused"].into_iter().filter(|rule| *rule == "connects" || failed) {
            if !silent(rule, int(events, "dst_port", row).unwrap(), image) {
                hits.entry((rule, container(row))).or_default().push(time(events, "time", row));
            }
        }
    }
    let alert = |((rule, container), mut times): ((&str, &str), Vec<i64>)| {
        times.sort_unstable();
        (rule.to_owned(), container.to_owned(), times[0], times[times.len() - 1], times.len())
    };
    let mut alerts: Vec<Alert> = hits.into_iter().map(alert).collect();
    alerts.sort();
    alerts
}

#[test]
fn exceptions_come_and_go_with_rows_and_late_images_on_any_number_of_workers_and_from_checkpoints() {
    let seed = seed();
    let world = World::described(seed, 150, tick(125)).disturbed(seed);
    let port = ["connects", "web", "fd.sport", "=", "443"];
    let image = ["connects", "image", "container.image.repository", "=", "image-1"];
    let both =
        [["refused", "two", "fd.sport", "in", "(80, 443)"], ["refused", "two", "container.image.repository", "=", "image-2"]];
    let wrong = ["refused", "wrong", "fd.sprot", "=", "80"];
    let views = shipped::shipped_tables();
    let mut commands = vec![(tick(0), Command::SetRules(rules(FIRST)))];
    commands.extend(views.iter().map(|table| (tick(1), Command::CreateView(table.clone()))));
    let later = [
        (tick(115), except(&[(image, 1)])),
        (tick(118), except(&[(both[0], 1), (both[1], 1), (wrong, 1)])),
        (tick(140), except(&[(port, -1)])),
        (tick(145), except(&[(image, -1), (both[0], -1)])),
    ];
    commands.extend([(tick(105), except(&[(port, 1)])), (tick(110), Command::Checkpoint)]);
    commands.extend(later.iter().cloned());
    let silent = |place: usize| {
        move |rule: &str, port: i64, is: &str| match rule {
            "connects" => ((105..140).contains(&place) && port == 443) || ((115..145).contains(&place) && is == "image-1"),
            _ => place >= 118 && is == "image-2" && (place >= 145 || port == 80 || port == 443),
        }
    };
    let places = [104, 106, 116, 120, 130, 139, 142, 149];
    let mut expected: Option<Vec<Digest>> = None;
    for workers in 1..=3 {
        let mut engine = Engine::start("excepted", &world, workers, &commands, None);
        let digests: Vec<Digest> = [149, 142, 130].iter().map(|place| engine.digest(tick(*place))).collect();
        assert_eq!(*expected.get_or_insert_with(|| digests.clone()), digests, "{workers} workers, seed {seed}");
        for place in places {
            let (alerts, events) = (engine.peek(tick(place), "alerts"), engine.peek(tick(place), "events"));
            let plain = recount_without(&events, silent(place));
            assert_eq!(stand(&alerts), plain, "tick {place}, seed {seed}");
            assert!(!plain.is_empty());
        }
        let restore = engine.checkpoint();
        let from = Some((restore, rules(FIRST)));
        let mut again = Engine::start_with("excepted-again", &world, 4 - workers, &later, from, views.clone());
        let found: Vec<Digest> = [149, 142, 130].iter().map(|place| again.digest(tick(*place))).collect();
        assert_eq!(Some(found), expected, "{workers} to {} workers, seed {seed}", 4 - workers);
    }
}
