//! Splunk's HTTP Event Collector, on request with indexer acknowledgement.
//!
//! With `ack`, an alert counts as delivered once `/services/collector/ack` says that it is indexed; until then it is asked every
//! half second, as long as a request may take. A resend is a second event in Splunk with the same `fields.alert_key`.

use std::time::Duration;

use serde_json::json;

use super::{Answer, Message, Outcome, Request, Sink, Verdict, columns, uuid};
use crate::alert::Alert;

pub(super) struct Splunk {
    /// Up to the port.
    pub(super) url: String,
    pub(super) token: String,
    pub(super) index: Option<String>,
    pub(super) ack: bool,
}

impl Splunk {
    fn request(&self, path: &str, body: &serde_json::Value) -> Request {
        let request = Request::json(&format!("{}{path}", self.url), body).with("authorization", format!("Splunk {}", self.token));
        if self.ack { request.with("x-splunk-request-channel", uuid(&self.token)) } else { request }
    }

    fn ask(&self, id: u64) -> Request {
        self.request(ACK, &json!({ "acks": [id] }))
    }
}

impl Sink for Splunk {
    fn message(&self, alert: &Alert) -> Message {
        let mut event = json!({
            "time": alert.time.div_euclid(1_000_000) as f64 / 1_000.0,
            "host": alert.host,
            "source": "weir",
            "sourcetype": "weir:alert",
            "event": columns(alert),
            "fields": { "alert_key": alert.idempotency_key(), "severity": alert.severity, "state": alert.state },
        });
        if let Some(index) = &self.index {
            event["index"] = index.as_str().into();
        }
        Message::Http(self.request("/services/collector/event", &event))
    }

    fn judge(&self, _: &Alert, asked: &Request, answer: &Answer) -> Verdict {
        let said = answer.json();
        if asked.url.ends_with(ACK) && answer.status == 200 {
            let indexed = said["acks"].as_object().is_some_and(|acks| acks.values().all(|done| done == true) && !acks.is_empty());
            return if indexed { Verdict::Done(Outcome::Delivered) } else { Verdict::Then(asked.clone(), ACK_EVERY) };
        }
        match said["ackId"].as_u64() {
            Some(id) if self.ack && answer.status == 200 => Verdict::Then(self.ask(id), Duration::from_millis(50)),
            None if self.ack && answer.status == 200 => Verdict::Done(Outcome::Refused {
                why: "the token has no indexer acknowledgement: enable it, or set ack = false".to_owned(),
            }),
            // 9: the server is busy; it says 503, some proxies 400.
            _ if said["code"] == 9 => Verdict::Done(Outcome::Retry { why: answer.why(), after_ms: answer.after_ms }),
            _ => answer.verdict(),
        }
    }
}

const ACK: &str = "/services/collector/ack";
const ACK_EVERY: Duration = Duration::from_millis(500);
