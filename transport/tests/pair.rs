//! Two sessions over a wire that loses: any node of three, any byte, any time.
//!
//! A seed drives everything: how the bytes are cut into pieces, where a connection is cut, which node is next, when a node syncs,
//! when it is killed with frames that are not durable, when the agent lays its frames aside, as a spool does. The nodes share what is durable, as the log will be read by all. In the end
//! every frame is durable exactly once or refused as planned, and the sender holds nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use weir_schema::{BatchBuilder, Epoch, Event, Frame, Host, Kind, Lane, Name, Seq};
use weir_transport::frame_stream::{FrameStream, Unit};
use weir_transport::session::{NotTaken, Received, Receiver, ReceiverLimits, Sender, SenderLimits, Ticket, Transmit, Verdict};
use weir_transport::{AckRanges, FrameKey, LaneAck, RefusedReason};

/// A small generator: the run is a function of its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides.max(1)
    }
}

/// One connection: two directions of bytes, and the node's end.
struct Connection {
    to_node: Vec<u8>,
    to_agent: Vec<u8>,
    node_in: FrameStream,
    agent_in: FrameStream,
    receiver: Receiver,
    /// What ingest has and has not synced, in order.
    pending: Vec<(Frame, Ticket)>,
}

/// What all nodes know of the log.
#[derive(Default)]
struct Log {
    frames: BTreeMap<FrameKey, Vec<u8>>,
    acked: BTreeMap<(Epoch, Lane), AckRanges>,
    duplicates: u64,
}

struct World {
    dice: Dice,
    now: Instant,
    sender: Sender,
    connection: Option<Connection>,
    log: Log,
    next_seq: BTreeMap<Lane, u64>,
    /// What was pushed and what every node will refuse.
    pushed: BTreeMap<FrameKey, Vec<u8>>,
    poison: BTreeSet<FrameKey>,
    refused: BTreeSet<FrameKey>,
    /// Taken back from the sender, to be pushed again later.
    aside: Vec<Frame>,
    laid_aside: u64,
    cuts: u64,
}

impl World {
    fn new(seed: u64, memory_bytes_max: u64) -> Self {
        let limits = SenderLimits { memory_bytes_max, software: "test".into() };
        Self {
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now: Instant::now(),
            sender: Sender::new(limits, Epoch(7)),
            connection: None,
            log: Log::default(),
            next_seq: BTreeMap::new(),
            pushed: BTreeMap::new(),
            poison: BTreeSet::new(),
            refused: BTreeSet::new(),
            aside: Vec::new(),
            laid_aside: 0,
            cuts: 0,
        }
    }

    fn push(&mut self) {
        let lane = Lane::ALL[self.dice.roll(4) as usize];
        let count = 1 + self.dice.roll(4);
        let first = *self.next_seq.get(&lane).unwrap_or(&0);
        let frame = frame(lane, first, count);
        let key = FrameKey { epoch: Epoch(7), lane, first_seq: Seq(first), count: count as u32 };
        let bytes = frame.bytes.clone();
        if self.sender.push(frame).is_err() {
            return;
        }
        // Now and then the agent has dropped events before: a gap.
        let gap = if self.dice.roll(9) == 0 { 3 } else { 0 };
        self.next_seq.insert(lane, first + count + gap);
        self.pushed.insert(key, bytes);
        if self.dice.roll(20) == 0 {
            self.poison.insert(key);
        }
    }

    /// Lays aside what is held.
    fn lay_aside(&mut self) {
        for (key, bytes) in self.sender.take_held() {
            assert!(!self.sender.holds(&key));
            self.aside.push(Frame::parse(&bytes).unwrap());
            self.laid_aside += 1;
        }
        self.tell_floors();
    }

    /// Gives some of what was laid aside back, in any order.
    fn give_back(&mut self, most: u64) {
        for _ in 0..most.min(self.aside.len() as u64) {
            let frame = self.aside.swap_remove(self.dice.roll(self.aside.len() as u64) as usize);
            let key = FrameKey::of(&frame.header);
            match self.sender.push(frame) {
                Ok(()) => assert!(self.sender.holds(&key) || self.poison.contains(&key)),
                Err(NotTaken::Full(frame)) => self.aside.push(frame),
                Err(other) => panic!("{other:?}"),
            }
        }
        self.tell_floors();
    }

    fn tell_floors(&mut self) {
        for lane in Lane::ALL {
            let floor = self
                .aside
                .iter()
                .map(|frame| FrameKey::of(&frame.header))
                .filter(|key| key.lane == lane)
                .map(|key| key.first_seq)
                .min();
            self.sender.set_floor(Epoch(7), lane, floor);
        }
    }

    fn connect(&mut self) {
        let node = Name::new(format!("n{}", self.dice.roll(3))).unwrap();
        let window_bytes = 1_000 + self.dice.roll(4_000);
        let limits = ReceiverLimits { window_bytes, frame_bytes_max: 500 };
        self.sender.connected(self.now);
        self.connection = Some(Connection {
            to_node: Vec::new(),
            to_agent: Vec::new(),
            node_in: FrameStream::new(500),
            agent_in: FrameStream::new(0),
            receiver: Receiver::new(node, limits),
            pending: Vec::new(),
        });
    }

    /// The connection ends; what is on its way is gone, and with a crash what the node has not synced.
    fn cut(&mut self, crash: bool) {
        let Some(connection) = self.connection.take() else { return };
        self.cuts += 1;
        if !crash {
            connection.pending.into_iter().for_each(|(frame, _)| self.store(&frame));
        }
        self.sender.disconnected();
    }

    /// The one dedupe rule: the first of a key counts.
    fn store(&mut self, frame: &Frame) {
        let key = FrameKey::of(&frame.header);
        if self.poison.contains(&key) {
            return;
        }
        match self.log.frames.get(&key) {
            Some(there) => {
                assert_eq!(there, &frame.bytes, "same key, other content");
                self.log.duplicates += 1;
            }
            None => {
                self.log.frames.insert(key, frame.bytes.clone());
            }
        }
        self.log.acked.entry((key.epoch, key.lane)).or_default().add(key.seqs().unwrap());
    }

    /// Sync: some of what waits becomes durable, in any order.
    fn sync(&mut self, most: u64) {
        let Some(mut connection) = self.connection.take() else { return };
        for _ in 0..most.min(connection.pending.len() as u64) {
            let at = self.dice.roll(connection.pending.len() as u64) as usize;
            let (frame, ticket) = connection.pending.remove(at);
            let verdict = if self.poison.contains(&ticket.key) {
                Verdict::Refused(RefusedReason::Conflict)
            } else {
                self.store(&frame);
                Verdict::Durable
            };
            connection.receiver.settle(ticket, verdict);
        }
        self.connection = Some(connection);
    }

    /// Moves some bytes each way and lets both ends react.
    fn carry(&mut self, most: u64) {
        let Some(mut connection) = self.connection.take() else { return };
        let hello = connection.to_node.len();
        while connection.to_node.len() < hello + 2_000 {
            match self.sender.poll_transmit(self.now) {
                Some(Transmit::Message(message)) => connection.to_node.extend(message.encode()),
                Some(Transmit::Frame(bytes)) => connection.to_node.extend_from_slice(&bytes),
                None => break,
            }
        }
        let count = connection.to_node.len().min(1 + self.dice.roll(most) as usize);
        connection.node_in.push(&connection.to_node.drain(..count).collect::<Vec<_>>());
        while let Some(unit) = connection.node_in.next_unit().unwrap() {
            match connection.receiver.handle(unit).unwrap() {
                Received::Hello(hello) => {
                    let asked: BTreeSet<_> = hello.lanes.iter().map(|start| start.epoch).collect();
                    let known = self.log.acked.iter().filter(|((epoch, _), _)| asked.contains(epoch));
                    let known = known.map(|(&(epoch, lane), acked)| LaneAck { epoch, lane, acked: acked.clone() });
                    connection.receiver.welcome(known.collect());
                }
                Received::Frame(frame, ticket) => connection.pending.push((frame, ticket)),
                other => panic!("{other:?}"),
            }
        }
        while let Some(message) = connection.receiver.poll_transmit() {
            connection.to_agent.extend(message.encode());
        }
        let count = connection.to_agent.len().min(1 + self.dice.roll(most) as usize);
        connection.agent_in.push(&connection.to_agent.drain(..count).collect::<Vec<_>>());
        while let Some(unit) = connection.agent_in.next_unit().unwrap() {
            let Unit::Message(message) = unit else { panic!("{unit:?}") };
            self.sender.handle(self.now, message).unwrap();
        }
        for nack in self.sender.take_refused() {
            assert!(self.refused.insert(nack.key), "refused twice");
        }
        self.connection = Some(connection);
        assert!(self.sender.overdue(self.now).is_none());
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(1);
        match self.dice.roll(100) {
            0..25 => self.push(),
            25..75 => {
                if self.connection.is_none() {
                    self.connect();
                }
                self.carry(600);
            }
            75..90 => {
                let most = self.dice.roll(6);
                self.sync(most);
            }
            90 => self.lay_aside(),
            91 => {
                let most = self.dice.roll(9);
                self.give_back(most);
            }
            92..96 => self.cut(false),
            _ => self.cut(true),
        }
    }

    /// Nothing fails any more: everything must come through, in bounded time.
    fn heal(&mut self) {
        self.cut(true);
        self.connect();
        for _ in 0..20_000 {
            self.give_back(3);
            if self.sender.stats().unacked_frames == 0 && self.aside.is_empty() {
                return;
            }
            self.carry(600);
            self.sync(3);
        }
        panic!("{:?} after the wire healed", self.sender.stats());
    }
}

fn frame(lane: Lane, first: u64, count: u64) -> Frame {
    let kind = Kind::ALL.iter().copied().find(|kind| kind.lane() == lane).unwrap();
    let mut builder = BatchBuilder::new(Arc::new(Host::default()), Epoch(7), lane, Seq(first));
    for i in 0..count {
        builder.push(&Event { kind, time: (first + i) as i64, ..Event::default() }).unwrap();
    }
    builder.finish().unwrap()
}

fn run(seed: u64, steps: u64, memory_bytes_max: u64) -> World {
    let mut world = World::new(seed, memory_bytes_max);
    for _ in 0..steps {
        world.step();
    }
    world.heal();
    let expected: BTreeMap<_, _> =
        world.pushed.iter().filter(|(key, _)| !world.poison.contains(key)).map(|(key, bytes)| (*key, bytes.clone())).collect();
    assert_eq!(world.log.frames.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "seed {seed}");
    assert_eq!(world.log.frames, expected, "seed {seed}");
    assert_eq!(world.refused, world.poison, "seed {seed}");
    let stats = world.sender.stats();
    assert_eq!((stats.unacked_frames, stats.unacked_bytes), (0, 0), "seed {seed}");
    assert_eq!(stats.acked_frames + stats.refused_frames, world.pushed.len() as u64, "seed {seed}");
    assert_eq!(stats.acked_events, expected.keys().map(|key| u64::from(key.count)).sum::<u64>(), "seed {seed}");
    world
}

#[test]
fn the_wire_of_the_test_does_lose() {
    let world = run(1, 5_000, 100_000);
    assert!(world.cuts > 100 && world.pushed.len() > 500 && !world.poison.is_empty() && world.laid_aside > 50);
    assert!(world.sender.stats().resent > 100, "{:?}", world.sender.stats());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// A failing case prints its seed, steps and memory.
    #[test]
    fn everything_is_durable_once(seed in any::<u64>(), steps in 1u64..1_500, memory in 1_000u64..100_000) {
        run(seed, steps, memory);
    }
}
