//! The append-only segmented log of opaque records, crash-safe. The agent's spool and a node's log are both journals.
//!
//! ```text
//!  append ─► memory ─► sync: one write, one fdatasync ─► watermark ─► readers, in any process
//! ```
//!
//! Promises:
//! - What `sync` returned as durable is read back, byte for byte, after any crash, until it is forgotten.
//! - Nothing is ever read that was not appended; offsets are dense and never used twice once durable.
//! - What a bad disk took is named: `Recovery::quarantined` for the writer, `Error::Gap` for readers. A damaged journal opens,
//!   also on a full disk; only a disk that refuses to read or write keeps it closed.
//! - One writer at a time, by a lock that dies with its holder.
//!
//! On disk: `segment.rs` and `record.rs`, `mark.rs` for the two small files. `disk.rs` is the only way to a disk.
//! Nothing here reads a clock, and nothing knows what a record means.

mod disk;
mod error;
mod mark;
mod reader;
mod record;
mod recovery;
mod segment;
mod sim;
mod writer;

use std::fmt;

pub use disk::{Disk, DiskFile, Lock, RealDisk};
pub use error::Error;
pub use reader::Reader;
pub use recovery::{Quarantined, Recovery};
pub use sim::{Failure, SimDisk};
pub use writer::Journal;

/// The number of a record in its journal, dense, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset `records` further on.
    pub fn after(self, records: u64) -> Self {
        Self(self.0 + records)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The limits of a journal. They may differ from one opening to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bytes reserved for a segment: the least that can be forgotten. Default 32 MiB (about one sync in fifty makes a segment
    /// at full load). One record that is larger gets a larger segment.
    pub segment_bytes_max: u64,
    /// Bytes of one record. Default 8 MiB (the largest frame a node may accept).
    pub record_bytes_max: usize,
    /// Bytes that may wait for a sync. Default 64 MiB (a disk that is full must not fill the memory too).
    pub pending_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes_max: 32 << 20, record_bytes_max: 8 << 20, pending_bytes_max: 64 << 20 }
    }
}
