//! The chain: one record a tick orders all data and all commands of the cluster.
//!
//! A record names, per registered log, the offset up to which its frames belong to this tick or an earlier one. Readers take a
//! tick's commands first, then exactly the bytes it names. At level `local` the chain is one journal; whoever holds its lock writes.
//!
//! ```text
//! record = version u8 | postcard { generation, nonce, tick, logs [(index, offset)], commands }
//! ```

use serde::{Deserialize, Serialize};
use weir_dataflow::{Command as EngineCommand, ViewSettings};
use weir_schema::Name;

use crate::error::Error;
use crate::generation::Generation;
use crate::rules::{ChainedRules, RulesRequest};
use crate::sinks::{ChainedSinks, SinkRequest};
use crate::tables::Tables;
use crate::views::{ViewRequest, Views};

/// One link of the chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChainRecord {
    /// Which writer wrote it: each one that takes the chain over has the next number.
    pub generation: u64,
    /// Random per record, so that a writer whose outcome was unclear can tell its own record from another's.
    pub nonce: u128,
    /// Milliseconds, strictly increasing along the chain.
    pub tick: u64,
    /// Per registered log: index and offset (exclusive) of the data that belongs to this tick or before.
    pub logs: Vec<(u32, u64)>,
    /// What changes answers, in order, in force from this tick on.
    pub commands: Vec<Command>,
}

/// What the chain may command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// From now on the log of node `name` is read, under this index. Worker `index mod workers` reads it.
    RegisterLog {
        /// Dense, from 0, never reused.
        index: u32,
        /// The node that writes it.
        name: Name,
    },
    /// For the engine.
    Engine(EngineCommand),
    /// The workers' mesh is this from now on.
    Form(Generation),
    /// Somebody changes the views. What became of it follows from the records before: [`Views::outcome`].
    Views(ViewRequest),
    /// Somebody changes the rules. What became of it follows from the records before: [`ChainedRules::outcome`].
    Rules(RulesRequest),
    /// Somebody changes the sinks of alerts. What became of it follows from the records before: [`ChainedSinks::outcome`].
    Sinks(SinkRequest),
}

impl ChainRecord {
    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("a record in memory serializes")
    }

    /// Reads a record back.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (&version, body) = bytes.split_first().ok_or_else(|| Error::ChainRecord("is empty".to_owned()))?;
        if version != VERSION {
            return Err(Error::ChainRecord(format!("has version {version}, this build reads {VERSION}")));
        }
        postcard::from_bytes(body).map_err(|error| Error::ChainRecord(format!("does not decode: {error}")))
    }
}

/// What the records up to some tick have established.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChainState {
    /// Last tick.
    pub tick: u64,
    /// Last writer's number.
    pub generation: u64,
    /// Registered logs, by index.
    pub logs: Vec<Name>,
    /// Offset per log, as of `tick`.
    pub offsets: Vec<u64>,
    /// The views' settings, known from the first record on.
    pub settings: Option<ViewSettings>,
    /// Tells this cluster from others: the nonce of its first record.
    pub cluster: u128,
    /// The newest formation of the mesh.
    pub formed: Option<Generation>,
    /// The views that people have made.
    pub views: Views,
    /// The rule files that are in force.
    pub rules: ChainedRules,
    /// What is known of the tables among the views.
    pub(crate) tables: Tables,
    /// The sinks that people have made.
    pub sinks: ChainedSinks,
}

impl ChainState {
    /// Applies the next record, and refuses one that breaks the chain's rules.
    pub fn apply(&mut self, record: &ChainRecord) -> Result<(), Error> {
        if record.tick <= self.tick {
            return Err(Error::ChainRecord(format!("of tick {} follows tick {}", record.tick, self.tick)));
        }
        if record.generation < self.generation {
            return Err(Error::ChainRecord(format!("of generation {} follows {}", record.generation, self.generation)));
        }
        for command in &record.commands {
            match command {
                Command::RegisterLog { index, name } => {
                    if *index as usize != self.logs.len() {
                        return Err(Error::ChainRecord(format!("registers log {index} after {} logs", self.logs.len())));
                    }
                    self.logs.push(name.clone());
                    self.offsets.push(0);
                }
                Command::Engine(EngineCommand::Configure(settings)) => self.settings = Some(*settings),
                Command::Engine(EngineCommand::Checkpoint) => {}
                // These follow from requests; nobody writes them.
                Command::Engine(
                    EngineCommand::CreateView(_)
                    | EngineCommand::DropViews(_)
                    | EngineCommand::SetRules(_)
                    | EngineCommand::WriteTable(_),
                ) => {
                    return Err(Error::ChainRecord("commands the workers' own views or rules".to_owned()));
                }
                Command::Views(request) => self.views.apply(record.tick, request, &mut self.tables),
                Command::Rules(request) => self.rules.apply(record.tick, request),
                Command::Sinks(request) => self.sinks.apply(request),
                Command::Form(generation) => {
                    let last = self.formed.as_ref().map_or(0, |formed| formed.number);
                    if generation.number <= last {
                        return Err(Error::ChainRecord(format!("forms generation {} after {last}", generation.number)));
                    }
                    self.formed = Some(generation.clone());
                }
            }
        }
        for (index, offset) in &record.logs {
            let known = self.offsets.get_mut(*index as usize);
            let known = known.ok_or_else(|| Error::ChainRecord(format!("names log {index}, which is not registered")))?;
            if *offset < *known {
                return Err(Error::ChainRecord(format!("takes log {index} back from {known} to {offset}")));
            }
            *known = *offset;
        }
        if self.tick == 0 {
            self.cluster = record.nonce;
        }
        self.tick = record.tick;
        self.generation = record.generation;
        Ok(())
    }
}

/// The next tick: as far after the last one as the monotonic clock went, never behind it, pulled up to the wall clock only at
/// the start of a holder. When that is far ahead of the chain, one node's clock is not enough: see [`TickClock::is_unsure`].
#[derive(Debug, Clone, Copy)]
pub struct TickClock {
    start_tick: u64,
    last: u64,
    unsure: bool,
}

impl TickClock {
    /// Starts at the wall clock, or right after the chain's last tick when the wall clock is behind it.
    pub fn start(last_tick: u64, wall_ms: u64) -> Self {
        let unsure = last_tick > 0 && wall_ms > last_tick.saturating_add(JUMP_MS_MAX);
        Self { start_tick: if unsure { last_tick + 1 } else { wall_ms.max(last_tick + 1) }, last: last_tick, unsure }
    }

    /// True when the chain is long behind this node's clock: after a rest, or because the clock is wrong. A tick too far ahead could
    /// never be taken back, and everything after it would come too late. Until [`TickClock::lift`] no tick is to be written.
    pub fn is_unsure(&self) -> bool {
        self.unsure
    }

    /// Goes on from `wall_ms`, `elapsed_ms` of the monotonic clock after the start: what the live nodes agree on.
    pub fn lift(&mut self, elapsed_ms: u64, wall_ms: u64) {
        self.start_tick = self.start_tick.max(wall_ms.saturating_sub(elapsed_ms));
        self.unsure = false;
    }

    /// The tick `elapsed_ms` of the monotonic clock after the start.
    pub fn next(&mut self, elapsed_ms: u64) -> u64 {
        self.last = (self.start_tick + elapsed_ms).max(self.last + 1);
        self.last
    }
}

const VERSION: u8 = 1;
/// A chain that rested for less goes on at the clock of whoever takes it over.
const JUMP_MS_MAX: u64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn record(tick: u64, logs: Vec<(u32, u64)>, commands: Vec<Command>) -> ChainRecord {
        ChainRecord { generation: 1, nonce: 7, tick, logs, commands }
    }

    fn register(index: u32, name: &str) -> Command {
        Command::RegisterLog { index, name: Name::new(name).unwrap() }
    }

    #[test]
    fn a_record_reads_back_and_a_strange_one_is_refused() {
        let written = record(5, vec![(0, 9)], vec![register(0, "n1")]);
        assert_eq!(ChainRecord::decode(&written.encode()).unwrap(), written);
        assert!(ChainRecord::decode(&[]).is_err());
        assert!(ChainRecord::decode(&[99, 1, 2]).unwrap_err().to_string().contains("version 99"));
        let mut cut = written.encode();
        cut.truncate(cut.len() - 2);
        assert!(ChainRecord::decode(&cut).is_err());
    }

    #[test]
    fn the_state_holds_the_chain_to_its_rules() {
        let mut state = ChainState::default();
        state.apply(&record(10, vec![(0, 3)], vec![register(0, "n1")])).unwrap();
        assert!(state.apply(&record(10, vec![], vec![])).is_err(), "same tick twice");
        assert!(state.apply(&record(11, vec![(0, 2)], vec![])).is_err(), "backwards");
        assert!(state.apply(&record(11, vec![(1, 2)], vec![])).is_err(), "unknown log");
        assert!(state.apply(&record(11, vec![], vec![register(5, "n2")])).is_err(), "hole in the indices");
        let old = ChainRecord { generation: 0, ..record(12, vec![], vec![]) };
        assert!(state.apply(&old).is_err(), "older generation after a newer one");
    }

    #[test]
    fn ticks_rise_whatever_the_wall_clock_does() {
        let mut clock = TickClock::start(1_000, 400);
        assert_eq!(clock.next(0), 1_001);
        assert_eq!(clock.next(0), 1_002);
        assert_eq!(clock.next(100), 1_101);
        let mut clock = TickClock::start(1_000, 9_000);
        assert_eq!(clock.next(0), 9_000);
    }

    #[test]
    fn a_leader_whose_clock_steps_a_day() {
        const DAY_MS: u64 = 86_400_000;
        let now = 1_795_000_000_000;
        // The chain rested for an hour; the one who takes it over is a day ahead, the others are right.
        let mut clock = TickClock::start(now - 3_600_000, now + DAY_MS);
        assert!(clock.is_unsure());
        clock.lift(2_000, now);
        assert!(!clock.is_unsure());
        assert_eq!((clock.next(2_000), clock.next(2_100)), (now, now + 100));
        // While it holds the chain a step of its clock means nothing: only the monotonic clock is asked.
        assert_eq!(clock.next(2_200), now + 200);
        // A clock that is behind never takes a tick back.
        let mut behind = TickClock::start(now, now - DAY_MS);
        assert!(!behind.is_unsure());
        behind.lift(0, now - DAY_MS);
        assert_eq!(behind.next(0), now + 1);
    }
}
