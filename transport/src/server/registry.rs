//! Who is connected to this node, who has to wait, and when something was last said about it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::Connection;
use weir_schema::AgentIdentity;

use crate::message::Bye;
use crate::metrics;
use crate::server::TransportLimits;
use crate::socket::close_code;

/// Shared by all connections of a server.
#[derive(Default)]
pub(super) struct Registry {
    agents: Mutex<Agents>,
    half_open: AtomicUsize,
    warned: Mutex<Warned>,
}

#[derive(Default)]
struct Agents {
    /// Oldest connection first.
    connected: HashMap<AgentIdentity, Vec<Connection>>,
    connections: usize,
    /// Until when an agent that broke the protocol has to wait.
    penalties: HashMap<AgentIdentity, Instant>,
}

#[derive(Default)]
struct Warned {
    last: Option<Instant>,
    unsaid: u64,
}

/// A place among the connected, given back when dropped.
pub(super) struct Place<'a> {
    registry: &'a Registry,
    agent: AgentIdentity,
    connection: usize,
}

/// A handshake under way.
pub(super) struct HalfOpen<'a>(&'a AtomicUsize);

impl Registry {
    /// Counts a handshake until the result is dropped.
    pub(super) fn half_open(&self) -> HalfOpen<'_> {
        self.half_open.fetch_add(1, Ordering::Relaxed);
        HalfOpen(&self.half_open)
    }

    /// Takes a connection in, or says why not. The oldest with the same certificate may have to go for it.
    pub(super) fn enter(
        &self,
        now: Instant,
        agent: &AgentIdentity,
        connection: &Connection,
        limits: &TransportLimits,
    ) -> Result<Place<'_>, Bye> {
        let mut agents = self.lock();
        match agents.penalties.entry(agent.clone()) {
            Entry::Occupied(entry) if *entry.get() > now => return Err(Bye::Penalty),
            Entry::Occupied(entry) => {
                entry.remove();
            }
            Entry::Vacant(_) => {}
        }
        let own = agents.connected.get(agent).map_or(0, Vec::len);
        if own >= limits.connections_per_agent_max {
            // It leaves the list when its task ends.
            let oldest = agents.connected.get(agent).and_then(|list| list.iter().find(|c| c.close_reason().is_none()));
            if let Some(oldest) = oldest {
                oldest.close(close_code(Bye::Superseded), b"a newer connection took this one's place");
            }
        } else if agents.connections >= limits.agents_max {
            return Err(Bye::Full);
        }
        agents.connections += 1;
        agents.connected.entry(agent.clone()).or_default().push(connection.clone());
        metrics::sessions(1.0);
        Ok(Place { registry: self, agent: agent.clone(), connection: connection.stable_id() })
    }

    /// Makes an agent wait.
    pub(super) fn penalise(&self, now: Instant, agent: &AgentIdentity) {
        let penalties = &mut self.lock().penalties;
        if penalties.len() >= PENALTIES_MAX {
            penalties.retain(|_, until| *until > now);
        }
        if penalties.len() < PENALTIES_MAX {
            penalties.insert(agent.clone(), now + PENALTY);
        }
    }

    /// Whether a warning may be written, at most one a second: strangers shall not fill the log. Gives how many were not written.
    pub(super) fn may_warn(&self) -> Option<u64> {
        let now = Instant::now();
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.last.is_some_and(|last| now < last + WARN_EVERY) {
            warned.unsaid += 1;
            return None;
        }
        warned.last = Some(now);
        Some(std::mem::take(&mut warned.unsaid))
    }

    fn lock(&self) -> MutexGuard<'_, Agents> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut agents = self.registry.lock();
        agents.connections -= 1;
        if let Entry::Occupied(mut entry) = agents.connected.entry(self.agent.clone()) {
            entry.get_mut().retain(|connection| connection.stable_id() != self.connection);
            if entry.get().is_empty() {
                entry.remove();
            }
        }
        metrics::sessions(-1.0);
    }
}

impl HalfOpen<'_> {
    /// How many handshakes are under way, this one included.
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for HalfOpen<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long an agent that broke the protocol has to wait.
const PENALTY: Duration = Duration::from_secs(60);
/// Most agents that wait.
const PENALTIES_MAX: usize = 10_000;
const WARN_EVERY: Duration = Duration::from_secs(1);
