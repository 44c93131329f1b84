//! Enrolment and renewal on a connection of their own: one request, one answer, and the end.
//!
//! Promise: who has no certificate can do nothing here but ask once, shortly and soon. There is room for
//! [`ENROLLING_MAX`] such callers, a quarter of it from one address.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use quinn::Connection;
use quinn::crypto::rustls::HandshakeData;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};
use weir_schema::AgentIdentity;

use super::Shared;
use crate::enrol::{ASK_BYTES_MAX, Ask, Decided, ENROL_ALPN, HEAD_BYTES, Refusal, decode_head, encode_answer};
use crate::error::ProtocolError;
use crate::identity::{Peer, from_certificate};
use crate::message::Bye;
use crate::trust::full_name;
use crate::{link, metrics, socket};

/// Whether a caller on QUIC came for this.
pub(super) fn wants_quic(connection: &Connection) -> bool {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    data.is_some_and(|data| data.protocol.as_deref() == Some(ENROL_ALPN))
}

/// Whether a caller on TCP came for this.
pub(super) fn wants_tcp(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(ENROL_ALPN)
}

/// One caller on QUIC.
pub(super) async fn quic(shared: &Shared, connection: Connection, remote: SocketAddr) {
    let Some(place) = shared.registry.enrolling(remote.ip()) else {
        metrics::enrolment("flood");
        return connection.close(socket::close_code(Bye::Full), b"too many ask for a certificate");
    };
    let chain = connection.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    let caller = chain.and_then(|chain| agent_of(chain.first()?));
    let asked = async {
        let (answering, mut asking) = connection.accept_bi().await?;
        io::Result::Ok((answering, read_ask(&mut asking).await))
    };
    match timeout(shared.limits.handshake_time_max, asked).await {
        Ok(Ok((mut answering, ask))) => {
            if let Some(answer) = decide(shared, ask, caller, remote).await
                && answering.write_all(&answer).await.is_ok()
            {
                let _ = answering.finish();
                // The agent closes when it has read the answer.
                let _ = timeout(TAKEN_TIME_MAX, connection.closed()).await;
            }
        }
        Ok(Err(_)) => metrics::enrolment("lost"),
        Err(_) => metrics::enrolment("slow"),
    }
    connection.close(socket::close_code(Bye::Done), b"");
    drop(place);
}

/// One caller on TCP.
pub(super) async fn tcp(shared: &Shared, mut stream: TlsStream<TcpStream>, remote: SocketAddr) {
    let Some(place) = shared.registry.enrolling(remote.ip()) else { return metrics::enrolment("flood") };
    let caller = stream.get_ref().1.peer_certificates().and_then(|chain| agent_of(chain.first()?));
    match timeout(shared.limits.handshake_time_max, read_ask(&mut stream)).await {
        Ok(ask) => {
            if let Some(answer) = decide(shared, ask, caller, remote).await {
                let _ = timeout(TAKEN_TIME_MAX, write_answer(&mut stream, &answer)).await;
            }
        }
        Err(_) => metrics::enrolment("slow"),
    }
    link::let_go(stream.into_inner().0).await;
    drop(place);
}

async fn write_answer(stream: &mut (impl AsyncWrite + Unpin), answer: &[u8]) -> io::Result<()> {
    stream.write_all(answer).await?;
    stream.shutdown().await
}

/// Why a request cannot be answered.
enum NoAsk {
    Lost(io::Error),
    Broken(ProtocolError),
}

async fn read_ask(stream: &mut (impl AsyncRead + Unpin)) -> Result<Ask, NoAsk> {
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head).await.map_err(NoAsk::Lost)?;
    let mut body = vec![0; decode_head(head, ASK_BYTES_MAX).map_err(NoAsk::Broken)?];
    stream.read_exact(&mut body).await.map_err(NoAsk::Lost)?;
    Ask::decode(&body).map_err(NoAsk::Broken)
}

/// The answer's bytes, if there is to be one.
async fn decide(shared: &Shared, ask: Result<Ask, NoAsk>, caller: Option<AgentIdentity>, remote: SocketAddr) -> Option<Vec<u8>> {
    let ask = match ask {
        Ok(ask) => ask,
        Err(NoAsk::Lost(error)) => {
            metrics::enrolment("lost");
            debug!(%remote, %error, "a caller for a certificate went away");
            return None;
        }
        Err(NoAsk::Broken(error)) => {
            metrics::enrolment("malformed");
            metrics::protocol_error(&error);
            if let Some(unsaid) = shared.registry.may_warn() {
                warn!(%remote, %error, unsaid, "a request for a certificate is malformed");
            }
            return None;
        }
    };
    let token = ask.token.as_ref().map(|(id, _)| id.to_string());
    let by_token = token.is_some();
    let decided = match shared.desk.clone() {
        Some(desk) => {
            let roots = shared.tls.trust.roots();
            // It reads files and asks the store.
            let deciding = tokio::task::spawn_blocking(move || desk.decide(&ask, caller.as_ref(), &roots, SystemTime::now()));
            deciding.await.unwrap_or(Decided { answer: Err(Refusal::NotNow), agent: None })
        }
        None => Decided { answer: Err(Refusal::NotHere), agent: caller },
    };
    let agent = decided.agent.as_ref().map(full_name);
    match &decided.answer {
        Ok(_) => {
            metrics::enrolment(if by_token { "enrolled" } else { "renewed" });
            match by_token {
                true => info!(agent, token, %remote, "agent enrolled"),
                false => info!(agent, %remote, "certificate renewed"),
            }
        }
        Err(refusal) => {
            metrics::enrolment(refusal.as_str());
            if let Some(unsaid) = shared.registry.may_warn() {
                warn!(agent, token, %remote, unsaid, "no certificate given: {}", refusal.explain());
            }
        }
    }
    Some(encode_answer(&decided.answer))
}

fn agent_of(der: &[u8]) -> Option<AgentIdentity> {
    match from_certificate(der) {
        Ok(Peer::Agent(agent)) => Some(agent),
        _ => None,
    }
}

/// For the answer to be taken.
const TAKEN_TIME_MAX: Duration = Duration::from_secs(2);
/// Callers at once.
pub(super) const ENROLLING_MAX: usize = 64;
