//! The one-thread loop: what a careful programmer writes for one query by hand. The mark that a system with workers has to beat.
//!
//! It merges the two files by time and takes the events one by one; windows are closed as time passes. So it needs them in order, and
//! keeps nothing that would let it correct an answer. Run as a process of its own (`weir-loadtest peers-loop`), as every peer is.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::Context as _;

use super::input::PARTS;

/// The rows of a query's answer, as the other peers write them.
pub(super) fn answer(query: &str, dir: &Path, has_duplicates: bool) -> anyhow::Result<Vec<String>> {
    match query {
        "q1" => drive(Live::default(), dir, has_duplicates),
        "q2" => drive(Top::default(), dir, has_duplicates),
        "q3" => drive(Used::default(), dir, has_duplicates),
        "q4" => drive(Attacks::default(), dir, has_duplicates),
        "q5" => drive(Containers::default(), dir, has_duplicates),
        _ => anyhow::bail!("no query {query:?}: there are q1, q2, q3, q4, q5"),
    }
}

/// A query's state.
trait Query {
    fn take(&mut self, time: u64, row: &Row<'_>);
    fn rows(self) -> Vec<String>;
}

fn drive(mut query: impl Query, dir: &Path, has_duplicates: bool) -> anyhow::Result<Vec<String>> {
    let mut files =
        (0..PARTS).map(|part| Lines::open(&dir.join(format!("part-{part}.csv")))).collect::<anyhow::Result<Vec<_>>>()?;
    let mut seen: HashSet<u64, Quick> = HashSet::default();
    while let Some(first) = files.iter_mut().filter(|file| file.time != END).min_by_key(|file| file.time) {
        // No two events have one time.
        if !has_duplicates || seen.insert(first.time) {
            query.take(first.time, &Row::split(&first.line));
        }
        first.step()?;
    }
    Ok(query.rows())
}

struct Lines {
    file: BufReader<File>,
    line: Vec<u8>,
    time: u64,
}

impl Lines {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
        let mut lines = Self { file: BufReader::with_capacity(1 << 20, file), line: Vec::new(), time: 0 };
        // The header, then the first row.
        lines.step()?;
        lines.step()?;
        Ok(lines)
    }

    fn step(&mut self) -> anyhow::Result<()> {
        self.line.clear();
        if self.file.read_until(b'\n', &mut self.line).context("reading the input")? == 0 {
            self.time = END;
            return Ok(());
        }
        self.line.pop_if(|last| *last == b'\n');
        self.time = number(&self.line);
        Ok(())
    }
}

/// The fields of a line.
struct Row<'a>([&'a [u8]; COLUMNS]);

impl<'a> Row<'a> {
    fn split(line: &'a [u8]) -> Self {
        let mut fields: [&[u8]; COLUMNS] = [&[]; COLUMNS];
        let (mut field, mut from) = (0, 0);
        for (at, byte) in line.iter().enumerate() {
            if *byte == b',' && field < COLUMNS - 1 {
                fields[field] = &line[from..at];
                (field, from) = (field + 1, at + 1);
            }
        }
        fields[field] = &line[from..];
        Self(fields)
    }
}

/// The number at the beginning of a text.
fn number(text: &[u8]) -> u64 {
    text.iter().take_while(|byte| byte.is_ascii_digit()).fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

/// Texts by number.
#[derive(Default)]
struct Names {
    numbers: HashMap<Box<[u8]>, u32, Quick>,
    names: Vec<String>,
}

impl Names {
    fn of(&mut self, text: &[u8]) -> u32 {
        if let Some(&number) = self.numbers.get(text) {
            return number;
        }
        let number = self.names.len() as u32;
        self.numbers.insert(text.into(), number);
        self.names.push(String::from_utf8_lossy(text).into_owned());
        number
    }

    fn name(&self, number: u32) -> &str {
        &self.names[number as usize]
    }
}

#[derive(Default)]
struct Live {
    regions: Names,
    pairs: HashMap<(u32, u32), i64, Quick>,
}

impl Query for Live {
    fn take(&mut self, _: u64, row: &Row<'_>) {
        let step = match row.0[KIND] {
            b"connect_open" => 1,
            b"connect_close" => -1,
            _ => return,
        };
        let pair = (self.regions.of(row.0[REGION]), self.regions.of(row.0[DST_REGION]));
        *self.pairs.entry(pair).or_default() += step;
    }

    fn rows(self) -> Vec<String> {
        let line =
            |((from, to), live): (&(u32, u32), &i64)| format!("{},{},{live}", self.regions.name(*from), self.regions.name(*to));
        self.pairs.iter().map(line).collect()
    }
}

/// The minute's sums are kept by adding the newest five seconds and taking off the oldest.
#[derive(Default)]
struct Top {
    apps: Names,
    pane: Option<u64>,
    newest: Vec<u64>,
    panes: VecDeque<Vec<u64>>,
    minute: Vec<u64>,
    lines: Vec<String>,
}

impl Top {
    fn close(&mut self, pane: u64) {
        self.minute.resize(self.apps.names.len(), 0);
        let closed = std::mem::take(&mut self.newest);
        self.minute.iter_mut().zip(&closed).for_each(|(sum, bytes)| *sum += bytes);
        self.panes.push_back(closed);
        if self.panes.len() > PANES
            && let Some(oldest) = self.panes.pop_front()
        {
            self.minute.iter_mut().zip(&oldest).for_each(|(sum, bytes)| *sum -= bytes);
        }
        // Closed connections have sent at least 64 bytes: zero is none.
        let mut ranked: Vec<(u64, &str)> =
            (0..).zip(&self.minute).filter(|(_, sum)| **sum > 0).map(|(app, sum)| (*sum, self.apps.name(app))).collect();
        ranked.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        let end = (pane + 1) * PANE_MS;
        self.lines.extend(ranked.iter().take(10).zip(1..).map(|((bytes, app), rank)| format!("{end},{rank},{app},{bytes}")));
    }
}

impl Query for Top {
    fn take(&mut self, time: u64, row: &Row<'_>) {
        let pane = time / PANE_MS;
        for closed in *self.pane.get_or_insert(pane)..pane {
            self.close(closed);
        }
        self.pane = Some(pane);
        if row.0[KIND] == b"connect_close" {
            let app = self.apps.of(row.0[APP]) as usize;
            if self.newest.len() <= app {
                self.newest.resize(app + 1, 0);
            }
            self.newest[app] += number(row.0[BYTES]);
        }
    }

    fn rows(mut self) -> Vec<String> {
        if let Some(last) = self.pane {
            (last..last + PANES as u64).for_each(|pane| self.close(pane));
        }
        self.lines
    }
}

#[derive(Clone, Copy, Default)]
struct Use {
    cpu: u64,
    samples: u64,
    cpu_max: u64,
    mem_max: u64,
}

impl Use {
    fn add(&mut self, row: &Row<'_>) {
        let (cpu, mem) = (number(row.0[CPU]), number(row.0[MEM]));
        self.cpu += cpu;
        self.samples += 1;
        self.cpu_max = self.cpu_max.max(cpu);
        self.mem_max = self.mem_max.max(mem);
    }
}

#[derive(Default)]
struct Used {
    apps: Names,
    window: u64,
    open: HashMap<u32, Use, Quick>,
    lines: Vec<String>,
}

impl Used {
    fn close(&mut self) {
        let end = (self.window + 1) * WINDOW_MS;
        let line =
            |(app, u): (u32, Use)| format!("{end},{},{},{},{},{}", self.apps.name(app), u.cpu, u.samples, u.cpu_max, u.mem_max);
        self.lines.extend(self.open.drain().map(line));
    }
}

impl Query for Used {
    fn take(&mut self, time: u64, row: &Row<'_>) {
        if time / WINDOW_MS != self.window {
            self.close();
            self.window = time / WINDOW_MS;
        }
        if row.0[KIND] == b"cpu_sample" {
            self.open.entry(self.apps.of(row.0[APP])).or_default().add(row);
        }
    }

    fn rows(mut self) -> Vec<String> {
        self.close();
        self.lines
    }
}

/// Shells that wait for a read, and reads that wait for a connection.
#[derive(Default)]
struct Chains {
    shells: Vec<u64>,
    reads: Vec<(u64, u64)>,
}

#[derive(Default)]
struct Attacks {
    chains: HashMap<Box<[u8]>, Chains, Quick>,
    lines: Vec<String>,
}

impl Query for Attacks {
    fn take(&mut self, time: u64, row: &Row<'_>) {
        match (row.0[KIND], row.0[PATH]) {
            (b"exec", b"/bin/sh" | b"/bin/bash") => {
                self.chains.entry(row.0[CONTAINER].into()).or_default().shells.push(time);
            }
            (b"file_open", b"/etc/shadow" | b"/root/.aws/credentials" | b"/root/.ssh/id_rsa") => {
                if let Some(chains) = self.chains.get_mut(row.0[CONTAINER]) {
                    chains.reads.extend(chains.shells.drain(..).map(|shell| (shell, time)));
                }
            }
            (b"connect_open", _) if row.0[REGION] != row.0[DST_REGION] => {
                let Some(chains) = self.chains.get_mut(row.0[CONTAINER]) else { return };
                let name = String::from_utf8_lossy(row.0[CONTAINER]);
                let in_time = chains.reads.drain(..).filter(|(shell, _)| time - shell < SPAN_MS);
                self.lines.extend(in_time.map(|(shell, read)| format!("{name},{shell},{read},{time}")));
                chains.shells.retain(|shell| time - shell < SPAN_MS);
                if chains.shells.is_empty() {
                    self.chains.remove(row.0[CONTAINER]);
                }
            }
            _ => {}
        }
    }

    fn rows(self) -> Vec<String> {
        self.lines
    }
}

#[derive(Default)]
struct Containers {
    used: HashMap<Box<[u8]>, Use, Quick>,
}

impl Query for Containers {
    fn take(&mut self, _: u64, row: &Row<'_>) {
        if row.0[KIND] != b"cpu_sample" {
            return;
        }
        match self.used.get_mut(row.0[CONTAINER]) {
            Some(used) => used.add(row),
            None => self.used.entry(row.0[CONTAINER].into()).or_default().add(row),
        }
    }

    fn rows(self) -> Vec<String> {
        let line =
            |id: &[u8], u: &Use| format!("{},{},{},{},{}", String::from_utf8_lossy(id), u.cpu, u.samples, u.cpu_max, u.mem_max);
        self.used.iter().map(|(id, u)| line(id, u)).collect()
    }
}

/// Multiply and turn: quick on short keys, and nobody sends hostile ones here.
#[derive(Clone, Copy, Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

type Quick = BuildHasherDefault<Mix>;

const COLUMNS: usize = 14;
const REGION: usize = 2;
const CONTAINER: usize = 3;
const APP: usize = 4;
const KIND: usize = 6;
const DST_REGION: usize = 8;
const BYTES: usize = 10;
const CPU: usize = 11;
const MEM: usize = 12;
const PATH: usize = 13;
const PANE_MS: u64 = 5_000;
const PANES: usize = 12;
const WINDOW_MS: u64 = 10_000;
const SPAN_MS: u64 = 600_000;
/// Later than any event.
const END: u64 = u64::MAX;
