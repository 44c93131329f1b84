//! Asking an archive or a bundle in SQL without a cluster: its files alone, up to the position of its newest manifest.

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, SchemaRef, TimeUnit, TimestampNanosecondType};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::error::DataFusionError;
use datafusion::execution::context::{SQLOptions, SessionContext};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::SessionConfig;
use futures::StreamExt as _;
use weir_schema::write_time;

use crate::catalog::Archive;
use crate::error::Error;
use crate::layout::Table;
use crate::store::Store;
use crate::table::{NoTail, Record, RecordSnapshot};

/// Rows of a query.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
}

/// Asks the archive of a store: one SELECT (or EXPLAIN, SHOW) over `events` and `samples`.
pub async fn query(store: Store, sql: &str) -> Result<Answer, Error> {
    let archive = Archive::open(store).await?;
    archive.must_be_there()?;
    let snapshot = files_only(archive).await?;
    let context = session(&snapshot, Threads::Some)?;
    let reading = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let frame = context.sql_with_options(sql, reading).await.map_err(failed)?;
    let mut rows = frame.execute_stream().await.map_err(failed)?;
    let (schema, mut batches, mut bytes) = (rows.schema(), Vec::new(), 0);
    while let Some(batch) = rows.next().await {
        let batch = batch.map_err(failed)?;
        bytes += batch.get_array_memory_size();
        if bytes > MEMORY_BYTES_MAX {
            return Err(Error::Refused(format!(
                "the answer has more than {MEMORY_BYTES_MAX} bytes: add a LIMIT, or export the rows"
            )));
        }
        batches.push(batch);
    }
    Ok(Answer { schema, batches })
}

/// The files of an archive, without any chain behind them.
pub async fn files_only(archive: Archive) -> Result<RecordSnapshot, Error> {
    let tick = archive.catalog().position.tick;
    Record::new(archive, Arc::new(NoTail)).at(tick).await
}

/// How a query is spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// One after the other: rows come in the same order every time.
    One,
    /// Faster.
    Some,
}

/// A DataFusion session whose tables are the relations of a snapshot.
pub(crate) fn session(snapshot: &RecordSnapshot, threads: Threads) -> Result<SessionContext, Error> {
    let mut config = SessionConfig::new()
        .with_default_catalog_and_schema("weir", "public")
        .with_information_schema(true)
        .with_target_partitions(if threads == Threads::One { 1 } else { PARTITIONS });
    let options = config.options_mut();
    options.sql_parser.dialect = datafusion::config::Dialect::PostgreSQL;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.time_zone = Some("UTC".into());
    let pool = Arc::new(GreedyMemoryPool::new(MEMORY_BYTES_MAX));
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().map_err(failed)?;
    let context = SessionContext::new_with_config_rt(config, runtime);
    for table in Table::ALL {
        context.register_table(table.name(), Arc::new(snapshot.table(table))).map_err(failed)?;
    }
    Ok(context)
}

/// Our own error inside DataFusion's, or its message.
pub(crate) fn failed(error: DataFusionError) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if let Some(Error::Damaged { path, why }) = inner.downcast_ref::<Error>() {
            return Error::damaged(path, why.as_str());
        }
        cause = inner.source();
    }
    Error::Refused(in_short(&error))
}

/// DataFusion's message, without the list of all columns that it adds to a wrong one.
pub(crate) fn in_short(error: &DataFusionError) -> String {
    let text = error.strip_backtrace();
    text.split_once("\nValid fields are").map_or_else(|| text.clone(), |(short, _)| short.to_owned())
}

/// The cells of a batch as PostgreSQL would write them, row by row; times with all their digits.
pub fn cells(batch: &RecordBatch) -> Result<Vec<Vec<Option<String>>>, ArrowError> {
    let mut rows = vec![Vec::with_capacity(batch.num_columns()); batch.num_rows()];
    for array in batch.columns() {
        let write = writer(array)?;
        for (row, cells) in rows.iter_mut().enumerate() {
            cells.push(if array.is_null(row) { None } else { Some(write(row)?) });
        }
    }
    Ok(rows)
}

type Write<'a> = Box<dyn Fn(usize) -> Result<String, ArrowError> + 'a>;

fn writer(array: &ArrayRef) -> Result<Write<'_>, ArrowError> {
    Ok(match array.data_type() {
        DataType::Boolean => {
            let values = array.as_boolean();
            Box::new(|row| Ok(if values.value(row) { "t" } else { "f" }.to_owned()))
        }
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let values = cast(array, &DataType::Float64)?;
            Box::new(move |row| Ok(values.as_primitive::<Float64Type>().value(row).to_string()))
        }
        DataType::Timestamp(_, zone) => {
            let end = if zone.is_some() { "+00" } else { "" };
            let values = cast(array, &DataType::Timestamp(TimeUnit::Nanosecond, zone.clone()))?;
            Box::new(move |row| {
                let mut text = String::new();
                write_time(&mut text, values.as_primitive::<TimestampNanosecondType>().value(row));
                Ok(text.replace('T', " ").replace('Z', end))
            })
        }
        _ => {
            let formatter = ArrayFormatter::try_new(array, &TEXT)?;
            Box::new(move |row| formatter.value(row).try_to_string())
        }
    })
}

const TEXT: FormatOptions<'static> = FormatOptions::new();
/// What one query may take: enough for a sort of some million ids, and little beside a node.
const MEMORY_BYTES_MAX: usize = 1 << 30;
/// Threads of a query.
const PARTITIONS: usize = 4;
