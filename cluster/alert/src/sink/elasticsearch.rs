//! Elasticsearch and OpenSearch: one `create` by `_bulk`, in the Elastic Common Schema.
//!
//! `_id` is `<alert_id>:<revision>`, so a resend meets 409 and counts as delivered. Every revision is a document of its own, as data
//! streams want it; the newest of an alert is found by `labels.alert_id`.

use serde_json::{Value, json};

use super::{Answer, Message, Outcome, Request, Sink, Verdict, ecs};
use crate::alert::Alert;

pub(super) struct Elasticsearch {
    /// Up to the port.
    pub(super) url: String,
    pub(super) index: String,
    pub(super) authorization: Option<String>,
}

impl Sink for Elasticsearch {
    fn message(&self, alert: &Alert) -> Message {
        let action = json!({ "create": { "_index": self.index, "_id": alert.idempotency_key() } });
        let body = format!("{action}\n{}\n", ecs::document(alert)).into_bytes();
        let headers = vec![("content-type", "application/x-ndjson".to_owned())];
        let request = Request { method: "POST", url: format!("{}/_bulk", self.url), headers, body };
        Message::Http(match &self.authorization {
            Some(authorization) => request.with("authorization", authorization.as_str()),
            None => request,
        })
    }

    fn judge(&self, _: &Alert, _: &Request, answer: &Answer) -> Verdict {
        if answer.status != 200 {
            return answer.verdict();
        }
        let said = answer.json();
        let Some(item) = said["items"].get(0).map(|item| &item["create"]) else {
            return Verdict::Done(Outcome::Retry { why: "the answer is none of _bulk".to_owned(), after_ms: None });
        };
        let status = item["status"].as_u64().unwrap_or(0);
        let why = || format!("the index answered {status}: {}", crate::alert::cut(&text(&item["error"]), 300));
        Verdict::Done(match status {
            // 409: it is there already.
            200..=299 | 409 => Outcome::Delivered,
            429 | 500..=599 | 0 => Outcome::Retry { why: why(), after_ms: answer.after_ms },
            _ => Outcome::Refused { why: why() },
        })
    }
}

fn text(error: &Value) -> String {
    let part = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    format!("{} {}", part("type"), part("reason"))
}
