//! `--replay-to`: rebuild every view from the chain and the logs, and print one digest per view.
//!
//! Takes no lock and writes nothing into the shared directory, so it may run beside a live cluster. In a mesh, process 0 asks
//! and prints; the others work until it has gone.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use weir_config::NodeConfig;
use weir_dataflow::handle::{At, Client, Digest, Failure, Request, Response};
use weir_journal::{Disk, Offset, Reader, RealDisk};

use crate::chain::ChainRecord;
use crate::child::ChildCommand;
use crate::error::Error;
use crate::layout;

/// Which tick to rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayTo {
    /// The last record whose tick is not above this one.
    Tick(u64),
    /// The chain's last record.
    Last,
}

/// What was rebuilt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// The tick of the digests.
    pub tick: u64,
    /// One per standing view. Empty on the processes of a mesh that do not ask.
    pub views: Vec<Digest>,
}

/// The tick that a replay goes to.
pub fn resolve(config: &NodeConfig, to: ReplayTo) -> Result<u64, Error> {
    last_tick(config, to)
}

/// Rebuilds in a worker child up to `tick` and digests. Blocks.
pub fn run(config: &NodeConfig, tick: u64, child: &ChildCommand) -> Result<Replayed, Error> {
    std::fs::create_dir_all(&config.data_dir).map_err(Error::file("create", &config.data_dir))?;
    let socket = layout::replay_socket(&config.data_dir);
    // A socket that an earlier run left behind would answer nothing.
    let _ = std::fs::remove_file(&socket);
    let mut workers = Workers::start(child)?;
    if config.mesh.process > 0 {
        return workers.wait().map(|()| Replayed { tick, views: Vec::new() });
    }
    let mut client = loop {
        if let Ok(client) = Client::connect(&socket) {
            break client;
        }
        workers.is_running()?;
        std::thread::sleep(CONNECT_EVERY);
    };
    // A long log takes longer to read than a question waits: ask again for as long as the workers are at it.
    for id in 1.. {
        let answers =
            client.ask(&Request::Digest { id, at: At::Tick(tick) }).map_err(|failed| Error::Engine(failed.to_string()))?;
        match answers.into_iter().next() {
            Some(Response::Digests { tick, views, .. }) => return Ok(Replayed { tick, views }),
            Some(Response::Failed { failure: Failure::TimedOut { .. }, .. }) => workers.is_running()?,
            Some(Response::Failed { failure, .. }) => return Err(Error::Engine(failure.to_string())),
            other => return Err(Error::Engine(format!("unexpected answer {other:?}"))),
        }
    }
    unreachable!("there are enough numbers")
}

/// A worker child that ends with this value. Its standard output goes nowhere: what is printed are the digests alone.
struct Workers(Child);

impl Workers {
    fn start(command: &ChildCommand) -> Result<Self, Error> {
        let started = Command::new(&command.program)
            .args(&command.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(Error::file("start", &command.program))?;
        Ok(Self(started))
    }

    /// An error once it has ended by itself.
    fn is_running(&mut self) -> Result<(), Error> {
        match self.0.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(Error::Engine(format!("the workers ended before they answered: {status}"))),
            Err(failed) => Err(Error::Engine(failed.to_string())),
        }
    }

    /// Waits for the end of the mesh: process 0 has its answer and goes, and every other process loses it.
    fn wait(&mut self) -> Result<(), Error> {
        // Held open: waiting would close it.
        let _parent_end = self.0.stdin.take();
        let status = self.0.wait().map_err(|failed| Error::Engine(failed.to_string()))?;
        match status.code() {
            Some(0 | MESH_LOST_STATUS) => Ok(()),
            _ => Err(Error::Engine(format!("the workers failed: {status}"))),
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The tick of the last record to rebuild.
fn last_tick(config: &NodeConfig, to: ReplayTo) -> Result<u64, Error> {
    let dir = layout::chain_dir(&config.shared_dir);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut chain = Reader::open(disk, &dir, Offset(0)).map_err(|_| Error::NoChain(config.shared_dir.clone()))?;
    let mut last = None;
    let mut end = 0;
    while let Some((_, bytes)) = chain.next().map_err(Error::journal("reading the chain"))? {
        let tick = ChainRecord::decode(&bytes)?.tick;
        if to == ReplayTo::Last || matches!(to, ReplayTo::Tick(asked) if tick <= asked) {
            last = Some(tick);
        }
        end = tick;
    }
    if let ReplayTo::Tick(asked) = to
        && asked > end
    {
        return Err(Error::ChainEnds { last: end, asked });
    }
    last.ok_or_else(|| Error::NoChain(config.shared_dir.clone()))
}

/// Exit status of workers whose mesh has lost a process.
const MESH_LOST_STATUS: i32 = 101;
const CONNECT_EVERY: Duration = Duration::from_millis(20);
