//! An archive, its upkeep, and the books of what was written to it.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::TryStreamExt as _;
use object_store::ObjectStore;

use super::support::{Agents, Row, Seed, convert, read, read_all, rows_of};
use crate::catalog::Archive;
use crate::compact::{Sizes, Work, choose};
use crate::manifest::{FileEntry, Hold, Position};
use crate::merge::compact;
use crate::retention::{Rule, retain};
use crate::store::Store;
use crate::sweep::Sweep;
use crate::table::{NoTail, Record, RecordSnapshot};
use crate::writer::Writer;

/// 2025-11-25T00:00:00Z
pub(super) const DAY_MS: u64 = 1_764_028_800_000;
pub(super) const HOUR_MS: u64 = 3_600_000;
pub(super) const DELETE_AFTER_MS: u64 = 2 * HOUR_MS;
/// A file may end so much beyond its limit: a run of rows and the footer.
pub(super) const SLACK_BYTES: u64 = 128 << 10;

/// An archive, its upkeep, and the books.
pub(super) struct World {
    pub(super) archive: Archive,
    pub(super) writer: Writer,
    pub(super) sweep: Sweep,
    pub(super) agents: Agents,
    pub(super) sizes: Sizes,
    pub(super) now_ms: u64,
    /// What must be read.
    pub(super) books: Vec<Row>,
    pub(super) dropped: u64,
    pub(super) holds: Vec<Hold>,
    /// What a reader saw, and when.
    pub(super) readers: Vec<(u64, RecordSnapshot, Vec<Row>)>,
    pub(super) checked: BTreeSet<String>,
}

impl World {
    pub(super) async fn new(objects: Arc<dyn ObjectStore>, sizes: Sizes) -> Self {
        let archive = Archive::open(Store::new(objects, "test")).await.unwrap();
        Self {
            writer: Writer::new(archive.clone(), convert),
            sweep: Sweep::new(archive.clone(), DELETE_AFTER_MS),
            archive,
            agents: Agents::default(),
            sizes,
            now_ms: DAY_MS + 30 * HOUR_MS,
            books: Vec::new(),
            dropped: 0,
            holds: Vec::new(),
            readers: Vec::new(),
            checked: BTreeSet::new(),
        }
    }

    pub(super) async fn flush(&mut self, seeds: &[Seed]) {
        let pieces = self.agents.pieces(self.now_ms, seeds);
        self.books.extend(pieces.iter().flat_map(rows_of));
        self.books.sort();
        self.writer.push(pieces);
        let to = Position { tick: self.now_ms, ..Position::default() };
        self.writer.flush(to, b"state".to_vec(), self.now_ms).await.unwrap();
    }

    pub(super) async fn compact(&mut self) {
        for _ in 0..200 {
            let Some(job) = choose(&self.archive.catalog(), &self.sizes, self.now_ms) else { return };
            let done = compact(&self.archive, &job, &self.sizes, self.now_ms).await.unwrap();
            assert_eq!((done.files_in, job.work == Work::Fresh || done.files_out < done.files_in), (job.files.len(), true));
        }
        panic!("compaction does not end");
    }

    pub(super) async fn retain(&mut self, rule: Rule) {
        let before = self.archive.catalog();
        let dropped = retain(&self.archive, std::slice::from_ref(&rule), self.now_ms).await.unwrap();
        let mut gone = Vec::new();
        for dropped in &dropped {
            let file = &before.files[&dropped.path];
            assert!(file.partition.is_some());
            let rows = read(&RecordSnapshot::alone(&self.archive, file), file.table).await.unwrap();
            assert_eq!((rows.len() as u64, file.bytes), (dropped.rows, dropped.bytes));
            gone.extend(rows);
        }
        for row in &gone {
            assert!(!self.holds.iter().any(|hold| holds(hold, row)), "{row:?} is held");
            let kept_from = rule.age_ms.map(|age_ms| (self.now_ms - age_ms) as i64 * 1_000_000);
            assert!(rule.bytes.is_some() || Some(row.2) < kept_from, "{row:?} is not old");
        }
        gone.sort();
        self.books = without(&self.books, &gone);
        self.dropped += gone.len() as u64;
        let counted: u64 = self.archive.catalog().dropped.values().map(|dropped| dropped.rows).sum();
        assert_eq!(counted, self.dropped);
    }

    pub(super) async fn snapshot(&self) -> RecordSnapshot {
        let record = Record::new(self.archive.clone(), Arc::new(NoTail));
        record.at(self.archive.catalog().position.tick).await.unwrap()
    }

    pub(super) async fn check(&mut self) {
        let snapshot = self.snapshot().await;
        let rows = read_all(&snapshot).await.unwrap();
        assert_eq!(rows, self.books);
        for file in snapshot.catalog.files.values().filter(|file| file.partition.is_some()) {
            if self.checked.insert(file.path.clone()) {
                assert!(file.bytes <= self.sizes.file_bytes_max + SLACK_BYTES, "{} has {} bytes", file.path, file.bytes);
                check_file(&self.archive, file).await;
            }
        }
        self.readers.retain(|(since_ms, ..)| self.now_ms - since_ms < DELETE_AFTER_MS);
        for (_, reader, rows) in &self.readers {
            assert_eq!(read_all(reader).await.unwrap(), *rows, "a reader has lost its files");
        }
        if self.readers.len() < 2 {
            self.readers.push((self.now_ms, snapshot, rows));
        }
    }

    /// After everything had its time, nothing lies in the store but what the catalog names.
    pub(super) async fn check_no_orphans(&mut self) {
        for _ in 0..2 {
            self.now_ms += DELETE_AFTER_MS;
            self.sweep.run(self.now_ms).await.unwrap();
        }
        let catalog = self.archive.refresh().await.unwrap();
        let named: BTreeSet<String> =
            catalog.files.keys().cloned().chain(catalog.state.iter().map(|state| state.path.clone())).collect();
        let listed: Vec<_> = self.archive.store().objects().list(None).try_collect().await.unwrap();
        let listed = listed.into_iter().map(|meta| meta.location.to_string()).filter(|path| !path.starts_with("manifest/"));
        assert_eq!(listed.collect::<BTreeSet<_>>(), named);
    }
}

/// A compacted file is sorted, and its entry says what is in it.
pub(super) async fn check_file(archive: &Archive, file: &Arc<FileEntry>) {
    let rows = read(&RecordSnapshot::alone(archive, file), file.table).await.unwrap();
    let order: Vec<_> = rows.iter().map(|row| (&row.3, row.2)).collect();
    assert!(order.is_sorted(), "{} is out of order: {order:?}", file.path);
    let times: Vec<i64> = rows.iter().map(|row| row.2).collect();
    let ticks: Vec<i64> = rows.iter().map(|row| row.1).collect();
    assert_eq!((times.iter().min(), times.iter().max()), (Some(&file.time_min), Some(&file.time_max)));
    let (tick_min, tick_max) = (file.tick_min as i64, file.tick_max as i64);
    assert_eq!((ticks.iter().min(), ticks.iter().max()), (Some(&tick_min), Some(&tick_max)));
    let partition = file.partition.as_ref().unwrap();
    assert!(rows.iter().all(|row| row.4.as_ref().is_none_or(|kind| *kind == partition.kind)));
    assert!(file.path.starts_with(&format!("{}/tenant={}/region={}/", file.table.name(), partition.tenant, partition.region)));
}

pub(super) fn holds(hold: &Hold, row: &Row) -> bool {
    hold.host.as_ref().is_none_or(|host| *host == row.3)
        && hold.container_id.as_ref().is_none_or(|container| Some(container) == row.5.as_ref())
        && hold.from.is_none_or(|from| from <= row.2)
        && hold.to.is_none_or(|to| row.2 < to)
}

/// What is left of sorted rows without others, each of which must be there.
pub(super) fn without(rows: &[Row], gone: &[Row]) -> Vec<Row> {
    let mut gone = gone.iter().peekable();
    let kept = rows.iter().filter(|row| gone.next_if(|gone| gone == row).is_none()).cloned().collect();
    assert_eq!(gone.next(), None, "it was not there");
    kept
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}
