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
const GROUPS: usize = 400;
const ROUNDS: usize = 5;
const SEGMENT_BYTES: u64 = 64 << 20;

criterion_group!(benches, one_group);

fn main() {
    compare();
    benches();
    Criterion::default().configure_from_args().final_summary();
}

/// The table: journal and bare loop in turns, so that both meet the same weather.
fn compare() {
    let frame = frame();
    let (mut bare, mut journal) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let folder = folder();
        // Who begins changes each round.
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                bare.push(bare_loop(&folder.path().join("bare"), &frame));
            } else {
                journal.push(journal_loop(&folder.path().join("journal"), &frame));
            }
        }
    }
    let (bare, journal) = (Run::sum(bare), Run::sum(journal));
    println!("{GROUPS} groups of {FRAMES} frames of {FRAME_BYTES} bytes, {ROUNDS} rounds");
    println!("  bare fallocate+pwrite+fdatasync  {bare}");
    println!("  journal append+sync              {journal}");
    println!("  journal/bare                     {:.2}", journal.rate() / bare.rate());
    read();
}

/// Groups written, and how long each took.
struct Run(Vec<Duration>);

impl Run {
    fn sum(runs: Vec<Self>) -> Self {
        let mut groups: Vec<_> = runs.into_iter().flat_map(|run| run.0).collect();
        groups.sort();
        Self(groups)
    }

    fn rate(&self) -> f64 {
        (self.0.len() * GROUP_BYTES) as f64 / self.0.iter().sum::<Duration>().as_secs_f64() / 1e6
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |share: usize| self.0[(self.0.len() - 1) * share / 1000].as_secs_f64() * 1e3;
        write!(f, "{:6.0} MB/s   sync p50 {:.2} ms  p99 {:.2} ms  max {:.2} ms", self.rate(), at(500), at(990), at(1000))
    }
}

fn bare_loop(path: &Path, frame: &[u8]) -> Run {
    let group = frame.repeat(FRAMES);
    let mut file: Option<(File, u64)> = None;
    let mut times = Vec::new();
    for index in 0..GROUPS {
        let begun = Instant::now();
        let (open, at) = match file.take() {
            Some((open, at)) if at + group.len() as u64 <= SEGMENT_BYTES => (open, at),
            _ => {
                let open = File::create(path.with_extension(index.to_string())).unwrap();
                rustix::fs::fallocate(&open, rustix::fs::FallocateFlags::empty(), 0, SEGMENT_BYTES).unwrap();
                (open, 0)
            }
        };
        open.write_all_at(&group, at).unwrap();
        open.sync_data().unwrap();
        file = Some((open, at + group.len() as u64));
        times.push(begun.elapsed());
    }
    Run(times)
}

fn journal_loop(dir: &Path, frame: &[u8]) -> Run {
    let mut journal = open(dir);
    let mut times = Vec::new();
    for _ in 0..GROUPS {
        let begun = Instant::now();
        write_group(&mut journal, frame);
        times.push(begun.elapsed());
    }
    Run(times)
}

/// Reading what was just written (from the page cache): the journal's own cost, checksums included.
fn read() {
    let folder = folder();
    let mut journal = open(folder.path());
    let frame = frame();
    (0..GROUPS).for_each(|_| write_group(&mut journal, &frame));
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
