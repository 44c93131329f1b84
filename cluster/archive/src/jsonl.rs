//! Rows of a relation as JSON lines that `weir_schema::parse_line` reads: keys are columns, what is null is left out.
//!
//! What belongs to the place where an event was stored (`event_id`, `received`, `late`, `tick`, `imported`) is written too: a reader of
//! events passes it over, a person needs it. Numbers that keep unsigned bits are written unsigned.

use std::fmt::Write as _;

use arrow::array::{Array, AsArray as _, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampNanosecondType};
use serde_json::Value;
use weir_schema::{Column, ColumnType, write_time};

/// Appends the rows. The batch has these columns, in the types that a relation is read in.
pub(crate) fn write_rows(out: &mut String, columns: &[Column], batch: &RecordBatch) {
    for row in 0..batch.num_rows() {
        let mut lead = '{';
        for (column, array) in columns.iter().zip(batch.columns()).filter(|(_, array)| !array.is_null(row)) {
            _ = write!(out, "{lead}\"{}\":", column.name());
            lead = ',';
            write_value(out, *column, array, row);
        }
        out.push_str(if lead == '{' { "{}\n" } else { "}\n" });
    }
}

fn write_value(out: &mut String, column: Column, array: &dyn Array, row: usize) {
    match column.ty() {
        ColumnType::Text => _ = write!(out, "{}", Value::from(array.as_string::<i32>().value(row))),
        ColumnType::Bool => _ = write!(out, "{}", array.as_boolean().value(row)),
        ColumnType::Time => {
            out.push('"');
            write_time(out, array.as_primitive::<TimestampNanosecondType>().value(row));
            out.push('"');
        }
        ColumnType::Int => {
            let value = array.as_primitive::<Int64Type>().value(row);
            _ = if column.is_signed() { write!(out, "{value}") } else { write!(out, "{}", value.cast_unsigned()) };
        }
    }
}
