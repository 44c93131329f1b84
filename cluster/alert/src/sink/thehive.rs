//! TheHive 5: an alert per alert, found again by its `sourceRef`; a withdrawn one is ignored.
//!
//! ```text
//! POST /api/v1/query    is there one of this sourceRef?
//! POST /api/v1/alert    no
//! PATCH /api/v1/alert/<id>   yes
//! ```

use std::time::Duration;

use serde_json::{Value, json};
use weir_config::Severity;

use super::{Answer, Message, Outcome, Request, Sink, Verdict};
use crate::alert::{Alert, cut};

pub(super) struct TheHive {
    /// Up to the port.
    pub(super) url: String,
    pub(super) authorization: String,
}

impl TheHive {
    fn request(&self, method: &'static str, path: &str, body: &Value) -> Request {
        let request = Request::json(&format!("{}/api/v1/{path}", self.url), body);
        Request { method, ..request }.with("authorization", self.authorization.as_str())
    }

    fn find(&self, alert: &Alert) -> Request {
        let fits = [("type", TYPE), ("source", SOURCE), ("sourceRef", &alert.alert_id)];
        let fits: Vec<Value> = fits.iter().map(|(field, value)| json!({ "_eq": { "_field": field, "_value": value } })).collect();
        let query =
            json!([{ "_name": "listAlert" }, { "_name": "filter", "_and": fits }, { "_name": "page", "from": 0, "to": 1 }]);
        self.request("POST", "query", &json!({ "query": query }))
    }

    fn content(alert: &Alert) -> Value {
        let severity = match alert.severity {
            Severity::Debug | Severity::Informational | Severity::Notice => 1,
            Severity::Warning => 2,
            Severity::Error => 3,
            Severity::Critical | Severity::Alert | Severity::Emergency => 4,
        };
        let mut tags =
            vec![format!("rule:{}", alert.rule), format!("region:{}", alert.region), format!("tenant:{}", alert.tenant)];
        tags.extend(alert.techniques.iter().cloned());
        let description = format!(
            "{}\n\nhost {}, region {}, revision {}, {} lost events\n\nevidence: {}",
            alert.summary,
            alert.host,
            alert.region,
            alert.revision,
            alert.lost_events,
            alert.evidence.join(", ")
        );
        json!({ "title": cut(&alert.title(), 512), "description": description, "severity": severity, "tags": tags })
    }
}

impl Sink for TheHive {
    fn message(&self, alert: &Alert) -> Message {
        Message::Http(self.find(alert))
    }

    fn judge(&self, alert: &Alert, asked: &Request, answer: &Answer) -> Verdict {
        if asked.url.ends_with("/query") && answer.status == 200 {
            let mut body = Self::content(alert);
            let found = answer.json().get(0).and_then(|found| found["_id"].as_str().map(str::to_owned));
            // Its id becomes a part of an address.
            let found = found.filter(|id| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"~-_".contains(&byte)));
            let next = match found {
                Some(id) => {
                    if alert.is_withdrawn() {
                        body["status"] = "Ignored".into();
                    }
                    self.request("PATCH", &format!("alert/{id}"), &body)
                }
                None => {
                    let millis = |nanos: i64| nanos.div_euclid(1_000_000);
                    let head = [("type", json!(TYPE)), ("source", json!(SOURCE)), ("sourceRef", json!(alert.alert_id))];
                    for (name, value) in head.into_iter().chain([("date", json!(millis(alert.time)))]) {
                        body[name] = value;
                    }
                    body["observables"] = json!([{ "dataType": "hostname", "data": alert.host }]);
                    if alert.is_withdrawn() {
                        body["status"] = "Ignored".into();
                    }
                    self.request("POST", "alert", &body)
                }
            };
            return Verdict::Then(next, Duration::ZERO);
        }
        let created = asked.method == "POST" && asked.url.ends_with("/alert");
        if created && answer.status == 400 && String::from_utf8_lossy(&answer.body).contains("already exist") {
            // Made by an attempt whose answer was lost; its search may lag behind.
            return Verdict::Done(Outcome::Retry { why: answer.why(), after_ms: Some(1_000) });
        }
        answer.verdict()
    }
}

const TYPE: &str = "weir-alert";
const SOURCE: &str = "weir";
