//! The groups of alerts as a timely operator: by host, a tick at a time, with a calendar of what is to be forgotten.

use std::cell::Cell;
use std::rc::Rc;

use timely::container::CapacityContainerBuilder as Rows;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::operator::Operator;

use super::compiled::InForce;
use super::group::HostHits;
use super::groups::{Groups, Law};
use crate::checkpoint::Keeper;
use crate::delta::{DeltaBatch, Deltas};
use crate::render::Ticks;
use crate::source::open::Open;

/// What this worker keeps and gave up, for its counters.
#[derive(Debug, Clone, Default)]
pub(crate) struct AlertCounts {
    /// Alerts kept.
    pub(crate) alerts: Rc<Cell<u64>>,
    /// Alerts that went before their time, and hits that found no room.
    pub(crate) evicted: Rc<Cell<u64>>,
    /// Hits kept.
    pub(crate) hits: Rc<Cell<u64>>,
    /// Hits that can be judged no more before their time, and identities that were forgotten before theirs.
    pub(crate) fixed: Rc<Cell<u64>>,
}

impl AlertCounts {
    fn set(&self, groups: &Groups) {
        self.alerts.set(groups.len() as u64);
        self.evicted.set(groups.evicted());
        self.hits.set(groups.hits() as u64);
        self.fixed.set(groups.fixed());
    }
}

/// What the operator is built with.
pub(crate) struct AlertOptions {
    pub(crate) retention_ms: u64,
    pub(crate) rules: InForce,
    pub(crate) ticks: Ticks,
    pub(crate) keeper: Keeper,
    pub(crate) counts: AlertCounts,
}

/// The rows of `alerts`. `changes` tells every worker of the ticks from which other rules or exceptions are in force.
pub(crate) fn alerts<'s>(
    hits: Stream<'s, u64, Vec<HostHits>>,
    changes: Stream<'s, u64, Vec<u64>>,
    options: AlertOptions,
) -> Deltas<'s> {
    let AlertOptions { retention_ms, rules, ticks, keeper, counts } = options;
    let state = keeper.keep("alerts/groups", Groups::new(retention_ms));
    counts.set(&state.borrow());
    let by_host = Exchange::new(|told: &HostHits| told.host_key);
    hits.binary_frontier::<_, Rows<Vec<DeltaBatch>>, _, _, _, _>(changes, by_host, Pipeline, "Alerts", move |capability, _| {
        let mut open = Open::<(Vec<HostHits>, bool), 1>::new();
        // The right to let go what is due next.
        let mut next: Option<Capability<u64>> = state.borrow().next_due().map(|due| capability.delayed(&due));
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
                let Some((tick, [capability], (told, changed))) = open.next(is_open) else { break };
                let mut state = state.borrow_mut();
                let ([now, before], rules) = (rules.exceptions(tick), rules.at(tick));
                let law = Law { rules: rules.as_deref(), exceptions: [&now, &before], is_new: changed };
                output.session(&capability).give_iterator(state.advance(tick, told, law).into_iter());
                counts.set(&state);
                let due = state.next_due().filter(|due| next.as_ref().is_none_or(|next| due < next.time()));
                if let Some(due) = due {
                    next = Some(capability.delayed(&due.max(tick)));
                }
            }
        }
    })
}
