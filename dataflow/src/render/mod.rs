//! Plans to operators: what a question is, turned into what keeps its answer up to date.
//!
//! Promise of every operator: what it has put out up to a closed tick is a function of the multiset of rows it was given up
//! to that tick, however they were cut into batches and over however many workers they were spread. Per tick its output is
//! consolidated. Stateless operators work batch by batch; keyed operators wait until a tick is closed.
//!
//! When the inputs end the frontier is empty and every pending calendar entry fires, at ticks beyond the last one: whoever
//! reads the output stops at the last tick that was fed.

mod accumulator;
mod aggregate;
mod calendar;
mod exchange;
mod fold;
mod gathered;
mod interner;
mod join;
mod keyed;
mod multiset;
mod over;
mod recomputed;
mod rows;
mod sequence;
mod stateless;
mod ticks;
mod top_k;

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use timely::dataflow::operators::Concatenate;
use weir_plan::{Plan, SchemaOf};

pub use exchange::exchange_by_key;
pub(crate) use exchange::owner;
pub use rows::RowCodec;
pub use ticks::Ticks;

use crate::checkpoint::Keeper;
use crate::delta::Deltas;
use crate::expr::Counters;

/// Rows in motion, and their columns.
#[derive(Clone)]
pub struct Relation<'s> {
    /// Of normal types (`weir_plan::normal_type`).
    pub schema: SchemaRef,
    /// The changes.
    pub deltas: Deltas<'s>,
}

/// The relations that plans read, by name.
#[derive(Clone, Default)]
pub struct Sources<'s>(pub HashMap<String, Relation<'s>>);

impl<'s> Sources<'s> {
    /// Adds a relation, or puts it in another's place.
    pub fn insert(&mut self, name: impl Into<String>, relation: Relation<'s>) {
        self.0.insert(name.into(), relation);
    }
}

impl SchemaOf for Sources<'_> {
    fn schema_of(&self, relation: &str) -> Option<SchemaRef> {
        self.0.get(relation).map(|relation| Arc::clone(&relation.schema))
    }

    /// Whoever made the plan knew which are.
    fn is_table(&self, _relation: &str) -> bool {
        true
    }
}

/// What all operators of one view share.
#[derive(Clone, Default)]
pub struct Context {
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Which ticks there are; by default every millisecond is one.
    pub ticks: Ticks,
    /// Saves the states, and has what to begin from.
    pub keeper: Keeper,
    /// The view, whose operators' states are named after it.
    pub view: &'static str,
    /// Operators with a state so far: the same plan numbers them alike on every worker.
    pub states: Rc<Cell<u32>>,
    /// No source ever withdraws a row.
    pub only_grows: bool,
}

impl Context {
    /// The name of the next operator's state.
    pub(crate) fn state_name(&self, operator: &str) -> String {
        self.states.set(self.states.get() + 1);
        format!("view/{}/{}/{operator}", self.view, self.states.get())
    }
}

/// Builds the operators of a plan. A plan that is refused builds none, and is refused alike on every worker.
pub fn render<'s>(plan: &Plan, sources: &Sources<'s>, context: &Context) -> Result<Relation<'s>, weir_plan::Error> {
    plan.schema(sources)?;
    build(plan, sources, context)
}

fn build<'s>(plan: &Plan, sources: &Sources<'s>, context: &Context) -> Result<Relation<'s>, weir_plan::Error> {
    let schema = plan.schema(sources)?;
    if let Some((question, rows)) = fold::Question::of(plan, context.only_grows && only_grows(plan)) {
        let input = build(rows, sources, context)?;
        if let Some(deltas) = fold::fold(&input, &question, &schema, context)? {
            return Ok(Relation { schema, deltas });
        }
    }
    let inputs = plan.inputs().into_iter().map(|input| build(input, sources, context)).collect::<Result<Vec<_>, _>>()?;
    let deltas = match (plan, inputs.as_slice()) {
        (Plan::Source { relation }, _) => match sources.0.get(relation) {
            Some(relation) => relation.deltas.clone(),
            None => return Err(weir_plan::Error::NoRelation(relation.clone())),
        },
        (Plan::Filter { predicate, .. }, [input]) => stateless::filter(input, predicate, context)?,
        (Plan::Project { exprs, .. }, [input]) => stateless::project(input, exprs, &schema, context)?,
        (Plan::HopWindow { time, hop_ms, size_ms, .. }, [input]) => {
            stateless::windows(input, time, stateless::Window { hop_ms: *hop_ms, size_ms: *size_ms }, &schema, context)?
        }
        (Plan::Union { .. }, [first, rest @ ..]) => {
            let renamed = rest.iter().map(|input| stateless::rename(input, &schema));
            let scope = first.deltas.scope();
            scope.concatenate(std::iter::once(stateless::rename(first, &schema)).chain(renamed).collect::<Vec<_>>())
        }
        (Plan::Aggregate { keys, aggregates, settled_at, forget_at, .. }, [input]) => {
            let question =
                aggregate::Question { keys, aggregates, settled_at: settled_at.as_ref(), forget_at: forget_at.as_ref() };
            aggregate::aggregate(input, &question, &schema, context)?
        }
        (Plan::Join { on, kind, residual, .. }, [left, right]) => {
            join::join(left, right, &join::Question { on, kind: *kind, residual: residual.as_ref() }, &schema, context)?
        }
        (Plan::Temporal { visible_from, visible_until, .. }, [input]) => {
            calendar::visible(input, visible_from.as_ref(), visible_until.as_ref(), context)?
        }
        (Plan::TopK { partition, order, limit, .. }, [input]) => {
            top_k::top_k(input, &top_k::Question { partition, order, limit: *limit }, &schema, context)?
        }
        (Plan::Repeat { times, .. }, [input]) => stateless::repeat(input, times, context)?,
        (Plan::Over { partition, order, calls, .. }, [input]) => {
            over::over(input, &over::Question { partition, order, calls }, &schema, context)?
        }
        (Plan::Sequence { sequence, .. }, [input]) => sequence::sequence(input, sequence, &schema, context)?,
        _ => unreachable!("each operator has as many inputs as its plan"),
    };
    Ok(Relation { schema, deltas })
}

/// Whether what an aggregate reads never withdraws a row, when its sources do not.
fn only_grows(plan: &Plan) -> bool {
    plan.inputs().into_iter().all(|input| match input {
        Plan::Source { .. } => true,
        Plan::Filter { .. } | Plan::Project { .. } | Plan::HopWindow { .. } | Plan::Union { .. } => only_grows(input),
        _ => false,
    })
}
