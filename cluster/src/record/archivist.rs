//! The archivist: the one node that writes the archive.
//!
//! It follows the chain, and flushes when there is enough or it is time. While the store is away it reads no further, so its memory stays
//! what one flush takes; the logs hold the rest, and queries read it there. Started again, by whatever end, it goes on at the position
//! of the last manifest. Its threads run at a lower priority than ingest and the views.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle as JoinTask;
use tracing::{error, info, warn};
use weir_archive::{Archive, Writer};
use weir_config::ArchiveConfig;

use super::cursor::Cursor;
use super::{CONVERT, piece, upkeep};
use crate::error::Error;
use crate::log::{Duty, LogError, Logs, Office, Pace};
use crate::metrics;

/// What an archivist needs.
pub(crate) struct Archivist {
    /// Reads the chain and the logs.
    pub(crate) logs: Arc<dyn Logs>,
    /// Where it writes.
    pub(crate) archive: Archive,
    /// How, and for how long.
    pub(crate) config: ArchiveConfig,
    /// Unix time in milliseconds, for people.
    pub(crate) wall_ms: fn() -> u64,
    /// Tells it to end.
    pub(crate) stop: Arc<AtomicBool>,
}

/// Starts an archivist on threads of its own.
pub(crate) fn start(archivist: Archivist) -> Result<JoinHandle<()>, Error> {
    let runtime = low_priority("archive").map_err(|error| Error::Archive(format!("no thread can be started: {error}")))?;
    let run = move || {
        lower_priority();
        archivist.run(&runtime);
        runtime.shutdown_background();
    };
    Ok(std::thread::Builder::new().name("archivist".to_owned()).spawn(run).expect("a thread can be started"))
}

fn low_priority(name: &str) -> std::io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).thread_name(name).on_thread_start(lower_priority).enable_all().build()
}

/// On Linux the priority is the calling thread's own.
fn lower_priority() {
    if let Err(refused) = rustix::process::setpriority_process(None, NICE) {
        warn!(error = %refused, "the archivist's priority could not be lowered");
    }
}

impl Archivist {
    fn run(&self, runtime: &Runtime) {
        while !self.stopped() {
            match self.logs.elect(Duty::Archivist) {
                Ok(Some(office)) => {
                    if let Err(failed) = self.follow(runtime, &*office) {
                        metrics::archive_failed();
                        error!(error = %failed, "the archive could not be written; trying on from its last manifest");
                    }
                }
                Ok(None) => {}
                Err(failed) => warn!(error = %failed, "it is not known who is the archivist"),
            }
            self.pause(TAKE_EVERY);
        }
    }

    /// Follows the chain from the last manifest on, until something is wrong or it is to end.
    fn follow(&self, runtime: &Runtime, office: &dyn Office) -> Result<(), Error> {
        let catalog = runtime.block_on(self.archive.refresh())?;
        let state = match &catalog.state {
            Some(state) => Some(runtime.block_on(self.archive.read_state(state))?),
            None => None,
        };
        let mut cursor = loop {
            match Cursor::open(self.logs.clone(), Pace::Polling, &catalog.position, state.as_deref()) {
                // The holder makes the chain; it may not have come so far.
                Err(Error::Log { why: LogError::Missing { .. }, .. }) if !self.stopped() => self.pause(POLL),
                opened => break opened?,
            }
        };
        info!(tick = catalog.position.tick, manifest = catalog.number, files = catalog.files.len(), "writing the archive");
        let _upkeep = Ended(runtime.spawn(upkeep::keep(self.archive.clone(), self.config.clone(), self.wall_ms)));
        let mut writer = Writer::new(self.archive.clone(), CONVERT);
        let mut committed = catalog.position.chain;
        let mut oldest: Option<Instant> = None;
        while !self.stopped() && office.is_held() {
            match cursor.next(u64::MAX)? {
                Some(step) => {
                    if !step.taken.is_empty() {
                        oldest.get_or_insert_with(Instant::now);
                        writer.push(step.taken.into_iter().map(piece).collect());
                    }
                }
                None => self.pause(POLL),
            }
            let waited = oldest.is_some_and(|since| since.elapsed() >= Duration::from_millis(self.config.limits.flush_ms_max));
            let full = writer.rows() >= self.config.limits.flush_rows_max || writer.bytes() >= self.config.limits.flush_bytes_max;
            let quiet = cursor.position().chain - committed >= QUIET_TICKS_MAX;
            if waited || full || quiet {
                self.flush(runtime, &mut writer, &cursor)?;
                oldest = None;
                committed = cursor.position().chain;
            }
        }
        Ok(())
    }

    /// Flushes, for as long as the store needs.
    fn flush(&self, runtime: &Runtime, writer: &mut Writer, cursor: &Cursor) -> Result<(), Error> {
        let Some(state) = cursor.state()? else { return Ok(()) };
        let begun = Instant::now();
        let mut pause = RETRY_MIN;
        loop {
            match runtime.block_on(writer.flush(cursor.position(), state.clone(), (self.wall_ms)())) {
                Ok(flush) => {
                    metrics::archive_flushed(&flush, cursor.position().tick, begun.elapsed());
                    return Ok(());
                }
                Err(away) if away.is_store() && !self.stopped() => {
                    metrics::archive_failed();
                    warn!(error = %away, "the archive's store does not take the flush; the logs keep it meanwhile");
                    self.pause(pause);
                    pause = (pause * 2).min(RETRY_MAX);
                }
                Err(failed) => return Err(failed.into()),
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sleeps, but not past the end.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while !self.stopped() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(POLL));
        }
    }
}

/// A task that ends when it is dropped.
struct Ended(JoinTask<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

const TAKE_EVERY: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(20);
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Ticks without rows after which the position is written all the same, so that a tail is never long to read.
const QUIET_TICKS_MAX: u64 = 18_000;
/// Ten steps below normal: on a busy machine about a tenth of what a thread of the views gets.
const NICE: i32 = 10;
