//! One session with one node.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, ConnectionError};
use rustls::pki_types::CertificateDer;
use tokio::time::MissedTickBehavior;
use weir_schema::Name;

use super::Shared;
use super::explain::{explain, of_bye};
use super::pulse::Pulse;
use crate::error::ProtocolError;
use crate::frame_stream::{FrameStream, Unit};
use crate::identity::{Peer, from_certificate};
use crate::link::{Link, Lost, Reader, Transport, Writer};
use crate::message::{Bye, Message};
use crate::session::{SenderStats, Transmit};
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

/// Talks until either end has enough, or `better` has something better than this link; that is given back.
pub(super) async fn talk<T>(shared: &Shared, mut link: Link, better: impl Future<Output = T>) -> (End, Option<T>) {
    let begun = Begun { at: Instant::now(), stats: shared.sender().stats() };
    let (node, transport, quic) = (certified(link.chain()), link.transport(), link.connection());
    let heard = AtomicU64::new(0);
    let mut found = None;
    let ended = match (node, link.open().await) {
        (Some(node), Ok((reader, writer))) => {
            shared.begin(transport);
            tokio::select! {
                ended = read(shared, reader, &node, &heard) => ended,
                ended = write(shared, writer) => ended,
                ended = watch(shared, quic.as_ref(), &heard) => ended,
                better = better => {
                    found = Some(better);
                    Ended::Ours
                }
            }
        }
        (None, _) => Ended::Broken(ProtocolError::Unexpected("a certificate without a node's name")),
        (_, Err(error)) => Ended::Lost(error),
    };
    let gone = matches!(ended, Ended::Lost(_) | Ended::Dead);
    let end = begun.sum_up(shared, ended, link.close_reason());
    match &found {
        // The better one shall not wait for this one's end.
        Some(_) => drop(tokio::spawn(link.close(Bye::Done, ""))),
        // On TCP nobody would take our word.
        None if gone && quic.is_none() => {}
        None => link.close(Bye::Done, "").await,
    }
    (end, found)
}

/// How things stood before a session.
struct Begun {
    at: Instant,
    stats: SenderStats,
}

impl Begun {
    /// Takes the session off the sender and says how it went. `closed` is what QUIC was closed with.
    fn sum_up(self, shared: &Shared, ended: Ended, closed: Option<ConnectionError>) -> End {
        let mut sender = shared.sender();
        let (before, after) = (self.stats, sender.stats());
        let welcomed = after.welcomes > before.welcomes;
        let productive = welcomed && (after.acked_frames > before.acked_frames || self.at.elapsed() > GOOD_SESSION_MIN);
        let mut bye = sender.bye();
        sender.disconnected();
        let why = match ended {
            Ended::Ours => None,
            Ended::Bye => {
                let said = bye.and_then(of_bye).map(str::to_owned);
                Some(said.unwrap_or_else(|| format!("the node said good-bye: {}", bye.map_or("", Bye::as_str))))
            }
            Ended::Broken(error) => {
                crate::metrics::protocol_error(&error);
                Some(error.to_string())
            }
            Ended::Lost(error) => {
                // What a node closes with counts more than the stream's error that comes with it.
                let error = closed.map_or(error, Lost::Quic);
                if let Lost::Quic(ConnectionError::ApplicationClosed(close)) = &error {
                    bye = socket::bye_of(close.error_code);
                }
                Some(explain(&error))
            }
            Ended::Dead => Some("the node does not answer any more".to_owned()),
        };
        End { why, welcomed, productive, bye }
    }
}

enum Ended {
    /// We closed.
    Ours,
    Bye,
    Broken(ProtocolError),
    Lost(Lost),
    Dead,
}

/// `heard` counts the pieces that came.
async fn read(shared: &Shared, reader: &mut Reader, node: &Name, heard: &AtomicU64) -> Ended {
    // Nodes send no frames.
    let mut stream = FrameStream::new(0);
    loop {
        match reader.read(&mut stream).await {
            Ok(true) => heard.fetch_add(1, Ordering::Relaxed),
            Ok(false) => return stream.end().map_or_else(Ended::Broken, |()| Ended::Bye),
            Err(Lost::Stream) => return Ended::Bye,
            Err(error) => return Ended::Lost(error),
        };
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

async fn write(shared: &Shared, writer: &mut Writer) -> Ended {
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
                writer.end().await;
                return Ended::Ours;
            }
            shared.wake.notified().await;
            continue;
        }
        match writer.write(&mut chunks).await {
            Ok(()) => {}
            Err(Lost::Stream) => return Ended::Bye,
            Err(error) => return Ended::Lost(error),
        }
    }
}

/// Gives the connection up when the node is dead or says nothing of our frames.
async fn watch(shared: &Shared, quic: Option<&Connection>, heard: &AtomicU64) -> Ended {
    let mut tick = tokio::time::interval(WATCH_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pulse = if quic.is_some() { Pulse::of_packets(Instant::now()) } else { Pulse::of_words(Instant::now()) };
    let mut waited = 0;
    loop {
        tick.tick().await;
        let now = Instant::now();
        let (asked, answered) = match quic.map(Connection::stats) {
            Some(stats) => (stats.udp_tx.datagrams, stats.udp_rx.datagrams),
            None => {
                let sender = shared.sender();
                // Before its Welcome a node may have to wait for its log, and says nothing.
                waited += u64::from(sender.node().is_some() && sender.deadline().is_some());
                (waited, heard.load(Ordering::Relaxed))
            }
        };
        if pulse.is_dead(now, asked, answered) {
            return Ended::Dead;
        }
        if let Some(error) = shared.sender().overdue(now) {
            return Ended::Broken(error);
        }
    }
}

impl Shared {
    /// Says Hello.
    fn begin(&self, transport: Transport) {
        *self.transport() = transport;
        self.sender().connected(Instant::now());
    }
}

/// The node that the connection's certificate names.
fn certified(chain: &[CertificateDer<'static>]) -> Option<Name> {
    match from_certificate(chain.first()?) {
        Ok(Peer::Node(node)) => Some(node),
        _ => None,
    }
}

/// A session that held this long was a good one, even when there was nothing to ack.
const GOOD_SESSION_MIN: Duration = Duration::from_secs(10);
/// Handed to the transport at once; one lock of the session for each.
const WRITE_BYTES_MAX: usize = 256 * 1024;
const WATCH_EVERY: Duration = Duration::from_millis(500);
