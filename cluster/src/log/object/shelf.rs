//! What was read from the store is kept for a while: the workers of a process read the same chain, and each object is fetched once.
//!
//! Bounded in bytes; what was used longest ago goes first. What is not there yet is asked for anew only after a while, whoever asks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tracing::warn;
use weir_archive::ObjectPath;

use super::format::Object;
use super::objects::Folder;
use crate::log::{LogError, Pace};

/// Objects at hand.
#[derive(Debug)]
pub(crate) struct Shelf {
    runtime: Handle,
    limits: Limits,
    held: Mutex<Held>,
    arrived: Condvar,
}

/// How much is kept, and how long what is not there is believed not to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) bytes_max: usize,
    pub(crate) absent_for: Duration,
}

#[derive(Debug, Default)]
struct Held {
    slots: HashMap<ObjectPath, Slot>,
    /// By when it was used last.
    used: BTreeMap<u64, ObjectPath>,
    uses: u64,
    bytes: usize,
}

#[derive(Debug)]
enum Slot {
    /// On its way.
    Coming,
    Here {
        object: Arc<Object>,
        used: u64,
    },
    /// It was not there when it was asked for, then.
    Absent(Instant),
    /// It could not be read; told to whoever waits.
    Failed(Instant, Told),
}

/// An error that several are told.
#[derive(Debug, Clone)]
enum Told {
    Damaged { object: String, why: &'static str },
    Store(String),
}

impl Shelf {
    pub(crate) fn new(runtime: Handle, limits: Limits) -> Arc<Self> {
        Arc::new(Self { runtime, limits, held: Mutex::default(), arrived: Condvar::new() })
    }

    /// An object, if it is there. Waits until it is read.
    pub(crate) fn take(self: &Arc<Self>, folder: &Folder, number: u64, pace: Pace) -> Result<Option<Arc<Object>>, LogError> {
        let path = folder.object(number);
        let absent_from = self.absent_from(pace);
        let mut held = self.lock();
        loop {
            match held.state(&path, absent_from) {
                State::Here(object) => return Ok(Some(object)),
                State::Absent => return Ok(None),
                State::Failed(told) => return Err(told.into()),
                State::Coming => {
                    held = self.arrived.wait(held).unwrap_or_else(PoisonError::into_inner);
                }
                State::Unknown => self.fetch(&mut held, folder, number),
            }
        }
    }

    /// Reads an object that will be asked for soon.
    pub(crate) fn fetch_ahead(self: &Arc<Self>, folder: &Folder, number: u64) {
        let absent_from = self.absent_from(Pace::Polling);
        let mut held = self.lock();
        if matches!(held.state(&folder.object(number), absent_from), State::Unknown) {
            self.fetch(&mut held, folder, number);
        }
    }

    /// Since when an object must have been missing for it to be taken for missing now.
    fn absent_from(&self, pace: Pace) -> Instant {
        let now = Instant::now();
        match pace {
            Pace::UpToNow => now,
            Pace::Polling => now.checked_sub(self.limits.absent_for).unwrap_or(now),
        }
    }

    fn fetch(self: &Arc<Self>, held: &mut Held, folder: &Folder, number: u64) {
        let path = folder.object(number);
        held.slots.insert(path.clone(), Slot::Coming);
        let (shelf, folder) = (Arc::clone(self), folder.clone());
        self.runtime.spawn(async move {
            let mut arrival = Arrival { shelf, path: Some(path) };
            let begun = Instant::now();
            let slot = match patient(&folder, number).await {
                Ok(None) => Slot::Absent(begun),
                Ok(Some(object)) => Slot::Here { object: Arc::new(object), used: 0 },
                Err(LogError::Damaged { object, why }) => Slot::Failed(Instant::now(), Told::Damaged { object, why }),
                Err(other) => Slot::Failed(Instant::now(), Told::Store(other.to_string())),
            };
            arrival.put(slot);
        });
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads, and waits out a store that is away for a moment.
async fn patient(folder: &Folder, number: u64) -> Result<Option<Object>, LogError> {
    let (deadline, mut pause) = (Instant::now() + AWAY_MAX, PAUSE_MIN);
    loop {
        match folder.read(number).await {
            Err(LogError::Store(why)) if Instant::now() < deadline => {
                warn!(object = %folder.object(number), error = why, "an object could not be read: trying on");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            done => return done,
        }
    }
}

/// Puts what arrived on the shelf; if the task dies before, whoever waits asks anew.
struct Arrival {
    shelf: Arc<Shelf>,
    path: Option<ObjectPath>,
}

impl Arrival {
    fn put(&mut self, slot: Slot) {
        let Some(path) = self.path.take() else { return };
        let mut held = self.shelf.lock();
        match slot {
            Slot::Here { object, .. } => held.shelve(path, object, self.shelf.limits.bytes_max),
            other => _ = held.slots.insert(path, other),
        }
        self.shelf.arrived.notify_all();
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.put(Slot::Failed(Instant::now(), Told::Store("reading was given up".to_owned())));
    }
}

/// What is known of an object now.
enum State {
    Here(Arc<Object>),
    Absent,
    Failed(Told),
    Coming,
    Unknown,
}

impl Held {
    fn state(&mut self, path: &ObjectPath, absent_from: Instant) -> State {
        match self.slots.get_mut(path) {
            None => State::Unknown,
            Some(Slot::Coming) => State::Coming,
            Some(Slot::Absent(begun)) if *begun >= absent_from => State::Absent,
            Some(Slot::Failed(since, told)) if since.elapsed() < FAILED_FOR => State::Failed(told.clone()),
            Some(Slot::Absent(_) | Slot::Failed(..)) => {
                self.slots.remove(path);
                State::Unknown
            }
            Some(Slot::Here { object, used }) => {
                self.uses += 1;
                if let Some(path) = self.used.remove(used) {
                    self.used.insert(self.uses, path);
                }
                *used = self.uses;
                State::Here(Arc::clone(object))
            }
        }
    }

    fn shelve(&mut self, path: ObjectPath, object: Arc<Object>, bytes_max: usize) {
        self.uses += 1;
        self.bytes += object.weight();
        self.used.insert(self.uses, path.clone());
        self.slots.insert(path, Slot::Here { object, used: self.uses });
        // The newest stays, however large: somebody waits for it.
        while self.bytes > bytes_max && self.used.len() > 1 {
            let Some((_, oldest)) = self.used.pop_first() else { break };
            if let Some(Slot::Here { object, .. }) = self.slots.remove(&oldest) {
                self.bytes -= object.weight();
            }
        }
        // What was not there and is not asked for any more.
        if self.slots.len() > self.used.len() + OTHERS_MAX {
            self.slots.retain(|_, slot| matches!(slot, Slot::Here { .. } | Slot::Coming));
        }
    }
}

impl From<Told> for LogError {
    fn from(told: Told) -> Self {
        match told {
            Told::Damaged { object, why } => Self::Damaged { object, why },
            Told::Store(why) => Self::Store(why),
        }
    }
}

/// How long a store may be away before readers are told.
const AWAY_MAX: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// All who waited are told of the same failure; who comes later asks anew.
const FAILED_FOR: Duration = Duration::from_millis(200);
/// Notes of objects that were not there.
const OTHERS_MAX: usize = 1_024;
