//! Log sources of Sigma: which of our events each is, and which of our fields its names are. The one table.
//!
//! A name that the table does not have may be a column of `events`, `detail.KEY` or a field of Falco's; what is none of them
//! is supplied by nothing: a comparison with it is false, and the rule's verdict names it.

use std::fmt;

use weir_schema::{Column, Kind};

use super::pipeline::Pipeline;
use crate::check::Of;
use crate::fields::Field;

/// What a rule says of where its events come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Logsource {
    pub(super) product: Option<String>,
    pub(super) category: Option<String>,
    pub(super) service: Option<String>,
}

impl Logsource {
    /// Whether all that `self` says, `of` says, too.
    fn fits(&self, of: &Self) -> bool {
        let same = |own: &Option<String>, other: &Option<String>| own.is_none() || own == other;
        same(&self.product, &of.product) && same(&self.category, &of.category) && same(&self.service, &of.service)
    }
}

impl fmt::Display for Logsource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [("product", &self.product), ("category", &self.category), ("service", &self.service)];
        let said: Vec<String> = parts.iter().filter_map(|(key, said)| Some(format!("{key} {}", said.as_ref()?))).collect();
        f.write_str(&said.join(", "))
    }
}

/// Whether a log source tells of calls that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failed {
    Told,
    LeftOut,
}

/// One row of the table.
#[derive(Debug)]
struct Row {
    /// `category` or `service`, and its name.
    key: (&'static str, &'static str),
    /// None: every kind.
    kinds: Option<&'static [Kind]>,
    failed: Failed,
    fields: &'static [&'static [(&'static str, &'static str)]],
}

/// Who did it: the same names in every category.
const PROCESS: &[(&str, &str)] = &[
    ("Image", "exe"),
    ("CommandLine", "cmdline"),
    ("CurrentDirectory", "weir.cwd"),
    ("ProcessId", "pid"),
    ("User", "user_name"),
    // Sysmon for Linux writes the user's number here.
    ("LogonId", "uid"),
    ("TerminalSessionId", "session_id"),
    ("ParentImage", "parent_exe"),
    ("ParentCommandLine", "weir.parent_cmdline"),
    ("ParentProcessId", "ppid"),
    ("UtcTime", "time"),
    ("Computer", "host"),
];

const FILE: &[(&str, &str)] = &[("TargetFilename", "weir.target"), ("SourceFilename", "path")];

const NETWORK: &[(&str, &str)] = &[
    ("SourceIp", "weir.src_ip"),
    ("SourcePort", "src_port"),
    ("DestinationIp", "weir.dst_ip"),
    ("DestinationPort", "dst_port"),
    ("Protocol", "proto"),
    ("Initiated", "weir.initiated"),
];

const DNS: &[(&str, &str)] = &[("QueryName", "weir.dns_name"), ("QueryResults", "weir.dns_answers")];

/// Fields of the audit log's records. `a0` and its like are words of the command line, or, beside a system call, registers.
const AUDIT: &[(&str, &str)] = &[
    ("type", "weir.audit_type"),
    ("SYSCALL", "evt.type"),
    ("syscall", "evt.type"),
    ("name", "weir.target"),
    ("exe", "exe"),
    ("comm", "comm"),
    ("proctitle", "cmdline"),
    ("cmdline", "cmdline"),
    ("cwd", "weir.cwd"),
    ("uid", "uid"),
    ("UID", "user_name"),
    ("auid", "weir.login_uid"),
    ("pid", "pid"),
    ("ppid", "ppid"),
    ("ses", "session_id"),
    ("tty", "weir.tty"),
    ("success", "weir.success"),
    ("exit", "evt.rawres"),
];

const TABLE: &[Row] = &[
    Row { key: ("category", "process_creation"), kinds: Some(&[Kind::Exec]), failed: Failed::LeftOut, fields: &[PROCESS] },
    Row {
        key: ("category", "file_event"),
        kinds: Some(&[Kind::Open, Kind::Rename, Kind::Link, Kind::Symlink]),
        failed: Failed::LeftOut,
        fields: &[PROCESS, FILE],
    },
    Row {
        key: ("category", "file_change"),
        kinds: Some(&[Kind::Chmod, Kind::Chown]),
        failed: Failed::LeftOut,
        fields: &[PROCESS, FILE],
    },
    Row { key: ("category", "file_access"), kinds: Some(&[Kind::Open]), failed: Failed::LeftOut, fields: &[PROCESS, FILE] },
    Row { key: ("category", "file_delete"), kinds: Some(&[Kind::Unlink]), failed: Failed::LeftOut, fields: &[PROCESS, FILE] },
    Row { key: ("category", "file_rename"), kinds: Some(&[Kind::Rename]), failed: Failed::LeftOut, fields: &[PROCESS, FILE] },
    // A connection that was refused was wanted all the same.
    Row {
        key: ("category", "network_connection"),
        kinds: Some(&[Kind::Connect, Kind::Accept, Kind::Send]),
        failed: Failed::Told,
        fields: &[PROCESS, NETWORK],
    },
    Row { key: ("category", "dns_query"), kinds: Some(&[Kind::Dns]), failed: Failed::Told, fields: &[PROCESS, DNS] },
    Row { key: ("service", "auditd"), kinds: None, failed: Failed::Told, fields: &[AUDIT] },
    // Every event of ours, by its own columns.
    Row { key: ("service", "weir"), kinds: None, failed: Failed::Told, fields: &[] },
];

/// A log source as a rule's detections see it.
#[derive(Debug)]
pub(super) struct Source<'a> {
    row: Option<&'static Row>,
    own: Vec<&'a super::pipeline::OwnSource>,
    logsource: &'a Logsource,
}

impl<'a> Source<'a> {
    pub(super) fn find(logsource: &'a Logsource, pipeline: &'a Pipeline) -> Self {
        let is = |(key, name): (&str, &str)| match key {
            "category" => logsource.category.as_deref() == Some(name),
            _ => logsource.category.is_none() && logsource.service.as_deref() == Some(name),
        };
        let linux = logsource.product.as_deref().is_none_or(|product| product == "linux");
        let row = TABLE.iter().find(|row| linux && is(row.key));
        // A service below a category is a part of it that we cannot tell apart.
        let row = row.filter(|row| row.key.0 == "service" || logsource.service.is_none());
        let own = pipeline.sources.iter().rev().filter(|own| own.logsource.fits(logsource)).collect();
        Self { row, own, logsource }
    }

    /// Which kinds its events are; `None`: not collected; an empty list: every kind.
    pub(super) fn kinds(&self) -> Option<Vec<Kind>> {
        let own = self.own.iter().find_map(|own| own.kinds.clone());
        own.or_else(|| self.row.map(|row| row.kinds.unwrap_or_default().to_vec()))
    }

    pub(super) fn failed(&self) -> Failed {
        self.row.map_or(Failed::Told, |row| row.failed)
    }

    /// Files count when they are opened to write.
    pub(super) fn writes(&self) -> bool {
        self.row.is_some_and(|row| row.key.1 == "file_event")
    }

    /// A log of the kernel's records, where `a0` is not always a word.
    pub(super) fn is_audit(&self) -> bool {
        self.row.is_some_and(|row| row.key.1 == "auditd")
    }

    /// The field that a rule's name stands for.
    pub(super) fn field(&self, name: &str, registers: bool) -> Of {
        if let Some(of) = self.own.iter().find_map(|own| own.fields.get(name)) {
            return of.clone();
        }
        let words = name.strip_prefix('a').and_then(|digits| digits.parse::<u32>().ok()).filter(|_| self.is_audit());
        if let Some(number) = words {
            let field = Field::find("weir.arg", Some(&number.to_string()));
            return Of::Field(
                field.ok().filter(|_| !registers).unwrap_or_else(|| Field::unknown(&format!("{name} of a system call"))),
            );
        }
        let rows = self.row.into_iter().flat_map(|row| row.fields.iter().copied().flatten());
        let known = rows.into_iter().find(|(known, _)| *known == name).map(|(_, to)| *to);
        known.or(Some(name)).and_then(target).unwrap_or_else(|| Of::Field(Field::unknown(name)))
    }

    /// What the message of an uncollected source says.
    pub(super) fn name(&self) -> String {
        format!("logsource {}", self.logsource)
    }
}

/// A column of `events`, `detail.KEY`, or a field of the table.
pub(super) fn target(name: &str) -> Option<Of> {
    if let Some(key) = name.strip_prefix("detail.").filter(|key| !key.is_empty()) {
        return Field::find("weir.detail", Some(key)).ok().map(Of::Field);
    }
    // Columns that are JSON in the row read better taken apart.
    let made = match name {
        "args" => Some("weir.args"),
        "ancestors" => Some("proc.aexepath"),
        "capabilities" => Some("thread.cap_effective"),
        "container_id" => Some("container.full_id"),
        _ => None,
    };
    if let Some(made) = made {
        return Field::find(made, None).ok().map(Of::Field);
    }
    if let Some(field) = Column::from_name(name).and_then(Field::of_column) {
        return Some(Of::Field(field));
    }
    let (base, argument) = name.split_once('[').map_or((name, None), |(base, rest)| (base, rest.strip_suffix(']')));
    let field = Field::find(base, argument).ok().filter(|_| name.contains('.'))?;
    field.is_supplied().then_some(Of::Field(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_table_is_supplied() {
        for row in TABLE {
            for (name, to) in row.fields.iter().copied().flatten() {
                let Some(Of::Field(field)) = target(to) else { panic!("{name} → {to}") };
                assert!(field.is_supplied(), "{name} → {to}");
            }
        }
    }

    #[test]
    fn columns_and_fields_are_targets() {
        for name in ["cmdline", "exe", "ancestors", "args", "src_ip", "detail.sha256", "proc.aname[2]", "kind", "result"] {
            assert!(target(name).is_some(), "{name}");
        }
        for name in ["Hashes", "detail.", "nobody", "container.privileged"] {
            assert!(target(name).is_none(), "{name}");
        }
    }
}
