//! Names of things: who sent an event, which one it is, and how it is found again.
//!
//! An event's key is (tenant, agent, epoch, lane, seq). The first two come from the sender's certificate and are stamped by the
//! server; the rest stands in the frame header. `EventId` and `ProcessId` are hashes of keys, so resending changes nothing.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::error::Error;

/// Who sent a frame, as its certificate says: `spiffe://TD/tenant/T/region/R/agent/A`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AgentIdentity {
    /// The tenant that owns the agent.
    pub tenant: Name,
    /// The region the agent was enrolled for.
    pub region: Name,
    /// The agent itself, unique inside its tenant.
    pub agent: Name,
}

impl AgentIdentity {
    /// A stable 64-bit key of (tenant, agent), for routing and for maps. The region is not part of it.
    pub fn routing_key(&self) -> u64 {
        let mut bytes = Vec::with_capacity(96);
        bytes.extend_from_slice(self.tenant.as_str().as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(self.agent.as_str().as_bytes());
        xxh3_128(&bytes) as u64
    }
}

/// A tenant, region, agent or node name: 1 to 128 characters out of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

impl Name {
    /// Checks and keeps `text`.
    pub fn new(text: impl AsRef<str>) -> Result<Self, Error> {
        let text = text.as_ref();
        let fits = (1..=NAME_BYTES_MAX).contains(&text.len());
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if fits && plain { Ok(Self(text.into())) } else { Err(Error::Name(text.chars().take(160).collect())) }
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl TryFrom<String> for Name {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().to_owned()
    }
}

/// One run of an agent process: random at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// Number of an event inside its (agent, epoch, lane): dense, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Seq(pub u64);

/// Class of an event. Each lane has its own sequence and its own place in the drop order (samples first, security last).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Lane {
    /// exec, exit, fork, credentials, namespaces, containers, hosts, loss: dropped last.
    Security = 0,
    /// connect, accept, close, listen, send, dns.
    Network = 1,
    /// open, write, unlink and other file events.
    File = 2,
    /// Utilisation samples: dropped first.
    Sample = 3,
}

impl Lane {
    /// Every lane, in number order.
    pub const ALL: [Self; 4] = [Self::Security, Self::Network, Self::File, Self::Sample];

    /// The lane of a wire number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The name used in metrics and in `losses`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Security => "security",
            Self::Network => "network",
            Self::File => "file",
            Self::Sample => "sample",
        }
    }
}

/// Stable name of one event: the first 128 bits of XXH3 over its key. Shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EventId(pub [u8; 16]);

/// Hashes keys of one (agent, epoch, lane) to event ids.
#[derive(Debug, Clone)]
pub struct EventIds {
    prefix: Vec<u8>,
}

impl EventIds {
    /// Prepares the common part of the key.
    pub fn new(identity: &AgentIdentity, epoch: Epoch, lane: Lane) -> Self {
        let mut prefix = Vec::with_capacity(128);
        for part in [identity.tenant.as_str(), identity.agent.as_str()] {
            prefix.extend_from_slice(part.as_bytes());
            prefix.push(0);
        }
        prefix.extend_from_slice(&epoch.0.to_le_bytes());
        prefix.push(lane as u8);
        Self { prefix }
    }

    /// The id of the event with this seq.
    pub fn id(&mut self, seq: Seq) -> EventId {
        let common = self.prefix.len();
        self.prefix.extend_from_slice(&seq.0.to_le_bytes());
        let id = EventId(xxh3_128(&self.prefix).to_be_bytes());
        self.prefix.truncate(common);
        id
    }
}

/// Stable name of one process, unique over reboots and pid reuse: XXH3-128 over (tenant, host, boot id, pid, start time). The
/// start time is in nanoseconds of the boot clock. Shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId(pub [u8; 16]);

impl ProcessId {
    /// The id of process `pid` that started at `start_ns` of its host's boot clock.
    pub fn new(tenant: &str, host: &str, boot_id: &BootId, pid: u32, start_ns: u64) -> Self {
        let mut bytes = Vec::with_capacity(128);
        for part in [tenant, host] {
            bytes.extend_from_slice(part.as_bytes());
            bytes.push(0);
        }
        bytes.extend_from_slice(&boot_id.0);
        bytes.extend_from_slice(&pid.to_le_bytes());
        bytes.extend_from_slice(&start_ns.to_le_bytes());
        Self(xxh3_128(&bytes).to_be_bytes())
    }
}

/// The kernel's random id of one boot (`/proc/sys/kernel/random/boot_id`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// Reads a UUID, with or without its hyphens.
    pub fn parse(text: &str) -> Option<Self> {
        let mut nibbles = text.bytes().filter(|byte| *byte != b'-').map(|byte| char::from(byte).to_digit(16));
        let mut bytes = [0; 16];
        for byte in &mut bytes {
            *byte = (nibbles.next()?? << 4 | nibbles.next()??) as u8;
        }
        if nibbles.next().is_none() { Some(Self(bytes)) } else { None }
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let hyphen = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{hyphen}{byte:02x}")?;
        }
        Ok(())
    }
}

macro_rules! hex_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}
hex_text!(EventId);
hex_text!(ProcessId);

/// Longest name of a tenant, region, agent or node.
pub const NAME_BYTES_MAX: usize = 128;
