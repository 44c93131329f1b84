//! Which columns of its relations a plan names: whoever reads them from files need not read the others.

use std::collections::BTreeSet;

use datafusion_expr::Expr;

use crate::{AggregateFunc, Plan};

impl Plan {
    /// Every column that an expression of the plan names. Sound for plans made from SQL: their last operator names what it puts out.
    pub fn named_columns(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        self.collect(&mut names);
        names
    }

    fn collect(&self, names: &mut BTreeSet<String>) {
        let mut add = |expr: &Expr| names.extend(expr.column_refs().into_iter().map(|column| column.name.clone()));
        match self {
            Self::Source { .. } | Self::Union { .. } => {}
            Self::Filter { predicate, .. } => add(predicate),
            Self::Project { exprs, .. } => exprs.iter().for_each(|(expr, _)| add(expr)),
            Self::Aggregate { keys, aggregates, settled_at, forget_at, .. } => {
                keys.iter().for_each(|(expr, _)| add(expr));
                for call in aggregates {
                    call.arg.iter().chain(&call.filter).for_each(&mut add);
                    if let AggregateFunc::Recomputed(call) = &call.func {
                        call.args.iter().chain(call.order.iter().map(|(expr, _)| expr)).for_each(&mut add);
                    }
                    if let AggregateFunc::ArgMax { by } | AggregateFunc::ArgMin { by } = &call.func {
                        add(by);
                    }
                }
                settled_at.iter().chain(forget_at).for_each(&mut add);
            }
            Self::Join { on, residual, .. } => {
                on.iter().flat_map(|(left, right)| [left, right]).for_each(&mut add);
                residual.iter().for_each(&mut add);
            }
            Self::Temporal { visible_from, visible_until, .. } => visible_from.iter().chain(visible_until).for_each(&mut add),
            Self::HopWindow { time, .. } => add(time),
            Self::TopK { partition, order, .. } => {
                partition.iter().chain(order.iter().map(|(expr, _)| expr)).for_each(&mut add);
            }
            Self::Repeat { times, .. } => add(times),
            Self::Over { partition, order, calls, .. } => {
                partition.iter().chain(order.iter().map(|(expr, _)| expr)).for_each(&mut add);
                calls.iter().for_each(|(call, _)| add(call));
            }
            Self::Sequence { sequence, .. } => {
                sequence.keys.iter().for_each(|(expr, _)| add(expr));
                add(&sequence.time);
                sequence.id.iter().chain(sequence.predicates()).for_each(&mut add);
            }
        }
        self.inputs().into_iter().for_each(|input| input.collect(names));
    }
}
