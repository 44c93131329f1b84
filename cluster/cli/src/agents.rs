//! `weir agents`: who was enrolled, and who is not to come back.

use std::io::Write as _;
use std::path::PathBuf;

use weir_cluster::identity::{self, AgentStatus};
use weir_config::NodeConfig;
use weir_transport::full_name;

use crate::token::CONFIG;
use crate::when::{ago, now_ms};

/// Arguments of `weir agents`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the agents that were enrolled by a token, and all that are revoked
    #[command(
        after_help = "Example:\n  weir agents list --config config/examples/node.toml\n\nWho is connected, and agents with certificates of `weir ca issue`: weir sql -c 'select * from agents'"
    )]
    List {
        /// The config of any node of the cluster
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
    },
    /// Refuse an agent on every node from now on, and end its connections
    #[command(
        after_help = "Example:\n  weir agents revoke --config config/examples/node.toml acme/eu/web-7\n\nIt holds for every certificate of that agent, those to come included. A host that is to come back needs a token for another agent name."
    )]
    Revoke {
        /// The config of any node of the cluster
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
        /// TENANT/REGION/AGENT, or the name of an enrolled agent that no other has
        #[arg(value_name = "ID")]
        agent: String,
        /// Let a revoked agent back instead
        #[arg(long)]
        undo: bool,
    },
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    crate::runtime()?.block_on(async {
        match arguments.command {
            Command::List { config } => show(&identity::agents(&NodeConfig::load(&config)?).await?),
            Command::Revoke { config, agent, undo } => {
                let config = NodeConfig::load(&config)?;
                let agent = identity::find_agent(&agent, &identity::agents(&config).await?)?;
                let name = full_name(&agent);
                match undo {
                    false => {
                        identity::revoke(&config, &agent).await?;
                        eprintln!("agent {name} is revoked: nodes look every two seconds");
                    }
                    true if identity::let_back(&config, &agent).await? => eprintln!("agent {name} may come back"),
                    true => anyhow::bail!("agent {name} is not revoked"),
                }
                Ok(())
            }
        }
    })
}

fn show(agents: &[AgentStatus]) -> anyhow::Result<()> {
    let (mut out, now) = (std::io::stdout().lock(), now_ms());
    writeln!(out, "{:<40} {:<9} enrolled", "agent", "state")?;
    for AgentStatus { agent, enrolled, revoked_ms } in agents {
        let state = if revoked_ms.is_some() { "revoked" } else { "taken" };
        let enrolled = match enrolled {
            Some(enrolled) => format!("at {} {}", enrolled.node, ago(now, enrolled.at_ms)),
            None => "not by a token".to_owned(),
        };
        writeln!(out, "{:<40} {state:<9} {enrolled}", full_name(agent))?;
    }
    Ok(())
}
