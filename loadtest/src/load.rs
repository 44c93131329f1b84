//! A simulated fleet under measurement: one scenario, exact books at its end, and what each part has used.
//!
//! The cluster is one of its own, on this machine, or one that runs already; of the latter no CPU and memory can be told. Everything of
//! a local run shares the machine: fleet, TLS, log, workers, SQL, and the probes, whose CPU is told with the fleet's.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;
use weir_transport::Dialer;

use crate::agents::Target;
use crate::facts::{process_cpu_s, status_kib};
use crate::fleet::FleetOptions;
use crate::local::process::children;
use crate::local::setup::{Setup, TENANT};
use crate::local::{self, LocalCluster};
use crate::probe::{self, COUNTED, Freshness, at_share, number};
use crate::runner::{self, Progress};
use crate::scenario::{Scenario, Search};

/// What the fleet does.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// What it goes through.
    pub scenario: Scenario,
    /// Simulated hosts.
    pub hosts: usize,
    /// Events per second of the whole fleet, on average.
    pub rate: u64,
    /// How long.
    pub lasts: Duration,
    /// Everything random of the fleet comes from it.
    pub seed: u64,
}

/// A cluster that a measurement starts for itself.
#[derive(Debug, Clone, Copy)]
pub struct OwnCluster<'a> {
    /// The program `weir`.
    pub program: &'a Path,
    /// Nodes.
    pub nodes: usize,
    /// Workers per node.
    pub workers: usize,
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct Report {
    /// What was asked for.
    pub options: LoadOptions,
    /// The fleet's books, and what its agents have seen.
    pub fleet: Progress,
    /// Events that the views' side has counted at the end, and the time from the first event until then. None without SQL.
    pub counted: Option<(u64, Duration)>,
    /// A frame sent to its acknowledgement, milliseconds, sorted.
    pub acks_ms: Vec<f64>,
    /// By view; none without SQL.
    pub freshness: Vec<Freshness>,
    /// Rows of `losses`, summed, of the fleet's agents. None without SQL.
    pub lost: Option<u64>,
    /// What this process, the nodes and their workers have used. Of the latter two only for a cluster of its own.
    pub used: [Option<Used>; 3],
}

/// What processes have used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Used {
    /// CPU seconds, from start to end of the load.
    pub cpu_s: f64,
    /// Peak memory.
    pub peak_bytes: u64,
}

impl Report {
    /// Every event is acknowledged, counted once, and none lost or refused, as far as can be told.
    pub fn is_exact(&self) -> bool {
        let events = self.fleet.books.events;
        let counted = self.counted.is_none_or(|(counted, _)| counted == events);
        self.fleet.acked == events && counted && self.fleet.refused == 0 && self.lost.is_none_or(|lost| lost == 0)
    }

    /// The worst p99 of all views.
    pub fn p99_ms(&self) -> f64 {
        self.freshness.iter().map(|view| view.at(0.99)).fold(0.0, f64::max)
    }

    /// Whether the fleet itself kept up: a machine may be too small for it, and sessions without room hold it back.
    pub fn keeps_pace(&self) -> bool {
        self.fleet.behind_max <= BEHIND_MAX
    }
}

/// Starts a cluster of its own, loads it, and measures. `say` is told once a second.
pub async fn run_own(own: OwnCluster<'_>, options: LoadOptions, say: impl FnMut(&str)) -> anyhow::Result<Report> {
    let dir = tempfile::Builder::new().prefix("weir-load-").tempdir()?;
    let setup = Setup::write(&local::on_free_ports(own.nodes, own.workers), dir.path())?;
    let cluster = LocalCluster::start(own.program, &setup).await?;
    let target = Target {
        nodes: cluster.quic(),
        authority: setup.authority.clone(),
        tenant: TENANT.to_owned(),
        dialer: Some(Dialer::default()),
    };
    let url = format!("postgres://weir@{}/weir", cluster.addresses[0].sql);
    let nodes: Vec<u32> = cluster.nodes.iter().filter_map(local::process::Running::pid).collect();
    let measured = Box::pin(run(&target, Some(&url), &nodes, options, say)).await;
    cluster.stop().await;
    measured
}

/// Loads the nodes of `target` and measures; `sql` is the URL of one of them, `nodes` the processes that are of this machine.
pub async fn run(
    target: &Target,
    sql: Option<&str>,
    nodes: &[u32],
    options: LoadOptions,
    mut say: impl FnMut(&str),
) -> anyhow::Result<Report> {
    let client = match sql {
        Some(url) => Some(probe::connect(url).await?),
        None => None,
    };
    // A cluster that runs already may have counted earlier fleets.
    let before = match &client {
        Some(client) => (number(client, COUNTED).await?, number(client, LOST).await?),
        None => (0, 0),
    };
    let parts = || [vec![std::process::id()], nodes.to_vec(), nodes.iter().flat_map(|node| children(*node)).collect()];
    let (started, cpu_before) = (Instant::now(), parts().map(|pids| cpu_s(&pids)));
    let fleet_options = FleetOptions { hosts: options.hosts, rate: options.rate, seed: options.seed, start_ns: 0 };
    let fleet = runner::start_scenario(fleet_options, options.scenario, target.clone()).await?;
    // Certificates and sessions are ready.
    let begun = Instant::now();
    let progress = fleet.progress();
    let freshness = async {
        match sql {
            Some(url) => probe::freshness(url, target, options.lasts).await,
            None => Ok(Vec::new()),
        }
    };
    let tell = async {
        let (mut every, mut last) = (tokio::time::interval(Duration::from_secs(1)), 0);
        every.tick().await;
        while begun.elapsed() < options.lasts {
            every.tick().await;
            let progress = progress.borrow().clone();
            let made = progress.books.events;
            say(&format!(
                "{:>4} s  made {made} (+{}), acknowledged {}, {} agents anew",
                begun.elapsed().as_secs(),
                made - last,
                progress.acked,
                progress.restarts
            ));
            last = made;
        }
        // Probes may wait longer for their last rows; the load ends on time.
        fleet.finish().await
    };
    let (freshness, acks_ms, fleet) = tokio::join!(freshness, probe::acks(target, options.lasts), tell);
    let (freshness, acks_ms, fleet) = (freshness?, acks_ms?, fleet?);
    let (mut counted, mut lost) = (None, None);
    if let Some(client) = &client {
        let (all, took) = probe::wait_until_counted(client, before.0 + fleet.books.events, started).await?;
        counted = Some((all.saturating_sub(before.0), took));
        lost = Some(number(client, LOST).await.context("asking for losses")?.saturating_sub(before.1));
    }
    let mut used = [None; 3];
    for ((used, pids), before) in used.iter_mut().zip(parts()).zip(cpu_before) {
        let peak = pids.iter().filter_map(|pid| status_kib(*pid, "VmHWM:")).sum::<u64>() * 1_024;
        *used = (!pids.is_empty()).then(|| Used { cpu_s: cpu_s(&pids) - before, peak_bytes: peak });
    }
    Ok(Report { options, fleet, counted, acks_ms, freshness, lost, used })
}

fn cpu_s(pids: &[u32]) -> f64 {
    pids.iter().filter_map(|pid| process_cpu_s(*pid)).sum()
}

/// Looks for the highest average rate at which every view's p99 stays within `p99_ms`, the books are exact, and the fleet keeps pace.
/// Each trial has a new cluster.
pub async fn find_max(
    own: OwnCluster<'_>,
    options: LoadOptions,
    p99_ms: f64,
    mut say: impl FnMut(&str),
) -> anyhow::Result<(Search, Option<Report>)> {
    let (mut search, mut best) = (Search::new(options.rate), None);
    while let Some(rate) = search.next_rate() {
        let report = Box::pin(run_own(own, LoadOptions { rate, ..options }, |_| {})).await?;
        let reasons = [
            (report.p99_ms() <= p99_ms, "too late"),
            (report.is_exact(), "books differ"),
            (report.keeps_pace(), "the fleet fell behind"),
        ];
        let broken: Vec<&str> = reasons.into_iter().filter(|(holds, _)| !holds).map(|(_, why)| why).collect();
        let verdict = if broken.is_empty() { "holds".to_owned() } else { broken.join(", ") };
        say(&format!("{rate} events/s: p99 {:.0} ms, made {}: {verdict}", report.p99_ms(), report.fleet.books.events));
        search.note(rate, broken.is_empty());
        if broken.is_empty() {
            best = Some(report);
        }
    }
    Ok((search, best))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LoadOptions { scenario, hosts, rate, lasts, .. } = self.options;
        let (books, fleet) = (self.fleet.books, &self.fleet);
        let (name, seconds) = (scenario.name(), lasts.as_secs());
        writeln!(f, "asked for        {name}: {rate} events/s of {hosts} hosts for {seconds} s")?;
        writeln!(f, "made             {} events, {} connections, {} refused", books.events, books.connections, books.refused)?;
        writeln!(
            f,
            "acknowledged     {} events, {} frames sent again, {} events refused",
            fleet.acked, fleet.resent, fleet.refused
        )?;
        if let Some((counted, took)) = self.counted {
            let per_second = counted as f64 / took.as_secs_f64();
            writeln!(f, "counted in views {counted} events in {:.1} s: {per_second:.0} events/s", took.as_secs_f64())?;
        }
        if let Some(lost) = self.lost {
            writeln!(f, "lost             {lost} events")?;
        }
        let two = |sorted: &[f64]| {
            format!("{:.0} ms p50, {:.0} ms p99, {} times", at_share(sorted, 0.5), at_share(sorted, 0.99), sorted.len())
        };
        writeln!(f, "frame to ack     {}", two(&self.acks_ms))?;
        for view in &self.freshness {
            let (p50, p99, all) = (view.at(0.5), view.at(0.99), view.ms.len() + view.missing);
            writeln!(
                f,
                "event to row     {p50:.0} ms p50, {p99:.0} ms p99, {all} times in {}, {} missing",
                view.view, view.missing
            )?;
        }
        if fleet.restarts > 0 {
            let mut sorted = fleet.welcomed_ms.clone();
            sorted.sort_by(f64::total_cmp);
            // One that starts anew again, or ends, before a node has welcomed it has no time of its own.
            let welcomes = if sorted.is_empty() { "not seen".to_owned() } else { two(&sorted) };
            writeln!(f, "started anew     {} agents; start to welcome {welcomes}", fleet.restarts)?;
        }
        for (part, used) in ["fleet and probes", "nodes", "workers"].iter().zip(self.used) {
            let Some(Used { cpu_s, peak_bytes }) = used else { continue };
            let each = cpu_s * 1e6 / books.events.max(1) as f64;
            writeln!(f, "{part:<16} {cpu_s:.1} s CPU, {each:.2} us per event, {:.0} MB at most", peak_bytes as f64 / 1e6)?;
        }
        let verdict = if self.is_exact() { "exact" } else { "NOT EXACT" };
        write!(f, "books            {verdict}")
    }
}

/// More than a busy machine's hiccup.
const BEHIND_MAX: Duration = Duration::from_secs(1);
const LOST: &str = "select coalesce(sum(lost), 0) from losses where agent like 'sim-%'";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Books;

    #[test]
    fn a_report_is_exact_only_when_everything_agrees() {
        let options = LoadOptions { scenario: Scenario::Churn, hosts: 3, rate: 100, lasts: Duration::from_secs(10), seed: 1 };
        let books = Books { events: 1_000, ..Books::default() };
        let fleet = Progress { books, acked: 1_000, restarts: 4, welcomed_ms: vec![3.0, 1.0], ..Progress::default() };
        let view = |missing| Freshness { view: "agents", ms: vec![5.0; 100], missing };
        let used = [Some(Used { cpu_s: 0.5, peak_bytes: 7_000_000 }), None, None];
        let counted = Some((1_000, Duration::from_secs(10)));
        let report = Report { options, fleet, counted, acks_ms: vec![2.0], freshness: vec![view(0)], lost: Some(0), used };
        assert!(report.is_exact() && report.keeps_pace() && report.p99_ms() == 5.0);
        let text = report.to_string();
        assert!(
            text.contains("500.00 us per event, 7 MB")
                && text.contains("4 agents; start to welcome 3 ms p50")
                && text.ends_with("exact"),
            "{text}"
        );
        for broken in [
            Report { lost: Some(1), ..report.clone() },
            Report { counted: Some((1_001, Duration::from_secs(1))), ..report.clone() },
            Report { fleet: Progress { acked: 999, ..report.fleet.clone() }, ..report.clone() },
            Report { fleet: Progress { refused: 1, ..report.fleet.clone() }, ..report.clone() },
        ] {
            assert!(!broken.is_exact() && broken.to_string().ends_with("NOT EXACT"));
        }
        assert!(Report { freshness: vec![view(0), view(50)], ..report.clone() }.p99_ms().is_infinite());
        assert!(Report { counted: None, lost: None, freshness: Vec::new(), ..report }.is_exact());
    }
}
