//! Tables of files outside: the CSV or Parquet files of a folder, read by the workers themselves in ticks.
//!
//! A file's rows only come, they never go; so views over such tables keep no more of a minimum than the least value. Only the columns
//! that a plan names are decoded. CSV files are dealt to workers one by one, Parquet files by row group: more workers than CSV files
//! share the work of the views, not that of reading.

mod column;
mod csv;
mod error;
mod fields;
mod maintain;
mod parquet;
mod texts;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::arrow::array::RecordBatch;
use ::arrow::datatypes::{Schema, SchemaRef};

pub use column::ColumnType;
pub use error::ExternalError;
pub use maintain::{Maintained, maintain};

/// How the rows stand in the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated, with a header line; quotes as in RFC 4180. An empty field without quotes is NULL.
    Csv,
    /// Apache Parquet.
    Parquet,
}

impl Format {
    fn ending(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }
}

/// A table: a folder's files of one format, and their columns.
#[derive(Debug, Clone)]
pub struct ExternalTable {
    format: Format,
    files: Vec<PathBuf>,
    schema: SchemaRef,
}

/// A worker's part of a table, batch by batch.
type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ExternalError>>>;

impl ExternalTable {
    /// Lists the files (sorted by name) and finds the columns. Types of CSV columns are those that the first rows of the first file
    /// fit, unless they are declared.
    pub fn open(folder: &Path, format: Format, declared: &[(String, ColumnType)]) -> Result<Self, ExternalError> {
        let failed = |source| ExternalError::Io { path: folder.to_owned(), source };
        let entries = std::fs::read_dir(folder).map_err(failed)?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
        files.retain(|file| file.extension().is_some_and(|ending| ending == format.ending()));
        files.sort();
        let Some(first) = files.first() else {
            return Err(ExternalError::NoFiles { path: folder.to_owned(), ending: format.ending() });
        };
        let schema = match format {
            Format::Csv => csv::schema(first, &beginning(first)?, declared)?,
            Format::Parquet => parquet::schema(first)?,
        };
        let absent = |(name, _): &&(String, ColumnType)| schema.field_with_name(name).is_err();
        if let Some((name, _)) = declared.iter().find(absent) {
            let there = schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ");
            return Err(ExternalError::NoColumn { name: name.clone(), there });
        }
        if format == Format::Parquet && !declared.is_empty() {
            let why = "Parquet files say themselves which types their columns have: declare none".to_owned();
            return Err(ExternalError::File { path: first.clone(), why });
        }
        Ok(Self { format, files, schema })
    }

    /// All columns.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Only these columns, in the table's order.
    fn projected(&self, names: &std::collections::BTreeSet<String>) -> SchemaRef {
        let fields = self.schema.fields().iter().filter(|field| names.contains(field.name()));
        Arc::new(Schema::new(fields.cloned().collect::<Vec<_>>()))
    }

    /// The part of one of several workers, with these columns.
    fn part(&self, columns: &SchemaRef, index: usize, peers: usize) -> Result<Batches, ExternalError> {
        let (files, columns) = (self.files.clone(), Arc::clone(columns));
        match self.format {
            Format::Csv => {
                let all = Arc::clone(&self.schema);
                let ours = files.into_iter().enumerate().filter(move |(place, _)| place % peers == index);
                let mut texts = csv::Texts::new(&columns);
                let mut open: Option<csv::Reader> = None;
                let mut ours = ours.map(|(_, file)| file);
                Ok(Box::new(std::iter::from_fn(move || {
                    loop {
                        if let Some(reader) = &mut open {
                            match reader.next(&mut texts).transpose() {
                                Some(batch) => return Some(batch),
                                None => open = None,
                            }
                        }
                        match csv::Reader::open(&ours.next()?, &all, &columns) {
                            Ok(reader) => open = Some(reader),
                            Err(why) => return Some(Err(why)),
                        }
                    }
                })))
            }
            Format::Parquet => parquet::part(&files, &self.schema, &columns, (index, peers)),
        }
    }
}

/// The first bytes of a file.
fn beginning(path: &Path) -> Result<Vec<u8>, ExternalError> {
    let failed = |source| ExternalError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(SAMPLE_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Types are guessed from at most this much of the first file: thousands of rows, and no wait.
const SAMPLE_BYTES: u64 = 1 << 20;
