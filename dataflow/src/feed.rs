//! Where a worker's ticks come from: the chain, as its reader hands it out.

use weir_schema::StampedFrame;

use crate::settings::Command;

/// One worker's share of the chain, in order. Never blocks: the worker has other work to do.
pub trait Feed: Send {
    /// The next step, if there is one.
    fn poll(&mut self) -> FeedStep;
}

/// What a feed has to give.
#[derive(Debug)]
pub enum FeedStep {
    /// The next tick, later than all before.
    Tick(Tick),
    /// Nothing yet.
    Idle,
    /// There will be no more ticks. The worker goes on answering.
    Ended,
    /// The feed cannot go on; the worker ends with this error.
    Failed(String),
}

/// One record of the chain as one worker sees it: all of its commands, and the worker's share of its frames.
#[derive(Debug, Default)]
pub struct Tick {
    /// Milliseconds, strictly increasing.
    pub tick: u64,
    /// Applied before the frames; the same on every worker.
    pub commands: Vec<Command>,
    /// Records of the logs this worker reads, in (log, offset) order.
    pub frames: Vec<Arrived>,
}

/// One record of a node's log.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// The log's index in the chain.
    pub log: u32,
    /// The record's number in the log.
    pub offset: u64,
    /// Who sent it, when it came, and the frame as sent.
    pub stamped: StampedFrame,
}
