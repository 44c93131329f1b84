//! Connects to one node, on QUIC or on TCP, at whichever of its addresses answers first.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, Endpoint};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::explain::explain;
use crate::link::{self, Link, Lost, Transport};
use crate::socket;
use crate::tls::AgentTls;

/// Sockets for outgoing connections over QUIC, one per address family. Clients of one process may share them.
#[derive(Clone, Default)]
pub struct Dialer {
    v4: Arc<Mutex<Option<Endpoint>>>,
    v6: Arc<Mutex<Option<Endpoint>>>,
}

impl Dialer {
    pub(super) fn endpoint(&self, to: SocketAddr) -> std::io::Result<Endpoint> {
        let place = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = &*place {
            return Ok(endpoint.clone());
        }
        let endpoint = socket::dial(to)?.endpoint;
        Ok(place.insert(endpoint).clone())
    }
}

/// What is needed to call a node.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) dialer: Dialer,
    /// The name in the nodes' certificates.
    pub(super) server_name: String,
    tls: Arc<rustls::ClientConfig>,
    quic: quinn::ClientConfig,
}

/// Why there is no connection.
pub(super) struct NoLink {
    /// No address said anything at all.
    pub(super) silent: bool,
    /// For people.
    pub(super) why: String,
}

impl NoLink {
    fn heard(why: impl Into<String>) -> Self {
        Self { silent: false, why: why.into() }
    }
}

impl Caller {
    pub(super) fn new(dialer: Dialer, server_name: String, tls: &AgentTls) -> Self {
        let (quic, tls) = (quic_config(tls), tls.config.clone());
        Self { dialer, server_name, tls, quic }
    }

    /// A certificate may have been renewed.
    pub(super) fn renew(&mut self, tls: &AgentTls) {
        (self.quic, self.tls) = (quic_config(tls), tls.config.clone());
    }

    /// A connection to whichever address of `node` answers first, or why there is none. A later address gets its chance a little
    /// later: a dead one (`::1` of `localhost`, say) does not answer at all.
    pub(super) async fn call(&self, node: &str, transport: Transport) -> Result<Link, NoLink> {
        let addresses = tokio::net::lookup_host(node).await;
        let addresses = addresses.map_err(|error| NoLink::heard(format!("could not resolve {node:?}: {error}")))?;
        let mut attempts = JoinSet::new();
        for (place, address) in (0..).zip(addresses.take(ADDRESSES_MAX)) {
            let caller = self.clone();
            attempts.spawn(async move {
                tokio::time::sleep(STAGGER * place).await;
                let attempt = async {
                    match transport {
                        Transport::Quic => caller.quic(address).await,
                        Transport::Tcp => caller.tcp(address).await,
                    }
                };
                let silence = || NoLink {
                    silent: true,
                    why: match transport {
                        Transport::Quic => {
                            format!("{address}/udp does not answer (is the node running, is UDP let through?)")
                        }
                        Transport::Tcp => format!("{address}/tcp does not answer (is the node running?)"),
                    },
                };
                tokio::time::timeout(CONNECT_TIME_MAX, attempt).await.unwrap_or_else(|_| Err(silence()))
            });
        }
        let mut failed = None;
        while let Some(attempt) = attempts.join_next().await {
            match attempt {
                Ok(Ok(link)) => return Ok(link),
                // What one address said counts more than another's silence.
                Ok(Err(no)) if no.silent && failed.is_some() => {}
                Ok(Err(no)) => failed = Some(no),
                Err(error) => failed = Some(NoLink::heard(error.to_string())),
            }
        }
        Err(failed.unwrap_or_else(|| NoLink::heard(format!("{node:?} has no address"))))
    }

    async fn quic(&self, address: SocketAddr) -> Result<Link, NoLink> {
        let endpoint = self.dialer.endpoint(address);
        let endpoint = endpoint.map_err(|error| NoLink::heard(format!("could not open a UDP socket: {error}")))?;
        let connecting = endpoint.connect_with(self.quic.clone(), address, &self.server_name);
        match connecting.map_err(|error| NoLink::heard(error.to_string()))?.await {
            Ok(connection) => Link::quic(connection).ok_or_else(|| NoLink::heard("the node shows no certificate")),
            Err(error @ ConnectionError::TimedOut) => Err(NoLink { silent: true, why: error.to_string() }),
            Err(error) => Err(NoLink::heard(explain(&Lost::Quic(error)))),
        }
    }

    async fn tcp(&self, address: SocketAddr) -> Result<Link, NoLink> {
        let name = link::server_name(&self.server_name).map_err(NoLink::heard)?;
        let failed = |error| NoLink::heard(format!("could not connect to {address}/tcp: {error}"));
        let stream = TcpStream::connect(address).await.map_err(failed)?;
        link::tune(&stream, socket::IDLE).map_err(failed)?;
        let stream = link::connector(&self.tls).connect(name, stream).await;
        let stream = stream.map_err(|error| NoLink::heard(explain(&Lost::Tcp(error))))?;
        Link::tcp(stream).ok_or_else(|| NoLink::heard(format!("{address}/tcp is no node's port for agents")))
    }
}

fn quic_config(tls: &AgentTls) -> quinn::ClientConfig {
    let quic = QuicClientConfig::try_from(tls.config.clone()).expect("the provider has the suite of QUIC's first packets");
    let mut quic = quinn::ClientConfig::new(Arc::new(quic));
    quic.transport_config(socket::transport(socket::IDLE, 0));
    quic
}

/// Addresses of one node that are tried.
const ADDRESSES_MAX: usize = 8;
/// Between two addresses of one node.
const STAGGER: Duration = Duration::from_millis(250);
/// For one address.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
