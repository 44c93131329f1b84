//! `weir-agent`: the agent alone, without anything that a host need not run.

use std::path::PathBuf;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use weir_config::AgentConfig;
use weir_edge::record::{RECORD_BYTES_LEAST, RECORD_BYTES_MAX, RecordTo};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut asked = Asked::default();
    match arguments.as_slice() {
        ["--help" | "-h"] => return say(USAGE, ExitCode::SUCCESS),
        ["--version" | "-V"] => return say(concat!("weir-agent ", env!("CARGO_PKG_VERSION"), "\n"), ExitCode::SUCCESS),
        _ => {
            if let Err(why) = asked.read(&arguments) {
                eprint!("weir-agent: {why}\n\n{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    let filter = EnvFilter::try_from_env("WEIR_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(asked) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the arguments say.
#[derive(Default)]
struct Asked {
    config: Option<PathBuf>,
    record: Option<PathBuf>,
    record_bytes_max: Option<u64>,
}

impl Asked {
    fn read(&mut self, arguments: &[&str]) -> Result<(), String> {
        for pair in arguments.chunks(2) {
            match pair {
                ["--config", file] => self.config = Some(file.into()),
                ["--record", file] => self.record = Some(file.into()),
                ["--record-bytes-max", bytes] => {
                    let bytes = bytes.parse().ok().filter(|bytes| *bytes >= RECORD_BYTES_LEAST);
                    let least = format!("--record-bytes-max: expected a whole number from {RECORD_BYTES_LEAST}");
                    self.record_bytes_max = Some(bytes.ok_or(least)?);
                }
                [what, ..] => return Err(format!("{what}: not an option with its value")),
                [] => {}
            }
        }
        match (&self.config, &self.record, self.record_bytes_max) {
            (None, None, _) => Err("expected --config FILE, --record FILE, or both".to_owned()),
            (_, None, Some(_)) => Err("--record-bytes-max goes with --record FILE".to_owned()),
            _ => Ok(()),
        }
    }
}

fn run(asked: Asked) -> anyhow::Result<()> {
    let bytes_max = asked.record_bytes_max.unwrap_or(RECORD_BYTES_MAX);
    let record = asked.record.map(|file| RecordTo { file, bytes_max });
    let config = match (&record, &asked.config) {
        (None, Some(file)) => AgentConfig::load(file)?,
        (_, file) => AgentConfig::load_for_recording(file.as_deref())?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let shutdown = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        Box::pin(weir_edge::agent::run_confined(config, record, shutdown)).await?;
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

Usage: weir-agent [--config FILE] [--record FILE [--record-bytes-max BYTES]]

Options:
  --config FILE   the agent's config, see config/examples/agent.toml
  --record FILE   write what is collected as JSON lines; the part before the newest is FILE.1. The config may
                  then have no `nodes`, or be left out: nothing is sent anywhere
  --record-bytes-max BYTES
                  both parts together, default 1073741824; older ones go
  --help          this text
  --version       the version

Environment: WEIR_LOG=debug for more log lines; WEIR_<KEY> overrides a key of the config.
Exit codes: 0 done, 1 the work failed, 2 used wrongly.

Examples:
  weir-agent --config /etc/weir/agent.toml
  weir-agent --record events.jsonl
";
