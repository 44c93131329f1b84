//! Starts the workers of one process and the socket they answer on.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Once, PoisonError};

use timely::{CommunicationConfig, Config, WorkerConfig};

use crate::feed::Feed;
use crate::server::Server;
use crate::worker::{self, Door, Shared};

/// The shape of the mesh, and where this process stands in it.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// This process's place among `addresses`.
    pub process: usize,
    /// Worker threads per process, the same in all of them.
    pub workers: usize,
    /// Where each process listens for the others; none or one: this process is the whole mesh.
    pub addresses: Vec<String>,
    /// The Unix socket of the handle protocol.
    pub socket: PathBuf,
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
    let processes = options.addresses.len().max(1);
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
    let guards = timely::execute(config(&options), move |worker| {
        let place = worker.index() % threads;
        let part = parts.lock().unwrap_or_else(PoisonError::into_inner)[place].take();
        let (feed, door) = part.expect("each worker starts once");
        worker::run(worker, feed, door, processes, &ours);
    });
    for ended in guards.map_err(Error::Options)?.join() {
        if let Err(panic) = ended {
            shared.fail(Error::Options(format!("a worker panicked: {panic}")));
        }
    }
    Err(shared.take_error().unwrap_or_else(|| Error::Options("the workers ended".into())))
}

fn config(options: &EngineOptions) -> Config {
    let communication = match (options.addresses.len(), options.workers) {
        (0 | 1, 1) => CommunicationConfig::Thread,
        (0 | 1, workers) => CommunicationConfig::Process(workers),
        (_, threads) => CommunicationConfig::Cluster {
            threads,
            process: options.process,
            addresses: options.addresses.clone(),
            report: false,
            zerocopy: false,
        },
    };
    Config { communication, worker: WorkerConfig::default() }
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
