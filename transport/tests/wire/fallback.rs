//! TLS over TCP where UDP is not let through: taken by itself, left by itself, and never for another reason.

use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use weir_config::{ClientTls, ServerTls, TcpListen, TransportChoice};
use weir_schema::Lane;
use weir_transport::ca::{self, Existing};
use weir_transport::{Client, ClientConfig, Listening, Server, Transport, TransportLimits};

use crate::fleet::{EPOCH, Fleet, Gate, Wall, agent_of, frame, name, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_takes_tcp_while_udp_is_blocked_and_goes_back() {
    let fleet = Fleet::on(TransportChoice::Auto);
    let node = fleet.node("n1", 0).await;
    let wall = Wall::before(node.addr).await;
    wall.udp(Gate::Shut);
    let config = fleet.config(fleet.agent("a"), &[wall.addr], 1 << 20);
    let client = Client::start(ClientConfig { udp_retry: Duration::from_millis(200), ..config }, EPOCH).unwrap();
    let mut sent = 0;
    let mut send = async |count: u64| {
        for _ in 0..count {
            client.send(frame(Lane::Network, sent * 10, 10)).await.unwrap();
            sent += 1;
        }
    };
    send(50).await;
    let begun = Instant::now();
    until("a session on TCP", || client.stats().transport == Some(Transport::Tcp)).await;
    eprintln!("UDP shut: on TCP after {:?}", begun.elapsed());
    send(50).await;
    client.flush(Instant::now() + PATIENCE).await.unwrap();
    wall.udp(Gate::Open);
    let begun = Instant::now();
    until("a session on QUIC", || client.stats().transport == Some(Transport::Quic)).await;
    eprintln!("UDP open again: on QUIC after {:?}", begun.elapsed());
    send(50).await;
    client.flush(Instant::now() + PATIENCE).await.unwrap();
    let stats = client.stats();
    assert_eq!((stats.acked_frames, stats.unacked_frames, stats.refused_frames), (sent, 0, 0));
    assert_eq!((stats.reconnects, stats.transport), (1, Some(Transport::Quic)));
    let log = fleet.log.lock().unwrap();
    assert_eq!((log.frames.len() as u64, log.frames.values().sum::<u32>()), (sent, sent as u32), "each stored once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_no_reason_for_tcp() {
    let fleet = Fleet::on(TransportChoice::Auto);
    let node = fleet.node("n1", 0).await;
    let wall = Wall::before(node.addr).await;
    let long_ago = SystemTime::now() - Duration::from_secs(90 * 24 * 3600);
    let files = agent_of(&fleet.authority, long_ago).write(&fleet.dir.path().join("expired"), Existing::Keep).unwrap();
    let tls = ClientTls { ca: files.ca, cert: files.cert, key: files.key };
    let client = Client::start(fleet.config(tls, &[wall.addr], 1 << 20), EPOCH).unwrap();
    until("a refusal", || client.stats().last_error.is_some_and(|why| why.contains("it has expired"))).await;
    // A second attempt follows within a fifth of a second, on the transport of the first.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(wall.tcp_callers(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_setting_fixes_the_transport() {
    let fleet = Fleet::on(TransportChoice::Tcp);
    let node = fleet.node("n1", 0).await;
    let wall = Wall::before(node.addr).await;
    let tcp = fleet.client("a", &[wall.addr], 1 << 20);
    tcp.send(frame(Lane::File, 0, 5)).await.unwrap();
    tcp.flush(Instant::now() + PATIENCE).await.unwrap();
    assert_eq!((tcp.stats().transport, wall.tcp_callers()), (Some(Transport::Tcp), 1));
    wall.udp(Gate::Shut);
    let config = fleet.config(fleet.agent("b"), &[wall.addr], 1 << 20);
    let why = fleet.fails(ClientConfig { transport: TransportChoice::Quic, ..config }).await;
    assert!(why.contains("/udp does not answer"), "{why}");
    assert_eq!(wall.tcp_callers(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_tcp_a_slow_node_is_not_taken_for_a_dead_one() {
    let fleet = Fleet::on(TransportChoice::Tcp);
    let node = fleet.node("n1", 0).await;
    let client = fleet.client("a", &[node.addr], 1 << 20);
    client.send(frame(Lane::File, 0, 5)).await.unwrap();
    client.flush(Instant::now() + PATIENCE).await.unwrap();
    node.hold(true);
    client.send(frame(Lane::File, 5, 5)).await.unwrap();
    // Longer than a node may be silent: its empty acks are what keeps the session.
    tokio::time::sleep(Duration::from_secs(6)).await;
    node.hold(false);
    client.flush(Instant::now() + PATIENCE).await.unwrap();
    assert_eq!((client.stats().reconnects, client.stats().resent, client.stats().last_error), (0, 0, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_number_for_both_ports_or_a_word_about_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    ca::init(&at("ca"), "weir.test").unwrap();
    let files = ca::issue_node(&at("ca"), &name("n1"), &at("n1")).unwrap();
    let tls = ServerTls { ca: files.ca, cert: files.cert, key: files.key };
    let limits = TransportLimits::default();
    let any = "127.0.0.1:0".parse().unwrap();
    let server = Server::bind(any, &tls, limits).await.unwrap();
    assert_eq!(server.tcp_addr(), Some(server.local_addr()));
    drop(server);

    // Somebody else may have the number on TCP: another one, then.
    let mut is_free = false;
    for _ in 0..8 {
        let off = Server::listen(Listening { quic: any, tcp: TcpListen::Off }, &tls, limits).await.unwrap();
        assert_eq!(off.tcp_addr(), None);
        is_free |= TcpListener::bind(off.local_addr()).is_ok();
    }
    assert!(is_free, "a node without TCP leaves the port alone");
    let apart = Server::listen(Listening { quic: any, tcp: TcpListen::At(any) }, &tls, limits).await.unwrap();
    assert!(apart.tcp_addr().is_some_and(|addr| addr.port() != 0));

    // A number that was asked for and is taken for TCP only.
    let (taken, _udp) = loop {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        if UdpSocket::bind(taken.local_addr().unwrap()).is_ok() {
            break (taken, ());
        }
    };
    let why = Server::bind(taken.local_addr().unwrap(), &tls, limits).await.err().unwrap().to_string();
    assert!(why.contains("/tcp") && why.contains("cure: another `listen.tcp`"), "{why}");
}

/// No test waits this long unless it fails.
const PATIENCE: Duration = Duration::from_secs(60);
