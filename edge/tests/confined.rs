//! The agent's own program with what it gives up: rights, system calls; and where it gets none to begin with. Needs root: says SKIPPED elsewhere.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_config::ServerTls;
use weir_schema::{AgentIdentity, Epoch, Lane, Name};
use weir_transport::{AckRanges, ResumeState, Server, TransportLimits, ca};

/// Generous: machines that run tests are loaded.
const PATIENCE: Duration = Duration::from_secs(90);

fn is_root(test: &str) -> bool {
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !is_root {
        eprintln!("SKIPPED: {test}: needs root");
    }
    is_root
}

/// An agent that records, and tries nodes that are not there.
struct Agent {
    process: Child,
    record: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// `wrapped`: a program and its arguments that end in starting the agent, or nothing.
    fn start(dir: &Path, more: &str, wrapped: &[&str]) -> Self {
        let (config, record, log) = (dir.join("agent.toml"), dir.join("record.jsonl"), dir.join("log"));
        fs::write(&config, format!("host = \"h\"\ndata_dir = \"data\"\n{more}")).unwrap();
        let words = [
            wrapped,
            &[env!("CARGO_BIN_EXE_weir-agent"), "--config", config.to_str().unwrap(), "--record", record.to_str().unwrap()],
        ];
        let words = words.concat();
        let said = fs::File::create(&log).unwrap();
        let process = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).stderr(said).spawn().unwrap();
        Self { process, record, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line of the recording.
    fn until(&mut self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let text = fs::read_to_string(&self.record).unwrap_or_default();
            if let Some(line) = text.lines().find(|line| fits(line)) {
                return line.to_owned();
            }
            if let Some(ended) = self.process.try_wait().unwrap() {
                panic!("the agent ended ({ended}) before {what}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("no {what}:\n{}", self.log());
    }

    /// `detail` of `host_start`.
    fn detail(&mut self) -> serde_json::Value {
        let line: serde_json::Value =
            serde_json::from_str(&self.until("host_start", |line| line.contains("host_start"))).unwrap();
        serde_json::from_str(line["detail"].as_str().unwrap()).unwrap()
    }

    /// The value of a key in `/proc/PID/task/*/status`, of every thread.
    fn status(&self, key: &str) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap().flatten();
        let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        let value = |text: String| {
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':').map(|rest| rest.trim().to_owned()))
        };
        texts.filter_map(value).collect()
    }

    fn stop(mut self) {
        let asked = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().unwrap();
        assert!(asked.success());
        let begun = Instant::now();
        let ended = loop {
            if let Some(ended) = self.process.try_wait().unwrap() {
                break ended;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not stop:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(ended.success(), "{ended}:\n{}", self.log());
        let text = fs::read_to_string(&self.record).unwrap();
        assert!(text.lines().last().unwrap().contains("host_stop"), "the recording is whole");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// CAP_DAC_READ_SEARCH 2, CAP_SYS_PTRACE 19, CAP_BPF 39.
const KEPT: u64 = 1 << 2 | 1 << 19 | 1 << 39;

#[test]
fn after_loading_few_rights_are_left_and_it_sees_as_before() {
    if !is_root("after_loading_few_rights_are_left_and_it_sees_as_before") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(dir.path(), "[process]\nseccomp = \"kill\"\n", &[]);
    let detail = agent.detail();
    if detail["mode"] != "ebpf" {
        eprintln!("SKIPPED: no eBPF here: {}", detail["why"]);
        return;
    }
    assert_eq!(detail["rights"]["capabilities"], serde_json::json!(["CAP_BPF", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE"]));
    assert_eq!(detail["rights"]["seccomp"], "kill");
    for set in ["CapEff", "CapPrm"] {
        for held in agent.status(set) {
            assert_eq!(u64::from_str_radix(&held, 16).unwrap() & !KEPT, 0, "{set} of a thread: {held}");
        }
    }
    assert!(agent.status("NoNewPrivs").iter().all(|value| value == "1"));
    // Mode 2: a filter.
    assert!(agent.status("Seccomp").iter().all(|value| value == "2"));

    // Another user's process: its exe needs CAP_SYS_PTRACE, its end is counted by maps that need CAP_BPF.
    let marker = format!("weir-confined-{}", std::process::id());
    let ran = Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", "/bin/sh", "-c", &format!(": {marker}; exit 7")])
        .status();
    if ran.is_ok() {
        agent.until("exec of another user", |line| line.contains("\"exec\"") && line.contains(&marker));
    }
    let _ = fs::read("/etc/shadow");
    agent.until("open", |line| line.contains("\"open\"") && line.contains("/etc/shadow"));
    assert!(std::net::TcpStream::connect("127.0.0.1:1").is_err());
    agent.until("connect", |line| line.contains("\"connect\""));
    agent.until("sample", |line| line.contains("\"sample\""));
    agent.stop();
}

#[test]
fn without_rights_it_polls_and_says_how_to_grant_them() {
    if !is_root("without_rights_it_polls_and_says_how_to_grant_them") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
    let user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    // The program may lie where that user may not go.
    let program = dir.path().join("weir-agent");
    fs::copy(env!("CARGO_BIN_EXE_weir-agent"), &program).unwrap();
    let may = Command::new(user[0]).args(&user[1..]).arg(&program).arg("--version").stdout(Stdio::null()).status();
    if !may.is_ok_and(|may| may.success()) {
        eprintln!("SKIPPED: no setpriv, or the folder {} is closed to other users", dir.path().display());
        return;
    }
    // `sh -c 'exec PROGRAM "$@"'`: the copy in the place of the program that is named.
    let script = format!("shift; exec {} \"$@\"", program.display());
    let wrapped = [&user[..], &["/bin/sh", "-c", &script, "sh"]].concat();
    let mut agent = Agent::start(dir.path(), "", &wrapped);
    let detail = agent.detail();
    assert_eq!(detail["mode"], "procfs", "{detail}");
    let why = detail["why"].as_str().unwrap();
    assert!(why.contains("CAP_BPF") && why.contains("CAP_PERFMON"), "the cure: {why}");
    assert!(!detail["cannot_see"].as_array().unwrap().is_empty());
    assert_eq!(detail["rights"]["capabilities"], serde_json::json!([]));
    let sleeper = Command::new("sleep").arg("86399").spawn();
    agent.until("a process, by polling", |line| line.contains("\"exec\"") && line.contains("86399"));
    let mut sleeper = sleeper.unwrap();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    agent.stop();
}

#[test]
fn without_btf_it_polls_and_says_so() {
    if !is_root("without_btf_it_polls_and_says_so") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hidden = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    let mut agent = Agent::start(dir.path(), "", &["unshare", "-m", "/bin/sh", "-c", hidden, "sh"]);
    let detail = agent.detail();
    assert_eq!(detail["mode"], "procfs", "{detail}");
    assert!(detail["why"].as_str().unwrap().contains("BTF"), "{detail}");
    agent.stop();
}

#[test]
fn beyond_its_share_of_the_processor_events_are_shed_and_counted() {
    if !is_root("beyond_its_share_of_the_processor_events_are_shed_and_counted") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let more = "[process]\ncpu_percent_max = 5\n[collector.open]\nwrites = true\nprefixes = [\"/\"]\n";
    let mut agent = Agent::start(dir.path(), more, &[]);
    if agent.detail()["mode"] != "ebpf" {
        eprintln!("SKIPPED: no eBPF here");
        return;
    }
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (stop, folder) = (over.clone(), dir.path().join("many"));
    fs::create_dir(&folder).unwrap();
    let load = std::thread::spawn(move || {
        let mut number = 0_u64;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            number += 1;
            // Other names each time: the same one again is told once a second.
            let _ = fs::write(folder.join((number % 50_000).to_string()), b"x");
        }
    });
    let line = agent.until("loss by the cap", |line| line.contains("\"loss\"") && line.contains("cpu_cap"));
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    load.join().unwrap();
    let loss: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(loss["loss_count"].as_u64().unwrap() > 0, "{loss}");
    assert_ne!(loss["loss_class"], "security");
    agent.stop();
}

struct Nothing;

impl ResumeState for Nothing {
    fn acked(&self, _: &AgentIdentity, _: Epoch) -> Vec<(Lane, AckRanges)> {
        Vec::new()
    }
}

/// All the calls of a life with nodes: enrolled files, a session, its loss, the spool, TCP tried in the place of UDP.
#[tokio::test(flavor = "multi_thread")]
async fn confined_it_ships_and_spools() {
    if !is_root("confined_it_ships_and_spools") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (authority, name) = (dir.path().join("ca"), |text| Name::new(text).unwrap());
    ca::init(&authority, "test").unwrap();
    let node = ca::issue_node(&authority, &name("n1"), &dir.path().join("node")).unwrap();
    ca::issue_agent(&authority, &name("acme"), &name("eu"), &name("a1"), &dir.path().join("agent")).unwrap();
    let tls = ServerTls { ca: node.ca, cert: node.cert, key: node.key };
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), &tls, TransportLimits::default()).await.unwrap();
    let more = format!(
        "nodes = [\"{}\"]\nsample_interval_ms = 100\n[tls]\nca = \"agent/ca.pem\"\ncert = \"agent/cert.pem\"\nkey = \"agent/key.pem\"\n\
         [process]\nseccomp = \"kill\"\n[spool]\naway_ms_max = 200\n",
        server.local_addr()
    );
    let (to_ingest, mut incoming) = tokio::sync::mpsc::channel(64);
    let serving = tokio::spawn(server.run(to_ingest, Arc::new(Nothing)));
    let mut agent = Agent::start(dir.path(), &more, &[]);
    assert_eq!(agent.detail()["rights"]["seccomp"], "kill");
    for _ in 0..20 {
        let frame = tokio::time::timeout(PATIENCE, incoming.recv()).await;
        frame.unwrap_or_else(|_| panic!("no frame:\n{}", agent.log())).unwrap().ack.durable();
    }
    serving.abort();
    drop(incoming);
    let begun = Instant::now();
    let held = |folder: &Path| -> u64 {
        let lanes = fs::read_dir(folder).into_iter().flatten().flatten();
        let files = lanes.flat_map(|lane| fs::read_dir(lane.path()).into_iter().flatten().flatten());
        files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
    };
    let before = held(&dir.path().join("data/spool"));
    while held(&dir.path().join("data/spool")) <= before {
        assert!(begun.elapsed() < PATIENCE, "nothing is spooled:\n{}", agent.log());
        assert!(agent.process.try_wait().unwrap().is_none(), "it ended:\n{}", agent.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::task::spawn_blocking(move || agent.stop()).await.unwrap();
}
