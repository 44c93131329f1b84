//! The protocol between a node and its worker child: requests and responses over one Unix socket.
//!
//! On the wire: `u32` little-endian length, then that many bytes of postcard. The asker numbers its requests; answers carry the
//! number, so many requests share a connection and answers may come in any order.
//!
//! A peek is answered at ONE tick, at most the closed tick of every worker of the mesh, for all its reads: first any number of
//! `Rows` per read (none for an empty relation), then one `Done`; or `Failed` instead, at any point. Rows before a `Failed` are void.

use std::io::{self, Write as _};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What a node asks its workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The rows of some relations at one tick.
    Peek {
        /// Names the request in its answers.
        id: u64,
        /// At which tick.
        at: At,
        /// What to read, all at the same tick.
        reads: Vec<Read>,
    },
    /// What some ticks changed in one standing relation: answered as a peek with one read, whose rows have the columns `weir_tick` and
    /// `weir_diff` in front and are in no order.
    Changes {
        /// Names the request in its answers.
        id: u64,
        /// Of what, and of which ticks.
        read: ChangesRead,
    },
    /// How far the answers are.
    Frontier {
        /// Names the request in its answers.
        id: u64,
    },
    /// One hash per standing relation.
    Digest {
        /// Names the request in its answers.
        id: u64,
        /// At which tick.
        at: At,
    },
    /// What the workers have done and hold.
    Stats {
        /// Names the request in its answers.
        id: u64,
    },
}

/// Which tick an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum At {
    /// The newest that the asked process knows closed.
    Latest,
    /// This one; waits until it is closed, fails when it is no longer held.
    Tick(u64),
}

/// One relation of a peek.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Name out of [`crate::relations`].
    pub relation: String,
    /// Columns wanted, in this order; absent: all. An empty list asks for the number of rows alone.
    pub columns: Option<Vec<String>>,
    /// Any so many rows are enough; absent: all.
    pub limit: Option<u64>,
    /// More rows than this fail the peek.
    pub rows_max: u64,
    /// More bytes than this (of Arrow IPC) fail the peek.
    pub bytes_max: u64,
}

/// What some ticks changed in one relation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesRead {
    /// A standing relation.
    pub relation: String,
    /// What came behind this tick; none: all rows as they are at `upto`, as if it had made them.
    pub after: Option<u64>,
    /// Up to this tick, which is waited for. The answer is of no later one.
    pub upto: u64,
    /// More bytes than this (of Arrow IPC) fail the request.
    pub bytes_max: u64,
}

/// What the workers answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// Some rows of one read. Together, those of one read are its rows, each as often as it is in the relation.
    Rows {
        /// The request.
        id: u64,
        /// The read's place in the request.
        read: u32,
        /// The relation read.
        relation: String,
        /// The tick.
        tick: u64,
        /// An Arrow IPC stream.
        ipc: Vec<u8>,
    },
    /// All rows of a peek have been sent.
    Done {
        /// The request.
        id: u64,
        /// The tick of the answer.
        tick: u64,
        /// What the answer may lack.
        completeness: Completeness,
    },
    /// How far the answers are.
    Frontier {
        /// The request.
        id: u64,
        /// The newest closed tick; none before the first.
        closed: Option<u64>,
        /// The oldest tick that can still be peeked.
        since: u64,
    },
    /// One hash per standing relation.
    Digests {
        /// The request.
        id: u64,
        /// The tick of the answer.
        tick: u64,
        /// One per standing relation, in the order of [`crate::relations`].
        views: Vec<Digest>,
    },
    /// What the workers have done and hold.
    Stats {
        /// The request.
        id: u64,
        /// Of all workers of the mesh together.
        stats: Stats,
    },
    /// The request could not be answered.
    Failed {
        /// The request.
        id: u64,
        /// Why.
        failure: Failure,
    },
}

impl Response {
    /// The request this answers.
    pub fn id(&self) -> u64 {
        match self {
            Self::Rows { id, .. }
            | Self::Done { id, .. }
            | Self::Frontier { id, .. }
            | Self::Digests { id, .. }
            | Self::Stats { id, .. }
            | Self::Failed { id, .. } => *id,
        }
    }

    /// True when no further answer to the same request follows.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Rows { .. })
    }
}

/// Why a request could not be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// No such relation.
    #[error("no relation is called \"{0}\"")]
    UnknownRelation(String),
    /// No such column.
    #[error("relation \"{relation}\" has no column \"{column}\"")]
    UnknownColumn {
        /// The relation.
        relation: String,
        /// The column asked for.
        column: String,
    },
    /// The tick is older than what is held.
    #[error("tick {tick} is no longer held: the oldest that can be read is {since}")]
    Forgotten {
        /// Asked for.
        tick: u64,
        /// The oldest held.
        since: u64,
    },
    /// No tick has closed yet.
    #[error("no tick has closed yet")]
    NotReady,
    /// More rows than the read allows.
    #[error("relation \"{relation}\" has more than {rows_max} rows that match: add a condition or raise `query.rows_max`")]
    Rows {
        /// The relation.
        relation: String,
        /// The read's limit.
        rows_max: u64,
    },
    /// More bytes than the read allows.
    #[error("relation \"{relation}\" needs more than {bytes_max} bytes: ask for fewer columns or raise `query.memory_bytes_max`")]
    Bytes {
        /// The relation.
        relation: String,
        /// The read's limit.
        bytes_max: u64,
    },
    /// Not all workers answered in time.
    #[error("{answered} of {workers} workers answered in time")]
    TimedOut {
        /// How many did.
        answered: usize,
        /// How many there are.
        workers: usize,
    },
    /// Too many requests at once.
    #[error("{0} requests are being answered already: try again")]
    Busy(usize),
    /// An error of our own.
    #[error("internal error: {0}")]
    Internal(String),
}

/// What an answer may lack, and what was not counted in it. Counts are since the cluster's first tick.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completeness {
    /// Events that came after their retention: stored and marked, in no view.
    pub late_events: u64,
    /// Events that came again with the same content: dropped.
    pub duplicate_events: u64,
    /// Events that came again with other content: refused.
    pub conflicting_events: u64,
    /// Events that agents report as lost.
    pub lost_events: u64,
    /// Spans in which an unknown number of events was lost.
    pub unknown_loss_intervals: u64,
    /// Rows a limit kept out of the answer (tails forget the oldest).
    pub forgotten_rows: u64,
    /// Rows with a negative count: an internal error, never shown.
    pub negative_rows: u64,
    /// Hosts not heard of for a while, by name, sorted; the first 100.
    pub silent_hosts: Vec<String>,
    /// How many are silent.
    pub silent_hosts_total: u64,
}

impl Completeness {
    /// Adds what another worker knows.
    pub fn add(&mut self, other: Self) {
        self.late_events += other.late_events;
        self.duplicate_events += other.duplicate_events;
        self.conflicting_events += other.conflicting_events;
        self.lost_events += other.lost_events;
        self.unknown_loss_intervals += other.unknown_loss_intervals;
        self.forgotten_rows += other.forgotten_rows;
        self.negative_rows += other.negative_rows;
        self.silent_hosts_total += other.silent_hosts_total;
        self.silent_hosts.extend(other.silent_hosts);
        self.silent_hosts.sort_unstable();
        self.silent_hosts.dedup();
        self.silent_hosts.truncate(SILENT_HOSTS_SHOWN_MAX);
    }
}

/// Hash of a standing relation's rows: the same for the same rows, whatever the order and number of workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// The relation.
    pub relation: String,
    /// 32 hex digits.
    pub hash: String,
    /// How many rows.
    pub rows: u64,
}

/// What the workers have done and hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Workers of the mesh.
    pub workers: u64,
    /// The newest closed tick of the worker that is furthest behind.
    pub closed: Option<u64>,
    /// The newest tick fed to any worker.
    pub fed: Option<u64>,
    /// Rows and bytes held per relation.
    pub relations: Vec<Held>,
    /// Counters by name (`events_total`, `late_events_total` …), summed over workers.
    pub counters: Vec<(String, u64)>,
}

/// What a relation holds in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The relation.
    pub relation: String,
    /// Distinct rows.
    pub rows: u64,
    /// Bytes of rows, without the overhead of maps.
    pub bytes: u64,
}

/// Encodes a message with its length in front.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, Error> {
    let mut bytes = postcard::to_extend(message, vec![0; LENGTH_BYTES]).map_err(|error| Error::Message(error.to_string()))?;
    let body = bytes.len() - LENGTH_BYTES;
    if body > MESSAGE_BYTES_MAX {
        return Err(Error::TooLong(body));
    }
    bytes[..LENGTH_BYTES].copy_from_slice(&(body as u32).to_le_bytes());
    Ok(bytes)
}

/// Decodes the body of a message: what follows its length.
pub fn decode<M: DeserializeOwned>(body: &[u8]) -> Result<M, Error> {
    postcard::from_bytes(body).map_err(|error| Error::Message(error.to_string()))
}

/// The body's length out of a message's first four bytes.
pub fn body_len(prefix: [u8; LENGTH_BYTES]) -> Result<usize, Error> {
    let body = u32::from_le_bytes(prefix) as usize;
    if body > MESSAGE_BYTES_MAX { Err(Error::TooLong(body)) } else { Ok(body) }
}

/// Reads one message; none at the end of the stream.
pub fn read<M: DeserializeOwned>(from: &mut impl io::Read) -> Result<Option<M>, Error> {
    let mut prefix = [0; LENGTH_BYTES];
    match from.read_exact(&mut prefix) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(Error::Io(error)),
    }
    let mut body = vec![0; body_len(prefix)?];
    from.read_exact(&mut body)?;
    decode(&body).map(Some)
}

/// A blocking client, one request at a time: for tools, tests and `--replay-to`.
#[derive(Debug)]
pub struct Client {
    socket: std::os::unix::net::UnixStream,
}

impl Client {
    /// Connects to the workers' socket.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        Ok(Self { socket: std::os::unix::net::UnixStream::connect(path)? })
    }

    /// Sends a request and collects its answers up to the last one.
    pub fn ask(&mut self, request: &Request) -> Result<Vec<Response>, Error> {
        self.socket.write_all(&encode(request)?)?;
        let mut responses = Vec::new();
        loop {
            let response: Response = read(&mut self.socket)?.ok_or(Error::Closed)?;
            let last = response.is_last();
            responses.push(response);
            if last {
                return Ok(responses);
            }
        }
    }
}

/// Why a message could not be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("the workers' socket failed: {0}")]
    Io(#[from] io::Error),
    /// Not a message of this protocol.
    #[error("could not read or write a message of the handle protocol: {0}")]
    Message(String),
    /// Longer than the protocol allows.
    #[error("a message of {0} bytes is longer than the handle protocol allows")]
    TooLong(usize),
    /// The other side has gone.
    #[error("the workers closed the socket before the answer was complete")]
    Closed,
}

/// Bytes of a message's length.
pub const LENGTH_BYTES: usize = 4;
/// Longest message. Rows are sent in far smaller pieces.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Most silent hosts named in an answer; their number is exact.
pub const SILENT_HOSTS_SHOWN_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let read_one = Read { relation: "hosts".into(), columns: None, limit: Some(3), rows_max: 10, bytes_max: 1 << 20 };
        let request = Request::Peek { id: 7, at: At::Tick(9), reads: vec![read_one] };
        let bytes = encode(&request).unwrap();
        assert_eq!(read::<Request>(&mut bytes.as_slice()).unwrap(), Some(request));
        assert_eq!(read::<Request>(&mut [].as_slice()).unwrap(), None);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        assert!(matches!(read::<Request>(&mut [0xff; 16].as_slice()), Err(Error::TooLong(_))));
        assert!(matches!(read::<Request>(&mut [2, 0, 0, 0, 0xff, 0xff].as_slice()), Err(Error::Message(_))));
    }
}
