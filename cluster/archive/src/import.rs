//! Past events become files of an archive, marked as imported.
//!
//! Promises:
//! - Imported rows have `imported = true`, and the tick that the archive was at: what is read at an earlier tick has none of them.
//! - A row that the archive's files hold already is passed over and counted, so importing the same again adds nothing. Events are
//!   known by their `event_id`; samples, which have none, by whose and when they are. What a cluster has received but not archived yet
//!   is not looked at, nor what another import commits meanwhile.
//! - All of it becomes visible by one manifest, or nothing does. Memory is bounded by one chunk (`chunk.rs`). Until then its files are
//!   named by nothing: a node that removes such files sooner than the import ends makes it fail, and it says so.
//!
//! From a bundle or another archive: here. From JSON lines: `import/lines.rs`.

mod known;
mod lines;

use std::sync::Arc;

use arrow::array::{BooleanArray, Int64Array, RecordBatch};
use futures::StreamExt as _;
use object_store::path::Path;
use weir_schema::Column;

use crate::catalog::{Archive, Change};
use crate::chunk::{Chunk, as_read, with_column};
use crate::error::Error;
use crate::export::store_chunk;
use crate::layout::Table;
use crate::manifest::FileEntry;
use crate::query::{Threads, failed, files_only, session};
use crate::store::Store;
use crate::table::RecordSnapshot;
use crate::verify::{Progress, verify};

use known::without_known;

pub use lines::{BadLine, LineDefaults, import_lines};

/// What an import has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Events that are new in the archive.
    pub events: u64,
    /// Samples that are new in the archive.
    pub samples: u64,
    /// Rows that the archive had already.
    pub known: u64,
    /// Files that were added.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Lines that are no events.
    pub bad_lines: u64,
    /// The first of them.
    pub bad_lines_first: Vec<BadLine>,
    /// Texts that were longer than a text may be, and were cut.
    pub texts_cut: u64,
    /// The manifest that made the rows part of the archive; none when there was nothing to add.
    pub manifest: Option<u64>,
}

/// Imports every row of another archive or of a bundle. That is verified first, and refused when anything in it is damaged.
pub async fn import_archive(
    target: &Archive,
    source: Store,
    now_ms: u64,
    on_progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Imported, Error> {
    let verified = verify(source.clone(), None, on_progress).await?;
    if let Some(fault) = verified.faults.first() {
        let (url, count) = (source.url(), verified.faults.len());
        let first = format!("{}: {}", fault.path, fault.why);
        return Err(Error::Refused(format!(
            "{url:?} is damaged and was not imported: {count} objects, the first is {first}; `weir archive verify` names all"
        )));
    }
    let context = session(&files_only(Archive::open(source).await?).await?, Threads::One)?;
    let mut importer = Importer::begin(target).await?;
    for table in Table::ALL {
        let mut rows = context.table(table.name()).await.map_err(failed)?.execute_stream().await.map_err(failed)?;
        while let Some(batch) = rows.next().await {
            importer.take(table, &as_read(table, &batch.map_err(failed)?)?).await?;
        }
    }
    importer.commit(now_ms).await
}

/// An import that is under way.
struct Importer {
    archive: Archive,
    /// The archive when it began.
    before: RecordSnapshot,
    tick: u64,
    chunks: [Chunk; 2],
    added: Vec<FileEntry>,
    imported: Imported,
}

impl Importer {
    async fn begin(archive: &Archive) -> Result<Self, Error> {
        archive.refresh().await?;
        let before = files_only(archive.clone()).await?;
        let (tick, chunks) = (before.tick, Table::ALL.map(Chunk::new));
        Ok(Self { archive: archive.clone(), before, tick, chunks, added: Vec::new(), imported: Imported::default() })
    }

    /// Takes rows with every column, as they are read.
    async fn take(&mut self, table: Table, batch: &RecordBatch) -> Result<(), Error> {
        let tick = i64::try_from(self.tick).unwrap_or(i64::MAX);
        let batch = with_column(table, batch, Column::Tick, Arc::new(Int64Array::from(vec![tick; batch.num_rows()])))?;
        let imported = BooleanArray::from(vec![true; batch.num_rows()]);
        let chunk = &mut self.chunks[table as usize];
        chunk.push(with_column(table, &batch, Column::Imported, Arc::new(imported))?);
        if chunk.is_full() { self.write(table).await } else { Ok(()) }
    }

    async fn write(&mut self, table: Table) -> Result<(), Error> {
        let chunk = std::mem::replace(&mut self.chunks[table as usize], Chunk::new(table));
        let (fresh, known) = without_known(&self.before, chunk).await?;
        self.imported.known += known;
        let Some(entry) = store_chunk(self.archive.store(), fresh).await? else { return Ok(()) };
        match table {
            Table::Events => self.imported.events += entry.rows,
            Table::Samples => self.imported.samples += entry.rows,
        }
        self.imported.files += 1;
        self.imported.bytes += entry.bytes;
        self.added.push(entry);
        Ok(())
    }

    async fn commit(mut self, now_ms: u64) -> Result<Imported, Error> {
        for table in Table::ALL {
            self.write(table).await?;
        }
        if self.added.is_empty() {
            return Ok(self.imported);
        }
        for entry in &self.added {
            if !self.archive.store().is_there(&Path::from(entry.path.as_str())).await? {
                return Err(Error::Refused(format!(
                    "{} was removed before it became part of the archive: raise archive.limits.delete_after_ms, or import less at once",
                    entry.path
                )));
            }
        }
        let change = Change { added: self.added, ..Change::default() };
        self.imported.manifest = Some(self.archive.commit(&change, now_ms).await?.number);
        Ok(self.imported)
    }
}
