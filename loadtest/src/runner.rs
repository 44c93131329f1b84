//! Drives a simulated fleet in real time: the model says what happens, simulated agents tell it and, as a scenario asks, start anew.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::error;
use weir_schema::Event;
use weir_transport::ClientStats;

use crate::agents::{SimAgent, Target, random_epoch};
use crate::fleet::{Books, Fleet, FleetOptions};
use crate::scenario::Scenario;

/// A fleet that runs until it is stopped.
pub struct RunningFleet {
    stop: watch::Sender<bool>,
    progress: watch::Receiver<Progress>,
    task: JoinHandle<anyhow::Result<Progress>>,
}

/// How far a fleet is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// What has been told to agents.
    pub books: Books,
    /// Events that nodes have acknowledged, by the agents' own count.
    pub acked: u64,
    /// Frames that were sent again.
    pub resent: u64,
    /// Events of frames that nodes refused.
    pub refused: u64,
    /// From an agent's new start until a node had welcomed it, milliseconds.
    pub welcomed_ms: Vec<f64>,
    /// Agents that started anew.
    pub restarts: u64,
    /// The longest time between two steps of the model: how far the fleet has been behind.
    pub behind_max: Duration,
}

impl Progress {
    fn add(&mut self, stats: &ClientStats) {
        self.acked += stats.acked_events;
        self.resent += stats.resent;
        self.refused += stats.refused_events;
    }
}

impl RunningFleet {
    /// What the fleet has told so far.
    pub fn books(&self) -> Books {
        self.progress.borrow().books
    }

    /// How far it is.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Ends the fleet, waits for its last acknowledgements, and gives its books.
    pub async fn stop(self) -> anyhow::Result<Books> {
        Ok(self.finish().await?.books)
    }

    /// The same, with what its agents have seen.
    pub async fn finish(self) -> anyhow::Result<Progress> {
        // The fleet may have ended by itself.
        let _ = self.stop.send(true);
        self.task.await?
    }
}

/// Starts the fleet: `start_ns` of the options is replaced by now.
pub async fn start(options: FleetOptions, target: Target) -> anyhow::Result<RunningFleet> {
    start_scenario(options, Scenario::Steady, target).await
}

/// Starts a fleet that goes through a scenario.
pub async fn start_scenario(options: FleetOptions, scenario: Scenario, target: Target) -> anyhow::Result<RunningFleet> {
    let options = FleetOptions { start_ns: now_ns(), ..options };
    run(Fleet::new(options), options, scenario, target)
}

/// Starts a steady fleet; after this time it plays its intrusion.
pub async fn start_intruded(options: FleetOptions, target: Target, after: Duration) -> anyhow::Result<RunningFleet> {
    let options = FleetOptions { start_ns: now_ns(), ..options };
    let mut fleet = Fleet::new(options);
    fleet.intrude(options.start_ns.saturating_add(i64::try_from(after.as_nanos()).unwrap_or(i64::MAX)));
    run(fleet, options, Scenario::Steady, target)
}

fn run(fleet: Fleet, options: FleetOptions, scenario: Scenario, target: Target) -> anyhow::Result<RunningFleet> {
    let mut agents = Vec::with_capacity(options.hosts);
    for (index, host) in fleet.hosts().iter().enumerate() {
        agents.push(SimAgent::start(&target, host.region, host.host.clone(), random_epoch(), index)?);
    }
    let (stop, stopped) = watch::channel(false);
    let (tell_progress, progress) = watch::channel(Progress::default());
    let driver = Driver {
        fleet,
        agents,
        ending: JoinSet::new(),
        joining: Vec::new(),
        done: Progress::default(),
        options,
        scenario,
        target,
    };
    let task = tokio::spawn(async move {
        let done = driver.run(stopped, &tell_progress).await;
        if let Err(failed) = &done {
            error!(error = %failed, "the simulated fleet ended");
        }
        done
    });
    Ok(RunningFleet { stop, progress, task })
}

struct Driver {
    fleet: Fleet,
    agents: Vec<SimAgent>,
    /// Agents that wait for their last acknowledgements.
    ending: JoinSet<anyhow::Result<ClientStats>>,
    /// Agents that no node has welcomed since they started anew.
    joining: Vec<(usize, Instant)>,
    /// Of agents that have ended.
    done: Progress,
    options: FleetOptions,
    scenario: Scenario,
    target: Target,
}

impl Driver {
    async fn run(mut self, mut stopped: watch::Receiver<bool>, progress: &watch::Sender<Progress>) -> anyhow::Result<Progress> {
        let (started, start_ns) = (Instant::now(), self.options.start_ns);
        let (mut at, mut told_at) = (Duration::ZERO, Instant::now());
        let mut told: Vec<(usize, Event)> = Vec::new();
        self.fleet.start(start_ns, |host, event| told.push((host, event)));
        let mut every = tokio::time::interval(STEP);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = Instant::now();
            for (host, event) in told.drain(..) {
                self.agents[host].tell(&event, now).await?;
            }
            for agent in &mut self.agents {
                agent.due(now).await?;
            }
            self.look(now)?;
            if told_at.elapsed() >= TELL_EVERY {
                progress.send_replace(self.so_far());
                told_at = now;
            }
            tokio::select! {
                _ = every.tick() => {}
                _ = stopped.wait_for(|stop| *stop) => break,
            }
            let before = std::mem::replace(&mut at, started.elapsed());
            self.done.behind_max = self.done.behind_max.max(at - before);
            for number in self.scenario.restarts(self.agents.len(), before, at) {
                let index = (number % self.agents.len() as u64) as usize;
                self.restart(index)?;
                self.fleet.agent_starts(index, start_ns + at.as_nanos() as i64, |host, event| told.push((host, event)));
            }
            self.fleet.set_rate(self.scenario.rate(self.options.rate, at));
            self.fleet.advance(start_ns + at.as_nanos() as i64, |host, event| told.push((host, event)));
        }
        for agent in self.agents.drain(..) {
            self.ending.spawn(agent.finish(FINISH_WITHIN));
        }
        while let Some(ended) = self.ending.join_next().await {
            self.done.add(&ended?.context("a simulated agent's last events")?);
        }
        let end = self.so_far();
        progress.send_replace(end.clone());
        Ok(end)
    }

    /// The old run of an agent ends in its own time, the new one begins at once.
    fn restart(&mut self, index: usize) -> anyhow::Result<()> {
        let host = &self.fleet.hosts()[index];
        let new = SimAgent::start(&self.target, host.region, host.host.clone(), random_epoch(), index)?;
        let old = std::mem::replace(&mut self.agents[index], new);
        self.ending.spawn(old.finish(FINISH_WITHIN));
        self.joining.push((index, Instant::now()));
        self.done.restarts += 1;
        Ok(())
    }

    fn look(&mut self, now: Instant) -> anyhow::Result<()> {
        let (agents, welcomed_ms) = (&self.agents, &mut self.done.welcomed_ms);
        self.joining.retain(|(index, since)| {
            let joined = agents[*index].stats().connected_to.is_some();
            if joined && welcomed_ms.len() < WELCOMES_MAX {
                welcomed_ms.push((now - *since).as_secs_f64() * 1e3);
            }
            !joined
        });
        while let Some(ended) = self.ending.try_join_next() {
            self.done.add(&ended?.context("the last events of an agent that started anew")?);
        }
        Ok(())
    }

    fn so_far(&self) -> Progress {
        let mut progress = Progress { books: self.fleet.books(), ..self.done.clone() };
        self.agents.iter().for_each(|agent| progress.add(&agent.stats()));
        progress
    }
}

/// Nanoseconds since the Unix epoch, by this machine's clock.
pub fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

/// How often the model acts.
const STEP: Duration = Duration::from_millis(10);
/// How often progress is told: counting asks every session.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// Enough for percentiles; a bound on memory in a run of days.
const WELCOMES_MAX: usize = 1_000_000;
const FINISH_WITHIN: Duration = Duration::from_secs(30);
