//! Zeek's conn.log and dns.log, as TSV with its header or as JSON lines.
//!
//! Of conn: a TCP connection is a `connect` at its time, and a `close` with bytes and duration if it was made (its state is neither S0, REJ nor
//! another of an unanswered attempt); any other protocol is one `send`. The result of an attempt: `REJ` 111 (refused), other unanswered ones 110 (timed out),
//! else 0. Of dns: one `dns`, `result` is the response's code, absent without response. The host is the sensor (`@system`, `_system_name`),
//! not an end of the connection: what two sensors saw is two connections, told apart by `host`. Other logs are passed over.

use serde_json::{Map, Value};
use weir_schema::{Event, Fields, JsonEvent, Kind, Text, parse_time};

use super::{Wrong, address, json, number_of, object, of_host, seconds, text_of, wrong};

#[derive(Debug)]
pub(super) struct Zeek {
    separator: String,
    set_separator: String,
    unset: String,
    empty: String,
    path: String,
    fields: Vec<String>,
}

impl Default for Zeek {
    fn default() -> Self {
        let text = str::to_owned;
        Self {
            separator: text("\t"),
            set_separator: text(","),
            unset: text("-"),
            empty: text("(empty)"),
            path: String::new(),
            fields: Vec::new(),
        }
    }
}

impl Zeek {
    pub(super) fn line(&mut self, line: &str, out: &mut Vec<JsonEvent>) -> Result<u64, Wrong> {
        if let Some(header) = line.strip_prefix('#') {
            return self.header(header).map(|()| 0);
        }
        let row = if line.starts_with('{') { Row::of_json(object(line)?) } else { self.row(line)? };
        match row.log() {
            "conn" => row.conn(out).map(|()| 0),
            "dns" => row.dns(out).map(|()| 0),
            _ => Ok(1),
        }
    }

    /// The next file brings its own header.
    pub(super) fn finish(&mut self) {
        *self = Self::default();
    }

    fn header(&mut self, header: &str) -> Result<(), Wrong> {
        if let Some(separator) = header.strip_prefix("separator ") {
            *self = Self::default();
            self.separator = match separator.trim().strip_prefix("\\x").map(|hex| u8::from_str_radix(hex, 16)) {
                Some(Ok(byte)) if byte.is_ascii() => char::from(byte).to_string(),
                Some(_) => return wrong(format!("#separator {separator}: not \\x and two digits")),
                None => separator.trim().to_owned(),
            };
            return Ok(());
        }
        let Some((name, rest)) = header.split_once(self.separator.as_str()) else { return Ok(()) };
        match name {
            "set_separator" => self.set_separator = rest.to_owned(),
            "unset_field" => self.unset = rest.to_owned(),
            "empty_field" => self.empty = rest.to_owned(),
            "path" => self.path = rest.to_owned(),
            "fields" => {
                self.fields = rest.split(self.separator.as_str()).take(FIELDS_MAX).map(|name| name.replace('.', "_")).collect();
            }
            _ => {}
        }
        Ok(())
    }

    fn row(&self, line: &str) -> Result<Row, Wrong> {
        if self.fields.is_empty() {
            return wrong("neither JSON nor a row below a #fields line; keep the log's header");
        }
        let values: Vec<&str> = line.split(self.separator.as_str()).take(FIELDS_MAX + 1).collect();
        if values.len() != self.fields.len() {
            return wrong(format!("{} values below {} fields", values.len(), self.fields.len()));
        }
        let mut keys = Map::new();
        for (name, value) in self.fields.iter().zip(values) {
            if value == self.unset || value == self.empty {
                continue;
            }
            let value = match name.as_str() {
                "answers" => value.split(self.set_separator.as_str()).collect::<Vec<_>>().into(),
                _ => Value::from(value),
            };
            keys.insert(name.clone(), value);
        }
        keys.insert("_path".to_owned(), self.path.as_str().into());
        Ok(Row { keys })
    }
}

struct Row {
    keys: Map<String, Value>,
}

impl Row {
    /// Keys with dots, as Zeek writes them, with underscores, as shippers do, or `id` as an object.
    fn of_json(given: Map<String, Value>) -> Self {
        let mut keys = Map::new();
        for (key, value) in given {
            match value {
                Value::Object(inner) if key == "id" => {
                    keys.extend(inner.into_iter().map(|(name, value)| (format!("id_{name}"), value)));
                }
                value => _ = keys.insert(key.replace('.', "_"), value),
            }
        }
        Self { keys }
    }

    fn text(&self, key: &str) -> Option<String> {
        self.keys.get(key).and_then(text_of)
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.text(key)?.parse().ok()
    }

    fn log(&self) -> &str {
        let named = ["_path", "@stream"].iter().find_map(|key| self.keys.get(*key).and_then(Value::as_str));
        match named.filter(|name| !name.is_empty()) {
            Some(name) => name,
            None if self.keys.contains_key("conn_state") => "conn",
            None if self.keys.contains_key("qtype") || self.keys.contains_key("query") => "dns",
            None => "",
        }
    }

    fn time(&self) -> Result<i64, Wrong> {
        let Some(text) = self.text("ts") else { return wrong("it has no ts") };
        match seconds(&text).or_else(|| parse_time(&text)) {
            Some(time) => Ok(time),
            None => wrong(format!("ts {text:?} is neither seconds since 1970 nor RFC 3339")),
        }
    }

    fn ends(&self) -> Result<Fields, Wrong> {
        let ip = |key: &str| match self.text(key).as_deref().and_then(address) {
            Some(ip) => Ok(Some(ip)),
            None => wrong(format!("{key} is no address")),
        };
        Ok(Fields {
            src_ip: ip("id_orig_h")?,
            src_port: self.number("id_orig_p"),
            dst_ip: ip("id_resp_h")?,
            dst_port: self.number("id_resp_p"),
            proto: self.text("proto").map(Text::from),
            direction: Some("out".into()),
            socket_id: self.text("uid").map(|uid| number_of(&uid)),
            ..Fields::default()
        })
    }

    fn push(&self, time: i64, kind: Kind, fields: Fields, out: &mut Vec<JsonEvent>) {
        let sensor = self.text("@system").or_else(|| self.text("_system_name"));
        out.push(of_host(sensor.as_deref(), Event { time, kind, process: None, container: None, fields }));
    }

    fn detail(&self, keys: &[&str]) -> Option<Text> {
        json(keys.iter().filter_map(|key| Some(((*key).to_owned(), self.keys.get(*key)?.clone()))).collect())
    }

    fn conn(&self, out: &mut Vec<JsonEvent>) -> Result<(), Wrong> {
        let time = self.time()?;
        let mut fields = self.ends()?;
        fields.detail = self.detail(&["uid", "conn_state", "service", "history"]);
        let duration = self.text("duration").and_then(|text| seconds(&text).or_else(|| tiny(&text)));
        let bytes = |payload: &str| self.number::<u64>(payload);
        let state = self.text("conn_state").unwrap_or_default();
        if fields.proto.as_deref() != Some("tcp") {
            (fields.bytes_sent, fields.bytes_received) = (bytes("orig_bytes"), bytes("resp_bytes"));
            fields.duration_ms = duration.map(|ns| ns.unsigned_abs() / 1_000_000);
            self.push(time, Kind::Send, fields, out);
            return Ok(());
        }
        // S0, SH: no answer. RSTOS0: given up. RSTRH, SHR: half a handshake seen. OTH: from the middle.
        let (made, result) = match state.as_str() {
            "REJ" => (false, 111),
            "S0" | "SH" | "RSTOS0" => (false, 110),
            "RSTRH" | "SHR" => (false, 104),
            _ => (true, 0),
        };
        fields.result = Some(result);
        // S1: established and not ended when the log was written.
        let ended = made && state != "S1";
        let close = ended.then(|| Fields {
            bytes_sent: bytes("orig_bytes"),
            bytes_received: bytes("resp_bytes"),
            duration_ms: duration.map(|ns| ns.unsigned_abs() / 1_000_000),
            ..fields.clone()
        });
        self.push(time, Kind::Connect, fields, out);
        if let Some(close) = close {
            self.push(time.saturating_add(duration.unwrap_or(0)), Kind::Close, close, out);
        }
        Ok(())
    }

    fn dns(&self, out: &mut Vec<JsonEvent>) -> Result<(), Wrong> {
        let time = self.time()?;
        let answers = match self.keys.get("answers") {
            Some(Value::Array(answers)) => Some(Value::Array(answers.clone()).to_string().into()),
            _ => None,
        };
        let fields = Fields {
            dns_name: self.text("query").map(Text::from),
            dns_answers: answers,
            result: self.number("rcode"),
            detail: self.detail(&["uid", "qtype_name", "rcode_name", "rtt"]),
            ..self.ends()?
        };
        self.push(time, Kind::Dns, fields, out);
        Ok(())
    }
}

/// JSON writers give small durations as `4.6e-05`.
fn tiny(text: &str) -> Option<i64> {
    let seconds: f64 = text.parse().ok()?;
    (seconds.is_finite() && (0.0..1e9).contains(&seconds)).then_some((seconds * 1e9) as i64)
}

/// Columns of a log; Zeek's conn.log has about 25.
const FIELDS_MAX: usize = 256;
