//! The Unix socket on which a node asks its workers. A thin shell: it moves messages between sockets and the first worker.
//!
//! One thread accepts, one reads and one writes per connection, one beats ten times a second. The socket is the owner's alone.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use crate::handle::{self, Request, Response};

/// What comes to the first worker from outside.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A request, and where its answers go.
    Request(Request, Arc<Outbox>),
    /// A tenth of a second has passed.
    Beat,
}

/// Answers on their way to one connection. The worker never waits for it.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: Mutex<VecDeque<Response>>,
    ready: Condvar,
    bytes: AtomicUsize,
    closed: AtomicBool,
}

impl Outbox {
    /// Queues an answer. One that does not fit closes the connection: its reader has stopped reading.
    pub(crate) fn send(&self, response: Response) {
        let bytes = weight(&response);
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > OUTBOX_BYTES_MAX {
            tracing::warn!("a reader of answers is too slow: its connection is closed");
            self.close();
        }
        if self.is_open() {
            self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(response);
            self.ready.notify_one();
        }
    }

    /// False when nobody will read the answers.
    pub(crate) fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Acquire)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.ready.notify_one();
    }

    fn next(&self) -> Option<Response> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if !self.is_open() {
                return None;
            }
            if let Some(response) = queue.pop_front() {
                self.bytes.fetch_sub(weight(&response), Ordering::Relaxed);
                return Some(response);
            }
            queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn weight(response: &Response) -> usize {
    if let Response::Rows { ipc, .. } = response { ipc.len() + 256 } else { 256 }
}

/// The running server. Dropped, it stops listening.
#[derive(Debug)]
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    path: std::path::PathBuf,
}

impl Server {
    /// Listens at `path`; requests come out of the receiver.
    pub(crate) fn start(path: &Path) -> io::Result<(Self, Receiver<Incoming>, Waker)> {
        if fs::symlink_metadata(path).is_ok() {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let (sender, receiver) = sync_channel(INCOMING_MAX);
        let (stop, waker) = (Arc::new(AtomicBool::new(false)), Waker::default());
        let inlet = Inlet { sender, waker: waker.clone(), stop: Arc::clone(&stop) };
        let beats = inlet.clone();
        thread::Builder::new().name("handle-beat".into()).spawn(move || beats.beat())?;
        thread::Builder::new().name("handle-accept".into()).spawn(move || inlet.accept(&listener))?;
        Ok((Self { stop, path: path.to_owned() }, receiver, waker))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the accepting thread; whether it works does not matter any more.
        let _ = UnixStream::connect(&self.path);
        let _ = fs::remove_file(&self.path);
    }
}

/// Wakes the first worker when it is parked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waker(Arc<Mutex<Option<Thread>>>);

impl Waker {
    /// Called by the worker on its own thread.
    pub(crate) fn here(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
    }

    fn wake(&self) {
        if let Some(worker) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            worker.unpark();
        }
    }
}

#[derive(Clone)]
struct Inlet {
    sender: SyncSender<Incoming>,
    waker: Waker,
    stop: Arc<AtomicBool>,
}

impl Inlet {
    fn accept(&self, listener: &UnixListener) {
        for connection in listener.incoming() {
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let started = connection.and_then(|socket| self.serve(socket));
            if let Err(error) = started {
                tracing::warn!(%error, "a connection to the workers' socket could not be served");
                thread::sleep(BEAT);
            }
        }
    }

    fn serve(&self, socket: UnixStream) -> io::Result<()> {
        let (outbox, writing) = (Arc::new(Outbox::default()), socket.try_clone()?);
        let answers = Arc::clone(&outbox);
        thread::Builder::new().name("handle-write".into()).spawn(move || write(writing, &answers))?;
        let inlet = self.clone();
        thread::Builder::new().name("handle-read".into()).spawn(move || inlet.read(socket, &outbox))?;
        Ok(())
    }

    fn read(&self, mut socket: UnixStream, outbox: &Arc<Outbox>) {
        loop {
            match handle::read::<Request>(&mut socket) {
                Ok(Some(request)) => {
                    // Waiting here holds back this connection alone.
                    if self.sender.send(Incoming::Request(request, Arc::clone(outbox))).is_err() {
                        break;
                    }
                    self.waker.wake();
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "a request to the workers could not be read");
                    break;
                }
            }
        }
        outbox.close();
    }

    fn beat(&self) {
        while !self.stop.load(Ordering::Acquire) {
            thread::sleep(BEAT);
            if let Err(TrySendError::Disconnected(_)) = self.sender.try_send(Incoming::Beat) {
                return;
            }
        }
    }
}

fn write(mut socket: UnixStream, outbox: &Outbox) {
    while let Some(response) = outbox.next() {
        let sent = handle::encode(&response).and_then(|bytes| Ok(socket.write_all(&bytes)?));
        if let Err(error) = sent {
            tracing::warn!(%error, "an answer of the workers could not be sent");
            break;
        }
    }
    outbox.close();
    // Ends the reading thread as well.
    let _ = socket.shutdown(std::net::Shutdown::Both);
}

/// Requests read and not yet taken up by the worker.
const INCOMING_MAX: usize = 1_024;
/// Bytes of answers that wait for one connection.
const OUTBOX_BYTES_MAX: usize = 1 << 30;
/// How often the worker is told that time passes.
const BEAT: Duration = Duration::from_millis(100);
