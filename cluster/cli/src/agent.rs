//! `weir agent`: the agent of this host, as `weir-agent` runs it.

use std::path::PathBuf;

use weir_config::AgentConfig;
use weir_edge::record::{RECORD_BYTES_LEAST, RECORD_BYTES_MAX, RecordTo};

use crate::Until;

/// Arguments of `weir agent`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  weir agent --config config/examples/agent.toml\n  weir agent --record events.jsonl\n\nA recording is JSON lines, as `weir rules run` and `weir-loadtest replay` read them. With --record the config\nmay have no `nodes`, or be left out: then nothing is sent anywhere."
)]
pub(crate) struct Arguments {
    /// The agent's config file
    #[arg(long, value_name = "FILE", required_unless_present = "record")]
    config: Option<PathBuf>,
    /// Write what is collected to this file as JSON lines; the part before the newest is FILE.1
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Bytes of a recording's two parts together; older ones go
    #[arg(long, value_name = "BYTES", requires = "record", default_value_t = RECORD_BYTES_MAX,
        value_parser = clap::value_parser!(u64).range(RECORD_BYTES_LEAST..))]
    record_bytes_max: u64,
    /// End when standard input ends; how the demo starts its agent
    #[arg(long, hide = true)]
    with_parent: bool,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    crate::log_to_stderr("info");
    let until = if arguments.with_parent { Until::SignalOrParentsEnd } else { Until::Signal };
    let record = arguments.record.map(|file| RecordTo { file, bytes_max: arguments.record_bytes_max });
    let config = match (&record, &arguments.config) {
        (None, Some(file)) => AgentConfig::load(file)?,
        (_, file) => AgentConfig::load_for_recording(file.as_deref())?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(weir_edge::agent::run_confined(config, record, crate::asked_to_stop(until)))?;
    Ok(())
}
