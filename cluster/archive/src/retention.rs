//! Retention: whole compacted files go when they are too old, or when there is no room for them. What goes is counted in the catalog.
//!
//! Fresh files stay until they are compacted. A file that has a row of a hold stays, and so does one that cannot be read to tell.
//! The objects themselves are removed by the sweep, some time after the manifest that drops them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::catalog::{Archive, Catalog, Change};
use crate::error::Error;
use crate::hold::holds_row;
use crate::layout::Table;
use crate::manifest::{FileEntry, Removed, Why};

/// How long rows are kept, and in how much room. Of several rules for a file the strictest counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Only for this relation.
    pub table: Option<Table>,
    /// Only for this tenant.
    pub tenant: Option<String>,
    /// Only for this region.
    pub region: Option<String>,
    /// A file goes when its latest row is older than this.
    pub age_ms: Option<u64>,
    /// The oldest files go until all that the rule is for have no more bytes than this together.
    pub bytes: Option<u64>,
}

/// A file that retention has dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppedFile {
    /// The object, which is there until it is swept.
    pub path: String,
    /// What it held rows of.
    pub table: Table,
    /// Its rows.
    pub rows: u64,
    /// Its bytes.
    pub bytes: u64,
    /// `Age` or `Bytes`.
    pub why: Why,
}

impl Rule {
    fn is_for(&self, file: &FileEntry) -> bool {
        let Some(partition) = &file.partition else { return false };
        self.table.is_none_or(|table| table == file.table)
            && self.tenant.as_ref().is_none_or(|tenant| *tenant == partition.tenant)
            && self.region.as_ref().is_none_or(|region| *region == partition.region)
    }
}

/// Drops what the rules say, by one manifest. Says what went; none when nothing was due.
///
/// After `Error::Fenced` (files or holds have changed meanwhile) and `Error::Store` call it again.
pub async fn retain(archive: &Archive, rules: &[Rule], now_ms: u64) -> Result<Vec<DroppedFile>, Error> {
    let catalog = archive.refresh().await?;
    let mut choice = Choice { archive, catalog: &catalog, dropped: BTreeMap::new(), held: BTreeSet::new() };
    choice.by_age(rules, now_ms).await;
    for rule in rules {
        choice.by_bytes(rule).await;
    }
    let dropped: Vec<DroppedFile> = choice.dropped.into_values().collect();
    if !dropped.is_empty() {
        let removed = dropped.iter().map(|dropped| Removed { path: dropped.path.clone(), why: dropped.why });
        let under_holds = Some(catalog.holds.clone());
        archive.commit(&Change { removed: removed.collect(), under_holds, ..Change::default() }, now_ms).await?;
    }
    Ok(dropped)
}

/// What goes, while it is chosen.
struct Choice<'a> {
    archive: &'a Archive,
    catalog: &'a Catalog,
    dropped: BTreeMap<&'a str, DroppedFile>,
    held: BTreeSet<&'a str>,
}

impl<'a> Choice<'a> {
    async fn by_age(&mut self, rules: &[Rule], now_ms: u64) {
        let now_ns = i128::from(now_ms) * 1_000_000;
        for file in self.catalog.files.values() {
            let ages = rules.iter().filter(|rule| rule.is_for(file)).filter_map(|rule| rule.age_ms);
            let Some(age_ms) = ages.min() else { continue };
            if i128::from(file.time_max) < now_ns - i128::from(age_ms) * 1_000_000 {
                self.drop(file, Why::Age).await;
            }
        }
    }

    async fn by_bytes(&mut self, rule: &Rule) {
        let Some(bytes_max) = rule.bytes else { return };
        let gone = |file: &FileEntry| self.dropped.contains_key(file.path.as_str());
        let all = self.catalog.files.values().filter(|file| rule.is_for(file) && !gone(file));
        let mut files: Vec<&Arc<FileEntry>> = all.collect();
        files.sort_by_key(|file| (file.time_max, &file.path));
        let mut bytes: u64 = files.iter().map(|file| file.bytes).sum();
        for file in files {
            if bytes <= bytes_max {
                return;
            }
            if self.drop(file, Why::Bytes).await {
                bytes -= file.bytes;
            }
        }
    }

    /// Drops the file unless it is held; says whether.
    async fn drop(&mut self, file: &'a Arc<FileEntry>, why: Why) -> bool {
        if self.dropped.len() >= DROPPED_MAX || self.held.contains(file.path.as_str()) {
            return false;
        }
        if self.is_held(file).await {
            self.held.insert(&file.path);
            return false;
        }
        let FileEntry { path, table, rows, bytes, .. } = FileEntry::clone(file);
        self.dropped.insert(&file.path, DroppedFile { path, table, rows, bytes, why });
        true
    }

    async fn is_held(&self, file: &Arc<FileEntry>) -> bool {
        for hold in self.catalog.holds.values() {
            match holds_row(self.archive, file, hold).await {
                Ok(false) => {}
                Ok(true) => return true,
                Err(why) => {
                    tracing::warn!(path = file.path, hold = hold.name, %why, "a file is kept: whether a hold needs it is unknown");
                    return true;
                }
            }
        }
        false
    }
}

/// Files of one manifest; the next call drops more.
const DROPPED_MAX: usize = 4_096;
