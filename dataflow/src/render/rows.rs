//! Rows as bytes: what keyed operators hold between ticks.
//!
//! `arrow-row` bytes compare as the rows do, and pin neither batches nor dictionaries. They have a meaning only for the codec
//! that made them, inside this process. NULLs are equal to each other; whoever joins takes NULL keys out first.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, new_null_array};
use arrow::compute::{SortOptions, cast};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, Rows, SortField};

use crate::delta::{DeltaBatch, compact_column, options};

/// A row, or some of its columns, as bytes.
pub(crate) type Bytes = Box<[u8]>;

/// Columns to bytes and back, for columns of fixed types.
pub struct RowCodec {
    types: Vec<DataType>,
    converter: RowConverter,
}

impl RowCodec {
    /// For columns of these types, ordered ascending with NULLs last.
    pub fn new<'t>(types: impl IntoIterator<Item = &'t DataType>) -> Self {
        Self::ordered(types.into_iter().map(|data_type| (data_type, false)))
    }

    /// For all columns of a schema.
    pub fn of(schema: &Schema) -> Self {
        Self::new(schema.fields().iter().map(|field| field.data_type()))
    }

    /// For columns of these types; true: descending with NULLs first, as in PostgreSQL.
    pub(crate) fn ordered<'t>(columns: impl IntoIterator<Item = (&'t DataType, bool)>) -> Self {
        let (types, fields): (Vec<_>, Vec<_>) = columns
            .into_iter()
            .map(|(data_type, descending)| {
                let options = SortOptions { descending, nulls_first: descending };
                (data_type.clone(), SortField::new_with_options(data_type.clone(), options))
            })
            .unzip();
        let converter = RowConverter::new(fields).expect("the plan was checked: these types have an order");
        Self { types, converter }
    }

    /// Each row's bytes.
    pub fn encode(&self, columns: &[ArrayRef], rows: usize) -> Encoded {
        if columns.is_empty() {
            return Encoded { rows: None, len: rows };
        }
        let columns: Vec<_> = columns.iter().map(|column| narrow(column)).collect();
        let rows = self.converter.convert_columns(&columns).expect("the columns have this codec's types");
        Encoded { len: rows.num_rows(), rows: Some(rows) }
    }

    /// The bytes of a row of NULLs.
    pub(crate) fn null(&self) -> Bytes {
        let nulls: Vec<_> = self.types.iter().map(|data_type| new_null_array(data_type, 1)).collect();
        self.encode(&nulls, 1).row(0).into()
    }

    /// The columns of rows of bytes that this codec made.
    pub fn decode<'b>(&self, rows: impl IntoIterator<Item = &'b [u8]>) -> Vec<ArrayRef> {
        if self.types.is_empty() {
            return vec![];
        }
        let parser = self.converter.parser();
        let flat = self.converter.convert_rows(rows.into_iter().map(|row| parser.parse(row))).expect("this codec made the bytes");
        let restored = flat.iter().zip(&self.types).map(|(column, data_type)| match column.data_type() == data_type {
            true => Arc::clone(column),
            false => cast(column, data_type).expect("a flattened dictionary is encoded again"),
        });
        restored.collect()
    }

    /// A batch of rows of bytes that this codec made.
    pub fn batch<'b>(
        &self,
        schema: &SchemaRef,
        tick: u64,
        rows: impl IntoIterator<Item = &'b [u8]>,
        diffs: Vec<i64>,
    ) -> DeltaBatch {
        let rows = RecordBatch::try_new_with_options(Arc::clone(schema), self.decode(rows), &options(diffs.len()));
        DeltaBatch::new(tick, rows.expect("the codec has the schema's types"), diffs)
    }
}

/// The bytes of a batch's rows.
pub struct Encoded {
    rows: Option<Rows>,
    len: usize,
}

impl Encoded {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One row's bytes.
    pub fn row(&self, index: usize) -> &[u8] {
        self.rows.as_ref().map_or(&[], |rows| rows.row(index).data())
    }
}

/// `arrow-row` encodes a whole dictionary, also what no row uses.
fn narrow(column: &ArrayRef) -> ArrayRef {
    let large = column.as_any_dictionary_opt().is_some_and(|codes| codes.values().len() > column.len());
    if large { compact_column(column) } else { Arc::clone(column) }
}
