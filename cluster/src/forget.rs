//! What the chain and the logs may forget: only what the archive holds and what comes before the oldest checkpoint that is kept.
//!
//! Every node works the floors out by itself, from the store, now and then. The holder lowers the chain's journal to its floor, ingest the
//! node's own log. Fewer than two checkpoints: nothing may go. A store that is away only means that nothing goes meanwhile.
//!
//! Who then begins to read the chain begins at the oldest checkpoint's position, [`base`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::{info, warn};
use weir_archive::{Archive, Store};
use weir_schema::Name;

use crate::checkpoint::{self, Position};
use crate::error::Error;

/// Up to where (exclusive) may be forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Floors {
    /// Records of the chain.
    pub(crate) chain: u64,
    /// Records of each log.
    pub(crate) logs: BTreeMap<Name, u64>,
}

/// The newest floors, shared with those who forget.
#[derive(Debug, Clone, Default)]
pub(crate) struct Floor(Arc<Mutex<Floors>>);

impl Floor {
    /// Of the chain.
    pub(crate) fn chain(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).chain
    }

    /// Of a node's log.
    pub(crate) fn log(&self, name: &Name) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).logs.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn put(&self, floors: Floors) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = floors;
    }
}

/// Works the floors out, over and over. `archive` is none where the record is not kept. Ends when dropped.
pub(crate) async fn run(store: Store, archive: Option<Archive>, floor: Floor) {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut told, mut failed) = (0, false);
    loop {
        every.tick().await;
        match floors(&store, archive.as_ref()).await {
            Ok(floors) => {
                failed = false;
                if floors.chain > told {
                    told = floors.chain;
                    info!(chain = told, "the chain and the logs may forget what checkpoints and archive hold");
                }
                floor.put(floors);
            }
            Err(error) if !failed => {
                failed = true;
                warn!(%error, "what may be forgotten cannot be told: the log grows meanwhile");
            }
            Err(_) => {}
        }
    }
}

/// The least of what the oldest checkpoint and the archive stand behind.
async fn floors(store: &Store, archive: Option<&Archive>) -> Result<Floors, Error> {
    let checkpoints = checkpoint::list(store).await?;
    if checkpoints.len() < CHECKPOINTS_MIN {
        return Ok(Floors::default());
    }
    let Position { record, state } = checkpoint::position(store, checkpoints[0]).await?;
    let mut floors = Floors { chain: record, logs: state.logs.into_iter().zip(state.offsets).collect() };
    if let Some(archive) = archive {
        let position = archive.refresh().await?.position.clone();
        floors.chain = floors.chain.min(position.chain);
        for (name, floor) in &mut floors.logs {
            let archived = position.logs.iter().find(|(log, _)| log == name.as_str()).map_or(0, |(_, offset)| *offset);
            *floor = (*floor).min(archived);
        }
    }
    Ok(floors)
}

/// Where one begins to read a chain whose first kept record is `first`.
pub(crate) async fn base(store: &Store, first: u64) -> Result<Position, Error> {
    if first == 0 {
        return Ok(Position::default());
    }
    let lost = |why: &str| {
        Error::ChainRecord(format!("{first} is the first that is kept, and {why}: restore the chain's files or a checkpoint"))
    };
    let oldest = checkpoint::list(store).await?.first().copied().ok_or_else(|| lost("there is no checkpoint to begin from"))?;
    let position = checkpoint::position(store, oldest).await?;
    if position.record < first {
        return Err(lost("the oldest checkpoint lies before it"));
    }
    Ok(position)
}

const EVERY: Duration = Duration::from_secs(5);
const CHECKPOINTS_MIN: usize = 2;

#[cfg(test)]
mod tests {
    use weir_dataflow::{CheckpointPart, CheckpointSink as _};

    use super::*;
    use crate::chain::ChainState;
    use crate::checkpoint::{Positions, Writer};

    #[test]
    fn nothing_goes_before_two_checkpoints_and_readers_begin_at_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store = Store::open(dir.path().to_str().unwrap()).unwrap();
        let writer = Writer {
            store: store.clone(),
            positions: Positions::default(),
            runtime: runtime.handle().clone(),
            kept: 2,
            begun: Box::new(|_| {}),
        };
        let floors_now = || runtime.block_on(floors(&store, None)).unwrap();
        let base_of = |first| runtime.block_on(base(&store, first));
        for (tick, record, offset, chain_floor, log_floor) in [(100, 10, 7, 0, 0), (200, 20, 9, 10, 7), (300, 30, 12, 20, 9)] {
            let state = ChainState { tick, logs: vec![Name::new("n1").unwrap()], offsets: vec![offset], ..ChainState::default() };
            writer.positions.note(tick, Position { record, state });
            writer.put(CheckpointPart { tick, worker: 0, workers: 1, bytes: weir_dataflow::empty_part(tick, 0, 1) });
            let found = floors_now();
            assert_eq!(
                (found.chain, found.logs.get(&Name::new("n1").unwrap()).copied().unwrap_or(0)),
                (chain_floor, log_floor),
                "after {tick}"
            );
        }
        assert_eq!(base_of(0).unwrap(), Position::default());
        assert_eq!(base_of(20).unwrap().record, 20);
        assert!(base_of(21).unwrap_err().to_string().contains("lies before it"));
    }
}
