//! Falco's events: JSON lines with its field names as keys, or its alerts with `output_fields`.
//!
//! An event is told when its call returns (`evt.dir` `<`, or absent as in newer versions); entries are passed over, and so is every call that no kind
//! stands for (`read`, `fstat` …). `proc.cmdline` lacks argv[0], so `cmdline` is `proc.exeline`, else `proc.exe` and `proc.args`. Arguments
//! are joined by blanks in Falco's fields, so `args` is absent. Of an ancestor only the name is known, unless `proc.aexepath[n]` is there.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value};
use weir_schema::{Container, Event, Fields, JsonEvent, Kind, Process, Text, parse_time};

use super::calls::{errno, kind_of};
use super::{Wrong, address, json, object, of_host, text_of, wrong};

/// Takes one line; answers how many records were passed over.
pub(super) fn line(line: &str, out: &mut Vec<JsonEvent>) -> Result<u64, Wrong> {
    let mut keys = object(line)?;
    let mut alert = Map::new();
    if let Some(fields) = keys.remove("output_fields") {
        let Value::Object(fields) = fields else { return wrong("output_fields is no object") };
        alert = std::mem::replace(&mut keys, fields);
    }
    let given = Given { keys, alert };
    let Some(call) = given.text("evt.type").or_else(|| given.text("syscall.type")) else {
        return wrong("it has no evt.type, so nobody knows what happened; add it to the output of the rules");
    };
    let time = given.time()?;
    let entry = given.text("evt.dir").is_some_and(|dir| dir == ">") && call != "procexit";
    let Some(kind) = kind_of(&call).filter(|_| !entry) else { return Ok(1) };
    let arguments = given.text("evt.args").or_else(|| given.text("evt.info")).unwrap_or_default();
    let Some(fields) = given.fields(kind, &call, &arguments) else { return Ok(1) };
    let host = given.text("evt.hostname").or_else(|| given.alert.get("hostname").and_then(text_of));
    let event = Event { time, kind, process: given.process(), container: given.container(), fields };
    out.push(of_host(host.as_deref(), event));
    Ok(0)
}

struct Given {
    keys: Map<String, Value>,
    alert: Map<String, Value>,
}

impl Given {
    fn text(&self, key: &str) -> Option<String> {
        self.keys.get(key).and_then(text_of)
    }

    fn as_text(&self, key: &str) -> Option<Text> {
        self.text(key).map(Text::from)
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.text(key)?.parse().ok()
    }

    /// A number of a user or process; Falco says -1 or the largest number for one that it does not know.
    fn id(&self, key: &str) -> Option<u32> {
        self.number::<u32>(key).filter(|id| *id != u32::MAX)
    }

    fn time(&self) -> Result<i64, Wrong> {
        let read = |text: String| text.parse().ok().or_else(|| parse_time(&text));
        let keys = ["evt.rawtime", "evt.time", "evt.time.iso8601"];
        let found = keys.iter().find_map(|key| self.text(key).and_then(read));
        let found = found.or_else(|| self.alert.get("time").and_then(text_of).and_then(read));
        found.ok_or_else(|| Wrong("it has no time: evt.rawtime, evt.time in nanoseconds, or time in RFC 3339".to_owned()))
    }

    fn process(&self) -> Option<Arc<Process>> {
        let pid = self.id("proc.pid")?;
        let name = |key: &str, path: &str| self.text(path).or_else(|| self.text(key));
        let mut ancestors: Vec<String> = name("proc.pname", "proc.pexepath").into_iter().collect();
        for n in 2..ANCESTORS_MAX {
            let Some(next) = name(&format!("proc.aname[{n}]"), &format!("proc.aexepath[{n}]")) else { break };
            ancestors.push(next);
        }
        let cmdline = self.text("proc.exeline").or_else(|| match (self.text("proc.exe"), self.text("proc.args")) {
            (Some(exe), Some(args)) => Some(format!("{exe} {args}")),
            (Some(exe), None) => Some(exe),
            (None, _) => self.text("proc.cmdline"),
        });
        let cwd = self.text("proc.cwd").map(|cwd| if cwd.len() > 1 { cwd.trim_end_matches('/').to_owned() } else { cwd });
        Some(Arc::new(Process {
            pid,
            ppid: self.id("proc.ppid"),
            exe: self.as_text("proc.exepath").or_else(|| self.as_text("proc.exe").filter(|exe| exe.starts_with('/'))),
            comm: self.as_text("proc.name"),
            cmdline: cmdline.map(Text::from),
            cwd: cwd.map(Text::from),
            uid: self.id("user.uid"),
            user_name: self.as_text("user.name"),
            login_uid: self.id("user.loginuid"),
            tty: self.as_text("proc.tty").filter(|tty| &**tty != "0"),
            session_id: self.id("proc.sid"),
            parent_exe: ancestors.first().map(|parent| parent.as_str().into()),
            parent_cmdline: self.as_text("proc.pcmdline"),
            ancestors: (!ancestors.is_empty()).then(|| Value::from(ancestors).to_string().into()),
            ..Process::default()
        }))
    }

    fn container(&self) -> Option<Arc<Container>> {
        let id = self.as_text("container.id").filter(|id| &**id != "host")?;
        let image = self.text("container.image").or_else(|| {
            let repository = self.text("container.image.repository")?;
            Some(match self.text("container.image.tag") {
                Some(tag) => format!("{repository}:{tag}"),
                None => repository,
            })
        });
        Some(Arc::new(Container {
            container_id: Some(id),
            container_name: self.as_text("container.name"),
            image: image.map(Text::from),
            namespace: self.as_text("k8s.ns.name"),
            pod: self.as_text("k8s.pod.name"),
            ..Container::default()
        }))
    }

    /// The columns of the call itself; none if it is nothing of its own, as the child's side of a fork.
    fn fields(&self, kind: Kind, call: &str, arguments: &str) -> Option<Fields> {
        let argument = |name: &str| {
            let given = self.text(&format!("evt.arg.{name}")).or_else(|| self.text(&format!("evt.arg[{name}]")));
            given.or_else(|| find(arguments, name).map(str::to_owned))
        };
        let number = |name: &str| argument(name).and_then(|text| leading(&text));
        let mut fields = Fields { tid: self.id("thread.tid"), result: self.result(&argument), ..Fields::default() };
        let path = |names: &[&str]| names.iter().find_map(|name| argument(name)).filter(|path| path != "<NA>").map(Text::from);
        let mut detail = Map::new();
        match kind {
            Kind::Exec => fields.path = self.as_text("proc.exepath").or_else(|| path(&["filename", "pathname"])),
            Kind::Exit => {
                let status = number("status").unwrap_or(0);
                fields.exit_code = Some((status >> 8) as i32 & 0xff);
                fields.signal = Some(status as i32 & 0x7f).filter(|signal| *signal != 0);
                fields.result = None;
            }
            Kind::Fork => {
                let child = number("res").or_else(|| self.number("evt.rawres")).filter(|child| *child != 0)?;
                fields.target_pid = u32::try_from(child).ok();
            }
            Kind::Kill => {
                fields.target_pid = number("pid").and_then(|pid| u32::try_from(pid).ok());
                fields.signal = number("sig").and_then(|signal| i32::try_from(signal).ok());
            }
            Kind::Rename | Kind::Link => {
                fields.path = path(&["oldpath", "name"]);
                fields.path_to = path(&["newpath", "linkpath"]);
            }
            Kind::Symlink => (fields.path, fields.path_to) = (path(&["target"]), path(&["linkpath"])),
            // Our collector tells memory that is writable and executable at once, and writes to files.
            Kind::Mprotect => {
                argument("prot").filter(|prot| prot.contains("PROT_WRITE") && prot.contains("PROT_EXEC"))?;
            }
            Kind::Write if self.text("fd.type").is_some_and(|of| of != "file") => return None,
            Kind::Open | Kind::Write | Kind::Truncate => {
                fields.path = self.as_text("fd.name").or_else(|| path(&["name", "path", "filename"]));
                fields.flags = argument("flags").map(|flags| open_flags(&flags));
                fields.mode = argument("mode").and_then(|mode| u32::from_str_radix(mode.trim_start_matches("0o"), 8).ok());
            }
            Kind::Connect | Kind::Accept | Kind::Listen | Kind::Close | Kind::Send => {
                self.ends(kind, arguments, &mut fields);
                // Sockets of the machine itself, and closes of files: no event of ours.
                fields.dst_ip.as_ref()?;
            }
            _ => {
                fields.path = path(&["path", "pathname", "name", "filename", "dir"]).or_else(|| self.as_text("fs.path.name"));
                fields.mode = argument("mode").and_then(|mode| u32::from_str_radix(mode.trim_start_matches("0o"), 8).ok());
            }
        }
        detail.insert("call".into(), call.into());
        for (key, told) in [("fd.num", "fd"), ("proc.vpid", "ns_pid")] {
            if let Some(number) = self.number::<i64>(key).filter(|number| *number >= 0) {
                detail.insert(told.into(), number.into());
            }
        }
        for (key, told) in [("rule", "falco_rule"), ("priority", "falco_priority")] {
            if let Some(value) = self.alert.get(key) {
                detail.insert(told.into(), value.clone());
            }
        }
        fields.detail = json(detail);
        Some(fields)
    }

    fn result(&self, argument: &dyn Fn(&str) -> Option<String>) -> Option<i32> {
        let negative = |text: String| leading(&text).map(|number| i32::try_from(-number.min(0)).unwrap_or(0));
        let told = self.text("evt.res").and_then(|name| errno(&name));
        told.or_else(|| self.text("evt.rawres").and_then(negative)).or_else(|| argument("res").and_then(negative))
    }

    /// Client and server. Without the fields the tuple of the arguments says it.
    fn ends(&self, kind: Kind, arguments: &str, fields: &mut Fields) {
        let tuple = self.text("fd.name").filter(|name| name.contains("->"));
        let tuple = tuple.or_else(|| find(arguments, "tuple").map(str::to_owned)).unwrap_or_default();
        let (from, to) = tuple.split_once("->").map_or((None, None), |(from, to)| (end(from), end(to)));
        let given =
            |ip: &str, port: &str| Some((self.text(ip).as_deref().and_then(address)?, self.number::<u16>(port).unwrap_or(0)));
        let (client, server) = (given("fd.cip", "fd.cport").or(from), given("fd.sip", "fd.sport").or(to));
        (fields.src_ip, fields.src_port) = client.unzip();
        (fields.dst_ip, fields.dst_port) = server.unzip();
        fields.proto = self.as_text("fd.l4proto");
        fields.direction = match kind {
            Kind::Accept | Kind::Listen => Some("in".into()),
            Kind::Connect | Kind::Send => Some("out".into()),
            _ => None,
        };
    }
}

/// `10.0.0.1:80` or `::1:80`.
fn end(text: &str) -> Option<(Text, u16)> {
    let (ip, port) = text.rsplit_once(':')?;
    let ip: IpAddr = ip.parse().ok()?;
    Some((ip.to_canonical().to_string().into(), port.parse().ok()?))
}

/// The value of `name=` in Falco's list of arguments, which ends where the next one begins.
fn find<'a>(arguments: &'a str, name: &str) -> Option<&'a str> {
    let at = arguments.match_indices(name).find(|(at, _)| {
        let before = *at == 0 || arguments.as_bytes()[at - 1] == b' ';
        before && arguments[at + name.len()..].starts_with('=')
    })?;
    let rest = &arguments[at.0 + name.len() + 1..];
    let mut len = 0;
    for word in rest.split(' ') {
        let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if len > 0 && word.split_once('=').is_some_and(|(name, _)| is_name(name)) {
            break;
        }
        len += word.len() + 1;
    }
    let value = rest[..len.min(rest.len())].trim_end_matches(' ');
    (!value.is_empty()).then_some(value)
}

/// `-2(ENOENT)` is -2.
fn leading(text: &str) -> Option<i64> {
    text.split('(').next()?.trim().parse().ok()
}

/// Falco numbers flags in a way of its own: the names count.
fn open_flags(text: &str) -> u32 {
    let names = text.split_once('(').map_or(text, |(_, names)| names.trim_end_matches(')'));
    names.split('|').filter_map(|name| OPEN_FLAGS.iter().find(|(known, _)| *known == name)).fold(0, |all, (_, bit)| all | bit)
}

const OPEN_FLAGS: &[(&str, u32)] = &[
    ("O_WRONLY", 0o1),
    ("O_RDWR", 0o2),
    ("O_CREAT", 0o100),
    ("O_EXCL", 0o200),
    ("O_TRUNC", 0o1000),
    ("O_APPEND", 0o2000),
    ("O_NONBLOCK", 0o4000),
    ("O_DSYNC", 0o10000),
    ("O_DIRECT", 0o40000),
    ("O_LARGEFILE", 0o100_000),
    ("O_DIRECTORY", 0o200_000),
    ("O_CLOEXEC", 0o2_000_000),
    ("O_SYNC", 0o4_010_000),
    ("O_TMPFILE", 0o20_200_000),
];
/// Ancestors that Falco can be asked for.
const ANCESTORS_MAX: u32 = 32;
