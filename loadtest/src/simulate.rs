//! Many seeds of the cluster's simulator, on as many threads as wanted, and a table of what was done.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use weir_cluster::simulate::{self, Fault, Report};

/// Which seeds.
#[derive(Debug, Clone)]
pub struct SimulateOptions {
    /// The first.
    pub first: u64,
    /// How many.
    pub seeds: u64,
    /// How many threads; each runs a world of its own.
    pub threads: usize,
}

/// What was done.
#[derive(Debug, Clone, Default)]
pub struct Simulated {
    /// Of the seeds that held.
    pub report: Report,
    /// Those that did not, in words, by seed.
    pub broken: Vec<(u64, String)>,
    /// How long it took.
    pub took: Duration,
}

/// Runs the seeds; ends early after [`BROKEN_MAX`] that do not hold. `progress` is told how many are done.
pub fn run(options: &SimulateOptions, progress: impl Fn(u64) + Sync) -> Simulated {
    let begun = Instant::now();
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let all = Mutex::new(Simulated::default());
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let broken = all.lock().unwrap_or_else(PoisonError::into_inner).broken.len();
            if number >= options.seeds || broken >= BROKEN_MAX {
                return;
            }
            let seed = options.first.wrapping_add(number);
            let outcome = one(seed);
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            match outcome {
                Ok(report) => all.report.add(&report),
                Err(why) => all.broken.push((seed, why)),
            }
            drop(all);
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    std::thread::scope(|scope| (0..options.threads.max(1)).for_each(|_| _ = scope.spawn(work)));
    let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    all.broken.sort();
    all.took = begun.elapsed();
    all
}

/// One seed; an invariant of the code that breaks is told like one of the simulator.
fn one(seed: u64) -> Result<Report, String> {
    match catch_unwind(AssertUnwindSafe(|| simulate::run(seed))) {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(broken)) => Err(broken.to_string()),
        Err(panicked) => {
            let said = panicked.downcast_ref::<String>().map(String::as_str).or_else(|| panicked.downcast_ref::<&str>().copied());
            let said = said.unwrap_or("without a word");
            Err(format!("seed {seed} panics: {said}\nreplay: weir-loadtest simulate --seed {seed}"))
        }
    }
}

impl fmt::Display for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
        for (fault, count) in Fault::ALL.iter().zip(&report.faults) {
            writeln!(f, "{:<48} {count:>10}", fault.as_str())?;
        }
        let lines = [
            ("events that happened", report.produced),
            ("events acknowledged, each in the answers once", report.acked),
            ("events in the answers", report.stored),
            ("events told as lost", report.lost),
            ("events that died un-acked with their agent", report.died),
            ("frames in the logs that held nothing new", report.duplicates),
            ("ticks closed", report.ticks),
            ("generations of the mesh", report.generations),
            ("checkpoints", report.checkpoints),
            ("seeds with a damaged disk", report.damaged.0),
            ("of these, a needed piece lost and reported", report.damaged.1),
        ];
        for (what, count) in lines {
            writeln!(f, "{what:<48} {count:>10}")?;
        }
        let (held, took) = (report.seeds, self.took.as_secs_f64());
        write!(f, "{held} seeds hold, {} do not, in {took:.1} s", self.broken.len())
    }
}

/// More would only say the same.
const BROKEN_MAX: usize = 10;
