//! Level `local`: every log and the chain is a journal in a directory that all nodes share.
//!
//! A journal has one writer, by its lock, which the kernel gives back when the process dies.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{error, warn};
use weir_config::JournalLimits;
use weir_journal::{Disk, Journal, Lock, Offset, Options};
use weir_schema::Name;

use super::{ChainWriter, Duty, Gather, LogError, LogWriter, Logs, Office, Pace, Reader};
use crate::chain::ChainRecord;
use crate::layout;

/// Journals below one directory.
pub(crate) struct LocalLogs {
    disk: Arc<dyn Disk>,
    shared: PathBuf,
    limits: JournalLimits,
}

impl LocalLogs {
    pub(crate) fn new(disk: Arc<dyn Disk>, shared: &Path, limits: &JournalLimits) -> Self {
        Self { disk, shared: shared.to_owned(), limits: limits.clone() }
    }

    fn reader(&self, dir: &Path, from: u64) -> Result<Box<dyn Reader>, LogError> {
        Ok(Box::new(weir_journal::Reader::open(self.disk.clone(), dir, Offset(from))?))
    }
}

impl Logs for LocalLogs {
    fn read_chain(&self, from: u64, _pace: Pace) -> Result<Box<dyn Reader>, LogError> {
        self.reader(&layout::chain_dir(&self.shared), from)
    }

    fn read_log(&self, name: &Name, from: u64) -> Result<Box<dyn Reader>, LogError> {
        self.reader(&layout::log_dir(&self.shared, name), from)
    }

    fn names(&self) -> Result<Vec<Name>, LogError> {
        let listed = match self.disk.list(&layout::logs_dir(&self.shared)) {
            Ok(listed) => listed,
            // The first node makes it with its log.
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(source) => {
                let path = layout::logs_dir(&self.shared);
                return Err(LogError::Journal(weir_journal::Error::Io { action: "list", path, source }));
            }
        };
        let mut names: Vec<Name> = listed.into_iter().filter_map(|name| Name::new(name).ok()).collect();
        names.sort();
        Ok(names)
    }

    fn take_chain(&self) -> Result<Option<Box<dyn ChainWriter>>, LogError> {
        let options = Options { segment_bytes_max: CHAIN_SEGMENT_BYTES, ..Options::default() };
        match Journal::open(self.disk.clone(), &layout::chain_dir(&self.shared), options) {
            Ok((journal, _)) => Ok(Some(Box::new(Chain(journal)))),
            Err(weir_journal::Error::Locked { .. }) => Ok(None),
            Err(failed) => Err(failed.into()),
        }
    }

    fn open_log(&self, name: &Name) -> Result<Box<dyn LogWriter>, LogError> {
        let options = Options { segment_bytes_max: self.limits.segment_bytes_max, ..Options::default() };
        let dir = layout::log_dir(&self.shared, name);
        let (journal, recovery) = Journal::open(self.disk.clone(), &dir, options)?;
        if recovery.torn_bytes > 0 || !recovery.quarantined.is_empty() {
            warn!(log = %name, torn_bytes = recovery.torn_bytes, quarantined = recovery.quarantined.len(), "log recovered");
        }
        Ok(Box::new(Log { journal, bytes_max: self.limits.sync_bytes_max }))
    }

    fn elect(&self, duty: Duty) -> Result<Option<Box<dyn Office>>, LogError> {
        let dir = match duty {
            Duty::Archivist => layout::archivist_dir(&self.shared),
            Duty::Sender => layout::alerts_dir(&self.shared),
        };
        if let Err(source) = self.disk.create_dir(&dir) {
            error!(dir = %dir.display(), ?duty, "its lock could not be made");
            return Err(LogError::Journal(weir_journal::Error::Io { action: "create", path: dir, source }));
        }
        Ok(Lock::try_acquire(&dir)?.map(|lock| Box::new(Locked { _lock: lock }) as Box<dyn Office>))
    }

    fn place(&self) -> String {
        self.shared.display().to_string()
    }

    fn nonce(&self) -> u128 {
        u128::from(self.disk.salt()) << 64 | u128::from(self.disk.salt())
    }
}

impl Reader for weir_journal::Reader {
    fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>, LogError> {
        Ok(self.next()?.map(|(offset, bytes)| (offset.0, bytes)))
    }

    fn at(&self) -> u64 {
        self.at().0
    }

    fn seek(&mut self, to: u64) {
        self.seek(Offset(to));
    }

    fn durable(&mut self) -> Result<u64, LogError> {
        Ok(Self::durable(self)?.0)
    }

    fn proven(&mut self, until: u64) {
        self.proven(Offset(until));
    }
}

/// The chain's journal, its lock in hand.
struct Chain(Journal);

impl ChainWriter for Chain {
    fn first(&self) -> u64 {
        self.0.first().0
    }

    fn append(&mut self, at: u64, record: &ChainRecord) -> Result<(), LogError> {
        let offset = self.0.append(&record.encode())?;
        assert_eq!(offset.0, at, "who holds the lock knows what the chain has");
        self.0.sync()?;
        Ok(())
    }

    fn forget(&mut self, before: u64) -> Result<(), LogError> {
        Ok(self.0.forget(Offset(before))?)
    }
}

/// A node's journal, its lock in hand.
struct Log {
    journal: Journal,
    bytes_max: usize,
}

impl LogWriter for Log {
    fn first(&self) -> u64 {
        self.journal.first().0
    }

    fn append(&mut self, record: &[u8]) -> Result<(), LogError> {
        self.journal.append(record)?;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), LogError> {
        self.journal.sync()?;
        Ok(())
    }

    fn forget(&mut self, before: u64) -> Result<(), LogError> {
        Ok(self.journal.forget(Offset(before))?)
    }

    fn gather(&self) -> Gather {
        // A sync takes about as long as what comes meanwhile is worth waiting for.
        Gather { bytes_max: self.bytes_max, pause: Duration::ZERO }
    }
}

/// An office by a lock: it is held for as long as the process wants.
struct Locked {
    _lock: Lock,
}

impl Office for Locked {
    fn is_held(&self) -> bool {
        true
    }
}

/// The least that can be forgotten of the chain: about an hour of ticks.
pub(crate) const CHAIN_SEGMENT_BYTES: u64 = 2 << 20;
