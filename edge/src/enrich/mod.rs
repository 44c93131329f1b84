//! What the kernel does not know: turns a kernel record into the events that are shipped.
//!
//! Promise: never blocks and never guesses. Unknown now is absent; what becomes known is on the next event. A record gives zero
//! or more events: a cgroup's mkdir is a container's start, or nothing.

mod call;
pub mod cgroup;
pub mod container;
mod dns;
pub mod host;
pub mod metadata;
pub mod place;
pub mod proc;
pub mod process;
pub mod runtime;

use std::collections::HashMap;
use std::net::IpAddr;

use serde_json::{Map, Value};
use weir_schema::{Event, Fields, Kind, Text};

use crate::clock::Clock;
use crate::enrich::cgroup::Change;
use crate::enrich::metadata::News;
use crate::enrich::place::Places;
use crate::enrich::process::{Actor, Processes};
use crate::probe::raw::{Cgroup, CgroupOp, Exec, Exit, Fork, Open, RawEvent, Role, Tcp, TcpOp, Udp, What, Who};

/// Everything that is known about this host's processes and places.
#[derive(Debug)]
pub struct Enricher {
    clock: Clock,
    processes: Processes,
    places: Places,
    texts: Texts,
    source: Source,
}

/// Where records come from: what polling cannot know stays absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The kernel's hooks.
    Kernel,
    /// Polls of procfs: no exit codes, no bytes.
    Polls,
}

impl Enricher {
    /// An enricher over tables that may be empty or filled.
    pub fn new(clock: Clock, processes: Processes, places: Places, source: Source) -> Self {
        Self { clock, processes, places, texts: Texts::default(), source }
    }

    /// The clock, to measure it again.
    pub fn clock(&mut self) -> &mut Clock {
        &mut self.clock
    }

    /// Wall time of a boot time.
    pub fn wall_ns(&self, boot_ns: u64) -> i64 {
        self.clock.wall_ns(boot_ns)
    }

    /// The processes.
    pub fn processes(&self) -> &Processes {
        &self.processes
    }

    /// The places.
    pub fn places(&mut self) -> &mut Places {
        &mut self.places
    }

    /// Walks the cgroups, reads all processes, and tells the containers that already run.
    pub fn load(&mut self, now_ns: u64, out: &mut Vec<Event>) {
        let running = self.places.cgroups().walk();
        self.processes.load(&mut self.places, now_ns);
        for change in running {
            self.push_container(&change, None, now_ns, true, out);
        }
    }

    /// Turns one record into events.
    pub fn enrich(&mut self, raw: &RawEvent, out: &mut Vec<Event>) {
        let now_ns = raw.boot_ns;
        match (&raw.what, &raw.who) {
            (What::Exec(exec), Some(who)) => {
                let (actor, args_truncated) = self.processes.exec(who, exec, &mut self.places, now_ns);
                // Its maker died before: the columns keep the maker, the kernel has another parent by now.
                let adopted = actor.process.ppid.is_some_and(|ppid| ppid != who.ppid).then_some(who.ppid);
                self.push(Kind::Exec, now_ns, Some(who), Some(actor), exec_fields(exec, who, args_truncated, adopted), out);
            }
            (What::Fork(fork), Some(who)) => {
                let actor = self.processes.fork(who, fork, &mut self.places, now_ns);
                self.push(Kind::Fork, now_ns, Some(who), Some(actor), fork_fields(fork), out);
            }
            (What::Exit(exit), Some(who)) => {
                let actor = self.processes.exit(who, &mut self.places, now_ns);
                let fields = exit_fields(exit, now_ns.saturating_sub(who.start_ns));
                self.push(Kind::Exit, now_ns, Some(who), Some(actor), fields, out);
            }
            (What::Open(open), Some(who)) => {
                let actor = self.processes.actor(who, &mut self.places, now_ns);
                self.push(Kind::Open, now_ns, Some(who), Some(actor), open_fields(open), out);
            }
            (What::Call(call), Some(who)) => {
                let actor = self.processes.actor(who, &mut self.places, now_ns);
                let target = call::target(call, who);
                let target_exe = target.and_then(|pid| self.processes.by_pid(pid)?.process.exe.clone());
                let fields = call::fields(call, who, target, target_exe, &mut self.texts);
                self.push(call.name.kind(), now_ns, Some(who), Some(actor), fields, out);
            }
            (What::Tcp(tcp), who) => {
                let actor = who.as_ref().map(|who| self.processes.actor(who, &mut self.places, now_ns));
                let Some((kind, fields)) = self.texts.tcp_fields(tcp, now_ns, actor.as_ref()) else { return };
                self.push(kind, now_ns, who.as_ref(), actor, fields, out);
            }
            (What::Udp(udp), Some(who)) => {
                let actor = self.processes.actor(who, &mut self.places, now_ns);
                let fields = self.texts.udp_fields(udp);
                self.push(Kind::Send, now_ns, Some(who), Some(actor), fields, out);
            }
            (What::Dns(dns), who) => {
                let actor = who.as_ref().map(|who| self.processes.actor(who, &mut self.places, now_ns));
                let (kind, fields) = dns::fields(dns, &mut self.texts);
                self.push(kind, now_ns, who.as_ref(), actor, fields, out);
            }
            (What::Cgroup(cgroup), who) => self.cgroup(cgroup, who.as_ref(), now_ns, out),
            // Without a process there is nobody to speak of.
            (What::Exec(_) | What::Fork(_) | What::Exit(_) | What::Open(_) | What::Call(_) | What::Udp(_), None) => {}
        }
    }

    /// Takes in what sources say: processes have it from now on, and what was said before it is corrected.
    pub fn learn(&mut self, news: impl IntoIterator<Item = News>, now_ns: u64, out: &mut Vec<Event>) {
        let changed = self.places.learn(news);
        if changed.is_empty() {
            return;
        }
        self.processes.relocate(&changed, &mut self.places, now_ns);
        for id in &changed {
            let Some(correction) = self.places.correct(id, now_ns) else { continue };
            let fields = Fields { detail: json(correction.detail), ..Fields::default() };
            let (time, container) = (self.clock.wall_ns(now_ns), Some(correction.container));
            out.push(Event { time, kind: Kind::ContainerUpdate, process: None, container, fields });
        }
    }

    /// Forgets what is over and notices what changed outside; called every few seconds.
    pub fn expire(&mut self, now_ns: u64) {
        self.processes.expire(now_ns);
        self.places.expire(now_ns);
    }

    /// Ends processes that `/proc` no longer has; called every minute.
    pub fn sweep(&mut self, now_ns: u64) {
        self.processes.sweep(now_ns);
    }

    fn cgroup(&mut self, cgroup: &Cgroup, who: Option<&Who>, now_ns: u64, out: &mut Vec<Event>) {
        let Some(hierarchy) = self.places.cgroup_table().mounts().hierarchy(cgroup.hierarchy) else { return };
        let path = String::from_utf8_lossy(&cgroup.path);
        let change = match cgroup.op {
            // A cut path names nobody: the id resolves on demand.
            CgroupOp::Mkdir if cgroup.truncated => None,
            CgroupOp::Mkdir => self.places.cgroups().on_mkdir(hierarchy, cgroup.id, &path),
            CgroupOp::Rmdir => self.places.cgroups().on_rmdir(hierarchy, cgroup.id, &path, now_ns),
            // The task's next event carries its new cgroup.
            CgroupOp::Attach => None,
        };
        if let Some(change) = change {
            let actor = who.map(|who| self.processes.actor(who, &mut self.places, now_ns));
            self.push_container(&change, actor, now_ns, false, out);
        }
    }

    fn push_container(&mut self, change: &Change, actor: Option<Actor>, now_ns: u64, ran: bool, out: &mut Vec<Event>) {
        let place = self.places.of_change(change, now_ns);
        let (kind, cgroup) = match change {
            Change::Started(cgroup) => (Kind::ContainerStart, cgroup),
            Change::Stopped(cgroup) => (Kind::ContainerStop, cgroup),
        };
        let mut detail = Map::new();
        detail.insert("cgroup".into(), cgroup.path.as_ref().into());
        let mut tell = |key: &str, value: Option<Value>| value.map(|value| detail.insert(key.into(), value));
        tell("runtime", cgroup.identity.runtime.map(Value::from));
        tell("pod_uid", cgroup.identity.pod_uid.as_deref().map(Value::from));
        tell("ran_at_start", ran.then_some(Value::Bool(true)));
        if let (Change::Started(_), Some(id)) = (change, &cgroup.identity.container_id) {
            self.places.runtimes().tell(id, &place.container, &mut detail);
        }
        let fields = Fields { detail: json(detail), ..Fields::default() };
        let time = self.clock.wall_ns(now_ns);
        out.push(Event { time, kind, process: actor.map(|actor| actor.process), container: Some(place.container), fields });
    }

    fn push(&self, kind: Kind, now_ns: u64, who: Option<&Who>, actor: Option<Actor>, mut fields: Fields, out: &mut Vec<Event>) {
        fields.tid = who.map(|who| who.tid).filter(|tid| *tid != 0);
        if self.source == Source::Polls {
            (fields.exit_code, fields.bytes_sent, fields.bytes_received) = (None, None, None);
        }
        let (process, container) = actor.map(|actor| (actor.process, actor.container)).unzip();
        out.push(Event { time: self.clock.wall_ns(now_ns), kind, process, container, fields });
    }
}

fn exec_fields(exec: &Exec, who: &Who, args_truncated: bool, adopted: Option<u32>) -> Fields {
    let path = if exec.exe.is_empty() { &exec.filename } else { &exec.exe };
    let mut detail = Map::new();
    if !exec.filename.is_empty() && exec.filename != exec.exe {
        detail.insert("filename".into(), lossy(&exec.filename).as_ref().into());
    }
    let truths = [
        ("args_truncated", args_truncated),
        ("exe_truncated", exec.exe_truncated),
        ("cwd_truncated", exec.cwd_truncated),
        ("exe_unlinked", exec.exe_unlinked),
    ];
    detail.extend(truths.iter().filter(|(_, holds)| *holds).map(|(name, _)| ((*name).into(), Value::Bool(true))));
    if let Some(ppid) = adopted {
        detail.insert("reparented_to".into(), ppid.into());
    }
    if exec.euid != who.uid {
        detail.insert("euid".into(), exec.euid.into());
    }
    if who.ns_pid != 0 && who.ns_pid != who.pid {
        detail.insert("ns_pid".into(), who.ns_pid.into());
    }
    Fields { path: (!path.is_empty()).then(|| lossy(path)), result: Some(0), detail: json(detail), ..Fields::default() }
}

fn fork_fields(fork: &Fork) -> Fields {
    Fields { target_pid: Some(fork.child_pid), result: Some(0), ..Fields::default() }
}

fn exit_fields(exit: &Exit, lived_ns: u64) -> Fields {
    let mut detail = Map::new();
    if exit.core_dumped {
        detail.insert("core_dumped".into(), true.into());
    }
    Fields {
        exit_code: Some(i32::from(exit.code)),
        signal: Some(i32::from(exit.signal)).filter(|signal| *signal != 0),
        duration_ms: Some(lived_ns / NS_PER_MS),
        detail: json(detail),
        ..Fields::default()
    }
}

fn open_fields(open: &Open) -> Fields {
    let mut detail = Map::new();
    if open.truncated {
        detail.insert("path_truncated".into(), true.into());
    }
    Fields {
        path: Some(lossy(&open.path)),
        flags: Some(open.flags),
        mode: Some(open.mode & PERMISSION_BITS),
        result: Some(0),
        detail: json(detail),
        ..Fields::default()
    }
}

/// Texts that repeat: one copy of each.
#[derive(Debug)]
struct Texts {
    addresses: HashMap<IpAddr, Text>,
    tcp: Text,
    udp: Text,
    out: Text,
    inward: Text,
}

impl Default for Texts {
    fn default() -> Self {
        Self { addresses: HashMap::new(), tcp: "tcp".into(), udp: "udp".into(), out: "out".into(), inward: "in".into() }
    }
}

impl Texts {
    /// Kind and columns of a TCP record: `src_*` is the initiator at both ends.
    fn tcp_fields(&mut self, tcp: &Tcp, now_ns: u64, actor: Option<&Actor>) -> Option<(Kind, Fields)> {
        let kind = match (tcp.op, tcp.role) {
            (TcpOp::Connect | TcpOp::Fail, _) | (TcpOp::Seen, Some(Role::Client)) => Kind::Connect,
            (TcpOp::Accept, _) | (TcpOp::Seen, Some(Role::Server)) => Kind::Accept,
            (TcpOp::Listen, _) | (TcpOp::Seen, Some(Role::Listener)) => Kind::Listen,
            (TcpOp::Close, _) => Kind::Close,
            // Older than the agent and nobody can say who opened it: told when it closes, never guessed.
            (TcpOp::Seen, None) => return None,
        };
        let role = tcp.role.or(match tcp.op {
            TcpOp::Connect | TcpOp::Fail => Some(Role::Client),
            TcpOp::Accept => Some(Role::Server),
            TcpOp::Listen => Some(Role::Listener),
            TcpOp::Close | TcpOp::Seen => None,
        });
        let (src, dst, direction) = match role {
            Some(Role::Client) => (Some(tcp.local), tcp.peer, Some(&self.out)),
            Some(Role::Server) => (Some(tcp.peer), tcp.local, Some(&self.inward)),
            Some(Role::Listener) => (None, tcp.local, Some(&self.inward)),
            None => (Some(tcp.local), tcp.peer, None),
        };
        let mut fields = Fields {
            direction: direction.cloned(),
            proto: Some(self.tcp.clone()),
            result: Some(tcp_result(tcp)),
            socket_id: tcp.cookie,
            isn_local: tcp.isn_local,
            isn_peer: tcp.isn_peer,
            detail: tcp_detail(tcp, actor),
            ..Fields::default()
        };
        (fields.src_ip, fields.src_port) = src.map(|(ip, port)| (self.address(ip), port)).unzip();
        (fields.dst_ip, fields.dst_port) = (Some(self.address(dst.0)), Some(dst.1));
        if kind == Kind::Close {
            (fields.bytes_sent, fields.bytes_received) = (Some(tcp.bytes_sent), Some(tcp.bytes_received));
        }
        if kind == Kind::Close || tcp.op == TcpOp::Fail {
            fields.duration_ms = tcp.opened_ns.map(|opened_ns| now_ns.saturating_sub(opened_ns) / NS_PER_MS);
        }
        Some((kind, fields))
    }

    /// Columns of a UDP socket that speaks to a peer: this end is the source, in what it sends and in what it is answered.
    fn datagram(&mut self, local: (IpAddr, u16), peer: (IpAddr, u16), cookie: Option<u64>) -> Fields {
        Fields {
            direction: Some(self.out.clone()),
            proto: Some(self.udp.clone()),
            src_ip: Some(self.address(local.0)),
            src_port: Some(local.1),
            dst_ip: Some(self.address(peer.0)),
            dst_port: Some(peer.1),
            socket_id: cookie,
            ..Fields::default()
        }
    }

    fn udp_fields(&mut self, udp: &Udp) -> Fields {
        let mut detail = Map::new();
        if udp.datagrams > 1 {
            detail.insert("datagrams".into(), udp.datagrams.into());
        }
        let fields = self.datagram(udp.local, udp.peer, udp.cookie);
        Fields { result: Some(0), bytes_sent: Some(udp.bytes), detail: json(detail), ..fields }
    }

    fn address(&mut self, ip: IpAddr) -> Text {
        if self.addresses.len() >= ADDRESSES_MAX {
            self.addresses.clear();
        }
        self.addresses.entry(ip).or_insert_with(|| ip.to_string().into()).clone()
    }
}

/// The errno; an attempt given up before its answer has none from the kernel and reads as cancelled.
fn tcp_result(tcp: &Tcp) -> i32 {
    let errno = tcp.errno.and_then(|errno| i32::try_from(errno).ok());
    errno.unwrap_or(if tcp.op == TcpOp::Fail { libc::ECANCELED } else { 0 })
}

fn tcp_detail(tcp: &Tcp, actor: Option<&Actor>) -> Option<Text> {
    let mut detail = Map::new();
    if tcp.op == TcpOp::Seen {
        detail.insert("seen_at_start".into(), true.into());
    }
    if tcp.unaccepted {
        detail.insert("unaccepted".into(), true.into());
    }
    if tcp.retransmits > 0 {
        detail.insert("retransmits".into(), tcp.retransmits.into());
        detail.insert("srtt_us".into(), tcp.srtt_us.into());
    }
    // The column `net_ns` is the process's; a socket handed to another namespace says so.
    let process_ns = actor.and_then(|actor| actor.process.net_ns);
    if tcp.net_ns != 0 && process_ns != Some(tcp.net_ns) {
        detail.insert("socket_net_ns".into(), tcp.net_ns.into());
    }
    json(detail)
}

fn json(detail: Map<String, Value>) -> Option<Text> {
    (!detail.is_empty()).then(|| Value::Object(detail).to_string().into())
}

fn lossy(bytes: &[u8]) -> Text {
    String::from_utf8_lossy(bytes).into()
}

const NS_PER_MS: u64 = 1_000_000;
/// The permission part of a mode.
const PERMISSION_BITS: u32 = 0o7777;
/// Address texts held.
const ADDRESSES_MAX: usize = 16_384;
