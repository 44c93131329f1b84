//! Calls of aggregate and window functions: their arguments in the types that the function takes.
//!
//! Text is plain text inside a call: functions are looked up for it, and a list of text must not be a list of codes.

use arrow::datatypes::{DataType, Schema};
use datafusion_common::DFSchema;
use datafusion_common::tree_node::{Transformed, TreeNode};
use datafusion_expr::expr::{AggregateFunction, AggregateFunctionParams};
use datafusion_expr::{Expr, ExprSchemable};
use datafusion_optimizer::analyzer::type_coercion::TypeCoercionRewriter;

use crate::{Error, Recomputed, normal_type, resolve};

/// A call that is known to fit its input.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The arguments, coerced.
    pub args: Vec<Expr>,
    /// What the function itself returns.
    pub returned: DataType,
    /// The column's type: a [`normal_type`].
    pub data_type: DataType,
}

/// Checks an aggregate that is made anew, over rows of `schema`.
pub fn recomputed(call: &Recomputed, schema: &Schema, place: &str) -> Result<Call, Error> {
    let construct = format!("{place} ({})", call.function.name());
    for expr in call.args.iter().chain(call.order.iter().map(|(expr, _)| expr)) {
        resolve(expr, schema, &construct)?;
    }
    let params = AggregateFunctionParams {
        args: call.args.clone(),
        distinct: call.distinct,
        filter: None,
        order_by: vec![],
        null_treatment: None,
    };
    let whole = Expr::AggregateFunction(AggregateFunction { func: call.function.clone(), params });
    let (coerced, returned) = coerced(whole, schema, &construct)?;
    let Expr::AggregateFunction(AggregateFunction { params, .. }) = coerced else {
        return Err(Error::wrong_type(construct, "an aggregate function is needed"));
    };
    let data_type = normal_type(&returned);
    Ok(Call { args: params.args, returned, data_type })
}

/// A window function over rows of `schema`, coerced, and the type of its column.
pub fn over_call(call: &Expr, schema: &Schema) -> Result<(Expr, DataType), Error> {
    let construct = format!("over ({call})");
    let Expr::WindowFunction(function) = call else {
        return Err(Error::wrong_type(construct, "a window function is needed"));
    };
    let params = &function.params;
    for expr in params.args.iter().chain(params.filter.as_deref()) {
        resolve(expr, schema, &construct)?;
    }
    let (coerced, returned) = coerced(call.clone(), schema, &construct)?;
    Ok((coerced, normal_type(&returned)))
}

fn coerced(call: Expr, schema: &Schema, construct: &str) -> Result<(Expr, DataType), Error> {
    let failed = |source| Error::Expression { construct: construct.to_owned(), source: Box::new(source) };
    let plain = call.transform_up(|node| {
        let text = match &node {
            Expr::Column(column) => schema.field_with_name(&column.name).ok().and_then(|field| match field.data_type() {
                DataType::Dictionary(_, values) => Some(values.as_ref().clone()),
                _ => None,
            }),
            _ => None,
        };
        Ok(match text {
            Some(text) => Transformed::yes(datafusion_expr::cast(node, text)),
            None => Transformed::no(node),
        })
    });
    let plain = plain.map_err(failed)?.data;
    let schema = DFSchema::try_from(schema.clone()).map_err(failed)?;
    let coerced = plain.rewrite(&mut TypeCoercionRewriter::new(&schema)).map_err(failed)?.data;
    let returned = coerced.get_type(&schema).map_err(failed)?;
    Ok((coerced, returned))
}
