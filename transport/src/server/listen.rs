//! The ports of a node: UDP for QUIC and, unless it is off, the TCP port of the same number.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, ServerConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket};
use tracing::{info, warn};
use weir_config::{Listen, TcpListen};

use super::{HALF_OPEN_MAX, TransportLimits};
use crate::error::Error;
use crate::tls::NodeTls;
use crate::{metrics, socket};

/// Where a server listens.
#[derive(Debug, Clone, Copy)]
pub struct Listening {
    /// QUIC. Port 0 takes a free one.
    pub quic: SocketAddr,
    /// TCP.
    pub tcp: TcpListen,
}

impl From<SocketAddr> for Listening {
    fn from(quic: SocketAddr) -> Self {
        Self { quic, tcp: TcpListen::SameAsQuic }
    }
}

impl From<&Listen> for Listening {
    fn from(listen: &Listen) -> Self {
        Self { quic: listen.quic, tcp: listen.tcp }
    }
}

/// The open ports.
pub(super) struct Ports {
    pub(super) endpoint: Endpoint,
    pub(super) quic_addr: SocketAddr,
    pub(super) tcp: Option<TcpListener>,
}

/// Opens the ports. With port 0 one number is looked for that is free for both.
pub(super) fn open(listening: Listening, node: &NodeTls, limits: &TransportLimits) -> Result<Ports, Error> {
    let mut left = if listening.quic.port() == 0 { FREE_TRIES_MAX } else { 1 };
    loop {
        left -= 1;
        let (endpoint, quic_addr) = open_quic(listening.quic, node, limits)?;
        let wanted = match listening.tcp {
            TcpListen::Off => return Ok(Ports { endpoint, quic_addr, tcp: None }),
            TcpListen::At(address) => address,
            TcpListen::SameAsQuic => quic_addr,
        };
        let mut opened = open_tcp(wanted);
        if opened.is_err() && listening.quic.port() == 0 && listening.tcp == TcpListen::SameAsQuic {
            if left > 0 {
                continue;
            }
            opened = open_tcp(SocketAddr::new(wanted.ip(), 0));
        }
        let tcp = opened.map_err(|source| Error::BindTcp { address: wanted, source })?;
        let tcp_addr = tcp.local_addr().map_err(|source| Error::BindTcp { address: wanted, source })?;
        if tcp_addr.port() != quic_addr.port() {
            // Agents know one port only; somebody has to map it.
            warn!(quic = %quic_addr, tcp = %tcp_addr, "agents look for TCP at the port number of QUIC, this is another");
        }
        more_descriptors(limits.agents_max);
        return Ok(Ports { endpoint, quic_addr, tcp: Some(tcp) });
    }
}

fn open_quic(listen: SocketAddr, node: &NodeTls, limits: &TransportLimits) -> Result<(Endpoint, SocketAddr), Error> {
    let failed = |source| Error::Bind { address: listen, source };
    let crypto = QuicServerConfig::try_from(node.config.clone()).expect("TLS 1.3 has the suite of QUIC's first packets");
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    // One stream per connection: state is kept for every permitted one.
    config.transport_config(socket::transport(limits.idle_time_max, 1)).migration(true).max_incoming(HALF_OPEN_MAX);
    let bound = socket::listen(listen, config, Arc::new(node.reset_key.clone())).map_err(failed)?;
    metrics::socket(bound.gso_segments, bound.receive_buffer_bytes);
    if bound.receive_buffer_bytes < UDP_BUFFER_BYTES_GOOD {
        let granted = bound.receive_buffer_bytes;
        info!(granted, "small UDP buffer: bursts of many agents lose packets (cure: sysctl net.core.rmem_max=8388608)");
    }
    let local = bound.endpoint.local_addr().map_err(failed)?;
    Ok((bound.endpoint, local))
}

fn open_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A node started anew finds connections of its earlier life lingering on the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Each agent on TCP is a descriptor; the usual soft limit of 1,024 is raised as far as this process may.
fn more_descriptors(agents: usize) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = agents as u64 + DESCRIPTORS_ELSE;
    let granted = limit.maximum.map_or(wanted, |most| wanted.min(most));
    if limit.current.is_some_and(|current| current < granted) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(granted), maximum: limit.maximum });
    }
    if granted < wanted {
        info!(granted, wanted, "few file descriptors: each agent on TCP needs one (cure: LimitNOFILE=)");
    }
}

/// How often a number free for both is looked for.
const FREE_TRIES_MAX: u32 = 8;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// Descriptors for all that is not an agent: logs, sockets of queries, the mesh.
const DESCRIPTORS_ELSE: u64 = 4096;
/// The least receive buffer that is not mentioned.
const UDP_BUFFER_BYTES_GOOD: usize = 4 << 20;
