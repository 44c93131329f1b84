//! What connections and the address table need of a frame, taken out of its columns.

use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use weir_schema::{AgentIdentity, Batch, Column, EventIds, Kind, Section, Seq, Text};

use super::rows::{Pick, Picks};
use crate::connections::{Actor, AddressFact, HostTouches, Place, Proto, Side, Touch, Tuple, Verb, parse_ip};

/// The host that a frame speaks of.
pub(crate) fn place_of(identity: &AgentIdentity, batch: &Batch) -> Place {
    let (tenant, region) = (identity.tenant.as_str().into(), identity.region.as_str().into());
    let mut place = Place::new(tenant, region, Text::clone(&batch.host.host));
    place.cloud.clone_from(&batch.host.cloud);
    place.zone.clone_from(&batch.host.zone);
    place
}

/// The picked connection events of a frame, and since when its boot has run. `None` for a pick of nothing.
pub(crate) fn touches(identity: &AgentIdentity, place: &Arc<Place>, batch: &Batch, picks: &Picks) -> Option<HostTouches> {
    let first_seen = picks.iter().flat_map(|(at, pick)| times(&batch.sections[*at], pick)).min()?;
    let mut gather = Gather {
        batch,
        place,
        ids: EventIds::new(identity, batch.header.epoch, batch.header.lane),
        addresses: vec![None; batch.strings.entries()],
        process_ids: None,
        tenant: identity.tenant.as_str(),
        actors: Vec::new(),
        places: HashMap::default(),
        touches: Vec::new(),
    };
    for (at, pick) in picks {
        let section = &batch.sections[*at];
        let verb = match section.kind {
            Kind::Connect | Kind::Accept => Verb::Open,
            Kind::Close => Verb::Close,
            _ => continue,
        };
        gather.section(section, pick, verb);
    }
    let Gather { actors, touches, .. } = gather;
    Some(HostTouches { place: Arc::clone(place), boot: batch.host.boot_id, first_seen, actors, touches })
}

/// What the picked host_start events of a frame say of the host's addresses.
pub(crate) fn address_facts(identity: &AgentIdentity, place: &Arc<Place>, batch: &Batch, picks: &Picks) -> Vec<AddressFact> {
    let mut ids = EventIds::new(identity, batch.header.epoch, batch.header.lane);
    let mut facts = Vec::new();
    for (at, pick) in picks {
        let section = &batch.sections[*at];
        if section.kind != Kind::HostStart {
            continue;
        }
        let Some(codes) = section.table.codes(Column::Addresses) else { continue };
        for row in rows(section, pick) {
            let addresses = parse_addresses(batch.strings.text(codes[row]));
            if !addresses.is_empty() {
                let id = short(&ids.id(Seq(section.first_seq.0 + row as u64)).0);
                facts.push(AddressFact { place: Arc::clone(place), time: section.times[row], id, addresses });
            }
        }
    }
    facts
}

/// The addresses in a JSON array of texts; prefix lengths and zones are left out.
pub(crate) fn parse_addresses(json: &str) -> Vec<IpAddr> {
    let texts: Vec<String> = serde_json::from_str(json).unwrap_or_default();
    let plain = |text: &String| parse_ip(text.split(['/', '%']).next().unwrap_or_default());
    texts.iter().filter_map(plain).take(ADDRESSES_MAX).collect()
}

/// The first 64 bits of an event id.
pub(crate) fn short(id: &[u8; 16]) -> u64 {
    let (first, _) = id.split_first_chunk::<8>().expect("16 bytes hold 8");
    u64::from_be_bytes(*first)
}

/// The picked rows of a section.
pub(crate) fn rows<'a>(section: &'a Section, pick: &'a Pick) -> Box<dyn Iterator<Item = usize> + 'a> {
    match pick {
        Pick::All => Box::new(0..section.rows()),
        Pick::Some(rows) => Box::new(rows.iter().map(|row| *row as usize)),
    }
}

/// The times of the picked rows.
pub(crate) fn times<'a>(section: &'a Section, pick: &'a Pick) -> impl Iterator<Item = i64> + 'a {
    rows(section, pick).map(|row| section.times[row])
}

/// An address text that was not looked at, or what it is.
type Parsed = Option<Option<IpAddr>>;

struct Gather<'a> {
    batch: &'a Batch,
    place: &'a Arc<Place>,
    ids: EventIds,
    addresses: Vec<Parsed>,
    process_ids: Option<Vec<Option<weir_schema::ProcessId>>>,
    tenant: &'a str,
    actors: Vec<Arc<Actor>>,
    places: HashMap<(u32, u32), u32, FixedState>,
    touches: Vec<Touch>,
}

impl Gather<'_> {
    fn section(&mut self, section: &Section, pick: &Pick, verb: Verb) {
        let batch = self.batch;
        let int = |column: Column| {
            let ints = section.table.ints(column);
            move |row: usize| ints.and_then(|ints| ints.get(row))
        };
        let code = |column: Column| {
            let codes = section.table.codes(column);
            move |row: usize| codes.map_or(0, |codes| codes[row])
        };
        let (socket, result, duration) = (int(Column::SocketId), int(Column::Result), int(Column::DurationMs));
        let (sent, received) = (int(Column::BytesSent), int(Column::BytesReceived));
        let (local, peer) = (int(Column::IsnLocal), int(Column::IsnPeer));
        let (src_port, dst_port) = (int(Column::SrcPort), int(Column::DstPort));
        let (src_ip, dst_ip) = (code(Column::SrcIp), code(Column::DstIp));
        let (proto, direction) = (code(Column::Proto), code(Column::Direction));
        let by_kind = match section.kind {
            Kind::Connect => Some(Side::Client),
            Kind::Accept => Some(Side::Server),
            _ => None,
        };
        self.touches.reserve(pick.rows(section));
        for row in rows(section, pick) {
            let proto = if batch.strings.text(proto(row)) == "udp" { Proto::Udp } else { Proto::Tcp };
            let port = |port: Option<i64>| port.and_then(|port| u16::try_from(port).ok());
            let tuple =
                self.address(src_ip(row)).zip(self.address(dst_ip(row))).zip(port(src_port(row)).zip(port(dst_port(row))));
            let side = match batch.strings.text(direction(row)) {
                "out" => Some(Side::Client),
                "in" => Some(Side::Server),
                _ => by_kind,
            };
            let isn = |isn: Option<i64>| isn.map(|isn| isn as u32);
            let actor = self.actor(section, row);
            self.touches.push(Touch {
                time: section.times[row],
                id: short(&self.ids.id(Seq(section.first_seq.0 + row as u64)).0),
                verb,
                socket: socket(row).unwrap_or(0).cast_unsigned(),
                side,
                tuple: tuple.map(|((src, dst), (src_port, dst_port))| Tuple { proto, src, src_port, dst, dst_port }),
                isns: isn(local(row)).zip(isn(peer(row))),
                sent: sent(row).unwrap_or(0).cast_unsigned(),
                received: received(row).unwrap_or(0).cast_unsigned(),
                duration_ms: duration(row).map(i64::cast_unsigned),
                result: result(row).map_or(0, |result| result as i32),
                actor,
            });
        }
    }

    fn address(&mut self, code: u32) -> Option<IpAddr> {
        if code == 0 {
            return None;
        }
        *self.addresses[code as usize].get_or_insert_with(|| parse_ip(self.batch.strings.text(code)))
    }

    fn actor(&mut self, section: &Section, row: usize) -> u32 {
        let process = section.process_rows.get(row).copied().unwrap_or(0);
        let container = section.container_rows.get(row).copied().unwrap_or(0);
        if let Some(known) = self.places.get(&(process, container)) {
            return *known;
        }
        let batch = self.batch;
        let text = |table: &weir_schema::Table, row: u32, column: Column| {
            let code = (row as usize).checked_sub(1).and_then(|row| table.codes(column).map(|codes| codes[row]));
            code.filter(|code| *code != 0).map(|code| Text::from(batch.strings.text(code)))
        };
        let ids = self.process_ids.get_or_insert_with(|| batch.process_ids(self.tenant));
        let process_id = (process as usize).checked_sub(1).and_then(|row| ids[row]);
        let number = u32::try_from(self.actors.len()).expect("a frame has few processes");
        self.actors.push(Arc::new(Actor {
            place: Arc::clone(self.place),
            app: text(&batch.containers, container, Column::App),
            container_id: text(&batch.containers, container, Column::ContainerId),
            process_id: process_id.map(|id| id.0),
            exe: text(&batch.processes, process, Column::Exe),
        }));
        self.places.insert((process, container), number);
        number
    }
}

/// Addresses of one host.
const ADDRESSES_MAX: usize = 256;
