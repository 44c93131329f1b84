//! Joins: which conditions are their keys, which go down to one side, and what is left to be tried on pairs.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion_common::{JoinType, NullEquality, ScalarValue};
use datafusion_expr::logical_plan::{Filter, Join, JoinConstraint};
use datafusion_expr::utils::{conjunction, split_conjunction};
use datafusion_expr::{BinaryExpr, Expr, LogicalPlan, Operator, ident, lit};

use crate::lower::{Lowered, is_keyed, is_over, node, over, refused};
use crate::{AggregateCall, AggregateFunc, Error, JoinKind, MARK};

/// Rows of both sides that meet. A condition over one side alone goes down to it.
pub(crate) fn inner(join: &Join, passing: Vec<Expr>) -> Result<Lowered, Error> {
    let (left, right) = (join.left.schema(), join.right.schema());
    let conditions = join.filter.iter().flat_map(|filter| split_conjunction(filter).into_iter().cloned()).chain(passing);
    let (mut to_left, mut to_right, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for condition in conditions {
        let place = match (is_over(&condition, left), is_over(&condition, right)) {
            (true, false) => &mut to_left,
            (false, true) => &mut to_right,
            _ => &mut both,
        };
        place.push(condition);
    }
    let (to_the_left, to_the_right) = (node(&join.left, to_left)?, node(&join.right, to_right)?);
    joined(join, JoinKind::Inner, (to_the_left, to_the_right), both)
}

/// The join whose side that keeps all of its rows, or is all that is put out, is asked those conditions first that are over it alone;
/// and the other conditions. None where there are no such.
pub(crate) fn with_conditions_below(join: &Join, passing: &[Expr]) -> Result<Option<(Join, Vec<Expr>)>, Error> {
    let side = match join.join_type {
        _ if join.null_equality != NullEquality::NullEqualsNothing => return Ok(None),
        JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => &join.left,
        JoinType::Right => &join.right,
        _ => return Ok(None),
    };
    let (below, above): (Vec<Expr>, Vec<Expr>) =
        passing.iter().cloned().partition(|condition| is_keyed(condition, side.schema()));
    let Some(condition) = conjunction(below) else { return Ok(None) };
    let filter = Filter::try_new(condition, Arc::clone(side)).map_err(|source| Error::Sql(Box::new(source)))?;
    let filtered = Arc::new(LogicalPlan::Filter(filter));
    let mut join = join.clone();
    match join.join_type {
        JoinType::Right => join.right = filtered,
        _ => join.left = filtered,
    }
    Ok(Some((join, above)))
}

pub(crate) fn outer(join: &Join) -> Result<Lowered, Error> {
    let kind = match join.join_type {
        JoinType::Left | JoinType::Right => JoinKind::Left,
        JoinType::Full => JoinKind::Full,
        _ => return Err(refused("this kind of join")),
    };
    if join.join_constraint == JoinConstraint::Using && join.join_type != JoinType::Left {
        return Err(refused("RIGHT or FULL JOIN with USING or NATURAL"));
    }
    let conditions = join.filter.iter().flat_map(|filter| split_conjunction(filter).into_iter().cloned()).collect();
    joined(join, kind, (node(&join.left, Vec::new())?, node(&join.right, Vec::new())?), conditions)
}

fn joined(join: &Join, kind: JoinKind, (left, right): (Lowered, Lowered), conditions: Vec<Expr>) -> Result<Lowered, Error> {
    if join.null_equality != NullEquality::NullEqualsNothing {
        return Err(refused("a join in which NULL equals NULL"));
    }
    // Names are made apart only where the sides share one.
    let taken: BTreeSet<String> = left.names.iter().cloned().collect();
    let apart = |name: &String| match taken.contains(name) {
        false => name.clone(),
        true => (1..)
            .map(|n| format!("{name}#{n}"))
            .find(|new| !taken.contains(new) && !right.names.contains(new))
            .unwrap_or_default(),
    };
    let left = left.renamed_to_itself();
    let right_names: Vec<String> = right.names.iter().map(apart).collect();
    let right = right.renamed(right_names);
    let mut on = Vec::new();
    let (left_schema, right_schema) = (join.left.schema(), join.right.schema());
    let over_left = |expr: &Expr| over(expr, left_schema, &left.names);
    let over_right = |expr: &Expr| over(expr, right_schema, &right.names);
    for (over_the_left, over_the_right) in &join.on {
        on.push((over_left(over_the_left)?, over_right(over_the_right)?));
    }
    let names: Vec<String> = left.names.iter().chain(&right.names).cloned().collect();
    let both = left_schema.join(right_schema).map_err(|source| Error::Sql(Box::new(source)))?;
    let mut residual = Vec::new();
    for condition in conditions {
        match &condition {
            Expr::BinaryExpr(BinaryExpr { left: a, op: Operator::Eq, right: b })
                if is_keyed(a, left_schema) && is_keyed(b, right_schema) =>
            {
                on.push((over_left(a)?, over_right(b)?));
            }
            Expr::BinaryExpr(BinaryExpr { left: a, op: Operator::Eq, right: b })
                if is_keyed(b, left_schema) && is_keyed(a, right_schema) =>
            {
                on.push((over_left(b)?, over_right(a)?));
            }
            Expr::Literal(ScalarValue::Boolean(Some(true)), _) => {}
            other => residual.push(over(other, &both, &names)?),
        }
    }
    if on.is_empty() {
        // All rows meet under one key: the plan is refused where neither side is bounded.
        on.push((lit(0_i64), lit(0_i64)));
    }
    let residual = residual.into_iter().reduce(Expr::and);
    // A right join is a left join with its sides changed; columns are found by name.
    let (first, second, on) = match join.join_type {
        JoinType::Right => (right.plan, left.plan, on.into_iter().map(|(a, b)| (b, a)).collect()),
        _ => (left.plan, right.plan, on),
    };
    let plan = match residual {
        Some(residual) => first.join_where(second, kind, on, residual),
        None => first.join(second, kind, on),
    };
    let names = match kind {
        JoinKind::Semi | JoinKind::Anti => left.names,
        JoinKind::Mark => left.names.into_iter().chain([MARK.to_owned()]).collect(),
        _ => names,
    };
    Ok(Lowered { plan, names })
}

/// Rows of the left side with a partner, or without one; or all of them, with a mark.
pub(crate) fn half(join: &Join) -> Result<Lowered, Error> {
    let kind = match join.join_type {
        JoinType::LeftSemi => JoinKind::Semi,
        JoinType::LeftMark => JoinKind::Mark,
        _ => JoinKind::Anti,
    };
    let mut conditions: Vec<Expr> =
        join.filter.iter().flat_map(|filter| split_conjunction(filter).into_iter().cloned()).collect();
    let (left, right) = (node(&join.left, Vec::new())?, node(&join.right, Vec::new())?);
    if !join.null_aware {
        return joined(join, kind, (left, right), conditions);
    }
    // The first condition is that of NOT IN.
    let Some(Expr::BinaryExpr(BinaryExpr { left: one, op: Operator::Eq, right: other })) = conditions.first().cloned() else {
        return Err(refused("NOT IN of this form"));
    };
    if conditions.len() > 1 || !is_over(&one, join.left.schema()) || !is_keyed(&other, join.right.schema()) {
        // A row passes if of no row of the subquery it is true or unknown that both are equal.
        let equal = Expr::BinaryExpr(BinaryExpr::new(one, Operator::Eq, other));
        conditions[0] = Expr::IsNotFalse(Box::new(equal));
        return joined(join, kind, (left, right), conditions);
    }
    let counted = over(&other, join.right.schema(), &right.names)?;
    let none: [(Expr, String); 0] = [];
    let calls = [AggregateCall::count("rows#"), AggregateCall::new(AggregateFunc::Count, counted, "values#")];
    // Two Booleans change seldom: the rows that meet them stay as they are.
    let (rows, values) = (ident("rows#"), ident("values#"));
    let facts =
        right.plan.clone().aggregate(none, calls).project([(rows.clone().eq(lit(0_i64)), "empty#"), (rows.eq(values), "clean#")]);
    let value = over(&one, join.left.schema(), &left.names)?;
    let Lowered { plan, names } = joined(join, kind, (left, right), conditions)?;
    let passes = ident("empty#").or(ident("clean#").and(value.is_not_null()));
    let plan = plan.join(facts, JoinKind::Inner, [(lit(0_i64), lit(0_i64))]).filter(passes);
    Ok(Lowered { plan, names }.renamed_to_itself())
}
