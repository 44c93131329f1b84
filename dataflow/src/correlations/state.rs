//! The groups of all correlations of one level that one worker has: hits of a tick in, rows and hits of the levels above out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::GROUPS_MAX;
use super::compiled::CorrelationRule;
use super::group::{Group, Step};
use super::hit::{CorrelationHit, Hit};
use super::row::{Changes, MatchAlert, Told};
use super::spot::route;
use crate::delta::DeltaBatch;
use crate::hits::millis;
use crate::packed::Bytes;

/// A correlation's version, and a group.
pub(super) type Key = (u64, Bytes);

/// All groups of one worker and level.
#[derive(Debug, Default)]
pub(crate) struct Correlations {
    pub(super) groups: BTreeMap<Key, Group>,
    /// When to look at a group.
    pub(super) due: BTreeMap<u64, BTreeSet<Key>>,
    /// Alerts of correlations that are no more, by when they go; each with its route.
    pub(super) withdrawn: BTreeMap<u64, Vec<(u64, MatchAlert)>>,
    /// Matches that went before their time, hits that found no room.
    pub(super) evicted: u64,
    /// Of all groups together.
    pub(super) size: Size,
    /// R.
    retention_ms: u64,
    /// Hits kept of a group, if its condition does not need more.
    hits_max: usize,
}

/// How much is kept: counted as it comes and goes, since there may be many groups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    hits: usize,
    matches: usize,
}

impl Size {
    pub(super) fn add(&mut self, group: &Group) {
        self.hits += group.hits.len();
        self.matches += group.shown.len();
    }

    fn remove(&mut self, group: &Group) {
        self.hits -= group.hits.len();
        self.matches -= group.shown.len();
    }
}

/// The correlations at a tick.
pub(crate) struct RulesAt<'a> {
    pub(crate) now: &'a [Arc<CorrelationRule>],
    /// Those of the ticks before, when others are in force from this tick on.
    pub(crate) before: Option<&'a [Arc<CorrelationRule>]>,
}

/// What follows from a tick.
#[derive(Debug, Default)]
pub(crate) struct Advanced {
    pub(crate) alerts: Option<DeltaBatch>,
    pub(crate) losses: Option<DeltaBatch>,
    pub(crate) fed: Vec<CorrelationHit>,
}

impl Correlations {
    pub(crate) fn new(retention_ms: u64, hits_max: u64) -> Self {
        Self { retention_ms, hits_max: usize::try_from(hits_max).unwrap_or(usize::MAX), ..Self::default() }
    }

    /// Groups, hits and matches kept, and what went before its time.
    pub(crate) fn counts(&self) -> [u64; 4] {
        [self.groups.len() as u64, self.size.hits as u64, self.size.matches as u64, self.evicted]
    }

    /// The next moment at which something changes by itself.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.due.keys().next().into_iter().chain(self.withdrawn.keys().next()).min().copied()
    }

    /// A closed tick.
    pub(crate) fn advance(&mut self, tick: u64, hits: Vec<CorrelationHit>, rules: &RulesAt<'_>) -> Advanced {
        let mut changes = Changes::default();
        if let Some(before) = rules.before {
            self.withdraw(tick, before, rules.now, &mut changes);
        }
        let mut by_group: BTreeMap<Key, Vec<(Hit, i8)>> = BTreeMap::new();
        for CorrelationHit { version, group, hit, diff, .. } in hits {
            by_group.entry((version, group)).or_default().push((hit, diff));
        }
        while let Some(entry) = self.due.first_entry().filter(|entry| *entry.key() <= tick) {
            for key in entry.remove() {
                // An entry whose group has another moment by now is out of date.
                if self.groups.get(&key).is_some_and(|known| known.due.is_some_and(|due| due <= tick)) {
                    by_group.entry(key).or_default();
                }
            }
        }
        for (key, arrived) in by_group {
            let Some(rule) = rules.now.iter().find(|rule| rule.version == key.0) else { continue };
            self.advance_group(tick, key, arrived, rule, &mut changes);
        }
        while let Some(entry) = self.withdrawn.first_entry().filter(|entry| *entry.key() <= tick) {
            entry.remove().into_iter().for_each(|(_, alert)| changes.alert(alert, -1));
        }
        self.evicted += changes.evicted;
        Advanced { alerts: changes.alerts(tick), losses: changes.hot.losses(tick), fed: changes.fed }
    }

    fn advance_group(
        &mut self,
        tick: u64,
        key: Key,
        arrived: Vec<(Hit, i8)>,
        rule: &Arc<CorrelationRule>,
        changes: &mut Changes,
    ) {
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&key) {
            self.evicted += arrived.len() as u64;
            return;
        }
        let known = self.groups.entry(key.clone()).or_default();
        let before = known.due;
        self.size.remove(known);
        let told = Told { rule, group: &key.1 };
        let says = rule.says();
        let late_ms = self.retention_ms.saturating_add(millis(says.settling));
        // A condition may ask for more hits than a group usually has.
        let hits_max = self.hits_max.max(says.shape.needs().saturating_mul(2));
        let is_over = known.advance(&Step { tick, shape: &says.shape, late_ms, hits_max }, arrived, &told, changes);
        self.size.add(known);
        if is_over {
            self.groups.remove(&key);
            return;
        }
        if let Some(due) = known.due.filter(|due| before != Some(*due) || *due > tick) {
            self.due.entry(due).or_default().insert(key);
        }
    }

    /// Takes back what correlations have told that are no more, or say something else.
    fn withdraw(&mut self, tick: u64, before: &[Arc<CorrelationRule>], now: &[Arc<CorrelationRule>], changes: &mut Changes) {
        for rule in before.iter().filter(|rule| !now.iter().any(|other| other.version == rule.version)) {
            let of_rule =
                self.groups.range((rule.version, Bytes::default())..).take_while(|((version, _), _)| *version == rule.version);
            let keys: Vec<Key> = of_rule.map(|(key, _)| key.clone()).collect();
            for key in keys {
                let Some(mut known) = self.groups.remove(&key) else { continue };
                self.size.remove(&known);
                let told = Told { rule, group: &key.1 };
                changes.hot.uncapped(&rule.head.rule.name, &mut known.capped);
                for shown in known.shown.values_mut().filter(|_| rule.says().alerts) {
                    changes.forget(&told, shown);
                    if !shown.withdrawn {
                        (shown.withdrawn, shown.revision, shown.changed) = (true, shown.revision + 1, tick);
                        let alert = MatchAlert::of(&told, shown);
                        changes.alert(alert.clone(), 1);
                        let goes = millis(shown.run.last).saturating_add(super::KEEP_MS).max(tick + 1);
                        self.withdrawn.entry(goes).or_default().push((route(rule.version, &key.1), alert));
                    }
                }
            }
        }
    }
}
