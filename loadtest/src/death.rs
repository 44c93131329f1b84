//! The death of one node at full load, measured: how long acknowledgements and answers are missing.
//!
//! A fleet loads a cluster. One agent on each node sends a frame, waits for its acknowledgement, and so on; a client of the first node
//! asks for the tick. Then the last node and its workers are killed with SIGKILL and stay away. At the end the others have every event.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_postgres::NoTls;
use weir_schema::Host;
use weir_transport::Dialer;

use crate::agents::{SimAgent, Target, random_epoch};
use crate::fleet::{Books, FleetOptions};
use crate::local::process::{children, signal};
use crate::local::setup::{Setup, TENANT};
use crate::local::{self, LocalCluster};
use crate::probe::{number, probe_event, wait_until_counted};
use crate::runner::{self, now_ns};

/// What is done.
#[derive(Debug, Clone, Copy)]
pub struct DeathOptions {
    /// Nodes, of which the last one dies.
    pub nodes: usize,
    /// Simulated hosts.
    pub hosts: usize,
    /// Events per second that the fleet makes.
    pub rate: u64,
    /// How long before the death, and how long after it.
    pub each: Duration,
}

/// What was seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// By the node that an agent began at: its longest time between two acknowledgements before the death, and after it.
    pub acks: Vec<(Duration, Duration)>,
    /// The same of an answer with a newer tick.
    pub answers: (Duration, Duration),
    /// The fleet's books.
    pub books: Books,
    /// Events that the views' side has counted at the end.
    pub counted: u64,
}

/// Starts a cluster of `program`, loads it, kills a node, and looks on.
pub async fn run(program: &Path, options: DeathOptions) -> anyhow::Result<Seen> {
    anyhow::ensure!(options.nodes >= 2, "one of at least two nodes can die");
    let dir = tempfile::Builder::new().prefix("weir-death-").tempdir()?;
    let setup = Setup::write(&local::on_free_ports(options.nodes, 1), dir.path())?;
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
    let sql = Arc::new(sql);

    let started = Instant::now();
    let fleet = FleetOptions { hosts: options.hosts, rate: options.rate, seed: 7, start_ns: 0 };
    let fleet = runner::start(fleet, target.clone()).await?;
    let (over, ends) = watch::channel(false);
    let acking: Vec<_> = (0..options.nodes).map(|node| tokio::spawn(acks(target.clone(), node, ends.clone()))).collect();
    let answering = tokio::spawn(answers(Arc::clone(&sql), ends));
    tokio::time::sleep(options.each).await;
    let mut nodes = cluster.nodes;
    let victim = nodes.pop().expect("there are two at least");
    let pid = victim.pid().ok_or_else(|| anyhow::anyhow!("the node ended by itself"))?;
    let all: Vec<u32> = children(pid).into_iter().chain([pid]).collect();
    let died = Instant::now();
    signal(&all, Signal::KILL);
    victim.kill().await;
    tokio::time::sleep(options.each).await;
    over.send_replace(true);
    let mut gaps = Vec::new();
    for task in acking {
        gaps.push(longest_gaps(&task.await??, died));
    }
    let answers = longest_gaps(&answering.await??, died);
    let books = fleet.stop().await?;
    let (counted, _) = wait_until_counted(&sql, books.events, started).await?;
    LocalCluster { nodes, addresses: Vec::new() }.stop().await;
    Ok(Seen { acks: gaps, answers, books, counted })
}

/// When frames of an agent that begins at `node` were acknowledged.
async fn acks(target: Target, node: usize, ends: watch::Receiver<bool>) -> anyhow::Result<Vec<Instant>> {
    let host = Arc::new(Host { host: format!("acks-{node}").into(), simulated: true, ..Host::default() });
    let mut agent = SimAgent::start(&target, "acks", host, random_epoch(), node)?;
    let mut at = Vec::new();
    while !*ends.borrow() {
        agent.acked(&probe_event(now_ns(), at.len() as u64, 443), WITHIN).await?;
        at.push(Instant::now());
        tokio::time::sleep(PAUSE).await;
    }
    agent.finish(WITHIN).await?;
    Ok(at)
}

/// When an answer had a newer tick than any before.
async fn answers(sql: Arc<tokio_postgres::Client>, ends: watch::Receiver<bool>) -> anyhow::Result<Vec<Instant>> {
    let (mut at, mut newest) = (Vec::new(), 0);
    while !*ends.borrow() {
        // While there are no workers a query may end with an error: no answer.
        let asked = tokio::time::timeout(WITHIN, number(&sql, "show weir.tick")).await;
        if let Some(tick) = asked.ok().and_then(Result::ok).filter(|tick| *tick > newest) {
            newest = tick;
            at.push(Instant::now());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(at)
}

/// The longest times between two of these moments, before `died` and after it.
fn longest_gaps(at: &[Instant], died: Instant) -> (Duration, Duration) {
    let longest = |after: bool| {
        let gaps = at.windows(2).filter(|pair| (pair[1] > died) == after).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    };
    (longest(false), longest(true))
}

const WITHIN: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
