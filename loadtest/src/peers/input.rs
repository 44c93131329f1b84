//! The input of the comparison: what a fleet does, as two CSV files, from one seed.
//!
//! One event for each millisecond of the fleet's own time, so times are unique. A container's events are all in one file. Of a hundred
//! events about 58 open or close a connection, 6 start a program, 16 open a file, 20 are samples; one in 2,000 begins a planned attack,
//! whose steps come minutes apart and at times in the wrong order. A shape says what makes it harder. The digest names the bytes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::fleet::Random;

/// What the events are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Shape {
    /// Each file in order of time, every event once, all 50,000 containers alike
    Plain,
    /// One event in ten up to 2 s too late, one in a hundred up to 2 minutes
    Disorder,
    /// One event in twenty comes again, up to a minute later, and is to count once
    Duplicates,
    /// Containers by Zipf's law: the first of 50,000 has one event in eleven
    Zipf,
    /// A million containers
    Keys,
}

impl Shape {
    /// Its name, as in the command and the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Disorder => "disorder",
            Self::Duplicates => "duplicates",
            Self::Zipf => "zipf",
            Self::Keys => "keys",
        }
    }

    fn containers(self) -> u64 {
        if self == Self::Keys { 1_000_000 } else { 50_000 }
    }
}

/// What was written.
#[derive(Debug, Clone)]
pub(super) struct Written {
    /// Rows in both files, events that come again included.
    pub(super) rows: u64,
    /// Bytes of both.
    pub(super) bytes: u64,
    /// The first twelve hexadecimal digits of a SHA-256 over both.
    pub(super) digest: String,
}

/// Writes `part-0.csv` and `part-1.csv` into `dir`.
pub(super) fn write(dir: &Path, shape: Shape, events: u64, seed: u64) -> anyhow::Result<Written> {
    std::fs::create_dir_all(dir).with_context(|| format!("could not create {}", dir.display()))?;
    let mut parts =
        (0..PARTS).map(|part| Part::create(&dir.join(format!("part-{part}.csv")))).collect::<anyhow::Result<Vec<_>>>()?;
    let mut workload = Workload::new(shape, seed);
    // Of its own, so that two shapes with the same containers have the same events.
    let mut fate = Random(seed.wrapping_mul(0x9E37_79B9).wrapping_add(1) | 1);
    let mut later: BinaryHeap<Reverse<(u64, u64, usize, String)>> = BinaryHeap::new();
    let mut line = String::new();
    for number in 0..events {
        let row = workload.next(number);
        let part = (row.container % PARTS) as usize;
        line.clear();
        row.write(&mut line)?;
        let delay = match shape {
            Shape::Disorder => delay(&mut fate),
            _ => 0,
        };
        if shape == Shape::Duplicates && fate.below(20) == 0 {
            later.push(Reverse((number + 1 + fate.below(60_000), number, part, line.clone())));
        }
        while later.peek().is_some_and(|Reverse((due, ..))| *due <= number) {
            let Some(Reverse((_, _, part, line))) = later.pop() else { break };
            parts[part].line(&line)?;
        }
        match delay {
            0 => parts[part].line(&line)?,
            delay => later.push(Reverse((number + delay, number, part, line.clone()))),
        }
    }
    while let Some(Reverse((_, _, part, line))) = later.pop() {
        parts[part].line(&line)?;
    }
    let mut written = Written { rows: 0, bytes: 0, digest: String::new() };
    let mut whole = Sha256::new();
    for part in parts {
        written.rows += part.rows;
        written.bytes += part.bytes;
        whole.update(part.finish()?);
    }
    written.digest = hex12(&whole.finalize());
    Ok(written)
}

/// By how many milliseconds an event comes too late.
fn delay(fate: &mut Random) -> u64 {
    match fate.below(100) {
        0 => fate.below(LATE_MS_MAX),
        1..=10 => fate.below(2_000),
        _ => 0,
    }
}

/// The first twelve hexadecimal digits.
pub(super) fn hex12(digest: &[u8]) -> String {
    digest.iter().take(6).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

struct Part {
    file: BufWriter<File>,
    hash: Sha256,
    rows: u64,
    bytes: u64,
}

impl Part {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("could not create {}", path.display()))?;
        let mut part = Self { file: BufWriter::with_capacity(1 << 20, file), hash: Sha256::new(), rows: 0, bytes: 0 };
        part.line(HEADER)?;
        part.rows = 0;
        Ok(part)
    }

    fn line(&mut self, line: &str) -> anyhow::Result<()> {
        self.file.write_all(line.as_bytes()).and_then(|()| self.file.write_all(b"\n")).context("writing the input")?;
        self.hash.update(line);
        self.hash.update(b"\n");
        self.rows += 1;
        self.bytes += line.len() as u64 + 1;
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<[u8; 32]> {
        self.file.flush().context("writing the input")?;
        Ok(self.hash.finalize().into())
    }
}

#[derive(Clone, Copy)]
struct Link {
    container: u64,
    pid: u64,
    peer: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Shell,
    Read,
    Leave,
}

enum What {
    Open { peer: u64 },
    Close { peer: u64, bytes: u64 },
    Exec(&'static str),
    File(&'static str),
    Sample { cpu_ms: u64, mem_bytes: u64 },
}

struct Row {
    time: u64,
    container: u64,
    pid: u64,
    what: What,
}

impl Row {
    fn write(&self, line: &mut String) -> std::fmt::Result {
        let container = self.container;
        write!(line, "{},h{:04},{},c{container:05},", self.time, host(container), REGIONS[region(container)])?;
        write!(line, "app-{:03},{},", app(container), self.pid)?;
        let to = |line: &mut String, kind: &str, peer: u64, bytes: u64| {
            let (a, b, c) = (peer >> 16, (peer >> 8) & 255, peer & 255);
            write!(line, "{kind},10.{a}.{b}.{c},{},app-{:03},{bytes},0,0,", REGIONS[region(peer)], app(peer))
        };
        match self.what {
            What::Open { peer } => to(line, "connect_open", peer, 0),
            What::Close { peer, bytes } => to(line, "connect_close", peer, bytes),
            What::Exec(path) => write!(line, "exec,,,,0,0,0,{path}"),
            What::File(path) => write!(line, "file_open,,,,0,0,0,{path}"),
            What::Sample { cpu_ms, mem_bytes } => write!(line, "cpu_sample,,,,0,{cpu_ms},{mem_bytes},"),
        }
    }
}

struct Workload {
    random: Random,
    shape: Shape,
    open: Vec<Link>,
    attacks: BinaryHeap<Reverse<(u64, u64, Step)>>,
}

impl Workload {
    fn new(shape: Shape, seed: u64) -> Self {
        // Small seeds differ in few bits, which the generator needs some steps to spread.
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..16 {
            random.next();
        }
        Self { random, shape, open: Vec::new(), attacks: BinaryHeap::new() }
    }

    fn next(&mut self, number: u64) -> Row {
        let time = BASE_MS + number;
        if number.is_multiple_of(EVENTS_PER_ATTACK) {
            self.plan_attack(time);
        }
        if self.attacks.peek().is_some_and(|Reverse((due, ..))| *due <= time)
            && let Some(Reverse((_, container, step))) = self.attacks.pop()
        {
            return self.attack(time, container, step);
        }
        let container = self.container();
        let pid = self.pid();
        let what = match self.random.below(100) {
            share @ 0..58 => return self.connection(time, container, pid, share),
            58..64 if self.random.below(20) == 0 => What::Exec(self.one_of(&SHELLS)),
            58..64 => What::Exec(self.one_of(&PROGRAMS)),
            64..80 if self.random.below(200) == 0 => What::File(self.one_of(&CREDENTIALS)),
            64..80 => What::File(self.one_of(&FILES)),
            _ => What::Sample { cpu_ms: self.random.below(1_000), mem_bytes: (1 << 20) + self.random.below(1 << 32) },
        };
        Row { time, container, pid, what }
    }

    fn plan_attack(&mut self, time: u64) {
        let container = self.container();
        let shell = time + self.random.below(2_000);
        let read = shell + 1 + self.random.below(120_000);
        // One in three leaves after more than ten minutes.
        let leave = read + 1 + self.random.below(900_000);
        let (shell, read) = if self.random.below(4) == 0 { (read, shell) } else { (shell, read) };
        self.attacks.extend(
            [(shell, Step::Shell), (read, Step::Read), (leave, Step::Leave)].map(|(at, step)| Reverse((at, container, step))),
        );
    }

    fn attack(&mut self, time: u64, container: u64, step: Step) -> Row {
        let pid = self.pid();
        let what = match step {
            Step::Shell => What::Exec(self.one_of(&SHELLS)),
            Step::Read => What::File(self.one_of(&CREDENTIALS)),
            Step::Leave => self.opened(container, pid, true),
        };
        Row { time, container, pid, what }
    }

    /// Three in five open one until there are 200,000; then as many close.
    fn connection(&mut self, time: u64, container: u64, pid: u64, share: u64) -> Row {
        let opens = if self.open.len() < OPEN_MAX { 36 } else { 29 };
        if share < opens || self.open.is_empty() {
            let far = self.random.below(10) < 4;
            return Row { time, container, pid, what: self.opened(container, pid, far) };
        }
        let closed = self.random.below(self.open.len() as u64) as usize;
        let Link { container, pid, peer } = self.open.swap_remove(closed);
        let bits = 6 + self.random.below(14);
        let bytes = 64 + self.random.below(1 << bits);
        Row { time, container, pid, what: What::Close { peer, bytes } }
    }

    fn opened(&mut self, container: u64, pid: u64, far: bool) -> What {
        let peer = loop {
            let peer = self.random.below(self.shape.containers());
            if (region(peer) != region(container)) == far {
                break peer;
            }
        };
        self.open.push(Link { container, pid, peer });
        What::Open { peer }
    }

    fn container(&mut self) -> u64 {
        let containers = self.shape.containers();
        if self.shape != Shape::Zipf {
            return self.random.below(containers);
        }
        // The share of the first k is about ln(k) / ln(all); ranks are strewn over all hosts, the factor is prime to the number of containers.
        let even = self.random.below(1 << 53) as f64 / (1_u64 << 53) as f64;
        let rank = ((containers as f64).powf(even) as u64).min(containers) - 1;
        rank.wrapping_mul(SPREAD) % containers
    }

    fn pid(&mut self) -> u64 {
        1 + self.random.below(32_768)
    }

    fn one_of(&mut self, texts: &[&'static str]) -> &'static str {
        texts[self.random.below(texts.len() as u64) as usize]
    }
}

fn host(container: u64) -> u64 {
    container % HOSTS
}

fn region(container: u64) -> usize {
    (host(container) % REGIONS.len() as u64) as usize
}

/// Apps with low numbers have more containers.
fn app(container: u64) -> u64 {
    let even = container.wrapping_mul(SPREAD) % 1_000;
    even * even * APPS / 1_000_000
}

/// The columns.
pub(super) const HEADER: &str =
    "event_time_ms,host_id,region,container_id,app,pid,kind,dst_ip,dst_region,dst_app,bytes,cpu_ms,mem_bytes,path";
/// Files: as many as the workers that read them in the comparison.
pub(super) const PARTS: u64 = 2;
/// How late an event of the shape `disorder` is at most.
pub(super) const LATE_MS_MAX: u64 = 120_000;
/// A minute's beginning, in 2025.
const BASE_MS: u64 = 1_760_000_040_000;
const EVENTS_PER_ATTACK: u64 = 2_000;
const OPEN_MAX: usize = 200_000;
const HOSTS: u64 = 5_000;
const APPS: u64 = 400;
/// A prime.
const SPREAD: u64 = 2_654_435_761;
const REGIONS: [&str; 12] = [
    "aws-eu-west-1",
    "aws-us-east-1",
    "aws-us-west-2",
    "aws-ap-south-1",
    "gcp-europe-west4",
    "gcp-us-central1",
    "gcp-us-east4",
    "gcp-asia-east1",
    "azure-westeurope",
    "azure-eastus",
    "azure-westus2",
    "azure-southeastasia",
];
const SHELLS: [&str; 2] = ["/bin/sh", "/bin/bash"];
const PROGRAMS: [&str; 6] = ["/usr/bin/curl", "/usr/bin/java", "/usr/bin/node", "/usr/sbin/nginx", "/bin/cat", "/usr/bin/id"];
const CREDENTIALS: [&str; 3] = ["/etc/shadow", "/root/.aws/credentials", "/root/.ssh/id_rsa"];
const FILES: [&str; 6] =
    ["/etc/hosts", "/etc/resolv.conf", "/var/log/app.log", "/usr/lib/libc.so.6", "/proc/self/stat", "/data/segment.0"];

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn lines(shape: Shape) -> (Written, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let written = write(dir.path(), shape, 20_000, 42).unwrap();
        let text = |part: u64| std::fs::read_to_string(dir.path().join(format!("part-{part}.csv"))).unwrap();
        let lines = (0..PARTS).flat_map(|part| text(part).lines().skip(1).map(str::to_owned).collect::<Vec<_>>()).collect();
        (written, lines)
    }

    #[test]
    fn shapes_differ_in_what_they_say() {
        let (plain, in_order) = lines(Shape::Plain);
        assert_eq!(plain.digest, lines(Shape::Plain).0.digest, "one seed, one input");
        assert_eq!(plain.rows, 20_000);
        assert!(in_order.iter().all(|line| line.split(',').count() == HEADER.split(',').count()));
        let mut sorted = in_order.clone();
        sorted.sort();

        let (disorder, mut late) = lines(Shape::Disorder);
        assert!(disorder.digest != plain.digest && late != in_order);
        late.sort();
        assert_eq!(late, sorted, "the same events in another order");

        let (twice, mut again) = lines(Shape::Duplicates);
        assert!((20_500..21_500).contains(&twice.rows), "{}", twice.rows);
        again.sort();
        again.dedup();
        assert_eq!(again, sorted, "the same events, once each");

        let most = |lines: &[String]| {
            let mut counts: HashMap<&str, u32> = HashMap::new();
            lines.iter().filter_map(|line| line.split(',').nth(3)).for_each(|id| *counts.entry(id).or_default() += 1);
            (counts.len(), counts.into_values().max().unwrap())
        };
        assert!(most(&in_order).1 < 20, "{:?}", most(&in_order));
        assert!(most(&lines(Shape::Zipf).1).1 > 800);
        assert!(most(&lines(Shape::Keys).1).0 > most(&in_order).0);
    }
}
