//! `weir-agent`: the agent alone, without anything that a host need not run.

use std::path::PathBuf;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use weir_config::AgentConfig;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let path = match arguments.as_slice() {
        ["--help" | "-h"] => return say(USAGE, ExitCode::SUCCESS),
        ["--version" | "-V"] => return say(concat!("weir-agent ", env!("CARGO_PKG_VERSION"), "\n"), ExitCode::SUCCESS),
        ["--config", path] => PathBuf::from(path),
        _ => {
            eprint!("weir-agent: expected --config FILE\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let filter = EnvFilter::try_from_env("WEIR_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(path: &std::path::Path) -> anyhow::Result<()> {
    let config = AgentConfig::load(path)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let shutdown = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        Box::pin(weir_edge::agent::run(config, shutdown)).await?;
        Ok(())
    })
}

fn say(text: &str, code: ExitCode) -> ExitCode {
    use std::io::Write as _;
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().write_all(text.as_bytes());
    code
}

const USAGE: &str = "\
The agent of one host: watches the kernel, ships events to the nodes.

Usage: weir-agent --config FILE

Options:
  --config FILE   the agent's config, see config/examples/agent.toml
  --help          this text
  --version       the version

Environment: WEIR_LOG=debug for more log lines; WEIR_<KEY> overrides a key of the config.
Exit codes: 0 done, 1 the work failed, 2 used wrongly.

Example:
  weir-agent --config /etc/weir/agent.toml
";
