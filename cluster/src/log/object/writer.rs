//! Writes the chain and a log as numbered objects.
//!
//! Promise: what is said to be durable is in an object that is ours and that counts, see `claim.rs`. Whoever finds its next number taken by
//! another is fenced: it says so, and writes nothing any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tracing::warn;
use weir_schema::Name;

use super::format::{Draft, Kind};
use super::objects::{Folder, Place};
use super::{Holding, Io};
use crate::chain::ChainRecord;
use crate::log::{ChainWriter, Gather, LogError, LogWriter};

/// Writes the chain for as long as nobody else does.
pub(crate) struct ObjectChain {
    io: Arc<Io>,
    folder: Folder,
    run: u128,
    first: u64,
    /// Number and nonce of the record that we wrote last.
    last: Option<(u64, u128)>,
    holding: Holding,
    forgetting: Forgetting,
}

impl ObjectChain {
    /// `first` is the oldest record that is kept.
    pub(crate) fn new(io: Arc<Io>, run: u128, first: u64, holding: Holding) -> Self {
        let folder = Folder::chain(io.store());
        let forgetting = Forgetting::start(&io, folder.clone(), Unit::Objects);
        Self { io, folder, run, first, last: None, holding, forgetting }
    }
}

impl ChainWriter for ObjectChain {
    fn first(&self) -> u64 {
        self.first
    }

    fn append(&mut self, at: u64, record: &ChainRecord) -> Result<(), LogError> {
        let (folder, run, last) = (self.folder.clone(), self.run, self.last);
        let draft = Draft::chain(&record.encode());
        let written = self.io.wait(async move {
            let before = match (last, at.checked_sub(1)) {
                (Some((number, nonce)), Some(below)) if number == below => Some(nonce),
                (_, Some(below)) => match folder.head(below).await? {
                    Some(head) => Some(head.nonce),
                    // It was there when the chain was read: it was forgotten since, and others are far ahead.
                    None => return Err(LogError::Fenced { object: folder.object(at).to_string() }),
                },
                (_, None) => None,
            };
            folder.create(at, &draft, Place { before, run, first: at }).await
        });
        match written {
            Ok(link) => {
                self.last = Some((at, link.nonce));
                self.holding.wrote(at);
                Ok(())
            }
            Err(failed) => {
                self.holding.lost();
                Err(failed)
            }
        }
    }

    fn forget(&mut self, before: u64) -> Result<(), LogError> {
        self.forgetting.allow(before);
        Ok(())
    }
}

impl Drop for ObjectChain {
    fn drop(&mut self) {
        self.holding.lost();
    }
}

/// Writes a node's log.
pub(crate) struct SegmentWriter {
    io: Arc<Io>,
    folder: Folder,
    owner: Name,
    run: u128,
    /// The number of the next segment, and what it stands upon.
    next: u64,
    place: Place,
    first: u64,
    draft: Draft,
    gather: Gather,
    forgetting: Forgetting,
}

impl SegmentWriter {
    /// Opens a log: reads where it ends, and begins with an empty segment that keeps any earlier writer from writing more.
    pub(crate) fn open(io: Arc<Io>, owner: &Name, run: u128, gather: Gather) -> Result<Self, LogError> {
        let folder = Folder::log(io.store(), owner);
        let (there, name) = (folder.clone(), owner.clone());
        let (number, nonce, end, first) = io.wait(async move { begin(&there, &name, run).await })?;
        let place = Place { before: Some(nonce), run, first: end };
        let forgetting = Forgetting::start(&io, folder.clone(), Unit::Records);
        let draft = Draft::of_log(Kind::Segment, owner);
        Ok(Self { io, folder, owner: owner.clone(), run, next: number + 1, place, first, draft, gather, forgetting })
    }
}

/// Creates the opening segment. Gives its number and nonce, the number of the next record, and the first that is kept.
async fn begin(folder: &Folder, owner: &Name, run: u128) -> Result<(u64, u128, u64, u64), LogError> {
    for _ in 0..OPEN_TRIES {
        let (number, place, first) = match folder.numbers().await? {
            None => (0, Place { before: None, run, first: 0 }, 0),
            Some(numbers) => {
                let (Some(oldest), Some(newest)) = (folder.head(*numbers.start()).await?, folder.head(*numbers.end()).await?)
                else {
                    continue;
                };
                if newest.kind == Kind::Tombstone {
                    return Err(LogError::Retired);
                }
                let place = Place { before: Some(newest.nonce), run, first: newest.end() };
                (numbers.end() + 1, place, oldest.first)
            }
        };
        match folder.create(number, &Draft::of_log(Kind::Segment, owner), place).await {
            Ok(link) => return Ok((number, link.nonce, place.first, first)),
            // Something of an earlier run was still on its way: go on behind it.
            Err(LogError::Fenced { object }) => warn!(object, "the log has grown while it was opened"),
            Err(failed) => return Err(failed),
        }
    }
    Err(LogError::Held)
}

impl LogWriter for SegmentWriter {
    fn first(&self) -> u64 {
        self.first
    }

    fn append(&mut self, record: &[u8]) -> Result<(), LogError> {
        self.draft.push(record);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), LogError> {
        if self.draft.count() == 0 {
            return Ok(());
        }
        let draft = std::mem::replace(&mut self.draft, Draft::of_log(Kind::Segment, &self.owner));
        let (folder, number, place, count) = (self.folder.clone(), self.next, self.place, draft.count());
        let link = self.io.wait(async move { folder.create(number, &draft, place).await })?;
        self.next += 1;
        self.place = Place { before: Some(link.nonce), run: self.run, first: self.place.first + u64::from(count) };
        Ok(())
    }

    fn forget(&mut self, before: u64) -> Result<(), LogError> {
        self.forgetting.allow(before);
        Ok(())
    }

    fn gather(&self) -> Gather {
        self.gather
    }
}

/// Forgets in the background: a store that deletes slowly must not keep anybody from writing.
struct Forgetting {
    floor: watch::Sender<u64>,
    allowed: AtomicU64,
}

/// What a floor counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Objects,
    Records,
}

impl Forgetting {
    fn start(io: &Arc<Io>, folder: Folder, unit: Unit) -> Self {
        let (floor, mut floors) = watch::channel(0);
        io.spawn(async move {
            while floors.changed().await.is_ok() {
                let before = *floors.borrow_and_update();
                let forgotten = match unit {
                    Unit::Objects => folder.forget(before).await,
                    Unit::Records => folder.forget_records(before).await,
                };
                if let Err(failed) = forgotten {
                    warn!(error = %failed, "what is not needed any more could not be removed: it is tried again later");
                }
            }
        });
        Self { floor, allowed: AtomicU64::new(0) }
    }

    fn allow(&self, before: u64) {
        if self.allowed.fetch_max(before, Ordering::Relaxed) < before {
            self.floor.send_replace(before);
        }
    }
}

/// How often something of an earlier run may be faster.
const OPEN_TRIES: usize = 8;
