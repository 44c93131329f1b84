//! Level `object`: the chain and the logs are numbered objects of a store, each created once and never changed.
//!
//! No lock and no lease guards them: who creates the next number is the writer, and who finds it taken is not (`claim.rs`). Time only
//! decides when another node tries (`takeover.rs`). `format.rs` has the bytes, `objects.rs` what is done with the store.
//!
//! The store is asked by tasks of a runtime of our own, so that threads of any kind may wait for its answers.

mod claim;
mod format;
mod objects;
mod reader;
mod shelf;
mod takeover;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use weir_archive::Store;
use weir_config::LogConfig;
use weir_schema::Name;

use super::{ChainWriter, Duty, Gather, LogError, LogWriter, Logs, Office, Pace, Reader, nonce};
use objects::Folder;
use reader::{ChainReader, LogReader};
use shelf::{Limits, Shelf};
use takeover::Takeover;
use writer::{ObjectChain, SegmentWriter};

/// Objects below one location.
pub(crate) struct ObjectLogs {
    io: Arc<Io>,
    /// Random per process.
    run: u128,
    shelf: Arc<Shelf>,
    gather: Gather,
    holding: Holding,
    /// Logs that another process has taken from this one.
    fenced: Arc<Mutex<Vec<Name>>>,
}

impl ObjectLogs {
    /// In a store that is open.
    pub(crate) fn new(store: Store, config: &LogConfig) -> Result<Self, LogError> {
        let io = Arc::new(Io::new(store)?);
        let pause = Duration::from_millis(config.segment_ms_max);
        let limits = Limits { bytes_max: SHELF_BYTES_MAX, absent_for: pause.min(ABSENT_MAX) };
        Ok(Self {
            run: nonce(),
            shelf: Shelf::new(io.runtime().handle().clone(), limits),
            gather: Gather { bytes_max: config.segment_bytes_max, pause },
            holding: Holding::new(config.holder_ttl_ms),
            fenced: Arc::default(),
            io,
        })
    }

    /// Ends the log of a node that is gone for good.
    #[cfg_attr(not(test), expect(dead_code, reason = "for whoever removes nodes"))]
    pub(crate) fn retire(&self, name: &Name) -> Result<(), LogError> {
        let (folder, owner) = (Folder::log(self.io.store(), name), name.clone());
        self.io.wait(async move { folder.retire(&owner).await })
    }
}

impl Logs for ObjectLogs {
    fn read_chain(&self, from: u64, pace: Pace) -> Result<Box<dyn Reader>, LogError> {
        Ok(Box::new(ChainReader::new(self.io.clone(), self.shelf.clone(), from, pace)))
    }

    fn read_log(&self, name: &Name, from: u64) -> Result<Box<dyn Reader>, LogError> {
        let folder = Folder::log(self.io.store(), name);
        Ok(Box::new(LogReader::new(self.io.clone(), folder, self.shelf.clone(), from)))
    }

    fn names(&self) -> Result<Vec<Name>, LogError> {
        let store = self.io.store().clone();
        self.io.wait(async move { objects::log_names(&store).await })
    }

    fn take_chain(&self) -> Result<Option<Box<dyn ChainWriter>>, LogError> {
        let folder = Folder::chain(self.io.store());
        let known = self.holding.next();
        // The end is looked for from where it was; and in the list, before anything is done: what was known may have been forgotten.
        if let Some(known) = known {
            let there = folder.clone();
            let moved = self.io.wait(async move { there.head(known).await })?.is_some();
            if !moved && !self.holding.may_try(known) {
                return Ok(None);
            }
        }
        let numbers = self.io.wait(async move { folder.numbers().await })?;
        let (first, next) = numbers.map_or((0, 0), |numbers| (*numbers.start(), numbers.end() + 1));
        if !self.holding.may_try(next) {
            return Ok(None);
        }
        Ok(Some(Box::new(ObjectChain::new(self.io.clone(), self.run, first, self.holding.clone()))))
    }

    fn open_log(&self, name: &Name) -> Result<Box<dyn LogWriter>, LogError> {
        if lock(&self.fenced).contains(name) {
            return Err(LogError::Held);
        }
        let writer = SegmentWriter::open(self.io.clone(), name, self.run, self.gather)?;
        Ok(Box::new(Fenceable { writer, name: name.clone(), fenced: self.fenced.clone() }))
    }

    fn elect(&self, _duty: Duty) -> Result<Option<Box<dyn Office>>, LogError> {
        // The archive's manifests and the numbers of the outbox fence a second one; this only spares the work.
        Ok(self.holding.is_held().then(|| Box::new(self.holding.clone()) as Box<dyn Office>))
    }

    fn place(&self) -> String {
        self.io.store().url().to_owned()
    }
}

/// A log that is not opened again by this process once another one has taken it: the two would take it from each other for ever.
struct Fenceable {
    writer: SegmentWriter,
    name: Name,
    fenced: Arc<Mutex<Vec<Name>>>,
}

impl LogWriter for Fenceable {
    fn first(&self) -> u64 {
        self.writer.first()
    }

    fn append(&mut self, record: &[u8]) -> Result<(), LogError> {
        self.writer.append(record)
    }

    fn sync(&mut self) -> Result<(), LogError> {
        let synced = self.writer.sync();
        if matches!(synced, Err(LogError::Fenced { .. })) {
            lock(&self.fenced).push(self.name.clone());
        }
        synced
    }

    fn forget(&mut self, before: u64) -> Result<(), LogError> {
        self.writer.forget(before)
    }

    fn gather(&self) -> Gather {
        self.writer.gather()
    }
}

/// Whether this process holds the chain, and where the chain's end is.
#[derive(Debug, Clone)]
pub(crate) struct Holding {
    held: Arc<AtomicBool>,
    takeover: Arc<Mutex<Takeover>>,
    start: Instant,
}

impl Holding {
    fn new(ttl_ms: u64) -> Self {
        Self { held: Arc::default(), takeover: Arc::new(Mutex::new(Takeover::new(ttl_ms))), start: Instant::now() }
    }

    /// The number behind the newest record that is known.
    fn next(&self) -> Option<u64> {
        lock(&self.takeover).next()
    }

    /// The chain was looked at, and `next` is the number behind its newest record.
    fn may_try(&self, next: u64) -> bool {
        let now_ms = self.start.elapsed().as_millis() as u64;
        let mut takeover = lock(&self.takeover);
        takeover.saw(next, now_ms);
        takeover.may_try(now_ms)
    }

    pub(crate) fn wrote(&self, number: u64) {
        lock(&self.takeover).saw(number + 1, self.start.elapsed().as_millis() as u64);
        self.held.store(true, Ordering::Relaxed);
    }

    pub(crate) fn lost(&self) {
        self.held.store(false, Ordering::Relaxed);
    }
}

impl Office for Holding {
    fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }
}

/// A store, and the runtime whose tasks ask it.
pub(crate) struct Io {
    store: Store,
    /// Present until dropped.
    runtime: Option<Runtime>,
}

impl Io {
    fn new(store: Store) -> Result<Self, LogError> {
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("log-store").enable_all().build();
        let runtime = runtime.map_err(|failed| LogError::Store(format!("no thread can be started: {failed}")))?;
        Ok(Self { store, runtime: Some(runtime) })
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("present until dropped")
    }

    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime().spawn(work);
    }

    /// Waits for a task's outcome. A thread of another runtime may do so too; it is blocked meanwhile.
    pub(crate) fn wait<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let (say, hear) = std::sync::mpsc::sync_channel(1);
        self.spawn(async move {
            let _ = say.send(work.await);
        });
        hear.recv().expect("the runtime lives as long as this, and its tasks end with an outcome")
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        // It may be dropped by a task of another runtime, where waiting for threads is not allowed.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is kept of what was read, for all readers of the process.
const SHELF_BYTES_MAX: usize = 64 << 20;
/// How long an object that was not there is not asked for again.
const ABSENT_MAX: Duration = Duration::from_millis(25);
