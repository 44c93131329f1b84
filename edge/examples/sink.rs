//! A node's ear alone: takes what one agent sends, acknowledges it and writes it as JSON lines, to look at an agent without a cluster.
//!
//! `cargo run -p weir-edge --example sink -- DIR [count]` makes certificates and `DIR/agent.toml`, then listens; start
//! `weir-agent --config DIR/agent.toml`. With `count` it writes one line of totals per kind at the end instead.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use weir_config::ServerTls;
use weir_schema::{AgentIdentity, Decoder, Epoch, JsonEvent, Lane, Name, write_line};
use weir_transport::{AckRanges, ResumeState, Server, TransportLimits, ca};

struct Nothing;

impl ResumeState for Nothing {
    fn acked(&self, _: &AgentIdentity, _: Epoch) -> Vec<(Lane, AckRanges)> {
        Vec::new()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or_else(|| anyhow::anyhow!("usage: sink DIR [count]"))?);
    let counts_only = arguments.next().is_some_and(|word| word == "count");
    let authority = dir.join("ca");
    if !authority.exists() {
        ca::init(&authority, "sink")?;
    }
    let node = ca::issue_node(&authority, &Name::new("sink")?, &dir.join("node"))?;
    ca::issue_agent(&authority, &Name::new("local")?, &Name::new("local")?, &Name::new("agent")?, &dir.join("agent"))?;
    let tls = ServerTls { ca: node.ca, cert: node.cert, key: node.key };
    let server = Server::bind("127.0.0.1:0".parse()?, &tls, TransportLimits::default()).await?;
    let address = server.local_addr();
    let config = format!(
        "nodes = [\"{address}\"]\ndata_dir = \"data\"\n\n[tls]\nca = \"agent/ca.pem\"\ncert = \"agent/cert.pem\"\nkey = \"agent/key.pem\"\n"
    );
    std::fs::write(dir.join("agent.toml"), config)?;
    eprintln!("listening on {address}");

    let (to_ingest, mut incoming) = mpsc::channel(256);
    tokio::spawn(server.run(to_ingest, Arc::new(Nothing)));
    let mut decoder = Decoder::default();
    let (mut kinds, mut frames, mut bytes) = (BTreeMap::new(), 0_u64, 0_usize);
    let mut out = std::io::stdout().lock();
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let one = tokio::select! {
            _ = &mut stop => break,
            one = incoming.recv() => match one { Some(one) => one, None => break },
        };
        (frames, bytes) = (frames + 1, bytes + one.frame.bytes.len());
        let batch = one.frame.decode(&mut decoder)?;
        let host = batch.host.clone();
        for event in batch.events() {
            *kinds.entry(event.kind.as_str()).or_insert(0_u64) += 1;
            if !counts_only {
                let mut line = String::new();
                let AgentIdentity { tenant, region, agent } = (*one.identity).clone();
                let (tenant, region, agent) = (Some(tenant), Some(region), Some(agent));
                write_line(&mut line, &JsonEvent { host: host.clone(), tenant, region, agent, event });
                out.write_all(line.as_bytes())?;
            }
        }
        one.ack.durable();
    }
    let events: u64 = kinds.values().sum();
    eprintln!("{events} events in {frames} frames of {bytes} bytes: {kinds:?}");
    Ok(())
}
