//! `utilization`: what the containers of every application use, over the last closed ten seconds.
//!
//! Samples of bare hosts take no part: they hold their containers' use a second time.

use weir_plan::{AggregateCall, Bounds, Expr, JoinKind, Plan, cast, col, lit};

use super::{later, or_text, or_zero};
use crate::settings::ViewSettings;

/// As a user could have written it; `now()` is the tick. The window shown is the last one that ended a grace ago.
pub(crate) const SQL: &str = "\
CREATE VIEW utilization AS
WITH taken AS (
  SELECT coalesce(app, 'unassigned') AS app, coalesce(region, 'unknown') AS region, host, container_id, time,
         coalesce(cpu_ms, 0) AS cpu_ms,
         cpu_ms * 1000.0 / nullif(interval_ms, 0) AS cpu_rate,
         mem_bytes,
         coalesce(net_sent_bytes, 0) + coalesce(net_received_bytes, 0) AS net_bytes
  FROM TUMBLE(samples, time, INTERVAL '10 seconds')
  WHERE container_id IS NOT NULL
    AND window_end = date_bin(INTERVAL '10 seconds', now() - weir_window_grace())
), used AS (
  SELECT app, region,
         sum(cpu_ms) / 10.0 AS cpu_ms_per_s,
         percentile_cont(0.95) WITHIN GROUP (ORDER BY cpu_rate) AS cpu_p95,
         max(mem_bytes) AS mem_max_bytes,
         sum(net_bytes) / 10.0 AS net_bytes_per_s,
         count(DISTINCT container_id) AS containers
  FROM taken GROUP BY app, region
), held AS (
  SELECT app, region, sum(mem_bytes) AS mem_bytes FROM (
    SELECT app, region, host, container_id, last_value(mem_bytes ORDER BY time, mem_bytes) AS mem_bytes
    FROM taken WHERE mem_bytes IS NOT NULL GROUP BY app, region, host, container_id
  ) GROUP BY app, region
)
SELECT used.app, used.region, cpu_ms_per_s, cpu_p95, held.mem_bytes, mem_max_bytes, net_bytes_per_s, containers
FROM used LEFT JOIN held ON used.app = held.app AND used.region = held.region";

/// What keeps it.
pub(crate) fn plan(settings: &ViewSettings) -> Plan {
    let grace = settings.window_grace_ms;
    let taken = Plan::source("samples")
        .filter(col("container_id").is_not_null())
        .project([
            (or_text("app", "unassigned"), "app"),
            (or_text("region", "unknown"), "region"),
            (col("host"), "host"),
            (col("container_id"), "container_id"),
            (col("time"), "time"),
            (or_zero(col("cpu_ms")), "cpu_ms"),
            (float(col("cpu_ms")) * lit(1000.0) / float(nonzero("interval_ms")), "cpu_rate"),
            (col("mem_bytes"), "mem_bytes"),
            (or_zero(col("net_sent_bytes")) + or_zero(col("net_received_bytes")), "net_bytes"),
        ])
        .tumble(col("time"), WINDOW_MS);
    let shown =
        |plan: Plan| plan.visible(Some(later(col("window_end"), grace)), Some(later(col("window_end"), grace + WINDOW_MS)));
    let bounds = || Bounds { settled_at: None, forget_at: Some(later(col("window_end"), grace + WINDOW_MS)) };
    let used = shown(taken.clone().aggregate_bounded(
        ["app", "region", "window_end"].map(|name| (col(name), name)),
        [
            AggregateCall::sum(col("cpu_ms"), "cpu_ms"),
            AggregateCall::percentile(0.95, col("cpu_rate"), "cpu_p95"),
            AggregateCall::max(col("mem_bytes"), "mem_max_bytes"),
            AggregateCall::sum(col("net_bytes"), "net_bytes"),
            AggregateCall::count_distinct(col("container_id"), "containers"),
        ],
        bounds(),
    ));
    let last = shown(taken.filter(col("mem_bytes").is_not_null()).aggregate_bounded(
        ["app", "region", "host", "container_id", "window_end"].map(|name| (col(name), name)),
        [AggregateCall::arg_max(col("mem_bytes"), col("time"), "mem_bytes")],
        bounds(),
    ));
    let held = last.aggregate(
        [(col("app"), "held_app"), (col("region"), "held_region"), (col("window_end"), "held_end")],
        [AggregateCall::sum(col("mem_bytes"), "mem_bytes")],
    );
    let on = [("app", "held_app"), ("region", "held_region"), ("window_end", "held_end")];
    used.join(held, JoinKind::Left, on.map(|(left, right)| (col(left), col(right)))).project([
        (col("app"), "app"),
        (col("region"), "region"),
        (float(col("cpu_ms")) / lit(WINDOW_S), "cpu_ms_per_s"),
        (col("cpu_p95"), "cpu_p95"),
        (col("mem_bytes"), "mem_bytes"),
        (col("mem_max_bytes"), "mem_max_bytes"),
        (float(col("net_bytes")) / lit(WINDOW_S), "net_bytes_per_s"),
        (col("containers"), "containers"),
    ])
}

fn float(expr: Expr) -> Expr {
    cast(expr, arrow::datatypes::DataType::Float64)
}

/// The column, or NULL where it is 0.
fn nonzero(column: &str) -> Expr {
    let none = lit(datafusion_common::ScalarValue::Int64(None));
    weir_plan::when(col(column).eq(lit(0_i64)), none).otherwise(col(column)).expect("one case and an else make a CASE")
}

/// A window's length.
const WINDOW_MS: u64 = 10_000;
/// The same in seconds.
const WINDOW_S: f64 = 10.0;
