//! The node's end on QUIC: takes agents' connections and hands their frames to ingest.
//!
//! One task per connection, two halves: one reads frames and waits for room, the other writes what became of them. A slow ingest
//! holds readers back by the credit of each connection and by the budget of all; it never holds back acks.
//!
//! Promises: the identity of a frame is its connection's certificate. What waits between socket and ingest never exceeds
//! `in_flight_bytes_max`. A frame whose [`AckHandle`] is dropped without a verdict ends its connection, so its agent sends it again.

mod connection;
mod registry;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{ConnectionError, Endpoint, ServerConfig, TransportErrorCode};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tracing::{info, warn};
use weir_config::{Limits, ServerTls};
use weir_schema::{AgentIdentity, Epoch, Frame, Lane, Name};

use crate::ack::AckRanges;
use crate::error::Error;
use crate::message::Bye;
use crate::tls::NodeTls;
use crate::{metrics, socket};
pub use connection::AckHandle;
use registry::Registry;

/// A listening node.
pub struct Server {
    endpoint: Endpoint,
    local_addr: SocketAddr,
    tls: Arc<NodeTls>,
    limits: TransportLimits,
}

/// Stops a running [`Server`].
#[derive(Debug, Clone)]
pub struct ServerHandle {
    endpoint: Endpoint,
}

/// A frame that came, and who sent it.
pub struct Incoming {
    /// Out of the connection's certificate.
    pub identity: Arc<AgentIdentity>,
    /// As it came.
    pub frame: Frame,
    /// Where to say what became of it.
    pub ack: AckHandle,
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
    /// Reads the certificates and opens the port. Needs a tokio runtime.
    #[expect(clippy::unused_async, reason = "the socket belongs to the runtime it is opened in")]
    pub async fn bind(listen: SocketAddr, tls: &ServerTls, limits: TransportLimits) -> Result<Self, Error> {
        let node = NodeTls::load(tls)?;
        let failed = |source| Error::Bind { address: listen, source };
        let crypto = QuicServerConfig::try_from(node.config.clone())
            .map_err(|error| Error::Tls { path: tls.key.clone(), reason: error.to_string() })?;
        let mut config = ServerConfig::with_crypto(Arc::new(crypto));
        // One stream per connection: state is kept for every permitted one.
        config.transport_config(socket::transport(limits.idle_time_max, 1)).migration(true).max_incoming(HALF_OPEN_MAX);
        let bound = socket::listen(listen, config, Arc::new(node.reset_key.clone())).map_err(failed)?;
        metrics::socket(bound.gso_segments, bound.receive_buffer_bytes);
        let local_addr = bound.endpoint.local_addr().map_err(failed)?;
        if bound.receive_buffer_bytes < UDP_BUFFER_BYTES_GOOD {
            let granted = bound.receive_buffer_bytes;
            info!(granted, "small UDP buffer: bursts of many agents lose packets (cure: sysctl net.core.rmem_max=8388608)");
        }
        Ok(Self { endpoint: bound.endpoint, local_addr, tls: Arc::new(node), limits })
    }

    /// Where it listens; the port is the real one when 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
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
        let shared = Arc::new(Shared {
            tls: self.tls,
            limits: self.limits,
            budget: Arc::new(Semaphore::new(self.limits.in_flight_bytes_max.min(Semaphore::MAX_PERMITS))),
            registry: Registry::default(),
            state,
            to_ingest,
        });
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => { connections.spawn(admit(shared.clone(), incoming)); }
                    None => break,
                },
                Some(_) = connections.join_next() => {}
                () = shared.to_ingest.closed() => break,
            }
        }
        self.endpoint.close(socket::close_code(Bye::Done), b"the node is stopping");
        // Lets the last packets out: an agent that hears of the end goes to another node at once.
        let _ = tokio::time::timeout(CLOSE_TIME_MAX, self.endpoint.wait_idle()).await;
        connections.shutdown().await;
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
    registry: Registry,
    state: Arc<dyn ResumeState>,
    to_ingest: mpsc::Sender<Incoming>,
}

/// One connection from its first packet to its end.
async fn admit(shared: Arc<Shared>, incoming: quinn::Incoming) {
    let remote = incoming.remote_address();
    let half_open = shared.registry.half_open();
    if half_open.count() > HALF_OPEN_TRUSTED && incoming.may_retry() {
        // Many at once: first see whether the address is real.
        let _ = incoming.retry();
        return;
    }
    if half_open.count() > HALF_OPEN_MAX {
        metrics::handshake("flood");
        incoming.refuse();
        return;
    }
    let Ok(connecting) = incoming.accept() else { return metrics::handshake("other") };
    let connection = match tokio::time::timeout(shared.limits.handshake_time_max, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return not_shaken(&shared, remote, &error),
        Err(_) => return metrics::handshake("timeout"),
    };
    drop(half_open);
    metrics::handshake("ok");
    connection::serve(&shared, connection, remote).await;
}

fn not_shaken(shared: &Shared, remote: SocketAddr, error: &ConnectionError) {
    match error {
        ConnectionError::TransportError(error) if is_tls_alert(error.code) => {
            metrics::handshake("certificate");
            if let Some(unsaid) = shared.registry.may_warn() {
                warn!(%remote, reason = error.reason, unsaid, "agent refused (cure: a certificate from `weir ca issue` of this fleet)");
            }
        }
        ConnectionError::ConnectionClosed(close) if is_tls_alert(close.error_code) => {
            metrics::handshake("ours_refused");
            if let Some(unsaid) = shared.registry.may_warn() {
                warn!(%remote, reason = %close, unsaid, "agent refuses this node's certificate (cure: a new one by `weir ca issue`)");
            }
        }
        _ => metrics::handshake("other"),
    }
}

/// Whether a connection ended by an alert of TLS.
pub(crate) fn is_tls_alert(code: TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

/// What one connection may have outstanding.
const WINDOW_BYTES: usize = 4 << 20;
/// Handshakes at once from which on an address must prove itself.
const HALF_OPEN_TRUSTED: usize = 256;
/// Handshakes at once.
const HALF_OPEN_MAX: usize = 4096;
/// For saying good-bye.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);
/// The least receive buffer that is not mentioned.
const UDP_BUFFER_BYTES_GOOD: usize = 4 << 20;
