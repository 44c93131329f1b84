//! The calendar: rows that come or go because time passes.
//!
//! A row given at tick t is put out at max(t, from) and withdrawn at until, if that comes later. So the operator is linear:
//! a withdrawal before `until` cancels what is pending, one after it finds the row gone and is absorbed. Pending entries
//! are held once each, consolidated, beside one capability for the earliest.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::operator::Operator;
use weir_plan::Expr;

use super::keyed::consolidate;
use super::{Context, Relation};
use crate::checkpoint::{Share, State};
use crate::delta::{DeltaBatch, Deltas, options};
use crate::expr::{Exprs, moments, tick_of};
use crate::packed::{Bytes, Packer, SavedRows};

pub(super) fn visible<'s>(
    input: &Relation<'s>,
    from: Option<&Expr>,
    until: Option<&Expr>,
    context: &Context,
) -> Result<Deltas<'s>, weir_plan::Error> {
    let exprs = Exprs::new(from.into_iter().chain(until), &input.schema, "visible", &context.counters)?;
    let bounds = Bounds { exprs, has_from: from.is_some(), has_until: until.is_some() };
    let ticks = context.ticks.clone();
    let deltas = input.deltas.clone();
    let due = context.keeper.keep(context.state_name("calendar"), Due::new(&input.schema));
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
                    let now = due.schedule(&bounds, batch);
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
                if let Some(batch) = due.take_through(tick) {
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
struct Due {
    schema: SchemaRef,
    packer: Packer,
    moments: BTreeMap<u64, Pending>,
}

/// The operator is linear, so a pending row may be on another worker than what withdraws it: each row has its owner by its bytes.
impl State for Due {
    type Saved = SavedRows<(u64, i64)>;

    fn save(&self) -> Vec<u8> {
        let consolidated = self.moments.iter().map(|(moment, pending)| {
            let mut rows: Vec<(&Bytes, i64)> = pending.rows.iter().map(|(row, diff)| (row, *diff)).collect();
            consolidate(&mut rows);
            (*moment, rows)
        });
        let rows = consolidated.flat_map(|(moment, rows)| rows.into_iter().map(move |(row, diff)| (&**row, (moment, diff))));
        self.packer.save(rows)
    }

    fn load(&mut self, parts: Vec<Self::Saved>, share: Share) {
        for (row, (moment, diff)) in parts.into_iter().flat_map(|part| self.packer.load(part, share)).collect::<Vec<_>>() {
            add(&mut self.moments, moment, row, diff);
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
    fn new(schema: &SchemaRef) -> Self {
        let packer = Packer::new(schema).expect("the plan was checked: these types have bytes");
        Self { schema: Arc::clone(schema), packer, moments: BTreeMap::new() }
    }

    fn first(&self) -> Option<u64> {
        self.moments.first_key_value().map(|(&moment, _)| moment)
    }

    /// Enters what lies ahead; returns what is visible now.
    fn schedule(&mut self, bounds: &Bounds, batch: DeltaBatch) -> DeltaBatch {
        let (batch, columns) = bounds.exprs.evaluate(batch);
        let mut columns = columns.iter().map(moments);
        let from = bounds.has_from.then(|| columns.next()).flatten();
        let until = bounds.has_until.then(|| columns.next()).flatten();
        let at = |moments: &Option<arrow::array::Int64Array>, row: usize| {
            moments.as_ref().filter(|moments| moments.is_valid(row)).map(|moments| tick_of(moments.value(row)))
        };
        let (moments, mut now, mut row) = (&mut self.moments, vec![], 0);
        let packed = self.packer.pack(batch.rows.columns(), batch.len(), |bytes| {
            let (at_row, diff) = (row, batch.diffs[row]);
            row += 1;
            let from = at(&from, at_row).unwrap_or(0).max(batch.tick);
            let until = at(&until, at_row).unwrap_or(u64::MAX);
            if until <= from {
                return;
            }
            if from == batch.tick {
                now.push(u32::try_from(at_row).expect("a batch has fewer than 2^32 rows"));
            } else {
                add(moments, from, bytes.into(), diff);
            }
            if until < u64::MAX {
                add(moments, until, bytes.into(), -diff);
            }
        });
        packed.expect("the columns have the schema's types");
        if now.len() == batch.len() { batch } else { batch.take(&now) }
    }

    /// Takes out what falls due up to a tick, as one consolidated change. None when nothing does.
    fn take_through(&mut self, tick: u64) -> Option<DeltaBatch> {
        let later = if tick == u64::MAX { BTreeMap::new() } else { self.moments.split_off(&(tick + 1)) };
        let due = std::mem::replace(&mut self.moments, later);
        let mut rows: Vec<_> = due.into_values().flat_map(|pending| pending.rows).collect();
        consolidate(&mut rows);
        if rows.is_empty() {
            return None;
        }
        let columns: Vec<usize> = (0..self.schema.fields().len()).collect();
        let unpacked = self.packer.unpack(rows.iter().map(|(row, _)| &**row), &columns).expect("this packer packed them");
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), unpacked, &options(rows.len()));
        let pending = self.moments.values().flat_map(|pending| &pending.rows);
        self.packer.sweep(|| pending.map(|(row, _)| &**row));
        let diffs = rows.iter().map(|(_, diff)| *diff).collect();
        Some(DeltaBatch::new(tick, batch.expect("the packer has the schema's types"), diffs))
    }
}

fn add(moments: &mut BTreeMap<u64, Pending>, moment: u64, row: Bytes, diff: i64) {
    let pending = moments.entry(moment).or_default();
    pending.rows.push((row, diff));
    if pending.rows.len() >= pending.consolidate_at.max(CONSOLIDATE_MIN) {
        consolidate(&mut pending.rows);
        pending.consolidate_at = pending.rows.len() * 2;
    }
}

/// Fewer rows of one moment are not worth sorting early.
const CONSOLIDATE_MIN: usize = 64;
