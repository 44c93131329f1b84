//! The pass over columns against the matcher of single events: the same hits, for random rules over random batches.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use proptest::prelude::*;
use weir_rules::{EventFields, Matcher, Matching, Pass, RuleSet, Scratch};
use weir_schema::{Batch, BatchBuilder, BootId, Container, Decoder, Epoch, Event, Fields, Host, Kind, Lane, Process, Seq};

const KINDS: [Kind; 8] = [Kind::Exec, Kind::Fork, Kind::Setns, Kind::Open, Kind::Write, Kind::Rename, Kind::Connect, Kind::Send];

/// Comparisons of every sort; values that the events below have and some that none has.
const CHECKS: &[&str] = &[
    "evt.type=execve",
    "evt.type in (open, openat, connect)",
    "evt.type!=open",
    "evt.dir=<",
    "evt.category=file",
    "evt.num=0",
    "evt.is_open_write=true",
    "evt.is_open_read=true",
    "evt.is_open_exec=true",
    "evt.failed=true",
    "evt.res=ENOENT",
    "evt.rawres>=0",
    "evt.arg.flags contains O_CREAT",
    "evt.arg.path startswith /etc",
    "evt.hostname=h1",
    "evt.rawtime>1000",
    "evt.arg.res=0",
    "proc.name=bash",
    "proc.name in (sh, bash, nginx)",
    "proc.name!=sh",
    "proc.name contains as",
    "proc.name icontains BA",
    "proc.pname=sshd",
    "proc.pname exists",
    "proc.aname=sshd",
    "proc.aname[2]=init",
    "proc.aname in (init, cron)",
    "proc.aname!=init",
    "proc.cmdline contains \"-c\"",
    "proc.cmdline endswith passwd",
    "proc.args contains x",
    "proc.args in (-c, x)",
    "proc.args intersects (x, y)",
    "proc.exepath startswith /usr",
    "proc.exe glob */ba*",
    "proc.exepath pmatch (/usr/bin, /opt)",
    "proc.tty=0",
    "proc.pid>50",
    "proc.vpid=1",
    "proc.is_sid_leader=true",
    "thread.ismain=true",
    "user.uid=0",
    "user.loginuid=-1",
    "fd.name startswith /etc",
    "fd.name=/etc/passwd",
    "fd.name in (/etc/passwd, /tmp/a)",
    "fd.name contains pass",
    "fd.name endswith .so",
    "fd.name contains 10.0.0",
    "fd.directory=/etc",
    "fd.filename in (passwd, a)",
    "fd.typechar=f",
    "fd.typechar in ('4', '6')",
    "fd.num>=0",
    "fd.sport=443",
    "fd.port=443",
    "fd.sip=10.0.0.2",
    "fd.snet in (10.0.0.0/8)",
    "fd.l4proto=tcp",
    "fd.is_server=true",
    "fd.connected=true",
    "fs.path.name startswith /tmp",
    "fs.path.target=/tmp/b",
    "container.id!=host",
    "container.id=host",
    "container.name=web",
    "container.image.repository endswith shop/web",
    "container.privileged=true",
    "k8s.ns.name=shop",
    "tolower(proc.name)=bash",
    "fd.name regex /etc/.*",
    "len(proc.name)>3",
    "proc.name=val(proc.pname)",
    "fd.name startswith ''",
];

fn rules() -> impl Strategy<Value = String> {
    let check = (0..CHECKS.len()).prop_map(|at| CHECKS[at].to_owned());
    let condition = check.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            3 => prop::collection::vec(inner.clone(), 2..4).prop_map(|all| format!("({})", all.join(" and "))),
            2 => prop::collection::vec(inner.clone(), 2..4).prop_map(|all| format!("({})", all.join(" or "))),
            1 => inner.prop_map(|one| format!("not ({one})")),
        ]
    });
    prop::collection::vec((condition, any::<bool>()), 1..24).prop_map(|conditions| {
        let rule = |(number, (condition, enabled)): (usize, &(String, bool))| {
            let condition = condition.replace('"', "\\\"");
            let enabled = *enabled || number % 3 != 0;
            format!(
                "- rule: r{number}\n  desc: d\n  condition: \"{condition}\"\n  output: o\n  priority: INFO\n  enabled: {enabled}\n"
            )
        };
        conditions.iter().enumerate().map(rule).collect()
    })
}

/// Lines of Sigma selections, for log sources that have them.
const ITEMS: &[&str] = &[
    "Image|endswith: ['/bash', '/sh']",
    "Image: '*/nginx'",
    "CommandLine|contains: ['-c', PASSWD]",
    "CommandLine|contains|all: ['/etc', 'cat']",
    "CommandLine|re: '^/bin/(ba)?sh '",
    "CommandLine|re|i: 'PASS'",
    "CommandLine|windash|contains: ' -c'",
    "ParentImage|endswith: '/sshd'",
    "ParentImage: null",
    "User: ''",
    "ancestors|contains: 'init'",
    "comm|cased: 'BASH'",
    "comm: bash",
    "ProcessId|gte: 50",
    "TargetFilename|startswith: '/etc'",
    "TargetFilename|fieldref: path_to",
    "TargetFilename|endswith: ['passwd', '.so']",
    "DestinationIp|cidr: '10.0.0.0/8'",
    "DestinationPort: 443",
    "Initiated: 'true'",
    "container_id|exists: true",
    "path|exists: false",
    "detail.fd: 7",
    "kind: [exec, open]",
    "result|neq: 0",
    "a0: sh",
    "type: EXECVE",
    "Hashes|contains: x",
    "time|hour: 0",
];

fn sigma_rules() -> impl Strategy<Value = Vec<String>> {
    let sources = [
        "{product: linux, category: process_creation}",
        "{product: linux, category: file_event}",
        "{product: linux, category: network_connection}",
        "{product: linux, service: auditd}",
        "{service: weir}",
    ];
    let conditions = ["a", "a and not b", "1 of them", "all of them", "a or b", "not 1 of them", "a and k", "k or b"];
    let items = || prop::collection::btree_set(0..ITEMS.len(), 1..3);
    let one = (0..sources.len(), 0..conditions.len(), items(), items()).prop_map(move |(source, condition, a, b)| {
        let lines = |items: std::collections::BTreeSet<usize>| -> String {
            // A name once: YAML refuses a second one.
            let mut names = std::collections::BTreeSet::new();
            let new = items.iter().map(|at| ITEMS[*at]).filter(|item| names.insert(item.split(['|', ':']).next()));
            new.map(|item| format!("    {item}\n")).collect()
        };
        format!(
            "logsource: {}\ndetection:\n  a:\n{}  b:\n{}  k: [passwd, '10.0.*']\n  condition: {}\n",
            sources[source],
            lines(a),
            lines(b),
            conditions[condition]
        )
    });
    prop::collection::vec(one, 1..8)
}

fn pick(from: &'static [&'static str]) -> impl Strategy<Value = Option<Arc<str>>> {
    (0..=from.len()).prop_map(|at| from.get(at).map(|text| Arc::from(*text)))
}

fn processes() -> impl Strategy<Value = Process> {
    let texts = (
        pick(&["/usr/bin/bash", "/usr/sbin/nginx", "/opt/x"]),
        pick(&["bash", "sh", "nginx", "BASH"]),
        pick(&[r#"["/bin/sh","-c","x"]"#, r#"["cat","/etc/passwd"]"#, r#"["x"]"#, "broken"]),
        pick(&["/usr/sbin/sshd", "/bin/bash"]),
        pick(&[r#"["/usr/sbin/sshd","/sbin/init"]"#, r#"["/usr/sbin/cron"]"#]),
        pick(&["pts/3", ""]),
    );
    (1..99_u32, texts, prop::option::of(0..2_u32), prop::option::of(1..99_u32)).prop_map(|(pid, texts, uid, session_id)| {
        let (exe, comm, args, parent_exe, ancestors, tty) = texts;
        let login_uid = uid.map(|uid| if uid == 0 { u32::MAX } else { uid });
        Process {
            pid,
            start_ns: 1,
            exe,
            comm,
            args,
            parent_exe,
            ancestors,
            tty,
            uid,
            login_uid,
            session_id,
            ..Process::default()
        }
    })
}

fn fields() -> impl Strategy<Value = Fields> {
    let paths = &["/etc/passwd", "/etc/shadow", "/tmp/a", "/tmp/b", "/lib/x.so", "relative", "/"];
    let files = (
        pick(paths),
        pick(paths),
        prop::option::of(prop::sample::select(vec![0_u32, 1, 2, 0o101, 0o200_000])),
        prop::option::of(0..0o1000_u32),
    );
    let net =
        (pick(&["10.0.0.1", "::1"]), pick(&["10.0.0.2", "192.168.1.1", "::2"]), pick(&["tcp", "udp"]), pick(&["in", "out"]));
    let rest = (
        prop::option::of(prop::sample::select(vec![0, 2, 13])),
        pick(&[r#"{"fd":7,"ns_pid":1}"#, r#"{"exe_writable":true}"#, "broken"]),
        prop::option::of(1..99_u32),
    );
    (files, net, rest, any::<bool>(), prop::option::of(Just(443_u16))).prop_map(|(files, net, rest, socket, dst_port)| {
        let (path, path_to, flags, mode) = files;
        let (src_ip, dst_ip, proto, direction) = net;
        let (result, detail, tid) = rest;
        let fields = Fields { path, path_to, flags, mode, result, detail, tid, ..Fields::default() };
        if socket { Fields { src_ip, dst_ip, proto, direction, dst_port, src_port: Some(40_000), ..fields } } else { fields }
    })
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let container = Container {
        container_id: Some("0123456789abcdef".into()),
        container_name: Some("web".into()),
        image: Some("reg/shop/web:1".into()),
        namespace: Some("shop".into()),
        ..Container::default()
    };
    let containers =
        [None, Some(Arc::new(container)), Some(Arc::new(Container { app: Some("a".into()), ..Container::default() }))];
    let one = (0..KINDS.len(), 0..5_usize, 0..3_usize, fields(), 0..5_000_i64);
    (prop::collection::vec(processes(), 4), prop::collection::vec(one, 1..60)).prop_map(move |(processes, rows)| {
        let processes: Vec<Arc<Process>> = processes.into_iter().map(Arc::new).collect();
        let event = |(kind, process, container, fields, time): (usize, usize, usize, Fields, i64)| Event {
            time,
            kind: KINDS[kind],
            process: processes.get(process).cloned(),
            container: containers[container].clone(),
            fields,
        };
        rows.into_iter().map(event).collect()
    })
}

fn batches(events: &[Event]) -> Vec<Batch> {
    let host = Host { host: "h1".into(), boot_id: BootId([1; 16]), ..Host::default() };
    let host = Arc::new(host);
    let batch = |lane: Lane| {
        let mut builder = BatchBuilder::new(Arc::clone(&host), Epoch(1), lane, Seq(0));
        events.iter().filter(|event| event.kind.lane() == lane).for_each(|event| builder.push(event).unwrap());
        (!builder.is_empty()).then(|| builder.finish().unwrap().decode(&mut Decoder::new()).unwrap())
    };
    Lane::ALL.into_iter().filter_map(batch).collect()
}

fn check(pass: &Pass, matching: Matching, scratch: &mut Scratch, batches: &[Batch]) -> Result<usize, TestCaseError> {
    let set = pass.rules();
    let (mut matcher, mut all) = (Matcher::default(), 0);
    for batch in batches {
        let (mut expected, mut found, mut at) = (Vec::new(), Vec::new(), 0);
        let events = batch.events();
        scratch.begin(pass, batch);
        for (number, section) in batch.sections.iter().enumerate() {
            for row in 0..section.rows() {
                let mut hits = Vec::new();
                matcher.hits(set, &EventFields::new(&events[at], "h1"), matching, &mut hits);
                expected.extend(hits.into_iter().map(|rule| (number, row, rule)));
                at += 1;
            }
            let first = at - section.rows();
            scratch.run(pass, batch, section, 0..section.rows(), |row, rule, event| {
                assert_eq!(*event, events[first + row]);
                found.push((number, row, rule));
            });
        }
        prop_assert_eq!(&found, &expected);
        all += found.len();
    }
    Ok(all)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_rules_over_random_batches(text in rules(), batches_of in prop::collection::vec(events(), 1..4)) {
        let set = Arc::new(RuleSet::load([("r.yaml", text.as_str())]));
        prop_assert!(set.errors.is_empty(), "{:?}", set.errors);
        for matching in [Matching::All, Matching::First] {
            let (pass, mut scratch) = (Pass::new(Arc::clone(&set), matching), Scratch::default());
            for events in &batches_of {
                check(&pass, matching, &mut scratch, &batches(events))?;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn both_languages_over_random_batches(
        falco in rules(),
        sigma in sigma_rules(),
        batches_of in prop::collection::vec(events(), 1..4),
    ) {
        let sigma = sigma.iter().enumerate().map(|(at, rule)| (format!("s{at}.yml"), format!("title: s{at}\n{rule}")));
        let files: Vec<(String, String)> = sigma.chain([("r.yaml".to_owned(), falco)]).collect();
        let set = Arc::new(RuleSet::load(files.iter().map(|(name, text)| (name.as_str(), text.as_str()))));
        prop_assert!(set.errors.is_empty(), "{:?}", set.errors);
        for matching in [Matching::All, Matching::First] {
            let (pass, mut scratch) = (Pass::new(Arc::clone(&set), matching), Scratch::default());
            for events in &batches_of {
                check(&pass, matching, &mut scratch, &batches(events))?;
            }
        }
    }
}

/// Our own rules over the events that are recorded for them, the ordinary ones and random ones between them.
#[test]
fn our_own_rules_over_what_is_recorded_for_them() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/rules");
    let read = |folder: &std::path::Path, ending: &str| -> Vec<(String, String)> {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = files.filter(|file| file.extension().is_some_and(|found| found == ending)).collect();
        files.sort();
        files.iter().map(|file| (file.display().to_string(), std::fs::read_to_string(file).unwrap())).collect()
    };
    let rules = read(&folder, "yml");
    let set = Arc::new(RuleSet::load(rules.iter().map(|(name, text)| (name.as_str(), text.as_str()))));
    let lines: Vec<String> =
        read(&folder.join("fixtures"), "jsonl").iter().flat_map(|(_, text)| text.lines()).map(str::to_owned).collect();
    let recorded: Vec<Event> =
        lines.iter().filter_map(|line| weir_schema::parse_line(line).ok()).map(|line| line.event).collect();
    assert!(recorded.len() > 300, "{}", recorded.len());
    let (pass, mut scratch) = (Pass::new(set, Matching::All), Scratch::default());
    let hits: usize =
        recorded.chunks(50).map(|events| check(&pass, Matching::All, &mut scratch, &batches(events)).unwrap()).sum();
    assert!(hits >= 150, "{hits}");
}

/// The random test would be as content with a pass that finds nothing.
#[test]
fn hits_are_found_where_they_are() {
    let text = "- rule: r\n  desc: d\n  condition: evt.type=execve and proc.name in (a, bash) and not proc.pname startswith /x\n  output: o\n  priority: INFO\n";
    let set = Arc::new(RuleSet::load([("r.yaml", text)]));
    let pass = Pass::new(set, Matching::First);
    assert_eq!((pass.rules_of(Kind::Exec), pass.rules_of(Kind::Open)), (1, 0));
    let process = |comm: &str| Some(Arc::new(Process { pid: 7, comm: Some(comm.into()), ..Process::default() }));
    let event = |(at, comm): (usize, &str)| Event {
        time: at as i64,
        kind: if at == 3 { Kind::Fork } else { Kind::Exec },
        process: process(comm),
        ..Event::default()
    };
    let events: Vec<Event> = ["bash", "sh", "a", "bash", "bash"].into_iter().enumerate().map(event).collect();
    let batches = batches(&events);
    let mut scratch = Scratch::default();
    assert_eq!(check(&pass, Matching::First, &mut scratch, &batches).unwrap(), 3);
}

/// The stock Falco files, where they are at hand.
fn stock() -> Option<Arc<RuleSet>> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folders = ["../shared", "../../shared"].map(|shared| root.join(shared).join("data/falco/rules"));
    let Some(folder) = folders.into_iter().find(|path| path.is_dir()) else {
        eprintln!("SKIPPED: ../shared/data/falco/rules is not there");
        return None;
    };
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let texts = ["falco_rules.yaml", "falco-incubating_rules.yaml"].map(|name| (name, read(name)));
    Some(Arc::new(RuleSet::load(texts.iter().map(|(name, text)| (*name, text.as_str())))))
}

#[test]
fn the_stock_rules_over_random_batches() {
    let Some(set) = stock() else { return };
    let passes = [Matching::All, Matching::First].map(|matching| (matching, Pass::new(Arc::clone(&set), matching)));
    let hits = std::cell::Cell::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&prop::collection::vec(events(), 1..4), |batches_of| {
            for (matching, pass) in &passes {
                let mut scratch = Scratch::default();
                for events in &batches_of {
                    hits.set(hits.get() + check(pass, *matching, &mut scratch, &batches(events))?);
                }
            }
            Ok(())
        })
        .unwrap();
    assert!(hits.get() > 0, "no stock rule was hit");
}
