//! Rows in little memory: what outputs and calendars hold for as long as a row is there.
//!
//! A row of `connections` is 29 columns, most of them text that thousands of rows have. Here each longer text is kept once, numbers take the
//! bytes they need and identifiers half their digits; `cell.rs` has the layout. Equal rows have equal bytes for as long as the packer lives.
//! Bytes of a row mean something to the packer that made them; [`Packer::portable`] makes them mean the same to all.

mod cell;
mod column;
mod saved;
mod texts;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Schema};
use arrow::error::ArrowError;

use cell::TextCell;
use column::{Column, Unpacked};
pub(crate) use saved::SavedRows;
use texts::Texts;

/// A row as bytes.
pub(crate) type Bytes = Box<[u8]>;

/// Packs the rows of one relation.
#[derive(Debug)]
pub(crate) struct Packer {
    columns: Vec<Column>,
    texts: Texts,
}

impl Packer {
    /// For rows of these columns. Text may come as it is or as codes into a dictionary.
    pub(crate) fn new(schema: &Schema) -> Result<Self, ArrowError> {
        let columns = schema.fields().iter().map(|field| Column::new(field.data_type())).collect::<Result<_, _>>()?;
        Ok(Self { columns, texts: Texts::default() })
    }

    /// Hands out each row's bytes, in order. Columns have the types of the schema.
    pub(crate) fn pack(&mut self, columns: &[ArrayRef], rows: usize, mut each: impl FnMut(&[u8])) -> Result<(), ArrowError> {
        let texts = &mut self.texts;
        let mut readers =
            self.columns.iter().zip(columns).map(|(column, array)| column.reader(array)).collect::<Result<Vec<_>, _>>()?;
        let mut bytes = Vec::new();
        for row in 0..rows {
            bytes.clear();
            for reader in &mut readers {
                reader.put(row, texts, &mut bytes);
            }
            each(&bytes);
        }
        Ok(())
    }

    /// The columns at these places, of rows that this packer packed.
    pub(crate) fn unpack<'b>(
        &self,
        rows: impl IntoIterator<Item = &'b [u8]>,
        columns: &[usize],
    ) -> Result<Vec<ArrayRef>, ArrowError> {
        let mut unpacked: Vec<Option<Unpacked>> = self.columns.iter().map(|_| None).collect();
        for place in columns {
            unpacked[*place] = Some(self.columns[*place].unpacked());
        }
        let last = columns.iter().max().map_or(0, |last| last + 1);
        let mut scratch = Vec::new();
        for row in rows {
            let mut rest = row;
            for (column, unpacked) in self.columns.iter().zip(&mut unpacked).take(last) {
                let taken = match unpacked {
                    Some(unpacked) => unpacked.take(column, &mut rest, &self.texts, &mut scratch),
                    None => column.skip(&mut rest),
                };
                taken.ok_or_else(|| ArrowError::InvalidArgumentError("a packed row is not one of this relation".to_owned()))?;
            }
        }
        let mut arrays: Vec<Option<ArrayRef>> = Vec::new();
        for (column, unpacked) in self.columns.iter().zip(unpacked) {
            arrays.push(unpacked.map(|unpacked| unpacked.finish(column)).transpose()?);
        }
        Ok(columns.iter().map(|place| arrays[*place].clone().expect("it was asked for")).collect())
    }

    /// Adds a packed row as bytes that mean the same to every packer of this relation.
    pub(crate) fn portable(&self, row: &[u8], to: &mut Vec<u8>) {
        spread(&self.columns, row, self.texts.all(), to).expect("this packer packed it");
    }

    /// Packs a portable row, or one that another packer packed whose texts these are. None for bytes that are no such row.
    pub(crate) fn packed(&mut self, row: &[u8], texts: &[Option<Bytes>]) -> Option<Bytes> {
        let (mut rest, mut bytes) = (row, Vec::with_capacity(row.len()));
        for column in &self.columns {
            if !column.is_text() {
                let before = rest;
                column.skip(&mut rest)?;
                bytes.extend_from_slice(&before[..before.len() - rest.len()]);
                continue;
            }
            match cell::take_text(&mut rest)? {
                TextCell::Null => bytes.push(cell::NULL),
                TextCell::Bytes(text) => column::put_text(text, &mut self.texts, &mut bytes),
                TextCell::Shared(number) => {
                    column::put_text(texts.get(number as usize)?.as_deref()?, &mut self.texts, &mut bytes);
                }
                TextCell::Hex(hex) => {
                    let mut digits = Vec::with_capacity(2 * hex.len());
                    cell::hex_digits(hex, &mut digits);
                    column::put_text(&digits, &mut self.texts, &mut bytes);
                }
            }
        }
        rest.is_empty().then(|| bytes.into())
    }

    /// All shared texts, for [`Packer::packed`].
    pub(crate) fn texts(&self) -> &[Option<Bytes>] {
        self.texts.all()
    }

    /// Bytes of the texts that rows share.
    pub(crate) fn bytes(&self) -> usize {
        self.texts.bytes()
    }

    /// Lets go of texts that none of these rows has, when that is worth a walk over them: all rows that are still held.
    pub(crate) fn sweep<'b, I: Iterator<Item = &'b [u8]>>(&mut self, rows: impl FnOnce() -> I) {
        if !self.texts.may_be_swept() {
            return;
        }
        let mut in_use = vec![false; self.texts.all().len()];
        for row in rows() {
            let mut rest = row;
            for column in &self.columns {
                if !column.is_text() {
                    column.skip(&mut rest).expect("this packer packed it");
                } else if let TextCell::Shared(number) = cell::take_text(&mut rest).expect("this packer packed it") {
                    in_use[number as usize] = true;
                }
            }
        }
        self.texts.keep(&in_use);
    }
}

/// A packed row with its texts in it.
fn spread(columns: &[Column], row: &[u8], texts: &[Option<Bytes>], to: &mut Vec<u8>) -> Option<()> {
    let mut rest = row;
    for column in columns {
        let before = rest;
        if !column.is_text() {
            column.skip(&mut rest)?;
        } else if let TextCell::Shared(number) = cell::take_text(&mut rest)? {
            cell::put_bytes(texts.get(number as usize)?.as_deref()?, to);
            continue;
        }
        to.extend_from_slice(&before[..before.len() - rest.len()]);
    }
    Some(())
}

/// Whether rows of this type are text here.
fn is_text(data_type: &DataType) -> bool {
    *data_type == DataType::Utf8 || *data_type == weir_plan::text_type()
}

#[cfg(test)]
mod tests;
