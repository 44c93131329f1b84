//! Facts of the host: boot id, kernel, user names, addresses as JSON.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::IpAddr;
use std::time::SystemTime;

use serde_json::{Map, Value};
use weir_config::CloudConfig;
use weir_schema::{BootId, Text};

use crate::enrich::metadata::cloud::Instance;

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

/// What `host_start` says of the instance: the cloud's word, but for what the config says.
pub fn instance_detail(instance: &Instance, config: &CloudConfig) -> Map<String, Value> {
    let said = [
        ("provider", instance.provider.as_deref()),
        ("region", instance.region.as_deref()),
        ("zone", instance.zone.as_deref()),
        ("id", config.instance_id.as_deref().or(instance.id.as_deref())),
        ("type", config.instance_type.as_deref().or(instance.kind.as_deref())),
    ];
    said.into_iter().filter_map(|(key, text)| Some((key.to_owned(), text?.into()))).collect()
}

/// Says that the certificate's region and the cloud's are not the same. `eu` holds `eu-central-1`: a certificate may name the larger part.
pub fn region_mismatch(certificate: &str, cloud: &str) -> Option<String> {
    let within = cloud.strip_prefix(certificate).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    (!within).then(|| format!("certificate {certificate}, cloud {cloud}"))
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
    fn regions_that_agree_and_that_do_not() {
        assert_eq!(region_mismatch("eu-central-1", "eu-central-1"), None);
        assert_eq!(region_mismatch("eu", "eu-central-1"), None);
        for (certificate, cloud) in [("eu-central-1", "eu-central-10"), ("us", "eu-central-1"), ("eu-central-1", "eu")] {
            assert_eq!(region_mismatch(certificate, cloud), Some(format!("certificate {certificate}, cloud {cloud}")));
        }
    }

    #[test]
    fn the_config_knows_the_instance_better() {
        let text = |text: &str| Some(Text::from(text));
        let instance = Instance { region: text("r"), id: text("i-1"), kind: text("m"), ..Instance::default() };
        let mut config = weir_config::MetadataConfig::default().cloud;
        config.instance_id = Some("mine".into());
        let said = instance_detail(&instance, &config);
        assert_eq!(Value::Object(said).to_string(), r#"{"id":"mine","region":"r","type":"m"}"#);
        config.instance_id = None;
        assert!(instance_detail(&Instance::default(), &config).is_empty());
    }

    #[test]
    fn addresses_as_json() {
        let found = ["127.0.0.1", "::1"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(&*addresses_json(&found), r#"["127.0.0.1","::1"]"#);
    }
}
