//! Pairs of rows with equal keys.
//!
//! An own keyed operator, not differential arrangements: ticks are totally ordered and answered once closed, so only the
//! present rows are needed, no history of batches; and outer joins need, per row, how many partners it has. What it gives up
//! is sharing its state with other joins on the same key.
//!
//! Per changed key it looks at pairs of which one side changed. A row whose partners pass from none to some, or back, moves
//! between its pairs and its NULL-extended form at the same tick. Of semi, anti and mark joins only that moving is put out.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::operator::Operator;
use weir_plan::{Expr, JoinKind};

use super::exchange::exchange;
use super::keyed::{Open, consolidate};
use super::rows::{Bytes, RowCodec};
use super::{Context, Relation};
use crate::checkpoint::{Share, State, encode};
use crate::delta::{DeltaBatch, Deltas, options};
use crate::expr::Exprs;

/// What is asked of the pairs.
pub(super) struct Question<'p> {
    pub(super) on: &'p [(Expr, Expr)],
    pub(super) kind: JoinKind,
    pub(super) residual: Option<&'p Expr>,
}

pub(super) fn join<'s>(
    left: &Relation<'s>,
    right: &Relation<'s>,
    question: &Question<'_>,
    schema: &SchemaRef,
    context: &Context,
) -> Result<Deltas<'s>, weir_plan::Error> {
    let counters = &context.counters;
    let left_keys = Exprs::new(question.on.iter().map(|(key, _)| key), &left.schema, "join", counters)?;
    let right_keys = Exprs::new(question.on.iter().map(|(_, key)| key), &right.schema, "join", counters)?;
    let columns = left.schema.fields().iter().chain(right.schema.fields());
    let pairs: SchemaRef = if question.kind.pairs() {
        Arc::clone(schema)
    } else {
        Arc::new(Schema::new(columns.map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>()))
    };
    let residual = question.residual.map(|residual| Exprs::new([residual], &pairs, "join", counters)).transpose()?;
    let left_rows = exchange(&left.deltas, left_keys.clone());
    let right_rows = exchange(&right.deltas, right_keys.clone());
    let joiner = Joiner {
        left: Side::new(left_keys, &left.schema, !matches!(question.kind, JoinKind::Inner | JoinKind::Semi)),
        right: Side::new(right_keys, &right.schema, question.kind == JoinKind::Full),
        residual,
        kind: question.kind,
        pairs,
        schema: Arc::clone(schema),
    };
    let joiner = context.keeper.keep(context.state_name("join"), joiner);
    let name = "Join";
    Ok(left_rows.binary_frontier::<_, CapacityContainerBuilder<Vec<DeltaBatch>>, _, _, _, _>(
        right_rows,
        Pipeline,
        Pipeline,
        name,
        move |_, _| {
            let mut open: Open<[Vec<DeltaBatch>; 2]> = Open::new();
            move |(left, left_frontier), (right, right_frontier), output| {
                left.for_each_stamp(|cap, batches| {
                    if cap.least().is_none() {
                        return;
                    }
                    for batch in batches.flat_map(|batches| batches.drain(..)) {
                        open.entry(batch.tick).or_insert_with(|| (cap.delayed(&batch.tick, 0), Default::default())).1[0]
                            .push(batch);
                    }
                });
                right.for_each_stamp(|cap, batches| {
                    if cap.least().is_none() {
                        return;
                    }
                    for batch in batches.flat_map(|batches| batches.drain(..)) {
                        open.entry(batch.tick).or_insert_with(|| (cap.delayed(&batch.tick, 0), Default::default())).1[1]
                            .push(batch);
                    }
                });
                while let Some(entry) = open.first_entry() {
                    if left_frontier.less_equal(entry.key()) || right_frontier.less_equal(entry.key()) {
                        break;
                    }
                    let tick = *entry.key();
                    let (cap, [left, right]) = entry.remove();
                    if let Some(batch) = joiner.borrow_mut().close(tick, left, right) {
                        output.session(&cap).give(batch);
                    }
                }
            }
        },
    ))
}

struct Joiner {
    left: Side,
    right: Side,
    residual: Option<Exprs>,
    kind: JoinKind,
    /// The columns of both sides.
    pairs: SchemaRef,
    schema: SchemaRef,
}

impl State for Joiner {
    type Saved = [Vec<(Bytes, Vec<Held>)>; 2];

    fn save(&self) -> Vec<u8> {
        let rows = [&self.left, &self.right].map(|side| side.rows.iter().collect::<Vec<_>>());
        encode(&rows)
    }

    fn load(&mut self, parts: Vec<Self::Saved>, share: Share) {
        for [left, right] in parts {
            self.left.rows.extend(left.into_iter().filter(|(key, _)| share.owns(key)));
            self.right.rows.extend(right.into_iter().filter(|(key, _)| share.owns(key)));
        }
    }
}

/// One side's present rows, by key.
struct Side {
    keys: Exprs,
    key_codec: RowCodec,
    codec: RowCodec,
    schema: SchemaRef,
    /// Rows without a partner are put out with NULLs for the other side.
    outer: bool,
    rows: HashMap<Bytes, Vec<Held>, foldhash::fast::FixedState>,
}

/// A row that is there.
#[derive(Clone, Serialize, Deserialize)]
struct Held {
    row: Arc<[u8]>,
    count: i64,
    /// Copies of partners.
    partners: i64,
}

/// A row of a changed key, before and after the tick.
struct Seen {
    row: Arc<[u8]>,
    before: i64,
    after: i64,
    partners_before: i64,
    partners_after: i64,
}

impl Seen {
    fn changed(&self) -> bool {
        self.before != self.after
    }

    /// The change of the NULL-extended row.
    fn alone(&self) -> i64 {
        let after = if self.partners_after == 0 { self.after } else { 0 };
        let before = if self.partners_before == 0 { self.before } else { 0 };
        after - before
    }

    /// The change of the row where it has a partner.
    fn accompanied(&self) -> i64 {
        self.after - self.before - self.alone()
    }
}

/// A change of one side: its key and row.
type Change = ((Bytes, Arc<[u8]>), i64);

/// A left row, a right row, and how often; one side is absent where an outer join found no partner.
type Pair = (Option<Arc<[u8]>>, Option<Arc<[u8]>>, i64);
type Pairs = Vec<Pair>;
/// A row whose key has a NULL, and its diff.
type Unkeyed = (Arc<[u8]>, i64);

impl Side {
    fn new(keys: Exprs, schema: &SchemaRef, outer: bool) -> Self {
        let types: Vec<_> = keys.types().cloned().collect();
        let (key_codec, codec) = (RowCodec::new(&types), RowCodec::of(schema));
        Self { keys, key_codec, codec, schema: Arc::clone(schema), outer, rows: HashMap::default() }
    }

    /// This tick's change, and what of it has a NULL key and so no partner ever.
    fn changes(&self, batches: Vec<DeltaBatch>) -> (Vec<Change>, Vec<Unkeyed>) {
        let (mut changes, mut alone) = (vec![], vec![]);
        for batch in batches {
            let (batch, columns) = self.keys.evaluate(batch);
            let keys = self.key_codec.encode(&columns, batch.len());
            let rows = self.codec.encode(batch.rows.columns(), batch.len());
            for (row, &diff) in batch.diffs.iter().enumerate() {
                let bytes: Arc<[u8]> = rows.row(row).into();
                if columns.iter().all(|column| column.is_valid(row)) {
                    changes.push(((keys.row(row).into(), bytes), diff));
                } else if self.outer {
                    alone.push((bytes, diff));
                }
            }
        }
        consolidate(&mut changes);
        consolidate(&mut alone);
        (changes, alone)
    }

    /// The rows of a key that this tick is about: all of them, or only those that change when the other side does not.
    fn seen(&self, key: &[u8], changes: &[Change], all: bool) -> Vec<Seen> {
        let held = self.rows.get(key).map_or(&[][..], Vec::as_slice);
        let mut seen = Vec::with_capacity(changes.len());
        let mut held = held.iter().peekable();
        let mut changes = changes.iter().peekable();
        loop {
            let order = match (held.peek(), changes.peek()) {
                (None, None) => return seen,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(held), Some(((_, row), _))) => held.row.cmp(row),
            };
            let old = if order.is_le() { held.next() } else { None };
            let change = if order.is_ge() { changes.next() } else { None };
            let diff = change.map_or(0, |(_, diff)| *diff);
            if diff == 0 && !all {
                continue;
            }
            let row = old.map(|old| &old.row).or_else(|| change.map(|((_, row), _)| row));
            let (before, partners) = old.map_or((0, 0), |old| (old.count, old.partners));
            if let Some(row) = row {
                let (after, row) = (before + diff, Arc::clone(row));
                seen.push(Seen { row, before, after, partners_before: partners, partners_after: partners });
            }
        }
    }

    /// Keeps what is there after the tick.
    fn keep(&mut self, key: &Bytes, seen: Vec<Seen>, all: bool) {
        let now = |seen: Seen| Held { row: seen.row, count: seen.after, partners: seen.partners_after };
        if all {
            let held: Vec<_> = seen.into_iter().filter(|seen| seen.after != 0).map(now).collect();
            if held.is_empty() {
                self.rows.remove(key);
            } else {
                self.rows.insert(key.clone(), held);
            }
            return;
        }
        if seen.is_empty() {
            return;
        }
        let held = self.rows.entry(key.clone()).or_default();
        for seen in seen {
            match (held.binary_search_by(|held| held.row.cmp(&seen.row)), seen.after) {
                (Ok(at), 0) => drop(held.remove(at)),
                (Ok(at), _) => held[at] = now(seen),
                (Err(_), 0) => {}
                (Err(at), _) => held.insert(at, now(seen)),
            }
        }
        if held.is_empty() {
            self.rows.remove(key);
        }
    }

    fn decode(&self, rows: impl Iterator<Item = Option<Arc<[u8]>>>) -> Vec<ArrayRef> {
        let null = self.codec.null();
        let rows: Vec<_> = rows.collect();
        let columns = self.codec.decode(rows.iter().map(|row| row.as_deref().unwrap_or(&null)));
        assert_eq!(columns.len(), self.schema.fields().len(), "the codec is the schema's");
        columns
    }
}

/// The part of a tick that is about one key.
struct Meeting {
    key: Bytes,
    left: Vec<Seen>,
    right: Vec<Seen>,
    left_all: bool,
    right_all: bool,
}

impl Joiner {
    fn close(&mut self, tick: u64, left: Vec<DeltaBatch>, right: Vec<DeltaBatch>) -> Option<DeltaBatch> {
        let (left, left_alone) = self.left.changes(left);
        let (right, right_alone) = self.right.changes(right);
        let mut out: Pairs = left_alone.into_iter().map(|(row, diff)| (Some(row), None, diff)).collect();
        out.extend(right_alone.into_iter().map(|(row, diff)| (None, Some(row), diff)));
        let mut meetings = self.meetings(&left, &right);
        let passes = self.residual.as_ref().map(|residual| self.verdicts(residual, tick, &meetings));
        let mut passes = passes.map(|passes| passes.into_iter());
        for meeting in &mut meetings {
            let out = self.kind.pairs().then_some(&mut out);
            meeting.pair(out, || passes.as_mut().is_none_or(|passes| passes.next() == Some(true)));
        }
        for meeting in meetings {
            if matches!(self.kind, JoinKind::Semi | JoinKind::Mark) {
                let marked = meeting.left.iter().filter(|seen| seen.accompanied() != 0);
                out.extend(marked.map(|seen| (Some(Arc::clone(&seen.row)), Some(Arc::from([])), seen.accompanied())));
            }
            for (seen, outer, is_left) in [(&meeting.left, self.left.outer, true), (&meeting.right, self.right.outer, false)] {
                for seen in seen.iter().filter(|seen| outer && seen.alone() != 0) {
                    let row = Some(Arc::clone(&seen.row));
                    out.push(if is_left { (row, None, seen.alone()) } else { (None, row, seen.alone()) });
                }
            }
            self.left.keep(&meeting.key, meeting.left, meeting.left_all);
            self.right.keep(&meeting.key, meeting.right, meeting.right_all);
        }
        self.batch(tick, out)
    }

    /// The changed keys, in order, each with the rows that matter.
    fn meetings(&self, mut left: &[Change], mut right: &[Change]) -> Vec<Meeting> {
        let mut meetings = vec![];
        while let Some(key) = first_key(left, right).cloned() {
            let (left_changes, right_changes) = (split_key(&mut left, &key), split_key(&mut right, &key));
            let (left_all, right_all) = (!right_changes.is_empty(), !left_changes.is_empty());
            let left = self.left.seen(&key, left_changes, left_all);
            let right = self.right.seen(&key, right_changes, right_all);
            meetings.push(Meeting { key, left, right, left_all, right_all });
        }
        meetings
    }

    /// Whether each pair passes the residual predicate, in the order in which `Meeting::pair` asks.
    fn verdicts(&self, residual: &Exprs, tick: u64, meetings: &[Meeting]) -> Vec<bool> {
        let pairs = meetings.iter().flat_map(Meeting::pairs);
        let pairs: Vec<_> =
            pairs.map(|(left, right)| (Some(Arc::clone(&left.row)), Some(Arc::clone(&right.row)), change(left, right))).collect();
        pairs.chunks(PAIRS_PER_BATCH).flat_map(|pairs| residual.passes(&self.rows(tick, pairs))).collect()
    }

    fn batch(&self, tick: u64, mut out: Pairs) -> Option<DeltaBatch> {
        out.retain(|(_, _, diff)| *diff != 0);
        (!out.is_empty()).then(|| if self.kind.pairs() { self.rows(tick, &out) } else { self.halves(tick, &out) })
    }

    /// Rows of the left side; what stands for the right says whether there is a partner.
    fn halves(&self, tick: u64, rows: &[Pair]) -> DeltaBatch {
        let mut columns = self.left.decode(rows.iter().map(|(left, _, _)| left.clone()));
        if self.kind == JoinKind::Mark {
            columns.push(Arc::new(rows.iter().map(|(_, right, _)| Some(right.is_some())).collect::<BooleanArray>()));
        }
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options(rows.len()));
        let diffs = rows.iter().map(|(_, _, diff)| *diff).collect();
        DeltaBatch::new(tick, batch.expect("a row has the columns of the left side"), diffs)
    }

    fn rows(&self, tick: u64, pairs: &[Pair]) -> DeltaBatch {
        let mut columns = self.left.decode(pairs.iter().map(|(left, _, _)| left.clone()));
        columns.extend(self.right.decode(pairs.iter().map(|(_, right, _)| right.clone())));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.pairs), columns, &options(pairs.len()));
        let diffs = pairs.iter().map(|(_, _, diff)| *diff).collect();
        DeltaBatch::new(tick, rows.expect("a pair has the columns of both sides"), diffs)
    }
}

impl Meeting {
    /// Pairs of which at least one side changed.
    fn pairs(&self) -> impl Iterator<Item = (&Seen, &Seen)> {
        let pairs = self.left.iter().flat_map(|left| self.right.iter().map(move |right| (left, right)));
        pairs.filter(|(left, right)| left.changed() || right.changed())
    }

    /// Puts out the pairs that pass, and counts each row's partners before and after.
    fn pair(&mut self, mut out: Option<&mut Pairs>, mut passes: impl FnMut() -> bool) {
        for seen in self.left.iter_mut().chain(&mut self.right).filter(|seen| seen.changed()) {
            // A changed row meets all of the other side, so its partners are counted afresh.
            (seen.partners_before, seen.partners_after) = (0, 0);
        }
        for left in &mut self.left {
            for right in &mut self.right {
                if !(left.changed() || right.changed()) || !passes() {
                    continue;
                }
                left.meet(right.before, right.after);
                right.meet(left.before, left.after);
                if let Some(out) = &mut out {
                    out.push((Some(Arc::clone(&left.row)), Some(Arc::clone(&right.row)), change(left, right)));
                }
            }
        }
    }
}

impl Seen {
    /// Counts a partner that was there `before` times and is `after` times.
    fn meet(&mut self, before: i64, after: i64) {
        if self.changed() {
            self.partners_before += before;
            self.partners_after += after;
        } else {
            self.partners_after += after - before;
        }
    }
}

fn change(left: &Seen, right: &Seen) -> i64 {
    left.after * right.after - left.before * right.before
}

fn first_key<'c>(left: &'c [Change], right: &'c [Change]) -> Option<&'c Bytes> {
    let key = |changes: &'c [Change]| changes.first().map(|((key, _), _)| key);
    key(left).into_iter().chain(key(right)).min()
}

/// Takes the changes of a key off the front.
fn split_key<'c>(changes: &mut &'c [Change], key: &Bytes) -> &'c [Change] {
    let (of_key, rest) = changes.split_at(changes.partition_point(|((other, _), _)| other <= key));
    *changes = rest;
    of_key
}

/// Pairs are tested in batches of this many.
const PAIRS_PER_BATCH: usize = 8_192;
