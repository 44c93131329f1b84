//! The correlations as timely operators, one a level: by correlation and group, a tick at a time, each with a calendar of what changes by itself.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use timely::dataflow::Stream;
use timely::dataflow::operators::Concat as _;

use super::LEVELS;
use super::compiled::CorrelationRule;
use super::hit::CorrelationHit;
use super::state::{Advanced, Correlations, RulesAt};
use crate::alerts::InForce;
use crate::by_tick::{Answer, Closed, Frame, by_tick, only};
use crate::checkpoint::Keeper;
use crate::delta::{DeltaBatch, Deltas};
use crate::render::Ticks;

/// What this worker keeps of each level, for its counters: groups, hits, matches, what went before its time.
pub(crate) type CorrelationCounts = Rc<[Cell<[u64; 4]>; LEVELS]>;

/// What the operators are built with.
pub(crate) struct CorrelationOptions {
    pub(crate) retention_ms: u64,
    pub(crate) hits_max: u64,
    pub(crate) rules: InForce,
    pub(crate) ticks: Ticks,
    pub(crate) keeper: Keeper,
    pub(crate) counts: CorrelationCounts,
}

/// One of what comes out.
#[derive(Debug, Clone)]
enum Out {
    Alerts(DeltaBatch),
    Losses(DeltaBatch),
    Fed(CorrelationHit),
}

/// Hits to rows of `alerts` and of `losses`. `changes` tells every worker of the ticks from which other rules are in force.
pub(crate) fn correlations<'s>(
    hits: Stream<'s, u64, Vec<CorrelationHit>>,
    changes: Stream<'s, u64, Vec<u64>>,
    options: &CorrelationOptions,
) -> (Deltas<'s>, Deltas<'s>) {
    let (mut alerts, mut losses): (Option<Deltas<'s>>, Option<Deltas<'s>>) = (None, None);
    let mut rest = hits;
    for level in 0..LEVELS {
        let of_level = only(rest.clone(), "CorrelationLevel", move |hit| (usize::from(hit.level) == level).then_some(hit));
        let out = one_level(level, of_level, changes.clone(), options);
        let of = [
            only(out.clone(), "CorrelationAlerts", |out| if let Out::Alerts(rows) = out { Some(rows) } else { None }),
            only(out.clone(), "CorrelationLosses", |out| if let Out::Losses(rows) = out { Some(rows) } else { None }),
        ];
        for (all, more) in [&mut alerts, &mut losses].into_iter().zip(of) {
            *all = Some(match all.take() {
                Some(known) => known.concat(more),
                None => more,
            });
        }
        if level + 1 < LEVELS {
            rest = rest.concat(only(out, "CorrelationFed", |out| if let Out::Fed(hit) = out { Some(hit) } else { None }));
        }
    }
    alerts.zip(losses).expect("there is a level")
}

fn one_level<'s>(
    level: usize,
    hits: Stream<'s, u64, Vec<CorrelationHit>>,
    changes: Stream<'s, u64, Vec<u64>>,
    options: &CorrelationOptions,
) -> Stream<'s, u64, Vec<Out>> {
    let CorrelationOptions { retention_ms, hits_max, rules, ticks, keeper, counts } = options;
    let state = keeper.keep(format!("correlations/{level}"), Correlations::new(*retention_ms, *hits_max));
    counts[level].set(state.borrow().counts());
    let due = state.borrow().next_due();
    let frame = Frame { name: "Correlations", route: |hit: &CorrelationHit| hit.route, ticks: ticks.clone(), due };
    let (rules, counts) = (rules.clone(), Rc::clone(counts));
    by_tick(hits, changes, frame, move |Closed { tick, hits, rules_changed }| {
        let mut state = state.borrow_mut();
        let of_level = |rules: Option<&Rc<crate::alerts::Compiled>>| -> Vec<Arc<CorrelationRule>> {
            let all = rules.into_iter().flat_map(|rules| rules.correlations.iter().flatten());
            all.filter(|rule| rule.says().level == level).cloned().collect()
        };
        let now = of_level(rules.at(tick).as_ref());
        let before = rules_changed.then(|| of_level(rules.before(tick).as_ref()));
        let Advanced { alerts, losses, fed } = state.advance(tick, hits, &RulesAt { now: &now, before: before.as_deref() });
        counts[level].set(state.counts());
        let rows = alerts.map(Out::Alerts).into_iter().chain(losses.map(Out::Losses)).chain(fed.into_iter().map(Out::Fed));
        Answer { rows: rows.collect(), due: state.next_due() }
    })
}
