//! STIX 2.1: a bundle per revision, with the alert as a sighting of its rule's indicator, its host and its techniques. One line each in a
//! file, or by POST.
//!
//! Ids follow from the alert, so a resend is the same objects; a withdrawn alert is the same sighting, revoked.

use serde_json::{Value, json};

use super::{Message, Request, Sink, uuid};
use crate::alert::{Alert, cut};

pub(super) struct Stix {
    pub(super) url: Option<String>,
    pub(super) authorization: Option<String>,
}

impl Sink for Stix {
    fn message(&self, alert: &Alert) -> Message {
        let bundle = bundle(alert);
        let Some(url) = &self.url else { return Message::Line(bundle.to_string().into_bytes()) };
        let mut request = Request::json(url, &bundle).with("idempotency-key", alert.idempotency_key());
        request.headers[0].1 = "application/stix+json;version=2.1".to_owned();
        if let Some(authorization) = &self.authorization {
            request = request.with("authorization", authorization.as_str());
        }
        Message::Http(request)
    }
}

fn bundle(alert: &Alert) -> Value {
    let id = |kind: &str, of: &str| format!("{kind}--{}", uuid(&format!("{kind} {of}")));
    let (first, last) = (millis_text(alert.first_seen), millis_text(alert.last_seen.max(alert.first_seen)));
    // A version's time rises with its revision; it says when the revision's last evidence was.
    let modified =
        millis_text(alert.last_seen.max(alert.first_seen).saturating_add(alert.revision.min(999_999) as i64 * 1_000_000));
    let author = id("identity", "weir");
    let (indicator, host) = (id("indicator", &alert.rule_id), id("infrastructure", &format!("{} {}", alert.tenant, alert.host)));
    let version = json!({ "spec_version": "2.1", "created_by_ref": author });
    let object = |kind: &str, id: &str, times: (&str, &str), fields: Value| {
        let mut object = version.clone();
        let own = json!({ "type": kind, "id": id, "created": times.0, "modified": times.1 });
        for fields in [own, fields] {
            object.as_object_mut().expect("it was written as one").extend(fields.as_object().cloned().unwrap_or_default());
        }
        object
    };
    let fixed = ("2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.000Z");
    let literal = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    let mut objects = vec![
        json!({
            "type": "identity", "spec_version": "2.1", "id": author, "created": fixed.0, "modified": fixed.1, "name": "weir",
            "identity_class": "system",
        }),
        object("infrastructure", &host, fixed, json!({ "name": alert.host, "infrastructure_types": ["workstation"] })),
        object(
            "indicator",
            &indicator,
            fixed,
            json!({
                "name": alert.rule, "indicator_types": ["malicious-activity"], "valid_from": fixed.0, "pattern_type": "stix",
                // What a rule says has no form in STIX patterns: the pattern names the rule, and finds nothing else.
                "pattern": format!("[x-weir-alert:rule_id = '{}']", literal(&alert.rule_id)),
            }),
        ),
        object(
            "sighting",
            &id("sighting", &alert.alert_id),
            (&first, &modified),
            json!({
                "first_seen": first, "last_seen": last, "sighting_of_ref": indicator, "where_sighted_refs": [author],
                "description": alert.summary, "confidence": super::ecs::risk(alert.severity), "revoked": alert.is_withdrawn(),
                "external_references": [{ "source_name": "weir", "external_id": alert.idempotency_key(), "description": cut(&alert.evidence.join(","), 1_024) }],
            }),
        ),
    ];
    for technique in &alert.techniques {
        let pattern = id("attack-pattern", technique);
        objects.push(object(
            "attack-pattern",
            &pattern,
            fixed,
            json!({
                "name": technique, "external_references": [{ "source_name": "mitre-attack", "external_id": technique }],
            }),
        ));
        objects.push(object(
            "relationship",
            &id("relationship", &format!("{indicator} {pattern}")),
            fixed,
            json!({
                "relationship_type": "indicates", "source_ref": indicator, "target_ref": pattern,
            }),
        ));
    }
    objects.push(object(
        "note",
        &id("note", &alert.alert_id),
        (&first, &modified),
        json!({
            "content": alert.summary, "object_refs": [host, id("sighting", &alert.alert_id)], "revoked": alert.is_withdrawn(),
        }),
    ));
    json!({ "type": "bundle", "id": id("bundle", &alert.idempotency_key()), "objects": objects })
}

/// With exactly three digits of a second.
fn millis_text(nanos: i64) -> String {
    let (seconds, millis) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000) / 1_000_000);
    let text = crate::alert::time_text(seconds * 1_000_000_000);
    format!("{}.{millis:03}Z", text.trim_end_matches('Z'))
}
