//! A cluster on loopback: every node and the agent a process of its own, with real certificates. The demo and the benchmarks use it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use weir_config::DemoConfig;

pub mod process;
pub mod setup;

use process::Running;
use setup::Setup;

/// Where a node listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// PostgreSQL clients.
    pub sql: SocketAddr,
    /// HTTP clients.
    pub http: SocketAddr,
    /// Agents.
    pub quic: SocketAddr,
}

/// Running nodes.
pub struct LocalCluster {
    /// The nodes' processes.
    pub nodes: Vec<Running>,
    /// Where each listens, in the same order.
    pub addresses: Vec<Addresses>,
}

impl LocalCluster {
    /// Starts the nodes of a setup and waits until the first one gives answers.
    pub async fn start(program: &Path, setup: &Setup) -> anyhow::Result<Self> {
        let mut cluster = Self { nodes: Vec::new(), addresses: Vec::new() };
        for config in &setup.node_configs {
            let mut node = Running::start(program, "node", config, &setup.logs()).await?;
            cluster.addresses.push(parse_ready(&node.first_line().await?)?);
            cluster.nodes.push(node);
        }
        let first = cluster.addresses.first().context("a cluster has at least one node")?;
        wait_for_answers(first.http).await.with_context(|| format!("see the logs in {}", setup.logs().display()))?;
        Ok(cluster)
    }

    /// The agents' addresses of all nodes.
    pub fn quic(&self) -> Vec<SocketAddr> {
        self.addresses.iter().map(|addresses| addresses.quic).collect()
    }

    /// Ends every node.
    pub async fn stop(self) {
        // All at once: the mesh of the rest would only complain.
        let stopping = self.nodes.into_iter().map(|node| tokio::spawn(node.stop())).collect::<Vec<_>>();
        for stopped in stopping {
            let _ = stopped.await;
        }
    }
}

/// Asks for `/healthz` until it is 200: the workers of all nodes have met and closed a first tick.
async fn wait_for_answers(http: SocketAddr) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + ANSWERS_WITHIN;
    while !is_healthy(http).await {
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "no answers within {} s", ANSWERS_WITHIN.as_secs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn is_healthy(http: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(http).await.ok()?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        Some(answer.starts_with(b"HTTP/1.1 200"))
    };
    tokio::time::timeout(Duration::from_secs(2), ask).await.ok().flatten().unwrap_or(false)
}

pub(crate) fn parse_ready(line: &str) -> anyhow::Result<Addresses> {
    let value = |key: &str| -> anyhow::Result<SocketAddr> {
        let found = line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        found.and_then(|text| text.parse().ok()).with_context(|| format!("a node said {line:?}, not where it listens"))
    };
    Ok(Addresses { sql: value("sql")?, http: value("http")?, quic: value("quic")? })
}

/// A config for a cluster on free ports, without this host's agent in mind.
pub fn on_free_ports(nodes: usize, workers: usize) -> DemoConfig {
    let mut config = DemoConfig { nodes, workers, ..DemoConfig::default() };
    for address in [&mut config.listen.quic, &mut config.listen.sql, &mut config.listen.http, &mut config.listen.mesh] {
        *address = SocketAddr::from(([127, 0, 0, 1], 0));
    }
    config
}

const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_tells_where_it_listens() {
        let line = "ready sql=127.0.0.1:7432 http=127.0.0.1:7480 quic=127.0.0.1:7443";
        assert_eq!(parse_ready(line).unwrap().http.port(), 7480);
        assert!(parse_ready("ready").is_err());
    }
}
