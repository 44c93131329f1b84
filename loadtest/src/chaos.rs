//! Chaos: real nodes are killed, frozen, cut off and started again under load, while a simulated fleet keeps exact books.
//!
//! Agents and nodes reach a node through a relay of our own (`relay.rs`), which needs no rights; a full disk needs root, who may mount a
//! small one.
//!
//! Everything random comes from the seed, except what the machine's own timing adds. After the last round all nodes run, the fleet's last event
//! is acknowledged, and the cluster must have every event once: in the agents' counts, in the record, and in the views, which are
//! compared with those of a node that reads the whole log anew without any checkpoint.
//!
//! Not done here: clock steps, which would be the whole machine's; and the shared directory is always there, but for its space.

mod disk;
mod network;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::time::Instant;
use tokio_postgres::{NoTls, SimpleQueryMessage};
use weir_transport::Dialer;

use disk::SmallDisk;
use network::{Pids, Relays};

use crate::agents::Target;
use crate::fleet::{Books, FleetOptions, Random};
use crate::local::process::{Running, children, signal};
use crate::local::setup::{Setup, TENANT};
use crate::local::{self, parse_ready};
use crate::relay::Weather;
use crate::runner;

/// What is done.
#[derive(Debug, Clone, Copy)]
pub struct ChaosOptions {
    /// Faults, one after the other.
    pub rounds: u32,
    /// Nodes.
    pub nodes: usize,
    /// Simulated hosts.
    pub hosts: usize,
    /// Events a second.
    pub rate: u64,
    /// Which faults, when, to whom.
    pub seed: u64,
}

/// What is done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9` of the node; its workers end with it. Started again after a while.
    KillNode,
    /// `kill -9` of its worker child.
    KillWorkers,
    /// SIGSTOP of the node and its workers, then SIGCONT.
    FreezeNode,
    /// SIGSTOP of its worker child, then SIGCONT if it is still there.
    FreezeWorkers,
    /// `kill -9` of every node at once.
    KillAll,
    /// Neither agents nor other nodes reach the node, and it reaches no other node. The shared directory it does reach.
    CutOff,
    /// The agents' datagrams are lost, doubled, late and out of order, to and from every node.
    BadNetwork,
    /// The disk of logs, chain, checkpoints and archive is full.
    FullDisk,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Faults by kind: how many, and the longest time until the answers moved on, milliseconds.
    pub faults: BTreeMap<Fault, (u32, u64)>,
    /// The fleet's books.
    pub books: Books,
    /// Events by the agents' counts.
    pub counted: u64,
    /// Rows of `events` and `samples`.
    pub stored: u64,
    /// Events that are in the record more than once.
    pub twice: u64,
    /// Events that agents told as lost.
    pub lost: u64,
    /// Views that differ from a plain recount.
    pub differing: Vec<String>,
}

impl Report {
    /// Whether everything is there, once.
    pub fn is_exact(&self) -> bool {
        let told = self.books.events;
        self.counted == told && self.stored == told && (self.twice, self.lost) == (0, 0) && self.differing.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<16} {:>7} {:>26}", "fault", "rounds", "longest gap in answers, s")?;
        for (fault, (rounds, gap_ms)) in &self.faults {
            writeln!(f, "{:<16} {rounds:>7} {:>26.1}", format!("{fault:?}"), *gap_ms as f64 / 1_000.0)?;
        }
        writeln!(f, "acknowledged     {:>12} events", self.books.events)?;
        writeln!(f, "counted          {:>12} by the views", self.counted)?;
        writeln!(f, "stored           {:>12} in the record, {} of them twice", self.stored, self.twice)?;
        writeln!(f, "lost by name     {:>12}", self.lost)?;
        write!(f, "views against a plain recount: {}", if self.differing.is_empty() { "equal" } else { "DIFFERENT" })?;
        self.differing.iter().try_for_each(|view| write!(f, " {view}"))
    }
}

/// Starts a cluster of `program` below `dir` and does it. `progress` is told of every round.
pub async fn run(program: &Path, dir: &Path, options: ChaosOptions, progress: impl Fn(&str)) -> anyhow::Result<Report> {
    let setup = Setup::write(&local::on_free_ports(options.nodes, 1), dir)?;
    let disk = SmallDisk::mount(&setup.shared());
    if disk.is_none() {
        progress("the disk is not filled: only root may mount a small one");
    }
    let pids = Pids::default();
    let mut relays = Vec::new();
    for (at, config) in setup.node_configs.iter().enumerate() {
        relays.push(Relays::start(config, at, options.seed, &pids).await?);
    }
    let mut nodes = Vec::new();
    for config in &setup.node_configs {
        nodes.push(Node::start(program, config, &setup.logs()).await?);
    }
    let target = Target {
        nodes: relays.iter().map(|relays| relays.agents.address).collect(),
        authority: setup.authority.clone(),
        tenant: TENANT.to_owned(),
        dialer: Some(Dialer::default()),
    };
    answers_move(&nodes, 0, Instant::now()).await?;
    let fleet = FleetOptions { hosts: options.hosts, rate: options.rate, seed: options.seed, start_ns: 0 };
    let fleet = runner::start(fleet, target).await?;
    let mut report = Report::default();
    let mut random = Random(options.seed | 1);
    for round in 1..=options.rounds {
        let (fault, at, lasts) = draw(&mut random, options.nodes, disk.is_some());
        pids.note(nodes.iter().map(Node::pid).collect());
        let before = newest_tick(&nodes).await;
        let begun = Instant::now();
        match fault {
            Fault::CutOff => {
                pids.cut_off(Some(at));
                relays[at].set(Weather { cut: true, ..Weather::default() });
            }
            Fault::BadNetwork => {
                let bad = Weather { cut: false, lost: 150, doubled: 100, late: Duration::from_millis(80) };
                relays.iter().for_each(|relays| relays.agents.set(bad));
            }
            _ => {}
        }
        let full = disk.as_ref().filter(|_| fault == Fault::FullDisk).map(SmallDisk::fill).transpose()?;
        apply(&mut nodes, fault, at, lasts).await?;
        drop(full);
        pids.cut_off(None);
        relays.iter().for_each(|relays| relays.set(Weather::default()));
        let gap_ms = answers_move(&nodes, before, begun).await?;
        let (count, longest) = report.faults.entry(fault).or_default();
        (*count, *longest) = (*count + 1, (*longest).max(gap_ms));
        let told = fleet.books().events;
        progress(&format!(
            "round {round}: {fault:?} of node {} for {lasts:?}, answers after {gap_ms} ms, {told} events told",
            at + 1
        ));
        tokio::time::sleep(Duration::from_millis(500 + random.below(2_500))).await;
    }
    progress("the last events");
    report.books = fleet.stop().await?;
    check(&mut report, program, &setup, nodes).await?;
    Ok(report)
}

/// A node that can be killed and started again at the same addresses.
struct Node {
    running: Option<Running>,
    addresses: local::Addresses,
    program: PathBuf,
    config: PathBuf,
    logs: PathBuf,
}

impl Node {
    async fn start(program: &Path, config: &Path, logs: &Path) -> anyhow::Result<Self> {
        let mut running = Running::start(program, "node", config, logs).await?;
        let addresses = parse_ready(&running.first_line().await?)?;
        let (program, config, logs) = (program.to_owned(), config.to_owned(), logs.to_owned());
        Ok(Self { running: Some(running), addresses, program, config, logs })
    }

    async fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.kill().await;
        }
    }

    async fn restart(&mut self) -> anyhow::Result<()> {
        *self = Self::start(&self.program, &self.config, &self.logs).await?;
        Ok(())
    }

    fn pid(&self) -> Option<u32> {
        self.running.as_ref().and_then(Running::pid)
    }
}

async fn apply(nodes: &mut [Node], fault: Fault, at: usize, lasts: Duration) -> anyhow::Result<()> {
    let pid = nodes[at].pid();
    let workers = pid.map(children).unwrap_or_default();
    match fault {
        Fault::KillNode => {
            nodes[at].kill().await;
            tokio::time::sleep(lasts).await;
            nodes[at].restart().await?;
        }
        Fault::KillWorkers => signal(&workers, Signal::KILL),
        Fault::FreezeNode | Fault::FreezeWorkers => {
            let whole = pid.filter(|_| fault == Fault::FreezeNode);
            let frozen: Vec<u32> = whole.into_iter().chain(workers).collect();
            signal(&frozen, Signal::STOP);
            tokio::time::sleep(lasts).await;
            signal(&frozen, Signal::CONT);
        }
        Fault::KillAll => {
            for node in &mut *nodes {
                node.kill().await;
            }
            tokio::time::sleep(lasts / 4).await;
            for node in nodes {
                node.restart().await?;
            }
        }
        // Done to what is around the nodes.
        Fault::CutOff | Fault::BadNetwork | Fault::FullDisk => tokio::time::sleep(lasts).await,
    }
    Ok(())
}

/// Waits until some node answers at a later tick than `before`; milliseconds since `begun`.
async fn answers_move(nodes: &[Node], before: u64, begun: Instant) -> anyhow::Result<u64> {
    while begun.elapsed() < ANSWERS_WITHIN {
        if newest_tick(nodes).await > before {
            return Ok(begun.elapsed().as_millis() as u64);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("no answer within {} s: see the nodes' logs", ANSWERS_WITHIN.as_secs())
}

/// The newest tick that any node answers at.
async fn newest_tick(nodes: &[Node]) -> u64 {
    let mut newest = 0;
    for node in nodes {
        let asked = tokio::time::timeout(Duration::from_secs(2), rows(node.addresses.sql, "show weir.tick"));
        if let Ok(Ok(lines)) = asked.await {
            newest = newest.max(lines.first().and_then(|line| line.parse().ok()).unwrap_or(0));
        }
    }
    newest
}

/// Compares what the cluster has with the books, and with a node that reads everything anew.
async fn check(report: &mut Report, program: &Path, setup: &Setup, nodes: Vec<Node>) -> anyhow::Result<()> {
    let sql = nodes[0].addresses.sql;
    let told = report.books.events;
    report.counted = wait_until_counted(sql, told).await?;
    report.stored = number(sql, "select (select count(*) from events) + (select count(*) from samples)").await?;
    report.twice = number(sql, "select count(*) - count(distinct event_id) from events").await?;
    report.lost = number(sql, "select coalesce(sum(lost), 0) from losses where agent is not null").await?;
    let kept = views(sql).await?;
    for mut node in nodes {
        node.kill().await;
    }
    // Without checkpoints and signs of life: a first start of one node over the same chain and logs.
    // At log level `object` they are where chain and logs are.
    let places = [setup.shared().join("object"), setup.shared()];
    let place = places.iter().find(|place| place.join("cluster").is_dir()).context("the nodes left no signs of life")?;
    std::fs::rename(place.join("cluster"), place.join("cluster.aside")).context("setting the checkpoints aside")?;
    let mut alone = Node::start(program, &setup.node_configs[0], &setup.logs()).await?;
    wait_until_counted(alone.addresses.sql, told).await?;
    let recounted = views(alone.addresses.sql).await?;
    report.differing =
        kept.iter().filter(|(view, rows)| recounted.get(*view) != Some(*rows)).map(|(view, _)| view.clone()).collect();
    alone.kill().await;
    Ok(())
}

async fn wait_until_counted(sql: SocketAddr, told: u64) -> anyhow::Result<u64> {
    let begun = Instant::now();
    loop {
        // Workers may be started anew just now: a question that fails is asked again.
        let counted = number(sql, "select coalesce(sum(events), 0) from agents").await.unwrap_or(0);
        if counted >= told || begun.elapsed() > ANSWERS_WITHIN {
            return Ok(counted);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The rows of the views that do not change with time alone, sorted.
async fn views(sql: SocketAddr) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let mut views = BTreeMap::new();
    for view in ["region_connections", "service_map", "new_edges", "agents", "hosts", "losses"] {
        let mut lines = rows(sql, &format!("select * from {view}")).await.with_context(|| format!("reading {view}"))?;
        lines.sort();
        views.insert(view.to_owned(), lines);
    }
    Ok(views)
}

async fn number(sql: SocketAddr, query: &str) -> anyhow::Result<u64> {
    Ok(rows(sql, query).await?.first().and_then(|line| line.parse().ok()).unwrap_or(0))
}

/// Rows as text, cells apart by `|`.
async fn rows(sql: SocketAddr, query: &str) -> anyhow::Result<Vec<String>> {
    let (client, connection) = tokio_postgres::connect(&format!("postgres://weir@{sql}/weir"), NoTls).await?;
    let connection = tokio::spawn(connection);
    let answer = client.simple_query(query).await;
    connection.abort();
    let line = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|cell| row.get(cell).unwrap_or("NULL")).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    Ok(answer?.iter().filter_map(line).collect())
}

/// Which fault, on which node, for how long.
fn draw(random: &mut Random, nodes: usize, disk: bool) -> (Fault, usize, Duration) {
    let fault = match random.below(16) {
        0..=3 => Fault::KillNode,
        4 | 5 => Fault::KillWorkers,
        6 | 7 => Fault::FreezeNode,
        8 => Fault::FreezeWorkers,
        9 => Fault::KillAll,
        10..=12 => Fault::CutOff,
        13 | 14 if disk => Fault::FullDisk,
        _ => Fault::BadNetwork,
    };
    (fault, random.below(nodes as u64) as usize, Duration::from_millis(500 + random.below(6_000)))
}

const ANSWERS_WITHIN: Duration = Duration::from_secs(120);
