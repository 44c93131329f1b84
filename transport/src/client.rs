//! The agent's end: keeps one session with one of the nodes, whatever happens to them, on QUIC or, where UDP is not let through, on TCP.
//!
//! A task of its own connects, talks, and after any end goes on with the next node, with back-off and jitter. Frames wait in the
//! session's bounded memory meanwhile; nothing is lost but with the process.
//!
//! Promise: [`Client::send`] returns only when the frame is held. It waits while memory is full: who must not wait uses
//! [`Client::try_send`] and decides what to drop.

mod connect;
mod dial;
mod enrol;
mod explain;
mod pin;
mod pulse;
mod renew;
mod route;
mod talk;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use weir_config::{AgentConfig, ClientTls, Enrol, TransportChoice};
use weir_schema::{Epoch, Frame, Lane, Name, Seq};

use crate::error::Error;
use crate::link::Transport;
use crate::message::{FrameKey, Nack};
use crate::session::{NotTaken, Sender, SenderLimits};
use crate::tls::AgentTls;
pub use dial::Dialer;
pub use enrol::ensure_certificate;

/// An agent's way to the nodes. Cheap to clone; the last clone that goes ends the session.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    _tasks: Arc<EndWithLast>,
}

/// Where the nodes are and who we are.
#[derive(Clone)]
pub struct ClientConfig {
    /// `host:port` of each node, tried in turn.
    pub nodes: Vec<String>,
    /// The name that the nodes' certificates must carry.
    pub server_name: String,
    /// Our files.
    pub tls: ClientTls,
    /// Bytes of frames held until they are acked.
    pub memory_bytes_max: u64,
    /// Our program and its version, told to the node.
    pub software: String,
    /// QUIC, TCP, or what the network lets through.
    pub transport: TransportChoice,
    /// On TCP: the longest time until UDP is tried again.
    pub udp_retry: Duration,
    /// Enrols and renews; `None`: somebody else keeps the files of `tls` in force.
    pub enrol: Option<Enrol>,
    /// Sockets to share with other clients of this process; `None` opens its own.
    pub dialer: Option<Dialer>,
}

/// What a client has done and holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientStats {
    /// The node that said Welcome last, while the session with it holds.
    pub connected_to: Option<Name>,
    /// What carries that session.
    pub transport: Option<Transport>,
    /// Frames held.
    pub unacked_frames: u64,
    /// Their bytes.
    pub unacked_bytes: u64,
    /// Frames that nodes made durable.
    pub acked_frames: u64,
    /// Their events.
    pub acked_events: u64,
    /// Frames sent again.
    pub resent: u64,
    /// Sessions after the first.
    pub reconnects: u64,
    /// Frames that nodes refused for good; they are gone.
    pub refused_frames: u64,
    /// Their events.
    pub refused_events: u64,
    /// Why the last connection failed or ended, for people.
    pub last_error: Option<String>,
}

/// A frame that found no room. Here it is again.
#[derive(Debug, Clone, PartialEq)]
pub struct Full(pub Frame);

impl From<&AgentConfig> for ClientConfig {
    fn from(config: &AgentConfig) -> Self {
        Self {
            nodes: config.nodes.iter().map(ToString::to_string).collect(),
            server_name: config.server_name.clone(),
            tls: config.tls.clone(),
            memory_bytes_max: config.memory_bytes_max,
            software: concat!("weir-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
            transport: config.transport,
            udp_retry: Duration::from_millis(config.udp_retry_ms_max),
            enrol: config.enrol.clone(),
            dialer: None,
        }
    }
}

impl Client {
    /// Reads the certificates and begins to connect. `epoch` is this run of the agent. Needs a tokio runtime.
    pub fn start(config: ClientConfig, epoch: Epoch) -> Result<Self, Error> {
        let tls = AgentTls::load(&config.tls)?;
        if config.nodes.is_empty() {
            return Err(Error::NoNodes);
        }
        let limits = SenderLimits { memory_bytes_max: config.memory_bytes_max, software: config.software.clone() };
        let shared = Arc::new(Shared {
            sender: Mutex::new(Sender::new(limits, epoch)),
            wake: Notify::new(),
            room: Notify::new(),
            closed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            transport: Mutex::new(Transport::Quic),
            last_error: Mutex::new(None),
            renewals: watch::Sender::new(()),
        });
        let mut tasks = Vec::new();
        if let Some(enrol) = config.enrol.clone() {
            tasks.push(tokio::spawn(renew::run(shared.clone(), config.clone(), enrol)));
        }
        tasks.push(tokio::spawn(connect::run(shared.clone(), config, tls)));
        Ok(Self { shared: shared.clone(), _tasks: Arc::new(EndWithLast { shared, tasks }) })
    }

    /// Holds a frame until it is acked. Waits for room.
    pub async fn send(&self, frame: Frame) -> Result<(), Error> {
        let mut frame = frame;
        loop {
            let mut room = std::pin::pin!(self.shared.room.notified());
            room.as_mut().enable();
            match self.push(frame)? {
                Ok(()) => return Ok(()),
                Err(Full(back)) => frame = back,
            }
            room.await;
        }
    }

    /// Holds a frame until it is acked, if there is room now.
    pub fn try_send(&self, frame: Frame) -> Result<Result<(), Full>, Error> {
        self.push(frame)
    }

    /// Waits until nothing is held, at most until `deadline`.
    pub async fn flush(&self, deadline: Instant) -> Result<(), Error> {
        loop {
            let mut room = std::pin::pin!(self.shared.room.notified());
            room.as_mut().enable();
            let stats = self.shared.sender().stats();
            if stats.unacked_frames == 0 {
                return Ok(());
            }
            let late = Error::NotFlushed { frames: stats.unacked_frames, bytes: stats.unacked_bytes };
            if self.shared.closed.load(Ordering::Acquire) {
                return Err(late);
            }
            if tokio::time::timeout_at(deadline.into(), room).await.is_err() {
                return Err(late);
            }
        }
    }

    /// What was done and is held.
    pub fn stats(&self) -> ClientStats {
        let sender = self.shared.sender();
        let stats = sender.stats();
        ClientStats {
            connected_to: sender.node().cloned(),
            transport: sender.node().map(|_| *self.shared.transport()),
            unacked_frames: stats.unacked_frames,
            unacked_bytes: stats.unacked_bytes,
            acked_frames: stats.acked_frames,
            acked_events: stats.acked_events,
            resent: stats.resent,
            reconnects: stats.welcomes.saturating_sub(1),
            refused_frames: stats.refused_frames,
            refused_events: stats.refused_events,
            last_error: self.shared.last_error().clone(),
        }
    }

    /// The frames that nodes refused since the last call, to be told as losses. At most the last 1,024; `stats` counts all.
    pub fn take_refused(&self) -> Vec<Nack> {
        self.shared.sender().take_refused()
    }

    /// Says that frames of `lane` from `floor` on are kept elsewhere and come later; see `Sender::set_floor` for why that matters.
    pub fn set_floor(&self, epoch: Epoch, lane: Lane, floor: Option<Seq>) {
        self.shared.sender().set_floor(epoch, lane, floor);
    }

    /// Whether exactly this frame is held: neither durable at a node nor refused.
    pub fn holds(&self, key: &FrameKey) -> bool {
        self.shared.sender().holds(key)
    }

    /// Gives back all frames that are held, in the order they were pushed, and forgets them.
    pub fn take_held(&self) -> Vec<(FrameKey, Bytes)> {
        let held = self.shared.sender().take_held();
        self.shared.room.notify_waiters();
        held
    }

    /// Bytes of frames for which there is credit beyond all that is held; none without a session.
    pub fn spare_bytes(&self) -> u64 {
        self.shared.sender().spare_bytes()
    }

    /// Waits until a node has said something: there may be room, or spare credit.
    pub async fn heard(&self) {
        self.shared.room.notified().await;
    }

    /// Says good-bye and ends the session. What is held is dropped: flush first.
    pub async fn close(self) {
        self.shared.close();
        let _ = tokio::time::timeout(CLOSE_TIME_MAX, self.shared.ended()).await;
    }

    fn push(&self, frame: Frame) -> Result<Result<(), Full>, Error> {
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        match self.shared.sender().push(frame) {
            Ok(()) => {}
            Err(NotTaken::Full(frame)) => return Ok(Err(Full(frame))),
            Err(NotTaken::TooLarge { bytes, bytes_max }) => return Err(Error::FrameTooLarge { bytes, bytes_max }),
            Err(NotTaken::Key(key)) => return Err(Error::FrameKey { key }),
        }
        self.shared.wake.notify_one();
        Ok(Ok(()))
    }
}

/// What the client and its task share.
struct Shared {
    sender: Mutex<Sender>,
    /// There may be something to send, or an end.
    wake: Notify,
    /// There may be room, or nothing held any more, or an end.
    room: Notify,
    closed: AtomicBool,
    /// The task is through.
    ended: AtomicBool,
    /// What carries the session that runs or ran last. Locked after the sender, if both are.
    transport: Mutex<Transport>,
    last_error: Mutex<Option<String>>,
    /// Tells of every new certificate.
    renewals: watch::Sender<()>,
}

impl Shared {
    fn renewed(&self) {
        self.renewals.send_replace(());
    }

    fn sender(&self) -> MutexGuard<'_, Sender> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transport(&self) -> MutexGuard<'_, Transport> {
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_error(&self) -> MutexGuard<'_, Option<String>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.sender().finish();
        self.wake.notify_one();
        self.room.notify_waiters();
    }

    async fn ended(&self) {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            room.await;
        }
    }
}

/// Ends the tasks when the last clone of a client goes.
struct EndWithLast {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for EndWithLast {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// For saying good-bye.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);
