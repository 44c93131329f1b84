//! Subqueries become joins, by DataFusion's own rules; what they would get wrong, or leave as it is, is refused first.
//!
//! Scalar subqueries must be of one row by their form, because nothing here can raise an error when a second one comes. IN below NOT or CASE
//! would need a mark that can be NULL; the mark of a join is true or false.

use std::sync::Arc;

use datafusion_common::config::ConfigOptions;
use datafusion_common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion_common::{DataFusionError, Result};
use datafusion_expr::utils::split_conjunction;
use datafusion_expr::{BinaryExpr, Expr, LogicalPlan, Operator};
use datafusion_optimizer::decorrelate_predicate_subquery::DecorrelatePredicateSubquery;
use datafusion_optimizer::scalar_subquery_to_join::ScalarSubqueryToJoin;
use datafusion_optimizer::{Optimizer, OptimizerContext};

use crate::Error;
use crate::lower::unaliased;

/// The same question without subqueries in its expressions.
pub(crate) fn joined(plan: LogicalPlan) -> std::result::Result<LogicalPlan, Error> {
    let (mut any, mut wrong) = (false, None);
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Filter(filter) = node {
            for condition in split_conjunction(&filter.predicate) {
                wrong = wrong.take().or_else(|| in_the_wrong_place(condition));
            }
        }
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                match expr {
                    Expr::ScalarSubquery(subquery) if !is_one_row(&subquery.subquery) => {
                        wrong = Some(("a scalar subquery that may have several rows", "aggregate it, without GROUP BY"));
                    }
                    Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) => {}
                    Expr::SetComparison(_) => {
                        wrong = Some(("ANY or ALL of a subquery", "IN, EXISTS, min() or max() say the same"))
                    }
                    _ => return Ok(TreeNodeRecursion::Continue),
                }
                any = true;
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    walked.map_err(|source| Error::Sql(Box::new(source)))?;
    if let Some((construct, why)) = wrong {
        return Err(Error::unsupported(construct, why));
    }
    if !any {
        return Ok(plan);
    }
    decorrelated(plan).map_err(|source| Error::Sql(Box::new(source)))
}

fn decorrelated(plan: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    let mut options = ConfigOptions::default();
    options.optimizer.enable_physical_uncorrelated_scalar_subquery = false;
    let rules = Optimizer::with_rules(vec![Arc::new(DecorrelatePredicateSubquery::new()), Arc::new(ScalarSubqueryToJoin::new())]);
    rules.optimize(plan, &OptimizerContext::new_with_config_options(Arc::new(options)), |_, _| {})
}

/// Whether a subquery is of at most one row for each row around it.
fn is_one_row(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Projection(projection) => is_one_row(&projection.input),
        LogicalPlan::SubqueryAlias(alias) => is_one_row(&alias.input),
        LogicalPlan::Filter(filter) => is_one_row(&filter.input),
        LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.is_empty(),
        LogicalPlan::Limit(_) => plan.max_rows() == Some(1),
        _ => false,
    }
}

/// A condition in which IN stands where its being unknown matters.
fn in_the_wrong_place(condition: &Expr) -> Option<(&'static str, &'static str)> {
    match condition {
        Expr::Not(inner) if matches!(inner.as_ref(), Expr::InSubquery(_)) => None,
        Expr::InSubquery(_) => None,
        other => below_or(other),
    }
}

fn below_or(expr: &Expr) -> Option<(&'static str, &'static str)> {
    let why = "write it as EXISTS or NOT EXISTS";
    match unaliased(expr) {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And | Operator::Or, right }) => {
            below_or(left).or_else(|| below_or(right))
        }
        Expr::InSubquery(subquery) if !subquery.negated => None,
        other => {
            let found = other.exists(|node| Ok(matches!(node, Expr::InSubquery(_)))).unwrap_or(true);
            found.then_some(("IN (subquery) below NOT, CASE or a comparison, or NOT IN below OR,", why))
        }
    }
}
