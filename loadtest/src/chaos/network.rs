//! The network between agents and nodes, and between nodes: a relay stands before each node.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::local::process::children;
use crate::relay::{Passes, Relay, Weather, owner_of_port};

/// What stands before one node.
pub(super) struct Relays {
    /// For the agents.
    pub(super) agents: Relay,
    mesh: Relay,
}

impl Relays {
    /// Fixes the ports of a node's config, and lets its mesh address be the relay's.
    pub(super) async fn start(config: &Path, at: usize, seed: u64, pids: &Pids) -> anyhow::Result<Self> {
        let listen = fix_ports(config)?;
        let all: Passes = Arc::new(|_| true);
        let agents = Relay::start(listen.quic, seed ^ at as u64, all).await?;
        let pids = pids.clone();
        let mesh = Relay::start(listen.mesh, seed, Arc::new(move |port| !pids.is_cut_off(port))).await?;
        let mut text = std::fs::read_to_string(config)?;
        text.push_str(&format!("[mesh]\nadvertise = \"{}\"\n", mesh.address));
        std::fs::write(config, text)?;
        Ok(Self { agents, mesh })
    }

    pub(super) fn set(&self, weather: Weather) {
        self.agents.set(weather);
        self.mesh.set(weather);
    }
}

/// The processes of each node, and which node is cut off.
#[derive(Clone, Default)]
pub(super) struct Pids(Arc<Mutex<Known>>);

/// What relays ask for.
#[derive(Default)]
struct Known {
    /// Of each node, while it runs.
    pids: Vec<Option<u32>>,
    /// The node that is cut off.
    cut_off: Option<usize>,
}

impl Pids {
    pub(super) fn note(&self, pids: Vec<Option<u32>>) {
        self.lock().pids = pids;
    }

    /// From now on this node is cut off, or none.
    pub(super) fn cut_off(&self, node: Option<usize>) {
        self.lock().cut_off = node;
    }

    /// Whether this port of a connection is a port of the node that is cut off.
    fn is_cut_off(&self, port: u16) -> bool {
        let known = self.lock();
        let pid = known.cut_off.and_then(|node| known.pids.get(node).copied().flatten());
        drop(known);
        pid.is_some_and(|pid| owner_of_port(port, std::iter::once(pid).chain(children(pid))).is_some())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a node listens.
struct Listens {
    quic: SocketAddr,
    mesh: SocketAddr,
}

/// Gives every free port of a config a number, so that a node that is started again is where it was.
fn fix_ports(config: &Path) -> anyhow::Result<Listens> {
    let mut text = std::fs::read_to_string(config)?;
    while let Some(at) = text.find(":0\"") {
        // Held while the number is taken, for UDP and TCP alike.
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = tcp.local_addr()?.port();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            text.replace_range(at + 1..at + 2, &port.to_string());
        }
    }
    text.push_str("[checkpoint]\nevery_ms = 5000\n");
    std::fs::write(config, text)?;
    let listen = weir_config::NodeConfig::load(config)?.listen;
    Ok(Listens { quic: listen.quic, mesh: listen.mesh })
}
