//! What an event costs: the stock Falco rules of `../shared/data` on four kinds of events, first match and all, one by one; and what it costs in
//! batches of a thousand, over columns, with no rules, the stock ones and thousands.
//!
//! Without the files, rules made here by number. `cargo bench -p weir-rules`.

#![allow(missing_docs, reason = "criterion's macros write undocumented functions")]

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_rules::{EventFields, Matcher, Matching, Pass, RuleSet, Scratch};
use weir_schema::{Batch, BatchBuilder, BootId, Container, Decoder, Epoch, Event, Fields, Host, Kind, Lane, Process, Seq};

fn events() -> Vec<Event> {
    let process = Arc::new(Process {
        pid: 4_242,
        exe: Some("/usr/sbin/nginx".into()),
        comm: Some("nginx".into()),
        args: Some(r#"["nginx","-g","daemon off;"]"#.into()),
        cmdline: Some("nginx -g daemon off;".into()),
        parent_exe: Some("/usr/bin/containerd-shim-runc-v2".into()),
        parent_cmdline: Some("/usr/bin/containerd-shim-runc-v2 -namespace moby".into()),
        ancestors: Some(r#"["/usr/bin/containerd-shim-runc-v2","/usr/lib/systemd/systemd"]"#.into()),
        uid: Some(101),
        user_name: Some("nginx".into()),
        ..Process::default()
    });
    let container = Arc::new(Container {
        container_id: Some("0123456789abcdef0123456789abcdef".into()),
        image: Some("docker.io/library/nginx:1.27".into()),
        ..Container::default()
    });
    let open = |path: &str, flags| Fields { path: Some(path.into()), flags: Some(flags), result: Some(0), ..Fields::default() };
    let connect = Fields {
        src_ip: Some("10.0.0.1".into()),
        src_port: Some(40_000),
        dst_ip: Some("10.0.0.2".into()),
        dst_port: Some(5_432),
        proto: Some("tcp".into()),
        direction: Some("out".into()),
        result: Some(0),
        ..Fields::default()
    };
    let kinds = [
        (Kind::Exec, open("/usr/sbin/nginx", 0)),
        (Kind::Open, open("/var/www/html/index.html", 0)),
        (Kind::Open, open("/var/log/nginx/access.log", 0o2001)),
        (Kind::Connect, connect),
    ];
    let event = |(kind, fields)| Event {
        time: 1,
        kind,
        process: Some(Arc::clone(&process)),
        container: Some(Arc::clone(&container)),
        fields,
    };
    kinds.into_iter().map(event).collect()
}

/// Name and text of the stock files.
fn stock() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folders = ["../shared", "../../shared"].map(|shared| root.join(shared).join("data/falco/rules"));
    let Some(folder) = folders.into_iter().find(|path| path.is_dir()) else { return Vec::new() };
    let names = ["falco_rules.yaml", "falco-incubating_rules.yaml"];
    names.iter().filter_map(|name| Some(((*name).to_owned(), fs::read_to_string(folder.join(name)).ok()?))).collect()
}

/// So many rules that no event matches, which share their first half.
fn synthetic(rules: usize) -> String {
    let mut text = "- macro: opened\n  condition: evt.type in (open, openat) and evt.is_open_write = true\n".to_owned();
    for number in 0..rules {
        text += &format!(
            "- rule: synthetic {number}\n  desc: d\n  condition: opened and fd.name startswith /data/{number} and not proc.name in (a{number}, b)\n  output: o\n  priority: INFO\n"
        );
    }
    text
}

/// Batches of a busy host: thirty processes, a few hundred paths and peers, four opens to one connect and a few execs.
fn batches() -> Vec<Batch> {
    let shape = events();
    let process = |number: u32| {
        let names = ["nginx", "postgres", "java", "python3", "node", "cron", "sshd", "kubelet", "dockerd", "sh"];
        let name = names[number as usize % names.len()];
        Arc::new(Process {
            pid: 1_000 + number,
            exe: Some(format!("/usr/bin/{name}").into()),
            comm: Some(name.into()),
            args: Some(format!(r#"["{name}","-c","/etc/{name}/{number}.conf"]"#).into()),
            cmdline: Some(format!("{name} -c /etc/{name}/{number}.conf").into()),
            ..shape[0].process.as_deref().cloned().unwrap_or_default()
        })
    };
    let processes: Vec<Arc<Process>> = (0..30).map(process).collect();
    let host = Arc::new(Host { host: "h".into(), boot_id: BootId([1; 16]), ..Host::default() });
    let batch = |lane: Lane| {
        let mut builder = BatchBuilder::new(Arc::clone(&host), Epoch(1), lane, Seq(0));
        for number in 0..1_000_u32 {
            let mut event = match lane {
                Lane::File => shape[if number % 3 == 0 { 2 } else { 1 }].clone(),
                Lane::Network => shape[3].clone(),
                _ => shape[0].clone(),
            };
            event.time = i64::from(number);
            event.process = Some(Arc::clone(&processes[number as usize * 7 % 30]));
            event.container = shape[0].container.clone().filter(|_| number % 5 != 0);
            let path = ["/var/lib/app/data", "/proc", "/usr/lib/x86_64-linux-gnu/lib", "/tmp/work", "/home/user/src"]
                [number as usize % 5];
            event.fields.path = event.fields.path.map(|_| format!("{path}/{}.tmp", number * 13 % 400).into());
            event.fields.dst_ip = event.fields.dst_ip.map(|_| format!("10.0.{}.7", number % 200).into());
            builder.push(&event).expect("a thousand events have room");
        }
        builder.finish().expect("a batch becomes a frame").decode(&mut Decoder::new()).expect("what was encoded decodes")
    };
    // Of sixteen batches twelve are about files, three about the network, one about execs.
    (0..16)
        .map(|at| {
            batch(match at {
                0 => Lane::Security,
                1..4 => Lane::Network,
                _ => Lane::File,
            })
        })
        .collect()
}

fn columns(criterion: &mut Criterion, sets: &[(&str, Arc<RuleSet>)]) {
    let batches = batches();
    let mut group = criterion.benchmark_group("columns");
    group.throughput(Throughput::Elements(batches.iter().map(|batch| batch.rows() as u64).sum()));
    for (name, set) in sets {
        let (pass, mut scratch) = (Pass::new(Arc::clone(set), Matching::First), Scratch::default());
        group.bench_function(format!("{name}: {} rules", set.rules.len()), |bencher| {
            bencher.iter(|| {
                let mut hits = 0_u64;
                for batch in &batches {
                    scratch.begin(&pass, black_box(batch));
                    for section in &batch.sections {
                        scratch.run(&pass, batch, section, 0..section.rows(), |_, _, _| hits += 1);
                    }
                }
                hits
            });
        });
        let mut matcher = Matcher::default();
        let mut hits = Vec::new();
        group.bench_function(format!("{name}: {} rules, one by one", set.rules.len()), |bencher| {
            bencher.iter(|| {
                hits.clear();
                for event in batches.iter().flat_map(Batch::events) {
                    matcher.hits(set, &EventFields::new(&event, "h"), Matching::First, &mut hits);
                }
                hits.len()
            });
        });
    }
    group.finish();
}

fn benches(criterion: &mut Criterion) {
    let stock = stock();
    let made = synthetic(2_000);
    let stock_files = || stock.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    let sets = [
        ("stock", Arc::new(RuleSet::load(stock_files()))),
        ("stock + 2,000", Arc::new(RuleSet::load(stock_files().chain([("synthetic.yaml", made.as_str())])))),
    ];
    let none = ("none", Arc::new(RuleSet::default()));
    let hundred = synthetic(122);
    let some = ("stock + 122", Arc::new(RuleSet::load(stock_files().chain([("synthetic.yaml", hundred.as_str())]))));
    columns(criterion, &[none, sets[0].clone(), some, sets[1].clone()]);
    let events = events();
    let mut group = criterion.benchmark_group("match");
    group.throughput(Throughput::Elements(events.len() as u64));
    for (name, set) in &sets {
        for matching in [Matching::First, Matching::All] {
            let mut matcher = Matcher::default();
            let mut hits = Vec::new();
            group.bench_function(format!("{name}: {} rules, {matching:?}", set.rules.len()), |bencher| {
                bencher.iter(|| {
                    for event in &events {
                        hits.clear();
                        matcher.hits(set, &EventFields::new(black_box(event), "h"), matching, &mut hits);
                    }
                    hits.len()
                });
            });
        }
    }
    group.finish();
    criterion.bench_function("load the stock files", |bencher| bencher.iter(|| RuleSet::load(stock_files()).rules.len()));
}

criterion_group!(group, benches);
criterion_main!(group);
