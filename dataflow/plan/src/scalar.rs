//! Scalar expressions: resolved against a schema, coerced to the types that their functions take, and checked to be a
//! function of the row alone.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, TimeUnit};
use datafusion_common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion_common::{DFSchema, DFSchemaRef};
use datafusion_expr::expr::ScalarFunction;
use datafusion_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion_expr::{Expr, ExprSchemable, Volatility};
use datafusion_optimizer::analyzer::type_coercion::TypeCoercionRewriter;

use crate::Error;

/// An expression that is known to fit its input: coerced, deterministic, of this type.
#[derive(Debug, Clone, PartialEq)]
pub struct Scalar {
    /// With the casts that coercion added, and a last one to `data_type` where that differs.
    pub expr: Expr,
    /// A [`normal_type`].
    pub data_type: DataType,
}

/// Text between operators: codes into a dictionary of strings.
pub fn text_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8))
}

/// Time between operators: nanoseconds, UTC.
pub fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))
}

/// The one type under which such values travel between operators.
pub fn normal_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => text_type(),
        DataType::Dictionary(_, values) => normal_type(values),
        other => other.clone(),
    }
}

/// Checks and coerces an expression over rows of `schema`. `construct` names the operator in errors.
pub fn resolve(expr: &Expr, schema: &Schema, construct: &str) -> Result<Scalar, Error> {
    let place = || format!("{construct} ({expr})");
    deterministic(expr, &place())?;
    let failed = |source| Error::Expression { construct: place(), source: Box::new(source) };
    let schema = DFSchema::try_from(schema.clone()).map_err(failed)?;
    let coerced = expr.clone().rewrite(&mut TypeCoercionRewriter::new(&schema)).map_err(failed)?.data;
    let coerced = coerced.transform_up(|expr| crate::meaning::meant(expr, &schema)).map_err(failed)?.data;
    let schema = Arc::new(schema);
    let coerced = without_sugar(coerced, &schema).map_err(failed)?;
    let found = coerced.get_type(&schema).map_err(failed)?;
    let data_type = normal_type(&found);
    let expr = if data_type == found { coerced } else { datafusion_expr::cast(coerced, data_type.clone()) };
    Ok(Scalar { expr, data_type })
}

/// The expression as its functions say that it is meant: `coalesce` and its like are another expression and cannot be evaluated themselves.
fn without_sugar(expr: Expr, schema: &DFSchemaRef) -> datafusion_common::Result<Expr> {
    let context = SimplifyContext::builder().with_schema(Arc::clone(schema)).build();
    let meant = expr.transform_up(|node| {
        let Expr::ScalarFunction(ScalarFunction { func, args }) = node else { return Ok(Transformed::no(node)) };
        Ok(match func.simplify(args, &context)? {
            ExprSimplifyResult::Simplified(meant) => Transformed::yes(meant),
            ExprSimplifyResult::Original(args) => Transformed::no(Expr::ScalarFunction(ScalarFunction { func, args })),
        })
    });
    Ok(meant?.data)
}

/// Refuses what is not a function of one row: its result would change without the row changing.
fn deterministic(expr: &Expr, place: &str) -> Result<(), Error> {
    let mut refused = None;
    let walked = expr.apply(|node| {
        refused = match node {
            Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                let why = "its result is not a function of the row (a calendar, `visible`, stands for the time of the tick)";
                Some((format!("{}() in {place}", call.func.name()), why))
            }
            Expr::AggregateFunction(_) | Expr::WindowFunction(_) | Expr::GroupingSet(_) => {
                Some((place.to_owned(), "an aggregate or window function is not a scalar expression"))
            }
            Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) | Expr::OuterReferenceColumn(..) => {
                Some((place.to_owned(), "a subquery must become a join first"))
            }
            Expr::Placeholder(_) | Expr::Unnest(_) => Some((place.to_owned(), "placeholders and unnest have no meaning here")),
            _ => None,
        };
        Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    walked.map_err(|source| Error::Expression { construct: place.to_owned(), source: Box::new(source) })?;
    refused.map_or(Ok(()), |(construct, why)| Err(Error::unsupported(construct, why)))
}
