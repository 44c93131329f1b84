//! The node's side of the handle protocol: asks the worker child, many questions at a time over one Unix socket.
//!
//! The child may end and be started again at any moment: questions under way then fail with `Away`, and the next ones go to the
//! new child. Nothing is asked twice by itself.
//!
//! Promise: rows never go back in time (a frontier may). Workers that were started anew begin at an older tick than was answered last; until they have
//! caught up, whoever asks for the newest waits for that tick.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use weir_dataflow::handle::{self, At, ChangesRead, Completeness, Digest, Failure, LENGTH_BYTES, Read, Request, Response, Stats};

/// Asks the workers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Live {
    shared: Arc<Shared>,
    _task: Arc<Task>,
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LiveError {
    /// No worker child is there, or it went before the answer was complete.
    #[error("the workers of this node are starting or restarting: try again")]
    Away,
    /// The child speaks another language.
    #[error("the workers' answer could not be read: {0}")]
    Protocol(String),
    /// The workers say no.
    #[error("{0}")]
    Failed(#[from] Failure),
}

/// Relations at one tick.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The tick.
    pub tick: u64,
    /// What it may lack.
    pub completeness: Completeness,
    /// The rows of each read, in the order of the reads.
    pub reads: Vec<Vec<RecordBatch>>,
}

/// How far the answers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frontier {
    /// The newest closed tick.
    pub closed: Option<u64>,
    /// The oldest tick held.
    pub since: u64,
}

impl Live {
    /// Asks the workers that listen at `socket`, as soon as they do. Must be called inside a tokio runtime.
    pub fn start(socket: PathBuf) -> Self {
        let (state, _) = watch::channel(None);
        let shared = Arc::new(Shared { connection: state, waiting: Mutex::default(), answered: AtomicU64::new(0) });
        let task = tokio::spawn(Arc::clone(&shared).keep_connected(socket));
        Self { shared, _task: Arc::new(Task(task)) }
    }

    /// The rows of some relations at one tick. The newest is never older than what was answered before.
    pub async fn peek(&self, at: At, reads: Vec<Read>) -> Result<Snapshot, LiveError> {
        let answered = self.shared.answered.load(Ordering::Acquire);
        let mut snapshot = self.peek_once(at, reads.clone()).await?;
        if at == At::Latest && snapshot.tick < answered {
            snapshot = self.peek_once(At::Tick(answered), reads).await?;
        }
        self.shared.answered.fetch_max(snapshot.tick, Ordering::AcqRel);
        Ok(snapshot)
    }

    /// From now on the newest is never older than this tick: somebody was told that it is done.
    pub(crate) fn require(&self, tick: u64) {
        self.shared.answered.fetch_max(tick, Ordering::AcqRel);
    }

    async fn peek_once(&self, at: At, reads: Vec<Read>) -> Result<Snapshot, LiveError> {
        let mut batches = vec![Vec::new(); reads.len()];
        let mut answers = self.ask(|id| Request::Peek { id, at, reads }).await?;
        loop {
            match answers.next().await? {
                Response::Rows { read, ipc, .. } => {
                    let into = batches.get_mut(read as usize).ok_or_else(|| LiveError::Protocol("rows of no read".into()))?;
                    into.extend(decode(&ipc)?);
                }
                Response::Done { tick, completeness, .. } => return Ok(Snapshot { tick, completeness, reads: batches }),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// What some ticks changed in one relation, in no order; columns `weir_tick` and `weir_diff` come first.
    pub async fn changes(&self, read: ChangesRead) -> Result<Vec<RecordBatch>, LiveError> {
        let mut batches = Vec::new();
        let mut answers = self.ask(|id| Request::Changes { id, read }).await?;
        loop {
            match answers.next().await? {
                Response::Rows { ipc, .. } => batches.extend(decode(&ipc)?),
                Response::Done { .. } => return Ok(batches),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// How far the answers are.
    pub async fn frontier(&self) -> Result<Frontier, LiveError> {
        match self.ask(|id| Request::Frontier { id }).await?.next().await? {
            Response::Frontier { closed, since, .. } => Ok(Frontier { closed, since }),
            other => Err(unexpected(&other)),
        }
    }

    /// True if relations can be read at a tick (none: the newest).
    pub(crate) async fn holds(&self, tick: Option<u64>) -> Result<bool, LiveError> {
        match self.frontier().await {
            Ok(frontier) => Ok(tick.is_none_or(|tick| tick >= frontier.since)),
            Err(LiveError::Away) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// What the workers have done and hold.
    pub async fn stats(&self) -> Result<Stats, LiveError> {
        match self.ask(|id| Request::Stats { id }).await?.next().await? {
            Response::Stats { stats, .. } => Ok(stats),
            other => Err(unexpected(&other)),
        }
    }

    /// One hash per standing relation.
    pub async fn digests(&self, at: At) -> Result<(u64, Vec<Digest>), LiveError> {
        match self.ask(|id| Request::Digest { id, at }).await?.next().await? {
            Response::Digests { tick, views, .. } => Ok((tick, views)),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(&self, request: impl FnOnce(u64) -> Request) -> Result<Answers, LiveError> {
        let mut state = self.shared.connection.subscribe();
        let connected = tokio::time::timeout(CONNECT_WAIT, state.wait_for(Option::is_some)).await;
        let connection = connected.ok().and_then(Result::ok).and_then(|state| state.clone()).ok_or(LiveError::Away)?;
        let (sender, receiver) = mpsc::channel(ANSWERS_AHEAD_MAX);
        let id = self.shared.register(sender);
        let answers = Answers { id, receiver, shared: Arc::clone(&self.shared) };
        let bytes = handle::encode(&request(id)).map_err(|error| LiveError::Protocol(error.to_string()))?;
        connection.send(bytes).await.map_err(|_| LiveError::Away)?;
        Ok(answers)
    }
}

#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct Shared {
    /// Where requests go while there is a connection.
    connection: watch::Sender<Option<mpsc::Sender<Vec<u8>>>>,
    waiting: Mutex<Waiting>,
    /// The newest tick that anybody was given rows of.
    answered: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    open: HashMap<u64, mpsc::Sender<Response>>,
}

impl Shared {
    fn register(&self, sender: mpsc::Sender<Response>) -> u64 {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.next += 1;
        let id = waiting.next;
        waiting.open.insert(id, sender);
        id
    }

    fn forget(&self, id: u64) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&id);
    }

    fn asker(&self, id: u64) -> Option<mpsc::Sender<Response>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).open.get(&id).cloned()
    }

    async fn keep_connected(self: Arc<Self>, socket: PathBuf) {
        loop {
            if let Ok(stream) = UnixStream::connect(&socket).await {
                self.serve(stream).await;
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    /// Moves messages until either direction ends.
    async fn serve(&self, stream: UnixStream) {
        let (reading, writing) = stream.into_split();
        let (sender, requests) = mpsc::channel(REQUESTS_AHEAD_MAX);
        self.connection.send_replace(Some(sender));
        let ended = tokio::select! {
            ended = self.read(reading) => ended,
            ended = write(writing, requests) => ended,
        };
        self.connection.send_replace(None);
        // Whoever still waits learns from the closed channel that the child has gone.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).open.clear();
        if let Err(error) = ended {
            tracing::warn!(%error, "the connection to the workers ended");
        }
    }

    async fn read(&self, mut reading: OwnedReadHalf) -> Result<(), handle::Error> {
        loop {
            let mut prefix = [0; LENGTH_BYTES];
            reading.read_exact(&mut prefix).await?;
            let mut body = vec![0; handle::body_len(prefix)?];
            reading.read_exact(&mut body).await?;
            let response: Response = handle::decode(&body)?;
            // A question that was given up is no longer registered: its answer is dropped.
            if let Some(asker) = self.asker(response.id()) {
                let _ = asker.send(response).await;
            }
        }
    }
}

async fn write(mut writing: OwnedWriteHalf, mut requests: mpsc::Receiver<Vec<u8>>) -> Result<(), handle::Error> {
    while let Some(bytes) = requests.recv().await {
        writing.write_all(&bytes).await?;
    }
    Ok(())
}

/// The answers to one question. Dropped, the question is given up.
struct Answers {
    id: u64,
    receiver: mpsc::Receiver<Response>,
    shared: Arc<Shared>,
}

impl Answers {
    async fn next(&mut self) -> Result<Response, LiveError> {
        match self.receiver.recv().await {
            Some(Response::Failed { failure, .. }) => Err(failure.into()),
            Some(response) => Ok(response),
            None => Err(LiveError::Away),
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.shared.forget(self.id);
    }
}

fn decode(ipc: &[u8]) -> Result<Vec<RecordBatch>, LiveError> {
    let reader = StreamReader::try_new(ipc, None).map_err(|error| LiveError::Protocol(error.to_string()))?;
    reader.collect::<Result<_, _>>().map_err(|error| LiveError::Protocol(error.to_string()))
}

fn unexpected(response: &Response) -> LiveError {
    LiveError::Protocol(format!("an answer to another question than number {}", response.id()))
}

/// How long a question waits for the workers to be there.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// Between two attempts to reach the workers.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// Requests not yet written.
const REQUESTS_AHEAD_MAX: usize = 64;
/// Pieces of one answer not yet taken.
const ANSWERS_AHEAD_MAX: usize = 64;
