//! Drives a simulated fleet in real time: the model says what happens, simulated agents tell it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::error;
use weir_schema::Event;

use crate::agents::{SimAgent, Target, random_epoch};
use crate::fleet::{Books, Fleet, FleetOptions};

/// A fleet that runs until it is stopped.
pub struct RunningFleet {
    stop: watch::Sender<bool>,
    books: watch::Receiver<Books>,
    task: JoinHandle<anyhow::Result<Books>>,
}

impl RunningFleet {
    /// What the fleet has told so far.
    pub fn books(&self) -> Books {
        *self.books.borrow()
    }

    /// Ends the fleet, waits for its last acknowledgements, and gives its books.
    pub async fn stop(self) -> anyhow::Result<Books> {
        // The fleet may have ended by itself.
        let _ = self.stop.send(true);
        self.task.await?
    }
}

/// Starts the fleet: `start_ns` of the options is replaced by now.
pub async fn start(options: FleetOptions, target: Target) -> anyhow::Result<RunningFleet> {
    start_with(options, target, None).await
}

/// Starts the fleet; after this time it plays its intrusion.
pub async fn start_with(
    options: FleetOptions,
    target: Target,
    intrusion_after: Option<Duration>,
) -> anyhow::Result<RunningFleet> {
    let options = FleetOptions { start_ns: now_ns(), ..options };
    let mut fleet = Fleet::new(options);
    if let Some(after) = intrusion_after {
        fleet.intrude(options.start_ns.saturating_add(i64::try_from(after.as_nanos()).unwrap_or(i64::MAX)));
    }
    let mut agents = Vec::with_capacity(options.hosts);
    for (index, host) in fleet.hosts().iter().enumerate() {
        agents.push(SimAgent::start(&target, host.region, host.host.clone(), random_epoch(), index)?);
    }
    let (stop, stopped) = watch::channel(false);
    let (tell_books, books) = watch::channel(Books::default());
    let task = tokio::spawn(async move {
        let done = drive(&mut fleet, &mut agents, options.start_ns, stopped, &tell_books).await;
        if let Err(failed) = &done {
            error!(error = %failed, "the simulated fleet ended");
        }
        done?;
        let ends = agents.into_iter().map(|agent| tokio::spawn(agent.finish(FINISH_WITHIN))).collect::<Vec<_>>();
        for end in ends {
            end.await?.context("a simulated agent's last events")?;
        }
        Ok(fleet.books())
    });
    Ok(RunningFleet { stop, books, task })
}

async fn drive(
    fleet: &mut Fleet,
    agents: &mut [SimAgent],
    start_ns: i64,
    mut stopped: watch::Receiver<bool>,
    books: &watch::Sender<Books>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut told: Vec<(usize, Event)> = Vec::new();
    fleet.start(start_ns, |host, event| told.push((host, event)));
    let mut every = tokio::time::interval(STEP);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let now = Instant::now();
        for (host, event) in told.drain(..) {
            agents[host].tell(&event, now).await?;
        }
        for agent in &mut *agents {
            agent.due(now).await?;
        }
        books.send_replace(fleet.books());
        tokio::select! {
            _ = every.tick() => {}
            _ = stopped.wait_for(|stop| *stop) => return Ok(()),
        }
        let elapsed = started.elapsed().as_nanos() as i64;
        fleet.advance(start_ns + elapsed, |host, event| told.push((host, event)));
    }
}

/// Nanoseconds since the Unix epoch, by this machine's clock.
pub fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

/// How often the model acts.
const STEP: Duration = Duration::from_millis(10);
const FINISH_WITHIN: Duration = Duration::from_secs(30);
