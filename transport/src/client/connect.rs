//! Goes through the nodes until one answers, and again after every end.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, TransportErrorCode};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::talk::{self, End};
use super::{ClientConfig, Shared};
use crate::message::Bye;
use crate::tls::AgentTls;
use crate::{metrics, socket};

/// Sockets for outgoing connections, one per address family. Clients of one process may share them.
#[derive(Clone, Default)]
pub struct Dialer {
    v4: Arc<Mutex<Option<Endpoint>>>,
    v6: Arc<Mutex<Option<Endpoint>>>,
}

impl Dialer {
    fn endpoint(&self, to: SocketAddr) -> std::io::Result<Endpoint> {
        let place = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = &*place {
            return Ok(endpoint.clone());
        }
        let endpoint = socket::dial(to)?.endpoint;
        Ok(place.insert(endpoint).clone())
    }
}

/// The client's task: ends when the client is closed.
pub(super) async fn run(shared: Arc<Shared>, config: ClientConfig, tls: AgentTls) {
    let mut quic = quic_config(&tls);
    let dialer = config.dialer.clone().unwrap_or_default();
    let mut waits = Waits::new();
    // Agents that start together shall not all go to the first node.
    let mut turn = waits.random() as usize % config.nodes.len();
    while !shared.closed.load(Ordering::Acquire) {
        let node = &config.nodes[turn % config.nodes.len()];
        turn += 1;
        // A certificate may have been renewed meanwhile; half-written files are looked at again next time.
        if let Ok(tls) = AgentTls::load(&config.tls) {
            quic = quic_config(&tls);
        }
        let ended = match connect(&dialer, &quic, node, &config.server_name).await {
            Ok(connection) => {
                let end = talk::talk(&shared, &connection).await;
                connection.close(socket::close_code(Bye::Done), b"");
                end
            }
            Err(why) => End { why: Some(why), ..End::default() },
        };
        metrics::client_connect(if ended.welcomed { "ok" } else { "failed" });
        if let Some(bye) = ended.bye {
            metrics::client_bye(bye);
        }
        let wait = waits.next(&ended, config.nodes.len());
        if let Some(why) = ended.why {
            if ended.welcomed {
                info!(node, why, "session ended");
            } else {
                warn!(node, why, next_try_ms = wait.as_millis() as u64, "no session");
            }
            *shared.last_error() = Some(format!("{node}: {why}"));
        }
        shared.rest(wait).await;
    }
    shared.end();
}

fn quic_config(tls: &AgentTls) -> quinn::ClientConfig {
    let quic = QuicClientConfig::try_from(tls.config.clone()).expect("the provider has the suite of QUIC's first packets");
    let mut quic = quinn::ClientConfig::new(Arc::new(quic));
    quic.transport_config(socket::transport(socket::IDLE, 0));
    quic
}

impl Shared {
    /// Waits, or returns early when the client is closed.
    async fn rest(&self, wait: Duration) {
        let end = tokio::time::Instant::now() + wait;
        while !self.closed.load(Ordering::Acquire) {
            if tokio::time::timeout_at(end, self.wake.notified()).await.is_err() {
                return;
            }
        }
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.room.notify_waiters();
    }
}

/// A connection to whichever address of `node` answers first, or why there is none. A later address gets its chance a little later:
/// a dead one (`::1` of `localhost`, say) does not answer at all.
async fn connect(dialer: &Dialer, config: &quinn::ClientConfig, node: &str, name: &str) -> Result<Connection, String> {
    let addresses = tokio::net::lookup_host(node).await.map_err(|error| format!("could not resolve {node:?}: {error}"))?;
    let mut why = format!("{node:?} has no address");
    let mut attempts = JoinSet::new();
    for (place, address) in (0..).zip(addresses.take(ADDRESSES_MAX)) {
        let endpoint = match dialer.endpoint(address) {
            Ok(endpoint) => endpoint,
            Err(error) => {
                why = format!("could not open a UDP socket: {error}");
                continue;
            }
        };
        let (config, name) = (config.clone(), name.to_owned());
        attempts.spawn(async move {
            tokio::time::sleep(STAGGER * place).await;
            let connecting = endpoint.connect_with(config, address, &name).map_err(|error| error.to_string())?;
            match tokio::time::timeout(CONNECT_TIME_MAX, connecting).await {
                Ok(Ok(connection)) => Ok(connection),
                Ok(Err(error)) => Err(explain(&error)),
                Err(_) => Err(format!("{address}/udp does not answer (is the node running, is UDP let through?)")),
            }
        });
    }
    while let Some(attempt) = attempts.join_next().await {
        match attempt {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => why = error,
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

/// The end of a connection in words, with a cure where there is one.
pub(super) fn explain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TransportError(error) if crate::server::is_tls_alert(error.code) => {
            format!(
                "the node's certificate is refused: {} (cure: `nodes`, `server_name` and `tls.ca` of this fleet)",
                error.reason
            )
        }
        ConnectionError::ConnectionClosed(close) if crate::server::is_tls_alert(close.error_code) => {
            let what = alert(close.error_code);
            format!("the node refuses our certificate: {what} (cure: a new one by `weir ca issue` of this fleet)")
        }
        ConnectionError::ApplicationClosed(close) => {
            let said = String::from_utf8_lossy(&close.reason).escape_debug().to_string();
            match socket::bye_of(close.error_code) {
                Some(Bye::Full) => "the node has as many agents as it takes".to_owned(),
                Some(Bye::Superseded) => "another process with the same certificate took our place".to_owned(),
                Some(Bye::Penalty) => "the node makes us wait, because we broke the protocol".to_owned(),
                Some(Bye::Expired) => "our certificate has expired (cure: `weir ca issue`)".to_owned(),
                _ => format!("the node closed the connection: {said}"),
            }
        }
        ConnectionError::Reset => "the node was started anew".to_owned(),
        other => other.to_string(),
    }
}

/// What a TLS alert means here.
fn alert(code: TransportErrorCode) -> &'static str {
    match u64::from(code) - 0x100 {
        42 => "it is damaged",
        45 => "it has expired or is not valid yet",
        46 => "it is not an agent's of this fleet",
        48 => "its authority is unknown there",
        51 => "another authority of the same name signed it",
        116 => "it is missing",
        43 => "it is not for agents",
        49 => "access denied",
        _ => "for another reason",
    }
}

/// How long to wait before the next node.
struct Waits {
    /// Ends since the last session that was of use.
    failures: u32,
    random: RandomState,
    drawn: u64,
}

impl Waits {
    fn new() -> Self {
        Self { failures: 0, random: RandomState::new(), drawn: 0 }
    }

    fn random(&mut self) -> u64 {
        self.drawn += 1;
        self.random.hash_one((self.drawn, Instant::now()))
    }

    fn next(&mut self, end: &End, nodes: usize) -> Duration {
        // A node that welcomes but stores nothing is no better than none.
        self.failures = if end.productive { 0 } else { self.failures.saturating_add(1) };
        // The whole list is tried before the wait grows.
        let rounds = self.failures / u32::try_from(nodes).unwrap_or(u32::MAX).max(1);
        let grown = (WAIT_MIN * 2u32.saturating_pow(rounds.min(16))).min(WAIT_MAX);
        let wait = match end.bye {
            Some(Bye::Penalty | Bye::Protocol) if nodes == 1 => PENALTY,
            Some(Bye::Superseded | Bye::Version | Bye::Expired) => WAIT_MAX,
            _ => grown,
        };
        // From half to all of it, so that agents that lost one node do not come in step.
        let half = wait / 2;
        half + half.mul_f64((self.random() % 1024) as f64 / 1024.0)
    }
}

/// Addresses of one node that are tried.
const ADDRESSES_MAX: usize = 8;
/// Between two addresses of one node.
const STAGGER: Duration = Duration::from_millis(250);
/// For one address.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// The first wait. An agent whose node went away is back within a tenth of a second.
const WAIT_MIN: Duration = Duration::from_millis(100);
/// The longest wait: after an outage all agents are back within half a minute.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// A node disconnects who broke the protocol for a minute.
const PENALTY: Duration = Duration::from_secs(62);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_per_round_and_begin_anew_after_a_good_session() {
        let mut waits = Waits::new();
        let end = |productive, bye| End { why: None, welcomed: productive, productive, bye };
        let first = waits.next(&end(true, None), 3);
        assert!(first >= WAIT_MIN / 2 && first <= WAIT_MIN, "{first:?}");
        for _ in 0..2 {
            assert!(waits.next(&end(false, None), 3) <= WAIT_MIN);
        }
        let second_round = waits.next(&end(false, None), 3);
        assert!(second_round >= WAIT_MIN && second_round <= 2 * WAIT_MIN, "{second_round:?}");
        for _ in 0..100 {
            assert!(waits.next(&end(false, None), 3) <= WAIT_MAX);
        }
        assert!(waits.next(&end(false, None), 3) >= WAIT_MAX / 2);
        assert!(waits.next(&end(true, Some(Bye::Superseded)), 3) >= WAIT_MAX / 2);
        assert!(waits.next(&end(false, Some(Bye::Penalty)), 1) >= PENALTY / 2);
    }
}
