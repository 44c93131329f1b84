//! `--replay-to`: rebuild every view from the chain and the logs, and print one digest per view.
//!
//! Takes no lock and writes nothing of what nodes share, so it may run beside a live cluster. The workers are a mesh of their own, on
//! this machine: as many processes, each with as many workers, as was asked for.

use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use weir_config::NodeConfig;
use weir_dataflow::handle::{At, Client, Digest, Failure, Request, Response};
use weir_schema::Name;

use crate::chain::ChainRecord;
use crate::checkpoint;
use crate::child::{self, ChildCommand};
use crate::error::Error;
use crate::generation::{Generation, Member};
use crate::layout;
use crate::log::{self, LogError, Pace};
use crate::mesh::Place;
use crate::node::cluster_store;

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
    /// One per standing view.
    pub views: Vec<Digest>,
}

/// The tick that a replay goes to.
pub fn resolve(config: &NodeConfig, to: ReplayTo) -> Result<u64, Error> {
    last_tick(config, to)
}

/// How many rebuild.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Worker children, one mesh.
    pub processes: usize,
    /// Workers of each.
    pub workers: usize,
}

/// Rebuilds in worker children up to `tick` and digests.
pub async fn run(config: &NodeConfig, tick: u64, child: &ChildCommand, shape: Shape) -> Result<Replayed, Error> {
    std::fs::create_dir_all(&config.data_dir).map_err(Error::file("create", &config.data_dir))?;
    let socket = layout::replay_socket(&config.data_dir);
    // A socket that an earlier run left behind would answer nothing.
    let _ = std::fs::remove_file(&socket);
    let from = beginning(config, tick).await?;
    let mut workers = Workers::start(config, child, shape, Span { from, tick }, &socket)?;
    tokio::task::spawn_blocking(move || digests(&mut workers, &socket, tick))
        .await
        .map_err(|died| Error::Engine(died.to_string()))?
}

/// The checkpoint that a replay begins from: none where the chain has its beginning.
async fn beginning(config: &NodeConfig, tick: u64) -> Result<Option<u64>, Error> {
    let first = first_record(config)?;
    if first == 0 {
        return Ok(None);
    }
    let checkpoints = checkpoint::list(&cluster_store(config)?).await?;
    let from = checkpoints.iter().copied().find(|from| *from <= tick);
    from.map(Some).ok_or_else(|| {
        let why =
            format!("the chain begins at record {first}, and the checkpoints are of ticks {checkpoints:?}: ask for a later tick");
        Error::Checkpoint { tick, why }
    })
}

/// The first record that the chain has kept.
fn first_record(config: &NodeConfig) -> Result<u64, Error> {
    let logs = log::open(config)?;
    match logs.read_chain(0, Pace::UpToNow).map_err(|_| Error::NoChain(logs.place()))?.next() {
        Err(LogError::Forgotten { first, .. }) => Ok(first),
        Ok(_) => Ok(0),
        Err(failed) => Err(Error::log("reading the chain")(failed)),
    }
}

/// What is replayed: behind a checkpoint or from the beginning, up to a tick.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: Option<u64>,
    tick: u64,
}

fn digests(workers: &mut Workers, socket: &std::path::Path, tick: u64) -> Result<Replayed, Error> {
    let mut client = loop {
        if let Ok(client) = Client::connect(socket) {
            break client;
        }
        workers.are_running()?;
        std::thread::sleep(CONNECT_EVERY);
    };
    // A long log takes longer to read than a question waits: ask again for as long as the workers are at it.
    for id in 1.. {
        let answers =
            client.ask(&Request::Digest { id, at: At::Tick(tick) }).map_err(|failed| Error::Engine(failed.to_string()))?;
        match answers.into_iter().next() {
            Some(Response::Digests { tick, views, .. }) => return Ok(Replayed { tick, views }),
            Some(Response::Failed { failure: Failure::TimedOut { .. }, .. }) => workers.are_running()?,
            Some(Response::Failed { failure, .. }) => return Err(Error::Engine(failure.to_string())),
            other => return Err(Error::Engine(format!("unexpected answer {other:?}"))),
        }
    }
    unreachable!("there are enough numbers")
}

/// Worker children that end with this value.
struct Workers(Vec<(tokio::process::Child, UnixStream)>);

impl Workers {
    fn start(
        config: &NodeConfig,
        command: &ChildCommand,
        shape: Shape,
        span: Span,
        socket: &std::path::Path,
    ) -> Result<Self, Error> {
        let mesh = |failed: std::io::Error| Error::Mesh(failed.to_string());
        let bound: Result<Vec<TcpListener>, _> = (0..shape.processes).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
        let listeners = bound.map_err(mesh)?;
        // All of them have this node's certificate.
        let node = Name::new(&config.id).map_err(|wrong| Error::Engine(wrong.to_string()))?;
        let member = |listener: &TcpListener| {
            let address = listener.local_addr().map_err(mesh)?.to_string();
            Ok(Member { node: node.clone(), address, run: 0 })
        };
        let members = listeners.iter().map(member).collect::<Result<Vec<_>, Error>>()?;
        let generation = Generation { number: 0, workers: shape.workers as u32, members, from: span.from };
        let mut workers = Self(Vec::new());
        for (process, listener) in listeners.iter().enumerate() {
            let place = Place { cluster: u128::from(std::process::id()), generation: generation.clone(), process };
            let socket = if process == 0 { socket.to_owned() } else { other_socket(socket, process) };
            let start = child::Start { place, until: Some(span.tick), socket };
            workers.0.push(child::start(command, listener, &start).map_err(Error::file("start", &command.program))?);
        }
        Ok(workers)
    }

    /// An error once one has ended by itself.
    fn are_running(&mut self) -> Result<(), Error> {
        for (child, _) in &mut self.0 {
            match child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => return Err(Error::Engine(format!("the workers ended before they answered: {status}"))),
                Err(failed) => return Err(Error::Engine(failed.to_string())),
            }
        }
        Ok(())
    }
}

fn other_socket(first: &std::path::Path, process: usize) -> PathBuf {
    first.with_extension(format!("{process}.sock"))
}

/// The tick of the last record to rebuild.
fn last_tick(config: &NodeConfig, to: ReplayTo) -> Result<u64, Error> {
    let logs = log::open(config)?;
    let mut chain = logs.read_chain(first_record(config)?, Pace::UpToNow).map_err(|_| Error::NoChain(logs.place()))?;
    let mut last = None;
    let mut end = 0;
    while let Some((_, bytes)) = chain.next().map_err(Error::log("reading the chain"))? {
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
    last.ok_or_else(|| Error::NoChain(logs.place()))
}

const CONNECT_EVERY: Duration = Duration::from_millis(20);
