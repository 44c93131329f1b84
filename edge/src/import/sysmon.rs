//! Sysmon's events 1 (process), 3 (network), 5 (end of a process), 11 (file made), 23 and 26 (file deleted): as XML, one element on
//! one line or on several and whatever a syslog puts before it, or as JSON as an XML converter, Winlogbeat or NXLog write it.
//!
//! A process is told apart by its ProcessGuid. Sysmon reports outcomes only, so a `connect` has no result. Other events are passed over.

use std::sync::Arc;

use serde_json::{Map, Value};
use weir_schema::{Event, Fields, JsonEvent, Kind, Process, Text, parse_time};

use super::{Wrong, address, json, number_of, object, of_host, text_of, wrong};

#[derive(Debug, Default)]
pub(super) struct Sysmon {
    /// An element that has begun and not ended.
    element: String,
}

impl Sysmon {
    pub(super) fn line(&mut self, line: &str, out: &mut Vec<JsonEvent>) -> Result<u64, Wrong> {
        if self.element.is_empty() && line.starts_with('{') {
            return told(&of_json(object(line)?), out);
        }
        let begins = line.find("<Event>").or_else(|| line.find("<Event "));
        let part = match (self.element.is_empty(), begins) {
            (true, None) if line.starts_with("<?xml") || line.starts_with("<Events") || line.starts_with("</Events") => {
                return Ok(0);
            }
            (true, None) => return wrong("neither <Event nor a JSON object"),
            (true, Some(at)) => &line[at..],
            (false, _) => line,
        };
        if self.element.len() + part.len() > ELEMENT_BYTES_MAX {
            self.element.clear();
            return wrong(format!("an <Event> of more than {ELEMENT_BYTES_MAX} bytes"));
        }
        self.element.push_str(part);
        self.element.push('\n');
        let mut passed_over = 0;
        if !part.contains(END) {
            return Ok(0);
        }
        while let Some(end) = self.element.find(END) {
            let rest = self.element.split_off(end + END.len());
            let element = std::mem::take(&mut self.element);
            let next = rest.find("<Event>").or_else(|| rest.find("<Event "));
            self.element = next.map_or_else(String::new, |at| rest[at..].to_owned());
            passed_over += told(&of_xml(&element), out)?;
        }
        Ok(passed_over)
    }

    pub(super) fn finish(&mut self) -> Result<u64, Wrong> {
        match std::mem::take(&mut self.element).is_empty() {
            true => Ok(0),
            false => wrong("the file ends inside an <Event>"),
        }
    }
}

/// The event's data by Sysmon's names, with `EventID`, `Computer` and `SystemTime` among them.
type Data = Map<String, Value>;

fn of_xml(element: &str) -> Data {
    let mut data = Data::new();
    for name in ["EventID", "Computer"] {
        let content = element.split_once(&format!("<{name}")).and_then(|(_, rest)| rest.split_once('>'));
        if let Some((text, _)) = content.and_then(|(_, rest)| rest.split_once('<')) {
            data.insert(name.into(), plain(text.trim()).into());
        }
    }
    if let Some((_, rest)) = element.split_once("SystemTime=")
        && let Some((time, _)) = quoted(rest)
    {
        data.insert("SystemTime".into(), plain(time).into());
    }
    let mut rest = element;
    while let Some((_, found)) = rest.split_once("<Data ") {
        rest = found;
        let Some((name, after)) = found.trim_start().strip_prefix("Name=").and_then(quoted) else { continue };
        let Some(content) = after.trim_start().strip_prefix('>') else { continue };
        let text = content.split('<').next().unwrap_or_default();
        data.insert(plain(name), plain(text).into());
        rest = content;
    }
    data
}

/// What stands between the quotes that begin here, and what follows.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
    text[1..].split_once(quote)
}

/// Entities replaced.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        // The longest that are known have eight characters.
        let name = rest.bytes().take(10).position(|byte| byte == b';').map(|end| &rest[1..end]);
        let meant = name.and_then(|name| match name {
            "lt" => Some('<'),
            "gt" => Some('>'),
            "amp" => Some('&'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            _ => {
                let number = name.strip_prefix('#')?;
                let parsed = match number.strip_prefix('x') {
                    Some(hex) => u32::from_str_radix(hex, 16),
                    None => number.parse(),
                };
                parsed.ok().and_then(char::from_u32)
            }
        });
        match (name, meant) {
            (Some(name), Some(meant)) => {
                out.push(meant);
                rest = &rest[name.len() + 2..];
            }
            _ => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn of_json(mut keys: Data) -> Data {
    for inner in ["winlog", "Event"] {
        if let Some(Value::Object(found)) = keys.remove(inner) {
            keys.extend(found);
        }
    }
    if let Some(Value::Object(system)) = keys.remove("System") {
        keys.extend(system);
    }
    for inner in ["EventData", "event_data"] {
        if let Some(Value::Object(mut found)) = keys.remove(inner) {
            if let Some(Value::Array(list)) = found.remove("Data") {
                for entry in list {
                    let of = |names: [&str; 2]| names.iter().find_map(|name| entry.get(*name)).and_then(text_of);
                    if let (Some(name), Some(value)) = (of(["@Name", "Name"]), of(["#text", "content"])) {
                        found.insert(name, value.into());
                    }
                }
            }
            keys.extend(found);
        }
    }
    for (from, to) in [("event_id", "EventID"), ("computer_name", "Computer"), ("@timestamp", "SystemTime")] {
        if let Some(value) = keys.remove(from) {
            keys.entry(to).or_insert(value);
        }
    }
    if let Some(time) = keys.get("TimeCreated").and_then(|of| of.get("SystemTime").or_else(|| of.get("@SystemTime"))).cloned() {
        keys.entry("SystemTime").or_insert(time);
    }
    if let Some(id) = keys.get("EventID").and_then(|id| id.get("#text")).cloned() {
        keys.insert("EventID".into(), id);
    }
    keys
}

fn text(data: &Data, key: &str) -> Option<String> {
    data.get(key).and_then(text_of).filter(|text| text != "-")
}

/// Makes the event; 1 if none of ours stands for it.
fn told(data: &Data, out: &mut Vec<JsonEvent>) -> Result<u64, Wrong> {
    let Some(id) = text(data, "EventID") else { return wrong("it has no EventID") };
    let get = |key: &str| text(data, key).map(Text::from);
    let mut detail = Map::new();
    let mut tell = |key: &str, name: &str| text(data, key).map(|text| detail.insert(name.into(), text.into()));
    let mut fields = Fields::default();
    let kind = match id.as_str() {
        "1" => {
            fields.path = get("Image");
            fields.result = Some(0);
            tell("Hashes", "hashes");
            tell("LogonId", "logon_id");
            Kind::Exec
        }
        "3" => {
            let inward = text(data, "Initiated").as_deref() == Some("false");
            let port = |key: &str| text(data, key)?.parse().ok();
            // Sysmon's source is the initiator at both ends.
            fields.src_ip = text(data, "SourceIp").as_deref().and_then(address);
            fields.src_port = port("SourcePort");
            fields.dst_ip = text(data, "DestinationIp").as_deref().and_then(address);
            fields.dst_port = port("DestinationPort");
            fields.proto = get("Protocol");
            fields.direction = Some(if inward { "in" } else { "out" }.into());
            if fields.dst_ip.is_none() {
                return wrong("event 3 has no DestinationIp");
            }
            match (fields.proto.as_deref(), inward) {
                (Some("udp"), _) => Kind::Send,
                (_, true) => Kind::Accept,
                (_, false) => Kind::Connect,
            }
        }
        "5" => Kind::Exit,
        "11" => {
            fields.path = get("TargetFilename");
            fields.flags = Some(WRITE_CREATE);
            fields.result = Some(0);
            Kind::Open
        }
        "23" | "26" => {
            fields.path = get("TargetFilename");
            fields.result = Some(0);
            tell("Hashes", "hashes");
            Kind::Unlink
        }
        _ => return Ok(1),
    };
    tell("RuleName", "sysmon_rule");
    fields.detail = json(detail);
    // `2021-09-17 17:57:18.123`: UTC, without saying so.
    let utc = text(data, "UtcTime").and_then(|time| parse_time(&format!("{time}Z")));
    let Some(time) = utc.or_else(|| text(data, "SystemTime").as_deref().and_then(parse_time)) else {
        return wrong("it has no UtcTime and no SystemTime that is a time");
    };
    let host = text(data, "Computer");
    let event = Event { time, kind, process: process(data), container: None, fields };
    out.push(of_host(host.as_deref(), event));
    Ok(0)
}

fn process(data: &Data) -> Option<Arc<Process>> {
    let get = |key: &str| text(data, key).map(Text::from);
    let number = |key: &str| text(data, key)?.parse().ok();
    let guid = |key: &str| text(data, key).map(|guid| number_of(&guid));
    let comm = text(data, "Image")
        .and_then(|image| image.rsplit(['/', '\\']).next().map(|name| name.chars().take(COMM_CHARS).collect()));
    Some(Arc::new(Process {
        pid: number("ProcessId")?,
        start_ns: guid("ProcessGuid").unwrap_or(0),
        ppid: number("ParentProcessId"),
        parent_start_ns: guid("ParentProcessGuid"),
        exe: get("Image"),
        comm: comm.map(|comm: String| comm.into()),
        cmdline: get("CommandLine"),
        cwd: get("CurrentDirectory"),
        user_name: get("User"),
        parent_exe: get("ParentImage"),
        parent_cmdline: get("ParentCommandLine"),
        ..Process::default()
    }))
}

const END: &str = "</Event>";
/// Longest element: Sysmon's longest are some kilobytes.
const ELEMENT_BYTES_MAX: usize = 1 << 20;
/// O_WRONLY and O_CREAT.
const WRITE_CREATE: u32 = 0o101;
/// The kernel's task name.
const COMM_CHARS: usize = 15;
