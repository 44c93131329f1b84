//! What flows between operators: rows that come and go at a tick.
//!
//! A batch is one tick's part of a change: row i of `rows` is there `diffs[i]` times more (or less). Columns have the normal
//! types of `weir-plan`: text is codes into a dictionary, which batches may share and which may hold more than the batch
//! needs. What is retained or leaves the process is compacted first.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, DictionaryArray, Int64Array, UInt32Array, new_empty_array};
use arrow::buffer::ScalarBuffer;
use arrow::compute::{concat_batches, filter, filter_record_batch, prep_null_mask_filter, take, take_record_batch};
use arrow::datatypes::{SchemaRef, UInt32Type};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use timely::dataflow::Stream;

/// A change of a relation over all ticks: what operators take and make.
pub type Deltas<'s> = Stream<'s, u64, Vec<DeltaBatch>>;

/// Rows that come (positive) or go (negative) at one tick.
#[derive(Debug, Clone)]
pub struct DeltaBatch {
    /// When. It counts, not the stamp of the message that carries the batch.
    pub tick: u64,
    /// What.
    pub rows: RecordBatch,
    /// How often, per row; never 0 in what operators make.
    pub diffs: Vec<i64>,
}

impl DeltaBatch {
    /// Rows with their diffs.
    pub fn new(tick: u64, rows: RecordBatch, diffs: Vec<i64>) -> Self {
        assert_eq!(rows.num_rows(), diffs.len(), "one diff per row");
        Self { tick, rows, diffs }
    }

    /// Rows that come, once each.
    pub fn inserted(tick: u64, rows: RecordBatch) -> Self {
        let diffs = vec![1; rows.num_rows()];
        Self { tick, rows, diffs }
    }

    /// Number of rows, not of copies.
    pub fn len(&self) -> usize {
        self.diffs.len()
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.diffs.is_empty()
    }

    /// The columns.
    pub fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }

    /// The rows at these places, in this order.
    pub fn take(&self, indices: &[u32]) -> Self {
        let at = UInt32Array::from(indices.to_vec());
        let rows = take_record_batch(&self.rows, &at).expect("places are inside the batch");
        let diffs = indices.iter().map(|&index| self.diffs[index as usize]).collect();
        Self { tick: self.tick, rows, diffs }
    }

    /// The rows where `mask` is true.
    pub fn filter(&self, mask: &BooleanArray) -> Self {
        let rows = filter_record_batch(&self.rows, mask).expect("the mask is as long as the batch");
        let prepared = (mask.null_count() > 0).then(|| prep_null_mask_filter(mask));
        let diffs = prepared.as_ref().unwrap_or(mask).values().set_indices().map(|index| self.diffs[index]).collect();
        Self { tick: self.tick, rows, diffs }
    }

    /// The same rows, their dictionaries without what no row uses.
    pub fn compact(&self) -> Self {
        Self { tick: self.tick, rows: compact(&self.rows), diffs: self.diffs.clone() }
    }

    /// All batches of one tick as one. None when there are none.
    pub fn concat(batches: &[Self]) -> Option<Self> {
        let first = batches.first()?;
        if batches.len() == 1 {
            return Some(first.clone());
        }
        let rows = concat_batches(&first.schema(), batches.iter().map(|batch| &batch.rows))
            .expect("batches of one stream have one schema");
        let diffs = batches.iter().flat_map(|batch| batch.diffs.iter().copied()).collect();
        Some(Self { tick: first.tick, rows, diffs })
    }
}

/// The same rows, their dictionaries without what no row uses.
pub fn compact(rows: &RecordBatch) -> RecordBatch {
    let columns = rows.columns().iter().map(compact_column).collect();
    RecordBatch::try_new_with_options(rows.schema(), columns, &options(rows.num_rows())).expect("types and lengths are unchanged")
}

/// The same column, its dictionary without what no row uses. Others are returned as they are.
pub(crate) fn compact_column(column: &ArrayRef) -> ArrayRef {
    let Some(codes) = column.as_any().downcast_ref::<DictionaryArray<UInt32Type>>() else {
        return Arc::clone(column);
    };
    let values = codes.values();
    if codes.null_count() == codes.len() {
        let none = DictionaryArray::new(codes.keys().clone(), new_empty_array(values.data_type()));
        return if values.is_empty() { Arc::clone(column) } else { Arc::new(none) };
    }
    if values.len() > codes.len().saturating_mul(SPARSE) {
        return sparse(codes);
    }
    let used = codes.occupancy();
    if used.count_set_bits() == values.len() {
        return Arc::clone(column);
    }
    let mut renamed = vec![0; values.len()];
    for (new, old) in used.set_indices().enumerate() {
        renamed[old] = u32::try_from(new).expect("fewer values than before");
    }
    let keys = codes.keys().unary(|key| renamed.get(key as usize).copied().unwrap_or(0));
    let values = filter(values, &BooleanArray::new(used, None)).expect("the mask is as long as the dictionary");
    Arc::new(DictionaryArray::<UInt32Type>::new(keys, values))
}

/// For a dictionary much larger than the column: looks at the column's codes only.
fn sparse(codes: &DictionaryArray<UInt32Type>) -> ArrayRef {
    let mut used: Vec<u32> = codes.keys().iter().flatten().collect();
    used.sort_unstable();
    used.dedup();
    let keys =
        codes.keys().unary(|key| used.binary_search(&key).map_or(0, |at| u32::try_from(at).expect("as many as rows at most")));
    let values = take(codes.values(), &UInt32Array::from(used), None).expect("codes are inside the dictionary");
    Arc::new(DictionaryArray::<UInt32Type>::new(keys, values))
}

pub(crate) fn options(rows: usize) -> arrow::record_batch::RecordBatchOptions {
    arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(rows))
}

/// Rows as an Arrow IPC stream, with compacted dictionaries.
pub fn to_ipc(rows: &RecordBatch) -> Result<Vec<u8>, arrow::error::ArrowError> {
    let rows = compact(rows);
    let mut writer = StreamWriter::try_new(Vec::new(), &rows.schema())?;
    writer.write(&rows)?;
    writer.into_inner()
}

/// Rows from an Arrow IPC stream of one batch.
pub fn from_ipc(bytes: &[u8]) -> Result<RecordBatch, arrow::error::ArrowError> {
    let reader = StreamReader::try_new(bytes, None)?;
    let schema = reader.schema();
    let batches = reader.collect::<Result<Vec<_>, _>>()?;
    match batches.as_slice() {
        [one] => Ok(one.clone()),
        several => concat_batches(&schema, several),
    }
}

/// On the wire between processes of a mesh: the rows are one Arrow IPC stream. The processes run equal binaries (checked at
/// connect), so there is no version in it.
#[derive(Serialize, Deserialize)]
struct Wire {
    tick: u64,
    ipc: Vec<u8>,
    diffs: Vec<i64>,
}

impl Serialize for DeltaBatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ipc = to_ipc(&self.rows).map_err(S::Error::custom)?;
        Wire { tick: self.tick, ipc, diffs: self.diffs.clone() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DeltaBatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(deserializer)?;
        let rows = from_ipc(&wire.ipc).map_err(D::Error::custom)?;
        if rows.num_rows() != wire.diffs.len() {
            return Err(D::Error::custom("as many diffs as rows were expected"));
        }
        Ok(Self { tick: wire.tick, rows, diffs: wire.diffs })
    }
}

/// The strings of a text column, None where NULL. For tests and small answers.
pub fn texts(column: &ArrayRef) -> Vec<Option<String>> {
    let plain = arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8).expect("text casts to text");
    plain.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect()
}

/// The integers of a column, None where NULL. For tests and small answers.
pub fn integers(column: &ArrayRef) -> Vec<Option<i64>> {
    column.as_any().downcast_ref::<Int64Array>().map(|ints| ints.iter().collect()).unwrap_or_default()
}

/// A dictionary this many times longer than its column is compacted by the codes, not by scanning it.
const SPARSE: usize = 4;

/// Codes of a text column as they are, for hot loops: (codes, their validity is the array's).
pub fn codes(column: &ArrayRef) -> Option<&ScalarBuffer<u32>> {
    column.as_any().downcast_ref::<DictionaryArray<UInt32Type>>().map(|text| text.keys().values())
}

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;
    use arrow::datatypes::{DataType, Field, Schema};
    use weir_plan::text_type;

    use super::*;

    fn batch(keys: Vec<Option<u32>>, values: &[&str]) -> DeltaBatch {
        let text = DictionaryArray::<UInt32Type>::new(keys.into(), Arc::new(StringArray::from(values.to_vec())));
        let ints = Int64Array::from_iter_values(0..text.len() as i64);
        let schema = Schema::new(vec![Field::new("t", text_type(), true), Field::new("n", DataType::Int64, true)]);
        DeltaBatch::inserted(7, RecordBatch::try_new(Arc::new(schema), vec![Arc::new(text), Arc::new(ints)]).unwrap())
    }

    fn values(batch: &DeltaBatch) -> usize {
        batch.rows.column(0).as_any_dictionary().values().len()
    }

    #[test]
    fn compacting_keeps_the_rows_and_drops_what_none_uses() {
        let many = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        for (keys, used) in
            [(vec![Some(8), None, Some(1)], 2), (vec![Some(8)], 1), (vec![None, None], 0), (vec![Some(0); 9], 1), (vec![], 0)]
        {
            let batch = batch(keys, &many);
            let small = batch.compact();
            assert_eq!(texts(batch.rows.column(0)), texts(small.rows.column(0)));
            assert_eq!(values(&small), used);
        }
    }

    #[test]
    fn a_batch_survives_the_wire() {
        let sent = DeltaBatch { diffs: vec![1, -2, 3], ..batch(vec![Some(1), None, Some(2)], &["x", "y", "z"]) };
        let bytes = postcard::to_allocvec(&sent).unwrap();
        let got: DeltaBatch = postcard::from_bytes(&bytes).unwrap();
        assert_eq!((got.tick, &got.diffs), (7, &sent.diffs));
        assert_eq!(texts(got.rows.column(0)), [Some("y".to_owned()), None, Some("z".to_owned())]);
        assert_eq!(integers(got.rows.column(1)), [Some(0), Some(1), Some(2)]);
        assert_eq!(values(&got), 2);
    }
}
