//! The chain and the logs, wherever they lie: one interface, and the one place that chooses the level.
//!
//! | level | the chain | a node's log | one writer, because |
//! |---|---|---|---|
//! | `local` | a journal | a journal | a lock dies with its holder |
//! | `object` | numbered objects | numbered segments | a number is created once |
//!
//! Whoever reads or writes knows records by their numbers only, dense and from 0, and nothing of files or objects. All of it blocks: it is
//! for threads of one's own.

mod error;
pub(crate) mod local;
mod object;

use std::sync::Arc;
use std::time::Duration;

use weir_archive::Store;
use weir_config::{LogLevel, NodeConfig};
use weir_journal::RealDisk;
use weir_schema::Name;

use crate::chain::ChainRecord;
use crate::error::Error;

pub use error::LogError;
pub(crate) use local::LocalLogs;
pub(crate) use object::ObjectLogs;

/// The chain and the logs of one cluster.
pub(crate) trait Logs: Send + Sync {
    /// Reads the chain from the record `from` on. `Missing` until its first holder has made it.
    fn read_chain(&self, from: u64, pace: Pace) -> Result<Box<dyn Reader>, LogError>;

    /// Reads a log from the record `from` on. `Missing` until its writer has made it.
    fn read_log(&self, name: &Name, from: u64) -> Result<Box<dyn Reader>, LogError>;

    /// The logs that there are, sorted. One that was just begun may not be readable yet.
    fn names(&self) -> Result<Vec<Name>, LogError>;

    /// Takes the chain over, or starts one; none while another process holds it.
    fn take_chain(&self) -> Result<Option<Box<dyn ChainWriter>>, LogError>;

    /// Opens a log to write it. `Held`: another process does.
    fn open_log(&self, name: &Name) -> Result<Box<dyn LogWriter>, LogError>;

    /// Makes this process the one that has a duty; none while another one has it.
    fn elect(&self, duty: Duty) -> Result<Option<Box<dyn Office>>, LogError>;

    /// Where they lie, for people.
    fn place(&self) -> String;

    /// 128 bits that differ between any two records of the chain.
    fn nonce(&self) -> u128 {
        nonce()
    }
}

/// What one node of a cluster does for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duty {
    /// Writes the archive.
    Archivist,
    /// Sends alerts to sinks.
    Sender,
}

/// How soon a reader of the chain must see a new record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Whatever was durable when it asks.
    UpToNow,
    /// A little later: it asks over and over.
    Polling,
}

/// Reads records in order, as far as they are durable.
pub(crate) trait Reader: Send {
    /// The next record and its number, or none when all that is durable was read.
    fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>, LogError>;

    /// The number of the record that comes next.
    fn at(&self) -> u64;

    /// Goes on with the record `to`, wherever that is.
    fn seek(&mut self, to: u64);

    /// Everything before it is durable, now.
    fn durable(&mut self) -> Result<u64, LogError>;

    /// Takes somebody's word that everything before `until` was durable once, where the log itself may know less for a while.
    fn proven(&mut self, _until: u64) {}
}

/// Writes the chain. There is one that counts at a time.
pub(crate) trait ChainWriter: Send {
    /// The first record that is kept.
    fn first(&self) -> u64;

    /// Writes the record number `at`, durably. The caller has read everything before it.
    fn append(&mut self, at: u64, record: &ChainRecord) -> Result<(), LogError>;

    /// Allows the records before `before` to go.
    fn forget(&mut self, before: u64) -> Result<(), LogError>;
}

/// Writes a node's log. There is one that counts at a time.
pub(crate) trait LogWriter: Send {
    /// The first record that is kept.
    fn first(&self) -> u64;

    /// Takes a record. It waits in memory until [`LogWriter::sync`].
    fn append(&mut self, record: &[u8]) -> Result<(), LogError>;

    /// Makes everything appended durable. After an error nobody knows what is durable: open the log anew.
    fn sync(&mut self) -> Result<(), LogError>;

    /// Allows the records before `before` to go.
    fn forget(&mut self, before: u64) -> Result<(), LogError>;

    /// How much to gather before a sync.
    fn gather(&self) -> Gather;
}

/// How records are gathered for one sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gather {
    /// Bytes with which a sync is made at once.
    pub(crate) bytes_max: usize,
    /// The least time from the beginning of one sync to that of the next, unless there are so many bytes.
    pub(crate) pause: Duration,
}

/// An office that one process of the cluster has. It ends when this is dropped.
pub(crate) trait Office: Send {
    /// False once it is another's.
    fn is_held(&self) -> bool;
}

/// The chain and the logs that a config means.
pub(crate) fn open(config: &NodeConfig) -> Result<Arc<dyn Logs>, Error> {
    match config.log.level {
        LogLevel::Local => Ok(Arc::new(LocalLogs::new(Arc::new(RealDisk), &config.shared_dir, &config.journal))),
        LogLevel::Object => {
            let logs = ObjectLogs::new(Store::open(&config.log.location)?, &config.log);
            Ok(Arc::new(logs.map_err(Error::log("opening the store of the logs"))?))
        }
    }
}

/// 128 bits that differ between any two objects and records: the standard library's per-process random keys.
pub(crate) fn nonce() -> u128 {
    use std::hash::{BuildHasher as _, RandomState};
    let half = || u128::from(RandomState::new().hash_one(std::process::id()));
    half() << 64 | half()
}
