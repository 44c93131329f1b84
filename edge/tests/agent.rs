//! The whole agent against a real server on loopback: polled (any user), and with the kernel's hooks (root and BTF, else skipped).

#![allow(clippy::unwrap_used, reason = "a test: helpers may fail like the cases that call them")]

#[allow(dead_code, reason = "other tests use what this one does not")]
#[path = "metadata/http.rs"]
mod http;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use weir_config::{AgentConfig, ServerTls};
use weir_edge::agent::{self, Summary};
use weir_schema::{AgentIdentity, Decoder, Epoch, Event, Host, Kind, Lane, Name};
use weir_transport::{AckRanges, Incoming, ResumeState, Server, TransportLimits, ca};

struct Nothing;

impl ResumeState for Nothing {
    fn acked(&self, _: &AgentIdentity, _: Epoch) -> Vec<(Lane, AckRanges)> {
        Vec::new()
    }
}

/// A server that acknowledges all, and an agent that talks to it.
struct Pair {
    incoming: mpsc::Receiver<Incoming>,
    stop: oneshot::Sender<()>,
    agent: tokio::task::JoinHandle<Result<Summary, weir_edge::error::Error>>,
    decoder: Decoder,
    seen: Vec<Event>,
    /// As the last frame has it.
    host: Option<Host>,
    next_seqs: [u64; 4],
    _folder: tempfile::TempDir,
}

impl Pair {
    async fn start(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (authority, name) = (folder.path().join("ca"), |text| Name::new(text).unwrap());
        ca::init(&authority, "test").unwrap();
        let node = ca::issue_node(&authority, &name("n1"), &folder.path().join("node")).unwrap();
        ca::issue_agent(&authority, &name("acme"), &name("eu"), &name("a1"), &folder.path().join("agent")).unwrap();
        let tls = ServerTls { ca: node.ca, cert: node.cert, key: node.key };
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), &tls, TransportLimits::default()).await.unwrap();
        let text = format!(
            "nodes = [\"{}\"]\nhost = \"test-host\"\ncloud = \"onprem\"\ndata_dir = \"data\"\nsample_interval_ms = 200\n{more}\n\
             [tls]\nca = \"agent/ca.pem\"\ncert = \"agent/cert.pem\"\nkey = \"agent/key.pem\"\n",
            server.local_addr()
        );
        let config = AgentConfig::parse(&folder.path().join("agent.toml"), &text, Vec::new()).unwrap();
        let (to_ingest, incoming) = mpsc::channel(64);
        tokio::spawn(server.run(to_ingest, Arc::new(Nothing)));
        let (stop, stopped) = oneshot::channel();
        let agent = tokio::spawn(agent::run(config, async {
            let _ = stopped.await;
        }));
        Self {
            incoming,
            stop,
            agent,
            decoder: Decoder::default(),
            seen: Vec::new(),
            host: None,
            next_seqs: [0; 4],
            _folder: folder,
        }
    }

    /// Takes one frame: its seqs follow the last one's of its lane.
    fn take(&mut self, incoming: Incoming) {
        let header = incoming.frame.header;
        let next = &mut self.next_seqs[header.lane as usize];
        assert_eq!(header.first_seq.0, *next, "dense seqs");
        *next += u64::from(header.count);
        let batch = incoming.frame.decode(&mut self.decoder).unwrap();
        assert_eq!((&*batch.host.host, batch.host.simulated), ("test-host", false));
        self.seen.extend(batch.events());
        self.host = Some(batch.host);
        incoming.ack.durable();
    }

    /// Receives until an event fits, for at most a minute.
    async fn until(&mut self, what: &str, fits: impl Fn(&Event) -> bool) -> Event {
        let mut looked = 0;
        let found = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                if let Some(found) = self.seen[looked..].iter().find(|event| fits(event)) {
                    return found.clone();
                }
                looked = self.seen.len();
                let incoming = self.incoming.recv().await.unwrap();
                self.take(incoming);
            }
        });
        found.await.unwrap_or_else(|_| panic!("no event: {what}"))
    }

    async fn stop(mut self) -> (Summary, Vec<Event>) {
        self.stop.send(()).unwrap();
        let mut agent = self.agent;
        loop {
            tokio::select! {
                summary = &mut agent => {
                    return (summary.unwrap().unwrap(), self.seen);
                }
                Some(incoming) = self.incoming.recv() => {
                    self.seen.extend(incoming.frame.decode(&mut self.decoder).unwrap().events());
                    incoming.ack.durable();
                }
            }
        }
    }
}

fn is_of(event: &Event, kind: Kind, pid: u32) -> bool {
    event.kind == kind && event.process.as_ref().is_some_and(|process| process.pid == pid)
}

#[tokio::test]
async fn without_hooks_it_polls_and_says_so() {
    let mut pair = Pair::start("[collector]\nebpf = false\npoll_interval_ms = 50\n").await;
    let start = pair.until("host_start", |event| event.kind == Kind::HostStart).await;
    assert!(start.fields.detail.as_deref().unwrap().contains("cannot_see"));
    assert!(start.fields.addresses.as_deref().unwrap().contains("127.0.0.1"));
    let sample = pair.until("a sample of the host", |event| event.kind == Kind::Sample).await;
    assert!(sample.fields.mem_bytes.unwrap() > 0 && sample.fields.cpu_ms.is_some());

    let mut child = Command::new("/bin/sleep").arg("600").spawn().unwrap();
    let exec = pair.until("the child's exec", |event| is_of(event, Kind::Exec, child.id())).await;
    let process = exec.process.unwrap();
    assert_eq!((process.ppid, process.args.as_deref()), (Some(std::process::id()), Some(r#"["/bin/sleep","600"]"#)));
    assert!(process.ancestors.as_deref().unwrap().len() > 4 && process.parent_exe.is_some());
    assert_eq!(exec.container.unwrap().app.as_deref(), Some("unassigned"));
    child.kill().unwrap();
    child.wait().unwrap();
    let exit = pair.until("the child's exit", |event| is_of(event, Kind::Exit, child.id())).await;
    assert_eq!(exit.fields.exit_code, None);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let _server = listener.accept().unwrap();
    let of_port = |kind| move |event: &Event| event.kind == kind && event.fields.dst_port == Some(port);
    let out = pair.until("connect", of_port(Kind::Connect)).await;
    let inward = pair.until("accept", of_port(Kind::Accept)).await;
    assert_eq!((out.fields.direction.as_deref(), inward.fields.direction.as_deref()), (Some("out"), Some("in")));
    assert_eq!((out.fields.src_port, inward.fields.src_port), (Some(client.local_addr().unwrap().port()), out.fields.src_port));

    let (summary, events) = pair.stop().await;
    assert_eq!((summary.acked_events, summary.unacked_frames), (summary.events, 0));
    let last = events.iter().rfind(|event| event.kind.lane() == Lane::Security).unwrap();
    assert_eq!(last.kind, Kind::HostStop);
}

/// Runs an agent until `done`.
async fn run_until(config: &AgentConfig, done: impl Future<Output = ()>) -> Summary {
    agent::run(config.clone(), done).await.unwrap()
}

/// The seqs that came, by run and lane.
type Books = BTreeMap<(Epoch, Lane), BTreeSet<u64>>;

/// Acknowledges whatever comes, and keeps the books: events by run and lane, each once.
fn books(server: Server) -> (Arc<Mutex<Books>>, Arc<Mutex<Vec<Event>>>) {
    let (books, events) = (Arc::<Mutex<Books>>::default(), Arc::<Mutex<Vec<Event>>>::default());
    let (to_ingest, mut incoming) = mpsc::channel::<Incoming>(64);
    tokio::spawn(server.run(to_ingest, Arc::new(Nothing)));
    let (kept, seen) = (books.clone(), events.clone());
    tokio::spawn(async move {
        let mut decoder = Decoder::default();
        while let Some(incoming) = incoming.recv().await {
            let header = &incoming.frame.header;
            let seqs = header.first_seq.0..header.first_seq.0 + u64::from(header.count);
            kept.lock().unwrap().entry((header.epoch, header.lane)).or_default().extend(seqs);
            seen.lock().unwrap().extend(incoming.frame.decode(&mut decoder).unwrap().events());
            incoming.ack.durable();
        }
    });
    (books, events)
}

#[tokio::test]
async fn what_no_node_acknowledges_outlives_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, name) = (folder.path().join("ca"), |text| Name::new(text).unwrap());
    ca::init(&authority, "test").unwrap();
    let node = ca::issue_node(&authority, &name("n1"), &folder.path().join("node")).unwrap();
    ca::issue_agent(&authority, &name("acme"), &name("eu"), &name("a1"), &folder.path().join("agent")).unwrap();
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!(
        "nodes = [\"{port}\"]\nhost = \"h\"\ndata_dir = \"data\"\ntransport = \"quic\"\nsample_interval_ms = 100\n\
         [collector]\nebpf = false\n[spool]\naway_ms_max = 0\n\
         [tls]\nca = \"agent/ca.pem\"\ncert = \"agent/cert.pem\"\nkey = \"agent/key.pem\"\n"
    );
    let config = AgentConfig::parse(&folder.path().join("agent.toml"), &text, Vec::new()).unwrap();

    // Nobody is there.
    let first = run_until(&config, tokio::time::sleep(Duration::from_millis(1_500))).await;
    assert!(first.events > 10 && first.lost_events == 0);
    assert_eq!((first.acked_events, first.spooled_events, first.unacked_frames), (0, first.events, 0));
    let second = run_until(&config, tokio::time::sleep(Duration::from_millis(700))).await;
    assert_eq!(second.spooled_events, first.events + second.events);

    // A node is.
    let tls = ServerTls { ca: node.ca, cert: node.cert, key: node.key };
    let server = Server::bind(port, &tls, TransportLimits::default()).await.unwrap();
    let (books, events) = books(server);
    let produced = first.events + second.events;
    let all_there = async {
        while books.lock().unwrap().values().map(BTreeSet::len).sum::<usize>() < produced as usize {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    let third = run_until(&config, async { tokio::time::timeout(Duration::from_secs(60), all_there).await.unwrap() }).await;
    assert_eq!((third.spooled_events, third.unacked_frames), (0, 0));
    assert_eq!(third.acked_events, produced + third.events, "each once");
    for (run, seqs) in &*books.lock().unwrap() {
        assert!(seqs.iter().copied().eq(0..seqs.len() as u64), "{run:?}: {seqs:?}");
    }
    assert_eq!(books.lock().unwrap().values().map(BTreeSet::len).sum::<usize>() as u64, produced + third.events);
    let losses = |events: &Mutex<Vec<Event>>| -> Vec<_> {
        let events = events.lock().unwrap();
        let lost = events.iter().filter(|event| event.kind == Kind::Loss);
        lost.map(|event| (event.fields.loss_reason.as_deref().unwrap_or("").to_owned(), event.fields.loss_count)).collect()
    };
    assert!(losses(&events).is_empty());

    // Killed: what it had in memory only is gone, and the next run says so.
    let killed = tokio::spawn(agent::run(config.clone(), std::future::pending()));
    tokio::time::sleep(Duration::from_millis(500)).await;
    killed.abort();
    assert!(killed.await.is_err());
    run_until(&config, tokio::time::sleep(Duration::from_millis(1_500))).await;
    assert_eq!(losses(&events), [("killed".to_owned(), None)]);
}

#[tokio::test]
async fn a_container_that_lives_50_ms_is_named_after_it_is_gone() {
    let id = format!("{:064x}", std::process::id());
    let Some(cgroup) = container_cgroup(&id) else {
        eprintln!("skipped: no right to make a cgroup here");
        return;
    };
    // The limits are of every process of the machine: what others do beyond them would be counted as lost here.
    let limits = "[collector.calls]\nper_second_max = 1000000\nchanges_per_second_max = 1000000\n[collector.udp]\nsends_per_second_max = 1000000\n";
    let mut pair = Pair::start(limits).await;
    let start = pair.until("host_start", |event| event.kind == Kind::HostStart).await;
    if !start.fields.detail.as_deref().unwrap().contains("\"ebpf\"") {
        eprintln!("skipped: no eBPF here: {:?}", start.fields.detail);
        return;
    }
    // A second cgroup, made while the agent runs, whose only process is gone before anybody could look.
    let id = format!("{:064x}", u64::from(std::process::id()) + (1 << 40));
    let cgroup = cgroup.with_file_name(&id);
    std::fs::create_dir(&cgroup).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let inner = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; sleep 0.05");
    let script = format!("echo $$ > {}/cgroup.procs; exec bash -c '{inner}'", cgroup.display());
    let child = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    let pid = child.id();
    assert!(
        tokio::task::spawn_blocking(move || {
            let mut child = child;
            child.wait()
        })
        .await
        .unwrap()
        .unwrap()
        .success()
    );
    std::fs::remove_dir(&cgroup).unwrap();

    let in_container =
        |event: &Event| event.container.as_ref().and_then(|container| container.container_id.as_deref()) == Some(&*id);
    pair.until("container_start", |event| event.kind == Kind::ContainerStart && in_container(event)).await;
    let exec = pair.until("exec inside", |event| is_of(event, Kind::Exec, pid) && in_container(event)).await;
    assert!(exec.process.unwrap().cgroup.clone().unwrap().contains("/kubepods/burstable/pod"));
    let connect = pair.until("connect", |event| event.kind == Kind::Connect && event.fields.dst_port == Some(port)).await;
    assert!(in_container(&connect) && connect.fields.isn_local.is_some() && connect.fields.result == Some(0));
    pair.until("exit", |event| is_of(event, Kind::Exit, pid) && in_container(event)).await;
    pair.until("container_stop", |event| event.kind == Kind::ContainerStop && in_container(event)).await;
    let (summary, _) = pair.stop().await;
    assert_eq!((summary.acked_events, summary.lost_events), (summary.events, 0));
}

/// Makes `…/kubepods/burstable/pod<uid>/<id>` in a hierarchy of this machine; nothing without the right to. Removed at the end.
fn container_cgroup(id: &str) -> Option<Made> {
    let mounts = weir_edge::enrich::cgroup::Mounts::read();
    let hierarchies = [weir_edge::enrich::cgroup::Hierarchy::V1, weir_edge::enrich::cgroup::Hierarchy::V2];
    let root = hierarchies.iter().find_map(|hierarchy| mounts.root(*hierarchy))?;
    let pod = root.join("kubepods/burstable").join(format!("pod{:032x}", std::process::id()));
    std::fs::create_dir_all(pod.join(id)).ok()?;
    Some(Made(pod.join(id)))
}

struct Made(PathBuf);

impl std::ops::Deref for Made {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let pod = self.0.parent().expect("made below a pod");
        for folder in std::fs::read_dir(pod).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
            let _ = std::fs::remove_dir(folder.path());
        }
        // The folders above may belong to others: removed only while empty.
        for folder in pod.ancestors().take(3) {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

#[tokio::test]
async fn the_cloud_says_what_the_config_leaves_open_and_the_certificate_keeps_its_region() {
    let cloud = http::Fake::new(|asked, _| match asked.line.as_str() {
        "PUT /latest/api/token" => http::ok("t"),
        _ => http::ok(r#"{"region":"us-east-1","availabilityZone":"us-east-1b","instanceId":"i-7","instanceType":"m7.large"}"#),
    });
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let engine = http::Fake::new(|asked, _| match asked.line.contains("/containers/json") {
        true => http::ok("[]"),
        // Of the containers of the host that the test runs on it knows none.
        false => http::answer(404, "", "{}"),
    });
    engine.unix(&socket);
    let more = format!(
        "[metadata]\ndocker_sockets = [{socket:?}]\n[metadata.cloud]\nproviders = [\"aws\"]\naddress = \"{}\"\ninstance_type = \"mine\"\n\
         [collector]\nebpf = false\n",
        cloud.tcp().await
    );
    let mut pair = Pair::start(&more).await;
    let told = pair.until("the instance", |event| {
        event.kind == Kind::HostStart && event.fields.detail.as_deref().is_some_and(|detail| detail.contains("us-east-1b"))
    });
    let detail: serde_json::Value = serde_json::from_str(told.await.fields.detail.as_deref().unwrap()).unwrap();
    assert_eq!(detail["region_mismatch"], "certificate eu, cloud us-east-1");
    assert_eq!((&detail["instance"]["id"], &detail["instance"]["type"]), (&"i-7".into(), &"mine".into()));
    assert_eq!(detail["metadata"]["cloud"], "ok");
    let name = format!("docker {}", socket.display());
    assert_eq!(detail["metadata"][&name[..name.len().min(80)]], "ok");
    // The config says `onprem`; of the zone it says nothing.
    pair.until("a sample after it", |event| event.kind == Kind::Sample).await;
    let host = pair.host.clone().unwrap();
    assert_eq!((host.cloud.as_deref(), host.zone.as_deref()), (Some("onprem"), Some("us-east-1b")));
    pair.stop().await;
}
