//! End to end on one machine: events per second from a simulated fleet to views, and the time from an event to its visible row.
//!
//! Everything shares the machine: fleet, TLS, log, workers, SQL. Latency is told by a probe host of its own region: it connects every
//! 20 ms, and `region_connections` says how many of its connections are visible. The clock is this machine's.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;
use tokio_postgres::NoTls;
use weir_schema::{Event, Fields, Host, Kind};
use weir_transport::Dialer;

use crate::agents::{SimAgent, Target, random_epoch};
use crate::fleet::{Books, FleetOptions};
use crate::local::process::children;
use crate::local::setup::{Setup, TENANT};
use crate::local::{self, LocalCluster};
use crate::runner::{self, now_ns};

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct BenchOptions {
    /// Simulated hosts.
    pub hosts: usize,
    /// Events per second that the fleet makes.
    pub rate: u64,
    /// How long.
    pub lasts: Duration,
    /// Nodes.
    pub nodes: usize,
    /// Workers per node.
    pub workers: usize,
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The fleet's books.
    pub books: Books,
    /// Events that the views' side has counted at the end.
    pub counted: u64,
    /// From the fleet's first event until all were counted.
    pub took: Duration,
    /// Event to visible row, milliseconds, sorted.
    pub latencies_ms: Vec<f64>,
    /// A frame sent to its acknowledgement, milliseconds, sorted.
    pub acks_ms: Vec<f64>,
    /// CPU seconds of the nodes and their worker children.
    pub cpu_s: f64,
}

impl Measured {
    /// The latency that this share of probes did not exceed.
    pub fn latency_ms(&self, share: f64) -> f64 {
        at_share(&self.latencies_ms, share)
    }

    /// The time to an acknowledgement that this share of probes did not exceed.
    pub fn ack_ms(&self, share: f64) -> f64 {
        at_share(&self.acks_ms, share)
    }
}

fn at_share(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// Starts a cluster of `program` on free ports, loads it, and measures.
pub async fn run(program: &Path, options: BenchOptions) -> anyhow::Result<Measured> {
    let dir = tempfile::Builder::new().prefix("weir-bench-").tempdir()?;
    let setup = Setup::write(&local::on_free_ports(options.nodes, options.workers), dir.path())?;
    let cluster = LocalCluster::start(program, &setup).await?;
    let target = Target {
        nodes: cluster.quic(),
        authority: setup.authority.clone(),
        tenant: TENANT.to_owned(),
        dialer: Some(Dialer::default()),
    };
    let url = format!("postgres://weir@{}/weir", cluster.addresses[0].sql);
    let (sql, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);

    let started = Instant::now();
    let fleet_options = FleetOptions { hosts: options.hosts, rate: options.rate, seed: 7, start_ns: 0 };
    let fleet = runner::start(fleet_options, target.clone()).await?;
    let (visible, acked) = tokio::join!(probe(&sql, &target, options.lasts), probe_acks(&target, options.lasts));
    let (latencies_ms, mut acks_ms) = (visible?, acked?);
    let books = fleet.stop().await?;
    let probes = latencies_ms.len() as u64;
    let (counted, took) = wait_until_counted(&sql, books.events, started).await?;
    let cpu_s = cluster.nodes.iter().filter_map(|node| cpu_seconds(node.pid()?)).sum();
    cluster.stop().await;
    let mut sorted = latencies_ms;
    sorted.sort_by(f64::total_cmp);
    acks_ms.sort_by(f64::total_cmp);
    anyhow::ensure!(probes > 0, "no probe became visible");
    Ok(Measured { books, counted, took, latencies_ms: sorted, acks_ms, cpu_s })
}

/// Connects every 20 ms from a region of its own, and notes when each connection is counted.
async fn probe(sql: &tokio_postgres::Client, target: &Target, lasts: Duration) -> anyhow::Result<Vec<f64>> {
    let host = Arc::new(Host { host: "probe".into(), simulated: true, ..Host::default() });
    let mut agent = SimAgent::start(target, PROBE_REGION, host, random_epoch(), 0)?;
    let started = Instant::now();
    let mut told: Vec<i64> = Vec::new();
    let mut latencies_ms = Vec::new();
    let mut every = tokio::time::interval(PROBE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while started.elapsed() < lasts || latencies_ms.len() < told.len() {
        anyhow::ensure!(
            started.elapsed() < lasts + VISIBLE_WITHIN,
            "{} of {} probes became visible",
            latencies_ms.len(),
            told.len()
        );
        every.tick().await;
        if started.elapsed() < lasts {
            let now = now_ns();
            agent.tell(&probe_event(now, told.len() as u64), Instant::now()).await?;
            told.push(now);
        }
        agent.due(Instant::now()).await?;
        let visible = number(sql, &format!("select total from region_connections where src_region = '{PROBE_REGION}'")).await?;
        let now = now_ns();
        while (latencies_ms.len() as u64) < visible.min(told.len() as u64) {
            latencies_ms.push((now - told[latencies_ms.len()]) as f64 / 1e6);
        }
    }
    agent.finish(VISIBLE_WITHIN).await?;
    Ok(latencies_ms)
}

/// Sends a frame, waits for its acknowledgement and a little longer, and so on.
async fn probe_acks(target: &Target, lasts: Duration) -> anyhow::Result<Vec<f64>> {
    let host = Arc::new(Host { host: "acks".into(), simulated: true, ..Host::default() });
    let mut agent = SimAgent::start(target, ACKS_REGION, host, random_epoch(), 0)?;
    let (started, mut acks_ms) = (Instant::now(), Vec::new());
    while started.elapsed() < lasts {
        let event = probe_event(now_ns(), acks_ms.len() as u64);
        acks_ms.push(agent.acked(&event, VISIBLE_WITHIN).await?.as_secs_f64() * 1e3);
        tokio::time::sleep(ACK_PAUSE).await;
    }
    agent.finish(VISIBLE_WITHIN).await?;
    // The first one waited for the connection.
    Ok(acks_ms.split_off(1.min(acks_ms.len())))
}

pub(crate) fn probe_event(time: i64, number: u64) -> Event {
    let fields = Fields {
        src_ip: Some("192.0.2.1".into()),
        src_port: Some(1_024 + (number % 60_000) as u16),
        dst_ip: Some("192.0.2.2".into()),
        dst_port: Some(443),
        proto: Some("tcp".into()),
        direction: Some("out".into()),
        result: Some(0),
        socket_id: Some(number + 1),
        ..Fields::default()
    };
    Event { time, kind: Kind::Connect, process: None, container: None, fields }
}

pub(crate) async fn wait_until_counted(
    sql: &tokio_postgres::Client,
    events: u64,
    started: Instant,
) -> anyhow::Result<(u64, Duration)> {
    let deadline = Instant::now() + VISIBLE_WITHIN;
    loop {
        // The probe's own events are not the fleet's.
        let counted = number(sql, "select coalesce(sum(events), 0) from agents where agent like 'sim-%'").await?;
        if counted >= events || Instant::now() > deadline {
            return Ok((counted, started.elapsed()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn number(sql: &tokio_postgres::Client, query: &str) -> anyhow::Result<u64> {
    for message in sql.simple_query(query).await.with_context(|| format!("asking {query:?}"))? {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            return Ok(row.get(0).and_then(|text| text.parse().ok()).unwrap_or(0));
        }
    }
    Ok(0)
}

/// User and system time of a process and of its living children.
fn cpu_seconds(pid: u32) -> Option<f64> {
    let own = process_cpu_seconds(pid)?;
    Some(own + children(pid).into_iter().filter_map(process_cpu_seconds).sum::<f64>())
}

fn process_cpu_seconds(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    let ticks: Vec<f64> = after_name.split_whitespace().skip(11).take(2).filter_map(|text| text.parse().ok()).collect();
    Some(ticks.iter().sum::<f64>() / CLOCK_TICKS_PER_S)
}

const ACKS_REGION: &str = "acks";
/// No multiple of what a node gathers for.
const ACK_PAUSE: Duration = Duration::from_millis(37);
const PROBE_REGION: &str = "probe";
const PROBE_EVERY: Duration = Duration::from_millis(20);
const VISIBLE_WITHIN: Duration = Duration::from_secs(60);
/// `sysconf(_SC_CLK_TCK)` on every Linux that Weir runs on.
const CLOCK_TICKS_PER_S: f64 = 100.0;
