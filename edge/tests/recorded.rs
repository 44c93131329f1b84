//! A recorded sequence of kernel records becomes exactly these events: no kernel, no procfs, no clock.
//!
//! The story: a container of a pod starts; its shell runs a program that connects to a service of the same host and sends
//! something; both ends are seen; the shell ends; the container stops; the program's close comes late.

#![allow(clippy::unwrap_used, reason = "a test: helpers may fail like the cases that call them")]

use std::net::IpAddr;

use weir_config::AppRule;
use weir_edge::clock::Clock;
use weir_edge::enrich::cgroup::Mounts;
use weir_edge::enrich::place::Places;
use weir_edge::enrich::proc::Proc;
use weir_edge::enrich::process::Processes;
use weir_edge::enrich::runtime::Runtimes;
use weir_edge::enrich::{Enricher, Source};
use weir_edge::probe::RawEvent;
use weir_edge::probe::raw::{Cgroup, CgroupOp, Exec, Exit, Fork, Open, Role, Tcp, TcpOp, What, Who};
use weir_schema::{Event, Host, JsonEvent, write_line};

const SECOND: u64 = 1_000_000_000;
const WALL: i64 = 1_700_000_000_000_000_000;
const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const POD: &str = "2c48913c-b29f-11e7-9350-020968147796";

fn enricher(source: Source) -> Enricher {
    let rule = AppRule {
        label: None,
        image: None,
        unit: None,
        cgroup: Some("/kubepods/*".parse().unwrap()),
        exe: None,
        app: "shop".into(),
    };
    let places = Places::new(Mounts::default(), vec![rule], Runtimes::new("/nowhere"));
    Enricher::new(Clock::new(0, WALL), Processes::new(Proc::new("/nowhere")), places, source)
}

fn who(pid: u32, started: u64, cgroup_v2: u64) -> Who {
    Who {
        pid,
        tid: pid,
        start_ns: started * SECOND + 1_234_567,
        uid: 4_000_000_001,
        cgroup_v2,
        net_ns: 5,
        comm: "task".into(),
        ..Who::default()
    }
}

fn child_of(parent: &Who, pid: u32, started: u64, cgroup_v2: u64) -> Who {
    Who { ppid: parent.pid, parent_start_ns: parent.start_ns, ..who(pid, started, cgroup_v2) }
}

fn exec(exe: &str, args: &[&str]) -> What {
    What::Exec(Box::new(Exec {
        filename: exe.into(),
        exe: exe.into(),
        cwd: b"/".to_vec(),
        args: args.iter().map(|arg| arg.as_bytes().to_vec()).collect(),
        euid: 4_000_000_001,
        ..Exec::default()
    }))
}

fn tcp(op: TcpOp, role: Role) -> Tcp {
    let (client, server): ((IpAddr, u16), (IpAddr, u16)) =
        (("10.0.0.5".parse().unwrap(), 40_000), ("10.0.0.5".parse().unwrap(), 80));
    let (local, peer) = if role == Role::Client { (client, server) } else { (server, client) };
    let (isn_local, isn_peer) = if role == Role::Client { (Some(11), Some(22)) } else { (Some(22), Some(11)) };
    Tcp {
        op,
        role: Some(role),
        local,
        peer,
        cookie: Some(if role == Role::Client { 100 } else { 200 }),
        net_ns: 5,
        isn_local,
        isn_peer,
        opened_ns: Some(103 * SECOND),
        bytes_sent: 7,
        bytes_received: 9,
        errno: None,
        srtt_us: 0,
        retransmits: 0,
        unaccepted: false,
        inode: None,
    }
}

fn cgroup(op: CgroupOp, id: u64, path: &str) -> What {
    What::Cgroup(Cgroup { op, id, hierarchy: 0, path: path.as_bytes().to_vec(), truncated: false, task: None })
}

fn recording() -> Vec<RawEvent> {
    let path = format!("/kubepods/burstable/pod{POD}/{ID}");
    let at = |second: u64, who: Option<&Who>, what: What| RawEvent { boot_ns: second * SECOND, who: who.cloned(), what };
    let runtime = who(10, 1, 1);
    let server = who(11, 2, 1);
    let shell_outside = child_of(&runtime, 20, 101, 1);
    let shell = child_of(&runtime, 20, 101, 40);
    let program = child_of(&shell, 21, 102, 40);
    let fork = |pid, started: u64, ppid| {
        What::Fork(Fork { child_pid: pid, child_start_ns: started * SECOND + 1_234_567, child_ppid: ppid })
    };
    let network = |op, role| What::Tcp(Box::new(tcp(op, role)));
    vec![
        at(90, Some(&runtime), exec("/usr/bin/runtime", &["runtime"])),
        at(91, Some(&server), exec("/usr/sbin/server", &["server", "--port", "80"])),
        at(100, Some(&runtime), cgroup(CgroupOp::Mkdir, 40, &path)),
        at(101, Some(&runtime), fork(20, 101, 10)),
        at(101, Some(&shell_outside), cgroup(CgroupOp::Attach, 40, &path)),
        at(101, Some(&shell), exec("/bin/sh", &["sh", "-c", "fetch 'a b'"])),
        at(102, Some(&shell), fork(21, 102, 20)),
        at(102, Some(&program), exec("/bin/fetch", &["fetch", "a b", ""])),
        at(102, Some(&program), What::Open(Open { path: b"/etc/passwd".to_vec(), flags: 0, mode: 0o100_644, ..Open::default() })),
        at(103, Some(&program), network(TcpOp::Connect, Role::Client)),
        at(103, Some(&server), network(TcpOp::Accept, Role::Server)),
        at(104, Some(&program), What::Exit(Exit { code: 3, ..Exit::default() })),
        at(104, Some(&shell), What::Exit(Exit { signal: 9, core_dumped: true, ..Exit::default() })),
        at(105, Some(&runtime), cgroup(CgroupOp::Rmdir, 40, &path)),
        at(106, Some(&program), network(TcpOp::Close, Role::Client)),
        at(106, None, network(TcpOp::Close, Role::Server)),
    ]
}

/// The columns that each line below names, read back from the events' JSON.
fn told(events: Vec<Event>) -> Vec<serde_json::Value> {
    let host = Host { host: "h".into(), ..Host::default() };
    let line = |event| {
        let mut text = String::new();
        write_line(&mut text, &JsonEvent { host: host.clone(), tenant: None, region: None, agent: None, event });
        serde_json::from_str(&text).unwrap()
    };
    events.into_iter().map(line).collect()
}

/// One line per event, in order: kind, and what must be there; `-` is absent.
const EXPECTED: &str = r#"
exec            | exe=/usr/bin/runtime container_id=- app=unassigned parent_exe=- result=0 path=/usr/bin/runtime
exec            | exe=/usr/sbin/server container_id=- app=unassigned cmdline=server_--port_80
container_start | container_id=ID app=shop exe=/usr/bin/runtime cgroup=-
fork            | exe=/usr/bin/runtime target_pid=20 container_id=-
exec            | exe=/bin/sh container_id=ID app=shop pid=20 ppid=10 parent_exe=/usr/bin/runtime ancestors=["/usr/bin/runtime"] args=["sh","-c","fetch_'a_b'"] cgroup=PATH
fork            | exe=/bin/sh target_pid=21 container_id=ID
exec            | exe=/bin/fetch container_id=ID pid=21 ppid=20 ancestors=["/bin/sh","/usr/bin/runtime"] args=["fetch","a_b",""] parent_cmdline=sh_-c_fetch_'a_b' cwd=/ uid=4000000001 user_name=-
open            | exe=/bin/fetch path=/etc/passwd flags=0 mode=420 container_id=ID
connect         | exe=/bin/fetch direction=out src_ip=10.0.0.5 src_port=40000 dst_ip=10.0.0.5 dst_port=80 proto=tcp socket_id=100 isn_local=11 isn_peer=22 result=0 bytes_sent=- container_id=ID detail=-
accept          | exe=/usr/sbin/server direction=in src_ip=10.0.0.5 src_port=40000 dst_ip=10.0.0.5 dst_port=80 socket_id=200 isn_local=22 isn_peer=11 container_id=-
exit            | exe=/bin/fetch exit_code=3 signal=- duration_ms=1998 container_id=ID
exit            | exe=/bin/sh exit_code=0 signal=9 detail={"core_dumped":true} container_id=ID
container_stop  | container_id=ID app=shop
close           | exe=/bin/fetch direction=out src_port=40000 bytes_sent=7 bytes_received=9 duration_ms=3000 container_id=ID cgroup=PATH
close           | exe=- pid=- direction=in src_port=40000 dst_port=80 bytes_sent=7 detail={"socket_net_ns":5}
"#;

fn check(events: &[serde_json::Value], expected: &str) {
    let rows: Vec<&str> = expected.lines().filter(|line| !line.is_empty()).collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    let wanted: Vec<&str> = rows.iter().map(|row| row.split('|').next().unwrap().trim()).collect();
    assert_eq!(kinds, wanted);
    let path = format!("/kubepods/burstable/pod{POD}/{ID}");
    for (event, row) in events.iter().zip(rows) {
        for pair in row.split('|').nth(1).unwrap().split_whitespace() {
            let (column, value) = pair.split_once('=').unwrap();
            let value = value.replace('_', if column.ends_with("line") || column == "args" { " " } else { "_" });
            let value = value.replace("PATH", &path).replace("ID", ID);
            let found = match &event[column] {
                serde_json::Value::Null => "-".to_owned(),
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            assert_eq!(found, value, "{column} of {row}\n{event:#}");
        }
    }
}

#[test]
fn a_recording_becomes_exactly_these_events() {
    let mut enricher = enricher(Source::Kernel);
    let mut events = Vec::new();
    let recording = recording();
    for raw in &recording {
        enricher.enrich(raw, &mut events);
    }
    // The attach is known and no event.
    assert_eq!(events.len(), recording.len() - 1);
    assert_eq!(events[0].time, WALL + 90_000_000_000);
    check(&told(events), EXPECTED);
}

#[test]
fn what_polls_cannot_know_stays_absent() {
    let mut enricher = enricher(Source::Polls);
    let mut events = Vec::new();
    for raw in &recording() {
        enricher.enrich(raw, &mut events);
    }
    for event in &events {
        assert_eq!((event.fields.exit_code, event.fields.bytes_sent, event.fields.bytes_received), (None, None, None));
    }
}

#[test]
fn failures_carry_their_reason() {
    let program = who(9, 1, 1);
    let table = [
        (TcpOp::Fail, Role::Client, Some(111), "connect", 111),
        (TcpOp::Fail, Role::Client, None, "connect", 125),
        (TcpOp::Connect, Role::Client, None, "connect", 0),
        (TcpOp::Close, Role::Server, Some(104), "close", 104),
        (TcpOp::Seen, Role::Server, None, "accept", 0),
        (TcpOp::Listen, Role::Listener, None, "listen", 0),
    ];
    for (op, role, errno, kind, result) in table {
        let mut events = Vec::new();
        let tcp = Tcp { errno, ..tcp(op, role) };
        let raw = RawEvent { boot_ns: 200 * SECOND, who: Some(program.clone()), what: What::Tcp(Box::new(tcp)) };
        enricher(Source::Kernel).enrich(&raw, &mut events);
        assert_eq!((events[0].kind.as_str(), events[0].fields.result), (kind, Some(result)), "{op:?} {role:?}");
        assert_eq!(events[0].fields.src_ip.is_some(), role != Role::Listener);
    }
    let mut events = Vec::new();
    let unknown = Tcp { role: None, ..tcp(TcpOp::Seen, Role::Client) };
    let raw = RawEvent { boot_ns: 0, who: None, what: What::Tcp(Box::new(unknown)) };
    enricher(Source::Kernel).enrich(&raw, &mut events);
    assert!(events.is_empty());
}
