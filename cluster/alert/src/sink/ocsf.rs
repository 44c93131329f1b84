//! OCSF Detection Finding (class 2004), one line each. `metadata.uid` is the same for every resend.

use serde_json::{Value, json};
use weir_config::Severity;

use super::attack::{parent, tactic_id};
use super::{Message, Sink, columns, drop_nulls, ecs};
use crate::alert::{Alert, State};

pub(super) struct Ocsf;

impl Sink for Ocsf {
    fn message(&self, alert: &Alert) -> Message {
        Message::Line(finding(alert).to_string().into_bytes())
    }
}

pub(super) fn finding(alert: &Alert) -> Value {
    let millis = |nanos: i64| nanos.div_euclid(1_000_000);
    // create, update, close
    let (activity, activity_name) = match alert.state {
        State::Open => (1, "Create"),
        State::Updated => (2, "Update"),
        State::Withdrawn => (3, "Close"),
    };
    // new, suppressed: what was withdrawn was no finding
    let (status, status_name) = if alert.is_withdrawn() { (3, "Suppressed") } else { (1, "New") };
    let (severity, severity_name) = severity(alert.severity);
    let tactics: Vec<Value> = alert.tactics.iter().map(|tactic| json!({ "name": tactic, "uid": tactic_id(tactic) })).collect();
    let attacks: Vec<Value> = alert.techniques.iter().map(|technique| {
        let (parent, sub) = parent(technique);
        json!({ "technique": { "uid": parent }, "sub_technique": sub.map(|sub| json!({ "uid": sub })), "tactic": tactics.first() })
    }).collect();
    let resource = |name: &str| json!({ "name": name, "type": "host" });
    let mut profiles = vec!["host", "security_control"];
    profiles.extend(alert.cloud.as_ref().map(|_| "cloud"));
    profiles.extend(alert.container_id.as_ref().map(|_| "container"));
    let mut finding = json!({
        "activity_id": activity, "activity_name": activity_name, "category_uid": 2, "category_name": "Findings", "class_uid": 2004,
        "class_name": "Detection Finding", "type_uid": 200_400 + activity, "type_name": format!("Detection Finding: {activity_name}"),
        "time": millis(alert.time), "start_time": millis(alert.first_seen), "end_time": millis(alert.last_seen),
        "severity_id": severity, "severity": severity_name, "status_id": status, "status": status_name, "is_alert": true,
        "message": alert.summary, "risk_score": ecs::risk(alert.severity),
        "metadata": {
            "version": "1.9.0-dev", "uid": alert.idempotency_key(), "log_name": "alerts", "tenant_uid": alert.tenant,
            "product": { "name": "weir", "vendor_name": "Weir", "version": env!("CARGO_PKG_VERSION") },
            "profiles": profiles,
        },
        "finding_info": {
            "uid": alert.alert_id, "title": alert.rule, "desc": alert.summary,
            "first_seen_time": millis(alert.first_seen), "last_seen_time": millis(alert.last_seen),
            "analytic": { "name": alert.rule, "uid": alert.rule_id, "type_id": 1, "type": "Rule" },
            "attacks": if attacks.is_empty() { Value::Null } else { json!(attacks) },
            "related_events": alert.evidence.iter().map(|event| json!({ "uid": event })).collect::<Vec<_>>(),
        },
        "device": {
            "hostname": alert.host, "name": alert.host, "region": alert.region, "type_id": 1, "type": "Server",
            "container": alert.container_id.as_ref().map(|id| json!({ "uid": id })),
        },
        "cloud": alert.cloud.as_ref().map(|cloud| json!({ "provider": cloud, "region": alert.region })),
        "resources": alert.hosts.iter().map(|host| resource(host)).collect::<Vec<_>>(),
        "evidences": [{
            "container": alert.container_id.as_ref().map(|id| json!({ "uid": id })),
            "process": alert.process_id.as_ref().map(|id| json!({ "uid": id })),
            "data": columns(alert),
        }],
        "observables": [{ "name": "device.hostname", "type_id": 1, "type": "Hostname", "value": alert.host }],
    });
    drop_nulls(&mut finding);
    finding
}

fn severity(severity: Severity) -> (u32, &'static str) {
    match severity {
        Severity::Debug | Severity::Informational => (1, "Informational"),
        Severity::Notice => (2, "Low"),
        Severity::Warning => (3, "Medium"),
        Severity::Error => (4, "High"),
        Severity::Critical | Severity::Alert => (5, "Critical"),
        Severity::Emergency => (6, "Fatal"),
    }
}
