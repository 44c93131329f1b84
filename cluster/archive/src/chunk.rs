//! Rows that did not come as pieces, gathered and written as fresh-style files: one file a chunk, in the order of a fresh file.
//!
//! Memory is bounded by one chunk: it is full at `ROWS_MAX` rows or `BYTES_MAX` bytes, whichever comes first.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _, RecordBatch};
use arrow::compute::{SortColumn, concat, interleave_record_batch, lexsort_to_indices, max, min};
use arrow::datatypes::{Int64Type, TimestampNanosecondType};
use arrow::error::ArrowError;
use bytes::Bytes;
use weir_schema::Column;

use crate::error::Error;
use crate::layout::{Table, fresh_path, random_id};
use crate::manifest::FileEntry;
use crate::properties::{Stage, outside_schema, properties};
use crate::seal::Sealer;
use crate::writer::Span;

/// Rows of one relation, each batch with all of its columns as they are read.
#[derive(Debug)]
pub(crate) struct Chunk {
    table: Table,
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
}

impl Chunk {
    pub(crate) fn new(table: Table) -> Self {
        Self { table, batches: Vec::new(), rows: 0, bytes: 0 }
    }

    pub(crate) fn push(&mut self, batch: RecordBatch) {
        self.rows += batch.num_rows();
        self.bytes += batch.get_array_memory_size();
        if batch.num_rows() > 0 {
            self.batches.push(batch);
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.rows >= ROWS_MAX || self.bytes >= BYTES_MAX
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    pub(crate) fn table(&self) -> Table {
        self.table
    }

    pub(crate) fn batches(&self) -> &[RecordBatch] {
        &self.batches
    }

    /// Encodes the rows as one sealed file. Takes a while; no I/O. None: there are no rows.
    pub(crate) fn encode(&self) -> Result<Option<(FileEntry, Bytes)>, Error> {
        if self.is_empty() {
            return Ok(None);
        }
        let path = fresh_path(self.table, &random_id()).to_string();
        let unsorted = |error: ArrowError| Error::Parquet { what: format!("sorting rows of {path}"), why: error.to_string() };
        let places = self.in_order().map_err(unsorted)?;
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        let mut sealer = Sealer::new(&path, outside_schema(self.table), properties(Stage::Fresh))?;
        let mut bytes = Vec::new();
        for places in places.chunks(WRITTEN_ROWS) {
            let batch = interleave_record_batch(&batches, places).map_err(unsorted)?;
            bytes.extend(sealer.write(&batch)?.into_iter().flatten());
        }
        let (rest, seal) = sealer.finish()?;
        bytes.extend(rest);
        let (time_min, time_max) = self.span_of_times();
        let (tick_min, tick_max) = self.span_of_ticks();
        let mut entry = Span { time_min, time_max, tick_min, tick_max }.entry(path, self.table, seal);
        entry.imported = self.column(Column::Imported).any(|imported| imported.as_boolean().true_count() > 0);
        Ok(Some((entry, Bytes::from(bytes))))
    }

    /// One column of every batch.
    fn column(&self, column: Column) -> impl Iterator<Item = &ArrayRef> {
        let place = self.table.columns().iter().position(|known| *known == column).expect("both relations have it");
        self.batches.iter().map(move |batch| batch.column(place))
    }

    /// Places of the rows (batch, row) by tenant, region, kind, host, time. Samples are all of one kind.
    fn in_order(&self) -> Result<Vec<(usize, usize)>, ArrowError> {
        let keys = [Column::Tenant, Column::Region, Column::Kind, Column::Host, Column::Time];
        let keys = keys.into_iter().filter(|key| self.table.columns().contains(key));
        let sorted = keys.map(|key| {
            let parts: Vec<&dyn Array> = self.column(key).map(AsRef::as_ref).collect();
            Ok(SortColumn { values: concat(&parts)?, options: None })
        });
        let order = lexsort_to_indices(&sorted.collect::<Result<Vec<_>, ArrowError>>()?, None)?;
        let places = self.batches.iter().enumerate().flat_map(|(at, batch)| (0..batch.num_rows()).map(move |row| (at, row)));
        let places: Vec<(usize, usize)> = places.collect();
        Ok(order.values().iter().map(|row| places[*row as usize]).collect())
    }

    /// Least and greatest time of a row.
    pub(crate) fn span_of_times(&self) -> (i64, i64) {
        let times = || self.column(Column::Time).map(|times| times.as_primitive::<TimestampNanosecondType>());
        (times().filter_map(min).min().unwrap_or(0), times().filter_map(max).max().unwrap_or(0))
    }

    fn span_of_ticks(&self) -> (u64, u64) {
        let ticks = || self.column(Column::Tick).map(|ticks| ticks.as_primitive::<Int64Type>());
        let (least, most) = (ticks().filter_map(min).min().unwrap_or(0), ticks().filter_map(max).max().unwrap_or(0));
        (u64::try_from(least).unwrap_or(0), u64::try_from(most).unwrap_or(0))
    }
}

/// A batch in the relation's own schema, whatever names and flags a plan gave its columns.
pub(crate) fn as_read(table: Table, batch: &RecordBatch) -> Result<RecordBatch, Error> {
    let taken = RecordBatch::try_new(outside_schema(table), batch.columns().to_vec());
    taken.map_err(|error| Error::Parquet { what: format!("taking rows of {}", table.name()), why: error.to_string() })
}

/// The batch with another array in place of one column's.
pub(crate) fn with_column(table: Table, batch: &RecordBatch, column: Column, array: ArrayRef) -> Result<RecordBatch, Error> {
    let columns = table.columns().iter().zip(batch.columns());
    let columns = columns.map(|(known, old)| if *known == column { Arc::clone(&array) } else { Arc::clone(old) }).collect();
    let changed = RecordBatch::try_new(batch.schema(), columns);
    changed.map_err(|error| Error::Parquet { what: format!("setting {}", column.name()), why: error.to_string() })
}

/// Rows of a chunk at most: a file of about 10 MB.
const ROWS_MAX: usize = 200_000;
/// Bytes of a chunk in memory, at most, but for the batch that fills it.
const BYTES_MAX: usize = 128 << 20;
const WRITTEN_ROWS: usize = 8_192;
