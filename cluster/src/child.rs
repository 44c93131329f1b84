//! The worker child: the second process of a node. It reads the chain and the logs, keeps every view, and answers on a socket.
//!
//! A death in the mesh ends all of its workers, so they live apart from ingest and serving. The parent hands over two descriptors:
//!
//! ```text
//! standard input     a socket: first `Start` (length u32, postcard), then nothing; the child ends when it ends
//!                    the other way lines of text: `met`, `unreachable NODE…`, `bad-checkpoint TICK`, `saving TICK`
//! standard output    the listening socket of the mesh, which the parent keeps for the children to come
//! ```
//!
//! The child prints nothing there; its log goes to standard error.

use std::io::{self, Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tracing::info;
use weir_config::NodeConfig;
use weir_dataflow::{ChangesKept, CheckpointSink, EngineOptions, Feed, Restore};
use weir_transport::PeerTls;

use crate::checkpoint::{self, Position, Positions, Writer};
use crate::error::Error;
use crate::feed::{ChainFeed, Share, Span, Until};
use crate::log;
use crate::mesh::{self, Place, Sockets, Unreachable};
use crate::node::cluster_store;

/// How a node starts its worker child: a program and its arguments.
#[derive(Debug, Clone)]
pub struct ChildCommand {
    /// The program, usually the node's own.
    pub program: PathBuf,
    /// Arguments that make it call [`run`] with the same config.
    pub arguments: Vec<String>,
}

/// What a child is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Start {
    /// Its place in the mesh.
    pub(crate) place: Place,
    /// The last tick of a replay; none: it follows the chain.
    pub(crate) until: Option<u64>,
    /// Where it answers.
    pub(crate) socket: PathBuf,
}

/// What a child says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// All links of the mesh stand.
    Met,
    /// These members could not be reached; the child ends.
    Unreachable(Vec<String>),
    /// The checkpoint of this tick cannot be begun from; the child ends.
    BadCheckpoint(u64),
    /// A worker saves its state and answers nobody meanwhile.
    Saving(u64),
}

/// Runs the workers that the parent asked for, until it goes. Blocks; after a replay's last tick the workers go on answering.
pub fn run(config: &NodeConfig) -> Result<(), Error> {
    let inherited = |what| move |why| Error::File { what, path: "the parent's descriptors".into(), why };
    let (mut control, listener) = descriptors().map_err(inherited("take over"))?;
    let start = read_start(&mut control).map_err(inherited("read the start from"))?;
    end_with_parent(control.try_clone().map_err(inherited("watch"))?);
    // Its threads move bytes between the mesh and the workers for as long as the process lives.
    let links = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("mesh").enable_all().build();
    let links = links.map_err(inherited("start threads beside"))?;
    let sockets = match meet(config, &start.place, listener, links.handle())? {
        Ok(sockets) => sockets,
        Err(Unreachable(nodes)) => {
            let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            say(&mut control, &Report::Unreachable(nodes.clone()));
            return Err(Error::Mesh(format!("{} could not be reached in time", nodes.join(", "))));
        }
    };
    say(&mut control, &Report::Met);
    let restored = match start.place.generation.from {
        None => (None, Position::default()),
        Some(tick) => match links.block_on(begin(config, tick)) {
            Ok((restore, position)) => (Some(Arc::new(restore)), position),
            Err(failed) => {
                say(&mut control, &Report::BadCheckpoint(tick));
                return Err(failed);
            }
        },
    };
    work(config, &start, sockets, restored, links.handle(), control)
}

async fn begin(config: &NodeConfig, tick: u64) -> Result<(Restore, Position), Error> {
    checkpoint::read(&cluster_store(config)?, tick).await
}

fn meet(
    config: &NodeConfig,
    place: &Place,
    listener: TcpListener,
    links: &Handle,
) -> Result<Result<Sockets, Unreachable>, Error> {
    if place.generation.members.len() < 2 {
        return Ok(Ok(Vec::new()));
    }
    let tls = PeerTls::load(&config.tls)?;
    let within = Duration::from_millis(config.mesh.limits.meet_ms_max);
    let met = links.block_on(mesh::meet(tls, listener, place.clone(), within));
    met.map_err(|failed| Error::Mesh(failed.to_string()))
}

fn work(
    config: &NodeConfig,
    start: &Start,
    links: Sockets,
    (restore, from): (Option<Arc<Restore>>, Position),
    runtime: &Handle,
    control: UnixStream,
) -> Result<(), Error> {
    let logs = log::open(config)?;
    let positions = Positions::default();
    let Place { generation, process, .. } = &start.place;
    let (workers, until) = (generation.workers as usize, start.until.map_or(Until::Forever, Until::Tick));
    let feed = |local: usize| -> Box<dyn Feed> {
        let share = Share { worker: process * workers + local, workers: generation.workers_total() };
        let span = Span { until, generation: generation.number, positions: positions.clone() };
        Box::new(ChainFeed::start(logs.clone(), share, from.clone(), span))
    };
    // A replay leaves nothing behind.
    let writer = match until {
        Until::Tick(_) => None,
        Until::Forever => {
            let (store, positions, kept) = (cluster_store(config)?, positions.clone(), config.checkpoint.kept);
            Some(Arc::new(Writer { store, positions, runtime: runtime.clone(), kept, begun: saving(control) })
                as Arc<dyn CheckpointSink>)
        }
    };
    let alone = EngineOptions::alone(workers, start.socket.clone());
    let views = from.state.views.definitions().all().to_vec();
    let changes = ChangesKept { ms: config.changes.kept_ms, bytes_max: config.changes.kept_bytes_max };
    let rules = from.state.rules.in_force();
    let options = EngineOptions { process: *process, links, checkpoints: writer, restore, views, rules, changes, ..alone };
    weir_dataflow::run(options, (0..workers).map(feed).collect()).map_err(|failed| Error::Engine(failed.to_string()))
}

/// Tells the parent that a worker begins to save.
fn saving(control: UnixStream) -> Box<dyn Fn(u64) + Send + Sync> {
    let control = Mutex::new(control);
    Box::new(move |tick| say(&mut control.lock().unwrap_or_else(PoisonError::into_inner), &Report::Saving(tick)))
}

fn descriptors() -> io::Result<(UnixStream, TcpListener)> {
    let control: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    let listener: OwnedFd = io::stdout().as_fd().try_clone_to_owned()?;
    Ok((control.into(), listener.into()))
}

fn read_start(control: &mut UnixStream) -> io::Result<Start> {
    let mut length = [0; 4];
    control.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    let mut bytes = Vec::new();
    control.take(u64::from(length.min(START_BYTES_MAX))).read_to_end(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

/// Nobody may be there any more to hear it.
fn say(control: &mut UnixStream, report: &Report) {
    let _ = control.write_all(report.line().as_bytes());
}

fn end_with_parent(mut control: UnixStream) {
    let wait = move || {
        let mut byte = [0; 1];
        // Nothing more is ever sent: any return means that the parent has gone.
        let _ = control.read(&mut byte);
        std::process::exit(0);
    };
    std::thread::Builder::new().name("parent".to_owned()).spawn(wait).expect("a thread can be started");
}

/// Starts a child. It ends when the returned socket, or the child itself, is dropped.
pub(crate) fn start(command: &ChildCommand, listener: &TcpListener, start: &Start) -> io::Result<(Child, UnixStream)> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let child = Command::new(&command.program)
        .args(&command.arguments)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::from(OwnedFd::from(listener.try_clone()?)))
        .kill_on_drop(true)
        .spawn()?;
    let bytes = postcard::to_stdvec(start).map_err(io::Error::other)?;
    ours.write_all(&(bytes.len() as u32).to_le_bytes())?;
    ours.write_all(&bytes)?;
    let generation = start.place.generation.number;
    info!(pid = child.id(), generation, process = start.place.process, "worker child started");
    Ok((child, ours))
}

impl Report {
    fn line(&self) -> String {
        match self {
            Self::Met => "met\n".to_owned(),
            Self::Unreachable(nodes) => format!("unreachable {}\n", nodes.join(" ")),
            Self::BadCheckpoint(tick) => format!("bad-checkpoint {tick}\n"),
            Self::Saving(tick) => format!("saving {tick}\n"),
        }
    }

    /// Reads a line back; nothing for another one.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        match words.next()? {
            "met" => Some(Self::Met),
            "unreachable" => Some(Self::Unreachable(words.map(str::to_owned).collect())),
            "saving" => words.next()?.parse().ok().map(Self::Saving),
            "bad-checkpoint" => words.next()?.parse().ok().map(Self::BadCheckpoint),
            _ => None,
        }
    }
}

/// A start of the largest mesh has a few kilobytes.
const START_BYTES_MAX: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_read_back() {
        for report in [
            Report::Met,
            Report::BadCheckpoint(7),
            Report::Saving(8),
            Report::Unreachable(vec!["n1".to_owned(), "n2".to_owned()]),
        ] {
            assert_eq!(Report::parse(&report.line()), Some(report));
        }
        assert_eq!(Report::parse("what?"), None);
    }
}
