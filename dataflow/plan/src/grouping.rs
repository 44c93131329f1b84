//! GROUPING SETS, ROLLUP and CUBE: one aggregate per set, all their rows together.

use datafusion_common::ScalarValue;
use datafusion_expr::expr::AggregateFunction;
use datafusion_expr::logical_plan::Aggregate;
use datafusion_expr::{Expr, GroupingSet, cast, ident, lit};

use crate::lower::{Lowered, call, distinct_names, node, over, unaliased};
use crate::{Error, Plan};

/// The sets of a GROUP BY that has some.
fn sets(set: &GroupingSet) -> Result<Vec<Vec<Expr>>, Error> {
    let sets: Vec<Vec<Expr>> = match set {
        GroupingSet::GroupingSets(sets) => sets.clone(),
        GroupingSet::Rollup(keys) => (0..=keys.len()).rev().map(|len| keys[..len].to_vec()).collect(),
        GroupingSet::Cube(keys) if keys.len() <= CUBE_KEYS_MAX => {
            let chosen =
                |mask: usize| keys.iter().enumerate().filter(move |(at, _)| mask >> at & 1 == 0).map(|(_, key)| key.clone());
            (0..1 << keys.len()).map(|mask| chosen(mask).collect()).collect()
        }
        GroupingSet::Cube(_) => return Err(too_many()),
    };
    if sets.len() > SETS_MAX { Err(too_many()) } else { Ok(sets) }
}

fn too_many() -> Error {
    Error::unsupported(format!("a GROUP BY of more than {SETS_MAX} grouping sets"), "each is an aggregate of its own")
}

/// Lowers an aggregate whose one group expression is a grouping set.
pub(crate) fn grouped(aggregate: &Aggregate, set: &GroupingSet) -> Result<Lowered, Error> {
    let (input, schema) = (node(&aggregate.input, Vec::new())?, aggregate.input.schema());
    let names = distinct_names(&aggregate.schema);
    let keys: Vec<&Expr> = set.distinct_expr();
    let (key_names, rest) = names.split_at(keys.len());
    let Some((id_name, call_names)) = rest.split_first() else { return Err(too_many()) };
    let mut inputs = Vec::new();
    for set in sets(set)? {
        let missing = |key: &Expr| !set.contains(key);
        let present = keys.iter().zip(key_names).filter(|(key, _)| !missing(key));
        let by =
            present.map(|(key, name)| Ok((over(key, schema, &input.names)?, name.clone()))).collect::<Result<Vec<_>, Error>>()?;
        let (mut calls, mut columns) = (Vec::new(), Vec::new());
        for (place, (key, name)) in keys.iter().zip(key_names).enumerate() {
            let data_type = aggregate.schema.field(place).data_type().clone();
            let column = if missing(key) { cast(lit(ScalarValue::Null), data_type) } else { ident(name) };
            columns.push((column, name.clone()));
        }
        let id_type = aggregate.schema.field(keys.len()).data_type();
        columns.push((cast(lit(bits(&keys, missing)), id_type.clone()), id_name.clone()));
        for (expr, name) in aggregate.aggr_expr.iter().zip(call_names) {
            if let Expr::AggregateFunction(AggregateFunction { func, params }) = unaliased(expr)
                && func.name() == "grouping"
            {
                let args: Vec<&Expr> = params.args.iter().collect();
                let id = cast(lit(bits(&args, missing)), arrow::datatypes::DataType::Int32);
                columns.push((id, name.clone()));
                continue;
            }
            calls.push(call(expr, name, schema, &input.names)?);
            columns.push((ident(name), name.clone()));
        }
        inputs.push(input.plan.clone().aggregate(by, calls).project(columns));
    }
    Ok(Lowered { plan: Plan::union(inputs), names })
}

/// One bit per expression, the first is the highest: whether the set lacks it.
fn bits(exprs: &[&Expr], missing: impl Fn(&Expr) -> bool) -> i64 {
    exprs.iter().fold(0, |bits, expr| bits << 1 | i64::from(missing(expr)))
}

/// Each set is an aggregate of its own, over its own copy of the input's operators.
const SETS_MAX: usize = 32;
const CUBE_KEYS_MAX: usize = 5;
