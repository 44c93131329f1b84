//! A table built row by row: for relations of few rows (connections, hosts, agents, losses), where columns are set by place.
//!
//! Text becomes codes into a dictionary per column. A row is whole when its last column is set; what a row leaves out is null.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanBuilder, DictionaryArray, Int64Builder, RecordBatch, StringArray, UInt32Builder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, UInt32Type};
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::relations::Type;

/// One value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cell {
    /// Unknown.
    Null,
    /// An integer, or a time in nanoseconds.
    Int(i64),
    /// True or false.
    Bool(bool),
}

/// A table that grows.
#[derive(Debug)]
pub(crate) struct Table {
    schema: SchemaRef,
    columns: Vec<Growing>,
    scratch: String,
}

#[derive(Debug)]
enum Growing {
    Text { keys: UInt32Builder, codes: HashMap<Box<str>, u32, FixedState>, values: Vec<u8>, offsets: Vec<i32> },
    Int(Int64Builder),
    Time(Int64Builder),
    Bool(BooleanBuilder),
}

/// The columns of a relation as they are inside the engine: text is codes into a dictionary.
pub(crate) fn inside(columns: &[(&str, Type)]) -> SchemaRef {
    let fields = columns.iter().map(|(name, ty)| {
        let ty = match ty {
            Type::Text => DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8)),
            Type::Time => DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
            Type::Int => DataType::Int64,
            Type::Float => DataType::Float64,
            Type::Bool => DataType::Boolean,
        };
        Field::new(*name, ty, true)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

impl Table {
    /// An empty table with room for `rows`.
    pub(crate) fn new(columns: &[(&str, Type)], rows: usize) -> Self {
        let growing = columns.iter().map(|(name, ty)| match ty {
            Type::Text => Growing::Text {
                keys: UInt32Builder::with_capacity(rows),
                codes: HashMap::default(),
                values: Vec::new(),
                offsets: vec![0],
            },
            Type::Int => Growing::Int(Int64Builder::with_capacity(rows)),
            Type::Time => Growing::Time(Int64Builder::with_capacity(rows)),
            Type::Bool => Growing::Bool(BooleanBuilder::with_capacity(rows)),
            Type::Float => unreachable!("no relation that is built by rows has floats: {name}"),
        });
        Self { schema: inside(columns), columns: growing.collect(), scratch: String::new() }
    }

    /// Sets a column of the row that is being made.
    pub(crate) fn set(&mut self, column: usize, cell: Cell) {
        match (&mut self.columns[column], cell) {
            (Growing::Text { keys, .. }, Cell::Null) => keys.append_null(),
            (Growing::Int(ints) | Growing::Time(ints), Cell::Int(int)) => ints.append_value(int),
            (Growing::Int(ints) | Growing::Time(ints), Cell::Null) => ints.append_null(),
            (Growing::Bool(bools), Cell::Bool(value)) => bools.append_value(value),
            (Growing::Bool(bools), Cell::Null) => bools.append_null(),
            (_, cell) => unreachable!("column {column} cannot hold {cell:?}"),
        }
    }

    /// Sets a text column.
    pub(crate) fn text(&mut self, column: usize, text: &str) {
        let Growing::Text { keys, codes, values, offsets } = &mut self.columns[column] else {
            unreachable!("column {column} holds no text")
        };
        let code = match codes.get(text) {
            Some(code) => *code,
            None => {
                let code = u32::try_from(codes.len()).expect("a batch has few texts");
                codes.insert(text.into(), code);
                values.extend_from_slice(text.as_bytes());
                offsets.push(i32::try_from(values.len()).expect("a batch's texts are short"));
                code
            }
        };
        keys.append_value(code);
    }

    /// Sets a text column that may be unknown.
    pub(crate) fn maybe(&mut self, column: usize, text: Option<&str>) {
        match text {
            Some(text) => self.text(column, text),
            None => self.set(column, Cell::Null),
        }
    }

    /// Sets a text column to bytes in hexadecimal.
    pub(crate) fn hex(&mut self, column: usize, bytes: &[u8]) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        push_hex(&mut scratch, bytes);
        self.text(column, &scratch);
        self.scratch = scratch;
    }

    /// Sets a text column to what `value` shows as.
    pub(crate) fn display(&mut self, column: usize, value: &dyn std::fmt::Display) {
        use std::fmt::Write as _;
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        write!(scratch, "{value}").expect("writing to a string does not fail");
        self.text(column, &scratch);
        self.scratch = scratch;
    }

    /// The rows.
    pub(crate) fn finish(self) -> RecordBatch {
        let arrays = self.columns.into_iter().map(Growing::finish).collect();
        RecordBatch::try_new(self.schema, arrays).expect("every row set every column")
    }
}

impl Growing {
    fn finish(self) -> ArrayRef {
        match self {
            Self::Text { mut keys, values, offsets, .. } => {
                let values = String::from_utf8(values).expect("texts end to end are text");
                let offsets = arrow::buffer::OffsetBuffer::new(offsets.into());
                let values = StringArray::new(offsets, values.into_bytes().into(), None);
                Arc::new(DictionaryArray::<UInt32Type>::new(keys.finish(), Arc::new(values)))
            }
            Self::Int(mut ints) => Arc::new(ints.finish()),
            Self::Time(mut times) => {
                let times = times.finish().reinterpret_cast::<arrow::datatypes::TimestampNanosecondType>();
                Arc::new(times.with_timezone("UTC"))
            }
            Self::Bool(mut bools) => Arc::new(bools.finish()),
        }
    }
}

/// Appends bytes in hexadecimal.
pub(crate) fn push_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}
