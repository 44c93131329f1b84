//! Follows the chain in the node's own process, to know which generation there is and how far the ticks are.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::error;

use crate::chain::{ChainRecord, ChainState};
use crate::checkpoint::Position;
use crate::error::Error;
use crate::generation::Generation;
use crate::log::{LogError, Logs, Pace};
use crate::sinks::ChainedSinks;
use crate::views::Views;

/// What the chain says now.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Now {
    /// The newest generation.
    pub(crate) formed: Option<Arc<Generation>>,
    /// Which cluster this is.
    pub(crate) cluster: u128,
    /// The last tick.
    pub(crate) tick: u64,
}

/// Who is told what the chain says.
pub(crate) struct Told {
    /// Where it is.
    pub(crate) now: watch::Sender<Now>,
    /// The views that people made; none: the chain was not read yet.
    pub(crate) views: watch::Sender<Option<Views>>,
    /// The sinks that people made; none: the chain was not read yet.
    pub(crate) sinks: watch::Sender<Option<ChainedSinks>>,
}

/// Reads until `stop` says so, and tells what is new. Blocks; run it on a thread of its own.
///
/// `base` says where to begin when the chain has forgotten its beginning: it is given the first record that is kept.
pub(crate) fn follow(logs: Arc<dyn Logs>, told: Told, base: impl Fn(u64) -> Result<Position, Error>, stop: impl Fn() -> bool) {
    while !stop() {
        // After a fault it begins anew: the chain may have been mended.
        if let Err(failed) = read(&*logs, &told, &base, &stop) {
            error!(error = %failed, "the chain cannot be followed: this node takes part in no new generation; trying on");
            std::thread::sleep(AGAIN_AFTER);
        }
    }
}

fn read(
    logs: &dyn Logs,
    told: &Told,
    base: &impl Fn(u64) -> Result<Position, Error>,
    stop: &impl Fn() -> bool,
) -> Result<(), Error> {
    let mut chain = loop {
        match logs.read_chain(0, Pace::Polling) {
            Ok(reader) => break reader,
            // Its holder makes it; it may not have come so far.
            Err(_) if !stop() => std::thread::sleep(POLL),
            Err(_) => return Ok(()),
        }
    };
    let mut state = ChainState::default();
    while !stop() {
        match chain.next() {
            Ok(Some((_, bytes))) => state.apply(&ChainRecord::decode(&bytes)?)?,
            Ok(None) => {
                tell(&told.now, &state);
                tell_changed(&told.views, &state.views);
                tell_changed(&told.sinks, &state.sinks);
                std::thread::sleep(POLL);
            }
            Err(LogError::Forgotten { first, .. }) => {
                let position = base(first)?;
                state = position.state;
                chain.seek(position.record);
            }
            Err(failed) => return Err(Error::log("reading the chain")(failed)),
        }
    }
    Ok(())
}

/// Wakes those who wait for a generation only when there is another one.
fn tell(now: &watch::Sender<Now>, state: &ChainState) {
    now.send_if_modified(|now| {
        let number = |formed: Option<&Generation>| formed.map_or(0, |formed| formed.number);
        let is_new = number(state.formed.as_ref()) != number(now.formed.as_deref());
        if is_new {
            now.formed = state.formed.clone().map(Arc::new);
        }
        (now.cluster, now.tick) = (state.cluster, state.tick);
        is_new
    });
}

/// Wakes those who wait only when there is something else.
fn tell_changed<T: Clone + PartialEq>(told: &watch::Sender<Option<T>>, now: &T) {
    told.send_if_modified(|told| {
        let is_new = told.as_ref() != Some(now);
        if is_new {
            *told = Some(now.clone());
        }
        is_new
    });
}

const POLL: Duration = Duration::from_millis(20);
const AGAIN_AFTER: Duration = Duration::from_secs(1);
