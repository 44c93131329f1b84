//! `weir agent`: the agent of this host, as `weir-agent` runs it.

use std::path::PathBuf;

use weir_config::AgentConfig;

use crate::Until;

/// Arguments of `weir agent`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weir agent --config config/examples/agent.toml")]
pub(crate) struct Arguments {
    /// The agent's config file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// End when standard input ends; how the demo starts its agent
    #[arg(long, hide = true)]
    with_parent: bool,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    crate::log_to_stderr("info");
    let until = if arguments.with_parent { Until::SignalOrParentsEnd } else { Until::Signal };
    let config = AgentConfig::load(&arguments.config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(weir_edge::agent::run(config, crate::asked_to_stop(until)))?;
    Ok(())
}
