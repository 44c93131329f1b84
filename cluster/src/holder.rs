//! The holder: the one node that writes the chain. At level `local` that is whoever has the lock of the chain's directory.
//!
//! Every tick it reads how far each registered log is durable and writes one record. New logs are registered when their
//! directory appears. It names nothing that a log's own sync has not covered.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};
use weir_dataflow::{Command as EngineCommand, ViewSettings};
use weir_journal::{Disk, Journal, Offset, Options, Reader};
use weir_schema::Name;

use crate::chain::{ChainRecord, ChainState, Command, TickClock};
use crate::checkpoint::Position;
use crate::error::Error;
use crate::{layout, metrics};

/// Writes the chain. Made only with the chain's lock in hand.
pub(crate) struct Holder {
    disk: Arc<dyn Disk>,
    shared: PathBuf,
    journal: Journal,
    state: ChainState,
    clock: TickClock,
    /// Per registered log, how to ask for its durable offset.
    logs: Vec<Reader>,
    settings: ViewSettings,
    until_scan: u32,
}

impl Holder {
    /// Takes over the chain below `shared`, or starts one. `None`: another node holds it.
    ///
    /// `base` says where to begin when the chain has forgotten its beginning: it is given the first record that is kept.
    pub(crate) fn take(
        disk: Arc<dyn Disk>,
        shared: &Path,
        settings: ViewSettings,
        wall_ms: u64,
        base: impl FnOnce(u64) -> Result<Position, Error>,
    ) -> Result<Option<Self>, Error> {
        let dir = layout::chain_dir(shared);
        let options = Options { segment_bytes_max: SEGMENT_BYTES, ..Options::default() };
        let (journal, recovery) = match Journal::open(disk.clone(), &dir, options) {
            Ok(opened) => opened,
            Err(weir_journal::Error::Locked { .. }) => return Ok(None),
            Err(failed) => return Err(Error::journal("opening the chain")(failed)),
        };
        let Position { record, mut state } = base(recovery.first.0)?;
        let mut reader = Reader::open(disk.clone(), &dir, Offset(record)).map_err(Error::journal("reading the chain"))?;
        while let Some((_, bytes)) = reader.next().map_err(Error::journal("reading the chain"))? {
            state.apply(&ChainRecord::decode(&bytes)?)?;
        }
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
        let mut holder = Self { disk, shared: shared.to_owned(), journal, state, clock, logs, settings, until_scan: 0 };
        for index in 0..holder.state.logs.len() {
            let reader = holder.open_log(&holder.state.logs[index].clone())?;
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
        self.journal.forget(Offset(floor)).map_err(Error::journal("forgetting records of the chain"))
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
        for (index, reader) in self.logs.iter().enumerate() {
            let durable = reader.durable().map_err(Error::journal("asking how far a log is durable"))?;
            logs.push((index as u32, durable.0));
        }
        let record =
            ChainRecord { generation: self.state.generation, nonce: nonce(), tick: self.clock.next(elapsed_ms), logs, commands };
        self.state.apply(&record)?;
        self.journal.append(&record.encode()).map_err(Error::journal("appending to the chain"))?;
        self.journal.sync().map_err(Error::journal("syncing the chain"))?;
        metrics::chain_tick(record.tick);
        Ok(record.tick)
    }

    fn register_new_logs(&mut self, commands: &mut Vec<Command>) -> Result<(), Error> {
        let dir = layout::logs_dir(&self.shared);
        let listed = std::fs::read_dir(&dir).map_err(Error::file("list", &dir))?;
        let mut found: Vec<Name> = listed.flatten().filter_map(|entry| Name::new(entry.file_name().to_str()?).ok()).collect();
        found.sort();
        for name in found {
            if self.state.logs.contains(&name) {
                continue;
            }
            // A log whose first files are not there yet is registered at a later look.
            let Ok(reader) = self.open_log(&name) else { continue };
            info!(log = %name, index = self.logs.len(), "log registered");
            commands.push(Command::RegisterLog { index: self.logs.len() as u32, name });
            self.logs.push(reader);
        }
        Ok(())
    }

    fn open_log(&self, name: &Name) -> Result<Reader, Error> {
        let dir = layout::log_dir(&self.shared, name);
        // Only its durable offset is asked for: where it begins does not matter.
        Reader::open(self.disk.clone(), &dir, Offset(0)).map_err(Error::journal(format!("opening log {name}")))
    }
}

/// 128 bits that differ between any two calls, in any process: the standard library's per-process random keys over a counter.
pub(crate) fn nonce() -> u128 {
    use std::hash::{BuildHasher as _, RandomState};
    let half = || u128::from(RandomState::new().hash_one(std::process::id()));
    half() << 64 | half()
}

/// The least that can be forgotten: about an hour of ticks.
const SEGMENT_BYTES: u64 = 2 << 20;
/// A directory listing a second is enough to find a new node.
const SCAN_EVERY_TICKS: u32 = 10;

/// Pause between two attempts to become the holder.
pub(crate) const TAKE_EVERY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use weir_journal::SimDisk;

    use super::*;

    /// Holds a chain for so many ticks, and lets it forget below a floor.
    #[test]
    fn who_takes_a_chain_without_its_beginning_goes_on_from_a_base() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(7));
        let dir = tempfile::tempdir().unwrap();
        let shared = dir.path();
        std::fs::create_dir_all(layout::logs_dir(shared)).unwrap();
        let settings = ViewSettings::default();
        let from_start = |first: u64| match first {
            0 => Ok(Position::default()),
            _ => Err(Error::ChainRecord("was forgotten".to_owned())),
        };
        let take = |base: &dyn Fn(u64) -> Result<Position, Error>| Holder::take(disk.clone(), shared, settings, 1_000, base);
        let mut holder = take(&from_start).unwrap().unwrap();
        let mut base = None;
        let ticks = 4 * SEGMENT_BYTES / 64;
        for step in 0..ticks {
            holder.step(step * 100, vec![]).unwrap();
            if step == ticks / 2 {
                base = Some(Position { record: step + 1, state: holder.state().clone() });
            }
        }
        let (base, last) = (base.unwrap(), holder.state().clone());
        holder.forget(base.record).unwrap();
        assert!(holder.journal.first().0 > 0, "nothing was forgotten");
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
