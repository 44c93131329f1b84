//! What other collectors recorded, as events: one importer per format, fed line by line.
//!
//! Promise: no input panics, and what is held is bounded (`auditd` joins the records of at most 64 calls, `sysmon` one element). A
//! line becomes events, is passed over because it tells nothing that an event could hold, or is wrong with a reason. Nothing is guessed: what a
//! format does not say is absent. No I/O.

mod auditd;
mod calls;
mod falco;
mod sysmon;
mod zeek;

use std::str::FromStr;

use serde_json::{Map, Value};
use weir_schema::{Host, JsonEvent, Text};

/// Whose recording it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON lines with Falco's field names as keys, or Falco's alerts as JSON.
    Falco,
    /// Sysmon for Linux (or Windows): XML or JSON.
    Sysmon,
    /// The Linux audit log, raw.
    Auditd,
    /// Zeek's conn.log and dns.log, TSV or JSON.
    Zeek,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "falco" => Ok(Self::Falco),
            "sysmon" => Ok(Self::Sysmon),
            "auditd" => Ok(Self::Auditd),
            "zeek" => Ok(Self::Zeek),
            _ => Err("write falco, sysmon, auditd or zeek".to_owned()),
        }
    }
}

/// Why a line is not what its format has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Wrong(String);

fn wrong<T>(why: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong(why.into()))
}

/// Reads one recording, which may be several files of one format.
#[derive(Debug)]
pub struct Importer {
    state: State,
    host: Text,
    passed_over: u64,
}

#[derive(Debug)]
enum State {
    Falco,
    Sysmon(sysmon::Sysmon),
    Auditd(auditd::Auditd),
    Zeek(zeek::Zeek),
}

impl Importer {
    /// An importer; `host` is the name of events whose recording names none.
    pub fn new(format: Format, host: &str) -> Self {
        let state = match format {
            Format::Falco => State::Falco,
            Format::Sysmon => State::Sysmon(sysmon::Sysmon::default()),
            Format::Auditd => State::Auditd(auditd::Auditd::default()),
            Format::Zeek => State::Zeek(zeek::Zeek::default()),
        };
        Self { state, host: host.into(), passed_over: 0 }
    }

    /// Takes a line without its end; the events that are complete by it are put behind `out`.
    pub fn line(&mut self, line: &[u8], out: &mut Vec<JsonEvent>) -> Result<(), Wrong> {
        if line.len() > IMPORT_LINE_BYTES_MAX {
            return wrong(format!("the line is {} bytes long, at most {IMPORT_LINE_BYTES_MAX} are read", line.len()));
        }
        let line = String::from_utf8_lossy(line);
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            return Ok(());
        }
        let from = out.len();
        let taken = match &mut self.state {
            State::Falco => falco::line(line, out),
            State::Sysmon(sysmon) => sysmon.line(line, out),
            State::Auditd(auditd) => auditd.line(line, out),
            State::Zeek(zeek) => zeek.line(line, out),
        };
        self.name_hosts(&mut out[from..]);
        self.passed_over += taken?;
        Ok(())
    }

    /// Ends a file: gives what still waited for more lines.
    pub fn finish(&mut self, out: &mut Vec<JsonEvent>) -> Result<(), Wrong> {
        let from = out.len();
        let ended = match &mut self.state {
            State::Falco => Ok(0),
            State::Sysmon(sysmon) => sysmon.finish(),
            State::Auditd(auditd) => Ok(auditd.finish(out)),
            State::Zeek(zeek) => {
                zeek.finish();
                Ok(0)
            }
        };
        self.name_hosts(&mut out[from..]);
        self.passed_over += ended?;
        Ok(())
    }

    /// Records that are right and that no event of ours stands for.
    pub fn passed_over(&self) -> u64 {
        self.passed_over
    }

    fn name_hosts(&self, events: &mut [JsonEvent]) {
        for event in events.iter_mut().filter(|event| event.host.host.is_empty()) {
            event.host.host = self.host.clone();
        }
    }
}

fn of_host(host: Option<&str>, event: weir_schema::Event) -> JsonEvent {
    let host = Host { host: host.unwrap_or_default().into(), ..Host::default() };
    JsonEvent { host, tenant: None, region: None, agent: None, event }
}

fn object(line: &str) -> Result<Map<String, Value>, Wrong> {
    match serde_json::from_str(line) {
        Ok(Value::Object(keys)) => Ok(keys),
        Ok(_) => wrong("the line is no JSON object"),
        Err(error) => wrong(format!("no JSON: {error}")),
    }
}

/// A value as text; nothing for what its format says is missing.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if text.is_empty() || text == "<NA>" => None,
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

fn json(detail: Map<String, Value>) -> Option<Text> {
    (!detail.is_empty()).then(|| Value::Object(detail).to_string().into())
}

/// Seconds with a fraction, as text, to nanoseconds. Exact: no floating point.
fn seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let kept = &fraction[..fraction.len().min(9)];
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) || whole.is_empty() || !whole.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos = if kept.is_empty() { 0 } else { kept.parse::<i64>().ok()? * 10i64.pow(9 - kept.len() as u32) };
    whole.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanos)
}

/// A stand-in for what is unique in the recording and no number.
fn number_of(id: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(id.as_bytes())
}

/// An address as our columns have it.
fn address(text: &str) -> Option<Text> {
    text.parse::<std::net::IpAddr>().ok().map(|ip| ip.to_canonical().to_string().into())
}

/// Longest line that is read.
pub const IMPORT_LINE_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests;
