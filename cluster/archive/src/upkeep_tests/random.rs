//! Flushes, compactions, retention, holds and sweeps in any order: after each the books are read.

use std::sync::Arc;

use object_store::memory::InMemory;
use proptest::prelude::*;
use weir_schema::Kind;

use super::support::{Seed, TENANTS, container_name, host_name};
use super::world::{DAY_MS, HOUR_MS, World, runtime};
use crate::compact::Sizes;
use crate::hold::{hold, release};
use crate::layout::{HOUR_NS, Table};
use crate::manifest::Hold;
use crate::retention::Rule;

#[derive(Debug, Clone)]
enum Step {
    Flush(Vec<Seed>),
    Compact,
    Age { hours: u64, tenant: Option<usize>, samples: bool },
    Bytes(u64),
    Hold(Hold),
    Release,
    Sweep,
    Wait(u64),
}

/// Times are before now: they are made so when the step comes.
fn seed() -> impl Strategy<Value = Seed> {
    let kind = prop_oneof![Just(Kind::Exec), Just(Kind::Open), Just(Kind::Connect), Just(Kind::Sample)];
    let late_ms = prop_oneof![3 => 0..HOUR_MS, 1 => 0..8 * HOUR_MS, 1 => 0..40 * HOUR_MS];
    let container = proptest::option::of(0..2usize);
    (0..2usize, 0..2usize, 0..3usize, kind, late_ms, container).prop_map(|(tenant, region, host, kind, late_ms, container)| {
        Seed { tenant, region, host, kind, time: -(late_ms as i64) * 1_000_000, container }
    })
}

fn a_hold() -> impl Strategy<Value = Hold> {
    let span = (0..40i64, 1..20i64).prop_map(|(from, hours)| {
        let from = DAY_MS as i64 * 1_000_000 + from * HOUR_NS;
        (from, from + hours * HOUR_NS)
    });
    (0..3usize, 0..2usize, span, 1..8u8).prop_map(|(host, container, (from, to), names)| Hold {
        name: "case".into(),
        host: (names & 1 != 0).then(|| host_name(host)),
        container_id: (names & 2 != 0).then(|| container_name(container)),
        from: (names & 4 != 0).then_some(from),
        to: (names & 4 != 0).then_some(to),
        note: None,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let age = (2..40u64, proptest::option::of(0..2usize), any::<bool>());
    prop_oneof![
        6 => proptest::collection::vec(seed(), 1..24).prop_map(Step::Flush),
        3 => Just(Step::Compact),
        1 => age.prop_map(|(hours, tenant, samples)| Step::Age { hours, tenant, samples }),
        1 => (1..200u64).prop_map(|kib| Step::Bytes(kib << 10)),
        1 => a_hold().prop_map(Step::Hold),
        1 => Just(Step::Release),
        2 => Just(Step::Sweep),
        1 => (1..26u64).prop_map(Step::Wait),
    ]
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let max = prop_oneof![Just(1u64), Just(48 << 10), Just(256 << 10)];
    (max, 1..4usize).prop_map(|(file_bytes_max, fresh_files_max)| Sizes {
        file_bytes_min: 64 << 10,
        file_bytes_max,
        fresh_files_max,
        fresh_bytes_max: 1 << 20,
        fresh_ms_max: 2 * HOUR_MS,
        small_files_max: 3,
    })
}

async fn run(sizes: Sizes, steps: Vec<Step>) {
    let mut world = World::new(Arc::new(InMemory::new()), sizes).await;
    for step in steps {
        world.now_ms += 7 * 60_000;
        match step {
            Step::Flush(mut seeds) => {
                seeds.iter_mut().for_each(|seed| seed.time += world.now_ms as i64 * 1_000_000);
                world.flush(&seeds).await;
            }
            Step::Compact => world.compact().await,
            Step::Age { hours, tenant, samples } => {
                let tenant = tenant.map(|tenant| TENANTS[tenant].to_owned());
                let table = samples.then_some(Table::Samples);
                world.retain(Rule { table, tenant, age_ms: Some(hours * HOUR_MS), ..Rule::default() }).await;
            }
            Step::Bytes(bytes) => world.retain(Rule { bytes: Some(bytes), ..Rule::default() }).await,
            Step::Hold(case) => {
                world.holds = vec![case.clone()];
                hold(&world.archive, case, world.now_ms).await.unwrap();
            }
            Step::Release => {
                let released = release(&world.archive, "case", world.now_ms).await;
                assert_eq!(released.is_ok(), !world.holds.is_empty());
                world.holds.clear();
            }
            Step::Sweep => _ = world.sweep.run(world.now_ms).await.unwrap(),
            Step::Wait(hours) => world.now_ms += hours * HOUR_MS,
        }
        world.check().await;
    }
    world.compact().await;
    world.check().await;
    world.check_no_orphans().await;
    world.check().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_done_the_books_are_read(sizes in sizes(), steps in proptest::collection::vec(step(), 4..14)) {
        runtime().block_on(run(sizes, steps));
    }
}
