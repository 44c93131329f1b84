//! Products of relations: `FROM a, b, c WHERE …` and chains of inner joins, in an order in which each relation meets those before it by
//! an equality, so that no product is made that the question does not ask for.
//!
//! The first relation stays the first; then always the first in the text that an equality ties to what is there. The same text is the same order.

use std::sync::Arc;

use datafusion_common::{DFSchema, JoinType, NullEquality, Result};
use datafusion_expr::logical_plan::{Join, JoinConstraint};
use datafusion_expr::utils::{conjunction, disjunction, split_binary_owned, split_conjunction_owned};
use datafusion_expr::{BinaryExpr, Expr, LogicalPlan, Operator};

use crate::Error;
use crate::joins;
use crate::lower::{Lowered, is_keyed};

/// Lowers a tree of inner joins whose rows must also pass all of `passing`.
pub(crate) fn lower(join: &Join, passing: Vec<Expr>) -> std::result::Result<Lowered, Error> {
    let mut conditions: Vec<Expr> = passing.into_iter().flat_map(factored).collect();
    if join.null_equality != NullEquality::NullEqualsNothing {
        return joins::inner(join, conditions);
    }
    let mut relations = Vec::new();
    flatten(join, &mut relations, &mut conditions);
    match relations.as_slice() {
        [left, right] => joins::inner(&joined(left, right).map_err(told)?, conditions),
        _ => reordered(join, &relations, conditions),
    }
}

fn reordered(join: &Join, relations: &[LogicalPlan], conditions: Vec<Expr>) -> std::result::Result<Lowered, Error> {
    let mut waiting: Vec<&LogicalPlan> = relations.iter().collect();
    let mut there = waiting.remove(0).clone();
    let mut last = None;
    while !waiting.is_empty() {
        let next = waiting.iter().position(|other| are_tied(&conditions, there.schema(), other.schema())).unwrap_or(0);
        let made = joined(&there, waiting.remove(next)).map_err(told)?;
        there = LogicalPlan::Join(made.clone());
        last = Some(made);
    }
    let last = last.expect("a join has two sides at least");
    let lowered = joins::inner(&last, conditions)?;
    // Our names in the order of the columns as written.
    let place = |index: usize| {
        let (qualifier, field) = join.schema.qualified_field(index);
        last.schema.index_of_column_by_name(qualifier, field.name()).map(|place| lowered.names[place].clone())
    };
    let names: Option<Vec<String>> = (0..join.schema.fields().len()).map(place).collect();
    let names = names.expect("the joins have the same columns in another order");
    Ok(Lowered { plan: lowered.plan, names })
}

/// The relations below inner joins, and what the joins ask of them.
fn flatten(join: &Join, relations: &mut Vec<LogicalPlan>, conditions: &mut Vec<Expr>) {
    for side in [&join.left, &join.right] {
        match side.as_ref() {
            LogicalPlan::Join(inner)
                if inner.join_type == JoinType::Inner && inner.null_equality == NullEquality::NullEqualsNothing =>
            {
                flatten(inner, relations, conditions);
            }
            other => relations.push(other.clone()),
        }
    }
    let equal = |(left, right): &(Expr, Expr)| left.clone().eq(right.clone());
    conditions.extend(join.on.iter().map(equal));
    conditions.extend(join.filter.iter().cloned().flat_map(split_conjunction_owned).flat_map(factored));
}

fn joined(left: &LogicalPlan, right: &LogicalPlan) -> Result<Join> {
    let sides = (Arc::new(left.clone()), Arc::new(right.clone()));
    Join::try_new(sides.0, sides.1, Vec::new(), None, JoinType::Inner, JoinConstraint::On, NullEquality::NullEqualsNothing, false)
}

/// Whether an equality has one side here and one there.
fn are_tied(conditions: &[Expr], here: &DFSchema, there: &DFSchema) -> bool {
    conditions.iter().any(|condition| match condition {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            (is_keyed(left, here) && is_keyed(right, there)) || (is_keyed(right, here) && is_keyed(left, there))
        }
        _ => false,
    })
}

/// What all ways of an OR ask for is asked beside it: `(a AND b) OR (a AND c)` is `a AND (b OR c)`, also where parts are unknown.
fn factored(condition: Expr) -> Vec<Expr> {
    let ways: Vec<Vec<Expr>> =
        split_binary_owned(condition.clone(), Operator::Or).into_iter().map(split_conjunction_owned).collect();
    let Some((first, others)) = ways.split_first().filter(|(_, others)| !others.is_empty()) else {
        return vec![condition];
    };
    let common: Vec<Expr> = first.iter().filter(|part| others.iter().all(|way| way.contains(part))).cloned().collect();
    if common.is_empty() {
        return vec![condition];
    }
    let rest: Vec<Option<Expr>> =
        ways.into_iter().map(|way| conjunction(way.into_iter().filter(|part| !common.contains(part)))).collect();
    // A way that asks for nothing else makes the others superfluous.
    let rest: Option<Vec<Expr>> = rest.into_iter().collect();
    common.into_iter().chain(rest.and_then(disjunction)).collect()
}

fn told(source: datafusion_common::DataFusionError) -> Error {
    Error::Sql(Box::new(source))
}

#[cfg(test)]
mod tests {
    use datafusion_expr::{col, lit};

    use super::*;

    #[test]
    fn what_all_ways_ask_for_is_asked_once() {
        let (a, b, c) = (col("a").gt(lit(1)), col("b").gt(lit(2)), col("c").gt(lit(3)));
        let both = a.clone().and(b.clone()).or(a.clone().and(c.clone()));
        assert_eq!(factored(both), [a.clone(), b.clone().or(c)]);
        assert_eq!(factored(a.clone().and(b.clone()).or(a.clone())), vec![a.clone()]);
        let apart = a.or(b);
        assert_eq!(factored(apart.clone()), vec![apart]);
    }
}
