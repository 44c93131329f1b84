//! Cells of a batch by column and row; what is no such column or cell is none.

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::{DataType, Int64Type, TimestampNanosecondType};

use super::facts::Id;

/// A batch to be read row by row.
pub(super) struct Cells<'a>(&'a RecordBatch);

impl<'a> Cells<'a> {
    pub(super) fn of(batch: &'a RecordBatch) -> Self {
        Self(batch)
    }

    pub(super) fn text(&self, column: &str, row: usize) -> Option<Id> {
        let column = self.0.column_by_name(column)?.as_string_opt::<i32>()?;
        (!column.is_null(row)).then(|| column.value(row).into())
    }

    /// Times are nanoseconds.
    pub(super) fn int(&self, column: &str, row: usize) -> Option<i64> {
        let column = self.0.column_by_name(column)?;
        if column.is_null(row) {
            return None;
        }
        match column.data_type() {
            DataType::Timestamp(..) => column.as_primitive_opt::<TimestampNanosecondType>().map(|times| times.value(row)),
            _ => column.as_primitive_opt::<Int64Type>().map(|ints| ints.value(row)),
        }
    }

    pub(super) fn truth(&self, column: &str, row: usize) -> bool {
        let column = self.0.column_by_name(column).and_then(|column| column.as_boolean_opt());
        column.is_some_and(|truths| !truths.is_null(row) && truths.value(row))
    }
}
