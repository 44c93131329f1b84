//! `weir alerts`: what the sinks have got, what they refused, and sending that again.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;

use weir_cluster::alerts::{self, Letter};
use weir_config::NodeConfig;

/// Arguments of `weir alerts`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show for each sink how many alerts it has got, how many wait and how many are dead letters
    #[command(after_help = "Example:\n  weir alerts sinks --config config/examples/node.toml")]
    Sinks {
        /// The config of any node
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// List the dead letters: alerts that a sink refused, or was away for too long
    #[command(after_help = "Example:\n  weir alerts dead --config config/examples/node.toml --sink pager")]
    Dead {
        /// The config of any node
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Only of this sink
        #[arg(long, value_name = "NAME")]
        sink: Option<String>,
    },
    /// Send the dead letters again; the node that sends does so within seconds
    #[command(after_help = "Example:\n  weir alerts redrive --config config/examples/node.toml --sink pager")]
    Redrive {
        /// The config of any node
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Only of this sink
        #[arg(long, value_name = "NAME")]
        sink: Option<String>,
    },
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = crate::runtime()?;
    match arguments.command {
        Command::Sinks { config } => {
            let config = NodeConfig::load(&config)?;
            let (node, letters) = runtime.block_on(alerts::outbox(&config))?;
            show(&config, node.as_deref(), &letters)
        }
        Command::Dead { config, sink } => {
            let (_, letters) = runtime.block_on(alerts::outbox(&NodeConfig::load(&config)?))?;
            dead(letters.iter().filter(|letter| sink.as_ref().is_none_or(|sink| *sink == letter.sink)))
        }
        Command::Redrive { config, sink } => {
            let config = NodeConfig::load(&config)?;
            let (_, letters) = runtime.block_on(alerts::outbox(&config))?;
            let fits = |letter: &&Letter| sink.as_ref().is_none_or(|sink| *sink == letter.sink) && letter.entry.dead.is_some();
            let count = letters.iter().filter(fits).count();
            if count == 0 {
                let of = sink.map(|sink| format!(" of sink {sink:?}")).unwrap_or_default();
                anyhow::bail!("there are no dead letters{of}: `weir alerts sinks` shows the sinks");
            }
            runtime.block_on(alerts::redrive(&config, sink.as_deref()))?;
            eprintln!("{count} dead letters are to be sent again: `weir alerts sinks` shows what became of them");
            Ok(())
        }
    }
}

fn show(config: &NodeConfig, node: Option<&str>, letters: &[Letter]) -> anyhow::Result<()> {
    let mut sinks: BTreeMap<&str, [usize; 3]> = config.alerts.sinks.iter().map(|sink| (&*sink.name, [0; 3])).collect();
    for letter in letters {
        let counts = sinks.entry(&letter.sink).or_default();
        let place = match &letter.entry {
            entry if entry.dead.is_some() => 2,
            entry if entry.wanted.is_some() => 1,
            _ => 0,
        };
        counts[place] += 1;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<24} {:>10} {:>10} {:>10}", "sink", "delivered", "waiting", "dead")?;
    for (name, [delivered, waiting, dead]) in sinks {
        let configured = config.alerts.sinks.iter().any(|sink| sink.name == name);
        let note = if configured { "" } else { "  not in this config" };
        writeln!(out, "{name:<24} {delivered:>10} {waiting:>10} {dead:>10}{note}")?;
    }
    match node {
        Some(node) => writeln!(out, "last written by node {node}")?,
        None => writeln!(out, "no node has sent alerts yet")?,
    }
    Ok(())
}

fn dead<'a>(letters: impl Iterator<Item = &'a Letter>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for Letter { sink, key, entry } in letters {
        let (Some(dead), Some(alert)) = (&entry.dead, &entry.wanted) else { continue };
        let mut since = String::new();
        weir_schema::write_time(&mut since, i64::try_from(dead.at_ms).unwrap_or(0).saturating_mul(1_000_000));
        // What the sink said is one line of ours.
        let why: String = dead.why.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        writeln!(out, "{sink}\t{key}\trevision {}\t{}\t{since}\t{why}", alert.revision, alert.rule)?;
    }
    Ok(())
}
