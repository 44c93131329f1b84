//! `weir agent`: the agent of this host, as `weir-agent` runs it.

use std::path::PathBuf;

use weir_config::AgentConfig;

/// Arguments of `weir agent`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weir agent --config config/examples/agent.toml")]
pub(crate) struct Arguments {
    /// The agent's config file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    crate::log_to_stderr("info");
    let config = AgentConfig::load(&arguments.config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(weir_edge::agent::run(config, crate::asked_to_stop()))?;
    Ok(())
}
