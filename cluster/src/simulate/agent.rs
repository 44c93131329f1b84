//! A simulated agent: a real [`Sender`], what stands before it, and its own exact books.
//!
//! Its kept frames stand for the spool: an agent that is started again may have them or not.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tracing::trace;
use weir_schema::{AgentIdentity, BatchBuilder, Epoch, Event, Fields, Frame, Host, Kind, Lane, Name, Seq};
use weir_transport::message::Message;
use weir_transport::session::{NotTaken, Sender, SenderLimits};
use weir_transport::{FrameKey, LaneAck};

use super::books::{Books, EventKey, Produced};
use super::dice::Dice;

/// One process of an agent.
pub(super) struct Agent {
    /// Which certificate: a cloned disk has that of another.
    pub(super) number: u16,
    pub(super) identity: Arc<AgentIdentity>,
    pub(super) epoch: Epoch,
    pub(super) sender: Sender,
    /// The connection, if any.
    pub(super) link: Option<u64>,
    pub(super) connect_at: u64,
    /// Its clock less the true time.
    pub(super) ahead_ms: i64,
    /// Un-acked frames: in the sender or waiting for it.
    pub(super) kept: BTreeMap<FrameKey, Frame>,
    waiting: VecDeque<Frame>,
    next_seq: BTreeMap<Lane, u64>,
    losses: Vec<Loss>,
}

/// A loss that is not told yet.
struct Loss {
    class: Lane,
    first: u64,
    last: u64,
    count: u64,
    reason: &'static str,
}

/// How a frame comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Well,
    Spoiled,
}

impl Agent {
    pub(super) fn new(number: u16, epoch: Epoch) -> Self {
        let name = |text: String| Name::new(text).expect("letters and digits");
        let identity =
            AgentIdentity { tenant: name("t".to_owned()), region: name("r".to_owned()), agent: name(format!("a{number}")) };
        Self {
            number,
            identity: Arc::new(identity),
            epoch,
            sender: sender(epoch),
            link: None,
            connect_at: 0,
            ahead_ms: 0,
            kept: BTreeMap::new(),
            waiting: VecDeque::new(),
            next_seq: BTreeMap::new(),
            losses: Vec::new(),
        }
    }

    /// A process that begins with a copy of another one's disk: the same certificate, the same kept frames, a run of its own.
    pub(super) fn cloned(&self, epoch: Epoch) -> Self {
        let mut clone = Self::new(self.number, epoch);
        clone.take_up(self.kept.clone());
        clone
    }

    /// Ends the process and starts another. Without `spooled` the un-acked frames, and the losses that were not told, die with it.
    pub(super) fn restart(&mut self, epoch: Epoch, spooled: bool, books: &mut Books) {
        let ahead_ms = self.ahead_ms;
        let kept = std::mem::take(&mut self.kept);
        for loss in self.losses.drain(..) {
            books.lost_untold(loss.count);
        }
        *self = Self::new(self.number, epoch);
        self.ahead_ms = ahead_ms;
        if spooled {
            self.take_up(kept);
        } else {
            kept.into_keys().for_each(|key| books.died(self.number, key));
        }
    }

    fn take_up(&mut self, kept: BTreeMap<FrameKey, Frame>) {
        self.waiting.extend(kept.values().cloned());
        self.kept = kept;
    }

    /// Everything told and acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.kept.is_empty() && self.losses.is_empty()
    }

    /// Some events happen on the host.
    pub(super) fn produce(&mut self, now_ms: u64, dice: &mut Dice, books: &mut Books) {
        let lane = Lane::ALL[dice.place(4)];
        let count = dice.between(1, 6);
        books.produced += count;
        if self.waiting.len() >= WAITING_MAX {
            self.losses.push(Loss { class: lane, first: 0, last: 0, count, reason: "memory_full" });
            books.dropped += count;
            return;
        }
        let now = (now_ms as i64 + self.ahead_ms) * 1_000_000;
        // Some rows lie back, a few so far that they are late, a few ahead.
        let ago = |dice: &mut Dice| match dice.roll(8) {
            0 => dice.between(0, 6_000) as i64,
            1 => -(dice.between(0, 2_000) as i64),
            _ => dice.between(0, 300) as i64,
        };
        // One in forty is longer than any node takes.
        let path = dice.one_in(40).then(|| (0..150).map(|_| format!("{:016x}", dice.next())).collect::<String>());
        let kind = kind_of(lane);
        let event = |dice: &mut Dice| {
            let fields = Fields { detail: path.as_deref().map(Into::into), ..Fields::default() };
            Event { time: now - ago(dice) * 1_000_000 + dice.roll(1_000_000) as i64, kind, fields, ..Event::default() }
        };
        let events: Vec<Event> = (0..count).map(|_| event(dice)).collect();
        // One in sixty is spoiled in the agent's memory: nodes refuse it, and say so.
        let made = if dice.one_in(60) { Made::Spoiled } else { Made::Well };
        self.ship(lane, &events, made, books);
    }

    /// Tells losses and hands what waits to the sender, as far as there is room.
    pub(super) fn refresh(&mut self, now_ms: u64, books: &mut Books) -> Result<(), String> {
        for nack in self.sender.take_refused() {
            let FrameKey { lane, first_seq, count, .. } = nack.key;
            if self.kept.remove(&nack.key).is_none() {
                return Err(format!("agent {}: a frame that it does not hold is refused: {nack:?}", self.number));
            }
            let last = first_seq.0 + u64::from(count) - 1;
            self.losses.push(Loss { class: lane, first: first_seq.0, last, count: u64::from(count), reason: "refused" });
            books.refused(self.number, nack.key);
        }
        if !self.losses.is_empty() && self.waiting.len() < WAITING_MAX {
            let time = (now_ms as i64 + self.ahead_ms) * 1_000_000;
            let losses: Vec<Loss> = self.losses.drain(..).collect();
            let event = |loss: &Loss| {
                let fields = Fields {
                    loss_class: Some(loss.class.as_str().into()),
                    loss_first: Some(loss.first),
                    loss_last: Some(loss.last),
                    loss_count: Some(loss.count),
                    loss_reason: Some(loss.reason.into()),
                    ..Fields::default()
                };
                Event { time, kind: Kind::Loss, fields, ..Event::default() }
            };
            let events: Vec<Event> = losses.iter().map(event).collect();
            books.produced += events.len() as u64;
            self.ship(Kind::Loss.lane(), &events, Made::Well, books);
        }
        while let Some(frame) = self.waiting.pop_front() {
            match self.sender.push(frame) {
                Ok(()) => {}
                Err(NotTaken::Full(frame)) => {
                    self.waiting.push_front(frame);
                    break;
                }
                Err(other) => return Err(format!("agent {}: a frame was not taken: {other:?}", self.number)),
            }
        }
        let (held, stats) = (self.sender.stats().unacked_frames as usize + self.waiting.len(), self.sender.stats());
        if held != self.kept.len() {
            return Err(format!("agent {}: {} frames are kept, the sender says {stats:?}", self.number, self.kept.len()));
        }
        Ok(())
    }

    /// Takes what a node said, and notes what is acknowledged by it.
    pub(super) fn hear(&mut self, now: Instant, message: Message, books: &mut Books) -> Result<(), String> {
        let lanes = match &message {
            Message::Welcome(welcome) => welcome.acked.clone(),
            Message::Ack(ack) => ack.lanes.clone(),
            _ => Vec::new(),
        };
        let before = self.sender.stats();
        self.sender.handle(now, message).map_err(|error| format!("agent {}: {error}", self.number))?;
        let acked = self.sender.stats().acked_frames - before.acked_frames;
        let mut found = 0;
        for LaneAck { epoch, lane, acked } in &lanes {
            let covered =
                |key: &FrameKey| key.epoch == *epoch && key.lane == *lane && key.seqs().is_some_and(|seqs| acked.contains(seqs));
            // What waits is not the sender's yet: it learns of it when it pushes, and sends it again.
            let waits: Vec<FrameKey> = self.waiting.iter().map(|frame| FrameKey::of(&frame.header)).collect();
            let keys: Vec<FrameKey> = self.kept.keys().filter(|key| covered(key) && !waits.contains(key)).copied().collect();
            for key in keys {
                found += 1;
                trace!(agent = self.number, ?key, "acknowledged");
                self.kept.remove(&key);
                books.acked(self.number, key);
            }
        }
        if found != acked {
            return Err(format!("agent {}: {found} frames are covered by an ack, the sender settled {acked}", self.number));
        }
        Ok(())
    }

    fn ship(&mut self, lane: Lane, events: &[Event], made: Made, books: &mut Books) {
        let next = self.next_seq.entry(lane).or_default();
        let host = Arc::new(Host { host: format!("host-{}", self.number).as_str().into(), ..Host::default() });
        let mut builder = BatchBuilder::new(host, self.epoch, lane, Seq(*next));
        for (place, event) in events.iter().enumerate() {
            builder.push(event).expect("few and of the lane");
            let key = EventKey { agent: self.number, epoch: self.epoch, lane, seq: *next + place as u64 };
            books.sequenced(key, Produced { time: event.time, loss_count: event.fields.loss_count.unwrap_or(0) });
        }
        *next += events.len() as u64;
        let mut frame = builder.finish().expect("there are events");
        if made == Made::Spoiled
            && let Some(last) = frame.bytes.last_mut()
        {
            *last ^= 1;
        }
        self.kept.insert(FrameKey::of(&frame.header), frame.clone());
        self.waiting.push_back(frame);
    }
}

fn sender(epoch: Epoch) -> Sender {
    Sender::new(SenderLimits { memory_bytes_max: MEMORY_BYTES, software: "simulated".to_owned() }, epoch)
}

/// A kind of a lane that is no loss.
fn kind_of(lane: Lane) -> Kind {
    Kind::ALL.iter().copied().find(|kind| kind.lane() == lane && *kind != Kind::Loss).expect("every lane has kinds")
}

/// About thirty frames.
const MEMORY_BYTES: u64 = 8 << 10;
const WAITING_MAX: usize = 6;
