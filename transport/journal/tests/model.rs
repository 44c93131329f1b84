//! The journal against a Vec: random operations, crashed, killed, filled up, failed and flipped at random steps; and one fixed script,
//! crashed at every single step with many outcomes. A failing case prints its operations and seed; `PROPTEST_CASES=20000` looks longer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use weir_journal::{Disk, Error, Failure, Journal, Offset, Options, Reader, SimDisk};

#[derive(Debug, Clone)]
enum Op {
    Append(usize),
    Sync,
    /// Forget up to this share (of 256) of what is durable.
    Forget(u8),
    Reopen,
    Kill,
    /// The power fails at this step from now, at the latest after the next operations.
    CrashAt(u64),
    FullAt(u64),
    SyncFailsAt(u64),
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (0usize..900).prop_map(Op::Append),
        6 => Just(Op::Sync),
        2 => any::<u8>().prop_map(Op::Forget),
        1 => Just(Op::Reopen),
        1 => Just(Op::Kill),
        2 => (0u64..12).prop_map(Op::CrashAt),
        1 => (0u64..12).prop_map(Op::FullAt),
        1 => (0u64..6).prop_map(Op::SyncFailsAt),
        1 => Just(Op::Crash),
    ]
}

/// The journal and what it must hold.
struct World {
    disk: SimDisk,
    journal: Option<Journal>,
    /// Every record by offset, as last appended there.
    records: Vec<Vec<u8>>,
    /// Everything before it was returned by a sync or found by a recovery.
    durable: u64,
    /// Everything from here on must be kept.
    forgotten: u64,
    serial: u64,
    reader: Option<(Reader, u64)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            disk: SimDisk::new(seed),
            journal: None,
            records: Vec::new(),
            durable: 0,
            forgotten: 0,
            serial: 0,
            reader: None,
        };
        world.open();
        world
    }

    /// Opens until it works: a planned failure may hit the recovery itself, also several times.
    fn open(&mut self) {
        self.journal = None;
        let (journal, recovery) = loop {
            match Journal::open(Arc::new(self.disk.clone()), dir(), options()) {
                Ok(opened) => break opened,
                Err(Error::Locked { .. }) => panic!("the lock outlived its holder"),
                Err(_) => self.disk.restart(),
            }
        };
        assert_eq!(recovery.quarantined, [], "no bit was flipped");
        assert!(recovery.next.0 >= self.durable, "durable records are gone: {} of {}", recovery.next, self.durable);
        assert!(recovery.next.0 <= self.records.len() as u64, "records that were never appended");
        assert!(recovery.first.0 <= self.forgotten, "kept from {} only, allowed {}", recovery.first, self.forgotten);
        self.records.truncate(recovery.next.0 as usize);
        self.durable = recovery.next.0;
        self.journal = Some(journal);
        self.reader = None;
        self.read_all(recovery.first);
    }

    fn apply(&mut self, op: &Op) {
        let journal = self.journal.as_mut().expect("open between operations");
        let outcome = match op {
            Op::Append(len) => {
                self.serial += 1;
                let record = content(self.serial, *len);
                journal.append(&record).map(|offset| {
                    assert_eq!(offset.0, self.records.len() as u64, "offsets are dense");
                    self.records.push(record);
                })
            }
            Op::Sync => journal.sync().map(|durable| {
                assert_eq!(durable.0, self.records.len() as u64);
                self.durable = durable.0;
            }),
            Op::Forget(share) => {
                let before = self.durable * u64::from(*share) / 256;
                self.forgotten = self.forgotten.max(before);
                journal.forget(Offset(before))
            }
            Op::Reopen => {
                // Dropped without a sync: what was not synced may be gone.
                self.open();
                Ok(())
            }
            Op::Kill => {
                self.disk.kill();
                self.open();
                Ok(())
            }
            Op::Crash => {
                self.disk.restart();
                self.open();
                Ok(())
            }
            Op::CrashAt(step) => {
                self.disk.fail_at(*step, Failure::Crash);
                Ok(())
            }
            Op::FullAt(step) => {
                self.disk.fail_at(*step, Failure::Full);
                Ok(())
            }
            Op::SyncFailsAt(step) => {
                self.disk.fail_at(*step, Failure::SyncFails);
                Ok(())
            }
        };
        match outcome {
            Ok(()) => self.tail(matches!(op, Op::Sync)),
            // The space is back: the same journal goes on.
            Err(Error::Full { .. }) => self.durable = self.journal.as_ref().expect("open").durable().0,
            // A failed sync, reopened in the same life of the machine: the page cache shows what the disk has lost.
            Err(Error::Io { .. } | Error::Poisoned { .. }) if self.disk.list(dir()).is_ok() => self.open(),
            Err(Error::Io { .. }) => {
                self.disk.restart();
                self.open();
            }
            Err(other) => panic!("{op:?}: {other}"),
        }
    }

    /// A reader that stays open sees what is durable, in order: all of it after a good sync, and never more. (A full disk may
    /// refuse the watermark; the next sync publishes it.)
    fn tail(&mut self, synced: bool) {
        if self.disk.list(dir()).is_err() {
            return;
        }
        if self.reader.is_none() {
            let first = self.journal.as_ref().expect("open").first();
            self.reader = Reader::open(Arc::new(self.disk.clone()), dir(), first).ok().map(|reader| (reader, first.0));
        }
        let Some((reader, at)) = &mut self.reader else { return };
        loop {
            match reader.next() {
                Ok(Some((offset, bytes))) => {
                    assert_eq!(offset.0, *at);
                    assert!(offset.0 < self.durable, "read {offset} before it was durable");
                    assert_eq!(bytes, self.records[offset.0 as usize]);
                    *at += 1;
                }
                Ok(None) => break assert!(*at == self.durable || !synced, "{at} of {} were read", self.durable),
                Err(Error::Forgotten { first, .. }) => {
                    assert!(first.0 <= self.forgotten);
                    reader.seek(first);
                    *at = first.0;
                }
                Err(other) => panic!("tail: {other}"),
            }
        }
    }

    fn read_all(&self, first: Offset) {
        let Ok(mut reader) = Reader::open(Arc::new(self.disk.clone()), dir(), first) else { return };
        for (index, expected) in self.records.iter().enumerate().take(self.durable as usize).skip(first.0 as usize) {
            let (offset, bytes) = reader.next().expect("readable").expect("durable");
            assert_eq!((offset.0, &bytes), (index as u64, expected));
        }
        assert!(reader.next().expect("readable").is_none());
        // And from anywhere in the middle.
        let middle = first.0 + (self.durable - first.0) / 2;
        reader.seek(Offset(middle));
        let expected = self.records[..self.durable as usize].get(middle as usize).map(|bytes| (Offset(middle), bytes.clone()));
        assert_eq!(reader.next().expect("readable"), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_journal_is_a_vec_whatever_fails(seed: u64, ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new(seed);
        for op in &ops {
            world.apply(op);
        }
        world.disk.restart();
        world.open();
    }

    #[test]
    fn flipped_bits_are_named_and_never_read(
        seed: u64,
        lens in prop::collection::vec(0usize..900, 1..40),
        flips in prop::collection::vec((any::<u16>(), any::<u32>()), 1..4),
        crash: bool,
    ) {
        check_flips(seed, &lens, &flips, crash);
    }

    #[test]
    fn random_bytes_never_panic(
        seed: u64,
        segments in prop::collection::vec((prop_oneof![4 => 0u64..6, 1 => any::<u64>()], prop::collection::vec(any::<u8>(), 0..3000), any::<bool>(), any::<bool>()), 0..4),
        mark in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        check_random(seed, segments, &mark);
    }
}

/// Every step of a script that makes, fills, syncs, forgets and reopens, with many outcomes each.
#[test]
fn a_fixed_script_crashed_at_every_step() {
    let script: Vec<Op> = (0..6)
        .flat_map(|round| {
            [Op::Append(300), Op::Append(700), Op::Sync, Op::Append(10 + round), Op::Append(850), Op::Sync, Op::Forget(150)]
        })
        .chain([Op::Reopen, Op::Append(5), Op::Sync])
        .collect();
    let steps = {
        let mut world = World::new(0);
        let before = world.disk.steps();
        script.iter().for_each(|op| world.apply(op));
        world.disk.steps() - before
    };
    assert!(steps > 60, "the script makes only {steps} steps");
    for failure in [Failure::Crash, Failure::SyncFails, Failure::Full] {
        for step in 0..steps {
            for seed in 0..if failure == Failure::Crash { 40 } else { 2 } {
                let mut world = World::new(seed);
                world.disk.fail_at(step, failure);
                script.iter().for_each(|op| world.apply(op));
                world.disk.restart();
                world.open();
            }
        }
    }
}

/// The recovery itself is crashed at each of its steps, after a crash that left a torn tail.
#[test]
fn recovery_crashed_at_every_step() {
    for seed in 0..60 {
        for step in 0..14 {
            let mut world = World::new(seed);
            for op in [
                Op::Append(600),
                Op::Append(500),
                Op::Sync,
                Op::Append(800),
                Op::Sync,
                Op::Append(400),
                Op::Append(30),
                Op::CrashAt(1),
                Op::Sync,
            ] {
                world.apply(&op);
            }
            world.disk.fail_at(step, Failure::Crash);
            world.open();
            world.apply(&Op::Append(40));
            world.disk.heal();
            world.apply(&Op::Sync);
        }
    }
}

/// The power fails, the watermark falls back, and a bit of an old record has flipped: no torn tail, for the records behind prove
/// that it was durable. Their offsets are not used again.
#[test]
fn a_broken_record_is_no_torn_tail_even_without_the_watermark() {
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        let (mut journal, _) = Journal::open(Arc::new(disk.clone()), dir(), options()).unwrap();
        for serial in 0..3 {
            journal.append(&content(serial, 400)).unwrap();
            journal.sync().unwrap();
        }
        drop(journal);
        disk.restart();
        disk.flip_bit(&segments(&disk)[0], (1024 + 100) * 8);
        let (journal, recovery) = Journal::open(Arc::new(disk.clone()), dir(), options()).unwrap();
        let lost: Vec<_> = recovery.quarantined.iter().map(|lost| (lost.from.0, lost.to.0)).collect();
        assert_eq!((recovery.next.0, recovery.torn_bytes, lost), (3, 0, vec![(0, 3)]), "seed {seed}");
        drop(journal);
        disk.restart();
        assert_eq!(Journal::open(Arc::new(disk), dir(), options()).unwrap().1.next.0, 3, "seed {seed}");
    }
}

#[test]
fn two_writers_are_refused_and_the_lock_dies_with_its_holder() {
    let disk = Arc::new(SimDisk::new(1));
    let first = Journal::open(disk.clone(), dir(), options()).unwrap();
    assert!(matches!(Journal::open(disk.clone(), dir(), options()), Err(Error::Locked { .. })));
    drop(first);
    Journal::open(disk, dir(), options()).unwrap();
}

#[test]
fn a_full_disk_loses_nothing_and_a_later_sync_succeeds() {
    let disk = SimDisk::new(3);
    let (mut journal, _) = Journal::open(Arc::new(disk.clone()), dir(), options()).unwrap();
    for round in 0..20u64 {
        for index in 0..3 {
            assert_eq!(journal.append(&content(round, 500)).unwrap().0, round * 3 + index);
        }
        disk.fail_at(0, Failure::Full);
        assert!(matches!(journal.sync(), Err(Error::Full { .. })), "round {round}");
        assert_eq!(journal.sync().unwrap().0, round * 3 + 3);
    }
    let mut reader = Reader::open(Arc::new(disk), dir(), Offset(0)).unwrap();
    for index in 0..60 {
        assert_eq!(reader.next().unwrap().unwrap(), (Offset(index), content(index / 3, 500)));
    }
}

#[test]
fn a_failed_sync_poisons_until_opened_anew() {
    let disk = SimDisk::new(4);
    let (mut journal, _) = Journal::open(Arc::new(disk.clone()), dir(), options()).unwrap();
    journal.append(b"one").unwrap();
    journal.sync().unwrap();
    journal.append(b"two").unwrap();
    disk.fail_at(0, Failure::SyncFails);
    assert!(matches!(journal.sync(), Err(Error::Io { action: "sync", .. })));
    assert!(matches!(journal.sync(), Err(Error::Poisoned { .. })));
    assert!(matches!(journal.append(b"three"), Err(Error::Poisoned { .. })));
    assert!(matches!(journal.forget(Offset(1)), Err(Error::Poisoned { .. })));
    drop(journal);
    // "two" can still be read, from the page cache alone: once it is told, it must be on the disk.
    let (journal, recovery) = Journal::open(Arc::new(disk.clone()), dir(), options()).unwrap();
    assert_eq!(recovery.next.0, 2);
    drop(journal);
    disk.restart();
    let recovery = Journal::open(Arc::new(disk), dir(), options()).unwrap().1;
    assert_eq!((recovery.next.0, recovery.quarantined), (2, vec![]));
}

/// Of a torn group the second record may be whole. Once the first is written anew, the old second must not appear behind it.
#[test]
fn a_torn_record_does_not_come_back_behind_a_new_one() {
    let mut torn = 0;
    for seed in 0..300 {
        let disk = SimDisk::new(seed);
        let (mut journal, _) = Journal::open(Arc::new(disk.clone()), dir(), options()).unwrap();
        journal.append(b"whole").unwrap();
        journal.sync().unwrap();
        journal.append(&[1; 600]).unwrap();
        journal.append(&[2; 600]).unwrap();
        // The write comes through, its sync does not.
        disk.fail_at(1, Failure::Crash);
        journal.sync().unwrap_err();
        disk.restart();
        let (mut journal, recovery) = Journal::open(Arc::new(disk.clone()), dir(), options()).unwrap();
        if recovery.next.0 != 1 || recovery.torn_bytes == 0 {
            continue;
        }
        torn += 1;
        journal.append(&[3; 600]).unwrap();
        journal.sync().unwrap();
        drop(journal);
        disk.restart();
        let (_journal, recovery) = Journal::open(Arc::new(disk.clone()), dir(), options()).unwrap();
        assert_eq!((recovery.next.0, recovery.torn_bytes, recovery.quarantined), (2, 0, vec![]), "seed {seed}");
    }
    assert!(torn > 20, "only {torn} seeds tore the group");
}

#[test]
fn an_idle_reader_costs_one_read() {
    let disk = SimDisk::new(7);
    let mut files = 0;
    let (mut journal, _) = Journal::open(Arc::new(disk.clone()), dir(), options()).unwrap();
    let mut reader = Reader::open(Arc::new(disk.clone()), dir(), Offset(0)).unwrap();
    for round in 0..30 {
        journal.append(&content(round, 100)).unwrap();
        assert!(reader.next().unwrap().is_none(), "not durable yet");
        journal.sync().unwrap();
        let before = disk.reads();
        assert!(reader.next().unwrap().is_some());
        // The watermark, and what is new: never the segment from its beginning, but for a new one.
        let begins = disk.files().len() > files;
        assert!(disk.reads() - before <= if begins { 5 } else { 2 }, "round {round}: {} reads", disk.reads() - before);
        files = disk.files().len();
        let before = disk.reads();
        assert!(reader.next().unwrap().is_none());
        assert_eq!(disk.reads() - before, 1);
    }
}

#[test]
fn limits_are_held_and_said() {
    let disk = Arc::new(SimDisk::new(5));
    let limits = Options { segment_bytes_max: 2048, record_bytes_max: 5000, pending_bytes_max: 6000 };
    let (mut journal, _) = Journal::open(disk.clone(), dir(), limits).unwrap();
    assert!(matches!(journal.append(&[0; 5001]), Err(Error::RecordTooLarge { bytes: 5001, bytes_max: 5000 })));
    journal.append(&[1; 5000]).unwrap();
    assert!(matches!(journal.append(&[2; 2000]), Err(Error::PendingFull { bytes_max: 6000 })));
    assert_eq!(journal.sync().unwrap().0, 1, "a record larger than a segment gets a larger one");
    journal.append(&[]).unwrap();
    assert_eq!(journal.sync().unwrap().0, 2);
    assert!(journal.bytes().unwrap() >= 5000 + 2048);
    let mut reader = Reader::open(disk, dir(), Offset(0)).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().1, [1; 5000]);
    assert_eq!(reader.next().unwrap().unwrap().1, []);
}

#[test]
fn a_missing_segment_is_named() {
    let disk = SimDisk::new(6);
    let (mut journal, _) = Journal::open(Arc::new(disk.clone()), dir(), options()).unwrap();
    for index in 0..12 {
        journal.append(&content(index, 900)).unwrap();
        journal.sync().unwrap();
    }
    drop(journal);
    let files: Vec<PathBuf> = segments(&disk);
    assert!(files.len() >= 4);
    disk.lose(&files[0]);
    disk.lose(&files[2]);
    let (_journal, recovery) = Journal::open(Arc::new(disk.clone()), dir(), options()).unwrap();
    assert_eq!(recovery.next.0, 12);
    let lost: Vec<(u64, u64)> = recovery.quarantined.iter().map(|lost| (lost.from.0, lost.to.0)).collect();
    let mut reader = Reader::open(Arc::new(disk), dir(), Offset(0)).unwrap();
    assert_eq!(gaps(&mut reader), lost);
    assert_eq!(lost.len(), 2);
}

fn check_flips(seed: u64, lens: &[usize], flips: &[(u16, u32)], crash: bool) {
    let disk = SimDisk::new(seed);
    let (mut journal, _) = Journal::open(Arc::new(disk.clone()), dir(), options()).unwrap();
    for (index, len) in lens.iter().enumerate() {
        journal.append(&content(index as u64, *len)).unwrap();
        if index % 3 == 2 || index + 1 == lens.len() {
            journal.sync().unwrap();
        }
    }
    drop(journal);
    if crash {
        // The watermark may fall back: what the floors prove must do.
        disk.restart();
    }
    let files = segments(&disk);
    for (file, bit) in flips {
        let file = &files[*file as usize % files.len()];
        let len = disk.files().iter().find(|(path, _)| path == file).expect("listed").1;
        disk.flip_bit(file, *bit as usize % (len * 8));
    }
    let (mut journal, recovery) = Journal::open(Arc::new(disk.clone()), dir(), options()).unwrap();
    let total = lens.len() as u64;
    assert!(recovery.next.0 <= total);
    // A crash that took the watermark with it, and a flip in the very last group: that looks like a torn tail. Several flips may
    // hit whatever else would have told.
    let last_group = if total.is_multiple_of(3) { 3 } else { total % 3 };
    let excused = crash && (flips.len() > 1 || recovery.next.0 + last_group >= total);
    assert!(recovery.next.0 == total || excused, "next {} of {total}", recovery.next);
    let lost: Vec<(u64, u64)> = recovery.quarantined.iter().map(|lost| (lost.from.0, lost.to.0)).collect();
    let mut reader = Reader::open(Arc::new(disk.clone()), dir(), Offset(0)).unwrap();
    let mut seen = Vec::new();
    let mut read = 0;
    loop {
        match reader.next() {
            Ok(Some((offset, bytes))) => {
                assert_eq!(bytes, content(offset.0, lens[offset.0 as usize]), "record {offset}");
                read += 1;
            }
            Ok(None) => break,
            Err(Error::Gap { from, to }) => {
                assert!(matches!(reader.next(), Err(Error::Gap { .. })), "a gap is not papered over");
                seen.push((from.0, to.0));
                reader.seek(to);
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(seen, lost);
    assert_eq!(read + lost.iter().map(|(from, to)| to - from).sum::<u64>(), recovery.next.0);
    // And the journal goes on.
    let offset = journal.append(b"on").unwrap();
    assert_eq!(offset, recovery.next);
    journal.sync().unwrap();
    assert_eq!(reader.next().unwrap(), Some((offset, b"on".to_vec())));
}

fn check_random(seed: u64, segments: Vec<(u64, Vec<u8>, bool, bool)>, mark: &[u8]) {
    let disk = SimDisk::new(seed);
    // Half of them begin with a good header, so that the records are looked at.
    let (journal, _) = {
        let donor = SimDisk::new(seed);
        let (mut journal, recovery) = Journal::open(Arc::new(donor.clone()), dir(), options()).unwrap();
        journal.append(b"donor").unwrap();
        journal.sync().unwrap();
        let path = self::segments(&donor)[0].clone();
        let mut head = vec![0; 1064];
        donor.open_read(&path).unwrap().read_at(&mut head, 0).unwrap();
        for (first, bytes, good, bad) in segments {
            let mut bytes = bytes;
            if good && first == 0 {
                bytes.splice(0..0, head.iter().copied());
            }
            disk.put(&dir().join(format!("{first:020}.{}", if bad { "bad" } else { "seg" })), &bytes);
        }
        (journal, recovery)
    };
    drop(journal);
    disk.put(&dir().join("watermark"), mark);
    disk.put(&dir().join("first"), mark);
    let (mut journal, recovery) = Journal::open(Arc::new(disk.clone()), dir(), options()).unwrap();
    assert_eq!(journal.append(b"x").unwrap(), recovery.next);
    journal.sync().unwrap();
    let mut reader = Reader::open(Arc::new(disk), dir(), recovery.first).unwrap();
    gaps(&mut reader);
    reader.seek(recovery.next);
    assert_eq!(reader.next().unwrap(), Some((recovery.next, b"x".to_vec())));
}

/// Reads to the end and gives the gaps met.
fn gaps(reader: &mut Reader) -> Vec<(u64, u64)> {
    let mut gaps = Vec::new();
    loop {
        match reader.next() {
            Ok(Some(_)) => {}
            Ok(None) => return gaps,
            Err(Error::Gap { from, to }) => {
                gaps.push((from.0, to.0));
                reader.seek(to);
            }
            Err(other) => panic!("{other}"),
        }
    }
}

fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let files = disk.files().into_iter().map(|(path, _)| path);
    files.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).collect()
}

/// Records whose content tells who they are.
fn content(serial: u64, len: usize) -> Vec<u8> {
    (0..len).map(|index| (serial.wrapping_mul(31) as usize + index * 7) as u8 | 1).collect()
}

/// Segments of two or three records.
fn options() -> Options {
    Options { segment_bytes_max: 3200, record_bytes_max: 1 << 20, pending_bytes_max: 1 << 20 }
}

fn dir() -> &'static Path {
    Path::new("/sim/log")
}
