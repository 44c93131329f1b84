//! `service_map`: which application calls which, on what port, counted since the first tick.

use weir_plan::{AggregateCall, AggregateFunc, Bounds, Plan, col, lit, when};

use super::{later, or_text, or_zero};
use crate::settings::ViewSettings;

/// As a user could have written it. `connections_all` is `connections` without expiry.
pub(crate) const SQL: &str = "\
CREATE VIEW service_map AS
SELECT coalesce(src_app, 'unassigned') AS src_app,
       coalesce(dst_app, 'unassigned') AS dst_app,
       dst_port,
       count(*) FILTER (WHERE state = 'open') AS open,
       count(*) AS total,
       count(*) FILTER (WHERE state = 'failed') AS failed,
       coalesce(sum(bytes_sent), 0) AS bytes_sent,
       coalesce(sum(bytes_received), 0) AS bytes_received,
       max(coalesce(closed, opened)) AS last_seen
FROM connections_all
GROUP BY coalesce(src_app, 'unassigned'), coalesce(dst_app, 'unassigned'), dst_port";

/// What keeps it. A connection's row is final once nothing about it is admitted any more; that bounds the state of `last_seen`.
pub(crate) fn plan(settings: &ViewSettings) -> Plan {
    let final_after_ms = settings.retention_ms + settings.skew_ms;
    let seen = when(col("closed").is_null(), col("opened")).otherwise(col("closed")).expect("one case and an else make a CASE");
    Plan::source("connections_all").aggregate_bounded(
        [
            (or_text("src_app", "unassigned"), "src_app"),
            (or_text("dst_app", "unassigned"), "dst_app"),
            (col("dst_port"), "dst_port"),
        ],
        [
            AggregateCall::count_if(col("state").eq(lit("open")), "open"),
            AggregateCall::count("total"),
            AggregateCall::count_if(col("state").eq(lit("failed")), "failed"),
            AggregateCall::sum(or_zero(col("bytes_sent")), "bytes_sent"),
            AggregateCall::sum(or_zero(col("bytes_received")), "bytes_received"),
            AggregateCall::new(AggregateFunc::Max, seen, "last_seen"),
        ],
        Bounds { settled_at: Some(later(col("closed"), final_after_ms)), forget_at: None },
    )
}
