//! The agent's end: holds frames until they are settled.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use weir_schema::{Epoch, Frame, Lane, Name, Seq};

use crate::error::ProtocolError;
use crate::message::{
    Bye, FrameKey, Hello, LANES_PER_MESSAGE_MAX, LaneAck, LaneStart, Message, Nack, PROTOCOL_VERSION, RefusedReason, Welcome,
};

/// Holds frames, sends them as far as credit goes, forgets what is settled.
#[derive(Debug)]
pub struct Sender {
    limits: SenderLimits,
    epoch: Epoch,
    /// Frames in the order they were pushed. `None` is settled and waits to come to the front.
    held: VecDeque<Option<Held>>,
    /// The number of the frame at the front of `held`; the next one has the next number.
    front: u64,
    /// The number of the next frame to be sent on this connection.
    next: u64,
    lanes: BTreeMap<(Epoch, Lane), SenderLane>,
    /// Below the frames that lie elsewhere and will be pushed later, see [`Sender::set_floor`].
    floors: BTreeMap<(Epoch, Lane), Seq>,
    connection: Connection,
    outbox: VecDeque<Message>,
    /// The refusals not yet asked for, newest last.
    refused: VecDeque<Nack>,
    /// Refusals of frames that were not held when they came: taken back meanwhile, they may be pushed again.
    refused_aside: BTreeMap<FrameKey, RefusedReason>,
    stats: SenderStats,
}

/// What a sender may hold.
#[derive(Debug, Clone)]
pub struct SenderLimits {
    /// Bytes of frames held until they are settled.
    pub memory_bytes_max: u64,
    /// Our program and its version, said in Hello.
    pub software: String,
}

/// What a sender has done and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SenderStats {
    /// Frames held.
    pub unacked_frames: u64,
    /// Their bytes.
    pub unacked_bytes: u64,
    /// Events that nodes made durable.
    pub acked_events: u64,
    /// Frames that nodes made durable.
    pub acked_frames: u64,
    /// Frames sent again on a later connection.
    pub resent: u64,
    /// Frames that nodes will not take; they are gone.
    pub refused_frames: u64,
    /// Their events.
    pub refused_events: u64,
    /// Connections on which a node said Welcome.
    pub welcomes: u64,
}

/// Something for the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transmit {
    /// A control message.
    Message(Message),
    /// A frame's bytes, shared with the sender's memory.
    Frame(Bytes),
}

/// A frame that was not taken.
#[derive(Debug, Clone, PartialEq)]
pub enum NotTaken {
    /// The memory is full now; here is the frame.
    Full(Frame),
    /// It is larger than all of the memory.
    TooLarge {
        /// The frame's length.
        bytes: u64,
        /// The memory.
        bytes_max: u64,
    },
    /// A frame of this key is held already, or the key is no key.
    Key(FrameKey),
}

#[derive(Debug)]
struct Held {
    key: FrameKey,
    bytes: Bytes,
    /// Sent on an earlier connection, or on this one.
    sent: bool,
}

#[derive(Debug, Default)]
struct SenderLane {
    /// First seq of each held frame, and its number.
    frames: BTreeMap<u64, u64>,
    /// Behind the last seq pushed.
    end: u64,
}

#[derive(Debug)]
enum Connection {
    None,
    /// Hello is said.
    Greeting {
        since: Instant,
    },
    /// Welcome was said.
    Open {
        node: Name,
        credit_bytes: u64,
        sent_bytes: u64,
        frame_bytes_max: u64,
        /// Frames sent on this connection and not settled.
        in_flight: u64,
        /// When the last ack came, or the first frame after a rest was sent.
        progress: Instant,
    },
    /// The node said good-bye.
    Over(Bye),
}

impl Sender {
    /// A sender that holds nothing. `epoch` is this run; frames of earlier runs may be pushed too.
    pub fn new(limits: SenderLimits, epoch: Epoch) -> Self {
        Self {
            limits,
            epoch,
            held: VecDeque::new(),
            front: 0,
            next: 0,
            lanes: BTreeMap::new(),
            floors: BTreeMap::new(),
            connection: Connection::None,
            outbox: VecDeque::new(),
            refused: VecDeque::new(),
            refused_aside: BTreeMap::new(),
            stats: SenderStats::default(),
        }
    }

    /// Holds `frame` until it is settled.
    pub fn push(&mut self, frame: Frame) -> Result<(), NotTaken> {
        let key = FrameKey::of(&frame.header);
        let (bytes, bytes_max) = (frame.bytes.len() as u64, self.limits.memory_bytes_max);
        if bytes > bytes_max {
            return Err(NotTaken::TooLarge { bytes, bytes_max });
        }
        let seqs = key.seqs().ok_or(NotTaken::Key(key))?;
        if let Some(refusal) = self.refused_aside.remove(&key) {
            // Not sent again: a cumulative ack passes what was refused.
            self.count_refused(Nack { key, refusal });
            return Ok(());
        }
        if self.stats.unacked_bytes + bytes > bytes_max {
            return Err(NotTaken::Full(frame));
        }
        let lane = self.lanes.entry((key.epoch, key.lane)).or_default();
        if lane.frames.contains_key(&key.first_seq.0) {
            return Err(NotTaken::Key(key));
        }
        lane.frames.insert(key.first_seq.0, self.front + self.held.len() as u64);
        lane.end = lane.end.max(seqs.end.0);
        self.held.push_back(Some(Held { key, bytes: frame.bytes.into(), sent: false }));
        self.stats.unacked_frames += 1;
        self.stats.unacked_bytes += bytes;
        Ok(())
    }

    /// Says that frames of `lane` from `floor` on lie elsewhere, such as on a disk, and will be pushed later; `None`: there are none.
    ///
    /// Hello then asks for nothing below: otherwise a node would take what is missing below the held frames for lost, and its
    /// cumulative ack would settle what it never saw. Say it before later frames of the lane are pushed.
    pub fn set_floor(&mut self, epoch: Epoch, lane: Lane, floor: Option<Seq>) {
        match floor {
            Some(floor) => drop(self.floors.insert((epoch, lane), floor)),
            None => drop(self.floors.remove(&(epoch, lane))),
        }
    }

    /// Whether exactly this frame is held, so neither durable at a node nor refused.
    pub fn holds(&self, key: &FrameKey) -> bool {
        let number = self.lanes.get(&(key.epoch, key.lane)).and_then(|lane| lane.frames.get(&key.first_seq.0));
        let held = number.and_then(|number| self.held[(number - self.front) as usize].as_ref());
        held.is_some_and(|held| held.key == *key)
    }

    /// Gives back all frames that are held, in the order they were pushed, and forgets them: they are somebody else's to keep.
    /// An ack that still comes for them is not heard, a refusal is kept until they are pushed again. The floors of their lanes are set to the lowest of them.
    pub fn take_held(&mut self) -> Vec<(FrameKey, Bytes)> {
        let held: Vec<_> = self.held.drain(..).flatten().map(|held| (held.key, held.bytes)).collect();
        for (&key, lane) in &mut self.lanes {
            if let Some((&first, _)) = std::mem::take(&mut lane.frames).first_key_value() {
                self.floors.entry(key).and_modify(|floor| *floor = Seq(first).min(*floor)).or_insert(Seq(first));
            }
        }
        self.front = self.next.max(self.front);
        self.next = self.front;
        (self.stats.unacked_frames, self.stats.unacked_bytes) = (0, 0);
        if let Connection::Open { in_flight, .. } = &mut self.connection {
            *in_flight = 0;
        }
        held
    }

    /// Bytes for which there is credit beyond all that is held: what the link has to spare for a backlog.
    pub fn spare_bytes(&self) -> u64 {
        let Connection::Open { credit_bytes, sent_bytes, .. } = &self.connection else { return 0 };
        let unsent = self.held.range((self.next - self.front) as usize..).flatten().map(|held| held.bytes.len() as u64);
        (credit_bytes - sent_bytes).saturating_sub(unsent.sum())
    }

    /// A connection to some node is there: says Hello.
    pub fn connected(&mut self, now: Instant) {
        self.disconnected();
        self.forget_idle_lanes();
        self.connection = Connection::Greeting { since: now };
        let first = |lane: &SenderLane| Seq(lane.frames.first_key_value().map_or(lane.end, |(&first, _)| first));
        let mut starts: BTreeMap<_, _> = self.lanes.iter().map(|(&key, lane)| (key, first(lane))).collect();
        for (&key, &floor) in &self.floors {
            starts.entry(key).and_modify(|first| *first = floor.min(*first)).or_insert(floor);
        }
        let start = |((epoch, lane), first)| LaneStart { epoch, lane, first };
        self.outbox.push_back(Message::Hello(Hello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            software: self.limits.software.clone(),
            lanes: starts.into_iter().rev().take(LANES_PER_MESSAGE_MAX).map(start).collect(),
        }));
    }

    /// The connection is gone, with whatever was on its way.
    pub fn disconnected(&mut self) {
        self.connection = Connection::None;
        self.outbox.clear();
        self.next = self.front;
    }

    /// Says good-bye; nothing is sent after it on this connection.
    pub fn finish(&mut self) {
        self.connection = Connection::Over(Bye::Done);
        self.outbox.push_back(Message::Bye(Bye::Done));
    }

    /// Takes what the node said. After an error the connection must be closed.
    pub fn handle(&mut self, now: Instant, message: Message) -> Result<(), ProtocolError> {
        match (message, &mut self.connection) {
            (Message::Welcome(welcome), Connection::Greeting { .. }) => self.on_welcome(now, welcome),
            (Message::Ack(ack), Connection::Open { credit_bytes, progress, .. }) => {
                // An empty ack says that the node lives, not that it gets anywhere.
                if !ack.lanes.is_empty() || ack.credit_bytes > *credit_bytes {
                    *progress = now;
                }
                *credit_bytes = ack.credit_bytes.max(*credit_bytes);
                ack.lanes.iter().for_each(|lane| self.on_acked(lane));
                Ok(())
            }
            (Message::Nack(nack), Connection::Open { progress, .. }) => {
                *progress = now;
                self.on_refused(nack);
                Ok(())
            }
            (Message::Bye(bye), _) => {
                self.connection = Connection::Over(bye);
                Ok(())
            }
            // Acks may still come in after we said good-bye.
            (Message::Ack(ack), Connection::Over(Bye::Done)) => {
                ack.lanes.iter().for_each(|lane| self.on_acked(lane));
                Ok(())
            }
            (other, _) => Err(ProtocolError::Unexpected(other.name())),
        }
    }

    /// What to send next, if anything may be sent.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        if let Some(message) = self.outbox.pop_front() {
            return Some(Transmit::Message(message));
        }
        loop {
            let Connection::Open { credit_bytes, sent_bytes, frame_bytes_max, in_flight, progress, .. } = &mut self.connection
            else {
                return None;
            };
            let at = usize::try_from(self.next - self.front).expect("fewer frames than memory");
            let Some(frame) = self.held.get_mut(at)? else {
                self.next += 1;
                continue;
            };
            let length = frame.bytes.len() as u64;
            if length > *frame_bytes_max {
                let nack = Nack { key: frame.key, refusal: RefusedReason::Limit };
                self.on_refused(nack);
                continue;
            }
            if *sent_bytes + length > *credit_bytes {
                return None;
            }
            self.next += 1;
            *sent_bytes += length;
            if *in_flight == 0 {
                *progress = now;
            }
            *in_flight += 1;
            self.stats.resent += u64::from(frame.sent);
            frame.sent = true;
            return Some(Transmit::Frame(frame.bytes.clone()));
        }
    }

    /// When the connection is to be given up unless something comes.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.connection {
            Connection::Greeting { since } => Some(*since + WELCOME_TIME_MAX),
            Connection::Open { in_flight: 1.., progress, .. } => Some(*progress + ACK_TIME_MAX),
            _ => None,
        }
    }

    /// Why the connection is to be given up at `now`, if it is.
    pub fn overdue(&self, now: Instant) -> Option<ProtocolError> {
        let late = self.deadline().is_some_and(|deadline| deadline <= now);
        let what = if matches!(self.connection, Connection::Greeting { .. }) { "Welcome" } else { "an ack" };
        late.then_some(ProtocolError::Slow(what))
    }

    /// The node that said Welcome on this connection.
    pub fn node(&self) -> Option<&Name> {
        match &self.connection {
            Connection::Open { node, .. } => Some(node),
            _ => None,
        }
    }

    /// The good-bye of this connection, the node's or ours.
    pub fn bye(&self) -> Option<Bye> {
        match self.connection {
            Connection::Over(bye) => Some(bye),
            _ => None,
        }
    }

    /// What was done and is held.
    pub fn stats(&self) -> SenderStats {
        self.stats
    }

    /// The refusals since the last call, to be told as losses. At most the last 1,024; `stats` counts all.
    pub fn take_refused(&mut self) -> Vec<Nack> {
        self.refused.drain(..).collect()
    }

    fn on_welcome(&mut self, now: Instant, welcome: Welcome) -> Result<(), ProtocolError> {
        let version = welcome.version;
        if version != PROTOCOL_VERSION {
            return Err(ProtocolError::Version { min: version, max: version });
        }
        self.stats.welcomes += 1;
        self.connection = Connection::Open {
            node: welcome.node,
            credit_bytes: welcome.credit_bytes,
            sent_bytes: 0,
            frame_bytes_max: u64::from(welcome.frame_bytes_max),
            in_flight: 0,
            progress: now,
        };
        welcome.acked.iter().for_each(|lane| self.on_acked(lane));
        Ok(())
    }

    fn on_acked(&mut self, ack: &LaneAck) {
        let Some(lane) = self.lanes.get(&(ack.epoch, ack.lane)) else { return };
        let below = Seq(0)..ack.acked.upto();
        let mut settled = Vec::new();
        for seqs in std::iter::once(below).chain(ack.acked.ranges()) {
            for (&first, &number) in lane.frames.range(seqs.start.0..seqs.end.0) {
                let frame = self.held[(number - self.front) as usize].as_ref().expect("the lane names held frames only");
                if first + u64::from(frame.key.count) <= seqs.end.0 {
                    settled.push(frame.key);
                }
            }
        }
        for key in settled {
            if self.forget(key) {
                self.stats.acked_frames += 1;
                self.stats.acked_events += u64::from(key.count);
            }
        }
    }

    fn on_refused(&mut self, nack: Nack) {
        if self.forget(nack.key) {
            self.count_refused(nack);
        } else if self.refused_aside.len() < REFUSED_KEPT_MAX {
            self.refused_aside.insert(nack.key, nack.refusal);
        }
    }

    fn count_refused(&mut self, nack: Nack) {
        self.stats.refused_frames += 1;
        self.stats.refused_events += u64::from(nack.key.count);
        if self.refused.len() == REFUSED_KEPT_MAX {
            self.refused.pop_front();
        }
        self.refused.push_back(nack);
    }

    /// Takes a settled frame out of the memory; false if it is not held.
    fn forget(&mut self, key: FrameKey) -> bool {
        let Some(lane) = self.lanes.get_mut(&(key.epoch, key.lane)) else { return false };
        let Some(&number) = lane.frames.get(&key.first_seq.0) else { return false };
        let at = (number - self.front) as usize;
        if self.held[at].as_ref().is_none_or(|frame| frame.key.count != key.count) {
            return false;
        }
        lane.frames.remove(&key.first_seq.0);
        let frame = self.held[at].take().expect("looked at above");
        self.stats.unacked_frames -= 1;
        self.stats.unacked_bytes -= frame.bytes.len() as u64;
        if let Connection::Open { in_flight, .. } = &mut self.connection
            && number < self.next
        {
            *in_flight = in_flight.saturating_sub(1);
        }
        while let Some(None) = self.held.front() {
            self.held.pop_front();
            self.front += 1;
        }
        self.next = self.next.max(self.front);
        true
    }

    /// Lanes of earlier runs are named in Hello only while they hold frames.
    fn forget_idle_lanes(&mut self) {
        let current = self.epoch;
        self.lanes.retain(|(epoch, _), lane| !lane.frames.is_empty() || *epoch == current);
    }
}

/// How long a node may take to say Welcome.
const WELCOME_TIME_MAX: Duration = Duration::from_secs(10);

/// How long nothing may be settled while frames are on their way. Long enough for a slow disk or the slowest link with one frame.
const ACK_TIME_MAX: Duration = Duration::from_secs(60);

/// Most refusals kept until they are asked for.
const REFUSED_KEPT_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weir_schema::{BatchBuilder, Event, Host};

    use super::*;
    use crate::ack::AckRanges;
    use crate::message::Ack;

    fn frame(first: u64, count: u64) -> Frame {
        let mut builder = BatchBuilder::new(Arc::new(Host::default()), Epoch(1), Lane::Security, Seq(first));
        (0..count).for_each(|_| builder.push(&Event::default()).unwrap());
        builder.finish().unwrap()
    }

    fn sender(frames: &[(u64, u64)]) -> Sender {
        let limits = SenderLimits { memory_bytes_max: 1 << 20, software: "test".into() };
        let mut sender = Sender::new(limits, Epoch(1));
        frames.iter().for_each(|&(first, count)| sender.push(frame(first, count)).unwrap());
        sender
    }

    fn welcome(credit_bytes: u64, frame_bytes_max: u32) -> Message {
        let node = Name::new("n1").unwrap();
        Message::Welcome(Welcome { version: PROTOCOL_VERSION, node, acked: Vec::new(), credit_bytes, frame_bytes_max })
    }

    fn ack(acked: AckRanges) -> Message {
        let lanes = vec![LaneAck { epoch: Epoch(1), lane: Lane::Security, acked }];
        Message::Ack(Ack { lanes, credit_bytes: 0 })
    }

    #[test]
    fn only_wholly_covered_frames_are_forgotten() {
        let now = Instant::now();
        let mut sender = sender(&[(0, 4), (4, 4), (8, 4), (12, 4)]);
        sender.connected(now);
        sender.handle(now, welcome(1 << 20, 1 << 20)).unwrap();
        let mut acked = AckRanges::below(Seq(7));
        acked.add(Seq(9)..Seq(16));
        sender.handle(now, ack(acked)).unwrap();
        assert_eq!((sender.stats().acked_frames, sender.stats().unacked_frames), (2, 2));
        sender.handle(now, ack(AckRanges::below(Seq(12)))).unwrap();
        assert_eq!((sender.stats().acked_events, sender.stats().unacked_bytes), (16, 0));
    }

    #[test]
    fn credit_and_the_nodes_frame_limit_hold() {
        let now = Instant::now();
        let mut sender = sender(&[(0, 1), (1, 1), (2, 1)]);
        let length = frame(0, 1).bytes.len() as u64;
        sender.connected(now);
        assert!(matches!(sender.poll_transmit(now), Some(Transmit::Message(Message::Hello(_)))));
        assert_eq!(sender.poll_transmit(now), None);
        sender.handle(now, welcome(2 * length, 1 << 20)).unwrap();
        assert!(matches!(sender.poll_transmit(now), Some(Transmit::Frame(_))));
        assert!(matches!(sender.poll_transmit(now), Some(Transmit::Frame(_))));
        assert_eq!(sender.poll_transmit(now), None);
        sender.connected(now);
        sender.handle(now, welcome(1 << 20, length as u32 - 1)).unwrap();
        assert!(matches!(sender.poll_transmit(now), Some(Transmit::Message(Message::Hello(_)))));
        assert_eq!(sender.poll_transmit(now), None);
        assert_eq!((sender.stats().refused_events, sender.stats().unacked_frames), (3, 0));
        assert!(sender.take_refused().iter().all(|nack| nack.refusal == RefusedReason::Limit));
    }

    #[test]
    fn a_silent_node_is_given_up() {
        let now = Instant::now();
        let mut sender = sender(&[(0, 1)]);
        sender.connected(now);
        assert_eq!(sender.overdue(now + WELCOME_TIME_MAX), Some(ProtocolError::Slow("Welcome")));
        sender.handle(now, welcome(1 << 20, 1 << 20)).unwrap();
        assert_eq!(sender.overdue(now + ACK_TIME_MAX), None);
        while sender.poll_transmit(now).is_some() {}
        sender.handle(now + ACK_TIME_MAX / 2, Message::Ack(Ack { lanes: Vec::new(), credit_bytes: 1 << 20 })).unwrap();
        assert_eq!(sender.overdue(now + ACK_TIME_MAX), Some(ProtocolError::Slow("an ack")), "an empty ack is no progress");
        assert!(matches!(sender.push(frame(0, 1)), Err(NotTaken::Key(_))));
        assert!(sender.handle(now, Message::Bye(Bye::Full)).is_ok());
        assert_eq!((sender.bye(), sender.deadline()), (Some(Bye::Full), None));
    }
}
