//! An event as its producer sees it: when, what, who and where. Everything that is not known is absent.
//!
//! The same facts travel as columns (`column.rs`, `batch.rs`); this file is the typed door for collectors, replays and tests.

use std::sync::Arc;

use crate::ids::BootId;
use crate::kind::Kind;

/// Shared text. Collectors keep one copy of an exe or a region and hand out references.
pub type Text = Arc<str>;

/// What everything in one batch has in common: the host that saw it. Tenant and region are stamped from the certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Host {
    /// Host name.
    pub host: Text,
    /// Cloud provider or `onprem`.
    pub cloud: Option<Text>,
    /// Availability zone.
    pub zone: Option<Text>,
    /// This boot of the host.
    pub boot_id: BootId,
    /// True when the producer is a simulation. Stored, so that nobody takes it for a real host.
    pub simulated: bool,
}

/// Who did it. One is shared by all events of the process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Process {
    /// Process (thread group) id in the initial pid namespace.
    pub pid: u32,
    /// Start in nanoseconds of the boot clock; with host, boot and pid it makes the process id.
    pub start_ns: u64,
    /// Parent's pid.
    pub ppid: Option<u32>,
    /// Parent's start, to name the parent's process id.
    pub parent_start_ns: Option<u64>,
    /// Resolved path of the executable.
    pub exe: Option<Text>,
    /// The kernel's 15-byte task name.
    pub comm: Option<Text>,
    /// argv as a JSON array of strings, argv[0] included.
    pub args: Option<Text>,
    /// argv joined by blanks.
    pub cmdline: Option<Text>,
    /// Working directory.
    pub cwd: Option<Text>,
    /// Real user id.
    pub uid: Option<u32>,
    /// User name as the host resolves it.
    pub user_name: Option<Text>,
    /// Login (audit) user id.
    pub login_uid: Option<u32>,
    /// Controlling terminal.
    pub tty: Option<Text>,
    /// Session id.
    pub session_id: Option<u32>,
    /// Executable of the parent.
    pub parent_exe: Option<Text>,
    /// Command line of the parent.
    pub parent_cmdline: Option<Text>,
    /// Executables from the parent upwards, a JSON array.
    pub ancestors: Option<Text>,
    /// Effective capabilities, hexadecimal as in `/proc/PID/status`.
    pub capabilities: Option<Text>,
    /// Cgroup path.
    pub cgroup: Option<Text>,
    /// Pid namespace inode.
    pub pid_ns: Option<u32>,
    /// Mount namespace inode.
    pub mnt_ns: Option<u32>,
    /// Network namespace inode.
    pub net_ns: Option<u32>,
}

/// Where it ran. Absent for what runs on the bare host; `app` may be set for both.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Container {
    /// Application, by the rules of the agent's config; `unassigned` when no rule matched.
    pub app: Option<Text>,
    /// Runtime's container id (64 hex digits for the usual runtimes).
    pub container_id: Option<Text>,
    /// Container name.
    pub container_name: Option<Text>,
    /// Image reference.
    pub image: Option<Text>,
    /// Kubernetes namespace.
    pub namespace: Option<Text>,
    /// Kubernetes pod.
    pub pod: Option<Text>,
    /// Kubernetes workload.
    pub workload: Option<Text>,
}

/// One event or one utilisation sample.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Event {
    /// When it happened: nanoseconds since the Unix epoch, by the host's clock. Never rewritten.
    pub time: i64,
    /// What happened.
    pub kind: Kind,
    /// Who did it.
    pub process: Option<Arc<Process>>,
    /// Where it ran.
    pub container: Option<Arc<Container>>,
    /// Everything else that is known.
    pub fields: Fields,
}

macro_rules! fields {
    ($($(#[$meta:meta])* $name:ident: $ty:ty),* $(,)?) => {
        /// The columns of an event or sample that belong to neither its process nor its container.
        #[derive(Debug, Clone, PartialEq, Default)]
        pub struct Fields { $($(#[$meta])* pub $name: Option<$ty>,)* }
    };
}

fields! {
    /// Thread id.
    tid: u32,
    /// 0, or the errno.
    result: i32,
    /// File, or the executable of an exec.
    path: Text,
    /// Second file of a rename or link.
    path_to: Text,
    /// Open or syscall flags.
    flags: u32,
    /// File mode.
    mode: u32,
    /// Initiator's address (the client's, at both ends), text form.
    src_ip: Text,
    /// Initiator's port.
    src_port: u16,
    /// Responder's address, text form.
    dst_ip: Text,
    /// Responder's port.
    dst_port: u16,
    /// `tcp` or `udp`.
    proto: Text,
    /// `out` at the initiator, `in` at the responder.
    direction: Text,
    /// Kernel socket cookie, unique per boot and network namespace.
    socket_id: u64,
    /// Payload bytes sent by this end.
    bytes_sent: u64,
    /// Payload bytes received by this end.
    bytes_received: u64,
    /// Life of the process or of the connection, in milliseconds.
    duration_ms: u64,
    /// Exit code.
    exit_code: i32,
    /// Signal number.
    signal: i32,
    /// The other process: child of a fork, target of a kill or ptrace.
    target_pid: u32,
    /// Name asked for.
    dns_name: Text,
    /// Answers, a JSON array.
    dns_answers: Text,
    /// Initial sequence number of this end.
    isn_local: u32,
    /// Initial sequence number of the peer.
    isn_peer: u32,
    /// The host's own addresses, a JSON array (host_start).
    addresses: Text,
    /// JSON of what has no column.
    detail: Text,
    /// Loss: which class of event (a lane's name or a kind).
    loss_class: Text,
    /// Loss: first seq or 0.
    loss_first: u64,
    /// Loss: last seq or 0.
    loss_last: u64,
    /// Loss: how many.
    loss_count: u64,
    /// Loss: why, from a short closed list.
    loss_reason: Text,
    /// Sample: length of the interval, milliseconds.
    interval_ms: u64,
    /// Sample: CPU time used in the interval, milliseconds.
    cpu_ms: u64,
    /// Sample: CPU limit over the interval, milliseconds.
    cpu_limit_ms: u64,
    /// Sample: memory in use, bytes.
    mem_bytes: u64,
    /// Sample: memory limit, bytes.
    mem_limit_bytes: u64,
    /// Sample: bytes read from block devices in the interval.
    io_read_bytes: u64,
    /// Sample: bytes written to block devices in the interval.
    io_write_bytes: u64,
    /// Sample: bytes sent to the network in the interval.
    net_sent_bytes: u64,
    /// Sample: bytes received from the network in the interval.
    net_received_bytes: u64,
    /// Sample: processes at the end of the interval.
    processes: u64,
    /// Sample: out-of-memory kills in the interval.
    oom_kills: u64,
    /// Sample: time throttled in the interval, milliseconds.
    throttled_ms: u64,
}
