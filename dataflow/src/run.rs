//! Starts the workers of one process and the socket they answer on.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, Once, PoisonError};

use timely::WorkerConfig;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::communication::{Config as Threads, Hooks};

use crate::checkpoint::{CheckpointError, CheckpointSink, Restore, Saved};
use crate::definition::ViewDefinition;
use crate::feed::Feed;
use crate::history::ChangesKept;
use crate::rulebook::Rules;
use crate::server::Server;
use crate::worker::{self, Door, Saves, Shared, Start};

/// The shape of the mesh, and where this process stands in it.
pub struct EngineOptions {
    /// This process's place in `links`.
    pub process: usize,
    /// Worker threads per process, the same in all of them.
    pub workers: usize,
    /// A socket to each other process of the mesh, by place, none at one's own; empty: this process is the whole mesh. Whoever makes them
    /// answers for who is at their other ends: workers trust what comes.
    pub links: Vec<Option<UnixStream>>,
    /// The Unix socket of the handle protocol.
    pub socket: PathBuf,
    /// Where checkpoints go that the chain commands; none: they are not made.
    pub checkpoints: Option<Arc<dyn CheckpointSink>>,
    /// What to begin from; none: the chain's beginning. The feeds go on behind its tick.
    pub restore: Option<Arc<Restore>>,
    /// The views that people have made up to the tick of `restore`, in the order in which they were made.
    pub views: Vec<ViewDefinition>,
    /// How much of what changed is kept for subscribers.
    pub changes: ChangesKept,
    /// The rules that are in force at the tick of `restore`.
    pub rules: Option<Rules>,
}

impl EngineOptions {
    /// One process of one mesh, which begins at the chain's beginning and makes no checkpoints.
    pub fn alone(workers: usize, socket: PathBuf) -> Self {
        let (links, views, changes) = (Vec::new(), Vec::new(), ChangesKept::default());
        Self { process: 0, workers, links, socket, checkpoints: None, restore: None, views, changes, rules: None }
    }
}

impl std::fmt::Debug for EngineOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let restore = self.restore.as_ref().map(|restore| restore.tick());
        f.debug_struct("EngineOptions")
            .field("process", &self.process)
            .field("workers", &self.workers)
            .field("processes", &self.links.len().max(1))
            .field("socket", &self.socket)
            .field("restore", &restore)
            .finish_non_exhaustive()
    }
}

/// Why the workers ended or could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options do not fit together.
    #[error("could not start the workers: {0}")]
    Options(String),
    /// The socket could not be made.
    #[error("could not listen on the workers' socket \"{path}\": {source}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A feed gave something impossible, or said it cannot go on.
    #[error("the workers' feed failed: {0}")]
    Feed(String),
    /// The checkpoint cannot be begun from.
    #[error("could not begin from the checkpoint: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// A shipped view could not be built.
    #[error("could not build view \"{view}\": {why}")]
    View {
        /// Which.
        view: String,
        /// Why.
        why: String,
    },
}

/// Runs this process's workers, one per feed, and answers on the socket. Blocks; returns only with an error.
///
/// In a mesh of several processes the death of one ends all: a worker that panics ends its process.
pub fn run(options: EngineOptions, feeds: Vec<Box<dyn Feed>>) -> Result<(), Error> {
    let processes = options.links.len().max(1);
    if feeds.len() != options.workers || options.workers == 0 {
        return Err(Error::Options(format!("{} feeds for {} workers", feeds.len(), options.workers)));
    }
    if options.process >= processes {
        return Err(Error::Options(format!("process {} of {processes}", options.process)));
    }
    exit_on_panic();
    let socket = |source| Error::Socket { path: options.socket.clone(), source };
    let (_server, incoming, waker) = Server::start(&options.socket).map_err(socket)?;
    let door = Door { incoming, waker, process: options.process };
    let parts = feeds.into_iter().zip(std::iter::once(Some(door)).chain(std::iter::repeat_with(|| None)));
    // Workers start in any order, and each takes the part of its own place.
    let parts = Mutex::new(parts.map(Some).collect::<VecDeque<_>>());
    let shared = Arc::new(Shared::default());
    let (threads, ours) = (options.workers, Arc::clone(&shared));
    let saves = options.checkpoints.map(|sink| Saves { to: write_checkpoints(Arc::clone(&sink), threads), sink });
    let (restore, views, changes, rules) = (options.restore, options.views, options.changes, options.rules);
    let start = Start { restore, saves, views, changes, rules };
    let (builders, held) = allocators(options.links, options.process, threads)?;
    let guards = timely::execute::execute_from(builders, held, WorkerConfig::default(), move |worker| {
        let place = worker.index() % threads;
        let part = parts.lock().unwrap_or_else(PoisonError::into_inner)[place].take();
        let (feed, door) = part.expect("each worker starts once");
        worker::run(worker, feed, door, processes, &ours, &start);
    });
    for ended in guards.map_err(Error::Options)?.join() {
        if let Err(panic) = ended {
            shared.fail(Error::Options(format!("a worker panicked: {panic}")));
        }
    }
    Err(shared.take_error().unwrap_or_else(|| Error::Options("the workers ended".into())))
}

/// Packs what workers save and hands it on, one part after the other. A worker that finds no room skips its part.
fn write_checkpoints(sink: Arc<dyn CheckpointSink>, workers: usize) -> SyncSender<Saved> {
    let (sender, receiver) = sync_channel::<Saved>(workers);
    let write = move || receiver.into_iter().for_each(|saved| sink.put(saved.pack()));
    std::thread::Builder::new().name("checkpoint".into()).spawn(write).expect("a thread can be started");
    sender
}

/// How the workers of this process talk to each other, and over the links to those of other processes. What is held ends with them.
fn allocators(
    links: Vec<Option<UnixStream>>,
    process: usize,
    threads: usize,
) -> Result<(Vec<AllocatorBuilder>, Box<dyn std::any::Any + Send>), Error> {
    if links.len() < 2 {
        let alone = if threads == 1 { Threads::Thread } else { Threads::Process(threads) };
        return alone.try_build().map_err(Error::Options);
    }
    let missing = links.iter().enumerate().position(|(at, link)| link.is_none() != (at == process));
    if let Some(at) = missing {
        return Err(Error::Options(format!("process {process} has no link to process {at}")));
    }
    let hooks = Hooks::default();
    let local = ProcessBuilder::new_typed_vector(threads, hooks.refill.clone(), hooks.spill.clone());
    let (builders, guard) = initialize_networking_from_sockets(local, links, process, threads, hooks)
        .map_err(|error| Error::Options(format!("the links of the mesh: {error}")))?;
    Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(guard)))
}

/// A thread of the mesh that dies would leave the others waiting for ever: it takes the process with it.
fn exit_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            before(info);
            if std::thread::current().name().is_some_and(|name| name.starts_with("timely:")) {
                tracing::error!(%info, "a thread of the mesh panicked: the process ends");
                std::process::exit(PANIC_STATUS);
            }
        }));
    });
}

/// Exit status of a process whose mesh thread panicked.
const PANIC_STATUS: i32 = 101;
