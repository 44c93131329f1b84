//! What SQL has beside DataFusion's own: what clients ask of a PostgreSQL server when they connect, constants here; addresses; the way into JSON.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use datafusion::optimizer::analyzer::function_rewrite::ApplyFunctionRewrites;
use datafusion::scalar::ScalarValue;
use weir_plan::{InetPlanner, Meaning, inet_functions, named_as_postgresql};

/// The session, with all of them.
pub(crate) fn added(builder: SessionStateBuilder) -> SessionStateBuilder {
    let mut builder = builder.with_type_planner(Arc::new(InetPlanner));
    let (scalars, aggregates) = named_as_postgresql();
    builder.scalar_functions().get_or_insert_default().extend(all().into_iter().chain(inet_functions()).chain(scalars));
    builder.aggregate_functions().get_or_insert_default().extend(aggregates);
    let meaning = ApplyFunctionRewrites::new(vec![Arc::new(Meaning)]);
    builder.analyzer_rules().get_or_insert_default().push(Arc::new(meaning));
    // Before DataFusion's own, which know the operators of addresses for other types.
    builder.expr_planners().get_or_insert_default().insert(0, Arc::new(InetPlanner));
    builder
}

fn all() -> Vec<Arc<ScalarUDF>> {
    let constants = [
        ("version", concat!("PostgreSQL 15.0 (Weir ", env!("CARGO_PKG_VERSION"), ")")),
        ("current_database", crate::tables::CATALOG),
        ("current_schema", crate::tables::SCHEMA),
    ];
    let constants = constants.into_iter().map(|(name, value)| Arc::new(constant(name, value.to_owned())));
    constants.chain([crate::json::extract_path_text()]).collect()
}

/// Who asks.
pub(crate) fn of_user(user: &str) -> impl Iterator<Item = Arc<ScalarUDF>> {
    ["current_user", "session_user"].into_iter().map(move |name| Arc::new(constant(name, user.to_owned())))
}

fn constant(name: &str, value: String) -> ScalarUDF {
    let answer = move |_: &[ColumnarValue]| Ok(ColumnarValue::Scalar(ScalarValue::Utf8(Some(value.clone()))));
    create_udf(name, vec![], DataType::Utf8, Volatility::Immutable, Arc::new(answer))
}

/// The one user of a server without roles.
pub(crate) const USER: &str = "weir";
/// As clients read it to know the dialect.
pub(crate) const SERVER_VERSION: &str = concat!("15.0 (Weir ", env!("CARGO_PKG_VERSION"), ")");
