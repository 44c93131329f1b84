//! Prometheus Alertmanager, API v2. Labels are few and of low cardinality, but for the alert's id, which keeps two alerts apart.
//!
//! It forgets an alert that is not sent again before `endsAt`, so that is a day after the last evidence, as long as Weir shows it; a
//! withdrawn alert ends now, as of its last evidence.

use serde_json::json;

use super::{Message, Request, Sink, drop_nulls};
use crate::alert::{Alert, time_text};

pub(super) struct Alertmanager {
    /// Up to the port, or to the prefix.
    pub(super) url: String,
    pub(super) authorization: Option<String>,
}

impl Sink for Alertmanager {
    fn message(&self, alert: &Alert) -> Message {
        // Not before its start, which Alertmanager refuses.
        let ends = if alert.is_withdrawn() {
            alert.last_seen.max(alert.first_seen)
        } else {
            alert.last_seen.saturating_add(SHOWN_NANOS)
        };
        let mut body = json!([{
            "labels": {
                "alertname": alert.rule, "severity": alert.severity, "tenant": alert.tenant, "region": alert.region,
                "host": alert.host, "app": alert.app, "alert_id": alert.alert_id,
            },
            "annotations": {
                "summary": alert.title(), "description": alert.summary, "revision": alert.revision.to_string(),
                "techniques": alert.techniques.join(","), "container_id": alert.container_id, "evidence": alert.evidence.join(","),
                "lost_events": alert.lost_events.to_string(),
            },
            "startsAt": time_text(alert.first_seen),
            "endsAt": time_text(ends),
        }]);
        drop_nulls(&mut body);
        let request = Request::json(&format!("{}/api/v2/alerts", self.url), &body);
        Message::Http(match &self.authorization {
            Some(authorization) => request.with("authorization", authorization.as_str()),
            None => request,
        })
    }
}

const SHOWN_NANOS: i64 = 86_400_000_000_000;
