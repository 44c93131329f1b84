//! Recorded streams of every protocol version, played against this binary: an old agent at a new node, a new agent at an old node.
//!
//! `tests/golden/vN/agent.bin` is all that an agent of version N says (Hello, frames, Bye); `node.bin` is what a node of version N
//! answered (Welcome, then acks). Files are added, never edited. `WEIR_RECORD=1` writes those of the present version, where there are none.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use weir_config::{ServerTls, TransportChoice};
use weir_schema::{Frame, Lane, Seq};
use weir_transport::frame_stream::{FrameStream, Unit};
use weir_transport::message::{Ack, Hello, LaneStart, Message, PROTOCOL_VERSION, Welcome};
use weir_transport::tls::{AgentTls, NodeTls};
use weir_transport::{AckRanges, Bye, LaneAck};

use crate::fleet::{self, EPOCH, Fleet, frame, name, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_agent_is_understood_by_this_node() {
    for (version, agent, _) in recorded() {
        for transport in [TransportChoice::Quic, TransportChoice::Tcp] {
            let fleet = Fleet::on(transport);
            let node = fleet.node("n1", 0).await;
            let frames = frames_of(&agent);
            let answers = answers(&fleet, node.addr, &agent, frames.len()).await;
            let acked = acked_by(&answers);
            assert!(matches!(&answers[0], Message::Welcome(welcome) if welcome.version == version), "{answers:?}");
            assert!(answers[1..].iter().all(|answer| matches!(answer, Message::Ack(_))), "{answers:?}");
            for frame in &frames {
                let (first, count) = (frame.header.first_seq, u64::from(frame.header.count));
                let seqs = first..Seq(first.0 + count);
                assert!(acked[&frame.header.lane].contains(seqs), "version {version}: not acked: {:?}", frame.header);
            }
            assert_eq!(fleet.log.lock().unwrap().frames.len(), frames.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn this_agent_understands_an_old_node() {
    for (version, agent, node) in recorded() {
        let fleet = Fleet::on(TransportChoice::Tcp);
        let old = OldNode { versions: version..=version, answers: messages_of(&node), frames: frames_of(&agent).len() };
        let addr = old.start(&fleet).await;
        let client = fleet.client("a", &[addr], 1 << 20);
        for frame in batches() {
            client.send(frame).await.unwrap();
        }
        client.flush(Instant::now() + PATIENCE).await.unwrap();
        let stats = client.stats();
        assert_eq!(
            (stats.acked_frames, stats.refused_frames, stats.reconnects),
            (batches().len() as u64, 0, 0),
            "version {version}"
        );
        client.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_version_in_common_agents_keep_what_they_hold() {
    let fleet = Fleet::on(TransportChoice::Tcp);
    let newer = PROTOCOL_VERSION + 1..=PROTOCOL_VERSION + 3;
    let future = OldNode { versions: newer.clone(), answers: Vec::new(), frames: 0 }.start(&fleet).await;
    let client = fleet.client("a", &[future], 1 << 20);
    for frame in batches() {
        client.send(frame).await.unwrap();
    }
    until("a word about versions", || client.stats().last_error.is_some_and(|why| why.contains("version"))).await;
    assert_eq!((client.stats().unacked_frames, client.stats().refused_frames), (batches().len() as u64, 0));

    let node = fleet.node("n1", 0).await;
    let hello = |min, max| {
        Message::Hello(Hello { version_min: min, version_max: max, software: "future".into(), lanes: Vec::new() }).encode()
    };
    assert_eq!(fleet.raw("future", node.addr, &hello(*newer.start(), *newer.end())).await, "said version");
    let answers = answers(&fleet, node.addr, &hello(0, *newer.end()), 0).await;
    assert!(matches!(&answers[0], Message::Welcome(welcome) if welcome.version == PROTOCOL_VERSION), "{answers:?}");
}

/// A node that speaks `versions`: says what was recorded, the first part to Hello, the rest when so many frames have come.
struct OldNode {
    versions: std::ops::RangeInclusive<u16>,
    answers: Vec<Vec<u8>>,
    frames: usize,
}

impl OldNode {
    async fn start(self, fleet: &Fleet) -> SocketAddr {
        let out = fleet.dir.path().join("old-node");
        weir_transport::ca::issue_node(&fleet.dir.path().join("ca"), &name("n1"), &out).unwrap();
        let tls = ServerTls { ca: out.join("ca.pem"), cert: out.join("cert.pem"), key: out.join("key.pem") };
        let acceptor = TlsAcceptor::from(NodeTls::load(&tls).unwrap().config.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let old = Arc::new(self);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(link) = acceptor.accept(stream).await {
                    tokio::spawn(old.clone().talk(link));
                }
            }
        });
        addr
    }

    async fn talk(self: Arc<Self>, mut link: tokio_rustls::server::TlsStream<tokio::net::TcpStream>) {
        let (mut stream, mut piece, mut came) = (FrameStream::new(1 << 20), vec![0; 16_384], 0);
        loop {
            let mut said = Vec::new();
            match link.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(length) => stream.push(&piece[..length]),
            }
            while let Some(unit) = stream.next_unit().unwrap() {
                match unit {
                    Unit::Message(Message::Hello(hello)) => {
                        let common = self.versions.clone().any(|ours| (hello.version_min..=hello.version_max).contains(&ours));
                        said.extend(if common { self.answers[0].clone() } else { Message::Bye(Bye::Version).encode() });
                    }
                    Unit::Frame(_) => {
                        came += 1;
                        if came == self.frames {
                            self.answers[1..].iter().for_each(|answer| said.extend_from_slice(answer));
                        }
                    }
                    Unit::Message(_) => {}
                    Unit::BadFrame { error, .. } => panic!("{error}"),
                }
            }
            link.write_all(&said).await.unwrap();
            link.flush().await.unwrap();
        }
    }
}

/// Says `bytes` as an agent and gives what the node answers until `frames` are acked.
async fn answers(fleet: &Fleet, node: SocketAddr, bytes: &[u8], frames: usize) -> Vec<Message> {
    let tls = (*AgentTls::load(&fleet.agent("a")).unwrap().config).clone();
    let split = hello_length(bytes);
    let (mut said, mut stream) = (Vec::new(), FrameStream::new(0));
    let mut take = |piece: &[u8]| {
        stream.push(piece);
        while let Some(Unit::Message(message)) = stream.next_unit().unwrap() {
            said.push(message);
        }
        (said.len(), acked_frames(&said))
    };
    let mut piece = vec![0; 4096];
    // Frames follow the Welcome, as from a living agent.
    if fleet.transport == TransportChoice::Tcp {
        let mut link = fleet::dial_tcp(tls, node).await.unwrap();
        link.write_all(&bytes[..split]).await.unwrap();
        link.flush().await.unwrap();
        let mut seen = (0, 0);
        while seen.0 == 0 {
            let length = link.read(&mut piece).await.unwrap();
            seen = take(&piece[..length]);
        }
        link.write_all(&bytes[split..bye_at(bytes)]).await.unwrap();
        link.flush().await.unwrap();
        while seen.1 < frames {
            let length = link.read(&mut piece).await.unwrap();
            seen = take(&piece[..length]);
        }
        link.write_all(&bytes[bye_at(bytes)..]).await.unwrap();
        link.flush().await.unwrap();
    } else {
        let (_endpoint, connection) = fleet::dial(tls, node).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&bytes[..split]).await.unwrap();
        let mut seen = (0, 0);
        while seen.0 == 0 {
            let length = recv.read(&mut piece).await.unwrap().unwrap();
            seen = take(&piece[..length]);
        }
        send.write_all(&bytes[split..bye_at(bytes)]).await.unwrap();
        while seen.1 < frames {
            let length = recv.read(&mut piece).await.unwrap().unwrap();
            seen = take(&piece[..length]);
        }
        send.write_all(&bytes[bye_at(bytes)..]).await.unwrap();
    }
    said
}

/// Frames that acks speak of: each of these tests' frames has ten events.
fn acked_frames(said: &[Message]) -> usize {
    let events = |acked: &AckRanges| acked.upto().0 + acked.ranges().map(|seqs| seqs.end.0 - seqs.start.0).sum::<u64>();
    (acked_by(said).values().map(events).sum::<u64>() / 10) as usize
}

fn acked_by(said: &[Message]) -> BTreeMap<Lane, AckRanges> {
    let mut acked = BTreeMap::<Lane, AckRanges>::new();
    for message in said {
        if let Message::Ack(ack) = message {
            ack.lanes.iter().for_each(|lane| acked.entry(lane.lane).or_default().merge(&lane.acked));
        }
    }
    acked
}

fn units(bytes: &[u8]) -> Vec<Unit> {
    let mut stream = FrameStream::new(1 << 20);
    stream.push(bytes);
    let units: Vec<_> = std::iter::from_fn(|| stream.next_unit().unwrap()).collect();
    stream.end().unwrap();
    units
}

fn frames_of(bytes: &[u8]) -> Vec<Frame> {
    let frames = units(bytes).into_iter().filter_map(|unit| match unit {
        Unit::Frame(frame) => Some(frame),
        _ => None,
    });
    frames.collect()
}

/// The bytes of each message.
fn messages_of(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = bytes;
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let (one, more) = rest.split_at(hello_length(rest));
        messages.push(one.to_vec());
        rest = more;
    }
    messages
}

/// The length of the message that `bytes` begin with.
fn hello_length(bytes: &[u8]) -> usize {
    12 + u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize
}

/// Where the last message begins, or the end if there is only one.
fn bye_at(bytes: &[u8]) -> usize {
    let bye = Message::Bye(Bye::Done).encode();
    if bytes.ends_with(&bye) { bytes.len() - bye.len() } else { bytes.len() }
}

/// Two frames of each lane.
fn batches() -> Vec<Frame> {
    Lane::ALL.into_iter().flat_map(|lane| [frame(lane, 0, 10), frame(lane, 10, 10)]).collect()
}

/// Version, what its agent said, what its node said.
fn recorded() -> Vec<(u16, Vec<u8>, Vec<u8>)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let present = root.join(format!("v{PROTOCOL_VERSION}"));
    if std::env::var_os("WEIR_RECORD").is_some() && !present.exists() {
        std::fs::create_dir_all(&present).unwrap();
        std::fs::write(present.join("agent.bin"), say_as_agent()).unwrap();
        std::fs::write(present.join("node.bin"), say_as_node()).unwrap();
    }
    let read = |version: u16, file: &str| std::fs::read(root.join(format!("v{version}")).join(file)).unwrap();
    (1..=PROTOCOL_VERSION).map(|version| (version, read(version, "agent.bin"), read(version, "node.bin"))).collect()
}

fn say_as_agent() -> Vec<u8> {
    let lanes = Lane::ALL.into_iter().map(|lane| LaneStart { epoch: EPOCH, lane, first: Seq(0) }).collect();
    let (version_min, version_max) = (PROTOCOL_VERSION, PROTOCOL_VERSION);
    let mut bytes = Message::Hello(Hello { version_min, version_max, software: "weir-agent 0.1.0".into(), lanes }).encode();
    batches().iter().for_each(|frame| bytes.extend_from_slice(&frame.bytes));
    bytes.extend(Message::Bye(Bye::Done).encode());
    bytes
}

fn say_as_node() -> Vec<u8> {
    let welcome = Welcome {
        version: PROTOCOL_VERSION,
        node: name("n1"),
        acked: Vec::new(),
        credit_bytes: 4 << 20,
        frame_bytes_max: 1 << 20,
    };
    let lane = |lane| LaneAck { epoch: EPOCH, lane, acked: AckRanges::below(Seq(20)) };
    let ack = Ack { lanes: Lane::ALL.into_iter().map(lane).collect(), credit_bytes: 8 << 20 };
    [Message::Welcome(welcome).encode(), Message::Ack(ack).encode()].concat()
}

/// No test waits this long unless it fails.
const PATIENCE: Duration = Duration::from_secs(60);
