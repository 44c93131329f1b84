//! Alerts on their way to a tool, measured from outside: how long from an event to a webhook, and whether any is lost while the webhook is away and
//! the node that sends dies.
//!
//! Real nodes with one rule, hosts whose every hit is an alert, a webhook in this process, and a sink made by `CREATE SINK`. The clock is this
//! machine's on both ends. At the end of an outage the books are compared: the rows of `alerts` and what the webhook has got.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;
use tokio_postgres::SimpleQueryMessage;
use weir_config::NodeConfig;
use weir_transport::Dialer;

use crate::agents::Target;
use crate::fleet::{FleetOptions, Random};
use crate::local::process::{Running, children, signal};
use crate::local::setup::{Setup, TENANT};
use crate::local::{self, LocalCluster};
use crate::probe::{at_share, connect};
use crate::runner::{self, RunningFleet};

pub mod command;
mod hits;
mod webhook;

use hits::{Hits, RULE};
use webhook::{Taken, Webhook};

/// How the way of an event is measured.
#[derive(Debug, Clone, Copy)]
pub struct LatencyOptions {
    /// Hits, one at a time.
    pub hits: u64,
    /// Events a second of a fleet beside them, in a second round; 0: no such round.
    pub rate: u64,
    /// Simulated hosts of that fleet.
    pub hosts: usize,
    /// Of the moments.
    pub seed: u64,
}

/// From the events of one round to the webhook.
#[derive(Debug, Clone, PartialEq)]
pub struct Latency {
    /// Events a second beside them.
    pub rate: u64,
    /// Milliseconds, sorted.
    pub ms: Vec<f64>,
    /// Hits that the webhook did not get in time.
    pub missing: usize,
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99) = (at_share(&self.ms, 0.5), at_share(&self.ms, 0.99));
        let max = self.ms.last().copied().unwrap_or(f64::NAN);
        write!(f, "{:>10} {:>6} {:>8} {p50:>8.0} {p99:>8.0} {max:>8.0}", self.rate, self.ms.len(), self.missing)
    }
}

/// Sends hits at random moments, without and with a fleet beside them.
pub async fn latency(
    program: &Path,
    dir: &Path,
    options: LatencyOptions,
    progress: impl Fn(&str),
) -> anyhow::Result<Vec<Latency>> {
    let (world, mut hits) = World::start(program, dir, 1, "", &progress).await?;
    let mut random = Random(options.seed | 1);
    let mut rounds = Vec::new();
    for rate in std::iter::once(0).chain((options.rate > 0).then_some(options.rate)) {
        let fleet = match rate {
            0 => None,
            rate => Some(world.load(options.hosts, rate).await?),
        };
        progress(&format!("{} hits beside {rate} events/s", options.hits));
        let before: BTreeSet<String> = hits.told.keys().cloned().collect();
        for _ in 0..options.hits {
            hits.rest(Duration::from_millis(50 + random.below(400))).await?;
            hits.tell().await?;
        }
        let told: BTreeMap<String, i64> =
            hits.told.iter().filter(|(container, _)| !before.contains(*container)).map(|(c, at)| (c.clone(), *at)).collect();
        let deadline = Instant::now() + WITHIN;
        let ms = loop {
            hits.rest(Duration::from_millis(200)).await?;
            let ms = latencies(&told, &world.webhook.taken());
            if ms.len() == told.len() || Instant::now() > deadline {
                break ms;
            }
        };
        rounds.push(Latency { rate, missing: told.len() - ms.len(), ms });
        if let Some(fleet) = fleet {
            fleet.stop().await?;
        }
    }
    hits.finish().await?;
    world.cluster.stop().await;
    Ok(rounds)
}

/// From a hit to its first request, sorted.
fn latencies(told: &BTreeMap<String, i64>, taken: &[Taken]) -> Vec<f64> {
    let mut first: BTreeMap<&str, i64> = BTreeMap::new();
    for one in taken {
        first.entry(&one.container).or_insert(one.at_ns);
    }
    let mut ms: Vec<f64> =
        told.iter().filter_map(|(container, at)| Some((first.get(container.as_str())? - at) as f64 / 1e6)).collect();
    ms.sort_by(f64::total_cmp);
    ms
}

/// What is done while the webhook is away.
#[derive(Debug, Clone, Copy)]
pub struct OutageOptions {
    /// How long it is away. After a third of it the node that sends is killed, after two thirds it is started again.
    pub away: Duration,
    /// Nodes.
    pub nodes: usize,
    /// Hits a second.
    pub hits: u64,
    /// Events a second of a fleet beside them; 0: none.
    pub rate: u64,
    /// Simulated hosts of that fleet.
    pub hosts: usize,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Books {
    /// Hits that were told once the rule was in force.
    pub hits: usize,
    /// Rows of `alerts` of them.
    pub alerts: usize,
    /// Keys that the webhook got.
    pub keys: usize,
    /// Requests that it took.
    pub requests: usize,
    /// Of them, those that it had got before.
    pub repeated: usize,
    /// Alerts that it did not get.
    pub lost: usize,
    /// Keys that are no alert's, requests without the key of their revision, and repeated ones that differ.
    pub strange: usize,
    /// From the webhook's return until it had got all.
    pub caught_up_ms: u128,
    /// The node that was killed.
    pub killed: String,
}

impl Books {
    /// Whether every hit is an alert, and every alert was got under one key.
    pub fn is_exact(&self) -> bool {
        (self.lost, self.strange) == (0, 0) && self.hits == self.alerts && self.keys == self.alerts && self.alerts > 0
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "killed           {:>12}, the node that sent", self.killed)?;
        writeln!(f, "hits told        {:>12}", self.hits)?;
        writeln!(f, "alerts           {:>12} by SQL", self.alerts)?;
        writeln!(f, "keys received    {:>12}", self.keys)?;
        writeln!(f, "requests         {:>12}, {} of them again, under the key that they had", self.requests, self.repeated)?;
        writeln!(f, "lost             {:>12}", self.lost)?;
        writeln!(f, "strange          {:>12}", self.strange)?;
        write!(f, "caught up within {:>12} ms of the webhook's return", self.caught_up_ms)
    }
}

/// Takes the webhook away for a while, under load, with the death of the node that sends.
pub async fn outage(program: &Path, dir: &Path, options: OutageOptions, progress: impl Fn(&str)) -> anyhow::Result<Books> {
    anyhow::ensure!(options.nodes >= 2, "one of at least two nodes can die");
    anyhow::ensure!(options.hits >= 1, "without hits there are no alerts: give at least 1 a second");
    let limits = "[alerts.limits]\nretry_ms_max = 5000\n";
    let (mut world, mut hits) = World::start(program, dir, options.nodes, limits, &progress).await?;
    let before: BTreeSet<String> = hits.told.keys().cloned().collect();
    let fleet = if options.rate > 0 { Some(world.load(options.hosts, options.rate).await?) } else { None };
    hits_for(&mut hits, options.hits, AROUND).await?;
    progress(&format!("the webhook is away for {} s", options.away.as_secs()));
    world.webhook.close().await;
    hits_for(&mut hits, options.hits, options.away / 3).await?;
    let (at, killed) = world.kill_sender().await?;
    progress(&format!("{killed} sent, and is killed"));
    hits_for(&mut hits, options.hits, options.away / 3).await?;
    world.restart(program, at).await?;
    progress(&format!("{killed} is started again"));
    hits_for(&mut hits, options.hits, options.away / 3).await?;
    world.webhook.open().await?;
    let back = Instant::now();
    progress("the webhook is back");
    hits_for(&mut hits, options.hits, AROUND).await?;
    let told = hits.finish().await?;
    if let Some(fleet) = fleet {
        fleet.stop().await?;
    }
    // The survivors' answers: the address of the one that was killed is another now.
    let sql = world.cluster.addresses[usize::from(at == 0)].sql;
    let deadline = Instant::now() + WITHIN;
    let mut books = loop {
        let alerts = alerts(sql).await?;
        let mut books = compare(&told, &before, &alerts, &world.webhook.taken());
        books.caught_up_ms = back.elapsed().as_millis();
        if books.is_exact() || Instant::now() > deadline {
            break books;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    books.killed = killed;
    world.cluster.stop().await;
    Ok(books)
}

/// Hits at an even pace for a while.
async fn hits_for(hits: &mut Hits, per_second: u64, lasts: Duration) -> anyhow::Result<()> {
    let (begun, pause) = (Instant::now(), Duration::from_secs(1) / u32::try_from(per_second).unwrap_or(u32::MAX).max(1));
    while begun.elapsed() < lasts {
        hits.tell().await?;
        hits.rest(pause).await?;
    }
    Ok(())
}

/// Ids and containers of all alerts of the rule.
async fn alerts(sql: std::net::SocketAddr) -> anyhow::Result<Vec<(String, String)>> {
    let client = connect(&format!("postgres://weir@{sql}/weir")).await?;
    let query = format!("select alert_id, container_id from alerts where rule = '{RULE}'");
    let told = client.simple_query(&query).await.with_context(|| format!("asking {query:?}"))?;
    let rows = told.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((row.get(0).unwrap_or_default().to_owned(), row.get(1).unwrap_or_default().to_owned()))
        }
        _ => None,
    });
    Ok(rows.collect())
}

/// `before` are hits that were told before it was known that the rule is in force: their alerts must be got, but they need be none.
fn compare(told: &BTreeMap<String, i64>, before: &BTreeSet<String>, alerts: &[(String, String)], taken: &[Taken]) -> Books {
    let ids: BTreeSet<&str> = alerts.iter().map(|(id, _)| id.as_str()).collect();
    let counted = |container: &str| told.contains_key(container) && !before.contains(container);
    let of_before: BTreeSet<&str> =
        alerts.iter().filter(|(_, container)| before.contains(container)).map(|(id, _)| id.as_str()).collect();
    let mut books = Books {
        hits: told.keys().filter(|container| counted(container)).count(),
        alerts: alerts.iter().filter(|(_, container)| counted(container)).count(),
        requests: taken.len(),
        ..Books::default()
    };
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    let mut keys: BTreeSet<&str> = BTreeSet::new();
    for one in taken {
        keys.insert(&one.alert_id);
        books.strange += usize::from(one.key != format!("{}:{}", one.alert_id, one.revision));
        if let Some(hash) = seen.insert(&one.key, one.hash) {
            books.repeated += 1;
            books.strange += usize::from(hash != one.hash);
        }
    }
    books.lost = ids.difference(&keys).count();
    books.strange += keys.difference(&ids).count();
    books.keys = keys.difference(&of_before).count();
    books
}

/// A cluster with the rule and the sink, and where the sink is.
struct World {
    cluster: LocalCluster,
    setup: Setup,
    target: Target,
    webhook: Webhook,
}

impl World {
    /// Starts it, and waits until a hit has come all the way.
    async fn start(
        program: &Path,
        dir: &Path,
        nodes: usize,
        more: &str,
        progress: &impl Fn(&str),
    ) -> anyhow::Result<(Self, Hits)> {
        let setup = Setup::write(&local::on_free_ports(nodes, 1), dir)?;
        hits::write_rule(&setup, dir, more)?;
        let cluster = LocalCluster::start(program, &setup).await?;
        let target = Target {
            nodes: cluster.quic(),
            authority: setup.authority.clone(),
            tenant: TENANT.to_owned(),
            dialer: Some(Dialer::default()),
        };
        let webhook = Webhook::start().await?;
        let client = connect(&format!("postgres://weir@{}/weir", cluster.addresses[0].sql)).await?;
        let create = format!("CREATE SINK loadtest FORMAT webhook TO 'http://{}/' WITH (rules = '{RULE}')", webhook.address);
        client.batch_execute(&create).await.with_context(|| format!("asking {create:?}"))?;
        let mut hits = Hits::start(&target, HIT_HOSTS)?;
        let deadline = Instant::now() + WITHIN;
        while webhook.taken().is_empty() {
            anyhow::ensure!(
                Instant::now() < deadline,
                "no alert came within {} s: see {}",
                WITHIN.as_secs(),
                setup.logs().display()
            );
            hits.tell().await?;
            hits.rest(Duration::from_millis(500)).await?;
        }
        progress("the first alert has come");
        Ok((Self { cluster, setup, target, webhook }, hits))
    }

    async fn load(&self, hosts: usize, rate: u64) -> anyhow::Result<RunningFleet> {
        runner::start(FleetOptions { hosts, rate, seed: 7, start_ns: 0 }, self.target.clone()).await
    }

    /// Kills the node that sends, with its workers.
    async fn kill_sender(&mut self) -> anyhow::Result<(usize, String)> {
        let (node, _) = weir_cluster::alerts::outbox(&NodeConfig::load(&self.setup.node_configs[0])?).await?;
        let node = node.context("no node has sent")?;
        let at = self.setup.node_configs.iter().position(|path| path.file_stem().is_some_and(|stem| *stem == *node));
        let at = at.with_context(|| format!("there is no node {node:?}"))?;
        let pid = self.cluster.nodes[at].pid().context("the node ended by itself")?;
        let all: Vec<u32> = children(pid).into_iter().chain([pid]).collect();
        signal(&all, rustix::process::Signal::KILL);
        self.cluster.nodes[at].ended().await;
        Ok((at, node))
    }

    async fn restart(&mut self, program: &Path, at: usize) -> anyhow::Result<()> {
        let mut node = Running::start(program, "node", &self.setup.node_configs[at], &self.setup.logs()).await?;
        self.cluster.addresses[at] = local::parse_ready(&node.first_line().await?)?;
        self.cluster.nodes[at] = node;
        Ok(())
    }
}

/// Enough that no host comes near what is shown of one (4,096 alerts) in an outage of an hour.
const HIT_HOSTS: usize = 8;
/// Before the outage and after it.
const AROUND: Duration = Duration::from_secs(5);
/// Generous: a debug build on a busy machine.
const WITHIN: Duration = Duration::from_secs(180);

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(alert_id: &str, revision: u64, hash: u64) -> Taken {
        let key = format!("{alert_id}:{revision}");
        Taken { at_ns: 3_000_000, key, alert_id: alert_id.to_owned(), revision, container: format!("c-{alert_id}"), hash }
    }

    #[test]
    fn books_are_exact_only_if_every_alert_came_under_its_key() {
        let told = BTreeMap::from([("c-w".to_owned(), 0), ("c-a".to_owned(), 1_000_000), ("c-b".to_owned(), 2_000_000)]);
        let before = BTreeSet::from(["c-w".to_owned()]);
        let alerts = ["w", "a", "b"].map(|id| (id.to_owned(), format!("c-{id}")));
        let all = [taken("w", 1, 1), taken("a", 1, 2), taken("b", 1, 3), taken("a", 1, 2)];
        let books = compare(&told, &before, &alerts, &all);
        assert!(books.is_exact(), "{books}");
        assert_eq!((books.hits, books.keys, books.requests, books.repeated), (2, 2, 4, 1));
        assert_eq!(compare(&told, &before, &alerts, &all[..2]).lost, 1);
        let differs = [all.as_slice(), &[taken("b", 1, 9)]].concat();
        assert_eq!(compare(&told, &before, &alerts, &differs).strange, 1);
        let unknown = [all.as_slice(), &[taken("x", 1, 9)]].concat();
        assert_eq!(compare(&told, &before, &alerts, &unknown).strange, 1);
        assert!(!compare(&told, &before, &alerts[..2], &all).is_exact(), "a hit without an alert");
        assert_eq!(latencies(&told, &all), [1.0, 2.0, 3.0]);
    }
}
