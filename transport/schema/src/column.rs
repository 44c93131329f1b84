//! Every column that events and samples know: its wire number, its SQL name, its type and where its value is stored.
//!
//! Numbers below 192 stand in frames and are for ever: add at the end of a group, never reuse. Numbers from 192 on are never
//! sent: such a column is computed from the event's key, from the stamp of the server or from the host of the batch.

use std::collections::HashMap;
use std::sync::OnceLock;

/// What a column's values are. In Arrow: `Dictionary(UInt32, Utf8)`, `Int64`, `Timestamp(ns, "UTC")`, `Boolean`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ColumnType {
    /// UTF-8 text.
    Text,
    /// 64-bit integer; what the kernel counts unsigned keeps its bits.
    Int,
    /// Nanoseconds since the Unix epoch.
    Time,
    /// True or false.
    Bool,
}

/// Where the value of a column is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Home {
    /// In the section of the event's kind.
    Event,
    /// In the batch's table of processes.
    Process,
    /// In the batch's table of containers.
    Container,
    /// In the batch's host.
    Host,
    /// Nowhere: computed from the event's key or from the server's stamp.
    Key,
}

macro_rules! columns {
    ($($name:ident = $number:literal $text:literal $ty:ident $home:ident,)*) => {
        /// A column of `events` or `samples`, or one that only frames know.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        #[allow(missing_docs)]
        pub enum Column { $($name = $number,)* }

        impl Column {
            /// Every column, in number order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// SQL's and JSON's name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What its values are.
            pub const fn ty(self) -> ColumnType {
                match self { $(Self::$name => ColumnType::$ty,)* }
            }

            /// Where its value is stored.
            pub const fn home(self) -> Home {
                match self { $(Self::$name => Home::$home,)* }
            }

            /// The wire number.
            pub const fn number(self) -> u16 {
                self as u16
            }

            /// The column of a wire number.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

impl Column {
    /// True for columns whose integers may be below zero; all others count or name something, and keep their unsigned bits.
    pub const fn is_signed(self) -> bool {
        matches!(self, Self::Result | Self::ExitCode | Self::Signal)
    }

    /// The column of SQL's name.
    pub fn from_name(name: &str) -> Option<Self> {
        static NAMES: OnceLock<HashMap<&'static str, Column>> = OnceLock::new();
        NAMES.get_or_init(|| Self::ALL.iter().map(|column| (column.name(), *column)).collect()).get(name).copied()
    }
}

columns! {
    // In the section of a kind.
    Time = 1 "time" Time Event,
    ProcessRow = 2 "process_row" Int Event,
    ContainerRow = 3 "container_row" Int Event,
    Tid = 4 "tid" Int Event,
    Result = 5 "result" Int Event,
    Path = 6 "path" Text Event,
    PathTo = 7 "path_to" Text Event,
    Flags = 8 "flags" Int Event,
    Mode = 9 "mode" Int Event,
    SrcIp = 10 "src_ip" Text Event,
    SrcPort = 11 "src_port" Int Event,
    DstIp = 12 "dst_ip" Text Event,
    DstPort = 13 "dst_port" Int Event,
    Proto = 14 "proto" Text Event,
    Direction = 15 "direction" Text Event,
    SocketId = 16 "socket_id" Int Event,
    BytesSent = 17 "bytes_sent" Int Event,
    BytesReceived = 18 "bytes_received" Int Event,
    DurationMs = 19 "duration_ms" Int Event,
    ExitCode = 20 "exit_code" Int Event,
    Signal = 21 "signal" Int Event,
    TargetPid = 22 "target_pid" Int Event,
    DnsName = 23 "dns_name" Text Event,
    DnsAnswers = 24 "dns_answers" Text Event,
    IsnLocal = 25 "isn_local" Int Event,
    IsnPeer = 26 "isn_peer" Int Event,
    Addresses = 27 "addresses" Text Event,
    Detail = 28 "detail" Text Event,
    LossClass = 32 "loss_class" Text Event,
    LossFirst = 33 "loss_first" Int Event,
    LossLast = 34 "loss_last" Int Event,
    LossCount = 35 "loss_count" Int Event,
    LossReason = 36 "loss_reason" Text Event,
    IntervalMs = 48 "interval_ms" Int Event,
    CpuMs = 49 "cpu_ms" Int Event,
    CpuLimitMs = 50 "cpu_limit_ms" Int Event,
    MemBytes = 51 "mem_bytes" Int Event,
    MemLimitBytes = 52 "mem_limit_bytes" Int Event,
    IoReadBytes = 53 "io_read_bytes" Int Event,
    IoWriteBytes = 54 "io_write_bytes" Int Event,
    NetSentBytes = 55 "net_sent_bytes" Int Event,
    NetReceivedBytes = 56 "net_received_bytes" Int Event,
    Processes = 57 "processes" Int Event,
    OomKills = 58 "oom_kills" Int Event,
    ThrottledMs = 59 "throttled_ms" Int Event,
    // In the table of processes.
    Pid = 96 "pid" Int Process,
    StartNs = 97 "start_ns" Int Process,
    Ppid = 98 "ppid" Int Process,
    ParentStartNs = 99 "parent_start_ns" Int Process,
    Exe = 100 "exe" Text Process,
    Comm = 101 "comm" Text Process,
    Args = 102 "args" Text Process,
    Cmdline = 103 "cmdline" Text Process,
    Cwd = 104 "cwd" Text Process,
    Uid = 105 "uid" Int Process,
    UserName = 106 "user_name" Text Process,
    LoginUid = 107 "login_uid" Int Process,
    Tty = 108 "tty" Text Process,
    SessionId = 109 "session_id" Int Process,
    ParentExe = 110 "parent_exe" Text Process,
    ParentCmdline = 111 "parent_cmdline" Text Process,
    Ancestors = 112 "ancestors" Text Process,
    Capabilities = 113 "capabilities" Text Process,
    Cgroup = 114 "cgroup" Text Process,
    PidNs = 115 "pid_ns" Int Process,
    MntNs = 116 "mnt_ns" Int Process,
    NetNs = 117 "net_ns" Int Process,
    // In the table of containers.
    App = 144 "app" Text Container,
    ContainerId = 145 "container_id" Text Container,
    ContainerName = 146 "container_name" Text Container,
    Image = 147 "image" Text Container,
    Namespace = 148 "namespace" Text Container,
    Pod = 149 "pod" Text Container,
    Workload = 150 "workload" Text Container,
    // Never in a frame as columns.
    Host = 192 "host" Text Host,
    Cloud = 193 "cloud" Text Host,
    Zone = 194 "zone" Text Host,
    BootId = 195 "boot_id" Text Host,
    Simulated = 196 "simulated" Bool Host,
    EventId = 224 "event_id" Text Key,
    Received = 225 "received" Time Key,
    Kind = 226 "kind" Text Key,
    Tenant = 227 "tenant" Text Key,
    Region = 228 "region" Text Key,
    ProcessId = 229 "process_id" Text Key,
    ParentProcessId = 230 "parent_process_id" Text Key,
    Agent = 231 "agent" Text Key,
    Late = 232 "late" Bool Key,
    Tick = 233 "tick" Int Key,
    Imported = 234 "imported" Bool Key,
}

/// One more than the highest number that stands in a frame.
pub(crate) const SENT_NUMBERS: usize = 192;

/// Columns of the relation `events`, in its order; what only Weir adds comes last.
pub const EVENTS: &[Column] = {
    use Column::*;
    &[
        EventId,
        Time,
        Received,
        Kind,
        Tenant,
        Cloud,
        Region,
        Zone,
        Host,
        App,
        ContainerId,
        ContainerName,
        Image,
        Namespace,
        Pod,
        Workload,
        ProcessId,
        Pid,
        Tid,
        Ppid,
        Exe,
        Comm,
        Args,
        Cmdline,
        Cwd,
        Uid,
        UserName,
        LoginUid,
        Tty,
        SessionId,
        ParentProcessId,
        ParentExe,
        ParentCmdline,
        Ancestors,
        Capabilities,
        Result,
        Path,
        PathTo,
        Flags,
        Mode,
        SrcIp,
        SrcPort,
        DstIp,
        DstPort,
        Proto,
        Direction,
        SocketId,
        BytesSent,
        BytesReceived,
        DurationMs,
        ExitCode,
        Signal,
        TargetPid,
        DnsName,
        DnsAnswers,
        Cgroup,
        PidNs,
        MntNs,
        NetNs,
        IsnLocal,
        IsnPeer,
        Addresses,
        Detail,
        Agent,
        BootId,
        Simulated,
        Late,
        Tick,
        Imported,
    ]
};

/// Columns of the relation `samples`, in its order; what only Weir adds comes last.
pub const SAMPLES: &[Column] = {
    use Column::*;
    &[
        Time,
        IntervalMs,
        Tenant,
        Cloud,
        Region,
        Zone,
        Host,
        App,
        ContainerId,
        CpuMs,
        CpuLimitMs,
        MemBytes,
        MemLimitBytes,
        IoReadBytes,
        IoWriteBytes,
        NetSentBytes,
        NetReceivedBytes,
        Processes,
        OomKills,
        ThrottledMs,
        Agent,
        BootId,
        Simulated,
        Late,
        Tick,
        Imported,
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_unique_and_found_again() {
        for column in Column::ALL {
            assert_eq!(Column::from_name(column.name()), Some(*column));
            assert_eq!(Column::from_number(column.number()), Some(*column));
            let sent = matches!(column.home(), Home::Event | Home::Process | Home::Container);
            assert_eq!(sent, usize::from(column.number()) < SENT_NUMBERS, "{column:?}");
        }
    }

    #[test]
    fn the_relations_have_the_columns_that_users_know() {
        let events = "event_id, time, received, kind, tenant, cloud, region, zone, host, app, container_id, container_name, \
            image, namespace, pod, workload, process_id, pid, tid, ppid, exe, comm, args, cmdline, cwd, uid, user_name, \
            login_uid, tty, session_id, parent_process_id, parent_exe, parent_cmdline, ancestors, capabilities, result, path, \
            path_to, flags, mode, src_ip, src_port, dst_ip, dst_port, proto, direction, socket_id, bytes_sent, bytes_received, \
            duration_ms, exit_code, signal, target_pid, dns_name, dns_answers, cgroup, pid_ns, mnt_ns, net_ns, isn_local, \
            isn_peer, addresses, detail, agent, boot_id, simulated, late, tick, imported";
        assert_eq!(EVENTS.iter().map(|c| c.name()).collect::<Vec<_>>(), events.split(", ").collect::<Vec<_>>());
        let samples = "time, interval_ms, tenant, cloud, region, zone, host, app, container_id, cpu_ms, cpu_limit_ms, mem_bytes, \
            mem_limit_bytes, io_read_bytes, io_write_bytes, net_sent_bytes, net_received_bytes, processes, oom_kills, \
            throttled_ms, agent, boot_id, simulated, late, tick, imported";
        assert_eq!(SAMPLES.iter().map(|c| c.name()).collect::<Vec<_>>(), samples.split(", ").collect::<Vec<_>>());
    }
}
