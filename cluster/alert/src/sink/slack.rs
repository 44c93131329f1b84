//! Slack's incoming webhook. It takes no key, so a resend is a second message; the key stands in its last line.

use serde_json::json;
use weir_config::Severity;

use super::{Answer, Message, Outcome, Request, Sink, Verdict};
use crate::alert::{Alert, cut, time_text};

pub(super) struct Slack {
    pub(super) url: String,
}

impl Sink for Slack {
    fn message(&self, alert: &Alert) -> Message {
        let color = match alert.severity {
            _ if alert.is_withdrawn() => "#808080",
            Severity::Debug | Severity::Informational => "#439fe0",
            Severity::Notice | Severity::Warning => "#daa038",
            _ => "#a30200",
        };
        let mut place = vec![format!("host `{}`", plain(&alert.host)), format!("region `{}`", plain(&alert.region))];
        place.extend(alert.app.iter().map(|app| format!("app `{}`", plain(app))));
        place.extend(alert.container_id.iter().map(|id| format!("container `{}`", plain(id))));
        let techniques = if alert.techniques.is_empty() { String::new() } else { format!(" · {}", alert.techniques.join(", ")) };
        let title = cut(&format!("[{}] {}", alert.severity, alert.title()), TITLE_BYTES_MAX);
        let summary = cut(&escape(&alert.summary), SUMMARY_BYTES_MAX);
        let context = format!(
            "{}{} · {} · `{}`",
            time_text(alert.time),
            plain(&techniques),
            alert.state.as_str(),
            plain(&alert.idempotency_key())
        );
        let body = json!({
            "text": cut(&escape(&title), SUMMARY_BYTES_MAX),
            "attachments": [{ "color": color, "fallback": escape(&title), "blocks": [
                { "type": "section", "text": { "type": "mrkdwn", "text": format!("{}\n{summary}", place.join(" · ")) } },
                { "type": "context", "elements": [{ "type": "mrkdwn", "text": context }] },
            ] }],
        });
        Message::Http(Request::json(&self.url, &body))
    }

    fn judge(&self, _: &Alert, _: &Request, answer: &Answer) -> Verdict {
        match answer.status {
            // The webhook is gone or its channel is: waiting does not help.
            403 | 404 | 410 => Verdict::Done(Outcome::Refused { why: answer.why() }),
            _ => answer.verdict(),
        }
    }
}

/// Slack reads `<…>` as links and mentions.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn plain(text: &str) -> String {
    escape(&cut(text, PLACE_BYTES_MAX)).replace('`', "'")
}

const TITLE_BYTES_MAX: usize = 300;
const PLACE_BYTES_MAX: usize = 200;
/// A section takes 3,000 characters.
const SUMMARY_BYTES_MAX: usize = 1_800;
