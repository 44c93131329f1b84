//! A simulated node: the real ingest over a journal, the real holder with its membership, and its workers' feeds.
//!
//! It does what `node.rs`, `hold.rs` and `supervise.rs` do, pulled by the simulator instead of threads, and nothing else.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tracing::trace;
use weir_dataflow::{Command as EngineCommand, ViewSettings};
use weir_journal::SimDisk;
use weir_schema::Name;
use weir_transport::session::{Ticket, Verdict};
use weir_transport::{Acknowledge, FrameKey, Incoming, RefusedReason};

use super::disk::NodeDisk;
use super::logs_of;
use super::mesh::{Checkpoints, NodeWorkers};
use crate::chain::{ChainRecord, ChainState, Command};
use crate::error::Error;
use crate::forget::Floor;
use crate::hold::Candidate;
use crate::holder::Holder;
use crate::ingest::{Durable, Ingest, Received, open_log};
use crate::log::{LogError, LogWriter, Logs, Pace, Reader};
use crate::membership::{Beat, Limits, Membership, Workers};

type Open = Box<dyn FnMut() -> Result<(Box<dyn LogWriter>, Received), Error>>;

/// What became of frames: link, ticket, and none for one that was dropped.
pub(super) type Verdicts = Rc<RefCell<Vec<(u64, Ticket, Option<Verdict>)>>>;

/// Stands for a connection's side of a frame in ingest.
pub(super) struct SimAck {
    pub(super) link: u64,
    pub(super) ticket: Ticket,
    pub(super) verdicts: Verdicts,
    pub(super) settled: bool,
}

impl SimAck {
    fn settle(&mut self, verdict: Option<Verdict>) {
        self.settled = true;
        self.verdicts.borrow_mut().push((self.link, self.ticket, verdict));
    }
}

impl Acknowledge for SimAck {
    fn durable(mut self) {
        self.settle(Some(Verdict::Durable));
    }

    fn refused(mut self, reason: RefusedReason) {
        self.settle(Some(Verdict::Refused(reason)));
    }
}

impl Drop for SimAck {
    fn drop(&mut self) {
        if !self.settled {
            self.settle(None);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Up,
    /// Does nothing and keeps its locks.
    Frozen(u64),
    Down(u64),
}

/// One node, over all of its runs.
pub(super) struct Node {
    pub(super) name: Name,
    pub(super) life: Life,
    pub(super) disk: NodeDisk,
    logs: Arc<dyn Logs>,
    pub(super) full: Arc<AtomicBool>,
    pub(super) run: u64,
    ingest: Option<Ingest<Open>>,
    /// When the log is opened (again).
    open_at: Option<u64>,
    pub(super) told: Durable,
    pub(super) incoming: VecDeque<Incoming<SimAck>>,
    pub(super) holding: Option<Holding>,
    take_at: u64,
    pub(super) floor: Floor,
    /// Its clock less the true time.
    pub(super) ahead_ms: i64,
    /// Since when this run was there, or was thawed.
    pub(super) there_since: u64,
    beat: u64,
    pub(super) beat_at: u64,
    chain: Option<Box<dyn Reader>>,
    pub(super) known: ChainState,
    pub(super) workers: Option<NodeWorkers>,
    /// What its workers say when they ended: who could not be reached, and what could not be read.
    pub(super) unreachable: Vec<Name>,
    pub(super) bad_checkpoint: Option<u64>,
}

/// The chain in a node's hands.
pub(super) struct Holding {
    pub(super) holder: Holder,
    since: u64,
    next: u64,
    look_at: u64,
    membership: Option<Membership>,
    save_at: u64,
}

/// What a node is given at each step.
pub(super) struct Surroundings<'a> {
    pub(super) now: u64,
    pub(super) settings: ViewSettings,
    pub(super) checkpoints: &'a Checkpoints,
    /// Signs of life as this node finds them now.
    pub(super) beats: &'a [Beat],
    /// Worker threads of each node, as people want them.
    pub(super) wanted: u32,
}

impl Node {
    pub(super) fn new(number: usize, disk: &SimDisk) -> Self {
        let full = Arc::new(AtomicBool::new(false));
        let disk = NodeDisk::new(disk.clone(), full.clone());
        Self {
            name: Name::new(format!("n{number}")).expect("letters and digits"),
            life: Life::Down(0),
            logs: logs_of(disk.clone()),
            disk,
            full,
            run: 0,
            ingest: None,
            open_at: None,
            told: Durable::default(),
            incoming: VecDeque::new(),
            holding: None,
            take_at: 0,
            floor: Floor::default(),
            ahead_ms: 0,
            there_since: 0,
            beat: 0,
            beat_at: 0,
            chain: None,
            known: ChainState::default(),
            workers: None,
            unreachable: Vec::new(),
            bad_checkpoint: None,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.life == Life::Up
    }

    /// Whether it takes connections: its log was opened once in this run.
    pub(super) fn serves(&self) -> bool {
        self.is_up() && self.ingest.is_some()
    }

    /// Whether its log is open.
    pub(super) fn is_open(&self) -> bool {
        self.serves() && self.open_at.is_none()
    }

    /// Whether its log is open and nothing waits to be written.
    pub(super) fn is_at_rest(&self) -> bool {
        self.is_open() && self.incoming.is_empty()
    }

    pub(super) fn wall_ms(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.ahead_ms)
    }

    /// The process is gone, with all it had in memory and its locks.
    pub(super) fn die(&mut self, until: u64) {
        self.life = Life::Down(until);
        self.ingest = None;
        self.incoming.clear();
        self.holding = None;
        self.chain = None;
        self.workers = None;
        self.told = Durable::default();
    }

    /// A new process.
    pub(super) fn start(&mut self, now: u64, run: u64, disk: &SimDisk) {
        self.disk = NodeDisk::new(disk.clone(), self.full.clone());
        self.logs = logs_of(self.disk.clone());
        (self.life, self.run, self.beat, self.beat_at) = (Life::Up, run, 0, now);
        (self.open_at, self.take_at, self.there_since) = (Some(now), now, now);
        self.floor = Floor::default();
        self.known = ChainState::default();
        (self.unreachable, self.bad_checkpoint) = (Vec::new(), None);
    }

    /// Opens the log where it is time, and writes a group of what came.
    pub(super) fn ingest(&mut self, around: &Surroundings<'_>, group_max: usize) -> Result<(), Error> {
        if self.open_at.is_some_and(|at| at <= around.now) {
            let opened = match &mut self.ingest {
                Some(ingest) => ingest.open_again(),
                None => self.first_open(),
            };
            self.open_at = opened.is_err().then_some(around.now + REOPEN_MS);
            opened?;
        }
        let Some(ingest) = self.ingest.as_mut().filter(|_| self.open_at.is_none()) else { return Ok(()) };
        if self.incoming.is_empty() || group_max == 0 {
            return Ok(());
        }
        let mut group: Vec<_> = self.incoming.drain(..self.incoming.len().min(group_max)).collect();
        for Incoming { identity, frame, .. } in &group {
            trace!(node = %self.name, agent = %identity.agent, key = ?FrameKey::of(&frame.header), "committing");
        }
        let wall_ms = around.now.saturating_add_signed(self.ahead_ms);
        let done = ingest.commit(&mut group, wall_ms).and_then(|()| ingest.forget());
        if let Err(failed) = done {
            group.clear();
            ingest.close();
            self.open_at = Some(around.now + REOPEN_MS);
            return Err(Error::log("writing the log")(failed));
        }
        Ok(())
    }

    fn first_open(&mut self) -> Result<(), Error> {
        let (logs, name) = (self.logs.clone(), self.name.clone());
        let open: Open = Box::new(move || open_log(&*logs, &name));
        let (ingest, told) = Ingest::new(open, (self.floor.clone(), self.name.clone()))?;
        (self.ingest, self.told) = (Some(ingest), told);
        Ok(())
    }

    /// Takes the chain when it is free, or writes its next record. Gives a tick that was written.
    pub(super) fn hold(&mut self, around: &Surroundings<'_>) -> Result<Option<u64>, Error> {
        let now = around.now;
        let Some(holding) = &mut self.holding else {
            if now < self.take_at {
                return Ok(None);
            }
            self.take_at = now + TAKE_MS;
            let base = |first| around.checkpoints.base(first);
            let holder = Holder::take(self.logs.clone(), around.settings, self.wall_ms(now), base)?;
            self.holding = holder.map(|holder| Holding {
                holder,
                since: now,
                next: now,
                look_at: now,
                membership: None,
                save_at: now + SAVE_MS,
            });
            return Ok(None);
        };
        if now < holding.next {
            return Ok(None);
        }
        holding.next = now + TICK_MS;
        let floor = self.floor.chain();
        let stepped = holding.step(around, now.saturating_add_signed(self.ahead_ms), floor);
        if stepped.is_err() {
            self.holding = None;
        }
        stepped
    }

    /// Reads on in the chain, as `follow.rs`.
    pub(super) fn follow(&mut self, around: &Surroundings<'_>) -> Result<(), Error> {
        let chain = match &mut self.chain {
            Some(chain) => chain,
            slot => match self.logs.read_chain(0, Pace::Polling) {
                Ok(chain) => {
                    self.known = ChainState::default();
                    slot.insert(chain)
                }
                Err(_) => return Ok(()),
            },
        };
        loop {
            let read = match chain.next() {
                Ok(None) => return Ok(()),
                Ok(Some((_, bytes))) => ChainRecord::decode(&bytes).and_then(|record| self.known.apply(&record)),
                Err(LogError::Forgotten { first, .. }) => around.checkpoints.base(first).map(|position| {
                    self.known = position.state;
                    chain.seek(position.record);
                }),
                Err(failed) => Err(Error::log("reading the chain")(failed)),
            };
            if read.is_err() {
                self.chain = None;
                return read;
            }
        }
    }

    /// Keeps the workers in the newest generation, as `supervise.rs`. The error is in words for the generation's end.
    pub(super) fn supervise(&mut self, around: &Surroundings<'_>) {
        let Some(formed) = self.known.formed.clone() else { return };
        if self.workers.as_ref().is_some_and(|workers| workers.generation.number == formed.number) {
            return;
        }
        self.workers = None;
        (self.unreachable, self.bad_checkpoint) = (Vec::new(), None);
        let Some(place) = formed.place(&self.name, self.run) else { return };
        let begin = around.checkpoints.begin(formed.from);
        let from = begin.as_ref().cloned().unwrap_or_default();
        let mut workers = NodeWorkers::start(&self.logs, formed.clone(), place, &from);
        if let Err(why) = begin {
            workers.ended = Some(why);
            self.bad_checkpoint = formed.from;
        }
        self.workers = Some(workers);
    }

    /// Lets the feeds read.
    pub(super) fn feed(&mut self, ahead_max: usize) -> Result<(), Error> {
        let Some(workers) = self.workers.as_mut().filter(|workers| workers.ended.is_none()) else { return Ok(()) };
        for feed in &mut workers.feeds {
            if let Err(failed) = feed.poll(&*self.logs, ahead_max) {
                workers.ended = Some(failed.to_string());
                return Err(failed);
            }
        }
        Ok(())
    }

    /// Its next sign of life. `running` is the generation whose mesh stands.
    pub(super) fn beat(&mut self, now: u64, running: Option<u64>) -> Beat {
        self.beat += 1;
        let workers = match &self.workers {
            None => Workers::None,
            Some(NodeWorkers { generation, ended: Some(_), .. }) => Workers::Ended {
                generation: generation.number,
                unreachable: self.unreachable.clone(),
                bad_checkpoint: self.bad_checkpoint,
            },
            Some(NodeWorkers { generation, .. }) if running == Some(generation.number) => {
                Workers::Running { generation: generation.number }
            }
            Some(NodeWorkers { generation, .. }) => Workers::Starting { generation: generation.number },
        };
        Beat {
            node: self.name.clone(),
            run: self.run,
            number: self.beat,
            address: format!("{}:1", self.name),
            workers,
            wall_ms: self.wall_ms(now),
            build: "one".to_owned(),
        }
    }
}

impl Holding {
    /// One pass of the holder's loop, see `hold.rs`.
    fn step(&mut self, around: &Surroundings<'_>, own_ms: u64, floor: u64) -> Result<Option<u64>, Error> {
        let elapsed = around.now - self.since;
        if around.now >= self.look_at {
            self.look_at = around.now + LOOK_MS;
            let new = || Membership::new(LIMITS, self.holder.state().formed.clone(), around.wanted, elapsed);
            let membership = self.membership.get_or_insert_with(new);
            membership.want_workers(around.wanted);
            for beat in around.beats {
                membership.observe(beat.clone(), elapsed);
            }
        }
        if self.holder.is_unsure() && !Candidate::agree(&mut self.holder, self.membership.as_ref(), elapsed, own_ms) {
            return Ok(None);
        }
        let mut commands = Vec::new();
        let mut formed = None;
        if let Some(membership) = &mut self.membership {
            formed = membership.decide(elapsed);
            if formed.is_none() && around.now >= self.save_at && membership.all_run() {
                self.save_at = around.now + SAVE_MS;
                commands.push(Command::Engine(EngineCommand::Checkpoint));
            }
            if let Some(next) = &mut formed {
                let good = |tick: &&u64| !membership.bad_checkpoints().contains(tick);
                next.generation.from = around.checkpoints.0.keys().rfind(good).copied();
                self.save_at = around.now + SAVE_MS;
                commands.push(Command::Form(next.generation.clone()));
            }
        }
        let tick = self.holder.step(elapsed, commands)?;
        if let (Some(next), Some(membership)) = (formed, &mut self.membership) {
            membership.chained(next.generation, elapsed);
        }
        self.holder.forget(floor)?;
        Ok(Some(tick))
    }
}

pub(super) const LIMITS: Limits = Limits { member_ms_max: 2_000, join_ms_min: 1_000 };
pub(super) const TICK_MS: u64 = 100;
const REOPEN_MS: u64 = 200;
const TAKE_MS: u64 = 500;
const LOOK_MS: u64 = 400;
const SAVE_MS: u64 = 3_000;
