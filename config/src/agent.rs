//! The agent's configuration: whom it reports to, what it looks at, and how much of the host it may use.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::address::HostPort;
use crate::apps::{AppRule, RawAppRule};
use crate::document::Document;
use crate::error::Error;
use crate::section::numbers;
use crate::tls::{ClientTls, Enrol, RawEnrol, RawTls};

/// One agent, valid. Made by [`AgentConfig::load`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// The host's name in all events. Default: the system's host name.
    pub host: Option<String>,
    /// Cloud provider, such as `aws` or `onprem`. Default: unknown.
    pub cloud: Option<String>,
    /// Availability zone. Default: unknown.
    pub zone: Option<String>,
    /// The nodes, tried in turn until one answers. Required, at most 64: a list, not a fleet's inventory. Empty
    /// only behind [`AgentConfig::load_for_recording`].
    pub nodes: Vec<HostPort>,
    /// What carries events to a node. Default `auto`: QUIC, or TLS over TCP at the same port number while no node answers on UDP.
    pub transport: TransportChoice,
    /// Milliseconds until an agent that had to take TCP tries UDP again, at the most: the first try comes after a minute, each later
    /// one waits twice as long.
    ///
    /// Default 600000 (ten minutes: a firewall is seldom changed, and a try costs a few packets), from 10000 to 86400000.
    pub udp_retry_ms_max: u64,
    /// The name that the nodes' certificates must carry. Default `weir-node`, which `weir ca issue` gives every node.
    pub server_name: String,
    /// Certificates.
    pub tls: ClientTls,
    /// How the agent gets its certificate and renews it. Default: not at all, `tls` names files that somebody else keeps in force.
    pub enrol: Option<Enrol>,
    /// Folder of the agent's own files. Default `/var/lib/weir-agent`, where systemd's `StateDirectory` puts it.
    pub data_dir: PathBuf,
    /// What is looked at.
    pub collector: Collector,
    /// When a batch is sent.
    pub batch: BatchLimits,
    /// Where batches lie that no node acknowledges.
    pub spool: SpoolLimits,
    /// Memory for batches that no node has acknowledged yet, in bytes. As it fills, because the spool cannot be written, new
    /// events of the least important lanes are dropped first, and counted.
    ///
    /// Default 33554432 (32 MiB: half of the 64 MiB that an agent may hold), from 1 MiB to 4 GiB.
    pub memory_bytes_max: u64,
    /// Milliseconds between two utilisation samples of a container.
    ///
    /// Default 1000 (bursts of a second are seen; a host of 100 containers costs under 1 % of a core), from 100 to 60000.
    pub sample_interval_ms: u64,
    /// Which application a container or process belongs to; the first rule that fits wins. At most 1024.
    pub apps: Vec<AppRule>,
}

/// What carries events to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransportChoice {
    /// QUIC, or TCP while UDP is not let through.
    #[default]
    Auto,
    /// QUIC only.
    Quic,
    /// TCP only.
    Tcp,
}

impl std::str::FromStr for TransportChoice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "quic" => Ok(Self::Quic),
            "tcp" => Ok(Self::Tcp),
            _ => Err("not a transport"),
        }
    }
}

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

numbers! {
    /// When a batch is complete: whichever limit is reached first.
    BatchLimits (RawBatchLimits) in "batch" {
        /// Events in a batch. More would not compress better; fewer cost header and string table.
        events_max: usize = 1000 in 1 ..= 65536;
        /// Bytes of a batch before compression. A node refuses frames of more than 8 MiB.
        bytes_max: usize = 524288 in 4096 ..= 4194304;
        /// Milliseconds from a batch's first event until it is sent. The largest part of an answer's delay.
        age_ms_max: u64 = 50 in 1 ..= 10000;
        /// The same while no node is there, for all lanes but security: larger batches are smaller per event, so the spool lasts longer.
        away_age_ms_max: u64 = 2000 in 1 ..= 10000;
    }
}

numbers! {
    /// The spool: batches that no node acknowledges lie in memory first, then in `data_dir/spool`.
    SpoolLimits (RawSpoolLimits) in "spool" {
        /// Bytes on the disk. 256 MiB hold about 90 minutes of 2,000 events a second. Full: the oldest of the least important lane go, counted.
        bytes_max: u64 = 268435456 in 16777216 ..= 1099511627776;
        /// Un-acknowledged bytes in memory beyond which new batches go to the disk, because the link is slow.
        memory_bytes_max: u64 = 4194304 in 65536 ..= 1073741824;
        /// Milliseconds without a session after which everything un-acknowledged goes to the disk.
        away_ms_max: u64 = 2000 in 0 ..= 60000;
    }
}

impl AgentConfig {
    /// Reads and checks the file at `path`, with the environment's `WEIR_` overrides.
    pub fn load(path: &Path) -> Result<Self, Error> {
        crate::read(path).and_then(|text| Self::parse(path, &text, crate::environment()))
    }

    /// The same for an agent that records what it collects: without `nodes` it reports to nobody, and needs no `tls`. Without a file
    /// everything has its default, the environment's overrides apart.
    pub fn load_for_recording(path: Option<&Path>) -> Result<Self, Error> {
        let (path, text) = match path {
            Some(path) => (path, crate::read(path)?),
            None => (Path::new("(defaults)"), String::new()),
        };
        Self::parse_for_recording(path, &text, crate::environment())
    }

    /// Checks `text` as [`AgentConfig::load_for_recording`] does. Touches neither disk nor environment.
    pub fn parse_for_recording(
        path: &Path,
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        let (document, mut raw) = Document::read::<RawAgent>(path, text, environment)?;
        raw.alone = raw.nodes.is_none();
        raw.check(&document)
    }

    /// Checks `text` as if it stood in the file `path`. Touches neither disk nor environment.
    pub fn parse(path: &Path, text: &str, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let (document, raw) = Document::read::<RawAgent>(path, text, environment)?;
        raw.check(&document)
    }
}

/// What people write.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawAgent {
    host: Option<String>,
    cloud: Option<String>,
    zone: Option<String>,
    nodes: Option<Vec<String>>,
    transport: Option<String>,
    udp_retry_ms_max: Option<i64>,
    server_name: Option<String>,
    tls: RawTls,
    enrol: Option<RawEnrol>,
    data_dir: Option<PathBuf>,
    collector: RawCollector,
    batch: RawBatchLimits,
    spool: RawSpoolLimits,
    memory_bytes_max: Option<i64>,
    sample_interval_ms: Option<i64>,
    apps: Vec<RawAppRule>,
    /// Set by the door for recordings, never by people: there are no nodes.
    #[serde(skip)]
    alone: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCollector {
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

impl RawAgent {
    fn check(self, document: &Document) -> Result<AgentConfig, Error> {
        let name = |key: &str, raw: Option<String>| raw.map(|raw| document.name(key, raw)).transpose();
        let nodes = match self.alone {
            true => Vec::new(),
            false => document.required("nodes", self.nodes, "[\"weir-1.example.org:7443\"]")?,
        };
        if (nodes.is_empty() && !self.alone) || nodes.len() > NODES_MAX {
            return Err(document.wrong("nodes", format!("{} nodes", nodes.len()), format!("name 1 to {NODES_MAX} nodes")));
        }
        let cure = "write host:port, such as \"weir-1.example.org:7443\" or \"[fd00::7]:7443\"";
        let nodes = nodes.iter().enumerate().map(|(index, node)| document.parsed(&format!("nodes[{index}]"), node, cure));
        if self.apps.len() > APPS_MAX {
            let cure = format!("merge rules until at most {APPS_MAX} are left");
            return Err(document.wrong("apps", format!("{} rules", self.apps.len()), cure));
        }
        let data_dir = document.path("data_dir", &self.data_dir.unwrap_or_else(|| "/var/lib/weir-agent".into()))?;
        let enrol = self.enrol.map(|raw| raw.check(document)).transpose()?;
        let apps = self.apps.into_iter().enumerate().map(|(index, rule)| rule.check(index, document));
        Ok(AgentConfig {
            host: name("host", self.host)?,
            cloud: name("cloud", self.cloud)?,
            zone: name("zone", self.zone)?,
            nodes: nodes.collect::<Result<_, _>>()?,
            transport: match self.transport {
                Some(raw) => document.parsed("transport", &raw, "write \"auto\", \"quic\" or \"tcp\"")?,
                None => TransportChoice::default(),
            },
            udp_retry_ms_max: document.number("udp_retry_ms_max", self.udp_retry_ms_max, 600_000, 10_000..=86_400_000)?,
            server_name: name("server_name", self.server_name)?.unwrap_or_else(|| "weir-node".to_owned()),
            tls: match &enrol {
                Some(_) => self.tls.made_in(&data_dir.join("identity"), document)?,
                // Never read: an agent without nodes opens no session.
                None if self.alone => self.tls.made_in(&data_dir.join("identity"), document)?,
                None => self.tls.client(document)?,
            },
            enrol,
            data_dir,
            collector: self.collector.check(document)?,
            batch: self.batch.check(document)?,
            spool: self.spool.check(document)?,
            memory_bytes_max: document.number("memory_bytes_max", self.memory_bytes_max, 32 << 20, 1 << 20..=4 << 30)?,
            sample_interval_ms: document.number("sample_interval_ms", self.sample_interval_ms, 1000, 100..=60_000)?,
            apps: apps.collect::<Result<_, _>>()?,
        })
    }
}

impl RawCollector {
    fn check(self, document: &Document) -> Result<Collector, Error> {
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
/// Most nodes an agent is told of.
const NODES_MAX: usize = 64;
/// Most rules: each new process is held against all of them.
const APPS_MAX: usize = 1024;
/// Most prefixes and their longest: the kernel filter walks them within the verifier's bounds.
const PREFIXES_MAX: usize = 32;
const PREFIX_BYTES_MAX: usize = 63;
