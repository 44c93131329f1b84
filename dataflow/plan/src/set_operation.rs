//! EXCEPT and INTERSECT, with ALL and without.

use datafusion_common::JoinType;
use datafusion_expr::logical_plan::{Distinct, Join};
use datafusion_expr::{LogicalPlan, ident, lit, when};

use crate::lower::{Lowered, distinct_names, node, refused};
use crate::{AggregateCall, Error, Plan};

/// EXCEPT and INTERSECT, which come as joins of what is distinct on the left, with NULL equal to NULL: rows of both sides in groups, and how
/// many of each side there are. With ALL what is left on the left is not made distinct, and a row is there so many times.
pub(crate) fn lower(join: &Join) -> Result<Lowered, Error> {
    let is_except = join.join_type == JoinType::LeftAnti;
    let (is_all, left) = match join.left.as_ref() {
        LogicalPlan::Distinct(Distinct::All(left)) => (false, left.as_ref()),
        left => (true, left),
    };
    if join.filter.is_some() {
        return Err(refused("a join in which NULL equals NULL"));
    }
    let (left, right) = (node(left, Vec::new())?, node(&join.right, Vec::new())?);
    let names = distinct_names(&join.schema);
    if names.len() != left.names.len() || names.len() != right.names.len() || names.len() != join.on.len() {
        return Err(refused("a join in which NULL equals NULL"));
    }
    let apart = |name: &str| (0..).map(|n| format!("{name}#{n}")).find(|new| !names.contains(new)).unwrap_or_default();
    let (side, here, there) = (apart("side"), apart("left"), apart("right"));
    let sided = |of: Lowered, number: i64| {
        let columns = of.names.iter().map(ident).zip(names.clone());
        of.plan.project(columns.chain([(lit(number), side.clone())]))
    };
    let rows = Plan::union([sided(left, 0), sided(right, 1)]);
    let count = |name: &String, number: i64| AggregateCall::count(name).filter(ident(&side).eq(lit(number)));
    let counted = rows.aggregate(names.iter().map(|name| (ident(name), name.clone())), [count(&here, 0), count(&there, 1)]);
    if is_all {
        let (here, there) = (ident(&here), ident(&there));
        let least = when(here.clone().lt(there.clone()), here.clone()).otherwise(there.clone());
        let times = if is_except { here - there } else { least.map_err(|source| Error::Sql(Box::new(source)))? };
        return Ok(Lowered { plan: counted.repeat(times), names }.renamed_to_itself());
    }
    let beyond = if is_except { ident(&there).eq(lit(0_i64)) } else { ident(&there).gt(lit(0_i64)) };
    Ok(Lowered { plan: counted.filter(ident(&here).gt(lit(0_i64)).and(beyond)), names }.renamed_to_itself())
}
