//! Exceptions as a table, live: an alert whose container's image is learned five seconds late is silenced by an exception on that image and
//! resolved at the pager; it fires again when the exception is deleted. Rows that cannot be meant are refused.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use weir_loadtest::agents::Target;
use weir_loadtest::local::setup::{Setup, TENANT};
use weir_loadtest::local::{LocalCluster, on_free_ports};
use weir_loadtest::replay::{self, Recording, ReplayOptions};
use weir_loadtest::runner;
use weir_transport::Dialer;

const WEIR: &str = env!("CARGO_BIN_EXE_weir");
/// Generous: a debug build on a busy machine.
const WITHIN: Duration = Duration::from_secs(120);

const SHELL: &str = r#"{"kind":"exec","time":"2026-11-23T16:00:00Z","host":"web-7","pid":70,"process_id":"aa","ppid":7,"comm":"sh","exe":"/bin/sh","args":["sh"],"container_id":"0123456789abcdef0123","uid":33,"result":0,"path":"/bin/sh"}
"#;
const LATER: &str = r#"{"kind":"exit","time":"2026-11-23T16:00:05Z","host":"web-7","pid":70,"process_id":"aa","ppid":7,"comm":"sh","exe":"/bin/sh","container_id":"0123456789abcdef0123","image":"reg/shop/web:1","uid":33,"exit_code":0}
"#;
const RULES: &str = "
- rule: Shell in a container
  desc: A shell was started in a container
  condition: evt.type = execve and proc.name = sh and container.id != host
  output: shell in %container.image.repository
  priority: CRITICAL
";

/// Takes what is sent to the pager.
async fn pager(got: Arc<Mutex<Vec<Value>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v2/enqueue", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&got)));
        }
    });
    url
}

async fn serve(mut stream: TcpStream, got: Arc<Mutex<Vec<Value>>>) -> Option<()> {
    let mut bytes = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            stream.read_buf(&mut bytes).await.ok().filter(|read| *read > 0)?;
        };
        let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
        let length: usize = text.split("content-length: ").nth(1)?.split("\r\n").next()?.parse().ok()?;
        while bytes.len() < head + length {
            stream.read_buf(&mut bytes).await.ok().filter(|read| *read > 0)?;
        }
        got.lock().unwrap().push(serde_json::from_slice(&bytes[head..head + length]).unwrap());
        stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").await.ok()?;
        bytes.drain(..head + length);
    }
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let late = Instant::now() + WITHIN;
    while !done().await {
        assert!(Instant::now() < late, "{what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The first column, or the error.
async fn ask(client: &Client, sql: &str) -> String {
    let messages = match client.simple_query(sql).await {
        Ok(messages) => messages,
        Err(failed) => {
            let told = failed.as_db_error().unwrap_or_else(|| panic!("{failed}"));
            return format!("{} {} ({})", told.code().code(), told.message(), told.hint().unwrap_or(""));
        }
    };
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    };
    messages.iter().filter_map(row).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_image_makes_an_exception_apply_and_the_pager_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::write(&on_free_ports(1, 1), scratch.path()).unwrap();
    let (rules, key) = (scratch.path().join("rules.yaml"), scratch.path().join("pager.key"));
    std::fs::write(&rules, RULES).unwrap();
    std::fs::write(&key, "routing\n").unwrap();
    let got = Arc::new(Mutex::new(Vec::new()));
    let url = pager(Arc::clone(&got)).await;
    let mut file = std::fs::OpenOptions::new().append(true).open(&setup.node_configs[0]).unwrap();
    let sink = format!("name = \"pager\"\nformat = \"pagerduty\"\nurl = \"{url}\"\nsecret_file = {key:?}");
    writeln!(file, "[rules]\npaths = [{rules:?}]\n[[alerts.sinks]]\n{sink}").unwrap();
    let cluster = LocalCluster::start(Path::new(WEIR), &setup).await.unwrap();
    let config = format!("host=127.0.0.1 port={} user=weir dbname=weir", cluster.addresses[0].sql.port());
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
    tokio::spawn(connection);
    until("the table is there", async || ask(&client, "SELECT count(*) FROM rule_exceptions").await == "0").await;

    let insert = |field: &str, value: &str| {
        format!("INSERT INTO rule_exceptions VALUES ('Shell in a container', 'shop', '{field}', 'startswith', '{value}')")
    };
    let refused = ask(&client, &insert("container.imag", "reg/")).await;
    assert!(refused.starts_with("23514 ") && refused.contains("container.imag"), "{refused}");
    assert!(ask(&client, "DROP TABLE rule_exceptions").await.starts_with("0A000 "));
    assert_eq!(ask(&client, &insert("container.image.repository", "reg/shop")).await, "");

    let replay = async |lines: &str| {
        let recording = Recording::read(lines.as_bytes(), "eu").unwrap();
        let dialer = Some(Dialer::default());
        let target = Target { nodes: cluster.quic(), authority: setup.authority.clone(), tenant: TENANT.to_owned(), dialer };
        let options = ReplayOptions { as_recorded: false, region: "eu".to_owned() };
        replay::run(recording, &options, &target, runner::now_ns()).await.unwrap();
    };
    let actions = || {
        let got = got.lock().unwrap();
        got.iter().map(|event| event["event_action"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let state = async |expected: &str| ask(&client, "SELECT state FROM alerts").await == expected;
    // The rules of the config are asked for beside the start of the node: an event before them is no hit.
    let mut tries = 0;
    until("the alert is open", async || {
        if state("open").await {
            return true;
        }
        if tries % 50 == 0 {
            replay(SHELL).await;
        }
        tries += 1;
        state("updated").await
    })
    .await;
    until("the pager is told", async || actions().iter().any(|action| action == "trigger")).await;
    replay(LATER).await;
    until("the alert is withdrawn", async || state("withdrawn").await).await;
    until("the pager is told that it is over", async || actions().last().is_some_and(|action| action == "resolve")).await;
    let keys: Vec<Value> = got.lock().unwrap().iter().map(|event| event["dedup_key"].clone()).collect();
    assert!(keys.windows(2).all(|pair| pair[0] == pair[1]), "{keys:?}");

    assert_eq!(ask(&client, "DELETE FROM rule_exceptions WHERE name = 'shop'").await, "");
    until("the alert is back", async || state("updated").await).await;
    until("the pager is told again", async || actions().last().is_some_and(|action| action == "trigger")).await;
    let summary = ask(&client, "SELECT summary FROM alerts").await;
    assert_eq!(summary, "shell in reg/shop/web");
    cluster.stop().await;
}
