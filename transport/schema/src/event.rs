//! An event as its producer sees it: when, what, who and where. Everything that is not known is absent.
//!
//! The same facts travel as columns (`column.rs`, `batch.rs`); this file is the typed door for collectors, replays and tests.

use std::sync::Arc;

use crate::column::Column;
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
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
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
    /// argv as a JSON array of strings, `argv[0]` included.
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
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
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

/// One known value of an event, as its column's type has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell<'a> {
    /// A text.
    Text(&'a Text),
    /// An integer; unsigned 64-bit values keep their bits.
    Int(i64),
}

/// What a field of an event may be made of.
trait Value: Sized {
    fn cell(&self) -> Cell<'_>;
    fn from_cell(cell: Cell<'_>) -> Option<Self>;
}

impl Value for Text {
    fn cell(&self) -> Cell<'_> {
        Cell::Text(self)
    }
    fn from_cell(cell: Cell<'_>) -> Option<Self> {
        if let Cell::Text(text) = cell { Some(Self::clone(text)) } else { None }
    }
}

macro_rules! int_value {
    ($($ty:ty),*) => {$(
        impl Value for $ty {
            fn cell(&self) -> Cell<'_> {
                Cell::Int(i64::from(*self))
            }
            fn from_cell(cell: Cell<'_>) -> Option<Self> {
                if let Cell::Int(int) = cell { Self::try_from(int).ok() } else { None }
            }
        }
    )*};
}
int_value!(u16, u32, i32);

impl Value for u64 {
    fn cell(&self) -> Cell<'_> {
        Cell::Int(self.cast_signed())
    }
    fn from_cell(cell: Cell<'_>) -> Option<Self> {
        if let Cell::Int(int) = cell { Some(int.cast_unsigned()) } else { None }
    }
}

/// Gives a struct of optional fields its two column-wise doors.
macro_rules! by_column {
    ($ty:ty { $($field:ident = $column:ident,)* }) => {
        impl $ty {
            /// Calls `found` with each known optional field, in column order of its declaration.
            #[inline]
            pub fn each(&self, mut found: impl FnMut(Column, Cell<'_>)) {
                $(if let Some(value) = &self.$field { found(Column::$column, value.cell()); })*
            }

            /// Sets the field of `column`. False when there is none, or when the value does not fit it.
            pub fn set(&mut self, column: Column, cell: Cell<'_>) -> bool {
                match column {
                    $(Column::$column => {
                        self.$field = Value::from_cell(cell);
                        self.$field.is_some()
                    })*
                    _ => false,
                }
            }
        }
    };
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

by_column!(Process {
    ppid = Ppid,
    parent_start_ns = ParentStartNs,
    exe = Exe,
    comm = Comm,
    args = Args,
    cmdline = Cmdline,
    cwd = Cwd,
    uid = Uid,
    user_name = UserName,
    login_uid = LoginUid,
    tty = Tty,
    session_id = SessionId,
    parent_exe = ParentExe,
    parent_cmdline = ParentCmdline,
    ancestors = Ancestors,
    capabilities = Capabilities,
    cgroup = Cgroup,
    pid_ns = PidNs,
    mnt_ns = MntNs,
    net_ns = NetNs,
});

by_column!(Container {
    app = App,
    container_id = ContainerId,
    container_name = ContainerName,
    image = Image,
    namespace = Namespace,
    pod = Pod,
    workload = Workload,
});

by_column!(Fields {
    tid = Tid,
    result = Result,
    path = Path,
    path_to = PathTo,
    flags = Flags,
    mode = Mode,
    src_ip = SrcIp,
    src_port = SrcPort,
    dst_ip = DstIp,
    dst_port = DstPort,
    proto = Proto,
    direction = Direction,
    socket_id = SocketId,
    bytes_sent = BytesSent,
    bytes_received = BytesReceived,
    duration_ms = DurationMs,
    exit_code = ExitCode,
    signal = Signal,
    target_pid = TargetPid,
    dns_name = DnsName,
    dns_answers = DnsAnswers,
    isn_local = IsnLocal,
    isn_peer = IsnPeer,
    addresses = Addresses,
    detail = Detail,
    loss_class = LossClass,
    loss_first = LossFirst,
    loss_last = LossLast,
    loss_count = LossCount,
    loss_reason = LossReason,
    interval_ms = IntervalMs,
    cpu_ms = CpuMs,
    cpu_limit_ms = CpuLimitMs,
    mem_bytes = MemBytes,
    mem_limit_bytes = MemLimitBytes,
    io_read_bytes = IoReadBytes,
    io_write_bytes = IoWriteBytes,
    net_sent_bytes = NetSentBytes,
    net_received_bytes = NetReceivedBytes,
    processes = Processes,
    oom_kills = OomKills,
    throttled_ms = ThrottledMs,
});
