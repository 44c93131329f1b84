//! Kafka: an OCSF Detection Finding a record, keyed by the alert.

use super::{Message, Sink, ocsf};
use crate::alert::Alert;
use crate::kafka::Record;

pub(super) struct Topic;

impl Sink for Topic {
    fn message(&self, alert: &Alert) -> Message {
        Message::Record(Record {
            key: alert.alert_id.clone(),
            value: ocsf::finding(alert).to_string().into_bytes(),
            time_ms: alert.time.div_euclid(1_000_000),
            resend_key: alert.idempotency_key(),
        })
    }
}
