//! Side by side: Weir and what a user could pick instead, on one machine, over the same files, with answers that must be equal.
//!
//! Every run is a process of its own. Peers take turns, and who begins changes from round to round, so that a machine that slows down slows
//! down all of them. The table has medians, and peaks of memory; compare only within one table.

mod contestant;
mod input;
mod measure;
mod one_thread;
mod table;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

pub use contestant::Peer;
pub use input::Shape;

use contestant::Workshop;
use measure::Measured;

use crate::facts;

/// What to compare.
#[derive(Debug, Clone)]
pub struct PeersOptions {
    /// Events of each input.
    pub events: u64,
    /// Runs of each peer and query.
    pub rounds: u32,
    /// Beside Weir.
    pub peers: Vec<Peer>,
    /// Inputs.
    pub shapes: Vec<Shape>,
    /// Threads of each peer but the loop.
    pub workers: usize,
    /// Of the input.
    pub seed: u64,
    /// Where the table and the picture go.
    pub out: PathBuf,
    /// Inputs, environment, logs.
    pub dir: PathBuf,
    /// Written below the table.
    pub note: Option<String>,
}

/// A query over an input.
type Task = (Shape, &'static str);

/// What all peers have shown.
#[derive(Debug, Default)]
struct Results {
    /// Rows of each input, and its digest.
    inputs: BTreeMap<Shape, (u64, String)>,
    /// All runs of a peer at a task, or why there are none.
    runs: BTreeMap<(Task, Peer), Result<Vec<Measured>, String>>,
    /// Version of a peer, or why it is not here.
    peers: BTreeMap<Peer, Result<String, String>>,
}

impl Results {
    fn note(&mut self, task: Task, peer: Peer, run: Result<Measured, String>) {
        let runs = self.runs.entry((task, peer)).or_insert_with(|| Ok(Vec::new()));
        match (runs, run) {
            (Ok(runs), Ok(run)) => runs.push(run),
            (runs @ Ok(_), Err(why)) => *runs = Err(why),
            (Err(_), _) => {}
        }
    }

    /// Tasks whose answers are not all the same, with who has which.
    fn differing(&self) -> Vec<String> {
        let mut answers: BTreeMap<Task, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
        for ((task, peer), runs) in &self.runs {
            for run in runs.iter().flatten() {
                let peers = answers.entry(*task).or_default().entry(run.digest.as_str()).or_default();
                if !peers.contains(&peer.name()) {
                    peers.push(peer.name());
                }
            }
        }
        let several = answers.into_iter().filter(|(_, by_digest)| by_digest.len() > 1);
        let line = |((shape, query), by_digest): (Task, BTreeMap<&str, Vec<&str>>)| {
            let who: Vec<String> =
                by_digest.iter().map(|(digest, peers)| format!("{digest} of {}", peers.join(" and "))).collect();
            format!("{} {query}: {}", shape.name(), who.join(", "))
        };
        several.map(line).collect()
    }
}

/// Makes the inputs and the peers, runs all, writes the table and the picture. An error when answers differ.
pub fn run(weir: &Path, options: &PeersOptions, mut say: impl FnMut(&str)) -> anyhow::Result<()> {
    std::fs::create_dir_all(&options.dir).with_context(|| format!("could not create {}", options.dir.display()))?;
    std::fs::create_dir_all(&options.out).with_context(|| format!("could not create {}", options.out.display()))?;
    let dir = options.dir.canonicalize().with_context(|| format!("could not use {}", options.dir.display()))?;
    let workshop = Workshop { dir: dir.clone(), weir: weir.to_owned(), workers: options.workers };
    let load_before = facts::load();
    let mut results = Results::default();
    let others = options.peers.iter().filter(|peer| **peer != Peer::Weir);
    for &peer in std::iter::once(&Peer::Weir).chain(others) {
        let ready = workshop.prepare(peer).map_err(|why| format!("{why:#}"));
        say(&match &ready {
            Ok(version) => format!("{:<8} {version}", peer.name()),
            Err(why) => format!("{:<8} not here: {why}", peer.name()),
        });
        results.peers.insert(peer, ready);
    }
    anyhow::ensure!(results.peers[&Peer::Weir].is_ok(), "{} does not run", weir.display());
    let peers: Vec<Peer> = results.peers.iter().filter(|(_, ready)| ready.is_ok()).map(|(peer, _)| *peer).collect();
    for &shape in &options.shapes {
        if results.inputs.contains_key(&shape) {
            continue;
        }
        let folder = dir.join(format!("{}-{}-{}", shape.name(), options.events, options.seed));
        let written = input::write(&folder, shape, options.events, options.seed)?;
        say(&format!("{:<10} {} rows, {} bytes, digest {}", shape.name(), written.rows, written.bytes, written.digest));
        results.inputs.insert(shape, (written.rows, written.digest));
        for round in 0..options.rounds {
            for (turn, query) in queries(shape).iter().enumerate() {
                let mut order = peers.clone();
                order.rotate_left((round as usize + turn) % peers.len());
                for peer in order {
                    one_run(&workshop, &mut results, ((shape, query), peer), &folder, &mut say);
                }
            }
        }
    }
    let differing = results.differing();
    let about = table::About {
        events: options.events,
        rounds: options.rounds,
        workers: options.workers,
        seed: options.seed,
        machine: facts::machine(),
        load: (load_before, facts::load()),
        day: facts::day(crate::runner::now_ns()),
        note: options.note.clone(),
    };
    let text = table::text(&about, &results, &differing);
    let shapes: Vec<&str> = results.inputs.keys().map(|shape| shape.name()).collect();
    let name = format!("peers-{}-{}-{}", about.day, options.events, shapes.join("+"));
    for (ending, content) in [("txt", &text), ("svg", &table::picture(&about, &results))] {
        let path = options.out.join(format!("{name}.{ending}"));
        std::fs::write(&path, content).with_context(|| format!("could not write {}", path.display()))?;
        say(&format!("wrote {}", path.display()));
    }
    say(&text);
    anyhow::ensure!(differing.is_empty(), "answers differ: {}", differing.join("; "));
    Ok(())
}

fn one_run(workshop: &Workshop, results: &mut Results, (task, peer): (Task, Peer), input: &Path, say: &mut impl FnMut(&str)) {
    let (shape, query) = task;
    if results.runs.get(&(task, peer)).is_some_and(Result::is_err) {
        return;
    }
    let run = match peer.cannot(shape, query) {
        Some(why) => Err(why.to_owned()),
        None => {
            let name = format!("{}-{}-{query}", peer.name(), shape.name());
            let (answer, log) = (workshop.dir.join(format!("{name}.rows")), workshop.dir.join(format!("{name}.log")));
            let command = workshop.command(peer, task, input, &answer);
            measure::run(command, &answer, &log, RUN_WITHIN).map_err(|why| format!("{why:#}"))
        }
    };
    say(&match &run {
        Ok(run) => {
            format!("{} {query} {:<8} {:.3} s, {:.2} s CPU, {}", shape.name(), peer.name(), run.seconds, run.cpu_s, run.digest)
        }
        Err(why) => format!("{} {query} {:<8} {why}", shape.name(), peer.name()),
    });
    results.note(task, peer, run);
}

/// The fifth question is of interest where there are many containers, or some that have most events.
fn queries(shape: Shape) -> &'static [&'static str] {
    match shape {
        Shape::Plain | Shape::Disorder | Shape::Duplicates => &["q1", "q2", "q3", "q4"],
        Shape::Zipf | Shape::Keys => &["q1", "q2", "q3", "q4", "q5"],
    }
}

/// Answers as a peer does: for `weir-loadtest peers-loop`.
pub fn run_loop(query: &str, shape: Shape, input: &Path, answer: &Path) -> anyhow::Result<()> {
    let (begun, cpu) = (Instant::now(), facts::process_cpu_s(std::process::id()));
    let rows = one_thread::answer(query, input, shape == Shape::Duplicates)?;
    let seconds = begun.elapsed().as_secs_f64();
    let used = facts::process_cpu_s(std::process::id()).zip(cpu).map_or(0.0, |(after, before)| after - before);
    let mut text = rows.join("\n");
    text.push('\n');
    std::fs::write(answer, text).with_context(|| format!("could not write {}", answer.display()))?;
    writeln!(std::io::stdout().lock(), "SECONDS {seconds:.6}\nCPU {used:.6}")?;
    Ok(())
}

/// No peer takes a tenth of this for a million events; ten million are in reach of the slowest.
const RUN_WITHIN: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use super::*;

    /// What DuckDB is to the command, this is to the test: all rows at once, no order, no state.
    fn recount(dir: &Path) -> [BTreeSet<String>; 5] {
        let mut lines: BTreeSet<String> = BTreeSet::new();
        for part in 0..input::PARTS {
            let text = std::fs::read_to_string(dir.join(format!("part-{part}.csv"))).unwrap();
            lines.extend(text.lines().skip(1).map(str::to_owned));
        }
        let rows: Vec<Vec<&str>> = lines.iter().map(|line| line.split(',').collect()).collect();
        let number = |text: &str| text.parse::<u64>().unwrap();
        let mut live: HashMap<String, i64> = HashMap::new();
        let mut minutes: HashMap<u64, HashMap<&str, u64>> = HashMap::new();
        let (mut by_app, mut by_container): (HashMap<String, [u64; 4]>, HashMap<String, [u64; 4]>) = Default::default();
        for row in &rows {
            let time = number(row[0]);
            match row[6] {
                "connect_open" => *live.entry(format!("{},{}", row[2], row[8])).or_default() += 1,
                "connect_close" => {
                    *live.entry(format!("{},{}", row[2], row[8])).or_default() -= 1;
                    for hop in 1..=12 {
                        *minutes.entry((time / 5_000 + hop) * 5_000).or_default().entry(row[4]).or_default() += number(row[10]);
                    }
                }
                "cpu_sample" => {
                    let app = by_app.entry(format!("{},{}", (time / 10_000 + 1) * 10_000, row[4])).or_default();
                    let container = by_container.entry(row[3].to_owned()).or_default();
                    for [cpu, count, cpu_max, mem_max] in [app, container] {
                        (*cpu, *count) = (*cpu + number(row[11]), *count + 1);
                        (*cpu_max, *mem_max) = (number(row[11]).max(*cpu_max), number(row[12]).max(*mem_max));
                    }
                }
                _ => {}
            }
        }
        let top = minutes.iter().flat_map(|(end, apps)| {
            let mut apps: Vec<_> = apps.iter().collect();
            apps.sort_by_key(|(app, bytes)| (u64::MAX - **bytes, **app));
            let line = |(place, (app, bytes)): (usize, (&&str, &u64))| format!("{end},{},{app},{bytes}", place + 1);
            apps.into_iter().take(10).enumerate().map(line).collect::<Vec<_>>()
        });
        let mut of_container: HashMap<&str, Vec<&Vec<&str>>> = HashMap::new();
        rows.iter().for_each(|row| of_container.entry(row[3]).or_default().push(row));
        let after = |id: &str, time: u64, is: &dyn Fn(&[&str]) -> bool| {
            let found = of_container[id].iter().filter(|row| number(row[0]) > time && is(row));
            found.map(|row| number(row[0])).min()
        };
        let secret = |row: &[&str]| {
            row[6] == "file_open" && ["/etc/shadow", "/root/.aws/credentials", "/root/.ssh/id_rsa"].contains(&row[13])
        };
        let attacks =
            rows.iter().filter(|row| row[6] == "exec" && ["/bin/sh", "/bin/bash"].contains(&row[13])).filter_map(|row| {
                let shell = number(row[0]);
                let read = after(row[3], shell, &secret)?;
                let leave = after(row[3], read, &|row| row[6] == "connect_open" && row[2] != row[8])?;
                (leave - shell < 600_000).then(|| format!("{},{shell},{read},{leave}", row[3]))
            });
        let used =
            |used: &HashMap<String, [u64; 4]>| used.iter().map(|(key, [a, b, c, d])| format!("{key},{a},{b},{c},{d}")).collect();
        [
            live.iter().map(|(pair, live)| format!("{pair},{live}")).collect(),
            top.collect(),
            used(&by_app),
            attacks.collect(),
            used(&by_container),
        ]
    }

    #[test]
    fn the_loop_equals_a_recount_wherever_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let mut attacks = 0;
        for (shape, seed) in
            [(Shape::Plain, 42), (Shape::Zipf, 7), (Shape::Duplicates, 3), (Shape::Disorder, 5), (Shape::Keys, 1)]
        {
            let folder = dir.path().join(shape.name());
            input::write(&folder, shape, 30_000, seed).unwrap();
            for (query, expected) in ["q1", "q2", "q3", "q4", "q5"].into_iter().zip(recount(&folder)) {
                if Peer::Loop.cannot(shape, query).is_some() {
                    continue;
                }
                attacks += usize::from(query == "q4") * expected.len();
                let found = one_thread::answer(query, &folder, shape == Shape::Duplicates).unwrap();
                assert_eq!(found.len(), expected.len(), "{query} {shape:?} seed {seed}");
                assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected, "{query} {shape:?} seed {seed}");
            }
        }
        assert!(attacks > 5, "{attacks} attacks");
        assert!(one_thread::answer("q9", dir.path(), false).is_err());
        let missing = one_thread::answer("q1", &dir.path().join("nothing"), false).unwrap_err();
        assert!(missing.to_string().contains("part-0.csv"), "{missing}");
    }

    #[test]
    fn a_differing_answer_is_named_and_a_failure_stays() {
        let run = |digest: &str| Ok(Measured { seconds: 1.0, cpu_s: 1.0, peak_bytes: 1, digest: digest.to_owned() });
        let task = (Shape::Plain, "q1");
        let mut results = Results::default();
        results.note(task, Peer::Weir, run("a"));
        results.note(task, Peer::Duckdb, run("a"));
        assert!(results.differing().is_empty());
        results.note(task, Peer::Polars, run("b"));
        assert_eq!(results.differing(), ["plain q1: a of weir and duckdb, b of polars"]);
        results.note(task, Peer::Polars, Err("gone".to_owned()));
        results.note(task, Peer::Polars, run("a"));
        assert_eq!(results.runs[&(task, Peer::Polars)], Err("gone".to_owned()));
        assert!(results.differing().is_empty());
    }
}
