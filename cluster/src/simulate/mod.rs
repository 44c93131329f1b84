//! The simulator: one process, one thread, no clock, no sleep; a seed decides everything.
//!
//! ```text
//! agent: Sender ── link (bytes, cut anywhere) ── Receiver ── Ingest ── Journal ┐
//!                                                                              ├─ SimDisk
//! node: Holder + Membership ── chain ───────────────────────────────── Journal ┘
//!       feeds ── Intake ── answers ─────────┐
//! audit: chain and logs, plainly recounted ─┴─ compared
//! ```
//!
//! Driven are the real session, ingest with what it remembers, journal, holder, membership, tick clock, feed, dedupe and admission, at log level
//! `local`. Modelled here and not driven: sockets, the agent's spool (its kept frames), threads, timely's exchange, the stores of signs of
//! life and checkpoints (maps).
//!
//! What must hold under any seed:
//! - an acknowledged event is in the answers, once, as it was made; nothing else is;
//! - events made = stored + told as lost + what died un-acked with its agent, once nothing is under way any more;
//! - the chain is one history, its records never change, ticks rise;
//! - a closed tick's answer equals the recount of the logs that the chain names, also from a checkpoint and after a rescaling;
//! - a loss is reported if and only if a disk damaged what is needed;
//! - after the last fault everything comes through within a bounded time.
//!
//! Two faults at once are left out, because nothing tells them from one: a power failure that takes a journal's watermark, and a flipped bit in
//! what was written last, before or after it and before the journal is opened again.
//!
//! A failure is told with its seed, and the same seed fails again.

mod agent;
mod audit;
mod books;
mod dice;
mod disk;
mod faults;
mod link;
mod mesh;
mod node;
#[cfg(test)]
mod tests;
mod world;

use std::fmt;
use std::sync::Arc;

use weir_config::JournalLimits;
use weir_journal::Disk;

pub use faults::Fault;
use mesh::{Feeding, Mesh};
use world::World;

use crate::feed::Share;
use crate::generation::Generation;
use crate::log::{LocalLogs, Logs};

/// What happened under seeds that held.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// How many seeds.
    pub seeds: u64,
    /// How often each fault, in the order of [`Fault::ALL`].
    pub faults: Vec<u64>,
    /// Events that happened on the hosts.
    pub produced: u64,
    /// Events that are acknowledged.
    pub acked: u64,
    /// Events in the last answers.
    pub stored: u64,
    /// Events told as lost.
    pub lost: u64,
    /// Events that died un-acked with their agent.
    pub died: u64,
    /// Frames that held nothing new, in the logs.
    pub duplicates: u64,
    /// Closed ticks.
    pub ticks: u64,
    /// Generations of the mesh.
    pub generations: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Seeds whose disk was damaged, and of these those in which a needed piece was lost and reported.
    pub damaged: (u64, u64),
}

impl Report {
    /// Adds another one's counts.
    pub fn add(&mut self, other: &Self) {
        self.faults.resize(Fault::ALL.len(), 0);
        self.faults.iter_mut().zip(&other.faults).for_each(|(mine, its)| *mine += its);
        self.seeds += other.seeds;
        self.produced += other.produced;
        self.acked += other.acked;
        self.stored += other.stored;
        self.lost += other.lost;
        self.died += other.died;
        self.duplicates += other.duplicates;
        self.ticks += other.ticks;
        self.generations += other.generations;
        self.checkpoints += other.checkpoints;
        self.damaged = (self.damaged.0 + other.damaged.0, self.damaged.1 + other.damaged.1);
    }
}

/// What did not hold.
#[derive(Debug, Clone)]
pub struct Broken {
    /// Under which seed.
    pub seed: u64,
    /// In which step.
    pub step: u64,
    /// What.
    pub what: String,
    /// What happened last before.
    pub trace: Vec<String>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {} does not hold in step {}: {}", self.seed, self.step, self.what)?;
        write!(f, "replay: weir-loadtest simulate --seed {}", self.seed)
    }
}

/// Runs the world of one seed to its end.
pub fn run(seed: u64) -> Result<Report, Box<Broken>> {
    let mut world = World::new(seed);
    let mut step = 0;
    let end = live(&mut world, &mut step);
    let broken = |what, world: World| Box::new(Broken { seed, step, what, trace: world.trace.into() });
    match end {
        Ok(report) => Ok(report),
        Err(what) => Err(broken(what, world)),
    }
}

fn live(world: &mut World, step: &mut u64) -> Result<Report, String> {
    let steps = world.dice.between(STEPS_MIN, STEPS_MAX);
    while *step < steps {
        *step += 1;
        world.misfortune();
        world.step()?;
    }
    world.heal();
    drain(world, step)
}

/// Nothing goes wrong any more: everything comes through, and the books agree.
fn drain(world: &mut World, step: &mut u64) -> Result<Report, String> {
    let (mut named, mut until) = (None, None);
    let mut waited = false;
    for _ in 0..DRAIN_STEPS_MAX {
        *step += 1;
        world.step()?;
        if world.damaged.is_some() && !world.reports.is_empty() {
            break;
        }
        // A node that is away may have the only copy of what it acknowledged.
        let idle = world.agents.iter().all(agent::Agent::is_idle) && world.nodes.iter().all(node::Node::is_at_rest);
        if !idle {
            continue;
        }
        // What was acknowledged last is named by one of the next ticks; a log that is new is found within a second.
        let named = *named.get_or_insert(world.audit.recount.tick + 15 * node::TICK_MS);
        if world.audit.recount.tick < named {
            continue;
        }
        if world.audit.recount.waits() {
            // Rows that are ahead of their time by a clock that stepped come in when it is there.
            if !std::mem::replace(&mut waited, true) {
                world.now += 2 * 86_400_000;
            }
            continue;
        }
        let closed = *until.get_or_insert(world.audit.recount.tick);
        if world.mesh.as_ref().is_none_or(|mesh| mesh.closed < closed) {
            continue;
        }
        return finish(world);
    }
    if world.damaged.is_some() {
        return damaged(world);
    }
    let kept: usize = world.agents.iter().map(|agent| agent.kept.len()).sum();
    let (tick, closed) = (world.audit.recount.tick, world.mesh.as_ref().map(|mesh| mesh.closed));
    Err(format!(
        "nothing went wrong for {DRAIN_STEPS_MAX} steps, and it does not come to rest: agents keep {kept} frames, the last tick is {tick}, \
         the mesh has closed {closed:?}"
    ))
}

/// Everything came through.
fn finish(world: &mut World) -> Result<Report, String> {
    world.check_answer()?;
    let mesh = world.mesh.as_ref().ok_or("there is no mesh in the end")?;
    let answer = mesh.answer.clone();
    let replayed = replay(world);
    if world.damaged.is_some() && replayed.is_err() {
        return damaged(world);
    }
    if replayed? != answer {
        return Err("a replay gives another answer".to_owned());
    }
    if let Err(why) = world.books.check_all(&answer) {
        return if world.reports.is_empty() { Err(why) } else { damaged(world) };
    }
    world.audit.check_history()?;
    Ok(report(world, &answer))
}

/// The disk took something: it must have been said, with the name of what is broken.
fn damaged(world: &mut World) -> Result<Report, String> {
    let path = world.damaged.clone().unwrap_or_default();
    if let Err(why) = replay(world) {
        world.reports.push(why);
    }
    let name = std::path::Path::new(&path).parent().and_then(|dir| dir.file_name()).map(|dir| dir.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    if !world.reports.iter().any(|report| report.contains(&name)) {
        return Err(format!("{path} is damaged, something is missing, and nobody names {name:?}: {:?}", world.reports));
    }
    let answer = world.audit.recount.answer.clone();
    world.books.check_rows(&answer)?;
    let mut report = report(world, &answer);
    report.damaged.1 = 1;
    Ok(report)
}

/// The answer as a new generation of one worker finds it, from where one may begin up to the chain's end.
fn replay(world: &World) -> Result<books::Answer, String> {
    let from = world.checkpoints.0.keys().next().copied();
    let generation = Generation { number: 0, workers: 1, members: Vec::new(), from };
    let logs = logs_of(world.disk.clone());
    let mut mesh = Mesh::start(world.settings, &generation, &world.checkpoints)?;
    let begin = world.checkpoints.begin(from)?;
    let mut feed = Feeding::new(&logs, Share { worker: 0, workers: 1 }, begin, 0);
    let last = world.mesh.as_ref().map_or(u64::MAX, |mesh| mesh.closed);
    loop {
        if feed.ready.is_empty() {
            feed.poll(&*logs, 1).map_err(|error| error.to_string())?;
        }
        if feed.ready.front().is_none_or(|tick| tick.tick > last) {
            return Ok(mesh.answer);
        }
        mesh.close(&mut [&mut feed])?;
    }
}

/// The chain and the logs as they are seen through this disk.
fn logs_of(disk: impl Disk + 'static) -> Arc<dyn Logs> {
    let limits = JournalLimits { segment_bytes_max: LOG_SEGMENT_BYTES, ..JournalLimits::default() };
    Arc::new(LocalLogs::new(Arc::new(disk), SHARED.as_ref(), &limits))
}

fn report(world: &World, answer: &books::Answer) -> Report {
    Report {
        seeds: 1,
        faults: world.faults.done.clone(),
        produced: world.books.produced,
        acked: world.books.acked.len() as u64,
        stored: answer.len() as u64,
        lost: world.books.lost_told(),
        died: world.books.died_count(answer),
        duplicates: world.audit.recount.duplicates,
        ticks: world.faults.ticks,
        generations: world.faults.generations,
        checkpoints: world.faults.checkpoints,
        damaged: (u64::from(world.damaged.is_some()), 0),
    }
}

/// What all nodes share.
const SHARED: &str = "/shared";
/// Small, so that logs have many segments and forgetting has something to take.
const LOG_SEGMENT_BYTES: u64 = 4 << 10;
/// About ten to thirty seconds of the simulated time.
const STEPS_MIN: u64 = 150;
const STEPS_MAX: u64 = 600;
/// About three minutes of it.
const DRAIN_STEPS_MAX: u64 = 4_000;
