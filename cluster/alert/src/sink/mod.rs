//! The sinks: each turns a revision of an alert into a message, and says what the answer means. One file each, one shape.
//!
//! To add one: a file here with a `Sink`, a line in `make`, its format in `config`, and a case in `tests/conformance.rs`.

mod alertmanager;
mod attack;
mod ecs;
mod elasticsearch;
mod email;
mod kafka;
mod ocsf;
mod pagerduty;
mod slack;
mod splunk;
mod stix;
mod syslog;
mod thehive;
mod webhook;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use weir_config::{AlertsConfig, MailTarget, Route, Secret, SinkConfig, SinkFormat, Target};

use crate::alert::{Alert, time_text};
use crate::error::Error;
use crate::http::Http;
use crate::kafka::Kafka;
use crate::smtp::Smtp;
use crate::socket::{self, Syslog};

pub use crate::http::{Answer, Request};
pub use crate::kafka::Record;
pub use crate::smtp::Mail;

/// One place's way of being told. It makes messages and reads answers; it sends nothing itself.
pub trait Sink: Send + Sync {
    /// What tells of this revision.
    fn message(&self, alert: &Alert) -> Message;

    /// What the answer to `asked` means.
    fn judge(&self, _alert: &Alert, _asked: &Request, answer: &Answer) -> Verdict {
        answer.verdict()
    }
}

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Over HTTP.
    Http(Request),
    /// A line without its end, to a syslog server or a file.
    Line(Vec<u8>),
    /// By SMTP.
    Mail(Mail),
    /// To a topic.
    Record(Record),
}

/// What an answer means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is over.
    Done(Outcome),
    /// Something else is to be asked, after a while.
    Then(Request, Duration),
}

/// What became of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The sink has it.
    Delivered,
    /// Not now, or nobody knows.
    Retry {
        /// For people.
        why: String,
        /// What the sink asks to wait.
        after_ms: Option<u64>,
    },
    /// Never.
    Refused {
        /// For people.
        why: String,
    },
}

impl Outcome {
    fn retry(why: impl Into<String>) -> Self {
        Self::Retry { why: why.into(), after_ms: None }
    }
}

/// The configured sinks, ready to be sent to.
#[derive(Clone, Default)]
pub struct Sinks {
    channels: BTreeMap<String, Arc<Channel>>,
    routes: BTreeMap<String, Route>,
    /// Why nothing can be sent to some of them now.
    troubles: BTreeMap<String, String>,
    /// Sinks that somebody dropped.
    gone: BTreeSet<String>,
    time_max: Duration,
}

struct Channel {
    section: SinkConfig,
    sink: Box<dyn Sink>,
    via: Via,
}

enum Via {
    Http(Http),
    Syslog(Syslog),
    File(PathBuf),
    Smtp(Smtp),
    Kafka(Box<Kafka>),
}

impl Sinks {
    /// Makes them from their sections; reads their secrets. `node` is the name that syslog carries.
    pub fn new(config: &AlertsConfig, node: &str) -> Result<Self, Error> {
        let time_ms_max = config.limits.request_ms_max;
        let mut sinks = Self { time_max: Duration::from_millis(time_ms_max), ..Self::default() };
        for section in &config.sinks {
            let made = Channel::new(section, node, time_ms_max);
            let channel = made.map_err(|why| Error::Sink { sink: section.name.clone(), why })?;
            sinks.channels.insert(section.name.clone(), Arc::new(channel));
            sinks.routes.insert(section.name.clone(), section.route.clone());
        }
        Ok(sinks)
    }

    /// Adds one that may be in trouble, such as without its secret: then its alerts wait. One that `before` has is not made anew.
    pub fn add(&mut self, section: &SinkConfig, node: &str, before: &Self) {
        let name = section.name.clone();
        self.routes.insert(name.clone(), section.route.clone());
        let same = before.channels.get(&name).filter(|channel| channel.section == *section);
        let made = same.map_or_else(
            || Channel::new(section, node, self.time_max.as_millis() as u64).map(Arc::new),
            |same| Ok(Arc::clone(same)),
        );
        match made {
            Ok(channel) => _ = self.channels.insert(name, channel),
            Err(why) => _ = self.troubles.insert(name, why),
        }
    }

    /// Says which sinks somebody dropped; those that are there again are not meant.
    pub fn drop_all(&mut self, gone: BTreeSet<String>) {
        self.gone = gone;
    }

    /// Sinks that somebody dropped.
    pub fn gone(&self) -> &BTreeSet<String> {
        &self.gone
    }

    /// Why nothing can be sent to a sink now.
    pub fn trouble(&self, sink: &str) -> Option<&str> {
        self.troubles.get(sink).map(String::as_str)
    }

    /// Whether one of them is in trouble.
    pub fn any_trouble(&self) -> bool {
        !self.troubles.is_empty()
    }

    /// Which alerts each takes.
    pub fn routes(&self) -> &BTreeMap<String, Route> {
        &self.routes
    }

    /// How long one delivery takes at most.
    pub fn time_max(&self) -> Duration {
        self.time_max
    }

    /// Sends a revision to a sink, and waits for what becomes of it.
    pub fn deliver(&self, sink: &str, alert: Alert) -> impl Future<Output = Outcome> + Send + use<> {
        let (channel, time_max) = (self.channels.get(sink).cloned(), self.time_max);
        let trouble = self.troubles.get(sink).cloned();
        async move {
            let Some(channel) = channel else {
                return Outcome::retry(trouble.unwrap_or_else(|| "this sink is not configured".to_owned()));
            };
            let delivered = tokio::time::timeout(time_max, Box::pin(channel.deliver(&alert))).await;
            delivered.unwrap_or_else(|_| Outcome::retry(format!("no answer within {} ms", time_max.as_millis())))
        }
    }
}

/// Why a sink could not be made here; none: it could.
pub fn trouble_of(section: &SinkConfig, node: &str) -> Option<String> {
    Channel::new(section, node, 1_000).err()
}

impl Channel {
    fn new(section: &SinkConfig, node: &str, time_ms_max: u64) -> Result<Self, String> {
        let secret = section.secret.as_ref().map(read_secret).transpose()?;
        let login = section.user.as_deref().zip(secret.as_deref());
        let via = match &section.target {
            Target::Url(_) | Target::InSecret => Via::Http(Http::new(section.ca.as_deref(), time_ms_max)?),
            Target::Socket(address, protocol) => {
                Via::Syslog(Syslog::new(address, *protocol, section.ca.as_deref(), time_ms_max)?)
            }
            Target::File(path) => Via::File(path.clone()),
            Target::Mail(mail) => Via::Smtp(Smtp::new(mail, login, section.ca.as_deref(), time_ms_max)?),
            Target::Kafka(topic) => Via::Kafka(Box::new(Kafka::new(topic, login, section.ca.as_deref(), time_ms_max)?)),
        };
        Ok(Self { section: section.clone(), sink: make(section, secret, node)?, via })
    }

    async fn deliver(&self, alert: &Alert) -> Outcome {
        let done = |sent: Result<(), String>| sent.map_or_else(Outcome::retry, |()| Outcome::Delivered);
        let request = match (&self.via, self.sink.message(alert)) {
            (Via::Http(_), Message::Http(request)) => request,
            (Via::Syslog(server), Message::Line(line)) => return done(server.send(&line).await),
            (Via::Smtp(server), Message::Mail(mail)) => return server.send(mail).await,
            (Via::Kafka(topic), Message::Record(record)) => return topic.send(record).await,
            (Via::File(path), Message::Line(line)) => return done(socket::add_line(path, line).await),
            _ => return Outcome::Refused { why: "this format has no way to this kind of place".to_owned() },
        };
        let Via::Http(http) = &self.via else { return Outcome::retry("no HTTP") };
        let mut asked = request;
        for _ in 0..STEPS_MAX {
            let answer = match http.send(asked.clone()).await {
                Ok(answer) => answer,
                Err(why) => return Outcome::retry(why),
            };
            match self.sink.judge(alert, &asked, &answer) {
                Verdict::Done(outcome) => return outcome,
                Verdict::Then(next, wait) => {
                    tokio::time::sleep(wait).await;
                    asked = next;
                }
            }
        }
        Outcome::retry("the sink did not come to an end")
    }
}

fn make(section: &SinkConfig, secret: Option<String>, node: &str) -> Result<Box<dyn Sink>, String> {
    let url = match &section.target {
        Target::Url(url) => url.clone(),
        Target::InSecret => secret.clone().unwrap_or_default(),
        Target::Socket(..) | Target::File(_) | Target::Mail(_) | Target::Kafka(_) => String::new(),
    };
    if matches!(section.target, Target::Url(_) | Target::InSecret) && !(url.starts_with("http://") || url.starts_with("https://"))
    {
        return Err("its secret is no address: write the whole address of the webhook, https://…".to_owned());
    }
    let index = section.index.clone();
    let authorization = |scheme: &str| secret.as_deref().map(|secret| authorization(section.user.as_deref(), scheme, secret));
    let key = secret.clone().unwrap_or_default();
    Ok(match section.format {
        SinkFormat::Webhook => Box::new(webhook::Webhook { url, secret: secret.map(String::into_bytes) }),
        SinkFormat::Syslog => Box::new(syslog::Rfc5424 { node: node.to_owned() }),
        SinkFormat::Cef => Box::new(syslog::Cef { node: node.to_owned() }),
        SinkFormat::Splunk => Box::new(splunk::Splunk { url, token: key, index, ack: section.ack }),
        SinkFormat::Elasticsearch => Box::new(elasticsearch::Elasticsearch {
            url,
            index: index.unwrap_or_default(),
            authorization: authorization("ApiKey"),
        }),
        SinkFormat::Email => {
            let Target::Mail(MailTarget { from, .. }) = &section.target else { return Err("it has no mail server".to_owned()) };
            Box::new(email::Email { domain: from.rsplit('@').next().unwrap_or_default().to_owned() })
        }
        SinkFormat::Kafka => Box::new(kafka::Topic),
        SinkFormat::Ocsf => Box::new(ocsf::Ocsf),
        SinkFormat::Slack => Box::new(slack::Slack { url }),
        SinkFormat::Pagerduty => Box::new(pagerduty::PagerDuty { url, key }),
        SinkFormat::Alertmanager => Box::new(alertmanager::Alertmanager { url, authorization: authorization("Bearer") }),
        SinkFormat::Thehive => Box::new(thehive::TheHive { url, authorization: authorization("Bearer").unwrap_or_default() }),
        SinkFormat::Stix => {
            let url = (!url.is_empty()).then_some(url);
            Box::new(stix::Stix { url, authorization: authorization("Bearer") })
        }
    })
}

fn authorization(user: Option<&str>, scheme: &str, secret: &str) -> String {
    match user {
        Some(user) => format!("Basic {}", base64(format!("{user}:{secret}").as_bytes())),
        None => format!("{scheme} {secret}"),
    }
}

fn read_secret(secret: &Secret) -> Result<String, String> {
    let (text, place) = match secret {
        Secret::File(path) => {
            let read = std::fs::read_to_string(path);
            (read.map_err(|why| format!("could not read secret_file = {}: {why}", path.display()))?, path.display().to_string())
        }
        Secret::Environment(name) => {
            let cure = format!("secret_env = {name} is not set in the node's environment: set it, or use secret_file");
            (std::env::var(name).map_err(|_| cure)?, name.clone())
        }
    };
    let line = text.lines().next().unwrap_or_default().trim().to_owned();
    let plain = line.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if line.is_empty() || !plain {
        Err(format!("the secret in {place} is empty or not plain ASCII: write it into the first line"))
    } else {
        Ok(line)
    }
}

/// An alert as our own JSON: the relation's columns, without those that are null.
pub(crate) fn columns(alert: &Alert) -> Value {
    let stages = serde_json::from_str(&alert.stages).unwrap_or(Value::Null);
    let mut row = json!({
        "alert_id": alert.alert_id, "revision": alert.revision, "state": alert.state, "rule": alert.rule, "rule_id": alert.rule_id,
        "severity": alert.severity, "tactics": alert.tactics, "techniques": alert.techniques, "time": time_text(alert.time),
        "first_seen": time_text(alert.first_seen), "last_seen": time_text(alert.last_seen), "tenant": alert.tenant,
        "cloud": alert.cloud, "region": alert.region, "host": alert.host, "app": alert.app, "container_id": alert.container_id,
        "process_id": alert.process_id, "summary": alert.summary, "evidence": alert.evidence, "stages": stages, "hosts": alert.hosts,
        "regions": alert.regions, "closed_through": alert.closed_through.map(time_text), "lost_events": alert.lost_events,
    });
    drop_nulls(&mut row);
    row
}

/// Removes what is not known, at every depth; most formats refuse a null.
pub(crate) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for piece in bytes.chunks(3) {
        let group = piece.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - piece.len()));
        for place in 0..4 {
            let letter = ALPHABET[(group >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= piece.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

/// A UUID that follows from a text. Marked as version 4, since tools refuse the newer version 8, which would be the true one.
pub(crate) fn uuid(text: &str) -> String {
    let hash = xxhash_rust::xxh3::xxh3_128(text.as_bytes());
    let hash = hash & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    let hex = format!("{hash:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Requests of one delivery: an acknowledgement is asked for a few dozen times.
const STEPS_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_in_rfc_4648() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (plain, text) in cases {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }
}
