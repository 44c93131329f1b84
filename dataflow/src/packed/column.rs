//! One column of packed rows: from Arrow arrays, and back.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, AsArray as _, BooleanArray, BooleanBufferBuilder, BooleanBuilder, DictionaryArray, StringArray,
    StringBuilder, UInt32Array, make_array,
};
use arrow::buffer::{Buffer, NullBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, UInt32Type};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows, SortField};
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::cell::{self, TextCell};
use super::texts::Texts;
use super::{Bytes, is_text};

/// How a column's values are packed.
#[derive(Debug)]
pub(super) struct Column {
    data_type: DataType,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Text,
    Bool,
    /// Bytes of a value.
    Fixed(usize),
    /// Lists and the like: `arrow-row` has their bytes.
    Other(RowConverter),
}

impl Column {
    pub(super) fn new(data_type: &DataType) -> Result<Self, ArrowError> {
        let kind = match data_type {
            text if is_text(text) => Kind::Text,
            DataType::Boolean => Kind::Bool,
            fixed if fixed.is_primitive() => Kind::Fixed(fixed.primitive_width().expect("a primitive type has a width")),
            other => Kind::Other(RowConverter::new(vec![SortField::new(other.clone())])?),
        };
        Ok(Self { data_type: data_type.clone(), kind })
    }

    /// Whether its cells are text cells.
    pub(super) fn is_text(&self) -> bool {
        matches!(self.kind, Kind::Text | Kind::Other(_))
    }

    pub(super) fn reader(&self, array: &ArrayRef) -> Result<Reader, ArrowError> {
        let array = match &self.kind {
            Kind::Text if is_text(array.data_type()) => Arc::clone(array),
            _ if *array.data_type() == self.data_type => Arc::clone(array),
            _ => cast(array, &self.data_type)?,
        };
        Ok(match &self.kind {
            Kind::Text => match array.as_any().downcast_ref::<DictionaryArray<UInt32Type>>() {
                Some(codes) => {
                    let values = codes.values().as_string::<i32>().clone();
                    // A dictionary that is much longer than its column is not worth a memory of its own.
                    let known = if values.len() <= MEMO_MAX.max(4 * codes.len()) { vec![(0, 0); values.len()] } else { vec![] };
                    Reader::Codes { keys: codes.keys().clone(), values, known, cells: Vec::new() }
                }
                None => Reader::Text(array.as_string::<i32>().clone()),
            },
            Kind::Bool => Reader::Bool(array.as_boolean().clone()),
            Kind::Fixed(width) => Reader::Fixed { data: array.to_data(), width: *width },
            Kind::Other(converter) => Reader::Other(converter.convert_columns(&[array])?),
        })
    }

    /// Steps over this column's value.
    pub(super) fn skip(&self, row: &mut &[u8]) -> Option<()> {
        match self.kind {
            Kind::Text | Kind::Other(_) => cell::take_text(row).map(drop),
            Kind::Fixed(width) if width > 8 => cell::take_wide(row, width).map(drop),
            Kind::Bool | Kind::Fixed(_) => cell::take_number(row).map(drop),
        }
    }

    pub(super) fn unpacked(&self) -> Unpacked {
        match &self.kind {
            Kind::Text if self.data_type == DataType::Utf8 => Unpacked::Text(StringBuilder::new()),
            Kind::Text => Unpacked::Codes {
                keys: vec![],
                valid: BooleanBufferBuilder::new(0),
                values: StringBuilder::new(),
                places: HashMap::default(),
            },
            Kind::Bool => Unpacked::Bool(BooleanBuilder::new()),
            Kind::Fixed(_) => Unpacked::Fixed { bytes: vec![], valid: BooleanBufferBuilder::new(0) },
            Kind::Other(_) => Unpacked::Other(vec![]),
        }
    }
}

/// Reads a column's values, row by row.
pub(super) enum Reader {
    Text(StringArray),
    /// `known`: where in `cells` a code's bytes are, and how many; 0: not yet.
    Codes {
        keys: UInt32Array,
        values: StringArray,
        known: Vec<(u32, u8)>,
        cells: Vec<u8>,
    },
    Bool(BooleanArray),
    Fixed {
        data: ArrayData,
        width: usize,
    },
    Other(Rows),
}

impl Reader {
    /// Adds a row's value.
    pub(super) fn put(&mut self, row: usize, texts: &mut Texts, to: &mut Vec<u8>) {
        match self {
            Self::Text(values) if values.is_null(row) => to.push(cell::NULL),
            Self::Text(values) => put_text(values.value(row).as_bytes(), texts, to),
            Self::Codes { keys, values, known, cells } => {
                let code = keys.value(row) as usize;
                if keys.is_null(row) || values.is_null(code) {
                    to.push(cell::NULL);
                    return;
                }
                let Some(known) = known.get_mut(code) else { return put_text(values.value(code).as_bytes(), texts, to) };
                if known.1 == 0 {
                    let start = cells.len();
                    put_text(values.value(code).as_bytes(), texts, cells);
                    *known = (start as u32, (cells.len() - start) as u8);
                }
                let start = known.0 as usize;
                to.extend_from_slice(&cells[start..start + usize::from(known.1)]);
            }
            Self::Bool(values) if values.is_null(row) => to.push(cell::NULL),
            Self::Bool(values) => cell::put_number(i64::from(values.value(row)), to),
            Self::Fixed { data, .. } if data.is_null(row) => to.push(cell::NULL),
            Self::Fixed { data, width } => {
                let at = (data.offset() + row) * *width;
                let value = &data.buffers()[0].as_slice()[at..at + *width];
                if *width > 8 {
                    to.push(1);
                    to.extend_from_slice(value);
                    return;
                }
                let sign = if value[*width - 1] & 0x80 == 0 { 0 } else { 0xff };
                let mut bytes = [sign; 8];
                bytes[..*width].copy_from_slice(value);
                cell::put_number(i64::from_le_bytes(bytes), to);
            }
            Self::Other(rows) => put_text(rows.row(row).data(), texts, to),
        }
    }
}

/// Adds a text in its one form.
pub(super) fn put_text(text: &[u8], texts: &mut Texts, to: &mut Vec<u8>) {
    if text.len() <= cell::INLINE_MAX {
        cell::put_bytes(text, to);
    } else if cell::is_hex(text) {
        cell::put_hex(text, to);
    } else {
        cell::put_shared(texts.number(text), to);
    }
}

/// A column on its way back.
pub(super) enum Unpacked {
    Text(StringBuilder),
    /// `places`: where in the dictionary a cell's text is.
    Codes {
        keys: Vec<u32>,
        valid: BooleanBufferBuilder,
        values: StringBuilder,
        places: HashMap<Bytes, u32, FixedState>,
    },
    Bool(BooleanBuilder),
    Fixed {
        bytes: Vec<u8>,
        valid: BooleanBufferBuilder,
    },
    Other(Vec<Bytes>),
}

impl Unpacked {
    /// Takes the value that stands first in the row. None when there is none.
    pub(super) fn take(&mut self, column: &Column, row: &mut &[u8], texts: &Texts, scratch: &mut Vec<u8>) -> Option<()> {
        let before = *row;
        match self {
            Self::Text(values) => match take_text(row, texts, scratch)? {
                Some(text) => values.append_value(std::str::from_utf8(text).ok()?),
                None => values.append_null(),
            },
            Self::Codes { keys, valid, values, places } => {
                let text = take_text(row, texts, scratch)?;
                valid.append(text.is_some());
                let Some(text) = text else {
                    keys.push(0);
                    return Some(());
                };
                let cell = &before[..before.len() - row.len()];
                let next = u32::try_from(places.len()).ok()?;
                let place = match places.get(cell) {
                    Some(place) => *place,
                    None => {
                        values.append_value(std::str::from_utf8(text).ok()?);
                        places.insert(cell.into(), next);
                        next
                    }
                };
                keys.push(place);
            }
            Self::Bool(values) => values.append_option(cell::take_number(row)?.map(|number| number != 0)),
            Self::Fixed { bytes, valid } => {
                let Kind::Fixed(width) = column.kind else { return None };
                if width > 8 {
                    let value = cell::take_wide(row, width)?;
                    valid.append(value.is_some());
                    match value {
                        Some(value) => bytes.extend_from_slice(value),
                        None => bytes.resize(bytes.len() + width, 0),
                    }
                } else {
                    let value = cell::take_number(row)?;
                    valid.append(value.is_some());
                    bytes.extend_from_slice(&value.unwrap_or(0).to_le_bytes()[..width]);
                }
            }
            Self::Other(values) => values.push(take_text(row, texts, scratch)??.into()),
        }
        Some(())
    }

    pub(super) fn finish(self, column: &Column) -> Result<ArrayRef, ArrowError> {
        Ok(match self {
            Self::Text(mut values) => Arc::new(values.finish()),
            Self::Codes { keys, mut valid, mut values, .. } => {
                let nulls = NullBuffer::new(valid.finish());
                let keys = UInt32Array::new(ScalarBuffer::from(keys), Some(nulls).filter(|nulls| nulls.null_count() > 0));
                Arc::new(DictionaryArray::<UInt32Type>::try_new(keys, Arc::new(values.finish()))?)
            }
            Self::Bool(mut values) => Arc::new(values.finish()),
            Self::Fixed { bytes, mut valid } => {
                let len = valid.len();
                let nulls = NullBuffer::new(valid.finish());
                let data = ArrayData::builder(column.data_type.clone())
                    .len(len)
                    .nulls(Some(nulls).filter(|nulls| nulls.null_count() > 0));
                make_array(data.add_buffer(Buffer::from_vec(bytes)).align_buffers(true).build()?)
            }
            Self::Other(rows) => {
                let Kind::Other(converter) = &column.kind else { unreachable!("made for this column") };
                let parser = converter.parser();
                let mut arrays = converter.convert_rows(rows.iter().map(|row| parser.parse(row)))?;
                arrays.pop().expect("a converter of one column")
            }
        })
    }
}

/// The text that stands first, `Some(None)` for NULL.
fn take_text<'r: 's, 's>(row: &mut &'r [u8], texts: &'s Texts, scratch: &'s mut Vec<u8>) -> Option<Option<&'s [u8]>> {
    Some(match cell::take_text(row)? {
        TextCell::Null => None,
        TextCell::Bytes(text) => Some(text),
        TextCell::Shared(number) => Some(texts.text(number)?),
        TextCell::Hex(bytes) => {
            scratch.clear();
            cell::hex_digits(bytes, scratch);
            Some(scratch)
        }
    })
}

/// Values of a dictionary that are remembered in any case: as many as fit the caches.
const MEMO_MAX: usize = 4_096;
