//! Chains of rows that follow each other, per key (`weir_plan::Sequence` says what a chain is).
//!
//! The predicates are asked where rows are; only rows of some stage travel, to the owner of their key, as time, id and stages. The owner
//! keeps each key's rows in order. A chain depends on rows from its first up to `max_span` later and on no others, so of a changed key only
//! chains that begin within `max_span` before a change are made anew, and what differs is put out. What is kept is not bounded: a late row may
//! still complete a chain.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use weir_plan::{Expr, Sequence};
use xxhash_rust::xxh3::xxh3_64;

use super::gathered::{Gather, Parcel, gathered};
use super::interner::Interner;
use super::rows::{Bytes, RowCodec};
use super::stateless::{bounds_column, times};
use super::{Context, Relation};
use crate::checkpoint::{Share, State, encode};
use crate::delta::{DeltaBatch, Deltas, options};
use crate::expr::Exprs;

pub(super) fn sequence<'s>(
    input: &Relation<'s>,
    sequence: &Sequence,
    schema: &SchemaRef,
    context: &Context,
) -> Result<Deltas<'s>, weir_plan::Error> {
    let keys = sequence.keys.iter().map(|(key, _)| key.clone());
    let stages = sequence.predicates().cloned();
    let of_hits: Vec<Expr> = keys.chain([sequence.time.clone()]).chain(sequence.id.clone()).collect();
    let stages = Exprs::new(&stages.collect::<Vec<_>>(), &input.schema, "sequence, stage", &context.counters)?;
    let of_hits = Exprs::new(&of_hits, &input.schema, "sequence", &context.counters)?;
    let types: Vec<DataType> = of_hits.types().cloned().collect();
    let (key_types, time_type) = (&types[..sequence.keys.len()], &types[sequence.keys.len()]);
    let unit = if *time_type == DataType::Int64 { 1 } else { 1_000_000 };
    let span = i64::try_from(sequence.max_span_ms).expect("the plan was checked: at most a year") * unit;
    let peers = input.deltas.scope().peers();
    let sender = Sender { stages, of_hits, interner: Interner::new(key_types, peers), peers, keys: key_types.len() };
    let chains = Chains {
        shape: Shape::of(sequence, span),
        codec: RowCodec::new(key_types),
        unit,
        schema: Arc::clone(schema),
        keys: HashMap::default(),
    };
    let chains = context.keeper.keep(context.state_name("sequence"), chains);
    Ok(gathered(&input.deltas, "Sequence", sender, move |tick, hits| chains.borrow_mut().close(tick, &hits)))
}

/// A row of some stage. In the order of their fields they are in the order of the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Hit {
    time: i64,
    id: u64,
    /// Bit n: it is a row of stage n. Bits behind the stages: of what must not happen, and of UNTIL.
    stages: u32,
    /// How often it is there.
    count: i64,
}

impl Hit {
    fn is_same(&self, other: &Self) -> bool {
        (self.time, self.id, self.stages) == (other.time, other.id, other.stages)
    }
}

struct Sender {
    stages: Exprs,
    of_hits: Exprs,
    interner: Interner,
    peers: usize,
    keys: usize,
}

/// What goes to the owner of some keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Hits {
    to: u64,
    tick: u64,
    keys: Vec<Bytes>,
    /// The key's place, the row.
    hits: Vec<(u32, Hit)>,
}

impl Parcel for Hits {
    fn to(&self) -> u64 {
        self.to
    }

    fn tick(&self) -> u64 {
        self.tick
    }
}

impl Gather for Sender {
    /// The key's number, the row.
    type Held = Vec<(u32, Hit)>;
    type Parcel = Hits;

    fn add(&mut self, held: &mut Self::Held, batch: DeltaBatch) {
        let (batch, columns) = self.stages.evaluate(batch);
        let stages: Vec<&BooleanArray> = columns.iter().map(|column| column.as_boolean()).collect();
        let mut bits = vec![0_u32; batch.len()];
        for (stage, passes) in stages.iter().enumerate() {
            for row in passes.values().set_indices().filter(|row| passes.is_valid(*row)) {
                bits[row] |= 1 << stage;
            }
        }
        let hits: Vec<u32> = (0_u32..).zip(&bits).filter(|(_, bits)| **bits != 0).map(|(row, _)| row).collect();
        if hits.is_empty() {
            return;
        }
        let mut marked = batch.take(&hits);
        // Which stages a row is of goes through the evaluation in the place of its diff, and so with the rows that stay.
        let diffs = std::mem::replace(&mut marked.diffs, (0_i64..).take(hits.len()).collect());
        let (marked, columns) = self.of_hits.evaluate(marked);
        let (times, _) = times(&columns[self.keys]);
        let ids = columns.get(self.keys + 1).map(ids);
        let absent = |row: usize| times.is_null(row) || columns[..self.keys].iter().any(|key| key.is_null(row));
        let numbers = self.interner.intern(&columns[..self.keys], marked.len());
        for (row, (&number, &place)) in numbers.iter().zip(&marked.diffs).enumerate() {
            if absent(row) {
                continue;
            }
            let place = usize::try_from(place).expect("places are not negative");
            let id = ids.as_ref().map_or(0, |ids| ids[row]);
            held.push((number, Hit { time: times.value(row), id, stages: bits[hits[place] as usize], count: diffs[place] }));
        }
    }

    fn flush(&mut self, held: Self::Held, tick: u64) -> Vec<Hits> {
        let none = |to: usize| Hits { to: to as u64, tick, keys: vec![], hits: vec![] };
        let mut parcels: Vec<Hits> = (0..self.peers).map(none).collect();
        let mut places = vec![u32::MAX; self.interner.len()];
        for (number, hit) in held {
            let (key, owner) = self.interner.key(number);
            let (parcel, place) = (&mut parcels[owner], &mut places[number as usize]);
            if *place == u32::MAX {
                *place = u32::try_from(parcel.keys.len()).expect("a tick has fewer than 2^32 keys");
                parcel.keys.push(key.clone());
            }
            parcel.hits.push((*place, hit));
        }
        parcels.retain(|parcel| !parcel.hits.is_empty());
        parcels
    }

    fn rest(&mut self) {
        if self.interner.len() > KEYS_MAX {
            self.interner.clear();
        }
    }
}

/// Ids as numbers that set rows apart: integers as they are, in their order; others by a hash of their bytes.
fn ids(column: &ArrayRef) -> Vec<u64> {
    if column.data_type().is_integer()
        && let Ok(integers) = cast(column, &DataType::Int64)
    {
        let integers: &Int64Array = integers.as_primitive();
        return integers.iter().map(|id| id.unwrap_or(i64::MIN).cast_unsigned() ^ 1 << 63).collect();
    }
    let encoded = RowCodec::new([column.data_type()]).encode(&[Arc::clone(column)], column.len());
    (0..column.len()).map(|row| xxh3_64(encoded.row(row))).collect()
}

/// What a chain is.
#[derive(Debug, Clone, Copy)]
struct Shape {
    stages: usize,
    /// In the units of the time.
    span: i64,
    /// Whether rows of one time are in the order of their ids.
    has_id: bool,
    /// Behind how many stages what must not happen stands.
    after: [u8; 32],
    absent: usize,
    has_until: bool,
}

/// A chain: the time of each of its rows.
type Chain = Box<[i64]>;

impl Shape {
    fn of(sequence: &Sequence, span: i64) -> Self {
        let mut after = [0; 32];
        for (place, absent) in after.iter_mut().zip(&sequence.absent) {
            *place = u8::try_from(absent.after).expect("the plan was checked: at most 32 stages");
        }
        let (stages, has_id, has_until) = (sequence.stages.len(), sequence.id.is_some(), sequence.until.is_some());
        Self { stages, span, has_id, after, absent: sequence.absent.len(), has_until }
    }

    /// Bits that a row may have.
    fn bits(self) -> usize {
        self.stages + self.absent + usize::from(self.has_until)
    }

    /// The chains that begin from `first` to `last`, of rows in order, with how often each is there.
    fn chains(self, rows: &[Hit], first: i64, last: i64) -> Vec<(Chain, i64)> {
        let from = rows.partition_point(|hit| hit.time < first);
        let until = rows.partition_point(|hit| hit.time <= last.saturating_add(self.span));
        let rows = &rows[from..until];
        let mut found = vec![];
        // Per bit: the earliest row of it behind the row at hand. Per row: those that its stages ask for; in the place of a stage the next
        // stage's, in the places behind them what would break the chain.
        let bits = self.bits();
        let mut earliest: Vec<u32> = vec![NONE; bits];
        let mut next: Vec<u32> = vec![NONE; rows.len() * bits];
        let mut end = rows.len();
        while end > 0 {
            // Rows without an order between them see the same rows behind them.
            let begin = rows[..end].partition_point(|hit| self.is_before(hit, &rows[end - 1]));
            for (place, hit) in rows.iter().enumerate().take(end).skip(begin).filter(|(_, hit)| hit.count > 0) {
                for stage in (0..self.stages - 1).filter(|stage| hit.stages >> stage & 1 == 1) {
                    next[place * bits + stage] = earliest[stage + 1];
                }
                next[place * bits + self.stages..(place + 1) * bits].copy_from_slice(&earliest[self.stages..]);
                if hit.stages & 1 == 1 && hit.time <= last {
                    found.extend(self.chain(rows, &next, place).map(|chain| (chain, hit.count)));
                }
            }
            for (place, hit) in rows.iter().enumerate().take(end).skip(begin).filter(|(_, hit)| hit.count > 0) {
                for stage in (0..bits).filter(|stage| hit.stages >> stage & 1 == 1) {
                    earliest[stage] = u32::try_from(place).expect("a key has fewer than 2^32 rows");
                }
            }
            end = begin;
        }
        found
    }

    fn chain(self, rows: &[Hit], next: &[u32], first: usize) -> Option<Chain> {
        let mut times = Vec::with_capacity(self.stages);
        let mut places = [NONE; 32];
        let mut place = u32::try_from(first).ok()?;
        for (stage, kept) in places.iter_mut().enumerate().take(self.stages) {
            let hit = rows.get(place as usize)?;
            times.push(hit.time);
            *kept = place;
            place = next[place as usize * self.bits() + stage];
        }
        let (began, ended) = (*times.first()?, *times.last()?);
        let is_within = |time: i64| time.checked_sub(began).is_some_and(|span| span < self.span);
        let row = |place: u32| rows.get(place as usize);
        // What would break it behind one of its rows.
        let breaking = |place: u32, bit: usize| row(next[place as usize * self.bits() + self.stages + bit]);
        let is_broken = (0..self.absent).any(|absent| {
            let after = usize::from(self.after[absent]);
            breaking(places[after - 1], absent).is_some_and(|hit| match places[..self.stages].get(after) {
                Some(following) => row(*following).is_some_and(|following| self.is_before(hit, following)),
                None => is_within(hit.time),
            })
        });
        let is_ended = || {
            let until = if self.has_until { breaking(places[0], self.absent) } else { None };
            until.is_some_and(|hit| row(places[self.stages - 1]).is_some_and(|last| self.is_before(hit, last)))
        };
        (is_within(ended) && !is_broken && !is_ended()).then(|| times.into())
    }

    fn is_before(self, one: &Hit, other: &Hit) -> bool {
        if self.has_id { (one.time, one.id) < (other.time, other.id) } else { one.time < other.time }
    }
}

/// All keys that this worker owns.
struct Chains {
    shape: Shape,
    codec: RowCodec,
    unit: i64,
    schema: SchemaRef,
    keys: HashMap<Bytes, Vec<Hit>, foldhash::fast::FixedState>,
}

impl Chains {
    fn close(&mut self, tick: u64, parcels: &[Hits]) -> Option<DeltaBatch> {
        let mut arrived: Vec<(&[u8], Hit)> = vec![];
        for parcel in parcels {
            arrived.extend(parcel.hits.iter().map(|(key, hit)| (&*parcel.keys[*key as usize], *hit)));
        }
        arrived.sort_unstable();
        let mut keys: Vec<&[u8]> = vec![];
        let mut changes: Vec<(u32, Chain, i64)> = vec![];
        for run in arrived.chunk_by(|a, b| a.0 == b.0) {
            let key = run[0].0;
            if !self.keys.contains_key(key) {
                self.keys.insert(key.into(), vec![]);
            }
            let Some(rows) = self.keys.get_mut(key) else { continue };
            let moved = change(self.shape, rows, run.iter().map(|(_, hit)| *hit));
            if rows.is_empty() {
                self.keys.remove(key);
            }
            if !moved.is_empty() {
                let place = u32::try_from(keys.len()).expect("a tick has fewer than 2^32 keys");
                keys.push(key);
                changes.extend(moved.into_iter().map(|(chain, diff)| (place, chain, diff)));
            }
        }
        (!changes.is_empty()).then(|| self.batch(tick, &keys, &changes))
    }

    fn batch(&self, tick: u64, keys: &[&[u8]], changes: &[(u32, Chain, i64)]) -> DeltaBatch {
        let keys = self.codec.decode(keys.iter().copied());
        let places = UInt32Array::from_iter_values(changes.iter().map(|(place, ..)| *place));
        let mut columns: Vec<ArrayRef> =
            keys.iter().map(|key| take(key, &places, None).expect("each change has a key")).collect();
        for stage in 0..self.shape.stages {
            columns.push(bounds_column(changes.iter().map(|(_, chain, _)| chain[stage]).collect(), self.unit));
        }
        let diffs: Vec<i64> = changes.iter().map(|(.., diff)| *diff).collect();
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options(diffs.len()));
        DeltaBatch::new(tick, rows.expect("columns have the types the plan was checked for"), diffs)
    }
}

/// Adds rows, in order, to a key's; returns what that changes of its chains.
fn change(shape: Shape, rows: &mut Vec<Hit>, arrived: impl Iterator<Item = Hit>) -> Vec<(Chain, i64)> {
    let mut merged: Vec<Hit> = Vec::new();
    for hit in arrived {
        match merged.last_mut().filter(|last| last.is_same(&hit)) {
            Some(last) => last.count += hit.count,
            None => merged.push(hit),
        }
    }
    merged.retain(|hit| hit.count != 0);
    let (Some(earliest), Some(latest)) = (merged.first(), merged.last()) else { return vec![] };
    let (first, last) = (earliest.time.saturating_sub(shape.span), latest.time);
    let before = shape.chains(rows, first, last);
    for hit in merged {
        let key = |hit: &Hit| (hit.time, hit.id, hit.stages);
        let place = rows.partition_point(|row| key(row) < key(&hit));
        match rows.get_mut(place).filter(|row| row.is_same(&hit)) {
            Some(row) if row.count + hit.count == 0 => drop(rows.remove(place)),
            Some(row) => row.count += hit.count,
            None => rows.insert(place, hit),
        }
    }
    let mut moved = shape.chains(rows, first, last);
    moved.extend(before.into_iter().map(|(chain, count)| (chain, -count)));
    super::keyed::consolidate(&mut moved);
    moved
}

impl State for Chains {
    type Saved = Vec<(Bytes, Vec<Hit>)>;

    fn save(&self) -> Vec<u8> {
        encode(&self.keys.iter().collect::<Vec<_>>())
    }

    fn load(&mut self, parts: Vec<Self::Saved>, share: Share) {
        self.keys.extend(parts.into_iter().flatten().filter(|(key, _)| share.owns(key)));
    }
}

const NONE: u32 = u32::MAX;

/// More keys than these (some hundred bytes each) are forgotten between ticks and numbered anew.
const KEYS_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// By the definition: from each first row on, step by step.
    fn brute(shape: Shape, rows: &[Hit]) -> BTreeMap<Chain, i64> {
        let mut found = BTreeMap::new();
        for first in rows.iter().filter(|hit| hit.stages & 1 == 1) {
            let mut chain = vec![first];
            for stage in 1..shape.stages {
                let after = |hit: &&Hit| hit.stages >> stage & 1 == 1 && shape.is_before(chain[stage - 1], hit);
                let following = rows.iter().filter(after).min_by_key(|hit| (hit.time, if shape.has_id { hit.id } else { 0 }));
                chain.extend(following);
                if chain.len() == stage {
                    break;
                }
            }
            let last = chain[chain.len() - 1];
            let is_of = |hit: &Hit, bit: usize| hit.stages >> bit & 1 == 1;
            let between = |hit: &Hit, one: &Hit, other: &Hit| shape.is_before(one, hit) && shape.is_before(hit, other);
            let broken = |hit: &Hit| {
                let absent = (0..shape.absent).any(|absent| {
                    let after = usize::from(shape.after[absent]);
                    is_of(hit, shape.stages + absent)
                        && match chain.get(after) {
                            Some(following) => between(hit, chain[after - 1], following),
                            None => shape.is_before(last, hit) && hit.time - first.time < shape.span,
                        }
                });
                absent || (shape.has_until && is_of(hit, shape.stages + shape.absent) && between(hit, first, last))
            };
            if chain.len() == shape.stages && last.time - first.time < shape.span && !rows.iter().any(broken) {
                *found.entry(chain.iter().map(|hit| hit.time).collect()).or_insert(0) += first.count;
            }
        }
        found
    }

    proptest! {
        #[test]
        fn chains_are_those_of_the_set_of_rows(
            rows in prop::collection::vec((0_i64..40, 0_u64..3, 1_u32..64, any::<bool>()), 1..40),
            cuts in prop::collection::vec(1_usize..6, 40),
            span in 1_i64..30,
            has_id in any::<bool>(),
            (absent, has_until, places) in (0_usize..3, any::<bool>(), [1_u8..4, 1..4]),
        ) {
            let mut after = [0; 32];
            after[..2].copy_from_slice(&places);
            let shape = Shape { stages: 3, span, has_id, after, absent, has_until };
            // Rows of nothing but the bits of this shape never come.
            let mask = (1_u32 << shape.bits()) - 1;
            // One (time, id) is one row: its stages follow from it. It comes, and some go again later, in any order of times.
            let mut all: Vec<Hit> = rows
                .iter()
                .map(|&(time, id, stages, _)| {
                    let (id, stages) = if has_id { (id, 1 + (time as u32 * 29 + id as u32 * 11) % 63) } else { (0, stages) };
                    Hit { time, id, stages: stages & mask, count: 1 }
                })
                .collect();
            all.extend(all.clone().into_iter().zip(&rows).filter(|(_, row)| row.3).map(|(hit, _)| Hit { count: -1, ..hit }));
            let (mut kept, mut shown, mut set) = (vec![], BTreeMap::<Chain, i64>::new(), BTreeMap::<(i64, u64, u32), i64>::new());
            let mut rest = all.as_slice();
            for cut in cuts.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (mut tick, later) = (rest[..cut.min(rest.len())].to_vec(), &rest[cut.min(rest.len())..]);
                rest = later;
                tick.iter().for_each(|hit| *set.entry((hit.time, hit.id, hit.stages)).or_default() += hit.count);
                tick.sort_unstable();
                for (chain, diff) in change(shape, &mut kept, tick.into_iter()) {
                    *shown.entry(chain).or_default() += diff;
                }
                shown.retain(|_, count| *count != 0);
                let present: Vec<Hit> = set
                    .iter()
                    .filter(|(_, count)| **count > 0)
                    .map(|(&(time, id, stages), &count)| Hit { time, id, stages, count })
                    .collect();
                prop_assert_eq!(&shown, &brute(shape, &present));
            }
            prop_assert_eq!(kept.len(), set.values().filter(|count| **count != 0).count());
        }
    }
}
