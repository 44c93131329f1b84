//! `weir demo`: nodes, this host's agent and a simulated fleet on loopback, over the real transport with real certificates.
//!
//! Everything but the fleet runs as a process of its own, as it would in a real cluster. What is simulated is labelled so.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use weir_config::DemoConfig;
use weir_loadtest::agents::Target;
use weir_loadtest::fleet::FleetOptions;
use weir_loadtest::local::process::Running;
use weir_loadtest::local::setup::{self, Setup};
use weir_loadtest::local::{Addresses, LocalCluster};
use weir_loadtest::runner;
use weir_transport::Dialer;

mod screen;

use crate::when::parse_duration;

/// Arguments of `weir demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weir demo --for 60s --fleet 120 --rate 5000")]
pub(crate) struct Arguments {
    /// The demo's config file; the flags below override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// End by itself after this time (60s, 5min)
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    lasts: Option<Duration>,
    /// Nodes on loopback, one mesh [default: 3]
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Simulated hosts; 0 for none [default: 60]
    #[arg(long, value_name = "N")]
    fleet: Option<usize>,
    /// Events a second of the simulated fleet [default: 2000]
    #[arg(long, value_name = "N")]
    rate: Option<u64>,
    /// Keep certificates, configs and logs here [default: a temporary directory, removed at the end]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Watch this host by polling, without eBPF
    #[arg(long)]
    no_ebpf: bool,
    /// One JSON object a second instead of the table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    crate::log_to_stderr("warn");
    let mut config = match &arguments.config {
        Some(path) => DemoConfig::load(path)?,
        None => DemoConfig::default(),
    };
    config.nodes = arguments.nodes.unwrap_or(config.nodes);
    config.fleet = arguments.fleet.unwrap_or(config.fleet);
    config.rate = arguments.rate.unwrap_or(config.rate);
    config.ebpf &= !arguments.no_ebpf;
    anyhow::ensure!((1..=16).contains(&config.nodes), "--nodes {}: give 1 to 16", config.nodes);
    anyhow::ensure!(config.fleet <= 10_000, "--fleet {}: give at most 10000", config.fleet);
    let data = match arguments.data.or_else(|| config.data_dir.clone()) {
        Some(dir) => Data::Kept(dir),
        None => Data::Temporary(tempfile::Builder::new().prefix("weir-demo-").tempdir().context("no temporary directory")?),
    };
    crate::runtime()?.block_on(demo(&config, data, arguments.lasts, arguments.json))
}

/// Where the demo's files lie.
enum Data {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Data {
    fn path(&self) -> &std::path::Path {
        match self {
            Self::Kept(dir) => dir,
            Self::Temporary(dir) => dir.path(),
        }
    }
}

async fn demo(config: &DemoConfig, data: Data, lasts: Option<Duration>, json: bool) -> anyhow::Result<()> {
    let stop = crate::asked_to_stop(crate::Until::Signal);
    tokio::pin!(stop);
    let mut running = tokio::select! {
        started = start(config, &data) => started?,
        () = &mut stop => return Ok(()),
    };
    let mut out = std::io::stdout();
    let Started { addresses, agent, .. } = &mut running;
    writeln!(out, "ready sql={} http={} quic={}", addresses.sql, addresses.http, addresses.quic)?;
    out.flush()?;
    let end = async {
        match lasts {
            Some(lasts) => tokio::time::sleep(lasts).await,
            None => std::future::pending().await,
        }
    };
    let alone = async {
        progress(&format!("the agent of this host has ended, the rest goes on: {}", agent.ended().await));
        std::future::pending::<()>().await;
    };
    let failed = tokio::select! {
        () = alone => None,
        shown = screen::show(addresses, config, json) => shown.err(),
        () = &mut stop => None,
        () = end => None,
    };
    progress("stopping");
    running.stop().await;
    match failed {
        Some(failed) => Err(failed),
        None => Ok(()),
    }
}

/// Everything that runs.
struct Started {
    addresses: Addresses,
    cluster: LocalCluster,
    agent: Running,
    fleet: Option<runner::RunningFleet>,
}

impl Started {
    async fn stop(self) {
        if let Some(fleet) = self.fleet
            && let Err(failed) = fleet.stop().await
        {
            progress(&format!("the fleet: {failed:#}"));
        }
        self.agent.stop().await;
        self.cluster.stop().await;
    }
}

async fn start(config: &DemoConfig, data: &Data) -> anyhow::Result<Started> {
    progress("certificates");
    let setup = Setup::write(config, data.path())?;
    setup.add_rules()?;
    for taken in &setup.taken {
        progress(taken);
    }
    progress(&format!("{} node{}", config.nodes, if config.nodes == 1 { "" } else { "s" }));
    let program = std::env::current_exe().context("could not find this program's own file")?;
    let cluster = LocalCluster::start(&program, &setup).await?;
    let addresses = cluster.addresses[0];
    progress(match config.ebpf && setup::is_root() {
        true => "agent of this host (eBPF)",
        false => "agent of this host (without root or with --no-ebpf it polls, and misses what is short-lived)",
    });
    let agent_config = setup.write_agent_config(config, &cluster.quic())?;
    let agent = Running::start(&program, "agent", &agent_config, &setup.logs()).await?;
    let fleet = match config.fleet {
        0 => None,
        hosts => {
            progress(&format!("simulated fleet of {hosts} hosts in 6 regions of 3 clouds, {} events/s", config.rate));
            let options = FleetOptions { hosts, rate: config.rate, seed: FLEET_SEED, start_ns: 0 };
            let target = Target {
                nodes: cluster.quic(),
                authority: setup.authority.clone(),
                tenant: setup::TENANT.to_owned(),
                dialer: Some(Dialer::default()),
            };
            Some(runner::start_intruded(options, target, INTRUSION_AFTER).await?)
        }
    };
    Ok(Started { addresses, cluster, agent, fleet })
}

fn progress(what: &str) {
    eprintln!("weir demo: {what}");
}

const FLEET_SEED: u64 = 42;
/// Long enough for everything to be up, short enough to be seen.
const INTRUSION_AFTER: Duration = Duration::from_secs(20);
