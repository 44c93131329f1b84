//! A small HTTP server that takes everything and answers as told; alerts and configs to try sinks with.

#![allow(clippy::unwrap_used, dead_code, reason = "a test may panic, and not every test uses all")]

pub(crate) mod kafka;
pub(crate) mod smtp;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use weir_alert::{Alert, Sinks, State};
use weir_config::{NodeConfig, Severity};

pub(crate) struct Server {
    pub(crate) url: String,
    taken: Arc<Mutex<Vec<Taken>>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<&'static str>,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn ok(body: Value) -> Self {
        Self { status: 200, retry_after: None, body: body.to_string() }
    }
}

impl Server {
    pub(crate) async fn start(answer: impl Fn(&str, &[u8]) -> Reply + Send + Sync + 'static) -> Self {
        let taken: Arc<Mutex<Vec<Taken>>> = Arc::default();
        let (noted, answer) = (Arc::clone(&taken), Arc::new(answer));
        let router = Router::new().fallback(move |request: Request| {
            let (noted, answer) = (Arc::clone(&noted), Arc::clone(&answer));
            async move {
                let (parts, body) = request.into_parts();
                let body: Bytes = to_bytes(body, 1 << 24).await.unwrap();
                let headers = parts.headers.iter().filter(|(name, _)| !matches!(name.as_str(), "host" | "accept"));
                let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
                let reply = answer(parts.uri.path(), &body);
                noted.lock().unwrap().push(Taken {
                    method: parts.method.to_string(),
                    path: parts.uri.path().to_owned(),
                    headers,
                    body: body.to_vec(),
                });
                let mut headers = HeaderMap::new();
                if let Some(after) = reply.retry_after {
                    headers.insert("retry-after", after.parse().unwrap());
                }
                (StatusCode::from_u16(reply.status).unwrap(), headers, reply.body)
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, taken, task }
    }

    /// Takes connections and says nothing.
    pub(crate) async fn start_silent() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        Self { url, taken: Arc::default(), task }
    }

    pub(crate) fn taken(&self) -> Vec<Taken> {
        std::mem::take(&mut self.taken.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What each tool says when all is well.
pub(crate) fn good(path: &str, _: &[u8]) -> Reply {
    match path {
        "/_bulk" => Reply::ok(json!({ "errors": false, "items": [{ "create": { "status": 201 } }] })),
        "/services/collector/event" => Reply::ok(json!({ "text": "Success", "code": 0, "ackId": 3 })),
        "/services/collector/ack" => Reply::ok(json!({ "acks": { "3": true } })),
        "/api/v1/query" => Reply::ok(json!([])),
        "/api/v1/alert" => Reply { status: 201, ..Reply::ok(json!({ "_id": "~1" })) },
        "/v2/enqueue" => Reply { status: 202, ..Reply::ok(json!({ "status": "success" })) },
        _ => Reply { status: 200, retry_after: None, body: "ok".to_owned() },
    }
}

pub(crate) fn dir_with_secrets() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key"), "s3cret\n").unwrap();
    dir
}

/// A node's config in `dir` with these sinks, each a format and the rest of its section; a single one is called `sink`, else by number.
pub(crate) fn config(dir: &Path, sections: &[(&str, &str)], time_ms: u64) -> NodeConfig {
    let mut text = "id = \"n1\"\n[tls]\nca = \"a\"\ncert = \"b\"\nkey = \"c\"\n".to_owned();
    text += &format!("[alerts.limits]\nlook_ms = 50\nrequest_ms_max = {time_ms}\nretry_ms_min = 50\nretry_ms_max = 200\n");
    for (place, (format, rest)) in sections.iter().enumerate() {
        let name = if sections.len() == 1 { "sink".to_owned() } else { format!("sink{place}") };
        text += &format!("[[alerts.sinks]]\nname = \"{name}\"\nformat = \"{format}\"\n{rest}\n");
    }
    NodeConfig::parse(&dir.join("node.toml"), &text, []).unwrap()
}

pub(crate) fn sinks(dir: &Path, sections: &[(&str, &str)], time_ms: u64) -> Sinks {
    Sinks::new(&config(dir, sections, time_ms).alerts, "n1").unwrap()
}

pub(crate) fn alert() -> Alert {
    let text = str::to_owned;
    Alert {
        alert_id: text("a1"),
        revision: 1,
        state: State::Open,
        rule: text("Terminal shell in container"),
        rule_id: text("00c0ffee00c0ffee"),
        severity: Severity::Critical,
        tactics: vec![text("execution"), text("some-new-tactic")],
        techniques: vec![text("T1059.004"), text("T1611")],
        time: 1_795_451_134_500_000_000,
        first_seen: 1_795_451_134_500_000_000,
        last_seen: 1_795_451_135_500_000_000,
        tenant: text("acme"),
        cloud: Some(text("aws")),
        region: text("eu-central"),
        host: text("web-7"),
        app: Some(text("shop")),
        container_id: Some(text("0123456789ab")),
        process_id: Some(text("00112233445566778899aabbccddeeff")),
        summary: text("A shell was spawned in a container (user=root command=sh -i)"),
        evidence: vec![text("e1"), text("e2")],
        stages: text("[{\"stage\":1,\"rule\":\"Terminal shell in container\",\"events\":2}]"),
        hosts: vec![text("web-7")],
        regions: vec![text("eu-central")],
        closed_through: Some(1_795_451_136_000_000_000),
        lost_events: 0,
    }
}
