//! A system call as columns: what has none stands in `detail`, under the names that manual pages use.
//!
//! `result` is 0 or the errno. A path is joined with the directory it starts from where that is exact; `detail.path_from` says from
//! what (`cwd`, `dirfd`, `fd`), `detail.path_given` what was passed, `detail.path_unresolved` that nothing was known to join it with.

use serde_json::{Map, Value};
use weir_schema::{Fields, Kind, Text};

use super::{Texts, json, lossy};
use crate::probe::call::{Call, Path};
use crate::probe::call_table::{CallName, Start};
use crate::probe::raw::{Role, Who};

/// The process it reaches into, as a pid of the initial pid namespace. Known from the signal, or where the caller's numbers are the
/// host's; else `detail.target_ns_pid` has the number that was passed.
pub(super) fn target(call: &Call, who: &Who) -> Option<u32> {
    let same = who.pid_ns == PID_NS_INIT;
    call.target.map(|target| target.0).or_else(|| passed_target(call).filter(|_| same))
}

/// The pid that was passed, in the caller's namespace; not a group's, and not of a thread.
fn passed_target(call: &Call) -> Option<u32> {
    let argument = match call.name {
        CallName::Ptrace if call.args[0] != PTRACE_TRACEME => call.args[1],
        CallName::ProcessVmReadv | CallName::ProcessVmWritev => call.args[0],
        CallName::Kill | CallName::Tgkill | CallName::RtSigqueueinfo | CallName::RtTgsigqueueinfo => call.args[0],
        _ => return None,
    };
    u32::try_from(argument as i32).ok().filter(|pid| *pid != 0)
}

pub(super) fn fields(call: &Call, who: &Who, target: Option<u32>, target_exe: Option<Text>, texts: &mut Texts) -> Fields {
    let mut detail = Map::new();
    detail.insert("call".into(), call.name.as_str().into());
    let mut fields = Fields { result: Some(errno(call.result)), target_pid: target, ..Fields::default() };
    paths(call, &mut fields, &mut detail);
    if let Some(exe) = target_exe {
        detail.insert("target_exe".into(), exe.as_ref().into());
    }
    if let (None, Some(pid)) = (target, passed_target(call)) {
        detail.insert("target_ns_pid".into(), pid.into());
    }
    match call.name.kind() {
        Kind::Setuid | Kind::Setgid | Kind::Capset => credentials(call, &mut detail),
        Kind::Setns | Kind::Unshare => namespaces(call, who, &mut fields, &mut detail),
        Kind::Dup => duplicated(call, &mut fields, &mut detail, texts),
        Kind::Unlink | Kind::Rename | Kind::Link | Kind::Symlink | Kind::Chmod | Kind::Chown | Kind::Mkdir | Kind::Truncate => {
            change(call, &mut fields, &mut detail);
        }
        _ if call.has_args => others(call, &mut fields, &mut detail),
        _ => {}
    }
    fields.detail = json(detail);
    fields
}

fn paths(call: &Call, fields: &mut Fields, detail: &mut Map<String, Value>) {
    let mut told = |path: &Option<Path>, key: &str| {
        let path = path.as_ref()?;
        let from = path.start.map(|start| match start {
            Start::Cwd => "cwd",
            Start::Dirfd => "dirfd",
            Start::Fd => "fd",
        });
        if let Some(from) = from {
            if path.base.is_empty() {
                detail.insert(format!("{key}_unresolved"), true.into());
            } else {
                detail.insert(format!("{key}_from"), from.into());
            }
            if !path.given.is_empty() {
                detail.insert(format!("{key}_given"), lossy(&path.given).as_ref().into());
            }
        }
        if path.truncated {
            detail.insert(format!("{key}_truncated"), true.into());
        }
        Some(lossy(&path.joined()))
    };
    let (path, to) = (told(&call.path, "path"), told(&call.to, "path_to"));
    match call.name {
        // What is mounted is no path of the result.
        CallName::Mount | CallName::MoveMount => {
            fields.path = path;
            if let Some(source) = to {
                detail.insert("source".into(), source.as_ref().into());
            }
        }
        // As an exec of it names it.
        CallName::MemfdCreate => fields.path = Some(format!("memfd:{}", path.as_deref().unwrap_or("")).into()),
        CallName::DeleteModule => {
            if let Some(name) = path {
                detail.insert("module".into(), name.as_ref().into());
            }
        }
        _ => (fields.path, fields.path_to) = (path, to),
    }
}

fn credentials(call: &Call, detail: &mut Map<String, Value>) {
    let (before, after) = (call.before, call.after);
    let mut pair = |name: &str, before: u32, after: u32| {
        detail.insert(format!("{name}_from"), before.into());
        detail.insert(format!("{name}_to"), after.into());
    };
    match call.name.kind() {
        Kind::Setuid => {
            pair("uid", before.uid, after.uid);
            pair("euid", before.euid, after.euid);
        }
        Kind::Setgid => {
            pair("gid", before.gid, after.gid);
            pair("egid", before.egid, after.egid);
        }
        _ => {}
    }
    // A setuid away from root takes capabilities as well.
    if call.name.kind() == Kind::Capset || before.capabilities != after.capabilities {
        detail.insert("capabilities_from".into(), format!("{:016x}", before.capabilities).into());
        detail.insert("capabilities_to".into(), format!("{:016x}", after.capabilities).into());
    }
}

fn namespaces(call: &Call, who: &Who, fields: &mut Fields, detail: &mut Map<String, Value>) {
    let flags = if call.name == CallName::Setns { call.args[1] } else { call.args[0] };
    fields.flags = Some(flags as u32);
    let named: Vec<&str> = NAMESPACES.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    if !named.is_empty() {
        detail.insert("namespaces".into(), named.into());
    }
    if let Some(inode) = call.inode {
        detail.insert("fd_inode".into(), inode.into());
    }
    for (name, before, after) in
        [("mnt_ns_from", call.mnt_ns_before, who.mnt_ns), ("net_ns_from", call.net_ns_before, who.net_ns)]
    {
        if before != after && before != 0 {
            detail.insert(name.into(), before.into());
        }
    }
}

/// `src_*` is the initiator, as everywhere; where nobody knows which side it is, this end stands first.
fn duplicated(call: &Call, fields: &mut Fields, detail: &mut Map<String, Value>, texts: &mut Texts) {
    detail.insert("old_fd".into(), (call.args[0] as i32).into());
    let fd = if call.name == CallName::Dup { call.result } else { i64::from(call.args[1] as i32) };
    if fd >= 0 {
        detail.insert("fd".into(), fd.into());
    }
    let Some(ends) = call.ends else { return };
    let (src, dst) = if ends.role == Some(Role::Server) { (ends.peer, ends.local) } else { (ends.local, ends.peer) };
    (fields.src_ip, fields.src_port) = (Some(texts.address(src.0)), Some(src.1));
    (fields.dst_ip, fields.dst_port) = (Some(texts.address(dst.0)), Some(dst.1));
    fields.direction = match ends.role {
        Some(Role::Client) => Some(texts.out.clone()),
        Some(Role::Server | Role::Listener) => Some(texts.inward.clone()),
        None => None,
    };
    fields.socket_id = ends.cookie;
    fields.proto = match call.extra {
        IPPROTO_TCP => Some(texts.tcp.clone()),
        IPPROTO_UDP => Some("udp".into()),
        _ => None,
    };
}

fn change(call: &Call, fields: &mut Fields, detail: &mut Map<String, Value>) {
    let args = call.args;
    match call.name {
        CallName::Unlinkat => {
            fields.flags = Some(args[2] as u32);
            if args[2] & AT_REMOVEDIR != 0 {
                detail.insert("directory".into(), true.into());
            }
        }
        CallName::Rmdir => {
            detail.insert("directory".into(), true.into());
        }
        CallName::Renameat2 | CallName::Linkat => fields.flags = Some(args[4] as u32),
        CallName::Chmod | CallName::Fchmod | CallName::Mkdir => fields.mode = Some(args[1] as u32 & 0o7777),
        CallName::Fchmodat | CallName::Fchmodat2 | CallName::Mkdirat => fields.mode = Some(args[2] as u32 & 0o7777),
        CallName::Truncate | CallName::Ftruncate => {
            detail.insert("bytes".into(), args[1].into());
        }
        CallName::Chown | CallName::Lchown | CallName::Fchown | CallName::Fchownat => {
            let at = if call.name == CallName::Fchownat { 2 } else { 1 };
            // -1 leaves it as it is.
            for (name, id) in [("owner", args[at] as u32), ("group", args[at + 1] as u32)] {
                if id != u32::MAX {
                    detail.insert(name.into(), id.into());
                }
            }
        }
        _ => {}
    }
}

fn others(call: &Call, fields: &mut Fields, detail: &mut Map<String, Value>) {
    let args = call.args;
    let mut tell = |key: &str, value: Value| detail.insert(key.into(), value);
    match call.name {
        CallName::Ptrace => {
            tell("request", named(&PTRACE_REQUESTS, args[0]));
        }
        CallName::Mount => {
            fields.flags = Some(args[3] as u32);
            if !call.text.is_empty() {
                tell("fstype", call.text.as_str().into());
            }
        }
        CallName::MoveMount => fields.flags = Some(args[4] as u32),
        CallName::Umount | CallName::MemfdCreate | CallName::DeleteModule => fields.flags = Some(args[1] as u32),
        CallName::FinitModule => fields.flags = Some(args[2] as u32),
        CallName::Userfaultfd => fields.flags = Some(args[0] as u32),
        CallName::InitModule => {
            tell("bytes", args[1].into());
        }
        CallName::IoUringSetup => {
            fields.flags = Some(call.extra);
            tell("entries", (args[0] as u32).into());
        }
        CallName::Bpf => {
            tell("command", named(&BPF_COMMANDS, args[0]));
            if matches!(args[0], BPF_MAP_CREATE | BPF_PROG_LOAD) {
                tell(if args[0] == BPF_PROG_LOAD { "program_type" } else { "map_type" }, call.extra.into());
            }
            if !call.text.is_empty() {
                tell("name", call.text.as_str().into());
            }
        }
        CallName::Socket => {
            tell("family", named(&FAMILIES, args[0]));
            tell("type", named(&SOCKET_TYPES, args[1] & 15));
            // A packet socket's is an EtherType in network order.
            let protocol = args[2] as u32;
            tell("protocol", if args[0] == AF_PACKET { u16::from_be(protocol as u16).into() } else { protocol.into() });
        }
        CallName::Mmap | CallName::Mprotect | CallName::PkeyMprotect => {
            fields.flags = Some(args[2] as u32);
            tell(
                "address",
                format!(
                    "{:#x}",
                    if call.name == CallName::Mmap && call.result > 0 { call.result.cast_unsigned() } else { args[0] }
                )
                .into(),
            );
            tell("bytes", args[1].into());
        }
        CallName::Kill | CallName::Tkill | CallName::RtSigqueueinfo | CallName::PidfdSendSignal => {
            fields.signal = Some(args[1] as i32);
        }
        CallName::Tgkill | CallName::RtTgsigqueueinfo => fields.signal = Some(args[2] as i32),
        _ => {}
    }
}

fn errno(result: i64) -> i32 {
    // An address is below zero too where the kernel hands out high ones; an errno is at most 4095.
    if (-4095..0).contains(&result) { -result as i32 } else { 0 }
}

fn named(names: &[(u64, &str)], number: u64) -> Value {
    names.iter().find(|(known, _)| *known == number).map_or_else(|| number.into(), |(_, name)| (*name).into())
}

/// Inode of the initial pid namespace, the same on every kernel.
const PID_NS_INIT: u32 = 0xEFFF_FFFC;
const PTRACE_TRACEME: u64 = 0;
const AT_REMOVEDIR: u64 = 0x200;
const AF_PACKET: u64 = 17;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const BPF_MAP_CREATE: u64 = 0;
const BPF_PROG_LOAD: u64 = 5;
const NAMESPACES: [(u64, &str); 8] = [
    (0x0002_0000, "mnt"),
    (0x0400_0000, "uts"),
    (0x0800_0000, "ipc"),
    (0x1000_0000, "user"),
    (0x2000_0000, "pid"),
    (0x4000_0000, "net"),
    (0x0200_0000, "cgroup"),
    (0x0000_0080, "time"),
];
const PTRACE_REQUESTS: [(u64, &str); 8] = [
    (PTRACE_TRACEME, "traceme"),
    (4, "poketext"),
    (5, "pokedata"),
    (6, "pokeuser"),
    (13, "setregs"),
    (16, "attach"),
    (0x4205, "setregset"),
    (0x4206, "seize"),
];
const BPF_COMMANDS: [(u64, &str); 14] = [
    (BPF_MAP_CREATE, "map_create"),
    (BPF_PROG_LOAD, "prog_load"),
    (6, "obj_pin"),
    (7, "obj_get"),
    (8, "prog_attach"),
    (9, "prog_detach"),
    (10, "prog_test_run"),
    (17, "raw_tracepoint_open"),
    (18, "btf_load"),
    (28, "link_create"),
    (29, "link_update"),
    (33, "iter_create"),
    (34, "link_detach"),
    (36, "token_create"),
];
const FAMILIES: [(u64, &str); 3] = [(2, "inet"), (10, "inet6"), (AF_PACKET, "packet")];
const SOCKET_TYPES: [(u64, &str); 4] = [(1, "stream"), (2, "dgram"), (3, "raw"), (10, "packet")];
