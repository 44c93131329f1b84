//! Facts of the host: boot id, kernel, user names, addresses as JSON.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::IpAddr;
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
    fn addresses_as_json() {
        let found = ["127.0.0.1", "::1"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(&*addresses_json(&found), r#"["127.0.0.1","::1"]"#);
    }
}
