//! Checkpoints of the workers' state as objects: written by the worker children, chosen by the holder, begun from by the next generation.
//!
//! ```text
//! checkpoints/<tick>/<worker>-of-<workers>   a worker's part, see the engine
//! checkpoints/<tick>/position                version u8, postcard of Position: where the chain goes on behind the tick, and what it had established
//! checkpoints/<tick>/done                    version u8, crc32c u32, postcard of Done: how long each part is and its checksum
//! ```
//!
//! Promise: a checkpoint counts only once `done` is there, and that is created only after every part was read back and was whole. Of those that
//! count the newest `kept` stay; what is older, or was never done, goes when a newer one counts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tracing::{info, warn};
use weir_archive::{Created, ObjectPath, Store};
use weir_dataflow::{CheckpointPart, CheckpointSink, Restore};

use crate::chain::ChainState;
use crate::error::Error;
use crate::metrics;
use crate::rules::ChainedRules;
use crate::sinks::ChainedSinks;
use crate::tables::Tables;
use crate::views::Views;

/// A place in the chain: everything before it is known by its result.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// The record that comes next.
    pub(crate) record: u64,
    /// What the records before have established.
    pub(crate) state: ChainState,
}

/// Where the chain stands behind the ticks of checkpoints under way: told by a feed, asked for when the first part is written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Positions(Arc<Mutex<BTreeMap<u64, Position>>>);

impl Positions {
    /// Notes the position behind a tick.
    pub(crate) fn note(&self, tick: u64, position: Position) {
        let mut positions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        positions.insert(tick, position);
        while positions.len() > POSITIONS_MAX {
            positions.pop_first();
        }
    }

    pub(crate) fn of(&self, tick: u64) -> Option<Position> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&tick).cloned()
    }
}

/// Writes the parts of this process's workers.
pub(crate) struct Writer {
    pub(crate) store: Store,
    pub(crate) positions: Positions,
    pub(crate) runtime: Handle,
    /// How many checkpoints stay.
    pub(crate) kept: usize,
    /// Told when a worker begins to save.
    pub(crate) begun: Box<dyn Fn(u64) + Send + Sync>,
}

impl CheckpointSink for Writer {
    fn begun(&self, tick: u64) {
        (self.begun)(tick);
    }

    fn put(&self, part: CheckpointPart) {
        let (tick, bytes) = (part.tick, part.bytes.len());
        match self.runtime.block_on(self.write(part)) {
            Ok(Written::Part) => {}
            Ok(Written::Last) => {
                info!(tick, bytes, "checkpoint done");
                metrics::checkpoint_done(tick);
            }
            Err(failed) => {
                metrics::checkpoint_failed();
                warn!(tick, error = %failed, "a checkpoint could not be written: the one before stays");
            }
        }
    }
}

/// What a written part was.
enum Written {
    Part,
    /// Of all workers the last one to come: the checkpoint is done.
    Last,
}

/// What makes a checkpoint whole.
#[derive(Debug, Serialize, Deserialize)]
struct Done {
    /// Length and crc32c by worker.
    parts: Vec<(u64, u32)>,
}

impl Writer {
    async fn write(&self, part: CheckpointPart) -> Result<Written, Error> {
        let CheckpointPart { tick, worker, workers, bytes } = part;
        if worker == 0 {
            let position = self.positions.of(tick);
            let position = position.ok_or_else(|| Error::Checkpoint { tick, why: "its position is not known".to_owned() })?;
            let bytes = postcard::to_extend(&position, vec![POSITION_VERSION]).expect("numbers and names always serialise");
            self.store.write(&folder(tick).join(POSITION), bytes).await?;
        }
        self.store.write(&part_path(tick, worker, workers), bytes).await?;
        let there = self.store.list(&folder(tick)).await?;
        let parts: Vec<ObjectPath> = (0..workers).map(|worker| part_path(tick, worker, workers)).collect();
        let position = folder(tick).join(POSITION);
        if !parts.iter().chain([&position]).all(|path| there.contains(path)) {
            return Ok(Written::Part);
        }
        // Several may find that they are the last: all of them say the same.
        let mut done = Done { parts: Vec::new() };
        for path in &parts {
            let bytes = self.store.read(path).await?;
            Restore::check(&bytes).map_err(|why| Error::Checkpoint { tick, why: why.to_string() })?;
            done.parts.push((bytes.len() as u64, crc32c::crc32c(&bytes)));
        }
        let bytes = postcard::to_stdvec(&done).expect("numbers always serialise");
        let mut framed = vec![VERSION];
        framed.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        framed.extend_from_slice(&bytes);
        let created = self.store.create(&folder(tick).join(DONE), framed).await?;
        self.clean().await?;
        Ok(if created == Created::Yes { Written::Last } else { Written::Part })
    }

    /// Removes what is older than the checkpoints that stay. `done` goes first: what is half removed does not count.
    async fn clean(&self) -> Result<(), Error> {
        let done = list(&self.store).await?;
        let Some(oldest) = done.len().checked_sub(self.kept).and_then(|first| done.get(first)) else { return Ok(()) };
        let all = self.store.list(&ObjectPath::from(FOLDER)).await?;
        let mut old: Vec<ObjectPath> = all.into_iter().filter(|path| tick_of(path).is_some_and(|tick| tick < *oldest)).collect();
        old.sort_by_key(|path| path.filename() != Some(DONE));
        for path in old {
            self.store.remove(&path).await?;
        }
        Ok(())
    }
}

/// The ticks of all checkpoints that count, ascending.
pub(crate) async fn list(store: &Store) -> Result<Vec<u64>, Error> {
    let all = store.list(&ObjectPath::from(FOLDER)).await?;
    let mut ticks: Vec<u64> = all.iter().filter(|path| path.filename() == Some(DONE)).filter_map(tick_of).collect();
    ticks.sort_unstable();
    Ok(ticks)
}

/// Reads one that counts.
pub(crate) async fn read(store: &Store, tick: u64) -> Result<(Restore, Position), Error> {
    let wrong = |why: String| Error::Checkpoint { tick, why };
    let done = store.read(&folder(tick).join(DONE)).await?;
    let done = done_of(&done).ok_or_else(|| wrong("its \"done\" is damaged".to_owned()))?;
    let workers = done.parts.len();
    let mut parts = Vec::with_capacity(workers);
    for (worker, (bytes_expected, crc)) in done.parts.iter().enumerate() {
        let bytes = store.read(&part_path(tick, worker, workers)).await?;
        if bytes.len() as u64 != *bytes_expected || crc32c::crc32c(&bytes) != *crc {
            return Err(wrong(format!("the part of worker {worker} is not what was written")));
        }
        parts.push(bytes);
    }
    let position = position(store, tick).await?;
    let restore = tokio::task::spawn_blocking(move || Restore::parse(&parts)).await.map_err(|died| wrong(died.to_string()))?;
    Ok((restore.map_err(|why| wrong(why.to_string()))?, position))
}

/// Where the chain goes on behind one that counts.
pub(crate) async fn position(store: &Store, tick: u64) -> Result<Position, Error> {
    let bytes = store.read(&folder(tick).join(POSITION)).await?;
    position_of(&bytes).ok_or_else(|| Error::Checkpoint { tick, why: "its position is damaged".to_owned() })
}

fn position_of(bytes: &[u8]) -> Option<Position> {
    match bytes.split_first()? {
        (&POSITION_VERSION, body) => postcard::from_bytes(body).ok(),
        // Before there were sinks, tables, rules, or views: they come last, and there were none.
        (4, body) => with(body, &ChainedSinks::default()),
        (3, body) => with(body, &(Tables::default(), ChainedSinks::default())),
        (2, body) => with(body, &(ChainedRules::default(), Tables::default(), ChainedSinks::default())),
        (1, body) => with(body, &(Views::default(), ChainedRules::default(), Tables::default(), ChainedSinks::default())),
        _ => None,
    }
}

fn with(body: &[u8], missing: &impl Serialize) -> Option<Position> {
    let whole = postcard::to_extend(missing, body.to_vec()).ok()?;
    postcard::from_bytes(&whole).ok()
}

fn done_of(bytes: &[u8]) -> Option<Done> {
    let (crc, body) = bytes.strip_prefix(&[VERSION])?.split_first_chunk()?;
    let whole = crc32c::crc32c(body) == u32::from_le_bytes(*crc);
    whole.then(|| postcard::from_bytes(body).ok()).flatten()
}

fn folder(tick: u64) -> ObjectPath {
    // Twenty digits: names sort as ticks do.
    ObjectPath::from(FOLDER).join(format!("{tick:020}"))
}

fn part_path(tick: u64, worker: usize, workers: usize) -> ObjectPath {
    folder(tick).join(format!("{worker}-of-{workers}"))
}

fn tick_of(path: &ObjectPath) -> Option<u64> {
    path.parts().nth(1)?.as_ref().parse().ok()
}

/// Ticks of checkpoints under way: the next is commanded only after the last.
const POSITIONS_MAX: usize = 8;
const FOLDER: &str = "checkpoints";
const POSITION: &str = "position";
const DONE: &str = "done";
const VERSION: u8 = 1;
const POSITION_VERSION: u8 = 5;

#[cfg(test)]
mod tests {
    use weir_dataflow::CheckpointPart;

    use super::*;

    fn world() -> (tempfile::TempDir, Writer, tokio::runtime::Runtime) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store = Store::open(dir.path().to_str().unwrap()).unwrap();
        let writer = Writer {
            store,
            positions: Positions::default(),
            runtime: runtime.handle().clone(),
            kept: 2,
            begun: Box::new(|_| {}),
        };
        (dir, writer, runtime)
    }

    fn put(writer: &Writer, tick: u64, worker: usize) {
        writer.positions.note(tick, Position { record: tick / 100, state: ChainState { tick, ..ChainState::default() } });
        writer.put(CheckpointPart { tick, worker, workers: 2, bytes: weir_dataflow::empty_part(tick, worker, 2) });
    }

    #[test]
    fn a_checkpoint_counts_when_all_parts_are_there_and_old_ones_go() {
        let (_dir, writer, runtime) = world();
        let listed = || runtime.block_on(list(&writer.store)).unwrap();
        put(&writer, 1_000, 1);
        assert_eq!(listed(), Vec::<u64>::new());
        put(&writer, 1_000, 0);
        assert_eq!(listed(), [1_000]);
        let (restore, position) = runtime.block_on(read(&writer.store, 1_000)).unwrap();
        assert_eq!((restore.tick(), position.record, position.state.tick), (1_000, 10, 1_000));
        // One that is never done, then two that are.
        put(&writer, 2_000, 0);
        for tick in [3_000, 4_000] {
            put(&writer, tick, 0);
            put(&writer, tick, 1);
        }
        assert_eq!(listed(), [3_000, 4_000]);
        let left = runtime.block_on(writer.store.list(&ObjectPath::from(FOLDER))).unwrap();
        assert_eq!(left.iter().filter_map(tick_of).min(), Some(3_000), "{left:?}");
    }

    #[test]
    fn a_position_of_before_there_were_sinks_is_read() {
        let position = Position { record: 7, state: ChainState { tick: 3, ..ChainState::default() } };
        let now = postcard::to_extend(&position, vec![POSITION_VERSION]).unwrap();
        assert_eq!(position_of(&now), Some(position.clone()));
        let sinks = postcard::to_stdvec(&ChainedSinks::default()).unwrap();
        let mut before = now[..now.len() - sinks.len()].to_vec();
        before[0] = 4;
        assert_eq!(position_of(&before), Some(position));
    }

    #[test]
    fn a_damaged_part_is_told_and_taken_by_nobody() {
        let (dir, writer, runtime) = world();
        put(&writer, 1_000, 0);
        put(&writer, 1_000, 1);
        let path = dir.path().join(part_path(1_000, 1, 2).as_ref());
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let why = runtime.block_on(read(&writer.store, 1_000)).unwrap_err().to_string();
        assert!(why.contains("checkpoint of tick 1000") && why.contains("worker 1"), "{why}");
    }
}
