//! The sweep: removes objects that no manifest names, some time after they were first seen so.
//!
//! Such objects are what compaction and retention have dropped, what a flush or compaction left when it was killed or lost a race,
//! and the staging files of a directory. The wait is what protects queries that began on an older catalog, and uploads of
//! other processes: it must be longer than any of them. Uploads of this process are never touched, however long they take.
//!
//! What was seen is kept in memory only: a restart begins the wait anew, which only delays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectMeta;
use object_store::path::Path;

use crate::catalog::{Archive, Catalog};
use crate::error::Error;
use crate::layout::{STATES, Table};

/// Sweeps one archive.
#[derive(Debug)]
pub struct Sweep {
    archive: Archive,
    delete_after_ms: u64,
    /// What no manifest names, by path. What leaves the store or is named leaves it, so it is no larger than a listing.
    seen: BTreeMap<String, Seen>,
}

/// What a sweep has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects that it removed.
    pub removed: usize,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Objects that no manifest names and whose time has not come.
    pub waiting: usize,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    since_ms: u64,
    bytes: u64,
}

impl Sweep {
    /// Sweeps what has been unnamed for `delete_after_ms`.
    pub fn new(archive: Archive, delete_after_ms: u64) -> Self {
        Self { archive, delete_after_ms, seen: BTreeMap::new() }
    }

    /// Looks at every object once, and removes those whose time has come. After an error call it again.
    pub async fn run(&mut self, now_ms: u64) -> Result<Swept, Error> {
        // In this order: what is committed after the listing is in the catalog, what is not yet committed is in flight.
        let listed = self.unnamed().await?;
        let in_flight = self.archive.in_flight().names().clone();
        let catalog = self.archive.refresh().await?;
        if catalog.number == 0 {
            // Nothing of an archive is here. Whatever is, may be somebody else's.
            return Ok(Swept::default());
        }
        let before = std::mem::take(&mut self.seen);
        for (path, bytes) in listed {
            if in_flight.contains(&path) || names(&catalog, &path) {
                continue;
            }
            // A staging file that grows is being written.
            let known = before.get(&path).filter(|seen| seen.bytes == bytes);
            let since_ms = known.map_or(now_ms, |seen| seen.since_ms);
            self.seen.insert(path, Seen { since_ms, bytes });
        }
        let due = |seen: &Seen| now_ms.saturating_sub(seen.since_ms) >= self.delete_after_ms;
        let due: Vec<String> = self.seen.iter().filter(|(_, seen)| due(seen)).map(|(path, _)| path.clone()).collect();
        let mut swept = Swept::default();
        let store = self.archive.store().clone();
        let mut removals = futures::stream::iter(due)
            .map(|path| {
                let store = store.clone();
                async move { store.remove(&Path::from(path.as_str())).await.map(|()| path) }
            })
            .buffer_unordered(REMOVALS_AT_ONCE);
        while let Some(path) = removals.try_next().await? {
            swept.removed += 1;
            swept.removed_bytes += self.seen.remove(&path).map_or(0, |seen| seen.bytes);
        }
        swept.waiting = self.seen.len();
        Ok(swept)
    }

    /// What lies in the archive's folders and is not in the catalog that is known now, with its length.
    async fn unnamed(&self) -> Result<Vec<(String, u64)>, Error> {
        let catalog = self.archive.catalog();
        let objects = self.archive.store().objects();
        let mut found = Vec::new();
        let mut take = |meta: ObjectMeta| {
            let path = meta.location.to_string();
            if !names(&catalog, &path) {
                found.push((path, meta.size));
            }
        };
        for folder in Table::ALL.map(Table::name).into_iter().chain([STATES]) {
            let prefix = Path::from(folder);
            let mut listing = objects.list(Some(&prefix));
            while let Some(meta) = listing.try_next().await.map_err(Error::store("list", folder))? {
                take(meta);
            }
        }
        let root = objects.list_with_delimiter(None).await.map_err(Error::store("list", "/"))?;
        root.objects.into_iter().filter(|meta| meta.location.as_ref().starts_with(STAGED)).for_each(take);
        Ok(found)
    }
}

fn names(catalog: &Catalog, path: &str) -> bool {
    catalog.files.contains_key(path) || catalog.state.as_ref().is_some_and(|state| state.path == path)
}

/// Names of objects that this process is putting, and that no manifest names yet. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct InFlight(Arc<Mutex<BTreeSet<String>>>);

impl InFlight {
    /// Spares these objects until what is returned is dropped: after they are committed or given up.
    pub(crate) fn enter(&self, paths: impl IntoIterator<Item = String>) -> Spared {
        let mut spared = Spared { registry: self.clone(), paths: Vec::new() };
        paths.into_iter().for_each(|path| spared.add(path));
        spared
    }

    fn names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps objects from being swept.
#[derive(Debug)]
pub(crate) struct Spared {
    registry: InFlight,
    paths: Vec<String>,
}

impl Spared {
    /// Spares one more.
    pub(crate) fn add(&mut self, path: String) {
        self.registry.names().insert(path.clone());
        self.paths.push(path);
    }
}

impl Drop for Spared {
    fn drop(&mut self) {
        let mut names = self.registry.names();
        for path in &self.paths {
            names.remove(path);
        }
    }
}

/// What `store/local.rs` names a file that is being written.
const STAGED: &str = ".stage-";
const REMOVALS_AT_ONCE: usize = 8;
