//! E-mail: a text for whoever is to respond. The revisions of one alert are a thread.
//!
//! ```text
//! Subject:     [critical] Terminal shell in container on web-7          Withdrawn: … when it was taken back
//! Message-ID:  <key.revision@domain of the sender>                       the same for every resend
//! References:  <key@domain of the sender>                                the same for every revision
//! ```
//!
//! The thread's first message is never sent: mail programs join what refers to the same message, whether they have it or not.

use std::fmt::Write as _;

use super::{Message, Sink};
use crate::alert::{Alert, cut, time_text};
use crate::smtp::Mail;

pub(super) struct Email {
    /// Of the sender's address.
    pub(super) domain: String,
}

impl Sink for Email {
    fn message(&self, alert: &Alert) -> Message {
        let key: String =
            cut(&alert.alert_id, KEY_BYTES_MAX).chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let thread = format!("<{key}@{}>", self.domain);
        Message::Mail(Mail {
            id: format!("<{key}.{}@{}>", alert.revision, self.domain),
            thread,
            subject: cut(&one_line(&format!("[{}] {}", alert.severity, alert.title())), SUBJECT_BYTES_MAX),
            body: body(alert),
            time: alert.time,
            key: alert.idempotency_key(),
        })
    }
}

fn body(alert: &Alert) -> String {
    let mut text = String::new();
    if alert.is_withdrawn() {
        text.push_str(
            "This alert is withdrawn: it turned out to be wrong, or its rule is gone. Nothing needs to be done about it.\n\n",
        );
    }
    text.push_str(&lines(&cut(&alert.summary, SUMMARY_BYTES_MAX)));
    text.push_str("\n\n");
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            writeln!(text, "{name:<14}{}", one_line(&cut(value, VALUE_BYTES_MAX))).expect("a string takes everything");
        }
    };
    let list = |items: &[String]| items.join(", ");
    line("Rule", &alert.rule);
    line("Severity", alert.severity.as_str());
    line("State", &format!("{}, revision {}", alert.state.as_str(), alert.revision));
    line("First seen", &time_text(alert.first_seen));
    line("Last seen", &time_text(alert.last_seen));
    line("Host", &alert.host);
    line("App", alert.app.as_deref().unwrap_or_default());
    line("Container", alert.container_id.as_deref().unwrap_or_default());
    line("Process", alert.process_id.as_deref().unwrap_or_default());
    line("Region", &alert.region);
    line("Cloud", alert.cloud.as_deref().unwrap_or_default());
    line("Tenant", &alert.tenant);
    line("Tactics", &list(&alert.tactics));
    line("Techniques", &list(&alert.techniques));
    if alert.hosts.len() > 1 {
        line("Hosts", &list(&alert.hosts));
    }
    if alert.regions.len() > 1 {
        line("Regions", &list(&alert.regions));
    }
    line("Evidence", &list(&alert.evidence));
    line("Complete to", &alert.closed_through.map(time_text).unwrap_or_default());
    line("Lost events", &if alert.lost_events == 0 { String::new() } else { alert.lost_events.to_string() });
    line("Alert", &alert.alert_id);
    if !alert.is_withdrawn() {
        text.push_str(&look_further(alert));
    }
    text
}

/// Questions to ask next, as SQL.
fn look_further(alert: &Alert) -> String {
    let quoted = |text: &str| one_line(text).replace('\'', "''");
    let mut text = "\nLook further, at the SQL port or in the console:\n".to_owned();
    if let Some(process) = &alert.process_id {
        writeln!(text, "  select * from process_tree('{}');", quoted(process)).expect("a string takes everything");
    }
    let id = quoted(&alert.alert_id);
    writeln!(text, "  select * from blast_radius('{id}', '1 hour') order by at;").expect("a string takes everything");
    text
}

/// Nothing that could end a header or a line.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

/// Lines stay lines; other control characters go.
fn lines(text: &str) -> String {
    text.replace("\r\n", "\n").replace(|c: char| c.is_control() && c != '\n', " ")
}

/// Subjects are shown on one line.
const SUBJECT_BYTES_MAX: usize = 200;
/// A message id is one line of a header, of at most 998 bytes.
const KEY_BYTES_MAX: usize = 200;
const SUMMARY_BYTES_MAX: usize = 4_096;
const VALUE_BYTES_MAX: usize = 1_024;
