//! What changed lately in one relation, beyond the ticks that can be peeked: for subscribers that go on where they were.
//!
//! Rows of these ticks are folded into one already; here is what each tick did to them. Promise: from `since` on no tick is missing, and a
//! row stands once per tick, with what the tick changed of its count.

use std::collections::{HashMap, VecDeque};

use crate::packed::Bytes;

/// How much of what changed is kept, of every relation and by every worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangesKept {
    /// Milliseconds behind the newest closed tick.
    pub ms: u64,
    /// Bytes of rows.
    pub bytes_max: u64,
}

impl Default for ChangesKept {
    fn default() -> Self {
        Self { ms: 60_000, bytes_max: 16 << 20 }
    }
}

/// The changes of past ticks.
#[derive(Debug)]
pub(crate) struct History {
    kept: ChangesKept,
    since: u64,
    ticks: VecDeque<(u64, Vec<(Bytes, i64)>)>,
    bytes: usize,
}

impl History {
    pub(crate) fn new(kept: ChangesKept) -> Self {
        Self { kept, since: 0, ticks: VecDeque::new(), bytes: 0 }
    }

    /// Nothing up to this tick is known.
    pub(crate) fn begin(&mut self, tick: u64) {
        self.since = tick;
    }

    /// What every tick behind this one did is there.
    pub(crate) fn since(&self) -> u64 {
        self.since
    }

    /// Bytes of the rows.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes up a later tick.
    pub(crate) fn push(&mut self, tick: u64, changes: Vec<(Bytes, i64)>) {
        self.bytes += weight(&changes);
        self.ticks.push_back((tick, changes));
    }

    /// Forgets what is older than wanted, as of the tick `now`, and what does not fit.
    pub(crate) fn trim(&mut self, now: u64) {
        let oldest = now.saturating_sub(self.kept.ms);
        while let Some((tick, changes)) = self.ticks.front()
            && (*tick <= oldest || self.bytes as u64 > self.kept.bytes_max)
        {
            self.bytes -= weight(changes);
            self.since = *tick;
            self.ticks.pop_front();
        }
        self.since = self.since.max(oldest);
    }

    /// All that is kept.
    pub(crate) fn changes(&self) -> impl Iterator<Item = &(Bytes, i64)> {
        self.ticks.iter().flat_map(|(_, changes)| changes)
    }

    /// The ticks behind `after`, up to `upto`.
    pub(crate) fn between(&self, after: u64, upto: u64) -> impl Iterator<Item = (u64, &[(Bytes, i64)])> {
        let ticks = self.ticks.iter().skip_while(move |(tick, _)| *tick <= after).take_while(move |(tick, _)| *tick <= upto);
        ticks.map(|(tick, changes)| (*tick, changes.as_slice()))
    }
}

/// Each row once.
pub(crate) fn consolidated(changes: Vec<(Bytes, i64)>) -> Vec<(Bytes, i64)> {
    if changes.len() < 2 {
        return changes;
    }
    let mut sums: HashMap<Bytes, i64, foldhash::fast::FixedState> = HashMap::default();
    for (row, diff) in changes {
        *sums.entry(row).or_default() += diff;
    }
    sums.into_iter().filter(|(_, diff)| *diff != 0).collect()
}

/// With what a place in the list costs.
fn weight(changes: &[(Bytes, i64)]) -> usize {
    changes.iter().map(|(row, _)| row.len() + size_of::<(Bytes, i64)>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(row: u8) -> Vec<(Bytes, i64)> {
        vec![(Box::from([row; 76]), 1)]
    }

    #[test]
    fn what_is_too_old_or_too_much_goes_from_the_oldest_on() {
        let mut history = History::new(ChangesKept { ms: 50, bytes_max: 250 });
        history.begin(100);
        for tick in [110, 120, 130] {
            history.push(tick, change(tick as u8));
        }
        assert_eq!((history.since(), history.bytes()), (100, 300));
        history.trim(130);
        assert_eq!((history.since(), history.bytes()), (110, 200));
        let ticks = |history: &History, after, upto| history.between(after, upto).map(|(tick, _)| tick).collect::<Vec<_>>();
        assert_eq!(ticks(&history, 110, 130), [120, 130]);
        assert_eq!(ticks(&history, 120, 125), [] as [u64; 0]);
        history.trim(175);
        assert_eq!((history.since(), ticks(&history, 0, 999)), (125, vec![130]));
        history.trim(999);
        assert_eq!((history.since(), history.bytes()), (949, 0));
    }

    #[test]
    fn a_row_stands_once() {
        let changes = [change(1), change(2), vec![(Box::from([2; 76]), -1)], change(1)].concat();
        assert_eq!(consolidated(changes), [(Box::from([1; 76]), 2)]);
    }
}
