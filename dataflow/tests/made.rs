//! Views and tables that people make while the workers run: at every tick what DataFusion answers to the same SELECT over the rows that the inputs have at
//! that tick, whenever the view was made, on any number of workers, and from a checkpoint.

#![allow(clippy::unwrap_used)]

mod world;

use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::ipc::reader::StreamReader;
use arrow::util::pretty::pretty_format_batches;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use weir_dataflow::handle::{At, Client, Failure, Read, Request, Response};
use weir_dataflow::{
    CheckpointPart, CheckpointSink, Command, EngineOptions, Feed, Restore, TableRows, TableWrite, ViewDefinition, ViewKind,
    relation, run,
};
use world::{START_MS, TICK_MS, World};

/// Name, whether it is kept, the SELECT, what it reads.
const VIEWS: [(&str, ViewKind, &str); 12] = [
    (
        "by_app",
        ViewKind::Materialized,
        "SELECT src_app, state, count(*) AS n, sum(bytes_sent) AS sent, min(opened) AS first, max(dst_port) AS port FROM connections GROUP BY src_app, state",
    ),
    ("open_named", ViewKind::Plain, "SELECT connection_id, src_host, dst_host, dst_port FROM connections WHERE state = 'open'"),
    (
        "open_hosts",
        ViewKind::Materialized,
        "SELECT o.src_host, h.region, count(*) AS n FROM open_named AS o JOIN hosts AS h ON o.src_host = h.host GROUP BY o.src_host, h.region",
    ),
    ("busy", ViewKind::Materialized, "SELECT src_host, n FROM open_hosts WHERE n > 1"),
    ("quiet", ViewKind::Materialized, "SELECT h.host, b.n FROM hosts AS h LEFT JOIN busy AS b ON h.host = b.src_host"),
    (
        "top",
        ViewKind::Materialized,
        "SELECT connection_id, dst_port, bytes_sent FROM connections ORDER BY bytes_sent DESC, connection_id LIMIT 5",
    ),
    (
        "ends",
        ViewKind::Materialized,
        "SELECT src_host AS host, 'src' AS side FROM connections UNION ALL SELECT dst_host, 'dst' FROM connections",
    ),
    (
        "both",
        ViewKind::Materialized,
        "SELECT a.src_app, a.n AS open, b.n AS failed FROM by_app AS a FULL JOIN by_app AS b ON a.src_app = b.src_app AND b.state = 'failed' AND a.state = 'open'",
    ),
    (
        "total",
        ViewKind::Materialized,
        "SELECT count(*) AS n, count(DISTINCT src_app) AS apps, avg(dst_port) AS port FROM connections WHERE dst_port > 100",
    ),
    (
        "only_src",
        ViewKind::Materialized,
        "SELECT src_app, dst_port FROM connections EXCEPT SELECT dst_app, dst_port FROM connections WHERE state = 'open'",
    ),
    (
        "both_ways",
        ViewKind::Materialized,
        "SELECT src_app, dst_app FROM connections WHERE state = 'open' INTERSECT SELECT dst_app, src_app FROM connections WHERE state = 'open'",
    ),
    (
        "next",
        ViewKind::Materialized,
        "SELECT connection_id, bytes_sent FROM connections ORDER BY bytes_sent DESC, connection_id LIMIT 4 OFFSET 3",
    ),
];

fn definition(name: &str) -> ViewDefinition {
    let (name, kind, sql) = VIEWS.iter().find(|view| view.0 == name).unwrap();
    ViewDefinition { name: (*name).into(), sql: (*sql).into(), kind: *kind, reads: vec![] }
}

fn create(name: &str) -> Command {
    Command::CreateView(definition(name))
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
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[derive(Default)]
struct From {
    restore: Option<Arc<Restore>>,
    views: Vec<ViewDefinition>,
    sink: Option<Arc<dyn CheckpointSink>>,
}

impl Engine {
    fn start(name: &str, world: &World, workers: usize, commands: &[(u64, Command)], from: From) -> Self {
        let dir = std::env::temp_dir().join(format!("weir-made-{}-{name}-{workers}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("engine.sock");
        let after = from.restore.as_ref().map_or(0, |restore| restore.tick());
        let feed = |worker| {
            let script =
                commands.iter().fold(world.feed(worker, workers), |script, (at, command)| script.with_command(*at, command));
            Box::new(script.after(after)) as Box<dyn Feed>
        };
        let feeds = (0..workers).map(feed).collect();
        let From { restore, views, sink } = from;
        let options = EngineOptions { restore, views, checkpoints: sink, ..EngineOptions::alone(workers, socket.clone()) };
        std::thread::spawn(move || run(options, feeds));
        for _ in 0..6_000 {
            if let Ok(client) = Client::connect(&socket) {
                return Self { client, dir };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the workers did not listen");
    }

    fn peek(&mut self, at: u64, relation: &str) -> Result<Vec<RecordBatch>, Failure> {
        let read = Read { relation: relation.into(), columns: None, limit: None, rows_max: 1_000_000, bytes_max: 1 << 30 };
        let mut batches = Vec::new();
        for response in self.client.ask(&Request::Peek { id: 1, at: At::Tick(at), reads: vec![read] }).unwrap() {
            match response {
                Response::Rows { ipc, .. } => {
                    batches.extend(StreamReader::try_new(ipc.as_slice(), None).unwrap().map(Result::unwrap))
                }
                Response::Done { .. } => return Ok(batches),
                Response::Failed { failure, .. } => return Err(failure),
                other => panic!("{other:?}"),
            }
        }
        panic!("no answer")
    }

    /// Waits for a tick, since views are known only from theirs on.
    fn wait(&mut self, at: u64) {
        // On a busy machine it takes longer than a question may wait.
        while let Err(Failure::TimedOut { .. }) = self.peek(at, "hosts") {}
    }

    /// Compares views with what their SELECTs give over the inputs at the same tick.
    async fn check(&mut self, at: u64, names: &[&str]) -> usize {
        let context = SessionContext::new();
        for shipped in ["connections", "hosts"] {
            let batches = self.peek(at, shipped).unwrap();
            let table = MemTable::try_new(Arc::clone(&relation(shipped).unwrap().schema), vec![batches]).unwrap();
            context.register_table(shipped, Arc::new(table)).unwrap();
        }
        for (name, _, sql) in VIEWS {
            context.sql(&format!("CREATE VIEW {name} AS {sql}")).await.unwrap();
        }
        let mut rows = 0;
        for name in names {
            let expected = context.sql(&format!("SELECT * FROM {name}")).await.unwrap().collect().await.unwrap();
            let kept = self.peek(at, name).unwrap();
            assert_eq!(lines(&kept), lines(&expected), "{name} at tick {}", (at - START_MS) / TICK_MS);
            rows += lines(&kept).len();
        }
        rows
    }
}

/// Rows as sorted text.
fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let text = pretty_format_batches(batches).unwrap().to_string();
    let squeeze = |line: &str| line.split('|').map(str::trim).collect::<Vec<_>>().join("|");
    let mut lines: Vec<_> = text.lines().filter(|line| line.starts_with('|')).skip(1).map(squeeze).collect();
    lines.sort();
    lines
}

/// Views made before there is any data, in the middle of it and late, with one dropped and made again.
fn history() -> Vec<(u64, Command)> {
    let mut history = vec![(tick(0), create("by_app")), (tick(0), create("top")), (tick(3), create("open_named"))];
    history.extend(["open_hosts", "busy", "total", "only_src", "both_ways", "next"].map(|name| (tick(3), create(name))));
    history.extend(["quiet", "both"].map(|name| (tick(40), create(name))));
    history.push((tick(50), Command::DropViews(vec!["total".into(), "quiet".into()])));
    history.push((tick(51), create("total")));
    history.push((tick(90), create("ends")));
    history
}

const KEPT: [&str; 10] = ["by_app", "top", "open_hosts", "busy", "both", "total", "ends", "only_src", "both_ways", "next"];

#[tokio::test]
async fn a_view_is_what_its_select_says_at_every_tick() {
    for workers in [1, 3] {
        let world = World::new(29, 120).disturbed(31);
        let mut engine = Engine::start("plain", &world, workers, &history(), From::default());
        engine.wait(tick(119));
        let mut rows = 0;
        for place in (92..120).step_by(3) {
            rows += engine.check(tick(place), &KEPT).await;
        }
        assert!(rows > 300, "{rows} rows were compared");
        assert!(matches!(engine.peek(tick(119), "quiet"), Err(Failure::UnknownRelation(_))), "it was dropped");
        assert!(matches!(engine.peek(tick(89), "ends"), Err(Failure::Forgotten { .. })), "it was not there yet");
    }
}

#[tokio::test]
async fn views_are_there_again_after_a_checkpoint() {
    let world = World::new(7, 120);
    let (sender, parts) = sync_channel(8);
    let sink: Arc<dyn CheckpointSink> = Arc::new(Parts(Mutex::new(sender)));
    let mut commands = history();
    commands.push((tick(60), Command::Checkpoint));
    let mut first = Engine::start("first", &world, 2, &commands, From { sink: Some(sink), ..From::default() });
    first.wait(tick(119));
    let parts: Vec<Vec<u8>> = (0..2).map(|_| parts.recv_timeout(Duration::from_secs(60)).unwrap().bytes).collect();
    let restore = Some(Arc::new(Restore::parse(&parts).unwrap()));
    let there = ["by_app", "top", "open_named", "open_hosts", "busy", "both", "total", "only_src", "both_ways", "next"];
    let there = there.map(definition).to_vec();
    let mut again = Engine::start("again", &world, 3, &commands, From { restore, views: there, sink: None });
    again.wait(tick(119));
    for place in [95, 110, 119] {
        assert!(again.check(tick(place), &KEPT).await > 10);
        for name in KEPT {
            let (one, other) = (first.peek(tick(place), name).unwrap(), again.peek(tick(place), name).unwrap());
            assert_eq!(lines(&one), lines(&other), "{name}");
        }
    }
}

#[test]
fn a_view_that_cannot_be_kept_fails_alone() {
    let world = World::new(3, 30);
    let broken = ViewDefinition {
        name: "broken".into(),
        sql: "SELECT a FROM nowhere".into(),
        kind: ViewKind::Materialized,
        reads: vec![],
    };
    let mut engine = Engine::start(
        "broken",
        &world,
        2,
        &[(tick(1), Command::CreateView(broken)), (tick(2), create("by_app"))],
        From::default(),
    );
    engine.wait(tick(29));
    assert!(!engine.peek(tick(29), "by_app").unwrap().is_empty());
    let told = engine.peek(tick(29), "broken").unwrap_err().to_string();
    assert!(told.contains("broken") && told.contains("nowhere"), "{told}");
}

/// A table's rows as people wrote them, and what a plain list says of them.
struct Written {
    commands: Vec<(u64, Command)>,
    /// The list at every tick.
    rows: Vec<Vec<(String, Option<i64>)>>,
}

fn owners() -> ViewDefinition {
    let sql = "CREATE TABLE owners (app text, rank bigint)".to_owned();
    ViewDefinition { name: "owners".into(), sql, kind: ViewKind::Table, reads: vec![] }
}

/// Rows that come and go at random from tick `from` on, sometimes many changes in a tick, sometimes all go, once the table itself.
fn written(seed: u64, from: usize, ticks: usize) -> Written {
    let mut random = seed;
    let mut below = |limit: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % limit
    };
    let (mut commands, mut rows, mut list) = (vec![(tick(from), Command::CreateView(owners()))], Vec::new(), Vec::new());
    for place in 0..ticks {
        if place == 70 {
            commands.push((tick(place), Command::DropViews(vec!["owned".into(), "owners".into()])));
            commands.push((tick(place), Command::CreateView(owners())));
            commands.push((tick(place), Command::CreateView(owned())));
            list.clear();
        }
        for _ in 0..if place < from { 0 } else { below(4) } {
            let rows = match below(12) {
                0 => {
                    list.clear();
                    TableRows::Cleared
                }
                kind => {
                    let mut changes = Vec::new();
                    for _ in 0..below(6) {
                        // As an UPDATE does: some rows go, and others come.
                        if kind > 4 && !list.is_empty() {
                            changes.push((list.swap_remove(below(list.len() as u64) as usize), -1));
                        }
                        if kind < 10 {
                            let row = (
                                ["web", "db", "cache", "none"][below(4) as usize].to_owned(),
                                Some(below(5) as i64).filter(|rank| *rank > 0),
                            );
                            list.push(row.clone());
                            changes.push((row, 1));
                        }
                    }
                    let apps = StringArray::from_iter_values(changes.iter().map(|((app, _), _)| app));
                    let ranks: Int64Array = changes.iter().map(|((_, rank), _)| *rank).collect();
                    let batch = RecordBatch::try_from_iter([("app", Arc::new(apps) as _), ("rank", Arc::new(ranks) as ArrayRef)]);
                    TableRows::encode(&batch.unwrap(), changes.iter().map(|(_, diff)| *diff).collect()).unwrap()
                }
            };
            let write = TableWrite {
                table: "owners".into(),
                read_at: 0,
                follows_rows: false,
                rows,
                added_bytes: 0,
                removed_bytes: 0,
                bytes_max: 0,
            };
            commands.push((tick(place), Command::WriteTable(write)));
        }
        rows.push(list.clone());
    }
    Written { commands, rows }
}

const OWNED: &str = "SELECT o.app, o.rank, c.state, count(*) AS n FROM owners AS o JOIN connections AS c ON o.app = c.src_app GROUP BY o.app, o.rank, c.state";

fn owned() -> ViewDefinition {
    let reads = vec!["owners".to_owned(), "connections".to_owned()];
    ViewDefinition { name: "owned".into(), sql: OWNED.into(), kind: ViewKind::Materialized, reads }
}

/// Compares a table with the list, and the view over it with DataFusion.
async fn check_table(engine: &mut Engine, at: usize, written: &Written) -> usize {
    let kept = engine.peek(tick(at), "owners").unwrap();
    let shown = |(app, rank): &(String, Option<i64>)| format!("|{app}|{}|", rank.map_or(String::new(), |rank| rank.to_string()));
    let mut expected: Vec<String> = written.rows[at].iter().map(shown).collect();
    expected.sort();
    assert_eq!(lines(&kept), expected, "owners at tick {at}");
    let context = SessionContext::new();
    for (name, schema) in [
        ("connections", Arc::clone(&relation("connections").unwrap().schema)),
        ("owners", weir_plan::Table::parse(&owners().sql).unwrap().schema),
    ] {
        let batches = engine.peek(tick(at), name).unwrap();
        context.register_table(name, Arc::new(MemTable::try_new(schema, vec![batches]).unwrap())).unwrap();
    }
    let expected = lines(&context.sql(OWNED).await.unwrap().collect().await.unwrap());
    assert_eq!(lines(&engine.peek(tick(at), "owned").unwrap()), expected, "owned at tick {at}");
    expected.len()
}

#[tokio::test]
async fn a_table_is_what_was_written_and_views_follow_it() {
    for (workers, seed) in [(1, 3), (2, 4), (3, 5)] {
        println!("seed {seed}");
        let (world, mut written) = (World::new(29, 120), written(seed, 2, 120));
        written.commands.push((tick(20), Command::CreateView(owned())));
        written.commands.sort_by_key(|(at, _)| *at);
        let mut engine = Engine::start(&format!("table-{seed}"), &world, workers, &written.commands, From::default());
        engine.wait(tick(119));
        let mut rows = 0;
        for at in 75..120 {
            rows += check_table(&mut engine, at, &written).await;
        }
        assert!(rows > 50, "{rows} rows were compared");
    }
}

#[tokio::test]
async fn a_table_is_there_again_after_a_checkpoint() {
    for saved_at in [60, 80] {
        let (world, mut written) = (World::new(7, 120), written(11, 2, 120));
        let (sender, parts) = sync_channel(8);
        let sink: Arc<dyn CheckpointSink> = Arc::new(Parts(Mutex::new(sender)));
        written.commands.push((tick(20), Command::CreateView(owned())));
        written.commands.push((tick(saved_at), Command::Checkpoint));
        written.commands.sort_by_key(|(at, _)| *at);
        let from = From { sink: Some(sink), ..From::default() };
        let mut first = Engine::start(&format!("table-first-{saved_at}"), &world, 2, &written.commands, from);
        first.wait(tick(119));
        let parts: Vec<Vec<u8>> = (0..2).map(|_| parts.recv_timeout(Duration::from_secs(60)).unwrap().bytes).collect();
        let restore = Some(Arc::new(Restore::parse(&parts).unwrap()));
        let from = From { restore, views: vec![owners(), owned()], sink: None };
        // At tick 70 the table is dropped and made again: the rows of the checkpoint must not come back.
        let mut again = Engine::start(&format!("table-again-{saved_at}"), &world, 3, &written.commands, from);
        again.wait(tick(119));
        for at in (85..120).step_by(5) {
            check_table(&mut again, at, &written).await;
        }
    }
}
