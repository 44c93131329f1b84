//! Aggregates without a state that rows can be taken from: DataFusion's function over all values of the group, whenever it changes.
//!
//! The values are given in one order, that of ORDER BY and then of the values themselves. So the answer is a function of the rows that are
//! there and not of how they came, to the last bit of a sum of floats. What it costs is the group's size, per tick in which it changes.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use datafusion_common::{DataFusionError, ScalarValue};
use datafusion_expr::Expr;
use datafusion_physical_expr::PhysicalExpr;
use datafusion_physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion_physical_expr::expressions::{Column, Literal};
use weir_plan::{AggregateCall, AggregateFunc};

use super::multiset::{Multiset, Value};
use super::rows::{Bytes, RowCodec};
use crate::expr::{Counters, physical};

/// How one aggregate is made from the rows of a group.
pub(super) struct Recomputation {
    function: AggregateFunctionExpr,
    /// What the function takes: a column of the kept rows, in the function's type, or a constant.
    args: Vec<Arg>,
    /// Whether each of the leading columns, by which rows are ordered, descends.
    descending: Vec<bool>,
    distinct: bool,
    data_type: DataType,
    result: RowCodec,
}

enum Arg {
    Column(usize, DataType),
    Constant(ScalarValue),
}

impl Recomputation {
    /// Of a call that is made anew: with the expressions whose values are kept, the order's first.
    pub(super) fn of(call: &AggregateCall, schema: &Schema) -> Result<Option<(Self, Vec<Expr>)>, weir_plan::Error> {
        let AggregateFunc::Recomputed(recomputed) = &call.func else { return Ok(None) };
        let construct = format!("aggregate \"{}\"", call.name);
        let known = weir_plan::recomputed(recomputed, schema, &construct)?;
        let failed = |source| weir_plan::Error::Expression { construct: construct.clone(), source: Box::new(source) };
        let mut kept: Vec<Expr> = recomputed.order.iter().map(|(expr, _)| expr.clone()).collect();
        let descending: Vec<bool> = recomputed.order.iter().map(|(_, descending)| *descending).collect();
        let (mut args, mut exprs, mut fields) = (vec![], Vec::<Arc<dyn PhysicalExpr>>::new(), vec![]);
        for arg in &known.args {
            let expr = physical(arg, schema).map_err(failed)?;
            if arg.column_refs().is_empty() {
                let constant = constant(&expr).map_err(failed)?;
                exprs.push(Arc::new(Literal::new(constant.clone())));
                args.push(Arg::Constant(constant));
                continue;
            }
            let data_type = expr.data_type(schema).map_err(failed)?;
            let name = format!("arg{}", fields.len());
            exprs.push(Arc::new(Column::new(&name, fields.len())));
            fields.push(Field::new(name, data_type.clone(), true));
            args.push(Arg::Column(kept.len(), data_type));
            kept.push(arg.clone());
        }
        let function = AggregateExprBuilder::new(Arc::clone(&recomputed.function), exprs)
            .schema(Arc::new(Schema::new(fields)))
            .alias(&call.name)
            .build()
            .map_err(failed)?;
        function.create_accumulator().map_err(failed)?;
        let (distinct, data_type) = (recomputed.distinct, known.data_type);
        let result = RowCodec::new([&data_type]);
        Ok(Some((Self { function, args, descending, distinct, data_type, result }, kept)))
    }

    /// The bytes of a row of these types, which compare as rows are ordered.
    pub(super) fn codec(&self, types: &[&DataType]) -> RowCodec {
        let descending = self.descending.iter().copied().chain(std::iter::repeat(false));
        RowCodec::ordered(types.iter().copied().zip(descending))
    }

    /// The value of a group; NULL, and counted, where the function fails.
    pub(super) fn value(&self, values: &Multiset, codec: &RowCodec, counters: &Counters) -> Option<Value> {
        match self.made(values, codec) {
            Ok(bytes) => Some(Value::Bytes(bytes)),
            Err(_) => {
                counters.add_overflow();
                None
            }
        }
    }

    fn made(&self, values: &Multiset, codec: &RowCodec) -> Result<Bytes, DataFusionError> {
        let copies = |count: i64| if self.distinct { 1 } else { usize::try_from(count).unwrap_or(0) };
        let rows = values.iter().flat_map(|(value, count)| {
            let bytes: &[u8] = match value {
                Value::Bytes(bytes) => bytes,
                Value::Int(_) => &[],
            };
            std::iter::repeat_n(bytes, copies(count))
        });
        let rows: Vec<&[u8]> = rows.collect();
        let columns = codec.decode(rows.iter().copied());
        let arg = |arg: &Arg| match arg {
            Arg::Column(place, data_type) => Ok(cast(&columns[*place], data_type)?),
            Arg::Constant(constant) => constant.to_array_of_size(rows.len()),
        };
        let args = self.args.iter().map(arg).collect::<Result<Vec<ArrayRef>, DataFusionError>>()?;
        let mut accumulator = self.function.create_accumulator()?;
        if !rows.is_empty() {
            accumulator.update_batch(&args)?;
        }
        let made = accumulator.evaluate()?.to_array_of_size(1)?;
        let made = if made.data_type() == &self.data_type { made } else { cast(&made, &self.data_type)? };
        Ok(self.result.encode(&[made], 1).row(0).into())
    }

    /// The column of these values.
    pub(super) fn column<'v>(&self, values: impl Iterator<Item = Option<&'v Value>>) -> ArrayRef {
        let null = self.result.null();
        let bytes = values.map(|value| match value {
            Some(Value::Bytes(bytes)) => &**bytes,
            _ => &*null,
        });
        self.result.decode(bytes).pop().expect("the result is one column")
    }
}

fn constant(expr: &Arc<dyn PhysicalExpr>) -> Result<ScalarValue, DataFusionError> {
    let none =
        arrow::record_batch::RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &crate::delta::options(1))?;
    ScalarValue::try_from_array(&expr.evaluate(&none)?.into_array(1)?, 0)
}
