//! The node's end, on QUIC and TCP: takes agents' connections and hands their frames to ingest.
//!
//! One task per connection, two halves: one reads frames and waits for room, the other writes what became of them. A slow ingest
//! holds readers back by the credit of each connection and by the budget of all; it never holds back acks. An agent that sends
//! faster than it may gets no new credit for a while.
//!
//! Promises: the identity of a frame is its connection's certificate. What waits between socket and ingest never exceeds
//! `in_flight_bytes_max`. A frame whose [`AckHandle`] is dropped without a verdict ends its connection, so its agent sends it again.

mod admit;
mod certificate;
mod connection;
mod enrol;
mod listen;
mod pace;
mod registry;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, TransportErrorCode};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tracing::warn;
use weir_config::{Limits, ServerTls};
use weir_schema::{AgentIdentity, Epoch, Frame, Lane, Name};

use crate::ack::AckRanges;
use crate::ca::Authority;
use crate::enrol::{Desk, DeskOptions};
use crate::error::Error;
use crate::message::{Bye, RefusedReason};
use crate::socket;
use crate::tls::{Callers, NodeTls};
use crate::trust::Admission;
pub use connection::AckHandle;
pub use listen::Listening;
pub use pace::Rates;
use registry::Registry;

/// A listening node.
pub struct Server {
    endpoint: Endpoint,
    local_addr: SocketAddr,
    tcp: Option<TcpListener>,
    tls: Arc<NodeTls>,
    limits: TransportLimits,
    desk: Option<Arc<Desk>>,
}

/// Which agents a server takes, and whether it makes new ones.
#[derive(Debug, Clone, Default)]
pub struct Doors {
    /// Which agents with a good certificate are taken.
    pub admission: Admission,
    /// Enrols agents and renews their certificates; `None`: others do.
    pub enrols: Option<DeskOptions>,
}

/// Stops a running [`Server`].
#[derive(Debug, Clone)]
pub struct ServerHandle {
    endpoint: Endpoint,
}

/// A frame that came, and who sent it. What is told of it is an [`AckHandle`]'s, or a simulator's.
pub struct Incoming<A = AckHandle> {
    /// Out of the connection's certificate.
    pub identity: Arc<AgentIdentity>,
    /// As it came.
    pub frame: Frame,
    /// Where to say what became of it.
    pub ack: A,
}

/// Takes what became of a frame. Dropped without a word, it ends the connection, so that the agent sends the frame again.
pub trait Acknowledge {
    /// The frame will be found after a crash: its agent may forget it.
    fn durable(self);
    /// The frame will never be taken: its agent shall not send it again, and counts it as lost.
    fn refused(self, reason: RefusedReason);
}

/// What is durable of an agent's run. Asked once per connection, on a thread that may block.
pub trait ResumeState: Send + Sync {
    /// The durable seqs of each lane of this run.
    fn acked(&self, agent: &AgentIdentity, epoch: Epoch) -> Vec<(Lane, AckRanges)>;
}

/// What agents may use.
#[derive(Debug, Clone, Copy)]
pub struct TransportLimits {
    /// Longest frame.
    pub frame_bytes_max: usize,
    /// Bytes of frames between socket and verdict, all agents together.
    pub in_flight_bytes_max: usize,
    /// Bytes of frames between socket and verdict, one connection.
    pub window_bytes: usize,
    /// Agents connected at once.
    pub agents_max: usize,
    /// Connections with one certificate; a newer one ends the oldest.
    pub connections_per_agent_max: usize,
    /// Handshakes at once on TCP; a quarter of it from one address.
    pub half_open_max: usize,
    /// How fast one agent may send.
    pub rates: Rates,
    /// For a handshake.
    pub handshake_time_max: Duration,
    /// From a frame's first byte to its last.
    pub frame_time_max: Duration,
    /// Without a packet, after which a connection is given up.
    pub idle_time_max: Duration,
}

impl From<&Limits> for TransportLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            frame_bytes_max: limits.frame_bytes_max,
            in_flight_bytes_max: limits.in_flight_bytes_max,
            window_bytes: WINDOW_BYTES.max(2 * limits.frame_bytes_max),
            agents_max: limits.agents_max,
            connections_per_agent_max: limits.connections_per_agent_max,
            half_open_max: limits.half_open_max,
            rates: Rates {
                events_per_second_max: limits.agent_events_per_second_max,
                bytes_per_second_max: limits.agent_bytes_per_second_max,
            },
            handshake_time_max: Duration::from_millis(limits.handshake_ms_max),
            frame_time_max: Duration::from_millis(limits.frame_ms_max),
            idle_time_max: Duration::from_millis(limits.idle_ms_max),
        }
    }
}

impl Default for TransportLimits {
    fn default() -> Self {
        Self::from(&Limits::default())
    }
}

impl Server {
    /// As `listen`, with TCP at the same port number.
    pub async fn bind(listen: SocketAddr, tls: &ServerTls, limits: TransportLimits) -> Result<Self, Error> {
        Self::listen(listen.into(), tls, limits).await
    }

    /// Reads the certificates and opens the ports, for agents of all regions. Needs a tokio runtime.
    pub async fn listen(listening: Listening, tls: &ServerTls, limits: TransportLimits) -> Result<Self, Error> {
        Self::listen_for(listening, tls, limits, Doors::default()).await
    }

    /// As `listen`, for the agents of `doors`.
    #[expect(clippy::unused_async, reason = "the sockets belong to the runtime they are opened in")]
    pub async fn listen_for(listening: Listening, tls: &ServerTls, limits: TransportLimits, doors: Doors) -> Result<Self, Error> {
        let callers = if doors.enrols.is_some() { Callers::AlsoNew } else { Callers::Certified };
        let node = NodeTls::load_for(tls, doors.admission.clone(), callers)?;
        if let Some(options) = &doors.enrols {
            // A node that could not issue shall say so now, not when an agent asks.
            Authority::open(&options.authority)?;
        }
        let desk = doors.enrols.map(|options| Arc::new(Desk::new(options, doors.admission, node.node.clone())));
        let ports = listen::open(listening, &node, &limits)?;
        let (endpoint, local_addr, tcp) = (ports.endpoint, ports.quic_addr, ports.tcp);
        Ok(Self { endpoint, local_addr, tcp, tls: Arc::new(node), limits, desk })
    }

    /// Where it listens for QUIC; the port is the real one when 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where it listens for TCP; `None` when that is off.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Who it is, by its certificate.
    pub fn node(&self) -> &Name {
        &self.tls.node
    }

    /// Stops it later.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle { endpoint: self.endpoint.clone() }
    }

    /// Serves until it is stopped or nobody takes the frames any more.
    pub async fn run(self, to_ingest: mpsc::Sender<Incoming>, state: Arc<dyn ResumeState>) {
        let limits = &self.limits;
        let begun_bytes_max = (limits.in_flight_bytes_max / BEGUN_PART).max(limits.frame_bytes_max);
        let begun_bytes_max = u32::try_from(begun_bytes_max).unwrap_or(u32::MAX);
        let shared = Arc::new(Shared {
            tls: self.tls,
            limits: self.limits,
            budget: Arc::new(Semaphore::new(self.limits.in_flight_bytes_max.min(Semaphore::MAX_PERMITS))),
            begun: Arc::new(Semaphore::new(begun_bytes_max as usize)),
            begun_bytes_max,
            registry: Registry::default(),
            state,
            to_ingest,
            desk: self.desk,
        });
        let rereading = tokio::spawn(reread(shared.tls.clone()));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => { connections.spawn(admit::quic(shared.clone(), incoming)); }
                    None => break,
                },
                accepted = accept(self.tcp.as_ref(), &shared.registry) => {
                    let (stream, remote) = accepted;
                    connections.spawn(admit::tcp(shared.clone(), stream, remote));
                }
                Some(_) = connections.join_next() => {}
                () = shared.to_ingest.closed() => break,
            }
        }
        rereading.abort();
        self.endpoint.close(socket::close_code(Bye::Done), b"the node is stopping");
        drop(self.tcp);
        shared.registry.leave_all(Bye::Done);
        // Lets the last words out: an agent that hears of the end goes to another node at once.
        let said = async {
            while connections.join_next().await.is_some() {}
            self.endpoint.wait_idle().await;
        };
        let _ = tokio::time::timeout(CLOSE_TIME_MAX, said).await;
        connections.shutdown().await;
    }
}

/// Looks now and then whether the node's files have changed. Ends when dropped.
async fn reread(tls: Arc<NodeTls>) {
    loop {
        tokio::time::sleep(REREAD_EVERY).await;
        let trust = tls.trust.clone();
        // The disk may make it wait; a panic in there leaves what was read before.
        let _ = tokio::task::spawn_blocking(move || trust.reread()).await;
    }
}

/// The next caller on TCP; never, where that is off.
async fn accept(listener: Option<&TcpListener>, registry: &Registry) -> (TcpStream, SocketAddr) {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                // Mostly too many open files: those who are connected go on, and end some time.
                if let Some(unsaid) = registry.may_warn() {
                    warn!(%error, unsaid, "no agent can be accepted on TCP now");
                }
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

impl ServerHandle {
    /// Ends all connections and the server's `run`.
    pub fn close(&self) {
        self.endpoint.close(socket::close_code(Bye::Done), b"the node is stopping");
    }
}

/// What all connections of a server use.
struct Shared {
    tls: Arc<NodeTls>,
    limits: TransportLimits,
    /// Bytes of frames that may be on their way to ingest.
    budget: Arc<Semaphore>,
    /// Bytes of long frames that have begun to come and are not whole.
    begun: Arc<Semaphore>,
    begun_bytes_max: u32,
    registry: Registry,
    state: Arc<dyn ResumeState>,
    to_ingest: mpsc::Sender<Incoming>,
    desk: Option<Arc<Desk>>,
}

/// Whether a connection ended by an alert of TLS.
pub(crate) fn is_tls_alert(code: TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

/// What one connection may have outstanding.
const WINDOW_BYTES: usize = 4 << 20;
/// Long frames that are not whole may take this part of `in_flight_bytes_max`, beside it.
const BEGUN_PART: usize = 4;
/// Handshakes of QUIC at once.
const HALF_OPEN_MAX: usize = 4096;
/// For saying good-bye.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);
/// How often the node's certificate files are looked at.
const REREAD_EVERY: Duration = Duration::from_secs(2);
/// After a caller that could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(250);
