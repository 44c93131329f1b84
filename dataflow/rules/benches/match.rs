//! What an event costs: the stock Falco rules of `../shared/data` on four kinds of events, first match and all.
//!
//! Without the files, rules made here by number. `cargo bench -p weir-rules`.

#![allow(missing_docs, reason = "criterion's macros write undocumented functions")]

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_rules::{EventFields, Matcher, Matching, RuleSet};
use weir_schema::{Container, Event, Fields, Kind, Process};

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

fn benches(criterion: &mut Criterion) {
    let stock = stock();
    let made = synthetic(2_000);
    let stock_files = || stock.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    let sets = [
        ("stock", RuleSet::load(stock_files())),
        ("stock + 2,000", RuleSet::load(stock_files().chain([("synthetic.yaml", made.as_str())]))),
    ];
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
                        matcher.matches(set, &EventFields::new(black_box(event), "h"), matching, &mut hits);
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
