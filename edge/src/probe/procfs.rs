//! The fallback collector: polls procfs where eBPF cannot work. Best effort, and it says what it cannot see.
//!
//! It makes the same `RawEvent`s as the kernel half, from the differences between two polls: new and gone processes, and rows of
//! `/proc/net/tcp{,6}`. A connection's socket inode stands for its cookie; exit codes, bytes and sequence numbers are unknown, and
//! the enricher leaves them absent.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use weir_schema::Text;

use crate::enrich::cgroup::{Hierarchy, Mounts};
use crate::enrich::container::identify;
use crate::enrich::proc::{Facts, Proc, cgroup_path};
use crate::probe::raw::{Cgroup, CgroupOp, Exec, Exit, RawEvent, Role, Tcp, TcpOp, What, Who};
use crate::probe::system::boot_clock_ns;

/// What polling cannot see: shipped in `host_start.detail` and logged.
pub const CANNOT_SEE: [&str; 9] = [
    "processes and connections that live shorter than a poll",
    "connects that fail",
    "exit codes and signals",
    "bytes and sequence numbers of connections",
    "UDP and DNS",
    "file opens",
    "forks without exec",
    "connections in other network namespaces",
    "owners of other users' sockets unless run as root",
];

/// Compares what procfs shows with what it showed before.
#[derive(Debug)]
pub struct Poller {
    proc: Proc,
    mounts: Mounts,
    processes: HashMap<u32, Seen>,
    sockets: HashMap<u64, Socket>,
    /// Cgroups of containers: hierarchy number and inode to path.
    containers: HashMap<(u32, u64), String>,
    first: bool,
    polled_ns: u64,
    sockets_due_ns: u64,
}

#[derive(Debug, Clone)]
struct Seen {
    start_ns: u64,
    comm: Text,
    exe: Option<Text>,
    who: Who,
}

#[derive(Debug, Clone)]
struct Socket {
    row: Row,
    role: Role,
    who: Option<Who>,
    opened_ns: u64,
}

/// One row of `/proc/net/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// This end.
    pub local: (IpAddr, u16),
    /// The other end.
    pub peer: (IpAddr, u16),
    /// Kernel's state number: 1 established, 10 listening.
    pub state: u8,
    /// Socket inode; 0 when nobody owns it any more.
    pub inode: u64,
}

impl Poller {
    /// A poller over `proc`. Its first poll tells what is there as the state at start.
    pub fn new(proc: Proc, mounts: Mounts) -> Self {
        let (processes, sockets, containers) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { proc, mounts, processes, sockets, containers, first: true, polled_ns: 0, sockets_due_ns: 0 }
    }

    /// Whether an interval has passed since the last poll; timers may be a little early.
    pub fn is_due(&self, now_ns: u64, interval: Duration) -> bool {
        let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        now_ns.saturating_sub(self.polled_ns) >= interval_ns / 10 * 9
    }

    /// Appends what changed since the last poll.
    pub fn poll(&mut self, now_ns: u64, out: &mut Vec<RawEvent>) {
        self.polled_ns = now_ns;
        self.poll_processes(now_ns, out);
        if now_ns >= self.sockets_due_ns {
            // A host with 100,000 sockets needs a good part of a second: then they are looked at less often than processes.
            let begun_ns = boot_clock_ns();
            self.poll_sockets(now_ns, out);
            let took_ns = boot_clock_ns().saturating_sub(begun_ns);
            self.sockets_due_ns = now_ns + took_ns * SOCKETS_REST;
        }
        self.poll_cgroups(now_ns, out);
        self.first = false;
    }

    fn poll_processes(&mut self, now_ns: u64, out: &mut Vec<RawEvent>) {
        let pids: HashSet<u32> = self.proc.pids().into_iter().collect();
        let gone: Vec<u32> = self.processes.keys().copied().filter(|pid| !pids.contains(pid)).collect();
        for pid in gone {
            self.end(pid, now_ns, out);
        }
        for pid in pids {
            let Some(stat) = self.proc.stat(pid) else { continue };
            let known = self.processes.get(&pid).map(|seen| (seen.start_ns == stat.start_ns, seen.comm == stat.comm));
            match known {
                // A zombie has ended; only its parent does not know yet.
                _ if stat.state == 'Z' => {
                    self.end(pid, now_ns, out);
                    continue;
                }
                Some((true, true)) => continue,
                Some((false, _)) => self.end(pid, now_ns, out),
                _ => {}
            }
            let Some(facts) = self.proc.facts(pid) else { continue };
            let in_kernel = pid == KTHREADD || facts.ppid == KTHREADD;
            if facts.argv.is_empty() && !in_kernel {
                // In the middle of its exec: the next poll sees it whole.
                continue;
            }
            let who = self.who(pid, &facts, now_ns, out);
            let old = self.processes.get(&pid);
            // A new name alone is no exec. What ran before the first poll is loaded by the process table.
            if !self.first && !in_kernel && old.is_none_or(|old| old.exe != facts.exe) {
                let boot_ns = if old.is_some() { now_ns } else { facts.start_ns };
                let exec = Box::new(exec_of(&facts));
                out.push(RawEvent { boot_ns, who: Some(who.clone()), what: What::Exec(exec) });
            }
            if self.processes.len() < PROCESSES_MAX {
                self.processes.insert(pid, Seen { start_ns: facts.start_ns, comm: facts.comm, exe: facts.exe, who });
            }
        }
    }

    fn end(&mut self, pid: u32, now_ns: u64, out: &mut Vec<RawEvent>) {
        if let Some(seen) = self.processes.remove(&pid) {
            out.push(RawEvent { boot_ns: now_ns, who: Some(seen.who), what: What::Exit(Exit::default()) });
        }
    }

    fn who(&mut self, pid: u32, facts: &Facts, now_ns: u64, out: &mut Vec<RawEvent>) -> Who {
        let [pid_ns, mnt_ns, net_ns] = facts.namespaces.map(Option::unwrap_or_default);
        Who {
            pid,
            tid: pid,
            start_ns: facts.start_ns,
            ppid: facts.ppid,
            parent_start_ns: 0,
            uid: facts.uid.unwrap_or_default(),
            ns_pid: 0,
            cgroup_v2: self.cgroup_id(Hierarchy::V2, &facts.cgroups, now_ns, out),
            cgroup_v1: self.cgroup_id(Hierarchy::V1, &facts.cgroups, now_ns, out),
            mnt_ns,
            pid_ns,
            net_ns,
            comm: facts.comm.as_ref().into(),
        }
    }

    /// The kernel id of a process's cgroup; a container's that was not seen before is told as made now.
    fn cgroup_id(&mut self, hierarchy: Hierarchy, text: &str, now_ns: u64, out: &mut Vec<RawEvent>) -> u64 {
        let controllers: &[&str] = match hierarchy {
            Hierarchy::V2 => &[""],
            Hierarchy::V1 => &["memory", "pids", "cpuset"],
        };
        let path = controllers.iter().find_map(|name| cgroup_path(text, name));
        let (Some(path), Some(root)) = (path, self.mounts.root(hierarchy)) else { return 0 };
        let Ok(meta) = fs::metadata(root.join(path.trim_start_matches('/'))) else { return 0 };
        let number = if hierarchy == Hierarchy::V2 { Some(0) } else { self.mounts.v1_number };
        let identity = identify(path);
        if let Some(number) = number
            && identity.is_container
            && self.containers.len() < CONTAINERS_MAX
            && self.containers.insert((number, meta.ino()), path.to_owned()).is_none()
        {
            out.push(cgroup_event(CgroupOp::Mkdir, number, meta.ino(), path, now_ns));
        }
        meta.ino()
    }

    fn poll_cgroups(&mut self, now_ns: u64, out: &mut Vec<RawEvent>) {
        let mounts = &self.mounts;
        self.containers.retain(|(number, id), path| {
            let hierarchy = if *number == 0 { Hierarchy::V2 } else { Hierarchy::V1 };
            let there = mounts.root(hierarchy).is_some_and(|root| root.join(path.trim_start_matches('/')).is_dir());
            if !there {
                out.push(cgroup_event(CgroupOp::Rmdir, *number, *id, path, now_ns));
            }
            there
        });
    }

    fn poll_sockets(&mut self, now_ns: u64, out: &mut Vec<RawEvent>) {
        let mut rows: HashMap<u64, Row> = HashMap::new();
        for name in ["net/tcp", "net/tcp6"] {
            // Line by line: most rows of a busy host are connections that only wait to be forgotten.
            let Ok(file) = File::open(self.proc.root().join(name)) else { continue };
            let lines = BufReader::with_capacity(1 << 16, file).lines().map_while(Result::ok).skip(1);
            rows.extend(lines.filter_map(|line| parse_row(&line)).filter(is_told).map(|row| (row.inode, row)));
        }
        let gone: Vec<u64> = self.sockets.keys().copied().filter(|inode| !rows.contains_key(inode)).collect();
        for inode in gone {
            if let Some(socket) = self.sockets.remove(&inode).filter(|socket| socket.role != Role::Listener) {
                out.push(tcp_event(&socket, TcpOp::Close, now_ns));
            }
        }
        let mut new: Vec<Row> = rows.into_values().filter(|row| !self.sockets.contains_key(&row.inode)).collect();
        if new.is_empty() {
            return;
        }
        new.sort_by_key(|row| (row.state != LISTEN, row.inode));
        let owners = self.owners(new.iter().map(|row| row.inode).collect());
        let known = self.sockets.values().filter(|socket| socket.role == Role::Listener).map(|socket| socket.row.local);
        let listeners: HashSet<(IpAddr, u16)> =
            known.chain(new.iter().filter(|row| row.state == LISTEN).map(|row| row.local)).collect();
        for row in new {
            let role = match row.state {
                LISTEN => Role::Listener,
                _ if is_listened(&listeners, row.local) => Role::Server,
                _ => Role::Client,
            };
            let who = owners.get(&row.inode).and_then(|pid| self.processes.get(pid)).map(|seen| seen.who.clone());
            let socket = Socket { row, role, who, opened_ns: now_ns };
            let op = match role {
                _ if self.first => TcpOp::Seen,
                Role::Listener => TcpOp::Listen,
                Role::Server => TcpOp::Accept,
                Role::Client => TcpOp::Connect,
            };
            out.push(tcp_event(&socket, op, now_ns));
            if self.sockets.len() < SOCKETS_MAX {
                self.sockets.insert(row.inode, socket);
            }
        }
    }

    /// The owners of sockets: a look at every file descriptor we may see, so only when there is something new.
    fn owners(&self, wanted: HashSet<u64>) -> HashMap<u64, u32> {
        let mut owners = HashMap::new();
        for pid in self.processes.keys() {
            let Ok(entries) = fs::read_dir(self.proc.root().join(pid.to_string()).join("fd")) else { continue };
            for entry in entries.flatten() {
                let Ok(target) = fs::read_link(entry.path()) else { continue };
                let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
                if let Some(inode) = inode.filter(|inode| wanted.contains(inode)) {
                    owners.insert(inode, *pid);
                }
            }
            if owners.len() == wanted.len() {
                break;
            }
        }
        owners
    }
}

fn cgroup_event(op: CgroupOp, hierarchy: u32, id: u64, path: &str, boot_ns: u64) -> RawEvent {
    let cgroup = Cgroup { op, id, hierarchy, path: path.as_bytes().to_vec(), truncated: false, task: None };
    RawEvent { boot_ns, who: None, what: What::Cgroup(cgroup) }
}

fn exec_of(facts: &Facts) -> Exec {
    let bytes = |text: &Option<Text>| text.as_ref().map(|text| text.as_bytes().to_vec()).unwrap_or_default();
    Exec {
        filename: bytes(&facts.exe),
        exe: bytes(&facts.exe),
        cwd: bytes(&facts.cwd),
        args: facts.argv.iter().map(|arg| arg.as_bytes().to_vec()).collect(),
        euid: facts.uid.unwrap_or_default(),
        capabilities: facts.capabilities.as_deref().and_then(|bits| u64::from_str_radix(bits, 16).ok()).unwrap_or_default(),
        login_uid: facts.login_uid,
        session_id: facts.session_id,
        tty: facts.tty.as_deref().unwrap_or_default().to_owned(),
        ..Exec::default()
    }
}

fn tcp_event(socket: &Socket, op: TcpOp, boot_ns: u64) -> RawEvent {
    let tcp = Tcp {
        op,
        role: Some(socket.role),
        local: socket.row.local,
        peer: socket.row.peer,
        cookie: Some(socket.row.inode),
        net_ns: socket.who.as_ref().map_or(0, |who| who.net_ns),
        isn_local: None,
        isn_peer: None,
        opened_ns: Some(socket.opened_ns),
        bytes_sent: 0,
        bytes_received: 0,
        errno: None,
        srtt_us: 0,
        retransmits: 0,
        unaccepted: false,
        inode: Some(socket.row.inode),
    };
    RawEvent { boot_ns, who: socket.who.clone(), what: What::Tcp(Box::new(tcp)) }
}

/// Whether the end of a connection is a server's: somebody listens there.
fn is_listened(listeners: &HashSet<(IpAddr, u16)>, (ip, port): (IpAddr, u16)) -> bool {
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    listeners.contains(&(ip, port)) || any.iter().any(|any| listeners.contains(&(*any, port)))
}

fn is_told(row: &Row) -> bool {
    row.inode != 0 && matches!(row.state, ESTABLISHED | LISTEN)
}

/// Parses one row of `/proc/net/tcp` or `tcp6`.
pub fn parse_row(line: &str) -> Option<Row> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, peer) = (words.next()?, words.next()?);
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    let inode = words.nth(5)?.parse().ok()?;
    Some(Row { local: parse_end(local)?, peer: parse_end(peer)?, state, inode })
}

/// Addresses stand as words of the machine's byte order, IPv4-mapped ones become IPv4.
fn parse_end(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match address.len() {
        8 => Some((Ipv4Addr::from(word(0)?).into(), port)),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at * 8)?);
            }
            Some((IpAddr::from(Ipv6Addr::from(bytes)).to_canonical(), port))
        }
        _ => None,
    }
}

/// The kernel's own threads are children of this process.
const KTHREADD: u32 = 2;
const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;
/// Reading sockets takes at most one part in so many of the time.
const SOCKETS_REST: u64 = 5;
/// Processes remembered between two polls.
const PROCESSES_MAX: usize = 65_536;
/// Sockets remembered between two polls.
const SOCKETS_MAX: usize = 65_536;
/// Cgroups of containers remembered between two polls.
const CONTAINERS_MAX: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn rows() {
        let v4 = "   0: 0100007F:1F90 0200000A:0016 01 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 20";
        let row = parse_row(v4).unwrap();
        assert_eq!(row.local, ("127.0.0.1".parse().unwrap(), 8080));
        assert_eq!(row.peer, ("10.0.0.2".parse().unwrap(), 22));
        assert_eq!((row.state, row.inode), (1, 4242));
        let v6 = "1: 00000000000000000000000001000000:0050 0000000000000000FFFF00000100007F:0051 0A 0:0 0:0 0 0 0 7 1";
        let row = parse_row(v6).unwrap();
        assert_eq!(row.local, ("::1".parse().unwrap(), 80));
        assert_eq!(row.peer, ("127.0.0.1".parse().unwrap(), 81));
        for wrong in ["", "sl local", "0: 01:1 02:2 01 a b c d e 1", "0: 0100007F:1F90 0200000A:0016 zz 0 0 0 0 0 1"] {
            assert_eq!(parse_row(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_connection_of_this_process_is_told_from_both_ends() {
        let mut poller = Poller::new(Proc::new("/proc"), Mounts::default());
        let mut events = Vec::new();
        poller.poll(1, &mut events);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let server = listener.accept().unwrap();
        let ours = |events: &[RawEvent]| -> Vec<(TcpOp, Option<u32>)> {
            let mut found: Vec<(TcpOp, Option<u32>)> = events
                .iter()
                .filter_map(|event| match &event.what {
                    What::Tcp(tcp) if tcp.local.1 == port || tcp.peer.1 == port => {
                        Some((tcp.op, event.who.as_ref().map(|who| who.pid)))
                    }
                    _ => None,
                })
                .collect();
            found.sort_by_key(|(op, _)| format!("{op:?}"));
            found
        };
        events.clear();
        poller.poll(1_000_000_000_000, &mut events);
        let pid = Some(std::process::id());
        assert_eq!(ours(&events), [(TcpOp::Accept, pid), (TcpOp::Connect, pid), (TcpOp::Listen, pid)]);
        drop((client, server, listener));
        events.clear();
        poller.poll(2_000_000_000_000, &mut events);
        assert_eq!(ours(&events), [(TcpOp::Close, pid), (TcpOp::Close, pid)]);
    }

    #[test]
    fn a_process_that_comes_and_goes() {
        let mut poller = Poller::new(Proc::new("/proc"), Mounts::default());
        let mut events = Vec::new();
        poller.poll(1, &mut events);
        assert!(!events.iter().any(|event| matches!(event.what, What::Exec(_))));
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        events.clear();
        let is_told = |event: &RawEvent| {
            let of_child = event.who.as_ref().is_some_and(|who| who.pid == pid);
            of_child && matches!(&event.what, What::Exec(exec) if exec.args.last().is_some_and(|arg| arg == b"60"))
        };
        // The child may still be inside its exec for a few polls.
        let polls = (2..10_000).take_while(|now_ns| {
            poller.poll(*now_ns, &mut events);
            !events.iter().any(is_told)
        });
        assert!(polls.count() < 9_000);
        child.kill().unwrap();
        child.wait().unwrap();
        events.clear();
        poller.poll(20_000, &mut events);
        let gone = |event: &RawEvent| event.who.as_ref().is_some_and(|who| who.pid == pid) && matches!(event.what, What::Exit(_));
        assert!(events.iter().any(gone));
    }
}
