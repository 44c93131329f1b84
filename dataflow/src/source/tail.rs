//! The last rows of `events` and `samples`, as the frames they came in: about 25 bytes an event, decoded when they are read.
//!
//! Bounded in rows and bytes; the oldest frames go first and are counted. Not part of any digest: what is kept depends on the
//! number of workers.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::RecordBatch;
use weir_schema::{AgentIdentity, Column, Decoder, Frame, Lane};

use super::rows::{Picks, Rows, Stamp, schema_of};
use crate::ViewSettings;
use crate::checkpoint::{Share, State, encode};

/// Which tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// `events`
    Events,
    /// `samples`
    Samples,
}

impl Tail {
    /// The tail that the events of a lane belong to.
    pub(crate) fn of(lane: Lane) -> Self {
        if lane == Lane::Sample { Self::Samples } else { Self::Events }
    }
}

/// Both tails of one worker.
#[derive(Debug)]
pub struct Tails {
    events: Kept,
    samples: Kept,
}

/// What a tail holds, and what it does not any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TailHeld {
    /// Rows that can be read.
    pub rows: u64,
    /// Their bytes, as kept.
    pub bytes: u64,
    /// Rows that were dropped for room.
    pub dropped_rows: u64,
    /// Tick of the oldest row that can be read.
    pub oldest_tick: Option<u64>,
}

/// Rows of one frame that became readable at one tick.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) tick: u64,
    pub(crate) late: bool,
    pub(crate) identity: Arc<AgentIdentity>,
    pub(crate) received_ms: u64,
    pub(crate) frame: Arc<Frame>,
    pub(crate) picks: Picks,
    pub(crate) rows: usize,
}

#[derive(Debug)]
struct Kept {
    entries: VecDeque<Entry>,
    held: TailHeld,
    rows_max: u64,
    bytes_max: u64,
}

impl Tails {
    /// Empty tails within the limits of the settings.
    pub fn new(settings: &ViewSettings) -> Self {
        let kept = || Kept {
            entries: VecDeque::new(),
            held: TailHeld::default(),
            rows_max: settings.tail_rows_max,
            bytes_max: settings.tail_bytes_max,
        };
        Self { events: kept(), samples: kept() }
    }

    /// Rows of a tail up to a tick, oldest first, in the types of the engine. With more than `rows_max` the newest are read: at
    /// least so many, in whole frames.
    pub fn read(&self, tail: Tail, columns: &[Column], at_tick: u64, rows_max: usize) -> Result<Vec<RecordBatch>, String> {
        let (mut batches, mut rows) = (Vec::new(), 0);
        self.visit(tail, columns, at_tick, &mut |batch| {
            rows += batch.num_rows();
            batches.push(batch);
            rows < rows_max
        })?;
        batches.reverse();
        Ok(batches)
    }

    /// Hands out the rows of a tail up to a tick frame by frame, newest frame first, for as long as more are wanted.
    pub fn visit(
        &self,
        tail: Tail,
        columns: &[Column],
        at_tick: u64,
        more: &mut dyn FnMut(RecordBatch) -> bool,
    ) -> Result<(), String> {
        let schema = schema_of(columns);
        let mut decoder = Decoder::new();
        for entry in self.kept(tail).entries.iter().rev().filter(|entry| entry.tick <= at_tick) {
            let batch = entry.frame.decode(&mut decoder).map_err(|error| format!("could not decode a kept frame: {error}"))?;
            let stamp = Stamp { identity: &entry.identity, received_ms: entry.received_ms, tick: entry.tick, late: entry.late };
            if !more(Rows::new(&batch, stamp).record_batch(&entry.picks, &schema, columns)) {
                break;
            }
        }
        Ok(())
    }

    /// What a tail holds.
    pub fn held(&self, tail: Tail) -> TailHeld {
        let kept = self.kept(tail);
        TailHeld { oldest_tick: kept.entries.front().map(|entry| entry.tick), ..kept.held }
    }

    pub(crate) fn push(&mut self, tail: Tail, entry: Entry) {
        let kept = match tail {
            Tail::Events => &mut self.events,
            Tail::Samples => &mut self.samples,
        };
        kept.held.rows += entry.rows as u64;
        kept.held.bytes += bytes(&entry);
        kept.entries.push_back(entry);
        while kept.held.rows > kept.rows_max || kept.held.bytes > kept.bytes_max {
            let Some(oldest) = kept.entries.pop_front() else { break };
            kept.held.rows -= oldest.rows as u64;
            kept.held.bytes -= bytes(&oldest);
            kept.held.dropped_rows += oldest.rows as u64;
        }
    }

    fn kept(&self, tail: Tail) -> &Kept {
        match tail {
            Tail::Events => &self.events,
            Tail::Samples => &self.samples,
        }
    }
}

/// The rows themselves are in no checkpoint: the record has them. What is taken up is how many are not here any more.
pub(crate) struct Forgotten(pub(crate) Rc<RefCell<Tails>>);

impl State for Forgotten {
    type Saved = [u64; 2];

    fn save(&self) -> Vec<u8> {
        let tails = self.0.borrow();
        encode(&[Tail::Events, Tail::Samples].map(|tail| tails.held(tail)).map(|held| held.rows + held.dropped_rows))
    }

    fn load(&mut self, parts: Vec<Self::Saved>, share: Share) {
        let mut tails = self.0.borrow_mut();
        for [events, samples] in parts.into_iter().filter(|_| share.is_first()) {
            tails.events.held.dropped_rows += events;
            tails.samples.held.dropped_rows += samples;
        }
    }
}

fn bytes(entry: &Entry) -> u64 {
    let picks = entry.picks.len() * size_of::<(usize, super::rows::Pick)>();
    (size_of::<Entry>() + entry.frame.bytes.len() + picks) as u64
}
