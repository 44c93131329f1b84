//! The record as a whole: chain and logs on a disk that crashes, an archive on a store that dies, and what a query then sees.
//!
//! The oracle is an `Intake` that reads the same frames from the beginning and is never interrupted. After every step the union of
//! files and tail must be what it gave, no event more, none less, none twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{AsArray as _, BooleanArray, Int64Array};
use arrow::datatypes::Int64Type;
use datafusion::prelude::SessionContext;
use object_store::memory::InMemory;
use proptest::prelude::*;
use weir_archive::{Archive, Record, RecordSnapshot, Store, Table, Writer};
use weir_config::JournalLimits;
use weir_dataflow::{Arrived, Command as EngineCommand, Intake, Tail, ViewSettings};
use weir_journal::{Disk, Journal, Options, SimDisk};
use weir_schema::{AgentIdentity, BatchBuilder, Column, Epoch, Event, Host, Kind, Lane, Name, Seq, StampedFrame};

use super::cursor::{Cursor, admission};
use super::flaky::Flaky;
use super::{CONVERT, ChainTail, piece};
use crate::chain::{ChainRecord, Command};
use crate::layout;
use crate::log::{LocalLogs, Logs, Pace};

/// Event id, tick, late.
type Row = (String, i64, bool);

const START: u64 = 1_790_000_000_000;

fn settings() -> ViewSettings {
    ViewSettings { retention_ms: 2_000, skew_ms: 100, ..ViewSettings::default() }
}

/// One node's log, the chain, and the oracle.
pub(super) struct World {
    disk: SimDisk,
    shared: PathBuf,
    chain: Option<Journal>,
    logs: Vec<Option<Journal>>,
    appended: Vec<u64>,
    pub(super) tick: u64,
    oracle: Intake,
    books: BTreeMap<Table, Vec<Row>>,
    next_seq: BTreeMap<(usize, u8), u64>,
    sent: Vec<(usize, Vec<u8>)>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        let shared = PathBuf::from("/shared");
        let mut world = Self {
            disk,
            shared,
            chain: None,
            logs: vec![None, None],
            appended: vec![0, 0],
            tick: START,
            oracle: Intake::new(admission(&settings())),
            books: BTreeMap::new(),
            next_seq: BTreeMap::new(),
            sent: Vec::new(),
        };
        world.open();
        let commands = [Command::Engine(EngineCommand::Configure(settings()))].into_iter().chain((0..2).map(register)).collect();
        world.chain(commands, Vec::new());
        world
    }

    fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(self.disk.clone())
    }

    pub(super) fn logs(&self) -> Arc<dyn Logs> {
        Arc::new(LocalLogs::new(self.disk(), &self.shared, &JournalLimits::default()))
    }

    /// (Re)opens the journals, as a node does after a death.
    fn open(&mut self) {
        let disk = self.disk();
        let open = |dir: &Path| {
            let options = Options { segment_bytes_max: 16 << 10, ..Options::default() };
            Journal::open(disk.clone(), dir, options).unwrap().0
        };
        self.chain = Some(open(&layout::chain_dir(&self.shared)));
        for log in 0..self.logs.len() {
            self.logs[log] = Some(open(&layout::log_dir(&self.shared, &log_name(log))));
        }
    }

    /// Everybody dies and comes back.
    fn kill(&mut self) {
        self.chain = None;
        self.logs.iter_mut().for_each(|log| *log = None);
        self.disk.kill();
        self.open();
    }

    /// The next tick, with these frames: (log, record).
    pub(super) fn chain(&mut self, commands: Vec<Command>, frames: Vec<(usize, Vec<u8>)>) {
        self.tick += 100;
        let mut arrived = Vec::new();
        for (log, record) in frames {
            self.logs[log].as_mut().unwrap().append(&record).unwrap();
            let stamped = StampedFrame::decode(&record).unwrap();
            arrived.push(Arrived { log: log as u32, offset: self.appended[log], stamped });
            self.appended[log] += 1;
        }
        self.logs.iter_mut().for_each(|log| _ = log.as_mut().unwrap().sync().unwrap());
        let logs = self.appended.iter().enumerate().map(|(log, offset)| (log as u32, *offset)).collect();
        let record = ChainRecord { generation: 1, nonce: u128::from(self.tick), tick: self.tick, logs, commands };
        let chain = self.chain.as_mut().unwrap();
        chain.append(&record.encode()).unwrap();
        chain.sync().unwrap();
        for taken in self.oracle.advance(self.tick, arrived) {
            let table = if taken.tail == Tail::Events { Table::Events } else { Table::Samples };
            let columns = [Column::EventId, Column::Tick, Column::Late];
            let batch = taken.record_batch(&columns, &weir_dataflow::schema_of(&columns), None);
            self.books.entry(table).or_default().extend(rows(&batch));
        }
    }

    /// Frames of one tick out of a few numbers.
    pub(super) fn frames(&mut self, spec: &[FrameSpec]) -> Vec<(usize, Vec<u8>)> {
        let mut frames = Vec::new();
        for (agent, what, ago_ms, log) in spec {
            let (agent, log) = (*agent, *log);
            // An old frame again: a duplicate, perhaps in the other log.
            if *what == 3 && !self.sent.is_empty() {
                let (_, record) = self.sent[agent % self.sent.len()].clone();
                frames.push((log, record));
                continue;
            }
            let (lane, kinds) = match what % 3 {
                0 => (Lane::Security, &[Kind::Exec, Kind::Exit][..]),
                1 => (Lane::Network, &[Kind::Connect, Kind::Close][..]),
                _ => (Lane::Sample, &[Kind::Sample][..]),
            };
            let next = self.next_seq.entry((agent, lane as u8)).or_default();
            let host = Arc::new(Host { host: format!("host-{agent}").as_str().into(), ..Host::default() });
            let mut builder = BatchBuilder::new(host, Epoch(7), lane, Seq(*next));
            for (place, kind) in kinds.iter().cycle().take(4).enumerate() {
                let time = (self.tick as i64 - ago_ms * place as i64) * 1_000_000;
                builder.push(&Event { time, kind: *kind, ..Event::default() }).unwrap();
            }
            *next += 4;
            let record = StampedFrame::encode_parts(&identity(agent), self.tick, &builder.finish().unwrap().bytes);
            self.sent.push((log, record.clone()));
            frames.push((log, record));
        }
        frames
    }

    fn record(&self, archive: &Archive) -> Record {
        Record::new(archive.clone(), Arc::new(ChainTail::new(self.logs())))
    }

    /// What the oracle says there is up to a tick.
    fn expected(&self, table: Table, tick: u64) -> Vec<Row> {
        let mut rows: Vec<Row> =
            self.books.get(&table).into_iter().flatten().filter(|(_, at, _)| *at <= tick as i64).cloned().collect();
        rows.sort();
        rows
    }
}

fn register(log: usize) -> Command {
    Command::RegisterLog { index: log as u32, name: log_name(log) }
}

fn log_name(log: usize) -> Name {
    Name::new(format!("node-{log}")).unwrap()
}

fn identity(agent: usize) -> AgentIdentity {
    let name = |text: String| Name::new(text).unwrap();
    AgentIdentity { tenant: name("acme".into()), region: name(format!("r{}", agent % 2)), agent: name(format!("a{agent}")) }
}

fn rows(batch: &arrow::array::RecordBatch) -> Vec<Row> {
    let text = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8).unwrap();
    let ticks: &Int64Array = batch.column(1).as_primitive::<Int64Type>();
    let late: &BooleanArray = batch.column(2).as_boolean();
    (0..batch.num_rows()).map(|row| (text.as_string::<i32>().value(row).to_owned(), ticks.value(row), late.value(row))).collect()
}

/// What a query sees. Samples have no event id in SQL: their tick and lateness alone.
async fn seen(snapshot: &RecordSnapshot, table: Table) -> Vec<Row> {
    let context = SessionContext::new();
    context.register_table(table.name(), Arc::new(snapshot.table(table))).unwrap();
    let id = if table == Table::Events { "event_id" } else { "''" };
    let sql = format!("select {id}, tick, late from {}", table.name());
    let batches = context.sql(&sql).await.unwrap().collect().await.unwrap();
    let mut seen: Vec<Row> = batches.iter().flat_map(rows).collect();
    seen.sort();
    seen
}

pub(super) async fn check(world: &World, archive: &Archive, tick: u64) {
    let snapshot = world.record(archive).at(tick).await.unwrap();
    assert_eq!(seen(&snapshot, Table::Events).await, world.expected(Table::Events, tick), "events at {tick}");
    let without_ids = |rows: Vec<Row>| {
        let mut rows: Vec<Row> = rows.into_iter().map(|(_, tick, late)| (String::new(), tick, late)).collect();
        rows.sort();
        rows
    };
    assert_eq!(seen(&snapshot, Table::Samples).await, without_ids(world.expected(Table::Samples, tick)), "samples at {tick}");
}

/// An archivist from the last manifest on, up to `until`; its death leaves what it leaves.
pub(super) async fn archive_up_to(world: &World, archive: &Archive, until: u64) -> Result<(), String> {
    let catalog = archive.refresh().await.map_err(|error| error.to_string())?;
    let state = match &catalog.state {
        Some(state) => Some(archive.read_state(state).await.map_err(|error| error.to_string())?),
        None => None,
    };
    let mut cursor = Cursor::open(world.logs(), Pace::UpToNow, &catalog.position, state.as_deref()).unwrap();
    let mut writer = Writer::new(archive.clone(), CONVERT);
    while let Some(step) = cursor.next(until).unwrap() {
        writer.push(step.taken.into_iter().map(piece).collect());
    }
    // `next` has gone past a tick that is after `until`: that one is nobody's here.
    let state = cursor.state().unwrap().unwrap();
    writer.flush(cursor.position(), state, 0).await.map(drop).map_err(|error| error.to_string())
}

pub(super) fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(work);
}

/// Agent, what it sends, how far its rows lie back, into which log.
type FrameSpec = (usize, u8, i64, usize);

fn steps() -> impl Strategy<Value = Vec<(u8, Vec<FrameSpec>, u8)>> {
    let frame = (0..4usize, 0..4u8, prop_oneof![Just(1i64), Just(-400), Just(900)], 0..2usize);
    proptest::collection::vec((0..6u8, proptest::collection::vec(frame, 0..4), 0..12u8), 4..14)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn files_and_tail_are_the_books_whatever_dies(seed in 0..1_000u64, steps in steps()) {
        block_on(async move {
            let mut world = World::new(seed);
            let inner = Arc::new(InMemory::new());
            let mut archive = Archive::open(Store::new(inner.clone(), "memory")).await.unwrap();
            for (what, frames, at) in steps {
                match what {
                    0..=2 => {
                        let frames = world.frames(&frames);
                        world.chain(Vec::new(), frames);
                    }
                    3 => archive_up_to(&world, &archive, u64::MAX).await.unwrap(),
                    // The store dies at some operation, before or after its effect; then everybody dies.
                    4 => {
                        let dying = Store::new(Arc::new(Flaky::new(inner.clone(), u64::from(at / 2), at % 2 == 0)), "memory");
                        let _ = archive_up_to(&world, &Archive::new(dying), u64::MAX).await;
                        world.kill();
                        archive = Archive::open(Store::new(inner.clone(), "memory")).await.unwrap();
                    }
                    _ => world.kill(),
                }
                check(&world, &archive, world.tick).await;
                check(&world, &archive, world.tick.saturating_sub(u64::from(at) * 60)).await;
            }
        });
    }
}

#[test]
fn a_store_that_is_away_costs_no_answer_and_loses_nothing() {
    block_on(async {
        let mut world = World::new(1);
        let inner = Arc::new(InMemory::new());
        let flaky = Arc::new(Flaky::new(inner.clone(), u64::MAX, false));
        let archive = Archive::open(Store::new(flaky.clone(), "memory")).await.unwrap();
        let frames = world.frames(&[(0, 1, 1, 0), (1, 0, 1, 1)]);
        world.chain(Vec::new(), frames);
        archive_up_to(&world, &archive, u64::MAX).await.unwrap();
        let record = world.record(&archive);
        record.at(world.tick).await.unwrap();
        flaky.go_away();
        let frames = world.frames(&[(0, 1, 1, 0), (1, 0, 900, 1)]);
        world.chain(Vec::new(), frames);
        assert!(archive_up_to(&world, &archive, u64::MAX).await.is_err());
        // The files are out of reach: a query that needs them says so, and names the store.
        let snapshot = record.at(world.tick).await.unwrap();
        let context = SessionContext::new();
        context.register_table("events", Arc::new(snapshot.table(Table::Events))).unwrap();
        let failed = context.sql("select event_id from events").await.unwrap().collect().await.unwrap_err();
        assert!(failed.to_string().contains("store"), "{failed}");
        flaky.come_back();
        check(&world, &archive, world.tick).await;
        archive_up_to(&world, &archive, u64::MAX).await.unwrap();
        check(&world, &archive, world.tick).await;
        assert_eq!(archive.catalog().position.tick, world.tick);
    });
}

#[test]
fn a_second_archivist_is_fenced_and_nothing_is_twice() {
    block_on(async {
        let mut world = World::new(2);
        let inner = Arc::new(InMemory::new());
        let (one, two) = (Store::new(inner.clone(), "memory"), Store::new(inner.clone(), "memory"));
        let (one, two) = (Archive::open(one).await.unwrap(), Archive::open(two).await.unwrap());
        let frames = world.frames(&[(0, 1, 1, 0), (1, 0, 1, 1)]);
        world.chain(Vec::new(), frames);
        // Both read the same ticks; one is first.
        let mut cursor = Cursor::open(world.logs(), Pace::UpToNow, &Default::default(), None).unwrap();
        let mut writer = Writer::new(two.clone(), CONVERT);
        while let Some(step) = cursor.next(u64::MAX).unwrap() {
            writer.push(step.taken.into_iter().map(piece).collect());
        }
        archive_up_to(&world, &one, u64::MAX).await.unwrap();
        let fenced = writer.flush(cursor.position(), cursor.state().unwrap().unwrap(), 0).await.unwrap_err();
        assert!(matches!(fenced, weir_archive::Error::Fenced { .. }), "{fenced}");
        check(&world, &two, world.tick).await;
    });
}
