//! The frame of keyed operators over hits: they are given all of a closed tick, are told when the rules change, and are called again when
//! something of theirs falls due.

use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder as Rows;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::operator::Operator;

use crate::render::Ticks;
use crate::source::open::Open;

/// A closed tick, as the logic of an operator is given it.
pub(crate) struct Closed<H> {
    pub(crate) tick: u64,
    pub(crate) hits: Vec<H>,
    /// Other rules are in force from this tick on.
    pub(crate) rules_changed: bool,
}

/// What the logic of an operator says of a tick.
pub(crate) struct Answer<O> {
    pub(crate) rows: Vec<O>,
    /// When it is to be called next, at the latest.
    pub(crate) due: Option<u64>,
}

/// How an operator is called, and when.
pub(crate) struct Frame<'a, H> {
    pub(crate) name: &'a str,
    /// Which worker has a hit.
    pub(crate) route: fn(&H) -> u64,
    pub(crate) ticks: Ticks,
    /// When it is to be called first.
    pub(crate) due: Option<u64>,
}

/// Builds the operator. `changes` tells every worker of the ticks from which other rules are in force.
pub(crate) fn by_tick<'s, H, O>(
    hits: Stream<'s, u64, Vec<H>>,
    changes: Stream<'s, u64, Vec<u64>>,
    frame: Frame<'_, H>,
    mut advance: impl FnMut(Closed<H>) -> Answer<O> + 'static,
) -> Stream<'s, u64, Vec<O>>
where
    H: Serialize + for<'de> Deserialize<'de> + Clone + Send + 'static,
    O: Clone + 'static,
{
    let Frame { name, route, ticks, due } = frame;
    let by_key = Exchange::new(route);
    hits.binary_frontier::<_, Rows<Vec<O>>, _, _, _, _>(changes, by_key, Pipeline, name, move |capability, _| {
        let mut open = Open::<(Vec<H>, bool), 1>::new();
        // The right to change what is due next.
        let mut next: Option<Capability<u64>> = due.map(|due| capability.delayed(&due));
        drop(capability);
        move |(hits, hits_frontier), (changes, changes_frontier), output| {
            hits.for_each_stamp(|cap, batches| {
                if let Some(waiting) = open.at(&cap) {
                    batches.for_each(|batch| waiting.0.append(batch));
                }
            });
            changes.for_each_stamp(|cap, batches| {
                if let Some(waiting) = open.at(&cap) {
                    batches.for_each(|batch| batch.clear());
                    waiting.1 = true;
                }
            });
            let is_open = |tick: &u64| hits_frontier.less_equal(tick) || changes_frontier.less_equal(tick);
            loop {
                if let Some(right) = next.take_if(|right| !is_open(right.time())) {
                    open.later(ticks.at_or_after(*right.time()), &[right]);
                }
                let Some((tick, [capability], (hits, rules_changed))) = open.next(is_open) else { break };
                let Answer { rows, due } = advance(Closed { tick, hits, rules_changed });
                output.session(&capability).give_iterator(rows.into_iter());
                if let Some(due) = due.filter(|due| next.as_ref().is_none_or(|next| due < next.time())) {
                    next = Some(capability.delayed(&due.max(tick)));
                }
            }
        }
    })
}

/// The part of what comes out that goes one way.
pub(crate) fn only<'s, O: Clone + 'static, D: Clone + 'static>(
    out: Stream<'s, u64, Vec<O>>,
    name: &str,
    of: impl Fn(O) -> Option<D> + 'static,
) -> Stream<'s, u64, Vec<D>> {
    out.unary::<Rows<Vec<D>>, _, _, _>(Pipeline, name, move |_, _| {
        move |input, output| {
            input.for_each_stamp(|cap, batches| {
                if cap.least().is_some() {
                    let mut session = output.session(&cap);
                    batches.flat_map(|batch| batch.drain(..)).filter_map(&of).for_each(|rows| session.give(rows));
                }
            });
        }
    })
}
