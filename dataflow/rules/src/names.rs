//! Names of numbers and kinds as Falco prints them: system calls, errors, open flags, capabilities.

use weir_schema::Kind;

/// The system calls that a kind of event stands for, the one that is printed first. Our hooks sit below the calls, where
/// `open` and `openat` are the same; a rule that asks for either gets both.
pub(crate) fn calls(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Exec => &["execve", "execveat"],
        Kind::Exit => &["procexit"],
        Kind::Fork => &["clone", "fork", "vfork", "clone3"],
        Kind::Connect => &["connect"],
        Kind::Accept => &["accept4", "accept"],
        Kind::Close => &["close", "shutdown"],
        Kind::Listen => &["listen"],
        Kind::Send => &["sendto", "sendmsg", "sendmmsg"],
        Kind::Dns => &["dns"],
        Kind::Open => &["openat", "open", "openat2", "creat", "open_by_handle_at"],
        Kind::Write => &["write", "pwrite", "writev", "pwritev"],
        Kind::Unlink => &["unlinkat", "unlink", "rmdir"],
        Kind::Rename => &["renameat2", "rename", "renameat"],
        Kind::Link => &["linkat", "link"],
        Kind::Symlink => &["symlinkat", "symlink"],
        Kind::Chmod => &["fchmodat", "chmod", "fchmod"],
        Kind::Chown => &["fchownat", "chown", "fchown", "lchown"],
        Kind::Mkdir => &["mkdirat", "mkdir"],
        Kind::Mount => &["mount"],
        Kind::Umount => &["umount2", "umount"],
        Kind::Setuid => &["setuid", "setreuid", "setresuid"],
        Kind::Setgid => &["setgid", "setregid", "setresgid"],
        Kind::Capset => &["capset"],
        Kind::Ptrace => &["ptrace"],
        Kind::Setns => &["setns"],
        Kind::Unshare => &["unshare"],
        Kind::Chroot => &["chroot", "pivot_root"],
        Kind::Bpf => &["bpf"],
        Kind::Module => &["init_module", "finit_module"],
        Kind::Memfd => &["memfd_create"],
        Kind::Mprotect => &["mprotect"],
        Kind::Socket => &["socket"],
        Kind::Dup => &["dup3", "dup", "dup2"],
        Kind::Kill => &["kill", "tgkill", "tkill"],
        Kind::Signal => &["signaldeliver"],
        Kind::Truncate => &["ftruncate", "truncate"],
        Kind::Userfaultfd => &["userfaultfd"],
        Kind::IoUring => &["io_uring_setup", "io_uring_enter", "io_uring_register"],
        Kind::ContainerStart => &["container"],
        Kind::ContainerStop | Kind::ContainerUpdate | Kind::HostStart | Kind::HostStop | Kind::Loss | Kind::Sample => &[],
    }
}

/// Falco's category of a kind.
pub(crate) fn category(kind: Kind) -> &'static str {
    match kind {
        Kind::Exec | Kind::Exit | Kind::Fork | Kind::Setns | Kind::Unshare | Kind::Ptrace | Kind::Capset | Kind::Chroot => {
            "process"
        }
        Kind::Connect | Kind::Accept | Kind::Close | Kind::Listen | Kind::Send | Kind::Dns | Kind::Socket => "net",
        Kind::Open | Kind::Unlink | Kind::Rename | Kind::Link | Kind::Symlink | Kind::Chmod | Kind::Chown | Kind::Mkdir => "file",
        Kind::Truncate | Kind::Mount | Kind::Umount => "file",
        Kind::Write => "io-write",
        Kind::Setuid | Kind::Setgid => "user",
        Kind::Kill | Kind::Signal => "signal",
        Kind::Memfd | Kind::Mprotect => "memory",
        Kind::Dup => "IPC",
        Kind::Bpf | Kind::Module | Kind::Userfaultfd | Kind::IoUring => "system",
        Kind::ContainerStart | Kind::ContainerStop | Kind::ContainerUpdate => "internal",
        Kind::HostStart | Kind::HostStop | Kind::Loss | Kind::Sample => "internal",
    }
}

/// The name of an errno on Linux; unknown ones by number.
pub(crate) fn errno(errno: i32) -> String {
    let known = ERRNOS.iter().find(|(number, _)| *number == errno);
    known.map_or_else(|| errno.to_string(), |(_, name)| (*name).to_owned())
}

const ERRNOS: &[(i32, &str)] = &[
    (0, "SUCCESS"),
    (1, "EPERM"),
    (2, "ENOENT"),
    (3, "ESRCH"),
    (4, "EINTR"),
    (5, "EIO"),
    (6, "ENXIO"),
    (7, "E2BIG"),
    (8, "ENOEXEC"),
    (9, "EBADF"),
    (10, "ECHILD"),
    (11, "EAGAIN"),
    (12, "ENOMEM"),
    (13, "EACCES"),
    (14, "EFAULT"),
    (16, "EBUSY"),
    (17, "EEXIST"),
    (18, "EXDEV"),
    (19, "ENODEV"),
    (20, "ENOTDIR"),
    (21, "EISDIR"),
    (22, "EINVAL"),
    (23, "ENFILE"),
    (24, "EMFILE"),
    (25, "ENOTTY"),
    (26, "ETXTBSY"),
    (27, "EFBIG"),
    (28, "ENOSPC"),
    (29, "ESPIPE"),
    (30, "EROFS"),
    (31, "EMLINK"),
    (32, "EPIPE"),
    (36, "ENAMETOOLONG"),
    (38, "ENOSYS"),
    (39, "ENOTEMPTY"),
    (40, "ELOOP"),
    (95, "EOPNOTSUPP"),
    (97, "EAFNOSUPPORT"),
    (98, "EADDRINUSE"),
    (99, "EADDRNOTAVAIL"),
    (100, "ENETDOWN"),
    (101, "ENETUNREACH"),
    (103, "ECONNABORTED"),
    (104, "ECONNRESET"),
    (106, "EISCONN"),
    (107, "ENOTCONN"),
    (110, "ETIMEDOUT"),
    (111, "ECONNREFUSED"),
    (112, "EHOSTDOWN"),
    (113, "EHOSTUNREACH"),
    (114, "EALREADY"),
    (115, "EINPROGRESS"),
    (125, "ECANCELED"),
];

/// The access part of open flags.
pub(crate) const ACCESS: u32 = 0o3;
/// Only to write.
pub(crate) const WRITE_ONLY: u32 = 0o1;
/// To read and write.
pub(crate) const READ_WRITE: u32 = 0o2;
/// Creates the file if it is not there.
pub(crate) const CREATE: u32 = 0o100;
/// Fails on what is no directory.
pub(crate) const DIRECTORY: u32 = 0o200_000;

/// Open flags (x86-64 numbers) in Falco's words, joined by `|`.
pub(crate) fn open_flags(flags: u32) -> String {
    let access = match flags & ACCESS {
        WRITE_ONLY => "O_WRONLY",
        READ_WRITE => "O_RDWR",
        _ => "O_RDONLY",
    };
    let names = [
        (CREATE, "O_CREAT"),
        (0o200, "O_EXCL"),
        (0o1_000, "O_TRUNC"),
        (0o2_000, "O_APPEND"),
        (0o4_000, "O_NONBLOCK"),
        (0o40_000, "O_DIRECT"),
        (0o100_000, "O_LARGEFILE"),
        (DIRECTORY, "O_DIRECTORY"),
        (0o2_000_000, "O_CLOEXEC"),
    ];
    joined(access, flags, &names)
}

/// Namespace flags of clone, unshare and setns.
pub(crate) fn clone_flags(flags: u32) -> String {
    let names = [
        (0x0002_0000, "CLONE_NEWNS"),
        (0x0200_0000, "CLONE_NEWCGROUP"),
        (0x0400_0000, "CLONE_NEWUTS"),
        (0x0800_0000, "CLONE_NEWIPC"),
        (0x1000_0000, "CLONE_NEWUSER"),
        (0x2000_0000, "CLONE_NEWPID"),
        (0x4000_0000, "CLONE_NEWNET"),
    ];
    joined("", flags, &names)
}

fn joined(first: &str, flags: u32, names: &[(u32, &str)]) -> String {
    let mut text = first.to_owned();
    for (_, name) in names.iter().filter(|(bit, _)| flags & bit != 0) {
        if !text.is_empty() {
            text.push('|');
        }
        text.push_str(name);
    }
    text
}

/// Capabilities of a hexadecimal mask, by name, joined by blanks as Falco prints them.
pub(crate) fn capabilities(mask: &str) -> Option<String> {
    let bits = u64::from_str_radix(mask.trim_start_matches("0x"), 16).ok()?;
    let held = CAPABILITIES.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, name)| format!("CAP_{name}"));
    Some(held.collect::<Vec<_>>().join(" "))
}

/// By bit, as in `linux/capability.h`.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_names() {
        assert_eq!((errno(0).as_str(), errno(115).as_str(), errno(999).as_str()), ("SUCCESS", "EINPROGRESS", "999"));
        assert_eq!(open_flags(0o102), "O_RDWR|O_CREAT");
        assert_eq!(clone_flags(0x6000_0000), "CLONE_NEWPID|CLONE_NEWNET");
        assert_eq!(capabilities("0000000000200001").as_deref(), Some("CAP_CHOWN CAP_SYS_ADMIN"));
        assert_eq!(capabilities("x"), None);
    }
}
