//! The intake against the owner on random frames, over restarts, and its state against random bytes.

use proptest::prelude::*;
use weir_schema::{BatchBuilder, BootId, Epoch, Event, Fields, HEADER_BYTES, Host, Kind, Lane, Seq};

use super::state::{pack, unpack};
use super::*;
use crate::ViewSettings;
use crate::alerts::InForce;
use crate::source::owner::{Ahead, Owner, Shipped};
use crate::source::tests::{event, identity, lines};
use crate::source::{Tails, schema_of};

const ADMISSION: Admission = Admission { retention_ms: 1_000, skew_ms: 50 };
const COLUMNS: &[Column] =
    &[Column::EventId, Column::Tick, Column::Late, Column::Received, Column::Region, Column::Kind, Column::Time];

/// What a frame is made of.
#[derive(Debug, Clone)]
enum Sent {
    /// Events by how far they are ahead of the tick, in milliseconds.
    Events { agent: usize, epoch: u64, lane: Lane, first: u64, ahead_ms: Vec<i64>, body: Body },
    /// The frame that was sent so many frames ago.
    Again(usize),
    /// No frame.
    Bytes(Vec<u8>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Body {
    Good,
    /// Its checksum is right, but it does not decode.
    Bad,
}

fn frame(agent: &str, epoch: u64, lane: Lane, first: u64, times_ms: &[i64]) -> Vec<u8> {
    let host = Host { host: agent.into(), cloud: None, zone: None, boot_id: BootId([1; 16]), simulated: true };
    let mut builder = BatchBuilder::new(Arc::new(host), Epoch(epoch), lane, Seq(first));
    for time in times_ms {
        let kinds = match lane {
            Lane::Security => [Kind::Exec, Kind::Exit],
            Lane::Network => [Kind::Connect, Kind::Close],
            Lane::File => [Kind::Write, Kind::Unlink],
            Lane::Sample => [Kind::Sample; 2],
        };
        let kind = kinds[usize::from(time % 3 == 0)];
        builder.push(&Event { process: None, ..event(kind, *time, Fields::default()) }).unwrap();
    }
    builder.finish().unwrap().bytes
}

/// The same frame with a body that nothing decodes.
fn spoilt(mut frame: Vec<u8>) -> Vec<u8> {
    frame[HEADER_BYTES] ^= 0xff;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..60]), &frame[HEADER_BYTES..]);
    frame[60..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    frame
}

fn sent() -> impl Strategy<Value = Sent> {
    // Most fall into one lane of one epoch of one agent, so that they overlap.
    let lane = prop_oneof![3 => Just(Lane::Network), 1 => prop::sample::select(&Lane::ALL[..])];
    let agent = prop_oneof![3 => Just(0usize), 1 => 1usize..3];
    let epoch = prop_oneof![3 => Just(0u64), 1 => 1u64..3];
    let first = prop_oneof![1 => Just(0u64), 2 => 0u64..40];
    let body = prop_oneof![9 => Just(Body::Good), 1 => Just(Body::Bad)];
    let ahead_ms = prop::collection::vec(prop_oneof![3 => -900i64..50, 1 => -1_500i64..-900, 2 => 40i64..900], 1..9);
    let events = (agent, epoch, lane, first, ahead_ms, body)
        .prop_map(|(agent, epoch, lane, first, ahead_ms, body)| Sent::Events { agent, epoch, lane, first, ahead_ms, body });
    prop_oneof![8 => events, 2 => (1usize..6).prop_map(Sent::Again), 1 => prop::collection::vec(any::<u8>(), 0..80).prop_map(Sent::Bytes)]
}

/// Ticks with their frames, by log 0 or 1.
fn story() -> impl Strategy<Value = Vec<(u64, Vec<Arrived>)>> {
    let tick = (1u64..400, prop::collection::vec((0u32..2, sent()), 0..6));
    prop::collection::vec(tick, 1..14).prop_map(|steps| {
        let (mut tick, mut before) = (20_000, Vec::<StampedFrame>::new());
        steps
            .into_iter()
            .map(|(step, frames)| {
                tick += step;
                (tick, frames.into_iter().map(|(log, sent)| arrived(tick, log, sent, &mut before)).collect())
            })
            .collect()
    })
}

fn arrived(tick: u64, log: u32, sent: Sent, before: &mut Vec<StampedFrame>) -> Arrived {
    let names = ["a", "b", "c"];
    let stamp = |agent: &str, frame| StampedFrame { identity: identity(agent), received_ms: tick + 7, frame };
    let stamped = match sent {
        Sent::Events { agent, epoch, lane, first, ahead_ms, body } => {
            let times: Vec<i64> = ahead_ms.iter().map(|ahead| tick as i64 + ahead).collect();
            let good = frame(names[agent], epoch, lane, first, &times);
            stamp(names[agent], if body == Body::Good { good } else { spoilt(good) })
        }
        Sent::Again(ago) => match before.len().checked_sub(ago) {
            Some(at) => before[at].clone(),
            None => stamp("a", vec![]),
        },
        Sent::Bytes(bytes) => stamp("b", bytes),
    };
    before.push(stamped.clone());
    Arrived { log, offset: before.len() as u64, stamped }
}

/// The owner with the calendar of its operator.
struct Owned {
    owner: Owner,
    calendar: BTreeMap<u64, Vec<Ahead>>,
}

impl Owned {
    fn new() -> Self {
        let limits = super::super::key_limits(&ViewSettings::default());
        Self { owner: Owner::new((ADMISSION, limits), (vec![], vec![]), InForce::default()), calendar: BTreeMap::new() }
    }

    /// The rows that the tick brought into the tails.
    fn advance(&mut self, tick: u64, frames: Vec<Arrived>) -> Vec<(Tail, String)> {
        let settings = ViewSettings { tail_rows_max: u64::MAX, tail_bytes_max: u64::MAX, ..ViewSettings::default() };
        let mut tails = Tails::new(&settings);
        let later = self.calendar.split_off(&(tick + 1));
        let waited = std::mem::replace(&mut self.calendar, later).into_values().flatten().collect();
        let ship = |Arrived { log, offset, stamped }| {
            let StampedFrame { identity, received_ms, frame } = stamped;
            Shipped { route: identity.routing_key(), log, offset, received_ms, identity, frame }
        };
        let outcome = self.owner.advance(tick, frames.into_iter().map(ship).collect(), waited, &mut tails);
        for (moment, ahead) in outcome.ahead {
            self.calendar.entry(moment).or_default().push(ahead);
        }
        let mut rows = Vec::new();
        for tail in [Tail::Events, Tail::Samples] {
            let mut add = |batch: RecordBatch| {
                rows.extend(lines(&batch).into_iter().map(|line| (tail, line)));
                true
            };
            tails.visit(tail, COLUMNS, u64::MAX, &mut add).unwrap();
        }
        rows
    }
}

fn rows(taken: &[Taken]) -> Vec<(Tail, String)> {
    let rows = |taken: &Taken| {
        let batch = taken.record_batch(COLUMNS, &schema_of(COLUMNS), None);
        assert_eq!((batch.num_rows(), taken.is_empty()), (taken.len(), false));
        lines(&batch).into_iter().map(|line| (taken.tail, line)).collect::<Vec<_>>()
    };
    taken.iter().flat_map(rows).collect()
}

fn sorted(mut rows: Vec<(Tail, String)>) -> Vec<(Tail, String)> {
    rows.sort_by(|one, other| one.1.cmp(&other.1));
    rows
}

fn reversed(frames: &[Arrived]) -> Vec<Arrived> {
    frames.iter().rev().cloned().collect()
}

/// A state in which rows of two frames wait.
fn some_state() -> Intake {
    let mut intake = Intake::new(ADMISSION);
    let mut before = Vec::new();
    for (first, ahead_ms) in [(0, vec![0, 300, 60, 300]), (9, vec![200, 60])] {
        let sent = Sent::Events { agent: 0, epoch: 5, lane: Lane::File, first, ahead_ms, body: Body::Good };
        intake.advance(20_000 + first, vec![arrived(20_000 + first, 0, sent, &mut before)]);
    }
    intake
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_rows_are_the_owners(story in story()) {
        let (mut intake, mut owned) = (Intake::new(ADMISSION), Owned::new());
        for (tick, frames) in story {
            let taken = intake.advance(tick, reversed(&frames));
            prop_assert_eq!(sorted(rows(&taken)), sorted(owned.advance(tick, frames)), "at {}", tick);
        }
    }

    #[test]
    fn a_restart_or_another_reader_changes_nothing(story in story()) {
        let (mut intake, mut restarted) = (Intake::new(ADMISSION), Intake::new(ADMISSION));
        for (tick, frames) in story {
            let mut reader = intake.clone();
            let read = rows(&reader.advance(tick, frames.clone()));
            let taken = rows(&intake.advance(tick, reversed(&frames)));
            prop_assert_eq!(&read, &taken);
            prop_assert_eq!(rows(&restarted.advance(tick, frames)), taken);
            let saved = intake.save().unwrap();
            prop_assert_eq!(&restarted.save().unwrap(), &saved);
            restarted = Intake::restore(ADMISSION, &saved).unwrap();
            prop_assert_eq!(restarted.save().unwrap(), saved);
        }
    }

    #[test]
    fn random_bytes_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200), known in any::<bool>()) {
        if let (true, Some(version)) = (known, bytes.first_mut()) {
            *version = 1;
        }
        prop_assert!(Intake::restore(ADMISSION, &bytes).is_err());
        _ = Intake::read(ADMISSION, &bytes);
    }

    #[test]
    fn a_state_changed_before_its_checksum_never_panics(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut raw = some_state().write();
        for (at, flip) in flips {
            *at.get_mut(&mut raw) ^= flip;
        }
        if let Ok(mut intake) = Intake::restore(ADMISSION, &pack(&raw, raw.len()).unwrap()) {
            rows(&intake.advance(u64::MAX, vec![]));
        }
    }
}

#[test]
fn cut_or_flipped_bytes_are_refused_or_mean_the_same() {
    let saved = some_state().save().unwrap();
    for end in 0..saved.len() {
        assert!(Intake::restore(ADMISSION, &saved[..end]).is_err(), "cut at {end}");
    }
    for (at, bit) in (0..saved.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut flipped = saved.clone();
        flipped[at] ^= 1 << bit;
        if let Ok(intake) = Intake::restore(ADMISSION, &flipped) {
            assert_eq!(intake.save().unwrap(), saved, "bit {bit} of byte {at}");
        }
    }
    assert!(Intake::restore(ADMISSION, &[&saved[..], b"more"].concat()).is_err());
    let newer = [&[2], &saved[1..]].concat();
    assert_eq!(Intake::restore(ADMISSION, &newer).err(), Some(IntakeError::Version { found: 2, known: 1 }));
}

#[test]
fn a_state_has_a_limit_on_both_ways() {
    let raw = vec![0; 1_000_000];
    let packed = pack(&raw, raw.len()).unwrap();
    assert!(packed.len() < 1_000);
    assert_eq!(unpack(&packed, raw.len()).unwrap(), raw);
    let too_large = IntakeError::TooLarge { max: raw.len() - 1 };
    assert_eq!(unpack(&packed, raw.len() - 1), Err(too_large.clone()));
    assert_eq!(pack(&raw, raw.len() - 1), Err(too_large));
}

#[test]
fn a_frame_whose_rows_wait_for_several_moments_is_saved_once() {
    let mut intake = Intake::new(ADMISSION);
    let frame = frame("a", 1, Lane::Network, 0, &[21_000, 21_001, 22_000]);
    let stamped = StampedFrame { identity: identity("a"), received_ms: 1, frame: frame.clone() };
    assert!(intake.advance(20_000, vec![Arrived { log: 0, offset: 0, stamped }]).is_empty());
    let raw = intake.write();
    assert_eq!(raw.windows(frame.len()).filter(|window| *window == frame).count(), 1);
    let mut restored = Intake::read(ADMISSION, &raw).unwrap();
    let taken = restored.advance(20_951, vec![]);
    let [one, other] = &taken[..] else { panic!("{taken:?}") };
    assert!(Arc::ptr_eq(&one.batch, &other.batch));
    assert_eq!(restored.advance(20_952, vec![]).len(), 0);
    assert_eq!(restored.advance(30_000, vec![]).iter().map(Taken::len).sum::<usize>(), 1);
}

#[test]
fn what_waited_comes_first_then_the_frames_in_chain_order_late_rows_before_others() {
    let stamped = |agent, first, times: &[i64]| {
        let frame = frame(agent, 1, Lane::Security, first, times);
        StampedFrame { identity: identity(agent), received_ms: 1, frame }
    };
    let arrived = |log, offset, stamped| Arrived { log, offset, stamped };
    let mut intake = Intake::new(ADMISSION);
    let ahead = [
        arrived(1, 0, stamped("b", 0, &[20_201])),
        arrived(0, 9, stamped("a", 0, &[20_401, 20_201])),
        arrived(0, 10, stamped("c", 0, &[20_100])),
    ];
    assert!(intake.advance(20_000, Vec::from(ahead)).is_empty());
    let frames = [
        arrived(1, 1, stamped("b", 5, &[20_500])),
        arrived(0, 12, stamped("a", 5, &[20_501, 19_000, 20_500])),
        arrived(0, 11, stamped("c", 0, &[20_100])),
    ];
    let taken = intake.advance(20_500, Vec::from(frames));
    let order: Vec<_> = taken
        .iter()
        .map(|taken| (taken.identity.agent.as_str(), taken.late, taken.section().times.clone(), &taken.rows))
        .collect();
    let some = |rows: &[u32]| Some(rows.to_vec());
    let expected = [
        ("c", false, vec![20_100], some(&[0])),
        ("a", false, vec![20_401, 20_201], some(&[1])),
        ("b", false, vec![20_201], some(&[0])),
        ("a", false, vec![20_401, 20_201], some(&[0])),
        ("a", true, vec![20_501, 19_000, 20_500], some(&[1])),
        ("a", false, vec![20_501, 19_000, 20_500], some(&[0, 2])),
        ("b", false, vec![20_500], None),
    ];
    let expected = expected
        .map(|(agent, late, times, rows)| (agent, late, times.iter().map(|ms| ms * 1_000_000).collect::<Vec<i64>>(), rows));
    assert_eq!(order, expected.iter().map(|(agent, late, times, rows)| (*agent, *late, times.clone(), rows)).collect::<Vec<_>>());
}

#[test]
fn rows_beyond_the_room_to_wait_are_refused_as_the_owner_does() {
    let (mut intake, mut owned) = (Intake::new(ADMISSION), Owned::new());
    let ticks = [(20_000, 21_050), (20_100, 21_060), (21_000, 22_050), (21_010, 22_060), (22_010, 22_020)];
    let (mut taken, mut seq) = (Vec::new(), 0);
    for (n, (tick, time)) in ticks.into_iter().enumerate() {
        let frames = (0..10u64).map(|offset| {
            let frame = frame("a", 1, Lane::Sample, seq + 4_000 * offset, &[time; 4_000]);
            Arrived { log: n as u32, offset, stamped: StampedFrame { identity: identity("a"), received_ms: 1, frame } }
        });
        let frames: Vec<Arrived> = frames.collect();
        seq += 40_000;
        let rows = intake.advance(tick, frames.clone());
        taken.push(rows.iter().map(Taken::len).sum::<usize>());
        assert_eq!(taken[n], owned.advance(tick, frames).len());
        intake = Intake::restore(ADMISSION, &intake.save().unwrap()).unwrap();
    }
    // Beside 40,000 rows that wait, six of ten frames find room, and beside 24,000 all.
    assert_eq!(taken, [0, 0, 40_000, 24_000, 104_000]);
}

#[test]
fn rows_are_given_in_the_order_asked_for() {
    let stamped =
        StampedFrame { identity: identity("a"), received_ms: 1, frame: frame("a", 1, Lane::File, 0, &[20_000, 20_002, 20_003]) };
    let taken = Intake::new(ADMISSION).advance(20_000, vec![Arrived { log: 0, offset: 0, stamped }]);
    let columns = &[Column::Time, Column::Kind];
    let batch = taken[0].record_batch(columns, &schema_of(columns), Some(&[1, 0]));
    assert_eq!(lines(&batch), ["1970-01-01T00:00:20.002Z,write", "1970-01-01T00:00:20Z,write"]);
}

#[test]
fn readers_may_be_on_any_thread() {
    fn check<T: Send + Sync>() {}
    check::<Intake>();
    check::<Taken>();
}
