//! Sessions on either transport: frames, acks, restarts, who may come in, what hostile peers can do.

use std::net::UdpSocket;
use std::time::{Duration, Instant, SystemTime};

use rcgen::ExtendedKeyUsagePurpose;
use weir_config::{ClientTls, TransportChoice};
use weir_schema::{AgentIdentity, Lane};
use weir_transport::ca::{Authority, Existing, Issued};
use weir_transport::{Client, ClientConfig, Error, RefusedReason};

use crate::fleet::{self, Fleet, agent_of, frame, name};

on_both! {
    a_restart_loses_nothing_and_doubles_nothing
    a_node_started_anew_on_its_port_is_found_at_once
    garbage_disturbs_nobody_else
    only_this_fleets_agents_and_nodes_meet
    identity_is_the_certificates
    refused_frames_are_told_and_counted
    a_node_that_cannot_store_makes_agents_wait_not_fail
}

async fn a_restart_loses_nothing_and_doubles_nothing(fleet: Fleet) {
    let (one, two) = (fleet.node("n1", 0).await, fleet.node("n2", 0).await);
    // The frames the first node is given after its 30th stay without a verdict, as if it were killed before the sync.
    one.stop_storing_after(30);
    let client = fleet.client("web-7", &[one.addr, two.addr], 4 << 20);
    let mut sent = 0;
    let mut one = Some(one);
    for first in (0..100_000u64).step_by(1_000) {
        client.send(frame(Lane::Network, first, 1_000)).await.unwrap();
        sent += 1_000;
        if first == 60_000 {
            one.take().unwrap().kill().await;
        }
    }
    client.flush(Instant::now() + PATIENCE).await.unwrap();
    let stats = client.stats();
    assert_eq!((stats.acked_events, stats.unacked_frames, stats.unacked_bytes), (sent, 0, 0));
    let log = fleet.log.lock().unwrap();
    let mut seqs: Vec<_> = log.frames.keys().map(|(_, lane, first, count)| (*lane, *first, *count)).collect();
    seqs.sort_unstable();
    let expected: Vec<_> = (0..100).map(|i| (Lane::Network, i * 1_000, 1_000)).collect();
    assert_eq!(seqs, expected);
    assert!(log.frames.values().all(|times| *times == 1), "a durable frame was stored twice");
}

async fn a_node_started_anew_on_its_port_is_found_at_once(fleet: Fleet) {
    let node = fleet.node("n1", 0).await;
    let addr = node.addr;
    // By name: the first address of `localhost` may be ::1, where nobody listens.
    let config = fleet.config(fleet.agent("web-7"), &[], 1 << 20);
    let config = ClientConfig { nodes: vec![format!("localhost:{}", addr.port())], server_name: "localhost".into(), ..config };
    let client = Client::start(config, fleet::EPOCH).unwrap();
    client.send(frame(Lane::Security, 0, 10)).await.unwrap();
    client.flush(Instant::now() + PATIENCE).await.unwrap();
    node.kill().await;
    let node = fleet.node("n1", addr.port()).await;
    client.send(frame(Lane::Security, 10, 10)).await.unwrap();
    client.flush(Instant::now() + PATIENCE).await.unwrap();
    assert_eq!(client.stats().acked_events, 20);
    assert_eq!(client.stats().connected_to, Some(name("n1")));
    assert_eq!(client.stats().reconnects, 1);
    client.close().await;
    node.stop().await;
}

async fn garbage_disturbs_nobody_else(fleet: Fleet) {
    let node = fleet.node("n1", 0).await;
    let good = fleet.client("good", &[node.addr], 1 << 20);
    let noise = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut packet = vec![0u8; 1_200];
    for round in 0..200u32 {
        for (at, byte) in packet.iter_mut().enumerate() {
            *byte = (round.wrapping_mul(2_654_435_761).wrapping_add(at as u32 * 40_503) >> 7) as u8;
        }
        // Some look like QUIC's first packets, the others like nothing.
        packet[0] = if round % 2 == 0 { 0xc0 | packet[0] } else { packet[0] };
        packet[1..5].copy_from_slice(&1u32.to_be_bytes());
        noise.send_to(&packet, node.addr).unwrap();
    }
    let hostile: [(&str, Vec<u8>, &str); 4] = [
        ("bytes", b"GET / HTTP/1.1\r\n\r\n".to_vec(), "begin no frame"),
        ("long", [b"WCTL".as_slice(), &[0xff; 60]].concat(), "at most"),
        ("cut", frame(Lane::File, 0, 10).bytes[..50].to_vec(), "stream ended 50 bytes into"),
        ("early", frame(Lane::File, 0, 10).bytes, "before Hello"),
    ];
    for (agent, bytes, reason) in hostile {
        let closed = fleet.raw(agent, node.addr, &bytes).await;
        // On TCP the good-bye has no words of its own.
        let reason = if fleet.transport == TransportChoice::Tcp { "said protocol" } else { reason };
        assert!(closed.contains(reason), "{agent}: {closed:?}");
        // Who broke the protocol has to wait.
        let again = fleet.raw(agent, node.addr, b"").await;
        assert!(again.contains("penalty"), "{agent}: {again:?}");
        good.send(frame(Lane::Network, good.stats().acked_events, 100)).await.unwrap();
        good.flush(Instant::now() + PATIENCE).await.unwrap();
    }
    let stats = good.stats();
    assert_eq!((stats.acked_events, stats.reconnects, stats.resent), (400, 0, 0));
    assert_eq!(fleet.log.lock().unwrap().frames.len(), 4);
}

async fn only_this_fleets_agents_and_nodes_meet(fleet: Fleet) {
    let node = fleet.node("n1", 0).await;
    let foreign = Fleet::on(fleet.transport);
    let now = SystemTime::now();
    let long_ago = now - Duration::from_secs(90 * 24 * 3600);
    let (client, server) = (ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth);
    let put = |what: &str, issued: Issued| {
        let files = issued.write(&fleet.dir.path().join(what), Existing::Keep).unwrap();
        // Who comes in with it trusts our authority: only his own certificate is wrong.
        std::fs::write(&files.ca, fleet.authority.cert_pem()).unwrap();
        ClientTls { ca: files.ca, cert: files.cert, key: files.key }
    };

    // Agents that are none, and what they are told.
    let agent = "spiffe://weir.test/tenant/acme/region/eu-1/agent/a";
    let cases = [
        (put("expired", agent_of(&fleet.authority, long_ago)), "it has expired"),
        (put("twin", agent_of(&foreign.authority, now)), "another authority of the same name"),
        (fleet.forge("no-client", &[agent], std::slice::from_ref(&server)), "refuses our certificate"),
    ];
    for (tls, reason) in cases {
        let why = fleet.refused_by(tls.clone(), node.addr).await;
        assert!(why.contains(reason) && why.contains("cure"), "{:?}: {why}", tls.cert);
    }
    // Already the agent sees that the node is of another fleet.
    let other = put("foreign", agent_of(&Authority::new("elsewhere.test", now).unwrap(), now));
    let why = fleet.refused_by(other.clone(), node.addr).await;
    assert!(why.contains(r#"its trust domain is "weir.test", ours is "elsewhere.test""#), "{why}");

    // The same and worse from somebody else's code: the node does not rely on the agent's looking.
    let as_node = "spiffe://weir.test/node/n9";
    let as_client = std::slice::from_ref(&client);
    let raw = [
        (other, "error 48"),
        (fleet.forge("domain", &[&agent.replace("weir.test", "other")], as_client), "error 46"),
        (fleet.forge("node", &[as_node], &[client.clone(), server.clone()]), "error 46"),
        (fleet.forge("two", &[agent, as_node], as_client), "error 46"),
        (fleet.forge("none", &[], as_client), "error 46"),
        (fleet.forge("odd", &["spiffe://weir.test/tenant/a%2f/region/r/agent/a"], as_client), "error 46"),
    ];
    for (tls, alert) in raw {
        let closed = fleet.raw_with(&tls, node.addr, b"").await;
        assert!(closed.contains(alert), "{:?}: {closed}", tls.cert);
    }
    // A node's certificate is no agent's, already when it is read.
    let tls = fleet.forge("as-agent", &[as_node], as_client);
    let why = Client::start(fleet.config(tls, &[node.addr], 1 << 20), fleet::EPOCH).err().unwrap().to_string();
    assert!(why.contains("cert.pem") && why.contains("it is a node's, an agent's is wanted"), "{why}");
    let closed = fleet.raw_without_certificate(node.addr).await;
    assert!(closed.contains("error 116"), "no certificate: {closed}");

    // Nodes that are none.
    let ours = |node| fleet.config(fleet.agent("a"), &[node], 1 << 20);
    let why = fleet.fails(ClientConfig { server_name: "other-name".into(), ..ours(node.addr) }).await;
    assert!(why.contains("not valid for name") && why.contains("cure"), "{why}");
    let foreign_node = foreign.node("n1", 0).await;
    let why = fleet.fails(ours(foreign_node.addr)).await;
    assert!(why.contains("the node's certificate is refused"), "{why}");
    let usage = fleet.impostor(&fleet.agent("b"));
    let why = fleet.fails(ours(usage)).await;
    assert!(why.contains("the node's certificate is refused"), "{why}");
    let role = fleet.impostor(&fleet.forge("agent-as-node", &[agent], &[server, client]));
    let why = fleet.fails(ours(role)).await;
    assert!(why.contains("it is an agent's, a node's is wanted"), "{why}");
    assert!(fleet.log.lock().unwrap().frames.is_empty());
}

async fn identity_is_the_certificates(fleet: Fleet) {
    let node = fleet.node("n1", 0).await;
    let clients: Vec<_> = ["one", "two", "three"].map(|agent| (agent, fleet.client(agent, &[node.addr], 1 << 20))).into();
    for (_, client) in &clients {
        // The same bytes from all three: a frame names nobody.
        client.send(frame(Lane::Security, 0, 5)).await.unwrap();
    }
    for (agent, client) in clients {
        client.flush(Instant::now() + PATIENCE).await.unwrap();
        let log = fleet.log.lock().unwrap();
        let own: Vec<_> = log.frames.keys().filter(|(identity, ..)| identity.agent == name(agent)).collect();
        assert_eq!(own.len(), 1);
        assert_eq!(own[0].0, AgentIdentity { tenant: name("acme"), region: name("eu-1"), agent: name(agent) });
    }
}

async fn refused_frames_are_told_and_counted(fleet: Fleet) {
    let node = fleet.node("n1", 0).await;
    let client = fleet.client("a", &[node.addr], 1 << 20);
    client.send(frame(Lane::File, 0, 5)).await.unwrap();
    client.flush(Instant::now() + PATIENCE).await.unwrap();
    // A second process with the same certificate and epoch, other content under the same key.
    let forger = fleet.client("a", &[node.addr], 1 << 20);
    forger.send(frame(Lane::File, 0, 6)).await.unwrap();
    forger.flush(Instant::now() + PATIENCE).await.unwrap();
    assert_eq!((forger.stats().refused_frames, forger.stats().acked_frames), (1, 0));
    let nacks = forger.take_refused();
    assert_eq!((nacks.len(), nacks[0].refusal), (1, RefusedReason::Conflict));
    // A frame that fails its checksum is left out; the session goes on.
    let mut damaged = frame(Lane::File, 6, 5);
    *damaged.bytes.last_mut().unwrap() ^= 1;
    forger.send(damaged).await.unwrap();
    forger.send(frame(Lane::File, 11, 5)).await.unwrap();
    forger.flush(Instant::now() + PATIENCE).await.unwrap();
    assert_eq!((forger.stats().refused_frames, forger.stats().acked_frames, forger.stats().reconnects), (2, 1, 0));
    // A key that is held already, and a frame that never fits, are the caller's mistakes.
    let small = fleet.client("small", &[node.addr], 100);
    assert!(matches!(small.send(frame(Lane::File, 0, 500)).await, Err(Error::FrameTooLarge { .. })));
}

async fn a_node_that_cannot_store_makes_agents_wait_not_fail(fleet: Fleet) {
    let node = fleet.node("n1", 0).await;
    node.hold(true);
    let client = fleet.client("a", &[node.addr], 8 << 10);
    let mut pushed = 0;
    // Until the client's own memory is full.
    let full = loop {
        let next = client.try_send(frame(Lane::Network, 10 * pushed, 10)).unwrap();
        pushed += 1;
        if let Err(full) = next {
            break full;
        }
    };
    let send = {
        let client = client.clone();
        tokio::spawn(async move { client.send(full.0).await })
    };
    assert_eq!(client.stats().acked_frames, 0);
    node.hold(false);
    send.await.unwrap().unwrap();
    client.flush(Instant::now() + PATIENCE).await.unwrap();
    assert_eq!(client.stats().acked_frames, pushed);
}

/// No test waits this long unless it fails.
const PATIENCE: Duration = Duration::from_secs(60);
