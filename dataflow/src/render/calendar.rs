//! The calendar: rows that come or go because time passes.
//!
//! A row given at tick t is put out at max(t, from) and withdrawn at until, if that comes later. So the operator is linear:
//! a withdrawal before `until` cancels what is pending, one after it finds the row gone and is absorbed. Pending entries
//! are held once each, consolidated, beside one capability for the earliest.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::Array;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::operator::Operator;
use weir_plan::Expr;

use super::keyed::consolidate;
use super::rows::{Bytes, RowCodec};
use super::{Context, Relation};
use crate::checkpoint::{Share, State, encode};
use crate::delta::{DeltaBatch, Deltas};
use crate::expr::{Exprs, moments, tick_of};

pub(super) fn visible<'s>(
    input: &Relation<'s>,
    from: Option<&Expr>,
    until: Option<&Expr>,
    context: &Context,
) -> Result<Deltas<'s>, weir_plan::Error> {
    let exprs = Exprs::new(from.into_iter().chain(until), &input.schema, "visible", &context.counters)?;
    let bounds = Bounds { exprs, has_from: from.is_some(), has_until: until.is_some() };
    let codec = RowCodec::of(&input.schema);
    let (schema, ticks) = (Arc::clone(&input.schema), context.ticks.clone());
    let deltas = input.deltas.clone();
    let due = context.keeper.keep(context.state_name("calendar"), Due::default());
    Ok(deltas.unary_frontier::<CapacityContainerBuilder<Vec<DeltaBatch>>, _, _, _>(Pipeline, "Calendar", move |cap, _| {
        let mut held: Option<Capability<u64>> = due.borrow().first().map(|first| cap.delayed(&first));
        drop(cap);
        move |(input, frontier), output| {
            let due = &mut *due.borrow_mut();
            input.for_each_stamp(|cap, batches| {
                if cap.least().is_none() {
                    return;
                }
                let mut out = output.session(&cap);
                for batch in batches.flat_map(|batches| batches.drain(..)) {
                    let now = due.schedule(&bounds, &codec, batch);
                    if !now.is_empty() {
                        out.give(now);
                    }
                }
                // One capability, for the earliest entry: every entry's own would burden all workers' progress tracking.
                if let Some(first) = due.first()
                    && held.as_ref().is_none_or(|held| first < *held.time())
                {
                    held = Some(cap.delayed(&first, 0));
                }
            });
            while let Some(first) = due.first().filter(|first| !frontier.less_equal(first)) {
                let Some(cap) = held.as_ref() else { unreachable!("entries are held by a capability") };
                let tick = ticks.at_or_after(first);
                let rows = due.take_through(tick);
                if !rows.is_empty() {
                    let diffs = rows.iter().map(|(_, diff)| *diff).collect();
                    let batch = codec.batch(&schema, tick, rows.iter().map(|(row, _)| &**row), diffs);
                    output.session(&cap.delayed(&tick)).give(batch);
                }
                if let (Some(held), Some(next)) = (&mut held, due.first()) {
                    held.downgrade(&next);
                }
            }
            if due.first().is_none() {
                held = None;
            }
        }
    }))
}

struct Bounds {
    exprs: Exprs,
    has_from: bool,
    has_until: bool,
}

/// What comes or goes later, by moment.
#[derive(Default)]
struct Due(BTreeMap<u64, Pending>);

/// The operator is linear, so a pending row may be on another worker than what withdraws it: each row has its owner by its bytes.
impl State for Due {
    type Saved = Vec<(u64, Vec<(Bytes, i64)>)>;

    fn save(&self) -> Vec<u8> {
        let consolidated = |(moment, pending): (&u64, &Pending)| {
            let mut rows = pending.rows.clone();
            consolidate(&mut rows);
            (*moment, rows)
        };
        encode(&self.0.iter().map(consolidated).collect::<Vec<_>>())
    }

    fn load(&mut self, parts: Vec<Self::Saved>, share: Share) {
        for (moment, rows) in parts.into_iter().flatten() {
            for (row, diff) in rows.into_iter().filter(|(row, _)| share.owns(row)) {
                self.add(moment, &row, diff);
            }
        }
    }
}

#[derive(Default)]
struct Pending {
    rows: Vec<(Bytes, i64)>,
    /// Length at which equal rows are added up again.
    consolidate_at: usize,
}

impl Due {
    fn first(&self) -> Option<u64> {
        self.0.first_key_value().map(|(&moment, _)| moment)
    }

    /// Enters what lies ahead; returns what is visible now.
    fn schedule(&mut self, bounds: &Bounds, codec: &RowCodec, batch: DeltaBatch) -> DeltaBatch {
        let (batch, columns) = bounds.exprs.evaluate(batch);
        let mut columns = columns.iter().map(moments);
        let from = bounds.has_from.then(|| columns.next()).flatten();
        let until = bounds.has_until.then(|| columns.next()).flatten();
        let at = |moments: &Option<arrow::array::Int64Array>, row: usize| {
            moments.as_ref().filter(|moments| moments.is_valid(row)).map(|moments| tick_of(moments.value(row)))
        };
        let bytes = codec.encode(batch.rows.columns(), batch.len());
        let mut now = vec![];
        for (row, &diff) in batch.diffs.iter().enumerate() {
            let from = at(&from, row).unwrap_or(0).max(batch.tick);
            let until = at(&until, row).unwrap_or(u64::MAX);
            if until <= from {
                continue;
            }
            if from == batch.tick {
                now.push(u32::try_from(row).expect("a batch has fewer than 2^32 rows"));
            } else {
                self.add(from, bytes.row(row), diff);
            }
            if until < u64::MAX {
                self.add(until, bytes.row(row), -diff);
            }
        }
        if now.len() == batch.len() { batch } else { batch.take(&now) }
    }

    fn add(&mut self, moment: u64, row: &[u8], diff: i64) {
        let pending = self.0.entry(moment).or_default();
        pending.rows.push((row.into(), diff));
        if pending.rows.len() >= pending.consolidate_at.max(CONSOLIDATE_MIN) {
            consolidate(&mut pending.rows);
            pending.consolidate_at = pending.rows.len() * 2;
        }
    }

    /// Takes out what falls due up to a tick, as one consolidated change.
    fn take_through(&mut self, tick: u64) -> Vec<(Bytes, i64)> {
        let later = if tick == u64::MAX { BTreeMap::new() } else { self.0.split_off(&(tick + 1)) };
        let due = std::mem::replace(&mut self.0, later);
        let mut rows: Vec<_> = due.into_values().flat_map(|pending| pending.rows).collect();
        consolidate(&mut rows);
        rows
    }
}

/// Fewer rows of one moment are not worth sorting early.
const CONSOLIDATE_MIN: usize = 64;
