//! Goes through the nodes until one answers, and again after every end; on QUIC, or on TCP where UDP is not let through.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use super::dial::{Caller, NoLink};
use super::route::{Jitter, Route, Tried};
use super::talk::{self, End};
use super::{ClientConfig, Shared};
use crate::link::{Link, Transport};
use crate::message::Bye;
use crate::metrics;
use crate::tls::AgentTls;

/// The client's task: ends when the client is closed.
pub(super) async fn run(shared: Arc<Shared>, config: ClientConfig, tls: AgentTls) {
    let dialer = config.dialer.clone().unwrap_or_default();
    let mut caller = Caller::new(dialer, config.server_name.clone(), &tls);
    let mut route = Route::new(config.transport, config.udp_retry, config.nodes.len());
    let mut waits = Waits::new();
    // Agents that start together shall not all go to the first node.
    let mut turn = waits.random() as usize % config.nodes.len();
    let mut found: Option<(usize, Link)> = None;
    while !shared.closed.load(Ordering::Acquire) {
        let mut renewals = shared.renewals.subscribe();
        // A certificate may have been renewed meanwhile; half-written files are looked at again next time.
        if let Ok(tls) = AgentTls::load(&config.tls) {
            caller.renew(&tls);
        }
        let transport = route.transport();
        let link = match found.take() {
            Some((at, link)) => {
                turn = at;
                Ok(link)
            }
            None => caller.call(&config.nodes[turn % config.nodes.len()], transport).await,
        };
        let node = &config.nodes[turn % config.nodes.len()];
        turn += 1;
        let (ended, tried) = match link {
            Ok(link) => {
                let (at, carried) = (turn - 1, link.transport());
                let search = search(&mut route, &mut waits, &caller, &config.nodes);
                let better = async {
                    tokio::select! {
                        (at, link) = search => Better { at, link, why: "UDP is let through again: the session goes on over QUIC" },
                        (at, link) = renewed(&mut renewals, &config, &caller, at, carried) => {
                            Better { at, link, why: "the certificate was renewed: the session goes on with it" }
                        }
                    }
                };
                let (ended, moved) = talk::talk(&shared, link, better).await;
                if let Some(Better { at, link, why }) = moved {
                    info!(node = config.nodes[at % config.nodes.len()], why);
                    found = Some((at, link));
                }
                let tried = if ended.welcomed { Tried::Session } else { Tried::Failed };
                (ended, tried)
            }
            Err(NoLink { silent, why }) => {
                let tried = if silent { Tried::Silent } else { Tried::Failed };
                (End { why: Some(why), ..End::default() }, tried)
            }
        };
        metrics::client_connect(if ended.welcomed { "ok" } else { "failed" }, transport);
        if let Some(bye) = ended.bye {
            metrics::client_bye(bye);
        }
        if found.is_some() {
            continue;
        }
        route.tried(Instant::now(), tried, Jitter(waits.random()));
        let wait = waits.next(&ended, config.nodes.len());
        if let Some(why) = ended.why {
            if ended.welcomed {
                info!(node, why, "session ended");
            } else {
                warn!(node, why, next_try_ms = wait.as_millis() as u64, "no session");
            }
            *shared.last_error() = Some(format!("{node}: {why}"));
        }
        if route.transport() != transport {
            match route.transport() {
                Transport::Tcp => warn!("no node answers on UDP: trying TCP (cure: let UDP through to the nodes' port)"),
                Transport::Quic => info!("no node is reached by TCP either: trying QUIC"),
            }
        }
        shared.rest(wait).await;
    }
    shared.end();
}

/// A connection that is to take the present one's place.
struct Better {
    at: usize,
    link: Link,
    why: &'static str,
}

/// Waits for a renewed certificate, then for a connection with it; to the same node, if that answers.
async fn renewed(
    renewals: &mut watch::Receiver<()>,
    config: &ClientConfig,
    caller: &Caller,
    at: usize,
    transport: Transport,
) -> (usize, Link) {
    let mut caller = caller.clone();
    loop {
        if renewals.changed().await.is_err() {
            return std::future::pending().await;
        }
        let Ok(tls) = AgentTls::load(&config.tls) else { continue };
        caller.renew(&tls);
        for turn in at..at + config.nodes.len() {
            if let Ok(link) = caller.call(&config.nodes[turn % config.nodes.len()], transport).await {
                return (turn, link);
            }
        }
        // The present connection is good for a while; after its end the new certificate is used in any case.
    }
}

/// While a session runs on TCP: looks now and then for a node that answers on UDP, until one does.
async fn search(route: &mut Route, waits: &mut Waits, caller: &Caller, nodes: &[String]) -> (usize, Link) {
    loop {
        let Some(at) = route.again() else { return std::future::pending().await };
        tokio::time::sleep_until(at.into()).await;
        let first = waits.random() as usize % nodes.len();
        for turn in first..first + nodes.len() {
            if let Ok(link) = caller.call(&nodes[turn % nodes.len()], Transport::Quic).await {
                route.one_answered();
                return (turn, link);
            }
        }
        route.none_answered(Instant::now(), Jitter(waits.random()));
    }
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

/// How long to wait before the next node.
pub(super) struct Waits {
    /// Ends since the last session that was of use.
    failures: u32,
    random: RandomState,
    drawn: u64,
}

impl Waits {
    pub(super) fn new() -> Self {
        Self { failures: 0, random: RandomState::new(), drawn: 0 }
    }

    pub(super) fn random(&mut self) -> u64 {
        self.drawn += 1;
        self.random.hash_one((self.drawn, Instant::now()))
    }

    /// After one more request for a certificate that failed.
    pub(super) fn grown(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let wait = (ASK_WAIT_MIN * 2u32.saturating_pow(self.failures.min(16))).min(ASK_WAIT_MAX);
        Jitter(self.random()).of(wait)
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
        // Agents that lost one node shall not come in step.
        Jitter(self.random()).of(wait)
    }
}

/// The first wait. An agent whose node went away is back within a tenth of a second.
const WAIT_MIN: Duration = Duration::from_millis(100);
/// The longest wait: after an outage all agents are back within half a minute.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Between two requests for a certificate, at the least and at the most.
const ASK_WAIT_MIN: Duration = Duration::from_millis(500);
const ASK_WAIT_MAX: Duration = Duration::from_secs(300);
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
