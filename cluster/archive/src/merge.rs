//! Compaction: a job's files are read in one order, split into files that stay, and swapped by one manifest.
//!
//! ```text
//! checked reader per file ─► SortPreservingMerge by tenant, region, kind, host, time ─► Split ─► Upload per file ─► manifest
//! ```
//!
//! Promise: every row of the inputs is in the outputs once, or the manifest is not written. A job that fails, is killed or loses a race
//! changes nothing; the objects that it leaves are swept.
//!
//! Memory, by its largest parts: per input (32 at most) a row group as it is stored (32 MiB at most, usually 5) and the pages that are
//! being read; what the merge holds of them, 512 MiB at most (`MERGE_BYTES_MAX`); per output that is open (8 at most) a row group
//! being encoded (32 MiB at most, usually 5) and two parts of 5 MiB. When the merge needs more, the job is done with half of its files.
//!
//! Encoding runs on threads for blocking work, 1,024 rows at a time, so that sockets on the same runtime go on. Merging and decoding
//! run on the runtime's own.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::DataFusionError;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column as PhysicalColumn;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan as _;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::prelude::SessionConfig;
use futures::StreamExt as _;
use object_store::path::Path;
use parquet::errors::ParquetError;
use weir_schema::Column;

use crate::catalog::{Archive, Change};
use crate::compact::{Job, Sizes, Work};
use crate::error::Error;
use crate::manifest::{FileEntry, Removed, Why};
use crate::properties::merge_schema;
use crate::read::{Footers, SealedReaders};
use crate::split::{Hours, Part, Shape, Split, group_columns};
use crate::sweep::Spared;
use crate::upload::Upload;

/// What a compaction has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Files that are gone.
    pub files_in: usize,
    /// Their bytes.
    pub bytes_in: u64,
    /// Files that took their place.
    pub files_out: usize,
    /// Their bytes.
    pub bytes_out: u64,
    /// Rows of both.
    pub rows: u64,
    /// Number of the manifest.
    pub manifest: u64,
}

/// Does a job, or half of it or less when memory does not suffice for all.
///
/// `Error::Fenced`: somebody else has changed the files meanwhile; choose again. `Error::Store`: unknown whether it was done; choose again
/// after `Archive::refresh`.
pub async fn compact(archive: &Archive, job: &Job, sizes: &Sizes, now_ms: u64) -> Result<Compacted, Error> {
    compact_within(MERGE_BYTES_MAX, archive, job, sizes, now_ms).await
}

/// The same with so much memory for the merge.
pub(crate) async fn compact_within(
    merge_bytes: usize,
    archive: &Archive,
    job: &Job,
    sizes: &Sizes,
    now_ms: u64,
) -> Result<Compacted, Error> {
    let mut files = &job.files[..];
    let (added, spared) = loop {
        let mut spared = archive.in_flight().enter([]);
        let part = Job { files: files.to_vec(), ..*job };
        match merge(archive, &part, sizes, merge_bytes, &mut spared).await {
            Ok(added) => break (added, spared),
            Err(Failure::Memory(why)) if files.len() > 2 => {
                tracing::warn!(files = files.len(), %why, "a compaction needs too much memory: half of it is done");
                files = &files[..files.len().div_ceil(2)];
            }
            Err(Failure::Memory(why)) => return Err(Error::Parquet { what: MERGING.to_owned(), why }),
            Err(Failure::Other(why)) => return Err(why),
        }
    };
    let rows_in: u64 = files.iter().map(|file| file.rows).sum();
    let rows_out: u64 = added.iter().map(|file| file.rows).sum();
    if rows_in != rows_out {
        let why = format!("{rows_in} rows became {rows_out}; nothing was changed");
        return Err(Error::Parquet { what: MERGING.to_owned(), why });
    }
    let mut compacted = Compacted {
        files_in: files.len(),
        bytes_in: files.iter().map(|file| file.bytes).sum(),
        files_out: added.len(),
        bytes_out: added.iter().map(|file| file.bytes).sum(),
        rows: rows_out,
        manifest: 0,
    };
    let removed = files.iter().map(|file| Removed { path: file.path.clone(), why: Why::Compacted });
    let change = Change { added, removed: removed.collect(), ..Change::default() };
    compacted.manifest = archive.commit(&change, now_ms).await?.number;
    drop(spared);
    Ok(compacted)
}

/// Why a merge was given up.
enum Failure {
    /// Fewer files may do.
    Memory(String),
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<DataFusionError> for Failure {
    fn from(error: DataFusionError) -> Self {
        match error.find_root() {
            DataFusionError::ResourcesExhausted(why) => Self::Memory(why.clone()),
            _ => Self::Other(own_error(MERGING, error)),
        }
    }
}

/// Reads the files, and puts new ones of their rows.
async fn merge(
    archive: &Archive,
    job: &Job,
    sizes: &Sizes,
    merge_bytes: usize,
    spared: &mut Spared,
) -> Result<Vec<FileEntry>, Failure> {
    let (hours, rolls_max) = match job.work {
        Work::Fresh => (Hours::Apart, usize::MAX),
        // Several files become fewer, whatever they encode to: else compaction would not end.
        Work::Hour | Work::Day => (Hours::Together, job.files.len().saturating_sub(2)),
    };
    let shape = Shape {
        table: job.table,
        hours,
        file_bytes_max: sizes.file_bytes_max,
        rolls_max,
        rows: job.files.iter().map(|file| file.rows).sum(),
        imported: job.files.iter().any(|file| file.imported),
    };
    let mut rows = in_order(archive, job, merge_bytes)?;
    let mut split = Split::new(shape);
    let mut puts = Puts { archive, spared, open: BTreeMap::new(), ended: Vec::new() };
    let done = async {
        while let Some(batch) = rows.next().await {
            let (parts, rest) = split_off(split, batch?).await?;
            split = rest;
            puts.take(parts).await?;
        }
        let parts = blocking(move || {
            let mut parts = Vec::new();
            split.finish(&mut parts).map(|()| parts)
        });
        puts.take(parts.await?).await?;
        Ok(())
    };
    match done.await {
        Ok(()) => Ok(puts.ended),
        Err(why) => {
            puts.abort().await;
            Err(why)
        }
    }
}

async fn split_off(mut split: Split, batch: RecordBatch) -> Result<(Vec<Part>, Split), Error> {
    blocking(move || {
        let mut parts = Vec::new();
        split.take(&batch, &mut parts)?;
        Ok((parts, split))
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|died| Error::Refused(format!("encoding ended: {died}")))?
}

/// The files that are being put.
struct Puts<'a> {
    archive: &'a Archive,
    spared: &'a mut Spared,
    open: BTreeMap<String, Upload>,
    ended: Vec<FileEntry>,
}

impl Puts<'_> {
    async fn take(&mut self, parts: Vec<Part>) -> Result<(), Error> {
        for Part { path, bytes, end } in parts {
            if !self.open.contains_key(&path) {
                self.spared.add(path.clone());
            }
            let begin = || Upload::new(self.archive.store().clone(), Path::from(path.as_str()));
            let upload = self.open.entry(path.clone()).or_insert_with(begin);
            upload.write(&bytes).await?;
            if let Some(entry) = end {
                upload.finish().await?;
                self.open.remove(&path);
                self.ended.push(entry);
            }
        }
        Ok(())
    }

    async fn abort(&mut self) {
        for upload in self.open.values_mut() {
            upload.abort().await;
        }
    }
}

/// All rows of the files, merged.
fn in_order(archive: &Archive, job: &Job, merge_bytes: usize) -> Result<SendableRecordBatchStream, DataFusionError> {
    let schema = merge_schema(job.table);
    let url = ObjectStoreUrl::parse(MERGE_URL)?;
    let memory = Arc::new(GreedyMemoryPool::new(merge_bytes));
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(memory).build_arc()?;
    runtime.register_object_store(url.as_ref(), Arc::clone(archive.store().objects()));
    let config = SessionConfig::new().with_batch_size(MERGE_ROWS);
    let context = TaskContext::default().with_session_config(config).with_runtime(runtime);

    let columns = group_columns(job.table).iter().chain(&[Column::Host, Column::Time]);
    let ascending = columns
        .map(|column| Ok(PhysicalSortExpr::new_default(PhysicalColumn::new_with_schema(column.name(), &schema).map(Arc::new)?)));
    let order = LexOrdering::new(ascending.collect::<Result<Vec<_>, DataFusionError>>()?);
    let order = order.ok_or_else(|| DataFusionError::Internal("an order of no columns".to_owned()))?;

    // These footers are read once: they must not push those of queries out.
    let readers = SealedReaders { store: archive.store().clone(), footers: Arc::new(Footers::default()) };
    let source = ParquetSource::new(schema).with_parquet_file_reader_factory(Arc::new(readers));
    let file = |file: &Arc<FileEntry>| PartitionedFile::new(file.path.clone(), file.bytes).with_extension(Arc::clone(file));
    let groups = job.files.iter().map(|entry| FileGroup::new(vec![file(entry)])).collect();
    let scan = FileScanConfigBuilder::new(url, Arc::new(source))
        .with_file_groups(groups)
        .with_output_ordering(vec![order.clone()])
        .build();
    let merge = SortPreservingMergeExec::new(order, DataSourceExec::from_data_source(scan));
    merge.execute(0, Arc::new(context))
}

/// The error of this crate inside one of DataFusion's, as far as it can be taken out.
pub(crate) fn own_error(what: &str, error: DataFusionError) -> Error {
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => own_error(what, *inner),
        DataFusionError::External(inner) => own_cause(what, inner),
        DataFusionError::ParquetError(inner) => match *inner {
            ParquetError::External(inner) => own_cause(what, inner),
            other => Error::Parquet { what: what.to_owned(), why: other.to_string() },
        },
        DataFusionError::ArrowError(inner, note) => match *inner {
            arrow::error::ArrowError::ExternalError(inner) => own_cause(what, inner),
            other => own_error(what, DataFusionError::Execution(format!("{other}{}", note.unwrap_or_default()))),
        },
        DataFusionError::Shared(inner) => match Arc::try_unwrap(inner) {
            Ok(inner) => own_error(what, inner),
            Err(shared) => Error::Parquet { what: what.to_owned(), why: shared.to_string() },
        },
        other => Error::Parquet { what: what.to_owned(), why: other.to_string() },
    }
}

fn own_cause(what: &str, cause: Box<dyn std::error::Error + Send + Sync>) -> Error {
    let cause = match cause.downcast::<Error>() {
        Ok(own) => return *own,
        Err(cause) => cause,
    };
    let cause = match cause.downcast::<ParquetError>() {
        Ok(inner) => return own_error(what, DataFusionError::ParquetError(inner)),
        Err(cause) => cause,
    };
    match cause.downcast::<DataFusionError>() {
        Ok(inner) => own_error(what, *inner),
        Err(cause) => Error::Parquet { what: what.to_owned(), why: cause.to_string() },
    }
}

const MERGING: &str = "merging files of the archive";
const MERGE_URL: &str = "weir-archive://merge";
/// What the merge holds of its inputs.
const MERGE_BYTES_MAX: usize = 512 << 20;
/// Rows of a batch: an input has three of them in memory.
const MERGE_ROWS: usize = 1_024;
