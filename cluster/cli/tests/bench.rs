//! `weir bench` as a process: the four queries of `loadtest/peers/weir` over small CSV and Parquet files equal a plain recount, however many
//! workers and ticks; and what is wrong is named.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;

const HEADER: &str =
    "event_time_ms,host_id,region,container_id,app,pid,kind,dst_ip,dst_region,dst_app,bytes,cpu_ms,mem_bytes,path";
const BASE_MS: u64 = 1_760_000_040_000;

#[derive(Clone)]
struct Event {
    time: u64,
    region: String,
    container: String,
    app: String,
    kind: &'static str,
    dst_region: String,
    bytes: u64,
    cpu: u64,
    mem: u64,
    path: &'static str,
}

/// Steps of a linear congruence; the high bits are good enough here.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

/// Events of few containers, some of one time, not in order of time.
fn events(seed: u64, count: u64) -> Vec<Event> {
    let mut random = Random(seed);
    let mut events: Vec<Event> = (0..count)
        .map(|n| {
            let container = random.below(20);
            let kind = random.one_of(&["connect_open", "connect_close", "exec", "file_open", "cpu_sample"]);
            let region = |n: u64| format!("region-{}", n % 3);
            let connects = kind.starts_with("connect");
            Event {
                time: BASE_MS + n * 150 + random.below(2) * 150,
                region: region(container),
                container: format!("c{container}"),
                // One name needs quotes in CSV, and one is empty.
                app: ["web", "a \"b\", c", "db", "ü", ""][usize::try_from(container % 5).unwrap()].to_owned(),
                kind,
                dst_region: if connects { region(random.below(3)) } else { String::new() },
                bytes: if kind == "connect_close" { random.below(1_000) } else { 0 },
                cpu: random.below(500),
                mem: random.below(1 << 32),
                path: match kind {
                    "exec" => random.one_of(&["/bin/sh", "/bin/bash", "/bin/ls"]),
                    "file_open" => random.one_of(&["/etc/shadow", "/root/.ssh/id_rsa", "/etc/hosts"]),
                    _ => "",
                },
            }
        })
        .collect();
    for place in (1..events.len()).rev() {
        if random.below(4) == 0 {
            events.swap(place, usize::try_from(random.below(place as u64)).unwrap());
        }
    }
    events
}

/// A field that is one whatever is in it; empty ones in quotes are texts.
fn field(text: &str) -> String {
    if text.contains(['"', ',']) || text.is_empty() { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

fn write(dir: &Path, events: &[Event]) {
    for (part, events) in events.chunks(events.len().div_ceil(2)).enumerate() {
        let line = |e: &Event| {
            let (app, dst) = (field(&e.app), &e.dst_region);
            format!(
                "{},h,{},{},{app},7,{},,{dst},,{},{},{},{}",
                e.time, e.region, e.container, e.kind, e.bytes, e.cpu, e.mem, e.path
            )
        };
        // One file ends its lines as other systems do, one has no end behind its last line.
        let ending = ["\n", "\r\n"][part];
        let lines: Vec<String> = std::iter::once(HEADER.to_owned()).chain(events.iter().map(line)).collect();
        fs::write(dir.join(format!("part-{part}.csv")), lines.join(ending)).unwrap();

        let texts = |of: &dyn Fn(&Event) -> String| Arc::new(StringArray::from_iter_values(events.iter().map(of))) as ArrayRef;
        let ints = |of: &dyn Fn(&Event) -> u64| {
            Arc::new(Int64Array::from_iter_values(events.iter().map(|e| i64::try_from(of(e)).unwrap()))) as ArrayRef
        };
        let batch = RecordBatch::try_from_iter([
            ("event_time_ms", ints(&|e| e.time)),
            ("region", texts(&|e| e.region.clone())),
            ("container_id", texts(&|e| e.container.clone())),
            ("app", texts(&|e| e.app.clone())),
            ("kind", texts(&|e| e.kind.to_owned())),
            ("dst_region", texts(&|e| e.dst_region.clone())),
            ("bytes", ints(&|e| e.bytes)),
            ("cpu_ms", ints(&|e| e.cpu)),
            ("mem_bytes", ints(&|e| e.mem)),
            ("path", texts(&|e| e.path.to_owned())),
        ])
        .unwrap();
        let file = File::create(dir.join(format!("part-{part}.parquet"))).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        for from in (0..batch.num_rows()).step_by(500) {
            writer.write(&batch.slice(from, 500.min(batch.num_rows() - from))).unwrap();
            writer.flush().unwrap();
        }
        writer.close().unwrap();
    }
}

/// The four answers, counted once over all events.
fn recount(events: &[Event]) -> [Vec<String>; 4] {
    let mut live: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    let mut sums: BTreeMap<u64, BTreeMap<&str, u64>> = BTreeMap::new();
    let mut used: BTreeMap<(u64, &str), (u64, u64, u64, u64)> = BTreeMap::new();
    for e in events {
        if e.kind.starts_with("connect") {
            *live.entry((&e.region, &e.dst_region)).or_default() += if e.kind == "connect_open" { 1 } else { -1 };
        }
        if e.kind == "connect_close" {
            for hop in 1..=12 {
                *sums.entry((e.time / 5_000 + hop) * 5_000).or_default().entry(&e.app).or_default() += e.bytes;
            }
        }
        if e.kind == "cpu_sample" {
            let (cpu, count, cpu_max, mem_max) = used.entry(((e.time / 10_000 + 1) * 10_000, &e.app)).or_default();
            (*cpu, *count, *cpu_max, *mem_max) = (*cpu + e.cpu, *count + 1, e.cpu.max(*cpu_max), e.mem.max(*mem_max));
        }
    }
    let mut top = Vec::new();
    for (end, apps) in &sums {
        let mut apps: Vec<_> = apps.iter().collect();
        apps.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        top.extend(apps.iter().take(10).zip(1..).map(|((app, bytes), rank)| format!("{end},{rank},{},{bytes}", field(app))));
    }
    let q1 = live.iter().map(|((from, to), live)| format!("{from},{to},{live}")).collect();
    let q3 =
        used.iter().map(|((end, app), (cpu, n, cpu_max, mem_max))| format!("{end},{},{cpu},{n},{cpu_max},{mem_max}", field(app)));
    [q1, top, q3.collect(), attacks(events)].map(|mut rows: Vec<String>| {
        rows.sort();
        rows
    })
}

/// One row for each start, also for two at one time.
fn attacks(events: &[Event]) -> Vec<String> {
    let first_after = |container: &str, time: u64, is: &dyn Fn(&Event) -> bool| {
        events.iter().filter(|e| e.container == container && e.time > time && is(e)).map(|e| e.time).min()
    };
    let is_exec = |e: &&Event| e.kind == "exec" && ["/bin/sh", "/bin/bash"].contains(&e.path);
    let read = |e: &Event| e.kind == "file_open" && ["/etc/shadow", "/root/.ssh/id_rsa"].contains(&e.path);
    let leaves = |e: &Event| e.kind == "connect_open" && e.region != e.dst_region;
    let chain = |e: &Event| {
        let t_read = first_after(&e.container, e.time, &read)?;
        let t_connect = first_after(&e.container, t_read, &leaves)?;
        (t_connect - e.time < 600_000).then(|| format!("{},{},{t_read},{t_connect}", e.container, e.time))
    };
    events.iter().filter(is_exec).filter_map(chain).collect()
}

fn queries() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../loadtest/peers/weir")
}

fn weir(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir")).arg("bench").args(arguments).output().unwrap()
}

#[test]
fn four_queries_equal_a_recount_over_csv_and_parquet() {
    let dir = tempfile::tempdir().unwrap();
    let events = events(11, 5_000);
    write(dir.path(), &events);
    let expected = recount(&events);
    assert!(expected.iter().all(|rows| rows.len() > 5), "{:?}", expected.each_ref().map(Vec::len));
    for (query, expected) in ["q1", "q2", "q3", "q4"].into_iter().zip(&expected) {
        for (format, workers, tick_rows) in
            [("csv", "1", "250000"), ("csv", "3", "300"), ("parquet", "1", "400"), ("parquet", "3", "500")]
        {
            let (out, table) = (dir.path().join("result"), format!("fleet={}", dir.path().display()));
            let (sql, out_name) = (queries().join(format!("{query}.sql")), out.display().to_string());
            let sql = sql.display().to_string();
            let arguments = [
                "--table",
                &table,
                "--format",
                format,
                "--query",
                &sql,
                "--workers",
                workers,
                "--out",
                &out_name,
                "--tick-rows",
                tick_rows,
            ];
            let done = weir(&arguments);
            let (told, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
            assert!(done.status.success() && errors.is_empty(), "{query} {format}: {errors}");
            let value = |name: &str| told.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            assert!(value("SECONDS").is_some_and(|s| s > 0.0) && value("CPU").is_some(), "{told}");
            let text = fs::read_to_string(&out).unwrap();
            let mut found: Vec<&str> = text.lines().collect();
            found.sort_unstable();
            let differ = found.iter().zip(expected).find(|(found, expected)| *found != expected);
            assert!(found.len() == expected.len() && differ.is_none(), "{query} {format} {workers}: {differ:?}");
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, sql, out) = (dir.path().join("data"), dir.path().join("q.sql"), dir.path().join("out"));
    fs::create_dir(&folder).unwrap();
    let run = |table: &str, format: &str, text: &str, more: &[&str]| {
        fs::write(&sql, text).unwrap();
        let table = format!("fleet={table}");
        let (sql, out) = (sql.display().to_string(), out.display().to_string());
        let mut arguments = vec!["--table", &table, "--format", format, "--query", &sql, "--out", &out];
        arguments.extend(more);
        let done = weir(&arguments);
        (done.status.code().unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let there = folder.display().to_string();
    let count = "SELECT count(*) AS c FROM fleet WHERE n > 0";
    let refused = |(code, told): (i32, String), expected: i32, words: &[&str]| {
        assert!(code == expected && words.iter().all(|word| told.contains(word)), "{code} {told}");
    };

    refused(run("nowhere", "csv", count, &[]), 1, &["could not read nowhere"]);
    refused(run(&there, "csv", count, &[]), 1, &["has no .csv file"]);
    refused(run(&there, "xml", count, &[]), 2, &["possible values: csv, parquet"]);
    refused(run(&there, "csv", count, &["--workers", "0"]), 2, &["from 1 to"]);
    refused(run(&there, "csv", count, &["--column", "n=int"]), 2, &["bigint"]);

    let file = folder.join("a.csv");
    fs::write(&file, "n,s\n1,a\n2,b\n").unwrap();
    refused(run(&there, "csv", count, &[]), 0, &[]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "2\n");
    refused(run(&there, "csv", "SELECT nothing FROM fleet", &[]), 1, &["q.sql", "nothing"]);
    refused(run(&there, "csv", "SELECT n FROM float", &[]), 1, &["\"float\" does not exist"]);
    refused(run(&there, "csv", "SELEC n FROM fleet", &[]), 1, &["q.sql"]);
    refused(run(&there, "csv", "SELECT n, random() AS r FROM fleet", &[]), 1, &["q.sql", "random"]);
    refused(run(&there, "csv", count, &["--column", "m=text"]), 1, &["no column \"m\"", "n, s"]);
    fs::write(&file, "n,s\n1,a\n2\n3,c\n").unwrap();
    refused(run(&there, "csv", count, &[]), 1, &["a.csv:3:", "1 fields", "header has 2"]);
    fs::write(&file, "n,s\n1,a\n2,\"b\n").unwrap();
    refused(run(&there, "csv", count, &[]), 1, &["a.csv:3:", "not closed"]);
    // Beyond what the types were guessed from.
    let many = "1,a\n".repeat(300_000);
    fs::write(&file, format!("n,s\n{many}x,b\n")).unwrap();
    refused(run(&there, "csv", count, &["--workers", "2"]), 1, &["a.csv:300002:", "\"n\" is bigint", "n=text"]);
    fs::write(&file, "n,s\n1,a\n").unwrap();
    fs::write(folder.join("b.csv"), "s,n\na,1\n").unwrap();
    refused(run(&there, "csv", count, &[]), 1, &["b.csv:1:", "one header"]);
    fs::write(folder.join("a.parquet"), "no").unwrap();
    refused(run(&there, "parquet", count, &[]), 1, &["a.parquet", "is this a Parquet file?"]);
    let help = weir(&["--help"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("Example"));
}
