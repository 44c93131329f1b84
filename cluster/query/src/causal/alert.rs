//! Alerts as the graph needs them: who they are about, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::Result;

use super::cells::Cells;
use super::facts::Id;
use super::lookup::Lookup;

/// One alert that is not withdrawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alert {
    pub(super) id: Id,
    pub(super) rule: Id,
    pub(super) severity: Id,
    pub(super) updated: bool,
    pub(super) tenant: Id,
    pub(super) region: Id,
    pub(super) host: Id,
    pub(super) container_id: Option<Id>,
    pub(super) first: i64,
    pub(super) last: i64,
    /// The processes of its evidence, each with when it hit first.
    pub(super) entities: BTreeMap<Id, i64>,
    evidence: Vec<String>,
}

#[cfg(test)]
impl Alert {
    /// One of which only this is known.
    pub(super) fn of(id: Id, first: i64, entities: BTreeMap<Id, i64>) -> Self {
        let [rule, severity, tenant, region, host] = ["rule", "warning", "t", "r", "h"].map(Id::from);
        let (updated, container_id, last, evidence) = (false, None, first, vec![]);
        Self { id, rule, severity, updated, tenant, region, host, container_id, first, last, entities, evidence }
    }
}

/// The alerts of a snapshot.
pub(super) fn alerts(batches: &[RecordBatch]) -> Vec<Alert> {
    let mut alerts = Vec::new();
    for batch in batches {
        let cells = Cells::of(batch);
        let alert = |row| {
            let text = |column| cells.text(column, row);
            let state = text("state").filter(|state| &**state != "withdrawn")?;
            let (first, last) = (cells.int("first_seen", row)?, cells.int("last_seen", row)?);
            Some(Alert {
                id: text("alert_id")?,
                rule: text("rule")?,
                severity: text("severity")?,
                updated: &*state == "updated",
                tenant: text("tenant")?,
                region: text("region")?,
                host: text("host")?,
                container_id: text("container_id"),
                first,
                last,
                entities: text("process_id").map(|id| (id, first)).into_iter().collect(),
                evidence: text("evidence").and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
            })
        };
        alerts.extend((0..batch.num_rows()).filter_map(alert));
    }
    alerts
}

/// Looks up whose events the evidence is: a group of hits may be of several processes.
pub(super) async fn with_entities(alerts: &mut [Alert], lookup: &Lookup) -> Result<()> {
    let evidence: BTreeSet<Id> = alerts.iter().flat_map(|alert| &alert.evidence).map(|id| id.as_str().into()).collect();
    let found = lookup.processes_of(&evidence).await?;
    let found: BTreeMap<Id, (Id, i64)> = found.into_iter().map(|(event, process, at)| (event, (process, at))).collect();
    for alert in alerts {
        for (process, at) in alert.evidence.iter().filter_map(|event| found.get(event.as_str())) {
            let known = alert.entities.entry(Arc::clone(process)).or_insert(*at);
            *known = (*known).min(*at);
        }
    }
    Ok(())
}
