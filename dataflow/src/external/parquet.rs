//! Parquet files as batches of the columns that are asked for, dealt by row group.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::arrow::array::{ArrayRef, RecordBatch};
use ::arrow::compute::cast;
use ::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use weir_plan::normal_type;

use super::{Batches, ExternalError};

/// The columns of a file, of the types that travel between operators.
pub(super) fn schema(path: &Path) -> Result<SchemaRef, ExternalError> {
    let (_, found) = open(path)?;
    let normal = |field: &Arc<Field>| Field::new(field.name(), normal_type(field.data_type()), true);
    Ok(Arc::new(Schema::new(found.schema().fields().iter().map(normal).collect::<Vec<_>>())))
}

/// The row groups of one worker (index, workers).
pub(super) fn part(
    files: &[PathBuf],
    all: &SchemaRef,
    columns: &SchemaRef,
    (index, peers): (usize, usize),
) -> Result<Batches, ExternalError> {
    let mut groups = Vec::new();
    let mut place = 0;
    for file in files {
        if schema(file)? != *all {
            return Err(failed(
                file,
                "its columns are not those of the table's first file: a table's files must have one schema",
            ));
        }
        let (_, found) = open(file)?;
        let count = found.metadata().num_row_groups();
        let ours: Vec<usize> = (0..count).filter(|group| (place + group) % peers == index).collect();
        place += count;
        if !ours.is_empty() {
            groups.push((file.clone(), ours));
        }
    }
    let columns = Arc::clone(columns);
    let batches = groups.into_iter().flat_map(move |(file, groups)| match reader(&file, groups, &columns) {
        Ok(batches) => batches,
        Err(why) => Box::new(std::iter::once(Err(why))),
    });
    Ok(Box::new(batches))
}

fn reader(path: &Path, groups: Vec<usize>, columns: &SchemaRef) -> Result<Batches, ExternalError> {
    let (file, plain) = open(path)?;
    let cannot = |why: ::parquet::errors::ParquetError| failed(path, why);
    // Text is read with the dictionaries that the file has.
    let read_as = |field: &Arc<Field>| match normal_type(field.data_type()) {
        text if text == weir_plan::text_type() => Field::new(field.name(), text, field.is_nullable()),
        _ => field.as_ref().clone(),
    };
    let fields = plain.schema().fields().iter().map(read_as).collect::<Vec<_>>();
    let options = ArrowReaderOptions::new().with_schema(Arc::new(Schema::new(fields)));
    let found = ArrowReaderMetadata::load(&file, options).map_err(cannot)?;
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, found);
    let places = columns.fields().iter().filter_map(|field| plain.schema().index_of(field.name()).ok());
    let mask = ProjectionMask::roots(builder.parquet_schema(), places);
    let reader = builder.with_projection(mask).with_row_groups(groups).with_batch_size(BATCH_ROWS).build().map_err(cannot)?;
    let (path, columns) = (path.to_owned(), Arc::clone(columns));
    Ok(Box::new(reader.map(move |batch| {
        let batch = batch.map_err(|why| failed(&path, why))?;
        let column = |field: &Arc<Field>| -> Result<ArrayRef, ExternalError> {
            let column = batch.column_by_name(field.name()).ok_or_else(|| failed(&path, "a column is missing"))?;
            match column.data_type() == field.data_type() {
                true => Ok(Arc::clone(column)),
                false => cast(column, field.data_type()).map_err(|why| failed(&path, why)),
            }
        };
        let arrays = columns.fields().iter().map(column).collect::<Result<Vec<_>, _>>()?;
        let made = RecordBatch::try_new_with_options(Arc::clone(&columns), arrays, &crate::delta::options(batch.num_rows()));
        made.map_err(|why| failed(&path, why))
    })))
}

fn open(path: &Path) -> Result<(File, ArrowReaderMetadata), ExternalError> {
    let file = File::open(path).map_err(|source| ExternalError::Io { path: path.to_owned(), source })?;
    let found = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new().with_skip_arrow_metadata(false));
    let found = found.map_err(|why| failed(path, format!("{why}: is this a Parquet file?")))?;
    if let Some(field) = found.schema().fields().iter().find(|field| matches!(field.data_type(), DataType::Struct(_))) {
        return Err(failed(path, format!("column \"{}\" is a struct: only flat columns can be read", field.name())));
    }
    Ok((file, found))
}

fn failed(path: &Path, why: impl std::fmt::Display) -> ExternalError {
    ExternalError::File { path: path.to_owned(), why: why.to_string() }
}

/// As many rows as a megabyte of CSV has, or a few times more.
const BATCH_ROWS: usize = 32_768;
