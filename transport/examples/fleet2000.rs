//! Two thousand agents at one node, all in this process on loopback: memory per connection, CPU per batch, and how long it takes until
//! all are back after the node was started anew.
//!
//! ```text
//! cargo run --release -p weir-transport --example fleet2000 -- [AGENTS] [quic|tcp] [SECONDS] [FRAME_BYTES]
//! ```
//!
//! Every agent sends one frame a second; the node acks at once and stores nothing. Memory is this process's resident set, so both ends
//! count. Agents of one process share two UDP sockets; on TCP each has its own two descriptors.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use weir_config::{ClientTls, ServerTls, TransportChoice};
use weir_schema::{AgentIdentity, Epoch, HEADER_BYTES, Lane, Name};
use weir_transport::{AckRanges, Client, ClientConfig, Dialer, Incoming, ResumeState, Server, TransportLimits, ca};

use common::{cpu_seconds, frame};

struct Nothing;

impl ResumeState for Nothing {
    fn acked(&self, _agent: &AgentIdentity, _epoch: Epoch) -> Vec<(Lane, AckRanges)> {
        Vec::new()
    }
}

fn main() {
    let argument = |at: usize, default: usize| std::env::args().nth(at).map_or(default, |text| text.parse().expect("a number"));
    let (agents, seconds, frame_bytes) = (argument(1, 2_000), argument(3, 10), argument(4, 20_000));
    let transport = std::env::args().nth(2).map_or(TransportChoice::Quic, |text| text.parse().expect("quic or tcp"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    runtime.block_on(measure(agents, transport, seconds as u64, frame_bytes));
}

async fn measure(agents: usize, transport: TransportChoice, seconds: u64, frame_bytes: usize) {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    let name = |text: String| Name::new(text).expect("a plain name");
    ca::init(&at("ca"), "fleet").expect("an authority");
    let files = ca::issue_node(&at("ca"), &name("n1".into()), &at("n1")).expect("a certificate");
    let tls = ServerTls { ca: files.ca, cert: files.cert, key: files.key };
    let node = Node::start(([127, 0, 0, 1], 0).into(), &tls).await;
    let mut configs = Vec::new();
    let dialer = Dialer::default();
    for i in 0..agents {
        let agent = name(format!("a{i}"));
        let files = ca::issue_agent(&at("ca"), &agent, &agent, &agent, &at(agent.as_str())).expect("a certificate");
        configs.push(ClientConfig {
            nodes: vec![node.addr.to_string()],
            server_name: "weir-node".into(),
            tls: ClientTls { ca: files.ca, cert: files.cert, key: files.key },
            memory_bytes_max: 1 << 20,
            software: "fleet2000".into(),
            transport,
            udp_retry: Duration::from_secs(600),
            enrol: None,
            dialer: Some(dialer.clone()),
        });
    }
    let (memory, cpu, begun) = (resident_bytes(), cpu_seconds(), Instant::now());
    let clients: Vec<_> = configs.into_iter().map(|config| Client::start(config, Epoch(1)).expect("good files")).collect();
    all_connected(&clients, 0).await;
    let (connected, cpu) = (begun.elapsed(), cpu_seconds() - cpu);
    let per_agent = |bytes: u64| bytes.saturating_sub(memory) / agents as u64 / 1_000;
    eprintln!(
        "{agents} agents on {transport:?}: connected in {connected:.2?}, {:.2} ms CPU each (both ends)",
        cpu * 1e3 / agents as f64
    );
    eprintln!("idle: {} kB resident each (both ends)", per_agent(resident_bytes()));

    let cpu = cpu_seconds();
    let mut latencies = load(&clients, seconds, frame_bytes).await;
    let cpu = cpu_seconds() - cpu;
    latencies.sort_unstable();
    let percentile = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
    eprintln!(
        "{} batches of {frame_bytes} bytes in {seconds} s: {:.0} us CPU each (both ends); flushed within p50 {:.1?}, p99 {:.1?}, max {:.1?}",
        latencies.len(),
        cpu * 1e6 / latencies.len() as f64,
        percentile(50),
        percentile(99),
        percentile(100),
    );
    eprintln!("after it: {} kB resident each (both ends)", per_agent(resident_bytes()));

    let addr = node.addr;
    node.kill().await;
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let node = Node::start(addr, &tls).await;
    for client in &clients {
        client.send(frame(&[7; 1_000], 1 << 40)).await.expect("the client is open");
    }
    all_connected(&clients, 1).await;
    let welcome = begun.elapsed();
    for client in &clients {
        client.flush(Instant::now() + PATIENCE).await.expect("acks");
    }
    let (acked, cpu) = (begun.elapsed(), cpu_seconds() - cpu);
    eprintln!("node started anew: all back in {welcome:.2?}, all acked in {acked:.2?}, {:.2} CPU s", cpu);
    assert!(node.frames.load(Ordering::Relaxed) >= agents as u64);
    node.kill().await;
}

/// A node in a runtime of its own, so that killing it says nothing to anybody.
struct Node {
    addr: SocketAddr,
    frames: Arc<AtomicU64>,
    runtime: tokio::runtime::Runtime,
}

impl Node {
    async fn start(listen: SocketAddr, tls: &ServerTls) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
        let (tls, frames) = (tls.clone(), Arc::<AtomicU64>::default());
        let bound = runtime.spawn(async move { Server::bind(listen, &tls, TransportLimits::default()).await });
        let server = bound.await.expect("no panic").expect("a free port");
        let addr = server.local_addr();
        let (to_ingest, mut incoming) = mpsc::channel::<Incoming>(256);
        runtime.spawn(server.run(to_ingest, Arc::new(Nothing)));
        let count = frames.clone();
        runtime.spawn(async move {
            while let Some(frame) = incoming.recv().await {
                count.fetch_add(1, Ordering::Relaxed);
                frame.ack.durable();
            }
        });
        Self { addr, frames, runtime }
    }

    async fn kill(self) {
        let end = move || self.runtime.shutdown_timeout(Duration::from_secs(10));
        tokio::task::spawn_blocking(end).await.expect("no panic");
    }
}

/// Every agent sends a frame a second, spread over the second; how long each took until it was acked.
async fn load(clients: &[Client], seconds: u64, frame_bytes: usize) -> Vec<Duration> {
    let body: Arc<Vec<u8>> = Arc::new((0..frame_bytes - HEADER_BYTES).map(|i| ((i * 2_654_435_761) >> 13) as u8).collect());
    let begun = tokio::time::Instant::now();
    let tasks: Vec<_> = clients
        .iter()
        .enumerate()
        .map(|(at, client)| {
            let (client, body) = (client.clone(), body.clone());
            let first = begun + Duration::from_secs(1).mul_f64(at as f64 / clients.len() as f64);
            tokio::spawn(async move {
                let mut took = Vec::new();
                for second in 0..seconds {
                    tokio::time::sleep_until(first + Duration::from_secs(second)).await;
                    let sent = Instant::now();
                    client.send(frame(&body, second)).await.expect("the client is open");
                    client.flush(sent + PATIENCE).await.expect("an ack");
                    took.push(sent.elapsed());
                }
                took
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.expect("no panic"));
    }
    latencies
}

async fn all_connected(clients: &[Client], reconnects: u64) {
    let late = Instant::now() + PATIENCE;
    for client in clients {
        loop {
            let stats = client.stats();
            if stats.connected_to.is_some() && stats.reconnects >= reconnects {
                break;
            }
            assert!(Instant::now() < late, "{stats:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number");
    pages * 4_096
}

/// For anything here.
const PATIENCE: Duration = Duration::from_secs(120);
