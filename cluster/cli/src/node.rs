//! `weir node`: one node, its worker child, or a replay of the log.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use weir_cluster::child::{self, ChildCommand};
use weir_cluster::replay::{self, ReplayTo, Replayed, Shape};
use weir_config::NodeConfig;

use crate::Until;

/// Arguments of `weir node`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weir node --config config/examples/node.toml")]
pub(crate) struct Arguments {
    /// The node's config file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Rebuild every view from the log up to this tick (or `last`), print one digest per view, and end
    #[arg(long, value_name = "TICK", value_parser = parse_replay_to)]
    replay_to: Option<ReplayTo>,
    /// With --replay-to: so many processes rebuild, one mesh
    #[arg(long, value_name = "N", default_value_t = 1, requires = "replay_to", value_parser = clap::value_parser!(u8).range(1..=64))]
    processes: u8,
    /// With --replay-to: so many workers in each [default: the config's]
    #[arg(long, value_name = "N", requires = "replay_to", value_parser = clap::value_parser!(u8).range(1..=64))]
    workers: Option<u8>,
    /// The node's second process; started by the node itself
    #[arg(long, hide = true)]
    worker_child: bool,
    /// End when standard input ends; how the demo starts its nodes
    #[arg(long, hide = true)]
    with_parent: bool,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    crate::log_to_stderr("info");
    let config = NodeConfig::load(&arguments.config)?;
    if arguments.worker_child {
        return Ok(child::run(&config)?);
    }
    let command = worker_child(&arguments.config)?;
    if let Some(to) = arguments.replay_to {
        let tick = replay::resolve(&config, to)?;
        let workers = arguments.workers.map_or(config.workers, usize::from);
        let shape = Shape { processes: arguments.processes.into(), workers };
        return print_digests(&crate::runtime()?.block_on(replay::run(&config, tick, &command, shape))?);
    }
    let until = if arguments.with_parent { Until::SignalOrParentsEnd } else { Until::Signal };
    let started = |addresses: weir_cluster::node::Addresses| {
        let mut out = std::io::stdout().lock();
        // A reader that is gone does not stop a node.
        let _ = writeln!(out, "ready sql={} http={} quic={}", addresses.sql, addresses.http, addresses.quic);
        let _ = out.flush();
    };
    crate::runtime()?.block_on(weir_cluster::node::run(config, command, started, crate::asked_to_stop(until)))?;
    Ok(())
}

/// This program again, as the worker child of the same config.
fn worker_child(config: &Path) -> anyhow::Result<ChildCommand> {
    let program = std::env::current_exe().context("could not find this program's own file")?;
    let config = config.to_str().context("the config's path is not UTF-8")?;
    let arguments = ["node", "--config", config, "--worker-child"].map(str::to_owned).to_vec();
    Ok(ChildCommand { program, arguments })
}

fn print_digests(replayed: &Replayed) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "tick {}", replayed.tick)?;
    for view in &replayed.views {
        writeln!(out, "{} {} {} rows", view.relation, view.hash, view.rows)?;
    }
    out.flush()?;
    Ok(())
}

fn parse_replay_to(text: &str) -> Result<ReplayTo, String> {
    match text {
        "last" => Ok(ReplayTo::Last),
        _ => text.parse().map(ReplayTo::Tick).map_err(|_| "give a tick (milliseconds) or `last`".to_owned()),
    }
}
