//! What can go wrong with a journal, as far as a caller may act on it.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::Offset;

/// Why a journal did not do what was asked.
#[derive(Debug, Error)]
pub enum Error {
    /// Somebody else writes this journal. Not an error of the disk: ask again later, or do without.
    #[error("journal {dir:?} is locked by another writer")]
    Locked {
        /// The journal's folder.
        dir: PathBuf,
    },
    /// The disk is full. Nothing was lost: what was appended waits, and a later `sync` may succeed.
    #[error("could not {action} {path:?}: no space left")]
    Full {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
    },
    /// The system refused. Unless the journal is poisoned, a later call may succeed.
    #[error("could not {action} {path:?}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A sync failed earlier, so the kernel may have dropped what it held: nobody knows what is on the disk. Open it anew.
    #[error("journal {dir:?} had a failed sync and must be opened anew")]
    Poisoned {
        /// The journal's folder.
        dir: PathBuf,
    },
    /// One record is larger than the journal takes.
    #[error("record of {bytes} bytes is larger than the limit of {bytes_max}")]
    RecordTooLarge {
        /// The record's size.
        bytes: usize,
        /// The limit of `Options::record_bytes_max`.
        bytes_max: usize,
    },
    /// So much waits for a `sync` that nothing more is taken.
    #[error("{bytes_max} bytes wait for a sync already")]
    PendingFull {
        /// The limit of `Options::pending_bytes_max`.
        bytes_max: usize,
    },
    /// Records were durable once and cannot be read any more. The reader stays before the gap; `seek(to)` goes on behind it.
    #[error("records {from} to {to} (exclusive) are lost")]
    Gap {
        /// First lost record.
        from: Offset,
        /// First record behind the gap.
        to: Offset,
    },
    /// The record asked for was forgotten on purpose.
    #[error("record {asked} is forgotten; the journal begins at {first}")]
    Forgotten {
        /// The record asked for.
        asked: Offset,
        /// The first that is kept.
        first: Offset,
    },
    /// There is no journal here, or its writer has not made it yet.
    #[error("no journal in {dir:?}")]
    Missing {
        /// The journal's folder.
        dir: PathBuf,
    },
}

impl Error {
    /// Wraps what the system said about `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { action, path },
            _ => Self::Io { action, path, source },
        }
    }
}
