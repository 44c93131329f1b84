//! One suite for all sinks: every state of an alert, text of any kind and length, and every kind of answer, against servers that speak the
//! protocol. A new sink is a line in `SINKS`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod server;

use std::path::Path;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use server::{Reply, Server, alert, dir_with_secrets, good, sinks};
use weir_alert::{Alert, Outcome, Sinks, State};

/// Format, and what its section says besides; `URL` is the server's address.
const SINKS: &[(&str, &str)] = &[
    ("webhook", "url = \"URL/hook\"\nsecret_file = \"key\""),
    ("splunk", "url = \"URL\"\nsecret_file = \"key\"\nindex = \"main\""),
    ("splunk", "url = \"URL\"\nsecret_file = \"key\"\nack = true"),
    ("elasticsearch", "url = \"URL\"\nindex = \"logs-weir\"\nsecret_file = \"key\""),
    ("slack", "secret_file = \"slack\""),
    ("pagerduty", "url = \"URL/v2/enqueue\"\nsecret_file = \"key\""),
    ("alertmanager", "url = \"URL\"\nuser = \"weir\"\nsecret_file = \"key\""),
    ("thehive", "url = \"URL\"\nsecret_file = \"key\""),
    ("stix", "url = \"URL/stix\"\nsecret_file = \"key\""),
];

fn over_http(server: &Server, dir: &Path, place: usize, time_ms: u64) -> Sinks {
    let (format, rest) = SINKS[place];
    std::fs::write(dir.join("slack"), format!("{}/services/T/B/X\n", server.url)).unwrap();
    sinks(dir, &[(format, &rest.replace("URL", &server.url))], time_ms)
}

fn variants() -> Vec<(&'static str, Alert)> {
    let open = alert();
    let long = "\u{1f980}\"]|=\\<\n\r\t\u{0}x".repeat(20_000);
    let huge = Alert {
        summary: long.clone(),
        evidence: vec![long.clone(); 5_000],
        rule: long.clone(),
        host: long.clone(),
        stages: format!("[{long}"),
        ..open.clone()
    };
    let bare = Alert {
        cloud: None,
        app: None,
        container_id: None,
        process_id: None,
        tactics: vec![],
        techniques: vec![],
        evidence: vec![],
        closed_through: None,
        ..open.clone()
    };
    vec![
        ("updated", Alert { state: State::Updated, revision: 2, ..open.clone() }),
        ("withdrawn", Alert { state: State::Withdrawn, revision: 3, ..open.clone() }),
        ("unicode", Alert { summary: "Überfall <!channel> \"q\" \\ ] | = \u{1f980}\nline".to_owned(), ..open.clone() }),
        ("bare", bare),
        ("huge", huge.trimmed()),
        ("open", open),
    ]
}

#[tokio::test]
async fn every_alert_is_taken_and_a_resend_is_the_same() {
    let dir = dir_with_secrets();
    for (place, named) in SINKS.iter().enumerate() {
        let server = Server::start(good).await;
        let sinks = over_http(&server, dir.path(), place, 5_000);
        for (what, alert) in variants() {
            let mut sent = Vec::new();
            for _ in 0..2 {
                let outcome = sinks.deliver("sink", alert.clone()).await;
                assert_eq!(outcome, Outcome::Delivered, "{named:?} {what}");
                sent.push(server.taken());
            }
            assert!(!sent[0].is_empty());
            assert_eq!(sent[0], sent[1], "{named:?} {what}: a resend differs");
            for request in &sent[0] {
                assert!(request.body.len() < 1 << 20, "{named:?} {what}: {} bytes", request.body.len());
                for line in request.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    serde_json::from_slice::<Value>(line).unwrap();
                }
            }
        }
    }
}

#[tokio::test]
async fn answers_mean_what_they_mean_everywhere() {
    let dir = dir_with_secrets();
    for (place, named) in SINKS.iter().enumerate() {
        for (status, retries) in [
            (500, true),
            (502, true),
            (503, true),
            (429, true),
            (408, true),
            (400, false),
            (404, false),
            (413, false),
            (302, false),
        ] {
            let server =
                Server::start(move |_, _| Reply { status, retry_after: Some("7"), body: "no \u{1f980}".to_owned() }).await;
            let outcome = over_http(&server, dir.path(), place, 5_000).deliver("sink", alert()).await;
            match outcome {
                Outcome::Retry { why, after_ms } if retries => {
                    assert!(why.contains(&status.to_string()), "{why}");
                    assert_eq!(after_ms, Some(7_000));
                }
                Outcome::Refused { why } if !retries => assert!(!why.contains("s3cret"), "{why}"),
                other => panic!("{named:?} {status}: {other:?}"),
            }
        }
        // Nobody there, and somebody who says nothing.
        let server = Server::start(good).await;
        let gone = over_http(&server, dir.path(), place, 300);
        drop(server);
        for silent in [false, true] {
            let server = Server::start_silent().await;
            let sinks = if silent { over_http(&server, dir.path(), place, 300) } else { gone.clone() };
            let Outcome::Retry { why, .. } = sinks.deliver("sink", alert()).await else { panic!("{named:?}") };
            assert!(!why.contains("services/T/B") && !why.contains("s3cret"), "a secret is told: {why}");
        }
    }
}

#[tokio::test]
async fn a_webhook_is_signed() {
    let (dir, server) = (dir_with_secrets(), Server::start(good).await);
    over_http(&server, dir.path(), 0, 5_000).deliver("sink", alert()).await;
    let request = server.taken().remove(0);
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(b"s3cret").unwrap();
    mac.update(&request.body);
    let sum: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(request.headers["x-weir-signature"], format!("sha256={sum}"));
    assert_eq!(request.headers["idempotency-key"], "a1:1");
}

#[tokio::test]
async fn pagerduty_opens_once_and_resolves() {
    let (dir, server) = (dir_with_secrets(), Server::start(good).await);
    let sinks = over_http(&server, dir.path(), 5, 5_000);
    for (state, revision) in [(State::Open, 1), (State::Updated, 2), (State::Withdrawn, 3)] {
        sinks.deliver("sink", Alert { state, revision, ..alert() }).await;
    }
    let events: Vec<Value> = server.taken().iter().map(|request| serde_json::from_slice(&request.body).unwrap()).collect();
    let told: Vec<_> =
        events.iter().map(|event| (event["event_action"].as_str().unwrap(), event["dedup_key"].as_str().unwrap())).collect();
    assert_eq!(told, [("trigger", "a1"), ("trigger", "a1"), ("resolve", "a1")]);
    assert_eq!((&events[0]["payload"]["severity"], &events[0]["routing_key"]), (&json!("critical"), &json!("s3cret")));
    assert!(events[0]["payload"]["summary"].as_str().unwrap().len() <= 1_024);
}

#[tokio::test]
async fn splunk_waits_until_it_is_indexed() {
    let (dir, asked) = (dir_with_secrets(), std::sync::atomic::AtomicUsize::new(0));
    let server = Server::start(move |path, body| match path {
        "/services/collector/ack" => {
            let count = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Reply::ok(json!({ "acks": { "3": count >= 2 } }))
        }
        _ => good(path, body),
    })
    .await;
    let outcome = over_http(&server, dir.path(), 2, 20_000).deliver("sink", alert()).await;
    assert_eq!(outcome, Outcome::Delivered);
    let taken = server.taken();
    assert_eq!(taken.iter().filter(|request| request.path.ends_with("/ack")).count(), 3);
    assert!(
        taken.iter().all(|request| request.headers["authorization"] == "Splunk s3cret"
            && request.headers.contains_key("x-splunk-request-channel"))
    );
    // Never indexed: it is sent again later.
    let server =
        Server::start(
            |path, body| if path.ends_with("/ack") { Reply::ok(json!({ "acks": { "3": false } })) } else { good(path, body) },
        )
        .await;
    let outcome = over_http(&server, dir.path(), 2, 700).deliver("sink", alert()).await;
    assert!(matches!(outcome, Outcome::Retry { .. }), "{outcome:?}");
}

#[tokio::test]
async fn elasticsearch_takes_a_revision_once() {
    let dir = dir_with_secrets();
    for (status, expected) in [(201, "delivered"), (409, "delivered"), (429, "retry"), (503, "retry"), (400, "refused")] {
        let server = Server::start(move |_, _| {
            Reply::ok(
                json!({ "errors": true, "items": [{ "create": { "status": status, "error": { "type": "t", "reason": "r" } } }] }),
            )
        })
        .await;
        let outcome = over_http(&server, dir.path(), 3, 5_000).deliver("sink", alert()).await;
        let word = match outcome {
            Outcome::Delivered => "delivered",
            Outcome::Retry { .. } => "retry",
            Outcome::Refused { .. } => "refused",
        };
        assert_eq!(word, expected, "{status}");
        let request = server.taken().remove(0);
        let action: Value = serde_json::from_slice(request.body.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
        assert_eq!(action, json!({ "create": { "_index": "logs-weir", "_id": "a1:1" } }));
        assert_eq!(request.headers["authorization"], "ApiKey s3cret");
    }
}

#[tokio::test]
async fn thehive_updates_what_it_has() {
    let dir = dir_with_secrets();
    let server = Server::start(
        |path, body| if path.ends_with("/query") { Reply::ok(json!([{ "_id": "~42" }])) } else { good(path, body) },
    )
    .await;
    let withdrawn = Alert { state: State::Withdrawn, revision: 2, ..alert() };
    assert_eq!(over_http(&server, dir.path(), 7, 5_000).deliver("sink", withdrawn).await, Outcome::Delivered);
    let taken = server.taken();
    let told: Vec<_> = taken.iter().map(|request| (&*request.method, &*request.path)).collect();
    assert_eq!(told, [("POST", "/api/v1/query"), ("PATCH", "/api/v1/alert/~42")]);
    assert_eq!(serde_json::from_slice::<Value>(&taken[1].body).unwrap()["status"], "Ignored");
    // An id that would lead elsewhere is not put into an address.
    let server =
        Server::start(
            |path, body| if path.ends_with("/query") { Reply::ok(json!([{ "_id": "../case/1" }])) } else { good(path, body) },
        )
        .await;
    over_http(&server, dir.path(), 7, 5_000).deliver("sink", alert()).await;
    assert_eq!(server.taken()[1].path, "/api/v1/alert");
}

#[tokio::test]
async fn alertmanager_and_slack_say_little() {
    let dir = dir_with_secrets();
    let server = Server::start(good).await;
    over_http(&server, dir.path(), 6, 5_000).deliver("sink", Alert { state: State::Withdrawn, ..alert() }).await;
    let request = server.taken().remove(0);
    let said: Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!((&*request.path, request.headers["authorization"].as_str()), ("/api/v2/alerts", "Basic d2VpcjpzM2NyZXQ="));
    assert_eq!((&said[0]["startsAt"], &said[0]["endsAt"]), (&json!("2026-11-23T16:25:34.5Z"), &json!("2026-11-23T16:25:35.5Z")));
    assert_eq!(said[0]["labels"].as_object().unwrap().len(), 7);

    let server = Server::start(good).await;
    over_http(&server, dir.path(), 4, 5_000).deliver("sink", Alert { summary: "<!channel> & `x`".to_owned(), ..alert() }).await;
    let request = server.taken().remove(0);
    let said = String::from_utf8(request.body).unwrap();
    assert!(said.contains("&lt;!channel&gt; &amp;") && !said.contains("<!channel>"), "{said}");
    assert_eq!(request.path, "/services/T/B/X");
}

#[test]
fn a_sink_that_cannot_be_made_says_what_to_do() {
    let dir = dir_with_secrets();
    std::fs::write(dir.path().join("empty"), "\n").unwrap();
    let try_one = |section: &str| match Sinks::new(&server::config(dir.path(), &[("webhook", section)], 100).alerts, "n1") {
        Ok(_) => panic!("{section} was taken"),
        Err(failed) => failed.to_string(),
    };
    for (section, says) in [
        ("url = \"http://h/x\"\nsecret_file = \"not-there\"", "could not read secret_file"),
        ("url = \"http://h/x\"\nsecret_file = \"empty\"", "empty or not plain"),
        ("url = \"http://h/x\"\nsecret_env = \"WEIR_TEST_NOT_SET\"", "is not set"),
        ("url = \"http://h/x\"\nca = \"key\"", "no certificate in it"),
    ] {
        let said = try_one(section);
        assert!(said.contains(says) && said.contains("sink sink"), "{said}");
    }
}

/// The carriers beside HTTP: what came of each variant, sent twice.
#[tokio::test]
async fn mail_and_records_are_taken_whatever_the_alert_and_a_resend_is_the_same() {
    let dir = dir_with_secrets();
    let mails = server::smtp::SmtpServer::start(dir.path(), server::smtp::Manners::default()).await;
    let manners = server::kafka::Manners { topic: "weir.alerts", partitions: 2, ..server::kafka::Manners::default() };
    let broker = server::kafka::Broker::start(manners).await;
    let people = "from = \"weir@example.org\"\nto = [\"soc@example.org\"]";
    let email = format!("address = \"localhost:{}\"\nprotocol = \"plain\"\n{people}", mails.port);
    let kafka = format!("brokers = [\"localhost:{}\"]\nprotocol = \"plain\"\ntopic = \"weir.alerts\"", broker.port);
    let sinks = sinks(dir.path(), &[("email", &email), ("kafka", &kafka)], 5_000);
    for (what, alert) in variants() {
        let mut sent = Vec::new();
        for _ in 0..2 {
            for sink in ["sink0", "sink1"] {
                assert_eq!(sinks.deliver(sink, alert.clone()).await, Outcome::Delivered, "{sink} {what}");
            }
            sent.push((mails.taken(), broker.taken()));
        }
        assert_eq!(sent[0], sent[1], "{what}: a resend differs");
        let (mail, record) = (&sent[0].0[0], &sent[0].1[0]);
        assert!(mail.text.len() < 1 << 20 && record.value.len() < 1 << 20, "{what}");
        serde_json::from_slice::<Value>(&record.value).unwrap();
    }
}
