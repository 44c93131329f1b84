//! One session with one node.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, WriteError};
use rustls::pki_types::CertificateDer;
use tokio::time::MissedTickBehavior;
use weir_schema::Name;

use super::Shared;
use super::connect::explain;
use super::pulse::Pulse;
use crate::error::ProtocolError;
use crate::frame_stream::{FrameStream, Unit};
use crate::identity::{Peer, from_certificate};
use crate::message::{Bye, Message};
use crate::session::Transmit;
use crate::socket;

/// How a connection ended.
#[derive(Debug, Default)]
pub(super) struct End {
    /// For people; `None` when we ended it.
    pub(super) why: Option<String>,
    /// The node had said Welcome.
    pub(super) welcomed: bool,
    /// It acked something, or the session held for a while.
    pub(super) productive: bool,
    /// The node's good-bye.
    pub(super) bye: Option<Bye>,
}

/// Talks until either end has enough.
pub(super) async fn talk(shared: &Shared, connection: &Connection) -> End {
    let (before, begun) = (shared.sender().stats(), Instant::now());
    let ended = match (certified(connection), connection.open_bi().await) {
        (Some(node), Ok((send, recv))) => {
            shared.sender().connected(Instant::now());
            tokio::select! {
                ended = read(shared, recv, &node) => ended,
                ended = write(shared, send) => ended,
                ended = watch(shared, connection) => ended,
            }
        }
        (None, _) => Ended::Broken(ProtocolError::Unexpected("a certificate without a node's name")),
        (_, Err(error)) => Ended::Lost(error),
    };
    let mut sender = shared.sender();
    let after = sender.stats();
    let welcomed = after.welcomes > before.welcomes;
    let productive = welcomed && (after.acked_frames > before.acked_frames || begun.elapsed() > GOOD_SESSION_MIN);
    let mut bye = sender.bye();
    sender.disconnected();
    drop(sender);
    let why = match ended {
        Ended::Ours => None,
        Ended::Bye => Some(format!("the node said good-bye: {}", bye.map_or("", Bye::as_str))),
        Ended::Broken(error) => {
            crate::metrics::protocol_error(&error);
            Some(error.to_string())
        }
        Ended::Lost(error) => {
            // What a node closes with counts more than the stream's error that comes with it.
            let error = connection.close_reason().unwrap_or(error);
            if let ConnectionError::ApplicationClosed(close) = &error {
                bye = socket::bye_of(close.error_code);
            }
            Some(explain(&error))
        }
        Ended::Dead => Some("the node does not answer any more".to_owned()),
    };
    End { why, welcomed, productive, bye }
}

enum Ended {
    /// We closed.
    Ours,
    Bye,
    Broken(ProtocolError),
    Lost(ConnectionError),
    Dead,
}

async fn read(shared: &Shared, mut recv: RecvStream, node: &Name) -> Ended {
    // Nodes send no frames.
    let mut stream = FrameStream::new(0);
    loop {
        match recv.read_chunk(CHUNK_BYTES_MAX, true).await {
            Ok(Some(chunk)) => stream.push(&chunk.bytes),
            Ok(None) => return stream.end().map_or_else(Ended::Broken, |()| Ended::Bye),
            Err(ReadError::ConnectionLost(error)) => return Ended::Lost(error),
            Err(_) => return Ended::Bye,
        }
        loop {
            let message = match stream.next_unit() {
                Ok(Some(Unit::Message(message))) => message,
                Ok(Some(_)) => return Ended::Broken(ProtocolError::Unexpected("a frame from a node")),
                Ok(None) => break,
                Err(error) => return Ended::Broken(error),
            };
            if let Message::Welcome(welcome) = &message
                && welcome.node != *node
            {
                let (said, certified) = (welcome.node.to_string(), node.to_string());
                return Ended::Broken(ProtocolError::NodeName { said, certified });
            }
            let is_bye = matches!(message, Message::Bye(_));
            if let Err(error) = shared.sender().handle(Instant::now(), message) {
                return Ended::Broken(error);
            }
            if is_bye {
                return Ended::Bye;
            }
        }
        // There may be credit to send by, and room to hold more.
        shared.wake.notify_one();
        shared.room.notify_waiters();
    }
}

async fn write(shared: &Shared, mut send: SendStream) -> Ended {
    let mut chunks: Vec<Bytes> = Vec::new();
    loop {
        {
            let mut sender = shared.sender();
            let (now, mut bytes) = (Instant::now(), 0);
            while bytes < WRITE_BYTES_MAX {
                let Some(transmit) = sender.poll_transmit(now) else { break };
                let chunk = match transmit {
                    Transmit::Message(message) => message.encode().into(),
                    Transmit::Frame(bytes) => bytes,
                };
                bytes += chunk.len();
                chunks.push(chunk);
            }
        }
        if chunks.is_empty() {
            if shared.closed.load(Ordering::Acquire) {
                // Waits until the node has our last word.
                let _ = send.finish();
                let _ = send.stopped().await;
                return Ended::Ours;
            }
            shared.wake.notified().await;
            continue;
        }
        match send.write_all_chunks(&mut chunks).await {
            Ok(()) => chunks.clear(),
            Err(WriteError::ConnectionLost(error)) => return Ended::Lost(error),
            Err(_) => return Ended::Bye,
        }
    }
}

/// Gives the connection up when the node is dead or says nothing of our frames.
async fn watch(shared: &Shared, connection: &Connection) -> Ended {
    let mut tick = tokio::time::interval(WATCH_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pulse = Pulse::new(Instant::now());
    loop {
        tick.tick().await;
        let (now, stats) = (Instant::now(), connection.stats());
        if pulse.is_dead(now, stats.udp_tx.datagrams, stats.udp_rx.datagrams) {
            return Ended::Dead;
        }
        if let Some(error) = shared.sender().overdue(now) {
            return Ended::Broken(error);
        }
    }
}

/// The node that the connection's certificate names.
fn certified(connection: &Connection) -> Option<Name> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    match from_certificate(chain.first()?) {
        Ok(Peer::Node(node)) => Some(node),
        _ => None,
    }
}

/// A session that held this long was a good one, even when there was nothing to ack.
const GOOD_SESSION_MIN: Duration = Duration::from_secs(10);
/// Read at once.
const CHUNK_BYTES_MAX: usize = 64 * 1024;
/// Handed to QUIC at once; one lock of the session for each.
const WRITE_BYTES_MAX: usize = 256 * 1024;
const WATCH_EVERY: Duration = Duration::from_secs(1);
