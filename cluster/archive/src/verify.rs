//! Is the archive what was written? Every object that the chain of manifests covers is read and checked.
//!
//! ```text
//! manifests 1 … newest ─► hash chain, folded state = snapshots ─► state object, every live file: length, SHA-256, footer, description
//! bundle.json, when it is there ─► manifest 1, events.jsonl, rows
//! ```
//!
//! Promises:
//! - A bit that differs in any of these objects is a fault that names the object, and the walk goes on behind it. Memory is bounded
//!   by what the archive's catalog takes.
//! - Objects that nothing refers to (what a killed writer left, what awaits deletion) are counted; they are no fault.
//!
//! What it cannot prove: that nobody rewrote all of it from manifest 1, or cut its end off. Nothing inside covers the newest
//! manifest either, but for what it says of its files. So the newest manifest's hash is told, to be kept elsewhere: given back later,
//! it must still occur in the chain.

mod chain;
mod objects;

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;

use crate::bundle::{BUNDLE, Bundle, EVENTS_JSONL};
use crate::catalog::Archive;
use crate::error::Error;
use crate::layout::{MANIFESTS, manifest_path};
use crate::manifest::{FileEntry, Manifest, StateRef};
use crate::store::Store;

use chain::{Chain, Evidence};
use objects::{Digest, Found, check, digest, near, unreadable};

/// How far a verification is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Manifests that were read.
    pub manifests_done: u64,
    /// Manifests in all.
    pub manifests: u64,
    /// Files that were read.
    pub files_done: u64,
    /// Files in all; 0 while manifests are read.
    pub files: u64,
    /// Bytes of the files that were read.
    pub bytes_done: u64,
    /// Bytes of files in all.
    pub bytes: u64,
}

/// What a verification has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Manifests that are there.
    pub manifests: u64,
    /// Files that the newest state names.
    pub files: u64,
    /// Their rows.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// SHA-256 of the newest manifest: whoever keeps it elsewhere can tell later that the archive still goes on from here.
    pub head: String,
    /// Everything that is wrong, by object. Empty: the archive is what was written.
    pub faults: Vec<Fault>,
    /// Objects that nothing refers to.
    pub unreferenced: u64,
}

/// An object that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The object.
    pub path: String,
    /// What is wrong with it.
    pub why: String,
}

impl Archive {
    /// Refuses an archive without any manifest, for whoever means one that has rows.
    pub fn must_be_there(&self) -> Result<(), Error> {
        if self.catalog().number > 0 { Ok(()) } else { Err(no_archive(self.store())) }
    }
}

/// Verifies the archive or bundle of a store. `expected_head` is a hash that an earlier verification has told.
///
/// An error means that the work could not be done (no archive there, store out of reach), not that something is damaged.
pub async fn verify(
    store: Store,
    expected_head: Option<&str>,
    on_progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Verified, Error> {
    let present = manifests_of(&store).await?;
    let Some(newest) = present.last().copied() else {
        return Err(no_archive(&store));
    };
    let mut faults = Faults::default();
    let bundle = match Bundle::read(&store).await? {
        Ok(bundle) => bundle,
        Err(why) => {
            faults.add(BUNDLE, why);
            None
        }
    };
    let outside = Evidence { bundle: bundle.as_ref().map(|bundle| bundle.manifest_sha256.as_str()), expected_head };
    let chain = Chain::walk(&store, newest, outside, &mut faults, on_progress).await?;
    let mut missing = Missing::default();
    if let Some(state) = &chain.catalog.state {
        check_state(&store, state, newest, &mut missing, &mut faults).await?;
    }
    check_files(&store, &chain, &mut missing, &mut faults, on_progress).await?;
    missing.settle(&store, newest, &chain, &mut faults).await?;
    if let Some(bundle) = &bundle {
        check_bundle(&store, bundle, &chain, &mut faults).await?;
    }
    let files = chain.catalog.files.values();
    Ok(Verified {
        manifests: present.len() as u64,
        files: files.len() as u64,
        rows: sum(files.clone().map(|file| file.rows)),
        bytes: sum(files.map(|file| file.bytes)),
        unreferenced: unreferenced(&store, &chain, bundle.is_some()).await?,
        head: chain.head,
        faults: faults.into_list(),
    })
}

/// Nothing of an archive is there.
fn no_archive(store: &Store) -> Error {
    Error::Refused(format!("there is no archive at {:?}: it has no manifest; check the location", store.url()))
}

/// A damaged manifest may say anything.
fn sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

/// Numbers of the manifests that are there.
async fn manifests_of(store: &Store) -> Result<BTreeSet<u64>, Error> {
    let folder = Path::from(MANIFESTS);
    let mut listed = store.objects().list(Some(&folder));
    let mut numbers = BTreeSet::new();
    while let Some(object) = listed.try_next().await.map_err(Error::store("list", &folder))? {
        numbers.extend(manifest_number(&object.location));
    }
    Ok(numbers)
}

fn manifest_number(path: &Path) -> Option<u64> {
    let number = path.as_ref().strip_prefix(MANIFESTS)?.strip_prefix('/')?.strip_suffix(".json")?.parse().ok()?;
    (number > 0 && manifest_path(number) == *path).then_some(number)
}

async fn check_state(
    store: &Store,
    state: &StateRef,
    newest: u64,
    missing: &mut Missing,
    faults: &mut Faults,
) -> Result<(), Error> {
    match digest(store, &state.path).await {
        Ok(None) => missing.state = Some(state.path.clone()),
        Ok(Some(found)) if found.bytes == state.bytes && found.sha256 == state.sha256 => {}
        Ok(Some(found)) if found.sha256 == state.sha256 || near(&found.sha256, &state.sha256) => {
            faults.add(manifest_path(newest).as_ref(), format!("what it says of {} was changed", state.path));
        }
        Ok(Some(found)) => faults.add(&state.path, not_as_written(&found, state.bytes)),
        Err(error) => faults.add(&state.path, unreadable(error)?),
    }
    Ok(())
}

fn not_as_written(found: &Digest, bytes: u64) -> String {
    if found.bytes == bytes {
        "its SHA-256 is not that of what was written".to_owned()
    } else {
        format!("it is {} bytes long, {bytes} were written", found.bytes)
    }
}

async fn check_files(
    store: &Store,
    chain: &Chain,
    missing: &mut Missing,
    faults: &mut Faults,
    on_progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), Error> {
    let files = chain.catalog.files.values();
    let (manifests, bytes) = (chain.catalog.number, sum(files.clone().map(|file| file.bytes)));
    let mut progress = Progress { manifests_done: manifests, manifests, files: files.len() as u64, bytes, ..Progress::default() };
    on_progress(progress);
    let checks = files.map(|file| async move { (file, check(store, file).await) });
    let mut checks = futures::stream::iter(checks).buffered(FILES_AT_ONCE);
    while let Some((file, found)) = checks.next().await {
        match found? {
            Found::Whole => {}
            Found::Missing => missing.files.push(file.path.clone()),
            Found::Changed(why) => match chain.suspect(&file.path) {
                Some(manifest) => faults.doubt(manifest, &file.path, &why),
                None => faults.add(&file.path, why),
            },
            Found::Misdescribed(why) => misdescribed(chain, file, why, faults),
        }
        progress.files_done += 1;
        progress.bytes_done = progress.bytes_done.saturating_add(file.bytes);
        on_progress(progress);
    }
    Ok(())
}

/// The file is whole, but the manifest says otherwise: where nothing covers that manifest, it is what was changed.
fn misdescribed(chain: &Chain, file: &FileEntry, why: String, faults: &mut Faults) {
    if let Some(manifest) = chain.suspect(&file.path) {
        faults.doubt(manifest, &file.path, &why);
    } else if chain.newest_added.contains(&file.path) {
        faults.add(manifest_path(chain.catalog.number).as_ref(), format!("{}: {why}, so this manifest was changed", file.path));
    } else {
        faults.add(&file.path, why);
    }
}

/// What was not found. Somebody may have removed it since: an archive goes on while it is verified.
#[derive(Debug, Default)]
struct Missing {
    files: Vec<String>,
    state: Option<String>,
}

impl Missing {
    async fn settle(self, store: &Store, newest: u64, chain: &Chain, faults: &mut Faults) -> Result<(), Error> {
        if self.files.is_empty() && self.state.is_none() {
            return Ok(());
        }
        let (mut removed, mut state, mut number) = (BTreeSet::new(), None, newest + 1);
        while let Some(bytes) = store.read_if_there(&manifest_path(number)).await? {
            // What is damaged behind the newest that was walked is for the next verification to tell.
            let Ok(manifest) = Manifest::decode(manifest_path(number).as_ref(), &bytes) else { break };
            removed.extend(manifest.removed.into_iter().map(|removed| removed.path));
            state = manifest.state;
            number += 1;
        }
        for path in self.files.into_iter().filter(|path| !removed.contains(path)) {
            match chain.may_have_removed(&path) {
                Some(manifest) => faults.doubt(manifest, &path, "it is missing"),
                None => faults.add(&path, "it is missing".to_owned()),
            }
        }
        if let Some(path) = self.state.filter(|path| state.is_none_or(|state| state.path == *path)) {
            match chain.in_doubt_since() {
                Some(manifest) => faults.doubt(manifest, &path, "it is missing"),
                None => faults.add(&path, "it is missing".to_owned()),
            }
        }
        Ok(())
    }
}

/// What a bundle says beside its manifest.
async fn check_bundle(store: &Store, bundle: &Bundle, chain: &Chain, faults: &mut Faults) -> Result<(), Error> {
    match digest(store, EVENTS_JSONL).await {
        Ok(None) => faults.add(EVENTS_JSONL, "it is missing".to_owned()),
        Ok(Some(found)) if found.sha256 == bundle.events_jsonl.sha256 => {
            if found.bytes != bundle.events_jsonl.bytes {
                faults.add(BUNDLE, format!("it says that {EVENTS_JSONL} has {} bytes", bundle.events_jsonl.bytes));
            }
        }
        Ok(Some(found)) if near(&found.sha256, &bundle.events_jsonl.sha256) => {
            faults.add(BUNDLE, format!("the SHA-256 of {EVENTS_JSONL} that it holds was changed"));
        }
        Ok(Some(found)) => faults.add(EVENTS_JSONL, not_as_written(&found, bundle.events_jsonl.bytes)),
        Err(error) => faults.add(EVENTS_JSONL, unreadable(error)?),
    }
    // Later manifests, if any, have added what the bundle does not tell of.
    let alone = chain.catalog.number == 1 && chain.in_doubt_since().is_none();
    if let Some(why) = bundle.contradicts(&chain.catalog).filter(|_| alone) {
        faults.add(BUNDLE, why);
    }
    Ok(())
}

async fn unreferenced(store: &Store, chain: &Chain, bundle: bool) -> Result<u64, Error> {
    let catalog = &chain.catalog;
    let is_ours = |path: &Path| {
        let text = path.as_ref();
        manifest_number(path).is_some()
            || catalog.files.contains_key(text)
            || catalog.state.as_ref().is_some_and(|state| state.path == text)
            || (bundle && [BUNDLE, EVENTS_JSONL].contains(&text))
    };
    let mut listed = store.objects().list(None);
    let mut count = 0;
    while let Some(object) = listed.try_next().await.map_err(Error::store("list", "all objects"))? {
        count += u64::from(!is_ours(&object.location));
    }
    Ok(count)
}

/// What is wrong, by object.
#[derive(Debug, Default)]
struct Faults {
    told: BTreeMap<String, Vec<String>>,
    /// Files that do not fit, by the damaged manifest that may be why.
    doubtful: BTreeMap<u64, Vec<String>>,
}

impl Faults {
    fn add(&mut self, path: &str, why: String) {
        self.told.entry(path.to_owned()).or_default().push(why);
    }

    fn doubt(&mut self, manifest: u64, path: &str, why: &str) {
        self.doubtful.entry(manifest).or_default().push(format!("{path} ({why})"));
    }

    fn into_list(mut self) -> Vec<Fault> {
        for (manifest, files) in std::mem::take(&mut self.doubtful) {
            let shown = files[..files.len().min(DOUBTFUL_SHOWN_MAX)].join(", ");
            let more = files.len().saturating_sub(DOUBTFUL_SHOWN_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            self.add(manifest_path(manifest).as_ref(), format!("perhaps by what it said, files do not fit: {shown}{more}"));
        }
        self.told.into_iter().map(|(path, whys)| Fault { path, why: whys.join("; ") }).collect()
    }
}

/// Files that are read at the same time.
const FILES_AT_ONCE: usize = 4;
/// Files in doubt that are told by name, for each manifest.
const DOUBTFUL_SHOWN_MAX: usize = 8;
