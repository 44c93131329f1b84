//! System calls and errors by name and number, for recordings of others: which kind of event a call is.

use weir_schema::Kind;

/// The kind that stands for a call. Falco's `procexit` and `signaldeliver` are no calls but named like them.
pub(super) fn kind_of(call: &str) -> Option<Kind> {
    Some(match call {
        "execve" | "execveat" => Kind::Exec,
        "procexit" | "exit_group" => Kind::Exit,
        "fork" | "vfork" | "clone" | "clone3" => Kind::Fork,
        "connect" => Kind::Connect,
        "accept" | "accept4" => Kind::Accept,
        "close" | "shutdown" => Kind::Close,
        "listen" => Kind::Listen,
        "sendto" | "sendmsg" | "sendmmsg" => Kind::Send,
        "open" | "openat" | "openat2" | "creat" | "open_by_handle_at" => Kind::Open,
        "write" | "pwrite" | "pwrite64" | "writev" | "pwritev" => Kind::Write,
        "unlink" | "unlinkat" | "rmdir" => Kind::Unlink,
        "rename" | "renameat" | "renameat2" => Kind::Rename,
        "link" | "linkat" => Kind::Link,
        "symlink" | "symlinkat" => Kind::Symlink,
        "chmod" | "fchmod" | "fchmodat" | "fchmodat2" => Kind::Chmod,
        "chown" | "fchown" | "lchown" | "fchownat" => Kind::Chown,
        "mkdir" | "mkdirat" => Kind::Mkdir,
        "mount" => Kind::Mount,
        "umount" | "umount2" => Kind::Umount,
        "setuid" | "setreuid" | "setresuid" => Kind::Setuid,
        "setgid" | "setregid" | "setresgid" => Kind::Setgid,
        "capset" => Kind::Capset,
        "ptrace" => Kind::Ptrace,
        "setns" => Kind::Setns,
        "unshare" => Kind::Unshare,
        "chroot" | "pivot_root" => Kind::Chroot,
        "bpf" => Kind::Bpf,
        "init_module" | "finit_module" | "delete_module" => Kind::Module,
        "memfd_create" => Kind::Memfd,
        "mprotect" | "mmap" => Kind::Mprotect,
        "socket" => Kind::Socket,
        "dup" | "dup2" | "dup3" => Kind::Dup,
        "kill" | "tkill" | "tgkill" => Kind::Kill,
        "signaldeliver" => Kind::Signal,
        "truncate" | "ftruncate" => Kind::Truncate,
        "userfaultfd" => Kind::Userfaultfd,
        "io_uring_setup" => Kind::IoUring,
        _ => return None,
    })
}

/// The name of a call by the audit architecture (`arch=c000003e`) and number; only those that a kind stands for.
pub(super) fn call_of(arch: u32, number: u32) -> Option<&'static str> {
    let table = match arch {
        0xc000_003e => X86_64,
        0xc000_00b7 => AARCH64,
        0x4000_0003 => I386,
        _ => return None,
    };
    table.iter().find(|(known, _)| *known == number).map(|(_, name)| *name)
}

/// The number of an error's name, `SUCCESS` being 0.
pub(super) fn errno(name: &str) -> Option<i32> {
    if name == "SUCCESS" {
        return Some(0);
    }
    ERRNOS.iter().find(|(_, known)| *known == name).map(|(number, _)| *number)
}

#[rustfmt::skip]
const X86_64: &[(u32, &str)] = &[
    (59, "execve"), (322, "execveat"), (231, "exit_group"), (57, "fork"), (58, "vfork"), (56, "clone"), (435, "clone3"),
    (42, "connect"), (43, "accept"), (288, "accept4"), (50, "listen"), (44, "sendto"), (46, "sendmsg"), (307, "sendmmsg"),
    (2, "open"), (257, "openat"), (437, "openat2"), (85, "creat"), (87, "unlink"), (263, "unlinkat"), (84, "rmdir"),
    (82, "rename"), (264, "renameat"), (316, "renameat2"), (86, "link"), (265, "linkat"), (88, "symlink"), (266, "symlinkat"),
    (90, "chmod"), (91, "fchmod"), (268, "fchmodat"), (452, "fchmodat2"), (92, "chown"), (93, "fchown"), (94, "lchown"),
    (260, "fchownat"), (83, "mkdir"), (258, "mkdirat"), (165, "mount"), (166, "umount2"), (105, "setuid"), (113, "setreuid"),
    (117, "setresuid"), (106, "setgid"), (114, "setregid"), (119, "setresgid"), (126, "capset"), (101, "ptrace"),
    (308, "setns"), (272, "unshare"), (161, "chroot"), (321, "bpf"), (175, "init_module"), (313, "finit_module"),
    (176, "delete_module"), (319, "memfd_create"), (10, "mprotect"), (9, "mmap"), (41, "socket"), (32, "dup"), (33, "dup2"),
    (292, "dup3"), (62, "kill"), (200, "tkill"), (234, "tgkill"), (76, "truncate"), (77, "ftruncate"), (323, "userfaultfd"),
    (425, "io_uring_setup"),
];
#[rustfmt::skip]
const AARCH64: &[(u32, &str)] = &[
    (221, "execve"), (281, "execveat"), (94, "exit_group"), (220, "clone"), (435, "clone3"), (203, "connect"), (202, "accept"),
    (242, "accept4"), (201, "listen"), (206, "sendto"), (211, "sendmsg"), (269, "sendmmsg"), (56, "openat"), (437, "openat2"),
    (35, "unlinkat"), (38, "renameat"), (276, "renameat2"), (37, "linkat"), (36, "symlinkat"), (52, "fchmod"), (53, "fchmodat"),
    (452, "fchmodat2"), (55, "fchown"), (54, "fchownat"), (34, "mkdirat"), (40, "mount"), (39, "umount2"), (146, "setuid"),
    (145, "setreuid"), (147, "setresuid"), (144, "setgid"), (143, "setregid"), (149, "setresgid"), (91, "capset"),
    (117, "ptrace"), (268, "setns"), (97, "unshare"), (51, "chroot"), (280, "bpf"), (105, "init_module"), (273, "finit_module"),
    (106, "delete_module"), (279, "memfd_create"), (226, "mprotect"), (222, "mmap"), (198, "socket"), (23, "dup"), (24, "dup3"),
    (129, "kill"), (130, "tkill"), (131, "tgkill"), (45, "truncate"), (46, "ftruncate"), (282, "userfaultfd"),
    (425, "io_uring_setup"),
];
#[rustfmt::skip]
const I386: &[(u32, &str)] = &[
    (11, "execve"), (358, "execveat"), (252, "exit_group"), (2, "fork"), (190, "vfork"), (120, "clone"), (435, "clone3"),
    (362, "connect"), (364, "accept4"), (363, "listen"), (369, "sendto"), (370, "sendmsg"), (345, "sendmmsg"), (5, "open"),
    (295, "openat"), (437, "openat2"), (8, "creat"), (10, "unlink"), (301, "unlinkat"), (40, "rmdir"), (38, "rename"),
    (302, "renameat"), (353, "renameat2"), (9, "link"), (303, "linkat"), (83, "symlink"), (304, "symlinkat"), (15, "chmod"),
    (94, "fchmod"), (306, "fchmodat"), (452, "fchmodat2"), (182, "chown"), (212, "chown"), (95, "fchown"), (207, "fchown"),
    (16, "lchown"), (198, "lchown"), (298, "fchownat"), (39, "mkdir"), (296, "mkdirat"), (21, "mount"), (52, "umount2"),
    (23, "setuid"), (213, "setuid"), (70, "setreuid"), (203, "setreuid"), (164, "setresuid"), (208, "setresuid"),
    (46, "setgid"), (214, "setgid"), (71, "setregid"), (204, "setregid"), (170, "setresgid"), (210, "setresgid"),
    (185, "capset"), (26, "ptrace"), (346, "setns"), (310, "unshare"), (61, "chroot"), (357, "bpf"), (128, "init_module"),
    (350, "finit_module"), (129, "delete_module"), (356, "memfd_create"), (125, "mprotect"), (192, "mmap"), (359, "socket"),
    (41, "dup"), (63, "dup2"), (330, "dup3"), (37, "kill"), (238, "tkill"), (270, "tgkill"), (92, "truncate"),
    (193, "truncate"), (93, "ftruncate"), (194, "ftruncate"), (374, "userfaultfd"), (425, "io_uring_setup"),
];
#[rustfmt::skip]
const ERRNOS: &[(i32, &str)] = &[
    (1, "EPERM"), (2, "ENOENT"), (3, "ESRCH"), (4, "EINTR"), (5, "EIO"), (6, "ENXIO"), (7, "E2BIG"), (8, "ENOEXEC"),
    (9, "EBADF"), (10, "ECHILD"), (11, "EAGAIN"), (12, "ENOMEM"), (13, "EACCES"), (14, "EFAULT"), (15, "ENOTBLK"),
    (16, "EBUSY"), (17, "EEXIST"), (18, "EXDEV"), (19, "ENODEV"), (20, "ENOTDIR"), (21, "EISDIR"), (22, "EINVAL"),
    (23, "ENFILE"), (24, "EMFILE"), (25, "ENOTTY"), (26, "ETXTBSY"), (27, "EFBIG"), (28, "ENOSPC"), (29, "ESPIPE"),
    (30, "EROFS"), (31, "EMLINK"), (32, "EPIPE"), (33, "EDOM"), (34, "ERANGE"), (35, "EDEADLK"), (36, "ENAMETOOLONG"),
    (37, "ENOLCK"), (38, "ENOSYS"), (39, "ENOTEMPTY"), (40, "ELOOP"), (61, "ENODATA"), (62, "ETIME"), (71, "EPROTO"),
    (74, "EBADMSG"), (75, "EOVERFLOW"), (84, "EILSEQ"), (85, "ERESTART"), (87, "EUSERS"), (88, "ENOTSOCK"),
    (89, "EDESTADDRREQ"), (90, "EMSGSIZE"), (91, "EPROTOTYPE"), (92, "ENOPROTOOPT"), (93, "EPROTONOSUPPORT"),
    (94, "ESOCKTNOSUPPORT"), (95, "EOPNOTSUPP"), (96, "EPFNOSUPPORT"), (97, "EAFNOSUPPORT"), (98, "EADDRINUSE"),
    (99, "EADDRNOTAVAIL"), (100, "ENETDOWN"), (101, "ENETUNREACH"), (102, "ENETRESET"), (103, "ECONNABORTED"),
    (104, "ECONNRESET"), (105, "ENOBUFS"), (106, "EISCONN"), (107, "ENOTCONN"), (108, "ESHUTDOWN"), (109, "ETOOMANYREFS"),
    (110, "ETIMEDOUT"), (111, "ECONNREFUSED"), (112, "EHOSTDOWN"), (113, "EHOSTUNREACH"), (114, "EALREADY"),
    (115, "EINPROGRESS"), (116, "ESTALE"), (117, "EUCLEAN"), (118, "ENOTNAM"), (119, "ENAVAIL"), (120, "EISNAM"),
    (121, "EREMOTEIO"), (122, "EDQUOT"), (123, "ENOMEDIUM"), (124, "EMEDIUMTYPE"), (125, "ECANCELED"), (126, "ENOKEY"),
    (127, "EKEYEXPIRED"), (128, "EKEYREVOKED"), (129, "EKEYREJECTED"), (130, "EOWNERDEAD"), (131, "ENOTRECOVERABLE"),
    (132, "ERFKILL"), (133, "EHWPOISON"),
];
