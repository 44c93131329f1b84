//! The Kafka sink against a broker that speaks the protocol: what is sent, where it is placed, and what the broker's answers mean.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod server;

use std::path::Path;

use server::kafka::{Broker, Manners};
use server::{alert, dir_with_secrets, sinks};
use weir_alert::{Alert, Outcome, Sinks, State};

fn manners() -> Manners {
    Manners { topic: "weir.alerts", partitions: 3, ..Manners::default() }
}

fn to(dir: &Path, port: u16, more: &str) -> Sinks {
    let section = format!("brokers = [\"localhost:{port}\"]\ntopic = \"weir.alerts\"\n{more}");
    sinks(dir, &[("kafka", &section)], 2_000)
}

#[tokio::test]
async fn a_record_is_a_finding_under_the_alerts_key() {
    let dir = dir_with_secrets();
    let broker = Broker::start(manners()).await;
    let sinks = to(dir.path(), broker.port, "protocol = \"plain\"");
    for (state, revision) in [(State::Open, 1), (State::Withdrawn, 2), (State::Withdrawn, 2)] {
        let outcome = sinks.deliver("sink", Alert { state, revision, ..alert() }).await;
        assert_eq!(outcome, Outcome::Delivered);
    }
    let kept = broker.taken();
    assert_eq!(kept.len(), 3);
    assert_eq!(kept[1], kept[2], "a resend differs");
    assert!(kept.iter().all(|record| (&*record.key, record.partition, record.acks) == ("a1", kept[0].partition, -1)), "{kept:?}");
    assert_eq!((&*kept[0].headers["weir-key"], &*kept[1].headers["weir-key"]), ("a1:1", "a1:2"));
    assert_eq!(kept[0].time_ms, 1_795_451_134_500);
    let finding: serde_json::Value = serde_json::from_slice(&kept[1].value).unwrap();
    assert_eq!((finding["class_uid"].as_u64(), finding["activity_id"].as_u64()), (Some(2004), Some(3)));
    assert_eq!(finding["finding_info"]["uid"], "a1");
    // Keys are spread.
    let mut partitions = std::collections::BTreeSet::new();
    for number in 0..40 {
        let alert = Alert { alert_id: format!("alert {number}"), summary: "\u{1f980}\"\n".repeat(1_000), ..alert() };
        assert_eq!(sinks.deliver("sink", alert).await, Outcome::Delivered);
    }
    partitions.extend(broker.taken().iter().map(|record| record.partition));
    assert_eq!(partitions.len(), 3);
}

#[tokio::test]
async fn a_password_goes_by_tls_to_who_has_the_certificate() {
    let dir = dir_with_secrets();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.path().join("ca.pem"), made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let tls = Some(tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(tls)));
    let broker = Broker::start(Manners { tls, login: Some(("weir", "s3cret")), ..manners() }).await;
    let known = "ca = \"ca.pem\"\nuser = \"weir\"\nsecret_file = \"key\"";
    assert_eq!(to(dir.path(), broker.port, known).deliver("sink", alert()).await, Outcome::Delivered);
    assert_eq!(broker.taken().len(), 1);
    let strange = to(dir.path(), broker.port, "user = \"weir\"\nsecret_file = \"key\"").deliver("sink", alert()).await;
    assert!(matches!(strange, Outcome::Retry { .. }), "{strange:?}");
    std::fs::write(dir.path().join("key"), "wr0ng\n").unwrap();
    let wrong = to(dir.path(), broker.port, known).deliver("sink", alert()).await;
    assert!(matches!(&wrong, Outcome::Retry { why, .. } if !why.contains("wr0ng")), "{wrong:?}");
    assert_eq!(broker.taken(), []);
}

#[tokio::test]
async fn answers_of_a_broker_mean_what_they_mean() {
    let dir = dir_with_secrets();
    for (error, retries) in [
        // Message too large, record list too large, invalid record.
        (10, false),
        (18, false),
        (87, false),
        // Topic authorization failed, not enough replicas, invalid required acks.
        (29, true),
        (19, true),
        (21, true),
    ] {
        let broker = Broker::start(Manners { error, ..manners() }).await;
        let outcome = to(dir.path(), broker.port, "protocol = \"plain\"").deliver("sink", alert()).await;
        match (outcome, retries) {
            (Outcome::Retry { .. }, true) | (Outcome::Refused { .. }, false) => {}
            other => panic!("{error}: {other:?}"),
        }
    }
    let other = Broker::start(Manners { topic: "other", ..manners() }).await;
    let outcome = to(dir.path(), other.port, "protocol = \"plain\"").deliver("sink", alert()).await;
    assert!(matches!(&outcome, Outcome::Retry { why, .. } if why.contains("there is no topic")), "{outcome:?}");
    // Nobody there, and somebody who says nothing.
    let broker = Broker::start(manners()).await;
    let sinks = to(dir.path(), broker.port, "protocol = \"plain\"");
    drop(broker);
    assert!(matches!(sinks.deliver("sink", alert()).await, Outcome::Retry { .. }));
    let silent = server::Server::start_silent().await;
    let silent_port: u16 = silent.url.rsplit(':').next().unwrap().parse().unwrap();
    let outcome = to(dir.path(), silent_port, "protocol = \"plain\"").deliver("sink", alert()).await;
    assert!(matches!(outcome, Outcome::Retry { .. }), "{outcome:?}");
}

/// With `WEIR_KAFKA=host:port` of a broker that has, or makes, the topic `weir.alerts`; CI has none.
#[tokio::test]
async fn a_broker_of_others_takes_records() {
    let Ok(broker) = std::env::var("WEIR_KAFKA") else {
        eprintln!("SKIPPED: WEIR_KAFKA names no broker");
        return;
    };
    let dir = dir_with_secrets();
    let section = format!("brokers = [\"{broker}\"]\nprotocol = \"plain\"\ntopic = \"weir.alerts\"");
    let sinks = sinks(dir.path(), &[("kafka", &section)], 10_000);
    for number in 0..20 {
        let alert = Alert { alert_id: format!("alert {number}"), ..alert() };
        assert_eq!(sinks.deliver("sink", alert).await, Outcome::Delivered);
    }
}
