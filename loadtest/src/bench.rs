//! End to end on one machine: events per second from a simulated fleet to views, and the time from an event to its visible row.
//!
//! The steady scenario of `load.rs` on a cluster of its own, in few figures that stay comparable from release to release.

use std::path::Path;
use std::time::Duration;

use crate::fleet::Books;
use crate::load::{self, LoadOptions, OwnCluster, Used};
use crate::probe::at_share;
use crate::scenario::Scenario;

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
    /// Event to visible row in `region_connections`, milliseconds, sorted.
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

/// Starts a cluster of `program` on free ports, loads it, and measures.
pub async fn run(program: &Path, options: BenchOptions) -> anyhow::Result<Measured> {
    let BenchOptions { hosts, rate, lasts, nodes, workers } = options;
    let load = LoadOptions { scenario: Scenario::Steady, hosts, rate, lasts, seed: 7 };
    let report = Box::pin(load::run_own(OwnCluster { program, nodes, workers }, load, |_| {})).await?;
    let shown = report.freshness.into_iter().find(|view| view.view == "region_connections");
    let Some(shown) = shown.filter(|view| !view.ms.is_empty()) else { anyhow::bail!("no probe became visible") };
    anyhow::ensure!(shown.missing == 0, "{} of {} probes became visible", shown.ms.len(), shown.ms.len() + shown.missing);
    let (counted, took) = report.counted.unwrap_or_default();
    let [_, nodes, workers] = report.used.map(|used: Option<Used>| used.map_or(0.0, |used| used.cpu_s));
    Ok(Measured {
        books: report.fleet.books,
        counted,
        took,
        latencies_ms: shown.ms,
        acks_ms: report.acks_ms,
        cpu_s: nodes + workers,
    })
}
