//! `top_talkers`: who moved the most bytes over the last closed minute, which moves by a second.
//!
//! The plan adds bytes up per second of event time once, and shows each of these panes for as long as the shown window holds it:
//! from the tick that closes it, for a minute. So a second's bytes enter once and leave once, where a hopping window would take
//! every event sixty times.

use weir_plan::{AggregateCall, Bounds, Plan, col, lit};

use super::{later, or_zero};
use crate::settings::ViewSettings;

/// As a user could have written it; `now()` is the tick. The window shown is the last one that ended a grace ago.
pub(crate) const SQL: &str = "\
CREATE VIEW top_talkers AS
SELECT app, container_id, host, region, bytes, rank FROM (
  SELECT app, container_id, host, region, bytes,
         row_number() OVER (ORDER BY bytes DESC, app NULLS LAST, container_id NULLS LAST, host NULLS LAST, region NULLS LAST) AS rank
  FROM (
    SELECT coalesce(app, 'unassigned') AS app, container_id, host, coalesce(region, 'unknown') AS region,
           sum(coalesce(bytes_sent, 0) + coalesce(bytes_received, 0)) AS bytes
    FROM HOP(events, time, INTERVAL '1 second', INTERVAL '60 seconds')
    WHERE kind IN ('close', 'send')
      AND window_end = date_trunc('second', now() - weir_window_grace())
    GROUP BY coalesce(app, 'unassigned'), container_id, host, coalesce(region, 'unknown')
  )
) WHERE rank <= 100";

/// What keeps it.
pub(crate) fn plan(settings: &ViewSettings) -> Plan {
    let grace = settings.window_grace_ms;
    let key = ["app", "container_id", "host", "region"];
    let moved = col("kind").in_list(vec![lit("close"), lit("send")], false);
    let panes = Plan::source("events")
        .filter(moved)
        .project([
            (super::or_text("app", "unassigned"), "app"),
            (col("container_id"), "container_id"),
            (col("host"), "host"),
            (super::or_text("region", "unknown"), "region"),
            (col("time"), "time"),
            (or_zero(col("bytes_sent")) + or_zero(col("bytes_received")), "bytes"),
        ])
        .tumble(col("time"), PANE_MS)
        .aggregate_bounded(
            key.into_iter().chain(["window_end"]).map(|name| (col(name), name)),
            [AggregateCall::sum(col("bytes"), "bytes")],
            Bounds { settled_at: None, forget_at: Some(later(col("window_end"), grace + WINDOW_MS)) },
        )
        .visible(Some(later(col("window_end"), grace)), Some(later(col("window_end"), grace + WINDOW_MS)));
    panes.aggregate(key.map(|name| (col(name), name)), [AggregateCall::sum(col("bytes"), "bytes")]).top_k(
        [],
        [("bytes", true), ("app", false), ("container_id", false), ("host", false), ("region", false)]
            .map(|(name, down)| (col(name), down)),
        RANKS,
        "rank",
    )
}

/// A window's length.
const WINDOW_MS: u64 = 60_000;
/// How far a window moves.
const PANE_MS: u64 = 1_000;
/// Ranks shown.
const RANKS: u64 = 100;
