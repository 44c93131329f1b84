//! Alerts reach tools: a cluster of two nodes with a rule, a webhook that is away at first and a file of findings; the nodes are killed
//! meanwhile; the rule is dropped, and the tools are told that the alert is withdrawn.

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
