//! The connection structs as timely operators: what arrives waits until its tick is closed, then goes through in tick order.

use std::cell::Cell;
use std::rc::Rc;

use timely::container::CapacityContainerBuilder as Rows;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Concat;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::vec::Broadcast;

use super::address::AddressFact;
use super::end::{HostTouches, IsnGroup, Lateness, Told, TupleGroup};
use super::fold::Fold;
use super::meet::Meet;
use super::resolve::Resolve;
use super::row::{Connection, encode};
use crate::ViewSettings;
use crate::checkpoint::{Keeper, Kept};
use crate::delta::{DeltaBatch, Deltas};
use crate::source::open::Open;

type ToIsns<'s> = Stream<'s, u64, Vec<Told<IsnGroup>>>;
type ToTuples<'s> = Stream<'s, u64, Vec<Told<TupleGroup>>>;

/// What this worker keeps and gave up, for its counters.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Ends kept.
    pub ends: Rc<Cell<u64>>,
    /// Open ends given up because their host had more than `ends_max`.
    pub ends_evicted: Rc<Cell<u64>>,
    /// Groups of ends kept, by sequence numbers or by address.
    pub groups: Rc<Cell<u64>>,
}

/// The rows of `connections_all`: columns of the relation `connections`, never retracted for age.
pub fn connections<'s>(
    touches: Stream<'s, u64, Vec<HostTouches>>,
    addresses: Stream<'s, u64, Vec<AddressFact>>,
    settings: &ViewSettings,
    counts: &Counts,
    keeper: &Keeper,
) -> Deltas<'s> {
    let lateness = Lateness { retention_ms: settings.retention_ms, skew_ms: settings.skew_ms };
    let state = keeper.keep("connections/fold", Fold::new(lateness, settings.ends_max));
    counts.ends.set(state.borrow().len() as u64);
    counts.ends_evicted.set(state.borrow().evicted());
    let (by_isns, by_tuple) = fold(touches, state, counts.clone());
    let (both, single) = meet(by_isns, keeper.keep("connections/meet", Meet::new(lateness)));
    let state = keeper.keep("connections/resolve", Resolve::new(lateness));
    counts.groups.set(state.borrow().len() as u64);
    resolve(by_tuple.concat(single), addresses.broadcast(), state, counts.clone()).concat(both)
}

fn fold<'s>(touches: Stream<'s, u64, Vec<HostTouches>>, state: Kept<Fold>, counts: Counts) -> (ToIsns<'s>, ToTuples<'s>) {
    let mut builder = OperatorBuilder::new("ConnectionsFold".to_owned(), touches.scope());
    let by_host = Exchange::new(|told: &HostTouches| told.place.host_key);
    let mut input = builder.new_input(touches, by_host);
    let (isns, by_isns) = builder.new_output::<Vec<Told<IsnGroup>>>();
    let (tuples, by_tuple) = builder.new_output::<Vec<Told<TupleGroup>>>();
    let (mut isns, mut tuples) = (OutputBuilder::from(isns), OutputBuilder::from(tuples));
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut open = Open::<Vec<HostTouches>, 2>::new();
        move |frontiers| {
            input.for_each_stamp(|cap, batches| {
                if let Some(waiting) = open.at(&cap) {
                    batches.for_each(|batch| waiting.append(batch));
                }
            });
            let (mut isns, mut tuples) = (isns.activate(), tuples.activate());
            while let Some((tick, [to_isns, to_tuples], told)) = open.next(|tick| frontiers[0].less_equal(tick)) {
                let mut state = state.borrow_mut();
                let changes = state.advance(tick, told);
                isns.session(&to_isns).give_iterator(changes.by_isns.into_iter());
                tuples.session(&to_tuples).give_iterator(changes.by_tuple.into_iter());
                counts.ends.set(state.len() as u64);
                counts.ends_evicted.set(state.evicted());
            }
        }
    });
    (by_isns, by_tuple)
}

fn meet<'s>(told: ToIsns<'s>, state: Kept<Meet>) -> (Deltas<'s>, ToTuples<'s>) {
    let mut builder = OperatorBuilder::new("ConnectionsMeet".to_owned(), told.scope());
    let mut input = builder.new_input(told, Exchange::new(|told: &Told<IsnGroup>| told.group.route()));
    let (rows, both) = builder.new_output::<Vec<DeltaBatch>>();
    let (tuples, single) = builder.new_output::<Vec<Told<TupleGroup>>>();
    let (mut rows, mut tuples) = (OutputBuilder::from(rows), OutputBuilder::from(tuples));
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut open = Open::<Vec<Told<IsnGroup>>, 2>::new();
        move |frontiers| {
            input.for_each_stamp(|cap, batches| {
                if let Some(waiting) = open.at(&cap) {
                    batches.for_each(|batch| waiting.append(batch));
                }
            });
            let (mut rows, mut tuples) = (rows.activate(), tuples.activate());
            while let Some((tick, [to_rows, to_tuples], told)) = open.next(|tick| frontiers[0].less_equal(tick)) {
                let met = state.borrow_mut().advance(tick, told);
                tuples.session(&to_tuples).give_iterator(met.single.into_iter());
                rows.session(&to_rows).give_iterator(batch(tick, met.rows).into_iter());
            }
        }
    });
    (both, single)
}

fn resolve<'s>(told: ToTuples<'s>, facts: Stream<'s, u64, Vec<AddressFact>>, state: Kept<Resolve>, counts: Counts) -> Deltas<'s> {
    let by_group = Exchange::new(|told: &Told<TupleGroup>| told.group.route());
    told.binary_frontier::<_, Rows<Vec<DeltaBatch>>, _, _, _, _>(facts, by_group, Pipeline, "ConnectionsResolve", |_, _| {
        let mut open = Open::<(Vec<Told<TupleGroup>>, Vec<AddressFact>), 1>::new();
        move |(told, told_frontier), (facts, facts_frontier), output| {
            told.for_each_stamp(|cap, batches| {
                if let Some(waiting) = open.at(&cap) {
                    batches.for_each(|batch| waiting.0.append(batch));
                }
            });
            facts.for_each_stamp(|cap, batches| {
                if let Some(waiting) = open.at(&cap) {
                    batches.for_each(|batch| waiting.1.append(batch));
                }
            });
            let is_open = |tick: &u64| told_frontier.less_equal(tick) || facts_frontier.less_equal(tick);
            while let Some((tick, [capability], (told, facts))) = open.next(is_open) {
                let mut state = state.borrow_mut();
                let rows = state.advance(tick, told, facts);
                output.session(&capability).give_iterator(batch(tick, rows).into_iter());
                counts.groups.set(state.len() as u64);
            }
        }
    })
}

/// Rows in batches of a size that fits caches, in an order of their own.
fn batch(tick: u64, mut rows: Vec<(Connection, i64)>) -> Vec<DeltaBatch> {
    rows.sort_unstable();
    let parts = rows.chunks(BATCH_ROWS_MAX);
    parts.map(|part| DeltaBatch::new(tick, encode(part), part.iter().map(|(_, diff)| *diff).collect())).collect()
}

/// Rows in one batch.
const BATCH_ROWS_MAX: usize = 8_192;
