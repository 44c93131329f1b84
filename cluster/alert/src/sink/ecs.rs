//! An alert in the Elastic Common Schema.

use serde_json::{Value, json};
use weir_config::Severity;

use super::attack::{parent, tactic_id};
use super::drop_nulls;
use crate::alert::{Alert, State, time_text};

pub(super) fn document(alert: &Alert) -> Value {
    let parents: Vec<&str> = alert.techniques.iter().map(|technique| parent(technique).0).collect();
    let subs: Vec<&str> = alert.techniques.iter().filter_map(|technique| parent(technique).1).collect();
    let tactics: Vec<Option<&str>> = alert.tactics.iter().map(|tactic| tactic_id(tactic)).collect();
    let tactics: Vec<&str> = tactics.into_iter().flatten().collect();
    let kind = if alert.state == State::Open { "start" } else { "info" };
    let mut document = json!({
        "@timestamp": time_text(alert.time),
        "ecs": { "version": "9.0.0" },
        "message": alert.summary,
        "event": {
            "kind": "alert", "category": ["intrusion_detection"], "type": [if alert.is_withdrawn() { "end" } else { kind }],
            "action": format!("alert-{}", alert.state.as_str()), "id": alert.idempotency_key(), "module": "weir",
            "dataset": "weir.alerts", "start": time_text(alert.first_seen), "end": time_text(alert.last_seen),
            "severity": risk(alert.severity), "risk_score": risk(alert.severity), "provider": "weir",
        },
        "rule": { "name": alert.rule, "id": alert.rule_id, "uuid": alert.rule_id },
        "threat": {
            "framework": "MITRE ATT&CK",
            "tactic": { "name": list(&alert.tactics), "id": list(&tactics) },
            "technique": { "id": list(&parents), "subtechnique": { "id": list(&subs) } },
        },
        "host": { "name": alert.host, "hostname": alert.host },
        "cloud": { "provider": alert.cloud, "region": alert.region },
        "container": { "id": alert.container_id },
        "service": { "name": alert.app },
        "process": { "entity_id": alert.process_id },
        "organization": { "name": alert.tenant },
        "related": { "hosts": list(&alert.hosts) },
        "observer": { "vendor": "Weir", "product": "weir", "type": "ids", "version": env!("CARGO_PKG_VERSION") },
        "log": { "level": alert.severity },
        "labels": {
            "alert_id": alert.alert_id, "alert_revision": alert.revision.to_string(), "alert_state": alert.state,
            "lost_events": alert.lost_events.to_string(), "evidence": alert.evidence.join(","),
        },
    });
    drop_nulls(&mut document);
    if alert.tactics.is_empty() && alert.techniques.is_empty() {
        document.as_object_mut().expect("it was written as one").remove("threat");
    }
    document
}

fn list<T: serde::Serialize>(items: &[T]) -> Value {
    if items.is_empty() { Value::Null } else { json!(items) }
}

/// 0 to 100.
pub(super) fn risk(severity: Severity) -> u32 {
    match severity {
        Severity::Debug => 1,
        Severity::Informational => 10,
        Severity::Notice => 25,
        Severity::Warning => 45,
        Severity::Error => 60,
        Severity::Critical => 80,
        Severity::Alert => 90,
        Severity::Emergency => 100,
    }
}
