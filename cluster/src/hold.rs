//! The holder's loop: a record every tick, and with it, when it is time, the next generation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tracing::{error, info, warn};
use weir_archive::Store;
use weir_config::MeshLimits;
use weir_dataflow::{Command as EngineCommand, ViewSettings};

use crate::beats::Board;
use crate::chain::{ChainState, Command};
use crate::error::Error;
use crate::forget::{self, Floor};
use crate::holder::{Holder, TAKE_EVERY};
use crate::log::{LogError, Logs};
use crate::membership::{Limits, Membership};
use crate::metrics;
use crate::rules::{self, RulesRequest};
use crate::sinks::{self, SinkRequest};
use crate::views::{self, ViewRequest};

/// Who may come to hold the chain.
pub(crate) struct Candidate {
    /// The chain and the logs.
    pub(crate) logs: Arc<dyn Logs>,
    /// Of the views, for a chain that begins here.
    pub(crate) settings: ViewSettings,
    /// Between two ticks.
    pub(crate) every: Duration,
    /// What the nodes say.
    pub(crate) board: Board,
    /// When a member is given up.
    pub(crate) limits: MeshLimits,
    /// Workers of each node, for a chain that begins here.
    pub(crate) workers: u32,
    /// Between two checkpoints.
    pub(crate) checkpoint_ms: u64,
    /// What may be forgotten.
    pub(crate) floor: Floor,
    /// Where checkpoints are.
    pub(crate) store: Store,
    /// Reads the store.
    pub(crate) runtime: Handle,
}

impl Candidate {
    /// Tries to hold the chain, and holds it, until `stop`. Blocks; run it on a thread of its own.
    pub(crate) fn run(self, wall_ms: impl Fn() -> u64, stop: impl Fn() -> bool) {
        while !stop() {
            let base = |first| self.runtime.block_on(forget::base(&self.store, first));
            match Holder::take(self.logs.clone(), self.settings, wall_ms(), base) {
                Ok(Some(holder)) => match self.hold(holder, &wall_ms, &stop) {
                    Ok(()) => {}
                    Err(Error::Log { why: why @ LogError::Fenced { .. }, .. }) => warn!(%why, "the chain has another holder now"),
                    Err(failed) => {
                        metrics::chain_failed();
                        error!(error = %failed, place = self.logs.place(), "a record of the chain could not be written");
                    }
                },
                Ok(None) => std::thread::sleep(TAKE_EVERY),
                Err(failed) => {
                    metrics::chain_failed();
                    error!(error = %failed, "the chain could not be taken; trying on");
                    std::thread::sleep(TAKE_EVERY);
                }
            }
        }
    }

    /// Writes one record a tick until told to stop, or until a record cannot be written: then the chain is taken anew.
    fn hold(&self, mut holder: Holder, wall_ms: &impl Fn() -> u64, stop: &impl Fn() -> bool) -> Result<(), Error> {
        let start = Instant::now();
        let mut next = start;
        let limits = Limits { member_ms_max: self.limits.member_ms_max, join_ms_min: self.limits.join_ms_min };
        let mut looker = Looker {
            board: self.board.clone(),
            membership: None,
            looked: None,
            start,
            checkpoints: Vec::new(),
            requests: Vec::new(),
            rules: Vec::new(),
            sinks: Vec::new(),
        };
        let mut saves = Saves { every_ms: self.checkpoint_ms, due_ms: self.checkpoint_ms, tick: 0 };
        while !stop() {
            let elapsed_ms = start.elapsed().as_millis() as u64;
            looker.look(|| Membership::new(limits, holder.state().formed.clone(), self.workers, elapsed_ms), elapsed_ms);
            if holder.is_unsure() && !Self::agree(&mut holder, looker.membership.as_ref(), elapsed_ms, wall_ms()) {
                std::thread::sleep(self.every);
                continue;
            }
            let membership = looker.membership.as_mut();
            let mut formed = None;
            let mut commands = Vec::new();
            if let Some(membership) = membership {
                formed = membership.decide(elapsed_ms);
                if formed.is_none() && saves.is_due(elapsed_ms, membership.all_run(), holder.state()) {
                    commands.push(Command::Engine(EngineCommand::Checkpoint));
                }
                if let Some(next) = &mut formed {
                    let good = |tick: &&u64| !membership.bad_checkpoints().contains(tick);
                    next.generation.from = looker.checkpoints.iter().rfind(good).copied();
                    saves.begin(elapsed_ms, holder.state().tick, next.generation.from);
                    commands.push(Command::Form(next.generation.clone()));
                }
            }
            commands.extend(self.views(&mut looker.requests, holder.state()));
            commands.extend(self.rules(&mut looker.rules, holder.state()));
            commands.extend(self.sinks(&mut looker.sinks, holder.state()));
            holder.step(elapsed_ms, commands)?;
            if let (Some(next), Some(membership)) = (formed, &mut looker.membership) {
                let nodes: Vec<&str> = next.generation.members.iter().map(|member| member.node.as_str()).collect();
                let (generation, workers, from) = (next.generation.number, next.generation.workers, next.generation.from);
                info!(generation, workers, from, ?nodes, why = next.why, "the mesh is formed");
                membership.chained(next.generation, elapsed_ms);
            }
            holder.forget(self.floor.chain())?;
            // A late tick does not make the next ones come in a burst.
            next = (next + self.every).max(Instant::now());
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    /// Takes up the changes of views that nobody has chained yet. A request that is in the chain has done its work.
    fn views(&self, requests: &mut Vec<ViewRequest>, state: &ChainState) -> Vec<Command> {
        let mut commands = Vec::new();
        let mut bytes = 0;
        for request in requests.drain(..) {
            match state.views.outcome(request.id) {
                None => {
                    // The others are found again at the next look.
                    bytes += request.bytes();
                    if commands.is_empty() || bytes <= REQUEST_BYTES_MAX {
                        commands.push(Command::Views(request));
                    }
                }
                Some(_) => {
                    if let Err(failed) = self.runtime.block_on(views::settle(&self.store, request.id)) {
                        warn!(error = %failed, "a request for a view stays where it is: it is done already");
                    }
                }
            }
        }
        commands
    }

    /// The same for changes of rules.
    fn rules(&self, requests: &mut Vec<RulesRequest>, state: &ChainState) -> Vec<Command> {
        let mut commands = Vec::new();
        for request in requests.drain(..) {
            match state.rules.outcome(request.id) {
                None => commands.push(Command::Rules(request)),
                Some(_) => {
                    if let Err(failed) = self.runtime.block_on(rules::settle(&self.store, request.id)) {
                        warn!(error = %failed, "a request for rules stays where it is: it is done already");
                    }
                }
            }
        }
        commands
    }

    /// The same for changes of sinks.
    fn sinks(&self, requests: &mut Vec<SinkRequest>, state: &ChainState) -> Vec<Command> {
        let mut commands = Vec::new();
        for request in requests.drain(..) {
            match state.sinks.outcome(request.id) {
                None => commands.push(Command::Sinks(request)),
                Some(_) => {
                    if let Err(failed) = self.runtime.block_on(sinks::settle(&self.store, request.id)) {
                        warn!(error = %failed, "a request for a sink stays where it is: it is done already");
                    }
                }
            }
        }
        commands
    }

    /// Lets the holder go on at what the live nodes' clocks agree on; false while that is not known.
    pub(crate) fn agree(holder: &mut Holder, membership: Option<&Membership>, elapsed_ms: u64, own_ms: u64) -> bool {
        let agreed = membership.and_then(|membership| membership.median_clock(elapsed_ms));
        let alone = agreed.is_none() && elapsed_ms >= ALONE_AFTER_MS;
        let Some(clock) = agreed.or_else(|| alone.then_some(own_ms)) else { return false };
        if alone {
            error!("the store tells of no node's clock: the chain goes on at this node's own, unchecked");
        } else if own_ms.abs_diff(clock) > CLOCKS_APART_MS {
            error!(
                own_ms,
                agreed_ms = clock,
                "this node's clock is far from those of the others: set it right; ticks follow the others"
            );
        }
        info!(
            after_ms = clock.saturating_sub(holder.state().tick),
            "the chain has rested: it goes on at what the nodes' clocks agree on"
        );
        holder.lift(elapsed_ms, clock);
        true
    }
}

/// Brings what the nodes say to the membership.
struct Looker {
    board: Board,
    /// None until the store was looked at once since the chain was taken.
    membership: Option<Membership>,
    looked: Option<Instant>,
    start: Instant,
    /// Ticks of those that count, ascending.
    checkpoints: Vec<u64>,
    /// Changes of views that are asked for.
    requests: Vec<ViewRequest>,
    /// Changes of rules that are asked for.
    rules: Vec<RulesRequest>,
    /// Changes of sinks that are asked for.
    sinks: Vec<SinkRequest>,
}

impl Looker {
    fn look(&mut self, new: impl FnOnce() -> Membership, elapsed_ms: u64) {
        if let Some(seen) = self.board.newer(self.looked.or(Some(self.start))) {
            self.looked = Some(seen.at);
            self.checkpoints = seen.checkpoints;
            self.requests = seen.requests;
            self.rules = seen.rules;
            self.sinks = seen.sinks;
            let membership = self.membership.get_or_insert_with(new);
            if let Some(workers) = seen.workers {
                membership.want_workers(workers);
            }
            for beat in seen.beats {
                membership.observe(beat, elapsed_ms);
            }
        }
    }
}

/// When the next checkpoint is commanded.
struct Saves {
    every_ms: u64,
    due_ms: u64,
    /// The tick of the last one.
    tick: u64,
}

impl Saves {
    /// A generation begins from the checkpoint of tick `from`. Where generations follow each other fast their checkpoints must not wait
    /// for a quiet time: each would have more to read again than the one before.
    fn begin(&mut self, elapsed_ms: u64, tick: u64, from: Option<u64>) {
        let age_ms = tick.saturating_sub(from.unwrap_or(0));
        self.due_ms = elapsed_ms + self.every_ms.saturating_sub(age_ms);
    }

    /// Whether one is to be made now. While a member is not running it could not be completed.
    fn is_due(&mut self, elapsed_ms: u64, all_run: bool, state: &ChainState) -> bool {
        let due = all_run && elapsed_ms >= self.due_ms && state.tick > self.tick;
        if due {
            (self.due_ms, self.tick) = (elapsed_ms + self.every_ms, state.tick);
        }
        due
    }
}

/// Bytes of requests in one record: all of it is read by every worker at one tick.
const REQUEST_BYTES_MAX: usize = 3 << 19;
/// After so long without any sign of life, this node's own included, the store is taken for away.
const ALONE_AFTER_MS: u64 = 30_000;
/// Clocks kept by NTP differ by far less.
const CLOCKS_APART_MS: u64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_that_follow_each_other_fast_still_save_once_a_checkpoint_is_old() {
        let at = |tick| ChainState { tick, ..ChainState::default() };
        let mut saves = Saves { every_ms: 60_000, due_ms: 60_000, tick: 0 };
        // A generation every ten seconds, each from the checkpoint of tick 1,000,000, each running two seconds after it began.
        let mut saved = Vec::new();
        for generation in 0..10 {
            let began_ms = generation * 10_000;
            saves.begin(began_ms, 1_000_000 + began_ms, Some(saved.last().map_or(1_000_000, |ms| 1_000_000 + ms)));
            for elapsed_ms in (began_ms..began_ms + 10_000).step_by(100) {
                if saves.is_due(elapsed_ms, elapsed_ms >= began_ms + 2_000, &at(1_000_000 + elapsed_ms)) {
                    saved.push(elapsed_ms);
                }
            }
        }
        assert_eq!(saved, [62_000]);
        // Without any it does not wait at all.
        saves.begin(100_000, 1_100_000, None);
        assert!(!saves.is_due(100_000, false, &at(1_100_000)) && saves.is_due(100_100, true, &at(1_100_100)));
    }
}
