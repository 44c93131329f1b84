//! `--replay-to`: rebuild every view from the chain and the logs, and print one digest per view.
//!
//! Takes no lock and writes nothing into the shared directory, so it may run beside a live cluster. In a mesh, process 0 asks
//! and prints; the others work until it has gone.

use std::sync::Arc;
use std::time::Duration;

use weir_config::NodeConfig;
use weir_dataflow::handle::{At, Client, Digest, Request, Response};
use weir_journal::{Disk, Offset, Reader, RealDisk};

use crate::chain::ChainRecord;
use crate::error::Error;
use crate::feed::Until;
use crate::{child, layout};

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

/// Rebuilds and digests. Blocks. The engine's threads go on afterwards: the caller ends the process.
pub fn run(config: NodeConfig, to: ReplayTo) -> Result<Replayed, Error> {
    let tick = last_tick(&config, to)?;
    std::fs::create_dir_all(&config.data_dir).map_err(Error::file("create", &config.data_dir))?;
    let socket = layout::engine_socket(&config.data_dir);
    let _ = std::fs::remove_file(&socket);
    let asks = config.mesh.process == 0;
    let engine = std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || child::run_until(&config, Until::Tick(tick)))
        .expect("a thread can be started");
    if !asks {
        let ended = engine.join().map_err(|_| Error::Engine("a worker panicked".to_owned()))?;
        return ended.map(|()| Replayed { tick, views: Vec::new() });
    }
    let mut client = loop {
        if let Ok(client) = Client::connect(&socket) {
            break client;
        }
        if engine.is_finished() {
            let ended = engine.join().map_err(|_| Error::Engine("a worker panicked".to_owned()))?;
            return Err(ended.err().unwrap_or_else(|| Error::Engine("ended before it answered".to_owned())));
        }
        std::thread::sleep(CONNECT_EVERY);
    };
    let answers =
        client.ask(&Request::Digest { id: 1, at: At::Tick(tick) }).map_err(|failed| Error::Engine(failed.to_string()))?;
    match answers.into_iter().next() {
        Some(Response::Digests { tick, views, .. }) => Ok(Replayed { tick, views }),
        Some(Response::Failed { failure, .. }) => Err(Error::Engine(failure.to_string())),
        other => Err(Error::Engine(format!("unexpected answer {other:?}"))),
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

const CONNECT_EVERY: Duration = Duration::from_millis(20);
