//! From a token to a certificate and to the next one, on either transport; and what hostile callers can do there.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weir_config::TransportChoice;
use weir_schema::{AgentIdentity, Lane};
use weir_transport::ca::{Existing, IssueOptions};
use weir_transport::{Client, Error, ensure_certificate};

use crate::fleet::tokens::InMemory;
use crate::fleet::{self, EPOCH, Fleet, frame, name, said, until};

on_both! {
    a_token_becomes_an_agent_and_its_key_stays_with_it
    a_token_is_good_once_in_time_and_whole
    a_token_of_another_region_waits_for_another_node
    a_node_of_another_fleet_gets_nothing
    a_node_that_does_not_enrol_says_so
    a_certificate_is_renewed_and_the_session_goes_on
    without_a_certificate_nobody_has_a_session
}

const HOUR: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(60);

async fn enrolled(config: &weir_transport::ClientConfig) -> Result<(), Error> {
    tokio::time::timeout(PATIENCE, ensure_certificate(config)).await.unwrap()
}

async fn a_token_becomes_an_agent_and_its_key_stays_with_it(fleet: Fleet) {
    said::listen();
    let tokens = Arc::new(InMemory::default());
    let node = fleet.node_with_doors("n1", fleet.doors(&tokens)).await;
    let agent = format!("new-{:?}", fleet.transport);
    let token = tokens.make(&fleet, "eu-1", &agent, HOUR);
    let config = fleet.host("a", &token.to_string(), &[node.addr]);
    enrolled(&config).await.unwrap();
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&config.tls.key), 0o600);
    let key = std::fs::read(&config.tls.key).unwrap();
    said::until_line(&["INFO", "agent enrolled", &format!("acme/eu-1/{agent}"), &token.id.to_string()]).await;

    let client = Client::start(config.clone(), EPOCH).unwrap();
    client.send(frame(Lane::Security, 0, 5)).await.unwrap();
    client.flush(Instant::now() + PATIENCE).await.unwrap();
    let identity = AgentIdentity { tenant: name("acme"), region: name("eu-1"), agent: name(&agent) };
    assert_eq!(fleet.log.lock().unwrap().frames.keys().next().unwrap().0, identity);

    // Started again it needs no token and no node.
    std::fs::remove_file(&config.enrol.as_ref().unwrap().token_file).unwrap();
    node.stop().await;
    enrolled(&config).await.unwrap();
    assert_eq!(std::fs::read(&config.tls.key).unwrap(), key);
    assert!(said::line(&[&token.to_string()[23..87]]).is_none(), "a secret in a log");
}

async fn a_token_is_good_once_in_time_and_whole(fleet: Fleet) {
    said::listen();
    let tokens = Arc::new(InMemory::default());
    let node = fleet.node_with_doors("n1", fleet.doors(&tokens)).await;
    let token = tokens.make(&fleet, "eu-1", "once", HOUR);
    enrolled(&fleet.host("first", &token.to_string(), &[node.addr])).await.unwrap();
    let refused = async |host: &str, token: String, words: &str| {
        let config = fleet.host(host, &token, &[node.addr]);
        let why = enrolled(&config).await.unwrap_err().to_string();
        assert!(why.contains(words) && why.contains("weir token create"), "{why}");
        assert!(!config.tls.cert.exists());
        // One warning a second is written, at the most.
        tokio::time::sleep(Duration::from_millis(1_050)).await;
    };
    refused("second", token.to_string(), "was used before").await;
    said::until_line(&["WARN", "no certificate given: the token was used before", &token.id.to_string(), "acme/eu-1/once"]).await;
    let late = tokens.make(&fleet, "eu-1", "late", Duration::ZERO);
    refused("late", late.to_string(), "time is over").await;
    said::until_line(&["WARN", "no certificate given: the token's time is over", &late.id.to_string()]).await;
    let good = tokens.make(&fleet, "eu-1", "good", HOUR).to_string();
    let other = tokens.make(&fleet, "eu-1", "other", HOUR).to_string();
    let mixed = format!("{}{}", &good[..23], &other[23..]);
    refused("mixed", mixed, "no such token").await;
    said::until_line(&["WARN", "no certificate given: no such token", &good[6..22]]).await;
    refused("cut", good[..100].to_owned(), "not a token").await;
    assert_eq!(tokens.used.lock().unwrap().len(), 1, "a refusal uses nothing up");
    // A lost answer: the same key may ask again.
    let config = fleet.host("first", &token.to_string(), &[node.addr]);
    std::fs::remove_file(&config.tls.cert).unwrap();
    enrolled(&config).await.unwrap();
}

async fn a_token_of_another_region_waits_for_another_node(fleet: Fleet) {
    said::listen();
    let tokens = Arc::new(InMemory::default());
    let node = fleet.node_with_doors("n1", fleet.doors(&tokens)).await;
    let token = tokens.make(&fleet, "us-9", "far", HOUR);
    let config = fleet.host("far", &token.to_string(), &[node.addr]);
    let trying = tokio::spawn(async move { ensure_certificate(&config).await });
    let id = token.id.to_string();
    said::until_line(&["WARN", "no certificate given: it is of a region that this node does not take", &id, "acme/us-9/far"])
        .await;
    said::until_line(&["WARN", "not enrolled yet", "of a region that this node does not take"]).await;
    assert!(!trying.is_finished() && tokens.used.lock().unwrap().is_empty());
    trying.abort();
}

async fn a_node_of_another_fleet_gets_nothing(fleet: Fleet) {
    said::listen();
    let (tokens, foreign) = (Arc::new(InMemory::default()), Fleet::on(fleet.transport));
    let stranger = foreign.node_with_doors("n1", foreign.doors(&tokens)).await;
    let token = tokens.make(&fleet, "eu-1", "a", HOUR);
    let config = fleet.host("a", &token.to_string(), &[stranger.addr]);
    let trying = tokio::spawn(async move { ensure_certificate(&config).await });
    let addr = stranger.addr.to_string();
    said::until_line(&["WARN", "not enrolled yet", &addr, "the node's certificate is refused", "UnknownIssuer"]).await;
    assert!(!trying.is_finished() && tokens.used.lock().unwrap().is_empty());
    trying.abort();
}

async fn a_node_that_does_not_enrol_says_so(fleet: Fleet) {
    said::listen();
    let node = fleet.node("n1", 0).await;
    let token = InMemory::default().make(&fleet, "eu-1", "a", HOUR);
    let config = fleet.host("a", &token.to_string(), &[node.addr]);
    let trying = tokio::spawn(async move { ensure_certificate(&config).await });
    let addr = node.addr.to_string();
    said::until_line(&["WARN", "not enrolled yet", &addr, "issues no certificates", "agents.authority"]).await;
    trying.abort();
}

async fn a_certificate_is_renewed_and_the_session_goes_on(fleet: Fleet) {
    let tokens = Arc::new(InMemory::default());
    let node = fleet.node_with_doors("n1", fleet.doors(&tokens)).await;
    let config = fleet.host("a", "", &[node.addr]);
    // Made a while ago: more than three fifths of its life are over in two seconds.
    let agent = AgentIdentity { tenant: name("acme"), region: name("eu-1"), agent: name("a") };
    let options = IssueOptions { valid: Duration::from_secs(60), ..IssueOptions::default() };
    let issued = fleet.authority.agent(&agent, &options, SystemTime::now() - Duration::from_secs(35)).unwrap();
    issued.write(config.tls.cert.parent().unwrap(), Existing::Keep).unwrap();
    let (old, key) = (std::fs::read(&config.tls.cert).unwrap(), std::fs::read(&config.tls.key).unwrap());

    let client = Client::start(config.clone(), EPOCH).unwrap();
    let mut sent = 0;
    let late = Instant::now() + Duration::from_secs(30);
    while client.stats().reconnects == 0 {
        assert!(Instant::now() < late, "no newer session: {:?}", client.stats());
        client.send(frame(Lane::Network, sent, 10)).await.unwrap();
        sent += 10;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..20 {
        client.send(frame(Lane::Network, sent, 10)).await.unwrap();
        sent += 10;
    }
    client.flush(Instant::now() + PATIENCE).await.unwrap();
    let stats = client.stats();
    assert_eq!((stats.acked_events, stats.reconnects, stats.refused_frames, stats.last_error), (sent, 1, 0, None));
    assert_ne!(std::fs::read(&config.tls.cert).unwrap(), old);
    assert_eq!(std::fs::read(&config.tls.key).unwrap(), key);
    assert_eq!(fleet.log.lock().unwrap().frames.len() as u64, sent / 10);
    assert!(tokens.used.lock().unwrap().is_empty());
}

async fn without_a_certificate_nobody_has_a_session(fleet: Fleet) {
    said::listen();
    let tokens = Arc::new(InMemory::default());
    let node = fleet.node_with_doors("n1", fleet.doors(&tokens)).await;
    let closed = fleet.raw_without_certificate(node.addr).await;
    let known = ["no certificate", "an end without a word"];
    assert!(known.iter().any(|words| closed.contains(words)), "{closed}");
    said::until_line(&["WARN", "agent refused", "it shows no certificate", "weir token create"]).await;
    assert!(fleet.log.lock().unwrap().frames.is_empty());
}

/// A caller with code of his own and no certificate.
async fn raw(fleet: &Fleet, node: std::net::SocketAddr) -> fleet::TcpLink {
    let mut config = fleet.careless().with_no_client_auth();
    config.alpn_protocols = vec![b"weir-enrol/1".to_vec()];
    fleet::dial_tcp(config, node).await.unwrap()
}

async fn answer(mut link: fleet::TcpLink) -> Vec<u8> {
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, link.read_to_end(&mut answer)).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_caller_gets_no_answer_and_holds_no_place_for_long() {
    let mut fleet = Fleet::on(TransportChoice::Tcp);
    fleet.limits.handshake_time_max = Duration::from_millis(1_000);
    let tokens = Arc::new(InMemory::default());
    let node = fleet.node_with_doors("n1", fleet.doors(&tokens)).await;
    let too_long = [&b"WENR\x01"[..], &(1u32 << 20).to_le_bytes()].concat();
    let damaged = [&b"WENR\x01"[..], &8u32.to_le_bytes(), &[0xff; 8]].concat();
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), too_long, damaged] {
        let mut link = raw(&fleet, node.addr).await;
        link.write_all(&bytes).await.unwrap();
        link.flush().await.unwrap();
        assert_eq!(answer(link).await, b"");
    }
    // Without token and certificate: a refusal, and nothing else.
    let mut link = raw(&fleet, node.addr).await;
    link.write_all(b"WENR\x01\x02\0\0\0\0\0").await.unwrap();
    assert_eq!(answer(link).await, b"WENR\x01\x02\0\0\0\x01\x06");

    // Silent ones from one address hold a quarter of the places, until their time is over.
    let begun = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(raw(&fleet, node.addr).await);
    }
    if begun.elapsed() < Duration::from_millis(900) {
        assert_eq!(answer(raw(&fleet, node.addr).await).await, b"", "the seventeenth is closed at once");
    }
    for link in silent {
        assert_eq!(answer(link).await, b"");
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
    let token = tokens.make(&fleet, "eu-1", "good", HOUR);
    enrolled(&fleet.host("good", &token.to_string(), &[node.addr])).await.unwrap();
    until("one used token", || tokens.used.lock().unwrap().len() == 1).await;
}
