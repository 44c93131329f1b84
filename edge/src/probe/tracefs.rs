//! Attaches programs to syscall tracepoints. Their numbers stand in tracefs only.
//!
//! Where tracefs is not mounted we open one of our own that appears in no mount table and vanishes with the file descriptor: the
//! host is not changed. Detaching is closing: dropping the returned descriptor detaches the program.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

/// A tracefs, wherever it is.
pub(super) struct Tracefs {
    root: OwnedFd,
}

impl Tracefs {
    /// The mounted one, else a private one.
    pub(super) fn open() -> io::Result<Self> {
        for mounted in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
            if Path::new(mounted).join("events/syscalls").is_dir() {
                return Ok(Self { root: File::open(mounted)?.into() });
            }
        }
        private_mount(c"tracefs").map(|root| Self { root })
    }

    /// Attaches a loaded program to `syscalls/name` on all cpus.
    pub(super) fn attach(&self, name: &str, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let id = self.id(name)?;
        // struct perf_event_attr as of its first version: type and size, config, then nothing (we take no samples).
        let attributes: [u64; 8] = [PERF_TYPE_TRACEPOINT | (64 << 32), id, 0, 0, 0, 0, 0, 0];
        // SAFETY: perf_event_open reads `attributes`, whose length (64) it is told inside it; the array outlives the call.
        let fd = check(unsafe {
            libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), -1, 0, -1, libc::c_ulong::from(PERF_FLAG_FD_CLOEXEC))
        })?;
        // SAFETY: the kernel just made `fd` for us; nothing else owns it.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: both descriptors are open; the kernel takes its own reference on the program.
        check(unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()) }.into())?;
        // SAFETY: the descriptor is open and the request takes no pointer.
        check(unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_ENABLE, 0) }.into())?;
        Ok(event)
    }

    fn id(&self, name: &str) -> io::Result<u64> {
        let path = format!("events/syscalls/{name}/id");
        let fd = rustix::fs::openat(
            &self.root,
            path.as_str(),
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text)?;
        text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{path} holds no number")))
    }
}

/// The root of a filesystem that needs no device, in no mount table; it ends with the descriptor.
pub(super) fn private_mount(filesystem: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with a NUL; fsopen keeps no reference.
    let context = check(unsafe { libc::syscall(libc::SYS_fsopen, filesystem.as_ptr(), FSOPEN_CLOEXEC) })?;
    // SAFETY: the kernel just made it for us.
    let context = unsafe { OwnedFd::from_raw_fd(context) };
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: FSCONFIG_CMD_CREATE takes neither key nor value: both pointers are null as it asks.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0) })?;
    // SAFETY: the descriptor is open; fsmount takes plain numbers.
    let root = check(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })?;
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(root) })
}

fn check(result: libc::c_long) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

const PERF_TYPE_TRACEPOINT: u64 = 2;
const PERF_FLAG_FD_CLOEXEC: u32 = 8;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
