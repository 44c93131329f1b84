//! The one loop: collect, enrich, batch, ship. It alone reads clocks.
//!
//! Order of start: hooks first, then the state of the host, so that nothing falls between. Order of stop: hooks detached, ring
//! drained, losses and `host_stop` told, everything flushed.

mod learn;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use weir_config::AgentConfig;
use weir_journal::RealDisk;
use weir_schema::{Container, Epoch, Event, Fields, Host, Kind, Lane};
use weir_transport::{Client, ClientConfig, ensure_certificate};

use crate::batch::Batcher;
use crate::clock::Clock;
use crate::confine::{self, Process};
use crate::enrich::cgroup::Mounts;
use crate::enrich::host::{addresses_json, boot_id, host_name};
use crate::enrich::metadata::cloud::Instance;
use crate::enrich::metadata::{Metadata, News};
use crate::enrich::place::Places;
use crate::enrich::proc::Proc;
use crate::enrich::process::Processes;
use crate::enrich::runtime::Runtimes;
use crate::enrich::{Enricher, Source};
use crate::error::Error;
use crate::guard::Guard;
use crate::loss::{Losses, Reason};
use crate::probe::RawEvent;
use crate::probe::system::{self, addresses, boot_clock_ns, random_u64, wall_clock_ns};
use crate::record::{RecordTo, Recorded, Recorder};
use crate::sample::{self, Sampler};
use crate::ship::Shipper;
use crate::spool::{Gap, Spool, Verdict};
use crate::start::{Collecting, rights, start_detail};

/// What an agent did in its life.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// Events that got a seq.
    pub events: u64,
    /// Events that nodes made durable.
    pub acked_events: u64,
    /// Events lost, all of them told as `loss`.
    pub lost_events: u64,
    /// Events that lie in the spool for the next run, those of earlier runs included.
    pub spooled_events: u64,
    /// Frames that no node had acknowledged at the end and that are not in the spool: lost.
    pub unacked_frames: u64,
    /// The recording, if one was asked for.
    pub recorded: Option<Recorded>,
}

/// Runs the agent until `shutdown` is ready. Needs a tokio runtime; one thread is enough.
pub async fn run(config: AgentConfig, shutdown: impl Future<Output = ()>) -> Result<Summary, Error> {
    run_recording(config, None, shutdown).await
}

/// The same, and records what is collected; alone, when the config names no nodes.
pub async fn run_recording(
    config: AgentConfig,
    record: Option<RecordTo>,
    shutdown: impl Future<Output = ()>,
) -> Result<Summary, Error> {
    run_in(Process::Shared, config, record, shutdown).await
}

/// The same for a process that is nothing but the agent, on a runtime of one thread that has done nothing yet: it gives up the rights that it
/// does not need, for good.
pub async fn run_confined(
    config: AgentConfig,
    record: Option<RecordTo>,
    shutdown: impl Future<Output = ()>,
) -> Result<Summary, Error> {
    if config.process.drop_privileges {
        confine::begin();
    }
    run_in(Process::Own, config, record, shutdown).await
}

async fn run_in(
    process: Process,
    config: AgentConfig,
    record: Option<RecordTo>,
    shutdown: impl Future<Output = ()>,
) -> Result<Summary, Error> {
    let mut shutdown = std::pin::pin!(shutdown);
    if config.nodes.is_empty() && record.is_none() {
        return Err(Error::Idle);
    }
    if !config.nodes.is_empty() {
        let client = ClientConfig::from(&config);
        tokio::select! {
            () = &mut shutdown => return Ok(Summary::default()),
            enrolled = ensure_certificate(&client) => enrolled?,
        }
    }
    let mut agent = Box::new(Agent::start(process, config, record.as_ref())?);
    let mut samples = every(agent.config.sample_interval_ms);
    let mut seconds = every(SECOND_MS);
    let stopped = loop {
        // In random order: under load the collector is always ready, and samples must have their turn.
        tokio::select! {
            () = &mut shutdown => break Ok(()),
            () = agent.collecting.wait() => {}
            () = agent.metadata.next(&mut agent.news) => {}
            _ = samples.tick() => agent.sample(),
            _ = seconds.tick() => agent.each_second(),
            () = at(next_due(&agent.batcher, agent.shipper.as_ref())) => {}
            () = heard(agent.shipper.as_ref()) => {}
        }
        if let Err(error) = agent.learn() {
            break Err(error);
        }
        match agent.pass() {
            Ok(Work::Done) => {}
            // The ring is not empty: let the session have its turn, then go on at once.
            Ok(Work::More) => tokio::task::yield_now().await,
            Err(error) => break Err(error),
        }
    };
    let summary = Box::pin(agent.stop()).await;
    stopped.and(summary)
}

struct Agent {
    config: AgentConfig,
    collecting: Collecting,
    enricher: Enricher,
    metadata: Metadata,
    news: Vec<News>,
    sampler: Sampler,
    batcher: Batcher,
    /// None: what is collected is only recorded.
    shipper: Option<Shipper>,
    recorder: Option<Recorder>,
    losses: Losses,
    guard: Guard,
    addresses: BTreeSet<IpAddr>,
    detail: serde_json::Map<String, serde_json::Value>,
    host_place: Arc<Container>,
    raw: Vec<RawEvent>,
    events: Vec<Event>,
    told: u64,
    seconds: u64,
    /// `detail` holds what no `host_start` has told yet.
    is_untold: bool,
}

enum Work {
    Done,
    More,
}

impl Agent {
    fn start(process: Process, config: AgentConfig, record: Option<&RecordTo>) -> Result<Self, Error> {
        let epoch = Epoch(random_u64().map_err(|source| Error::System { what: "draw a random number", source })?);
        let mut losses = Losses::default();
        let (shipper, why_not) = match config.nodes.is_empty() {
            true => (None, None),
            false => {
                let client = Client::start(ClientConfig::from(&config), epoch)?;
                let (spool, why_not) = open_spool(&config, &mut losses);
                (Some(Shipper::new(client, config.memory_bytes_max, spool, config.spool.clone())), why_not)
            }
        };
        let proc = Proc::new(&config.collector.proc_root);
        let mounts = Mounts::read().below(&config.collector.cgroup_root);
        let mut collecting = Collecting::start(&config.collector, proc.clone(), mounts.clone());
        let rights = rights(process, &config, &collecting, record);

        let now_ns = boot_clock_ns();
        let name = config.host.clone().unwrap_or_else(host_name);
        let (metadata, sources) = Metadata::start(&config.metadata, &name);
        let runtimes = Runtimes::new("/").with_sources(sources, &config.metadata);
        let places = Places::new(mounts.clone(), config.apps.clone(), runtimes);
        let clock = Clock::new(now_ns, wall_clock_ns());
        let source = if collecting.is_kernel() { Source::Kernel } else { Source::Polls };
        let mut enricher = Enricher::new(clock, Processes::new(proc), places, source);
        let host = Arc::new(Host {
            host: name.as_str().into(),
            cloud: config.cloud.as_deref().map(Into::into),
            zone: config.zone.as_deref().map(Into::into),
            boot_id: boot_id(),
            simulated: false,
        });
        let recorder = record.map(|to| Recorder::start(to, host.clone())).transpose()?;
        let mut events = Vec::new();
        enricher.load(now_ns, &mut events);
        let host_place = enricher.places().of_text("", None, now_ns).container;
        let mut agent = Self {
            detail: start_detail(&collecting),
            sampler: Sampler::new(mounts, &config.collector.proc_root),
            batcher: Batcher::new(host, epoch, config.batch.clone()),
            shipper,
            recorder,
            enricher,
            metadata,
            news: Vec::new(),
            losses,
            guard: Guard::new(config.process.clone()),
            addresses: addresses(),
            host_place,
            raw: collecting.state_at_start(),
            events: Vec::new(),
            told: 0,
            seconds: 0,
            is_untold: false,
            collecting,
            config,
        };
        agent.detail.extend(rights.map(|rights| ("rights".to_owned(), rights)));
        if let Some(why_not) = why_not {
            agent.detail.insert("spool".into(), format!("off: {why_not}").into());
        }
        agent.tell_instance(&Instance::default());
        agent.is_untold = false;
        agent.push_host_start();
        agent.events.append(&mut events);
        tracing::info!(host = %name, epoch = epoch.0, kernel = agent.collecting.is_kernel(), processes = agent.enricher.processes().len(), "agent started");
        Ok(agent)
    }

    /// Takes what there is, up to a limit, and ships what is due.
    fn pass(&mut self) -> Result<Work, Error> {
        let read = self.collecting.collect(boot_clock_ns(), &mut self.raw, &mut self.losses);
        let now = Instant::now();
        let more = match &mut self.shipper {
            Some(shipper) => {
                let more = shipper.refresh(now, &mut self.losses)?;
                self.batcher.set_away(shipper.is_away(now));
                more
            }
            None => false,
        };
        for raw in self.raw.drain(..) {
            match self.guard.sheds_raw(&raw) {
                Some((lane, reason)) => self.losses.add(lane.as_str(), reason, 1),
                None => self.enricher.enrich(&raw, &mut self.events),
            }
        }
        self.batch_events(now)?;
        if let Some(shipper) = &mut self.shipper {
            for frame in self.batcher.due(now)? {
                shipper.ship(frame, now)?;
            }
            if let Some((verdict, gaps)) = shipper.overflow() {
                self.drop_spooled(verdict, gaps, now)?;
            }
        }
        Ok(if more || read >= RECORDS_PER_PASS_MAX { Work::More } else { Work::Done })
    }

    /// The spool is full: tells what goes, and lets it go.
    fn drop_spooled(&mut self, verdict: Verdict, gaps: Vec<Gap>, now: Instant) -> Result<(), Error> {
        for gap in gaps {
            tracing::warn!(
                lane = gap.lane.as_str(),
                events = gap.count,
                "the spool is full: its oldest events are dropped and counted"
            );
            self.losses.add_gap(Reason::SpoolFull, gap);
        }
        let mut told = Vec::new();
        for event in self.losses.take(self.enricher.wall_ns(boot_clock_ns())) {
            self.told += 1;
            told.extend(self.batcher.push(&event, now)?);
        }
        told.extend(self.batcher.finish_lane(Lane::Security)?);
        self.shipper.as_mut().map_or(Ok(()), |shipper| shipper.drop_told(told, verdict, now))
    }

    fn batch_events(&mut self, now: Instant) -> Result<(), Error> {
        for event in self.events.drain(..) {
            if let Some(reason) = self.guard.sheds(event.kind) {
                self.losses.add(event.kind.lane().as_str(), reason, 1);
                continue;
            }
            if let Some(recorder) = &self.recorder {
                recorder.take(&event);
            }
            let Some(shipper) = &mut self.shipper else {
                self.told += 1;
                continue;
            };
            let lane = event.kind.lane();
            if !shipper.admits(lane) {
                self.losses.add(lane.as_str(), Reason::MemoryFull, 1);
                continue;
            }
            self.told += 1;
            for frame in self.batcher.push(&event, now)? {
                shipper.ship(frame, now)?;
            }
        }
        Ok(())
    }

    fn sample(&mut self) {
        let now_ns = boot_clock_ns();
        let time = self.enricher.wall_ns(now_ns);
        let live: Vec<_> =
            self.enricher.places().cgroup_table().containers().map(|(hierarchy, cgroup)| (hierarchy, cgroup.clone())).collect();
        let places = self.enricher.places();
        let targets = sample::targets(live.iter().map(|(hierarchy, cgroup)| (*hierarchy, cgroup)), |cgroup| {
            places.of_cgroup(cgroup, now_ns).container
        });
        let processes = self.enricher.processes().len() as u64;
        let host = sample::Host { time, processes, container: Some(self.host_place.clone()) };
        self.events.extend(self.sampler.round(&targets, &host, now_ns));
    }

    fn each_second(&mut self) {
        let now_ns = boot_clock_ns();
        self.seconds += 1;
        if self.guard.look(system::usage(), now_ns) {
            tracing::warn!(usage = ?system::usage(), limits = ?self.config.process, "what is shed because of the agent's caps has changed");
        }
        self.tell_losses(now_ns);
        self.tell_transport();
        if self.seconds.is_multiple_of(CLOCK_SECONDS) {
            let moved_ns = self.enricher.clock().measure(now_ns, wall_clock_ns());
            if moved_ns.unsigned_abs() >= CLOCK_STEP_NS {
                tracing::warn!(
                    moved_ms = moved_ns / 1_000_000,
                    "the wall clock was set: later events follow it, earlier ones stay"
                );
            }
            self.enricher.expire(now_ns);
            metrics::gauge!(crate::metrics::PROCESSES).set(self.enricher.processes().len() as f64);
            let found = addresses();
            if found != self.addresses {
                tracing::info!(addresses = found.len(), "the host's addresses changed");
                self.addresses = found;
                self.is_untold = true;
            }
            // Together, and not more often: sources may come and go.
            if std::mem::take(&mut self.is_untold) {
                self.detail.insert("repeated".into(), true.into());
                self.push_host_start();
            }
        }
        if self.seconds.is_multiple_of(SWEEP_SECONDS) {
            self.enricher.sweep(now_ns);
        }
    }

    /// What carries the session is known only once there is one, and may change; `agents` shows the latest word.
    fn tell_transport(&mut self) {
        let transport = self.shipper.as_ref().and_then(|shipper| shipper.stats().transport);
        let Some(transport) = transport.map(weir_transport::Transport::as_str) else { return };
        if self.detail.get("transport").is_none_or(|told| told != transport) {
            tracing::info!(transport, "session");
            self.detail.insert("transport".into(), transport.into());
            self.detail.insert("repeated".into(), true.into());
            self.push_host_start();
        }
    }

    fn tell_losses(&mut self, now_ns: u64) {
        if let Some(dropped) = self.collecting.dropped() {
            self.losses.kernel(dropped);
        }
        let admits = self.shipper.as_ref().is_none_or(|shipper| shipper.admits(Lane::Security));
        if self.losses.is_pending() && admits {
            self.events.extend(self.losses.take(self.enricher.wall_ns(now_ns)));
        }
    }

    fn push_host_start(&mut self) {
        let fields = Fields {
            addresses: Some(addresses_json(&self.addresses)),
            detail: Some(serde_json::Value::Object(self.detail.clone()).to_string().into()),
            ..Fields::default()
        };
        self.push_host(Kind::HostStart, fields);
    }

    fn push_host(&mut self, kind: Kind, fields: Fields) {
        let time = self.enricher.wall_ns(boot_clock_ns());
        self.events.push(Event { time, kind, process: None, container: Some(self.host_place.clone()), fields });
    }

    async fn stop(mut self) -> Result<Summary, Error> {
        let collecting = std::mem::replace(&mut self.collecting, Collecting::Ended);
        let dropped = collecting.finish(&mut self.raw, &mut self.losses);
        for raw in self.raw.drain(..) {
            self.enricher.enrich(&raw, &mut self.events);
        }
        if let Some(dropped) = dropped {
            self.losses.kernel(dropped);
        }
        let now_ns = boot_clock_ns();
        self.tell_losses(now_ns);
        self.batch_events(Instant::now())?;
        // The very last event of the security lane: what comes before it is whole.
        self.push_host(Kind::HostStop, Fields::default());
        self.batch_events(Instant::now())?;
        let recorded = self.recorder.take().map(Recorder::finish);
        let mut summary = Summary { events: self.told, lost_events: self.losses.total(), recorded, ..Summary::default() };
        if let Some(mut shipper) = self.shipper.take() {
            for frame in self.batcher.finish()? {
                shipper.ship(frame, Instant::now())?;
            }
            let (stats, spooled_events) = shipper.finish(FLUSH_TIME_MAX).await?;
            summary.acked_events = stats.acked_events;
            summary.spooled_events = spooled_events;
            summary.unacked_frames = stats.unacked_frames;
        }
        if let Some(Recorded { events, dropped, rotated }) = recorded {
            tracing::info!(events, dropped, rotated_away = rotated, "recording ended");
        }
        tracing::info!(
            events = summary.events,
            acked = summary.acked_events,
            lost = summary.lost_events,
            spooled = summary.spooled_events,
            unacked_frames = summary.unacked_frames,
            "agent stopped"
        );
        Ok(summary)
    }
}

/// When there is something to ship though nothing happens.
fn next_due(batcher: &Batcher, shipper: Option<&Shipper>) -> Option<Instant> {
    batcher.next_due().into_iter().chain(shipper?.next_due()).min()
}

/// Waits for a node's word; for ever without nodes.
async fn heard(shipper: Option<&Shipper>) {
    match shipper {
        Some(shipper) => shipper.heard().await,
        None => std::future::pending().await,
    }
}

/// The spool in the agent's folder. Without one the agent runs all the same, and says so.
fn open_spool(config: &AgentConfig, losses: &mut Losses) -> (Option<Spool>, Option<String>) {
    let dir = config.data_dir.join("spool");
    match Spool::open(Arc::new(RealDisk), &dir, config.spool.bytes_max) {
        Ok((spool, found)) => {
            if found.killed {
                losses.add_unknown("any", Reason::Killed);
            }
            found.damaged.iter().for_each(|lane| losses.add_unknown(lane.as_str(), Reason::SpoolDamaged));
            if !spool.is_empty() {
                tracing::info!(events = spool.events(), "the spool holds events of an earlier run");
            }
            (Some(spool), None)
        }
        Err(error) => {
            tracing::warn!(%error, "no spool: what no node acknowledges stays in memory only; set data_dir to a folder that can be written");
            (None, Some(error.to_string()))
        }
    }
}

fn every(interval_ms: u64) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(Duration::from_millis(interval_ms));
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    interval
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Records taken before the session has its turn: about 10 ms of work.
pub(crate) const RECORDS_PER_PASS_MAX: usize = 4_096;
const SECOND_MS: u64 = 1_000;
/// How often the clocks are compared and the tables cleaned, in seconds.
const CLOCK_SECONDS: u64 = 10;
/// How often processes whose exit was lost are looked for, in seconds.
const SWEEP_SECONDS: u64 = 60;
/// A move of the wall clock that people should know of.
const CLOCK_STEP_NS: u64 = 1_000_000_000;
/// How long a stopping agent waits for the last acknowledgements.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(5);
