//! What goes wrong, how often, and how often it did.

use std::fmt;
use std::sync::atomic::Ordering;

use weir_journal::{Disk as _, Failure};
use weir_schema::Epoch;

use super::SHARED;
use super::dice::Dice;
use super::node::{Life, Node};
use super::world::World;

macro_rules! faults {
    ($($name:ident $text:literal,)*) => {
        /// A kind of fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Fault {
            $(#[doc = $text] $name,)*
        }

        impl Fault {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// In words.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

faults! {
    LinkCut "connection cut with bytes on their way",
    AgentLeft "agent gone elsewhere, its bytes read late",
    LinkBlocked "connection silent for a while",
    BeatLost "sign of life lost",
    BeatLate "sign of life read late or twice",
    NodeKilled "node killed",
    NodeKilledAtWrite "node killed at a change of the disk",
    NodeFrozen "node frozen and thawed",
    PowerFailed "power failed",
    PowerFailedAtWrite "power failed at a change of the disk",
    SyncFailed "sync answered an error",
    DiskFull "disk full for a while",
    WorkersEnded "workers of a node ended",
    Rescaled "another number of workers",
    NodeClock "clock of a node stepped",
    AgentClock "clock of an agent stepped",
    AgentRestarted "agent started again with its frames",
    AgentKilled "agent killed with un-acked frames lost",
    AgentCloned "disk of an agent cloned",
    CheckpointNeverDone "checkpoint never done",
    BitFlipped "bit flipped on the disk",
}

/// What may happen under one seed, and what did.
#[derive(Debug, Clone)]
pub(super) struct Faults {
    /// One in so many chances, 0 for never, by fault.
    rates: Vec<u64>,
    pub(super) done: Vec<u64>,
    pub(super) producing: bool,
    pub(super) generations: u64,
    pub(super) checkpoints: u64,
    pub(super) ticks: u64,
    pub(super) durable: u64,
    pub(super) refused: u64,
}

impl Faults {
    /// Each seed has some kinds of fault and not others: a world with all of them at once gets nowhere.
    pub(super) fn new(dice: &mut Dice) -> Self {
        let rate = |fault: &Fault| match fault {
            Fault::BeatLost | Fault::BeatLate | Fault::CheckpointNeverDone => [0, 10, 4][dice.place(3)],
            Fault::BitFlipped => [0, 0, 0, 0, 0, 200][dice.place(6)],
            Fault::LinkCut | Fault::AgentLeft | Fault::LinkBlocked => [0, 60, 20][dice.place(3)],
            Fault::AgentCloned => [0, 400][dice.place(2)],
            _ => [0, 250, 80][dice.place(3)],
        };
        let rates = Fault::ALL.iter().map(rate).collect();
        let done = vec![0; Fault::ALL.len()];
        Self { rates, done, producing: true, generations: 0, checkpoints: 0, ticks: 0, durable: 0, refused: 0 }
    }

    /// Nothing goes wrong but what is done by hand.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        let mut none = Self::new(&mut Dice::new(0));
        none.rates.iter_mut().for_each(|rate| *rate = 0);
        none
    }

    pub(super) fn happens(&mut self, fault: Fault, dice: &mut Dice) -> bool {
        let rate = self.rates[fault as usize];
        let happens = rate > 0 && dice.one_in(rate);
        self.done[fault as usize] += u64::from(happens);
        happens
    }

    pub(super) fn settled(&mut self, durable: bool) {
        if durable { self.durable += 1 } else { self.refused += 1 }
    }

    /// Nothing goes wrong any more.
    pub(super) fn heal(&mut self) {
        self.rates.iter_mut().for_each(|rate| *rate = 0);
        self.producing = false;
    }
}

impl World {
    /// Perhaps something goes wrong.
    pub(super) fn misfortune(&mut self) {
        for fault in Fault::ALL {
            if matches!(fault, Fault::BeatLost | Fault::BeatLate | Fault::CheckpointNeverDone) {
                continue;
            }
            if self.faults.happens(*fault, &mut self.dice) {
                self.note(|| fault.as_str().to_owned());
                self.strike(*fault);
            }
        }
    }

    fn strike(&mut self, fault: Fault) {
        let (now, node, agent) = (self.now, self.dice.place(self.nodes.len()), self.dice.place(self.agents.len()));
        let until = now + self.dice.between(100, 6_000);
        let up = self.nodes[node].life == Life::Up;
        match fault {
            Fault::LinkCut => {
                let link = self.dice.place(self.links.len().max(1));
                if let Some(link) = self.links.keys().nth(link).copied() {
                    self.cut(link);
                }
            }
            Fault::AgentLeft => self.leave(agent),
            Fault::LinkBlocked => {
                if let Some(link) = self.agents[agent].link.and_then(|link| self.links.get_mut(&link)) {
                    link.blocked_until = until;
                }
            }
            Fault::NodeKilled => self.node_dies(node, until),
            Fault::NodeKilledAtWrite => self.nodes[node].disk.kill_at(self.dice.roll(12)),
            Fault::NodeFrozen if up => self.nodes[node].life = Life::Frozen(until),
            Fault::PowerFailed if self.damaged.is_none() => self.power_failure(),
            Fault::PowerFailedAtWrite if self.damaged.is_none() => self.disk.fail_at(self.dice.roll(20), Failure::Crash),
            Fault::SyncFailed => self.disk.fail_at(self.dice.roll(20), Failure::SyncFails),
            Fault::DiskFull => {
                let full = !self.nodes[0].full.load(Ordering::Relaxed);
                self.nodes.iter().for_each(|node| node.full.store(full, Ordering::Relaxed));
            }
            Fault::WorkersEnded => {
                let other = self.nodes[self.dice.place(self.nodes.len())].name.clone();
                let apart = self.dice.one_in(2) && other != self.nodes[node].name;
                let node = &mut self.nodes[node];
                if let Some(workers) = node.workers.as_mut().filter(|workers| workers.ended.is_none()) {
                    workers.ended = Some("they died".to_owned());
                    node.unreachable.extend(apart.then_some(other));
                }
            }
            Fault::Rescaled => self.wanted = self.dice.between(1, 4) as u32,
            // The very first holder has nobody to compare its clock with.
            Fault::NodeClock if self.audit.state.tick > 0 => {
                let steps = [0, 30_000, 86_400_000, -30_000, -86_400_000];
                self.nodes.iter_mut().for_each(|node| node.ahead_ms = 0);
                self.nodes[node].ahead_ms = steps[self.dice.place(steps.len())];
            }
            Fault::AgentClock => {
                let steps = [0, 3_000, 86_400_000, -3_000, -86_400_000];
                self.agents[agent].ahead_ms = steps[self.dice.place(steps.len())];
            }
            Fault::AgentRestarted | Fault::AgentKilled => {
                self.agent_restarts(agent, fault == Fault::AgentRestarted);
            }
            Fault::AgentCloned if self.agents.len() < AGENTS_MAX => {
                let clone = self.agents[agent].cloned(Epoch(self.dice.next()));
                self.agents.push(clone);
            }
            // When the power took the watermark, a damaged end of a journal cannot be told from a torn one until it is opened again.
            Fault::BitFlipped
                if self.damaged.is_none()
                    && self.nodes.iter().all(Node::is_open)
                    && self.nodes.iter().any(|node| node.holding.is_some()) =>
            {
                self.flip();
            }
            _ => self.faults.done[fault as usize] -= 1,
        }
    }

    /// Somewhere in a log or the chain, where something is written.
    fn flip(&mut self) {
        let mut written = Vec::new();
        for (path, bytes) in self.disk.files() {
            let mut content = vec![0; bytes.min(READ_BYTES)];
            let read = self.disk.open_read(&path).and_then(|file| file.read_at(&mut content, 0));
            let last = read.ok().and_then(|_| content.iter().rposition(|byte| *byte != 0));
            written.extend(last.map(|last| (path, last + 1)));
        }
        if written.is_empty() {
            self.faults.done[Fault::BitFlipped as usize] -= 1;
            return;
        }
        let (path, bytes) = &written[self.dice.place(written.len())];
        let bit = self.dice.place(bytes * 8);
        self.disk.flip_bit(path, bit);
        self.note(|| format!("bit {bit} of {} is another", path.display()));
        self.damaged = Some(path.display().to_string());
    }

    /// All is well from here on.
    pub(super) fn heal(&mut self) {
        self.note(|| "nothing goes wrong any more".to_owned());
        self.faults.heal();
        self.disk.heal();
        for node in &mut self.nodes {
            node.full.store(false, Ordering::Relaxed);
            node.disk.kill_at(u64::MAX);
            node.life = match node.life {
                Life::Frozen(_) => Life::Up,
                Life::Down(until) => Life::Down(until.min(self.now + 500)),
                Life::Up => Life::Up,
            };
        }
        for link in self.links.values_mut() {
            link.blocked_until = 0;
        }
        let _ = self.disk.create_dir(SHARED.as_ref());
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

const AGENTS_MAX: usize = 6;
/// What is written of a segment lies in its first part.
const READ_BYTES: usize = 64 << 10;
