//! The walk over the manifests: hash chain, snapshots, and the state that they add up to.
//!
//! A manifest is proven by the hash that the next one holds. Behind one that is damaged or missing the state is in doubt until the
//! next proven snapshot: files that do not fit it then may be that manifest's doing, so they are told with it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt as _;

use super::objects::{near, unreadable};
use super::{Faults, Progress};
use crate::bundle::BUNDLE;
use crate::catalog::Catalog;
use crate::error::Error;
use crate::layout::manifest_path;
use crate::manifest::{Manifest, SNAPSHOT_EVERY, sha256_hex};
use crate::store::Store;

/// What is known of manifests from outside the chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evidence<'a> {
    /// Hash of manifest 1, as the bundle has it.
    pub(super) bundle: Option<&'a str>,
    /// Hash of some manifest, as somebody kept it.
    pub(super) expected_head: Option<&'a str>,
}

/// The manifests, walked.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// What they add up to, as far as that is known.
    pub(super) catalog: Catalog,
    /// Hash of the newest.
    pub(super) head: String,
    /// Files that the newest manifest adds: nothing covers what it says of them.
    pub(super) newest_added: HashSet<String>,
    doubt: Doubt,
}

/// What cannot be known because a manifest is damaged or missing.
#[derive(Debug, Default)]
struct Doubt {
    /// The latest such manifest since the state was last certain.
    since: Option<u64>,
    /// Files that only such a manifest speaks of.
    suspects: HashMap<String, u64>,
    /// Files that a good manifest has added after it.
    certain: HashSet<String>,
}

/// What comes behind a manifest.
#[derive(Clone, Copy)]
enum Behind<'a> {
    Next(&'a Link),
    Nothing,
    /// Nothing, and the head that somebody kept is not in the chain.
    HeadLost,
}

/// One manifest as it was found.
struct Link {
    number: u64,
    path: String,
    bytes: Vec<u8>,
    hash: String,
    manifest: Result<Manifest, String>,
}

impl Link {
    async fn read(store: &Store, number: u64) -> Result<Self, Error> {
        let path = manifest_path(number);
        let lost =
            |why: String| Self { number, path: path.to_string(), bytes: Vec::new(), hash: String::new(), manifest: Err(why) };
        let bytes = match store.read_if_there(&path).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(lost("it is missing, though later ones are there".to_owned())),
            Err(error) => return unreadable(error).map(lost),
        };
        let manifest = match Manifest::decode(path.as_ref(), &bytes) {
            Ok(manifest) if manifest.number != number => Err(format!("it says that it is number {}", manifest.number)),
            Ok(manifest) => Ok(manifest),
            Err(Error::Format { found, known, .. }) => Err(format!("it has format {found}, this build reads {known}")),
            Err(error) => Err(unreadable(error)?),
        };
        Ok(Self { number, path: path.to_string(), hash: sha256_hex(&bytes), bytes, manifest })
    }
}

impl Chain {
    pub(super) async fn walk(
        store: &Store,
        newest: u64,
        outside: Evidence<'_>,
        faults: &mut Faults,
        on_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Self, Error> {
        let mut chain = Self::default();
        let mut links = futures::stream::iter(1..=newest).map(|number| Link::read(store, number)).buffered(LINKS_AHEAD);
        let (mut before, mut head_found): (Option<Link>, bool) = (None, outside.expected_head.is_none());
        while let Some(link) = links.next().await {
            let link = link?;
            head_found |= outside.expected_head == Some(link.hash.as_str());
            if let Some(judged) = before.take() {
                chain.take(judged, Behind::Next(&link), outside, faults);
            }
            on_progress(Progress { manifests_done: link.number, manifests: newest, ..Progress::default() });
            before = Some(link);
        }
        if let Some(last) = before {
            chain.head.clone_from(&last.hash);
            if let Ok(manifest) = &last.manifest {
                chain.newest_added = manifest.added.iter().map(|file| file.path.clone()).collect();
            }
            let behind = if head_found { Behind::Nothing } else { Behind::HeadLost };
            chain.take(last, behind, outside, faults);
        }
        chain.catalog.number = newest;
        Ok(chain)
    }

    /// Judges a manifest by what others say of it, and takes up what it says.
    fn take(&mut self, link: Link, behind: Behind<'_>, outside: Evidence<'_>, faults: &mut Faults) {
        let lost = outside.expected_head.filter(|_| matches!(behind, Behind::HeadLost));
        if let Some(expected) = lost {
            let why = "no manifest has the SHA-256 that was kept";
            faults.add(&link.path, format!("{why} ({expected}): manifests were changed, or cut off behind this one"));
        }
        let manifest = match &link.manifest {
            Ok(manifest) => manifest,
            Err(why) => {
                faults.add(&link.path, why.clone());
                return self.doubt.begin(link.number);
            }
        };
        let mut intact = lost.is_none();
        let said = match behind {
            Behind::Next(next) => next.manifest.as_ref().ok().map(|manifest| (next.path.as_str(), manifest.previous.as_str())),
            Behind::Nothing | Behind::HeadLost => None,
        };
        let said_outside = outside.bundle.filter(|_| link.number == 1).map(|hash| (BUNDLE, hash));
        for (holder, hash) in said.into_iter().chain(said_outside) {
            if near(hash, &link.hash) {
                faults.add(holder, format!("the SHA-256 of {} that it holds was changed", link.path));
            } else if hash != link.hash {
                faults.add(&link.path, format!("its SHA-256 is not the one that {holder} holds: it was changed, or replaced"));
                intact = false;
            }
        }
        if link.number == 1 && !manifest.previous.is_empty() {
            faults.add(&link.path, "it names a manifest before it, though it is the first".to_owned());
        }
        self.fold(&link, manifest, intact, faults);
    }

    fn fold(&mut self, link: &Link, manifest: &Manifest, intact: bool, faults: &mut Faults) {
        if intact && self.doubt.since.is_none() {
            if manifest.position.tick < self.catalog.position.tick {
                faults.add(&link.path, "it goes back along the chain".to_owned());
            }
            if let Err(why) = self.catalog.change(manifest) {
                faults.add(&link.path, why);
                self.doubt.begin(link.number);
                self.fold_leniently(manifest);
            }
        } else {
            self.fold_leniently(manifest);
            let added = manifest.added.iter().map(|file| file.path.clone());
            if intact {
                self.doubt.certain.extend(added);
            } else {
                self.doubt.begin(link.number);
                self.doubt.suspects.extend(added.map(|path| (path, link.number)));
            }
        }
        if intact && link.number.is_multiple_of(SNAPSHOT_EVERY) {
            self.compare_snapshot(link, manifest, faults);
        }
    }

    /// Takes up what a manifest says on top of a state that is in doubt.
    fn fold_leniently(&mut self, manifest: &Manifest) {
        let catalog = &mut self.catalog;
        for removed in &manifest.removed {
            catalog.files.remove(&removed.path);
            self.doubt.suspects.remove(&removed.path);
        }
        catalog.files.extend(manifest.added.iter().map(|file| (file.path.clone(), Arc::new(file.clone()))));
        catalog.position = manifest.position.clone();
        catalog.state.clone_from(&manifest.state);
    }

    /// A snapshot must be what was folded; where that is in doubt, it ends the doubt.
    fn compare_snapshot(&mut self, link: &Link, manifest: &Manifest, faults: &mut Faults) {
        let Some(snapshot) = &manifest.snapshot else {
            return faults.add(&link.path, "it lacks the snapshot that it must have".to_owned());
        };
        if self.doubt.since.is_none() {
            if *snapshot != self.catalog.snapshot() {
                faults.add(&link.path, "its snapshot is not what the manifests up to it add up to".to_owned());
            }
        } else if let Ok(catalog) = Catalog::from_snapshot(manifest.clone(), &link.bytes) {
            self.catalog = catalog;
            self.doubt = Doubt::default();
        }
    }

    /// The damaged manifest that alone speaks of this file.
    pub(super) fn suspect(&self, path: &str) -> Option<u64> {
        self.doubt.suspects.get(path).copied()
    }

    /// The damaged or missing manifest behind which the state is not certain.
    pub(super) fn in_doubt_since(&self) -> Option<u64> {
        self.doubt.since
    }

    /// The damaged or missing manifest that may have removed this file, or never have added it.
    pub(super) fn may_have_removed(&self, path: &str) -> Option<u64> {
        let since = self.doubt.since.filter(|_| !self.doubt.certain.contains(path));
        self.suspect(path).or(since)
    }
}

impl Doubt {
    fn begin(&mut self, number: u64) {
        self.since = Some(number);
        self.certain.clear();
    }
}

/// Manifests that are read before they are needed.
const LINKS_AHEAD: usize = 4;
