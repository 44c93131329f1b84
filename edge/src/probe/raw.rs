//! What the kernel told: one record, typed, before anything is looked up.
//!
//! Promise: every field is what the kernel said when the event happened; nothing is guessed, joined or resolved here. Times are
//! nanoseconds of the boot clock (`CLOCK_BOOTTIME`; `crate::clock` turns them into wall time). A fact that the kernel did not
//! give is `None`, and a pid of 0 becomes `who: None`.
//!
//! A process is (pid, start_ns): `start_ns` is `start_boottime` of the group leader, exact to the nanosecond. procfs shows the
//! same number cut to clock ticks, so match procfs rows with `Who::start_ticks`, or take `Probe::tasks` instead.

use std::net::IpAddr;

use super::call::Call;

/// One record of the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEvent {
    /// When it happened, nanoseconds of the boot clock.
    pub boot_ns: u64,
    /// Who did it. For TCP records: the process that owns the socket, at whatever time and in whatever context the kernel changed
    /// its state. `None`: the kernel could not say (a connection nobody accepted, or one older than the agent).
    pub who: Option<Who>,
    /// What happened.
    pub what: What,
}

/// A process as the kernel knows it at the time of the event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Who {
    /// Thread group id in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace; 0 when the record is not about one thread.
    pub tid: u32,
    /// Start of the group leader, boot clock: with `pid` the identity of the process in this boot.
    pub start_ns: u64,
    /// Parent's pid, 0 when there is none.
    pub ppid: u32,
    /// Start of the parent's group leader, boot clock.
    pub parent_start_ns: u64,
    /// Real user id.
    pub uid: u32,
    /// Pid inside the process's own pid namespace.
    pub ns_pid: u32,
    /// Inode of the v2 cgroup directory. 1 is the root: then `cgroup_v1` decides.
    pub cgroup_v2: u64,
    /// Inode of the directory in the hierarchy that carries the memory controller; equals `cgroup_v2` on a pure v2 host.
    pub cgroup_v1: u64,
    /// Mount namespace inode.
    pub mnt_ns: u32,
    /// Pid namespace inode.
    pub pid_ns: u32,
    /// Network namespace inode of the process.
    pub net_ns: u32,
    /// The kernel's 15-byte task name, lossy UTF-8.
    pub comm: String,
}

impl Who {
    /// Start as `/proc/PID/stat` field 22 shows it: clock ticks of 1/100 s.
    pub fn start_ticks(&self) -> u64 {
        self.start_ns / NS_PER_TICK
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A program was started; `who` is the process after it.
    Exec(Box<Exec>),
    /// `who` made a child process (threads are left out).
    Fork(Fork),
    /// The last thread of `who` ended.
    Exit(Exit),
    /// A TCP socket changed its state.
    Tcp(Box<Tcp>),
    /// `who` sent datagrams to a peer.
    Udp(Udp),
    /// A message of DNS left or reached a socket of `who`.
    Dns(Box<Dns>),
    /// `who` opened a file that the policy in the kernel let through.
    Open(Open),
    /// A cgroup directory was made or removed, or a process moved into one.
    Cgroup(Cgroup),
    /// `who` made a sensitive system call, and it returned. Its uid is the one from before the call.
    Call(Box<Call>),
}

/// A successful execve.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exec {
    /// The path given to execve.
    pub filename: Vec<u8>,
    /// The executable as the kernel resolved it (symbolic links and scripts followed), seen from the mount namespace's root.
    pub exe: Vec<u8>,
    /// Working directory, resolved.
    pub cwd: Vec<u8>,
    /// argv, one entry per argument, empty ones included.
    pub args: Vec<Vec<u8>>,
    /// argv was longer than the record: its last entry may be cut and more may be missing.
    pub args_truncated: bool,
    /// `exe` lacks leading components, or one of them was cut.
    pub exe_truncated: bool,
    /// The same for `cwd`.
    pub cwd_truncated: bool,
    /// The executable has no name in any directory: a memfd, or unlinked.
    pub exe_unlinked: bool,
    /// Effective user id.
    pub euid: u32,
    /// Real group id.
    pub gid: u32,
    /// Effective capabilities, one bit each.
    pub capabilities: u64,
    /// Login (audit) user id; `None`: never set, or the kernel has no audit.
    pub login_uid: Option<u32>,
    /// Session id in the initial pid namespace.
    pub session_id: u32,
    /// Controlling terminal, such as `pts0`; empty when there is none.
    pub tty: String,
}

/// A new process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fork {
    /// The child's pid.
    pub child_pid: u32,
    /// The child's start, boot clock.
    pub child_start_ns: u64,
    /// The child's parent: `who` but for CLONE_PARENT.
    pub child_ppid: u32,
}

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exit {
    /// Exit code, 0 when a signal ended it.
    pub code: u8,
    /// Signal that ended it, 0 when it exited.
    pub signal: u8,
    /// A core was dumped.
    pub core_dumped: bool,
}

/// What became of a TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TcpOp {
    /// Our side's connect succeeded.
    Connect,
    /// Our side's connect failed; `errno` says why when the kernel knew.
    Fail,
    /// A process took a connection from a listening socket.
    Accept,
    /// An established connection ended (its state became CLOSE, which may be later than close(2)).
    Close,
    /// A socket began to listen; `peer` is unspecified.
    Listen,
    /// Not an event: a connection or listener that was there when `Probe::sockets` looked.
    Seen,
}

/// Which side opened the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// This end connected.
    Client,
    /// This end accepted.
    Server,
    /// This socket listens.
    Listener,
}

/// One end of a TCP connection, addresses as this end sees them (IPv4-mapped IPv6 is shown as IPv4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    /// What became of it.
    pub op: TcpOp,
    /// Which side this is; `None` only for a connection older than the agent whose side cannot be told.
    pub role: Option<Role>,
    /// This end's address and port.
    pub local: (IpAddr, u16),
    /// The other end's address and port.
    pub peer: (IpAddr, u16),
    /// Socket cookie, unique in this boot; `None` when the socket never got one.
    pub cookie: Option<u64>,
    /// Network namespace inode of the socket (not of the process).
    pub net_ns: u32,
    /// This end's initial sequence number.
    pub isn_local: Option<u32>,
    /// The peer's: the mirror image of the other end's `isn_local`.
    pub isn_peer: Option<u32>,
    /// When the connection was established (Fail: when it was tried), boot clock.
    pub opened_ns: Option<u64>,
    /// Payload bytes sent, each counted once.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// Why it failed or broke; `None`: no error, or an attempt given up before its answer.
    pub errno: Option<u32>,
    /// Smoothed round trip time, microseconds.
    pub srtt_us: u32,
    /// Segments retransmitted.
    pub retransmits: u32,
    /// A closed server end that no process ever accepted.
    pub unaccepted: bool,
    /// Inode of the socket, as in `/proc/PID/fd` (`socket:[N]`); only `Seen` has it.
    pub inode: Option<u64>,
}

/// Datagrams from one socket to one peer: the first of them, or all since the last record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Udp {
    /// This end's address and port, as the datagram carries them.
    pub local: (IpAddr, u16),
    /// The other end's address and port.
    pub peer: (IpAddr, u16),
    /// Socket cookie.
    pub cookie: Option<u64>,
    /// Payload bytes.
    pub bytes: u64,
    /// Datagrams.
    pub datagrams: u64,
}

/// A message to or from port 53.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// This end's address and port, as the datagram carries them.
    pub local: (IpAddr, u16),
    /// The other end's address and port.
    pub peer: (IpAddr, u16),
    /// Socket cookie.
    pub cookie: Option<u64>,
    /// It reached the socket; else it left.
    pub inward: bool,
    /// The message, as far as there was room for it.
    pub payload: Vec<u8>,
    /// Bytes it had.
    pub whole: u32,
}

/// An opened file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Open {
    /// The path as the kernel resolved it, seen from the root of the process's mount namespace.
    pub path: Vec<u8>,
    /// `path` lacks leading components, or one of them was cut.
    pub truncated: bool,
    /// open(2) flags as the file keeps them (O_CREAT, O_EXCL, O_TRUNC are forgotten by the kernel once the file is open).
    pub flags: u32,
    /// File type and permission bits of the inode.
    pub mode: u32,
    /// Inode number.
    pub inode: u64,
}

/// What happened to a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CgroupOp {
    /// The directory was made (before any process is in it).
    Mkdir,
    /// The directory was removed.
    Rmdir,
    /// `Cgroup::task` was moved into it; `who` is the process that moved it.
    Attach,
}

/// A change of the cgroup tree. Only the v2 hierarchy and the one with the memory controller are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// What happened.
    pub op: CgroupOp,
    /// Inode of the directory: `Who::cgroup_v2` when `hierarchy` is 0, else `Who::cgroup_v1`.
    pub id: u64,
    /// Hierarchy id, 0 for v2. Ids are unique only inside one hierarchy.
    pub hierarchy: u32,
    /// Path from the root of the hierarchy.
    pub path: Vec<u8>,
    /// `path` was longer than the record.
    pub truncated: bool,
    /// Attach only: pid and start of the process that was moved.
    pub task: Option<(u32, u64)>,
}

/// procfs counts starts in ticks of USER_HZ, which is 100 on every architecture we run on.
const NS_PER_TICK: u64 = 10_000_000;
