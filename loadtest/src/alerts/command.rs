//! `weir-loadtest alerts`: its arguments, and what it prints.

use std::path::Path;
use std::time::Duration;

use super::{LatencyOptions, OutageOptions, latency, outage};

/// What is measured.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["latency", "outage"])))]
pub struct AlertsArguments {
    /// Send so many hits one at a time, and say how long each took from the event to the webhook
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    latency: Option<u64>,
    /// Take the webhook away for so long; then compare what it got with the relation `alerts`
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(3..=86_400))]
    outage: Option<u64>,
    /// Nodes of the cluster of an outage
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    nodes: u16,
    /// Hits a second in an outage
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=100))]
    hits: u64,
    /// Events a second of a fleet beside the hits; for --latency in a second round. 0: none
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Simulated hosts of that fleet
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    hosts: u16,
    /// Of the moments of the hits
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

impl AlertsArguments {
    /// Measures it with nodes of this program.
    ///
    /// # Errors
    /// Also when a hit did not come, or the books of an outage differ.
    pub async fn run(self, weir: &Path) -> anyhow::Result<()> {
        let Self { nodes, hits, rate, hosts, seed, .. } = self;
        let scratch = tempfile::Builder::new().prefix("weir-alerts-").tempdir()?;
        let say = |line: &str| eprintln!("{line}");
        if let Some(seconds) = self.outage {
            let (away, nodes, hosts) = (Duration::from_secs(seconds), nodes.into(), hosts.into());
            let books = Box::pin(outage(weir, scratch.path(), OutageOptions { away, nodes, hits, rate, hosts }, say)).await?;
            eprintln!("{books}");
            anyhow::ensure!(books.is_exact(), "the webhook and the relation alerts differ");
            return Ok(());
        }
        let options = LatencyOptions { hits: self.latency.unwrap_or(1), rate, hosts: hosts.into(), seed };
        let rounds = Box::pin(latency(weir, scratch.path(), options, say)).await?;
        eprintln!("{:>10} {:>6} {:>8} {:>8} {:>8} {:>8}", "events/s", "hits", "missing", "p50, ms", "p99, ms", "max, ms");
        rounds.iter().for_each(|round| eprintln!("{round}"));
        anyhow::ensure!(rounds.iter().all(|round| round.missing == 0), "hits are missing at the webhook");
        Ok(())
    }
}
