//! The frame of keyed operators: wait until a tick is closed, then answer all of it at once.

use std::collections::BTreeMap;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::operator::Operator;

use crate::delta::{DeltaBatch, Deltas};

/// Ticks that may still grow, each with the right to put out at it.
pub(super) type Open<B> = BTreeMap<u64, (Capability<u64>, B)>;

/// Calls `logic` once per tick that has rows, in order of ticks, with all of this worker's batches of it. `first` is put out
/// before anything else.
pub(super) fn at_close<'s>(
    deltas: &Deltas<'s>,
    name: &str,
    first: Option<DeltaBatch>,
    mut logic: impl FnMut(u64, Vec<DeltaBatch>) -> Option<DeltaBatch> + 'static,
) -> Deltas<'s> {
    deltas.clone().unary_frontier::<CapacityContainerBuilder<Vec<DeltaBatch>>, _, _, _>(Pipeline, name, move |cap, _| {
        let mut first = first.map(|batch| (cap, batch));
        let mut open: Open<Vec<DeltaBatch>> = Open::new();
        move |(input, frontier), output| {
            if let Some((cap, batch)) = first.take() {
                output.session(&cap).give(batch);
            }
            input.for_each_stamp(|cap, batches| {
                if cap.least().is_none() {
                    return;
                }
                for batch in batches.flat_map(|batches| batches.drain(..)) {
                    let tick = open.entry(batch.tick).or_insert_with(|| (cap.delayed(&batch.tick, 0), vec![]));
                    tick.1.push(batch);
                }
            });
            while let Some(entry) = open.first_entry() {
                if frontier.less_equal(entry.key()) {
                    break;
                }
                let tick = *entry.key();
                let (cap, batches) = entry.remove();
                if let Some(batch) = logic(tick, batches).filter(|batch| !batch.is_empty()) {
                    output.session(&cap).give(batch);
                }
            }
        }
    })
}

/// Adds up the diffs of equal entries and drops what adds up to nothing. Leaves them sorted.
pub(super) fn consolidate<T: Ord>(changes: &mut Vec<(T, i64)>) {
    changes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    changes.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            kept.1 += next.1;
        }
        same
    });
    changes.retain(|(_, diff)| *diff != 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_entries_add_up() {
        let mut changes = vec![("b", 1), ("a", 2), ("b", -1), ("a", 1), ("c", -1)];
        consolidate(&mut changes);
        assert_eq!(changes, [("a", 3), ("c", -1)]);
    }
}
