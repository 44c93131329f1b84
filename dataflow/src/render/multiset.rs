//! Multisets of values that can shrink again: what min, max, percentiles and distinct counts stand on.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::{Deserialize, Serialize};

use super::rows::Bytes;

/// A value inside an aggregate's state. In one multiset all are of one kind, so their order is the column's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Value {
    /// Integers, nanoseconds, and floats as integers of the same order.
    Int(i64),
    /// Everything else, as row bytes.
    Bytes(Bytes),
}

/// How often each value is there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Multiset {
    counts: BTreeMap<Value, i64>,
    distinct: i64,
    total: i64,
}

impl Multiset {
    pub(super) fn add(&mut self, value: Value, diff: i64) {
        self.total += diff;
        match self.counts.entry(value) {
            Entry::Vacant(vacant) => {
                self.distinct += i64::from(diff > 0);
                vacant.insert(diff);
            }
            Entry::Occupied(mut occupied) => {
                let before = *occupied.get();
                *occupied.get_mut() += diff;
                self.distinct += i64::from(before + diff > 0) - i64::from(before > 0);
                if before + diff == 0 {
                    occupied.remove();
                }
            }
        }
    }

    /// Values that are there and how often, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Value, i64)> {
        self.counts.iter().map(|(value, &count)| (value, count)).filter(|(_, count)| *count > 0)
    }

    /// Values that are there, each counted once.
    pub(super) fn distinct(&self) -> i64 {
        self.distinct
    }

    /// Values that are there, copies counted.
    pub(super) fn total(&self) -> i64 {
        self.total
    }

    /// The integer at a place of the ordered values, and the one after it.
    pub(super) fn pair_at(&self, place: i64) -> Option<(i64, i64)> {
        let mut before = 0;
        let mut found = None;
        for (value, &count) in &self.counts {
            let Value::Int(value) = *value else { return None };
            let after = before + count.max(0);
            if let Some(first) = found {
                return Some((first, value)).filter(|_| count > 0);
            }
            if place < after {
                if place + 1 < after {
                    return Some((value, value));
                }
                found = Some(value);
            }
            before = after;
        }
        found.map(|last| (last, last))
    }
}

/// Which end of the order is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum End {
    Least,
    Greatest,
}

/// The least or greatest value under withdrawals, of bounded state.
///
/// A value whose `settled` tick has passed is never withdrawn any more: of those only the extreme is kept, and nothing that
/// it outdoes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Extreme {
    end: End,
    /// By value, then by the tick at which it settles.
    live: BTreeMap<(Value, u64), i64>,
    settled: Option<Value>,
    settle_at: usize,
}

impl Extreme {
    pub(super) fn new(end: End) -> Self {
        Self { end, live: BTreeMap::new(), settled: None, settle_at: SETTLE_MIN }
    }

    pub(super) fn add(&mut self, value: Value, settled_at: u64, diff: i64) {
        if self.settled.as_ref().is_some_and(|settled| !self.outdoes(&value, settled)) {
            return;
        }
        match self.live.entry((value, settled_at)) {
            Entry::Vacant(vacant) => {
                vacant.insert(diff);
            }
            Entry::Occupied(mut occupied) => {
                *occupied.get_mut() += diff;
                if *occupied.get() == 0 {
                    occupied.remove();
                }
            }
        }
    }

    /// Folds what has settled before this tick, when enough has come together. Returns how many withdrawals found nothing.
    pub(super) fn settle(&mut self, tick: u64) -> u64 {
        if self.live.len() < self.settle_at {
            return 0;
        }
        let mut unmatched = 0;
        for ((value, settled_at), &count) in &self.live {
            if *settled_at >= tick {
                continue;
            }
            unmatched += u64::from(count < 0);
            if count > 0 && self.settled.as_ref().is_none_or(|settled| self.outdoes(value, settled)) {
                self.settled = Some(value.clone());
            }
        }
        let Self { end, settled, live, .. } = self;
        live.retain(|(value, settled_at), _| {
            *settled_at >= tick && settled.as_ref().is_none_or(|settled| beyond(*end, value, settled))
        });
        self.settle_at = (self.live.len() * 2).max(SETTLE_MIN);
        unmatched
    }

    pub(super) fn value(&self) -> Option<&Value> {
        let there = |entry: &(&'_ (Value, u64), &'_ i64)| *entry.1 > 0;
        let live = match self.end {
            End::Least => self.live.iter().find(there),
            End::Greatest => self.live.iter().rfind(there),
        };
        // What is live and not outdone by the settled extreme is beyond it.
        match (live.map(|((value, _), _)| value), &self.settled) {
            (Some(live), Some(settled)) if self.outdoes(live, settled) => Some(live),
            (live, None) => live,
            (_, settled) => settled.as_ref(),
        }
    }

    fn outdoes(&self, value: &Value, settled: &Value) -> bool {
        beyond(self.end, value, settled)
    }
}

fn beyond(end: End, value: &Value, other: &Value) -> bool {
    match end {
        End::Least => value < other,
        End::Greatest => value > other,
    }
}

/// Fewer values are not worth a walk.
const SETTLE_MIN: usize = 16;

/// A float as an integer of the same (total) order.
pub(super) fn ordered(float: f64) -> i64 {
    let bits = float.to_bits().cast_signed();
    bits ^ ((bits >> 63).cast_unsigned() >> 1).cast_signed()
}

/// The float of an ordered integer.
pub(super) fn float(ordered: i64) -> f64 {
    f64::from_bits((ordered ^ ((ordered >> 63).cast_unsigned() >> 1).cast_signed()).cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_keep_their_order() {
        let floats = [f64::NEG_INFINITY, -1.5, -0.0, 0.0, 1e-300, 2.0, f64::INFINITY, f64::NAN];
        for pair in floats.windows(2) {
            assert!(ordered(pair[0]) < ordered(pair[1]), "{pair:?}");
        }
        assert!(floats.iter().all(|&value| float(ordered(value)).to_bits() == value.to_bits()));
    }

    #[test]
    fn an_extreme_of_settled_values_needs_no_memory() {
        let mut max = Extreme::new(End::Greatest);
        for tick in 0..10_000_u64 {
            let value = (tick * 7919) % 10_007;
            max.add(Value::Int(value.cast_signed()), tick + 10, 1);
            if tick % 3 == 0 {
                max.add(Value::Int(value.cast_signed()), tick + 10, -1);
            }
            assert_eq!(max.settle(tick), 0);
            assert!(max.live.len() <= 64, "{}", max.live.len());
        }
        let expected = (0..10_000_i64).filter(|tick| tick % 3 != 0).map(|tick| (tick * 7919) % 10_007).max();
        assert_eq!(max.value(), expected.map(Value::Int).as_ref());
    }

    #[test]
    fn places_count_copies() {
        let mut set = Multiset::default();
        for (value, diff) in [(5, 2), (9, 1), (1, 1), (9, -1), (7, 1)] {
            set.add(Value::Int(value), diff);
        }
        assert_eq!((set.distinct(), set.total()), (3, 4));
        let pairs: Vec<_> = (0..4).map(|place| set.pair_at(place).unwrap()).collect();
        assert_eq!(pairs, [(1, 5), (5, 5), (5, 7), (7, 7)]);
    }
}
