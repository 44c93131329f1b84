//! The node's end, for one connection: what came, what of it is settled, what to say about it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use weir_schema::{Epoch, Frame, Lane, Name, Seq};

use crate::ack::{AckRanges, Added};
use crate::error::ProtocolError;
use crate::frame_stream::Unit;
use crate::message::{
    Ack, Bye, FrameKey, Hello, LANES_PER_MESSAGE_MAX, LaneAck, Message, Nack, PROTOCOL_VERSION, RefusedReason, Welcome,
};

/// Takes frames as far as credit goes and says what became of them.
#[derive(Debug)]
pub struct Receiver {
    node: Name,
    limits: ReceiverLimits,
    stage: Stage,
    lanes: BTreeMap<(Epoch, Lane), ReceiverLane>,
    nacks: VecDeque<Nack>,
    outbox: VecDeque<Message>,
    received_bytes: u64,
    settled_bytes: u64,
    /// As the other end knows it.
    credit_bytes: u64,
    /// No new credit is given for now.
    withheld: bool,
    /// An empty ack is to be said.
    pulse: bool,
    /// Frames that did not check.
    errors: u32,
}

/// What a receiver takes.
#[derive(Debug, Clone, Copy)]
pub struct ReceiverLimits {
    /// Bytes of frames received and not settled. At least twice `frame_bytes_max`.
    pub window_bytes: u64,
    /// Longest frame.
    pub frame_bytes_max: u32,
}

/// What came.
#[derive(Debug, Clone, PartialEq)]
pub enum Received {
    /// The agent's first word, to be answered with [`Receiver::welcome`] before anything else is taken.
    Hello(Hello),
    /// A frame. The ticket comes back with a verdict.
    Frame(Frame, Ticket),
    /// A frame that does not check was left out, and refused.
    LeftOut(ProtocolError),
    /// The agent says good-bye.
    Bye(Bye),
}

/// Stands for one frame of one connection until its verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Which frame.
    pub key: FrameKey,
    /// Its length.
    pub bytes: u32,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It will be found after a crash.
    Durable,
    /// It will never be taken.
    Refused(RefusedReason),
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Begin,
    /// Hello came and waits for `welcome`.
    Greeted,
    Open,
}

#[derive(Debug, Default)]
struct ReceiverLane {
    /// What is settled, as far as 64 ranges can say it. Only its cumulative seq is told again and again.
    settled: AckRanges,
    /// Settled since the last ack.
    fresh: VecDeque<Range<Seq>>,
    /// Frames without a verdict.
    outstanding: u32,
}

impl Receiver {
    /// The end of node `node`.
    pub fn new(node: Name, limits: ReceiverLimits) -> Self {
        Self {
            node,
            limits,
            stage: Stage::Begin,
            lanes: BTreeMap::new(),
            nacks: VecDeque::new(),
            outbox: VecDeque::new(),
            received_bytes: 0,
            settled_bytes: 0,
            credit_bytes: 0,
            withheld: false,
            pulse: false,
            errors: 0,
        }
    }

    /// Takes what the agent sent. After an error the connection must be closed, after sending what is left to say.
    pub fn handle(&mut self, unit: Unit) -> Result<Received, ProtocolError> {
        match unit {
            Unit::Message(Message::Hello(hello)) if self.stage == Stage::Begin => self.on_hello(hello),
            Unit::Message(Message::Bye(bye)) => Ok(Received::Bye(bye)),
            Unit::Frame(frame) if self.stage == Stage::Open => self.on_frame(frame),
            Unit::BadFrame { key, bytes, refusal, error } if self.stage == Stage::Open => {
                self.on_bad_frame(key, bytes, refusal, error)
            }
            Unit::Message(other) => Err(self.broken(ProtocolError::Unexpected(other.name()))),
            Unit::Frame(_) | Unit::BadFrame { .. } => Err(self.broken(ProtocolError::Unexpected("a frame before Hello"))),
        }
    }

    /// Answers Hello with what is durable already.
    pub fn welcome(&mut self, durable: Vec<LaneAck>) {
        debug_assert_eq!(self.stage, Stage::Greeted);
        let mut acked = Vec::new();
        for lane in durable.into_iter().take(LANES_PER_MESSAGE_MAX) {
            self.lanes.entry((lane.epoch, lane.lane)).or_default().settled.merge(&lane.acked);
            if !lane.acked.is_empty() {
                acked.push(lane);
            }
        }
        self.stage = Stage::Open;
        self.credit_bytes = self.limits.window_bytes;
        self.outbox.push_back(Message::Welcome(Welcome {
            version: PROTOCOL_VERSION,
            node: self.node.clone(),
            acked,
            credit_bytes: self.credit_bytes,
            frame_bytes_max: self.limits.frame_bytes_max,
        }));
    }

    /// Says that a frame is durable, or refused. Once per ticket.
    pub fn settle(&mut self, ticket: Ticket, verdict: Verdict) {
        self.settled_bytes += u64::from(ticket.bytes);
        let Some(seqs) = ticket.key.seqs() else { return };
        let Some(lane) = self.lanes.get_mut(&(ticket.key.epoch, ticket.key.lane)) else { return };
        lane.settled.add(seqs.clone());
        lane.outstanding = lane.outstanding.saturating_sub(1);
        match verdict {
            Verdict::Refused(refusal) => self.nacks.push_back(Nack { key: ticket.key, refusal }),
            Verdict::Durable => match lane.fresh.back_mut() {
                Some(last) if last.end == seqs.start => last.end = seqs.end,
                _ => lane.fresh.push_back(seqs),
            },
        }
    }

    /// Gives no new credit until `give_credit`: the agent may send what it has credit for, and then waits. Acks go on.
    pub fn withhold_credit(&mut self) {
        self.withheld = true;
    }

    /// Gives credit as frames are settled.
    pub fn give_credit(&mut self) {
        self.withheld = false;
    }

    /// Says an ack, be there anything to say or not, once the session is open: the agent sees that the node lives.
    pub fn pulse(&mut self) {
        self.pulse = self.stage == Stage::Open;
    }

    /// Closes with a word.
    pub fn bye(&mut self, bye: Bye) {
        self.outbox.push_back(Message::Bye(bye));
    }

    /// What to send next.
    pub fn poll_transmit(&mut self) -> Option<Message> {
        if let Some(Message::Welcome(_)) = self.outbox.front() {
            return self.outbox.pop_front();
        }
        // Refusals go before the acks whose cumulative seq passes them, so that the agent does not take them for durable.
        if let Some(nack) = self.nacks.pop_front() {
            return Some(Message::Nack(nack));
        }
        let credit_bytes = if self.withheld { self.credit_bytes } else { self.settled_bytes + self.limits.window_bytes };
        let mut lanes = Vec::new();
        for (&(epoch, lane), state) in &mut self.lanes {
            if lanes.len() < LANES_PER_MESSAGE_MAX && !state.fresh.is_empty() {
                lanes.push(LaneAck { epoch, lane, acked: state.take_fresh() });
            }
        }
        if self.stage == Stage::Open && (self.pulse || !lanes.is_empty() || credit_bytes > self.credit_bytes) {
            self.pulse = false;
            self.credit_bytes = credit_bytes;
            return Some(Message::Ack(Ack { lanes, credit_bytes }));
        }
        self.outbox.pop_front()
    }

    /// Bytes received and not settled.
    pub fn outstanding_bytes(&self) -> u64 {
        self.received_bytes - self.settled_bytes
    }

    fn on_hello(&mut self, hello: Hello) -> Result<Received, ProtocolError> {
        let (min, max) = (hello.version_min, hello.version_max);
        if !(min..=max).contains(&PROTOCOL_VERSION) {
            self.bye(Bye::Version);
            return Err(ProtocolError::Version { min, max });
        }
        if hello.lanes.len() > LANES_PER_MESSAGE_MAX {
            return Err(self.broken(ProtocolError::Lanes(LANES_PER_MESSAGE_MAX)));
        }
        for start in &hello.lanes {
            // The agent has nothing below this any more: it is settled, or lost and told as a loss.
            self.lanes.entry((start.epoch, start.lane)).or_default().settled.add_below(start.first);
        }
        self.stage = Stage::Greeted;
        Ok(Received::Hello(hello))
    }

    fn on_frame(&mut self, frame: Frame) -> Result<Received, ProtocolError> {
        let key = FrameKey::of(&frame.header);
        let ticket = Ticket { key, bytes: self.take_credit(frame.bytes.len())? };
        if key.seqs().is_none() {
            return Err(self.broken(ProtocolError::Frame("its seqs go beyond all numbers".to_owned())));
        }
        if self.lanes.len() >= LANES_MAX && !self.lanes.contains_key(&(key.epoch, key.lane)) {
            // An agent that was started anew many times without a node drains many runs over one connection.
            let idle = self.lanes.iter().find(|(_, lane)| lane.outstanding == 0 && lane.fresh.is_empty()).map(|(&key, _)| key);
            let Some(idle) = idle else { return Err(self.broken(ProtocolError::Lanes(LANES_MAX))) };
            // Should it come again, its acks are ranges only.
            self.lanes.remove(&idle);
        }
        self.lanes.entry((key.epoch, key.lane)).or_default().outstanding += 1;
        Ok(Received::Frame(frame, ticket))
    }

    fn on_bad_frame(
        &mut self,
        key: Option<FrameKey>,
        bytes: usize,
        refusal: RefusedReason,
        error: ProtocolError,
    ) -> Result<Received, ProtocolError> {
        let bytes = self.take_credit(bytes)?;
        self.errors += 1;
        // Without a key the agent could not be told, and would send it for ever.
        let Some(key) = key.filter(|_| self.errors < ERRORS_MAX) else { return Err(self.broken(error)) };
        self.settled_bytes += u64::from(bytes);
        self.nacks.push_back(Nack { key, refusal });
        Ok(Received::LeftOut(error))
    }

    fn take_credit(&mut self, bytes: usize) -> Result<u32, ProtocolError> {
        self.received_bytes += bytes as u64;
        match self.received_bytes.checked_sub(self.credit_bytes) {
            Some(over @ 1..) => Err(self.broken(ProtocolError::Credit { over })),
            _ => Ok(u32::try_from(bytes).expect("frames are limited far below 4 GiB")),
        }
    }

    fn broken(&mut self, error: ProtocolError) -> ProtocolError {
        self.bye(Bye::Protocol);
        error
    }
}

impl ReceiverLane {
    /// The cumulative seq and as many fresh ranges as an ack holds; the others stay for the next one.
    fn take_fresh(&mut self) -> AckRanges {
        let mut acked = AckRanges::below(self.settled.upto());
        while let Some(seqs) = self.fresh.front() {
            if acked.add(seqs.clone()) == Added::TooMany {
                break;
            }
            self.fresh.pop_front();
        }
        acked
    }
}

/// Most (epoch, lane) pairs of one connection that have frames without a verdict, or acks not yet said.
const LANES_MAX: usize = 4 * LANES_PER_MESSAGE_MAX;

/// How many frames may fail to check before the connection is closed: at this one it is.
const ERRORS_MAX: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn open(window_bytes: u64) -> Receiver {
        let limits = ReceiverLimits { window_bytes, frame_bytes_max: 1_000 };
        let mut receiver = Receiver::new(Name::new("n1").unwrap(), limits);
        let hello = Hello { version_min: 1, version_max: 1, software: String::new(), lanes: Vec::new() };
        receiver.pulse();
        receiver.handle(Unit::Message(Message::Hello(hello))).unwrap();
        receiver.welcome(Vec::new());
        assert!(matches!(receiver.poll_transmit(), Some(Message::Welcome(_))));
        assert_eq!(receiver.poll_transmit(), None, "a pulse before Welcome is none");
        receiver
    }

    #[test]
    fn withheld_credit_does_not_hold_back_acks() {
        let mut receiver = open(100);
        let credit = |message: Option<Message>| match message {
            Some(Message::Ack(ack)) => (ack.credit_bytes, ack.lanes.len()),
            other => panic!("{other:?}"),
        };
        let key = |first| FrameKey { epoch: Epoch(1), lane: Lane::File, first_seq: Seq(first), count: 1 };
        receiver.lanes.entry((Epoch(1), Lane::File)).or_default();
        receiver.received_bytes = 80;
        receiver.settle(Ticket { key: key(0), bytes: 40 }, Verdict::Durable);
        receiver.withhold_credit();
        assert_eq!(credit(receiver.poll_transmit()), (100, 1));
        receiver.settle(Ticket { key: key(1), bytes: 40 }, Verdict::Durable);
        assert_eq!(credit(receiver.poll_transmit()), (100, 1));
        assert_eq!(receiver.poll_transmit(), None);
        receiver.pulse();
        assert_eq!(credit(receiver.poll_transmit()), (100, 0));
        receiver.give_credit();
        assert_eq!(credit(receiver.poll_transmit()), (180, 0));
        assert_eq!(receiver.poll_transmit(), None);
    }
}
