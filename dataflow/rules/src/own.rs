//! The computed fields that Falco does not have: what Sigma's log sources ask of an event of ours.
//!
//! An event stands for several records of Linux's audit log: `weir.audit_type` tells which, and the words of an exec are the
//! `a0`, `a1`, … of its EXECVE record. `weir.text` is the whole event as a keyword search sees it.

use weir_schema::Kind;

use crate::event::EventFields;
use crate::fields::Argument;
use crate::names::calls;
use crate::value::Value;

/// Record types of the audit log that our events stand for.
pub(crate) const AUDIT_TYPES: &[&str] = &["SYSCALL", "EXECVE", "PROCTITLE", "PATH", "CWD", "SOCKADDR"];

impl EventFields<'_> {
    pub(crate) fn own(&self, name: &str, argument: Option<&Argument>) -> Option<Value<'_>> {
        let fields = self.fields();
        let kind = self.event.kind;
        Some(match name {
            "weir.args" => Value::Many(self.args()?.iter().map(|word| Value::text(word.as_str())).collect()),
            "weir.arg" => match argument {
                Some(Argument::Index(at)) => Value::text(self.args()?.get(*at as usize)?.as_str()),
                _ => Value::Many(self.args()?.iter().map(|word| Value::text(word.as_str())).collect()),
            },
            "weir.detail" => match argument? {
                Argument::Key(key) => Value::text(self.told(key)?.to_string()),
                Argument::Index(number) => Value::text(self.told(&number.to_string())?.to_string()),
            },
            "weir.success" => Value::text(if fields.result? == 0 { "yes" } else { "no" }),
            // A datagram that is sent was begun here, whatever the flow's direction says.
            "weir.initiated" => match (kind, fields.direction.as_deref()) {
                (Kind::Connect | Kind::Send, _) | (_, Some("out")) => Value::text("true"),
                (Kind::Accept, _) | (_, Some("in")) => Value::text("false"),
                _ => return None,
            },
            "weir.target" => match kind {
                Kind::Rename | Kind::Link | Kind::Symlink => Value::text(fields.path_to.as_deref()?),
                _ => Value::text(fields.path.as_deref()?),
            },
            "weir.audit_type" => Value::Many(self.audit_types().into_iter().map(Value::text).collect()),
            "weir.text" => Value::Many(self.texts().into_iter().flatten().map(Value::text).collect()),
            _ => return None,
        })
    }

    fn audit_types(&self) -> Vec<&'static str> {
        let kind = self.event.kind;
        if matches!(kind, Kind::ContainerStart | Kind::Exit | Kind::Signal | Kind::Dns) || calls(kind).is_empty() {
            return Vec::new();
        }
        let fields = self.fields();
        let mut types = vec!["SYSCALL"];
        if kind == Kind::Exec {
            types.extend(["EXECVE", "PROCTITLE"]);
        }
        if kind == Kind::Exec || fields.path.is_some() {
            types.extend(["PATH", "CWD"]);
        }
        if fields.dst_ip.is_some() {
            types.push("SOCKADDR");
        }
        types
    }

    fn texts(&self) -> [Option<&str>; 13] {
        let fields = self.fields();
        let process = self.process();
        [
            process.and_then(|process| process.cmdline.as_deref()),
            process.and_then(|process| process.exe.as_deref()),
            process.and_then(|process| process.comm.as_deref()),
            process.and_then(|process| process.cwd.as_deref()),
            process.and_then(|process| process.user_name.as_deref()),
            process.and_then(|process| process.parent_exe.as_deref()),
            process.and_then(|process| process.parent_cmdline.as_deref()),
            fields.path.as_deref(),
            fields.path_to.as_deref(),
            fields.dst_ip.as_deref(),
            fields.dns_name.as_deref(),
            fields.dns_answers.as_deref(),
            fields.detail.as_deref(),
        ]
    }
}
