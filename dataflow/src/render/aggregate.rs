//! Groups: per key, accumulators that rows are added to and taken from.
//!
//! At a closed tick every changed group withdraws its old row and puts out its new one, in order of keys. A group without
//! rows has no row, except that a question without keys has one group for ever, owned by one worker.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion_common::tree_node::{Transformed, TreeNode};
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use weir_plan::{AggregateCall, Expr};

use super::accumulator::{Accumulator, Arg, Shape, argument};
use super::exchange::{exchange, owner};
use super::keyed::at_close;
use super::multiset::Value;
use super::recomputed::Recomputation;
use super::rows::{Bytes, RowCodec};
use super::{Context, Relation};
use crate::checkpoint::{Share, State, encode};
use crate::delta::{DeltaBatch, Deltas, options};
use crate::expr::{Counters, Exprs, moments, tick_of};

/// What is asked of the groups.
pub(super) struct Question<'p> {
    pub(super) keys: &'p [(Expr, String)],
    pub(super) aggregates: &'p [AggregateCall],
    pub(super) settled_at: Option<&'p Expr>,
    pub(super) forget_at: Option<&'p Expr>,
}

pub(super) fn aggregate<'s>(
    input: &Relation<'s>,
    question: &Question<'_>,
    schema: &SchemaRef,
    context: &Context,
) -> Result<Deltas<'s>, weir_plan::Error> {
    let keys = Exprs::new(question.keys.iter().map(|(key, _)| key), &input.schema, "aggregate, key", &context.counters)?;
    let groups = Groups::new(question, input, schema, context)?;
    let scope = input.deltas.scope();
    let groups = context.keeper.keep(context.state_name("aggregate"), groups);
    let alone = question.keys.is_empty() && owner(&[], scope.peers()) == scope.index();
    // What was put out before a checkpoint is in the states of those behind.
    let first = if alone && context.keeper.restored().is_none() { groups.borrow_mut().close(0, vec![]) } else { None };
    let exchanged = exchange(&input.deltas, keys);
    Ok(at_close(&exchanged, "Aggregate", first, move |tick, batches| groups.borrow_mut().close(tick, batches)))
}

/// All groups of one worker.
struct Groups {
    exprs: Exprs,
    places: Places,
    calls: Vec<Call>,
    codec: RowCodec,
    schema: SchemaRef,
    counters: Arc<Counters>,
    slots: HashMap<Bytes, usize, foldhash::fast::FixedState>,
    groups: Vec<Option<Group>>,
    free: Vec<usize>,
    /// Which groups are forgotten when.
    forget: BTreeSet<(u64, Bytes)>,
    /// Slots that the tick at hand has changed.
    changed: Vec<usize>,
}

/// Where things stand among the evaluated columns: keys come first.
struct Places {
    keys: usize,
    settled_at: Option<usize>,
    forget_at: Option<usize>,
}

struct Call {
    func: weir_plan::AggregateFunc,
    shape: Shape,
    filter: Option<usize>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Group {
    key: Bytes,
    forget_at: Option<u64>,
    rows: i64,
    accumulators: Vec<Accumulator>,
    /// What was put out last.
    shown: Option<Vec<Option<Value>>>,
    #[serde(skip)]
    changed: bool,
}

impl State for Groups {
    type Saved = Vec<Group>;

    fn save(&self) -> Vec<u8> {
        let groups: Vec<&Group> = self.groups.iter().flatten().collect();
        encode(&groups)
    }

    fn load(&mut self, parts: Vec<Self::Saved>, share: Share) {
        for group in parts.into_iter().flatten().filter(|group| share.owns(&group.key)) {
            let slot = self.slot(&group.key, group.forget_at);
            self.groups[slot] = Some(group);
        }
        self.changed.clear();
    }
}

impl Groups {
    fn new(
        question: &Question<'_>,
        input: &Relation<'_>,
        schema: &SchemaRef,
        context: &Context,
    ) -> Result<Self, weir_plan::Error> {
        let mut exprs: Vec<Expr> = question.keys.iter().map(|(key, _)| key.clone()).collect();
        let mut place = |added: Vec<Expr>| {
            let start = exprs.len();
            exprs.extend(added);
            (start..exprs.len()).collect::<Vec<_>>()
        };
        let mut recomputations =
            question.aggregates.iter().map(|call| Recomputation::of(call, &input.schema)).collect::<Result<Vec<_>, _>>()?;
        let args = question.aggregates.iter().zip(&recomputations);
        let args: Vec<_> = args
            .map(|(call, made)| place(made.as_ref().map_or_else(|| argument(call), |(_, columns)| columns.clone())))
            .collect();
        let filters: Vec<_> = question.aggregates.iter().map(|call| place(call.filter.iter().cloned().collect()).pop()).collect();
        let settled_at = question.settled_at.and_then(|at| place(vec![at.clone()]).pop());
        let forget_at = question.forget_at.and_then(|at| place(vec![over_input(at, question.keys)]).pop());
        let exprs = Exprs::new(&exprs, &input.schema, "aggregate", &context.counters)?;
        let types: Vec<_> = exprs.types().cloned().collect();
        let outputs = schema.fields().iter().skip(question.keys.len());
        let calls = question.aggregates.iter().zip(args).zip(filters).zip(outputs).zip(&mut recomputations);
        let calls = calls.map(|((((call, columns), filter), output), recomputation)| {
            let arg_types: Vec<_> = columns.iter().map(|&index| &types[index]).collect();
            let shape = match recomputation.take() {
                Some((recomputation, _)) => Shape::recomputed(recomputation, columns, &arg_types, output.data_type()),
                None => Shape::new(&call.func, columns, &arg_types, output.data_type()),
            };
            Call { func: call.func.clone(), shape, filter }
        });
        let mut groups = Self {
            places: Places { keys: question.keys.len(), settled_at, forget_at },
            calls: calls.collect(),
            codec: RowCodec::new(&types[..question.keys.len()]),
            schema: Arc::clone(schema),
            counters: Arc::clone(&context.counters),
            slots: HashMap::default(),
            groups: vec![],
            free: vec![],
            forget: BTreeSet::new(),
            changed: vec![],
            exprs,
        };
        if question.keys.is_empty() {
            let only = groups.slot(&[], None);
            groups.touch(only);
        }
        Ok(groups)
    }

    /// Answers a tick, given all its rows.
    fn close(&mut self, tick: u64, batches: Vec<DeltaBatch>) -> Option<DeltaBatch> {
        self.forget_until(tick);
        for batch in batches {
            self.add(batch);
        }
        self.answer(tick)
    }

    fn add(&mut self, batch: DeltaBatch) {
        let (batch, columns) = self.exprs.evaluate(batch);
        let moments_of = |place: Option<usize>| place.map(|place| moments(&columns[place]));
        let (settled_at, forget_at) = (moments_of(self.places.settled_at), moments_of(self.places.forget_at));
        let keys = self.codec.encode(&columns[..self.places.keys], batch.len());
        let mut slots = Vec::with_capacity(batch.len());
        let mut forgotten = 0;
        for (row, &diff) in batch.diffs.iter().enumerate() {
            let forget_at = moment(&forget_at, row);
            if forget_at.is_some_and(|at| at <= batch.tick) {
                forgotten += 1;
                slots.push(IGNORED);
                continue;
            }
            let slot = self.slot(keys.row(row), forget_at);
            self.touch(slot);
            if let Some(group) = &mut self.groups[slot] {
                group.rows += diff;
            }
            slots.push(slot);
        }
        self.counters.add_forgotten(forgotten);
        for index in 0..self.calls.len() {
            self.add_to(index, &columns, &batch.diffs, &slots, settled_at.as_ref());
        }
    }

    /// Adds a batch to one aggregate of all groups.
    fn add_to(&mut self, index: usize, columns: &[ArrayRef], diffs: &[i64], slots: &[usize], settled_at: Option<&Int64Array>) {
        let call = &self.calls[index];
        let arg: Arg = call.shape.arg(columns, diffs.len());
        let filter: Option<&BooleanArray> = call.filter.map(|place| columns[place].as_boolean());
        for (row, (&slot, &diff)) in slots.iter().zip(diffs).enumerate() {
            let passes = filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
            if slot == IGNORED || !passes || !arg.takes_part(row) {
                continue;
            }
            let settled_at = settled_at.filter(|at| at.is_valid(row)).map_or(u64::MAX, |at| tick_of(at.value(row)));
            if let Some(group) = &mut self.groups[slot] {
                group.accumulators[index].add(&arg, row, settled_at, diff);
            }
        }
    }

    /// The place of a group, made if need be.
    fn slot(&mut self, key: &[u8], forget_at: Option<u64>) -> usize {
        if let Some(&slot) = self.slots.get(key) {
            return slot;
        }
        let accumulators = self.calls.iter().map(|call| Accumulator::new(&call.func)).collect();
        let group = Some(Group { key: key.into(), forget_at, rows: 0, accumulators, shown: None, changed: false });
        let slot = self.free.pop().unwrap_or(self.groups.len());
        if slot == self.groups.len() {
            self.groups.push(group);
        } else {
            self.groups[slot] = group;
        }
        self.slots.insert(key.into(), slot);
        if let Some(at) = forget_at {
            self.forget.insert((at, key.into()));
        }
        slot
    }

    fn touch(&mut self, slot: usize) {
        if let Some(group) = &mut self.groups[slot]
            && !group.changed
        {
            group.changed = true;
            self.changed.push(slot);
        }
    }

    fn remove(&mut self, slot: usize) {
        if let Some(group) = self.groups[slot].take() {
            self.slots.remove(&group.key);
            self.free.push(slot);
            if let Some(at) = group.forget_at {
                self.forget.remove(&(at, group.key));
            }
        }
    }

    /// Drops groups that are forgotten by this tick.
    fn forget_until(&mut self, tick: u64) {
        while self.forget.first().is_some_and(|(at, _)| *at <= tick) {
            let slot = self.forget.pop_first().and_then(|(_, key)| self.slots.get(&key).copied());
            if let Some(slot) = slot {
                self.remove(slot);
            }
        }
    }

    /// Old rows out, new rows in, for the changed groups in order of their keys.
    fn answer(&mut self, tick: u64) -> Option<DeltaBatch> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.retain(|&slot| self.groups[slot].is_some());
        changed.sort_unstable_by(|&a, &b| self.key(a).cmp(self.key(b)));
        let (mut keys, mut values, mut diffs) = (vec![], vec![], vec![]);
        let mut gone = vec![];
        for slot in changed {
            let Some(group) = &mut self.groups[slot] else { continue };
            group.changed = false;
            let there = group.rows > 0 || self.places.keys == 0;
            let now = there.then(|| {
                let values = group.accumulators.iter_mut().zip(&self.calls);
                let values = values.map(|(accumulator, call)| call.shape.value(accumulator, tick, &self.counters));
                values.collect::<Vec<_>>()
            });
            if group.rows == 0 && self.places.keys > 0 {
                gone.push(slot);
            }
            if now == group.shown {
                continue;
            }
            let before = std::mem::replace(&mut group.shown, now.clone());
            for (row, diff) in [(before, -1), (now, 1)] {
                let Some(row) = row else { continue };
                keys.push(group.key.clone());
                values.push(row);
                diffs.push(diff);
            }
        }
        gone.into_iter().for_each(|slot| self.remove(slot));
        if diffs.is_empty() {
            return None;
        }
        let mut columns = self.codec.decode(keys.iter().map(|key| &**key));
        for (index, call) in self.calls.iter().enumerate() {
            columns.push(call.shape.column(values.iter().map(|row| row[index].as_ref())));
        }
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options(diffs.len()));
        Some(DeltaBatch::new(tick, rows.expect("columns have the types the plan was checked for"), diffs))
    }

    fn key(&self, slot: usize) -> &[u8] {
        self.groups[slot].as_ref().map_or(&[], |group| &group.key)
    }
}

/// An expression over the key columns as one over the input.
fn over_input(expr: &Expr, keys: &[(Expr, String)]) -> Expr {
    let replaced = expr.clone().transform_up(|node| {
        let key = match &node {
            Expr::Column(column) => keys.iter().find(|(_, name)| *name == column.name),
            _ => None,
        };
        Ok(key.map_or_else(|| Transformed::no(node.clone()), |(key, _)| Transformed::yes(key.clone())))
    });
    replaced.expect("replacing a column cannot fail").data
}

fn moment(moments: &Option<Int64Array>, row: usize) -> Option<u64> {
    moments.as_ref().filter(|moments| moments.is_valid(row)).map(|moments| tick_of(moments.value(row)))
}

/// In place of a slot: the row's group is forgotten.
const IGNORED: usize = usize::MAX;
