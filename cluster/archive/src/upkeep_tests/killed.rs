//! Flush, compaction, retention and sweep, killed at every operation of the store, or failing there once.

use std::sync::Arc;

use futures::TryStreamExt as _;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use weir_schema::Kind;

use super::faulty::{Fault, Faulty};
use super::support::{Agents, Row, Seed, convert, read, rows_of};
use super::world::{DAY_MS, DELETE_AFTER_MS, HOUR_MS, runtime};
use crate::catalog::Archive;
use crate::compact::{Sizes, choose};
use crate::error::Error;
use crate::layout::Table;
use crate::manifest::Position;
use crate::merge::compact;
use crate::piece::Piece;
use crate::retention::{Rule, retain};
use crate::store::Store;
use crate::sweep::Sweep;
use crate::table::{NoTail, Record};
use crate::writer::Writer;

/// A node that keeps an archive: what is chained, and how far it has come.
struct Node {
    archive: Archive,
    writer: Writer,
    sweep: Sweep,
    pushed_tick: u64,
}

/// What the chain holds: ticks and their pieces. The first row of the first is old.
fn chain() -> Vec<(u64, Vec<Piece>)> {
    let now_ms = DAY_MS + 30 * HOUR_MS;
    let at = |host, back_ms: u64| {
        let time = (now_ms - back_ms) as i64 * 1_000_000;
        Seed { tenant: 0, region: 0, host, kind: Kind::Exec, time, container: None }
    };
    let mut agents = Agents::default();
    let ticks = [vec![at(0, 20 * HOUR_MS), at(1, 1_000), at(0, 2_000)], vec![at(2, 3_000), at(0, 1_500)]];
    ticks.iter().enumerate().map(|(n, seeds)| (now_ms + n as u64, agents.pieces(now_ms + n as u64, seeds))).collect()
}

const KEEP_MS: u64 = 10 * HOUR_MS;
const CHAIN_END_MS: u64 = DAY_MS + 31 * HOUR_MS;

/// What must be read up to a tick, once the old row is dropped or before.
fn expected(until_tick: u64, dropped: bool) -> Vec<Row> {
    let rows = chain().into_iter().filter(|(tick, _)| *tick <= until_tick).flat_map(|(_, pieces)| pieces);
    let kept_from = (CHAIN_END_MS - KEEP_MS) as i64 * 1_000_000;
    let mut rows: Vec<Row> = rows.flat_map(|piece| rows_of(&piece)).filter(|row| !dropped || row.2 >= kept_from).collect();
    rows.sort();
    rows
}

impl Node {
    async fn start(objects: Arc<dyn ObjectStore>) -> Result<Self, Error> {
        let archive = Archive::open(Store::new(objects, "test")).await?;
        let (writer, sweep) = (Writer::new(archive.clone(), convert), Sweep::new(archive.clone(), DELETE_AFTER_MS));
        let pushed_tick = archive.catalog().position.tick;
        Ok(Self { archive, writer, sweep, pushed_tick })
    }

    /// Does all that is left to do: as often as a step fails, it is tried again, `tries` times in all.
    async fn work(&mut self, tries: &mut usize) -> Result<(), Error> {
        let sizes = Sizes { fresh_files_max: 1, small_files_max: 2, ..Sizes::default() };
        for (tick, pieces) in chain() {
            if tick > self.pushed_tick {
                self.pushed_tick = tick;
                self.writer.push(pieces);
                let to = Position { tick, ..Position::default() };
                while let Err(why) = self.writer.flush(to.clone(), b"state".to_vec(), tick).await {
                    again(why, tries)?;
                }
            }
            while let Some(job) = choose(&self.archive.catalog(), &sizes, CHAIN_END_MS) {
                if let Err(why) = compact(&self.archive, &job, &sizes, CHAIN_END_MS).await {
                    again(why, tries)?;
                    while let Err(why) = self.archive.refresh().await {
                        again(why, tries)?;
                    }
                }
            }
        }
        let rules = [Rule { age_ms: Some(KEEP_MS), ..Rule::default() }];
        while let Err(why) = retain(&self.archive, &rules, CHAIN_END_MS).await {
            again(why, tries)?;
        }
        for now_ms in [CHAIN_END_MS, CHAIN_END_MS + DELETE_AFTER_MS] {
            while let Err(why) = self.sweep.run(now_ms).await {
                again(why, tries)?;
            }
        }
        Ok(())
    }

    async fn check(&self, told: &str) {
        let record = Record::new(self.archive.clone(), Arc::new(NoTail));
        let catalog = self.archive.refresh().await.unwrap();
        let snapshot = record.at(catalog.position.tick).await.unwrap();
        let mut rows = read(&snapshot, Table::Events).await.unwrap();
        rows.sort();
        assert_eq!(rows, expected(catalog.position.tick, !catalog.dropped.is_empty()), "{told}");
    }

    /// All is done, and nothing lies about.
    async fn check_done(&self, told: &str) {
        self.check(told).await;
        let catalog = self.archive.catalog();
        assert_eq!((catalog.position.tick, catalog.dropped.len()), (chain()[1].0, 1), "{told}");
        assert_eq!((catalog.files.len(), catalog.dropped.values().map(|dropped| dropped.rows).sum::<u64>()), (1, 1), "{told}");
        let listed: Vec<_> = self.archive.store().objects().list(None).try_collect().await.unwrap();
        let lying = listed.iter().filter(|meta| !meta.location.as_ref().starts_with("manifest/")).count();
        assert_eq!(lying, 2, "{told}: {listed:?}");
    }
}

fn again(why: Error, tries: &mut usize) -> Result<(), Error> {
    *tries -= 1;
    if *tries == 0 { Err(why) } else { Ok(()) }
}

/// How each operation can fail of a run in which nothing does. A reading one leaves nothing: it fails in one way.
async fn faults() -> Vec<(usize, Fault)> {
    let (store, gate) = Faulty::new(Arc::new(InMemory::new()), usize::MAX, Fault::Before, true);
    let mut node = Node::start(Arc::new(store)).await.unwrap();
    node.work(&mut 1).await.unwrap();
    let asked = gate.asked.lock().unwrap().clone();
    node.check_done("nothing failed").await;
    let reads = |what: &str| what.starts_with("get") || what.starts_with("list");
    let after = asked.iter().enumerate().filter(|(_, what)| !reads(what)).map(|(at, _)| (at, Fault::After));
    let faults: Vec<_> = (0..asked.len()).map(|at| (at, Fault::Before)).chain(after).collect();
    assert!(asked.len() > 40 && faults.len() > asked.len() + 15, "{asked:?}");
    faults
}

#[test]
fn killed_at_any_operation_nothing_is_lost_and_nothing_is_twice() {
    runtime().block_on(async {
        for (at, fault) in faults().await {
            let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let (store, gate) = Faulty::new(Arc::clone(&objects), at, fault, true);
            if let Ok(mut node) = Node::start(Arc::new(store)).await {
                assert!(node.work(&mut 1).await.is_err() || gate.operations() <= at + 1);
            }
            let told = format!("killed {fault:?} operation {at}: {:?}", gate.asked.lock().unwrap().get(at));
            let mut node = Node::start(objects).await.unwrap();
            node.check(&told).await;
            node.work(&mut 1).await.unwrap();
            node.check_done(&told).await;
        }
    });
}

#[test]
fn an_operation_that_fails_once_is_made_up_for() {
    runtime().block_on(async {
        // The first is the opening's own.
        for (at, fault) in faults().await.into_iter().filter(|(at, _)| *at > 0) {
            let (store, gate) = Faulty::new(Arc::new(InMemory::new()), at, fault, false);
            let mut node = Node::start(Arc::new(store)).await.unwrap();
            let worked = node.work(&mut 3).await;
            let told = format!("failed {fault:?} operation {at}: {:?}", gate.asked.lock().unwrap().get(at));
            assert!(worked.is_ok(), "{told}: {worked:?}");
            // What a failed compaction left was seen late: it has its time now.
            for round in 1..3 {
                node.sweep.run(CHAIN_END_MS + round * 2 * DELETE_AFTER_MS).await.unwrap();
            }
            node.check_done(&told).await;
        }
    });
}
