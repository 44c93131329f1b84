//! Some seeds, the hard cases by name, and that a seed is enough to say what happens.

mod hard;

use super::*;

fn seeds(seeds: std::ops::Range<u64>) -> Report {
    let mut all = Report::default();
    for seed in seeds {
        match run(seed) {
            Ok(report) => all.add(&report),
            Err(broken) => panic!("{broken}"),
        }
    }
    all
}

#[test]
fn seeds_hold() {
    // `weir-loadtest`'s tests run more, and other ones.
    seeds(10_000..10_040);
}

#[test]
fn a_seed_runs_alike_twice() {
    let (one, two) = (seeds(7..9), seeds(7..9));
    assert_eq!(format!("{one:?}"), format!("{two:?}"));
}
