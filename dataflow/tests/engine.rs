//! The whole engine: frames in, peeks out, over one worker, several, and several processes of a mesh.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::ipc::reader::StreamReader;
use arrow::util::pretty::pretty_format_batches;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use weir_dataflow::handle::{At, Client, Completeness, Digest, Failure, Read, Request, Response};
use weir_dataflow::{EngineOptions, Feed, relation, relations, run};
use world::{Held, START_MS, TICK_MS, World};

/// Starts one process of workers; it lives as long as the test.
fn start(world: &World, dir: &Path, process: usize, links: Vec<Option<UnixStream>>, workers: usize) -> Client {
    let all = workers * links.len().max(1);
    let feeds = (0..workers).map(|local| Box::new(world.feed(process * workers + local, all)) as _).collect();
    start_with(feeds, dir, process, links)
}

/// The same, fed by these: one a worker.
fn start_with(feeds: Vec<Box<dyn Feed>>, dir: &Path, process: usize, links: Vec<Option<UnixStream>>) -> Client {
    let (socket, workers) = (dir.join(format!("{process}.sock")), feeds.len());
    let options = EngineOptions { process, links, ..EngineOptions::alone(workers, socket.clone()) };
    std::thread::spawn(move || run(options, feeds));
    for _ in 0..3_000 {
        match Client::connect(&socket) {
            Ok(client) => return client,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    panic!("the workers did not listen");
}

/// The sockets of each of so many processes.
fn links(processes: usize) -> Vec<Vec<Option<UnixStream>>> {
    let mut links: Vec<Vec<Option<UnixStream>>> = (0..processes).map(|_| (0..processes).map(|_| None).collect()).collect();
    let pairs = (0..processes).flat_map(|one| (0..one).map(move |other| (one, other)));
    pairs.for_each(|(one, other)| {
        let (here, there) = UnixStream::pair().unwrap();
        (links[one][other], links[other][one]) = (Some(here), Some(there));
    });
    links
}

fn scratch() -> PathBuf {
    let dir = std::env::temp_dir().join(format!("weir-engine-{}-{:?}", std::process::id(), std::thread::current().id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn single(world: &World, workers: usize) -> (Client, PathBuf) {
    let dir = scratch();
    (start(world, &dir, 0, vec![], workers), dir)
}

fn read_of(relation: &str) -> Read {
    Read { relation: relation.into(), columns: None, limit: None, rows_max: 1_000_000, bytes_max: 1 << 30 }
}

fn peek(client: &mut Client, at: u64, reads: Vec<Read>) -> Result<(Vec<RecordBatch>, Completeness), Failure> {
    let schemas: Vec<_> = reads.iter().map(|read| Arc::clone(&relation(&read.relation).unwrap().schema)).collect();
    let mut batches = vec![Vec::new(); reads.len()];
    for response in client.ask(&Request::Peek { id: 1, at: At::Tick(at), reads }).unwrap() {
        match response {
            Response::Rows { read, ipc, tick, .. } => {
                assert_eq!(tick, at);
                batches[read as usize].extend(StreamReader::try_new(ipc.as_slice(), None).unwrap().map(Result::unwrap));
            }
            Response::Done { completeness, tick, .. } => {
                assert_eq!(tick, at);
                let whole = |(schema, batches): (_, &Vec<RecordBatch>)| match batches.first() {
                    Some(first) => concat_batches(&first.schema(), batches).unwrap(),
                    None => RecordBatch::new_empty(schema),
                };
                return Ok((schemas.into_iter().zip(&batches).map(whole).collect(), completeness));
            }
            Response::Failed { failure, .. } => return Err(failure),
            other => panic!("{other:?}"),
        }
    }
    panic!("no answer")
}

fn digests(client: &mut Client, at: u64) -> Vec<Digest> {
    match client.ask(&Request::Digest { id: 2, at: At::Tick(at) }).unwrap().pop() {
        Some(Response::Digests { tick, views, .. }) => {
            assert_eq!(tick, at);
            views
        }
        other => panic!("{other:?}"),
    }
}

/// Rows as sorted text.
fn lines(batch: &RecordBatch) -> Vec<String> {
    let text = pretty_format_batches(std::slice::from_ref(batch)).unwrap().to_string();
    let squeeze = |line: &str| line.split('|').map(str::trim).collect::<Vec<_>>().join("|");
    let mut lines: Vec<_> = text.lines().filter(|line| line.starts_with('|')).skip(1).map(squeeze).collect();
    lines.sort();
    lines
}

#[test]
fn digests_are_the_same_over_any_number_of_workers_and_processes() {
    let world = World::new(11, 60);
    let (mut one, dir) = single(&world, 1);
    let expected = digests(&mut one, world.end());
    let rows: BTreeMap<_, _> = expected.iter().map(|digest| (digest.relation.as_str(), digest.rows)).collect();
    for busy in ["connections", "region_connections", "service_map", "new_edges", "top_talkers", "utilization", "hosts", "agents"]
    {
        assert!(rows[busy] > 0, "{busy} has no rows: {rows:?}");
    }
    let two_dir = dir.join("two");
    std::fs::create_dir_all(&two_dir).unwrap();
    let mut two = start(&world, &two_dir, 0, vec![], 2);
    assert_eq!(digests(&mut two, world.end()), expected);

    let mesh = dir.join("mesh");
    std::fs::create_dir_all(&mesh).unwrap();
    let links = links(3).into_iter().enumerate();
    let mut clients: Vec<_> = links.map(|(process, links)| start(&world, &mesh, process, links, 1)).collect();
    for client in &mut clients {
        assert_eq!(digests(client, world.end()), expected);
        // Each process answers with the rows of all.
        let (rows, _) = peek(client, world.end(), vec![read_of("region_connections")]).unwrap();
        let (alone, _) = peek(&mut one, world.end(), vec![read_of("region_connections")]).unwrap();
        assert_eq!(lines(&rows[0]), lines(&alone[0]));
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// The newest answer, once there is one: its tick, and the rows of each relation.
fn latest(client: &mut Client, relations: &[&str]) -> (u64, Vec<Vec<String>>) {
    loop {
        if let Some(answer) = latest_now(client, relations) {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn latest_now(client: &mut Client, relations: &[&str]) -> Option<(u64, Vec<Vec<String>>)> {
    let reads = relations.iter().map(|relation| read_of(relation)).collect();
    let (mut ticks, mut rows) = (Vec::new(), vec![Vec::new(); relations.len()]);
    for response in client.ask(&Request::Peek { id: 3, at: At::Latest, reads }).unwrap() {
        match response {
            Response::Rows { read, ipc, tick, .. } => {
                ticks.push(tick);
                let batches = StreamReader::try_new(ipc.as_slice(), None).unwrap().map(Result::unwrap);
                rows[read as usize].extend(batches.flat_map(|batch| lines(&batch)));
            }
            Response::Done { tick, .. } => ticks.push(tick),
            Response::Failed { failure: Failure::NotReady, .. } => return None,
            other => panic!("{other:?}"),
        }
    }
    ticks.dedup();
    let [tick] = ticks[..] else { panic!("one answer is of the ticks {ticks:?}") };
    rows.iter_mut().for_each(|rows| rows.sort());
    Some((tick, rows))
}

#[test]
fn a_snapshot_while_workers_stand_at_different_ticks_is_of_one_tick_that_all_have_closed() {
    let (world, asked) = (World::new(23, 60), ["connections", "region_connections", "agents"]);
    let dir = scratch();
    let bounds: Vec<Arc<AtomicU64>> = (0..3).map(|_| Arc::new(AtomicU64::new(START_MS))).collect();
    let held = |process: usize| Box::new(Held::new(world.feed(process, 3), Arc::clone(&bounds[process]))) as Box<dyn Feed>;
    let links = links(3).into_iter().enumerate();
    let mut clients: Vec<_> = links.map(|(process, links)| start_with(vec![held(process)], &dir, process, links)).collect();
    let mut random = world::Random(77);
    let mut answered = BTreeMap::new();
    for _ in 0..12 {
        for bound in &bounds {
            bound.fetch_add(random.below(7) * TICK_MS, Ordering::SeqCst);
        }
        let slowest = || bounds.iter().map(|bound| bound.load(Ordering::SeqCst)).min().unwrap();
        for client in &mut clients {
            let (tick, rows) = latest(client, &asked);
            assert!(tick <= slowest(), "an answer of tick {tick}, which the slowest worker has not been given");
            let first = answered.entry(tick).or_insert_with(|| rows.clone());
            assert_eq!(*first, rows, "two answers of tick {tick}");
        }
    }
    assert!(answered.len() >= 5, "{:?}", answered.keys());
    // Each is what one worker says that has been given nothing beyond that tick.
    for (tick, rows) in answered {
        let until = Arc::new(AtomicU64::new(tick));
        let alone = dir.join(tick.to_string());
        std::fs::create_dir(&alone).unwrap();
        let mut one = start_with(vec![Box::new(Held::new(world.feed(0, 1), until))], &alone, 0, vec![]);
        let there = loop {
            let (at, rows) = latest(&mut one, &asked);
            if at == tick {
                break rows;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(rows, there, "at tick {tick}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn connections_are_joined_and_counted_once() {
    let world = World::new(5, 40);
    let (mut client, dir) = single(&world, 2);
    let (answer, completeness) = peek(&mut client, world.end(), vec![read_of("connections"), read_of("events")]).unwrap();
    let (connections, events) = (&answer[0], &answer[1]);
    assert_eq!(connections.num_rows(), world.begun);
    let count = |column: &str, value: &str| {
        let column = connections.column_by_name(column).unwrap();
        let column = arrow::array::AsArray::as_string::<i32>(column);
        column.iter().filter(|found| *found == Some(value)).count()
    };
    assert_eq!(count("state", "failed"), world.failed);
    assert_eq!(count("state", "closed"), world.closed);
    assert_eq!(count("state", "open"), world.begun - world.failed - world.closed);
    assert_eq!(count("seen", "both"), world.begun - world.failed);
    let sent: usize = world.begun + (world.begun - world.failed) + 2 * world.closed + 6;
    assert_eq!(events.num_rows(), sent);
    assert_eq!(completeness, Completeness::default());
    std::fs::remove_dir_all(dir).unwrap();
}

/// The SQL that a view is said to be, over the rows that it reads, is what the plan keeps.
#[tokio::test]
async fn views_are_what_their_sql_says() {
    for seed in [3, 17] {
        let world = World::new(seed, 61);
        let (mut client, dir) = single(&world, 2);
        // Nothing has expired yet, so `connections` is `connections_all`.
        let inputs = ["connections", "events", "samples"];
        let views: Vec<_> = relations().iter().filter(|info| info.sql.is_some()).collect();
        let ticks = 50;
        for at in [world.end(), world.end() - TICK_MS, world.end() - 7 * TICK_MS] {
            assert!(at > START_MS + ticks * TICK_MS);
            let reads = inputs.iter().copied().chain(views.iter().map(|info| info.name.as_ref())).map(read_of).collect();
            let (answer, _) = peek(&mut client, at, reads).unwrap();
            let context = SessionContext::new();
            for (name, batch) in ["connections_all", "events", "samples"].iter().zip(&answer) {
                let table = MemTable::try_new(batch.schema(), vec![vec![batch.clone()]]).unwrap();
                context.register_table(*name, Arc::new(table)).unwrap();
            }
            for (info, kept) in views.iter().zip(&answer[inputs.len()..]) {
                let sql = runnable(info.sql.as_deref().unwrap(), at);
                let made = context.sql(&sql).await.unwrap().collect().await.unwrap();
                let made = concat_batches(&made[0].schema(), &made).unwrap();
                let columns = made.columns().iter().zip(info.schema.fields());
                let columns = columns.map(|(column, field)| arrow::compute::cast(column, field.data_type()).unwrap());
                let made = RecordBatch::try_new(Arc::clone(&info.schema), columns.collect()).unwrap();
                assert!(made.num_rows() > 0, "{} is empty", info.name);
                assert_eq!(lines(kept), lines(&made), "{} at {at}, seed {seed}", info.name);
            }
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}

/// A view's SQL with what DataFusion does not know written out: windows over a table, the tick for now().
fn runnable(sql: &str, tick: u64) -> String {
    let (_, select) = sql.split_once(" AS\n").unwrap();
    let closed = tick - world::SETTINGS.window_grace_ms;
    let between = |end: u64, size: u64| {
        let time = |ms: u64| format!("to_timestamp_millis({ms})");
        format!("AND time >= {} AND time < {}", time(end - size), time(end))
    };
    select
        .replace("FROM HOP(events, time, INTERVAL '1 second', INTERVAL '60 seconds')", "FROM events")
        .replace("AND window_end = date_trunc('second', now() - weir_window_grace())", &between(closed / 1_000 * 1_000, 60_000))
        .replace("FROM TUMBLE(samples, time, INTERVAL '10 seconds')", "FROM samples")
        .replace(
            "AND window_end = date_bin(INTERVAL '10 seconds', now() - weir_window_grace())",
            &between(closed / 10_000 * 10_000, 10_000),
        )
}

#[test]
fn wrong_questions_are_told_why() {
    let world = World::new(1, 120);
    let (mut client, dir) = single(&world, 1);
    let end = world.end();
    peek(&mut client, end, vec![read_of("hosts")]).unwrap();
    let mut asked = |at: u64, read: Read| peek(&mut client, at, vec![read]).unwrap_err();
    let hosts = || read_of("hosts");
    let unknown = asked(end, Read { columns: Some(vec!["nope".into()]), ..hosts() });
    assert_eq!(unknown.to_string(), "relation \"hosts\" has no column \"nope\"");
    assert!(matches!(asked(end, Read { rows_max: 3, ..hosts() }), Failure::Rows { rows_max: 3, .. }));
    assert!(matches!(asked(end, Read { bytes_max: 30, ..hosts() }), Failure::Bytes { bytes_max: 30, .. }));
    assert!(matches!(asked(START_MS, hosts()), Failure::Forgotten { tick: START_MS, .. }));
    assert!(matches!(asked(end, Read { rows_max: 3, ..read_of("events") }), Failure::Rows { .. }));
    let nowhere = Request::Peek { id: 1, at: At::Latest, reads: vec![Read { relation: "nowhere".into(), ..hosts() }] };
    let told = client.ask(&nowhere).unwrap().pop().unwrap();
    assert!(matches!(told, Response::Failed { failure: Failure::UnknownRelation(name), .. } if name == "nowhere"));
    // A limit is enough, and columns come as asked.
    let read = Read { columns: Some(vec!["host".into()]), limit: Some(2), rows_max: 2, ..hosts() };
    let (rows, _) = peek(&mut client, end, vec![read]).unwrap();
    assert_eq!((rows[0].num_rows(), rows[0].num_columns()), (2, 1));
    let (rows, _) = peek(&mut client, end, vec![Read { columns: Some(vec![]), ..read_of("events") }]).unwrap();
    assert!(rows[0].num_rows() > 100 && rows[0].num_columns() == 0);
    std::fs::remove_dir_all(dir).unwrap();
}
