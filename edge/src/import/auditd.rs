//! The Linux audit log: raw lines as auditd writes them or `ausearch` and `ausearch --raw` print them, also in the enriched format.
//!
//! The records of one call share a stamp (`1604994496.155:92733`) and a node; they are joined until an EOE, the end of the file, or
//! until 64 later calls have begun (fewer, if their records are long). Call numbers are read by `arch`: x86-64, i386, arm64; a record of another is passed over.
//! What `ausearch -i` prints has local times and no zone: refused. Text values are plain in quotes, else hexadecimal.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde_json::{Map, Value};
use weir_schema::{Event, Fields, JsonEvent, Kind, Process, Text};

use super::calls::{call_of, errno, kind_of};
use super::{Wrong, json, of_host, seconds, wrong};

#[derive(Debug, Default)]
pub(super) struct Auditd {
    pending: VecDeque<Call>,
}

/// The records of one call.
#[derive(Debug, Default)]
struct Call {
    node: Option<String>,
    stamp: String,
    time: i64,
    bytes: usize,
    syscall: Map<String, Value>,
    args: Vec<(usize, String)>,
    cwd: Option<String>,
    paths: Vec<(String, String)>,
    title: Option<Vec<String>>,
    peer: Option<(String, u16)>,
    is_local: bool,
}

impl Auditd {
    pub(super) fn line(&mut self, line: &str, out: &mut Vec<JsonEvent>) -> Result<u64, Wrong> {
        if line.starts_with("----") || line.starts_with("time->") {
            return Ok(0);
        }
        let Some((head, body)) = line.split_once("msg=audit(") else {
            return wrong("no msg=audit(…): not a record of the audit log");
        };
        let Some((stamp, body)) = body.split_once("):").or_else(|| body.split_once(") :")) else {
            return wrong("msg=audit( has no end");
        };
        let Some(time) = stamp.split_once(':').and_then(|(time, _)| seconds(time)) else {
            return wrong(format!("audit({stamp}) is not seconds:serial; print without -i"));
        };
        let word = |key: &str| head.split_whitespace().find_map(|word| word.strip_prefix(key));
        let Some(kind) = word("type=") else { return wrong("it has no type=") };
        let node = word("node=").map(str::to_owned);
        let at = self.pending.iter().position(|call| call.stamp == stamp && call.node == node);
        if kind == "EOE" {
            let call = at.and_then(|at| self.pending.remove(at));
            return Ok(call.map_or(0, |call| call.told(out)));
        }
        if !JOINED.contains(&kind) {
            return Ok(1);
        }
        let mut passed_over = 0;
        let at = at.unwrap_or_else(|| {
            if self.pending.len() >= PENDING_MAX
                && let Some(oldest) = self.pending.pop_front()
            {
                passed_over = oldest.told(out);
            }
            self.pending.push_back(Call { node, stamp: stamp.to_owned(), time, ..Call::default() });
            self.pending.len() - 1
        });
        let call = &mut self.pending[at];
        if call.bytes + body.len() > CALL_BYTES_MAX {
            return wrong(format!("the records of audit({stamp}) are more than {CALL_BYTES_MAX} bytes: this one is left out"));
        }
        call.bytes += body.len();
        call.add(kind, &pairs(body));
        while self.pending.len() > 1 && self.pending.iter().map(|call| call.bytes).sum::<usize>() > PENDING_BYTES_MAX {
            passed_over += self.pending.pop_front().map_or(0, |oldest| oldest.told(out));
        }
        Ok(passed_over)
    }

    pub(super) fn finish(&mut self, out: &mut Vec<JsonEvent>) -> u64 {
        self.pending.drain(..).map(|call| call.told(out)).sum()
    }
}

/// A value as it stands: in quotes, or bare.
enum Raw<'a> {
    Quoted(&'a str),
    Bare(&'a str),
}

impl Raw<'_> {
    fn plain(&self) -> &str {
        match self {
            Self::Quoted(text) | Self::Bare(text) => text,
        }
    }

    /// A text that the kernel writes in hexadecimal when it has blanks, quotes or control characters.
    fn text(&self) -> Option<String> {
        match self {
            Self::Quoted(text) => Some((*text).to_owned()),
            Self::Bare("(null)" | "(none)" | "?") => None,
            Self::Bare(text) => Some(match bytes_of(text) {
                Some(bytes) => String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned(),
                None => (*text).to_owned(),
            }),
        }
    }
}

/// The `key=value` pairs of a record. What the enriched format adds follows a group separator, in capitals.
fn pairs(body: &str) -> Vec<(&str, Raw<'_>)> {
    let mut found = Vec::new();
    let mut rest = body;
    let blank = |c: char| c == ' ' || c == '\u{1d}' || c == '\t';
    while found.len() < PAIRS_MAX {
        rest = rest.trim_start_matches(blank);
        let Some((key, value)) = rest.split_once('=') else { break };
        // Words without a value stand before a key.
        let key = key.rsplit(blank).next().unwrap_or(key);
        let quote = value.chars().next().filter(|quote| matches!(quote, '"' | '\''));
        let (raw, after) = match quote.and_then(|quote| value[1..].split_once(quote)) {
            Some((text, after)) => (Raw::Quoted(text), after),
            None => {
                let end = value.find(blank).unwrap_or(value.len());
                (Raw::Bare(&value[..end]), &value[end..])
            }
        };
        found.push((key, raw));
        rest = after;
    }
    found
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes();
    if digits.is_empty() || !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

impl Call {
    fn add(&mut self, kind: &str, pairs: &[(&str, Raw<'_>)]) {
        let get = |key: &str| pairs.iter().find(|(known, _)| *known == key).map(|(_, raw)| raw);
        match kind {
            "SYSCALL" => {
                for (key, raw) in pairs {
                    let value = if TEXTS.contains(key) { raw.text() } else { Some(raw.plain().to_owned()) };
                    if let Some(value) = value {
                        self.syscall.entry((*key).to_owned()).or_insert(value.into());
                    }
                }
            }
            "EXECVE" => self.args.extend(pairs.iter().filter_map(|(key, raw)| {
                // A long argument comes in parts: a1[0], a1[1] …
                let place = key.strip_prefix('a')?;
                let (number, part) = place.split_once('[').unwrap_or((place, ""));
                let (number, text) = (number.parse().ok()?, raw.text()?);
                Some((number, text)).filter(|_| part.is_empty() || part.ends_with(']'))
            })),
            "CWD" => self.cwd = get("cwd").and_then(Raw::text),
            "PATH" => {
                if let Some(name) = get("name").and_then(Raw::text) {
                    let of = get("nametype").map_or("", Raw::plain).to_owned();
                    self.paths.push((of, name));
                }
            }
            "PROCTITLE" => {
                let title = get("proctitle").and_then(Raw::text);
                self.title = title.map(|title| title.split('\0').map(str::to_owned).collect());
            }
            "SOCKADDR" => {
                let bytes = get("saddr").and_then(|raw| bytes_of(raw.plain())).unwrap_or_default();
                (self.peer, self.is_local) = match bytes.as_slice() {
                    [2, 0, p1, p2, a, b, c, d, ..] => {
                        (Some((Ipv4Addr::new(*a, *b, *c, *d).to_string(), u16::from_be_bytes([*p1, *p2]))), false)
                    }
                    [10, 0, p1, p2, _, _, _, _, rest @ ..] => {
                        let six = rest.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).to_canonical().to_string());
                        (six.map(|ip| (ip, u16::from_be_bytes([*p1, *p2]))), false)
                    }
                    _ => (None, true),
                };
            }
            _ => {}
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.syscall.get(key).and_then(Value::as_str)
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.text(key)?.parse().ok()
    }

    fn argument(&self, number: usize) -> Option<u64> {
        u64::from_str_radix(self.text(&format!("a{number}"))?, 16).ok()
    }

    fn call(&self) -> Option<String> {
        let number = self.text("syscall")?;
        match number.parse() {
            Ok(number) => call_of(u32::from_str_radix(self.text("arch")?, 16).ok()?, number).map(str::to_owned),
            Err(_) => Some(number.to_owned()),
        }
    }

    /// Makes the event; answers 1 if none of ours stands for it.
    fn told(mut self, out: &mut Vec<JsonEvent>) -> u64 {
        self.args.sort_by_key(|(number, _)| *number);
        let Some((call, event)) = self.call().and_then(|call| Some((kind_of(&call)?, call))).and_then(|(kind, call)| {
            let fields = self.fields(kind, &call)?;
            Some((call, (kind, fields)))
        }) else {
            return 1;
        };
        let (kind, mut fields) = event;
        let mut detail = Map::new();
        detail.insert("call".into(), call.into());
        for (key, name) in [("key", "audit_key"), ("ses", "audit_session")] {
            if let Some(text) = self.text(key).filter(|text| *text != "4294967295") {
                detail.insert(name.into(), text.into());
            }
        }
        if let Some(euid) = self.number::<u32>("euid").filter(|euid| self.number("uid") != Some(*euid)) {
            detail.insert("euid".into(), euid.into());
        }
        fields.detail = json(detail);
        let event = Event { time: self.time, kind, process: self.process(kind), container: None, fields };
        out.push(of_host(self.node.as_deref(), event));
        0
    }

    /// argv, whole from EXECVE; else what PROCTITLE has, which the kernel cuts at 128 bytes.
    fn argv(&self) -> Vec<String> {
        let mut argv: Vec<String> = Vec::new();
        let mut last = None;
        for (number, text) in &self.args {
            match argv.last_mut().filter(|_| last == Some(*number)) {
                Some(argument) => argument.push_str(text),
                None => argv.push(text.clone()),
            }
            last = Some(*number);
        }
        if argv.is_empty() { self.title.clone().unwrap_or_default() } else { argv }
    }

    fn process(&self, kind: Kind) -> Option<Arc<Process>> {
        let text = |key: &str| self.text(key).map(Text::from);
        let id = |key: &str| self.number::<u32>(key).filter(|id| *id != u32::MAX);
        let argv = self.argv();
        // Before an exec the title is the old program's.
        let is_known = !argv.is_empty() && (kind != Kind::Exec || !self.args.is_empty() || self.result() == Some(0));
        Some(Arc::new(Process {
            pid: id("pid")?,
            ppid: id("ppid"),
            exe: text("exe"),
            comm: text("comm"),
            args: is_known.then(|| Value::from(argv.clone()).to_string().into()),
            cmdline: is_known.then(|| argv.join(" ").into()),
            cwd: self.cwd.as_deref().map(Text::from),
            uid: id("uid"),
            user_name: text("UID"),
            login_uid: id("auid"),
            tty: text("tty").filter(|tty| &**tty != "(none)"),
            ..Process::default()
        }))
    }

    fn result(&self) -> Option<i32> {
        let exit = self.text("exit")?;
        match exit.parse::<i64>() {
            Ok(exit) => i32::try_from(-exit.min(0)).ok().filter(|errno| *errno < 4096),
            Err(_) => errno(exit.trim_start_matches('-').split('(').next()?),
        }
    }

    /// The path of this kind of name, joined with the working directory where the call names no other.
    fn path(&self, types: &[&str], directory: Option<usize>) -> Option<Text> {
        let (_, name) = types.iter().find_map(|of| self.paths.iter().find(|(found, _)| found == of))?;
        let at_cwd = directory.is_none_or(|number| self.argument(number).map(|fd| fd as u32) == Some(AT_FDCWD));
        let joined = self.cwd.as_deref().filter(|_| at_cwd && !name.starts_with('/'));
        Some(match joined {
            Some(cwd) => format!("{}/{}", cwd.trim_end_matches('/'), name.strip_prefix("./").unwrap_or(name)).into(),
            None => name.as_str().into(),
        })
    }

    /// The columns of the call; none if it does not matter, as memory that is not both writable and executable.
    fn fields(&self, kind: Kind, call: &str) -> Option<Fields> {
        let mut fields = Fields { result: self.result(), ..Fields::default() };
        let argument = |number: usize| self.argument(number).map(|value| value as u32);
        let at = call.contains("at") && !matches!(call, "creat" | "truncate" | "ftruncate" | "memfd_create");
        let directory = at.then_some(0);
        let n = usize::from(at);
        match kind {
            Kind::Exec => fields.path = self.text("exe").map(Text::from).filter(|_| fields.result == Some(0)),
            Kind::Exit => {
                fields.exit_code = argument(0).map(|code| code as i32 & 0xff);
                fields.result = None;
            }
            Kind::Fork => fields.target_pid = self.number::<u32>("exit"),
            Kind::Connect | Kind::Send if self.is_local => return None,
            Kind::Connect | Kind::Send => {
                (fields.dst_ip, fields.dst_port) = self.peer.clone().map(|(ip, port)| (ip.into(), port)).unzip();
                fields.direction = Some("out".into());
            }
            Kind::Accept if self.is_local => return None,
            Kind::Accept => {
                (fields.src_ip, fields.src_port) = self.peer.clone().map(|(ip, port)| (ip.into(), port)).unzip();
                fields.direction = Some("in".into());
            }
            Kind::Open => {
                let flags = match call {
                    "creat" => Some(CREAT_FLAGS),
                    // Its flags stand behind a pointer.
                    "openat2" => None,
                    _ => argument(n + 1),
                };
                fields.flags = flags;
                let mode = if call == "creat" { argument(1) } else { argument(n + 2) };
                fields.mode = mode.filter(|_| flags.is_some_and(|flags| flags & O_CREAT != 0));
                fields.path = self.path(&["NORMAL", "CREATE", "UNKNOWN"], directory);
            }
            Kind::Unlink => fields.path = self.path(&["DELETE", "NORMAL", "UNKNOWN"], directory),
            Kind::Rename => {
                fields.path = self.path(&["DELETE", "NORMAL"], directory);
                fields.path_to = self.path(&["CREATE"], at.then_some(2));
            }
            Kind::Link => {
                fields.path = self.path(&["NORMAL"], directory);
                fields.path_to = self.path(&["CREATE"], at.then_some(2));
            }
            Kind::Symlink => fields.path_to = self.path(&["CREATE"], at.then_some(1)),
            Kind::Chmod => {
                fields.mode = argument(n + 1);
                fields.path = self.path(&["NORMAL", "UNKNOWN"], directory);
            }
            Kind::Mkdir => {
                fields.mode = argument(n + 1);
                fields.path = self.path(&["CREATE", "NORMAL"], directory);
            }
            Kind::Kill => {
                fields.target_pid = argument(0).filter(|pid| *pid as i32 > 0);
                fields.signal = argument(if call == "tgkill" { 2 } else { 1 }).map(|signal| signal as i32);
            }
            Kind::Ptrace => fields.target_pid = argument(1).filter(|pid| *pid as i32 > 0),
            Kind::Mprotect => _ = argument(2).filter(|protection| protection & WRITE_EXEC == WRITE_EXEC)?,
            _ => fields.path = self.path(&["NORMAL", "CREATE", "DELETE", "UNKNOWN"], directory),
        }
        Some(fields)
    }
}

/// Records that are joined; all others are passed over.
const JOINED: &[&str] = &["SYSCALL", "EXECVE", "CWD", "PATH", "PROCTITLE", "SOCKADDR"];
/// Values of SYSCALL that the kernel may write in hexadecimal.
const TEXTS: &[&str] = &["comm", "exe", "key"];
/// Calls whose records may be spread among those of others: as many as there are CPUs, and some.
const PENDING_MAX: usize = 64;
/// Bytes of the records of all of them.
const PENDING_BYTES_MAX: usize = 8 << 20;
/// Bytes of a call's records: the kernel's longest argument list is 128 KiB an argument, in hexadecimal twice that.
const CALL_BYTES_MAX: usize = 4 << 20;
/// Pairs of one record; the kernel cuts a record at 8 KiB.
const PAIRS_MAX: usize = 8_192;
const AT_FDCWD: u32 = -100_i32 as u32;
const O_CREAT: u32 = 0o100;
/// O_WRONLY, O_CREAT and O_TRUNC.
const CREAT_FLAGS: u32 = 0o1101;
const WRITE_EXEC: u32 = 6;
