//! `now()` in conditions: until when, or from when, a row passes.
//!
//! `at > now() - INTERVAL '1 minute'` is true of a row for one minute: the row is there until the tick `at` + 1 minute, and leaves by
//! itself. Such comparisons become the bounds of a calendar; any other use of `now()` is refused where expressions are resolved.

use arrow::datatypes::IntervalMonthDayNano;
use datafusion_common::ScalarValue;
use datafusion_common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion_expr::{Between, BinaryExpr, Expr, Operator, lit};

use crate::{Error, Plan, time_type};

/// Whether the time of the tick is in an expression.
pub(crate) fn reads_clock(expr: &Expr) -> bool {
    let mut found = false;
    let walked = expr.apply(|node| {
        found |= is_now(node);
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    walked.is_ok() && found
}

/// The rows of a plan for which these conditions, each of which reads the clock, are true. The conditions are over the plan's own names.
pub(crate) fn visible(mut plan: Plan, conditions: &[Expr]) -> Result<Plan, Error> {
    for condition in conditions {
        if let Expr::Between(Between { expr, negated: false, low, high }) = condition {
            let ends = [(Operator::GtEq, low), (Operator::LtEq, high)];
            for (op, end) in ends {
                let half = Expr::BinaryExpr(BinaryExpr::new(expr.clone(), op, end.clone()));
                plan = if reads_clock(&half) { bounded(plan, &half)? } else { plan.filter(half) };
            }
            continue;
        }
        plan = bounded(plan, condition)?;
    }
    Ok(plan)
}

fn bounded(plan: Plan, condition: &Expr) -> Result<Plan, Error> {
    let refused = || {
        let why = "it may stand in WHERE or HAVING, as in time > now() - INTERVAL '1 minute', joined by AND";
        Error::unsupported(format!("now() in {condition}"), why)
    };
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = condition else { return Err(refused()) };
    let (time, op, now) = match (reads_clock(left), reads_clock(right)) {
        (false, true) => (left.as_ref().clone(), *op, right.as_ref()),
        (true, false) => (right.as_ref().clone(), op.swap().ok_or_else(refused)?, left.as_ref()),
        _ => return Err(refused()),
    };
    // time OP now() + shift, that is time - shift OP now().
    let moved = match now {
        now if is_now(now) => time.clone(),
        Expr::BinaryExpr(BinaryExpr { left, op: sign @ (Operator::Plus | Operator::Minus), right }) if is_now(left) => {
            let shift = span(right).ok_or_else(refused)?;
            let back = if *sign == Operator::Plus { Operator::Minus } else { Operator::Plus };
            Expr::BinaryExpr(BinaryExpr::new(Box::new(time.clone()), back, Box::new(shift)))
        }
        _ => return Err(refused()),
    };
    let at = datafusion_expr::cast(moved, time_type());
    let next = || {
        let least = ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano::new(0, 0, 1)));
        Expr::BinaryExpr(BinaryExpr::new(Box::new(at.clone()), Operator::Plus, Box::new(lit(least))))
    };
    // A calendar shows a row without a time for ever; a comparison with NULL is not true.
    let plan = plan.filter(time.is_not_null());
    Ok(match op {
        Operator::Gt => plan.until(at),
        Operator::GtEq => plan.until(next()),
        Operator::LtEq => plan.from(at),
        Operator::Lt => plan.from(next()),
        _ => return Err(refused()),
    })
}

fn is_now(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(call) if call.func.name() == "now" && call.args.is_empty())
}

/// A literal span of a fixed length: a month is none.
fn span(expr: &Expr) -> Option<Expr> {
    let Expr::Literal(value, _) = expr else { return None };
    let fixed = match value {
        ScalarValue::IntervalMonthDayNano(Some(span)) => span.months == 0,
        ScalarValue::IntervalDayTime(Some(_)) => true,
        _ => false,
    };
    fixed.then(|| expr.clone())
}
