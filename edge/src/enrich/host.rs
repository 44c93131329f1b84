//! Facts of the host: boot id, kernel, addresses of all interfaces, user names.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use weir_schema::{BootId, Text};

/// The kernel's id of this boot; all zeroes when it cannot be read.
pub fn boot_id() -> BootId {
    parse_boot_id(&fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()).unwrap_or_default()
}

/// Parses a UUID's 32 hexadecimal digits, dashes ignored.
pub fn parse_boot_id(text: &str) -> Option<BootId> {
    let digits: Vec<u8> = text.trim().bytes().filter(|b| *b != b'-').collect();
    let digits: &[u8; 32] = digits.as_slice().try_into().ok()?;
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(BootId(id))
}

/// Kernel release, such as `6.18.44`.
pub fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Host name as the kernel has it.
pub fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

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

/// A JSON array of addresses.
pub fn addresses_json(addresses: &BTreeSet<IpAddr>) -> Text {
    let quoted: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    format!("[{}]", quoted.join(",")).into()
}

/// User names by uid, read again when the file changes.
#[derive(Debug, Default)]
pub struct Users {
    names: HashMap<u32, Text>,
    changed: Option<SystemTime>,
}

impl Users {
    /// The name of `uid`.
    pub fn name(&self, uid: u32) -> Option<Text> {
        self.names.get(&uid).cloned()
    }

    /// Reads `/etc/passwd` unless it is the one read before.
    pub fn refresh(&mut self) {
        let changed = fs::metadata(PASSWD).and_then(|meta| meta.modified()).ok();
        if changed != self.changed || changed.is_none() {
            self.changed = changed;
            self.names = parse_passwd(&fs::read_to_string(PASSWD).unwrap_or_default());
        }
    }
}

/// Names by uid; the first line of a uid wins, as for the C library.
pub fn parse_passwd(text: &str) -> HashMap<u32, Text> {
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        let (Some(name), Some(uid)) = (fields.next(), fields.nth(1).and_then(|uid| uid.parse().ok())) else { continue };
        names.entry(uid).or_insert_with(|| name.into());
    }
    names
}

/// The boot clock in nanoseconds: the clock of every kernel record.
pub fn boot_clock_ns() -> u64 {
    clock_ns(libc::CLOCK_BOOTTIME)
}

/// The wall clock in nanoseconds since the Unix epoch.
pub fn wall_clock_ns() -> i64 {
    i64::try_from(clock_ns(libc::CLOCK_REALTIME)).unwrap_or(i64::MAX)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place to write to; both clocks exist on every kernel we run on.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

const PASSWD: &str = "/etc/passwd";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_ids() {
        let id = parse_boot_id("01234567-89ab-cdef-0123-456789abcdef\n").unwrap();
        assert_eq!(id.0[..4], [0x01, 0x23, 0x45, 0x67]);
        for wrong in ["", "0123", "zz234567-89ab-cdef-0123-456789abcdef", "é1234567-89ab-cdef-0123-456789abcde"] {
            assert_eq!(parse_boot_id(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn passwd_lines() {
        let names = parse_passwd("root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\nbad\n:x:7\nweb:x:33:33\n");
        assert_eq!(names.get(&0).map(|name| &**name), Some("root"));
        assert_eq!(names.get(&33).map(|name| &**name), Some("web"));
        assert_eq!(names.len(), 3);
    }

    #[test]
    fn loopback_is_among_the_addresses() {
        let found = addresses();
        assert!(found.contains(&"127.0.0.1".parse().unwrap()), "{found:?}");
        assert!(addresses_json(&found).contains("\"127.0.0.1\""));
    }

    #[test]
    fn clocks_run() {
        assert!(boot_clock_ns() > 0 && wall_clock_ns() > 1_600_000_000_000_000_000);
    }
}
