//! Every metric of the sinks, with unit and meaning. Their labels are the configured sinks.

use metrics::{counter, gauge};

use crate::entry::SinkCounts;

/// `weir_alert_sent_total{sink}`: revisions that a sink has taken.
pub(crate) fn sent(sink: &str) {
    counter!("weir_alert_sent_total", "sink" => sink.to_owned()).increment(1);
}

/// `weir_alert_retries_total{sink}`: attempts that failed and are made again.
pub(crate) fn retried(sink: &str) {
    counter!("weir_alert_retries_total", "sink" => sink.to_owned()).increment(1);
}

/// `weir_alert_dead_total{sink}`: revisions that became dead letters.
pub(crate) fn dead(sink: &str) {
    counter!("weir_alert_dead_total", "sink" => sink.to_owned()).increment(1);
}

/// `weir_alert_dropped_total`: alerts that were dropped, or not yet taken up, for want of room.
pub(crate) fn dropped(count: u64) {
    counter!("weir_alert_dropped_total").increment(count);
}

/// `weir_alert_failures_total`: times that the outbox could not be read or written, or `alerts` not be read.
pub fn failed() {
    counter!("weir_alert_failures_total").increment(1);
}

/// `weir_alert_waiting{sink}`, `weir_alert_dead_letters{sink}`, `weir_alert_lag_seconds{sink}`: what waits, what is a dead letter, and for how
/// long the oldest has waited.
pub(crate) fn held(sink: &str, counts: &SinkCounts, now_ms: u64) {
    gauge!("weir_alert_waiting", "sink" => sink.to_owned()).set(counts.waiting as f64);
    gauge!("weir_alert_dead_letters", "sink" => sink.to_owned()).set(counts.dead as f64);
    let lag_ms = counts.oldest_ms.map_or(0, |since| now_ms.saturating_sub(since));
    gauge!("weir_alert_lag_seconds", "sink" => sink.to_owned()).set(lag_ms as f64 / 1_000.0);
}

/// Names and help of all of them.
pub fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge};
    describe_counter!("weir_alert_sent_total", "Revisions of alerts that a sink has taken.");
    describe_counter!("weir_alert_retries_total", "Attempts to send an alert that failed and are made again.");
    describe_counter!("weir_alert_dead_total", "Revisions of alerts that became dead letters.");
    describe_counter!("weir_alert_dropped_total", "Alerts dropped, or not yet taken up, because the outbox is full.");
    describe_counter!("weir_alert_failures_total", "Times that the outbox or the relation alerts could not be read or written.");
    describe_gauge!("weir_alert_waiting", "Alerts that wait for a sink.");
    describe_gauge!("weir_alert_dead_letters", "Alerts that are dead letters of a sink.");
    describe_gauge!("weir_alert_lag_seconds", Unit::Seconds, "How long the oldest alert has waited for a sink.");
}
