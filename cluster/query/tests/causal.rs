//! An intrusion over three hosts, told out of order, among unrelated work: its blast radius, its path, its incident; over workers, a
//! record of files and tail, and the SQL port.

#![allow(clippy::unwrap_used)]

mod past;
#[path = "../../../dataflow/tests/world/mod.rs"]
mod world;

use std::sync::Arc;

use past::{Agent, Chain, Node, event, record, tick_of};
use weir_schema::{Container, Event, Fields, Kind, Process};

const WEB: &str = "cafe01";
const OTHER: &str = "beef02";
const RULES: &str = "
- rule: Shell of a web server
  desc: A web server started a shell
  condition: evt.type in (execve, execveat) and evt.failed=false and proc.name=sh and proc.pname=nginx
  output: shell %proc.cmdline
  priority: WARNING
- rule: Dropped file runs
  desc: A program runs from a folder that all may write
  condition: evt.type in (execve, execveat) and evt.failed=false and proc.exepath startswith /tmp/
  output: runs %proc.cmdline
  priority: CRITICAL
";

/// One host and the clock of its events.
struct Scene {
    agent: Agent,
    behind_ms: u64,
    container: Option<Arc<Container>>,
    events: Vec<Event>,
}

impl Scene {
    fn new(region: &str, host: &str, boot: u8, behind_ms: u64) -> Self {
        Self { agent: Agent::new("acme", region, host, boot), behind_ms, container: None, events: Vec::new() }
    }

    fn within(&mut self, container_id: Option<&str>) {
        let container = |id: &str| Arc::new(Container { container_id: Some(id.into()), ..Container::default() });
        self.container = container_id.map(container);
    }

    fn tell(&mut self, ms: u64, kind: Kind, process: &Arc<Process>, fields: Fields) {
        let at = tick_of(10) + ms - self.behind_ms;
        self.events.push(Event { fields, ..event(kind, at, Some(process), self.container.as_ref()) });
    }

    fn exec(&mut self, ms: u64, process: &Arc<Process>) {
        let path = process.exe.clone();
        self.tell(ms, Kind::Exec, process, Fields { result: Some(0), path, ..Fields::default() });
    }

    fn write(&mut self, ms: u64, process: &Arc<Process>, path: &str) {
        let fields = Fields { result: Some(3), path: Some(path.into()), flags: Some(0o101), ..Fields::default() };
        self.tell(ms, Kind::Open, process, fields);
    }

    fn socket(&mut self, ms: u64, kind: Kind, process: &Arc<Process>, socket: Socket) {
        let Socket { cookie, src, dst, isns } = socket;
        let (isn_local, isn_peer) = if kind == Kind::Connect { isns } else { (isns.1, isns.0) };
        let fields = Fields {
            result: Some(0),
            proto: Some("tcp".into()),
            src_ip: Some(src.0.into()),
            src_port: Some(src.1),
            dst_ip: Some(dst.0.into()),
            dst_port: Some(dst.1),
            socket_id: Some(cookie),
            isn_local: Some(isn_local),
            isn_peer: Some(isn_peer),
            ..Fields::default()
        };
        self.tell(ms, kind, process, fields);
    }

    fn id(&self, pid: u32) -> String {
        self.agent.process_id(pid, 5)
    }
}

#[derive(Clone, Copy)]
struct Socket {
    cookie: u64,
    src: (&'static str, u16),
    dst: (&'static str, u16),
    isns: (u32, u32),
}

fn process(pid: u32, parent: (u32, &str), exe: &str) -> Arc<Process> {
    let name = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    Arc::new(Process {
        pid,
        start_ns: 5,
        ppid: Some(parent.0),
        parent_start_ns: Some(5),
        exe: Some(exe.into()),
        comm: Some(name(exe).into()),
        cmdline: Some(format!("{} -x", name(exe)).into()),
        parent_exe: Some(parent.1.into()),
        ..Process::default()
    })
}

const FROM_OUTSIDE: Socket = Socket { cookie: 11, src: ("203.0.113.5", 4444), dst: ("10.0.0.1", 80), isns: (1, 2) };
const FIRST: Socket = Socket { cookie: 12, src: ("10.0.0.1", 5001), dst: ("10.0.0.2", 22), isns: (100, 200) };
const SECOND: Socket = Socket { cookie: 13, src: ("10.0.0.2", 5002), dst: ("10.0.0.3", 22), isns: (300, 400) };
const OUT: Socket = Socket { cookie: 14, src: ("10.0.0.3", 5003), dst: ("198.51.100.9", 443), isns: (500, 600) };

/// Web shell, download, ssh, ssh, drop and execute, connection to the outside; the second host's clock is 800 ms behind.
fn intrusion() -> (Scene, Scene, Scene) {
    let (mut web, mut bastion, mut db) =
        (Scene::new("eu", "web-1", 1, 0), Scene::new("us", "bastion-2", 2, 800), Scene::new("ap", "db-3", 4, 0));
    let nginx = process(7, (1, "/sbin/init"), "/usr/sbin/nginx");
    let shell = process(70, (7, "/usr/sbin/nginx"), "/bin/sh");
    let curl = process(71, (70, "/bin/sh"), "/usr/bin/curl");
    let kit = process(72, (70, "/bin/sh"), "/var/www/kit");
    web.within(Some(WEB));
    web.exec(0, &nginx);
    web.socket(100, Kind::Accept, &nginx, FROM_OUTSIDE);
    web.exec(200, &shell);
    web.exec(300, &curl);
    web.write(350, &curl, "/var/www/kit");
    web.tell(380, Kind::Fork, &shell, Fields { target_pid: Some(72), result: Some(72), ..Fields::default() });
    web.exec(400, &kit);
    web.socket(500, Kind::Connect, &kit, FIRST);
    // Before the shell: not its doing.
    let early = process(69, (7, "/usr/sbin/nginx"), "/usr/bin/logrotate");
    web.exec(150, &early);
    // The same in another container, and on the bare host.
    for (container, pid) in [(Some(OTHER), 170), (None, 270)] {
        web.within(container);
        let shell = process(pid, (1, "/sbin/init"), "/bin/sh");
        let (curl, kit) =
            (process(pid + 1, (pid, "/bin/sh"), "/usr/bin/curl"), process(pid + 2, (pid, "/bin/sh"), "/var/www/kit"));
        web.exec(210, &shell);
        web.exec(310, &curl);
        web.write(360, &curl, "/var/www/kit");
        web.exec(410, &kit);
    }
    for (scene, at, accepted, opened, pid) in [(&mut bastion, 510, FIRST, SECOND, 900), (&mut db, 710, SECOND, OUT, 910)] {
        let sshd = process(pid, (1, "/sbin/init"), "/usr/sbin/sshd");
        let session = process(pid + 1, (pid, "/usr/sbin/sshd"), "/usr/sbin/sshd");
        let bash = process(pid + 2, (pid + 1, "/usr/sbin/sshd"), "/bin/bash");
        scene.exec(20, &sshd);
        // A session of somebody else before it, one after it has begun.
        let before = process(pid + 10, (pid, "/usr/sbin/sshd"), "/usr/sbin/sshd");
        scene.exec(40, &before);
        scene.exec(60, &process(pid + 11, (pid + 10, "/usr/sbin/sshd"), "/usr/bin/vim"));
        scene.socket(at, Kind::Accept, &sshd, accepted);
        scene.exec(at + 20, &session);
        scene.exec(at + 40, &bash);
        let last = process(pid + 3, (pid + 2, "/bin/bash"), if pid == 900 { "/usr/bin/ssh" } else { "/tmp/.x" });
        if pid == 910 {
            scene.write(at + 60, &bash, "/tmp/.x");
        }
        scene.exec(at + 80, &last);
        scene.socket(at + 100, Kind::Connect, &last, opened);
    }
    // Unrelated, and yet an alert.
    web.within(Some(OTHER));
    web.exec(900, &process(190, (1, "/sbin/init"), "/tmp/build"));
    (web, bastion, db)
}

/// What happened last is told first.
fn chain(scenes: [&mut Scene; 3], ticks: usize) -> Chain {
    let mut chain: Chain = (0..ticks).map(|place| (tick_of(place), vec![])).collect();
    for (place, scene) in [19, 16, 13].into_iter().zip(scenes) {
        scene.events.reverse();
        for (part, events) in scene.events.chunks(7).enumerate() {
            chain[place + part].1.extend(scene.agent.frames(events, tick_of(place + part)));
        }
    }
    chain
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intrusion_over_three_hosts_is_one_incident_with_every_hop() {
    let (mut web, mut bastion, mut db) = intrusion();
    let chain = chain([&mut web, &mut bastion, &mut db], 30);
    let node = Node::start_with("intrusion", &chain, Some(record(&chain, &[14, 17]).await), Some(RULES)).await;
    let shell = web.id(70);

    let told = node.lines(&format!("select hop, kind, host, exe, entity from blast_radius('{shell}')")).await;
    let told: Vec<&str> = told.iter().map(|line| line.rsplit_once('|').unwrap().0).collect();
    let expected = [
        "0|origin|web-1|/bin/sh",
        "3|connection|bastion-2|/usr/sbin/sshd",
        "4|exec|bastion-2|/usr/sbin/sshd",
        "5|exec|bastion-2|/bin/bash",
        "6|exec|bastion-2|/usr/bin/ssh",
        "1|exec|web-1|/usr/bin/curl",
        "1|exec|web-1|/var/www/kit",
        "7|connection|db-3|/usr/sbin/sshd",
        "8|exec|db-3|/usr/sbin/sshd",
        "9|exec|db-3|/bin/bash",
        "10|exec|db-3|/tmp/.x",
        "11|connection|NULL|NULL",
    ];
    // The second host's clock is behind: its hops have earlier times. The kit was made by the shell, so it is two hops to the host.
    let expected: Vec<String> = expected
        .iter()
        .map(|line| {
            let (hop, rest) = line.split_once('|').unwrap();
            let hop: i64 = hop.parse().unwrap();
            format!("{}|{rest}", if hop > 2 { hop - 1 } else { hop })
        })
        .collect();
    let (mut sorted, mut wanted) = (told.clone(), expected.iter().map(String::as_str).collect::<Vec<_>>());
    sorted.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(sorted, wanted);
    let out = format!("select from_entity, entity from blast_radius('{shell}') where host is null");
    assert_eq!(node.lines(&out).await, [format!("{}|198.51.100.9:443", db.id(913))]);
    // Ids of connections are those of `connections`.
    let joined = format!(
        "select c.src_host, c.dst_host, c.seen from blast_radius('{shell}') b join connections c on c.connection_id = b.connection_id \
         where b.host is not null order by 1"
    );
    assert_eq!(node.lines(&joined).await, ["bastion-2|db-3|both", "web-1|bastion-2|both"]);

    // Beginning at the download, the file leads to who executed it.
    let by_file = format!("select kind, path, exe from blast_radius('{}') order by hop limit 2", web.id(71));
    assert_eq!(node.lines(&by_file).await, ["origin|NULL|/usr/bin/curl", "file|/var/www/kit|/var/www/kit"]);
    // A container's processes, and no other container's; a host's.
    let of =
        |entity: &str| format!("select kind, count(*) from blast_radius('{entity}') where host = 'web-1' group by 1 order by 1");
    // A child of theirs is reached by its fork, before its own first event.
    assert_eq!(node.lines(&of(WEB)).await, ["container|4", "exec|1"]);
    assert_eq!(node.lines(&of(OTHER)).await, ["container|4"]);
    assert_eq!(node.lines(&of("web-1")).await, ["exec|1", "host|11"]);
    let reached = format!("select count(distinct host) from blast_radius('{WEB}')");
    assert_eq!(node.lines(&reached).await, ["3"]);
    assert_eq!(node.lines(&format!("select count(distinct host) from blast_radius('{OTHER}')")).await, ["1"]);
    // What it did after a time.
    let begun = node.lines(&format!("select at + interval '150 milliseconds' from blast_radius('{shell}') where hop = 0")).await;
    let later = format!("select count(*) from blast_radius('{shell}', '{}') where host = 'web-1'", begun[0]);
    assert_eq!(node.lines(&later).await, ["2"], "{begun:?}");

    let alerts = node.lines("select rule, host from alerts order by rule, host").await;
    assert_eq!(alerts, ["Dropped file runs|db-3", "Dropped file runs|web-1", "Shell of a web server|web-1"]);
    let alert = node.lines("select alert_id from alerts where host = 'db-3'").await.remove(0);
    let path = node.lines(&format!("select hop, kind, from_entity, host, exe from attack_path('{alert}')")).await;
    let outside = path.iter().find(|line| line.contains("203.0.113.5:4444")).unwrap_or_else(|| panic!("{path:#?}"));
    assert!(outside.contains("|connection|") && outside.ends_with("|web-1|/usr/sbin/nginx"), "{path:#?}");
    for hop in ["-1|exec|", "0|alert|", "-4|connection|"] {
        assert!(path.iter().any(|line| line.starts_with(hop)), "{hop}: {path:#?}");
    }
    let sane = |line: &String| !line.contains("vim") && !line.contains("logrotate");
    assert!(path.iter().all(sane), "{path:#?}");
    let from_alert = node.lines("select alert_id from alerts where rule = 'Shell of a web server'").await.remove(0);
    let same = node.lines(&format!("select hop, kind, entity from blast_radius('{from_alert}')")).await;
    assert_eq!(same, node.lines(&format!("select hop, kind, entity from blast_radius('{shell}')")).await);

    let incidents = "select alerts, state, severity, rules, hosts, regions, containers from incidents order by alerts";
    let told = node.lines(incidents).await;
    let expected = [
        "1|open|critical|[\"Dropped file runs\"]|[\"web-1\"]|[\"eu\"]|[\"beef02\"]",
        "2|updated|critical|[\"Dropped file runs\",\"Shell of a web server\"]|[\"bastion-2\",\"db-3\",\"web-1\"]|[\"ap\",\"eu\",\"us\"]|[\"cafe01\"]",
    ];
    assert_eq!(told, expected);
    let hops = node.lines(&format!("select hops from incidents where incident_id = '{from_alert}'")).await.remove(0);
    let hops: serde_json::Value = serde_json::from_str(&hops).unwrap();
    let kinds: Vec<String> = hops.as_array().unwrap().iter().map(|hop| format!("{} {}", hop["kind"], hop["host"])).collect();
    let count = |part: &str| kinds.iter().filter(|kind| kind.contains(part)).count();
    assert_eq!((count("connection"), count("alert"), kinds.len()), (2, 2, 11), "{kinds:#?}");

    check_refusals(&node, &alert).await;
}

async fn check_refusals(node: &Node, alert: &str) {
    for (wrong, expected) in [
        ("select * from blast_radius(7)".to_owned(), "42601 blast_radius takes an alert_id, process_id, container_id or host"),
        (
            "select * from blast_radius('a', 'soon')".to_owned(),
            "22P02 blast_radius cannot read \"soon\" as an interval or a time",
        ),
        ("select * from blast_radius('a', '-1 hour')".to_owned(), "22P02"),
        ("select * from attack_path('nothing')".to_owned(), "22023 there is no alert \"nothing\" at this tick"),
        (format!("select * from attack_path('{alert}', '1 hour')"), "42601 attack_path takes one alert_id"),
        ("select * from blast_radius".to_owned(), "42"),
    ] {
        let told = node.lines(&wrong).await;
        assert!(told.first().is_some_and(|told| told.starts_with(expected)), "{wrong}: {told:?}");
    }
    assert!(node.lines("select * from blast_radius('nothing')").await.is_empty());
    // What nothing is known of, and what was left out, is said.
    let (status, body) = node.http("/v1/query?sql=select%20*%20from%20blast_radius(%27nothing%27)").await;
    assert!(status == 200 && body.contains("nothing is known of"), "{body}");
    let (_, body) = node.http("/v1/query?sql=select%20*%20from%20blast_radius(%27web-1%27,%20%271%20year%27)").await;
    assert!(body.contains("older than 90 days"), "{body}");
    // The record tells of an old tick; the alerts of then are gone.
    assert!(node.lines(&format!("select * from blast_radius('{WEB}') as of {}", tick_of(14))).await.is_empty());
    let then = node.lines(&format!("select count(*) from blast_radius('{WEB}') as of {}", tick_of(29))).await;
    assert_eq!(then, node.lines(&format!("select count(*) from blast_radius('{WEB}')")).await);
    let plan = node.lines(&format!("explain select * from attack_path('{alert}')")).await.join(" ");
    assert!(plan.contains("StreamingTableExec"), "{plan}");
    let (status, body) = node.http("/v1/views/incidents").await;
    assert!(status == 200 && body.contains("\"relation\":\"incidents\""), "{status} {body}");
    assert!(node.lines("show tables").await.contains(&"incidents|view".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_record_the_config_key_is_named() {
    let (mut web, mut bastion, mut db) = intrusion();
    let node = Node::start("causal-none", &chain([&mut web, &mut bastion, &mut db], 30), None).await;
    for question in ["select * from blast_radius('x')", "select * from attack_path('x')", "select * from incidents"] {
        let told = node.lines(question).await;
        assert!(told[0].starts_with("42P01") && told[0].contains("archive.enabled"), "{question}: {told:?}");
    }
}

/// `cargo test --workspace --test causal -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints times, checks sizes only"]
async fn a_question_over_100_000_edges() {
    let mut agent = Agent::new("acme", "eu", "web-1", 1);
    // 300 trees of 333 processes: ten children each.
    let all: Vec<Event> = (0..100_000_u32)
        .map(|number| {
            let (tree, place) = (number / 333, number % 333);
            let parent = if place == 0 { 1 } else { 1_000 + tree * 333 + (place - 1) / 10 };
            let started = process(1_000 + number, (parent, "/bin/sh"), "/bin/sh");
            event(Kind::Exec, tick_of(1) + u64::from(place), Some(&started), None)
        })
        .collect();
    let chain: Chain = all
        .chunks(5_000)
        .zip(1..)
        .map(|(part, place)| (tick_of(place), part.chunks(900).flat_map(|part| agent.frames(part, tick_of(place))).collect()))
        .collect();
    let last = chain.len() - 1;
    let node = Node::start("edges", &chain, Some(record(&chain, &[last]).await)).await;
    for (what, question, expected) in [
        ("333 of 100,000", format!("select count(*) from blast_radius('{}')", agent.process_id(1_000, 5)), "333"),
        ("10,000 of 100,000", "select count(*) from blast_radius('web-1')".to_owned(), "10000"),
    ] {
        for _ in 0..3 {
            let since = std::time::Instant::now();
            let told = node.lines(&question).await;
            println!("{what}: {:?}", since.elapsed());
            assert_eq!(told, [expected]);
        }
    }
}
