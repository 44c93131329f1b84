//! The record's side of the source: the same chained frames as the views' owner, by the same rule, without any view.
//!
//! The archive is written from the rows that it hands out, and what is not archived yet is read by it.
//!
//! Promise: the rows, their tick and whether they are late are those that the owners put into the tails (`owner.rs`), on any
//! number of workers. What is refused (duplicates, conflicts, what cannot be read, what finds no room to wait) the owners count:
//! here it is only passed over. All is a function of the chain, so a saved state (`intake/state.rs`) goes on identically.

mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use weir_schema::{AgentIdentity, Batch, Column, Decoder, Frame, Section, StampedFrame};

pub use state::IntakeError;

use super::admission::Admission;
use super::dedupe::{Dedupe, Verdict};
use super::rows::{Pick, Picks, Rows, Stamp};
use super::sorted::{AHEAD_ROWS_MAX, count, sort};
use super::tail::Tail;
use crate::feed::Arrived;

/// Rows of one section of one frame that became readable at one tick.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The relation that they are rows of.
    pub tail: Tail,
    /// Tick at which they became readable.
    pub tick: u64,
    /// True for rows that came too late for any view.
    pub late: bool,
    /// Who sent them.
    pub identity: Arc<AgentIdentity>,
    /// When they came, by the node's clock.
    pub received_ms: u64,
    /// The frame they came in, decoded once for all of its sections.
    pub batch: Arc<Batch>,
    /// Place of the section in `batch.sections`.
    pub section: usize,
    /// `None`: every row of the section; else these, ascending.
    pub rows: Option<Vec<u32>>,
}

impl Taken {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.as_ref().map_or_else(|| self.section().rows(), Vec::len)
    }

    /// Never true of what an intake hands out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The section that they are rows of.
    pub fn section(&self) -> &Section {
        &self.batch.sections[self.section]
    }

    /// The rows as Arrow columns, in the types of [`super::schema_of`] these columns. With `rows` those of the section instead,
    /// by number and in any order; each is to be one that the section has.
    pub fn record_batch(&self, columns: &[Column], schema: &SchemaRef, rows: Option<&[u32]>) -> RecordBatch {
        let rows = rows.or(self.rows.as_deref());
        let pick = rows.map_or(Pick::All, |rows| Pick::Some(rows.to_vec()));
        let stamp = Stamp { identity: &self.identity, received_ms: self.received_ms, tick: self.tick, late: self.late };
        Rows::new(&self.batch, stamp).record_batch(&vec![(self.section, pick)], schema, columns)
    }
}

/// Reads the frames of all agents. A clone goes on by itself and shares what neither has changed since.
pub struct Intake {
    admission: Admission,
    /// By routing key.
    agents: HashMap<u64, Arc<Agent>, FixedState>,
    /// What waits, by the moment at which it enters; what entered the chain first is first.
    waiting: Arc<BTreeMap<u64, Vec<Arc<Waiting>>>>,
    decoder: Decoder,
}

#[derive(Debug, Clone)]
struct Agent {
    dedupe: Dedupe,
    /// Rows that wait for their time.
    waiting: usize,
}

/// Rows of a frame that are ahead of their tick.
#[derive(Debug, Clone)]
struct Waiting {
    held: Arc<Held>,
    picks: Picks,
}

/// A frame some of whose rows wait.
#[derive(Debug)]
struct Held {
    origin: Origin,
    frame: Frame,
    /// Absent from when a state was restored until the first of the rows enters: decoded frames are large.
    batch: OnceLock<Arc<Batch>>,
}

#[derive(Debug, Clone)]
struct Origin {
    route: u64,
    identity: Arc<AgentIdentity>,
    received_ms: u64,
}

impl Intake {
    /// Nothing read yet. The bounds come from the chain's first command.
    pub fn new(admission: Admission) -> Self {
        Self { admission, agents: HashMap::default(), waiting: Arc::default(), decoder: Decoder::new() }
    }

    /// Takes the next tick of the chain with the frames that it names, of all logs and in any order, and hands out what became
    /// readable: first what waited, by its moment, then the frames by (log, offset), of each the late rows first. Every tick of
    /// the chain is to be given, in ascending order: rows that wait enter at the first that has reached their moment.
    pub fn advance(&mut self, tick: u64, mut frames: Vec<Arrived>) -> Vec<Taken> {
        let mut taken = Vec::new();
        self.enter(tick, &mut taken);
        frames.sort_by_key(|arrived| (arrived.log, arrived.offset));
        for arrived in frames {
            self.take(tick, arrived.stamped, &mut taken);
        }
        taken
    }

    /// Lets in what has waited for this tick.
    fn enter(&mut self, tick: u64, taken: &mut Vec<Taken>) {
        if self.waiting.first_key_value().is_none_or(|(moment, _)| *moment > tick) {
            return;
        }
        let waiting = Arc::make_mut(&mut self.waiting);
        while let Some(due) = waiting.first_entry().filter(|due| *due.key() <= tick) {
            for waited in due.remove() {
                let Waiting { held, picks } = Arc::unwrap_or_clone(waited);
                let batch = held.batch(&mut self.decoder);
                if let Some(agent) = self.agents.get_mut(&held.origin.route) {
                    let agent = Arc::make_mut(agent);
                    agent.waiting = agent.waiting.saturating_sub(count(&batch, &picks));
                }
                held.origin.give(tick, false, &batch, picks, taken);
            }
        }
    }

    /// The next frame of the chain.
    fn take(&mut self, tick: u64, stamped: StampedFrame, taken: &mut Vec<Taken>) {
        let StampedFrame { identity, received_ms, frame } = stamped;
        let Ok(frame) = Frame::from_vec(frame) else { return };
        let route = identity.routing_key();
        let agent = Arc::make_mut(self.agents.entry(route).or_insert_with(|| Arc::new(Agent::new(Dedupe::of_seqs()))));
        let Verdict::New { seqs, .. } = agent.dedupe.judge(&frame.header) else { return };
        let Ok(batch) = frame.decode(&mut self.decoder) else { return };
        let (batch, origin) = (Arc::new(batch), Origin { route, identity: Arc::new(identity), received_ms });
        let sorted = sort(&batch, &seqs, self.admission, tick);
        origin.give(tick, true, &batch, sorted.late, taken);
        if !sorted.ahead.is_empty() {
            let held = Arc::new(Held { origin: origin.clone(), frame, batch: OnceLock::from(Arc::clone(&batch)) });
            for (moment, picks) in sorted.ahead {
                let rows = count(&batch, &picks);
                if agent.waiting + rows > AHEAD_ROWS_MAX {
                    continue;
                }
                agent.waiting += rows;
                let waiting = Arc::new(Waiting { held: Arc::clone(&held), picks });
                Arc::make_mut(&mut self.waiting).entry(moment).or_default().push(waiting);
            }
        }
        origin.give(tick, false, &batch, sorted.admitted, taken);
    }
}

impl Clone for Intake {
    fn clone(&self) -> Self {
        let (agents, waiting) = (self.agents.clone(), Arc::clone(&self.waiting));
        Self { admission: self.admission, agents, waiting, decoder: Decoder::new() }
    }
}

impl Agent {
    fn new(dedupe: Dedupe) -> Self {
        Self { dedupe, waiting: 0 }
    }
}

impl Held {
    fn batch(&self, decoder: &mut Decoder) -> Arc<Batch> {
        let decode = || Arc::new(self.frame.decode(decoder).expect("it was decoded when it came or was restored"));
        Arc::clone(self.batch.get_or_init(decode))
    }
}

impl Origin {
    /// Hands out rows of a frame.
    fn give(&self, tick: u64, late: bool, batch: &Arc<Batch>, picks: Picks, taken: &mut Vec<Taken>) {
        let tail = Tail::of(batch.header.lane);
        taken.extend(picks.into_iter().map(|(section, pick)| {
            let rows = match pick {
                Pick::All => None,
                Pick::Some(rows) => Some(rows),
            };
            let (identity, batch) = (Arc::clone(&self.identity), Arc::clone(batch));
            Taken { tail, tick, late, identity, received_ms: self.received_ms, batch, section, rows }
        }));
    }
}
