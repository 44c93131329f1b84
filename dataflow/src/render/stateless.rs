//! Operators that keep nothing: each batch is answered at once.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, TimestampNanosecondArray, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Int64Type, SchemaRef, TimeUnit, TimestampNanosecondType};
use arrow::record_batch::RecordBatch;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::operator::Operator;
use weir_plan::Expr;

use super::{Context, Relation};
use crate::delta::{DeltaBatch, Deltas, options};
use crate::expr::Exprs;

/// Batch in, batch out. Empty batches end here.
pub(crate) fn per_batch<'s>(
    deltas: &Deltas<'s>,
    name: &str,
    mut logic: impl FnMut(DeltaBatch) -> DeltaBatch + 'static,
) -> Deltas<'s> {
    deltas.clone().unary::<CapacityContainerBuilder<Vec<DeltaBatch>>, _, _, _>(Pipeline, name, move |_, _| {
        move |input, output| {
            input.for_each_stamp(|cap, batches| {
                // A message without a time claims no progress: it carries nothing that may still be answered.
                if cap.least().is_none() {
                    return;
                }
                let mut out = output.session(&cap);
                for batch in batches.flat_map(|batches| batches.drain(..)) {
                    let made = logic(batch);
                    if !made.is_empty() {
                        out.give(made);
                    }
                }
            });
        }
    })
}

pub(super) fn filter<'s>(input: &Relation<'s>, predicate: &Expr, context: &Context) -> Result<Deltas<'s>, weir_plan::Error> {
    let exprs = Exprs::new([predicate], &input.schema, "filter", &context.counters)?;
    Ok(per_batch(&input.deltas, "Filter", move |batch| {
        let (batch, columns) = exprs.evaluate(batch);
        let passes = columns[0].as_boolean();
        if passes.null_count() == 0 && passes.true_count() == batch.len() { batch } else { batch.filter(passes) }
    }))
}

pub(super) fn project<'s>(
    input: &Relation<'s>,
    exprs: &[(Expr, String)],
    schema: &SchemaRef,
    context: &Context,
) -> Result<Deltas<'s>, weir_plan::Error> {
    let exprs = Exprs::new(exprs.iter().map(|(expr, _)| expr), &input.schema, "project", &context.counters)?;
    let schema = Arc::clone(schema);
    Ok(per_batch(&input.deltas, "Project", move |batch| {
        let (batch, columns) = exprs.evaluate(batch);
        let rows = RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options(batch.len()));
        DeltaBatch { rows: rows.expect("expressions have the types the plan was checked for"), ..batch }
    }))
}

/// Each row as often as it says.
pub(super) fn repeat<'s>(input: &Relation<'s>, times: &Expr, context: &Context) -> Result<Deltas<'s>, weir_plan::Error> {
    let exprs = Exprs::new([times], &input.schema, "repeat", &context.counters)?;
    Ok(per_batch(&input.deltas, "Repeat", move |batch| {
        let (mut batch, columns) = exprs.evaluate(batch);
        let times = columns[0].as_primitive::<Int64Type>();
        let there: BooleanArray = times.iter().map(|times| Some(times.is_some_and(|times| times > 0))).collect();
        batch.diffs.iter_mut().zip(times.values()).for_each(|(diff, times)| *diff = diff.saturating_mul(*times));
        batch.filter(&there)
    }))
}

/// The same rows under another schema of the same types.
pub(super) fn rename<'s>(input: &Relation<'s>, schema: &SchemaRef) -> Deltas<'s> {
    if &input.schema == schema {
        return input.deltas.clone();
    }
    let schema = Arc::clone(schema);
    per_batch(&input.deltas, "Rename", move |batch| {
        let rows = RecordBatch::try_new_with_options(Arc::clone(&schema), batch.rows.columns().to_vec(), &options(batch.len()));
        DeltaBatch { rows: rows.expect("the inputs of a union have equal types"), ..batch }
    })
}

/// Windows of `size_ms`, one beginning every `hop_ms`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) hop_ms: u64,
    pub(super) size_ms: u64,
}

pub(super) fn windows<'s>(
    input: &Relation<'s>,
    time: &Expr,
    window: Window,
    schema: &SchemaRef,
    context: &Context,
) -> Result<Deltas<'s>, weir_plan::Error> {
    let exprs = Exprs::new([time], &input.schema, "window", &context.counters)?;
    let schema = Arc::clone(schema);
    Ok(per_batch(&input.deltas, "Windows", move |batch| {
        let (batch, columns) = exprs.evaluate(batch);
        let (times, unit) = times(&columns[0]);
        let mut rows = vec![];
        let mut starts = vec![];
        for (row, time) in times.iter().enumerate() {
            let Some(time) = time else { continue };
            for start in window.starts(time, unit) {
                rows.push(u32::try_from(row).expect("a batch has fewer than 2^32 rows"));
                starts.push(start);
            }
        }
        fan_out(&batch, rows, starts, (window, unit), &schema)
    }))
}

fn fan_out(
    batch: &DeltaBatch,
    rows: Vec<u32>,
    starts: Vec<i64>,
    (window, unit): (Window, i64),
    schema: &SchemaRef,
) -> DeltaBatch {
    let diffs = rows.iter().map(|&row| batch.diffs[row as usize]).collect();
    let count = rows.len();
    let at = UInt32Array::from(rows);
    let mut columns: Vec<_> =
        batch.rows.columns().iter().map(|column| take(column, &at, None).expect("places are inside the batch")).collect();
    let ends = starts.iter().map(|start| start + window.size(unit)).collect::<Vec<_>>();
    for bounds in [starts, ends] {
        columns.push(bounds_column(bounds, unit));
    }
    let rows = RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options(count));
    DeltaBatch::new(batch.tick, rows.expect("the plan was checked: the input's columns, start, end"), diffs)
}

impl Window {
    /// Starts of all windows that hold this time, earliest first.
    fn starts(self, time: i64, unit: i64) -> impl Iterator<Item = i64> {
        let hop = self.hop(unit);
        let count = i64::try_from(self.size_ms / self.hop_ms).expect("the plan was checked: few windows per row");
        // Times within ten years of the type's ends are in no window.
        let last = time.div_euclid(hop).checked_mul(hop).filter(|last| last.checked_add(self.size(unit)).is_some());
        (0..count).rev().filter_map(move |back| last?.checked_sub(back * hop))
    }

    /// From start to end, in a time's own units.
    pub(super) fn size(self, unit: i64) -> i64 {
        i64::try_from(self.size_ms).expect("the plan was checked: a window is at most ten years") * unit
    }

    /// From one start to the next, in a time's own units.
    pub(super) fn hop(self, unit: i64) -> i64 {
        i64::try_from(self.hop_ms).expect("the plan was checked: a window is at most ten years") * unit
    }
}

/// Times as integers, and how many of their units a millisecond has.
pub(super) fn times(column: &ArrayRef) -> (Int64Array, i64) {
    match column.data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            (column.as_primitive::<TimestampNanosecondType>().reinterpret_cast(), NANOS_PER_MS)
        }
        DataType::Timestamp(..) => {
            let finest = DataType::Timestamp(TimeUnit::Nanosecond, None);
            times(&cast(column, &finest).expect("a timestamp casts to its finest unit"))
        }
        _ => (column.as_primitive::<Int64Type>().clone(), 1),
    }
}

/// Times as the column that the plan says: with the units of timestamps, timestamps; else milliseconds.
pub(super) fn bounds_column(times: Vec<i64>, unit: i64) -> ArrayRef {
    match unit {
        1 => Arc::new(Int64Array::from(times)),
        _ => Arc::new(TimestampNanosecondArray::from(times).with_timezone("UTC")),
    }
}

const NANOS_PER_MS: i64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_size_over_hop_windows() {
        let hop = Window { hop_ms: 10, size_ms: 30 };
        let ms = |nanos: i64| hop.starts(nanos * 1_000_000, NANOS_PER_MS).map(|start| start / 1_000_000).collect::<Vec<_>>();
        assert_eq!(ms(30), [10, 20, 30]);
        assert_eq!(ms(29), [0, 10, 20]);
        assert_eq!(ms(-1), [-30, -20, -10]);
    }
}
