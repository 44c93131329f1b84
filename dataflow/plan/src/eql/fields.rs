//! Fields and categories of ECS as columns of `events`: the one table. A field that it does not have is supplied by nothing: a comparison with it is
//! unknown, and the rule's verdict names it. Values of `event.type` and `event.action` are those of Elastic Defend and Auditbeat for Linux.

/// What a field is of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// SQL of a text.
    Text(&'static str),
    /// SQL of an integer.
    Int(&'static str),
    /// A column that holds a JSON array of texts: a comparison holds if it does of one of them.
    Texts(&'static str),
    /// Known values, and which events have each. Every event has one, as far as EQL asks.
    Named(&'static [(&'static str, &'static str)]),
}

/// What stands in the table for a field.
pub(super) fn field(name: &str) -> Option<What> {
    FIELDS.iter().find(|(known, _)| *known == name).map(|(_, what)| *what)
}

/// The column that a field is, where it can be what the events of a sequence share.
pub(super) fn key(name: &str) -> Option<&'static str> {
    if let Some((_, column)) = KEYS.iter().find(|(known, _)| *known == name) {
        return Some(column);
    }
    match field(name)? {
        What::Text(sql) | What::Int(sql) => is_column(sql).then_some(sql),
        What::Texts(_) | What::Named(_) => None,
    }
}

/// Which events a category has; none: nothing collects it.
pub(super) fn category(name: &str) -> Option<&'static str> {
    CATEGORIES.iter().find(|(known, _)| *known == name).map(|(_, predicate)| *predicate)
}

fn is_column(sql: &str) -> bool {
    sql.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

/// Of what renames and links, the new name. CASE, because `coalesce` cannot be evaluated without DataFusion's optimizer.
const TARGET: &str = "CASE WHEN path_to IS NULL THEN path ELSE path_to END";
const TARGET_NAME: &str = "split_part(CASE WHEN path_to IS NULL THEN path ELSE path_to END, '/', -1)";
const TARGET_FOLDER: &str = "regexp_replace(CASE WHEN path_to IS NULL THEN path ELSE path_to END, '/[^/]*$', '')";
const TARGET_ENDING: &str =
    "nullif(regexp_replace(CASE WHEN path_to IS NULL THEN path ELSE path_to END, '^.*?(?:\\.([^./]*))?$', '\\1'), '')";

const FIELDS: &[(&str, What)] = &[
    ("event.category", What::Named(CATEGORIES)),
    ("event.type", What::Named(TYPES)),
    ("event.action", What::Named(ACTIONS)),
    ("event.outcome", What::Named(OUTCOMES)),
    ("event.kind", What::Named(&[("event", "TRUE")])),
    ("host.os.type", What::Named(LINUX)),
    ("host.os.family", What::Named(LINUX)),
    ("host.os.platform", What::Named(LINUX)),
    ("event.id", What::Text("event_id")),
    ("agent.id", What::Text("agent")),
    ("host.id", What::Text("host")),
    ("host.name", What::Text("host")),
    ("host.hostname", What::Text("host")),
    ("host.boot.id", What::Text("boot_id")),
    ("process.pid", What::Int("pid")),
    ("process.thread.id", What::Int("tid")),
    ("process.entity_id", What::Text("process_id")),
    ("process.executable", What::Text("exe")),
    ("process.name", What::Text("split_part(exe, '/', -1)")),
    ("process.title", What::Text("comm")),
    ("process.command_line", What::Text("cmdline")),
    ("process.args", What::Texts("args")),
    ("process.args_count", What::Int("regexp_count(args, '\"(?:[^\"\\\\]|\\\\.)*\"')")),
    ("process.working_directory", What::Text("cwd")),
    ("process.exit_code", What::Int("exit_code")),
    ("process.tty.char_device.name", What::Text("tty")),
    ("process.session_leader.pid", What::Int("session_id")),
    ("process.parent.pid", What::Int("ppid")),
    ("process.parent.entity_id", What::Text("parent_process_id")),
    ("process.parent.executable", What::Text("parent_exe")),
    ("process.parent.name", What::Text("split_part(parent_exe, '/', -1)")),
    ("process.parent.command_line", What::Text("parent_cmdline")),
    ("process.thread.capabilities.effective", What::Texts("capabilities")),
    ("user.id", What::Text("CAST(uid AS TEXT)")),
    ("user.name", What::Text("user_name")),
    ("process.user.id", What::Text("CAST(uid AS TEXT)")),
    ("process.user.name", What::Text("user_name")),
    ("process.real_user.id", What::Text("CAST(login_uid AS TEXT)")),
    ("file.path", What::Text(TARGET)),
    ("file.name", What::Text(TARGET_NAME)),
    ("file.directory", What::Text(TARGET_FOLDER)),
    ("file.extension", What::Text(TARGET_ENDING)),
    ("file.target_path", What::Text("path_to")),
    ("file.Ext.original.path", What::Text("CASE WHEN path_to IS NOT NULL THEN path END")),
    ("file.Ext.original.name", What::Text("CASE WHEN path_to IS NOT NULL THEN split_part(path, '/', -1) END")),
    ("source.ip", What::Text("src_ip")),
    ("source.address", What::Text("src_ip")),
    ("source.port", What::Int("src_port")),
    ("source.bytes", What::Int("bytes_sent")),
    ("destination.ip", What::Text("dst_ip")),
    ("destination.address", What::Text("dst_ip")),
    ("destination.port", What::Int("dst_port")),
    ("destination.bytes", What::Int("bytes_received")),
    ("network.transport", What::Text("proto")),
    ("network.direction", What::Named(DIRECTIONS)),
    ("dns.question.name", What::Text("dns_name")),
    ("container.id", What::Text("container_id")),
    ("container.name", What::Text("container_name")),
    ("container.image.name", What::Text("image")),
    ("orchestrator.namespace", What::Text("namespace")),
    ("orchestrator.resource.name", What::Text("pod")),
    ("kubernetes.namespace", What::Text("namespace")),
    ("kubernetes.pod.name", What::Text("pod")),
    ("service.name", What::Text("app")),
    ("cloud.provider", What::Text("cloud")),
    ("cloud.region", What::Text("region")),
    ("cloud.availability_zone", What::Text("zone")),
];

/// Fields that are made of a column and tell no more than it does.
const KEYS: &[(&str, &str)] =
    &[("user.id", "uid"), ("process.user.id", "uid"), ("process.real_user.id", "login_uid"), ("file.path", "path")];

const LINUX: &[(&str, &str)] = &[("linux", "TRUE")];

const PROCESS: &str =
    "kind IN ('exec', 'fork', 'exit', 'setuid', 'setgid', 'capset', 'ptrace', 'kill', 'setns', 'unshare', 'chroot', 'memfd')";
const FILE: &str = "kind IN ('open', 'write', 'unlink', 'rename', 'link', 'symlink', 'chmod', 'chown', 'mkdir', 'truncate')";
const NETWORK: &str = "kind IN ('connect', 'accept', 'close', 'listen', 'send', 'dns')";

const CATEGORIES: &[(&str, &str)] = &[
    ("any", "TRUE"),
    ("process", PROCESS),
    ("file", FILE),
    ("network", NETWORK),
    ("dns", "kind = 'dns'"),
    ("driver", "kind = 'module'"),
];

/// A file that is opened to be made where it is not: 64 is `O_CREAT` of Linux.
const CREATED: &str = "(kind IN ('write', 'link', 'symlink', 'mkdir') OR (kind = 'open' AND flags & 64 <> 0))";
const CHANGED: &str = "kind IN ('write', 'rename', 'chmod', 'chown', 'truncate', 'setuid', 'setgid', 'capset')";

const TYPES: &[(&str, &str)] = &[
    ("start", "kind IN ('exec', 'fork', 'connect', 'accept', 'module')"),
    ("end", "kind IN ('exit', 'close')"),
    ("creation", CREATED),
    ("change", CHANGED),
    ("deletion", "kind = 'unlink'"),
    ("access", "kind = 'open'"),
    ("connection", "kind IN ('connect', 'accept', 'close', 'send')"),
    ("protocol", "kind = 'dns'"),
    ("info", "kind IN ('ptrace', 'kill', 'setns', 'unshare', 'chroot', 'memfd', 'listen', 'dns')"),
];

const EXEC: &str = "kind = 'exec'";
const CONNECT: &str = "kind = 'connect'";

const ACTIONS: &[(&str, &str)] = &[
    ("exec", EXEC),
    ("exec_event", EXEC),
    ("executed", EXEC),
    ("start", EXEC),
    ("process_started", EXEC),
    ("ProcessRollup2", EXEC),
    ("fork", "kind = 'fork'"),
    ("end", "kind = 'exit'"),
    ("uid_change", "kind = 'setuid'"),
    ("gid_change", "kind = 'setgid'"),
    ("ptrace", "kind = 'ptrace'"),
    ("memfd_create", "kind = 'memfd'"),
    ("load_module", "kind = 'module'"),
    ("creation", CREATED),
    ("file_create_event", CREATED),
    ("modification", "kind IN ('write', 'chmod', 'chown', 'truncate')"),
    ("overwrite", "kind = 'write'"),
    ("rename", "kind = 'rename'"),
    ("file_rename_event", "kind = 'rename'"),
    ("deletion", "kind = 'unlink'"),
    ("open", "kind = 'open'"),
    ("opened-file", "kind = 'open'"),
    ("link", "kind IN ('link', 'symlink')"),
    ("connection_attempted", CONNECT),
    ("ipv4_connection_attempt_event", CONNECT),
    ("connected-to", CONNECT),
    ("network_connection", "kind IN ('connect', 'accept')"),
    ("connection_accepted", "kind = 'accept'"),
    ("ipv4_connection_accept_event", "kind = 'accept'"),
    ("disconnect_received", "kind = 'close'"),
    ("bound-socket", "kind = 'listen'"),
    ("lookup_requested", "kind = 'dns'"),
    ("lookup_result", "kind = 'dns'"),
];

const OUTCOMES: &[(&str, &str)] = &[("success", "(result IS NULL OR result >= 0)"), ("failure", "result < 0")];

const DIRECTIONS: &[(&str, &str)] = &[
    ("egress", "direction = 'out'"),
    ("outbound", "direction = 'out'"),
    ("outgoing", "direction = 'out'"),
    ("ingress", "direction = 'in'"),
    ("inbound", "direction = 'in'"),
    ("incoming", "direction = 'in'"),
];

#[cfg(test)]
pub(super) fn predicates() -> impl Iterator<Item = (&'static str, &'static str)> {
    let named = FIELDS.iter().flat_map(|(name, what)| match what {
        What::Named(values) => values.iter().map(|(_, predicate)| (*name, *predicate)).collect(),
        What::Text(_) | What::Int(_) | What::Texts(_) => vec![],
    });
    named.chain(CATEGORIES.iter().copied())
}

#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = (&'static str, What)> {
    FIELDS.iter().copied()
}
