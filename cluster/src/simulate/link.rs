//! A connection: two streams of bytes, cut anywhere, and a node's real [`Receiver`] at one end.
//!
//! A stream loses, doubles and reorders nothing by itself; what the session meets is a cut with any bytes under way, and a node that
//! still reads what an agent said before it went elsewhere. That is how frames are lost, come twice and come late.

use std::time::Instant;

use weir_transport::LaneAck;
use weir_transport::frame_stream::{FrameStream, Unit};
use weir_transport::session::{Received, Receiver, ReceiverLimits, Ticket, Transmit, Verdict};
use weir_transport::{Incoming, ResumeState};

use super::agent::Agent;
use super::books::Books;
use super::dice::Dice;
use super::node::{Node, SimAck, Verdicts};

/// One connection.
pub(super) struct Link {
    pub(super) number: u64,
    /// Place of the agent's process.
    pub(super) agent: usize,
    pub(super) node: usize,
    to_node: Vec<u8>,
    to_agent: Vec<u8>,
    node_in: FrameStream,
    agent_in: FrameStream,
    receiver: Receiver,
    /// False once the agent has gone elsewhere; the node does not know yet.
    pub(super) attached: bool,
    /// Nothing passes until then.
    pub(super) blocked_until: u64,
    /// When the node notices that nobody is there any more.
    pub(super) ends_at: Option<u64>,
    /// Frames that did not check.
    left_out: u32,
}

/// How a link goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    On,
    /// The node closes it.
    Over,
}

impl Link {
    pub(super) fn new(number: u64, agent: usize, node: (usize, &Node)) -> Self {
        let limits = ReceiverLimits { window_bytes: WINDOW_BYTES, frame_bytes_max: FRAME_BYTES_MAX };
        Self {
            number,
            agent,
            node: node.0,
            to_node: Vec::new(),
            to_agent: Vec::new(),
            node_in: FrameStream::new(FRAME_BYTES_MAX as usize),
            agent_in: FrameStream::new(0),
            receiver: Receiver::new(node.1.name.clone(), limits),
            attached: true,
            blocked_until: 0,
            ends_at: None,
            left_out: 0,
        }
    }

    /// What ingest says of a frame of this link.
    pub(super) fn settle(&mut self, ticket: Ticket, verdict: Verdict) {
        self.receiver.settle(ticket, verdict);
    }

    /// What the agent has to say goes on its way. It may be lost there.
    pub(super) fn fill(&mut self, now: Instant, agent: &mut Agent) {
        while self.attached && self.to_node.len() < UNDER_WAY_BYTES {
            match agent.sender.poll_transmit(now) {
                Some(Transmit::Message(message)) => self.to_node.extend(message.encode()),
                Some(Transmit::Frame(bytes)) => self.to_node.extend_from_slice(&bytes),
                None => return,
            }
        }
    }

    /// Some bytes arrive at the node.
    pub(super) fn arrive(&mut self, node: &mut Node, agent: &Agent, verdicts: &Verdicts, dice: &mut Dice) -> Result<(), String> {
        if node.incoming.len() >= INCOMING_MAX {
            return Ok(());
        }
        let count = self.to_node.len().min(1 + dice.roll(CARRIED_BYTES) as usize);
        self.node_in.push(&self.to_node.drain(..count).collect::<Vec<_>>());
        let said = |error| format!("node {} does not take what agent {} says: {error}", node.name, agent.number);
        while let Some(unit) = self.node_in.next_unit().map_err(said)? {
            let received = match self.receiver.handle(unit) {
                Ok(received) => received,
                // Too many frames that do not check: the node closes the connection.
                Err(_) if self.left_out > 0 => {
                    self.ends_at = Some(0);
                    return Ok(());
                }
                Err(error) => return Err(said(error)),
            };
            match received {
                Received::Hello(hello) => {
                    let mut epochs: Vec<_> = hello.lanes.iter().map(|start| start.epoch).collect();
                    epochs.sort_unstable();
                    epochs.dedup();
                    let told = &node.told;
                    let of = |epoch| {
                        let lanes = told.acked(&agent.identity, epoch).into_iter();
                        lanes.map(move |(lane, acked)| LaneAck { epoch, lane, acked })
                    };
                    self.receiver.welcome(epochs.into_iter().flat_map(of).collect());
                }
                Received::Frame(frame, ticket) => {
                    let ack = SimAck { link: self.number, ticket, verdicts: verdicts.clone(), settled: false };
                    node.incoming.push_back(Incoming { identity: agent.identity.clone(), frame, ack });
                }
                Received::LeftOut(_) => self.left_out += 1,
                Received::Bye(_) => {}
            }
        }
        Ok(())
    }

    /// What the node has to say goes on its way, and some of it arrives.
    pub(super) fn answer(&mut self, now: Instant, agent: &mut Agent, books: &mut Books, dice: &mut Dice) -> Result<(), String> {
        while let Some(message) = self.receiver.poll_transmit() {
            self.to_agent.extend(message.encode());
        }
        if !self.attached {
            return Ok(());
        }
        let count = self.to_agent.len().min(1 + dice.roll(CARRIED_BYTES) as usize);
        self.agent_in.push(&self.to_agent.drain(..count).collect::<Vec<_>>());
        while let Some(unit) = self.agent_in.next_unit().map_err(|error| format!("agent {}: {error}", agent.number))? {
            match unit {
                Unit::Message(message) => agent.hear(now, message, books)?,
                other => return Err(format!("agent {} is sent {other:?}", agent.number)),
            }
        }
        Ok(())
    }

    /// Whether somebody is left at either end.
    pub(super) fn carried(&self, now: u64) -> Carried {
        if self.ends_at.is_some_and(|at| at <= now) { Carried::Over } else { Carried::On }
    }
}

pub(super) const FRAME_BYTES_MAX: u32 = 1_000;
const WINDOW_BYTES: u64 = 3_000;
const UNDER_WAY_BYTES: usize = 2_000;
const CARRIED_BYTES: u64 = 1_500;
const INCOMING_MAX: usize = 24;
