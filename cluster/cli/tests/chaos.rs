//! A short chaos run on every test run: nodes of a real cluster are killed and frozen, and every event is there once in the end.
//! The long one is `weir-loadtest chaos`.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use weir_loadtest::chaos::{self, ChaosOptions};

const WEIR: &str = env!("CARGO_BIN_EXE_weir");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_is_there_once_whatever_dies() {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = std::env::var("WEIR_SEED").map_or(clock.as_nanos() as u64, |seed| seed.parse().unwrap());
    eprintln!("WEIR_SEED={seed}");
    let dir = tempfile::tempdir().unwrap();
    let options = ChaosOptions { rounds: 4, nodes: 3, hosts: 8, rate: 300, seed };
    let report = chaos::run(Path::new(WEIR), dir.path(), options, |line| eprintln!("{line}")).await.unwrap();
    eprintln!("{report}");
    assert!(report.is_exact(), "seed {seed}");
}
