//! The holder: the one node that writes the chain.
//!
//! Every tick it asks how far each registered log is durable and writes one record. New logs are registered when they appear. It names
//! nothing that a log's own sync has not covered.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};
use weir_dataflow::{Command as EngineCommand, ViewSettings};

use crate::chain::{ChainRecord, ChainState, Command, TickClock};
use crate::checkpoint::Position;
use crate::error::Error;
use crate::log::{ChainWriter, LogError, Logs, Pace, Reader};
use crate::metrics;

/// Writes the chain.
pub(crate) struct Holder {
    all: Arc<dyn Logs>,
    chain: Box<dyn ChainWriter>,
    /// The number of the next record.
    next: u64,
    state: ChainState,
    clock: TickClock,
    /// Per registered log, how to ask for its durable offset.
    logs: Vec<Box<dyn Reader>>,
    settings: ViewSettings,
    until_scan: u32,
}

impl Holder {
    /// Takes over the chain, or starts one. `None`: another node holds it.
    ///
    /// `base` says where to begin when the chain has forgotten its beginning: it is given the first record that is kept.
    pub(crate) fn take(
        all: Arc<dyn Logs>,
        settings: ViewSettings,
        wall_ms: u64,
        base: impl FnOnce(u64) -> Result<Position, Error>,
    ) -> Result<Option<Self>, Error> {
        let Some(chain) = all.take_chain().map_err(Error::log("taking the chain"))? else { return Ok(None) };
        let Position { record, mut state } = base(chain.first())?;
        let next = read(&*all, record, &mut state)?;
        if state.settings.is_some_and(|chained| chained != settings) {
            warn!("the [views] of this config differ from the chain's: the chain's stay in force");
        }
        if wall_ms < state.tick {
            warn!(behind_ms = state.tick - wall_ms, "the clock is behind the chain's last tick: ticks go on after it");
        }
        let clock = TickClock::start(state.tick, wall_ms);
        let logs = Vec::with_capacity(state.logs.len());
        // A holder's records carry a generation of their own: an older one after a newer is void.
        state.generation += 1;
        let mut holder = Self { all, chain, next, state, clock, logs, settings, until_scan: 0 };
        for index in 0..holder.state.logs.len() {
            let (name, from) = (&holder.state.logs[index], holder.state.offsets[index]);
            let reader = holder.all.read_log(name, from).map_err(Error::log(format!("opening log {name}")))?;
            holder.logs.push(reader);
        }
        info!(tick = holder.state.tick, logs = holder.logs.len(), "holding the chain");
        Ok(Some(holder))
    }

    /// True when no tick is to be written before the nodes' clocks were compared.
    pub(crate) fn is_unsure(&self) -> bool {
        self.clock.is_unsure()
    }

    /// Goes on at what the nodes' clocks agree on.
    pub(crate) fn lift(&mut self, elapsed_ms: u64, wall_ms: u64) {
        self.clock.lift(elapsed_ms, wall_ms);
    }

    /// What the chain says up to now.
    pub(crate) fn state(&self) -> &ChainState {
        &self.state
    }

    /// Lets the chain forget the records before `floor`.
    pub(crate) fn forget(&mut self, floor: u64) -> Result<(), Error> {
        self.chain.forget(floor).map_err(Error::log("forgetting records of the chain"))
    }

    /// Writes the record of the next tick, `elapsed_ms` of the monotonic clock after the holder was made, with these commands.
    pub(crate) fn step(&mut self, elapsed_ms: u64, mut commands: Vec<Command>) -> Result<u64, Error> {
        if self.state.settings.is_none() {
            commands.insert(0, Command::Engine(EngineCommand::Configure(self.settings)));
        }
        if self.until_scan == 0 {
            self.register_new_logs(&mut commands)?;
            self.until_scan = SCAN_EVERY_TICKS;
        }
        self.until_scan -= 1;
        let mut logs = Vec::with_capacity(self.logs.len());
        for (index, reader) in self.logs.iter_mut().enumerate() {
            let durable = reader.durable().map_err(Error::log("asking how far a log is durable"))?;
            // When the power failed the log may say less until its node opens it again. What was named is durable all the same.
            let named = self.state.offsets.get(index).copied().unwrap_or(0);
            logs.push((index as u32, durable.max(named)));
        }
        let record = ChainRecord {
            generation: self.state.generation,
            nonce: self.all.nonce(),
            tick: self.clock.next(elapsed_ms),
            logs,
            commands,
        };
        self.state.apply(&record)?;
        self.chain.append(self.next, &record).map_err(Error::log("appending to the chain"))?;
        self.next += 1;
        metrics::chain_tick(record.tick);
        Ok(record.tick)
    }

    fn register_new_logs(&mut self, commands: &mut Vec<Command>) -> Result<(), Error> {
        for name in self.all.names().map_err(Error::log("looking for new logs"))? {
            if self.state.logs.contains(&name) {
                continue;
            }
            // A log whose first files are not there yet is registered at a later look.
            let Ok(reader) = self.all.read_log(&name, 0) else { continue };
            info!(log = %name, index = self.logs.len(), "log registered");
            commands.push(Command::RegisterLog { index: self.logs.len() as u32, name });
            self.logs.push(reader);
        }
        Ok(())
    }
}

/// Applies the chain from a record on, and gives the number of the next one.
fn read(all: &dyn Logs, from: u64, state: &mut ChainState) -> Result<u64, Error> {
    let mut reader = match all.read_chain(from, Pace::UpToNow) {
        Err(LogError::Missing { .. }) => return Ok(from),
        opened => opened.map_err(Error::log("reading the chain"))?,
    };
    while let Some((_, bytes)) = reader.next().map_err(Error::log("reading the chain"))? {
        state.apply(&ChainRecord::decode(&bytes)?)?;
    }
    Ok(reader.at())
}

/// A directory listing a second is enough to find a new node.
const SCAN_EVERY_TICKS: u32 = 10;

/// Pause between two attempts to become the holder.
pub(crate) const TAKE_EVERY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use weir_config::JournalLimits;
    use weir_journal::SimDisk;

    use super::*;
    use crate::log::LocalLogs;
    use crate::log::local::CHAIN_SEGMENT_BYTES;

    /// Holds a chain for so many ticks, and lets it forget below a floor.
    #[test]
    fn who_takes_a_chain_without_its_beginning_goes_on_from_a_base() {
        let disk = Arc::new(SimDisk::new(7));
        let logs: Arc<dyn Logs> = Arc::new(LocalLogs::new(disk, "/shared".as_ref(), &JournalLimits::default()));
        let settings = ViewSettings::default();
        let from_start = |first: u64| match first {
            0 => Ok(Position::default()),
            _ => Err(Error::ChainRecord("was forgotten".to_owned())),
        };
        let take = |base: &dyn Fn(u64) -> Result<Position, Error>| Holder::take(logs.clone(), settings, 1_000, base);
        let mut holder = take(&from_start).unwrap().unwrap();
        let mut base = None;
        let ticks = 4 * CHAIN_SEGMENT_BYTES / 64;
        for step in 0..ticks {
            holder.step(step * 100, vec![]).unwrap();
            if step == ticks / 2 {
                base = Some(Position { record: step + 1, state: holder.state().clone() });
            }
        }
        let (base, last) = (base.unwrap(), holder.state().clone());
        holder.forget(base.record).unwrap();
        assert!(holder.chain.first() > 0, "nothing was forgotten");
        drop(holder);
        assert!(take(&from_start).err().unwrap().to_string().contains("was forgotten"));
        let mut again = take(&|first| {
            assert!((1..=base.record).contains(&first));
            Ok(base.clone())
        })
        .unwrap()
        .unwrap();
        assert_eq!(again.state().tick, last.tick);
        assert_eq!((again.state().cluster, again.state().settings), (last.cluster, last.settings));
        assert!(again.step(0, vec![]).unwrap() > last.tick);
    }
}
