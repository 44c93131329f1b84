//! What subscribers are told: at every tick the sum of the changes is what a peek says, wherever it begins, over any number of workers,
//! from before what can be peeked, and over a restart from a checkpoint.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::Int64Type;
use arrow::ipc::reader::StreamReader;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use weir_dataflow::handle::{At, ChangesRead, Client, Failure, Read, Request, Response};
use weir_dataflow::{
    ChangesKept, CheckpointPart, CheckpointSink, Command, EngineOptions, Feed, Restore, ViewDefinition, ViewKind, run,
};
use world::{Random, START_MS, TICK_MS, World};

const MADE: (&str, &str) = (
    "by_app",
    "SELECT src_app, state, count(*) AS n, sum(bytes_sent) AS sent, max(dst_port) AS port FROM connections GROUP BY src_app, state",
);
const RELATIONS: [&str; 5] = ["connections", "region_connections", "top_talkers", "hosts", MADE.0];

/// Rows as text, with how often each is there.
type Rows = BTreeMap<Vec<String>, i64>;

fn tick(place: usize) -> u64 {
    START_MS + TICK_MS * place as u64
}

fn definition() -> ViewDefinition {
    let reads = vec!["connections".into()];
    ViewDefinition { name: MADE.0.into(), sql: MADE.1.into(), kind: ViewKind::Materialized, reads }
}

struct Engine {
    client: Client,
    dir: PathBuf,
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[derive(Default)]
struct Begin {
    commands: Vec<(u64, Command)>,
    changes: ChangesKept,
    restore: Option<Arc<Restore>>,
    sink: Option<Arc<dyn CheckpointSink>>,
}

impl Engine {
    fn start(name: &str, world: &World, workers: usize, begin: Begin) -> Self {
        let dir = std::env::temp_dir().join(format!("weir-subscribe-{}-{name}-{workers}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("engine.sock");
        let after = begin.restore.as_ref().map_or(0, |restore| restore.tick());
        let feed = |worker| {
            let script = begin
                .commands
                .iter()
                .fold(world.feed(worker, workers), |script, (at, command)| script.with_command(*at, command));
            Box::new(script.after(after)) as Box<dyn Feed>
        };
        let feeds = (0..workers).map(feed).collect();
        let views = if begin.restore.is_some() { vec![definition()] } else { vec![] };
        let alone = EngineOptions::alone(workers, socket.clone());
        let options = EngineOptions { restore: begin.restore, views, checkpoints: begin.sink, changes: begin.changes, ..alone };
        std::thread::spawn(move || run(options, feeds));
        for _ in 0..6_000 {
            if let Ok(client) = Client::connect(&socket) {
                let mut engine = Self { client, dir };
                // On a busy machine it takes longer than a question may wait.
                while let Err(Failure::TimedOut { .. }) = engine.peek(world.end(), "hosts") {}
                return engine;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the workers did not listen");
    }

    fn ask(&mut self, request: &Request) -> Result<Vec<RecordBatch>, Failure> {
        let mut batches = Vec::new();
        for response in self.client.ask(request).unwrap() {
            match response {
                Response::Rows { ipc, .. } => {
                    batches.extend(StreamReader::try_new(ipc.as_slice(), None).unwrap().map(Result::unwrap));
                }
                Response::Done { .. } => return Ok(batches),
                Response::Failed { failure, .. } => return Err(failure),
                other => panic!("{other:?}"),
            }
        }
        panic!("no answer")
    }

    fn peek(&mut self, at: u64, relation: &str) -> Result<Rows, Failure> {
        let read = Read { relation: relation.into(), columns: None, limit: None, rows_max: 1_000_000, bytes_max: 1 << 30 };
        let batches = self.ask(&Request::Peek { id: 1, at: At::Tick(at), reads: vec![read] })?;
        let mut rows = Rows::new();
        for batch in &batches {
            for row in texts(batch, 0) {
                *rows.entry(row).or_default() += 1;
            }
        }
        Ok(rows)
    }

    /// What changed, by tick.
    fn changes(&mut self, relation: &str, after: Option<u64>, upto: u64) -> Result<BTreeMap<u64, Rows>, Failure> {
        let read = ChangesRead { relation: relation.into(), after, upto, bytes_max: 1 << 30 };
        let batches = self.ask(&Request::Changes { id: 1, read })?;
        let mut changes: BTreeMap<u64, Rows> = BTreeMap::new();
        for batch in &batches {
            let (ticks, diffs) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_primitive::<Int64Type>());
            for (at, row) in texts(batch, 2).into_iter().enumerate() {
                assert_ne!(diffs.value(at), 0, "{relation}: nothing changed");
                let told = changes.entry(ticks.value(at) as u64).or_default().insert(row, diffs.value(at));
                assert_eq!(told, None, "{relation}: a row is told twice at tick {}", ticks.value(at));
            }
        }
        Ok(changes)
    }
}

fn texts(batch: &RecordBatch, skip: usize) -> Vec<Vec<String>> {
    let options = FormatOptions::default();
    let columns = batch.columns()[skip..].iter().map(|column| (column, ArrayFormatter::try_new(column, &options).unwrap()));
    let columns: Vec<_> = columns.collect();
    let text = |row, (column, formatter): &(&arrow::array::ArrayRef, ArrayFormatter<'_>)| match column.is_null(row) {
        true => "NULL".to_owned(),
        false => format!("{}.", formatter.value(row)),
    };
    (0..batch.num_rows()).map(|row| columns.iter().map(|column| text(row, column)).collect()).collect()
}

fn add(rows: &mut Rows, changes: &Rows) {
    for (row, diff) in changes {
        *rows.entry(row.clone()).or_default() += diff;
    }
    rows.retain(|_, count| *count != 0);
}

#[test]
fn changes_add_up_to_every_peek() {
    for workers in [1, 3] {
        let world = World::new(41, 120).disturbed(43);
        let commands = vec![(tick(3), Command::CreateView(definition()))];
        let mut engine = Engine::start("sums", &world, workers, Begin { commands, ..Begin::default() });
        let mut random = Random(7);
        let mut compared = 0;
        for relation in RELATIONS {
            // Far before the ticks that can be peeked, in steps of any length.
            let begin = 5 + random.below(20) as usize;
            let mut rows = engine.changes(relation, None, tick(begin)).unwrap().remove(&tick(begin)).unwrap_or_default();
            let mut at = begin;
            while at < 119 {
                let next = (at + 1 + random.below(4) as usize).min(119);
                let told = engine.changes(relation, Some(tick(at)), tick(next)).unwrap();
                assert!(told.keys().all(|told| (tick(at) + 1..=tick(next)).contains(told)), "{relation}");
                for step in at + 1..=next {
                    told.get(&tick(step)).into_iter().for_each(|changes| add(&mut rows, changes));
                    // The last 50 ticks can be peeked.
                    if step > 72 {
                        assert_eq!(
                            rows,
                            engine.peek(tick(step), relation).unwrap(),
                            "{relation} at tick {step}, {workers} workers"
                        );
                        compared += rows.len();
                    }
                }
                at = next;
            }
            // All at once is the same, and so is a snapshot of the past.
            let whole = engine.changes(relation, Some(tick(begin)), tick(119)).unwrap();
            let mut again = engine.changes(relation, None, tick(begin)).unwrap().remove(&tick(begin)).unwrap_or_default();
            whole.values().for_each(|changes| add(&mut again, changes));
            assert_eq!(again, rows, "{relation}");
        }
        assert!(compared > 1_000, "{compared} rows were compared");
    }
}

#[test]
fn what_is_not_kept_is_told() {
    let world = World::new(9, 120);
    let commands = vec![
        (tick(3), Command::CreateView(definition())),
        (tick(90), Command::DropViews(vec![MADE.0.into()])),
        (tick(100), Command::CreateView(definition())),
    ];
    let changes = ChangesKept { ms: 20 * TICK_MS, bytes_max: 1 << 30 };
    let mut engine = Engine::start("kept", &world, 2, Begin { commands, changes, ..Begin::default() });
    // 50 ticks can be peeked, 20 more are kept.
    assert!(engine.changes("hosts", Some(tick(60)), tick(119)).is_ok());
    assert!(matches!(engine.changes("hosts", Some(tick(40)), tick(119)), Err(Failure::Forgotten { .. })));
    assert!(matches!(engine.changes("hosts", None, tick(40)), Err(Failure::Forgotten { .. })));
    // Another view of the same name: what was told of the first one does not go on with it.
    assert!(
        matches!(engine.changes(MADE.0, Some(tick(89)), tick(119)), Err(Failure::Forgotten { since, .. }) if since == tick(100))
    );
    assert!(engine.changes(MADE.0, Some(tick(100)), tick(119)).is_ok());
    assert!(matches!(engine.changes("events", None, tick(119)), Err(Failure::UnknownRelation(_))));
    assert!(matches!(engine.changes("nothing", None, tick(119)), Err(Failure::UnknownRelation(_))));
    let read = ChangesRead { relation: "connections".into(), after: None, upto: tick(119), bytes_max: 100 };
    assert!(matches!(engine.ask(&Request::Changes { id: 1, read }), Err(Failure::Bytes { .. })));
    let none = ChangesKept { ms: 1 << 20, bytes_max: 0 };
    let mut engine = Engine::start("none", &world, 1, Begin { changes: none, ..Begin::default() });
    assert!(engine.changes("connections", Some(tick(75)), tick(119)).is_ok());
    assert!(matches!(engine.changes("connections", Some(tick(20)), tick(119)), Err(Failure::Forgotten { .. })));
}

struct Parts(Mutex<std::sync::mpsc::SyncSender<CheckpointPart>>);

impl CheckpointSink for Parts {
    fn begun(&self, _tick: u64) {}

    fn put(&self, part: CheckpointPart) {
        let _ = self.0.lock().unwrap().send(part);
    }
}

#[test]
fn other_workers_go_on_where_the_first_ones_were() {
    let world = World::new(13, 100);
    let (sender, parts) = sync_channel(8);
    let sink: Arc<dyn CheckpointSink> = Arc::new(Parts(Mutex::new(sender)));
    let commands = vec![(tick(3), Command::CreateView(definition())), (tick(60), Command::Checkpoint)];
    let begin = Begin { commands: commands.clone(), sink: Some(sink), ..Begin::default() };
    let mut first = Engine::start("first", &world, 2, begin);
    let parts: Vec<Vec<u8>> = (0..2).map(|_| parts.recv_timeout(Duration::from_secs(60)).unwrap().bytes).collect();
    let restore = Some(Arc::new(Restore::parse(&parts).unwrap()));
    let mut other = Engine::start("other", &world, 3, Begin { commands, restore, ..Begin::default() });
    for relation in RELATIONS {
        for after in [60, 61, 75, 98] {
            let (one, two) = (
                first.changes(relation, Some(tick(after)), tick(99)).unwrap(),
                other.changes(relation, Some(tick(after)), tick(99)).unwrap(),
            );
            assert_eq!(one, two, "{relation} behind tick {after}");
        }
        let before = other.changes(relation, Some(tick(59)), tick(99));
        assert!(matches!(before, Err(Failure::Forgotten { since, .. }) if since == tick(60)), "{relation}: {before:?}");
    }
}
