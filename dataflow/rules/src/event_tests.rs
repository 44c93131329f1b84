//! What an event of ours says to Falco's fields, and stock-like conditions on it.

use std::sync::Arc;

use weir_schema::{Container, Event, Fields, Kind, Process};

use crate::event::EventFields;
use crate::fields::{FIELDS, Field, Supply, Takes};
use crate::matcher::Matcher;
use crate::set::{Matching, RuleSet};
use crate::value::FieldSource;

fn process() -> Process {
    Process {
        pid: 42,
        start_ns: 1,
        ppid: Some(7),
        exe: Some("/usr/bin/bash".into()),
        comm: Some("sh".into()),
        args: Some(r#"["/bin/sh","-c","echo a b"]"#.into()),
        cmdline: Some("/bin/sh -c echo a b".into()),
        cwd: Some("/root".into()),
        uid: Some(0),
        user_name: Some("root".into()),
        login_uid: Some(u32::MAX),
        tty: Some("pts/3".into()),
        session_id: Some(42),
        parent_exe: Some("/usr/sbin/sshd".into()),
        parent_cmdline: Some("/usr/sbin/sshd -D".into()),
        ancestors: Some(r#"["/usr/sbin/sshd","/usr/bin/containerd-shim","/sbin/init"]"#.into()),
        capabilities: Some("0000000000200000".into()),
        ..Process::default()
    }
}

fn container() -> Container {
    Container {
        container_id: Some("0123456789abcdef0123456789abcdef".into()),
        container_name: Some("web".into()),
        image: Some("reg.local:5000/shop/web:1.2@sha256:ab".into()),
        namespace: Some("shop".into()),
        pod: Some("web-0".into()),
        ..Container::default()
    }
}

fn event(kind: Kind, fields: Fields) -> Event {
    Event { time: 1_600_000_000_000_000_005, kind, process: Some(Arc::new(process())), container: None, fields }
}

fn contained(kind: Kind, fields: Fields) -> Event {
    Event { container: Some(Arc::new(container())), ..event(kind, fields) }
}

fn exec() -> Fields {
    Fields { tid: Some(42), result: Some(0), path: Some("/usr/bin/bash".into()), ..Fields::default() }
}

fn opened(path: &str, flags: u32) -> Fields {
    Fields { result: Some(0), path: Some(path.into()), flags: Some(flags), mode: Some(0o644), ..Fields::default() }
}

fn connected() -> Fields {
    Fields {
        result: Some(115),
        src_ip: Some("10.0.0.1".into()),
        src_port: Some(40_000),
        dst_ip: Some("8.8.8.8".into()),
        dst_port: Some(443),
        proto: Some("tcp".into()),
        direction: Some("out".into()),
        ..Fields::default()
    }
}

#[test]
fn fields_of_our_events() {
    let show = |event: &Event, name: &str| {
        let (name, argument) = name.split_once('[').map_or((name, None), |(name, rest)| (name, Some(rest.trim_end_matches(']'))));
        let field = Field::find(name, argument).unwrap();
        EventFields::new(event, "h1").get(&field).map_or_else(|| "<NA>".to_owned(), |value| value.to_string())
    };
    let check = |event: &Event, cases: &[(&str, &str)]| {
        for (name, wanted) in cases {
            assert_eq!(show(event, name), *wanted, "{name}");
        }
    };
    let who = [
        ("evt.type", "execve execveat"),
        ("evt.dir", "<"),
        ("evt.num", "1"),
        ("evt.hostname", "h1"),
        ("evt.time", "2020-09-13T12:26:40.000000005Z"),
        ("evt.rawtime.s", "1600000000"),
        ("evt.rawtime.ns", "5"),
        ("evt.res", "SUCCESS"),
        ("evt.failed", "false"),
        ("evt.arg.flags", ""),
        ("proc.name", "sh"),
        ("proc.exe", "/bin/sh"),
        ("proc.exepath", "/usr/bin/bash"),
        ("proc.cmdline", "sh -c echo a b"),
        ("proc.args", "-c echo a b"),
        ("proc.cmdnargs", "2"),
        ("proc.pname", "sshd"),
        ("proc.pcmdline", "sshd -D"),
        ("proc.aname", "sshd containerd-shim init"),
        ("proc.aname[0]", "sh"),
        ("proc.aname[1]", "sshd"),
        ("proc.aname[3]", "init"),
        ("proc.aname[4]", "<NA>"),
        ("proc.aexepath[2]", "/usr/bin/containerd-shim"),
        ("proc.cwd", "/root/"),
        ("proc.tty", "34819"),
        ("proc.pid", "42"),
        ("proc.ppid", "7"),
        ("proc.vpid", "42"),
        ("proc.is_sid_leader", "true"),
        ("thread.ismain", "true"),
        ("thread.cap_effective", "CAP_SYS_ADMIN"),
        ("user.uid", "0"),
        ("user.name", "root"),
        ("user.loginuid", "-1"),
        ("container.id", "host"),
        ("container.name", "host"),
        ("container.image.repository", "<NA>"),
        ("fd.name", "<NA>"),
    ];
    check(&event(Kind::Exec, exec()), &who);
    let place = [
        ("container.id", "0123456789ab"),
        ("container.full_id", "0123456789abcdef0123456789abcdef"),
        ("container.name", "web"),
        ("container.image.repository", "reg.local:5000/shop/web"),
        ("container.image.tag", "1.2"),
        ("container.image.digest", "sha256:ab"),
        ("k8s.ns.name", "shop"),
        ("k8s.pod.name", "web-0"),
        ("evt.arg.flags", "EXE_UPPER_LAYER"),
        ("proc.vpid", "1"),
    ];
    let detail = Some(r#"{"exe_upper_layer":true,"ns_pid":1}"#.into());
    check(&contained(Kind::Exec, Fields { detail, ..exec() }), &place);
    let file = [
        ("evt.is_open_write", "true"),
        ("evt.is_open_read", "false"),
        ("evt.is_open_create", "true"),
        ("evt.arg.flags", "O_WRONLY|O_CREAT"),
        ("evt.arg.mode", "644"),
        ("fd.num", "3"),
        ("fd.typechar", "f"),
        ("fd.name", "/etc/cron.d/x"),
        ("fd.directory", "/etc/cron.d"),
        ("fd.filename", "x"),
    ];
    check(&event(Kind::Open, opened("/etc/cron.d/x", 0o101)), &file);
    let failed = Fields { result: Some(13), ..opened("/x", 0o200_000) };
    let refused = [
        ("fd.num", "-1"),
        ("fd.directory", "/"),
        ("fd.typechar", "d"),
        ("evt.rawres", "-13"),
        ("evt.res", "EACCES"),
        ("evt.is_open_read", "true"),
    ];
    check(&event(Kind::Open, failed), &refused);
    let socket = [
        ("fd.name", "10.0.0.1:40000->8.8.8.8:443"),
        ("fd.type", "ipv4"),
        ("fd.typechar", "4"),
        ("fd.cip", "10.0.0.1"),
        ("fd.sip", "8.8.8.8"),
        ("fd.lport", "40000"),
        ("fd.rport", "443"),
        ("fd.sport", "443"),
        ("fd.l4proto", "tcp"),
        ("fd.is_server", "false"),
        ("evt.res", "EINPROGRESS"),
    ];
    check(&event(Kind::Connect, connected()), &socket);
    let renamed = Fields { path: Some("/a".into()), path_to: Some("/b".into()), result: Some(0), ..Fields::default() };
    let names = [("evt.arg.oldpath", "/a"), ("evt.arg.newpath", "/b"), ("fs.path.target", "/b"), ("fd.name", "<NA>")];
    check(&event(Kind::Rename, renamed), &names);
}

#[test]
fn conditions_meet_our_events() {
    let exec = contained(Kind::Exec, Fields { detail: Some(r#"{"ns_pid":1}"#.into()), ..exec() });
    let open = event(Kind::Open, opened("/etc/shadow", 0));
    let write = event(Kind::Open, opened("/etc/cron.d/x", 0o101));
    let connect = event(Kind::Connect, connected());
    let cases = [
        (&exec, "evt.type in (execve, execveat) and proc.vpid = 1 and container.id != host", true),
        (&exec, "evt.type != execve", false),
        (&exec, "evt.type != open and evt.type = execve", true),
        (&exec, "proc.tty != 0 and proc.aname[2] = containerd-shim and proc.aname = init", true),
        (&open, "evt.type in (open,openat) and evt.is_open_read = true and fd.typechar = 'f' and fd.num >= 0", true),
        (&open, "evt.is_open_write = true", false),
        (&open, "container.id != host", false),
        (&write, "evt.is_open_write = true and fd.name startswith /etc/cron", true),
        (&connect, "fd.ip != \"0.0.0.0\" and fd.net != \"127.0.0.0/8\" and not fd.snet in (10.0.0.0/8)", true),
        (&connect, "evt.rawres >= 0 or evt.res = EINPROGRESS", true),
        (&connect, "evt.num = 0", false),
    ];
    for (event, condition, wanted) in cases {
        let file = format!("- rule: r\n  desc: d\n  condition: >\n    {condition}\n  output: '%proc.name'\n  priority: INFO\n");
        let set = RuleSet::load([("f.yaml", file.as_str())]);
        assert_eq!(set.errors, [], "{condition}");
        let mut hits = Vec::new();
        Matcher::default().matches(&set, &EventFields::new(event, "h1"), Matching::All, &mut hits);
        assert_eq!(!hits.is_empty(), wanted, "{condition}");
    }
}

/// The table and this file's events do not contradict each other: what is not supplied is never there, and what is made
/// is made for some event.
#[test]
fn the_table_says_what_is_supplied() {
    let told = Fields { detail: Some(r#"{"fd": 4}"#.into()), ..opened("/a/b", 0o101) };
    let events = [
        contained(Kind::Exec, exec()),
        event(Kind::Open, told),
        event(Kind::Connect, connected()),
        contained(Kind::Open, opened("/a/b", 0)),
    ];
    for def in FIELDS {
        let argument = match def.takes {
            Takes::Nothing => None,
            Takes::Index => Some("1"),
            Takes::Key if def.name == "weir.detail" => Some("fd"),
            Takes::Key => Some("flags"),
        };
        let field = Field::find(def.name, argument).unwrap();
        let found = events.iter().any(|event| EventFields::new(event, "h").get(&field).is_some());
        match def.supply {
            Supply::No => assert!(!found, "{}", def.name),
            Supply::Made => assert!(found, "{}", def.name),
            Supply::From(_) => {}
        }
    }
}
