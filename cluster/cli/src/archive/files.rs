//! `weir archive files`: what is kept, what was dropped, what is held.

use std::collections::BTreeMap;
use std::io::Write as _;

use weir_archive::Archive;
use weir_archive::manifest::FileEntry;

use super::time_text;
use crate::sql::Table;

/// Files that are shown as one line.
#[derive(Debug, Default, Clone, Copy)]
struct Kept {
    files: u64,
    rows: u64,
    bytes: u64,
    span: Option<(i64, i64)>,
}

impl Kept {
    fn add(&mut self, file: &FileEntry) {
        self.files += 1;
        self.rows += file.rows;
        self.bytes += file.bytes;
        let (first, last) = self.span.unwrap_or((file.time_min, file.time_max));
        self.span = Some((first.min(file.time_min), last.max(file.time_max)));
    }
}

pub(super) fn run(archive: &Archive) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(kept(archive).aligned().as_bytes())?;
    for (title, table) in [("dropped by retention", dropped(archive)), ("holds", holds(archive))] {
        if !table.rows.is_empty() {
            write!(out, "\n{title}:\n{}", table.aligned())?;
        }
    }
    out.flush()?;
    Ok(())
}

fn kept(archive: &Archive) -> Table {
    let mut all: BTreeMap<[String; 4], Kept> = BTreeMap::new();
    for file in archive.catalog().files.values() {
        // A fresh file has rows of all tenants, regions and kinds, until it is compacted.
        let [tenant, region, kind] = file.partition.as_ref().map_or_else(
            || ["*"; 3].map(str::to_owned),
            |partition| [partition.tenant.clone(), partition.region.clone(), partition.kind.clone()],
        );
        all.entry([file.table.name().to_owned(), tenant, region, kind]).or_default().add(file);
    }
    let rows = all.into_iter().map(|(whose, kept)| {
        let (first, last) = kept.span.unwrap_or_default();
        let per_row = format!("{:.1}", kept.bytes as f64 / kept.rows.max(1) as f64);
        let numbers = [kept.files.to_string(), kept.rows.to_string(), kept.bytes.to_string(), per_row];
        whose.into_iter().chain(numbers).chain([time_text(first), time_text(last)]).map(Some).collect()
    });
    table(&["relation", "tenant", "region", "kind", "files", "rows", "bytes", "bytes/row", "first", "last"], rows.collect())
}

fn dropped(archive: &Archive) -> Table {
    let catalog = archive.catalog();
    let rows = catalog.dropped.values().map(|dropped| {
        let partition = dropped.partition.clone();
        let whose = [dropped.table.name().to_owned(), partition.tenant, partition.region, partition.kind];
        let when = i64::try_from(dropped.dropped_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        let what = [dropped.why.as_str().to_owned(), dropped.rows.to_string(), dropped.bytes.to_string()];
        let times = [dropped.time_min, dropped.time_max, when].map(time_text);
        whose.into_iter().chain(what).chain(times).map(Some).collect()
    });
    table(&["relation", "tenant", "region", "kind", "why", "rows", "bytes", "first", "last", "dropped"], rows.collect())
}

fn holds(archive: &Archive) -> Table {
    let catalog = archive.catalog();
    let rows = catalog.holds.values().map(|hold| {
        let (from, to) = (hold.from.map(time_text), hold.to.map(time_text));
        vec![Some(hold.name.clone()), hold.host.clone(), hold.container_id.clone(), from, to, hold.note.clone()]
    });
    table(&["name", "host", "container", "from", "to", "note"], rows.collect())
}

fn table(columns: &[&str], rows: Vec<Vec<Option<String>>>) -> Table {
    Table { columns: columns.iter().map(|name| (*name).to_owned()).collect(), rows }
}
