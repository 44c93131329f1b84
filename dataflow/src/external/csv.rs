//! CSV files as batches of the columns that are asked for.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};

use super::ExternalError;
use super::column::{Column, ColumnType};
use super::fields::{Broken, Records};
use super::texts::Dictionary;

/// The dictionaries of the text columns, over all files that a worker reads.
pub(super) struct Texts(Vec<Dictionary>);

impl Texts {
    pub(super) fn new(columns: &SchemaRef) -> Self {
        Self(columns.fields().iter().map(|_| Dictionary::new()).collect())
    }
}

/// The columns of a file, from its first bytes.
pub(super) fn schema(path: &Path, beginning: &[u8], declared: &[(String, ColumnType)]) -> Result<SchemaRef, ExternalError> {
    let (names, header) = header(path, beginning)?;
    let (mut records, width) = (Records::default(), names.len());
    let broken = |Broken { line, why }| ExternalError::Line { path: path.to_owned(), line: line + 2, why };
    // A sample that ends inside a line ends with it.
    let whole = memchr::memrchr(b'\n', beginning).map_or(header, |end| (end + 1).max(header));
    let end = if (beginning.len() as u64) < super::SAMPLE_BYTES { beginning.len() } else { whole };
    records.take(beginning[header..end].to_vec(), width, end == beginning.len() && end != whole).map_err(broken)?;
    let fields = names.iter().enumerate().map(|(field, name)| {
        let kind = declared.iter().rev().find(|(declared, _)| declared == name).map(|(_, kind)| *kind);
        let kind = kind.unwrap_or_else(|| ColumnType::guess(&records, width, field));
        Field::new(name, kind.data_type(), true)
    });
    Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
}

/// The names of the columns, and where the header line ends.
fn header(path: &Path, bytes: &[u8]) -> Result<(Vec<String>, usize), ExternalError> {
    let failed = |why: &str| ExternalError::Line { path: path.to_owned(), line: 1, why: why.to_owned() };
    let start = if bytes.starts_with(BOM) { BOM.len() } else { 0 };
    let end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |end| end + 1);
    if bytes.len() as u64 == super::SAMPLE_BYTES && end == bytes.len() {
        return Err(failed("the header line does not end: is this a CSV file?"));
    }
    let line =
        std::str::from_utf8(&bytes[start..end.max(start)]).map_err(|_| failed("the header is not UTF-8: convert the file"))?;
    let names = line.trim_end_matches(['\r', '\n']).split(',').map(|name| name.trim().trim_matches('"').to_owned());
    let names: Vec<String> = names.collect();
    let mut seen = BTreeSet::new();
    match names.iter().find(|name| name.is_empty() || !seen.insert(name.as_str())) {
        None => Ok((names, end)),
        Some(name) if name.is_empty() => {
            Err(failed("the header has a column without a name: the first line must name the columns"))
        }
        Some(name) => Err(failed(&format!("the header names \"{name}\" twice: rename one"))),
    }
}

/// One file.
pub(super) struct Reader {
    path: PathBuf,
    file: File,
    /// Bytes of a record whose end is not read yet.
    rest: Vec<u8>,
    records: Records,
    columns: SchemaRef,
    /// For each column: its place in the file, its type.
    places: Vec<(usize, ColumnType)>,
    width: usize,
    /// Lines before the next record.
    line: u64,
    ended: bool,
}

impl Reader {
    pub(super) fn open(path: &Path, all: &SchemaRef, columns: &SchemaRef) -> Result<Self, ExternalError> {
        let failed = |source| ExternalError::Io { path: path.to_owned(), source };
        let (names, header) = header(path, &super::beginning(path)?)?;
        let expected: Vec<&String> = all.fields().iter().map(|field| field.name()).collect();
        if names.iter().ne(expected.iter().copied()) {
            let why = format!(
                "the columns are {}, those of the table's first file {expected:?}: a table's files must have one header",
                names.join(", ")
            );
            return Err(ExternalError::Line { path: path.to_owned(), line: 1, why });
        }
        let mut file = File::open(path).map_err(failed)?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(header as u64)).map_err(failed)?;
        let place = |field: &Arc<Field>| {
            let place = all.index_of(field.name()).expect("the columns are some of the table's");
            (place, ColumnType::of(field.data_type()))
        };
        Ok(Self {
            places: columns.fields().iter().map(place).collect(),
            columns: Arc::clone(columns),
            width: names.len(),
            path: path.to_owned(),
            file,
            rest: vec![],
            records: Records::default(),
            line: 1,
            ended: false,
        })
    }

    /// The next rows; nothing behind the last.
    pub(super) fn next(&mut self, texts: &mut Texts) -> Result<Option<RecordBatch>, ExternalError> {
        while !self.ended {
            // The last records' memory is used again.
            let mut bytes = std::mem::take(&mut self.records.bytes);
            bytes.clear();
            bytes.append(&mut self.rest);
            bytes.reserve(CHUNK_BYTES + super::texts::SHORT);
            let read = (&mut self.file).take(CHUNK_BYTES as u64).read_to_end(&mut bytes);
            let read = read.map_err(|source| ExternalError::Io { path: self.path.clone(), source })?;
            self.ended = read == 0;
            let taken = self.records.take(bytes, self.width, self.ended);
            let (rest, lines) = taken.map_err(|Broken { line, why }| self.at(self.line + line + 1, why))?;
            if rest.len() > RECORD_BYTES_MAX {
                let why = format!("a record is longer than {RECORD_BYTES_MAX} bytes: is a quote not closed?");
                return Err(self.at(self.line + lines + 1, why));
            }
            self.rest = rest;
            let batch = (self.records.len(self.width) > 0).then(|| self.batch(texts)).transpose()?;
            self.line += lines;
            if batch.is_some() {
                return Ok(batch);
            }
        }
        Ok(None)
    }

    fn batch(&self, texts: &mut Texts) -> Result<RecordBatch, ExternalError> {
        let columns = self.places.iter().zip(self.columns.fields()).zip(&mut texts.0);
        let columns = columns.map(|((&(field, kind), named), texts)| {
            let column = Column { records: &self.records, width: self.width, field, name: named.name() };
            let unfit = |(record, why)| self.at(self.line + self.records.line(record) + 1, why);
            column.array(kind, texts).map_err(unfit)
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let options = crate::delta::options(self.records.len(self.width));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.columns), columns, &options);
        Ok(batch.expect("each column has its type"))
    }

    fn at(&self, line: u64, why: String) -> ExternalError {
        ExternalError::Line { path: self.path.clone(), line, why }
    }
}

const BOM: &[u8] = b"\xef\xbb\xbf";
/// Read at once: some ten thousand rows, which stay in the processor's cache while their columns are made.
const CHUNK_BYTES: usize = 1 << 20;
/// A longer record is most likely a quote that is not closed.
const RECORD_BYTES_MAX: usize = 16 << 20;
