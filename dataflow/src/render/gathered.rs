//! The frame of operators that work before rows travel: gather a tick where its rows are, send what came of it to the owners of its
//! keys, answer there.
//!
//! Per tick and worker at most one parcel goes to each worker, whatever the number of rows.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::operator::Operator;

use super::keyed::Open;
use crate::delta::{DeltaBatch, Deltas};

/// What one worker sends another of one tick.
pub(super) trait Parcel: Serialize + DeserializeOwned + Clone + Send + 'static {
    /// The receiver.
    fn to(&self) -> u64;
    /// When.
    fn tick(&self) -> u64;
}

/// The sender's half.
pub(super) trait Gather {
    /// What is held of an open tick.
    type Held: Default;
    /// What is sent of it.
    type Parcel: Parcel;

    /// Adds a batch.
    fn add(&mut self, held: &mut Self::Held, batch: DeltaBatch);
    /// The tick is closed here.
    fn flush(&mut self, held: Self::Held, tick: u64) -> Vec<Self::Parcel>;
    /// Nothing is held of any tick.
    fn rest(&mut self);
}

/// Gathers with `sender`; calls `close` once per tick with all parcels that came for this worker.
pub(super) fn gathered<'s, G: Gather + 'static>(
    deltas: &Deltas<'s>,
    name: &str,
    mut sender: G,
    mut close: impl FnMut(u64, Vec<G::Parcel>) -> Option<DeltaBatch> + 'static,
) -> Deltas<'s> {
    let parcels = deltas.clone().unary_frontier::<CapacityContainerBuilder<Vec<G::Parcel>>, _, _, _>(
        Pipeline,
        &format!("{name}Gather"),
        move |_, _| {
            let mut open: Open<G::Held> = BTreeMap::new();
            move |(input, frontier), output| {
                input.for_each_stamp(|cap, batches| {
                    if cap.least().is_none() {
                        return;
                    }
                    for batch in batches.flat_map(|batches| batches.drain(..)) {
                        let tick = open.entry(batch.tick).or_insert_with(|| (cap.delayed(&batch.tick, 0), G::Held::default()));
                        sender.add(&mut tick.1, batch);
                    }
                });
                while let Some(entry) = open.first_entry() {
                    if frontier.less_equal(entry.key()) {
                        break;
                    }
                    let (tick, (cap, held)) = entry.remove_entry();
                    let parcels = sender.flush(held, tick);
                    if !parcels.is_empty() {
                        let mut out = output.session(&cap);
                        parcels.into_iter().for_each(|parcel| out.give(parcel));
                    }
                    if open.is_empty() {
                        sender.rest();
                    }
                }
            }
        },
    );
    let arrived = Exchange::new(|parcel: &G::Parcel| parcel.to());
    parcels.unary_frontier::<CapacityContainerBuilder<Vec<DeltaBatch>>, _, _, _>(arrived, name, move |_, _| {
        let mut open: Open<Vec<G::Parcel>> = BTreeMap::new();
        move |(input, frontier), output| {
            input.for_each_stamp(|cap, parcels| {
                if cap.least().is_none() {
                    return;
                }
                for parcel in parcels.flat_map(|parcels| parcels.drain(..)) {
                    let tick = parcel.tick();
                    open.entry(tick).or_insert_with(|| (cap.delayed(&tick, 0), vec![])).1.push(parcel);
                }
            });
            while let Some(entry) = open.first_entry() {
                if frontier.less_equal(entry.key()) {
                    break;
                }
                let (tick, (cap, parcels)) = entry.remove_entry();
                if let Some(batch) = close(tick, parcels).filter(|batch| !batch.is_empty()) {
                    output.session(&cap).give(batch);
                }
            }
        }
    })
}
