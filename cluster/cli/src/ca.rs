//! `weir ca`: a certificate authority in a directory, and certificates of agents and nodes.

use std::path::PathBuf;

use weir_schema::Name;
use weir_transport::ca;

/// Arguments of `weir ca`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a certificate authority: ca.pem, and ca.key that stays here
    #[command(after_help = "Example:\n  weir ca init --dir ca --trust-domain bank.example")]
    Init {
        /// Directory of the authority
        #[arg(long, value_name = "DIR", default_value = "ca")]
        dir: PathBuf,
        /// Trust domain: the host part of every identity
        #[arg(long, value_name = "NAME", default_value = "weir.local")]
        trust_domain: String,
    },
    /// Issue a certificate: of an agent (--tenant --region --agent) or of a node (--node)
    #[command(
        after_help = "Examples:\n  weir ca issue --tenant bank --region eu-west-1 --agent host-17 --out certs/host-17\n  weir ca issue --node node-1 --out certs/node-1"
    )]
    Issue {
        /// Directory of the authority
        #[arg(long, value_name = "DIR", default_value = "ca")]
        dir: PathBuf,
        /// Tenant of the agent
        #[arg(long, value_name = "T", required_unless_present = "node", conflicts_with = "node")]
        tenant: Option<String>,
        /// Region of the agent
        #[arg(long, value_name = "R", required_unless_present = "node", conflicts_with = "node")]
        region: Option<String>,
        /// The agent's name
        #[arg(long, value_name = "A", required_unless_present = "node", conflicts_with = "node")]
        agent: Option<String>,
        /// The node's id
        #[arg(long, value_name = "ID")]
        node: Option<String>,
        /// Directory for ca.pem, cert.pem and key.pem
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Init { dir, trust_domain } => {
            ca::init(&dir, &trust_domain)?;
            eprintln!("certificate authority of {trust_domain} made in {}", dir.display());
        }
        Command::Issue { dir, node: Some(node), out, .. } => {
            ca::issue_node(&dir, &Name::new(node)?, &out)?;
            eprintln!("certificate written to {}", out.display());
        }
        Command::Issue { dir, tenant, region, agent, out, .. } => {
            let name = |text: Option<String>| Name::new(text.unwrap_or_default());
            ca::issue_agent(&dir, &name(tenant)?, &name(region)?, &name(agent)?, &out)?;
            eprintln!("certificate written to {}", out.display());
        }
    }
    Ok(())
}
