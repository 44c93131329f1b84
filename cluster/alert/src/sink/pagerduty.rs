//! PagerDuty's Events API v2: one incident per alert, by `dedup_key`; a withdrawn alert resolves it.

use serde_json::json;
use weir_config::Severity;

use super::{Message, Request, Sink, columns};
use crate::alert::{Alert, cut, time_text};

pub(super) struct PagerDuty {
    pub(super) url: String,
    pub(super) key: String,
}

impl Sink for PagerDuty {
    fn message(&self, alert: &Alert) -> Message {
        let severity = match alert.severity {
            Severity::Debug | Severity::Informational | Severity::Notice => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
            Severity::Critical | Severity::Alert | Severity::Emergency => "critical",
        };
        let action = if alert.is_withdrawn() { "resolve" } else { "trigger" };
        let body = json!({
            "routing_key": self.key,
            "event_action": action,
            "dedup_key": cut(&alert.alert_id, 255),
            "client": "weir",
            "payload": {
                "summary": cut(&format!("{}: {}", alert.title(), alert.summary), SUMMARY_BYTES_MAX),
                "source": cut(&alert.host, SUMMARY_BYTES_MAX),
                "severity": severity,
                "timestamp": time_text(alert.time.div_euclid(1_000_000) * 1_000_000),
                "component": alert.app.as_deref().unwrap_or(&alert.host),
                "group": alert.region,
                "class": cut(&alert.rule, SUMMARY_BYTES_MAX),
                "custom_details": columns(alert),
            },
        });
        Message::Http(Request::json(&self.url, &body))
    }
}

/// As its interface says.
const SUMMARY_BYTES_MAX: usize = 1_024;
