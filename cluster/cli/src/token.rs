//! `weir token`: lets new agents in, each by a secret that is good once.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use weir_cluster::identity::{self, TokenStatus, TokenWish};
use weir_config::NodeConfig;
use weir_schema::Name;
use weir_transport::full_name;

use crate::when::{ago, now_ms, parse_duration};

/// Arguments of `weir token`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a token for one new agent and print it; only a hash of it is kept
    #[command(
        after_help = "Example:\n  weir token create --config config/examples/node.toml --tenant acme --region eu > token\n\nThe agent reads it from its `enrol.token_file`. A node with `agents.authority` in its config must be among the agent's nodes."
    )]
    Create {
        /// The config of any node of the cluster
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
        /// Tenant of the agent
        #[arg(long, value_name = "T")]
        tenant: String,
        /// Region of the agent
        #[arg(long, value_name = "R")]
        region: String,
        /// Name of the agent [default: one made from the token, which no other agent has]
        #[arg(long, value_name = "A")]
        agent: Option<String>,
        /// How long the token is good (30min, 24h)
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
        ttl: Duration,
    },
    /// List the tokens and what became of them
    #[command(after_help = "Example:\n  weir token list --config config/examples/node.toml")]
    List {
        /// The config of any node of the cluster
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
    },
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = crate::runtime()?;
    match arguments.command {
        Command::Create { config, tenant, region, agent, ttl } => {
            let agent = agent.map(Name::new).transpose()?;
            let wish = TokenWish { tenant: Name::new(tenant)?, region: Name::new(region)?, agent, valid: ttl };
            let (token, record) = runtime.block_on(identity::create_token(&NodeConfig::load(&config)?, wish))?;
            writeln!(std::io::stdout(), "{token}")?;
            eprintln!("good once, for {} minutes, for agent {}", ttl.as_secs().div_ceil(60), full_name(&record.agent));
            Ok(())
        }
        Command::List { config } => show(&runtime.block_on(identity::tokens(&NodeConfig::load(&config)?))?),
    }
}

fn show(tokens: &[TokenStatus]) -> anyhow::Result<()> {
    let (mut out, now) = (std::io::stdout().lock(), now_ms());
    writeln!(out, "{:<16} {:<40} state", "token", "agent")?;
    for TokenStatus { record, used } in tokens {
        let state = match used {
            Some(used) => format!("used at {} {}", used.node, ago(now, used.at_ms)),
            None if now >= record.expires_ms => format!("expired {}", ago(now, record.expires_ms)),
            None => format!("good for {} minutes", (record.expires_ms - now).div_ceil(60_000)),
        };
        writeln!(out, "{:<16} {:<40} {state}", record.id, full_name(&record.agent))?;
    }
    Ok(())
}

/// Where a node's config lies on most hosts.
pub(crate) const CONFIG: &str = "/etc/weir/node.toml";
