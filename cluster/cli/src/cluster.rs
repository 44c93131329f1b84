//! `weir cluster`: who is in it, and how many workers it has.

use std::path::PathBuf;
use std::time::Duration;

use weir_cluster::control::{self, Status};
use weir_config::NodeConfig;

/// Arguments of `weir cluster`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the nodes, what their workers do, and the checkpoints
    #[command(after_help = "Example:\n  weir cluster status --config config/examples/node.toml")]
    Status {
        /// The config of any node
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Ask for another number of workers a node; the mesh is formed anew, nothing is lost
    #[command(after_help = "Example:\n  weir cluster rescale --config config/examples/node.toml --workers 2")]
    Rescale {
        /// The config of any node
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Worker threads of each node
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
        workers: u32,
    },
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = crate::runtime()?;
    match arguments.command {
        Command::Status { config } => {
            let config = NodeConfig::load(&config)?;
            let before = runtime.block_on(control::status(&config))?;
            // A node that lives gives another sign meanwhile.
            let silence = Duration::from_millis(config.mesh.limits.member_ms_max / 2);
            std::thread::sleep(silence);
            show(&before, &runtime.block_on(control::status(&config))?)
        }
        Command::Rescale { config, workers } => {
            runtime.block_on(control::rescale(&NodeConfig::load(&config)?, workers))?;
            eprintln!("{workers} workers a node were asked for: `weir cluster status` shows the next generation");
            Ok(())
        }
    }
}

fn show(before: &Status, now: &Status) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<20} {:<22} {:<8} workers", "node", "mesh address", "signs")?;
    for node in &now.nodes {
        let lives = before.nodes.iter().any(|old| old.node == node.node && old.beats != node.beats);
        let signs = if lives { "alive" } else { "silent" };
        writeln!(out, "{:<20} {:<22} {signs:<8} {}", node.node, node.address, node.workers)?;
    }
    let ticks: Vec<String> = now.checkpoints.iter().map(ToString::to_string).collect();
    writeln!(out, "checkpoints of ticks: {}", if ticks.is_empty() { "none yet".to_owned() } else { ticks.join(", ") })?;
    if let Some(workers) = now.workers_wanted {
        writeln!(out, "workers of each node, as asked for: {workers}")?;
    }
    Ok(())
}
