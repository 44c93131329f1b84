//! Tables on one worker: rows that people wrote, each kept by the worker that its bytes name.
//!
//! ```text
//! TableRows = Arrow IPC stream of one batch: the table's columns, then weir_diff: how often a row comes (1) or goes (-1)
//! ```
//!
//! Every worker is given every change, at the same tick, and takes its share of it before the tick is fed. So nothing flows, and a table is
//! complete at a tick as soon as the tick is known.
//!
//! Promise: whoever evaluated a statement, the chain's order alone says what the rows are.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Share;
use crate::output::Output;
use crate::peek::ipc;

/// A change of a table's rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableWrite {
    /// Which table.
    pub table: String,
    /// The tick that it was evaluated at: should the table be of a later one, it is another table.
    pub read_at: u64,
    /// It follows from the rows of that tick: should they have changed since, it is to be evaluated anew.
    pub follows_rows: bool,
    /// What changes.
    pub rows: TableRows,
    /// Bytes of the rows that come: see [`row_bytes`].
    pub added_bytes: u64,
    /// Bytes of the rows that go.
    pub removed_bytes: u64,
    /// More bytes the table may not hold.
    pub bytes_max: u64,
}

/// Which rows come and go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableRows {
    /// These, as Arrow IPC.
    Changed(Vec<u8>),
    /// All go.
    Cleared,
}

impl TableRows {
    /// Rows of the table's columns, each with how often it comes.
    pub fn encode(rows: &RecordBatch, diffs: Vec<i64>) -> Result<Self, ArrowError> {
        let diff = Arc::new(Field::new(DIFF, DataType::Int64, false));
        let fields = rows.schema().fields().iter().cloned().chain([diff]).collect::<Vec<_>>();
        let columns = rows.columns().iter().cloned().chain([Arc::new(Int64Array::from(diffs)) as ArrayRef]).collect();
        ipc(&RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?).map(Self::Changed)
    }

    /// The rows, and how often each comes.
    pub(crate) fn decode(bytes: &[u8], schema: &SchemaRef) -> Result<Vec<(RecordBatch, Vec<i64>)>, ArrowError> {
        let wrong = |why: &str| ArrowError::SchemaError(why.to_owned());
        let mut batches = Vec::new();
        for batch in StreamReader::try_new(bytes, None)? {
            let batch = batch?;
            let columns = schema.fields().len();
            if batch.num_columns() != columns + 1 {
                return Err(wrong("a change has other columns than its table"));
            }
            let diffs = batch.column(columns).as_primitive_opt::<Int64Type>().ok_or_else(|| wrong("a change has no diffs"))?;
            let diffs = diffs.values().to_vec();
            let rows = RecordBatch::try_new(Arc::clone(schema), batch.columns()[..columns].to_vec())?;
            batches.push((rows, diffs));
        }
        Ok(batches)
    }

    /// How much of the chain it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Changed(bytes) => bytes.len(),
            Self::Cleared => 0,
        }
    }
}

/// What rows count for against the limit of their table: the same whichever batch they are in.
pub fn row_bytes(rows: &RecordBatch) -> u64 {
    let column = |column: &ArrayRef| match column.data_type() {
        DataType::Utf8 => {
            let texts = column.as_string::<i32>();
            (0..texts.len()).filter(|row| texts.is_valid(*row)).map(|row| texts.value(row).len() as u64).sum()
        }
        _ => 8 * column.len() as u64,
    };
    rows.columns().iter().map(column).sum::<u64>() + ROW_BYTES * rows.num_rows() as u64
}

/// Takes up this worker's share of a change, at a tick that is about to be fed.
pub(crate) fn write(output: &Rc<RefCell<Output>>, tick: u64, rows: &TableRows, share: Share) -> Result<(), ArrowError> {
    let mut output = output.borrow_mut();
    match rows {
        TableRows::Changed(bytes) => {
            let schema = Arc::clone(output.schema());
            for (rows, diffs) in TableRows::decode(bytes, &schema)? {
                output.write(tick, &rows, &diffs, share);
            }
        }
        TableRows::Cleared => output.clear(tick),
    }
    Ok(())
}

/// The name under which a table's rows are saved.
pub(crate) fn state_of(table: &str) -> String {
    format!("table/{table}")
}

/// The column behind a table's own.
const DIFF: &str = "weir_diff";
/// What a row costs beside its values.
const ROW_BYTES: u64 = 48;

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;

    use super::*;
    use crate::history::ChangesKept;
    use crate::relations::RelationInfo;

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("a", DataType::Utf8, true), Field::new("n", DataType::Int64, true)]))
    }

    fn rows(rows: &[(&str, i64)]) -> RecordBatch {
        let a = StringArray::from_iter_values(rows.iter().map(|row| row.0));
        let n = Int64Array::from_iter_values(rows.iter().map(|row| row.1));
        RecordBatch::try_new(schema(), vec![Arc::new(a), Arc::new(n)]).unwrap()
    }

    fn count(output: &Rc<RefCell<Output>>, tick: u64) -> i64 {
        output.borrow_mut().rows_at(tick).iter().map(|(_, count)| *count).sum()
    }

    #[test]
    fn every_row_is_on_one_worker_and_goes_from_there() {
        let info = RelationInfo { name: "t".into(), schema: schema(), standing: true, sql: None };
        let outputs: Vec<_> =
            (0..3).map(|_| Rc::new(RefCell::new(Output::new(&info, ChangesKept::default()).unwrap()))).collect();
        let all: Vec<(String, i64)> = (0..50).map(|number| (format!("row {number}"), number)).collect();
        let all: Vec<(&str, i64)> = all.iter().map(|(a, n)| (a.as_str(), *n)).collect();
        let (come, go) = (TableRows::encode(&rows(&all), vec![1; 50]), TableRows::encode(&rows(&all[..20]), vec![-1; 20]));
        let (come, go) = (come.unwrap(), go.unwrap());
        for (index, output) in outputs.iter().enumerate() {
            let share = Share { index, peers: 3 };
            write(output, 5, &come, share).unwrap();
            write(output, 6, &go, share).unwrap();
            write(output, 7, &TableRows::Cleared, share).unwrap();
            // In one tick: what comes after all went is there.
            write(output, 7, &come, share).unwrap();
            write(output, 7, &TableRows::Cleared, share).unwrap();
            write(output, 7, &come, share).unwrap();
            write(output, 8, &TableRows::Cleared, share).unwrap();
        }
        let total = |tick| outputs.iter().map(|output| count(output, tick)).sum::<i64>();
        assert_eq!([4, 5, 6, 8].map(total), [0, 50, 30, 0]);
        assert_eq!(total(7), 50);
        assert!(outputs.iter().all(|output| count(output, 5) > 5), "all have a share");
    }

    #[test]
    fn strange_bytes_are_an_error() {
        let info = RelationInfo { name: "t".into(), schema: schema(), standing: true, sql: None };
        let output = Rc::new(RefCell::new(Output::new(&info, ChangesKept::default()).unwrap()));
        let TableRows::Changed(whole) = TableRows::encode(&rows(&[("a", 1)]), vec![1]).unwrap() else { panic!() };
        let share = Share { index: 0, peers: 1 };
        assert!(write(&output, 5, &TableRows::Changed(vec![1, 2, 3]), share).is_err());
        assert!(write(&output, 5, &TableRows::Changed(whole[..whole.len() / 2].to_vec()), share).is_err());
        let other = RecordBatch::try_new(
            Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)])),
            vec![Arc::new(Int64Array::from(vec![1]))],
        );
        let other = TableRows::encode(&other.unwrap(), vec![1]).unwrap();
        assert!(write(&output, 5, &other, share).is_err());
        assert_eq!(count(&output, 9), 0);
    }

    #[test]
    fn rows_count_the_same_in_any_batch() {
        let whole = rows(&[("a", 1), ("bcd", 2), ("", 3)]);
        let parts: u64 = (0..3).map(|row| row_bytes(&whole.slice(row, 1))).sum();
        assert_eq!(row_bytes(&whole), parts);
    }
}
