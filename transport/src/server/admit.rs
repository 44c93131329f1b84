//! From a caller's first packet to the end of its handshake, on either transport.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use quinn::ConnectionError;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::warn;

use super::certificate::NotTaken;
use super::{HALF_OPEN_MAX, Shared, connection, enrol, is_tls_alert};
use crate::link::{self, Link, tls_of, tune};
use crate::message::Bye;
use crate::{metrics, socket};

/// One connection of QUIC from its first packet to its end.
pub(super) async fn quic(shared: Arc<Shared>, incoming: quinn::Incoming) {
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
    let connected = match timeout(shared.limits.handshake_time_max, connecting).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) => return not_shaken(&shared, remote, &Failed::of_quic(&error)),
        Err(_) => return metrics::handshake("timeout"),
    };
    if enrol::wants_quic(&connected) {
        // Before it has shown anything it holds its place among the half-open.
        enrol::quic(&shared, connected, remote).await;
        return drop(half_open);
    }
    drop(half_open);
    match Link::quic(connected.clone()) {
        Some(link) => {
            metrics::handshake("ok");
            connection::serve(&shared, link, remote).await;
        }
        None => {
            connected.close(socket::close_code(Bye::Protocol), b"no certificate");
            not_shaken(&shared, remote, &Failed::Theirs(NO_CERTIFICATE.to_owned()));
        }
    }
}

/// One connection on TCP, from its acceptance to its end.
pub(super) async fn tcp(shared: Arc<Shared>, stream: TcpStream, remote: SocketAddr) {
    let Some(half_open) = shared.registry.half_open_tcp(remote.ip(), &shared.limits) else {
        return metrics::handshake("flood");
    };
    if tune(&stream, shared.limits.idle_time_max).is_err() {
        return metrics::handshake("other");
    }
    let acceptor = TlsAcceptor::from(shared.tls.config.clone());
    let stream = match timeout(shared.limits.handshake_time_max, acceptor.accept(stream).into_fallible()).await {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, stream))) => {
            not_shaken(&shared, remote, &Failed::of_tcp(&error));
            return link::let_go(stream).await;
        }
        Err(_) => return metrics::handshake("timeout"),
    };
    if enrol::wants_tcp(&stream) {
        enrol::tcp(&shared, stream, remote).await;
        return drop(half_open);
    }
    drop(half_open);
    if stream.get_ref().1.peer_certificates().is_none() {
        not_shaken(&shared, remote, &Failed::Theirs(NO_CERTIFICATE.to_owned()));
        let mut stream = stream;
        let _ = timeout(shared.limits.handshake_time_max, stream.shutdown()).await;
        return link::let_go(stream.into_inner().0).await;
    }
    let Some(link) = Link::tcp(stream) else { return metrics::handshake("other") };
    metrics::handshake("ok");
    connection::serve(&shared, link, remote).await;
}

/// Why a handshake failed.
enum Failed {
    /// We refuse their certificate.
    Theirs(String),
    /// They refuse ours.
    Ours(String),
    /// Noise, or a caller who went away.
    Other,
}

impl Failed {
    fn of_quic(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::TransportError(error) if is_tls_alert(error.code) => Self::Theirs(error.reason.clone()),
            ConnectionError::ConnectionClosed(close) if is_tls_alert(close.error_code) => Self::Ours(close.to_string()),
            _ => Self::Other,
        }
    }

    fn of_tcp(error: &io::Error) -> Self {
        match tls_of(error) {
            Some(error @ rustls::Error::AlertReceived(_)) => Self::Ours(error.to_string()),
            Some(error @ (rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)) => {
                Self::Theirs(error.to_string())
            }
            _ => Self::Other,
        }
    }
}

fn not_shaken(shared: &Shared, remote: SocketAddr, failed: &Failed) {
    match failed {
        Failed::Theirs(reason) => {
            metrics::handshake("certificate");
            if let Some(unsaid) = shared.registry.may_warn() {
                let NotTaken { reason, cure } = NotTaken::explain(reason);
                warn!(%remote, reason, unsaid, "agent refused (cure: {cure})");
            }
        }
        Failed::Ours(reason) => {
            metrics::handshake("ours_refused");
            if let Some(unsaid) = shared.registry.may_warn() {
                warn!(%remote, reason, unsaid, "agent refuses this node's certificate (cure: a new one by `weir ca issue`)");
            }
        }
        Failed::Other => metrics::handshake("other"),
    }
}

/// As rustls words it.
const NO_CERTIFICATE: &str = "peer sent no certificates";
/// Handshakes of QUIC at once from which on an address must prove itself.
const HALF_OPEN_TRUSTED: usize = 256;
