//! What is done with a store: numbered objects are created, read, found and forgotten.
//!
//! ```text
//! chain/<n>           one record of the chain
//! logs/<node>/<n>     a segment of a node's log, or its tombstone
//! ```
//!
//! The numbers of a folder are dense up to the newest. Those that were forgotten are missing below; what lies below a hole was created by
//! somebody who slept meanwhile, and counts for nothing.

use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::warn;
use weir_archive::{Created, ObjectPath, Store};
use weir_schema::Name;

use super::claim::{Ask, Claim, Claimed, Heard};
use super::format::{Draft, HEAD_BYTES, Head, Kind, Link, Object};
use crate::log::{LogError, nonce};

/// A folder of numbered objects.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    store: Store,
    path: ObjectPath,
}

impl Folder {
    /// The chain.
    pub(crate) fn chain(store: &Store) -> Self {
        Self { store: store.clone(), path: ObjectPath::from(CHAIN) }
    }

    /// A node's log.
    pub(crate) fn log(store: &Store, name: &Name) -> Self {
        Self { store: store.clone(), path: ObjectPath::from(LOGS).join(name.as_str()) }
    }

    /// An object of it.
    pub(crate) fn object(&self, number: u64) -> ObjectPath {
        // Twenty digits: names sort as numbers do.
        self.path.clone().join(format!("{number:020}"))
    }

    /// The head of an object, if it is there.
    pub(crate) async fn head(&self, number: u64) -> Result<Option<Head>, LogError> {
        let path = self.object(number);
        match within(self.store.read_start(&path, HEAD_BYTES)).await? {
            None => Ok(None),
            Some(bytes) => Head::decode(&bytes).map(Some).map_err(damaged(&path)),
        }
    }

    /// The numbers from the oldest to the newest that count; none: there is nothing.
    pub(crate) async fn numbers(&self) -> Result<Option<RangeInclusive<u64>>, LogError> {
        for _ in 0..LISTS_MAX {
            let Some(run) = self.listed().await?.into_iter().next_back() else { return Ok(None) };
            // A directory's list may miss what is created meanwhile, never what a second look asks for by name.
            match run.start().checked_sub(1) {
                Some(below) if self.head(below).await?.is_some() => {}
                _ => return Ok(Some(run)),
            }
        }
        Err(LogError::Store(format!("the list of {} is not the same as what is there", self.path)))
    }

    /// The runs of numbers without a hole, ascending.
    async fn listed(&self) -> Result<Vec<RangeInclusive<u64>>, LogError> {
        let mut runs: Vec<RangeInclusive<u64>> = Vec::new();
        for path in within(self.store.list(&self.path)).await? {
            let Some(number) = path.filename().and_then(|name| name.parse::<u64>().ok()) else { continue };
            match runs.last_mut() {
                Some(run) if run.end() + 1 == number => *run = *run.start()..=number,
                _ => runs.push(number..=number),
            }
        }
        Ok(runs)
    }

    /// Creates the object `number` above the one with the nonce `before`. Asks on while the store's answers are unclear, but not for ever.
    pub(crate) async fn create(&self, number: u64, draft: &Draft, place: Place) -> Result<Link, LogError> {
        let link = Link { nonce: nonce(), before: place.before.unwrap_or(0), run: place.run };
        let bytes = draft.encode(link, place.first);
        let path = self.object(number);
        let mut claim = Claim::new(link.nonce, place.before);
        let (deadline, mut pause) = (Instant::now() + UNCLEAR_MAX, PAUSE_MIN);
        loop {
            let heard = match claim.ask() {
                Ask::Create => match within(self.store.create(&path, bytes.clone())).await {
                    Ok(Created::Yes) => Ok(Heard::Created),
                    Ok(Created::Taken) => Ok(Heard::Taken),
                    Err(unclear) => Err(unclear),
                },
                Ask::Look => self.nonce_of(number).await,
                Ask::LookBefore => match number.checked_sub(1) {
                    Some(below) => self.nonce_of(below).await,
                    None => self.nonce_of_any_after(number).await,
                },
            };
            let (heard, why) = match heard {
                Ok(heard) => (heard, None),
                Err(unclear) => (Heard::Unclear, Some(unclear)),
            };
            match claim.hear(heard) {
                Some(Claimed::Ours) => return Ok(link),
                Some(Claimed::Another | Claimed::Behind) => return Err(LogError::Fenced { object: path.to_string() }),
                None => {}
            }
            if let Some(why) = why {
                if Instant::now() >= deadline {
                    return Err(why);
                }
                warn!(object = %path, error = %why, "it is not known whether an object was created: looking again");
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    async fn nonce_of(&self, number: u64) -> Result<Heard, LogError> {
        Ok(self.head(number).await?.map_or(Heard::Absent, |head| Heard::Nonce(head.nonce)))
    }

    async fn nonce_of_any_after(&self, number: u64) -> Result<Heard, LogError> {
        match self.numbers().await? {
            Some(numbers) if *numbers.end() > number => self.nonce_of(*numbers.end()).await,
            _ => Ok(Heard::Absent),
        }
    }

    /// Removes the objects below `number`, ascending, but never one of the newest. Gives the oldest that is left.
    pub(crate) async fn forget(&self, number: u64) -> Result<u64, LogError> {
        let runs = self.listed().await?;
        let Some(newest) = runs.last().map(|run| *run.end()) else { return Ok(0) };
        let below = number.min((newest + 1).saturating_sub(NEWEST_KEPT));
        // A number 0 that is free again could be created by one who slept since before there was any.
        let below = if below < TOGETHER_MIN { 0 } else { below };
        let gone = runs.iter().flat_map(Clone::clone).take_while(|number| *number < below);
        for number in gone {
            within(self.store.remove(&self.object(number))).await?;
        }
        Ok(runs.iter().flat_map(Clone::clone).find(|number| *number >= below).unwrap_or(newest))
    }

    /// The segment of a log that has the record `number`, or the one that will have it; none: it was forgotten, the first that is
    /// kept is the error's.
    pub(crate) async fn segment_of(&self, number: u64) -> Result<u64, LogError> {
        let Some(there) = self.numbers().await? else { return Ok(0) };
        let (mut low, mut high) = (*there.start(), *there.end() + 1);
        let first = self.head(low).await?.map_or(0, |head| head.first);
        if number < first {
            return Err(LogError::Forgotten { asked: number, first });
        }
        // All below `low` end at or before `number`; `high` and all above it begin behind it, or are not there yet.
        while low < high {
            let middle = low + (high - low) / 2;
            match self.head(middle).await? {
                Some(head) if head.end() > number => high = middle,
                // One that has just been forgotten was before what is asked for.
                Some(_) | None => low = middle + 1,
            }
        }
        Ok(low)
    }

    /// Lets the segments go that have only records before `number`. Gives the first record that is left.
    pub(crate) async fn forget_records(&self, number: u64) -> Result<u64, LogError> {
        let segment = match self.segment_of(number).await {
            Ok(segment) => segment,
            Err(LogError::Forgotten { first, .. }) => return Ok(first),
            Err(failed) => return Err(failed),
        };
        let oldest = self.forget(segment).await?;
        Ok(self.head(oldest).await?.map_or(0, |head| head.first))
    }

    /// Ends a log whose owner is gone for good: whatever it would create next is taken. Fine when it has ended already.
    pub(crate) async fn retire(&self, owner: &Name) -> Result<(), LogError> {
        for _ in 0..RETIRE_TRIES {
            let newest = match self.numbers().await? {
                Some(numbers) => self.head(*numbers.end()).await?.map(|head| (*numbers.end(), head)),
                None => return Err(LogError::Missing { place: self.path.to_string() }),
            };
            let Some((number, head)) = newest else { continue };
            if head.kind == Kind::Tombstone {
                return Ok(());
            }
            let place = Place { before: Some(head.nonce), run: 0, first: head.end() };
            match self.create(number + 1, &Draft::of_log(Kind::Tombstone, owner), place).await {
                // Its owner was faster: it lives, or something was on its way.
                Err(LogError::Fenced { .. }) => {}
                done => return done.map(drop),
            }
        }
        Err(LogError::Held)
    }

    /// Reads a whole object, if it is there.
    pub(crate) async fn read(&self, number: u64) -> Result<Option<Object>, LogError> {
        let path = self.object(number);
        match within(self.store.read_if_there(&path)).await? {
            None => Ok(None),
            Some(bytes) => Object::decode(bytes).map(Some).map_err(damaged(&path)),
        }
    }
}

/// What an object stands upon.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// The nonce of the object below; none: it is the first.
    pub(crate) before: Option<u128>,
    /// Of the process.
    pub(crate) run: u128,
    /// The number of its first record.
    pub(crate) first: u64,
}

/// The logs that there are, sorted.
pub(crate) async fn log_names(store: &Store) -> Result<Vec<Name>, LogError> {
    let folders = within(store.folders(&ObjectPath::from(LOGS))).await?;
    Ok(folders.into_iter().filter_map(|name| Name::new(name).ok()).collect())
}

/// One operation; no answer in time is an error.
async fn within<T>(work: impl Future<Output = Result<T, weir_archive::Error>>) -> Result<T, LogError> {
    match timeout(ANSWER_WITHIN, work).await {
        Ok(done) => done.map_err(|failed| LogError::Store(failed.to_string())),
        Err(_) => Err(LogError::Store(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
    }
}

fn damaged(path: &ObjectPath) -> impl FnOnce(&'static str) -> LogError {
    let object = path.to_string();
    move |why| LogError::Damaged { object, why }
}

const CHAIN: &str = "chain";
const LOGS: &str = "logs";
/// What one operation may take, the store's own retries included: a full segment on a slow link.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long a create may stay unclear.
const UNCLEAR_MAX: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Objects that are never forgotten: who creates the next one looks for the one below, and one more may be under way.
const NEWEST_KEPT: u64 = 4;
/// The first ones are forgotten together, so that a hole is left whatever sleepers create there.
const TOGETHER_MIN: u64 = 5;
const LISTS_MAX: usize = 8;
/// Segments that an owner may be faster with.
const RETIRE_TRIES: usize = 16;
