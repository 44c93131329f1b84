//! Every limit against hostile agents on the wire: it is exceeded, and a good agent beside it notices nothing.
//!
//! What a frame's body may hold (decompressed size for real, strings, cells, rows) is in `schema/tests/hostile.rs`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;
use weir_config::TransportChoice;
use weir_schema::{Epoch, Frame, Lane, Seq};
use weir_transport::frame_stream::{FrameStream, Unit};
use weir_transport::message::{Hello, LaneStart, Message};
use weir_transport::tls::AgentTls;
use weir_transport::{Client, Rates, RefusedReason, TransportLimits};

use crate::fleet::{self, EPOCH, Fleet, Node, TcpLink, Wall, fat_frame, frame, until};

/// A node and an agent that behaves.
struct Scene {
    fleet: Fleet,
    node: Node,
    good: Client,
}

impl Scene {
    async fn with(transport: TransportChoice, change: impl FnOnce(&mut TransportLimits)) -> Self {
        let mut fleet = Fleet::on(transport);
        change(&mut fleet.limits);
        let node = fleet.node("n1", 0).await;
        let good = fleet.client("good", &[node.addr], 1 << 20);
        let scene = Self { fleet, node, good };
        scene.good_goes_on().await;
        scene
    }

    /// The good agent ships a batch in its first session.
    async fn good_goes_on(&self) {
        let before = self.good.stats();
        self.good.send(frame(Lane::Network, before.acked_events, 100)).await.unwrap();
        self.good.flush(Instant::now() + PATIENCE).await.unwrap();
        let stats = self.good.stats();
        assert_eq!(stats.acked_frames, before.acked_frames + 1);
        assert_eq!((stats.reconnects, stats.resent, stats.refused_frames, stats.last_error), (0, 0, 0, None));
    }

    /// Somebody with a good certificate and code of his own.
    async fn raw(&self, agent: &str) -> Raw {
        let tls = AgentTls::load(&self.fleet.agent(agent)).unwrap();
        let link = fleet::dial_tcp((*tls.config).clone(), self.node.addr).await.unwrap();
        Raw { link, stream: FrameStream::new(0) }
    }
}

struct Raw {
    link: TcpLink,
    stream: FrameStream,
}

impl Raw {
    async fn say(&mut self, bytes: &[u8]) {
        // A node that has enough reads no further.
        let _ = self.link.write_all(bytes).await;
        let _ = self.link.flush().await;
    }

    async fn hello(mut self) -> Self {
        self.say(&hello(1).encode()).await;
        assert!(matches!(self.next().await, Some(Message::Welcome(_))));
        self
    }

    /// The next message that is more than a sign of life; `None` at the end.
    async fn next(&mut self) -> Option<Message> {
        let mut piece = [0; 4096];
        loop {
            while let Some(unit) = self.stream.next_unit().unwrap() {
                match unit {
                    Unit::Message(Message::Ack(ack)) if ack.lanes.is_empty() => {}
                    Unit::Message(message) => return Some(message),
                    other => panic!("{other:?}"),
                }
            }
            match timeout(PATIENCE, self.link.read(&mut piece)).await.unwrap() {
                Ok(0) | Err(_) => return None,
                Ok(length) => self.stream.push(&piece[..length]),
            }
        }
    }

    async fn ended(mut self) -> &'static str {
        loop {
            match self.next().await {
                Some(Message::Bye(bye)) => return bye.as_str(),
                Some(_) => {}
                None => return "no word",
            }
        }
    }
}

fn hello(lanes: u64) -> Message {
    let start = |epoch| LaneStart { epoch: if epoch == 0 { EPOCH } else { Epoch(epoch) }, lane: Lane::File, first: Seq(0) };
    Message::Hello(Hello { version_min: 1, version_max: 1, software: "raw".into(), lanes: (0..lanes).map(start).collect() })
}

/// A frame of four bytes at `at` set to something else.
fn altered(frame: &Frame, at: usize, value: u32) -> Vec<u8> {
    let mut bytes = frame.bytes.clone();
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frame_length() {
    let scene = Scene::with(TransportChoice::Quic, |_| {}).await;
    let mut raw = scene.raw("long").await.hello().await;
    raw.say(&altered(&frame(Lane::File, 0, 10), 32, 1 << 20)).await;
    assert_eq!(raw.ended().await, "protocol");
    assert_eq!(scene.raw("long").await.ended().await, "penalty");
    scene.good_goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_decompressed_size_and_ratio_of_a_frame() {
    let scene = Scene::with(TransportChoice::Quic, |_| {}).await;
    let good = frame(Lane::File, 0, 10);
    for (at, value) in [(24, 65_537), (28, (8 << 20) + 1), (28, 4 << 20)] {
        let mut raw = scene.raw(&format!("at-{at}-{value}")).await.hello().await;
        raw.say(&altered(&good, at, value)).await;
        match raw.next().await {
            Some(Message::Nack(nack)) => assert_eq!(nack.refusal, RefusedReason::Limit, "{at}: {value}"),
            other => panic!("{at}: {value}: {other:?}"),
        }
        // The session goes on; the third bad frame ends it.
        raw.say(&altered(&good, at, value)).await;
        assert!(matches!(raw.next().await, Some(Message::Nack(_))));
        raw.say(&altered(&good, at, value)).await;
        assert_eq!(raw.ended().await, "protocol");
    }
    scene.good_goes_on().await;
    assert_eq!(scene.fleet.log.lock().unwrap().frames.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_of_a_session() {
    let scene = Scene::with(TransportChoice::Quic, |_| {}).await;
    let mut raw = scene.raw("lanes").await;
    raw.say(&hello(33).encode()).await;
    assert_eq!(raw.ended().await, "protocol");
    scene.good_goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credit() {
    let scene = Scene::with(TransportChoice::Quic, |limits| limits.window_bytes = 128 << 10).await;
    scene.node.hold(true);
    let mut raw = scene.raw("greedy").await.hello().await;
    for at in 0..20 {
        raw.say(&fat_frame(Lane::File, at * 20, 20_000).bytes).await;
    }
    assert_eq!(raw.ended().await, "protocol");
    scene.node.hold(false);
    scene.good_goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams() {
    let scene = Scene::with(TransportChoice::Quic, |_| {}).await;
    let tls = AgentTls::load(&scene.fleet.agent("many")).unwrap();
    let (_endpoint, connection) = fleet::dial((*tls.config).clone(), scene.node.addr).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&hello(1).encode()).await.unwrap();
    let mut piece = [0; 64];
    recv.read(&mut piece).await.unwrap().unwrap();
    let wait = Duration::from_millis(300);
    assert!(timeout(wait, connection.open_bi()).await.is_err(), "a second stream");
    assert!(timeout(wait, connection.open_uni()).await.is_err(), "a stream of one direction");
    assert!(connection.send_datagram(b"x".to_vec().into()).is_err());
    scene.good_goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_handshakes_on_tcp() {
    let change = |limits: &mut TransportLimits| {
        limits.half_open_max = 16;
        limits.handshake_time_max = Duration::from_secs(2);
    };
    let scene = Scene::with(TransportChoice::Tcp, change).await;
    let call = async || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
        socket.connect(scene.node.addr).await.unwrap()
    };
    // A quarter of all from one address; they say nothing.
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(call().await);
    }
    let begun = Instant::now();
    let mut fifth = call().await;
    assert!(matches!(timeout(PATIENCE, fifth.read(&mut [0; 8])).await.unwrap(), Ok(0) | Err(_)));
    let at_once = begun.elapsed();
    scene.good_goes_on().await;
    // Others come in meanwhile.
    let other = scene.fleet.client("other", &[scene.node.addr], 1 << 20);
    until("another agent", || other.stats().connected_to.is_some()).await;
    for mut silent in silent {
        assert!(matches!(timeout(PATIENCE, silent.read(&mut [0; 8])).await.unwrap(), Ok(0) | Err(_)));
    }
    assert!(begun.elapsed() > at_once, "those before the limit are let go only when their time is over");
    scene.good_goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_handshakes_on_quic() {
    let scene = Scene::with(TransportChoice::Quic, |_| {}).await;
    let wall = Wall::before(scene.node.addr).await;
    // The node hears the callers, and they never hear it: handshakes that stay half-open.
    wall.mute();
    let tls = AgentTls::load(&scene.fleet.agent("silent")).unwrap();
    let callers: Vec<_> = (0..400).map(|_| tokio::spawn(fleet::dial((*tls.config).clone(), wall.addr))).collect();
    let other = scene.fleet.client("other", &[scene.node.addr], 1 << 20);
    until("another agent", || other.stats().connected_to.is_some()).await;
    scene.good_goes_on().await;
    assert!(callers.iter().all(|caller| !caller.is_finished()));
    callers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_at_once() {
    let scene = Scene::with(TransportChoice::Auto, |limits| limits.agents_max = 2).await;
    let second = scene.fleet.client("second", &[scene.node.addr], 1 << 20);
    until("the second agent", || second.stats().connected_to.is_some()).await;
    for transport in [TransportChoice::Quic, TransportChoice::Tcp] {
        let config = scene.fleet.config(scene.fleet.agent("third"), &[scene.node.addr], 1 << 20);
        let why = scene.fleet.fails(weir_transport::ClientConfig { transport, ..config }).await;
        assert!(why.contains("as many agents as it takes"), "{why}");
    }
    scene.good_goes_on().await;
    assert_eq!(second.stats().reconnects, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_one_certificate() {
    let scene = Scene::with(TransportChoice::Tcp, |_| {}).await;
    let mut same = Vec::new();
    for (at, transport) in [TransportChoice::Quic, TransportChoice::Tcp, TransportChoice::Tcp].into_iter().enumerate() {
        let config = scene.fleet.config(scene.fleet.agent("same"), &[scene.node.addr], 1 << 20);
        let client = Client::start(weir_transport::ClientConfig { transport, ..config }, EPOCH).unwrap();
        until("a session", || client.stats().connected_to.is_some()).await;
        same.push(client);
        assert!(at == 2 || same.iter().all(|client| client.stats().last_error.is_none()));
    }
    until("the end of the oldest", || same[0].stats().last_error.is_some_and(|why| why.contains("took our place"))).await;
    assert!(same[1..].iter().all(|client| client.stats().connected_to.is_some()));
    scene.good_goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_per_second() {
    paced(Rates { events_per_second_max: 4_000, bytes_per_second_max: 1 << 40 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_per_second() {
    let of_500 = frame(Lane::File, 0, 500).bytes.len() as u64;
    paced(Rates { events_per_second_max: 1 << 40, bytes_per_second_max: 8 * of_500 }).await;
}

/// 30,000 events where 4,000 a second may come, five seconds' worth at once and a window of at most 5,500 behind it.
async fn paced(rates: Rates) {
    let of_500 = frame(Lane::File, 0, 500).bytes.len();
    let change = |limits: &mut TransportLimits| {
        limits.rates = rates;
        limits.window_bytes = 11 * of_500;
        limits.frame_bytes_max = 64 << 10;
    };
    for transport in [TransportChoice::Quic, TransportChoice::Tcp] {
        let scene = Scene::with(transport, change).await;
        let flood = scene.fleet.client("flood", &[scene.node.addr], 8 << 20);
        let begun = Instant::now();
        for at in 0..60 {
            flood.send(frame(Lane::File, at * 500, 500)).await.unwrap();
        }
        scene.good_goes_on().await;
        let good = begun.elapsed();
        flood.flush(Instant::now() + PATIENCE).await.unwrap();
        let all = begun.elapsed();
        eprintln!("{transport:?} {rates:?}: 30,000 events in {all:?}; the good agent's batch within {good:?}");
        assert!(all >= Duration::from_secs(1), "{all:?}");
        let stats = flood.stats();
        assert_eq!((stats.acked_events, stats.refused_frames, stats.reconnects, stats.resent), (30_000, 0, 0, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_all_frames_in_flight() {
    let budget = 96 << 10;
    let change = |limits: &mut TransportLimits| {
        limits.in_flight_bytes_max = budget;
        limits.frame_bytes_max = 64 << 10;
    };
    let scene = Scene::with(TransportChoice::Quic, change).await;
    scene.node.hold(true);
    let greedy: Vec<_> = ["a", "b", "c", "d"].map(|agent| scene.fleet.client(agent, &[scene.node.addr], 1 << 20)).into();
    for at in 0..40 {
        for client in &greedy {
            client.send(fat_frame(Lane::File, at * 20, 20_000)).await.unwrap();
        }
    }
    let size = fat_frame(Lane::File, 0, 20_000).bytes.len();
    assert!(greedy.len() * 40 * size > 2 * budget, "the test must ask for more than there is");
    until("a full budget", || scene.node.waiting_bytes().0 + size > budget).await;
    scene.node.hold(false);
    for client in &greedy {
        client.flush(Instant::now() + PATIENCE).await.unwrap();
        assert_eq!((client.stats().acked_frames, client.stats().reconnects), (40, 0));
    }
    let (_, peak) = scene.node.waiting_bytes();
    assert!(peak <= budget, "{peak} bytes at once, {budget} allowed");
    scene.good_goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_frames_that_stop_halfway() {
    let change = |limits: &mut TransportLimits| {
        limits.in_flight_bytes_max = 4 << 20;
        limits.frame_time_max = Duration::from_secs(2);
    };
    let scene = Scene::with(TransportChoice::Quic, change).await;
    // Four frames of 900 kB begin, and there is room for one at a time.
    let begun = Instant::now();
    let mut halves = Vec::new();
    for at in 0..4 {
        let mut raw = scene.raw(&format!("half-{at}")).await.hello().await;
        let mut bytes = altered(&frame(Lane::File, 0, 10), 32, 900_000);
        bytes.resize(60_000, 7);
        raw.say(&bytes).await;
        halves.push(raw);
    }
    scene.good_goes_on().await;
    let good = begun.elapsed();
    for raw in halves {
        assert_eq!(raw.ended().await, "protocol");
    }
    let all = begun.elapsed();
    eprintln!("the good agent's batch within {good:?}; the four were let go within {all:?}");
    assert!(all >= Duration::from_secs(6), "each had its two seconds of the room, one after the other: {all:?}");
    scene.good_goes_on().await;
}

/// No test waits this long unless it fails.
const PATIENCE: Duration = Duration::from_secs(60);
