//! A sink as a statement defines it: the keys of a section `[[alerts.sinks]]`, one to one, so that both are checked by one rule.
//!
//! It is kept where everybody may read it. So a secret is only ever the name of a file or of a variable on the nodes, and what would be a secret
//! as text is refused. Any node may be the one that sends, so paths are absolute: no folder of a config stands before them.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::alerts::RawAlerts;
use crate::document::Document;
use crate::error::Error;
use crate::sink::SinkConfig;

/// Keys and values of a sink. See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkDefinition {
    /// Its name.
    pub name: String,
    /// What it speaks, as a section writes it.
    pub format: String,
    /// Its other keys, as they were written.
    pub keys: Vec<(String, SinkValue)>,
}

/// What a key of a sink holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SinkValue {
    /// Text.
    Text(String),
    /// True or false.
    Flag(bool),
    /// Several texts.
    List(Vec<String>),
}

/// Why a definition is no sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkRefusal {
    /// What is wrong, with the key and what is written there.
    pub problem: String,
    /// What to do about it.
    pub cure: String,
}

impl SinkDefinition {
    /// The key that `TO` stands for: where sinks of this format are.
    pub fn place_key(format: &str, to: &str) -> &'static str {
        match format {
            "syslog" | "cef" | "email" => "address",
            "ocsf" => "path",
            "stix" if !to.contains("://") => "path",
            "kafka" => "brokers",
            _ => "url",
        }
    }

    /// The sink that it is, checked as a section of a config is.
    ///
    /// # Errors
    /// The key, what is wrong with it, and the cure.
    pub fn check(&self) -> Result<SinkConfig, SinkRefusal> {
        self.refuse_secrets()?;
        let mut text = format!("[[sinks]]\nname = {}\nformat = {}\n", quoted(&self.name), quoted(&self.format));
        for (place, (key, value)) in self.keys.iter().enumerate() {
            if self.keys[..place].iter().any(|(before, _)| before == key) || ["name", "format"].contains(&key.as_str()) {
                return Err(refusal(format!("{key} is given twice"), "keep one of them"));
            }
            text += &format!("{} = {}\n", quoted(key), value.as_toml(key == "brokers"));
        }
        let read = Document::read::<RawAlerts>(Path::new("/"), &text, []);
        let sink = read.and_then(|(document, raw)| raw.sink(&document)).map_err(told)?;
        self.refuse_relative()?;
        Ok(sink)
    }

    /// The statement that makes it.
    pub fn statement(&self) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let value = |value: &SinkValue| match value {
            SinkValue::Text(text) => quoted(text),
            SinkValue::Flag(flag) => flag.to_string(),
            SinkValue::List(texts) => format!("({})", texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", ")),
        };
        let keys: Vec<String> = self.keys.iter().map(|(key, held)| format!("{key} = {}", value(held))).collect();
        let with = if keys.is_empty() { String::new() } else { format!(" WITH ({})", keys.join(", ")) };
        format!("CREATE SINK \"{}\" FORMAT {}{with}", self.name.replace('"', "\"\""), self.format)
    }

    /// About so many bytes of the chain it takes.
    pub fn bytes(&self) -> usize {
        let value = |value: &SinkValue| match value {
            SinkValue::Text(text) => text.len(),
            SinkValue::Flag(_) => 1,
            SinkValue::List(texts) => texts.iter().map(|text| text.len() + 1).sum(),
        };
        let keys: usize = self.keys.iter().map(|(key, held)| key.len() + value(held)).sum();
        self.name.len() + self.format.len() + keys
    }

    fn refuse_secrets(&self) -> Result<(), SinkRefusal> {
        let cure = "a statement is kept where everybody may read it: put the secret into a file of each node and write \
                    secret_file = '/path/of/it', or into a variable of each node's environment and write secret_env = 'NAME'";
        if let Some((key, _)) = self.keys.iter().find(|(key, _)| SECRETS.contains(&key.as_str())) {
            return Err(refusal(format!("{key} would be a secret as text"), cure));
        }
        let url = self.keys.iter().find_map(|(key, value)| match value {
            SinkValue::Text(text) if key == "url" => Some(text),
            _ => None,
        });
        let query = url.and_then(|url| url.split_once('?')).map_or("", |(_, query)| query);
        let names = query.split(['&', ';']).map(|pair| pair.split('=').next().unwrap_or_default().to_ascii_lowercase());
        match names.into_iter().find(|name| SECRETS.contains(&name.as_str())) {
            Some(name) => Err(refusal(format!("the address has a secret in it, {name}"), cure)),
            None => Ok(()),
        }
    }

    /// Paths as they were written.
    fn refuse_relative(&self) -> Result<(), SinkRefusal> {
        let is_relative = |value: &SinkValue| matches!(value, SinkValue::Text(path) if !Path::new(path).is_absolute());
        let relative = self.keys.iter().find(|(key, value)| PATHS.contains(&key.as_str()) && is_relative(value));
        match relative {
            Some((key, _)) => {
                Err(refusal(format!("{key} is a relative path"), "write an absolute path: it is read on whichever node sends"))
            }
            None => Ok(()),
        }
    }
}

impl SinkValue {
    /// Brokers may be written as Kafka's own tools take them: one text with commas.
    fn as_toml(&self, commas: bool) -> String {
        match self {
            Self::Text(text) if commas => Self::List(text.split(',').map(|one| one.trim().to_owned()).collect()).as_toml(false),
            Self::Text(text) => quoted(text),
            Self::Flag(flag) => flag.to_string(),
            Self::List(texts) => format!("[{}]", texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// A basic string of TOML: no text can end it.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted += &format!("\\u{:04X}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn refusal(problem: impl Into<String>, cure: impl Into<String>) -> SinkRefusal {
    SinkRefusal { problem: problem.into(), cure: cure.into() }
}

/// A section's complaint in the words of a statement.
fn told(wrong: Error) -> SinkRefusal {
    let Error::Key { key, value, problem, cure, .. } = wrong else {
        return refusal(wrong.to_string(), "write texts in single quotes");
    };
    let held = value.map(|value| format!(" = {}", value.replace('"', "'"))).unwrap_or_default();
    let problem = match key.split_once("].") {
        Some((_, name)) => format!("{name}{held}: {problem}"),
        None => problem,
    };
    refusal(problem, cure.replace('"', "'").replace(", in quotes", "").replace("remove this key", "leave it out"))
}

/// What people call a secret. As keys they are refused whatever they hold, in an address too.
const SECRETS: &[&str] = &[
    "secret",
    "password",
    "passwd",
    "pwd",
    "token",
    "access_token",
    "auth_token",
    "key",
    "api_key",
    "apikey",
    "routing_key",
    "auth",
    "sig",
    "signature",
    "code",
];

/// Keys that hold paths.
const PATHS: &[&str] = &["secret_file", "ca", "path"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Secret, Severity, SinkFormat, Target};

    fn definition(format: &str, keys: &[(&str, &str)]) -> SinkDefinition {
        let keys = keys.iter().map(|(key, text)| ((*key).to_owned(), SinkValue::Text((*text).to_owned()))).collect();
        SinkDefinition { name: "pager".to_owned(), format: format.to_owned(), keys }
    }

    #[test]
    fn a_definition_is_the_sink_of_the_same_section() {
        let mut webhook = definition("webhook", &[("url", "https://soc.example.org/a"), ("secret_file", "/etc/weir/key")]);
        webhook.keys.push(("severity_min".to_owned(), SinkValue::Text("critical".to_owned())));
        webhook.keys.push(("rules".to_owned(), SinkValue::List(vec!["Terminal*".to_owned(), "it's".to_owned()])));
        let sink = webhook.check().unwrap();
        assert_eq!((&*sink.name, sink.format, sink.route.severity_min), ("pager", SinkFormat::Webhook, Severity::Critical));
        assert_eq!(sink.target, Target::Url("https://soc.example.org/a".to_owned()));
        assert_eq!(sink.secret, Some(Secret::File("/etc/weir/key".into())));
        assert!(sink.route.rules[1].fits("it's") && sink.route.regions[0].fits("eu"));
        assert_eq!(
            webhook.statement(),
            "CREATE SINK \"pager\" FORMAT webhook WITH (url = 'https://soc.example.org/a', secret_file = '/etc/weir/key', \
             severity_min = 'critical', rules = ('Terminal*', 'it''s'))"
        );
        assert!(webhook.bytes() > 90);
    }

    #[test]
    fn no_text_ends_its_quotes() {
        let strange = "a\"\nformat = \"ocsf\"\u{7f}\u{0}\\\u{1f980}'\t";
        let text = format!("key = {}", quoted(strange));
        let table: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(table["key"].as_str(), Some(strange), "{text}");
        let keys = [("url", "https://soc/"), ("rules\" = [\"x\"]\n\"user", strange)];
        assert!(definition("webhook", &keys).check().unwrap_err().problem.contains("unknown key"));
        assert!(
            definition("webhook", &[("url", "https://soc/"), ("format", "ocsf")]).check().unwrap_err().problem.contains("twice")
        );
    }

    #[test]
    fn what_is_no_sink_is_refused_with_the_key_and_a_cure() {
        for (format, keys, says) in [
            ("pagerdutty", &[][..], "format = 'pagerdutty': no format of a sink"),
            ("webhook", &[], "url: missing"),
            ("webhook", &[("url", "soc")], "url = 'soc': no http:// or https:// address"),
            ("webhook", &[("url", "https://a:b@soc/")], "a password in an address"),
            ("webhook", &[("url", "https://soc/?x=1&Token=abc")], "a secret in it, token"),
            ("webhook", &[("url", "https://soc/"), ("secret", "s3cret")], "secret would be a secret as text"),
            ("webhook", &[("url", "https://soc/"), ("secret_file", "key")], "secret_file is a relative path"),
            ("webhook", &[("url", "https://soc/"), ("url", "https://soc/")], "url is given twice"),
            ("webhook", &[("url", "https://soc/"), ("rule", "x")], "rule = 'x': unknown key"),
            ("webhook", &[("url", "https://soc/"), ("severity_min", "high")], "severity_min = 'high'"),
            ("webhook", &[("url", "https://soc/"), ("ack", "yes")], "ack = 'yes'"),
            ("ocsf", &[("path", "findings")], "path is a relative path"),
            ("kafka", &[("brokers", "a:9093, b"), ("topic", "t")], "brokers[1] = 'b': no port"),
            ("pagerduty", &[], "a sink of format pagerduty needs the integration's routing key"),
        ] {
            let refused = definition(format, keys).check().unwrap_err();
            assert!(refused.problem.contains(says), "{refused:?}");
            assert!(!refused.cure.is_empty() && !format!("{refused:?}").contains("s3cret"), "{refused:?}");
        }
        let strange = SinkDefinition { name: "a b".to_owned(), ..definition("webhook", &[("url", "https://soc/")]) };
        assert!(strange.check().unwrap_err().problem.contains("not a name"));
    }
}
