//! A row of `connections`: one or two ends, seen as one connection.
//!
//! The client's end speaks for addresses and times where it is seen; bytes are the client's view, the larger of what either end
//! counted. A connection is closed as soon as one end is: no more can pass. What an end counts later than R after that is left
//! out, so that a settled row stays as it is.
//!
//! `connection_id` hashes the two sequence numbers where an end knows them, else the key of the client's end, else that of the
//! server's. So it stays when the second end appears, except without sequence numbers and with the server's end first.

use std::sync::Arc;

use arrow::array::RecordBatch;
use xxhash_rust::xxh3::xxh3_128;

use super::end::{Actor, End, Lateness, Place, Tuple, millis};
use crate::relations::CONNECTIONS;
use crate::source::table::{Cell, Table};

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// No end is closed.
    Open,
    /// An end is closed.
    Closed,
    /// It never stood.
    Failed,
}

/// One real connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// Its name.
    pub id: u128,
    /// Where it stands.
    pub state: State,
    /// Nanoseconds since the epoch.
    pub opened: i64,
    /// Nanoseconds since the epoch.
    pub closed: Option<i64>,
    /// Addresses, as the client sees them where it is seen.
    pub tuple: Tuple,
    /// The client: itself when its end is seen, else what its address says.
    pub src: Option<Arc<Actor>>,
    /// The server, likewise.
    pub dst: Option<Arc<Actor>>,
    /// Payload bytes from client to server.
    pub sent: u64,
    /// Payload bytes from server to client.
    pub received: u64,
    /// 0, or the errno of the connect.
    pub result: i32,
    /// Which ends told of it.
    pub seen: Seen,
}

/// Which ends told of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Seen {
    /// Both, joined.
    Both,
    /// The client's only.
    Src,
    /// The server's only.
    Dst,
}

/// What a connection is made of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ends<'a> {
    Both { client: &'a End, server: &'a End },
    Src { client: &'a End, missing: Option<&'a Arc<Actor>> },
    Dst { server: &'a End, missing: Option<&'a Arc<Actor>> },
}

impl Connection {
    /// The connection of these ends, `nth` among those with the same sequence numbers.
    pub(super) fn new(ends: Ends<'_>, nth: u32, lateness: Lateness) -> Self {
        let (client, server) = match ends {
            Ends::Both { client, server } => (Some(client), Some(server)),
            Ends::Src { client, .. } => (Some(client), None),
            Ends::Dst { server, .. } => (None, Some(server)),
        };
        let lead = client.or(server).expect("there is an end");
        let both = || client.into_iter().chain(server);
        let opened = lead.opened;
        let closed = both().filter_map(|end| end.closed).min().map(|closed| closed.max(opened));
        let failed = both().find_map(|end| end.failed);
        let counts = |end: &&End| match (closed, end.closed) {
            (Some(closed), Some(own)) => millis(own) <= millis(closed).saturating_add(lateness.retention_ms),
            _ => true,
        };
        let (client_counts, server_counts) = (client.filter(counts), server.filter(counts));
        let actor = |end: &End| Some(Arc::clone(&end.actor));
        let (src, dst, seen) = match ends {
            Ends::Both { client, server } => (actor(client), actor(server), Seen::Both),
            Ends::Src { client, missing } => (actor(client), missing.cloned(), Seen::Src),
            Ends::Dst { server, missing } => (missing.cloned(), actor(server), Seen::Dst),
        };
        Self {
            id: id(lead, server, nth),
            state: match (failed, closed) {
                (Some(_), _) => State::Failed,
                (None, Some(_)) => State::Closed,
                (None, None) => State::Open,
            },
            opened,
            closed,
            tuple: lead.tuple,
            src,
            dst,
            sent: client_counts.map_or(0, |end| end.sent).max(server_counts.map_or(0, |end| end.received)),
            received: client_counts.map_or(0, |end| end.received).max(server_counts.map_or(0, |end| end.sent)),
            result: failed.unwrap_or(0),
            seen,
        }
    }
}

fn id(lead: &End, other: Option<&End>, nth: u32) -> u128 {
    let mut bytes = Vec::with_capacity(32);
    match lead.isns.or_else(|| other.and_then(|end| end.isns)) {
        Some(isns) => {
            bytes.extend_from_slice(&lead.actor.place.tenant_key.to_le_bytes());
            bytes.extend_from_slice(&isns.client.to_le_bytes());
            bytes.extend_from_slice(&isns.server.to_le_bytes());
            bytes.extend_from_slice(&nth.to_le_bytes());
        }
        None => bytes.extend_from_slice(&lead.key.0.to_le_bytes()),
    }
    xxh3_128(&bytes)
}

/// The rows that changed: what was (−1) and what is (+1), without those that stayed.
pub(super) fn changes(mut old: Vec<Connection>, new: Vec<Connection>, rows: &mut Vec<(Connection, i64)>) {
    for connection in new {
        match old.iter().position(|known| *known == connection) {
            Some(place) => drop(old.swap_remove(place)),
            None => rows.push((connection, 1)),
        }
    }
    rows.extend(old.into_iter().map(|connection| (connection, -1)));
}

/// The rows as Arrow columns, in the order and with the types of the relation.
pub fn encode(rows: &[(Connection, i64)]) -> RecordBatch {
    let mut table = Table::new(CONNECTIONS, rows.len());
    for (row, _) in rows {
        table.hex(0, &row.id.to_be_bytes());
        table.text(
            1,
            match row.state {
                State::Open => "open",
                State::Closed => "closed",
                State::Failed => "failed",
            },
        );
        table.set(2, Cell::Int(row.opened));
        table.set(3, row.closed.map_or(Cell::Null, Cell::Int));
        table.text(4, row.tuple.proto.as_str());
        table.display(5, &row.tuple.src);
        table.set(6, Cell::Int(i64::from(row.tuple.src_port)));
        table.display(7, &row.tuple.dst);
        table.set(8, Cell::Int(i64::from(row.tuple.dst_port)));
        encode_actor(&mut table, 9, row.src.as_deref());
        encode_actor(&mut table, 17, row.dst.as_deref());
        table.set(25, Cell::Int(row.sent.cast_signed()));
        table.set(26, Cell::Int(row.received.cast_signed()));
        table.set(27, Cell::Int(i64::from(row.result)));
        table.text(
            28,
            match row.seen {
                Seen::Both => "both",
                Seen::Src => "src",
                Seen::Dst => "dst",
            },
        );
    }
    table.finish()
}

fn encode_actor(table: &mut Table, first: usize, actor: Option<&Actor>) {
    let place: Option<&Place> = actor.map(|actor| &*actor.place);
    table.maybe(first, place.map(|place| &*place.region));
    table.maybe(first + 1, place.and_then(|place| place.cloud.as_deref()));
    table.maybe(first + 2, place.and_then(|place| place.zone.as_deref()));
    table.maybe(first + 3, place.map(|place| &*place.host));
    table.maybe(first + 4, actor.and_then(|actor| actor.app.as_deref()));
    table.maybe(first + 5, actor.and_then(|actor| actor.container_id.as_deref()));
    match actor.and_then(|actor| actor.process_id.as_ref()) {
        Some(process) => table.hex(first + 6, process),
        None => table.set(first + 6, Cell::Null),
    }
    table.maybe(first + 7, actor.and_then(|actor| actor.exe.as_deref()));
}
