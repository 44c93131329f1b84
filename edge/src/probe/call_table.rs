//! The system calls that are told: what each is called, how the kernel filters it, and where its paths stand.
//!
//! One row is all that a call needs here; `bpf/call.h` reads the shapes and `enrich/call.rs` gives the columns. Numbers are of the ring
//! between kernel half and agent of one build, so they may change. A call that the architecture or the kernel lacks is not attached.

use aya::Ebpf;
use aya::maps::{Array, MapError};
use weir_schema::Kind;

/// What switches a call on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallGroup {
    /// Who one is, where one is, and what reaches into others.
    Security,
    /// Changes of files by their path or descriptor.
    Change,
    /// Memory that is writable and executable at once: every program maps memory, so these hooks are asked often.
    Memory,
}

/// Where things stand among a call's arguments, as `struct shape` has it.
#[derive(Debug, Clone, Copy)]
struct Shape {
    rule: u8,
    path: u8,
    dir: u8,
    to: u8,
    to_dir: u8,
    text: u8,
    aux: u8,
}

const NONE: Shape = Shape { rule: 0, path: NO, dir: NO, to: NO, to_dir: NO, text: NO, aux: NO };

macro_rules! calls {
    ($($name:ident = $id:literal $text:literal $number:expr => $group:ident $kind:ident { $($field:ident: $value:expr),* },)*) => {
        /// A system call that is told.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum CallName { $($name = $id,)* }

        impl CallName {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The kernel's name, as its tracepoints have it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The kind of event it becomes.
            pub fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind,)* }
            }

            /// What switches it on.
            pub fn group(self) -> CallGroup {
                match self { $(Self::$name => CallGroup::$group,)* }
            }

            /// Its number on this architecture, if it is there.
            pub(super) fn number(self) -> Option<libc::c_long> {
                match self { $(Self::$name => $number,)* }
            }

            fn shape(self) -> Shape {
                match self { $(Self::$name => Shape { $($field: $value,)* ..NONE },)* }
            }
        }
    };
}

/// Calls that newer architectures never had.
macro_rules! old {
    ($name:ident) => {{
        #[cfg(target_arch = "x86_64")]
        let number = Some(libc::$name);
        #[cfg(not(target_arch = "x86_64"))]
        let number = None;
        number
    }};
}

/// Where a path starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The working directory.
    Cwd,
    /// A descriptor of a directory.
    Dirfd,
    /// A descriptor of the object itself.
    Fd,
}

impl CallName {
    /// The call of a record.
    pub(super) fn from_u32(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|name| *name as u32 == id)
    }

    /// Where `path` starts when it is not absolute; nothing when it is no path.
    pub(super) fn start(self, args: &[u64; 6]) -> Option<Start> {
        let Shape { path, dir, .. } = self.shape();
        start(path, dir, args)
    }

    /// The same for the second path.
    pub(super) fn to_start(self, args: &[u64; 6]) -> Option<Start> {
        let Shape { to, to_dir, .. } = self.shape();
        start(to, to_dir, args)
    }

    fn bytes(self) -> [u8; 16] {
        let Shape { rule, path, dir, to, to_dir, text, aux } = self.shape();
        let change = u8::from(self.group() == CallGroup::Change);
        [self as u8, rule, change, path, dir, to, to_dir, text, aux, 0, 0, 0, 0, 0, 0, 0]
    }
}

fn start(path: u8, dir: u8, args: &[u64; 6]) -> Option<Start> {
    match (path, dir) {
        (_, NO) => None,
        (_, CWD) => Some(Start::Cwd),
        (NO, _) => Some(Start::Fd),
        (_, dir) => Some(if args[usize::from(dir)] as i32 == libc::AT_FDCWD { Start::Cwd } else { Start::Dirfd }),
    }
}

/// Tells the kernel half which number is which call.
pub(super) fn fill(ebpf: &mut Ebpf) -> Result<(), MapError> {
    let mut shapes: Array<_, [u8; 16]> = Array::try_from(ebpf.map_mut("SHAPES").expect("declared in call.h"))?;
    for name in CallName::ALL {
        if let Some(number) = name.number().and_then(|number| u32::try_from(number).ok()).filter(|number| *number < shapes.len())
        {
            shapes.set(number, name.bytes(), 0)?;
        }
    }
    Ok(())
}

/// Numbers of the calls that a kernel without loadable modules lacks, for `MODULE_CALLS` of `bpf/call.h`. Only of x86-64, where the
/// program can tell a 32-bit call from a native one.
pub(super) fn module_numbers() -> Option<[u64; 3]> {
    let numbers = MODULE_CALLS.map(|name| name.number().and_then(|number| u64::try_from(number).ok()));
    let [Some(a), Some(b), Some(c)] = numbers else { return None };
    cfg!(target_arch = "x86_64").then_some([a, b, c])
}

/// What is told by `e_absent` where there is no tracepoint for it.
pub(super) const MODULE_CALLS: [CallName; 3] = [CallName::InitModule, CallName::FinitModule, CallName::DeleteModule];

/// `enum rule` of `bpf/call.h`.
const PTRACE: u8 = 1;
const BPF: u8 = 2;
const SOCKET: u8 = 3;
const DUP: u8 = 4;
const KILL: u8 = 5;
const WX: u8 = 6;
const CHMOD: u8 = 7;
/// No such argument.
const NO: u8 = 0xff;
/// The path starts from the working directory.
const CWD: u8 = 0xfe;

calls! {
    Ptrace = 1 "ptrace" Some(libc::SYS_ptrace) => Security Ptrace { rule: PTRACE },
    ProcessVmReadv = 2 "process_vm_readv" Some(libc::SYS_process_vm_readv) => Security Ptrace {},
    ProcessVmWritev = 3 "process_vm_writev" Some(libc::SYS_process_vm_writev) => Security Ptrace {},
    Setuid = 4 "setuid" Some(libc::SYS_setuid) => Security Setuid {},
    Setreuid = 5 "setreuid" Some(libc::SYS_setreuid) => Security Setuid {},
    Setresuid = 6 "setresuid" Some(libc::SYS_setresuid) => Security Setuid {},
    Setgid = 7 "setgid" Some(libc::SYS_setgid) => Security Setgid {},
    Setregid = 8 "setregid" Some(libc::SYS_setregid) => Security Setgid {},
    Setresgid = 9 "setresgid" Some(libc::SYS_setresgid) => Security Setgid {},
    Capset = 10 "capset" Some(libc::SYS_capset) => Security Capset {},
    Setns = 11 "setns" Some(libc::SYS_setns) => Security Setns { aux: 0 },
    Unshare = 12 "unshare" Some(libc::SYS_unshare) => Security Unshare {},
    Chroot = 13 "chroot" Some(libc::SYS_chroot) => Security Chroot { path: 0, dir: CWD },
    PivotRoot = 14 "pivot_root" Some(libc::SYS_pivot_root) => Security Chroot { path: 0, dir: CWD, to: 1, to_dir: CWD },
    Mount = 15 "mount" Some(libc::SYS_mount) => Security Mount { path: 1, dir: CWD, to: 0, text: 2 },
    MoveMount = 16 "move_mount" Some(libc::SYS_move_mount) => Security Mount { path: 3, dir: 2, to: 1, to_dir: 0 },
    Umount = 17 "umount" Some(libc::SYS_umount2) => Security Umount { path: 0, dir: CWD },
    MemfdCreate = 18 "memfd_create" Some(libc::SYS_memfd_create) => Security Memfd { path: 0 },
    Bpf = 19 "bpf" Some(libc::SYS_bpf) => Security Bpf { rule: BPF },
    InitModule = 20 "init_module" Some(libc::SYS_init_module) => Security Module {},
    FinitModule = 21 "finit_module" Some(libc::SYS_finit_module) => Security Module { dir: 0 },
    DeleteModule = 22 "delete_module" Some(libc::SYS_delete_module) => Security Module { path: 0 },
    Socket = 23 "socket" Some(libc::SYS_socket) => Security Socket { rule: SOCKET },
    Dup = 24 "dup" Some(libc::SYS_dup) => Security Dup { rule: DUP },
    Dup2 = 25 "dup2" old!(SYS_dup2) => Security Dup { rule: DUP, aux: 1 },
    Dup3 = 26 "dup3" Some(libc::SYS_dup3) => Security Dup { rule: DUP, aux: 1 },
    Kill = 27 "kill" Some(libc::SYS_kill) => Security Kill { rule: KILL, aux: 1 },
    Tkill = 28 "tkill" Some(libc::SYS_tkill) => Security Kill { rule: KILL, aux: 1 },
    Tgkill = 29 "tgkill" Some(libc::SYS_tgkill) => Security Kill { rule: KILL, aux: 2 },
    RtSigqueueinfo = 30 "rt_sigqueueinfo" Some(libc::SYS_rt_sigqueueinfo) => Security Kill { rule: KILL, aux: 1 },
    RtTgsigqueueinfo = 31 "rt_tgsigqueueinfo" Some(libc::SYS_rt_tgsigqueueinfo) => Security Kill { rule: KILL, aux: 2 },
    PidfdSendSignal = 32 "pidfd_send_signal" Some(libc::SYS_pidfd_send_signal) => Security Kill { rule: KILL, aux: 1 },
    Userfaultfd = 33 "userfaultfd" Some(libc::SYS_userfaultfd) => Security Userfaultfd {},
    IoUringSetup = 34 "io_uring_setup" Some(libc::SYS_io_uring_setup) => Security IoUring { aux: 1 },
    Mmap = 35 "mmap" Some(libc::SYS_mmap) => Memory Mprotect { rule: WX, dir: 4 },
    Mprotect = 36 "mprotect" Some(libc::SYS_mprotect) => Memory Mprotect { rule: WX },
    PkeyMprotect = 37 "pkey_mprotect" Some(libc::SYS_pkey_mprotect) => Memory Mprotect { rule: WX },
    Unlink = 38 "unlink" old!(SYS_unlink) => Change Unlink { path: 0, dir: CWD },
    Unlinkat = 39 "unlinkat" Some(libc::SYS_unlinkat) => Change Unlink { path: 1, dir: 0 },
    Rmdir = 40 "rmdir" old!(SYS_rmdir) => Change Unlink { path: 0, dir: CWD },
    Rename = 41 "rename" old!(SYS_rename) => Change Rename { path: 0, dir: CWD, to: 1, to_dir: CWD },
    Renameat = 42 "renameat" old!(SYS_renameat) => Change Rename { path: 1, dir: 0, to: 3, to_dir: 2 },
    Renameat2 = 43 "renameat2" Some(libc::SYS_renameat2) => Change Rename { path: 1, dir: 0, to: 3, to_dir: 2 },
    Link = 44 "link" old!(SYS_link) => Change Link { path: 0, dir: CWD, to: 1, to_dir: CWD },
    Linkat = 45 "linkat" Some(libc::SYS_linkat) => Change Link { path: 1, dir: 0, to: 3, to_dir: 2 },
    Symlink = 46 "symlink" old!(SYS_symlink) => Change Symlink { path: 0, to: 1, to_dir: CWD },
    Symlinkat = 47 "symlinkat" Some(libc::SYS_symlinkat) => Change Symlink { path: 0, to: 2, to_dir: 1 },
    Chmod = 48 "chmod" old!(SYS_chmod) => Change Chmod { rule: CHMOD, path: 0, dir: CWD, aux: 1 },
    Fchmod = 49 "fchmod" Some(libc::SYS_fchmod) => Change Chmod { rule: CHMOD, dir: 0, aux: 1 },
    Fchmodat = 50 "fchmodat" Some(libc::SYS_fchmodat) => Change Chmod { rule: CHMOD, path: 1, dir: 0, aux: 2 },
    Fchmodat2 = 51 "fchmodat2" Some(libc::SYS_fchmodat2) => Change Chmod { rule: CHMOD, path: 1, dir: 0, aux: 2 },
    Chown = 52 "chown" old!(SYS_chown) => Change Chown { path: 0, dir: CWD },
    Lchown = 53 "lchown" old!(SYS_lchown) => Change Chown { path: 0, dir: CWD },
    Fchown = 54 "fchown" Some(libc::SYS_fchown) => Change Chown { dir: 0 },
    Fchownat = 55 "fchownat" Some(libc::SYS_fchownat) => Change Chown { path: 1, dir: 0 },
    Mkdir = 56 "mkdir" old!(SYS_mkdir) => Change Mkdir { path: 0, dir: CWD },
    Mkdirat = 57 "mkdirat" Some(libc::SYS_mkdirat) => Change Mkdir { path: 1, dir: 0 },
    Truncate = 58 "truncate" Some(libc::SYS_truncate) => Change Truncate { path: 0, dir: CWD },
    Ftruncate = 59 "ftruncate" Some(libc::SYS_ftruncate) => Change Truncate { dir: 0 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_found_by_its_id_and_named_once() {
        for name in CallName::ALL {
            assert_eq!(CallName::from_u32(*name as u32), Some(*name));
            assert_eq!(CallName::ALL.iter().filter(|other| other.as_str() == name.as_str()).count(), 1);
        }
        assert_eq!((CallName::from_u32(0), CallName::from_u32(256 + 1)), (None, None));
    }

    #[test]
    fn a_path_starts_where_the_call_says() {
        let at = |dirfd: i32| [dirfd as u64, 0, 0, 0, 0, 0];
        assert_eq!(CallName::Unlinkat.start(&at(libc::AT_FDCWD)), Some(Start::Cwd));
        assert_eq!(CallName::Unlinkat.start(&at(7)), Some(Start::Dirfd));
        assert_eq!(CallName::Fchmod.start(&at(7)), Some(Start::Fd));
        assert_eq!((CallName::Mount.to_start(&at(0)), CallName::Symlink.start(&at(0))), (None, None));
    }
}
