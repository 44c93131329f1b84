//! Who is connected to this node, who has to wait, and when something was last said about it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use weir_schema::{AgentIdentity, Name};

use super::TransportLimits;
use super::enrol::ENROLLING_MAX;
use super::pace::Pace;
use crate::link::Transport;
use crate::message::Bye;
use crate::metrics;

/// Shared by all connections of a server.
#[derive(Default)]
pub(super) struct Registry {
    agents: Mutex<Agents>,
    /// Handshakes of QUIC.
    half_open: AtomicUsize,
    /// Handshakes on TCP, by address.
    half_open_tcp: Mutex<ByAddress>,
    /// Callers for a certificate, by address.
    enrolling: Mutex<ByAddress>,
    warned: Mutex<Warned>,
}

#[derive(Default)]
struct Agents {
    connected: HashMap<AgentIdentity, Connected>,
    connections: usize,
    /// Numbers connections.
    entered: u64,
    /// Until when an agent that broke the protocol has to wait.
    penalties: HashMap<AgentIdentity, Instant>,
    /// Paces of agents that left before all they sent was paid for.
    owing: HashMap<AgentIdentity, Pace>,
}

/// The connections with one certificate.
struct Connected {
    /// Oldest first.
    seats: Vec<Seat>,
    pace: Arc<Mutex<Pace>>,
}

struct Seat {
    number: u64,
    /// Asks the connection to end.
    leave: watch::Sender<Option<Bye>>,
}

#[derive(Default)]
struct ByAddress {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
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
    number: u64,
    transport: Transport,
    leave: watch::Receiver<Option<Bye>>,
    pace: Arc<Mutex<Pace>>,
}

/// A handshake of QUIC under way.
pub(super) struct HalfOpen<'a>(&'a AtomicUsize);

/// A handshake on TCP, or a request for a certificate, under way.
pub(super) struct HalfOpenAt<'a> {
    counted: &'a Mutex<ByAddress>,
    address: IpAddr,
}

impl Registry {
    /// Counts a handshake until the result is dropped.
    pub(super) fn half_open(&self) -> HalfOpen<'_> {
        self.half_open.fetch_add(1, Ordering::Relaxed);
        HalfOpen(&self.half_open)
    }

    /// Counts a handshake on TCP until the result is dropped; `None` when there are too many, of all or from this address. Kept apart
    /// from QUIC's, so that silent callers of one port do not close the other.
    pub(super) fn half_open_tcp(&self, address: IpAddr, limits: &TransportLimits) -> Option<HalfOpenAt<'_>> {
        count_at(&self.half_open_tcp, address, limits.half_open_max)
    }

    /// Counts a caller for a certificate until the result is dropped; `None` when there are too many, of all or from this address.
    pub(super) fn enrolling(&self, address: IpAddr) -> Option<HalfOpenAt<'_>> {
        count_at(&self.enrolling, address, ENROLLING_MAX)
    }

    /// Takes a connection in, or says why not. The oldest with the same certificate may have to go for it.
    pub(super) fn enter(
        &self,
        now: Instant,
        agent: &AgentIdentity,
        transport: Transport,
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
        let own = agents.connected.get(agent).map_or(0, |connected| connected.seats.len());
        if own >= limits.connections_per_agent_max {
            // It leaves the list when its task ends.
            let oldest = agents.connected.get(agent).and_then(|own| own.seats.iter().find(|seat| seat.leave.borrow().is_none()));
            if let Some(oldest) = oldest {
                let _ = oldest.leave.send(Some(Bye::Superseded));
            }
        } else if agents.connections >= limits.agents_max {
            return Err(Bye::Full);
        }
        let (ask, leave) = watch::channel(None);
        agents.connections += 1;
        agents.entered += 1;
        let number = agents.entered;
        let owed = agents.owing.remove(agent).unwrap_or_else(|| Pace::new(now, limits.rates));
        let connected = agents.connected.entry(agent.clone());
        let connected = connected.or_insert_with(|| Connected { seats: Vec::new(), pace: Arc::new(Mutex::new(owed)) });
        connected.seats.push(Seat { number, leave: ask });
        let pace = connected.pace.clone();
        metrics::sessions(1.0, transport);
        Ok(Place { registry: self, agent: agent.clone(), number, transport, leave, pace })
    }

    /// Asks every connection to end.
    pub(super) fn leave_all(&self, bye: Bye) {
        for connected in self.lock().connected.values() {
            for seat in &connected.seats {
                let _ = seat.leave.send(Some(bye));
            }
        }
    }

    /// Makes an agent wait.
    pub(super) fn penalise(&self, now: Instant, agent: &AgentIdentity) {
        let penalties = &mut self.lock().penalties;
        if penalties.len() >= REMEMBERED_MAX {
            penalties.retain(|_, until| *until > now);
        }
        if penalties.len() < REMEMBERED_MAX {
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

fn count_at(counted: &Mutex<ByAddress>, address: IpAddr, most: usize) -> Option<HalfOpenAt<'_>> {
    let mut now = counted.lock().unwrap_or_else(PoisonError::into_inner);
    let own = now.by_address.get(&address).copied().unwrap_or(0);
    // One address may have a fleet behind it, so it gets a good part.
    if now.all >= most || own >= most.div_ceil(PARTS) {
        return None;
    }
    now.all += 1;
    now.by_address.insert(address, own + 1);
    Some(HalfOpenAt { counted, address })
}

impl Place<'_> {
    /// Waits until this connection has to end.
    pub(super) async fn asked_to_leave(&self) -> Bye {
        let mut leave = self.leave.clone();
        let asked = leave.wait_for(Option::is_some).await.map(|bye| *bye);
        match asked {
            Ok(bye) => bye.unwrap_or(Bye::Done),
            // The seat goes only with this place.
            Err(_) => std::future::pending().await,
        }
    }

    /// Whose it is.
    pub(super) fn agent(&self) -> &Name {
        &self.agent.agent
    }

    /// What this agent, over all its connections, has sent and not paid for.
    pub(super) fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let pace = *self.pace();
        let mut agents = self.registry.lock();
        agents.connections -= 1;
        let mut left = false;
        if let Entry::Occupied(mut entry) = agents.connected.entry(self.agent.clone()) {
            entry.get_mut().seats.retain(|seat| seat.number != self.number);
            if entry.get().seats.is_empty() {
                entry.remove();
                left = true;
            }
        }
        // Who comes back shall not begin with a new burst.
        let now = Instant::now();
        if left && !pace.is_even(now) {
            if agents.owing.len() >= REMEMBERED_MAX {
                agents.owing.retain(|_, pace| !pace.is_even(now));
            }
            if agents.owing.len() < REMEMBERED_MAX {
                agents.owing.insert(self.agent.clone(), pace);
            }
        }
        metrics::sessions(-1.0, self.transport);
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

impl Drop for HalfOpenAt<'_> {
    fn drop(&mut self) {
        let mut half_open = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        half_open.all -= 1;
        if let Entry::Occupied(mut entry) = half_open.by_address.entry(self.address) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// How long an agent that broke the protocol has to wait.
const PENALTY: Duration = Duration::from_secs(60);
/// Most agents that wait, and most that owe.
const REMEMBERED_MAX: usize = 10_000;
const WARN_EVERY: Duration = Duration::from_secs(1);
/// One address may have one part of all.
const PARTS: usize = 4;
