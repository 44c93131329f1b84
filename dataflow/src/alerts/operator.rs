//! The groups of alerts as a timely operator: by host, a tick at a time, with a calendar of what is to be forgotten.

use std::cell::Cell;
use std::rc::Rc;

use timely::dataflow::Stream;

use super::compiled::InForce;
use super::group::HostHits;
use super::groups::{Groups, Law};
use crate::by_tick::{Answer, Closed, Frame, by_tick};
use crate::checkpoint::Keeper;
use crate::delta::{DeltaBatch, Deltas};
use crate::render::Ticks;

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
    let due = state.borrow().next_due();
    let frame = Frame { name: "Alerts", route: |told: &HostHits| told.host_key, ticks, due };
    by_tick(hits, changes, frame, move |Closed { tick, hits, rules_changed }| {
        let mut state = state.borrow_mut();
        let ([now, before], rules) = (rules.exceptions(tick), rules.at(tick));
        let law = Law { rules: rules.as_deref(), exceptions: [&now, &before], is_new: rules_changed };
        let rows: Vec<DeltaBatch> = state.advance(tick, hits, law).into_iter().collect();
        counts.set(&state);
        Answer { rows, due: state.next_due() }
    })
}
