//! What compaction, retention, holds and the sweep do in cases that chance would miss.

use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use weir_schema::Kind;

use super::support::{Seed, container_name, host_name, read_all};
use super::world::{DAY_MS, DELETE_AFTER_MS, HOUR_MS, World, runtime};
use crate::catalog::{Archive, Change};
use crate::compact::{Sizes, choose};
use crate::error::Error;
use crate::hold::{hold, release};
use crate::layout::{hour_of, random_id};
use crate::manifest::{FileEntry, Hold, Removed, Why};
use crate::merge::{compact, compact_within};
use crate::retention::{DroppedFile, Rule, retain};
use crate::split::OPEN_MAX;
use crate::store::{LocalStore, Store};
use crate::sweep::{Sweep, Swept};

const NOW_MS: u64 = DAY_MS + 30 * HOUR_MS;

fn exec(host: usize, hours_back: u64) -> Seed {
    let time = (NOW_MS - hours_back * HOUR_MS) as i64 * 1_000_000;
    Seed { tenant: 0, region: 0, host, kind: Kind::Exec, time, container: None }
}

fn eager() -> Sizes {
    Sizes { fresh_files_max: 1, small_files_max: 2, ..Sizes::default() }
}

fn age(hours: u64) -> Rule {
    Rule { age_ms: Some(hours * HOUR_MS), ..Rule::default() }
}

fn case(name: &str) -> Hold {
    Hold { name: name.into(), host: None, container_id: None, from: None, to: None, note: None }
}

fn of_host(host: usize) -> Hold {
    Hold { host: Some(host_name(host)), ..case("host") }
}

/// Hosts 0, 1 and 2, one event each, 20, 19 and 18 hours ago, each in a file of its own; the last in a container.
async fn three_old_files() -> Arc<InMemory> {
    let objects = Arc::new(InMemory::new());
    let mut world = World::new(Arc::clone(&objects) as Arc<dyn ObjectStore>, eager()).await;
    // So recent that the day is not over for them: the hours stay apart.
    world.now_ms = DAY_MS + 20 * HOUR_MS;
    world.flush(&[exec(0, 20), exec(1, 19), Seed { container: Some(0), ..exec(2, 18) }]).await;
    world.compact().await;
    assert_eq!(world.archive.catalog().files.len(), 3);
    objects
}

async fn open(objects: &InMemory) -> Archive {
    Archive::open(Store::new(Arc::new(objects.fork()), "test")).await.unwrap()
}

/// How many hours ago the rows of the files that are left happened.
fn left(archive: &Archive) -> Vec<i64> {
    let now = hour_of(NOW_MS as i64 * 1_000_000);
    let mut left: Vec<i64> = archive.catalog().files.values().map(|file| now - hour_of(file.time_min)).collect();
    left.sort();
    left
}

#[test]
fn a_hold_keeps_the_files_that_have_its_rows() {
    let at = |hours_back: u64| Some((NOW_MS - hours_back * HOUR_MS) as i64 * 1_000_000);
    let in_container = Hold { container_id: Some(container_name(0)), ..case("container") };
    let cases = [
        (case("of nothing that is here"), vec![18, 19, 20]),
        (of_host(1), vec![19]),
        (of_host(7), vec![]),
        (in_container.clone(), vec![18]),
        (Hold { host: Some(host_name(1)), ..in_container }, vec![]),
        (Hold { from: at(19), ..case("from on") }, vec![18, 19]),
        (Hold { to: at(19), ..case("up to") }, vec![20]),
        (Hold { from: at(20), to: at(18), ..case("between") }, vec![19, 20]),
        (Hold { from: at(19), ..of_host(0) }, vec![]),
        (Hold { from: at(21), to: at(19), ..of_host(0) }, vec![20]),
    ];
    runtime().block_on(async {
        let objects = three_old_files().await;
        for (hold, kept) in &cases {
            let archive = open(&objects).await;
            let change = Change { holds_set: vec![hold.clone()], ..Change::default() };
            archive.commit(&change, NOW_MS).await.unwrap();
            let dropped = retain(&archive, &[age(1)], NOW_MS).await.unwrap();
            assert_eq!((left(&archive), dropped.len()), (kept.clone(), 3 - kept.len()), "{hold:?}");
            release(&archive, &hold.name, NOW_MS).await.unwrap();
            retain(&archive, &[age(1)], NOW_MS).await.unwrap();
            assert!(left(&archive).is_empty());
        }
    });
}

#[test]
fn a_file_that_cannot_be_read_stays_while_a_hold_may_need_it() {
    runtime().block_on(async {
        let objects = three_old_files().await;
        let archive = open(&objects).await;
        hold(&archive, of_host(7), NOW_MS).await.unwrap();
        let files: Vec<_> = archive.catalog().files.values().cloned().collect();
        let store = archive.store().objects();
        let (damaged, lost) = (Path::from(files[0].path.as_str()), Path::from(files[1].path.as_str()));
        store.put(&damaged, PutPayload::from(vec![7; files[0].bytes as usize])).await.unwrap();
        store.delete(&lost).await.unwrap();
        let dropped = retain(&archive, &[age(1)], NOW_MS).await.unwrap();
        let FileEntry { path, table, rows, bytes, .. } = FileEntry::clone(&files[2]);
        assert_eq!(dropped, [DroppedFile { path, table, rows, bytes, why: Why::Age }]);
        release(&archive, "host", NOW_MS).await.unwrap();
        assert_eq!(retain(&archive, &[age(1)], NOW_MS).await.unwrap().len(), 2);
    });
}

#[test]
fn a_hold_that_comes_meanwhile_stops_a_drop() {
    runtime().block_on(async {
        let archive = open(&*three_old_files().await).await;
        let before = archive.catalog();
        hold(&archive, of_host(0), NOW_MS).await.unwrap();
        let removed = before.files.keys().map(|path| Removed { path: path.clone(), why: Why::Age }).collect();
        let change = Change { removed, under_holds: Some(before.holds.clone()), ..Change::default() };
        assert!(matches!(archive.commit(&change, NOW_MS).await, Err(Error::Fenced { .. })));
        assert_eq!(left(&archive).len(), 3);
    });
}

#[test]
fn the_strictest_rule_counts_and_fresh_files_stay() {
    let events = |rule| Rule { table: Some(crate::Table::Events), ..rule };
    let samples = |rule| Rule { table: Some(crate::Table::Samples), ..rule };
    let zeta = |rule| Rule { tenant: Some("zeta".into()), ..rule };
    let cases = [
        (vec![], vec![18, 19, 20]),
        (vec![age(100)], vec![18, 19, 20]),
        (vec![age(100), events(age(19))], vec![18, 19]),
        (vec![age(18), events(age(100))], vec![18]),
        (vec![samples(age(1)), zeta(age(1)), Rule { region: Some("us".into()), ..age(1) }], vec![18, 19, 20]),
        (vec![Rule { bytes: Some(0), ..Rule::default() }], vec![]),
        (vec![Rule { bytes: Some(u64::MAX), ..Rule::default() }], vec![18, 19, 20]),
        (vec![zeta(Rule { bytes: Some(0), ..Rule::default() })], vec![18, 19, 20]),
    ];
    runtime().block_on(async {
        let objects = three_old_files().await;
        for (rules, kept) in &cases {
            let archive = open(&objects).await;
            retain(&archive, rules, NOW_MS).await.unwrap();
            assert_eq!(left(&archive), *kept, "{rules:?}");
        }
        let mut world = World::new(objects, eager()).await;
        world.flush(&[exec(0, 20)]).await;
        assert_eq!(retain(&world.archive, &[age(1)], NOW_MS).await.unwrap().len(), 3);
        assert_eq!(world.archive.catalog().files.len(), 1);
    });
}

#[test]
fn without_room_the_oldest_go_first_but_for_held_ones() {
    runtime().block_on(async {
        let objects = three_old_files().await;
        let archive = open(&objects).await;
        let bytes: u64 = archive.catalog().files.values().map(|file| file.bytes).sum();
        let room = |bytes| [Rule { bytes: Some(bytes), ..Rule::default() }];
        assert_eq!(retain(&archive, &room(bytes), NOW_MS).await.unwrap(), []);
        let dropped = retain(&archive, &room(bytes - 1), NOW_MS).await.unwrap();
        assert_eq!((left(&archive), dropped[0].why), (vec![18, 19], Why::Bytes));

        let archive = open(&objects).await;
        hold(&archive, of_host(0), NOW_MS).await.unwrap();
        retain(&archive, &room(bytes - 1), NOW_MS).await.unwrap();
        assert_eq!(left(&archive), [18, 20]);
        retain(&archive, &room(0), NOW_MS).await.unwrap();
        assert_eq!(left(&archive), [20]);
    });
}

#[test]
fn a_hold_that_makes_no_sense_is_refused() {
    let cases = [
        case("everything"),
        Hold { name: " ".into(), ..of_host(0) },
        Hold { from: Some(2), to: Some(2), ..case("empty") },
        Hold { host: Some(String::new()), ..case("no host") },
        Hold { note: Some("n".repeat(5_000)), ..of_host(0) },
    ];
    runtime().block_on(async {
        let archive = Archive::open(Store::new(Arc::new(InMemory::new()), "test")).await.unwrap();
        for case in cases {
            assert!(matches!(hold(&archive, case, 1).await, Err(Error::Refused(_))));
        }
        assert!(matches!(release(&archive, "host", 1).await, Err(Error::Refused(_))));
        let first = hold(&archive, of_host(0), 1).await.unwrap();
        let second = hold(&archive, of_host(1), 2).await.unwrap();
        assert_eq!((first.holds["host"].host.clone(), second.holds["host"].clone()), (Some(host_name(0)), of_host(1)));
        assert!(release(&archive, "host", 3).await.unwrap().holds.is_empty());
    });
}

#[test]
fn more_hours_than_open_files_and_files_that_are_full_at_once() {
    runtime().block_on(async {
        for (file_bytes_max, files) in [(u64::MAX, 12 + 12 - OPEN_MAX + 1..=24), (1, 24..=24)] {
            let sizes = Sizes { file_bytes_max, small_files_max: 100, ..eager() };
            let mut world = World::new(Arc::new(InMemory::new()), sizes).await;
            world.now_ms = DAY_MS;
            let seeds: Vec<Seed> = (0..24).map(|n| exec(n / 12, 6 + n as u64 % 12)).collect();
            world.flush(&seeds).await;
            let job = choose(&world.archive.catalog(), &world.sizes, world.now_ms).unwrap();
            let compacted = compact(&world.archive, &job, &sizes, world.now_ms).await.unwrap();
            assert!(files.contains(&compacted.files_out), "{compacted:?}");
            world.sizes.file_bytes_max = u64::MAX >> 1;
            world.check().await;
            world.now_ms = DAY_MS + 60 * HOUR_MS;
            world.compact().await;
            world.check().await;
            assert_eq!(world.archive.catalog().files.len(), 2, "one a day");
        }
    });
}

#[test]
fn what_is_made_of_an_imported_file_is_imported() {
    runtime().block_on(async {
        let mut world = World::new(Arc::new(InMemory::new()), eager()).await;
        world.flush(&[exec(0, 1)]).await;
        let mut job = choose(&world.archive.catalog(), &world.sizes, world.now_ms).unwrap();
        job.files[0] = Arc::new(FileEntry { imported: true, ..FileEntry::clone(&job.files[0]) });
        compact(&world.archive, &job, &world.sizes, world.now_ms).await.unwrap();
        assert!(world.archive.catalog().files.values().all(|file| file.imported && file.partition.is_some()));
    });
}

#[test]
fn too_little_memory_makes_a_job_smaller() {
    runtime().block_on(async {
        let mut world = World::new(Arc::new(InMemory::new()), Sizes { fresh_files_max: 8, ..Sizes::default() }).await;
        for n in 0..8 {
            world.now_ms += 1;
            world.flush(&[exec(n % 3, 1), exec(n % 3, 2)]).await;
        }
        let job = choose(&world.archive.catalog(), &world.sizes, world.now_ms).unwrap();
        assert_eq!(job.files.len(), 8);
        let none = compact_within(1, &world.archive, &job, &world.sizes, world.now_ms).await;
        assert!(matches!(none, Err(Error::Parquet { .. })), "{none:?}");
        let mut done = None;
        for bytes in (10..30).map(|power| 1 << power) {
            done = compact_within(bytes, &world.archive, &job, &world.sizes, world.now_ms).await.ok();
            if done.is_some() {
                break;
            }
        }
        assert!(done.is_some_and(|done| done.files_in < 8), "{done:?}");
        world.check().await;
        world.compact().await;
        world.check().await;
        world.check_no_orphans().await;
    });
}

#[test]
fn an_input_that_cannot_be_read_is_named_and_nothing_changes() {
    runtime().block_on(async {
        let mut world = World::new(Arc::new(InMemory::new()), eager()).await;
        world.flush(&[exec(0, 1)]).await;
        let job = choose(&world.archive.catalog(), &world.sizes, world.now_ms).unwrap();
        let file = Arc::clone(&job.files[0]);
        let (store, path) = (world.archive.store().objects(), Path::from(file.path.as_str()));
        let bytes = store.get(&path).await.unwrap().bytes().await.unwrap();
        for at in [5, file.bytes as usize - 5] {
            let mut bytes = bytes.to_vec();
            bytes[at] ^= 1;
            store.put(&path, PutPayload::from(bytes)).await.unwrap();
            let failed = compact(&world.archive, &job, &world.sizes, world.now_ms).await;
            assert!(matches!(&failed, Err(Error::Damaged { path, .. }) if *path == file.path), "{failed:?}");
        }
        store.delete(&path).await.unwrap();
        let failed = compact(&world.archive, &job, &world.sizes, world.now_ms).await;
        assert!(matches!(&failed, Err(Error::Store { path, .. }) if *path == file.path), "{failed:?}");
        store.put(&path, PutPayload::from(bytes)).await.unwrap();
        assert_eq!(world.archive.refresh().await.unwrap().number, 1);
        world.compact().await;
        world.check().await;
    });
}

#[test]
fn upkeep_runs_as_a_task_on_threads() {
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    threads.block_on(async {
        let mut world = World::new(Arc::new(InMemory::new()), Sizes { fresh_files_max: 6, ..eager() }).await;
        for n in 0..6 {
            world.now_ms += 1;
            world.flush(&[exec(n % 3, 1), exec(n % 2, 20)]).await;
        }
        let (archive, sizes, now_ms) = (world.archive.clone(), world.sizes, world.now_ms);
        let task = tokio::spawn(async move {
            while let Some(job) = choose(&archive.catalog(), &sizes, now_ms) {
                compact(&archive, &job, &sizes, now_ms).await?;
            }
            hold(&archive, of_host(0), now_ms).await?;
            let dropped = retain(&archive, &[age(10)], now_ms).await?;
            let swept = Sweep::new(archive, DELETE_AFTER_MS).run(now_ms).await?;
            Ok::<_, Error>((dropped.len(), swept.removed))
        });
        assert_eq!(task.await.unwrap().unwrap(), (0, 0));
        world.check().await;
    });
}

#[test]
fn who_loses_the_race_is_fenced_and_swept() {
    runtime().block_on(async {
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let mut world = World::new(Arc::clone(&objects), eager()).await;
        world.flush(&[exec(0, 1), exec(1, 2)]).await;
        let job = choose(&world.archive.catalog(), &world.sizes, world.now_ms).unwrap();
        let other = Archive::open(Store::new(objects, "test")).await.unwrap();
        compact(&other, &job, &world.sizes, world.now_ms).await.unwrap();
        let lost = compact(&world.archive, &job, &world.sizes, world.now_ms).await;
        assert!(matches!(lost, Err(Error::Fenced { .. })), "{lost:?}");
        world.check().await;
        world.check_no_orphans().await;
        world.readers.clear();
        world.check().await;
    });
}

#[test]
fn a_sweep_spares_what_is_being_put_and_what_is_no_archive() {
    runtime().block_on(async {
        let store = Store::new(Arc::new(InMemory::new()), "test");
        let path = format!("events/fresh/{}.parquet", random_id());
        store.objects().put(&Path::from(path.as_str()), PutPayload::from_static(b"rows")).await.unwrap();
        let archive = Archive::open(store.clone()).await.unwrap();
        let mut sweep = Sweep::new(archive.clone(), 0);
        assert_eq!(sweep.run(1).await.unwrap(), Swept::default());
        hold(&archive, of_host(0), 2).await.unwrap();
        let spared = archive.in_flight().enter([path.clone()]);
        assert_eq!(sweep.run(3).await.unwrap(), Swept::default());
        drop(spared);
        let mut patient = Sweep::new(archive, 10);
        assert_eq!(patient.run(4).await.unwrap(), Swept { waiting: 1, ..Swept::default() });
        assert_eq!(patient.run(13).await.unwrap(), Swept { waiting: 1, ..Swept::default() });
        assert_eq!(patient.run(14).await.unwrap(), Swept { removed: 1, removed_bytes: 4, waiting: 0 });
    });
}

#[test]
fn a_sweep_knows_what_others_have_committed() {
    runtime().block_on(async {
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let mut world = World::new(Arc::clone(&objects), eager()).await;
        world.flush(&[exec(0, 1)]).await;
        let mut sweep = Sweep::new(Archive::open(Store::new(objects, "test")).await.unwrap(), 0);
        world.flush(&[exec(1, 1)]).await;
        assert_eq!(sweep.run(NOW_MS).await.unwrap(), Swept::default());
        // The state of the first flush goes, once this catalog is known here to name it no more.
        assert_eq!(sweep.run(NOW_MS).await.unwrap().removed, 1);
        world.check().await;
    });
}

#[test]
fn on_a_directory_staging_files_are_swept_unless_they_grow() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let mut world = World::new(Arc::new(LocalStore::open(folder.path()).unwrap()), eager()).await;
        let (dead, growing) = (folder.path().join(".stage-1-1"), folder.path().join(".stage-1-2"));
        std::fs::write(&dead, b"half").unwrap();
        std::fs::write(&growing, b"half").unwrap();
        world.flush(&[exec(0, 1), exec(1, 1)]).await;
        world.flush(&[exec(0, 1)]).await;
        world.compact().await;
        world.check().await;
        world.sweep.run(NOW_MS).await.unwrap();
        std::fs::write(&growing, b"and half").unwrap();
        world.sweep.run(NOW_MS + DELETE_AFTER_MS).await.unwrap();
        assert_eq!((dead.exists(), growing.exists()), (false, true));
        world.check_no_orphans().await;
        assert!(!growing.exists());
        assert_eq!(read_all(&world.snapshot().await).await.unwrap(), world.books);
    });
}
