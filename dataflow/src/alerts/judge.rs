//! Judges hits: which of the rules that held for an event have it, as of one tick's rules, exceptions and identities.
//!
//! A rule has the event if its condition holds for it as it was told and as it is known now, no exception of the rule's holds for it as it
//! is known now, and, where one rule an event is asked for, no earlier rule has it. So what is learned late only takes alerts back: what
//! no rule held for when it was told is not kept.

use weir_rules::{EventFields, Exceptions, Matcher};
use weir_schema::Event;

use super::compiled::Compiled;
use super::group::Subject;
use super::hit::Hit;
use super::hits::subject;
use super::identity::Identities;

/// Room that is used from hit to hit.
#[derive(Debug, Default)]
pub(crate) struct Matchers {
    rules: Matcher,
    exceptions: Matcher,
}

/// The law of a tick.
pub(crate) struct Judge<'a> {
    pub(crate) rules: &'a Compiled,
    pub(crate) exceptions: &'a Exceptions,
    pub(crate) matchers: &'a mut Matchers,
}

impl Judge<'_> {
    /// Decides which claims of a hit stand.
    pub(crate) fn judge(&mut self, hit: &mut Hit, known: &Identities) {
        let set = self.rules.set();
        let is_known = hit.asks.as_ref().is_some_and(|id| known.has(id));
        let place = |rule| self.rules.place(rule);
        let is_concerned =
            || hit.claims.iter().filter_map(|claim| place(claim.rule)).any(|at| self.exceptions.concern(&set.rules[at]));
        let told = (is_known || is_concerned()).then(|| hit.told());
        let full = told.as_ref().filter(|_| is_known).and_then(|told| known.complete(told));
        let source = full.as_ref().or(told.as_ref()).map(|event| EventFields::new(event, &hit.place.host));
        let Matchers { rules, exceptions } = &mut *self.matchers;
        let mut is_taken = false;
        for claim in &mut hit.claims {
            let stands = self.rules.place(claim.rule).is_some_and(|at| match &source {
                _ if claim.one_only && is_taken => false,
                None => true,
                Some(source) => {
                    (full.is_none() || rules.holds(set, at, source))
                        && !self.exceptions.silence(&set.rules[at], source, exceptions)
                }
            });
            claim.stands = stands;
            is_taken |= stands && claim.one_only;
        }
    }

    /// What an alert of the rule in this place takes from a hit.
    pub(crate) fn subject(&self, rule: usize, hit: &Hit, known: &Identities) -> Subject {
        let told = hit.told();
        let full: Option<Event> = hit.asks.as_ref().and_then(|_| known.complete(&told));
        subject(self.rules, rule, hit, full.as_ref().unwrap_or(&told))
    }
}
