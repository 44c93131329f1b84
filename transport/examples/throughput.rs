//! How fast frames go from a client to a node on loopback, and what that costs: both ends in this process, acked at once.
//!
//! ```text
//! cargo run --release -p weir-transport --example throughput -- [FRAME_BYTES] [MEGABYTES] [CLIENTS] [quic|tcp]
//! ```

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use weir_config::{ClientTls, ServerTls, TransportChoice};
use weir_schema::{AgentIdentity, Epoch, HEADER_BYTES, Lane, Name};
use weir_transport::{AckRanges, Client, ClientConfig, Incoming, ResumeState, Server, TransportLimits, ca};

use common::{cpu_seconds, frame};

struct Nothing;

impl ResumeState for Nothing {
    fn acked(&self, _agent: &AgentIdentity, _epoch: Epoch) -> Vec<(Lane, AckRanges)> {
        Vec::new()
    }
}

fn main() {
    let argument = |at: usize, default: usize| std::env::args().nth(at).map_or(default, |text| text.parse().expect("a number"));
    let (frame_bytes, megabytes, clients) = (argument(1, 20 << 10), argument(2, 2_000), argument(3, 1));
    let transport = std::env::args().nth(4).map_or(TransportChoice::Quic, |text| text.parse().expect("quic or tcp"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    runtime.block_on(measure(frame_bytes, megabytes * 1_000_000, clients, transport));
}

async fn measure(frame_bytes: usize, bytes: usize, clients: usize, transport: TransportChoice) {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    let name = |text: String| Name::new(text).expect("a plain name");
    ca::init(&at("ca"), "throughput").expect("an authority");
    let files = ca::issue_node(&at("ca"), &name("n1".into()), &at("n1")).expect("a certificate");
    let tls = ServerTls { ca: files.ca, cert: files.cert, key: files.key };
    let listen = "127.0.0.1:0".parse().expect("an address");
    let server = Server::bind(listen, &tls, TransportLimits::default()).await.expect("a free port");
    let addr = server.local_addr();
    let (to_ingest, mut incoming) = mpsc::channel::<Incoming>(256);
    tokio::spawn(server.run(to_ingest, Arc::new(Nothing)));
    tokio::spawn(async move {
        while let Some(frame) = incoming.recv().await {
            frame.ack.durable();
        }
    });
    let mut senders = Vec::new();
    let each = bytes / clients / frame_bytes;
    for i in 0..clients {
        let agent = name(format!("a{i}"));
        let files = ca::issue_agent(&at("ca"), &agent, &agent, &agent, &at(agent.as_str())).expect("a certificate");
        let config = ClientConfig {
            nodes: vec![addr.to_string()],
            server_name: "weir-node".into(),
            tls: ClientTls { ca: files.ca, cert: files.cert, key: files.key },
            memory_bytes_max: 4 << 20,
            software: "throughput".into(),
            transport,
            udp_retry: Duration::from_secs(600),
            enrol: None,
            dialer: None,
        };
        senders.push(Client::start(config, Epoch(1)).expect("good files"));
    }
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let tasks = senders.into_iter().map(|client| tokio::spawn(send(client, frame_bytes, each)));
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no panic");
    }
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let sent = (each * clients * frame_bytes) as f64;
    eprintln!(
        "{clients} clients, {} frames of {frame_bytes} bytes: {:.0} MB/s, {:.0} frames/s, {:.2} CPU s/GB (both ends)",
        each * clients,
        sent / seconds / 1e6,
        (each * clients) as f64 / seconds,
        cpu / (sent / 1e9),
    );
}

async fn send(client: Client, frame_bytes: usize, frames: usize) {
    let body: Vec<u8> = (0..frame_bytes - HEADER_BYTES).map(|i| ((i * 2_654_435_761) >> 13) as u8).collect();
    for i in 0..frames as u64 {
        client.send(frame(&body, i)).await.expect("the client is open");
    }
    client.flush(Instant::now() + Duration::from_secs(60)).await.expect("acks");
}
