//! What the agent looks at: hooks, filters, and where the host's files are.

use std::path::PathBuf;

use serde::Deserialize;

use crate::document::Document;
use crate::error::Error;

/// What the agent looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// Use eBPF. Default true; where it is refused the agent polls procfs and says what it cannot see.
    pub ebpf: bool,
    /// Hooks on exec, fork and exit. Default true. Without them processes are known from procfs only.
    pub exec: bool,
    /// Hooks on TCP connect, accept, close, fail and listen. Default true.
    pub network: bool,
    /// Hooks on file opens, filtered by `open`. Default true.
    pub file: bool,
    /// Hooks on cgroup mkdir, rmdir and attach. Default true: containers that live shorter than a poll are seen.
    pub cgroup: bool,
    /// Which file opens leave the kernel.
    pub open: OpenFilter,
    /// Which system calls are told, and how many.
    pub calls: CallFilter,
    /// Which UDP datagrams are told, and how many.
    pub udp: UdpFilter,
    /// Size of the ring between kernel and agent, in bytes; a power of two.
    ///
    /// Default 8388608 (8 MiB: 50,000 execs of a burst before the agent is scheduled), from 256 KiB to 256 MiB.
    pub ring_bytes: u32,
    /// Milliseconds between two polls of procfs where hooks are missing.
    ///
    /// Default 500 (what lives shorter is missed and the agent says so; a poll of 1,000 processes costs about 10 ms), from 50 to 60000.
    pub poll_interval_ms: u64,
    /// Where cgroups are mounted. Default `/sys/fs/cgroup`; another in a container that sees the host's elsewhere.
    pub cgroup_root: PathBuf,
    /// Where procfs is mounted. Default `/proc`; another in a container that sees the host's elsewhere.
    pub proc_root: PathBuf,
}

/// Which file opens are sent. Filtered in the kernel: the others cost no ring space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFilter {
    /// Every open for writing, creating or truncating. Default false: build machines write thousands of files a second.
    pub writes: bool,
    /// Opens, of any mode, of paths that begin with one of these. At most 32, each at most 63 bytes (the kernel filter's table).
    ///
    /// Default: where credentials lie, see [`OpenFilter::default`].
    pub prefixes: Vec<String>,
}

impl Default for OpenFilter {
    fn default() -> Self {
        Self { writes: false, prefixes: CREDENTIAL_PREFIXES.map(str::to_owned).to_vec() }
    }
}

/// Which sensitive system calls are sent. Filtered in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallFilter {
    /// ptrace, credentials, namespaces, mounts, memfd, bpf, modules, raw sockets, signals to other processes, sockets put in the place
    /// of standard input and output, userfaultfd, io_uring. Default true.
    pub security: bool,
    /// unlink, rename, link, symlink, chmod, chown, mkdir, truncate. Default true.
    pub changes: bool,
    /// Memory mapped or protected writable and executable at once. Default true; it costs every mmap and mprotect of the host a little.
    pub memory: bool,
    /// Attempts to load modules where the kernel cannot load any. Default true; there, and only there, it costs every system call of the
    /// host some 50 ns.
    pub absent_modules: bool,
    /// Calls of one name that one process may make in a second and that are told; more are counted, and told as lost.
    ///
    /// Default 100 (a debugger or a supervisor at work stays whole, a loop does not fill the ring), from 1 to 1000000.
    pub per_second_max: u32,
    /// The same for `changes`. One that sets a set-user-id or set-group-id bit is told whatever the limit.
    ///
    /// Default 100 (a deletion of a tree is seen, not each of its files), from 1 to 1000000.
    pub changes_per_second_max: u32,
}

impl Default for CallFilter {
    fn default() -> Self {
        let (per_second_max, changes_per_second_max) = (CALLS_PER_SECOND as u32, CALLS_PER_SECOND as u32);
        Self { security: true, changes: true, memory: true, absent_modules: true, per_second_max, changes_per_second_max }
    }
}

/// Which UDP datagrams are sent. Filtered in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpFilter {
    /// The first datagram of a socket to a peer, then sums. Default true; each datagram of the host costs a look-up.
    pub sends: bool,
    /// Questions and answers of DNS over UDP, port 53. Default true.
    pub dns: bool,
    /// Datagrams to the same peer are summed up for this many milliseconds before they are told again.
    ///
    /// Default 60000 (a call or a game is one event a minute, not one per datagram), from 0 (each is told) to 86400000.
    pub repeat_ms: u64,
    /// Sends that one process may make in a second and that are told; more are counted, and told as lost. Their bytes are told later.
    ///
    /// Default 100 (a server that answers many peers, or a scan, is seen and does not fill the ring), from 1 to 1000000.
    pub sends_per_second_max: u32,
    /// The same for questions, and for answers.
    ///
    /// Default 500 (a busy resolver stays mostly whole; a message takes at most 1.5 KB of the ring), from 1 to 1000000.
    pub dns_per_second_max: u32,
}

impl Default for UdpFilter {
    fn default() -> Self {
        Self { sends: true, dns: true, repeat_ms: 60_000, sends_per_second_max: 100, dns_per_second_max: 500 }
    }
}

impl Default for Collector {
    fn default() -> Self {
        Self {
            ebpf: true,
            exec: true,
            network: true,
            file: true,
            cgroup: true,
            open: OpenFilter::default(),
            calls: CallFilter::default(),
            udp: UdpFilter::default(),
            ring_bytes: RING_BYTES as u32,
            poll_interval_ms: POLL_INTERVAL_MS,
            cgroup_root: "/sys/fs/cgroup".into(),
            proc_root: "/proc".into(),
        }
    }
}

/// What people write.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawCollector {
    ebpf: Option<bool>,
    exec: Option<bool>,
    network: Option<bool>,
    file: Option<bool>,
    cgroup: Option<bool>,
    open: RawOpenFilter,
    calls: RawCallFilter,
    udp: RawUdpFilter,
    ring_bytes: Option<i64>,
    poll_interval_ms: Option<i64>,
    cgroup_root: Option<PathBuf>,
    proc_root: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawOpenFilter {
    writes: Option<bool>,
    prefixes: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCallFilter {
    security: Option<bool>,
    changes: Option<bool>,
    memory: Option<bool>,
    absent_modules: Option<bool>,
    per_second_max: Option<i64>,
    changes_per_second_max: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawUdpFilter {
    sends: Option<bool>,
    dns: Option<bool>,
    repeat_ms: Option<i64>,
    sends_per_second_max: Option<i64>,
    dns_per_second_max: Option<i64>,
}

impl RawCollector {
    pub(crate) fn check(self, document: &Document) -> Result<Collector, Error> {
        let default = Collector::default();
        let path = |key: &str, raw: Option<PathBuf>, default: PathBuf| document.path(key, &raw.unwrap_or(default));
        let key = "collector.ring_bytes";
        let ring_bytes = document.number(key, self.ring_bytes, RING_BYTES, 256 << 10..=256 << 20)?;
        if !ring_bytes.is_power_of_two() {
            let near = ring_bytes.next_power_of_two().min(256 << 20);
            return Err(document.wrong(key, "not a power of two", format!("write {near}")));
        }
        let key = "collector.poll_interval_ms";
        Ok(Collector {
            ebpf: self.ebpf.unwrap_or(default.ebpf),
            exec: self.exec.unwrap_or(default.exec),
            network: self.network.unwrap_or(default.network),
            file: self.file.unwrap_or(default.file),
            cgroup: self.cgroup.unwrap_or(default.cgroup),
            open: self.open.check(document)?,
            calls: self.calls.check(document)?,
            udp: self.udp.check(document)?,
            ring_bytes: ring_bytes as u32,
            poll_interval_ms: document.number(key, self.poll_interval_ms, POLL_INTERVAL_MS, 50..=60_000)?,
            cgroup_root: path("collector.cgroup_root", self.cgroup_root, default.cgroup_root)?,
            proc_root: path("collector.proc_root", self.proc_root, default.proc_root)?,
        })
    }
}

impl RawCallFilter {
    fn check(self, document: &Document) -> Result<CallFilter, Error> {
        let default = CallFilter::default();
        let limit = |key: &str, raw: Option<i64>| {
            document.number(&format!("collector.calls.{key}"), raw, CALLS_PER_SECOND, 1..=1_000_000).map(|limit| limit as u32)
        };
        Ok(CallFilter {
            security: self.security.unwrap_or(default.security),
            changes: self.changes.unwrap_or(default.changes),
            memory: self.memory.unwrap_or(default.memory),
            absent_modules: self.absent_modules.unwrap_or(default.absent_modules),
            per_second_max: limit("per_second_max", self.per_second_max)?,
            changes_per_second_max: limit("changes_per_second_max", self.changes_per_second_max)?,
        })
    }
}

impl RawUdpFilter {
    fn check(self, document: &Document) -> Result<UdpFilter, Error> {
        let default = UdpFilter::default();
        let limit = |key: &str, raw: Option<i64>, default: u32| {
            let limit = document.number(&format!("collector.udp.{key}"), raw, default.into(), 1..=1_000_000)?;
            Ok::<_, Error>(limit as u32)
        };
        let repeat_ms = document.number("collector.udp.repeat_ms", self.repeat_ms, default.repeat_ms, 0..=86_400_000)?;
        Ok(UdpFilter {
            sends: self.sends.unwrap_or(default.sends),
            dns: self.dns.unwrap_or(default.dns),
            repeat_ms,
            sends_per_second_max: limit("sends_per_second_max", self.sends_per_second_max, default.sends_per_second_max)?,
            dns_per_second_max: limit("dns_per_second_max", self.dns_per_second_max, default.dns_per_second_max)?,
        })
    }
}

impl RawOpenFilter {
    fn check(self, document: &Document) -> Result<OpenFilter, Error> {
        let default = OpenFilter::default();
        let prefixes = self.prefixes.unwrap_or(default.prefixes);
        let key = "collector.open.prefixes";
        if prefixes.len() > PREFIXES_MAX {
            return Err(document.wrong(key, format!("{} prefixes", prefixes.len()), format!("name at most {PREFIXES_MAX}")));
        }
        for (index, prefix) in prefixes.iter().enumerate() {
            if !prefix.starts_with('/') || prefix.len() > PREFIX_BYTES_MAX {
                let cure = format!("write an absolute path of at most {PREFIX_BYTES_MAX} bytes, such as \"/etc/shadow\"");
                return Err(document.wrong(&format!("{key}[{index}]"), "not a usable prefix", cure));
            }
        }
        Ok(OpenFilter { writes: self.writes.unwrap_or(default.writes), prefixes })
    }
}

/// Where credentials lie on most systems.
const CREDENTIAL_PREFIXES: [&str; 10] = [
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/passwd",
    "/etc/sudoers",
    "/etc/ssh/",
    "/etc/kubernetes/",
    "/root/.ssh/",
    "/root/.aws/",
    "/root/.kube/",
    "/var/run/secrets/",
];
const CALLS_PER_SECOND: u64 = 100;
const RING_BYTES: u64 = 8 << 20;
const POLL_INTERVAL_MS: u64 = 500;
/// Most prefixes and their longest: the kernel filter walks them within the verifier's bounds.
const PREFIXES_MAX: usize = 32;
const PREFIX_BYTES_MAX: usize = 63;
