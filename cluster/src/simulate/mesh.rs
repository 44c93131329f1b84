//! The workers: each node's feeds read the chain and their logs, a tick is closed once all of them have it, one [`Intake`] takes it in.
//!
//! Feeds, dedupe, admission and the intake's saved state are the real ones. Not here: timely and the exchange between workers (frames of all
//! feeds meet in one intake, as they meet by agent in the mesh), and the store of checkpoints, which is a map.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use weir_dataflow::{Admission, Command as EngineCommand, Intake, Tick, ViewSettings};
use weir_schema::{Column, Kind};

use super::books::{Answer, EventKey, Produced, Row, agent_number};
use crate::chain::ChainRecord;
use crate::checkpoint::{Position, Positions};
use crate::error::Error;
use crate::feed::{Share, Tail};
use crate::generation::Generation;
use crate::log::{Logs, Pace, Reader};

/// One worker's feed, pulled.
pub(super) struct Feeding {
    tail: Tail,
    from: u64,
    chain: Option<Box<dyn Reader>>,
    pub(super) ready: VecDeque<Tick>,
    positions: Positions,
}

impl Feeding {
    pub(super) fn new(logs: &Arc<dyn Logs>, share: Share, from: Position, generation: u64) -> Self {
        let (positions, record) = (Positions::default(), from.record);
        let tail = Tail::new(logs.clone(), share, from, (generation, positions.clone()));
        Self { tail, from: record, chain: None, ready: VecDeque::new(), positions }
    }

    /// Reads some ticks, until so many are ahead.
    pub(super) fn poll(&mut self, logs: &dyn Logs, ahead_max: usize) -> Result<(), Error> {
        let chain = match &mut self.chain {
            Some(chain) => chain,
            slot => match logs.read_chain(self.from, Pace::Polling) {
                Ok(chain) => slot.insert(chain),
                // As the real feed: the holder makes it.
                Err(_) => return Ok(()),
            },
        };
        while self.ready.len() < ahead_max {
            let Some((number, bytes)) = chain.next().map_err(Error::log("reading the chain"))? else { return Ok(()) };
            self.ready.push_back(self.tail.tick(number, ChainRecord::decode(&bytes)?)?);
        }
        Ok(())
    }
}

/// A node's workers in one generation.
pub(super) struct NodeWorkers {
    pub(super) generation: Generation,
    pub(super) feeds: Vec<Feeding>,
    /// They ended, and say so.
    pub(super) ended: Option<String>,
}

impl NodeWorkers {
    pub(super) fn start(logs: &Arc<dyn Logs>, generation: Generation, place: usize, from: &Position) -> Self {
        let workers = generation.workers_total();
        let share = |thread: u32| Share { worker: place * generation.workers as usize + thread as usize, workers };
        let feed = |thread| Feeding::new(logs, share(thread), from.clone(), generation.number);
        let feeds = (0..generation.workers).map(feed).collect();
        Self { generation, feeds, ended: None }
    }
}

/// A checkpoint that counts.
#[derive(Clone)]
pub(super) struct Checkpoint {
    pub(super) position: Position,
    state: Vec<u8>,
    answer: Answer,
}

/// The store of checkpoints.
#[derive(Default)]
pub(super) struct Checkpoints(pub(super) BTreeMap<u64, Checkpoint>);

impl Checkpoints {
    /// Where a generation begins.
    pub(super) fn begin(&self, from: Option<u64>) -> Result<Position, String> {
        match from {
            None => Ok(Position::default()),
            Some(tick) => {
                Ok(self.0.get(&tick).ok_or_else(|| format!("checkpoint of tick {tick} is not there"))?.position.clone())
            }
        }
    }

    /// As `forget::base`: where one begins whose chain has forgotten its beginning.
    pub(super) fn base(&self, first: u64) -> Result<Position, Error> {
        if first == 0 {
            return Ok(Position::default());
        }
        let oldest = self.0.values().next().map(|checkpoint| checkpoint.position.clone());
        let good = oldest.filter(|position| position.record >= first);
        good.ok_or_else(|| Error::ChainRecord(format!("{first} is the first that is kept, and no checkpoint lies behind it")))
    }

    pub(super) fn put(&mut self, tick: u64, checkpoint: Checkpoint) {
        self.0.insert(tick, checkpoint);
        while self.0.len() > CHECKPOINTS_KEPT {
            self.0.pop_first();
        }
    }
}

/// The mesh of one generation: what its members' workers have closed together.
pub(super) struct Mesh {
    pub(super) generation: u64,
    intake: Intake,
    pub(super) answer: Answer,
    pub(super) closed: u64,
}

impl Mesh {
    pub(super) fn start(settings: ViewSettings, generation: &Generation, checkpoints: &Checkpoints) -> Result<Self, String> {
        let admission = Admission { retention_ms: settings.retention_ms, skew_ms: settings.skew_ms };
        let number = generation.number;
        match generation.from {
            None => Ok(Self { generation: number, intake: Intake::new(admission), answer: Answer::new(), closed: 0 }),
            Some(tick) => {
                let from = checkpoints.0.get(&tick).ok_or_else(|| format!("checkpoint of tick {tick} is not there"))?;
                let intake = Intake::restore(admission, &from.state).map_err(|error| error.to_string())?;
                Ok(Self { generation: number, intake, answer: from.answer.clone(), closed: tick })
            }
        }
    }

    /// Closes the next tick if every feed has it. Gives a checkpoint when the tick commands one.
    pub(super) fn close(&mut self, feeds: &mut [&mut Feeding]) -> Result<Option<Closed>, String> {
        if feeds.is_empty() || feeds.iter().any(|feed| feed.ready.is_empty()) {
            return Ok(None);
        }
        let mut ticks: Vec<Tick> = feeds.iter_mut().filter_map(|feed| feed.ready.pop_front()).collect();
        let (tick, commands) = (ticks[0].tick, ticks[0].commands.clone());
        if ticks.iter().any(|other| other.tick != tick || other.commands != commands) {
            return Err(format!("the workers of one mesh read different ticks at {tick}"));
        }
        if tick <= self.closed {
            return Err(format!("tick {tick} follows tick {} in a mesh", self.closed));
        }
        let frames = ticks.iter_mut().flat_map(|tick| tick.frames.drain(..)).collect();
        for taken in self.intake.advance(tick, frames) {
            let (section, header) = (taken.section(), &taken.batch.header);
            let agent = agent_number(taken.identity.agent.as_str())?;
            let losses = (section.kind == Kind::Loss).then(|| taken.batch.ints(section, Column::LossCount)).flatten();
            let all: Vec<u32> = (0..section.rows() as u32).collect();
            for row in taken.rows.as_ref().unwrap_or(&all) {
                let row = *row as usize;
                let seq = section.first_seq.0 + row as u64;
                let key = EventKey { agent, epoch: header.epoch, lane: header.lane, seq };
                let loss_count = losses.as_ref().and_then(|losses| losses.get(row)).map_or(0, i64::unsigned_abs);
                let event = Produced { time: section.times[row], loss_count };
                if self.answer.insert(key, Row { tick, late: taken.late, event }).is_some() {
                    return Err(format!("{key:?} is twice in the answer at tick {tick}"));
                }
            }
        }
        self.closed = tick;
        let mut checkpoint = None;
        if commands.contains(&EngineCommand::Checkpoint) {
            let position = feeds[0].positions.of(tick).ok_or_else(|| format!("the position of tick {tick} is not known"))?;
            let state = self.intake.save().map_err(|error| error.to_string())?;
            checkpoint = Some(Checkpoint { position, state, answer: self.answer.clone() });
        }
        Ok(Some(Closed { tick, checkpoint }))
    }
}

/// A closed tick.
pub(super) struct Closed {
    pub(super) tick: u64,
    pub(super) checkpoint: Option<Checkpoint>,
}

const CHECKPOINTS_KEPT: usize = 2;
