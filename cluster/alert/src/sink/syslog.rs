//! Syslog: RFC 5424 with structured data, and the Common Event Format inside it.
//!
//! ```text
//! <PRI>1 TIME NODE weir - alert [weir@32473 alertId="…" …] BOM summary
//! <PRI>1 TIME NODE weir - cef - CEF:0|Weir|weir|VERSION|rule id|rule|0-10|externalId=… …
//! ```
//!
//! The facility is 13, log audit. The time is the alert's, so that a resend is the same line.

use std::fmt::Write as _;

use weir_config::Severity;

use super::{Message, Sink};
use crate::alert::{Alert, cut, time_text};

pub(super) struct Rfc5424 {
    pub(super) node: String,
}

pub(super) struct Cef {
    pub(super) node: String,
}

impl Sink for Rfc5424 {
    fn message(&self, alert: &Alert) -> Message {
        let mut line = header(alert, &self.node, "alert");
        line.push_str("[weir@32473");
        let (revision, evidence) = (alert.revision.to_string(), alert.evidence.join(","));
        let (tactics, techniques) = (alert.tactics.join(","), alert.techniques.join(","));
        let lost = alert.lost_events.to_string();
        let parameters = [
            ("alertId", Some(&alert.alert_id)),
            ("revision", Some(&revision)),
            ("rule", Some(&alert.rule)),
            ("ruleId", Some(&alert.rule_id)),
            ("tactics", Some(&tactics)),
            ("techniques", Some(&techniques)),
            ("tenant", Some(&alert.tenant)),
            ("cloud", alert.cloud.as_ref()),
            ("region", Some(&alert.region)),
            ("host", Some(&alert.host)),
            ("app", alert.app.as_ref()),
            ("containerId", alert.container_id.as_ref()),
            ("processId", alert.process_id.as_ref()),
            ("evidence", Some(&evidence)),
            ("lostEvents", Some(&lost)),
        ];
        let state = alert.state.as_str().to_owned();
        for (name, value) in parameters.into_iter().chain([("state", Some(&state))]) {
            let Some(value) = value.filter(|value| !value.is_empty()) else { continue };
            let value = one_line(&cut(value, VALUE_BYTES_MAX)).replace('\\', "\\\\").replace('"', "\\\"").replace(']', "\\]");
            write!(line, " {name}=\"{value}\"").expect("a string takes everything");
        }
        line.push_str("] \u{feff}");
        line.push_str(&one_line(&cut(&alert.summary, VALUE_BYTES_MAX)));
        Message::Line(line.into_bytes())
    }
}

impl Sink for Cef {
    fn message(&self, alert: &Alert) -> Message {
        let mut line = header(alert, &self.node, "cef");
        line.push_str("- CEF:0|Weir|weir|");
        let field = |text: &str| one_line(&cut(text, NAME_BYTES_MAX)).replace('\\', "\\\\").replace('|', "\\|");
        let (rule_id, rule) = (field(&alert.rule_id), field(&alert.rule));
        write!(line, "{}|{rule_id}|{rule}|{}|", env!("CARGO_PKG_VERSION"), level(alert.severity))
            .expect("a string takes everything");
        let millis = |nanos: i64| nanos.div_euclid(1_000_000).to_string();
        let custom = [
            ("cs1", "techniques", Some(alert.techniques.join(","))),
            ("cs2", "container", alert.container_id.clone()),
            ("cs3", "region", Some(alert.region.clone())),
            ("cs4", "process", alert.process_id.clone()),
            ("cs5", "evidence", Some(alert.evidence.join(","))),
            ("cs6", "tenant", Some(alert.tenant.clone())),
        ];
        let mut pairs = vec![
            ("externalId".to_owned(), alert.alert_id.clone()),
            ("cat".to_owned(), alert.state.as_str().to_owned()),
            ("start".to_owned(), millis(alert.first_seen)),
            ("end".to_owned(), millis(alert.last_seen)),
            ("rt".to_owned(), millis(alert.time)),
            ("dvchost".to_owned(), alert.host.clone()),
            ("cn1".to_owned(), alert.revision.to_string()),
            ("cn1Label".to_owned(), "revision".to_owned()),
            ("cn2".to_owned(), alert.lost_events.to_string()),
            ("cn2Label".to_owned(), "lostEvents".to_owned()),
        ];
        for (key, label, value) in custom {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                pairs.extend([(key.to_owned(), value), (format!("{key}Label"), label.to_owned())]);
            }
        }
        pairs.push(("msg".to_owned(), alert.summary.clone()));
        let escape = |text: &str| {
            let text = cut(text, CEF_VALUE_BYTES_MAX).replace('\\', "\\\\").replace('=', "\\=");
            text.replace("\r\n", "\\n").replace(['\n', '\r'], "\\n").replace(|c: char| c.is_control(), " ")
        };
        let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={}", escape(value))).collect();
        line.push_str(&pairs.join(" "));
        Message::Line(line.into_bytes())
    }
}

fn header(alert: &Alert, node: &str, kind: &str) -> String {
    let priority = 13 * 8 + syslog_severity(alert.severity);
    // RFC 5424 takes at most six digits of a second.
    let time = time_text(alert.time.div_euclid(1_000) * 1_000);
    let node: String = node.chars().filter(char::is_ascii_graphic).take(255).collect();
    format!("<{priority}>1 {time} {} weir - {kind} ", if node.is_empty() { "-" } else { &node })
}

fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

fn syslog_severity(severity: Severity) -> u32 {
    match severity {
        Severity::Emergency => 0,
        Severity::Alert => 1,
        Severity::Critical => 2,
        Severity::Error => 3,
        Severity::Warning => 4,
        Severity::Notice => 5,
        Severity::Informational => 6,
        Severity::Debug => 7,
    }
}

/// CEF's 0 to 10.
fn level(severity: Severity) -> u32 {
    match severity {
        Severity::Emergency => 10,
        Severity::Alert => 9,
        Severity::Critical => 8,
        Severity::Error => 7,
        Severity::Warning => 6,
        Severity::Notice => 4,
        Severity::Informational => 3,
        Severity::Debug => 1,
    }
}

/// Servers take 2 KiB at least (RFC 5424, 6.1) and 8 KiB by habit.
const VALUE_BYTES_MAX: usize = 1_024;
const NAME_BYTES_MAX: usize = 512;
/// As the format's own dictionary has it for `msg`.
const CEF_VALUE_BYTES_MAX: usize = 1_023;
