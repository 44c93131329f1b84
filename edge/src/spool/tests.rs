//! The spool on a disk that crashes, fills up and fails its syncs: nothing that was synced vanishes untold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use weir_journal::{Failure, SimDisk};
use weir_schema::{BatchBuilder, Epoch, Event, Frame, Host, Kind, Lane, Seq};
use weir_transport::FrameKey;

use super::{Found, Gap, Spool};

const DIR: &str = "/agent/spool";
/// Four segments of the least size, and one.
const BYTES_MAX: u64 = 5 * (256 << 10);

fn frame(epoch: u64, lane: Lane, first: u64, count: u64, fat: bool) -> Frame {
    let kind = Kind::ALL.iter().copied().find(|kind| kind.lane() == lane).unwrap();
    let mut builder = BatchBuilder::new(Arc::new(Host::default()), Epoch(epoch), lane, Seq(first));
    for at in 0..count {
        let mut event = Event { kind, time: (first + at) as i64, ..Event::default() };
        if fat {
            // Texts that do not compress.
            let mut state = epoch ^ (first + at).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let digit = |state: &mut u64| {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                char::from(33 + (*state >> 32) as u8 % 90)
            };
            event.fields.path = Some((0..2_000).map(|_| digit(&mut state)).collect::<String>().as_str().into());
        }
        builder.push(&event).unwrap();
    }
    builder.finish().unwrap()
}

fn open(disk: &SimDisk) -> Result<(Spool, Found), weir_journal::Error> {
    Spool::open(Arc::new(disk.clone()), Path::new(DIR), BYTES_MAX)
}

fn drain(spool: &mut Spool) -> Vec<FrameKey> {
    std::iter::from_fn(|| spool.give()).map(|frame| FrameKey::of(&frame.header)).collect()
}

#[test]
fn what_is_synced_is_given_out_by_class_until_it_is_settled() {
    let disk = SimDisk::new(1);
    let (mut spool, found) = open(&disk).unwrap();
    assert_eq!(found, Found::default());
    let frames = [
        frame(1, Lane::Sample, 0, 2, false),
        frame(1, Lane::Network, 5, 3, false),
        frame(1, Lane::Network, 8, 1, false),
        frame(1, Lane::Security, 0, 1, false),
    ];
    frames.iter().for_each(|frame| spool.append(frame).unwrap());
    assert_eq!((spool.give(), spool.events()), (None, 7), "nothing is given out before it is safe");
    spool.sync().unwrap();
    let given = drain(&mut spool);
    assert_eq!(given, [3, 1, 2, 0].map(|at| FrameKey::of(&frames[at].header)));
    let floors: Vec<_> = spool.floors().collect();
    assert_eq!(
        floors,
        [(Lane::Security, 0), (Lane::Network, 5), (Lane::Sample, 0)].map(|(lane, seq)| (Epoch(1), lane, Seq(seq)))
    );
    // The second of the network lane is settled before the first: both wait for the first.
    spool.settle(|key| key.first_seq != Seq(8) && key.lane == Lane::Network).unwrap();
    assert_eq!(spool.events(), 4);
    assert!(spool.gave(&given[1]) && !spool.gave(&given[0]));
    spool.rewind();
    assert_eq!(drain(&mut spool), given[1..3]);
    spool.close().unwrap();

    let (mut spool, found) = open(&disk).unwrap();
    assert_eq!((found.killed, spool.events()), (false, 4));
    assert_eq!(drain(&mut spool), given[1..3]);
    spool.settle(|_| false).unwrap();
    assert!(spool.is_empty() && spool.floors().next().is_none());
    spool.close().unwrap();
    let (spool, _) = open(&disk).unwrap();
    assert!(spool.is_empty(), "what was settled does not come again after an orderly end");
    drop(spool);
    assert!(open(&disk).unwrap().1.killed);
}

#[test]
fn a_full_spool_drops_by_class_and_then_by_age() {
    let disk = SimDisk::new(2);
    let (mut spool, _) = open(&disk).unwrap();
    let mut dropped: BTreeMap<(Lane, Epoch), u64> = BTreeMap::new();
    let mut told = 0;
    for round in 0..60 {
        for lane in Lane::ALL {
            spool.append(&frame(1, lane, 1_000 + round * 10, 10, true)).unwrap();
        }
        spool.sync().unwrap();
        while let Some((verdict, gaps)) = spool.overflow().unwrap() {
            for gap in gaps {
                let so_far = dropped.entry((gap.lane, gap.epoch)).or_default();
                assert!(gap.epoch == Epoch(2) || gap.first.0 == 1_000 + *so_far, "the oldest first");
                *so_far += gap.count;
            }
            // What tells it is of another run, to be told apart here.
            spool.drop_told(Some(&frame(2, Lane::Security, told, 1, false)), verdict).unwrap();
            told += 1;
            spool.sync().unwrap();
        }
        assert!(spool.bytes().unwrap() <= BYTES_MAX + 4 * (256 << 10), "the newest segment of each lane stays");
    }
    assert_eq!(spool.events(), 4 * 600 + told - dropped.values().sum::<u64>());
    let dropped = Lane::ALL.map(|lane| dropped.get(&(lane, Epoch(1))).copied().unwrap_or(0));
    assert!(dropped.iter().rev().is_sorted_by(|more, less| more >= less) && dropped[3] > dropped[0], "{dropped:?}");
}

#[test]
fn a_damaged_segment_is_told_and_the_rest_is_there() {
    let disk = SimDisk::new(3);
    let (mut spool, _) = open(&disk).unwrap();
    (0..40).for_each(|at| spool.append(&frame(1, Lane::File, at * 10, 10, true)).unwrap());
    spool.sync().unwrap();
    spool.close().unwrap();
    let (path, size) = disk.files().into_iter().find(|(_, size)| *size > 200_000).unwrap();
    disk.flip_bit(&path, size * 2);
    let (mut spool, found) = open(&disk).unwrap();
    assert_eq!(found.damaged, [Lane::File]);
    let left = drain(&mut spool);
    assert!(!left.is_empty() && left.len() < 40, "{}", left.len());
    // Damage that is met while reading is told by its seqs.
    drop(spool);
    let (mut spool, _) = open(&disk).unwrap();
    let events = spool.events();
    let newest = disk.files().into_iter().rfind(|(path, size)| *size > 200_000 && !path.to_string_lossy().contains("bad"));
    let (path, size) = newest.unwrap();
    disk.flip_bit(&path, size * 2);
    let given: u64 = drain(&mut spool).iter().map(|key| u64::from(key.count)).sum();
    let lost: u64 = spool.take_damaged().iter().map(|gap: &Gap| gap.count).sum();
    assert!(lost > 0);
    assert_eq!(given + lost, events);
}

/// What is known outside of the spool: the nodes' log, the books of the test.
#[derive(Default)]
struct World {
    disk: Option<SimDisk>,
    spool: Option<Spool>,
    epoch: u64,
    next: [u64; 4],
    /// The session's memory.
    held: BTreeSet<FrameKey>,
    acked: BTreeSet<FrameKey>,
    /// Appended, and not known to be synced.
    unsure: BTreeSet<FrameKey>,
    synced: BTreeSet<FrameKey>,
    /// The gaps that a frame tells, by its key.
    tells: BTreeMap<FrameKey, Vec<Gap>>,
    crashes: u64,
    drops: u64,
    /// A crash was planned: the disk may be down, whether anybody has noticed or not.
    may_be_down: bool,
}

impl World {
    fn disk(&self) -> &SimDisk {
        self.disk.as_ref().unwrap()
    }

    /// The agent dies; the disk loses what it may.
    fn crash(&mut self) {
        self.spool = None;
        self.disk().restart();
        self.held.clear();
        self.unsure.clear();
        self.crashes += 1;
    }

    fn start(&mut self) {
        while self.spool.is_none() {
            match open(self.disk()) {
                Ok((spool, _)) => self.spool = Some(spool),
                // A planned failure came at this start.
                Err(_) => self.crash(),
            }
        }
        self.epoch += 1;
        self.next = [0; 4];
    }

    fn append(&mut self, lane: Lane, fat: bool) {
        let next = &mut self.next[lane as usize];
        let frame = frame(self.epoch, lane, *next, 5, fat);
        *next += 5;
        if self.spool.as_mut().unwrap().append(&frame).is_ok() {
            self.unsure.insert(FrameKey::of(&frame.header));
        }
    }

    fn sync(&mut self) {
        if self.spool.as_mut().unwrap().sync().is_ok() {
            self.synced.append(&mut self.unsure);
        }
    }

    fn send(&mut self, most: usize) {
        for _ in 0..most {
            let Some(frame) = self.spool.as_mut().unwrap().give() else { return };
            assert!(self.held.insert(FrameKey::of(&frame.header)), "a frame that is held is not given out again");
        }
    }

    /// A node makes some of what is held durable, in any order.
    fn ack(&mut self, pick: u64) {
        let acked: Vec<_> = self.held.iter().copied().filter(|key| !(key.first_seq.0 ^ pick).is_multiple_of(3)).collect();
        acked.iter().for_each(|key| {
            self.held.remove(key);
        });
        self.acked.extend(acked);
        let held = &self.held;
        let _ = self.spool.as_mut().unwrap().settle(|key| held.contains(key));
    }

    fn overflow(&mut self) {
        let Ok(Some((verdict, gaps))) = self.spool.as_mut().unwrap().overflow() else { return };
        let next = &mut self.next[Lane::Security as usize];
        let told = frame(self.epoch, Lane::Security, *next, 1, false);
        *next += 1;
        if self.spool.as_mut().unwrap().drop_told(Some(&told), verdict).is_ok() {
            self.drops += 1;
            self.tells.insert(FrameKey::of(&told.header), gaps);
            self.unsure.insert(FrameKey::of(&told.header));
        }
        self.sync();
    }

    /// Nothing fails any more: all that was synced is acknowledged, or told as lost by a frame that is acknowledged.
    fn heal(&mut self) {
        self.disk().heal();
        self.held.clear();
        if self.spool.is_none() {
            self.start();
        }
        if self.may_be_down {
            self.crash();
            self.start();
        }
        self.spool.as_mut().unwrap().sync().unwrap();
        self.synced.append(&mut self.unsure);
        self.spool.as_mut().unwrap().rewind();
        for _ in 0..1_000 {
            self.sync();
            self.send(64);
            self.held.iter().for_each(|key| {
                self.acked.insert(*key);
            });
            self.held.clear();
            self.spool.as_mut().unwrap().settle(|_| false).unwrap();
            if self.spool.as_ref().unwrap().is_empty() {
                break;
            }
        }
        assert!(self.spool.as_ref().unwrap().is_empty());
        let covers = |gap: &Gap, key: &FrameKey| {
            (gap.epoch, gap.lane) == (key.epoch, key.lane) && gap.first <= key.first_seq && key.first_seq < gap.end
        };
        // A frame that told a loss may itself be dropped, later ones first: then that is told.
        let mut told: Vec<Gap> = Vec::new();
        for (key, gaps) in self.tells.iter().rev() {
            if self.acked.contains(key) || told.iter().any(|gap| covers(gap, key)) {
                told.extend(gaps);
            }
        }
        let is_told = |key: &FrameKey| told.iter().any(|gap| covers(gap, key));
        for key in &self.synced {
            assert!(self.acked.contains(key) || is_told(key), "{key:?} was synced and is neither acknowledged nor told as lost");
        }
        if self.crashes == 0 {
            assert!(!self.acked.iter().any(is_told), "acknowledged and told as lost");
        }
    }
}

fn run(seed: u64, steps: &[(u8, u64)]) -> World {
    let mut world = World { disk: Some(SimDisk::new(seed)), ..World::default() };
    world.start();
    for &(what, dice) in steps {
        if world.spool.is_none() {
            world.start();
        }
        match what {
            0..40 => world.append(Lane::ALL[dice as usize % 4], dice % 8 > 2),
            40..55 => world.sync(),
            55..65 => world.send(dice as usize % 9),
            65..75 => world.ack(dice),
            75..90 => world.overflow(),
            90..92 => {
                let disk = world.disk().clone();
                let failure = [Failure::Crash, Failure::Full, Failure::SyncFails][dice as usize % 3];
                disk.fail_at(dice % 12, failure);
                world.may_be_down |= failure == Failure::Crash;
            }
            92..94 => world.crash(),
            94..96 => world.disk().heal(),
            _ => {
                let _ = world.spool.as_mut().unwrap().mark();
            }
        }
    }
    world.heal();
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn nothing_synced_vanishes_untold(seed in any::<u64>(), steps in prop::collection::vec((0u8..100, any::<u64>()), 1..400)) {
        run(seed, &steps);
    }
}

#[test]
fn the_disk_of_the_test_does_crash_and_fill() {
    let mut state = 7_u64;
    let mut dice = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let steps: Vec<_> = (0..3_000).map(|_| (dice() as u8 % 100, dice())).collect();
    let world = run(7, &steps);
    assert!(
        world.crashes > 20 && world.drops > 10 && world.acked.len() > 200,
        "{} {} {}",
        world.crashes,
        world.drops,
        world.acked.len()
    );
}
