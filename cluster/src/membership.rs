//! Who is alive, and which generation comes next. Decided by the holder of the chain alone; no I/O, no clock.
//!
//! Nodes give signs of life ([`Beat`]) that say how their workers are. A generation ends when a member is silent for too long, was started anew,
//! or says that its workers ended or are frozen; also when a node that is not in it has been there for a while, or another number of
//! workers is wanted. The next one has the nodes that gave a sign after the end was seen, without those that others cannot reach.
//!
//! Promises: a node is never judged by its clock, only by when its beats were seen here. Two generations are at least a pause apart, which
//! grows while they fail. With every beat missing nothing is decided.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use weir_schema::Name;

use crate::generation::{Generation, Member};

/// A node's sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Beat {
    /// Who.
    pub(crate) node: Name,
    /// Random per start of the node.
    pub(crate) run: u64,
    /// Rises with every sign of a run.
    pub(crate) number: u64,
    /// Where its workers are reached by others.
    pub(crate) address: String,
    /// How its workers are.
    pub(crate) workers: Workers,
    /// Its clock when it gave this sign, Unix milliseconds.
    pub(crate) wall_ms: u64,
    /// What its build is; only equal ones work in one mesh.
    pub(crate) build: String,
}

/// How a node's workers are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Workers {
    /// It has none: it is in no generation that it knows of.
    None,
    /// They are meeting the others, or reading what was before them.
    Starting {
        /// Of which generation.
        generation: u64,
    },
    /// They answer.
    Running {
        /// Of which generation.
        generation: u64,
    },
    /// They ended, or had to be ended.
    Ended {
        /// Of which generation.
        generation: u64,
        /// Members that could not be reached.
        unreachable: Vec<Name>,
        /// The checkpoint that could not be read.
        bad_checkpoint: Option<u64>,
    },
}

/// Times, milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Silence after which a node is dead.
    pub(crate) member_ms_max: u64,
    /// How long a node must have been there before it is taken in.
    pub(crate) join_ms_min: u64,
}

/// What the holder knows.
#[derive(Debug)]
pub(crate) struct Membership {
    limits: Limits,
    /// When this holder began to look.
    since_ms: u64,
    seen: BTreeMap<Name, Seen>,
    current: Option<Generation>,
    workers: u32,
    /// When the current generation was made known, by our clock; none: before we held the chain.
    made_ms: Option<u64>,
    /// When it was seen to have ended.
    ended_ms: Option<u64>,
    /// Generations in a row that ended, and did not last.
    failures: u32,
    /// The current one ended, and is not only to be replaced.
    broke: bool,
    /// Until when a node that others could not reach is left out.
    left_out: BTreeMap<Name, u64>,
    bad_checkpoints: BTreeSet<u64>,
}

#[derive(Debug)]
struct Seen {
    beat: Beat,
    /// First seen of this run, and last.
    first_ms: u64,
    last_ms: u64,
}

/// Why the next generation comes: for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Next {
    /// Without its checkpoint, which the caller chooses.
    pub(crate) generation: Generation,
    /// In words.
    pub(crate) why: String,
}

impl Membership {
    /// Begins to look at `now_ms`, with what the chain says. `workers` is for the very first generation.
    pub(crate) fn new(limits: Limits, current: Option<Generation>, workers: u32, now_ms: u64) -> Self {
        let workers = current.as_ref().map_or(workers, |current| current.workers);
        Self {
            limits,
            since_ms: now_ms,
            seen: BTreeMap::new(),
            current,
            workers,
            made_ms: None,
            ended_ms: None,
            failures: 0,
            broke: false,
            left_out: BTreeMap::new(),
            bad_checkpoints: BTreeSet::new(),
        }
    }

    /// Another number of workers is wanted from the next generation on.
    pub(crate) fn want_workers(&mut self, workers: u32) {
        self.workers = workers;
    }

    /// Checkpoints that members could not read.
    pub(crate) fn bad_checkpoints(&self) -> &BTreeSet<u64> {
        &self.bad_checkpoints
    }

    /// The middle of the live nodes' clocks now; none until every sign that is to be expected had its time. With two nodes the earlier one:
    /// ticks can be caught up with, never taken back.
    pub(crate) fn median_clock(&self, now_ms: u64) -> Option<u64> {
        if now_ms < self.since_ms + self.limits.member_ms_max / 2 {
            return None;
        }
        let live = self.seen.values().filter(|seen| self.is_live(seen, now_ms));
        let mut clocks: Vec<u64> = live.map(|seen| seen.beat.wall_ms + (now_ms - seen.last_ms)).collect();
        clocks.sort_unstable();
        clocks.get(clocks.len().checked_sub(1)? / 2).copied()
    }

    /// True when every member of the current generation says that its workers answer.
    pub(crate) fn all_run(&self) -> bool {
        self.current.as_ref().is_some_and(|current| {
            current.members.iter().all(|member| {
                let workers = self.beat_of(member).map(|beat| &beat.workers);
                matches!(workers, Some(Workers::Running { generation }) if *generation == current.number)
            })
        })
    }

    /// Takes a beat as it is found in the store now. One that was seen before changes nothing.
    pub(crate) fn observe(&mut self, beat: Beat, now_ms: u64) {
        if let Workers::Ended { bad_checkpoint: Some(tick), .. } = &beat.workers {
            self.bad_checkpoints.insert(*tick);
        }
        match self.seen.get_mut(&beat.node) {
            Some(seen) if seen.beat.run == beat.run => {
                if beat.number > seen.beat.number {
                    (seen.beat, seen.last_ms) = (beat, now_ms);
                }
            }
            // What lies in the store when we begin to look may be the last word of a dead node: it counts from its next beat on.
            None if now_ms == self.since_ms => {
                let seen =
                    Seen { beat: beat.clone(), first_ms: now_ms, last_ms: now_ms.saturating_sub(self.limits.member_ms_max) };
                self.seen.insert(beat.node, seen);
            }
            _ => {
                self.seen.insert(beat.node.clone(), Seen { beat, first_ms: now_ms, last_ms: now_ms });
            }
        }
    }

    /// The next generation, if there must be one. The caller chains it and then says [`Membership::chained`].
    pub(crate) fn decide(&mut self, now_ms: u64) -> Option<Next> {
        if self.all_run() && self.made_ms.is_some_and(|made_ms| now_ms >= made_ms + LASTED_MS) {
            self.failures = 0;
        }
        let ended = self.current.clone().and_then(|current| self.ended(&current, now_ms));
        self.broke |= ended.is_some();
        let why = match &self.current {
            None => Some("there is none yet".to_owned()),
            Some(current) => ended.or_else(|| self.joins(current, now_ms)),
        }?;
        let ended_ms = *self.ended_ms.get_or_insert(now_ms);
        // Every node that lives gives a sign meanwhile; who gives none does not belong to the next one.
        let signs_ms = ended_ms.max(self.since_ms) + self.limits.member_ms_max / 2;
        let pause_ms = self.made_ms.map_or(0, |made_ms| made_ms + (PAUSE_MS << self.failures.min(PAUSES_MAX)));
        if now_ms < signs_ms.max(pause_ms) {
            return None;
        }
        let members = self.members(ended_ms.max(self.since_ms), now_ms);
        if members.is_empty() {
            return None;
        }
        let number = self.current.as_ref().map_or(0, |current| current.number) + 1;
        Some(Next { generation: Generation { number, workers: self.workers, members, from: None }, why })
    }

    /// The generation is in the chain.
    pub(crate) fn chained(&mut self, generation: Generation, now_ms: u64) {
        if self.broke {
            self.failures += 1;
        }
        self.workers = generation.workers;
        self.current = Some(generation);
        (self.made_ms, self.ended_ms, self.broke) = (Some(now_ms), None, false);
    }

    fn beat_of(&self, member: &Member) -> Option<&Beat> {
        self.seen.get(&member.node).map(|seen| &seen.beat).filter(|beat| beat.run == member.run)
    }

    /// Why the current generation cannot go on.
    fn ended(&mut self, current: &Generation, now_ms: u64) -> Option<String> {
        let looked_ms = now_ms.saturating_sub(self.since_ms.max(self.made_ms.unwrap_or(0)));
        let mut why = None;
        for member in &current.members {
            let node = &member.node;
            let said = match self.seen.get(node) {
                Some(seen) if seen.beat.run != member.run => Some(format!("node {node} was started anew")),
                Some(seen)
                    if now_ms.saturating_sub(seen.last_ms) >= self.limits.member_ms_max
                        && looked_ms >= self.limits.member_ms_max =>
                {
                    Some(format!("node {node} gives no sign of life"))
                }
                None if looked_ms >= self.limits.member_ms_max => Some(format!("node {node} gives no sign of life")),
                Some(seen) => match &seen.beat.workers {
                    Workers::Ended { generation, unreachable, .. } if *generation == current.number => {
                        for other in unreachable {
                            self.left_out.insert(other.clone(), now_ms + LEFT_OUT_MS);
                        }
                        Some(format!("the workers of node {node} ended"))
                    }
                    _ => None,
                },
                None => None,
            };
            why = why.or(said);
        }
        why
    }

    /// Why a generation that could go on is replaced.
    fn joins(&self, current: &Generation, now_ms: u64) -> Option<String> {
        if current.workers != self.workers {
            return Some(format!("{} workers a node are wanted instead of {}", self.workers, current.workers));
        }
        let waits = |seen: &Seen| {
            let there_ms = now_ms.saturating_sub(seen.first_ms.max(self.made_ms.unwrap_or(0)));
            let is_member = current.place(&seen.beat.node, seen.beat.run).is_some();
            !is_member
                && self.is_live(seen, now_ms)
                && !self.is_left_out(&seen.beat.node, now_ms)
                && there_ms >= self.limits.join_ms_min
        };
        let node = self.seen.values().find(|seen| waits(seen) && self.fits(&seen.beat))?.beat.node.clone();
        Some(format!("node {node} joins"))
    }

    /// Who takes part in a generation that is made now: everybody who gave a sign since `since_ms`.
    fn members(&self, since_ms: u64, now_ms: u64) -> Vec<Member> {
        let lives = |seen: &&Seen| seen.last_ms >= since_ms && self.is_live(seen, now_ms) && self.fits(&seen.beat);
        let all: Vec<&Seen> = self.seen.values().filter(lives).collect();
        let reached: Vec<&Seen> = all.iter().copied().filter(|seen| !self.is_left_out(&seen.beat.node, now_ms)).collect();
        // If nobody reaches anybody, one alone is better than none.
        let chosen = if reached.is_empty() { all.into_iter().take(1).collect() } else { reached };
        let member =
            |seen: &Seen| Member { node: seen.beat.node.clone(), address: seen.beat.address.clone(), run: seen.beat.run };
        chosen.into_iter().map(member).collect()
    }

    fn is_live(&self, seen: &Seen, now_ms: u64) -> bool {
        now_ms.saturating_sub(seen.last_ms) < self.limits.member_ms_max
    }

    fn is_left_out(&self, node: &Name, now_ms: u64) -> bool {
        self.left_out.get(node).is_some_and(|until_ms| now_ms < *until_ms)
    }

    /// Nodes of another build than the most wait until all have been exchanged: plans of two builds may differ.
    fn fits(&self, beat: &Beat) -> bool {
        let mut builds: BTreeMap<&str, usize> = BTreeMap::new();
        for seen in self.seen.values() {
            *builds.entry(&seen.beat.build).or_default() += 1;
        }
        let most = builds.iter().max_by_key(|(build, count)| (**count, **build)).map(|(build, _)| *build);
        most == Some(beat.build.as_str())
    }
}

/// The pause after a generation; twice as long with each that breaks in a row.
const PAUSE_MS: u64 = 1_000;
/// Longer the pause does not grow: eight seconds. On a busy machine generations break in a row, and answers are missed meanwhile.
const PAUSES_MAX: u32 = 3;
/// A generation that lasted so long was a good one.
const LASTED_MS: u64 = 10_000;
/// How long a node that others could not reach is left out.
const LEFT_OUT_MS: u64 = 20_000;

#[cfg(test)]
mod tests;
