//! The worker child: the second process of a node. It reads the chain and the logs, keeps every view, and answers on a socket.
//!
//! A death in the mesh ends all of its workers, so they live apart from ingest and serving. The child ends with its parent: the
//! parent holds the other end of its standard input.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::{Child, Command};
use tracing::{error, info, warn};
use weir_config::NodeConfig;
use weir_dataflow::{EngineOptions, Feed};
use weir_journal::RealDisk;

use crate::error::Error;
pub use crate::feed::Until;
use crate::feed::{ChainFeed, Share};
use crate::{layout, metrics};

/// How a node starts its worker child: a program and its arguments.
#[derive(Debug, Clone)]
pub struct ChildCommand {
    /// The program, usually the node's own.
    pub program: PathBuf,
    /// Arguments that make it call [`run`] with the same config.
    pub arguments: Vec<String>,
}

/// Runs the workers of this node over the chain, without end or to a tick, until the parent goes. Blocks; after the last tick
/// the workers go on answering.
pub fn run(config: &NodeConfig, until: Until) -> Result<(), Error> {
    end_with_parent();
    let disk = Arc::new(RealDisk);
    let processes = config.mesh.addresses.len().max(1);
    let feed = |local: usize| -> Box<dyn Feed> {
        let share = Share { worker: config.mesh.process * config.workers + local, workers: processes * config.workers };
        Box::new(ChainFeed::start(disk.clone(), &config.shared_dir, share, until))
    };
    let options = EngineOptions {
        process: config.mesh.process,
        workers: config.workers,
        addresses: config.mesh.addresses.iter().map(ToString::to_string).collect(),
        socket: match until {
            Until::Forever => layout::engine_socket(&config.data_dir),
            Until::Tick(_) => layout::replay_socket(&config.data_dir),
        },
    };
    weir_dataflow::run(options, (0..config.workers).map(feed).collect()).map_err(|failed| Error::Engine(failed.to_string()))
}

fn end_with_parent() {
    let wait = || {
        let mut byte = [0; 1];
        // Nothing is ever sent: any return means that the parent has gone.
        let _ = std::io::stdin().read(&mut byte);
        std::process::exit(0);
    };
    std::thread::Builder::new().name("parent".to_owned()).spawn(wait).expect("a thread can be started");
}

/// Keeps a worker child running: starts it, and starts it again when it ends. Ends when dropped.
pub async fn supervise(command: ChildCommand) {
    let mut pause = PAUSE_MIN;
    loop {
        match start(&command) {
            Ok(mut child) => {
                let started = tokio::time::Instant::now();
                // Held, because waiting would close it, and with it the child.
                let _parent_end = child.stdin.take();
                let ended = child.wait().await;
                metrics::engine_ended();
                match ended {
                    Ok(status) => warn!(%status, "the worker child ended; starting it again"),
                    Err(failed) => error!(error = %failed, "the worker child could not be waited for"),
                }
                if started.elapsed() > PAUSE_MAX * 2 {
                    pause = PAUSE_MIN;
                }
            }
            Err(failed) => error!(error = %failed, program = %command.program.display(), "the worker child could not be started"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn start(command: &ChildCommand) -> std::io::Result<Child> {
    let child = Command::new(&command.program)
        .args(&command.arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    info!(pid = child.id(), "worker child started");
    Ok(child)
}

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
