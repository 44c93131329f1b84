//! What a standing relation is, at every tick that can still be asked for: a worker's share of its rows.
//!
//! A base holds the rows at tick `since`; changes of later ticks wait beside it, each under its tick. So a read at any tick from
//! `since` to the newest closed one is exact, and costs one walk. Rows are packed (`packed/`).
//!
//! Each row is kept by the worker that its portable bytes name. So a row and what withdraws it meet, also when the row was taken up from a checkpoint
//! of another number of workers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use hashbrown::HashMap;
use hashbrown::hash_map::EntryRef;
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::probe::{Handle as Probe, Probe as _};
use xxhash_rust::xxh3::xxh3_128;

use crate::checkpoint::{Share, State};
use crate::delta::DeltaBatch;
use crate::handle::{Digest, Held};
use crate::history::{ChangesKept, History, consolidated};
use crate::packed::{Bytes, Packer, SavedRows};
use crate::relations::RelationInfo;
use crate::render::owner;

type Counts<K> = HashMap<K, i64, foldhash::fast::FixedState>;

/// A worker's share of one standing relation.
#[derive(Debug)]
pub(crate) struct Output {
    name: String,
    schema: SchemaRef,
    packer: Packer,
    since: u64,
    base: Counts<Bytes>,
    base_bytes: usize,
    changes: BTreeMap<u64, Vec<(Bytes, i64)>>,
    past: History,
    errors: u64,
    negative: u64,
}

impl Output {
    /// An empty relation.
    pub(crate) fn new(info: &RelationInfo, kept: ChangesKept) -> Result<Self, ArrowError> {
        Ok(Self {
            name: info.name.to_string(),
            schema: Arc::clone(&info.schema),
            packer: Packer::new(&info.schema)?,
            since: 0,
            base: Counts::default(),
            base_bytes: 0,
            changes: BTreeMap::new(),
            past: History::new(kept),
            errors: 0,
            negative: 0,
        })
    }

    /// Takes up changes.
    pub(crate) fn update(&mut self, delta: &DeltaBatch) {
        let mut changes = self.changes.remove(&delta.tick).unwrap_or_default();
        self.pack(&delta.rows, &delta.diffs, |_, row, diff| changes.push((row.into(), diff)));
        self.changes.insert(delta.tick, changes);
    }

    /// Takes up what people wrote: of these rows those that are this worker's.
    pub(crate) fn write(&mut self, tick: u64, rows: &RecordBatch, diffs: &[i64], share: Share) {
        let mut changes = self.changes.remove(&tick).unwrap_or_default();
        let mut portable = Vec::new();
        self.pack(rows, diffs, |packer, row, diff| {
            portable.clear();
            packer.portable(row, &mut portable);
            if share.owns(&portable) {
                changes.push((row.into(), diff));
            }
        });
        self.changes.insert(tick, changes);
    }

    /// Lets all rows go that are there up to and with this tick, which is the newest.
    pub(crate) fn clear(&mut self, tick: u64) {
        let rows = self.rows_at(tick);
        self.changes.entry(tick).or_default().extend(rows.into_iter().map(|(row, count)| (row, -count)));
    }

    /// Hands out each row that comes or goes. Rows that do not fit the columns are counted.
    fn pack(&mut self, rows: &RecordBatch, diffs: &[i64], mut each: impl FnMut(&Packer, &[u8], i64)) {
        let mut packed = Vec::with_capacity(rows.num_rows());
        let done = match rows.num_columns() == self.schema.fields().len() {
            true => self.packer.pack(rows.columns(), rows.num_rows(), |row| packed.push(Bytes::from(row))),
            false => Err(ArrowError::SchemaError(format!("{} columns", rows.num_columns()))),
        };
        if let Err(error) = done {
            self.errors += diffs.len() as u64;
            tracing::error!(relation = %self.name, %error, "rows do not fit the relation's columns");
            return;
        }
        packed.iter().zip(diffs).filter(|(_, diff)| **diff != 0).for_each(|(row, diff)| each(&self.packer, row, *diff));
    }

    /// The changes by the worker that keeps each row.
    pub(crate) fn parts(&mut self, delta: &DeltaBatch, peers: usize) -> Vec<Part> {
        let mut parts: Vec<Vec<(Bytes, i64)>> = vec![Vec::new(); peers];
        let mut portable = Vec::new();
        self.pack(&delta.rows, &delta.diffs, |packer, row, diff| {
            portable.clear();
            packer.portable(row, &mut portable);
            parts[owner(&portable, peers)].push((portable.as_slice().into(), diff));
        });
        let parts = parts.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty());
        parts.map(|(owner, rows)| Part { owner: owner as u64, tick: delta.tick, rows }).collect()
    }

    /// Takes up changes of rows that this worker keeps.
    pub(crate) fn take(&mut self, part: Part) {
        let rows = part.rows.iter().filter_map(|(row, diff)| self.packer.packed(row, &[]).map(|row| (row, *diff)));
        self.changes.entry(part.tick).or_default().extend(rows);
    }

    /// From a checkpoint at this tick on: nothing before can be read.
    pub(crate) fn begin(&mut self, tick: u64) {
        self.since = tick;
        self.past.begin(tick);
    }

    /// Forgets the difference between ticks up to `since`: from now on reads are at `since` or later. Subscribers see further back.
    pub(crate) fn compact(&mut self, since: u64) {
        let since = since.max(self.since);
        let later = self.changes.split_off(&since.saturating_add(1));
        for (tick, changes) in std::mem::replace(&mut self.changes, later) {
            let changes = consolidated(changes);
            for (row, diff) in &changes {
                self.fold(row, *diff);
            }
            self.past.push(tick, changes);
        }
        self.past.trim(since);
        self.since = since;
        let changes = self.changes.values().flatten().chain(self.past.changes()).map(|(row, _)| row);
        self.packer.sweep(|| self.base.keys().chain(changes).map(|row| &**row));
    }

    fn fold(&mut self, row: &Bytes, diff: i64) {
        match self.base.entry_ref(row) {
            EntryRef::Occupied(mut held) if *held.get() + diff != 0 => *held.get_mut() += diff,
            EntryRef::Occupied(held) => self.base_bytes -= held.remove_entry().0.len(),
            EntryRef::Vacant(place) => {
                self.base_bytes += row.len();
                place.insert(diff);
            }
        }
    }

    /// What users see as its columns.
    pub(crate) fn column_names(&self) -> Vec<String> {
        self.schema.fields().iter().map(|field| field.name().clone()).collect()
    }

    /// The oldest tick that can be read.
    pub(crate) fn since(&self) -> u64 {
        self.since
    }

    /// Walks the rows at `tick` with how often each is there. Rows with a negative count are an error of ours: skipped, counted.
    pub(crate) fn at(&mut self, tick: u64, mut each: impl FnMut(&[u8], u64)) {
        let mut changed: Counts<&[u8]> = Counts::default();
        for (row, diff) in self.changes.range(..=tick).flat_map(|(_, changes)| changes) {
            *changed.entry(row).or_default() += diff;
        }
        let mut negative = 0;
        let mut show = |row: &[u8], count: i64| match count {
            0 => {}
            1.. => each(row, count.unsigned_abs()),
            _ => negative += 1,
        };
        for (row, count) in &self.base {
            let change = if changed.is_empty() { 0 } else { changed.remove(row.as_ref()).unwrap_or(0) };
            show(row, count + change);
        }
        for (row, count) in changed {
            show(row, count);
        }
        if negative > 0 {
            tracing::error!(relation = %self.name, rows = negative, tick, "rows with a negative count");
        }
        self.negative = self.negative.max(negative);
    }

    /// All rows at `tick`, with how often each is there.
    pub(crate) fn rows_at(&mut self, tick: u64) -> Vec<(Bytes, i64)> {
        let mut rows = Vec::new();
        self.at(tick, |row, count| rows.push((row.into(), i64::try_from(count).unwrap_or(i64::MAX))));
        rows
    }

    /// What this tick changed, each row once. Only of ticks behind `since`.
    pub(crate) fn changes_at(&self, tick: u64) -> Vec<(Bytes, i64)> {
        let Some(changes) = self.changes.get(&tick) else { return vec![] };
        let mut sums: Counts<&Bytes> = Counts::default();
        for (row, diff) in changes {
            *sums.entry(row).or_default() += diff;
        }
        sums.into_iter().filter(|(_, diff)| *diff != 0).map(|(row, diff)| (row.clone(), diff)).collect()
    }

    /// What every tick behind this one changed can be told.
    pub(crate) fn changes_since(&self) -> u64 {
        self.past.since()
    }

    /// What the ticks behind `after` up to `upto` changed, in their order, each row once a tick. Only with `after` not before
    /// [`Output::changes_since`].
    pub(crate) fn changes_between(&self, after: u64, upto: u64) -> Vec<(u64, Vec<(Bytes, i64)>)> {
        let past = self.past.between(after, upto).map(|(tick, changes)| (tick, changes.to_vec()));
        let recent = self.changes.range((Excluded(after), Unbounded)).map(|(tick, _)| *tick).take_while(|tick| *tick <= upto);
        past.chain(recent.map(|tick| (tick, self.changes_at(tick)))).filter(|(_, changes)| !changes.is_empty()).collect()
    }

    /// All rows at a tick that may lie further back than reads go, with how often each is there.
    pub(crate) fn rows_back_at(&mut self, tick: u64) -> Vec<(Bytes, i64)> {
        if tick >= self.since {
            return self.rows_at(tick);
        }
        let mut rows: Counts<&Bytes> = self.base.iter().map(|(row, count)| (row, *count)).collect();
        for (row, diff) in self.past.between(tick, self.since).flat_map(|(_, changes)| changes) {
            *rows.entry(row).or_default() -= diff;
        }
        rows.into_iter().filter(|(_, count)| *count > 0).map(|(row, count)| (row.clone(), count)).collect()
    }

    /// Its columns.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Unpacks rows of this output into a batch of the given columns.
    pub(crate) fn decode(&self, rows: &[Bytes], columns: &[usize]) -> Result<RecordBatch, ArrowError> {
        let arrays = self.packer.unpack(rows.iter().map(|row| &**row), columns)?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        RecordBatch::try_new_with_options(Arc::new(self.schema.project(columns)?), arrays, &options)
    }

    /// The order-free hash of this worker's rows: add those of all workers.
    pub(crate) fn digest(&mut self, tick: u64) -> (u128, u64) {
        let (mut hash, mut rows) = (0_u128, 0_u64);
        let mut portable = Vec::new();
        for (row, count) in self.rows_at(tick) {
            portable.clear();
            self.packer.portable(&row, &mut portable);
            hash = hash.wrapping_add(xxh3_128(&portable).wrapping_mul(u128::from(count.unsigned_abs())));
            rows += count.unsigned_abs();
        }
        (hash, rows)
    }

    /// What is in memory.
    pub(crate) fn held(&self) -> Held {
        let waiting = self.changes.values().flatten().map(|(row, _)| row.len()).sum::<usize>();
        Held {
            relation: self.name.clone(),
            rows: self.base.len() as u64,
            bytes: (self.base_bytes + waiting + self.past.bytes() + self.packer.bytes()) as u64,
        }
    }

    /// Rows that could not be encoded, and rows whose count was negative when read.
    pub(crate) fn faults(&self) -> u64 {
        self.errors + self.negative
    }
}

impl State for Output {
    type Saved = SavedRows<i64>;

    fn save(&self) -> Vec<u8> {
        let mut counts: Counts<&Bytes> = self.base.iter().map(|(row, count)| (row, *count)).collect();
        for (row, diff) in self.changes.values().flatten() {
            *counts.entry(row).or_default() += diff;
        }
        let rows = counts.into_iter().filter(|(_, count)| *count != 0);
        self.packer.save(rows.map(|(row, count)| (&**row, count)))
    }

    fn load(&mut self, parts: Vec<Self::Saved>, share: Share) {
        for (row, count) in parts.into_iter().flat_map(|part| self.packer.load(part, share)).collect::<Vec<_>>() {
            self.base_bytes += row.len();
            *self.base.entry(row).or_default() += count;
        }
    }
}

/// Rows on their way to the worker that keeps them: by their bytes, so that a row and what withdraws it meet whoever made them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) owner: u64,
    tick: u64,
    rows: Vec<(Bytes, i64)>,
}

/// Puts a plan's result into an output; the probe passes a tick when the output has all of it.
pub(crate) fn attach<'s>(stream: Stream<'s, u64, Vec<DeltaBatch>>, output: &Rc<RefCell<Output>>, probe: &Probe<u64>) {
    let peers = stream.scope().peers();
    let (encoder, output) = (Rc::clone(output), Rc::clone(output));
    if peers > 1 {
        let encoded = stream.unary::<CapacityContainerBuilder<Vec<Part>>, _, _, _>(Pipeline, "OutputEncode", move |_, _| {
            move |input, out| {
                input.for_each_stamp(|cap, batches| {
                    if cap.least().is_none() {
                        return;
                    }
                    let mut out = out.session(&cap);
                    for delta in batches.flat_map(|batch| batch.drain(..)) {
                        encoder.borrow_mut().parts(&delta, peers).into_iter().for_each(|part| out.give(part));
                    }
                });
            }
        });
        let by_row = Exchange::new(|part: &Part| part.owner);
        encoded
            .unary::<CapacityContainerBuilder<Vec<()>>, _, _, _>(by_row, "Output", move |_, _| {
                move |input, _| {
                    input.for_each_stamp(|_, batches| {
                        for part in batches.flat_map(|batch| batch.drain(..)) {
                            output.borrow_mut().take(part);
                        }
                    });
                }
            })
            .probe_with(probe);
        return;
    }
    stream
        .unary::<CapacityContainerBuilder<Vec<()>>, _, _, _>(Pipeline, "Output", move |_, _| {
            move |input, _| {
                input.for_each_stamp(|_, batches| {
                    for delta in batches.flat_map(|batch| batch.drain(..)) {
                        output.borrow_mut().update(&delta);
                    }
                });
            }
        })
        .probe_with(probe);
}

/// Picks columns by place, each in its outside type.
pub(crate) fn project(
    arrays: &[ArrayRef],
    schema: &SchemaRef,
    columns: &[usize],
    rows: usize,
) -> Result<RecordBatch, ArrowError> {
    let typed = columns.iter().map(|column| cast(&arrays[*column], schema.field(*column).data_type()));
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let schema = Arc::new(schema.project(columns)?);
    RecordBatch::try_new_with_options(schema, typed.collect::<Result<_, _>>()?, &options)
}

/// Writes a digest's hash.
pub(crate) fn digest_text(relation: &str, hash: u128, rows: u64) -> Digest {
    Digest { relation: relation.into(), hash: format!("{hash:032x}"), rows }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray};

    use super::*;

    fn output() -> Output {
        Output::new(&RelationInfo { name: "t".into(), schema: schema(), standing: true, sql: None }, ChangesKept::default())
            .unwrap()
    }

    fn schema() -> SchemaRef {
        use arrow::datatypes::{DataType, Field, Schema};
        Arc::new(Schema::new(vec![Field::new("a", DataType::Utf8, true), Field::new("n", DataType::Int64, true)]))
    }

    fn delta(tick: u64, rows: &[(&str, i64, i64)]) -> DeltaBatch {
        let a = StringArray::from_iter_values(rows.iter().map(|row| row.0));
        let n = Int64Array::from_iter_values(rows.iter().map(|row| row.1));
        let rows_only = RecordBatch::try_new(schema(), vec![Arc::new(a), Arc::new(n)]).unwrap();
        DeltaBatch { tick, rows: rows_only, diffs: rows.iter().map(|row| row.2).collect() }
    }

    fn read(output: &mut Output, tick: u64) -> Vec<(String, i64, u64)> {
        let mut found = Vec::new();
        output.at(tick, |row, count| found.push((Bytes::from(row), count)));
        let mut rows: Vec<_> = found
            .into_iter()
            .map(|(row, count)| {
                let batch = output.decode(&[row], &[0, 1]).unwrap();
                let a = batch.column(0).as_any().downcast_ref::<StringArray>().unwrap().value(0).to_owned();
                (a, batch.column(1).as_any().downcast_ref::<Int64Array>().unwrap().value(0), count)
            })
            .collect();
        rows.sort();
        rows
    }

    #[test]
    fn every_held_tick_is_exact() {
        let mut output = output();
        output.update(&delta(10, &[("x", 1, 1), ("y", 2, 2)]));
        output.update(&delta(20, &[("x", 1, -1), ("x", 5, 1)]));
        output.update(&delta(30, &[("y", 2, -1)]));
        for since in [0, 10, 15] {
            output.compact(since);
            assert_eq!(read(&mut output, 15), [("x".into(), 1, 1), ("y".into(), 2, 2)]);
            assert_eq!(read(&mut output, 20), [("x".into(), 5, 1), ("y".into(), 2, 2)]);
            assert_eq!(read(&mut output, 99), [("x".into(), 5, 1), ("y".into(), 2, 1)]);
        }
        output.compact(99);
        assert_eq!(read(&mut output, 99), [("x".into(), 5, 1), ("y".into(), 2, 1)]);
        assert_eq!((output.since(), output.held().rows, output.faults()), (99, 2, 0));
    }

    #[test]
    fn changes_and_rows_are_told_from_before_what_can_be_peeked() {
        let mut output = output();
        output.begin(5);
        output.update(&delta(10, &[("x", 1, 1), ("x", 1, 1), ("y", 2, 1), ("y", 2, -1)]));
        output.update(&delta(20, &[("x", 1, -2), ("z", 3, 1)]));
        output.update(&delta(30, &[("z", 3, 4)]));
        let told = |output: &Output, after, upto| -> Vec<(u64, Vec<i64>)> {
            let sorted = |(tick, changes): (u64, Vec<(Bytes, i64)>)| {
                let mut diffs: Vec<i64> = changes.iter().map(|(_, diff)| *diff).collect();
                diffs.sort_unstable();
                (tick, diffs)
            };
            output.changes_between(after, upto).into_iter().map(sorted).collect()
        };
        for since in [5, 10, 20, 25, 60_000] {
            output.compact(since);
            assert_eq!(output.changes_since(), 5);
            assert_eq!(told(&output, 5, 99_999), [(10, vec![2]), (20, vec![-2, 1]), (30, vec![4])], "compacted to {since}");
            assert_eq!(told(&output, 10, 29), [(20, vec![-2, 1])]);
            for (tick, counts) in [(5, vec![]), (10, vec![2]), (19, vec![2]), (20, vec![1]), (30, vec![5])] {
                let found: Vec<i64> = output.rows_back_at(tick).iter().map(|(_, count)| *count).collect();
                assert_eq!(found, counts, "at {tick}, compacted to {since}");
            }
        }
        output.compact(60_025);
        assert_eq!(output.changes_since(), 25);
        assert_eq!(told(&output, 25, 99_999), [(30, vec![4])]);
    }

    #[test]
    fn digests_add_up_over_workers_and_ignore_order() {
        let (mut one, mut left, mut right) = (output(), output(), output());
        one.update(&delta(1, &[("x", 1, 2), ("y", 2, 1)]));
        left.update(&delta(1, &[("y", 2, 1), ("x", 1, 1)]));
        right.update(&delta(1, &[("x", 1, 1)]));
        let ((a, n), (b, m)) = (left.digest(1), right.digest(1));
        assert_eq!(one.digest(1), (a.wrapping_add(b), n + m));
        assert_ne!(one.digest(1), one.digest(0));
    }

    #[test]
    fn a_negative_count_is_hidden_and_counted() {
        let mut output = output();
        output.update(&delta(1, &[("x", 1, -1)]));
        assert_eq!(read(&mut output, 1), []);
        assert_eq!(output.faults(), 1);
    }
}
