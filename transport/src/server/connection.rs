//! One agent's connection: reads frames, writes acks.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::timeout_at;
use tracing::{debug, info, warn};
use weir_schema::{AgentIdentity, Frame};

use super::certificate::{CertificateWatch, NotTaken};
use super::registry::Place;
use super::{Acknowledge, Incoming, Shared};
use crate::error::ProtocolError;
use crate::frame_stream::{FrameStream, Unit};
use crate::identity::{Peer, spiffe_id};
use crate::link::{Link, Lost, Reader, Transport, Writer};
use crate::message::{Bye, Hello, LaneAck, Message, RefusedReason};
use crate::metrics;
use crate::session::{Received, Receiver, ReceiverLimits, Ticket, Verdict};
use crate::socket::KEEP_ALIVE;
use crate::trust::full_name;

/// Where ingest says what became of a frame. Cheap; may be used from any thread.
pub struct AckHandle {
    ticket: Ticket,
    talk: Arc<Talk>,
    /// Given back to the budget of all connections with the handle.
    _permit: OwnedSemaphorePermit,
    settled: bool,
}

impl Acknowledge for AckHandle {
    fn durable(self) {
        Self::durable(self);
    }

    fn refused(self, reason: RefusedReason) {
        Self::refused(self, reason);
    }
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
    /// Something came since the writer last looked.
    heard: AtomicBool,
    /// A frame or message has begun and is not whole.
    inside: AtomicBool,
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
    /// Its certificate is not taken any more.
    NotTaken(NotTaken),
}

/// Serves one agent until the end of its connection.
pub(super) async fn serve(shared: &Shared, link: Link, remote: SocketAddr) {
    let transport = link.transport().as_str();
    let identity = match spiffe_id(&link.chain()[0]).map(|id| id.peer) {
        Ok(Peer::Agent(agent)) => Arc::new(agent),
        // The handshake lets nobody else through.
        _ => return link.close(Bye::Protocol, "not an agent").await,
    };
    let place = match shared.registry.enter(Instant::now(), &identity, link.transport(), &shared.limits) {
        Ok(place) => place,
        Err(bye) => {
            metrics::session_closed(bye.as_str());
            if let Some(unsaid) = shared.registry.may_warn() {
                warn!(agent = %identity.agent, %remote, transport, why = bye.as_str(), unsaid, "agent not admitted");
            }
            return link.close(bye, bye.as_str()).await;
        }
    };
    debug!(agent = %identity.agent, %remote, transport, "agent connected");
    let mut link = link;
    let end = tokio::select! {
        end = talk(shared, &mut link, &identity, &place) => end,
        bye = place.asked_to_leave() => End::Bye(bye),
    };
    let (bye, why) = match end {
        End::NotTaken(NotTaken { reason, cure }) => {
            warn!(agent = full_name(&identity), %remote, transport, reason, "agent disconnected: its certificate is not taken any more (cure: {cure})");
            (Bye::Expired, reason)
        }
        End::Bye(Bye::Superseded) => (Bye::Superseded, "a newer connection took this one's place".to_owned()),
        End::Bye(bye) => (bye, "the session is over".to_owned()),
        End::Lost(why) => {
            metrics::session_closed("lost");
            return debug!(agent = %identity.agent, %remote, transport, why, "agent lost");
        }
        End::Abandoned => (Bye::Done, "the node could not store a frame".to_owned()),
        End::Broken(error) => {
            metrics::protocol_error(&error);
            shared.registry.penalise(Instant::now(), &identity);
            if let Some(unsaid) = shared.registry.may_warn() {
                warn!(agent = %identity.agent, %remote, transport, %error, unsaid, "agent broke the protocol: disconnected for a minute");
            }
            (if matches!(error, ProtocolError::Version { .. }) { Bye::Version } else { Bye::Protocol }, error.to_string())
        }
    };
    metrics::session_closed(bye.as_str());
    debug!(agent = %identity.agent, %remote, transport, why = bye.as_str(), "agent disconnected");
    link.close(bye, &why).await;
    drop(place);
}

async fn talk(shared: &Shared, link: &mut Link, agent: &Arc<AgentIdentity>, place: &Place<'_>) -> End {
    let first = tokio::time::Instant::now() + HELLO_TIME_MAX;
    let (chain, transport) = (link.chain().to_vec(), link.transport());
    let (reader, writer) = match timeout_at(first, link.accept()).await {
        Ok(Ok(halves)) => halves,
        Ok(Err(lost)) => return lost.into(),
        Err(_) => return End::Broken(ProtocolError::Slow("Hello")),
    };
    let limits =
        ReceiverLimits { window_bytes: shared.limits.window_bytes as u64, frame_bytes_max: shared.limits.frame_bytes_max as u32 };
    let talk = Arc::new(Talk {
        receiver: Mutex::new(Receiver::new(shared.tls.node.clone(), limits)),
        verdicts: Mutex::new(Vec::new()),
        abandoned: AtomicBool::new(false),
        heard: AtomicBool::new(false),
        inside: AtomicBool::new(false),
        wake: Notify::new(),
    });
    let reading = Reading { shared, agent, talk: &talk, place };
    tokio::select! {
        end = reading.run(reader, first) => end,
        end = write(shared, &talk, place, writer, (CertificateWatch::new(&shared.tls.trust, &chain, agent), transport)) => end,
    }
}

impl From<Lost> for End {
    fn from(lost: Lost) -> Self {
        Self::Lost(match lost {
            Lost::Quic(error) => error.to_string(),
            Lost::Stream => "the agent reset its stream".to_owned(),
            Lost::Tcp(error) => error.to_string(),
        })
    }
}

/// The half that reads.
struct Reading<'a> {
    shared: &'a Shared,
    agent: &'a Arc<AgentIdentity>,
    talk: &'a Arc<Talk>,
    place: &'a Place<'a>,
}

impl Reading<'_> {
    /// Reads until the stream ends. `first` is when the first message must be whole.
    async fn run(&self, reader: &mut Reader, first: tokio::time::Instant) -> End {
        let limits = &self.shared.limits;
        let mut stream = FrameStream::new(limits.frame_bytes_max);
        let mut due = Some(first);
        let mut room = None;
        loop {
            let read = match due {
                Some(due) => match timeout_at(due, reader.read(&mut stream)).await {
                    Ok(read) => read,
                    Err(_) => return End::Broken(ProtocolError::Slow("the rest of a frame or message")),
                },
                None => reader.read(&mut stream).await,
            };
            match read {
                Ok(true) => self.talk.heard.store(true, Ordering::Relaxed),
                Ok(false) => return stream.end().map_or_else(End::Broken, |()| End::Bye(Bye::Done)),
                Err(lost) => return lost.into(),
            }
            let mut whole = false;
            loop {
                let unit = match stream.next_unit() {
                    Ok(Some(unit)) => unit,
                    Ok(None) => break,
                    Err(error) => return End::Broken(error),
                };
                whole = true;
                if let Some(end) = self.take(unit).await {
                    return end;
                }
            }
            self.talk.inside.store(stream.is_inside(), Ordering::Relaxed);
            if whole {
                room = None;
            }
            due = match (stream.is_inside(), due) {
                (false, _) => None,
                (true, Some(due)) if !whole => Some(due),
                (true, _) => Some(tokio::time::Instant::now() + limits.frame_time_max),
            };
            if let (Some(bytes), None) = (stream.large(), &room) {
                room = Some(self.room_for(bytes).await);
                // Waiting for others' frames was not this agent's slowness.
                due = Some(tokio::time::Instant::now() + limits.frame_time_max);
            }
        }
    }

    /// A long frame is read on only with room for all of it: many agents that each send a part and stop shall not fill the memory.
    async fn room_for(&self, bytes: NonZeroU32) -> OwnedSemaphorePermit {
        let bytes = bytes.get().min(self.shared.begun_bytes_max);
        self.shared.begun.clone().acquire_many_owned(bytes).await.expect("the budget is never closed")
    }

    async fn take(&self, unit: Unit) -> Option<End> {
        let received = self.talk.receiver().handle(unit);
        match received {
            Err(error) => Some(End::Broken(error)),
            Ok(Received::Bye(bye)) => Some(End::Bye(bye)),
            Ok(Received::Hello(hello)) => welcome(self.shared, self.agent, self.talk, hello).await,
            Ok(Received::Frame(frame, ticket)) => {
                let (events, bytes) = (u64::from(frame.header.count), u64::from(ticket.bytes));
                self.place.pace().charge(Instant::now(), events, bytes);
                pass_on(self.shared, self.agent, self.talk, frame, ticket).await
            }
            Ok(Received::LeftOut(error)) => {
                metrics::protocol_error(&error);
                self.talk.wake.notify_one();
                None
            }
        }
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
async fn write(
    shared: &Shared,
    talk: &Talk,
    place: &Place<'_>,
    writer: &mut Writer,
    (mut watch, transport): (CertificateWatch<'_>, Transport),
) -> End {
    let mut pulse = Pulse { said: tokio::time::Instant::now(), transport };
    let mut chunks = Vec::new();
    // Until when the agent gets no credit, because it sent too fast.
    let mut slow = None;
    loop {
        tokio::select! {
            () = talk.wake.notified() => {}
            () = until(slow) => {}
            () = pulse.due() => {}
            not_taken = watch.not_taken() => return End::NotTaken(not_taken),
        }
        let wait = place.pace().wait(Instant::now());
        if wait.is_some() && slow.is_none() {
            metrics::slowed();
            if let Some(unsaid) = shared.registry.may_warn() {
                info!(agent = %place.agent(), unsaid, "agent sends faster than it may: no credit for a while (limits.agent_…_per_second_max)");
            }
        }
        slow = wait.map(|wait| tokio::time::Instant::now() + wait);
        let verdicts = std::mem::take(&mut *talk.verdicts.lock().unwrap_or_else(PoisonError::into_inner));
        let (mut acks, mut bytes) = (0, Vec::new());
        {
            let mut receiver = talk.receiver();
            verdicts.into_iter().for_each(|(ticket, verdict)| receiver.settle(ticket, verdict));
            match slow {
                Some(_) => receiver.withhold_credit(),
                None => receiver.give_credit(),
            }
            if pulse.is_wanted(talk, &receiver) {
                receiver.pulse();
            }
            while let Some(message) = receiver.poll_transmit() {
                acks += u64::from(matches!(message, Message::Ack(_)));
                bytes.extend_from_slice(&message.encode());
            }
        }
        metrics::acks_sent(acks);
        if !bytes.is_empty() {
            pulse.said = tokio::time::Instant::now();
            chunks.push(Bytes::from(bytes));
            if let Err(lost) = writer.write(&mut chunks).await {
                return lost.into();
            }
        }
        if talk.abandoned.load(Ordering::Acquire) {
            return End::Abandoned;
        }
    }
}

/// On TCP the agent has only our words to see that we live.
struct Pulse {
    /// When something was said last, or nothing had to be.
    said: tokio::time::Instant,
    transport: Transport,
}

impl Pulse {
    async fn due(&self) {
        match self.transport {
            Transport::Quic => std::future::pending().await,
            Transport::Tcp => tokio::time::sleep_until(self.said + PULSE_EVERY).await,
        }
    }

    /// Whether an empty ack is to be said now. An agent that sends gets one a second, an idle one seldom.
    fn is_wanted(&mut self, talk: &Talk, receiver: &Receiver) -> bool {
        let silence = self.said.elapsed();
        if self.transport == Transport::Quic || silence < PULSE_EVERY {
            return false;
        }
        let heard = talk.heard.swap(false, Ordering::Relaxed) | talk.inside.load(Ordering::Relaxed);
        heard || receiver.outstanding_bytes() > 0 || silence >= KEEP_ALIVE
    }
}

async fn until(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// What an agent says of itself, fit for a log.
fn printable(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

/// For the first message after the handshake.
const HELLO_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest silence towards an agent on TCP that waits for a word. See the agent's `client/pulse.rs`.
const PULSE_EVERY: Duration = Duration::from_secs(1);
