//! `new_edges`: which application first called which, from where to where, and when.

use weir_plan::{AggregateCall, AggregateFunc, Bounds, Plan, col};

use super::{later, or_text};
use crate::settings::ViewSettings;

/// As a user could have written it. `connections_all` is `connections` without expiry.
pub(crate) const SQL: &str = "\
CREATE VIEW new_edges AS
SELECT coalesce(src_region, 'unknown') AS src_region,
       coalesce(src_app, 'unassigned') AS src_app,
       coalesce(dst_region, 'unknown') AS dst_region,
       coalesce(dst_app, 'unassigned') AS dst_app,
       dst_port,
       min(opened) AS first_seen,
       count(*) AS total
FROM connections_all
GROUP BY coalesce(src_region, 'unknown'), coalesce(src_app, 'unassigned'),
         coalesce(dst_region, 'unknown'), coalesce(dst_app, 'unassigned'), dst_port";

/// What keeps it. A connection's row is final once nothing about it is admitted any more; that bounds the state of `first_seen`.
pub(crate) fn plan(settings: &ViewSettings) -> Plan {
    let final_after_ms = settings.retention_ms + settings.skew_ms;
    Plan::source("connections_all").aggregate_bounded(
        [
            (or_text("src_region", "unknown"), "src_region"),
            (or_text("src_app", "unassigned"), "src_app"),
            (or_text("dst_region", "unknown"), "dst_region"),
            (or_text("dst_app", "unassigned"), "dst_app"),
            (col("dst_port"), "dst_port"),
        ],
        [AggregateCall::new(AggregateFunc::Min, col("opened"), "first_seen"), AggregateCall::count("total")],
        Bounds { settled_at: Some(later(col("closed"), final_after_ms)), forget_at: None },
    )
}
