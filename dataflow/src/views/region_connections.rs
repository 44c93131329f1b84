//! `region_connections`: who talks to whom across regions, counted since the first tick.

use weir_plan::{AggregateCall, Plan, col, lit};

use super::{or_text, or_zero};

/// As a user could have written it. `connections_all` is `connections` without expiry.
pub(crate) const SQL: &str = "\
CREATE VIEW region_connections AS
SELECT coalesce(src_region, 'unknown') AS src_region,
       coalesce(dst_region, 'unknown') AS dst_region,
       count(*) FILTER (WHERE state = 'open') AS open,
       count(*) AS total,
       count(*) FILTER (WHERE state = 'failed') AS failed,
       coalesce(sum(bytes_sent), 0) AS bytes_sent,
       coalesce(sum(bytes_received), 0) AS bytes_received
FROM connections_all
GROUP BY coalesce(src_region, 'unknown'), coalesce(dst_region, 'unknown')";

/// What keeps it.
pub(crate) fn plan() -> Plan {
    Plan::source("connections_all").aggregate(
        [(or_text("src_region", "unknown"), "src_region"), (or_text("dst_region", "unknown"), "dst_region")],
        [
            AggregateCall::count_if(col("state").eq(lit("open")), "open"),
            AggregateCall::count("total"),
            AggregateCall::count_if(col("state").eq(lit("failed")), "failed"),
            AggregateCall::sum(or_zero(col("bytes_sent")), "bytes_sent"),
            AggregateCall::sum(or_zero(col("bytes_received")), "bytes_received"),
        ],
    )
}
