//! Where alerts go: the sinks, which alerts each of them takes, and what waits for a sink that is away.
//!
//! Secrets stand in files or in the environment, never in this file, and no error repeats one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::document::Document;
use crate::error::Error;
use crate::section::numbers;
use crate::sink::{RawSink, SinkConfig};

/// Where alerts go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AlertsConfig {
    /// What waits, and for how long.
    pub limits: AlertLimits,
    /// At most 64; each has a name of its own. Default: none.
    pub sinks: Vec<SinkConfig>,
}

numbers! {
    /// What waits for sinks. Equal on all nodes: whichever of them sends goes by its own.
    AlertLimits (RawAlertLimits) in "alerts.limits" {
        /// Milliseconds between two looks at the relation `alerts`: part of the time from an event to a sink.
        look_ms: u64 = 500 in 50 ..= 60000;
        /// Alerts of all sinks that are remembered. Beyond it the least severe and oldest are dropped and counted.
        entries_max: usize = 100000 in 100 ..= 10000000;
        /// Bytes of alerts that wait for a sink or are dead letters. Beyond it the least severe and oldest are dropped and counted.
        bytes_max: usize = 67108864 in 1048576 ..= 4294967296;
        /// Requests under way at once, each sink. One alert is never in two of them.
        in_flight_max: usize = 8 in 1 ..= 256;
        /// Milliseconds for one request.
        request_ms_max: u64 = 10000 in 100 ..= 120000;
        /// Milliseconds before the first retry; each later one waits twice as long.
        retry_ms_min: u64 = 1000 in 10 ..= 60000;
        /// Milliseconds between two retries at most.
        retry_ms_max: u64 = 300000 in 10 ..= 86400000;
        /// Milliseconds after its first failed attempt that an alert becomes a dead letter. `weir alerts redrive` sends those again.
        retry_for_ms_max: u64 = 86400000 in 100 ..= 2592000000;
    }
}

/// How bad it is, in Falco's words; the worst is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the words are the field's own")]
pub enum Severity {
    Debug,
    Informational,
    Notice,
    Warning,
    Error,
    Critical,
    Alert,
    Emergency,
}

impl Severity {
    /// From the least on.
    pub const ALL: [Self; 8] = [
        Self::Debug,
        Self::Informational,
        Self::Notice,
        Self::Warning,
        Self::Error,
        Self::Critical,
        Self::Alert,
        Self::Emergency,
    ];

    /// Its word, lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Informational => "informational",
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Alert => "alert",
            Self::Emergency => "emergency",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Severity {
    type Err = &'static str;

    /// Falco's words in either case, `info` too.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = text.to_ascii_lowercase();
        let known = Self::ALL.into_iter().find(|severity| severity.as_str() == word);
        known.or_else(|| (word == "info").then_some(Self::Informational)).ok_or("no severity")
    }
}

/// What people write.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawAlerts {
    limits: RawAlertLimits,
    sinks: Vec<RawSink>,
}

impl RawAlerts {
    pub(crate) fn check(self, document: &Document) -> Result<AlertsConfig, Error> {
        let limits = self.limits.check(document)?;
        if limits.retry_ms_max < limits.retry_ms_min {
            let cure = format!("write at least alerts.limits.retry_ms_min, {}", limits.retry_ms_min);
            return Err(document.wrong("alerts.limits.retry_ms_max", "below the first retry", cure));
        }
        if self.sinks.len() > SINKS_MAX {
            return Err(document.wrong("alerts.sinks", "too many sinks", format!("keep at most {SINKS_MAX}")));
        }
        let mut sinks: Vec<SinkConfig> = Vec::new();
        for (place, raw) in self.sinks.into_iter().enumerate() {
            let key = format!("alerts.sinks[{place}]");
            let sink = raw.check(document, &key)?;
            if sinks.iter().any(|other| other.name == sink.name) {
                return Err(document.wrong(
                    &format!("{key}.name"),
                    "two sinks of this name",
                    "give each sink a name of its own: what was sent is remembered under it",
                ));
            }
            sinks.push(sink);
        }
        Ok(AlertsConfig { limits, sinks })
    }

    /// The one sink of a definition.
    pub(crate) fn sink(self, document: &Document) -> Result<SinkConfig, Error> {
        let raw = self.sinks.into_iter().next();
        document.required("sinks", raw, "[[sinks]]")?.check(document, "sinks[0]")
    }
}
/// Sinks of a config and of statements together: each costs a look at every alert.
pub const SINKS_MAX: usize = 64;
