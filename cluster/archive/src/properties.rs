//! How the columns are written: compression, statistics, bloom filters.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use weir_schema::{Column, ColumnType};

use crate::layout::Table;

/// Where a file stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Written in a hurry, read for an hour or two.
    Fresh,
    /// Written to stay.
    Compacted,
}

/// The columns of a relation as they are written and read.
pub fn outside_schema(table: Table) -> SchemaRef {
    schema(table, DataType::Utf8)
}

/// The columns of a relation while files are merged: a text is a view into the page that it was read from, so that a column of few
/// long texts takes no more memory than it took in its file.
pub(crate) fn merge_schema(table: Table) -> SchemaRef {
    schema(table, DataType::Utf8View)
}

fn schema(table: Table, text: DataType) -> SchemaRef {
    let fields = table.columns().iter().map(|column| {
        let ty = match column.ty() {
            ColumnType::Text => text.clone(),
            ColumnType::Int => DataType::Int64,
            ColumnType::Time => DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
            ColumnType::Bool => DataType::Boolean,
        };
        Field::new(column.name(), ty, true)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

pub(crate) fn properties(stage: Stage) -> WriterProperties {
    properties_of(stage, u64::MAX)
}

/// The same for a file that will have no more than `rows_max`: bloom filters are made for so many, then folded to what they hold.
pub(crate) fn properties_of(stage: Stage, rows_max: u64) -> WriterProperties {
    let values_max = rows_max.clamp(1, GROUP_ROWS_MAX as u64);
    let level = match stage {
        Stage::Fresh => 1,
        Stage::Compacted => 3,
    };
    let mut builder = WriterProperties::builder()
        .set_created_by(format!("weir {}", env!("CARGO_PKG_VERSION")))
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(level).expect("1 and 3 are levels")))
        .set_max_row_group_row_count(Some(GROUP_ROWS_MAX))
        .set_max_row_group_bytes(Some(GROUP_BYTES_MAX))
        .set_statistics_enabled(EnabledStatistics::Chunk);
    for column in PAGED {
        builder = builder.set_column_statistics_enabled(path(*column), EnabledStatistics::Page);
    }
    for column in BLOOMED {
        builder = builder.set_column_bloom_filter_enabled(path(*column), true);
        // Only by column: a rate for all would also give every column a filter.
        builder = builder.set_column_bloom_filter_fpp(path(*column), BLOOM_FALSE_POSITIVES);
        builder = builder.set_column_bloom_filter_max_ndv(path(*column), values_max);
    }
    // No two are equal: a dictionary would only be given up.
    builder.set_column_dictionary_enabled(path(Column::EventId), false).build()
}

fn path(column: Column) -> ColumnPath {
    ColumnPath::from(column.name())
}

/// What a search names exactly: each row group has a bloom filter of them, folded to the size that its values need.
const BLOOMED: &[Column] = &[
    Column::EventId,
    Column::ProcessId,
    Column::ParentProcessId,
    Column::ContainerId,
    Column::Exe,
    Column::SrcIp,
    Column::DstIp,
];
/// What a search bounds: every page has its least and greatest value.
const PAGED: &[Column] = &[
    Column::Time,
    Column::Tick,
    Column::Host,
    Column::ContainerId,
    Column::ProcessId,
    Column::Exe,
    Column::Path,
    Column::DstIp,
    Column::DstPort,
];
/// Rows of a row group: what one bloom filter covers, and what the writer holds encoded in memory (about 5 MB).
pub(crate) const GROUP_ROWS_MAX: usize = 131_072;
/// The same in bytes, for rows of long texts that nothing compresses.
pub(crate) const GROUP_BYTES_MAX: usize = 32 << 20;
const BLOOM_FALSE_POSITIVES: f64 = 0.01;
