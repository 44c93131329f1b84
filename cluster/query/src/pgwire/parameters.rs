//! Parameters of prepared statements: `$1` and so on, in text or binary form.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ParamValues;
use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::scalar::ScalarValue;
use pgwire::api::Type;
use pgwire::api::portal::Portal;
use pgwire::error::PgWireResult;

use super::{Prepared, told};
use crate::encode::pg_type;
use crate::error::{self, SqlError};

/// The types of a plan's parameters, by number. One that could be anything is text.
pub(super) fn types(plan: &LogicalPlan) -> PgWireResult<Vec<Type>> {
    Ok(data_types(plan)?.iter().map(|data_type| data_type.as_ref().map_or(Type::TEXT, pg_type)).collect())
}

fn data_types(plan: &LogicalPlan) -> PgWireResult<Vec<Option<DataType>>> {
    let found = plan.get_parameter_types().map_err(|error| told(error.into()))?;
    let mut types = vec![None; found.len()];
    for (name, data_type) in found {
        let place = name.trim_start_matches('$').parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        let missing = || told(SqlError::new("42P02", format!("parameter {name} leaves a gap: number them from $1")));
        let cast = || cast_of(plan, &name);
        *place.and_then(|place| types.get_mut(place)).ok_or_else(missing)? = data_type.or_else(cast);
    }
    Ok(types)
}

/// The type that a statement casts a parameter to: `$1::bigint` takes a bigint.
fn cast_of(plan: &LogicalPlan, name: &str) -> Option<DataType> {
    let mut found = None;
    let mut look = |expr: &Expr| {
        if let Expr::Cast(cast) = expr
            && let Expr::Placeholder(placeholder) = cast.expr.as_ref()
            && placeholder.id == name
        {
            found = Some(cast.field.data_type().clone());
        }
        Ok(TreeNodeRecursion::Continue)
    };
    let walked = plan.apply_with_subqueries(|node| node.apply_expressions(|expr| expr.apply(&mut look)));
    // The walk itself cannot fail: `look` does not.
    walked.ok().and(found)
}

/// The values that a client bound; none when the statement has no parameters.
pub(super) fn values(portal: &Portal<Prepared>, plan: &LogicalPlan) -> PgWireResult<Option<ParamValues>> {
    let types = data_types(plan)?;
    if types.is_empty() {
        return Ok(None);
    }
    if types.len() != portal.parameter_len() {
        let message = format!("{} parameters were bound where {} are needed", portal.parameter_len(), types.len());
        return Err(told(SqlError::new("08P01", message)));
    }
    let values = types.iter().enumerate().map(|(place, wanted)| value(portal, place, wanted.as_ref()));
    Ok(Some(ParamValues::from(values.collect::<PgWireResult<Vec<_>>>()?)))
}

fn value(portal: &Portal<Prepared>, place: usize, wanted: Option<&DataType>) -> PgWireResult<ScalarValue> {
    let sent = portal.statement.parameter_types.get(place).cloned().flatten();
    let fallback = wanted.map_or(Type::TEXT, pg_type);
    let sent = sent.filter(|sent| *sent != Type::UNKNOWN).unwrap_or(fallback);
    let nanos = |micros: i64| (micros + PG_EPOCH_US).checked_mul(1_000);
    let parsed = match sent {
        Type::BOOL => ScalarValue::Boolean(portal.parameter(place, &sent)?),
        Type::INT2 => ScalarValue::Int16(portal.parameter(place, &sent)?),
        Type::INT4 => ScalarValue::Int32(portal.parameter(place, &sent)?),
        Type::INT8 => ScalarValue::Int64(portal.parameter(place, &sent)?),
        Type::FLOAT4 => ScalarValue::Float32(portal.parameter(place, &sent)?),
        Type::FLOAT8 => ScalarValue::Float64(portal.parameter(place, &sent)?),
        Type::TIMESTAMPTZ | Type::TIMESTAMP if portal.parameter_format.is_binary(place) => {
            let bytes = portal.parameters.get(place).and_then(|bytes| bytes.as_ref());
            let micros = bytes.and_then(|bytes| <[u8; 8]>::try_from(bytes.as_ref()).ok()).map(i64::from_be_bytes);
            ScalarValue::TimestampNanosecond(micros.and_then(nanos), Some("UTC".into()))
        }
        _ => ScalarValue::Utf8(portal.parameter(place, &Type::TEXT)?),
    };
    let target = match wanted {
        Some(DataType::Timestamp(_, _)) => DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
        Some(other) => other.clone(),
        None => return Ok(parsed),
    };
    parsed.cast_to(&target).map_err(|failed| told(SqlError::new(error::BAD_TEXT, format!("parameter ${}: {failed}", place + 1))))
}

/// 2000-01-01 in microseconds since 1970.
const PG_EPOCH_US: i64 = 946_684_800_000_000;
