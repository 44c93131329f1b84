//! `row_number() OVER (PARTITION BY … ORDER BY …)` under a bound such as `rank <= 10`: the first rows of each partition.
//!
//! Without a bound every row that comes may change the number of all behind it: see `over.rs`.

use datafusion_common::ScalarValue;
use datafusion_expr::expr::{WindowFunction, WindowFunctionParams};
use datafusion_expr::logical_plan::Window;
use datafusion_expr::{BinaryExpr, Expr, LogicalPlan, Operator, WindowFunctionDefinition};

use crate::Error;
use crate::lower::{Lowered, distinct_names, node, order, over as over_names, unaliased};
use crate::over;

/// The highest number that any of these conditions over the plan's columns lets pass, if they bound one that `row_number()` gives.
pub(crate) fn bound(plan: &LogicalPlan, passing: &[Expr]) -> Option<u64> {
    passing.iter().filter_map(|condition| bounded_by(plan, condition)).min()
}

fn bounded_by(plan: &LogicalPlan, condition: &Expr) -> Option<u64> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = condition else { return None };
    let (column, op, number) = match (unaliased(left), unaliased(right)) {
        (Expr::Column(column), number) => (column, *op, number),
        (number, Expr::Column(column)) => (column, op.swap()?, number),
        _ => return None,
    };
    let Expr::Literal(value, _) = number else { return None };
    let Ok(ScalarValue::Int64(Some(number))) = value.cast_to(&arrow::datatypes::DataType::Int64) else { return None };
    let limit = match op {
        Operator::LtEq | Operator::Eq => number,
        Operator::Lt => number.checked_sub(1)?,
        _ => return None,
    };
    let place = plan.schema().index_of_column(column).ok()?;
    is_number(plan, place).then(|| u64::try_from(limit).unwrap_or(0).max(1))
}

/// Whether this column is what `row_number()` gives.
fn is_number(plan: &LogicalPlan, place: usize) -> bool {
    match plan {
        LogicalPlan::SubqueryAlias(alias) => is_number(&alias.input, place),
        LogicalPlan::Projection(projection) => match projection.expr.get(place).map(unaliased) {
            Some(Expr::Column(column)) => {
                projection.input.schema().index_of_column(column).is_ok_and(|place| is_number(&projection.input, place))
            }
            _ => false,
        },
        LogicalPlan::Window(window) => place >= window.input.schema().fields().len(),
        _ => false,
    }
}

/// Lowers a plan whose `row_number()` is of interest up to `limit`.
pub(crate) fn lower(plan: &LogicalPlan, limit: u64) -> Result<Lowered, Error> {
    match plan {
        LogicalPlan::SubqueryAlias(alias) => lower(&alias.input, limit),
        LogicalPlan::Projection(projection) => {
            let input = lower(&projection.input, limit)?;
            let exprs = projection.expr.iter().map(|expr| over_names(expr, projection.input.schema(), &input.names));
            let (exprs, names) = (exprs.collect::<Result<Vec<_>, _>>()?, distinct_names(&projection.schema));
            Ok(Lowered { plan: input.plan.project(exprs.into_iter().zip(names.clone())), names })
        }
        LogicalPlan::Window(window) => ranked(window, limit),
        other => node(other, Vec::new()),
    }
}

/// `row_number()` alone is a ranking; anything beside it is answered over the whole partition.
fn ranked(window: &Window, limit: u64) -> Result<Lowered, Error> {
    let [call] = window.window_expr.as_slice() else { return over::over(window) };
    let Expr::WindowFunction(call) = unaliased(call) else { return over::over(window) };
    let WindowFunction { fun: WindowFunctionDefinition::WindowUDF(function), params } = call.as_ref() else {
        return over::over(window);
    };
    let WindowFunctionParams { partition_by, order_by, filter, .. } = params;
    if function.name() != "row_number" || filter.is_some() {
        return over::over(window);
    }
    let (input, schema) = (node(&window.input, Vec::new())?.renamed_to_itself(), window.input.schema());
    let partition = partition_by.iter().map(|expr| over_names(expr, schema, &input.names)).collect::<Result<Vec<_>, _>>()?;
    let order = order(order_by, schema, &input.names)?;
    let mut names = input.names.clone();
    let rank = (0..).map(|n| format!("rank#{n}")).find(|rank| !names.contains(rank)).unwrap_or_default();
    names.push(rank.clone());
    Ok(Lowered { plan: input.plan.top_k(partition, order, limit, rank), names })
}
