//! Functions of PostgreSQL: what clients ask of a server when they connect, constants here, and the way into JSON.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use datafusion::scalar::ScalarValue;

/// All of them.
pub(crate) fn all() -> Vec<Arc<ScalarUDF>> {
    let constants = [
        ("version", concat!("PostgreSQL 15.0 (Weir ", env!("CARGO_PKG_VERSION"), ")")),
        ("current_database", crate::tables::CATALOG),
        ("current_schema", crate::tables::SCHEMA),
        ("current_user", USER),
        ("session_user", USER),
    ];
    let constants = constants.into_iter().map(|(name, value)| Arc::new(constant(name, value)));
    constants.chain([crate::json::extract_path_text()]).collect()
}

fn constant(name: &str, value: &'static str) -> ScalarUDF {
    let answer = move |_: &[ColumnarValue]| Ok(ColumnarValue::Scalar(ScalarValue::Utf8(Some(value.into()))));
    create_udf(name, vec![], DataType::Utf8, Volatility::Immutable, Arc::new(answer))
}

/// The one user until roles exist.
pub(crate) const USER: &str = "weir";
/// As clients read it to know the dialect.
pub(crate) const SERVER_VERSION: &str = concat!("15.0 (Weir ", env!("CARGO_PKG_VERSION"), ")");
