//! The chains as timely operators: by rule and key, a tick at a time, with a calendar of what changes by itself; and the rows of the rules' relations
//! on their way to the outputs, which come and go while the operators run.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder as Rows;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::probe::{Handle as Probe, Probe as _};

use super::compiled::RulesInForce;
use super::hit::ChainHit;
use super::row::RuleRows;
use super::state::{Advanced, Chains, RulesAt};
use crate::by_tick::{Answer, Closed, Frame, by_tick, only};
use crate::checkpoint::Keeper;
use crate::delta::{DeltaBatch, Deltas};
use crate::output::{Output, Part};
use crate::render::Ticks;

/// What this worker keeps, for its counters: keys, hits, chains, what went before its time.
pub(crate) type ChainCounts = Rc<Cell<[u64; 4]>>;

/// What the operator is built with.
pub(crate) struct ChainOptions {
    pub(crate) retention_ms: u64,
    pub(crate) rows_max: u64,
    pub(crate) rules: RulesInForce,
    pub(crate) ticks: Ticks,
    pub(crate) keeper: Keeper,
    pub(crate) counts: ChainCounts,
}

/// What comes out.
pub(crate) struct ChainStreams<'s> {
    /// Rows of `alerts`.
    pub(crate) alerts: Deltas<'s>,
    /// Rows of `losses`.
    pub(crate) losses: Deltas<'s>,
    /// Rows of the rules' relations.
    pub(crate) rows: Stream<'s, u64, Vec<RuleRows>>,
}

/// One of what comes out.
#[derive(Debug, Clone)]
enum Out {
    Alerts(DeltaBatch),
    Losses(DeltaBatch),
    Rows(RuleRows),
}

/// Hits to rows. `changes` tells every worker of the ticks from which other rules are in force.
pub(crate) fn chains<'s>(
    hits: Stream<'s, u64, Vec<ChainHit>>,
    changes: Stream<'s, u64, Vec<u64>>,
    options: ChainOptions,
) -> ChainStreams<'s> {
    let ChainOptions { retention_ms, rows_max, rules, ticks, keeper, counts } = options;
    let state = keeper.keep("chains", Chains::new(retention_ms, rows_max));
    counts.set(state.borrow().counts());
    let due = state.borrow().next_due();
    let frame = Frame { name: "Chains", route: |hit: &ChainHit| hit.route, ticks, due };
    let out = by_tick(hits, changes, frame, move |Closed { tick, hits, rules_changed }| {
        let mut state = state.borrow_mut();
        let (now, before) = (rules.at(tick), rules_changed.then(|| rules.before(tick)));
        let before = before.as_ref().map(|rules| rules.as_slice());
        let Advanced { alerts, losses, rows } = state.advance(tick, hits, &RulesAt { now: &now, before });
        let all = alerts.map(Out::Alerts).into_iter().chain(losses.map(Out::Losses)).chain(rows.into_iter().map(Out::Rows));
        counts.set(state.counts());
        Answer { rows: all.collect(), due: state.next_due() }
    });
    ChainStreams {
        alerts: only(out.clone(), "ChainAlerts", |out| if let Out::Alerts(rows) = out { Some(rows) } else { None }),
        losses: only(out.clone(), "ChainLosses", |out| if let Out::Losses(rows) = out { Some(rows) } else { None }),
        rows: only(out, "ChainRows", |out| if let Out::Rows(rows) = out { Some(rows) } else { None }),
    }
}

/// The outputs of the rules' relations, by version and first tick of the rule.
#[derive(Debug, Clone, Default)]
pub(crate) struct Relations(Rc<RefCell<ByRule>>);

type ByRule = HashMap<(u64, u64), Rc<RefCell<Output>>>;

/// Rows on their way to the worker that keeps them.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct RulePart {
    rule: (u64, u64),
    part: Part,
}

impl Relations {
    /// A rule's rows have a place.
    pub(crate) fn insert(&self, rule: (u64, u64), output: Rc<RefCell<Output>>) {
        self.0.borrow_mut().insert(rule, output);
    }

    /// A rule's rows have no place any more.
    pub(crate) fn remove(&self, output: &Rc<RefCell<Output>>) {
        self.0.borrow_mut().retain(|_, known| !Rc::ptr_eq(known, output));
    }

    fn get(&self, rule: (u64, u64)) -> Option<Rc<RefCell<Output>>> {
        self.0.borrow().get(&rule).cloned()
    }

    /// Puts rows where they belong; the probe passes a tick when all are there. Rows of a rule that is gone are nobody's.
    pub(crate) fn attach(&self, rows: Stream<'_, u64, Vec<RuleRows>>, probe: &Probe<u64>) {
        let peers = rows.scope().peers();
        let (encode, keep) = (self.clone(), self.clone());
        let parts = rows.unary::<Rows<Vec<RulePart>>, _, _, _>(Pipeline, "ChainOutputEncode", move |_, _| {
            move |input, out| {
                input.for_each_stamp(|cap, batches| {
                    if cap.least().is_none() {
                        return;
                    }
                    let mut out = out.session(&cap);
                    for RuleRows { rule, delta } in batches.flat_map(|batch| batch.drain(..)) {
                        let Some(output) = encode.get(rule) else { continue };
                        let parts = output.borrow_mut().parts(&delta, peers);
                        parts.into_iter().for_each(|part| out.give(RulePart { rule, part }));
                    }
                });
            }
        });
        let by_row = Exchange::new(|part: &RulePart| part.part.owner);
        parts
            .unary::<Rows<Vec<()>>, _, _, _>(by_row, "ChainOutput", move |_, _| {
                move |input, _| {
                    input.for_each_stamp(|_, batches| {
                        for RulePart { rule, part } in batches.flat_map(|batch| batch.drain(..)) {
                            if let Some(output) = keep.get(rule) {
                                output.borrow_mut().take(part);
                            }
                        }
                    });
                }
            })
            .probe_with(probe);
    }
}
