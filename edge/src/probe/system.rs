//! What takes a system call: interface addresses, clocks, a cgroup's directory by its kernel id, a wait for every cpu.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::guard::Usage;

/// Addresses of all interfaces that are up, loopback included, sorted and each once.
pub fn addresses() -> BTreeSet<IpAddr> {
    let mut found = BTreeSet::new();
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs fills `list` on success; it is freed below and nowhere else.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return found;
    }
    let mut next = list;
    while !next.is_null() {
        // SAFETY: `next` is a node of the list, which is not freed before the loop ends.
        let node = unsafe { &*next };
        // SAFETY: `ifa_addr` is null or points at a socket address of the family it names, inside the list.
        found.extend(unsafe { address(node.ifa_addr) });
        next = node.ifa_next;
    }
    // SAFETY: `list` came from getifaddrs and no reference into it is left.
    unsafe { libc::freeifaddrs(list) };
    found
}

/// # Safety
/// `raw` is null or points at a whole socket address of the family it names.
unsafe fn address(raw: *const libc::sockaddr) -> Option<IpAddr> {
    if raw.is_null() {
        return None;
    }
    // SAFETY: the caller promises a whole address of the family read first.
    unsafe {
        match i32::from((*raw).sa_family) {
            libc::AF_INET => {
                let address = raw.cast::<libc::sockaddr_in>().read_unaligned();
                Some(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => {
                let address = raw.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(Ipv6Addr::from(address.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
}

/// No program that this thread or a later one executes can gain rights.
pub fn no_new_privileges() -> std::io::Result<()> {
    // SAFETY: prctl with PR_SET_NO_NEW_PRIVS takes four numbers and touches no memory.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Whether this folder, or the nearest above it that is there, belongs to the user of this process.
pub fn is_own(folder: &Path) -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    let user = unsafe { libc::geteuid() };
    // A path without a folder is in the working directory.
    let from = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    from.ancestors().find_map(|folder| fs::metadata(folder).ok()).is_some_and(|meta| meta.uid() == user)
}

/// What this process uses. Memory that was freed is given back to the kernel first, when there is much of it.
pub fn usage() -> Usage {
    let resident = || {
        // Pages: all, resident, of these shared with files.
        let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: Vec<u64> = text.split(' ').filter_map(|number| number.trim().parse().ok()).collect();
        let [_, resident, shared, ..] = pages.as_slice() else { return 0 };
        // SAFETY: sysconf takes a number and touches no memory of ours.
        let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(0);
        resident.saturating_sub(*shared) * page
    };
    let mut resident_bytes = resident();
    if resident_bytes > TRIM_BYTES {
        #[cfg(target_env = "gnu")]
        // SAFETY: malloc_trim gives free memory of the allocator back and leaves what is in use where it is.
        unsafe {
            libc::malloc_trim(0);
        }
        resident_bytes = resident();
    }
    Usage { resident_bytes, cpu_ns: clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID) }
}

/// Memory beyond which the allocator is asked to give back what is free: below every cap that may be configured, above what a quiet host takes.
const TRIM_BYTES: u64 = 28 << 20;

/// The boot clock in nanoseconds: the clock of every kernel record.
pub fn boot_clock_ns() -> u64 {
    clock_ns(libc::CLOCK_BOOTTIME)
}

/// The wall clock in nanoseconds since the Unix epoch.
pub fn wall_clock_ns() -> i64 {
    i64::try_from(clock_ns(libc::CLOCK_REALTIME)).unwrap_or(i64::MAX)
}

/// A random number from the kernel.
pub fn random_u64() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place to write to; both clocks exist on every kernel we run on.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Waits until every cpu has left what it was at in the kernel with preemption off, such as an event of a tracepoint. False where
/// the kernel cannot (`nohz_full`).
pub(super) fn wait_for_every_cpu() -> bool {
    // SAFETY: membarrier takes three plain numbers and no pointer.
    unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) == 0 }
}

/// `struct file_handle` with room for a kernfs id.
#[repr(C)]
struct KernfsHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    id: [u8; 8],
}

/// The directory that kernel id `id` names below the mount `root`; nothing when it is gone or we may not ask.
pub fn cgroup_directory(root: &Path, id: u64) -> Option<PathBuf> {
    let mount = File::open(root).ok()?;
    let mut handle = KernfsHandle { bytes: 8, kind: FILEID_KERNFS, id: id.to_ne_bytes() };
    // SAFETY: `handle` is laid out as `struct file_handle` with `bytes` = 8 bytes behind it, lives through the call, and the
    // kernel only reads it; `mount` is an open descriptor.
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), libc::O_PATH | libc::O_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the call returned a new descriptor that nobody else owns.
    let directory = unsafe { OwnedFd::from_raw_fd(fd) };
    let path = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).ok()?;
    (!path.to_string_lossy().ends_with(" (deleted)")).then_some(path)
}

/// Type of a kernfs handle that is the bare node id.
const FILEID_KERNFS: libc::c_int = 0xfe;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn loopback_is_among_the_addresses() {
        let found = addresses();
        assert!(found.contains(&"127.0.0.1".parse().unwrap()), "{found:?}");
    }

    #[test]
    fn clocks_run() {
        assert!(boot_clock_ns() > 0 && wall_clock_ns() > 1_600_000_000_000_000_000);
    }

    #[test]
    fn a_cgroup_by_its_id() {
        let mounts = crate::enrich::cgroup::Mounts::read();
        let Some(root) = mounts.root(crate::enrich::cgroup::Hierarchy::V2) else {
            eprintln!("skipped: no cgroup v2 here");
            return;
        };
        let id = fs::metadata(root).unwrap().ino();
        match cgroup_directory(root, id) {
            Some(found) => assert_eq!(found, root),
            None => eprintln!("skipped: not allowed to open handles"),
        }
        assert_eq!(cgroup_directory(root, u64::MAX), None);
    }
}
