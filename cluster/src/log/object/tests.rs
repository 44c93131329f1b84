//! The hard cases of chain and logs as objects: on a store in memory that loses answers and dies, and on a server of S3's protocol.

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use weir_archive::{Position, Store};
use weir_config::{LogConfig, LogLevel};
use weir_dataflow::{Command as EngineCommand, ViewSettings};
use weir_schema::{AgentIdentity, BatchBuilder, Epoch, Event, Host, Kind as EventKind, Lane, Name, Seq, StampedFrame};

use super::objects::Folder;
use super::*;
use crate::chain::{ChainRecord, Command};
use crate::checkpoint;
use crate::holder::Holder;
use crate::record::cursor::Cursor;
use crate::record::flaky::Flaky;
use crate::record::s3_tests::server;

mod model;

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

/// A process over a store. Its clock does not matter: it may always try to take the chain over.
fn process(inner: &Arc<dyn ObjectStore>) -> Arc<ObjectLogs> {
    over(Store::new(inner.clone(), "memory"))
}

fn over(store: Store) -> Arc<ObjectLogs> {
    let (level, location) = (LogLevel::Object, "memory".to_owned());
    let config = LogConfig { level, location, segment_bytes_max: 8 << 20, segment_ms_max: 10, holder_ttl_ms: 0 };
    Arc::new(ObjectLogs::new(store, &config).unwrap())
}

/// The same scenario on a store in memory and on S3.
fn everywhere(scenario: impl Fn(&dyn Fn() -> Store)) {
    let inner = memory();
    scenario(&|| Store::new(inner.clone(), "memory"));
    let dir = tempfile::tempdir().unwrap();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let variables = runtime.block_on(server(dir.path()));
    scenario(&|| Store::open_with("s3://record/weir", variables.clone()).unwrap());
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn record(generation: u64, tick: u64) -> ChainRecord {
    ChainRecord { generation, nonce: nonce(), tick, logs: Vec::new(), commands: Vec::new() }
}

fn chain(store: Store) -> Vec<ChainRecord> {
    let mut reader = over(store).read_chain(0, Pace::UpToNow).unwrap();
    let mut records = Vec::new();
    while let Some((number, bytes)) = reader.next().unwrap() {
        assert_eq!(number, records.len() as u64);
        records.push(ChainRecord::decode(&bytes).unwrap());
    }
    records
}

fn log(store: Store, owner: &str) -> Vec<Vec<u8>> {
    let mut reader = over(store).read_log(&name(owner), 0).unwrap();
    let mut records = Vec::new();
    while let Some((number, bytes)) = reader.next().unwrap() {
        assert_eq!(number, records.len() as u64);
        records.push(bytes);
    }
    records
}

#[test]
fn two_would_be_holders_creating_the_same_chain_number() {
    everywhere(|open| {
        let (one, two) = (over(open()), over(open()));
        let mut first = one.take_chain().unwrap().unwrap();
        let mut second = two.take_chain().unwrap().unwrap();
        let (mine, theirs) = (record(1, 100), record(1, 101));
        first.append(0, &mine).unwrap();
        let fenced = second.append(0, &theirs).unwrap_err();
        assert!(matches!(fenced, LogError::Fenced { .. }), "{fenced}");
        assert!(one.holding.is_held() && !two.holding.is_held());
        assert_eq!(chain(open()), [mine]);
    });
}

#[test]
fn of_many_at_once_one_creates_a_number() {
    let inner = memory();
    for number in 0..20 {
        let won = std::thread::scope(|scope| {
            let claims: Vec<_> = (0..4)
                .map(|claimant| {
                    let process = process(&inner);
                    scope.spawn(move || {
                        let mut chain = process.take_chain().unwrap().unwrap();
                        chain.append(number, &record(number + 1, 100 * number + claimant + 1)).is_ok()
                    })
                })
                .collect();
            claims.into_iter().map(|claim| claim.join().unwrap()).filter(|won| *won).count()
        });
        assert_eq!(won, 1, "number {number}");
    }
    assert_eq!(chain(Store::new(inner, "memory")).len(), 20);
}

#[test]
fn a_create_that_succeeded_but_answered_an_error() {
    for seed in 0..2 {
        let inner = memory();
        let lossy: Arc<dyn ObjectStore> = Arc::new(Flaky::lossy(inner.clone(), seed * 77 + 1, 25));
        let process = process(&lossy);
        let mut writer = retry(|| process.open_log(&name("n1")));
        let mut holder = retry(|| process.take_chain()).unwrap();
        let (mut records, mut frames) = (Vec::new(), Vec::new());
        for step in 0..10_u64 {
            let frame = vec![step as u8; 100];
            writer.append(&frame).unwrap();
            writer.sync().unwrap();
            frames.push(frame);
            let link = record(1, step + 1);
            holder.append(step, &link).unwrap();
            records.push(link);
        }
        let clean = || Store::new(inner.clone(), "memory");
        assert_eq!((chain(clean()), log(clean(), "n1")), (records, frames), "seed {seed}: each once, in order");
    }
}

/// What only looks may fail at any time; whoever asked asks again.
fn retry<T>(mut work: impl FnMut() -> Result<T, LogError>) -> T {
    (0..1_000).find_map(|_| work().ok()).expect("a lossy store answers some time")
}

#[test]
fn a_node_frozen_before_its_mark_and_thawed_after_survivors_closed_the_tick() {
    everywhere(|open| {
        let (frozen, survivor) = (over(open()), over(open()));
        let mut old = frozen.take_chain().unwrap().unwrap();
        let mut chained: Vec<ChainRecord> = (0..3).map(|number| record(1, 100 + number)).collect();
        chained.iter().zip(0..).for_each(|(record, number)| old.append(number, record).unwrap());
        // It is frozen right before it writes number 3. The survivor takes over, and closes that tick and more.
        let mut new = survivor.take_chain().unwrap().unwrap();
        for number in 3..10 {
            chained.push(record(2, 200 + number));
            new.append(number, &chained[number as usize]).unwrap();
        }
        assert!(matches!(old.append(3, &record(1, 103)).unwrap_err(), LogError::Fenced { .. }));
        assert_eq!(chain(open()), chained);
        // Frozen for so long that the number is free again: its create succeeds, and counts for nothing.
        let folder = Folder::chain(survivor.io.store());
        let forgotten = folder.clone();
        assert_eq!(survivor.io.wait(async move { forgotten.forget(5).await }).unwrap(), 5);
        let mut older = over(open()).take_chain().unwrap().unwrap();
        assert_eq!(older.first(), 5);
        assert!(matches!(older.append(3, &record(1, 103)).unwrap_err(), LogError::Fenced { .. }));
        let thawed = ObjectChainAt { at: 2, before: 1 }.thaw(&frozen, &folder);
        assert!(matches!(thawed, LogError::Fenced { .. }), "{thawed}");
        let mut reader = over(open()).read_chain(5, Pace::UpToNow).unwrap();
        let kept: Vec<_> =
            std::iter::from_fn(|| reader.next().unwrap()).map(|(_, bytes)| ChainRecord::decode(&bytes).unwrap()).collect();
        assert_eq!(kept, chained[5..]);
        assert_eq!(new.first(), 0);
        new.append(10, &record(2, 210)).unwrap();
    });
}

/// A holder that was frozen in the middle of a create.
struct ObjectChainAt {
    at: u64,
    before: u128,
}

impl ObjectChainAt {
    fn thaw(&self, process: &ObjectLogs, folder: &Folder) -> LogError {
        let (folder, at, before) = (folder.clone(), self.at, Some(self.before));
        let place = objects::Place { before, run: 1, first: at };
        process.io.wait(async move { folder.create(at, &format::Draft::chain(b"void"), place).await }).unwrap_err()
    }
}

fn frame(first: u64, events: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Arc::new(Host::default()), Epoch(7), Lane::Security, Seq(first));
    for place in 0..events {
        let time = (START as i64 + place as i64) * 1_000_000;
        builder.push(&Event { time, kind: EventKind::Exec, ..Event::default() }).unwrap();
    }
    let identity = AgentIdentity { tenant: name("t"), region: name("r"), agent: name("a") };
    StampedFrame::encode_parts(&identity, START, &builder.finish().unwrap().bytes)
}

const START: u64 = 1_790_000_000_000;

#[test]
fn a_batch_accepted_by_two_nodes() {
    everywhere(|open| {
        let (one, two) = (over(open()), over(open()));
        let (mut first, mut second) = (one.open_log(&name("n1")).unwrap(), two.open_log(&name("n2")).unwrap());
        let settings = ViewSettings { retention_ms: 1_000_000, skew_ms: 1_000, ..ViewSettings::default() };
        let mut holder = Holder::take(one.clone(), settings, START, |_| Ok(checkpoint::Position::default())).unwrap().unwrap();
        // The first node acknowledged, and the agent did not hear it.
        first.append(&frame(0, 5)).unwrap();
        first.sync().unwrap();
        holder.step(0, vec![]).unwrap();
        second.append(&frame(0, 5)).unwrap();
        second.append(&frame(5, 3)).unwrap();
        second.sync().unwrap();
        holder.step(100, vec![]).unwrap();
        assert_eq!(holder.state().offsets, [1, 2]);
        let mut cursor = Cursor::open(over(open()), Pace::UpToNow, &Position::default(), None).unwrap();
        let mut events = 0;
        while let Some(step) = cursor.next(u64::MAX).unwrap() {
            events += step.taken.iter().map(weir_dataflow::Taken::len).sum::<usize>();
        }
        assert_eq!(events, 8, "five once, and three");
        let position = cursor.position();
        assert_eq!((position.chain, &position.logs[..]), (2, &[("n1".to_owned(), 1), ("n2".to_owned(), 2)][..]));
        // Another process goes on from there, and a later holder too.
        second.append(&frame(8, 2)).unwrap();
        second.sync().unwrap();
        let mut next = Holder::take(two, settings, START, |_| Ok(checkpoint::Position::default())).unwrap().unwrap();
        assert!(holder.step(200, vec![]).is_ok());
        assert!(next.step(0, vec![]).unwrap_err().to_string().contains("taken"), "it read the chain before that");
        let state = cursor.state().unwrap().unwrap();
        let mut cursor = Cursor::open(over(open()), Pace::UpToNow, &position, Some(&state)).unwrap();
        let step = cursor.next(u64::MAX).unwrap().unwrap();
        assert_eq!(step.taken.iter().map(weir_dataflow::Taken::len).sum::<usize>(), 2);
    });
}

#[test]
fn a_second_process_with_our_name_takes_the_log_and_loses_nothing() {
    let inner = memory();
    let (one, two) = (process(&inner), process(&inner));
    let mut first = one.open_log(&name("n1")).unwrap();
    first.append(b"acked").unwrap();
    first.sync().unwrap();
    let mut second = two.open_log(&name("n1")).unwrap();
    first.append(b"never acked").unwrap();
    assert!(matches!(first.sync(), Err(LogError::Fenced { .. })));
    assert!(matches!(one.open_log(&name("n1")).err(), Some(LogError::Held)), "the two would go on like this for ever");
    second.append(b"theirs").unwrap();
    second.sync().unwrap();
    assert_eq!(log(Store::new(inner, "memory"), "n1"), [&b"acked"[..], b"theirs"]);
}

#[test]
fn a_retired_log_has_ended_for_its_owner_and_for_the_holder() {
    let inner = memory();
    let (owner, holder) = (process(&inner), process(&inner));
    assert!(matches!(holder.retire(&name("n1")), Err(LogError::Missing { .. })));
    let mut writer = owner.open_log(&name("n1")).unwrap();
    writer.append(b"one").unwrap();
    writer.sync().unwrap();
    let mut reader = holder.read_log(&name("n1"), 0).unwrap();
    assert_eq!(reader.durable().unwrap(), 1);
    holder.retire(&name("n1")).unwrap();
    holder.retire(&name("n1")).unwrap();
    writer.append(b"two").unwrap();
    assert!(matches!(writer.sync(), Err(LogError::Fenced { .. })));
    assert!(matches!(process(&inner).open_log(&name("n1")).err(), Some(LogError::Retired)));
    assert_eq!(reader.durable().unwrap(), 1);
    assert_eq!(log(Store::new(inner, "memory"), "n1"), [b"one"]);
}

#[test]
fn whatever_is_synced_survives_a_death_at_any_operation() {
    for at in 0..40 {
        for with_effect in [false, true] {
            let inner = memory();
            let mut acked = Vec::new();
            for life in 0..3_u8 {
                // Only the second life dies: the create is asked about for ten seconds otherwise.
                let store: Arc<dyn ObjectStore> = match life {
                    1 => Arc::new(Flaky::new(inner.clone(), at, with_effect)),
                    _ => inner.clone(),
                };
                let (dying, flaky) = (process(&store), life == 1);
                acked.extend(if flaky { write_until_death(&dying, life) } else { write_some(&dying, life) });
            }
            let read = log(Store::new(inner, "memory"), "n1");
            let found: Vec<_> = read.iter().filter(|record| acked.contains(*record)).cloned().collect();
            assert_eq!(found, acked, "death at {at}, with effect {with_effect}");
        }
    }
}

fn write_some(process: &ObjectLogs, life: u8) -> Vec<Vec<u8>> {
    let mut writer = process.open_log(&name("n1")).unwrap();
    let records: Vec<Vec<u8>> = (0..4).map(|number| vec![life, number]).collect();
    for record in &records {
        writer.append(record).unwrap();
        writer.sync().unwrap();
    }
    records
}

/// A death is one attempt whose answer nobody hears: nobody asks again. Gives what was acknowledged before.
fn write_until_death(process: &ObjectLogs, life: u8) -> Vec<Vec<u8>> {
    let folder = Folder::log(process.io.store(), &name("n1"));
    process.io.wait(async move {
        let mut acked = Vec::new();
        for number in 0..4 {
            let Ok(Some(there)) = folder.numbers().await else { return acked };
            let Ok(Some(newest)) = folder.head(*there.end()).await else { return acked };
            let mut draft = format::Draft::of_log(format::Kind::Segment, &name("n1"));
            draft.push(&[life, number]);
            let place = objects::Place { before: Some(newest.nonce), run: 9, first: newest.end() };
            let attempt = folder.create(there.end() + 1, &draft, place);
            match tokio::time::timeout(Duration::from_millis(15), attempt).await {
                Ok(Ok(_)) => acked.push(vec![life, number]),
                _ => return acked,
            }
        }
        acked
    })
}

#[test]
fn forgetting_is_ascending_and_spares_the_newest_whenever_it_dies() {
    for at in 0..30 {
        let inner = memory();
        let process = process(&inner);
        let (mut holder, mut writer) = (process.take_chain().unwrap().unwrap(), process.open_log(&name("n1")).unwrap());
        for number in 0..12 {
            holder.append(number, &record(1, number + 1)).unwrap();
            writer.append(&[number as u8]).unwrap();
            writer.sync().unwrap();
        }
        let dying = over(Store::new(Arc::new(Flaky::new(inner.clone(), at, at % 2 == 0)), "memory"));
        let (chain, log) = (Folder::chain(dying.io.store()), Folder::log(dying.io.store(), &name("n1")));
        let died = dying.io.wait(async move { (chain.forget(6).await, log.forget_records(6).await) });
        let after = over(Store::new(inner.clone(), "memory"));
        let (chain, log) = (Folder::chain(after.io.store()), Folder::log(after.io.store(), &name("n1")));
        let (there, segments) = (chain.clone(), log.clone());
        let (numbers, newest) = after.io.wait(async move { (there.numbers().await, segments.numbers().await) });
        let numbers = numbers.unwrap().unwrap();
        assert!(*numbers.start() <= 6 && *numbers.end() == 11 && *newest.unwrap().unwrap().end() == 12, "at {at}: {died:?}");
        // Readers that stand where checkpoints stand do not notice; those before are told.
        assert_eq!(after.read_chain(6, Pace::UpToNow).unwrap().next().unwrap().unwrap().0, 6);
        assert_eq!(after.read_log(&name("n1"), 6).unwrap().next().unwrap().unwrap(), (6, vec![6]));
        // Once more, and this time it asks for more than may go.
        let first = after.io.wait(async move { (chain.forget(99).await.unwrap(), log.forget_records(9).await.unwrap()) });
        assert_eq!(first, (8, 8), "the last four stay; of the log the segment with record 8 is one of them");
        let again = over(Store::new(inner.clone(), "memory"));
        assert!(matches!(again.read_chain(0, Pace::UpToNow).unwrap().next(), Err(LogError::Forgotten { asked: 0, first: 8 })));
        assert!(matches!(again.read_log(&name("n1"), 7).unwrap().next(), Err(LogError::Forgotten { asked: 7, first: 8 })));
        holder.append(12, &record(1, 13)).unwrap();
        writer.append(&[12]).unwrap();
        writer.sync().unwrap();
        assert_eq!(again.read_log(&name("n1"), 12).unwrap().next().unwrap().unwrap(), (12, vec![12]));
    }
}

#[test]
fn a_damaged_object_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Store::open(dir.path().to_str().unwrap()).unwrap();
    let process = over(open());
    let mut writer = process.open_log(&name("n1")).unwrap();
    writer.append(b"some bytes").unwrap();
    writer.sync().unwrap();
    let path = dir.path().join(format!("logs/n1/{:020}", 1));
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let why = over(open()).read_log(&name("n1"), 0).unwrap().next().unwrap_err().to_string();
    assert!(why.contains("logs/n1/00000000000000000001") && why.contains("restore"), "{why}");
}

#[test]
fn an_object_is_fetched_once_for_all_readers_and_the_shelf_is_bounded() {
    let inner = memory();
    let process = process(&inner);
    let mut chain = process.take_chain().unwrap().unwrap();
    (0..50).for_each(|number| chain.append(number, &record(1, number + 1)).unwrap());
    // Dies at the hundredth operation: eight readers of fifty objects need fewer.
    let counted = over(Store::new(Arc::new(Flaky::new(inner, 100, false)), "memory"));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut reader = counted.read_chain(0, Pace::UpToNow).unwrap();
                (0..50).for_each(|number| assert_eq!(reader.next().unwrap().unwrap().0, number));
            });
        }
    });
}

#[test]
fn views_settings_and_logs_are_registered_by_the_first_holder() {
    let inner = memory();
    let process = process(&inner);
    process.open_log(&name("n1")).unwrap();
    let settings = ViewSettings::default();
    let mut holder = Holder::take(process, settings, START, |_| Ok(checkpoint::Position::default())).unwrap().unwrap();
    holder.step(0, vec![]).unwrap();
    let first = &chain(Store::new(inner, "memory"))[0];
    let registered = Command::RegisterLog { index: 0, name: name("n1") };
    assert_eq!(first.commands, [Command::Engine(EngineCommand::Configure(settings)), registered]);
}
