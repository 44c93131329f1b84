//! How fast a journal writes and reads, beside the least that the same disk can do.
//!
//! `cargo bench -p weir-journal` first prints one table: groups of 32 frames of 20 kB, a sync each, in turns with a bare loop of
//! fallocate, pwrite and fdatasync over the same bytes; then reading. Target: at least 200 MB/s, or 0.8 of the bare loop.
//! Then criterion measures one group. The files lie in the target folder, or in `WEIR_BENCH_DIR`.

#![allow(missing_docs, reason = "criterion's macro makes a public function without any")]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench prints, and stops at the first error")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group};
use weir_journal::{Journal, Offset, Options, Reader, RealDisk};

const FRAME_BYTES: usize = 20_000;
const FRAMES: usize = 32;
const GROUP_BYTES: usize = FRAME_BYTES * FRAMES;
const GROUPS: usize = 2000;
const TURNS: usize = 100;
const SEGMENT_BYTES: u64 = 64 << 20;

criterion_group!(benches, one_group);

fn main() {
    compare();
    benches();
    Criterion::default().configure_from_args().final_summary();
}

/// The table: journal and bare loop in short turns, so that both meet the same weather.
fn compare() {
    let frame = frame();
    let folder = folder();
    let mut bare = Bare { path: folder.path().join("bare"), group: frame.repeat(FRAMES), file: None, segments: 0 };
    let mut journal = open(&folder.path().join("journal"));
    let (mut bare_times, mut journal_times) = (Run::default(), Run::default());
    for turn in 0..2 * TURNS {
        for _ in 0..GROUPS / TURNS {
            if turn % 2 == 0 {
                bare_times.time(|| bare.write());
            } else {
                journal_times.time(|| write_group(&mut journal, &frame));
            }
        }
        // Neither must fill the disk.
        journal.forget(journal.durable()).unwrap();
    }
    println!("{GROUPS} groups of {FRAMES} frames of {FRAME_BYTES} bytes each, in {TURNS} turns");
    println!("  bare fallocate+pwrite+fdatasync  {bare_times}");
    println!("  journal append+sync              {journal_times}");
    println!("  journal/bare                     {:.2}", journal_times.rate() / bare_times.rate());
    read();
}

/// How long each group took.
#[derive(Default)]
struct Run(Vec<Duration>);

impl Run {
    fn time(&mut self, write: impl FnOnce()) {
        let begun = Instant::now();
        write();
        self.0.push(begun.elapsed());
    }

    fn rate(&self) -> f64 {
        (self.0.len() * GROUP_BYTES) as f64 / self.0.iter().sum::<Duration>().as_secs_f64() / 1e6
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort();
        let at = |share: usize| sorted[(sorted.len() - 1) * share / 1000].as_secs_f64() * 1e3;
        write!(f, "{:6.0} MB/s   group p50 {:.2} ms  p99 {:.2} ms  max {:.2} ms", self.rate(), at(500), at(990), at(1000))
    }
}

/// The least that a log must do.
struct Bare {
    path: PathBuf,
    group: Vec<u8>,
    file: Option<(File, u64)>,
    segments: usize,
}

impl Bare {
    fn write(&mut self) {
        let full = self.file.as_ref().is_none_or(|(_, at)| at + self.group.len() as u64 > SEGMENT_BYTES);
        if full {
            // One old file is kept, as the journal keeps its active one.
            let _ = std::fs::remove_file(self.path.with_extension(self.segments.wrapping_sub(1).to_string()));
            let open = File::create(self.path.with_extension(self.segments.to_string())).unwrap();
            rustix::fs::fallocate(&open, rustix::fs::FallocateFlags::empty(), 0, SEGMENT_BYTES).unwrap();
            self.segments += 1;
            self.file = Some((open, 0));
        }
        let (open, at) = self.file.as_mut().unwrap();
        open.write_all_at(&self.group, *at).unwrap();
        open.sync_data().unwrap();
        *at += self.group.len() as u64;
    }
}

/// Reading what was just written (from the page cache): the journal's own cost, checksums included.
fn read() {
    let folder = folder();
    let mut journal = open(folder.path());
    let frame = frame();
    (0..GROUPS / 5).for_each(|_| write_group(&mut journal, &frame));
    let mut reader = Reader::open(Arc::new(RealDisk), folder.path(), Offset(0)).unwrap();
    let begun = Instant::now();
    let mut bytes = 0;
    while let Some((_, record)) = reader.next().unwrap() {
        bytes += record.len();
    }
    let rate = |bytes: usize, begun: Instant| bytes as f64 / begun.elapsed().as_secs_f64() / 1e6;
    println!("  read                             {:6.0} MB/s", rate(bytes, begun));
    let idle = Instant::now();
    (0..100_000).for_each(|_| assert!(reader.next().unwrap().is_none()));
    println!("  next() on an idle journal        {:6.0} ns", idle.elapsed().as_nanos() as f64 / 1e5);
    drop(journal);
    let begun = Instant::now();
    drop(open(folder.path()));
    println!("  open (checks every record)       {:6.0} MB/s", rate(bytes, begun));
}

fn one_group(criterion: &mut Criterion) {
    let folder = folder();
    let mut journal = open(folder.path());
    let frame = frame();
    let mut group = criterion.benchmark_group("journal");
    group.throughput(Throughput::Bytes(GROUP_BYTES as u64)).sample_size(20);
    group.bench_function("append 32 frames of 20 kB and sync", |bencher| {
        bencher.iter(|| {
            write_group(&mut journal, &frame);
            journal.forget(journal.durable()).unwrap();
        });
    });
    group.finish();
}

fn write_group(journal: &mut Journal, frame: &[u8]) {
    for _ in 0..FRAMES {
        journal.append(frame).unwrap();
    }
    journal.sync().unwrap();
}

fn open(dir: &Path) -> Journal {
    let options = Options { segment_bytes_max: SEGMENT_BYTES, ..Options::default() };
    Journal::open(Arc::new(RealDisk), dir, options).unwrap().0
}

/// Bytes that no disk can compress.
fn frame() -> Vec<u8> {
    let mut state = 7u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(FRAME_BYTES)
    .collect()
}

/// A folder on the disk to be measured, removed at the end.
fn folder() -> tempfile::TempDir {
    let place = std::env::var_os("WEIR_BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    tempfile::tempdir_in(place).unwrap()
}
