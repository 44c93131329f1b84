//! The chain behind the archive, for queries: decoded as it is read, so that it takes no memory however far the archive is behind.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{Schema, SchemaRef};
use weir_archive::{Position, Tail, TailRequest, outside_schema};
use weir_dataflow::schema_of;
use weir_journal::{Disk, Offset, Reader};

use super::cursor::Cursor;
use super::piece;
use crate::chain::ChainRecord;
use crate::error::Error;
use crate::layout;

/// Reads the chain and the logs of a shared directory.
pub struct ChainTail {
    disk: Arc<dyn Disk>,
    shared: PathBuf,
}

impl ChainTail {
    /// Of the cluster that shares this directory.
    pub fn new(disk: Arc<dyn Disk>, shared: &Path) -> Self {
        Self { disk, shared: shared.to_owned() }
    }

    fn rows(&self, request: &TailRequest, out: &mut dyn FnMut(RecordBatch) -> bool) -> Result<(), Error> {
        let state = request.state.as_ref().map(|state| state.as_slice());
        let mut cursor = Cursor::open(self.disk.clone(), &self.shared, &request.position, state)?;
        let inside = schema_of(&request.columns);
        let all = outside_schema(request.table);
        let fields: Vec<_> =
            request.columns.iter().filter_map(|column| all.field_with_name(column.name()).ok().cloned()).collect();
        let mut batches = Batches { schema: Arc::new(Schema::new(fields)), waiting: Vec::new(), rows: 0 };
        while let Some(step) = cursor.next(request.until_tick)? {
            for taken in step.taken {
                let piece = piece(taken.clone());
                if piece.table() != request.table {
                    continue;
                }
                let batch = taken.record_batch(&request.columns, &inside, None);
                if !batches.add(&batch, out)? {
                    return Ok(());
                }
            }
        }
        batches.hand_out(out).map(drop)
    }
}

impl fmt::Debug for ChainTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainTail({})", self.shared.display())
    }
}

impl Tail for ChainTail {
    fn read(&self, request: &TailRequest, out: &mut dyn FnMut(RecordBatch) -> bool) -> Result<(), weir_archive::Error> {
        self.rows(request, out).map_err(|failed| match failed {
            Error::Journal { why: weir_journal::Error::Forgotten { .. }, .. } => {
                weir_archive::Error::Behind { number: request.number }
            }
            other => weir_archive::Error::Tail(other.to_string()),
        })
    }

    fn last_tick(&self, position: &Position) -> Result<u64, weir_archive::Error> {
        let failed = |why: weir_journal::Error| weir_archive::Error::Tail(format!("reading the chain: {why}"));
        let mut chain = match Reader::open(self.disk.clone(), &layout::chain_dir(&self.shared), Offset(position.chain)) {
            Ok(chain) => chain,
            Err(weir_journal::Error::Missing { .. }) => return Ok(position.tick),
            Err(why) => return Err(failed(why)),
        };
        let mut last = position.tick;
        while let Some((_, bytes)) = chain.next().map_err(failed)? {
            last = ChainRecord::decode(&bytes).map_err(|wrong| weir_archive::Error::Tail(wrong.to_string()))?.tick;
        }
        Ok(last)
    }
}

/// Small batches of the engine's types, on their way to larger ones of SQL's.
struct Batches {
    schema: SchemaRef,
    waiting: Vec<RecordBatch>,
    rows: usize,
}

impl Batches {
    /// False: no more is wanted.
    fn add(&mut self, batch: &RecordBatch, out: &mut dyn FnMut(RecordBatch) -> bool) -> Result<bool, Error> {
        let columns = batch.columns().iter().zip(self.schema.fields()).map(|(column, field)| cast(column, field.data_type()));
        let columns = columns.collect::<Result<Vec<_>, _>>().map_err(|wrong| Error::Archive(wrong.to_string()))?;
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options);
        self.rows += batch.as_ref().map_or(0, RecordBatch::num_rows);
        self.waiting.push(batch.map_err(|wrong| Error::Archive(wrong.to_string()))?);
        if self.rows < ROWS_TOGETHER { Ok(true) } else { self.hand_out(out) }
    }

    fn hand_out(&mut self, out: &mut dyn FnMut(RecordBatch) -> bool) -> Result<bool, Error> {
        if self.waiting.is_empty() {
            return Ok(true);
        }
        let rows = std::mem::take(&mut self.rows);
        let waiting = std::mem::take(&mut self.waiting);
        let whole = if self.schema.fields().is_empty() {
            let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
            RecordBatch::try_new_with_options(self.schema.clone(), Vec::new(), &options)
        } else {
            concat_batches(&self.schema, &waiting)
        };
        Ok(out(whole.map_err(|wrong| Error::Archive(wrong.to_string()))?))
    }
}

/// What DataFusion likes to be handed.
const ROWS_TOGETHER: usize = 8_192;
