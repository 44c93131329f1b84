//! The simulator under four hundred seeds, always the same ones. A failure names its seed and the command that replays it.

use weir_loadtest::simulate::{SimulateOptions, run};

#[test]
fn four_hundred_seeds_hold() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let done = run(&SimulateOptions { first: 0, seeds: 400, threads }, |_| {});
    for (_, why) in &done.broken {
        eprintln!("{why}\n");
    }
    eprintln!("{done}");
    assert!(done.broken.is_empty(), "seeds do not hold, see above");
}
