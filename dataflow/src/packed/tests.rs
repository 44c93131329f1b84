//! Rows come back as they were, and equal rows have equal bytes.

use std::sync::Arc;

use arrow::array::{
    Array as _, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float64Array, Int16Array, Int64Array, ListArray,
    RecordBatch, StringArray, TimestampNanosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{Field, Int64Type, UInt32Type};
use proptest::prelude::*;

use super::*;

type Row = (Option<String>, Option<String>, Option<i64>, Option<bool>, Option<f64>, Option<Vec<Option<i64>>>);

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z/]{0,12}", "[0-9a-f]{12,33}", "[0-9A-F]{32}", "[0-9a-f]{64}", ".{0,40}"]
}

fn row() -> impl Strategy<Value = Row> {
    let list = prop::option::of(prop::collection::vec(any::<Option<i64>>(), 0..4));
    let number = prop_oneof![any::<i64>(), -300_i64..300];
    (
        prop::option::of(text()),
        prop::option::of(text()),
        prop::option::of(number),
        any::<Option<bool>>(),
        any::<Option<f64>>(),
        list,
    )
}

/// Every kind of column; the second text as codes.
fn batch(rows: &[Row]) -> RecordBatch {
    let codes: DictionaryArray<UInt32Type> = rows.iter().map(|row| row.1.as_deref()).collect();
    let ints = || rows.iter().map(|row| row.2);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("text", Arc::new(rows.iter().map(|row| row.0.clone()).collect::<StringArray>())),
        ("codes", Arc::new(codes)),
        ("int", Arc::new(ints().collect::<Int64Array>())),
        ("small", Arc::new(ints().map(|int| int.map(|int| int as i16)).collect::<Int16Array>())),
        ("time", Arc::new(ints().collect::<TimestampNanosecondArray>().with_timezone("UTC"))),
        ("date", Arc::new(ints().map(|int| int.map(|int| int as i32)).collect::<Date32Array>())),
        ("decimal", Arc::new(ints().map(|int| int.map(i128::from)).collect::<Decimal128Array>())),
        ("bool", Arc::new(rows.iter().map(|row| row.3).collect::<BooleanArray>())),
        ("float", Arc::new(rows.iter().map(|row| row.4).collect::<Float64Array>())),
        ("list", Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(rows.iter().map(|row| row.5.clone())))),
    ];
    let fields: Vec<Field> = columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let columns = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn pack(packer: &mut Packer, batch: &RecordBatch) -> Vec<Bytes> {
    let mut rows = Vec::new();
    packer.pack(batch.columns(), batch.num_rows(), |row| rows.push(row.into())).unwrap();
    rows
}

fn unpack(packer: &Packer, schema: &Schema, rows: &[Bytes]) -> RecordBatch {
    let all: Vec<usize> = (0..schema.fields().len()).collect();
    let columns = packer.unpack(rows.iter().map(|row| &**row), &all).unwrap();
    RecordBatch::try_new(Arc::new(schema.clone()), columns).unwrap()
}

/// Without dictionaries, whose values may stand in another order.
fn plain(batch: &RecordBatch) -> Vec<ArrayRef> {
    let plain =
        |column: &ArrayRef| if is_text(column.data_type()) { cast(column, &DataType::Utf8).unwrap() } else { Arc::clone(column) };
    batch.columns().iter().map(plain).collect()
}

proptest! {
    #[test]
    fn rows_come_back(rows in prop::collection::vec(row(), 0..60), cut in 0_usize..20) {
        let all = batch(&rows);
        // An array that does not begin at its buffer's beginning.
        let part = all.slice(cut.min(rows.len()), rows.len() - cut.min(rows.len()));
        let mut packer = Packer::new(&all.schema()).unwrap();
        let packed = pack(&mut packer, &part);
        let back = unpack(&packer, &all.schema(), &packed);
        prop_assert_eq!(plain(&back), plain(&part));
        // The same rows have the same bytes, also in other batches.
        prop_assert_eq!(&pack(&mut packer, &all)[cut.min(rows.len())..], &packed[..]);
        // One column alone.
        let one = packer.unpack(packed.iter().map(|row| &**row), &[4]).unwrap();
        prop_assert_eq!(&one[0], part.column(4));
        // By way of bytes that mean the same everywhere, and by way of the other's texts.
        let mut other = Packer::new(&all.schema()).unwrap();
        pack(&mut other, &all.slice(rows.len() / 2, rows.len() - rows.len() / 2));
        let mut third = Packer::new(&all.schema()).unwrap();
        for row in &packed {
            let (mut portable, mut same) = (Vec::new(), Vec::new());
            packer.portable(row, &mut portable);
            let taken = other.packed(&portable, &[]).unwrap();
            other.portable(&taken, &mut same);
            prop_assert_eq!(&portable, &same);
            let moved = third.packed(row, packer.texts()).unwrap();
            same.clear();
            third.portable(&moved, &mut same);
            prop_assert_eq!(&portable, &same);
        }
    }

    #[test]
    fn hostile_bytes_are_no_row(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let all = batch(&[]);
        let mut packer = Packer::new(&all.schema()).unwrap();
        let _ = packer.packed(&bytes, &[]);
        let _ = packer.unpack([&bytes[..]], &[0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }
}

#[test]
fn texts_that_no_row_has_go() {
    let rows: Vec<Row> = (0..6_000).map(|n| (Some(format!("a text of some length {n}")), None, None, None, None, None)).collect();
    let all = batch(&rows);
    let mut packer = Packer::new(&all.schema()).unwrap();
    let mut packed = pack(&mut packer, &all);
    let before = packer.bytes();
    packed.truncate(100);
    packer.sweep(|| packed.iter().map(|row| &**row));
    assert!(packer.bytes() * 50 < before, "{} of {before}", packer.bytes());
    assert_eq!(plain(&unpack(&packer, &all.schema(), &packed)), plain(&all.slice(0, 100)));
    assert_eq!(pack(&mut packer, &all.slice(0, 100)), packed);
}
