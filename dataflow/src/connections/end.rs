//! One end of a connection: what a host says of one of its sockets, folded from that socket's events.
//!
//! An end is (tenant, host, boot, socket cookie). Cookies are unique per boot on every kernel that the agent supports (since
//! 5.10 one counter serves all network namespaces), so the namespace, which a close in interrupt context does not know, is no
//! part of the key. Everything here is plain data that travels between workers.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_schema::{BootId, Text};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::checkpoint::shared;

/// Which end of a connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Side {
    /// It connected.
    Client,
    /// It accepted.
    Server,
}

/// The transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub enum Proto {
    /// TCP; also what is not said.
    #[default]
    Tcp,
    /// UDP on a connected socket.
    Udp,
}

impl Proto {
    /// SQL's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Addresses as this end sees them; source is the initiator at both ends. With NAT the two ends disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tuple {
    /// The protocol.
    pub proto: Proto,
    /// The client's address.
    pub src: IpAddr,
    /// The client's port.
    pub src_port: u16,
    /// The server's address.
    pub dst: IpAddr,
    /// The server's port.
    pub dst_port: u16,
}

/// Both initial sequence numbers of a TCP connection: NAT does not change them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Isns {
    /// The client's.
    pub client: u32,
    /// The server's.
    pub server: u32,
}

/// Where something runs, shared by all that runs there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Who owns the host.
    pub tenant: Text,
    /// The region of the host's agent.
    pub region: Text,
    /// Cloud provider.
    pub cloud: Option<Text>,
    /// Availability zone.
    pub zone: Option<Text>,
    /// Host name.
    pub host: Text,
    /// A stable key of the tenant: the space in which addresses mean something.
    pub tenant_key: u64,
    /// A stable key of (tenant, host).
    pub host_key: u64,
}

impl Place {
    /// A host of a tenant. Cloud and zone are added by the caller.
    pub fn new(tenant: Text, region: Text, host: Text) -> Self {
        let tenant_key = key_of(&[tenant.as_bytes()]);
        let host_key = key_of(&[tenant.as_bytes(), host.as_bytes()]);
        Self { tenant, region, cloud: None, zone: None, host, tenant_key, host_key }
    }
}

/// Who holds a socket, shared by all sockets of the process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Actor {
    /// Where it runs.
    #[serde(with = "shared")]
    pub place: Arc<Place>,
    /// Application.
    pub app: Option<Text>,
    /// Container.
    pub container_id: Option<Text>,
    /// Process, as `ProcessId` has it.
    pub process_id: Option<[u8; 16]>,
    /// Executable.
    pub exe: Option<Text>,
}

impl Actor {
    /// What is known of one who is only known by its place.
    pub fn nobody(place: Arc<Place>) -> Self {
        Self { place, app: None, container_id: None, process_id: None, exe: None }
    }
}

/// What an event says about its socket's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verb {
    /// A connect or accept: with result 0, or with none, the connection stands.
    Open,
    /// The end of the socket.
    Close,
}

/// One event, as far as connections care.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// Nanoseconds since the epoch.
    pub time: i64,
    /// The first 64 bits of the event id: breaks ties of time.
    pub id: u64,
    /// Opened or closed.
    pub verb: Verb,
    /// Socket cookie; 0 when unknown.
    pub socket: u64,
    /// Which end; a recording may not say.
    pub side: Option<Side>,
    /// The addresses, when all four parts are known.
    pub tuple: Option<Tuple>,
    /// (this end's, the peer's) initial sequence numbers.
    pub isns: Option<(u32, u32)>,
    /// Payload bytes sent by this end.
    pub sent: u64,
    /// Payload bytes received by this end.
    pub received: u64,
    /// Life of the connection, on a close.
    pub duration_ms: Option<u64>,
    /// 0, or the errno of a connect.
    pub result: i32,
    /// Index into the actors that travel along.
    pub actor: u32,
}

/// All that one host's agent said in one frame, admitted at one tick.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostTouches {
    /// Whose they are.
    pub place: Arc<Place>,
    /// Which boot.
    pub boot: BootId,
    /// Time of the earliest event of any kind: the boot had begun by then.
    pub first_seen: i64,
    /// Who did it.
    pub actors: Vec<Arc<Actor>>,
    /// The events.
    pub touches: Vec<Touch>,
}

/// Names an end for ever: XXH3-128 over its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndKey(pub u128);

impl EndKey {
    /// The end of a socket with a cookie.
    pub fn of_socket(place: &Place, boot: &BootId, socket: u64) -> Self {
        Self(wide_key(&[place.tenant.as_bytes(), place.host.as_bytes(), &boot.0, &socket.to_le_bytes()]))
    }

    /// The end of a socket without one: named by its addresses and by its first event.
    pub fn of_tuple(place: &Place, boot: &BootId, side: Side, tuple: &Tuple, first: (i64, u64)) -> Self {
        let name = format!("{side:?} {tuple:?}");
        let parts: [&[u8]; 6] = [
            place.tenant.as_bytes(),
            place.host.as_bytes(),
            &boot.0,
            name.as_bytes(),
            &first.0.to_le_bytes(),
            &first.1.to_le_bytes(),
        ];
        Self(wide_key(&parts))
    }
}

/// What is known of one end at one tick.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Its name.
    pub key: EndKey,
    /// Which end.
    pub side: Side,
    /// Addresses as it sees them.
    pub tuple: Tuple,
    /// Both initial sequence numbers, when it has seen them.
    pub isns: Option<Isns>,
    /// Time of the first event that told the addresses.
    pub tuple_since: i64,
    /// Time of the first event that told the sequence numbers.
    pub isns_since: i64,
    /// Nanoseconds since the epoch.
    pub opened: i64,
    /// Its close, its failure or the next boot of its host.
    pub closed: Option<i64>,
    /// The errno of a connect that failed.
    pub failed: Option<i32>,
    /// Payload bytes sent.
    pub sent: u64,
    /// Payload bytes received.
    pub received: u64,
    /// Who holds it.
    #[serde(with = "shared")]
    pub actor: Arc<Actor>,
}

impl End {
    /// Where both ends of this connection meet, when it knows its sequence numbers.
    pub fn isn_group(&self) -> Option<IsnGroup> {
        let tenant = self.actor.place.tenant_key;
        self.isns.map(|isns| IsnGroup { tenant, proto: self.tuple.proto, isns })
    }

    /// Where ends meet that have nothing but their addresses. Loopback and link-local addresses mean something on one host only.
    pub fn tuple_group(&self) -> TupleGroup {
        let place = &self.actor.place;
        let local = is_local(&self.tuple.src) || is_local(&self.tuple.dst);
        let host = if local { place.host_key } else { 0 };
        TupleGroup { tenant: place.tenant_key, host, tuple: self.tuple }
    }

    /// The last tick at which something admitted may still change what this end is joined with; `None` while it is open.
    pub fn settles_at(&self, lateness: Lateness) -> Option<u64> {
        self.closed.map(|closed| millis(closed).saturating_add(lateness.hold_ms()))
    }
}

/// Ends of one tenant with the same two sequence numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IsnGroup {
    /// Key of the tenant.
    pub tenant: u64,
    /// The protocol.
    pub proto: Proto,
    /// The sequence numbers.
    pub isns: Isns,
}

/// Ends of one tenant, or of one host, with the same addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TupleGroup {
    /// Key of the tenant.
    pub tenant: u64,
    /// Key of the host for addresses that are local to it, else 0.
    pub host: u64,
    /// The addresses.
    pub tuple: Tuple,
}

impl IsnGroup {
    /// Where it is kept.
    pub fn route(&self) -> u64 {
        let numbers = u64::from(self.isns.client) << 32 | u64::from(self.isns.server);
        mix(self.tenant ^ numbers.wrapping_mul(GOLDEN))
    }
}

impl TupleGroup {
    /// Where it is kept.
    pub fn route(&self) -> u64 {
        let ports = u64::from(self.tuple.src_port) << 16 | u64::from(self.tuple.dst_port);
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => u64::from(ip.to_bits()),
            IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64 ^ ip.to_bits() as u64,
        };
        let addresses = bits(self.tuple.src).wrapping_mul(GOLDEN) ^ bits(self.tuple.dst).rotate_left(32);
        mix(self.tenant ^ self.host ^ mix(addresses) ^ ports)
    }
}

/// An end told to a group: what it is from this tick on, or that it is no longer here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told<G> {
    /// The group.
    pub group: G,
    /// The end.
    pub key: EndKey,
    /// Its state; `None`: gone from this group.
    pub end: Option<Arc<End>>,
    /// Which connection this is among those with the same sequence numbers: 0 but for a collision.
    pub nth: u32,
}

/// How late and how early an event may come and still count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lateness {
    /// R: milliseconds after its own time.
    pub retention_ms: u64,
    /// Milliseconds before its own time; also how far two hosts' clocks may disagree.
    pub skew_ms: u64,
}

impl Lateness {
    /// The skew in nanoseconds.
    pub fn skew_ns(&self) -> i64 {
        i64::try_from(self.skew_ms.saturating_mul(1_000_000)).unwrap_or(i64::MAX)
    }

    /// How far back in time a host's first word of its addresses reaches: a tenth of R, a minute by default. An agent speaks some
    /// time after its host has its addresses, and short connections end before that.
    pub fn first_word_ms(&self) -> u64 {
        self.retention_ms / 10
    }

    /// Milliseconds after its end for which what a connection is joined with may still change.
    pub fn hold_ms(&self) -> u64 {
        self.retention_ms.saturating_add(self.skew_ms.max(self.first_word_ms()))
    }
}

/// Milliseconds of a time, floored; times before 1970 are 0.
pub fn millis(time_ns: i64) -> u64 {
    u64::try_from(time_ns.div_euclid(1_000_000)).unwrap_or(0)
}

/// True for addresses that mean something on one host only.
pub fn is_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified(),
    }
}

/// An address from its text; IPv4 inside IPv6 becomes IPv4.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn key_of(parts: &[&[u8]]) -> u64 {
    xxh3_64(&joined(parts))
}

fn wide_key(parts: &[&[u8]]) -> u128 {
    xxh3_128(&joined(parts))
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(96);
    for part in parts {
        bytes.extend_from_slice(part);
        bytes.push(0);
    }
    bytes
}

fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 32)).wrapping_mul(GOLDEN);
    bits ^ (bits >> 29)
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_mean_something_on_one_host_only() {
        for text in ["127.0.0.1", "127.8.0.1", "169.254.0.7", "::1", "fe80::1", "0.0.0.0", "::ffff:127.0.0.1"] {
            assert!(parse_ip(text).is_some_and(|ip| is_local(&ip)), "{text}");
        }
        for text in ["10.0.0.1", "192.168.1.1", "8.8.8.8", "2001:db8::1", "fd00::1"] {
            assert!(parse_ip(text).is_some_and(|ip| !is_local(&ip)), "{text}");
        }
        assert_eq!(parse_ip("::ffff:10.0.0.1"), parse_ip("10.0.0.1"));
        assert_eq!(parse_ip("10.0.0"), None);
    }

    #[test]
    fn an_end_is_small() {
        assert!(size_of::<End>() <= 192, "{}", size_of::<End>());
        assert!(size_of::<Touch>() <= 144, "{}", size_of::<Touch>());
    }
}
