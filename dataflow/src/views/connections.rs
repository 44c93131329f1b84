//! `connections`: every real connection that is open, or has ended within the retention.

use weir_plan::{Plan, col};

use super::later;
use crate::settings::ViewSettings;

/// Rows leave once their end is older than the retention; open ones stay.
pub(crate) fn plan(settings: &ViewSettings) -> Plan {
    Plan::source("connections_all").until(later(col("closed"), settings.retention_ms))
}
