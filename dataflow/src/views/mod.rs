//! The standing views that ship: each file holds a view's SQL, as a user could have written it, and the plan that keeps it.
//!
//! Until SQL is compiled to plans the two stand side by side, and tests hold them equal: DataFusion runs the SQL over the same
//! rows. What the plans read besides the relations that users see: `connections_all`, every connection since the first tick.

pub(crate) mod connections;
pub(crate) mod new_edges;
pub(crate) mod region_connections;
pub(crate) mod service_map;
pub(crate) mod top_talkers;
pub(crate) mod utilization;

use arrow::datatypes::IntervalMonthDayNanoType;
use datafusion_common::ScalarValue;
use weir_plan::{Expr, Plan, col, lit, when};

use crate::settings::ViewSettings;

/// A standing relation and the plan that keeps it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct View {
    /// The relation.
    pub(crate) name: &'static str,
    /// Its rows.
    pub(crate) plan: Plan,
}

/// Every standing relation that is a plan over others.
pub(crate) fn views(settings: &ViewSettings) -> Vec<View> {
    vec![
        View { name: "connections", plan: connections::plan(settings) },
        View { name: "region_connections", plan: region_connections::plan() },
        View { name: "service_map", plan: service_map::plan(settings) },
        View { name: "new_edges", plan: new_edges::plan(settings) },
        View { name: "top_talkers", plan: top_talkers::plan(settings) },
        View { name: "utilization", plan: utilization::plan(settings) },
    ]
}

/// The column, or `text` where it is NULL.
fn or_text(column: &str, text: &str) -> Expr {
    when(col(column).is_null(), lit(text)).otherwise(col(column)).expect("one case and an else make a CASE")
}

/// The expression, or 0 where it is NULL.
fn or_zero(expr: Expr) -> Expr {
    when(expr.clone().is_null(), lit(0_i64)).otherwise(expr).expect("one case and an else make a CASE")
}

/// A time so many milliseconds later.
fn later(time: Expr, ms: u64) -> Expr {
    let nanos = i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    time + lit(ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNanoType::make_value(0, 0, nanos))))
}
