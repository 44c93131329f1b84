//! The chains of all rules and keys that one worker has: hits of a tick in, rows out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::KEYS_MAX;
use super::compiled::ChainRule;
use super::hit::{ChainHit, Hit};
use super::key::{ChainState, KeyChains, Step};
use super::row::{ChainAlert, Changes, RuleRows, Told};
use super::spot::route;
use crate::delta::DeltaBatch;
use crate::packed::Bytes;

/// A rule's version, and a key.
pub(super) type Key = (u64, Bytes);

/// All chains of one worker.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    pub(super) keys: BTreeMap<Key, KeyChains>,
    /// When to look at a key.
    pub(super) due: BTreeMap<u64, BTreeSet<Key>>,
    /// Alerts of rules that are no more, by when they go; each with its route.
    pub(super) withdrawn: BTreeMap<u64, Vec<(u64, ChainAlert)>>,
    /// Chains that went before their time, hits that found no room.
    pub(super) evicted: u64,
    /// Of all keys together.
    pub(super) size: Size,
    /// R.
    pub(super) retention_ms: u64,
    /// Hits of one mark kept of a key.
    pub(super) rows_max: usize,
}

/// How much is kept: counted as it comes and goes, since there may be many keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    hits: usize,
    chains: usize,
}

impl Size {
    pub(super) fn add(&mut self, key: &KeyChains) {
        self.hits += key.hits.len();
        self.chains += key.chains.len();
    }

    fn remove(&mut self, key: &KeyChains) {
        self.hits -= key.hits.len();
        self.chains -= key.chains.len();
    }
}

/// The rules at a tick.
pub(crate) struct RulesAt<'a> {
    pub(crate) now: &'a [Arc<ChainRule>],
    /// Those of the ticks before, when others are in force from this tick on.
    pub(crate) before: Option<&'a [Arc<ChainRule>]>,
}

/// What follows from a tick.
#[derive(Debug, Default)]
pub(crate) struct Advanced {
    pub(crate) alerts: Option<DeltaBatch>,
    pub(crate) losses: Option<DeltaBatch>,
    pub(crate) rows: Vec<RuleRows>,
}

impl Chains {
    pub(crate) fn new(retention_ms: u64, rows_max: u64) -> Self {
        Self { retention_ms, rows_max: usize::try_from(rows_max).unwrap_or(usize::MAX), ..Self::default() }
    }

    /// Keys, hits and chains kept, and what went before its time.
    pub(crate) fn counts(&self) -> [u64; 4] {
        [self.keys.len() as u64, self.size.hits as u64, self.size.chains as u64, self.evicted]
    }

    /// The next moment at which something changes by itself.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.due.keys().next().into_iter().chain(self.withdrawn.keys().next()).min().copied()
    }

    /// A closed tick.
    pub(crate) fn advance(&mut self, tick: u64, hits: Vec<ChainHit>, rules: &RulesAt<'_>) -> Advanced {
        let mut changes = Changes::default();
        if let Some(before) = rules.before {
            self.withdraw(tick, before, rules.now, &mut changes);
        }
        let mut by_key: BTreeMap<Key, Vec<Hit>> = BTreeMap::new();
        for ChainHit { rule, key, hit, .. } in hits {
            by_key.entry((rule, key)).or_default().push(hit);
        }
        while let Some(entry) = self.due.first_entry().filter(|entry| *entry.key() <= tick) {
            for key in entry.remove() {
                // An entry whose key has another moment by now is out of date.
                if self.keys.get(&key).is_some_and(|known| known.due.is_some_and(|due| due <= tick)) {
                    by_key.entry(key).or_default();
                }
            }
        }
        for (key, arrived) in by_key {
            let Some(rule) = rules.now.iter().find(|rule| rule.version == key.0) else { continue };
            self.advance_key(tick, key, arrived, rule, &mut changes);
        }
        while let Some(entry) = self.withdrawn.first_entry().filter(|entry| *entry.key() <= tick) {
            entry.remove().into_iter().for_each(|(_, alert)| changes.alert(alert, -1));
        }
        self.evicted += changes.evicted;
        let rule =
            |(version, since): (u64, u64)| rules.now.iter().find(|rule| (rule.version, rule.since) == (version, since)).cloned();
        Advanced { alerts: changes.alerts(tick), losses: changes.hot.losses(tick), rows: changes.relations(tick, rule) }
    }

    fn advance_key(&mut self, tick: u64, key: Key, arrived: Vec<Hit>, rule: &Arc<ChainRule>, changes: &mut Changes) {
        if self.keys.len() >= KEYS_MAX && !self.keys.contains_key(&key) {
            self.evicted += arrived.len() as u64;
            return;
        }
        let known = self.keys.entry(key.clone()).or_default();
        let before = known.due;
        self.size.remove(known);
        let told = Told { rule, key: &key.1 };
        let step = Step { tick, shape: &rule.shape, retention_ms: self.retention_ms, rows_max: self.rows_max };
        let is_over = known.advance(&step, arrived, &told, changes);
        self.size.add(known);
        if is_over {
            self.keys.remove(&key);
            return;
        }
        if let Some(due) = known.due.filter(|due| before != Some(*due) || *due > tick) {
            self.due.entry(due).or_default().insert(key);
        }
    }

    /// Takes back what rules have told that are no more, or begin anew at this tick.
    fn withdraw(&mut self, tick: u64, before: &[Arc<ChainRule>], now: &[Arc<ChainRule>], changes: &mut Changes) {
        for rule in before {
            if now.iter().any(|other| (other.version, other.since) == (rule.version, rule.since)) {
                continue;
            }
            let of_rule =
                self.keys.range((rule.version, Bytes::default())..).take_while(|((version, _), _)| *version == rule.version);
            let keys: Vec<Key> = of_rule.map(|(key, _)| key.clone()).collect();
            for key in keys {
                let Some(mut known) = self.keys.remove(&key) else { continue };
                self.size.remove(&known);
                let told = Told { rule, key: &key.1 };
                changes.hot.uncapped(&rule.head.rule.name, &mut known.capped);
                for chain in known.chains.values_mut().filter(|chain| chain.state != ChainState::Waiting) {
                    let was = ChainAlert::of(&told, chain);
                    changes.alert(was, -1);
                    if chain.is_told() {
                        (chain.state, chain.revision, chain.changed) = (ChainState::Withdrawn, chain.revision + 1, tick);
                        let alert = ChainAlert::of(&told, chain);
                        changes.alert(alert.clone(), 1);
                        let goes = chain.gone_by_age().max(tick + 1);
                        self.withdrawn.entry(goes).or_default().push((route(rule.version, &key.1), alert));
                    }
                }
            }
        }
    }
}
