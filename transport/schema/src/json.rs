//! Events as JSON lines: one object per line, keys = columns, absent or null = unknown.
//!
//! Promise: what `write_line` writes, `parse_line` reads back equal (an empty container reads back as none).
//!
//! * `kind` and `time` must be there. `time` is RFC 3339, or nanoseconds since the Unix epoch as a number or a numeric text.
//! * Texts may be given as any JSON value: an array or object (`args`, `addresses`, `detail`) is kept as its JSON text.
//! * Integers may be given as a numeric text.
//! * `kind` may be `sample`: then the keys are columns of `samples`.
//! * A process is known when any of its columns is given. Its identity is (host, boot_id, pid, start_ns). Without `start_ns`, a
//!   given `process_id` stands in for it (as XXH3 of its text), so events with equal `process_id` and `pid` are of one process.
//!   The same holds for `parent_process_id`, `ppid` and `parent_start_ns`. A missing pid counts as 0 there. Without any of
//!   them `start_ns` is 0: then a pid is one process per boot.
//! * `event_id`, `received`, `late`, `tick` and `imported` belong to the place where an event was stored: they are passed over.
//! * A key that is no column is kept in `detail`, if that is absent or an object.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

use crate::clock_text::{parse_time, write_time};
use crate::column::{Column, ColumnType, Home};
use crate::error::Error;
use crate::event::{Cell, Container, Event, Host, Process, Text};
use crate::ids::{BootId, Name};
use crate::kind::Kind;

/// What a line says: the event, its host, and who sent it as far as the line knows.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonEvent {
    /// The host that saw it.
    pub host: Host,
    /// Tenant, if given.
    pub tenant: Option<Name>,
    /// Region, if given.
    pub region: Option<Name>,
    /// Agent, if given.
    pub agent: Option<Name>,
    /// The event itself.
    pub event: Event,
}

/// Reads one line. The error says which key is wrong, and why.
pub fn parse_line(line: &str) -> Result<JsonEvent, Error> {
    if line.len() > LINE_BYTES_MAX {
        return Err(wrong(format!("the line is {} bytes long, at most {LINE_BYTES_MAX} are read", line.len())));
    }
    let value: Value = serde_json::from_str(line.trim()).map_err(|error| wrong(format!("no JSON: {error}")))?;
    let Value::Object(mut keys) = value else {
        return Err(wrong("the line is no JSON object".to_owned()));
    };
    keys.retain(|_, value| !value.is_null());
    let kind = parse_kind(&mut keys)?;
    let time = parse_event_time(keys.remove("time"))?;
    let mut parsed = JsonEvent {
        host: Host::default(),
        tenant: name(&mut keys, "tenant")?,
        region: name(&mut keys, "region")?,
        agent: name(&mut keys, "agent")?,
        event: Event { time, kind, ..Event::default() },
    };
    let identity = ["process_id", "parent_process_id"].map(|key| keys.remove(key).map(|value| text_of(&value)));
    let mut entities = Entities::default();
    let mut rest = Map::new();
    for (key, value) in keys {
        match Column::from_name(&key) {
            Some(Column::Detail) | None => _ = rest.insert(key, value),
            Some(column) => entities.set(&mut parsed, column, &value)?,
        }
    }
    parsed.event.fields.detail = detail(rest)?;
    let (process, container) = entities.finish(identity);
    parsed.event.process = process;
    parsed.event.container = container;
    Ok(parsed)
}

fn parse_kind(keys: &mut Map<String, Value>) -> Result<Kind, Error> {
    match keys.remove("kind") {
        Some(Value::String(kind)) => Kind::parse(&kind).ok_or_else(|| wrong(format!("kind {kind:?} is unknown"))),
        Some(other) => Err(wrong(format!("kind {other} is no text"))),
        None => Err(wrong("it has no kind".to_owned())),
    }
}

fn parse_event_time(value: Option<Value>) -> Result<i64, Error> {
    let value = value.ok_or_else(|| wrong("it has no time".to_owned()))?;
    let time = match &value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => parse_time(text).or_else(|| text.parse().ok()),
        _ => None,
    };
    time.ok_or_else(|| wrong(format!("time {value} is neither RFC 3339 nor nanoseconds since 1970")))
}

fn name(keys: &mut Map<String, Value>, key: &str) -> Result<Option<Name>, Error> {
    let given = keys.remove(key).map(|value| Name::new(text_of(&value)));
    given.transpose().map_err(|error| wrong(format!("{key}: {error}")))
}

/// The process and the container of a line while its keys are read.
#[derive(Default)]
struct Entities {
    process: Process,
    has_process: bool,
    start_ns: Option<u64>,
    container: Container,
    has_container: bool,
}

impl Entities {
    fn set(&mut self, parsed: &mut JsonEvent, column: Column, value: &Value) -> Result<(), Error> {
        match column.home() {
            Home::Key => return Ok(()),
            Home::Host => return set_host(&mut parsed.host, column, value),
            Home::Process => self.has_process = true,
            Home::Container => self.has_container = true,
            Home::Event => {}
        }
        let refused = || wrong(format!("{}: {} does not fit", column.name(), brief(value)));
        if column.ty() == ColumnType::Text {
            let text = Text::from(text_of(value));
            return if self.put(parsed, column, Cell::Text(&text)) { Ok(()) } else { Err(refused()) };
        }
        let int = int_of(column, value).ok_or_else(refused)?;
        match column {
            Column::StartNs => self.start_ns = Some(int.cast_unsigned()),
            Column::Pid => self.process.pid = u32::try_from(int).map_err(|_| refused())?,
            _ if self.put(parsed, column, Cell::Int(int)) => {}
            _ => return Err(refused()),
        }
        Ok(())
    }

    fn put(&mut self, parsed: &mut JsonEvent, column: Column, cell: Cell<'_>) -> bool {
        match column.home() {
            Home::Process => self.process.set(column, cell),
            Home::Container => self.container.set(column, cell),
            _ => parsed.event.fields.set(column, cell),
        }
    }

    /// The shared entities, with the ids that the line gave in place of unknown start times.
    fn finish(mut self, [own, parent]: [Option<String>; 2]) -> (Option<Arc<Process>>, Option<Arc<Container>>) {
        let stand_in = |id: &String| xxh3_64(id.as_bytes());
        self.has_process |= own.is_some() || parent.is_some();
        self.process.start_ns = self.start_ns.or_else(|| own.as_ref().map(stand_in)).unwrap_or(0);
        if let Some(parent) = &parent {
            self.process.ppid.get_or_insert(0);
            self.process.parent_start_ns.get_or_insert_with(|| stand_in(parent));
        }
        (self.has_process.then(|| Arc::new(self.process)), self.has_container.then(|| Arc::new(self.container)))
    }
}

fn set_host(host: &mut Host, column: Column, value: &Value) -> Result<(), Error> {
    match column {
        Column::Host => host.host = text_of(value).into(),
        Column::Cloud => host.cloud = Some(text_of(value).into()),
        Column::Zone => host.zone = Some(text_of(value).into()),
        Column::Simulated => {
            host.simulated = value.as_bool().ok_or_else(|| wrong(format!("simulated: {} is not true or false", brief(value))))?;
        }
        _ => {
            let text = text_of(value);
            host.boot_id = BootId::parse(&text).ok_or_else(|| wrong(format!("boot_id: {} is no UUID", brief(value))))?;
        }
    }
    Ok(())
}

/// The detail of a line: what it gave, and the keys that are no columns.
fn detail(mut rest: Map<String, Value>) -> Result<Option<Text>, Error> {
    let Some(given) = rest.remove(Column::Detail.name()) else {
        return Ok((!rest.is_empty()).then(|| Value::Object(rest).to_string().into()));
    };
    if rest.is_empty() {
        return Ok(Some(text_of(&given).into()));
    }
    let object = match given {
        Value::String(text) => serde_json::from_str(&text).ok(),
        other => Some(other),
    };
    let Some(Value::Object(mut object)) = object else {
        let keys: Vec<_> = rest.keys().map(String::as_str).collect();
        return Err(wrong(format!("{}: no column, and detail is no object to keep it in", keys.join(", "))));
    };
    object.extend(rest);
    Ok(Some(Value::Object(object).to_string().into()))
}

fn text_of(value: &Value) -> String {
    if let Value::String(text) = value { text.clone() } else { value.to_string() }
}

fn int_of(column: Column, value: &Value) -> Option<i64> {
    let (signed, unsigned) = match value {
        Value::Number(number) => (number.as_i64(), number.as_u64()),
        Value::String(text) => (text.parse().ok(), text.parse().ok()),
        _ => (None, None),
    };
    if column.is_signed() { signed } else { unsigned.map(u64::cast_signed) }
}

fn wrong(why: String) -> Error {
    Error::Line(why)
}

/// The value as an error shows it.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 { text } else { text.chars().take(80).chain("…".chars()).collect() }
}

/// Appends the event as one line, with its line end. Unknown columns are left out.
pub fn write_line(out: &mut String, line: &JsonEvent) {
    let JsonEvent { host, event, .. } = line;
    out.push_str("{\"time\":\"");
    write_time(out, event.time);
    _ = write!(out, "\",\"kind\":\"{}\"", event.kind.as_str());
    for (column, name) in [(Column::Tenant, &line.tenant), (Column::Region, &line.region), (Column::Agent, &line.agent)] {
        if let Some(name) = name {
            write_text(out, column, name.as_str());
        }
    }
    let texts = [(Column::Host, Some(&host.host)), (Column::Cloud, host.cloud.as_ref()), (Column::Zone, host.zone.as_ref())];
    for (column, text) in texts {
        if let Some(text) = text.filter(|text| column != Column::Host || !text.is_empty()) {
            write_text(out, column, text);
        }
    }
    if host.boot_id != BootId::default() {
        write_text(out, Column::BootId, &host.boot_id.to_string());
    }
    if host.simulated {
        out.push_str(",\"simulated\":true");
    }
    let mut write = |column: Column, cell: Cell<'_>| match cell {
        Cell::Text(text) => write_text(out, column, text),
        Cell::Int(int) if column.is_signed() => _ = write!(out, ",\"{}\":{int}", column.name()),
        Cell::Int(int) => _ = write!(out, ",\"{}\":{}", column.name(), int.cast_unsigned()),
    };
    if let Some(container) = &event.container {
        container.each(&mut write);
    }
    if let Some(process) = &event.process {
        write(Column::Pid, Cell::Int(i64::from(process.pid)));
        write(Column::StartNs, Cell::Int(process.start_ns.cast_signed()));
        process.each(&mut write);
    }
    event.fields.each(&mut write);
    out.push_str("}\n");
}

fn write_text(out: &mut String, column: Column, text: &str) {
    _ = write!(out, ",\"{}\":{}", column.name(), Value::from(text));
}

/// Longest line that is read.
pub const LINE_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> String {
        parse_line(line).unwrap_err().to_string()
    }

    #[test]
    fn lines_that_are_no_events_say_why() {
        let cases = [
            ("", "not an event: no JSON: EOF while parsing a value at line 1 column 0"),
            ("[1]", "not an event: the line is no JSON object"),
            ("{}", "not an event: it has no kind"),
            (r#"{"kind":"exec"}"#, "not an event: it has no time"),
            (r#"{"kind":7,"time":1}"#, "not an event: kind 7 is no text"),
            (r#"{"kind":"run","time":1}"#, "not an event: kind \"run\" is unknown"),
            (r#"{"kind":"exec","time":"noon"}"#, "not an event: time \"noon\" is neither RFC 3339 nor nanoseconds since 1970"),
            (r#"{"kind":"connect","time":1,"dst_port":70000}"#, "not an event: dst_port: 70000 does not fit"),
            (r#"{"kind":"connect","time":1,"dst_port":-1}"#, "not an event: dst_port: -1 does not fit"),
            (r#"{"kind":"exec","time":1,"pid":"x"}"#, "not an event: pid: \"x\" does not fit"),
            (r#"{"kind":"exec","time":1,"pid":1.5}"#, "not an event: pid: 1.5 does not fit"),
            (r#"{"kind":"exec","time":1,"simulated":1}"#, "not an event: simulated: 1 is not true or false"),
            (r#"{"kind":"exec","time":1,"boot_id":"x"}"#, "not an event: boot_id: \"x\" is no UUID"),
            (
                r#"{"kind":"exec","time":1,"x":1,"detail":"y"}"#,
                "not an event: x: no column, and detail is no object to keep it in",
            ),
        ];
        for (line, expected) in cases {
            assert_eq!(error(line), expected, "{line}");
        }
        assert!(error(r#"{"kind":"exec","time":1,"tenant":"a b"}"#).contains("tenant"));
        assert!(error(&" ".repeat(LINE_BYTES_MAX + 1)).contains("bytes long"));
    }

    #[test]
    fn values_are_taken_in_every_form_that_is_documented() {
        let line = r#" {"kind":"exec","time":"1790000000000000001","host":"web-7","region":"eu-west-1","boot_id":
            "6f1c0f6e-9a3b-4c1d-8e2f-0123456789ab","args":["ls","-l"],"pid":"42","exit_code":-1,"socket_id":18446744073709551615,
            "uid":null,"digest":"ab","detail":{"labels":{"a":"b"}},"event_id":"x","tick":5,"imported":true} "#
            .replace('\n', "");
        let parsed = parse_line(&line).unwrap();
        assert_eq!(parsed.event.time, 1_790_000_000_000_000_001);
        assert_eq!((&*parsed.host.host, parsed.region.as_ref().map(Name::as_str)), ("web-7", Some("eu-west-1")));
        assert_eq!(parsed.host.boot_id.to_string(), "6f1c0f6e-9a3b-4c1d-8e2f-0123456789ab");
        let process = parsed.event.process.unwrap();
        assert_eq!((process.pid, process.start_ns, process.uid), (42, 0, None));
        assert_eq!(process.args.as_deref(), Some(r#"["ls","-l"]"#));
        assert_eq!((parsed.event.fields.exit_code, parsed.event.fields.socket_id), (Some(-1), Some(u64::MAX)));
        assert_eq!(parsed.event.fields.detail.as_deref(), Some(r#"{"digest":"ab","labels":{"a":"b"}}"#));
        assert_eq!(parsed.event.container, None);
    }

    #[test]
    fn given_process_ids_name_the_same_process_everywhere() {
        let process = |line: &str| parse_line(line).unwrap().event.process.unwrap();
        let parent = process(r#"{"kind":"exec","time":1,"process_id":"p1","pid":7}"#);
        let child = process(r#"{"kind":"exec","time":2,"process_id":"p2","pid":8,"parent_process_id":"p1","ppid":7}"#);
        assert_eq!((child.ppid, child.parent_start_ns), (Some(parent.pid), Some(parent.start_ns)));
        assert_ne!(child.start_ns, parent.start_ns);
        let parent = process(r#"{"kind":"exec","time":1,"process_id":"p1"}"#);
        let child = process(r#"{"kind":"exec","time":2,"parent_process_id":"p1"}"#);
        assert_eq!((child.ppid, child.parent_start_ns), (Some(parent.pid), Some(parent.start_ns)));
    }
}
