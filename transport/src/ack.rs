//! Which seqs of one lane are settled: everything below one number, and at most 64 ranges above it.
//!
//! ```text
//!      upto          ranges
//! ■■■■■■■|·····■■■■■■■····■■■···       ■ settled, it need not be sent (again)
//! ```
//!
//! Promise: whatever was built here is in order, without overlap, and never says a seq is settled that nobody settled. It may say
//! less: with 64 ranges full, one more that touches none of them is not kept. On the wire ranges are gaps and lengths, so bytes
//! that decode cannot be out of order.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use weir_schema::Seq;

/// The settled seqs of one (epoch, lane).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "WireRanges", into = "WireRanges")]
pub struct AckRanges {
    upto: u64,
    /// Sorted, not empty, not touching each other nor `upto`.
    ranges: Vec<Range<u64>>,
}

/// What came of adding a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// All of it was settled already.
    Known,
    /// Some or all of it is new, and kept.
    New,
    /// It would be one range too many, and is not kept.
    TooMany,
}

impl AckRanges {
    /// Everything below `upto`.
    pub fn below(upto: Seq) -> Self {
        Self { upto: upto.0, ranges: Vec::new() }
    }

    /// The first seq that is not settled.
    pub fn upto(&self) -> Seq {
        Seq(self.upto)
    }

    /// The ranges above [`AckRanges::upto`], in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<Seq>> + '_ {
        self.ranges.iter().map(|range| Seq(range.start)..Seq(range.end))
    }

    /// Whether nothing is settled.
    pub fn is_empty(&self) -> bool {
        self.upto == 0 && self.ranges.is_empty()
    }

    /// Whether all of `seqs` is settled. Nothing is always settled.
    pub fn contains(&self, seqs: Range<Seq>) -> bool {
        let (start, end) = (seqs.start.0, seqs.end.0);
        if start >= end || end <= self.upto {
            return true;
        }
        let start = start.max(self.upto);
        let next = self.ranges.partition_point(|range| range.end <= start);
        self.ranges.get(next).is_some_and(|range| range.start <= start && end <= range.end)
    }

    /// Settles `seqs`.
    pub fn add(&mut self, seqs: Range<Seq>) -> Added {
        if self.contains(seqs.clone()) {
            return Added::Known;
        }
        let (mut start, mut end) = (seqs.start.0, seqs.end.0);
        if start <= self.upto {
            self.raise(end);
            return Added::New;
        }
        // All ranges that overlap or touch the new one become one with it.
        let first = self.ranges.partition_point(|range| range.end < start);
        let last = self.ranges.partition_point(|range| range.start <= end);
        if first == last && self.ranges.len() == RANGES_MAX {
            return Added::TooMany;
        }
        if first < last {
            start = start.min(self.ranges[first].start);
            end = end.max(self.ranges[last - 1].end);
        }
        self.ranges.splice(first..last, std::iter::once(start..end));
        Added::New
    }

    /// Settles everything below `upto`.
    pub fn add_below(&mut self, upto: Seq) {
        self.raise(upto.0);
    }

    /// Settles all that `other` has. What would be too many ranges is not kept.
    pub fn merge(&mut self, other: &Self) {
        self.raise(other.upto);
        for range in other.ranges() {
            self.add(range);
        }
    }

    fn raise(&mut self, upto: u64) {
        self.upto = self.upto.max(upto);
        let passed = self.ranges.partition_point(|range| range.start <= self.upto);
        if let Some(reached) = self.ranges.drain(..passed).map(|range| range.end).max() {
            self.upto = self.upto.max(reached);
        }
    }
}

/// As sent: each range as the gap before it and its length.
#[derive(Serialize, Deserialize)]
struct WireRanges {
    upto: u64,
    ranges: Vec<(u64, u64)>,
}

impl From<AckRanges> for WireRanges {
    fn from(acked: AckRanges) -> Self {
        let mut at = acked.upto;
        let relative = |range: Range<u64>| {
            let pair = (range.start - at, range.end - range.start);
            at = range.end;
            pair
        };
        Self { upto: acked.upto, ranges: acked.ranges.into_iter().map(relative).collect() }
    }
}

impl TryFrom<WireRanges> for AckRanges {
    type Error = &'static str;

    fn try_from(wire: WireRanges) -> Result<Self, Self::Error> {
        if wire.ranges.len() > RANGES_MAX {
            return Err("more than 64 ranges");
        }
        let mut at = wire.upto;
        let mut ranges = Vec::with_capacity(wire.ranges.len());
        for (gap, length) in wire.ranges {
            if gap == 0 || length == 0 {
                return Err("an empty range or gap");
            }
            let start = at.checked_add(gap).ok_or("a range beyond all seqs")?;
            at = start.checked_add(length).ok_or("a range beyond all seqs")?;
            ranges.push(start..at);
        }
        Ok(Self { upto: wire.upto, ranges })
    }
}

/// Most ranges above the cumulative seq, in memory and in one ack.
pub const RANGES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn check_form(acked: &AckRanges) {
        let mut at = acked.upto;
        for range in &acked.ranges {
            assert!(at < range.start && range.start < range.end, "{acked:?}");
            at = range.end;
        }
        assert!(acked.ranges.len() <= RANGES_MAX);
        let bytes = postcard::to_stdvec(acked).unwrap();
        assert_eq!(&postcard::from_bytes::<AckRanges>(&bytes).unwrap(), acked);
    }

    #[test]
    fn ranges_join_and_the_last_too_many_is_left_out() {
        let mut acked = AckRanges::default();
        for i in 0..64 {
            assert_eq!(acked.add(Seq(10 * i + 5)..Seq(10 * i + 6)), Added::New);
        }
        assert_eq!(acked.add(Seq(9_000)..Seq(9_001)), Added::TooMany);
        assert_eq!(acked.add(Seq(6)..Seq(15)), Added::New);
        assert_eq!(acked.add(Seq(6)..Seq(16)), Added::Known);
        assert_eq!(acked.ranges.len(), 63);
        assert_eq!(acked.add(Seq(0)..Seq(5)), Added::New);
        assert_eq!(acked.upto(), Seq(16));
        acked.add_below(Seq(640));
        assert_eq!((acked.upto(), acked.ranges.len()), (Seq(640), 0));
        check_form(&acked);
    }

    #[test]
    fn wrong_bytes_are_refused() {
        let decode = |upto: u64, ranges: Vec<(u64, u64)>| {
            postcard::from_bytes::<AckRanges>(&postcard::to_stdvec(&WireRanges { upto, ranges }).unwrap())
        };
        assert!(decode(1, vec![(1, 1); 64]).is_ok());
        assert!(decode(1, vec![(1, 1); 65]).is_err());
        assert!(decode(1, vec![(0, 1)]).is_err());
        assert!(decode(1, vec![(1, 0)]).is_err());
        assert!(decode(u64::MAX, vec![(1, 1)]).is_err());
        assert!(decode(1, vec![(1, u64::MAX)]).is_err());
    }

    proptest! {
        #[test]
        fn equals_a_plain_set(adds in proptest::collection::vec((0u64..120, 0u64..12), 0..80), below in 0u64..40) {
            let mut acked = AckRanges::default();
            let mut set = BTreeSet::new();
            for (start, length) in adds {
                let new = (start..start + length).any(|seq| !set.contains(&seq));
                let added = acked.add(Seq(start)..Seq(start + length));
                prop_assert_eq!(added, if new { Added::New } else { Added::Known });
                set.extend(start..start + length);
                check_form(&acked);
            }
            let mut other = AckRanges::below(Seq(below));
            other.merge(&acked);
            set.extend(0..below);
            check_form(&other);
            for start in 0..140 {
                for end in start..(start + 5) {
                    let all = (start..end).all(|seq| set.contains(&seq));
                    prop_assert_eq!(other.contains(Seq(start)..Seq(end)), all, "{}..{}", start, end);
                }
            }
        }
    }
}
