//! One sink of alerts: what it speaks, where it is, and which alerts it takes.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

use crate::address::HostPort;
use crate::alerts::Severity;
use crate::apps::Glob;
use crate::document::Document;
use crate::error::Error;

/// One place where alerts go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkConfig {
    /// Its name, unique: what was sent is remembered under it.
    pub name: String,
    /// What it speaks.
    pub format: SinkFormat,
    /// Where it is.
    pub target: Target,
    /// Key, token or password, by the format.
    pub secret: Option<Secret>,
    /// Certificates, PEM, that its own is checked against instead of the system's.
    pub ca: Option<PathBuf>,
    /// Splunk's index or Elasticsearch's index or data stream.
    pub index: Option<String>,
    /// With a secret that is a password: whose.
    pub user: Option<String>,
    /// Splunk: wait until the events are indexed. Default false: Splunk Cloud does not offer it.
    pub ack: bool,
    /// Which alerts it takes.
    pub route: Route,
}

/// What a sink speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkFormat {
    /// JSON by POST, signed when there is a secret.
    Webhook,
    /// Syslog, RFC 5424.
    Syslog,
    /// Common Event Format inside RFC 5424.
    Cef,
    /// Splunk's HTTP Event Collector.
    Splunk,
    /// `_bulk` of Elasticsearch or OpenSearch, in the Elastic Common Schema.
    Elasticsearch,
    /// OCSF Detection Findings, one line each in a file.
    Ocsf,
    /// Slack's incoming webhook; its address is the secret.
    Slack,
    /// PagerDuty's Events API v2.
    Pagerduty,
    /// Prometheus Alertmanager, API v2.
    Alertmanager,
    /// TheHive 5.
    Thehive,
    /// STIX 2.1 bundles, one line each in a file, or by POST.
    Stix,
    /// E-mail by SMTP.
    Email,
    /// OCSF Detection Findings as records of a topic of Kafka.
    Kafka,
}

/// Where a sink is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `http://` or `https://`.
    Url(String),
    /// A syslog server.
    Socket(HostPort, SyslogProtocol),
    /// A file that lines are added to.
    File(PathBuf),
    /// A mail server, and who writes to whom.
    Mail(MailTarget),
    /// A topic of Kafka.
    Kafka(KafkaTarget),
    /// The secret says it.
    InSecret,
}

/// A topic of Kafka, or of what speaks its protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaTarget {
    /// Brokers to begin with: 1 to 16. The rest they tell.
    pub brokers: Vec<HostPort>,
    /// The topic. It is not created.
    pub topic: String,
    /// TLS. Without it no password is sent.
    pub tls: bool,
}

/// Where mail goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailTarget {
    /// The server that takes it (submission).
    pub server: HostPort,
    /// How the way there is kept.
    pub security: MailSecurity,
    /// Who writes.
    pub from: String,
    /// Who is written to: 1 to 32 addresses.
    pub to: Vec<String>,
}

/// How the way to a mail server is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailSecurity {
    /// TLS once the server was greeted (RFC 3207); without it nothing is sent.
    StartTls,
    /// TLS from the first byte on (RFC 8314).
    Tls,
    /// In the clear: for a relay on the same machine. Never with a password.
    Plain,
}

/// What syslog is carried by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyslogProtocol {
    /// RFC 5426; nobody says whether it arrived.
    Udp,
    /// RFC 6587, octet counting; the kernel's word that it was sent.
    Tcp,
    /// RFC 5425.
    Tls,
}

/// Where a secret stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// The first line of a file.
    File(PathBuf),
    /// A variable of the node's environment.
    Environment(String),
}

/// Which alerts a sink takes: those that fit all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// At least so severe. Default `debug`: all.
    pub severity_min: Severity,
    /// One of these fits the rule's name. Default: all rules.
    pub rules: Vec<Glob>,
    /// One of these fits the region.
    pub regions: Vec<Glob>,
    /// One of these fits the tenant.
    pub tenants: Vec<Glob>,
}
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawSink {
    name: Option<String>,
    format: Option<String>,
    url: Option<String>,
    address: Option<String>,
    protocol: Option<String>,
    path: Option<PathBuf>,
    secret_file: Option<PathBuf>,
    secret_env: Option<String>,
    ca: Option<PathBuf>,
    index: Option<String>,
    user: Option<String>,
    from: Option<String>,
    to: Option<Vec<String>>,
    brokers: Option<Vec<String>>,
    topic: Option<String>,
    ack: Option<bool>,
    severity_min: Option<String>,
    rules: Option<Vec<String>>,
    regions: Option<Vec<String>>,
    tenants: Option<Vec<String>>,
}

impl RawSink {
    pub(crate) fn check(self, document: &Document, key: &str) -> Result<SinkConfig, Error> {
        let at = |name: &str| format!("{key}.{name}");
        let name = document.name(&at("name"), document.required(&at("name"), self.name.clone(), "\"pager\"")?)?;
        let word = document.required(&at("format"), self.format.clone(), "\"webhook\"")?;
        let format: SinkFormat = document.parsed(&at("format"), &word, FORMATS)?;
        self.refuse_idle(document, key, format, &word)?;
        let target = self.target(document, key, format)?;
        let secret = match (self.secret_file, self.secret_env) {
            (None, None) => None,
            (Some(path), None) => Some(Secret::File(document.path(&at("secret_file"), &path)?)),
            (None, Some(name)) => Some(Secret::Environment(document.name(&at("secret_env"), name)?)),
            (Some(_), Some(_)) => {
                return Err(document.wrong(&at("secret_env"), "two secrets", "keep either secret_file or secret_env"));
            }
        };
        let secret = match secret {
            None if format.needs_secret() => {
                let what = format!("a sink of format {word} needs {}", format.secret_is());
                return Err(document.wrong(
                    key,
                    what,
                    "put it in a file and add `secret_file = \"FILE\"`, or `secret_env = \"NAME\"`",
                ));
            }
            secret => secret,
        };
        let index = self.index.map(|index| document.name(&at("index"), index)).transpose()?;
        let index = match index {
            None if format == SinkFormat::Elasticsearch => {
                return Err(document.wrong(
                    &at("index"),
                    "missing",
                    "add `index = \"logs-weir.alerts-default\"`, an index or a data stream",
                ));
            }
            index => index,
        };
        let globs = |name: &str, raw: Option<Vec<String>>| -> Result<Vec<Glob>, Error> {
            let raw = raw.unwrap_or_else(|| vec!["*".to_owned()]);
            if raw.is_empty() || raw.len() > GLOBS_MAX {
                let cure = format!("write 1 to {GLOBS_MAX} patterns, or remove the key to take all");
                return Err(document.wrong(&at(name), "a sink that takes nothing, or too many patterns", cure));
            }
            let each = raw.iter().enumerate();
            each.map(|(place, glob)| {
                document.parsed(&format!("{key}.{name}[{place}]"), glob, "write a pattern such as \"Terminal*\"")
            })
            .collect()
        };
        let severity_min = match &self.severity_min {
            None => Severity::Debug,
            Some(raw) => document.parsed(&at("severity_min"), raw, SEVERITIES)?,
        };
        let route = Route {
            severity_min,
            rules: globs("rules", self.rules)?,
            regions: globs("regions", self.regions)?,
            tenants: globs("tenants", self.tenants)?,
        };
        let ca = self.ca.map(|path| document.path(&at("ca"), &path)).transpose()?;
        Ok(SinkConfig { name, format, target, secret, ca, index, user: self.user, ack: self.ack.unwrap_or(false), route })
    }

    /// Keys that a format has no use for are refused: whoever wrote them expects something.
    fn refuse_idle(&self, document: &Document, key: &str, format: SinkFormat, word: &str) -> Result<(), Error> {
        use SinkFormat::{Cef, Elasticsearch, Email, Kafka, Ocsf, Pagerduty, Slack, Splunk, Stix, Syslog};
        let socket = matches!(format, Syslog | Cef);
        let file = format == Ocsf || (format == Stix && self.path.is_some());
        let idle = [
            ("url", self.url.is_some() && (socket || file || matches!(format, Slack | Email | Kafka))),
            ("address", self.address.is_some() && !socket && format != Email),
            ("protocol", self.protocol.is_some() && !socket && !matches!(format, Email | Kafka)),
            ("path", self.path.is_some() && !matches!(format, Ocsf | Stix)),
            ("secret_file", self.secret_file.is_some() && (socket || file)),
            ("secret_env", self.secret_env.is_some() && (socket || file)),
            ("ca", self.ca.is_some() && (file || (socket && self.protocol.as_deref() != Some("tls")))),
            ("index", self.index.is_some() && !matches!(format, Splunk | Elasticsearch)),
            ("user", self.user.is_some() && (socket || file || matches!(format, Slack | Pagerduty | Splunk))),
            ("from", self.from.is_some() && format != Email),
            ("to", self.to.is_some() && format != Email),
            ("brokers", self.brokers.is_some() && format != Kafka),
            ("topic", self.topic.is_some() && format != Kafka),
            ("ack", self.ack.is_some() && format != Splunk),
        ];
        match idle.iter().find(|(_, idle)| *idle) {
            Some((name, _)) => Err(document.wrong(
                &format!("{key}.{name}"),
                format!("a sink of format {word} has no use for it"),
                "remove this key; which keys belong to which format stands in config/examples/node.toml",
            )),
            None => Ok(()),
        }
    }

    fn target(&self, document: &Document, key: &str, format: SinkFormat) -> Result<Target, Error> {
        let at = |name: &str| format!("{key}.{name}");
        match format {
            SinkFormat::Slack => Ok(Target::InSecret),
            SinkFormat::Syslog | SinkFormat::Cef => {
                let raw = document.required(&at("address"), self.address.clone(), "\"siem.example.org:6514\"")?;
                let address = document.parsed(&at("address"), &raw, "write host:port, such as \"siem.example.org:514\"")?;
                let protocol = match self.protocol.as_deref() {
                    None | Some("tcp") => SyslogProtocol::Tcp,
                    Some("udp") => SyslogProtocol::Udp,
                    Some("tls") => SyslogProtocol::Tls,
                    Some(_) => {
                        return Err(document.wrong(&at("protocol"), "not known", "write \"udp\", \"tcp\" or \"tls\""));
                    }
                };
                Ok(Target::Socket(address, protocol))
            }
            SinkFormat::Kafka => Ok(Target::Kafka(self.kafka(document, key)?)),
            SinkFormat::Email => Ok(Target::Mail(self.mail(document, key)?)),
            SinkFormat::Ocsf => {
                let raw = document.required(&at("path"), self.path.clone(), "\"findings.ndjson\"")?;
                Ok(Target::File(document.path(&at("path"), &raw)?))
            }
            SinkFormat::Stix if self.path.is_some() => {
                Ok(Target::File(document.path(&at("path"), &self.path.clone().unwrap_or_default())?))
            }
            _ => {
                let raw = match (&self.url, format) {
                    (None, SinkFormat::Pagerduty) => PAGERDUTY.to_owned(),
                    (url, _) => document.required(&at("url"), url.clone(), "\"https://soc.example.org/alerts\"")?,
                };
                is_url(&raw).map_err(|problem| document.wrong(&at("url"), problem, URL_CURE))?;
                Ok(Target::Url(raw.trim_end_matches('/').to_owned()))
            }
        }
    }
}

impl RawSink {
    fn mail(&self, document: &Document, key: &str) -> Result<MailTarget, Error> {
        let at = |name: &str| format!("{key}.{name}");
        let raw = document.required(&at("address"), self.address.clone(), "\"smtp.example.org:587\"")?;
        let server = document.parsed(&at("address"), &raw, "write host:port, such as \"smtp.example.org:587\"")?;
        let security = match self.protocol.as_deref() {
            None | Some("starttls") => MailSecurity::StartTls,
            Some("tls") => MailSecurity::Tls,
            Some("plain") => MailSecurity::Plain,
            Some(_) => return Err(document.wrong(&at("protocol"), "not known", "write \"starttls\", \"tls\" or \"plain\"")),
        };
        let cure = "write \"starttls\" or \"tls\", or leave user and secret away";
        self.login(document, key, (security == MailSecurity::Plain).then_some(cure))?;
        let address = |name: &str, raw: &str| match is_mail_address(raw) {
            true => Ok(raw.to_owned()),
            false => Err(document.wrong(&at(name), "no address of a mailbox", "write such as \"soc@example.org\"")),
        };
        let from = address("from", &document.required(&at("from"), self.from.clone(), "\"weir@example.org\"")?)?;
        let to = document.required(&at("to"), self.to.clone(), "[\"soc@example.org\"]")?;
        if to.is_empty() || to.len() > RECIPIENTS_MAX {
            let cure = format!("write 1 to {RECIPIENTS_MAX} addresses; more of them are a mailing list's work");
            return Err(document.wrong(&at("to"), "nobody to write to, or too many", cure));
        }
        let each = to.iter().enumerate();
        let to = each.map(|(place, raw)| address(&format!("to[{place}]"), raw)).collect::<Result<_, _>>()?;
        Ok(MailTarget { server, security, from, to })
    }
}

impl RawSink {
    /// User and password go together, and never in the clear: then there is a cure for it.
    fn login(&self, document: &Document, key: &str, clear: Option<&str>) -> Result<(), Error> {
        let at = |name: &str| format!("{key}.{name}");
        let has_secret = self.secret_file.is_some() || self.secret_env.is_some();
        match clear {
            _ if has_secret != self.user.is_some() => {
                Err(document.wrong(&at("user"), "a user and a password go together", "write both user and secret_file, or none"))
            }
            Some(cure) if has_secret => Err(document.wrong(&at("protocol"), "a password would be sent in the clear", cure)),
            _ => Ok(()),
        }
    }

    fn kafka(&self, document: &Document, key: &str) -> Result<KafkaTarget, Error> {
        let at = |name: &str| format!("{key}.{name}");
        let raw = document.required(&at("brokers"), self.brokers.clone(), "[\"kafka-1.example.org:9093\"]")?;
        if raw.is_empty() || raw.len() > BROKERS_MAX {
            let cure = format!("write 1 to {BROKERS_MAX} to begin with; they tell the others");
            return Err(document.wrong(&at("brokers"), "no broker, or too many", cure));
        }
        let each = raw.iter().enumerate();
        let cure = "write host:port, such as \"kafka-1.example.org:9093\"";
        let brokers = each.map(|(place, raw)| document.parsed(&at(&format!("brokers[{place}]")), raw, cure));
        let brokers = brokers.collect::<Result<_, _>>()?;
        // Kafka's own rule for topics is that of our names.
        let topic = document.name(&at("topic"), document.required(&at("topic"), self.topic.clone(), "\"weir.alerts\"")?)?;
        let tls = match self.protocol.as_deref() {
            None | Some("tls") => true,
            Some("plain") => false,
            Some(_) => return Err(document.wrong(&at("protocol"), "not known", "write \"tls\" or \"plain\"")),
        };
        self.login(document, key, (!tls).then_some("write \"tls\", or leave user and secret away"))?;
        Ok(KafkaTarget { brokers, topic, tls })
    }
}

/// A mailbox as plain text. Quoted local parts are left out: nobody's alerts go there, and they may hold anything.
fn is_mail_address(text: &str) -> bool {
    let plain =
        |part: &str, more: &[u8]| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b));
    text.len() <= MAIL_ADDRESS_BYTES_MAX
        && text.split_once('@').is_some_and(|(local, domain)| plain(local, b".!#$%&'*+-/=?^_`{|}~") && plain(domain, b".-"))
}

/// Enough to name the mistake; whoever sends parses it in full.
fn is_url(text: &str) -> Result<(), &'static str> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).ok_or("no http:// or https:// address")?;
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match () {
        () if host.is_empty() => Err("no host"),
        () if host.contains('@') => Err("a password in an address"),
        () if text.contains(char::is_whitespace) => Err("a blank in an address"),
        () => Ok(()),
    }
}

impl SinkFormat {
    fn needs_secret(self) -> bool {
        matches!(self, Self::Splunk | Self::Slack | Self::Pagerduty | Self::Thehive)
    }

    fn secret_is(self) -> &'static str {
        match self {
            Self::Splunk => "the collector's token",
            Self::Slack => "the address of its webhook",
            Self::Pagerduty => "the integration's routing key",
            _ => "a key",
        }
    }
}

impl SinkFormat {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Webhook,
        Self::Syslog,
        Self::Cef,
        Self::Splunk,
        Self::Elasticsearch,
        Self::Ocsf,
        Self::Slack,
        Self::Pagerduty,
        Self::Alertmanager,
        Self::Thehive,
        Self::Stix,
        Self::Email,
        Self::Kafka,
    ];

    /// Its word in a config.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Syslog => "syslog",
            Self::Cef => "cef",
            Self::Splunk => "splunk",
            Self::Elasticsearch => "elasticsearch",
            Self::Ocsf => "ocsf",
            Self::Slack => "slack",
            Self::Pagerduty => "pagerduty",
            Self::Alertmanager => "alertmanager",
            Self::Thehive => "thehive",
            Self::Stix => "stix",
            Self::Email => "email",
            Self::Kafka => "kafka",
        }
    }
}

impl FromStr for SinkFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|format| format.as_str() == text).ok_or("no format of a sink")
    }
}

impl fmt::Display for Target {
    /// For people. Of an address only scheme and host, because what stands behind them may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => {
                let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
                write!(f, "{scheme}://{}", rest.split(['/', '?', '#']).next().unwrap_or_default())
            }
            Self::Socket(address, protocol) => {
                let protocol = match protocol {
                    SyslogProtocol::Udp => "udp",
                    SyslogProtocol::Tcp => "tcp",
                    SyslogProtocol::Tls => "tls",
                };
                write!(f, "{protocol}://{address}")
            }
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Mail(mail) => {
                let scheme = if mail.security == MailSecurity::Tls { "smtps" } else { "smtp" };
                write!(f, "{scheme}://{}", mail.server)
            }
            Self::Kafka(kafka) => write!(f, "kafka://{}/{}", kafka.brokers[0], kafka.topic),
            Self::InSecret => f.write_str("in its secret"),
        }
    }
}

const FORMATS: &str = "write webhook, syslog, cef, splunk, elasticsearch, ocsf, slack, pagerduty, alertmanager, thehive, stix, email or kafka, in quotes";
const SEVERITIES: &str = "write debug, informational, notice, warning, error, critical, alert or emergency, in quotes";
const URL_CURE: &str = "write such as \"https://soc.example.org/alerts\"; a password belongs into secret_file";
const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";
/// Patterns of one key.
const GLOBS_MAX: usize = 256;
/// Recipients of one message.
const RECIPIENTS_MAX: usize = 32;
/// Brokers to begin with.
const BROKERS_MAX: usize = 16;
/// RFC 5321, 4.5.3.1.3.
const MAIL_ADDRESS_BYTES_MAX: usize = 254;
