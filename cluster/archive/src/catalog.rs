//! What the archive holds at one manifest, and the one way to change it.
//!
//! A `Catalog` never changes: queries and compactions keep the one they began with. A change is committed by creating the next
//! numbered manifest; who loses that race reads the winner's and tries again on top of it, if the change still makes sense there.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use object_store::path::Path;

use crate::error::Error;
use crate::layout::{Partition, Table, manifest_path, random_id};
use crate::manifest::{
    Dropped, FORMAT, FileEntry, Hold, Manifest, Position, Removed, SNAPSHOT_EVERY, Snapshot, StateRef, Why, sha256_hex,
};
use crate::read::Footers;
use crate::store::{Created, Store};
use crate::sweep::InFlight;

/// An archive that is open. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Archive {
    store: Store,
    current: Arc<RwLock<Arc<Catalog>>>,
    committing: Arc<tokio::sync::Mutex<()>>,
    footers: Arc<Footers>,
    in_flight: InFlight,
}

/// What the archive holds after one manifest.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalog {
    /// Number of the manifest; 0 before the first.
    pub number: u64,
    /// SHA-256 of its bytes.
    pub hash: String,
    /// The files hold all that is chained up to here.
    pub position: Position,
    /// What a writer goes on from.
    pub state: Option<StateRef>,
    /// Every file, by its path.
    pub files: BTreeMap<String, Arc<FileEntry>>,
    /// Every hold, by its name.
    pub holds: BTreeMap<String, Hold>,
    /// What retention has dropped.
    pub dropped: BTreeMap<(Table, Partition, Why), Dropped>,
}

/// A change of the archive.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// The position and state after it, and the position that it goes on from. None: a change that has no part in the chain.
    pub advance: Option<Advance>,
    /// Files that are new. They must be durable already.
    pub added: Vec<FileEntry>,
    /// Files that go. They must be there.
    pub removed: Vec<Removed>,
    /// Holds that are new or changed.
    pub holds_set: Vec<Hold>,
    /// Names of holds that go.
    pub holds_released: Vec<String>,
    /// The holds that it heeds: refused when there are others by now. None: a change that drops no row.
    pub under_holds: Option<BTreeMap<String, Hold>>,
}

/// A step along the chain.
#[derive(Debug, Clone)]
pub struct Advance {
    /// The tick that the files held before.
    pub from_tick: u64,
    /// Where they are now.
    pub to: Position,
    /// What the writer goes on from.
    pub state: StateRef,
}

impl Archive {
    /// The archive of a store that may not be reachable yet: nothing is read.
    pub fn new(store: Store) -> Self {
        let (current, committing, footers) = (Arc::default(), Arc::default(), Arc::default());
        Self { store, current, committing, footers, in_flight: InFlight::default() }
    }

    /// Opens the archive of a store, and reads its newest catalog.
    pub async fn open(store: Store) -> Result<Self, Error> {
        let archive = Self::new(store);
        archive.refresh().await?;
        Ok(archive)
    }

    /// Where it lies.
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn footers(&self) -> &Arc<Footers> {
        &self.footers
    }

    /// What is being put and is named by no manifest yet.
    pub(crate) fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    /// The newest catalog that is known here.
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks for newer manifests, and returns the newest catalog. Without any, this costs one look-up.
    pub async fn refresh(&self) -> Result<Arc<Catalog>, Error> {
        let mut catalog = self.catalog();
        let newest = self.newest(catalog.number).await?;
        if newest > catalog.number {
            let snapshot_at = newest - newest % SNAPSHOT_EVERY;
            let mut next = (*catalog).clone();
            let mut number = catalog.number + 1;
            if snapshot_at > catalog.number {
                let (bytes, manifest) = self.manifest(snapshot_at).await?;
                next = Catalog::from_snapshot(manifest, &bytes)?;
                number = snapshot_at + 1;
            }
            while number <= newest {
                let (bytes, manifest) = self.manifest(number).await?;
                next.apply(&manifest, &bytes)?;
                number += 1;
            }
            catalog = self.publish(next);
        }
        Ok(catalog)
    }

    /// Reads one manifest.
    pub async fn manifest(&self, number: u64) -> Result<(Vec<u8>, Manifest), Error> {
        let path = manifest_path(number);
        let Some(bytes) = self.store.read_if_there(&path).await? else {
            return Err(Error::damaged(&path, "it is missing, though later ones are there"));
        };
        let manifest = Manifest::decode(path.as_ref(), &bytes)?;
        if manifest.number != number {
            return Err(Error::damaged(&path, format!("it says that it is number {}", manifest.number)));
        }
        Ok((bytes, manifest))
    }

    /// The number of the newest manifest, at or after `known`: found in steps that double, then by halves, since they are dense.
    async fn newest(&self, known: u64) -> Result<u64, Error> {
        let (mut low, mut step) = (known, 1);
        while self.store.is_there(&manifest_path(low + step)).await? {
            low += step;
            step *= 2;
        }
        // `low` is there; `low + step` is not.
        let mut high = low + step;
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.store.is_there(&manifest_path(middle)).await? { low = middle } else { high = middle }
        }
        Ok(low)
    }

    /// Reads and checks a writer's state.
    pub async fn read_state(&self, state: &StateRef) -> Result<Vec<u8>, Error> {
        let bytes = self.store.read(&Path::from(state.path.as_str())).await?;
        if sha256_hex(&bytes) != state.sha256 {
            return Err(Error::damaged(&state.path, "it is not what was written"));
        }
        Ok(bytes)
    }

    fn publish(&self, catalog: Catalog) -> Arc<Catalog> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // Two may refresh at once: the newer one stays.
        if catalog.number > current.number {
            *current = Arc::new(catalog);
        }
        Arc::clone(&current)
    }

    /// Makes a change, on top of whatever others have changed meanwhile. `now_ms` is told to people only.
    ///
    /// `Error::Fenced`: the change makes no sense any more; read the archive again and begin anew. `Error::Store`: unknown whether
    /// it was made; the same change may be tried again, and is made once at most, as its files have names of their own.
    pub async fn commit(&self, change: &Change, now_ms: u64) -> Result<Arc<Catalog>, Error> {
        let _one_at_a_time = self.committing.lock().await;
        for _ in 0..COMMIT_TRIES {
            let base = self.refresh().await?;
            if base.holds_change(change) {
                return Ok(base);
            }
            base.allows(change)?;
            let manifest = base.next(change, now_ms);
            let bytes = manifest.encode();
            let path = manifest_path(manifest.number);
            if self.store.create(&path, bytes.clone()).await? == Created::Yes {
                let mut catalog = (*base).clone();
                catalog.apply(&manifest, &bytes)?;
                return Ok(self.publish(catalog));
            }
            tokio::time::sleep(COMMIT_PAUSE).await;
        }
        Err(Error::Refused(format!("other writers were faster {COMMIT_TRIES} times: stop one of them")))
    }
}

impl Catalog {
    pub(crate) fn from_snapshot(mut manifest: Manifest, bytes: &[u8]) -> Result<Self, Error> {
        let path = manifest_path(manifest.number);
        let snapshot =
            manifest.snapshot.take().ok_or_else(|| Error::damaged(&path, "it lacks the snapshot that it must have"))?;
        let Snapshot { files, holds, dropped } = snapshot;
        Ok(Self {
            number: manifest.number,
            hash: sha256_hex(bytes),
            position: manifest.position,
            state: manifest.state,
            files: files.into_iter().map(|file| (file.path.clone(), Arc::new(file))).collect(),
            holds: holds.into_iter().map(|hold| (hold.name.clone(), hold)).collect(),
            dropped: dropped.into_iter().map(|d| ((d.table, d.partition.clone(), d.why), d)).collect(),
        })
    }

    /// Takes up the next manifest. `bytes` are its own, for the hash.
    pub fn apply(&mut self, manifest: &Manifest, bytes: &[u8]) -> Result<(), Error> {
        let path = manifest_path(manifest.number);
        if manifest.number != self.number + 1 || manifest.previous != self.hash {
            return Err(Error::damaged(&path, format!("it does not follow manifest {} as that is now", self.number)));
        }
        if manifest.position.tick < self.position.tick {
            return Err(Error::damaged(&path, "it goes back along the chain"));
        }
        self.change(manifest).map_err(|why| Error::damaged(&path, why))?;
        self.hash = sha256_hex(bytes);
        Ok(())
    }

    pub(crate) fn change(&mut self, manifest: &Manifest) -> Result<(), String> {
        for removed in &manifest.removed {
            let file =
                self.files.remove(&removed.path).ok_or_else(|| format!("it removes {}, which is not there", removed.path))?;
            if let (true, Some(partition)) = (removed.why != Why::Compacted, file.partition.clone()) {
                self.count_dropped(&file, partition, removed.why, manifest.written_ms);
            }
        }
        for file in &manifest.added {
            if self.files.insert(file.path.clone(), Arc::new(file.clone())).is_some() {
                return Err(format!("it adds {} again", file.path));
            }
        }
        for hold in &manifest.holds_set {
            self.holds.insert(hold.name.clone(), hold.clone());
        }
        for name in &manifest.holds_released {
            self.holds.remove(name);
        }
        self.number = manifest.number;
        self.position = manifest.position.clone();
        self.state = manifest.state.clone();
        Ok(())
    }

    fn count_dropped(&mut self, file: &FileEntry, partition: Partition, why: Why, dropped_ms: u64) {
        let fresh = || Dropped {
            table: file.table,
            partition: partition.clone(),
            why,
            rows: 0,
            bytes: 0,
            time_min: file.time_min,
            time_max: file.time_max,
            dropped_ms,
        };
        let dropped = self.dropped.entry((file.table, partition.clone(), why)).or_insert_with(fresh);
        dropped.rows += file.rows;
        dropped.bytes += file.bytes;
        dropped.time_min = dropped.time_min.min(file.time_min);
        dropped.time_max = dropped.time_max.max(file.time_max);
        dropped.dropped_ms = dropped.dropped_ms.max(dropped_ms);
    }

    /// True when this very change is made already: its outcome was unclear.
    fn holds_change(&self, change: &Change) -> bool {
        let moved = change.advance.as_ref().is_none_or(|advance| self.state.as_ref() == Some(&advance.state));
        let named = !change.added.is_empty() || change.advance.is_some();
        named && moved && change.added.iter().all(|file| self.files.contains_key(&file.path))
    }

    /// Refuses a change that makes no sense on top of this catalog.
    fn allows(&self, change: &Change) -> Result<(), Error> {
        let fenced = Error::Fenced { number: self.number };
        if change.advance.as_ref().is_some_and(|advance| advance.from_tick != self.position.tick) {
            return Err(fenced);
        }
        if change.removed.iter().any(|removed| !self.files.contains_key(&removed.path)) {
            return Err(fenced);
        }
        if change.under_holds.as_ref().is_some_and(|holds| *holds != self.holds) {
            return Err(fenced);
        }
        Ok(())
    }

    fn next(&self, change: &Change, now_ms: u64) -> Manifest {
        let advance = change.advance.as_ref();
        let mut manifest = Manifest {
            format: FORMAT,
            number: self.number + 1,
            previous: self.hash.clone(),
            nonce: random_id(),
            written_ms: now_ms,
            position: advance.map_or_else(|| self.position.clone(), |advance| advance.to.clone()),
            state: advance.map_or_else(|| self.state.clone(), |advance| Some(advance.state.clone())),
            added: change.added.clone(),
            removed: change.removed.clone(),
            holds_set: change.holds_set.clone(),
            holds_released: change.holds_released.clone(),
            snapshot: None,
        };
        if manifest.number.is_multiple_of(SNAPSHOT_EVERY) {
            let mut after = self.clone();
            after.change(&manifest).expect("the change was found to be allowed");
            manifest.snapshot = Some(after.snapshot());
        }
        manifest
    }

    /// All of it, as a snapshot repeats it.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            files: self.files.values().map(|file| (**file).clone()).collect(),
            holds: self.holds.values().cloned().collect(),
            dropped: self.dropped.values().cloned().collect(),
        }
    }

    /// The files of a relation.
    pub fn files_of(&self, table: Table) -> impl Iterator<Item = &Arc<FileEntry>> {
        self.files.values().filter(move |file| file.table == table)
    }
}

/// How often a commit is tried on top of others' before something is held to be wrong.
const COMMIT_TRIES: usize = 32;
const COMMIT_PAUSE: Duration = Duration::from_millis(20);
