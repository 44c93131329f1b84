//! Manifests: what the archive holds, as a chain of numbered objects, each with the SHA-256 of the one before.
//!
//! ```json
//! { "format": 1, "number": 17, "previous": "<sha-256 of manifest 16>", "nonce": "…", "written_ms": …,
//!   "position": { "tick": …, "chain": …, "logs": [["node-1", 812]] },
//!   "state": { "path": "state/….bin", "bytes": …, "sha256": "…" },
//!   "added": [ { "path": …, "sha256": …, "rows": …, … } ],
//!   "removed": [ { "path": …, "why": "compacted" } ],
//!   "holds_set": [], "holds_released": [],
//!   "snapshot": null,
//!   "checksum": "<sha-256 of the same text without this key>" }
//! ```
//!
//! A manifest says what it changes. Every 64th also repeats the whole state as it is after it, so that a reader begins there. The hash
//! of a file covers every byte of it, and the chain of hashes covers every file that was ever added.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::Error;
use crate::layout::{Partition, Table};

/// One link of the archive's chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub format: u32,
    /// Dense, from 1.
    pub number: u64,
    /// SHA-256 of the bytes of the manifest before, in hexadecimal; empty in the first.
    pub previous: String,
    /// Random: no two manifests have equal bytes, not even two that say the same.
    pub nonce: String,
    /// The writer's clock. Told to people, never part of an answer.
    pub written_ms: u64,
    /// The files hold all that is chained up to here.
    pub position: Position,
    /// What the writer goes on from at `position`.
    pub state: Option<StateRef>,
    /// Files that are new.
    #[serde(default)]
    pub added: Vec<FileEntry>,
    /// Files that are gone.
    #[serde(default)]
    pub removed: Vec<Removed>,
    /// Holds that are new or changed.
    #[serde(default)]
    pub holds_set: Vec<Hold>,
    /// Names of holds that are gone.
    #[serde(default)]
    pub holds_released: Vec<String>,
    /// Everything as it is after this manifest; in every 64th.
    #[serde(default)]
    pub snapshot: Option<Snapshot>,
}

/// A place in the cluster's chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The last tick.
    pub tick: u64,
    /// The chain record that comes next.
    pub chain: u64,
    /// Per registered log, by index: its name and the record that comes next.
    pub logs: Vec<(String, u64)>,
}

/// The writer's state, kept beside the manifests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRef {
    /// The object.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// A file of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileEntry {
    /// The object.
    pub path: String,
    /// What it holds rows of.
    pub table: Table,
    /// What its rows have in common; none for a fresh file.
    pub partition: Option<Partition>,
    /// Rows.
    pub rows: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 of the whole file, in hexadecimal.
    pub sha256: String,
    /// Where the footer begins (page index, then footer): what a reader fetches first.
    pub footer_at: u64,
    /// SHA-256 from there to the end, in hexadecimal. The footer holds the checksums of what is before it.
    pub footer_sha256: String,
    /// Least time of a row, nanoseconds.
    pub time_min: i64,
    /// Greatest time of a row, nanoseconds.
    pub time_max: i64,
    /// Least tick of a row.
    pub tick_min: u64,
    /// Greatest tick of a row.
    pub tick_max: u64,
    /// How it came: by a cluster, or from a file of past events.
    #[serde(default)]
    pub imported: bool,
}

/// A file that is gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Removed {
    /// The object.
    pub path: String,
    /// Why.
    pub why: Why,
}

/// Why a file is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Its rows are in a file that the same manifest adds.
    Compacted,
    /// It was older than its rows are kept.
    Age,
    /// There was no more room for its table, tenant or region.
    Bytes,
}

impl Why {
    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compacted => "compacted",
            Self::Age => "age",
            Self::Bytes => "bytes",
        }
    }
}

/// Rows that retention must not drop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The case's name.
    pub name: String,
    /// Only rows of this host.
    pub host: Option<String>,
    /// Only rows of this container.
    pub container_id: Option<String>,
    /// From this time on, nanoseconds.
    pub from: Option<i64>,
    /// Up to this time (exclusive), nanoseconds.
    pub to: Option<i64>,
    /// Who asked for it, and why.
    pub note: Option<String>,
}

/// What retention has dropped, by what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Of which relation.
    pub table: Table,
    /// What the rows had in common.
    pub partition: Partition,
    /// Why they went.
    pub why: Why,
    /// Rows.
    pub rows: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Least time of a dropped row, nanoseconds.
    pub time_min: i64,
    /// Greatest time of a dropped row, nanoseconds.
    pub time_max: i64,
    /// When the latest were dropped, by the writer's clock.
    pub dropped_ms: u64,
}

/// The whole state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Every file.
    pub files: Vec<FileEntry>,
    /// Every hold.
    pub holds: Vec<Hold>,
    /// Everything that was dropped.
    pub dropped: Vec<Dropped>,
}

impl Manifest {
    /// Its bytes: JSON whose last key, `checksum`, is the SHA-256 of the same JSON without it. Equal values have equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("plain structs of texts and numbers always serialise");
        let checksum = sha256_hex(&bytes);
        bytes.truncate(bytes.len() - CONTENT_END.len());
        bytes.extend_from_slice(format!("{CHECKSUM_BEGIN}{checksum}{CHECKSUM_END}").as_bytes());
        bytes
    }

    /// Reads it back. `path` is for messages.
    pub fn decode(path: &str, bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Lead {
            format: u32,
        }
        let malformed = |error: serde_json::Error| Error::damaged(path, error.to_string());
        let content = Self::content(path, bytes)?;
        let lead: Lead = serde_json::from_slice(&content).map_err(malformed)?;
        if lead.format != FORMAT {
            return Err(Error::Format { path: path.to_owned(), found: lead.format, known: FORMAT });
        }
        serde_json::from_slice(&content).map_err(malformed)
    }

    /// The JSON without its checksum, which is found right.
    pub(crate) fn content(path: &str, bytes: &[u8]) -> Result<Vec<u8>, Error> {
        let split = bytes.len().checked_sub(CHECKSUM_BEGIN.len() + CHECKSUM_DIGITS + CHECKSUM_END.len());
        let (content, end) = bytes.split_at(split.unwrap_or(0));
        let digits = std::str::from_utf8(end).ok().and_then(|end| end.strip_prefix(CHECKSUM_BEGIN)?.strip_suffix(CHECKSUM_END));
        let content = [content, CONTENT_END.as_bytes()].concat();
        match digits {
            Some(digits) if *digits == sha256_hex(&content) => Ok(content),
            Some(_) => Err(Error::damaged(path, "its checksum does not fit its content")),
            None => Err(Error::damaged(path, "it does not end with its checksum")),
        }
    }
}

/// SHA-256 in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        use std::fmt::Write as _;
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Version of the format that this build writes.
pub const FORMAT: u32 = 1;
/// Every so many manifests one repeats everything.
pub(crate) const SNAPSHOT_EVERY: u64 = 64;
const CONTENT_END: &str = "\n}";
const CHECKSUM_BEGIN: &str = ",\n  \"checksum\": \"";
const CHECKSUM_DIGITS: usize = 64;
const CHECKSUM_END: &str = "\"\n}\n";
