//! Which rows the archive has already.

use std::collections::HashSet;

use arrow::array::{ArrayRef, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{col, lit};
use futures::StreamExt as _;
use weir_schema::Column;

use crate::chunk::Chunk;
use crate::error::Error;
use crate::layout::Table;
use crate::properties::outside_schema;
use crate::query::{Threads, failed, session};
use crate::table::RecordSnapshot;

/// The rows of the chunk that the snapshot's files do not have, and how many they have.
pub(super) async fn without_known(snapshot: &RecordSnapshot, chunk: Chunk) -> Result<(Chunk, u64), Error> {
    let table = chunk.table();
    let (first, last) = chunk.span_of_times();
    let overlaps = snapshot.catalog.files_of(table).any(|file| file.time_min <= last && file.time_max >= first);
    if chunk.is_empty() || !overlaps {
        return Ok((chunk, 0));
    }
    let keys = Keys::new(table)?;
    let all = chunk.batches().iter().map(|batch| keys.of(batch.columns())).collect::<Result<Vec<_>, _>>()?;
    let wanted: HashSet<&[u8]> = all.iter().flat_map(|rows| rows.iter().map(|row| row.data())).collect();
    let known = keys.found(snapshot, &wanted, first, last).await?;
    if known.is_empty() {
        return Ok((chunk, 0));
    }
    let (mut fresh, mut passed_over) = (Chunk::new(table), 0);
    for (batch, rows) in chunk.batches().iter().zip(&all) {
        let keep: BooleanArray = rows.iter().map(|row| Some(!known.contains(row.data()))).collect();
        passed_over += (keep.len() - keep.true_count()) as u64;
        fresh.push(filter_record_batch(batch, &keep).map_err(|error| comparing(&error))?);
    }
    Ok((fresh, passed_over))
}

/// What tells rows of a relation apart.
struct Keys {
    table: Table,
    columns: &'static [Column],
    converter: RowConverter,
}

impl Keys {
    fn new(table: Table) -> Result<Self, Error> {
        let columns = match table {
            Table::Events => EVENT,
            Table::Samples => SAMPLE,
        };
        let schema = outside_schema(table);
        let types = columns.iter().filter_map(|column| schema.field_with_name(column.name()).ok());
        let fields = types.map(|field| SortField::new(field.data_type().clone())).collect();
        Ok(Self { table, columns, converter: RowConverter::new(fields).map_err(|error| comparing(&error))? })
    }

    /// The keys of rows with every column.
    fn of(&self, columns: &[ArrayRef]) -> Result<Rows, Error> {
        let all = self.table.columns();
        let place = |key: &Column| all.iter().position(|known| known == key).expect("a relation has its key");
        let ours: Vec<ArrayRef> = self.columns.iter().map(|key| columns[place(key)].clone()).collect();
        self.converter.convert_columns(&ours).map_err(|error| comparing(&error))
    }

    /// Those of the wanted keys that the files have between two times.
    async fn found(
        &self,
        snapshot: &RecordSnapshot,
        wanted: &HashSet<&[u8]>,
        first: i64,
        last: i64,
    ) -> Result<HashSet<Vec<u8>>, Error> {
        let time = |time| lit(ScalarValue::TimestampNanosecond(Some(time), Some("UTC".into())));
        let names: Vec<&str> = self.columns.iter().map(|column| column.name()).collect();
        let frame = session(snapshot, Threads::Some)?.table(self.table.name()).await.map_err(failed)?;
        let frame = frame.filter(col(Column::Time.name()).between(time(first), time(last))).map_err(failed)?;
        let mut rows = frame.select_columns(&names).map_err(failed)?.execute_stream().await.map_err(failed)?;
        let mut found = HashSet::new();
        while let Some(batch) = rows.next().await {
            let batch = batch.map_err(failed)?;
            let keys = self.converter.convert_columns(batch.columns()).map_err(|error| comparing(&error))?;
            found.extend(keys.iter().filter(|key| wanted.contains(key.data())).map(|key| key.data().to_vec()));
        }
        Ok(found)
    }
}

fn comparing(error: &ArrowError) -> Error {
    Error::Parquet { what: "comparing rows with the archive's".to_owned(), why: error.to_string() }
}

const EVENT: &[Column] = &[Column::EventId];
/// One reading of one container or host. Not the agent: imported lines have another.
const SAMPLE: &[Column] = &[
    Column::Time,
    Column::IntervalMs,
    Column::Tenant,
    Column::Region,
    Column::Host,
    Column::BootId,
    Column::ContainerId,
    Column::App,
];
