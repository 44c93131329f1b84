//! Which events are new: one rule for everybody who reads the chain.
//!
//! Events are a set under (agent, epoch, lane, seq); first in chain order wins. What is kept per (epoch, lane) is which seqs were
//! seen, as ranges, and the checksums of the latest frames. A pure function of the frames in chain order.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use serde::{Deserialize, Serialize};
use weir_schema::{Epoch, FrameHeader, Lane};

/// What one agent has sent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Dedupe {
    /// Latest used last.
    epochs: VecDeque<(Epoch, BTreeMap<Lane, LaneSeen>)>,
    memory: Memory,
}

/// What is remembered of frames beside their seqs.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
enum Memory {
    /// The checksums of the latest: conflicts are told from duplicates.
    #[default]
    Checksums,
    /// Nothing.
    Seqs,
}

/// Seen seqs by epoch, latest used last, and lane: ranges as (seqs since the end of the one before, length).
pub(crate) type Seen = Vec<(Epoch, Vec<(Lane, Vec<(u64, u64)>)>)>;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct LaneSeen {
    /// Seen seqs: start → end, disjoint and not touching.
    ranges: BTreeMap<u64, u64>,
    /// Checksums of the latest frames: (first seq, count) → crc.
    checksums: BTreeMap<(u64, u32), u32>,
    latest: VecDeque<(u64, u32)>,
}

/// What a frame is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// These seqs of it are new, in ascending order; usually all. `duplicates` were seen before.
    New {
        /// The new ones.
        seqs: Vec<Range<u64>>,
        /// How many were not.
        duplicates: u64,
    },
    /// All of it was seen before.
    Duplicate,
    /// The same seqs came before with other content: refused.
    Conflict,
}

impl Dedupe {
    /// One that does not tell conflicts from duplicates. It finds the same seqs new: a checksum is remembered only of a frame
    /// whose seqs were all marked as seen, and seen they stay for as long as the checksum does. So a conflicting frame has no
    /// new seq, and neither verdict changes anything but which epoch was used last.
    pub(crate) fn of_seqs() -> Self {
        Self { memory: Memory::Seqs, ..Self::default() }
    }

    /// What was seen, to go on from.
    pub(crate) fn seen(&self) -> Seen {
        let lanes = |lanes: &BTreeMap<Lane, LaneSeen>| lanes.iter().map(|(lane, seen)| (*lane, seen.steps())).collect();
        self.epochs.iter().map(|(epoch, by_lane)| (*epoch, lanes(by_lane))).collect()
    }

    /// Goes on from what was seen, as [`Self::of_seqs`]. `None`: no `seen` gives that.
    pub(crate) fn restore(seen: Seen) -> Option<Self> {
        let mut dedupe = Self::of_seqs();
        if seen.len() > EPOCHS_MAX {
            return None;
        }
        for (epoch, lanes) in seen {
            let mut by_lane = BTreeMap::new();
            for (lane, steps) in lanes {
                if by_lane.insert(lane, LaneSeen::from_steps(&steps)?).is_some() {
                    return None;
                }
            }
            if dedupe.epochs.iter().any(|(known, _)| *known == epoch) {
                return None;
            }
            dedupe.epochs.push_back((epoch, by_lane));
        }
        Some(dedupe)
    }

    /// Takes up the next frame of the chain.
    pub fn judge(&mut self, header: &FrameHeader) -> Verdict {
        let memory = self.memory;
        let lane = self.epoch(header.epoch).entry(header.lane).or_default();
        let (start, end) = (header.first_seq.0, header.end_seq().0);
        let name = (start, header.count);
        if lane.checksums.get(&name).is_some_and(|crc| *crc != header.crc) {
            return Verdict::Conflict;
        }
        let seqs = lane.unseen(start..end);
        let new: u64 = seqs.iter().map(|seqs| seqs.end - seqs.start).sum();
        if new == 0 {
            return Verdict::Duplicate;
        }
        lane.mark(start..end);
        if let Memory::Checksums = memory {
            lane.remember(name, header.crc);
        }
        Verdict::New { seqs, duplicates: end - start - new }
    }

    fn epoch(&mut self, epoch: Epoch) -> &mut BTreeMap<Lane, LaneSeen> {
        if self.epochs.back().is_none_or(|(latest, _)| *latest != epoch) {
            let known = self.epochs.iter().position(|(known, _)| *known == epoch);
            let entry = known.and_then(|at| self.epochs.remove(at)).unwrap_or_else(|| (epoch, BTreeMap::new()));
            if self.epochs.len() >= EPOCHS_MAX {
                self.epochs.pop_front();
            }
            self.epochs.push_back(entry);
        }
        &mut self.epochs.back_mut().expect("one was pushed").1
    }
}

impl LaneSeen {
    fn steps(&self) -> Vec<(u64, u64)> {
        let mut before = 0;
        let step = |(start, end): (&u64, &u64)| (start - std::mem::replace(&mut before, *end), end - start);
        self.ranges.iter().map(step).collect()
    }

    fn from_steps(steps: &[(u64, u64)]) -> Option<Self> {
        let mut seen = Self::default();
        let mut before = 0u64;
        for (at, (gap, length)) in steps.iter().enumerate() {
            let start = before.checked_add(*gap)?;
            before = start.checked_add(*length)?;
            if *length == 0 || (*gap == 0 && at > 0) {
                return None;
            }
            seen.ranges.insert(start, before);
        }
        (seen.ranges.len() <= RANGES_MAX).then_some(seen)
    }

    fn unseen(&self, seqs: Range<u64>) -> Vec<Range<u64>> {
        let mut unseen = Vec::new();
        let mut at = seqs.start;
        let before = self.ranges.range(..=seqs.start).next_back();
        for (start, end) in
            before.into_iter().chain(self.ranges.range(seqs.start.saturating_add(1)..seqs.end.max(seqs.start + 1)))
        {
            if *start > at {
                unseen.push(at..*start);
            }
            at = at.max(*end);
        }
        if at < seqs.end {
            unseen.push(at..seqs.end);
        }
        unseen
    }

    fn mark(&mut self, seqs: Range<u64>) {
        let (mut start, mut end) = (seqs.start, seqs.end);
        while let Some((known, until)) = self.ranges.range(..=end).next_back().map(|(known, until)| (*known, *until)) {
            if until < start {
                break;
            }
            start = start.min(known);
            end = end.max(until);
            self.ranges.remove(&known);
        }
        self.ranges.insert(start, end);
        if self.ranges.len() > RANGES_MAX {
            // The oldest gap is taken as filled: what comes for it later is refused as a duplicate, and counted as such.
            let (_, end) = self.ranges.pop_first().expect("there are more than one");
            let (next, until) = self.ranges.pop_first().expect("there are more than one");
            debug_assert!(end < next);
            self.ranges.insert(0, until);
        }
    }

    fn remember(&mut self, name: (u64, u32), crc: u32) {
        if self.checksums.insert(name, crc).is_none() {
            self.latest.push_back(name);
            if self.latest.len() > CHECKSUMS_MAX
                && let Some(oldest) = self.latest.pop_front()
            {
                self.checksums.remove(&oldest);
            }
        }
    }
}

/// Runs of one agent whose seqs are remembered.
const EPOCHS_MAX: usize = 64;
/// Ranges of seen seqs per epoch and lane.
const RANGES_MAX: usize = 1_024;
/// Frames per epoch and lane whose content is remembered.
const CHECKSUMS_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use weir_schema::{Codec, FRAME_VERSION, Seq};

    use super::*;

    fn header(first: u64, count: u32, crc: u32) -> FrameHeader {
        let (epoch, lane) = (Epoch(1), Lane::Network);
        FrameHeader {
            version: FRAME_VERSION,
            codec: Codec::Plain,
            lane,
            epoch,
            first_seq: Seq(first),
            count,
            raw_len: 0,
            comp_len: 0,
            crc,
        }
    }

    fn new(seqs: Range<u64>, duplicates: u64) -> Verdict {
        Verdict::New { seqs: Vec::from([seqs]), duplicates }
    }

    #[test]
    fn same_content_is_a_duplicate_other_content_a_conflict() {
        let mut dedupe = Dedupe::default();
        assert_eq!(dedupe.judge(&header(0, 10, 7)), new(0..10, 0));
        assert_eq!(dedupe.judge(&header(0, 10, 7)), Verdict::Duplicate);
        assert_eq!(dedupe.judge(&header(0, 10, 8)), Verdict::Conflict);
        assert_eq!(dedupe.judge(&header(5, 10, 9)), new(10..15, 5));
        assert_eq!(dedupe.judge(&header(2, 3, 1)), Verdict::Duplicate);
        let other = FrameHeader { epoch: Epoch(2), ..header(0, 10, 8) };
        assert_eq!(dedupe.judge(&other), new(0..10, 0));
    }

    #[test]
    fn gaps_are_bounded() {
        let mut dedupe = Dedupe::default();
        for n in 0..3_000u64 {
            dedupe.judge(&header(n * 10 + 5, 1, 0));
        }
        assert!(dedupe.epochs[0].1[&Lane::Network].ranges.len() <= RANGES_MAX);
        assert_eq!(dedupe.judge(&header(0, 1, 0)), Verdict::Duplicate);
        assert_eq!(dedupe.judge(&header(40_000, 1, 0)), new(40_000..40_001, 0));
    }

    #[test]
    fn what_no_dedupe_has_seen_is_not_restored() {
        let restored = |ranges: &[(u64, u64)]| Dedupe::restore(vec![(Epoch(1), vec![(Lane::File, ranges.to_vec())])]).is_some();
        assert!(restored(&[(0, 5), (1, 5)]) && restored(&[(3, u64::MAX - 3)]) && restored(&[(7, 1); RANGES_MAX]));
        assert!(!restored(&[(0, 0)]) && !restored(&[(0, 5), (0, 5)]) && !restored(&[(3, u64::MAX - 2)]));
        assert!(!restored(&[(5, u64::MAX - 5), (1, 1)]) && !restored(&[(7, 1); RANGES_MAX + 1]));
        let epochs = |count: u64, same: u64| Dedupe::restore((0..count).map(|n| (Epoch(n / same), vec![])).collect()).is_some();
        assert!(epochs(64, 1) && !epochs(65, 1) && !epochs(2, 2));
        assert!(Dedupe::restore(vec![(Epoch(1), vec![(Lane::File, vec![]), (Lane::File, vec![])])]).is_none());
    }

    proptest! {
        #[test]
        fn without_checksums_the_same_seqs_are_new(
            frames in prop::collection::vec((0u64..70, 0u64..40, 1u32..9, 0u32..3), 0..400),
            restart_every in 1usize..50,
        ) {
            let (mut full, mut seqs_only) = (Dedupe::default(), Dedupe::of_seqs());
            for (at, (epoch, first, count, crc)) in frames.into_iter().enumerate() {
                let header = FrameHeader { epoch: Epoch(epoch * epoch / 70), ..header(first, count, crc) };
                let told = match full.judge(&header) {
                    Verdict::Conflict => Verdict::Duplicate,
                    verdict => verdict,
                };
                prop_assert_eq!(seqs_only.judge(&header), told);
                if at % restart_every == 0 {
                    prop_assert_eq!(full.seen(), seqs_only.seen());
                    seqs_only = Dedupe::restore(seqs_only.seen()).unwrap();
                }
            }
        }

        #[test]
        fn each_seq_is_new_once(frames in prop::collection::vec((0u64..200, 1u32..30), 0..60)) {
            let (mut dedupe, mut seen) = (Dedupe::default(), BTreeSet::new());
            for (first, count) in frames {
                let fresh: BTreeSet<u64> = (first..first + u64::from(count)).filter(|seq| !seen.contains(seq)).collect();
                match dedupe.judge(&header(first, count, 0)) {
                    Verdict::New { seqs, duplicates } => {
                        prop_assert_eq!(seqs.into_iter().flatten().collect::<BTreeSet<_>>(), fresh.clone());
                        prop_assert_eq!(duplicates, u64::from(count) - fresh.len() as u64);
                    }
                    verdict => prop_assert!(verdict == Verdict::Duplicate && fresh.is_empty()),
                }
                seen.extend(fresh);
            }
        }
    }
}
