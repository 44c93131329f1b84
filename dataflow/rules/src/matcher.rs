//! Events one by one: which rules of a set hold for each. The batches' pass is held equal to it.

use crate::graph::{Graph, Memo, NodeId};
use crate::set::{Language, Matching, RuleSet};
use crate::value::FieldSource;

/// Meets events with a set's rules. Keeps its memory from event to event; one per thread.
#[derive(Debug, Default, Clone)]
pub struct Matcher {
    memo: Memo,
}

impl Matcher {
    /// Appends to `hits` the places in `set.rules` of the enabled rules that match and alert on their own, in order: one of
    /// Falco's at most with `Matching::First`. A matcher stays with one set.
    pub fn matches(&mut self, set: &RuleSet, source: &(impl FieldSource + ?Sized), matching: Matching, hits: &mut Vec<usize>) {
        let mut found = Vec::new();
        self.hits(set, source, matching, &mut found);
        hits.extend(found.into_iter().filter(|hit| set.rules[*hit].alerts));
    }

    /// As `matches`, with the rules that correlations only refer to.
    pub fn hits(&mut self, set: &RuleSet, source: &(impl FieldSource + ?Sized), matching: Matching, hits: &mut Vec<usize>) {
        self.memo.next(&set.graph);
        let begin = hits.len();
        let mut first: Option<usize> = None;
        for (guard, rules) in &set.groups {
            if !set.graph.holds(*guard, source, &mut self.memo) {
                continue;
            }
            for at in rules {
                let rule = &set.rules[*at];
                // Groups are not in the order of rules: with `First` only an earlier rule can still win.
                let one_only = matching == Matching::First && rule.language == Language::Falco;
                let is_late = one_only && first.is_some_and(|first| first < *at);
                if is_late || !rule.enabled || !set.graph.holds(rule.node, source, &mut self.memo) {
                    continue;
                }
                if one_only && let Some(late) = first.replace(*at) {
                    hits.retain(|hit| *hit != late);
                }
                hits.push(*at);
            }
        }
        hits[begin..].sort_unstable();
    }

    /// Whether one rule's condition holds, by its place in `set.rules`; enabled or not.
    pub fn holds(&mut self, set: &RuleSet, rule: usize, source: &(impl FieldSource + ?Sized)) -> bool {
        self.node(&set.graph, set.rules[rule].node, source)
    }

    /// Whether a node holds for an event, as if nothing was known of the event. Sets may change from call to call.
    pub(crate) fn node(&mut self, graph: &Graph, node: NodeId, source: &(impl FieldSource + ?Sized)) -> bool {
        self.memo.next(graph);
        graph.holds(node, source, &mut self.memo)
    }

    /// Comparisons computed so far: without sharing it would be one for every mention.
    pub fn checks_computed(&self) -> u64 {
        self.memo.checks_computed
    }
}
