//! One agent's connection: reads frames, writes acks.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use quinn::{Connection, RecvStream, SendStream};
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{MissedTickBehavior, timeout_at};
use tracing::{debug, info, warn};
use weir_schema::{AgentIdentity, Frame};

use super::{Incoming, Shared};
use crate::error::ProtocolError;
use crate::frame_stream::FrameStream;
use crate::identity::{Peer, spiffe_id};
use crate::message::{Bye, Hello, LaneAck, Message, RefusedReason};
use crate::metrics;
use crate::session::{Received, Receiver, ReceiverLimits, Ticket, Verdict};
use crate::socket::close_code;

/// Where ingest says what became of a frame. Cheap; may be used from any thread.
pub struct AckHandle {
    ticket: Ticket,
    talk: Arc<Talk>,
    /// Given back to the budget of all connections with the handle.
    _permit: OwnedSemaphorePermit,
    settled: bool,
}

impl AckHandle {
    /// The frame will be found after a crash: its agent may forget it.
    pub fn durable(mut self) {
        self.settle(Verdict::Durable);
    }

    /// The frame will never be taken: its agent shall not send it again, and counts it as lost.
    pub fn refused(mut self, reason: RefusedReason) {
        metrics::frame_refused(reason);
        self.settle(Verdict::Refused(reason));
    }

    fn settle(&mut self, verdict: Verdict) {
        self.settled = true;
        let mut verdicts = self.talk.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.push((self.ticket, verdict));
        let first = verdicts.len() == 1;
        drop(verdicts);
        if first {
            self.talk.wake.notify_one();
        }
    }
}

impl Drop for AckHandle {
    fn drop(&mut self) {
        metrics::in_flight(-f64::from(self.ticket.bytes));
        if !self.settled {
            self.talk.abandoned.store(true, Ordering::Release);
            self.talk.wake.notify_one();
        }
    }
}

/// What the two halves of a connection and its frames' handles share.
struct Talk {
    receiver: Mutex<Receiver>,
    verdicts: Mutex<Vec<(Ticket, Verdict)>>,
    /// A frame was dropped by ingest.
    abandoned: AtomicBool,
    wake: Notify,
}

impl Talk {
    fn receiver(&self) -> MutexGuard<'_, Receiver> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a connection ends.
enum End {
    Bye(Bye),
    Broken(ProtocolError),
    /// The network or the agent's process went away.
    Lost(String),
    /// Ingest dropped a frame, or is gone: the agent is to send again, here or elsewhere.
    Abandoned,
}

/// Serves one agent until the end of its connection.
pub(super) async fn serve(shared: &Shared, connection: Connection, remote: SocketAddr) {
    let Some(chain) = peer_chain(&connection) else { return };
    let identity = match spiffe_id(&chain[0]).map(|id| id.peer) {
        Ok(Peer::Agent(agent)) => Arc::new(agent),
        // The handshake lets nobody else through.
        _ => return connection.close(close_code(Bye::Protocol), b"not an agent"),
    };
    let place = match shared.registry.enter(Instant::now(), &identity, &connection, &shared.limits) {
        Ok(place) => place,
        Err(bye) => {
            metrics::session_closed(bye.as_str());
            if let Some(unsaid) = shared.registry.may_warn() {
                warn!(agent = %identity.agent, %remote, why = bye.as_str(), unsaid, "agent not admitted");
            }
            return connection.close(close_code(bye), bye.as_str().as_bytes());
        }
    };
    debug!(agent = %identity.agent, %remote, "agent connected");
    let end = talk(shared, &connection, &identity, &chain).await;
    let (bye, why) = match end {
        End::Bye(Bye::Expired) => {
            warn!(agent = %identity.agent, %remote, "agent disconnected: its certificate has expired (cure: `weir ca issue`)");
            (Bye::Expired, "the certificate has expired".to_owned())
        }
        End::Bye(bye) => (bye, "the session is over".to_owned()),
        End::Lost(why) => {
            metrics::session_closed("lost");
            return debug!(agent = %identity.agent, %remote, why, "agent lost");
        }
        End::Abandoned => (Bye::Done, "the node could not store a frame".to_owned()),
        End::Broken(error) => {
            metrics::protocol_error(&error);
            shared.registry.penalise(Instant::now(), &identity);
            if let Some(unsaid) = shared.registry.may_warn() {
                warn!(agent = %identity.agent, %remote, %error, unsaid, "agent broke the protocol: disconnected for a minute");
            }
            (if matches!(error, ProtocolError::Version { .. }) { Bye::Version } else { Bye::Protocol }, error.to_string())
        }
    };
    metrics::session_closed(bye.as_str());
    debug!(agent = %identity.agent, %remote, why = bye.as_str(), "agent disconnected");
    connection.close(close_code(bye), why.as_bytes());
    drop(place);
}

async fn talk(shared: &Shared, connection: &Connection, agent: &Arc<AgentIdentity>, chain: &[CertificateDer<'static>]) -> End {
    let first = tokio::time::Instant::now() + HELLO_TIME_MAX;
    let (send, recv) = match timeout_at(first, connection.accept_bi()).await {
        Ok(Ok(streams)) => streams,
        Ok(Err(error)) => return End::Lost(error.to_string()),
        Err(_) => return End::Broken(ProtocolError::Slow("Hello")),
    };
    let limits =
        ReceiverLimits { window_bytes: shared.limits.window_bytes as u64, frame_bytes_max: shared.limits.frame_bytes_max as u32 };
    let talk = Arc::new(Talk {
        receiver: Mutex::new(Receiver::new(shared.tls.node.clone(), limits)),
        verdicts: Mutex::new(Vec::new()),
        abandoned: AtomicBool::new(false),
        wake: Notify::new(),
    });
    tokio::select! {
        end = read(shared, agent, &talk, recv, first) => end,
        end = write(shared, &talk, send, chain) => end,
    }
}

/// Reads until the stream ends. `first` is when the first message must be whole.
async fn read(
    shared: &Shared,
    agent: &Arc<AgentIdentity>,
    talk: &Arc<Talk>,
    mut recv: RecvStream,
    first: tokio::time::Instant,
) -> End {
    let mut stream = FrameStream::new(shared.limits.frame_bytes_max);
    let mut due = Some(first);
    loop {
        let chunk = match due {
            Some(due) => match timeout_at(due, recv.read_chunk(CHUNK_BYTES_MAX, true)).await {
                Ok(chunk) => chunk,
                Err(_) => return End::Broken(ProtocolError::Slow("the rest of a frame or message")),
            },
            None => recv.read_chunk(CHUNK_BYTES_MAX, true).await,
        };
        match chunk {
            Ok(Some(chunk)) => stream.push(&chunk.bytes),
            Ok(None) => return stream.end().map_or_else(End::Broken, |()| End::Bye(Bye::Done)),
            Err(error) => return End::Lost(error.to_string()),
        }
        let mut whole = false;
        loop {
            let unit = match stream.next_unit() {
                Ok(Some(unit)) => unit,
                Ok(None) => break,
                Err(error) => return End::Broken(error),
            };
            whole = true;
            let received = talk.receiver().handle(unit);
            let ended = match received {
                Err(error) => Some(End::Broken(error)),
                Ok(Received::Bye(bye)) => Some(End::Bye(bye)),
                Ok(Received::Hello(hello)) => welcome(shared, agent, talk, hello).await,
                Ok(Received::Frame(frame, ticket)) => pass_on(shared, agent, talk, frame, ticket).await,
                Ok(Received::LeftOut(error)) => {
                    metrics::protocol_error(&error);
                    talk.wake.notify_one();
                    None
                }
            };
            if let Some(end) = ended {
                return end;
            }
        }
        due = match (stream.is_inside(), due) {
            (false, _) => None,
            (true, Some(due)) if !whole => Some(due),
            (true, _) => Some(tokio::time::Instant::now() + shared.limits.frame_time_max),
        };
    }
}

async fn welcome(shared: &Shared, agent: &Arc<AgentIdentity>, talk: &Arc<Talk>, hello: Hello) -> Option<End> {
    let mut epochs: Vec<_> = hello.lanes.iter().map(|start| start.epoch).collect();
    epochs.sort_unstable();
    epochs.dedup();
    let (state, asked) = (shared.state.clone(), agent.clone());
    // The answer may wait for the log's lock.
    let durable = tokio::task::spawn_blocking(move || {
        let of = |epoch| state.acked(&asked, epoch).into_iter().map(move |(lane, acked)| LaneAck { epoch, lane, acked });
        epochs.into_iter().flat_map(of).collect()
    });
    let Ok(durable) = durable.await else { return Some(End::Abandoned) };
    talk.receiver().welcome(durable);
    talk.wake.notify_one();
    info!(agent = %agent.agent, region = %agent.region, software = printable(&hello.software), "agent welcome");
    None
}

async fn pass_on(shared: &Shared, agent: &Arc<AgentIdentity>, talk: &Arc<Talk>, frame: Frame, ticket: Ticket) -> Option<End> {
    metrics::frame_received(frame.bytes.len());
    let permits = ticket.bytes.min(u32::try_from(shared.limits.in_flight_bytes_max).unwrap_or(u32::MAX));
    let permit = shared.budget.clone().acquire_many_owned(permits).await.expect("the budget is never closed");
    metrics::in_flight(f64::from(ticket.bytes));
    let ack = AckHandle { ticket, talk: talk.clone(), _permit: permit, settled: false };
    let sent = shared.to_ingest.send(Incoming { identity: agent.clone(), frame, ack }).await;
    sent.is_err().then_some(End::Abandoned)
}

/// Writes what became of frames, many in one go, and ends the session when the certificate does.
async fn write(shared: &Shared, talk: &Talk, mut send: SendStream, chain: &[CertificateDer<'static>]) -> End {
    let mut check = tokio::time::interval(CERTIFICATE_CHECK_EVERY);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    check.tick().await;
    let mut bytes = Vec::new();
    loop {
        tokio::select! {
            () = talk.wake.notified() => {}
            _ = check.tick() => {
                if shared.tls.agents.verify_client_cert(&chain[0], &chain[1..], now()).is_err() {
                    return End::Bye(Bye::Expired);
                }
            }
        }
        let verdicts = std::mem::take(&mut *talk.verdicts.lock().unwrap_or_else(PoisonError::into_inner));
        let mut acks = 0;
        {
            let mut receiver = talk.receiver();
            verdicts.into_iter().for_each(|(ticket, verdict)| receiver.settle(ticket, verdict));
            while let Some(message) = receiver.poll_transmit() {
                acks += u64::from(matches!(message, Message::Ack(_)));
                bytes.extend_from_slice(&message.encode());
            }
        }
        metrics::acks_sent(acks);
        if let Err(error) = send.write_all(&bytes).await {
            return End::Lost(error.to_string());
        }
        bytes.clear();
        if talk.abandoned.load(Ordering::Acquire) {
            return End::Abandoned;
        }
    }
}

fn peer_chain(connection: &Connection) -> Option<Vec<CertificateDer<'static>>> {
    let chain = *connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    (!chain.is_empty()).then_some(chain)
}

/// What an agent says of itself, fit for a log.
fn printable(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// For the first message after the handshake.
const HELLO_TIME_MAX: Duration = Duration::from_secs(10);
/// Read at once.
const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// How often certificates of connected agents are looked at again: TLS does so only in the handshake.
const CERTIFICATE_CHECK_EVERY: Duration = Duration::from_secs(60);
