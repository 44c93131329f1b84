//! A case bundle: the rows that matter, as a small archive of its own.
//!
//! ```text
//! DIR/events/fresh/<id>.parquet          the events, with every column as it was
//! DIR/samples/fresh/<id>.parquet         the samples, if the predicate says anything of samples
//! DIR/manifest/00000000000000000001.json what an archive has: `weir archive verify DIR` and `query DIR` work on it
//! DIR/events.jsonl                       the events again, for anything that reads JSON lines
//! DIR/bundle.json                        where they come from (`bundle.rs`); written last
//! ```
//!
//! Rows keep their `event_id`, `tick`, `received` and all else. Memory is bounded by one chunk (`chunk.rs`).

use std::path::Path as OsPath;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::DFSchema;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SessionContext;
use futures::StreamExt as _;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};
use sha2::{Digest as _, Sha256};

use crate::bundle::{self, BUNDLE, Bundle, EVENTS_JSONL, Lines, Origin, Rows};
use crate::chunk::{Chunk, as_read};
use crate::error::Error;
use crate::jsonl::write_rows;
use crate::layout::{Table, manifest_path, random_id};
use crate::manifest::{FORMAT, FileEntry, Manifest, Position, hex, sha256_hex};
use crate::properties::outside_schema;
use crate::query::{Threads, failed, in_short, session};
use crate::store::{Created, LocalStore, Store};
use crate::table::RecordSnapshot;

/// What an export has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Rows of each relation.
    pub rows: Rows,
    /// Parquet files.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// SHA-256 of the bundle's manifest: kept elsewhere, it proves later that the bundle is the one that was exported.
    pub head: String,
}

/// Writes the rows of a snapshot for which `predicate` is true (none: every row) as a bundle into `out`, a directory that is empty
/// or not there. `predicate` is a SQL expression over the columns of `events`; it is asked of samples too where they have its columns.
///
/// After an error `out` may hold a part of a bundle, without `bundle.json`.
pub async fn export(snapshot: &RecordSnapshot, predicate: Option<&str>, out: &OsPath, now_ms: u64) -> Result<Exported, Error> {
    let relations = relations(snapshot, predicate).await?;
    refuse_unless_free(out)?;
    let store = Store::new(Arc::new(LocalStore::open(out)?), &out.display().to_string());
    let mut writing = Writing { store, added: Vec::new(), rows: Rows::default() };
    let mut lines = JsonLines::begin(&writing.store).await?;
    for (table, rows) in relations {
        writing.relation(table, rows, &mut lines).await?;
    }
    let events_jsonl = lines.end().await?;
    writing.finish(snapshot, predicate, events_jsonl, now_ms).await
}

/// The rows that are wanted of each relation; nothing is read yet.
async fn relations(snapshot: &RecordSnapshot, predicate: Option<&str>) -> Result<Vec<(Table, SendableRecordBatchStream)>, Error> {
    let context = session(snapshot, Threads::One)?;
    let mut relations = vec![(Table::Events, rows_of(&context, Table::Events, predicate).await)];
    if let (Err(error), Some(sql)) = (&relations[0].1, predicate) {
        let why = in_short(error);
        return Err(Error::Refused(format!(
            "the predicate {sql:?} is no condition over the columns of events ({why}): write one like host = 'web-7'"
        )));
    }
    let samples = rows_of(&context, Table::Samples, predicate).await;
    // Samples lack most columns of events: where the predicate names one of those it says nothing of them.
    if samples.is_ok() || predicate.is_none() {
        relations.push((Table::Samples, samples));
    }
    relations.into_iter().map(|(table, rows)| Ok((table, rows.map_err(failed)?))).collect()
}

async fn rows_of(
    context: &SessionContext,
    table: Table,
    predicate: Option<&str>,
) -> Result<SendableRecordBatchStream, DataFusionError> {
    let mut frame = context.table(table.name()).await?;
    if let Some(sql) = predicate {
        let schema = DFSchema::try_from_qualified_schema(table.name(), &outside_schema(table))?;
        frame = frame.filter(context.parse_sql_expr(sql, &schema)?)?;
    }
    frame.execute_stream().await
}

fn refuse_unless_free(out: &OsPath) -> Result<(), Error> {
    let why = match std::fs::read_dir(out).map(|mut entries| entries.next().is_none()) {
        Ok(true) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Ok(false) => "it is not empty".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Error::Refused(format!("cannot export into {}: {why}; name a directory that is not there yet", out.display())))
}

/// A bundle that is being written.
struct Writing {
    store: Store,
    added: Vec<FileEntry>,
    rows: Rows,
}

impl Writing {
    async fn relation(&mut self, table: Table, mut rows: SendableRecordBatchStream, lines: &mut JsonLines) -> Result<(), Error> {
        let mut chunk = Chunk::new(table);
        while let Some(batch) = rows.next().await {
            let batch = as_read(table, &batch.map_err(failed)?)?;
            if table == Table::Events {
                lines.write(&batch).await?;
            }
            chunk.push(batch);
            if chunk.is_full() {
                self.write(std::mem::replace(&mut chunk, Chunk::new(table))).await?;
            }
        }
        self.write(chunk).await
    }

    async fn write(&mut self, chunk: Chunk) -> Result<(), Error> {
        let rows = match chunk.table() {
            Table::Events => &mut self.rows.events,
            Table::Samples => &mut self.rows.samples,
        };
        if let Some(entry) = store_chunk(&self.store, chunk).await? {
            *rows += entry.rows;
            self.added.push(entry);
        }
        Ok(())
    }

    async fn finish(
        self,
        snapshot: &RecordSnapshot,
        predicate: Option<&str>,
        events_jsonl: Lines,
        now_ms: u64,
    ) -> Result<Exported, Error> {
        let (files, bytes) = (self.added.len(), self.added.iter().map(|file| file.bytes).sum());
        let manifest = Manifest {
            format: FORMAT,
            number: 1,
            previous: String::new(),
            nonce: random_id(),
            written_ms: now_ms,
            position: Position { tick: snapshot.tick, chain: 0, logs: Vec::new() },
            state: None,
            added: self.added,
            removed: Vec::new(),
            holds_set: Vec::new(),
            holds_released: Vec::new(),
            snapshot: None,
        }
        .encode();
        let head = sha256_hex(&manifest);
        let catalog = &snapshot.catalog;
        let bundle = Bundle {
            format: bundle::FORMAT,
            predicate: predicate.map(str::to_owned),
            tick: snapshot.tick,
            origin: Origin { number: catalog.number, manifest_sha256: catalog.hash.clone() },
            rows: self.rows,
            manifest_sha256: head.clone(),
            events_jsonl,
            written_ms: now_ms,
        };
        for (path, bytes) in [(manifest_path(1), manifest), (Path::from(BUNDLE), bundle.encode())] {
            if self.store.create(&path, bytes).await? == Created::Taken {
                return Err(Error::Refused(format!("somebody else writes into {}: name another directory", self.store.url())));
            }
        }
        Ok(Exported { rows: self.rows, files, bytes, head })
    }
}

/// Encodes a chunk and stores its file. None: it has no rows.
pub(crate) async fn store_chunk(store: &Store, chunk: Chunk) -> Result<Option<FileEntry>, Error> {
    let encoded = tokio::task::spawn_blocking(move || chunk.encode()).await;
    let encoded = encoded.map_err(|died| Error::Refused(format!("encoding ended: {died}")))??;
    let Some((entry, bytes)) = encoded else { return Ok(None) };
    store.write(&Path::from(entry.path.as_str()), bytes.to_vec()).await?;
    Ok(Some(entry))
}

/// `events.jsonl`, as it grows.
struct JsonLines {
    upload: Box<dyn MultipartUpload>,
    text: String,
    sha: Sha256,
    bytes: u64,
}

impl JsonLines {
    async fn begin(store: &Store) -> Result<Self, Error> {
        let begun = store.objects().put_multipart(&Path::from(EVENTS_JSONL)).await;
        let upload = begun.map_err(Error::store("write", EVENTS_JSONL))?;
        Ok(Self { upload, text: String::new(), sha: Sha256::new(), bytes: 0 })
    }

    async fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        write_rows(&mut self.text, Table::Events.columns(), batch);
        if self.text.len() >= PART_BYTES { self.put().await } else { Ok(()) }
    }

    async fn put(&mut self) -> Result<(), Error> {
        let part = std::mem::take(&mut self.text).into_bytes();
        self.sha.update(&part);
        self.bytes += part.len() as u64;
        self.upload.put_part(PutPayload::from(part)).await.map_err(Error::store("write", EVENTS_JSONL))
    }

    async fn end(mut self) -> Result<Lines, Error> {
        self.put().await?;
        self.upload.complete().await.map_err(Error::store("write", EVENTS_JSONL))?;
        Ok(Lines { bytes: self.bytes, sha256: hex(&self.sha.finalize()) })
    }
}

/// Bytes of JSON lines that are written at once.
const PART_BYTES: usize = 8 << 20;
