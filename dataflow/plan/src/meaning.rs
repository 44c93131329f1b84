//! Where DataFusion's expressions mean something else than PostgreSQL's, they are made to mean what PostgreSQL says: one rewrite, for standing
//! views (`scalar.rs`) and for queries that are answered once (an analyzer rule of the session).
//!
//! A number with a fraction becomes an integer by rounding, a float to the even neighbour of a half; DataFusion would cut it off. `round` of a
//! float does the same. Numbers written with a point are numeric in PostgreSQL, so their halves go away from zero. A timestamp as text has a
//! space where DataFusion writes `T`. `to_char` takes strftime's patterns here: one of PostgreSQL's is refused, as it would be copied into the
//! answer. SIMILAR TO and bytea's text form are refused. `every`, `variance` and `sign` are other names of functions that are there.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use datafusion_common::config::ConfigOptions;
use datafusion_common::tree_node::Transformed;
use datafusion_common::{DFSchema, Result, exec_err, not_impl_err, plan_err};
use datafusion_expr::expr::ScalarFunction;
use datafusion_expr::expr_rewriter::FunctionRewrite;
use datafusion_expr::{
    AggregateUDF, Cast, ColumnarValue, Expr, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

/// The rewrite of one expression whose parts are rewritten already.
#[derive(Debug, Default)]
pub struct Meaning;

impl FunctionRewrite for Meaning {
    fn name(&self) -> &str {
        "postgresql_meaning"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _config: &ConfigOptions) -> Result<Transformed<Expr>> {
        meant(expr, schema)
    }
}

/// As [`Meaning`] says.
pub(crate) fn meant(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::Cast(Cast { expr: inner, field }) if field.data_type().is_integer() => {
            let (inner, changed) = whole(*inner, schema)?;
            Ok(Transformed::new_transformed(Expr::Cast(Cast { expr: Box::new(inner), field }), changed))
        }
        Expr::Cast(Cast { expr: inner, field }) if is_text(field.data_type()) && is_time(&inner.get_type(schema)?) => {
            let text = call(Meant::TimeText, *inner);
            let plain = *field.data_type() == DataType::Utf8;
            Ok(Transformed::yes(if plain { text } else { Expr::Cast(Cast { expr: Box::new(text), field }) }))
        }
        Expr::ScalarFunction(ScalarFunction { func, mut args }) if func.name() == "round" && args.len() == 1 => {
            let float = args[0].get_type(schema)?.is_floating() && !matches!(args[0], Expr::Literal(..));
            if float {
                return Ok(Transformed::yes(call(Meant::Rint, args.swap_remove(0))));
            }
            Ok(Transformed::no(Expr::ScalarFunction(ScalarFunction { func, args })))
        }
        Expr::ScalarFunction(function) if matches!(function.func.name(), "to_char" | "date_format") => {
            if let Some(Expr::Literal(pattern, _)) = function.args.get(1)
                && let Some(Some(pattern)) = pattern.try_as_str()
                && !pattern.contains('%')
            {
                return not_impl_err!("to_char with the pattern '{pattern}' (it takes those of strftime: '%Y-%m-%d %H:%M:%S')");
            }
            Ok(Transformed::no(Expr::ScalarFunction(function)))
        }
        // DataFusion reads the pattern of SQL as one of LIKE or as a regular expression, and the text form of bytes as the bytes.
        Expr::SimilarTo(_) => not_impl_err!("SIMILAR TO (use ~ with a regular expression)"),
        Expr::Cast(Cast { expr: inner, field }) if field.data_type().is_binary() && is_escaped(&inner) => {
            not_impl_err!("the text form of bytea (use decode('…', 'hex') in place of {inner})")
        }
        other => Ok(Transformed::no(other)),
    }
}

/// Whether it is text in which a backslash stands for something.
fn is_escaped(expr: &Expr) -> bool {
    matches!(expr, Expr::Literal(text, _) if text.try_as_str().flatten().is_some_and(|text| text.contains('\\')))
}

/// The nearest whole number, still of its type.
fn whole(inner: Expr, schema: &DFSchema) -> Result<(Expr, bool)> {
    let data_type = inner.get_type(schema)?;
    let rounded = |inner| match datafusion_functions::all_default_functions().into_iter().find(|udf| udf.name() == "round") {
        Some(round) => Ok(Expr::ScalarFunction(ScalarFunction::new_udf(round, vec![inner]))),
        None => plan_err!("this build has no round()"),
    };
    match inner {
        Expr::ScalarFunction(ScalarFunction { ref func, .. }) if matches!(func.name(), "round" | RINT) => Ok((inner, false)),
        inner if data_type.is_decimal() || (data_type.is_floating() && matches!(inner, Expr::Literal(..))) => {
            Ok((rounded(inner)?, true))
        }
        inner if data_type.is_floating() => Ok((call(Meant::Rint, inner), true)),
        inner => Ok((inner, false)),
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_time(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(..))
}

fn call(function: Meant, of: Expr) -> Expr {
    let udf = ScalarUDF::new_from_impl(Function { function, signature: Signature::any(1, Volatility::Immutable) });
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(udf), vec![of]))
}

const RINT: &str = "round_to_even";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Meant {
    Rint,
    TimeText,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Function {
    function: Meant,
    signature: Signature,
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        match self.function {
            Meant::Rint => RINT,
            Meant::TimeText => "timestamp_text",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        Ok(match self.function {
            Meant::Rint => args[0].clone(),
            Meant::TimeText => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let array = args.args[0].to_array(args.number_rows)?;
        let answer: ArrayRef = match (self.function, array.data_type()) {
            (Meant::Rint, DataType::Float32) => {
                Arc::new(array.as_primitive::<Float32Type>().unary::<_, Float32Type>(f32::round_ties_even))
            }
            (Meant::Rint, DataType::Float64) => {
                Arc::new(array.as_primitive::<Float64Type>().unary::<_, Float64Type>(f64::round_ties_even))
            }
            (Meant::TimeText, _) => {
                let text = cast(&array, &DataType::Utf8)?;
                Arc::new(text.as_string::<i32>().iter().map(|text| text.map(time_text)).collect::<StringArray>())
            }
            (Meant::Rint, other) => return exec_err!("{RINT}() takes floats, not {other}"),
        };
        Ok(ColumnarValue::Array(answer))
    }
}

/// Arrow's text of a timestamp, as PostgreSQL writes it in UTC.
fn time_text(text: &str) -> String {
    let text = text.replacen('T', " ", 1);
    let (text, zone) = match text.strip_suffix('Z') {
        Some(text) => (text, "+00"),
        None => (text.as_str(), ""),
    };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text };
    format!("{text}{zone}")
}

/// Functions under the names that PostgreSQL has for them.
pub fn named_as_postgresql() -> (Vec<Arc<ScalarUDF>>, Vec<Arc<AggregateUDF>>) {
    let scalars = datafusion_functions::all_default_functions().into_iter().filter(|udf| udf.name() == "signum");
    let scalars = scalars.map(|udf| Arc::new(udf.as_ref().clone().with_aliases(["sign"])));
    let aggregates = datafusion_functions_aggregate::all_default_aggregate_functions().into_iter().filter_map(|udf| {
        let alias = match udf.name() {
            "bool_and" => "every",
            "var" => "variance",
            _ => return None,
        };
        Some(Arc::new(udf.as_ref().clone().with_aliases([alias])))
    });
    (scalars.collect(), aggregates.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_written_as_postgresql_does() {
        for (arrow, expected) in [
            ("2024-02-29T12:34:56.789", "2024-02-29 12:34:56.789"),
            ("2024-02-29T12:34:50", "2024-02-29 12:34:50"),
            ("2024-02-29T12:34:50.500Z", "2024-02-29 12:34:50.5+00"),
            ("2024-02-29T00:00:00Z", "2024-02-29 00:00:00+00"),
        ] {
            assert_eq!(time_text(arrow), expected);
        }
    }
}
