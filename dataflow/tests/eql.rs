//! EQL against events: which of them each condition takes, and which sequences are told, by the engine as it runs.
//!
//! A condition is a rule of one stage; each event of the recording has a host of its own, so that an alert's host names the event.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray as _;
use arrow::ipc::reader::StreamReader;
use weir_dataflow::handle::{At, Client, Read, Request, Response};
use weir_dataflow::{Command, EngineOptions, Feed, eql_definition, run};
use weir_schema::{AgentIdentity, BatchBuilder, Epoch, Name, Seq, StampedFrame, parse_line};
use world::{START_MS, World};

/// Host, milliseconds from the start, and the rest of a line of the recording.
const EVENTS: &[(&str, u64, &str)] = &[
    (
        "shell",
        0,
        r#""kind":"exec","pid":7,"uid":0,"user_name":"root","exe":"/usr/bin/bash","args":["bash","-c","say \"a,b\" > C:\\x"],"cmdline":"bash -c x","parent_exe":"/usr/sbin/nginx","result":0,"path":"/usr/bin/bash""#,
    ),
    ("failed", 10, r#""kind":"exec","pid":8,"exe":"/usr/bin/bash","args":["-c"],"result":-2,"path":"/no""#),
    ("fork", 20, r#""kind":"fork","pid":9,"exe":"/bin/init","result":70"#),
    (
        "out",
        30,
        r#""kind":"connect","pid":7,"exe":"/usr/bin/Curl","dst_ip":"198.51.100.7","dst_port":443,"src_ip":"10.1.2.3","direction":"out","result":-115"#,
    ),
    (
        "six",
        40,
        r#""kind":"connect","pid":7,"exe":"/usr/bin/nc","dst_ip":"2001:db8::1","dst_port":53,"direction":"out","result":0"#,
    ),
    (
        "local",
        50,
        r#""kind":"accept","pid":7,"exe":"/usr/sbin/sshd","dst_ip":"127.0.0.1","dst_port":22,"direction":"in","result":0"#,
    ),
    ("made", 60, r#""kind":"open","pid":7,"exe":"/bin/cp","path":"/tmp/.hidden/run.tar.gz","flags":577,"result":3"#),
    ("read", 70, r#""kind":"open","pid":7,"exe":"/bin/cat","path":"/etc/shadow","flags":0,"result":3"#),
    ("moved", 80, r#""kind":"rename","pid":7,"exe":"/bin/mv","path":"/tmp/a%b","path_to":"/etc/cron.d/job_1","result":0"#),
];

/// A condition, and the hosts of the events for which it holds.
const CONDITIONS: &[(&str, &str)] = &[
    (r#"process where true"#, "shell fork"),
    (r#"process where event.type == "start" and event.action == "exec""#, "shell"),
    (r#"process where event.outcome == "failure""#, "failed"),
    (r#"network where true"#, "out six local"),
    (r#"any where event.category : "NET*" and not event.action in ("connection_accepted", "lookup_requested")"#, "out six"),
    (r#"process where process.name in ("sh", "bash") and process.parent.name : "NGINX""#, "shell"),
    (r#"any where process.name : ("curl", "n?")"#, "out six"),
    (r#"any where process.name like "c*" or process.name == "Curl""#, "out made read"),
    (r#"any where process.name like~ ("c*l", "C?T")"#, "out read"),
    (r#"any where process.executable regex "/usr/(bin|sbin)/[a-z]+""#, "shell failed six local"),
    (r#"process where process.args == "-c" and process.args_count == 3"#, "shell"),
    (r#"process where process.args : "SAY *" and process.args : "*C:\\x""#, "shell"),
    (r#"process where process.args in ("b", "a,b", "say") or process.args : ("a*", "\"*", "*,")"#, ""),
    (r#"process where process.args == "say \"a,b\" > C:\\x" and not process.args : "-?c""#, "shell"),
    (r#"process where process.args != null and process.args != "-d""#, "shell"),
    (r#"any where cidrMatch(destination.ip, "198.51.100.0/24", "2001:db8::/32")"#, "out six"),
    (r#"any where not cidrmatch(destination.ip, "127.0.0.0/8")"#, "out six"),
    (r#"network where destination.port in (443, 53) and network.direction == "egress""#, "out six"),
    (r#"network where destination.port : 22 or destination.port - 1 == 442"#, "out local"),
    (r#"file where event.type == "creation""#, "made"),
    (r#"file where file.name == "job_1" and file.extension == null and file.directory == "/etc/cron.d""#, "moved"),
    (r#"file where file.extension == "gz" and file.name : "run.*""#, "made"),
    (r#"file where file.Ext.original.path like "/tmp/a%*" and file.path like "/etc/cron.?/job_*""#, "moved"),
    (r#"file where file.Ext.original.path like "/tmp/a_b""#, ""),
    (r#"file where startsWith(file.path, "/etc/") and endsWith~(file.path, "OW") and length(file.path) == 11"#, "read"),
    (r#"file where stringContains(file.path, "cron") and indexOf(file.path, "cron") == 5"#, "moved"),
    (r#"any where user.id == "0" and user.name == "root" and substring(user.name, 1, 3) == "oo""#, "shell"),
    (r#"any where concat(user.name, ":", process.pid) == "root:7""#, "shell"),
    // What is not there is neither equal nor unequal.
    (r#"process where user.name != "root""#, ""),
    (r#"process where user.name == null"#, "fork"),
    (r#"process where not (user.name == "root" or user.name == "x")"#, ""),
    (r#"any where ?no.such != "x" or not ?no.such == "x""#, ""),
    (r#"any where ?no.such == null and process.pid % 7 == 1 and process.pid / 0 == null"#, "failed"),
];

/// Sequences over all events of the tenant, and the hosts of the first and the last event of each.
const SEQUENCES: &[(&str, &str)] = &[
    (r#"sequence with maxspan=1s [process where process.name == "bash"] [network where destination.port == 443]"#, "shell→out"),
    (
        r#"sequence by process.pid with maxspan=1s [process where true] [network where true] [file where event.action == "rename"]"#,
        "shell→moved",
    ),
    (r#"sequence by process.pid with maxspan=1s [network where true] with runs=3 [file where true]"#, "out→made"),
    (r#"sequence by process.pid with maxspan=1s [network where true] with runs=4 [file where true]"#, ""),
    (r#"sequence by process.pid with maxspan=30ms [process where true] [network where true]"#, ""),
    (
        r#"sequence by process.pid with maxspan=1s [process where true] [file where file.path == "/etc/shadow"] until [file where event.type == "creation"]"#,
        "",
    ),
    (
        r#"sequence by process.pid with maxspan=1s [process where true] ![network where destination.port == 22] [file where true]"#,
        "",
    ),
    (
        r#"sequence by process.pid with maxspan=1s [process where true] ![network where destination.port == 23] [file where true]"#,
        "shell→made",
    ),
    (r#"sequence by process.pid with maxspan=50ms [file where true] ![file where event.action == "rename"]"#, "moved→moved"),
    (r#"sequence by process.pid with maxspan=50ms [file where event.action == "rename"] ![file where true]"#, "moved→moved"),
];

fn world() -> World {
    let ticks = (0..600).map(|tick| (START_MS + tick * 100, vec![Vec::new(); 3])).collect();
    let mut world = World { ticks, ..World::default() };
    let name = |text: &str| Name::new(text).unwrap();
    for (n, (host, at_ms, rest)) in EVENTS.iter().enumerate() {
        let line = format!(r#"{{"time":"2026-11-23T16:00:00Z","host":"{host}",{rest}}}"#);
        let read = parse_line(&line).unwrap_or_else(|why| panic!("{line}: {why}"));
        let mut event = read.event.clone();
        event.time = ((START_MS + at_ms) * 1_000_000).cast_signed();
        let mut builder = BatchBuilder::new(Arc::new(read.host.clone()), Epoch(7), event.kind.lane(), Seq(0));
        builder.push(&event).unwrap();
        let identity = AgentIdentity { tenant: name("acme"), region: name("eu"), agent: name(host) };
        let frame = StampedFrame { identity, received_ms: START_MS + 1_000, frame: builder.finish().unwrap().bytes };
        // Not in the order of their times.
        world.ticks[10 + (n * 5) % 7].1[n % 3].push(frame);
    }
    world
}

/// The hosts of the events of each rule's chains, first and last.
fn told(rules: &[String]) -> BTreeMap<String, BTreeSet<String>> {
    let dir = std::env::temp_dir().join(format!("weir-eql-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let socket = dir.join("engine.sock");
    let world = world();
    let feed = |worker| {
        let create = |(n, query): (usize, &String)| {
            let (rule, partly) =
                eql_definition(&format!("rule {n}"), "eql", query).unwrap_or_else(|why| panic!("{query}: {why}"));
            assert!(partly.is_empty(), "{query}: {partly:?}");
            Command::CreateView(rule.definition)
        };
        let commands = rules.iter().enumerate().map(create);
        let feed = commands.fold(world.feed(worker, 2), |script, command| script.with_command(START_MS, &command));
        Box::new(feed) as Box<dyn Feed>
    };
    let (feeds, options) = ((0..2).map(feed).collect(), EngineOptions::alone(2, socket.clone()));
    std::thread::spawn(move || run(options, feeds));
    let mut client = loop {
        match Client::connect(&socket) {
            Ok(client) => break client,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let columns = ["rule", "stages", "state"].map(str::to_owned).to_vec();
    let read = Read { relation: "alerts".into(), columns: Some(columns), limit: None, rows_max: 10_000, bytes_max: 1 << 30 };
    let answers = client.ask(&Request::Peek { id: 1, at: At::Tick(world.end()), reads: vec![read] }).unwrap();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for answer in answers {
        let Response::Rows { ipc, .. } = answer else { continue };
        for batch in StreamReader::try_new(ipc.as_slice(), None).unwrap().map(Result::unwrap) {
            for row in 0..batch.num_rows() {
                let cell = |column: usize| batch.column(column).as_string::<i32>().value(row).to_owned();
                // Some were told before the event came that undoes them.
                if cell(2) == "withdrawn" {
                    continue;
                }
                let stages: Vec<serde_json::Value> = serde_json::from_str(&cell(1)).unwrap();
                let host = |stage: &serde_json::Value| stage["host"].as_str().unwrap().to_owned();
                let hosts = format!("{}→{}", host(&stages[0]), host(&stages[stages.len() - 1]));
                found.entry(cell(0)).or_default().insert(hosts);
            }
        }
    }
    let _ = std::fs::remove_dir_all(&dir);
    found
}

#[test]
fn conditions_and_sequences_take_the_events_they_say() {
    let rules: Vec<String> = CONDITIONS.iter().chain(SEQUENCES).map(|(query, _)| (*query).to_owned()).collect();
    let found = told(&rules);
    let single = CONDITIONS.iter().map(|(query, hosts)| {
        (query, hosts.split_whitespace().map(|host| format!("{host}→{host}")).collect::<BTreeSet<String>>())
    });
    let several = SEQUENCES.iter().map(|(query, chains)| (query, chains.split_whitespace().map(str::to_owned).collect()));
    let wrong: Vec<String> = single
        .chain(several)
        .enumerate()
        .filter_map(|(n, (query, expected))| {
            let told = found.get(&format!("rule_{n}")).cloned().unwrap_or_default();
            (told != expected).then(|| format!("{query}\n  told {told:?}\n  not  {expected:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
