//! The one table of fields: Falco's names, their types, and what of Weir's columns each is.
//!
//! A name that is not here is a mistake in a rule. A name that is here without a supply is reported when the rule is loaded
//! (`field X is not supplied`): a comparison with it is false, as with any field that an event does not have.
//! Names and types: Falco's reference "Supported Fields for Conditions and Outputs", syscall source.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

use weir_schema::Column;

use crate::error::{Fault, Why, shown};

/// Number of a field: its place in `FIELDS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FieldId(pub u16);

/// A field as a rule names it: `proc.aname[2]` is field `proc.aname` with the index 2.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Field {
    /// Which field.
    pub id: FieldId,
    /// What stands in brackets or behind `evt.arg.`.
    pub argument: Option<Argument>,
}

/// What a field is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Argument {
    /// The n-th.
    Index(u32),
    /// The one of that name.
    Key(String),
}

/// Type of a field's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ty {
    /// `Value::Text`.
    Text,
    /// `Value::Int`.
    Int,
    /// `Value::Bool`.
    Bool,
    /// `Value::Ip`.
    Ip,
}

/// How many values a field has, and what a comparison with them means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Many {
    /// One.
    One,
    /// One of two ends or of several names of the same thing: `=` holds if one is equal, `!=` if none is.
    Same,
    /// Unless an index is given, any of several: every operator holds if it holds for one.
    Any,
    /// Words: one text to most operators, a set to `intersects` and `in`.
    Words,
}

/// Whether a field takes an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Takes {
    Nothing,
    /// A number, or nothing.
    Index,
    /// A name or number; without one it is another field or a mistake.
    Key,
}

/// Where Weir has a field from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Supply {
    /// This column, as it is.
    From(Column),
    /// `event.rs` computes it.
    Made,
    /// Not collected.
    No,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct FieldDef {
    /// Falco's name.
    pub name: &'static str,
    /// Type of its values.
    pub ty: Ty,
    /// How many it has.
    pub many: Many,
    pub(crate) takes: Takes,
    pub(crate) supply: Supply,
}

/// The part of `evt.arg` that Weir's columns hold, by Falco's parameter names.
pub(crate) const ARGUMENTS: &[(&str, Option<Column>)] = &[
    ("name", Some(Column::Path)),
    ("path", Some(Column::Path)),
    ("pathname", Some(Column::Path)),
    ("filename", Some(Column::Path)),
    ("oldpath", Some(Column::Path)),
    ("target", Some(Column::Path)),
    ("newpath", Some(Column::PathTo)),
    ("linkpath", Some(Column::PathTo)),
    ("pid", Some(Column::TargetPid)),
    ("sig", Some(Column::Signal)),
    ("flags", None),
    ("mode", None),
    ("res", None),
];

impl Field {
    /// Finds a field by the name and the bracket of a rule.
    pub(crate) fn find(name: &str, argument: Option<&str>) -> Result<Self, Fault> {
        static NAMES: OnceLock<HashMap<&'static str, u16>> = OnceLock::new();
        let names = NAMES.get_or_init(|| FIELDS.iter().zip(0..).map(|(field, at)| (field.name, at)).collect());
        let written = argument.map_or_else(|| name.to_owned(), |argument| format!("{name}[{argument}]"));
        // `evt.arg.flags` is `evt.arg[flags]`.
        let (base, argument) = match names.get(name) {
            Some(_) => (name, argument),
            None => {
                let dotted = ["evt.arg", "evt.rawarg", "evt.abspath"].into_iter().find_map(|base| {
                    let key = name.strip_prefix(base)?.strip_prefix('.')?;
                    (argument.is_none() && !key.is_empty()).then_some((base, Some(key)))
                });
                dotted.unwrap_or((name, argument))
            }
        };
        let Some(id) = names.get(base).copied() else {
            let what = format!("Falco knows no field {}", shown(&written));
            return Err(Fault::new(Why::UnknownField, what, "correct the name, or set skip-if-unknown-filter: true"));
        };
        let argument = argument.filter(|text| !text.is_empty());
        let number = argument.and_then(|text| text.parse::<u32>().ok());
        let bad =
            |what: &str| Fault::new(Why::UnknownField, format!("the field {} {what}", shown(&written)), "correct the brackets");
        let argument = match (FIELDS[usize::from(id)].takes, argument, number) {
            (Takes::Nothing, None, _) | (Takes::Index, None, _) => None,
            (Takes::Nothing, Some(_), _) => return Err(bad("takes no argument")),
            (Takes::Index | Takes::Key, Some(_), Some(number)) => Some(Argument::Index(number)),
            (Takes::Index, Some(_), None) => return Err(bad("takes a number in brackets")),
            (Takes::Key, Some(key), None) => Some(Argument::Key(key.to_owned())),
            (Takes::Key, None, _) => return Err(bad("needs an argument in brackets")),
        };
        Ok(Self { id: FieldId(id), argument })
    }

    /// A name of Sigma's that nothing supplies: it stands for itself in messages.
    pub(crate) fn unknown(name: &str) -> Self {
        let at = FIELDS.iter().rposition(|field| field.name == UNKNOWN).unwrap_or(FIELDS.len() - 1);
        Self { id: FieldId(at as u16), argument: Some(Argument::Key(name.to_owned())) }
    }

    /// The field of one of our columns, if a row of the table is that column as it is.
    pub(crate) fn of_column(column: Column) -> Option<Self> {
        let at = FIELDS.iter().position(|field| field.supply == Supply::From(column))?;
        Some(Self { id: FieldId(at as u16), argument: None })
    }

    /// Its row of the table.
    pub fn def(&self) -> &'static FieldDef {
        &FIELDS[usize::from(self.id.0)]
    }

    /// How many values it has, its index taken into account.
    pub(crate) fn many(&self) -> Many {
        match (self.def().many, &self.argument) {
            (Many::Any, Some(_)) => Many::One,
            (many, _) => many,
        }
    }

    /// Whether Weir's collector has it.
    pub fn is_supplied(&self) -> bool {
        match (self.def().supply, &self.argument) {
            (Supply::No, _) => false,
            (_, Some(Argument::Key(key))) if self.def().name == "evt.arg" => ARGUMENTS.iter().any(|(name, _)| name == key),
            (_, Some(Argument::Index(_))) if self.def().name == "evt.arg" => false,
            _ => true,
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.def().name;
        match &self.argument {
            None => f.write_str(name),
            Some(Argument::Index(number)) => write!(f, "{name}[{number}]"),
            Some(Argument::Key(key)) if name == UNKNOWN => f.write_str(key),
            Some(Argument::Key(key)) if name == "evt.arg" => write!(f, "{name}.{key}"),
            Some(Argument::Key(key)) => write!(f, "{name}[{key}]"),
        }
    }
}

/// The row for names that nothing supplies.
const UNKNOWN: &str = "sigma.field";

const fn field(name: &'static str, ty: Ty, many: Many, takes: Takes, supply: Supply) -> FieldDef {
    FieldDef { name, ty, many, takes, supply }
}

macro_rules! table {
    ($($name:literal $ty:ident $many:ident $takes:ident $supply:ident $(($column:ident))?,)*) => {
        /// Every field of Falco's syscall source that rules may name.
        pub const FIELDS: &[FieldDef] =
            &[$(field($name, Ty::$ty, Many::$many, Takes::$takes, Supply::$supply $((Column::$column))?),)*];
    };
}

table! {
    // evt: what happened.
    "evt.num" Int One Nothing Made,
    "evt.time" Text One Nothing Made,
    "evt.time.s" Text One Nothing Made,
    "evt.time.iso8601" Text One Nothing Made,
    "evt.datetime" Text One Nothing Made,
    "evt.datetime.s" Text One Nothing Made,
    "evt.rawtime" Int One Nothing From(Time),
    "evt.rawtime.s" Int One Nothing Made,
    "evt.rawtime.ns" Int One Nothing Made,
    "evt.reltime" Int One Nothing No,
    "evt.reltime.s" Int One Nothing No,
    "evt.reltime.ns" Int One Nothing No,
    "evt.latency" Int One Nothing No,
    "evt.latency.s" Int One Nothing No,
    "evt.latency.ns" Int One Nothing No,
    "evt.deltatime" Int One Nothing No,
    "evt.pluginname" Text One Nothing No,
    "evt.plugininfo" Text One Nothing No,
    "evt.source" Text One Nothing Made,
    "evt.is_async" Bool One Nothing Made,
    "evt.asynctype" Text One Nothing No,
    "evt.hostname" Text One Nothing From(Host),
    "evt.dir" Text One Nothing Made,
    "evt.type" Text Same Nothing Made,
    "evt.syscall.type" Text Same Nothing Made,
    "evt.type.is" Int One Key No,
    "evt.category" Text One Nothing Made,
    "evt.cpu" Int One Nothing No,
    "evt.args" Text One Nothing No,
    "evt.arg" Text One Key Made,
    "evt.rawarg" Text One Key No,
    "evt.info" Text One Nothing No,
    "evt.buffer" Text One Nothing No,
    "evt.buflen" Int One Nothing No,
    "evt.res" Text One Nothing Made,
    "evt.rawres" Int One Nothing Made,
    "evt.failed" Bool One Nothing Made,
    "evt.is_io" Bool One Nothing No,
    "evt.is_io_read" Bool One Nothing No,
    "evt.is_io_write" Bool One Nothing No,
    "evt.io_dir" Text One Nothing No,
    "evt.is_wait" Bool One Nothing No,
    "evt.wait_latency" Int One Nothing No,
    "evt.is_syslog" Bool One Nothing No,
    "evt.count" Int One Nothing Made,
    "evt.count.error" Int One Nothing Made,
    "evt.abspath" Text One Key No,
    "evt.is_open_read" Bool One Nothing Made,
    "evt.is_open_write" Bool One Nothing Made,
    "evt.is_open_exec" Bool One Nothing Made,
    "evt.is_open_create" Bool One Nothing Made,
    // proc and thread: who did it. Falco's proc.cmdline is the task name and the arguments behind argv[0].
    "proc.exe" Text One Nothing Made,
    "proc.pexe" Text One Nothing From(ParentExe),
    "proc.aexe" Text Any Index Made,
    "proc.exepath" Text One Nothing From(Exe),
    "proc.pexepath" Text One Nothing From(ParentExe),
    "proc.aexepath" Text Any Index Made,
    "proc.name" Text One Nothing From(Comm),
    "proc.pname" Text One Nothing Made,
    "proc.aname" Text Any Index Made,
    "proc.args" Text Words Nothing Made,
    "proc.aargs" Text One Index No,
    "proc.cmdline" Text One Nothing Made,
    "proc.pcmdline" Text One Nothing Made,
    "proc.acmdline" Text Any Index No,
    "proc.cmdnargs" Int One Nothing Made,
    "proc.cmdlenargs" Int One Nothing Made,
    "proc.exeline" Text One Nothing From(Cmdline),
    "proc.env" Text One Index No,
    "proc.aenv" Text Any Index No,
    "proc.cwd" Text One Nothing Made,
    "proc.loginshellid" Int One Nothing No,
    "proc.tty" Int One Nothing Made,
    "proc.pid" Int One Nothing From(Pid),
    "proc.ppid" Int One Nothing From(Ppid),
    "proc.apid" Int Any Index No,
    "proc.vpid" Int One Nothing Made,
    "proc.pvpid" Int One Nothing No,
    "proc.sid" Int One Nothing From(SessionId),
    "proc.sname" Text One Nothing No,
    "proc.sid.exe" Text One Nothing No,
    "proc.sid.exepath" Text One Nothing No,
    "proc.vpgid" Int One Nothing No,
    "proc.vpgid.name" Text One Nothing No,
    "proc.vpgid.exe" Text One Nothing No,
    "proc.vpgid.exepath" Text One Nothing No,
    "proc.pgid" Int One Nothing No,
    "proc.pgid.name" Text One Nothing No,
    "proc.pgid.exe" Text One Nothing No,
    "proc.pgid.exepath" Text One Nothing No,
    "proc.is_sid_leader" Bool One Nothing Made,
    "proc.is_vpgid_leader" Bool One Nothing No,
    "proc.is_pgid_leader" Bool One Nothing No,
    "proc.duration" Int One Nothing No,
    "proc.ppid.duration" Int One Nothing No,
    "proc.pid.ts" Int One Nothing No,
    "proc.ppid.ts" Int One Nothing No,
    "proc.is_exe_writable" Bool One Nothing No,
    "proc.is_exe_upper_layer" Bool One Nothing No,
    "proc.is_exe_lower_layer" Bool One Nothing No,
    "proc.is_exe_from_memfd" Bool One Nothing No,
    "proc.exe_ino" Int One Nothing No,
    "proc.exe_ino.ctime" Int One Nothing No,
    "proc.exe_ino.mtime" Int One Nothing No,
    "proc.exe_ino.ctime_duration_proc_start" Int One Nothing No,
    "proc.exe_ino.ctime_duration_pidns_start" Int One Nothing No,
    "proc.pidns_init_start_ts" Int One Nothing No,
    "proc.is_container_healthcheck" Bool One Nothing No,
    "proc.is_container_liveness_probe" Bool One Nothing No,
    "proc.is_container_readiness_probe" Bool One Nothing No,
    "proc.fdopencount" Int One Nothing No,
    "proc.fdlimit" Int One Nothing No,
    "proc.fdusage" Int One Nothing No,
    "proc.vmsize" Int One Nothing No,
    "proc.vmrss" Int One Nothing No,
    "proc.vmswap" Int One Nothing No,
    "proc.nthreads" Int One Nothing No,
    "proc.nchilds" Int One Nothing No,
    "proc.stdin.type" Text One Nothing No,
    "proc.stdin.name" Text One Nothing No,
    "proc.stdout.type" Text One Nothing No,
    "proc.stdout.name" Text One Nothing No,
    "proc.stderr.type" Text One Nothing No,
    "proc.stderr.name" Text One Nothing No,
    "thread.exectime" Int One Nothing No,
    "thread.totexectime" Int One Nothing No,
    "thread.cgroups" Text One Nothing From(Cgroup),
    "thread.cgroup" Text One Key No,
    "thread.tid" Int One Nothing From(Tid),
    "thread.vtid" Int One Nothing No,
    "thread.ismain" Bool One Nothing Made,
    "thread.cpu" Int One Nothing No,
    "thread.nametid" Text One Nothing No,
    "thread.cap_permitted" Text One Nothing No,
    "thread.cap_inheritable" Text One Nothing No,
    "thread.cap_effective" Text One Nothing Made,
    // fd: the file or connection it is about. Client is the initiator, server the responder.
    "fd.num" Int One Nothing Made,
    "fd.type" Text One Nothing Made,
    "fd.typechar" Text One Nothing Made,
    "fd.name" Text One Nothing Made,
    "fd.directory" Text One Nothing Made,
    "fd.filename" Text One Nothing Made,
    "fd.nameraw" Text One Nothing Made,
    "fd.containername" Text One Nothing Made,
    "fd.containerdirectory" Text One Nothing Made,
    "fd.ip" Ip Same Nothing Made,
    "fd.cip" Ip One Nothing Made,
    "fd.sip" Ip One Nothing Made,
    "fd.lip" Ip One Nothing Made,
    "fd.rip" Ip One Nothing Made,
    "fd.port" Int Same Nothing Made,
    "fd.cport" Int One Nothing From(SrcPort),
    "fd.sport" Int One Nothing From(DstPort),
    "fd.lport" Int One Nothing Made,
    "fd.rport" Int One Nothing Made,
    "fd.net" Ip Same Nothing Made,
    "fd.cnet" Ip One Nothing Made,
    "fd.snet" Ip One Nothing Made,
    "fd.lnet" Ip One Nothing Made,
    "fd.rnet" Ip One Nothing Made,
    "fd.l4proto" Text One Nothing From(Proto),
    "fd.lproto" Text One Nothing No,
    "fd.cproto" Text One Nothing No,
    "fd.sproto" Text One Nothing No,
    "fd.rproto" Text One Nothing No,
    "fd.sockfamily" Text One Nothing Made,
    "fd.is_server" Bool One Nothing Made,
    "fd.uid" Text One Nothing No,
    "fd.proto" Text One Nothing No,
    "fd.cip.name" Text One Nothing No,
    "fd.sip.name" Text One Nothing No,
    "fd.lip.name" Text One Nothing No,
    "fd.rip.name" Text One Nothing No,
    "fd.connected" Bool One Nothing Made,
    "fd.name_changed" Bool One Nothing Made,
    "fd.dev" Int One Nothing No,
    "fd.dev.major" Int One Nothing No,
    "fd.dev.minor" Int One Nothing No,
    "fd.ino" Int One Nothing No,
    "fd.is_upper_layer" Bool One Nothing No,
    "fd.is_lower_layer" Bool One Nothing No,
    "fd.types" Text Any Index No,
    "fd.is_unix" Bool One Nothing No,
    // fs: the paths of calls that change the file system.
    "fs.path.name" Text One Nothing From(Path),
    "fs.path.nameraw" Text One Nothing From(Path),
    "fs.path.source" Text One Nothing From(Path),
    "fs.path.sourceraw" Text One Nothing From(Path),
    "fs.path.target" Text One Nothing From(PathTo),
    "fs.path.targetraw" Text One Nothing From(PathTo),
    // user and group.
    "user.uid" Int One Nothing From(Uid),
    "user.name" Text One Nothing From(UserName),
    "user.homedir" Text One Nothing No,
    "user.shell" Text One Nothing No,
    "user.loginuid" Int One Nothing Made,
    "user.loginname" Text One Nothing No,
    "group.gid" Int One Nothing No,
    "group.name" Text One Nothing No,
    // container and k8s: where it ran. What runs in no container has the id `host`.
    "container.id" Text One Nothing Made,
    "container.full_id" Text One Nothing From(ContainerId),
    "container.name" Text One Nothing Made,
    "container.image" Text One Nothing From(Image),
    "container.image.id" Text One Nothing No,
    "container.image.repository" Text One Nothing Made,
    "container.image.tag" Text One Nothing Made,
    "container.image.digest" Text One Nothing Made,
    "container.type" Text One Nothing No,
    "container.privileged" Bool One Nothing No,
    "container.mounts" Text One Nothing No,
    "container.mount" Text One Key No,
    "container.mount.source" Text One Key No,
    "container.mount.dest" Text One Key No,
    "container.mount.mode" Text One Key No,
    "container.mount.rdwr" Text One Key No,
    "container.mount.propagation" Text One Key No,
    "container.healthcheck" Text One Nothing No,
    "container.liveness_probe" Text One Nothing No,
    "container.readiness_probe" Text One Nothing No,
    "container.start_ts" Int One Nothing No,
    "container.duration" Int One Nothing No,
    "container.ip" Text One Nothing No,
    "container.cni.json" Text One Nothing No,
    "container.labels" Text One Nothing No,
    "container.label" Text One Key No,
    "container.host_pid" Bool One Nothing No,
    "container.host_network" Bool One Nothing No,
    "container.host_ipc" Bool One Nothing No,
    "k8s.ns.name" Text One Nothing From(Namespace),
    "k8s.pod.name" Text One Nothing From(Pod),
    "k8s.pod.id" Text One Nothing No,
    "k8s.pod.uid" Text One Nothing No,
    "k8s.pod.sandbox_id" Text One Nothing No,
    "k8s.pod.full_sandbox_id" Text One Nothing No,
    "k8s.pod.label" Text One Key No,
    "k8s.pod.labels" Text One Nothing No,
    "k8s.pod.ip" Text One Nothing No,
    "k8s.pod.cni.json" Text One Nothing No,
    "k8s.deployment.name" Text One Nothing No,
    "k8s.rc.name" Text One Nothing No,
    "k8s.rs.name" Text One Nothing No,
    "k8s.svc.name" Text One Nothing No,
    // Older and other names that rule files still hold.
    "syslog.message" Text One Nothing No,
    "syslog.severity" Int One Nothing No,
    "fdlist.nums" Text One Nothing No,
    "fdlist.names" Text One Nothing No,
    // What Weir's events hold beside Falco's fields, and what Sigma rules ask for.
    "weir.kind" Text One Nothing From(Kind),
    "weir.app" Text One Nothing From(App),
    "weir.workload" Text One Nothing From(Workload),
    "weir.args" Text Any Nothing Made,
    "weir.arg" Text Any Index Made,
    "weir.parent_cmdline" Text One Nothing From(ParentCmdline),
    "weir.cwd" Text One Nothing From(Cwd),
    "weir.tty" Text One Nothing From(Tty),
    "weir.login_uid" Int One Nothing From(LoginUid),
    "weir.result" Int One Nothing From(Result),
    "weir.flags" Int One Nothing From(Flags),
    "weir.mode" Int One Nothing From(Mode),
    "weir.src_ip" Text One Nothing From(SrcIp),
    "weir.dst_ip" Text One Nothing From(DstIp),
    "weir.direction" Text One Nothing From(Direction),
    "weir.bytes_sent" Int One Nothing From(BytesSent),
    "weir.bytes_received" Int One Nothing From(BytesReceived),
    "weir.exit_code" Int One Nothing From(ExitCode),
    "weir.signal" Int One Nothing From(Signal),
    "weir.target_pid" Int One Nothing From(TargetPid),
    "weir.dns_name" Text One Nothing From(DnsName),
    "weir.dns_answers" Text One Nothing From(DnsAnswers),
    "weir.detail" Text One Key Made,
    "weir.success" Text One Nothing Made,
    "weir.initiated" Text One Nothing Made,
    "weir.target" Text One Nothing Made,
    "weir.audit_type" Text Any Nothing Made,
    "weir.text" Text Any Nothing Made,
    // A name that Sigma rules use and nothing supplies.
    "sigma.field" Text One Key No,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_once_and_are_found() {
        for (at, def) in FIELDS.iter().enumerate() {
            let argument = (def.takes == Takes::Key).then_some("1");
            assert_eq!(Field::find(def.name, argument).unwrap().id, FieldId(at as u16), "{}", def.name);
        }
    }

    #[test]
    fn arguments_are_checked() {
        let show = |name: &str, argument: Option<&str>| Field::find(name, argument).map(|field| field.to_string());
        assert_eq!(show("proc.aname", Some("2")).as_deref(), Ok("proc.aname[2]"));
        assert_eq!(show("evt.arg", Some("flags")).as_deref(), Ok("evt.arg.flags"));
        assert_eq!(show("evt.arg.flags", None).as_deref(), Ok("evt.arg.flags"));
        assert_eq!(show("fd.types", Some("")).as_deref(), Ok("fd.types"));
        for (name, argument) in [("proc.name", Some("1")), ("proc.aname", Some("x")), ("evt.arg", None), ("proc.nobody", None)] {
            assert_eq!(show(name, argument).map_err(|fault| fault.why), Err(Why::UnknownField), "{name}");
        }
    }

    #[test]
    fn what_is_not_collected_is_known_by_name() {
        let supplied = |name: &str| Field::find(name, None).unwrap().is_supplied();
        assert!(supplied("proc.name") && supplied("evt.arg.flags") && supplied("container.id"));
        assert!(!supplied("container.privileged") && !supplied("evt.arg.request"));
    }
}
