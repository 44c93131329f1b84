//! Exact books of what agents made, and a plain recount of the chain: what every answer is compared with.
//!
//! The recount shares no code with the engine's dedupe and admission: a set of keys, and the rule as `design.md` says it.

use std::collections::{BTreeMap, BTreeSet};

use weir_dataflow::ViewSettings;
use weir_schema::{Decoder, Epoch, Frame, Kind, Lane, StampedFrame};
use weir_transport::FrameKey;

/// Which event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EventKey {
    /// The certificate's number.
    pub(super) agent: u16,
    pub(super) epoch: Epoch,
    pub(super) lane: Lane,
    pub(super) seq: u64,
}

/// What an event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Produced {
    pub(super) time: i64,
    /// Of an event that tells a loss.
    pub(super) loss_count: u64,
}

/// An event in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    /// At which tick it came in.
    pub(super) tick: u64,
    pub(super) late: bool,
    pub(super) event: Produced,
}

/// Events by key.
pub(super) type Answer = BTreeMap<EventKey, Row>;

/// What the agents know.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// Events that happened, those that tell losses among them.
    pub(super) produced: u64,
    /// Events that never got a seq.
    pub(super) dropped: u64,
    sequenced: BTreeMap<EventKey, Produced>,
    pub(super) acked: BTreeSet<EventKey>,
    refused: BTreeSet<EventKey>,
    refused_told: u64,
    died: BTreeSet<EventKey>,
    untold: u64,
}

impl Books {
    pub(super) fn sequenced(&mut self, key: EventKey, event: Produced) {
        assert!(self.sequenced.insert(key, event).is_none(), "an agent uses a seq once");
    }

    pub(super) fn acked(&mut self, agent: u16, frame: FrameKey) {
        self.acked.extend(events_of(agent, frame));
    }

    pub(super) fn refused(&mut self, agent: u16, frame: FrameKey) {
        self.refused_told += u64::from(frame.count);
        self.refused.extend(events_of(agent, frame));
    }

    /// Un-acked when its agent was killed: nobody can say what became of it.
    pub(super) fn died(&mut self, agent: u16, frame: FrameKey) {
        self.died.extend(events_of(agent, frame));
    }

    /// A loss that was never told, because its agent was killed before.
    pub(super) fn lost_untold(&mut self, count: u64) {
        self.untold += count;
    }

    /// Nothing but what was made is in the answer.
    pub(super) fn check_rows(&self, answer: &Answer) -> Result<(), String> {
        for (key, row) in answer {
            match self.sequenced.get(key) {
                Some(event) if *event == row.event => {}
                Some(event) => return Err(format!("{key:?} is answered as {row:?}, it was {event:?}")),
                None => return Err(format!("{key:?} is in the answer, and nobody made it")),
            }
        }
        Ok(())
    }

    /// When nothing is under way any more: produced = stored + gap-recorded + what died with its agent.
    pub(super) fn check_all(&self, answer: &Answer) -> Result<(), String> {
        if let Some(lost) = self.acked.iter().find(|key| !answer.contains_key(key)) {
            let count = self.acked.iter().filter(|key| !answer.contains_key(key)).count();
            return Err(format!("{count} acknowledged events are in no answer, the first is {lost:?}"));
        }
        let missing = |key: &EventKey| !answer.contains_key(key) && !self.refused.contains(key) && !self.died.contains(key);
        if let Some(lost) = self.sequenced.keys().find(|key| missing(key)) {
            return Err(format!("{lost:?} is neither stored, nor told as a loss, nor died with its agent"));
        }
        // A told loss whose event died with its agent before it was stored.
        let gone = |key: &&EventKey| !answer.contains_key(key);
        let died: u64 = self.died.iter().filter(gone).map(|key| self.sequenced[key].loss_count).sum();
        let told: u64 = answer.values().map(|row| row.event.loss_count).sum();
        let lost = self.dropped + self.refused_told;
        if told + died + self.untold != lost {
            let untold = self.untold;
            return Err(format!("{lost} events were lost, {told} are told in the answer, {died} and {untold} died untold"));
        }
        let unsaid = self.sequenced.len() as u64 + self.dropped;
        if unsaid != self.produced {
            return Err(format!("{} events happened, {unsaid} are in the books", self.produced));
        }
        Ok(())
    }

    pub(super) fn died_count(&self, answer: &Answer) -> u64 {
        self.died.iter().filter(|key| !answer.contains_key(key)).count() as u64
    }

    pub(super) fn lost_told(&self) -> u64 {
        self.dropped + self.refused_told
    }
}

fn events_of(agent: u16, frame: FrameKey) -> impl Iterator<Item = EventKey> {
    let FrameKey { epoch, lane, first_seq, count } = frame;
    (0..u64::from(count)).map(move |place| EventKey { agent, epoch, lane, seq: first_seq.0 + place })
}

/// The recount: all frames that the chain has named, in its order, told apart by a set.
pub(super) struct Recount {
    settings: ViewSettings,
    seen: BTreeSet<EventKey>,
    waiting: BTreeMap<u64, Vec<(EventKey, Produced)>>,
    pub(super) answer: Answer,
    pub(super) tick: u64,
    decoder: Decoder,
    /// Frames that held nothing new.
    pub(super) duplicates: u64,
}

impl Recount {
    pub(super) fn new(settings: ViewSettings) -> Self {
        let (seen, waiting, answer) = (BTreeSet::new(), BTreeMap::new(), Answer::new());
        Self { settings, seen, waiting, answer, tick: 0, decoder: Decoder::new(), duplicates: 0 }
    }

    /// The next tick with the records that it names, by log and offset.
    pub(super) fn advance(&mut self, tick: u64, records: &[Vec<u8>]) -> Result<(), String> {
        self.tick = tick;
        while let Some(due) = self.waiting.first_entry().filter(|due| *due.key() <= tick) {
            for (key, event) in due.remove() {
                self.answer.insert(key, Row { tick, late: false, event });
            }
        }
        for record in records {
            let events = events_in(record, &mut self.decoder)?;
            let mut fresh = false;
            for (key, event) in events {
                if !self.seen.insert(key) {
                    continue;
                }
                fresh = true;
                let (time, at) = (event.time.div_euclid(1_000_000), tick as i64);
                let (retention, skew) = (self.settings.retention_ms as i64, self.settings.skew_ms as i64);
                if at <= time + retention && time > at + skew {
                    self.waiting.entry((time - skew) as u64).or_default().push((key, event));
                } else {
                    self.answer.insert(key, Row { tick, late: at > time + retention, event });
                }
            }
            self.duplicates += u64::from(!fresh);
        }
        Ok(())
    }

    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The answer at a tick that was counted.
    pub(super) fn at(&self, tick: u64) -> Answer {
        self.answer.iter().filter(|(_, row)| row.tick <= tick).map(|(key, row)| (*key, *row)).collect()
    }
}

/// The events of a log's record.
fn events_in(record: &[u8], decoder: &mut Decoder) -> Result<Vec<(EventKey, Produced)>, String> {
    let stamped = StampedFrame::decode(record).map_err(|error| error.to_string())?;
    let agent = agent_number(stamped.identity.agent.as_str())?;
    let frame = Frame::from_vec(stamped.frame).map_err(|error| error.to_string())?;
    let (epoch, lane, first) = (frame.header.epoch, frame.header.lane, frame.header.first_seq.0);
    let batch = frame.decode(decoder).map_err(|error| error.to_string())?;
    let event = |(place, event): (usize, weir_schema::Event)| {
        let loss_count = if event.kind == Kind::Loss { event.fields.loss_count.unwrap_or(0) } else { 0 };
        (EventKey { agent, epoch, lane, seq: first + place as u64 }, Produced { time: event.time, loss_count })
    };
    Ok(batch.events().into_iter().enumerate().map(event).collect())
}

/// The number in a simulated agent's name.
pub(super) fn agent_number(name: &str) -> Result<u16, String> {
    name.strip_prefix('a').and_then(|number| number.parse().ok()).ok_or_else(|| format!("{name} is no simulated agent"))
}
