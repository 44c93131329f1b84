//! Revoked, expired, wrong region, self-signed, an authority that has gone: each is refused and its open connection closed, and these
//! are the lines an operator reads.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use weir_config::{ClientTls, TransportChoice};
use weir_schema::{AgentIdentity, Lane};
use weir_transport::ca::{self, Authority, Existing, IssueOptions, Issued};
use weir_transport::{Admission, Client, Doors};

use crate::fleet::{EPOCH, Fleet, frame, name, said};

on_both! {
    a_revoked_agent_is_disconnected_and_refused
    an_expired_agent_is_disconnected_at_expiry_and_refused
    an_agent_of_another_region_is_refused
    a_self_signed_agent_is_refused
    an_authority_takes_over_from_another
}

const PATIENCE: Duration = Duration::from_secs(60);

fn identity(region: &str, agent: &str) -> AgentIdentity {
    AgentIdentity { tenant: name("acme"), region: name(region), agent: name(agent) }
}

/// Unique to a test and a transport: all tests of a process share their lines.
fn agent(fleet: &Fleet, what: &str) -> String {
    format!("{what}-{:?}", fleet.transport).to_lowercase()
}

fn write(fleet: &Fleet, what: &str, issued: &Issued) -> ClientTls {
    let files = issued.write(&fleet.dir.path().join(what), Existing::Keep).unwrap();
    ClientTls { ca: files.ca, cert: files.cert, key: files.key }
}

async fn talks(client: &Client, first: u64) {
    client.send(frame(Lane::Network, first, 10)).await.unwrap();
    client.flush(Instant::now() + PATIENCE).await.unwrap();
}

async fn a_revoked_agent_is_disconnected_and_refused(fleet: Fleet) {
    said::listen();
    let doors = Doors::default();
    let admission = doors.admission.clone();
    let node = fleet.node_with_doors("n1", doors).await;
    let (bad, good) = (agent(&fleet, "bad"), agent(&fleet, "good"));
    let (one, other) = (fleet.client(&bad, &[node.addr], 1 << 20), fleet.client(&good, &[node.addr], 1 << 20));
    talks(&one, 0).await;
    talks(&other, 0).await;
    let begun = Instant::now();
    admission.set_revoked(HashSet::from([identity("eu-1", &bad)]));
    let full = format!("agent acme/eu-1/{bad} is revoked");
    let line = said::until_line(&["WARN", "agent disconnected: its certificate is not taken any more", &full]).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "in force at once");
    assert!(line.contains("cure: none, if that is meant"), "{line}");
    // Its client waits long by then; another process with the same files hears why.
    let why = fleet.refused_by(fleet.agent(&bad), node.addr).await;
    assert!(why.contains("the node refuses our certificate") && why.contains("or is revoked"), "{why}");
    said::until_line(&["WARN", "agent refused (cure: none, if that is meant", &full]).await;
    assert_eq!(one.stats().connected_to, None);
    talks(&other, 10).await;
    assert_eq!(other.stats().reconnects, 0, "nobody else notices");
}

async fn an_expired_agent_is_disconnected_at_expiry_and_refused(fleet: Fleet) {
    said::listen();
    let node = fleet.node_with_doors("n1", Doors::default()).await;
    let name = agent(&fleet, "old");
    let options = IssueOptions { valid: Duration::from_secs(60), ..IssueOptions::default() };
    let now = SystemTime::now();
    let issued = fleet.authority.agent(&identity("eu-1", &name), &options, now - Duration::from_secs(56)).unwrap();
    let client = Client::start(fleet.config(write(&fleet, "old", &issued), &[node.addr], 1 << 20), EPOCH).unwrap();
    talks(&client, 0).await;
    let full = format!("acme/eu-1/{name}");
    let line =
        said::until_line(&["WARN", "agent disconnected: its certificate is not taken any more", &full, "certificate expired"])
            .await;
    let after = SystemTime::now().duration_since(now).unwrap();
    assert!(after >= Duration::from_secs(3) && after < Duration::from_secs(10), "{after:?}");
    assert!(line.contains("weir token create"), "{line}");
    let why = fleet.refused_by(write(&fleet, "old-again", &issued), node.addr).await;
    assert!(why.contains("it has expired"), "{why}");
    said::until_line(&["WARN", "agent refused", "certificate expired", "weir token create"]).await;
}

async fn an_agent_of_another_region_is_refused(fleet: Fleet) {
    said::listen();
    let doors = Doors { admission: Admission::new(vec![name("eu-1"), name("eu-2")]), enrols: None };
    let node = fleet.node_with_doors("n1", doors).await;
    talks(&fleet.client("near", &[node.addr], 1 << 20), 0).await;
    let far = agent(&fleet, "far");
    let issued = fleet.authority.agent(&identity("us-1", &far), &IssueOptions::default(), SystemTime::now()).unwrap();
    let why = fleet.refused_by(write(&fleet, "far", &issued), node.addr).await;
    assert!(why.contains("of a region that this node does not take"), "{why}");
    let full = format!("agent acme/us-1/{far} is of a region that this node does not take (it takes eu-1, eu-2)");
    let line = said::until_line(&["WARN", "agent refused", &full]).await;
    assert!(line.contains("agents.regions"), "{line}");
    assert_eq!(fleet.log.lock().unwrap().frames.len(), 1, "no frame of it");
}

async fn a_self_signed_agent_is_refused(fleet: Fleet) {
    said::listen();
    let node = fleet.node_with_doors("n1", Doors::default()).await;
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    let uri = format!("spiffe://weir.test/tenant/acme/region/eu-1/agent/{}", agent(&fleet, "self"));
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let cert_pem = params.self_signed(&key).unwrap().pem();
    let issued = Issued { ca_pem: fleet.authority.cert_pem().to_owned(), cert_pem, key_pem: key.serialize_pem() };
    let why = fleet.refused_by(write(&fleet, "self", &issued), node.addr).await;
    assert!(why.contains("its authority is unknown there"), "{why}");
    let words = "signed by no authority that this node trusts: self-signed, or of another fleet";
    said::until_line(&["WARN", "agent refused", words, "weir ca issue"]).await;
    assert!(fleet.log.lock().unwrap().frames.is_empty());
}

/// The four steps of a rollover: trust both, show the new, move the agents, trust only the new.
async fn an_authority_takes_over_from_another(fleet: Fleet) {
    said::listen();
    let node = fleet.node_with_doors("n1", Doors::default()).await;
    let old = fleet.client("old-root", &[node.addr], 1 << 20);
    talks(&old, 0).await;

    let new_dir = fleet.dir.path().join("new-ca");
    let new = ca::init(&new_dir, "weir.test").unwrap();
    let both = format!("{}{}", fleet.authority.cert_pem(), new.cert_pem());
    let files = fleet.node_tls("n1");
    replace(&files.ca, &both);
    replace(&fleet.agent("old-root").ca, &both);
    let issue = |by: &Authority, agent: &str| {
        let issued = by.agent(&identity("eu-1", agent), &IssueOptions::default(), SystemTime::now()).unwrap();
        Issued { ca_pem: both.clone(), ..issued }
    };
    let tls = write(&fleet, "agent-of-new-root", &issue(&new, "new-root"));
    let young = Client::start(fleet.config(tls, &[node.addr], 1 << 20), EPOCH).unwrap();
    // It may have come before the node had looked at its files.
    talks(&young, 0).await;
    talks(&old, 10).await;
    assert_eq!(old.stats().reconnects, 0);

    // The node shows a certificate of the new authority: both agents trust it, the old one has read its bundle anew.
    let issued = new.node(&name("n1"), &IssueOptions::default(), SystemTime::now()).unwrap();
    replace(&files.key, &issued.key_pem);
    replace(&files.cert, &issued.cert_pem);
    tokio::time::sleep(Duration::from_millis(5_000)).await;
    let tls = write(&fleet, "agent-of-old-root", &issue(&fleet.authority, "second-of-old"));
    let second = Client::start(fleet.config(tls, &[node.addr], 1 << 20), EPOCH).unwrap();
    talks(&second, 0).await;

    // The old one goes.
    replace(&files.ca, new.cert_pem());
    let full = "acme/eu-1/old-root";
    let words = "signed by no authority that this node trusts";
    said::until_line(&["WARN", "agent disconnected: its certificate is not taken any more", full, words, transport(&fleet)])
        .await;
    let why = fleet.refused_by(fleet.agent("old-root"), node.addr).await;
    assert!(why.contains("the node refuses our certificate"), "{why}");
    talks(&young, 10).await;
    assert_eq!(old.stats().connected_to, None);
    // A bundle that is no bundle changes nothing.
    replace(&files.ca, "no certificate");
    said::until_line(&["WARN", "certificates could not be read anew", &files.ca.display().to_string()]).await;
    talks(&young, 20).await;
}

fn transport(fleet: &Fleet) -> &'static str {
    match fleet.transport {
        TransportChoice::Tcp => "transport=\"tcp\"",
        _ => "transport=\"quic\"",
    }
}

/// As `weir ca` writes: beside, then renamed.
fn replace(path: &Path, text: &str) {
    let staged = path.with_extension("staged");
    std::fs::write(&staged, text).unwrap();
    std::fs::rename(staged, path).unwrap();
}
