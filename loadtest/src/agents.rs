//! Simulated agents: each has a certificate of its own, batches as a real agent does, and speaks the real transport.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;
use weir_config::{BatchLimits, ClientTls, TransportChoice};
use weir_edge::batch::Batcher;
use weir_schema::{Epoch, Event, Host, Name};
use weir_transport::{Client, ClientConfig, ClientStats, Dialer, ca};

/// Where agents send, and who they are.
#[derive(Clone)]
pub struct Target {
    /// QUIC addresses of the nodes. Agents start with different ones, and know all.
    pub nodes: Vec<SocketAddr>,
    /// Directory of the certificate authority that the nodes trust.
    pub authority: PathBuf,
    /// Tenant of all agents.
    pub tenant: String,
    /// UDP sockets that all agents share: a fleet of thousands needs no thousand sockets.
    pub dialer: Option<Dialer>,
}

/// One simulated agent.
pub struct SimAgent {
    client: Client,
    batcher: Batcher,
}

impl SimAgent {
    /// Issues a certificate, and starts a session with the nodes, beginning with number `first_node`.
    pub fn start(target: &Target, region: &str, host: Arc<Host>, epoch: Epoch, first_node: usize) -> anyhow::Result<Self> {
        let name = agent_name(&host.host);
        let dir = target.authority.join("simulated").join(&name);
        if !dir.join("cert.pem").exists() {
            let issued =
                ca::issue_agent(&target.authority, &Name::new(&target.tenant)?, &Name::new(region)?, &Name::new(&name)?, &dir);
            issued.with_context(|| format!("no certificate for the simulated agent {name}"))?;
        }
        let mut nodes = target.nodes.clone();
        let turns = first_node % nodes.len().max(1);
        nodes.rotate_left(turns);
        let config = ClientConfig {
            nodes: nodes.iter().map(ToString::to_string).collect(),
            server_name: "localhost".to_owned(),
            tls: ClientTls { ca: dir.join("ca.pem"), cert: dir.join("cert.pem"), key: dir.join("key.pem") },
            memory_bytes_max: UNACKED_BYTES_MAX,
            software: concat!("weir-loadtest ", env!("CARGO_PKG_VERSION")).to_owned(),
            transport: TransportChoice::Auto,
            udp_retry: UDP_RETRY,
            enrol: None,
            dialer: target.dialer.clone(),
        };
        let client = Client::start(config, epoch)?;
        Ok(Self { client, batcher: Batcher::new(host, epoch, BATCH) })
    }

    /// What its session has done.
    pub fn stats(&self) -> ClientStats {
        self.client.stats()
    }

    /// Takes one event; sends what is full. Waits while the session has no room.
    pub async fn tell(&mut self, event: &Event, now: Instant) -> anyhow::Result<()> {
        for frame in self.batcher.push(event, now)? {
            self.client.send(frame).await?;
        }
        Ok(())
    }

    /// Sends what is old enough.
    pub async fn due(&mut self, now: Instant) -> anyhow::Result<()> {
        for frame in self.batcher.due(now)? {
            self.client.send(frame).await?;
        }
        Ok(())
    }

    /// Sends one event at once, and says how long its acknowledgement took.
    pub async fn acked(&mut self, event: &Event, within: Duration) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        self.tell(event, begun).await?;
        for frame in self.batcher.finish()? {
            self.client.send(frame).await?;
        }
        self.client.flush(std::time::Instant::now() + within).await?;
        Ok(begun.elapsed())
    }

    /// Sends what is left, waits until all is acknowledged, and says good-bye. What its session has done.
    pub async fn finish(mut self, within: Duration) -> anyhow::Result<ClientStats> {
        for frame in self.batcher.finish()? {
            self.client.send(frame).await?;
        }
        self.client.flush(std::time::Instant::now() + within).await?;
        let stats = self.client.stats();
        self.client.close().await;
        Ok(stats)
    }
}

/// A host name in the characters that identities allow.
fn agent_name(host: &str) -> String {
    let plain: String =
        host.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).take(120).collect();
    if plain.is_empty() { "unnamed".to_owned() } else { plain }
}

/// An epoch as agents draw it: random per start.
pub fn random_epoch() -> Epoch {
    use std::hash::{BuildHasher as _, RandomState};
    Epoch(RandomState::new().hash_one(std::process::id()))
}

const UNACKED_BYTES_MAX: u64 = 8 << 20;
/// As agents do by default.
const UDP_RETRY: Duration = Duration::from_secs(600);
const BATCH: BatchLimits = BatchLimits { events_max: 1_000, bytes_max: 262_144, age_ms_max: 100, away_age_ms_max: 1_000 };
