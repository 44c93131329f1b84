//! Alerts reach tools: a cluster of two nodes with a rule, a webhook that is away at first and a file of findings; the nodes are killed
//! meanwhile; the rule is dropped, and the tools are told that the alert is withdrawn. Sinks of `CREATE SINK`, and the load tester's two runs of
//! them, short.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use weir_loadtest::agents::Target;
use weir_loadtest::alerts::{self, LatencyOptions, OutageOptions};
use weir_loadtest::local::setup::{Setup, TENANT};
use weir_loadtest::local::{LocalCluster, on_free_ports};
use weir_loadtest::replay::{self, Recording, ReplayOptions};
use weir_loadtest::runner;
use weir_transport::Dialer;

const WEIR: &str = env!("CARGO_BIN_EXE_weir");
/// Generous: a debug build on a busy machine.
const WITHIN: Duration = Duration::from_secs(120);

const RECORDING: &str = r#"{"kind":"exec","time":"2026-11-23T16:00:00Z","host":"web-7","pid":70,"process_id":"aa","ppid":7,"comm":"sh","exe":"/bin/sh","args":["sh","-c","id"],"parent_exe":"/usr/sbin/nginx","container_id":"0123456789abcdef0123","image":"reg/shop/web:1","app":"shop","uid":33,"result":0,"path":"/bin/sh"}
"#;

const RULES: &str = "
- rule: Shell of a web server
  desc: A web server started a shell
  condition: evt.type in (execve, execveat) and evt.failed=false and proc.name in (sh, bash) and proc.pname=nginx
  output: shell %proc.cmdline of %proc.pname
  priority: CRITICAL
  tags: [mitre_execution, T1059.004]
";

/// Takes alerts by HTTP, or is away.
#[derive(Clone, Default)]
struct Tool {
    is_up: Arc<AtomicBool>,
    got: Arc<Mutex<Vec<Value>>>,
}

impl Tool {
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/alerts", listener.local_addr().unwrap());
        let tool = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(tool.clone().serve(stream));
            }
        });
        url
    }

    async fn serve(self, mut stream: TcpStream) -> Option<()> {
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
            let up = self.is_up.load(Ordering::Relaxed);
            if up {
                self.got.lock().unwrap().push(serde_json::from_slice(&bytes[head..head + length]).unwrap());
            }
            let status = if up { "200 OK" } else { "503 Service Unavailable" };
            stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await.ok()?;
            bytes.drain(..head + length);
        }
    }

    fn states(&self) -> Vec<String> {
        self.got.lock().unwrap().iter().map(|alert| alert["state"].as_str().unwrap().to_owned()).collect()
    }
}

async fn weir(arguments: &[&str]) -> String {
    let output = tokio::process::Command::new(WEIR).args(arguments).output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    text(output.stdout) + &text(output.stderr)
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let late = Instant::now() + WITHIN;
    while !done().await {
        assert!(Instant::now() < late, "{what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_reach_tools_and_are_taken_back() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::write(&on_free_ports(2, 1), scratch.path()).unwrap();
    let (rules, findings) = (scratch.path().join("rules.yaml"), scratch.path().join("findings.ndjson"));
    std::fs::write(&rules, RULES).unwrap();
    let tool = Tool::default();
    let url = tool.start().await;
    for config in &setup.node_configs {
        let mut file = std::fs::OpenOptions::new().append(true).open(config).unwrap();
        writeln!(
            file,
            "[alerts.limits]\nretry_ms_max = 1000\n[[alerts.sinks]]\nname = \"tool\"\nformat = \"webhook\"\nurl = \"{url}\"\nseverity_min = \"critical\"\n\
             [[alerts.sinks]]\nname = \"file\"\nformat = \"ocsf\"\npath = {findings:?}\n\
             [[alerts.sinks]]\nname = \"elsewhere\"\nformat = \"ocsf\"\npath = {findings:?}\nregions = [\"us-*\"]"
        )
        .unwrap();
    }
    let at = setup.node_configs[0].to_str().unwrap().to_owned();
    let mut cluster = LocalCluster::start(Path::new(WEIR), &setup).await.unwrap();
    let said = weir(&["rules", "load", "--config", &at, rules.to_str().unwrap()]).await;
    assert!(said.contains("1 rules are in force"), "{said}");
    let recording = Recording::read(RECORDING.as_bytes(), "eu").unwrap();
    let dialer = Some(Dialer::default());
    let target = Target { nodes: cluster.quic(), authority: setup.authority.clone(), tenant: TENANT.to_owned(), dialer };
    let options = ReplayOptions { as_recorded: false, region: "eu".to_owned() };
    let begun = Instant::now();
    replay::run(recording, &options, &target, runner::now_ns()).await.unwrap();

    let sinks = async || weir(&["alerts", "sinks", "--config", &at]).await;
    let line = |name: &str, counts: [u32; 3]| {
        let [delivered, waiting, dead] = counts;
        format!("{name:<24} {delivered:>10} {waiting:>10} {dead:>10}\n")
    };
    until("the file has it, the tool is away", async || {
        let said = sinks().await;
        said.contains(&line("file", [1, 0, 0])) && said.contains(&line("tool", [0, 1, 0]))
    })
    .await;
    println!("from the first event sent to the file and `weir alerts sinks`: {:?}", begun.elapsed());
    assert!(sinks().await.contains(&line("elsewhere", [0, 0, 0])), "no alert of that region");

    for node in cluster.nodes.drain(..) {
        node.kill().await;
    }
    tool.is_up.store(true, Ordering::Relaxed);
    cluster = LocalCluster::start(Path::new(WEIR), &setup).await.unwrap();
    until("the tool has it", async || !tool.states().is_empty()).await;
    until("that is remembered", async || sinks().await.contains(&line("tool", [1, 0, 0]))).await;
    assert_eq!(tool.states(), ["open"]);

    let said = weir(&["rules", "drop", "--config", &at, "rules.yaml"]).await;
    assert!(said.contains("0 rules are in force"), "{said}");
    until("it is taken back", async || tool.states().iter().any(|state| state == "withdrawn")).await;
    let found = |at: usize| -> Value {
        let text = std::fs::read_to_string(&findings).unwrap();
        text.lines().nth(at).map_or(Value::Null, |line| serde_json::from_str(line).unwrap())
    };
    until("so the file says", async || found(1)["activity_id"] == 3).await;
    assert_eq!((found(0)["activity_id"].as_u64(), &found(0)["finding_info"]["uid"]), (Some(1), &found(1)["finding_info"]["uid"]));
    let said = weir(&["alerts", "redrive", "--config", &at]).await;
    assert!(said.contains("there are no dead letters"), "{said}");
    cluster.stop().await;
}

/// What a statement is answered: rows, or its code, message and hint.
async fn asked(sql: &tokio_postgres::Client, statement: &str) -> String {
    match sql.simple_query(statement).await {
        Ok(messages) => {
            let rows = messages.iter().filter_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|at| row.get(at).unwrap_or("-")).collect::<Vec<_>>().join(" "))
                }
                _ => None,
            });
            rows.collect::<Vec<_>>().join("\n")
        }
        Err(failed) => {
            let told = failed.as_db_error().unwrap();
            format!("{} {} | {}", told.code().code(), told.message(), told.hint().unwrap_or_default())
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sinks_are_made_by_statements_and_outlive_the_node() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::write(&on_free_ports(1, 1), scratch.path()).unwrap();
    let (rules, findings) = (scratch.path().join("rules.yaml"), scratch.path().join("findings.ndjson"));
    std::fs::write(&rules, RULES).unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(&setup.node_configs[0]).unwrap();
    writeln!(file, "[rules]\npaths = [{rules:?}]\n[[alerts.sinks]]\nname = \"file\"\nformat = \"ocsf\"\npath = {findings:?}")
        .unwrap();
    let mut cluster = LocalCluster::start(Path::new(WEIR), &setup).await.unwrap();
    let connect = async |at| {
        let (sql, connection) =
            tokio_postgres::connect(&format!("postgres://weir@{at}/weir"), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        sql
    };
    let sql = connect(cluster.addresses[0].sql).await;
    let (tool, key) = (Tool::default(), scratch.path().join("key"));
    tool.is_up.store(true, Ordering::Relaxed);
    let url = tool.start().await;
    for (statement, says) in [
        (
            "create sink file format webhook to 'http://127.0.0.1:9/'",
            "42710 sink \"file\" already exists in the nodes' config | take another name",
        ),
        ("create sink if not exists file format webhook to 'http://127.0.0.1:9/'", ""),
        (
            "create sink tool format webhok to 'http://127.0.0.1:9/'",
            "22023 sink \"tool\": format = 'webhok': no format of a sink | write webhook,",
        ),
        (
            "create sink tool format pagerduty with (routing_key = 's3cret')",
            "22023 sink \"tool\": routing_key would be a secret as text | a statement is kept",
        ),
        (
            "create sink tool format webhook to 'http://127.0.0.1:9/' with (secret_file = 'key')",
            "22023 sink \"tool\": secret_file is a relative path | write an absolute",
        ),
        ("create sink tool webhook", "42601 a statement about sinks needs FORMAT"),
        ("drop sink file", "42809 cannot drop sink \"file\": it is a section"),
        ("drop sink nothing", "42704 sink \"nothing\" does not exist | SHOW SINKS"),
        ("drop sink if exists nothing", ""),
        ("select name from sinks as of 5", "0A000 AS OF over \"sinks\""),
    ] {
        let said = asked(&sql, statement).await;
        assert!(if says.is_empty() { said.is_empty() } else { said.starts_with(says) }, "{statement}: {said}");
    }
    // Its secret is not there yet: it is made, and its alerts wait.
    let create =
        format!("create sink tool format webhook to '{url}' with (secret_file = '{}', severity_min = 'critical')", key.display());
    assert_eq!(asked(&sql, &create).await, "");
    assert!(asked(&sql, &create).await.starts_with("42710 sink \"tool\" already exists |"));
    assert_eq!(asked(&sql, "create sink other format ocsf to '/nowhere/findings' with (regions = ('us-*', 'ap-*'))").await, "");
    let dialer = Some(Dialer::default());
    let target = Target { nodes: cluster.quic(), authority: setup.authority.clone(), tenant: TENANT.to_owned(), dialer };
    let options = ReplayOptions { as_recorded: false, region: "eu".to_owned() };
    let row = async |sql: &tokio_postgres::Client, name: &str| {
        asked(sql, &format!("select origin, waiting, sent, dead, last_error, last_sent is null from sinks where name = '{name}'"))
            .await
    };
    // The rules of the config may come into force after the first events.
    until("the file has it, the tool waits for its secret", async || {
        let recording = Recording::read(RECORDING.as_bytes(), "eu").unwrap();
        replay::run(recording, &options, &target, runner::now_ns()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let waits = row(&sql, "tool").await;
        row(&sql, "file").await.starts_with("config 0 1 0 - f") && waits.starts_with("sql 1 0 0 could not read secret_file")
    })
    .await;
    assert_eq!(row(&sql, "other").await, "sql 0 0 0 - t", "no alert of that region");
    for node in cluster.nodes.drain(..) {
        node.kill().await;
    }
    std::fs::write(&key, "s3cret\n").unwrap();
    let cluster = LocalCluster::start(Path::new(WEIR), &setup).await.unwrap();
    let sql = connect(cluster.addresses[0].sql).await;
    until("the tool has it", async || row(&sql, "tool").await.starts_with("sql 0 1 0 ")).await;
    assert!(!tool.states().is_empty());
    let shown = asked(&sql, "show sinks").await;
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("file ocsf ") && lines[0].ends_with(" config -"), "{shown}");
    assert!(
        lines[1].contains("CREATE SINK \"other\" FORMAT ocsf WITH (path = '/nowhere/findings', regions = ('us-*', 'ap-*'))"),
        "{shown}"
    );
    assert!(lines[2].starts_with("tool webhook http://127.0.0.1:") && !shown.contains("s3cret"), "{shown}");
    assert_eq!(asked(&sql, "drop sink tool, other").await, "");
    assert_eq!(asked(&sql, "select name, origin, sent from sinks").await, "file config 1");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_hit_comes_to_a_webhook() {
    let scratch = tempfile::tempdir().unwrap();
    let options = LatencyOptions { hits: 5, rate: 0, hosts: 1, seed: 1 };
    let rounds = alerts::latency(Path::new(WEIR), scratch.path(), options, |line| eprintln!("{line}")).await.unwrap();
    eprintln!("{}", rounds[0]);
    assert_eq!((rounds.len(), rounds[0].ms.len(), rounds[0].missing), (1, 5, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_alert_is_lost_though_the_webhook_is_away_and_the_sender_dies() {
    let scratch = tempfile::tempdir().unwrap();
    let options = OutageOptions { away: Duration::from_secs(9), nodes: 2, hits: 2, rate: 0, hosts: 1 };
    let books = alerts::outage(Path::new(WEIR), scratch.path(), options, |line| eprintln!("{line}")).await.unwrap();
    eprintln!("{books}");
    assert!(books.is_exact());
}
