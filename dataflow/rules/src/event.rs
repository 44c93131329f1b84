//! An event of ours, seen through Falco's fields.
//!
//! Where our collector cannot know what Falco's does, this file says what stands for it: a kind of event for a family of
//! system calls, the base name of an executable for a task name of an ancestor, 3 for the descriptor of a successful open.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::IpAddr;

use serde_json::{Map, Value as Json};
use weir_schema::{Cell, Column, Container, Event, Fields, Kind, Process, write_time};

use crate::fields::{ARGUMENTS, Argument, Field, Supply, Ty};
use crate::names::{
    ACCESS, CREATE, DIRECTORY, READ_WRITE, WRITE_ONLY, calls, capabilities, category, clone_flags, errno, open_flags,
};
use crate::text::basename;
use crate::value::{FieldSource, Value};

/// An event with its host. JSON columns are parsed once, when first asked for.
#[derive(Debug)]
pub struct EventFields<'a> {
    pub(crate) event: &'a Event,
    host: &'a str,
    args: OnceCell<Option<Vec<String>>>,
    ancestors: OnceCell<Option<Vec<String>>>,
    detail: OnceCell<Map<String, Json>>,
}

impl<'a> EventFields<'a> {
    /// Looks at `event` of the host called `host`.
    pub fn new(event: &'a Event, host: &'a str) -> Self {
        Self { event, host, args: OnceCell::new(), ancestors: OnceCell::new(), detail: OnceCell::new() }
    }

    pub(crate) fn process(&self) -> Option<&'a Process> {
        self.event.process.as_deref()
    }

    fn container(&self) -> Option<&'a Container> {
        self.event.container.as_deref().filter(|container| container.container_id.is_some())
    }

    pub(crate) fn fields(&self) -> &'a Fields {
        &self.event.fields
    }

    /// argv; without the column, the words of the command line.
    pub(crate) fn args(&self) -> Option<&[String]> {
        let parsed = self.args.get_or_init(|| {
            let process = self.process()?;
            let parsed = process.args.as_deref().and_then(|text| serde_json::from_str(text).ok());
            parsed.or_else(|| Some(process.cmdline.as_deref()?.split_whitespace().map(str::to_owned).collect()))
        });
        parsed.as_deref()
    }

    /// Executables from the parent upwards.
    fn ancestors(&self) -> Option<&[String]> {
        let parsed = self.ancestors.get_or_init(|| {
            let process = self.process()?;
            let parsed = process.ancestors.as_deref().and_then(|text| serde_json::from_str(text).ok());
            parsed.or_else(|| Some(vec![process.parent_exe.as_deref()?.to_owned()]))
        });
        parsed.as_deref()
    }

    pub(crate) fn detail(&self) -> &Map<String, Json> {
        self.detail.get_or_init(|| {
            let parsed = self.fields().detail.as_deref().and_then(|text| serde_json::from_str(text).ok());
            parsed.unwrap_or_default()
        })
    }

    pub(crate) fn told(&self, key: &str) -> Option<Value<'_>> {
        match self.detail().get(key)? {
            Json::String(text) => Some(Value::text(text.as_str())),
            Json::Number(number) => number.as_i64().map(Value::Int),
            Json::Bool(truth) => Some(Value::Bool(*truth)),
            _ => None,
        }
    }

    /// A column as it is stored.
    fn column(&self, column: Column) -> Option<Value<'_>> {
        let mut value = None;
        let mut found = |known: Column, cell: Cell<'_>| {
            if known == column {
                value = Some(match cell {
                    Cell::Text(text) => Value::Text(Cow::Owned(text.to_string())),
                    Cell::Int(int) => Value::Int(int),
                });
            }
        };
        let process = self.process();
        match column {
            Column::Time => return Some(Value::Int(self.event.time)),
            Column::Kind => return Some(Value::text(self.event.kind.as_str())),
            Column::Host => return Some(Value::text(self.host)),
            Column::Pid => return process.map(|process| Value::Int(process.pid.into())),
            // The texts that nearly every rule asks for are borrowed.
            Column::Comm => return process?.comm.as_deref().map(Value::text),
            Column::Exe => return process?.exe.as_deref().map(Value::text),
            Column::Path => return self.fields().path.as_deref().map(Value::text),
            _ => {}
        }
        match column.home() {
            weir_schema::Home::Process => process?.each(&mut found),
            weir_schema::Home::Container => self.event.container.as_deref()?.each(&mut found),
            weir_schema::Home::Event => self.fields().each(&mut found),
            weir_schema::Home::Host | weir_schema::Home::Key => {}
        }
        value
    }

    fn made(&self, name: &str, argument: Option<&Argument>) -> Option<Value<'_>> {
        match name.split_once('.')?.0 {
            "evt" => self.evt(name, argument),
            "proc" | "thread" => self.proc(name, argument),
            "fd" => self.fd(name),
            "weir" => self.own(name, argument),
            "user" => Some(Value::Int(match self.process()?.login_uid? {
                u32::MAX => -1,
                uid => uid.into(),
            })),
            _ => self.place(name),
        }
    }

    fn evt(&self, name: &str, argument: Option<&Argument>) -> Option<Value<'_>> {
        let Event { kind, time, .. } = self.event;
        let result = self.fields().result;
        let flags = self.fields().flags.filter(|_| *kind == Kind::Open);
        let access = flags.map(|flags| flags & ACCESS);
        Some(match name {
            // Falco counts events from 1; rules only ask whether it is 0, which it never is.
            "evt.num" | "evt.count" => Value::Int(1),
            "evt.count.error" => Value::Int(i64::from(result.is_some_and(|result| result != 0))),
            "evt.rawtime.s" => Value::Int(time.div_euclid(NS_PER_S)),
            "evt.rawtime.ns" => Value::Int(time.rem_euclid(NS_PER_S)),
            "evt.source" => Value::text("syscall"),
            "evt.is_async" => Value::Bool(false),
            // We see calls when they return.
            "evt.dir" => Value::text("<"),
            "evt.type" | "evt.syscall.type" => match calls(*kind) {
                [] => return None,
                [one] => Value::text(*one),
                many => Value::Many(many.iter().map(|call| Value::text(*call)).collect()),
            },
            "evt.category" => Value::text(category(*kind)),
            "evt.res" => Value::text(errno(result?)),
            "evt.rawres" => Value::Int(-i64::from(result?.abs())),
            "evt.failed" => Value::Bool(result? != 0),
            "evt.is_open_read" => Value::Bool(access.is_some_and(|access| access != WRITE_ONLY)),
            "evt.is_open_write" => Value::Bool(access.is_some_and(|access| access == WRITE_ONLY || access == READ_WRITE)),
            "evt.is_open_create" => Value::Bool(flags.is_some_and(|flags| flags & CREATE != 0)),
            "evt.is_open_exec" => {
                let created = flags.is_some_and(|flags| flags & CREATE != 0);
                Value::Bool(created && self.fields().mode.is_some_and(|mode| mode & 0o111 != 0))
            }
            "evt.arg" => return self.argument(argument?),
            _ => {
                let mut text = String::new();
                write_time(&mut text, *time);
                Value::text(text)
            }
        })
    }

    /// A parameter of the call, as text.
    fn argument(&self, argument: &Argument) -> Option<Value<'_>> {
        let Argument::Key(key) = argument else { return None };
        let kind = self.event.kind;
        if let Some(told) = self.told(key) {
            return Some(Value::text(told.to_string()));
        }
        if let Some((_, Some(column))) = ARGUMENTS.iter().find(|(name, _)| name == key) {
            return self.column(*column).map(|value| Value::text(value.to_string()));
        }
        match key.as_str() {
            "res" => self.evt("evt.rawres", None).map(|value| Value::text(value.to_string())),
            "mode" => self.fields().mode.map(|mode| Value::text(format!("{mode:o}"))),
            "flags" if kind == Kind::Exec => {
                let names = [
                    ("exe_writable", "EXE_WRITABLE"),
                    ("exe_upper_layer", "EXE_UPPER_LAYER"),
                    ("exe_from_memfd", "EXE_FROM_MEMFD"),
                ];
                let held = names.iter().filter(|(key, _)| self.told(key) == Some(Value::Bool(true)));
                Some(Value::text(held.map(|(_, name)| *name).collect::<Vec<_>>().join("|")))
            }
            "flags" if kind == Kind::Open => self.fields().flags.map(|flags| Value::text(open_flags(flags))),
            "flags" if matches!(kind, Kind::Fork | Kind::Unshare | Kind::Setns) => {
                self.fields().flags.map(|flags| Value::text(clone_flags(flags)))
            }
            "flags" => self.fields().flags.map(|flags| Value::text(flags.to_string())),
            _ => None,
        }
    }

    fn proc(&self, name: &str, argument: Option<&Argument>) -> Option<Value<'_>> {
        let process = self.process()?;
        let rest = || self.args().map(|args| args.get(1..).unwrap_or_default());
        let nth = |change: fn(&str) -> &str| {
            let above = self.ancestors();
            match argument {
                None => Some(Value::Many(above?.iter().map(|exe| Value::text(change(exe))).collect())),
                Some(Argument::Index(number)) => {
                    let at = (*number as usize).checked_sub(1)?;
                    above?.get(at).map(|exe| Value::text(change(exe)))
                }
                Some(Argument::Key(_)) => None,
            }
        };
        Some(match name {
            "proc.exe" => match self.args().and_then(|args| args.first()) {
                Some(first) => Value::text(first.as_str()),
                None => Value::text(process.exe.as_deref()?),
            },
            "proc.pname" => Value::text(basename(process.parent_exe.as_deref()?)),
            "proc.aname" if argument == Some(&Argument::Index(0)) => Value::text(process.comm.as_deref()?),
            "proc.aname" => return nth(basename),
            "proc.aexe" | "proc.aexepath" if argument == Some(&Argument::Index(0)) => Value::text(process.exe.as_deref()?),
            "proc.aexe" | "proc.aexepath" => return nth(|exe| exe),
            "proc.args" => Value::Many(rest()?.iter().map(|word| Value::text(word.as_str())).collect()),
            "proc.cmdnargs" => Value::Int(rest()?.len() as i64),
            "proc.cmdlenargs" => Value::Int(rest()?.iter().map(String::len).sum::<usize>() as i64),
            "proc.cmdline" => {
                let name = process.comm.as_deref().or_else(|| process.exe.as_deref().map(basename))?;
                let mut line = name.to_owned();
                for word in rest().unwrap_or_default() {
                    line.push(' ');
                    line.push_str(word);
                }
                Value::text(line)
            }
            "proc.pcmdline" => {
                let line = process.parent_cmdline.as_deref()?;
                let (first, rest) = line.split_at(line.find(' ').unwrap_or(line.len()));
                Value::text(format!("{}{rest}", basename(first)))
            }
            "proc.cwd" => match process.cwd.as_deref()? {
                cwd if cwd.ends_with('/') => Value::text(cwd),
                cwd => Value::text(format!("{cwd}/")),
            },
            "proc.tty" => Value::Int(process.tty.as_deref().map_or(0, tty)),
            "proc.vpid" => match self.told("ns_pid") {
                Some(pid) => pid,
                None if self.event.kind == Kind::Exec || self.container().is_none() => Value::Int(process.pid.into()),
                None => return None,
            },
            "proc.is_sid_leader" => Value::Bool(process.session_id? == process.pid),
            "thread.ismain" => Value::Bool(self.fields().tid? == process.pid),
            "thread.cap_effective" => Value::text(capabilities(process.capabilities.as_deref()?)?),
            _ => return None,
        })
    }

    fn fd(&self, name: &str) -> Option<Value<'_>> {
        let fields = self.fields();
        let kind = self.event.kind;
        let family = [&fields.dst_ip, &fields.src_ip].into_iter().flatten().find_map(|ip| ip.parse::<IpAddr>().ok());
        if let Some(family) = family {
            return self.socket(name, family);
        }
        if !matches!(kind, Kind::Open | Kind::Write | Kind::Truncate) {
            return None;
        }
        let path = fields.path.as_deref()?;
        let is_directory = fields.flags.is_some_and(|flags| flags & DIRECTORY != 0);
        let failed = fields.result.is_some_and(|result| result != 0);
        Some(match name {
            "fd.num" if failed => Value::Int(-1),
            "fd.num" => self.told("fd").unwrap_or(Value::Int(LEAST_OPENED_FD)),
            "fd.type" => Value::text(if is_directory { "directory" } else { "file" }),
            "fd.typechar" => Value::text(if is_directory { "d" } else { "f" }),
            "fd.name" | "fd.nameraw" => Value::text(path),
            "fd.directory" => match path.rsplit_once('/')?.0 {
                "" => Value::text("/"),
                directory => Value::text(directory),
            },
            "fd.filename" => Value::text(basename(path)),
            "fd.containername" => Value::text(format!("{}:{path}", self.place("container.id")?)),
            "fd.containerdirectory" => Value::text(format!("{}:{}", self.place("container.id")?, path.rsplit_once('/')?.0)),
            _ => return None,
        })
    }

    fn socket(&self, name: &str, family: IpAddr) -> Option<Value<'_>> {
        let fields = self.fields();
        let ip = |text: &Option<weir_schema::Text>| text.as_deref().and_then(|text| text.parse().ok()).map(Value::Ip);
        let port = |port: Option<u16>| port.map(|port| Value::Int(port.into()));
        let (client, server) = (ip(&fields.src_ip), ip(&fields.dst_ip));
        let out = fields.direction.as_deref().map(|direction| direction == "out");
        let v6 = family.is_ipv6();
        Some(match name {
            "fd.num" => self.told("fd")?,
            "fd.type" => Value::text(if v6 { "ipv6" } else { "ipv4" }),
            "fd.typechar" => Value::text(if v6 { "6" } else { "4" }),
            "fd.sockfamily" => Value::text("ip"),
            "fd.name" => {
                let end =
                    |ip: &Option<weir_schema::Text>, port: Option<u16>| Some(format!("{}:{}", ip.as_deref()?, port.unwrap_or(0)));
                let server = end(&fields.dst_ip, fields.dst_port)?;
                Value::text(match end(&fields.src_ip, fields.src_port) {
                    Some(client) => format!("{client}->{server}"),
                    None => format!(":::{server}"),
                })
            }
            "fd.cip" | "fd.cnet" => client?,
            "fd.sip" | "fd.snet" => server?,
            "fd.lip" | "fd.lnet" => {
                if out? {
                    client?
                } else {
                    server?
                }
            }
            "fd.rip" | "fd.rnet" => {
                if out? {
                    server?
                } else {
                    client?
                }
            }
            "fd.ip" | "fd.net" => Value::Many([client, server].into_iter().flatten().collect()),
            "fd.lport" => port(if out? { fields.src_port } else { fields.dst_port })?,
            "fd.rport" => port(if out? { fields.dst_port } else { fields.src_port })?,
            "fd.port" => Value::Many([port(fields.src_port), port(fields.dst_port)].into_iter().flatten().collect()),
            "fd.is_server" => Value::Bool(!out?),
            // A send is told for datagrams to an address that the socket was not connected to.
            "fd.connected" => Value::Bool(self.event.kind != Kind::Send && fields.result.is_none_or(|result| result == 0)),
            "fd.name_changed" => Value::Bool(matches!(self.event.kind, Kind::Send | Kind::Connect)),
            _ => return None,
        })
    }

    fn place(&self, name: &str) -> Option<Value<'_>> {
        let container = self.container();
        let image = || container.and_then(|container| container.image.as_deref()).map(Image::parse);
        Some(match (name, container) {
            ("container.id" | "container.name", None) => Value::text("host"),
            ("container.id", Some(container)) => {
                let id = container.container_id.as_deref()?;
                Value::text(id.get(..CONTAINER_ID_CHARS).unwrap_or(id))
            }
            ("container.name", Some(container)) => Value::text(container.container_name.as_deref()?),
            ("container.image.repository", _) => Value::text(image()?.repository),
            ("container.image.tag", _) => Value::text(image()?.tag?),
            ("container.image.digest", _) => Value::text(image()?.digest?),
            _ => return None,
        })
    }
}

impl FieldSource for EventFields<'_> {
    fn get(&self, field: &Field) -> Option<Value<'_>> {
        let def = field.def();
        let value = match def.supply {
            Supply::From(column) => self.column(column),
            Supply::Made => self.made(def.name, field.argument.as_ref()),
            Supply::No => None,
        }?;
        let fits = match &value {
            Value::Text(_) => def.ty == Ty::Text,
            Value::Int(_) => def.ty == Ty::Int,
            Value::Bool(_) => def.ty == Ty::Bool,
            Value::Ip(_) => def.ty == Ty::Ip,
            Value::Many(_) => true,
        };
        fits.then_some(value)
    }
}

/// An image reference taken apart: `registry/name:tag@sha256:digest`.
struct Image<'a> {
    repository: &'a str,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
}

impl<'a> Image<'a> {
    fn parse(text: &'a str) -> Self {
        let (rest, digest) = text.split_once('@').map_or((text, None), |(rest, digest)| (rest, Some(digest)));
        // A colon before a slash belongs to the registry's port.
        match rest.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
            Some((repository, tag)) => Self { repository, tag: Some(tag), digest },
            None => Self { repository: rest, tag: None, digest },
        }
    }
}

/// The kernel's number of a terminal: `pts/3` is major 136, minor 3.
fn tty(name: &str) -> i64 {
    let name = name.strip_prefix("/dev/").unwrap_or(name);
    let number = |text: &str| text.parse::<i64>().ok();
    let known = number(name).or_else(|| Some((136 << 8) + number(name.strip_prefix("pts/")?)?));
    // Any other terminal is one: rules only ask whether it is 0.
    known.or_else(|| Some((4 << 8) + number(name.strip_prefix("tty")?)?)).unwrap_or_else(|| i64::from(!name.is_empty()))
}

const NS_PER_S: i64 = 1_000_000_000;
/// Falco's short form of a container id.
const CONTAINER_ID_CHARS: usize = 12;
/// 0, 1 and 2 are the standard streams.
const LEAST_OPENED_FD: i64 = 3;
