//! The alerts of the hosts that come to one worker: hits of a tick in, rows that changed out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::compiled::Compiled;
use super::group::{Group, HostGroups};
use super::row::AlertRow;
use super::{KEEP_MS, PER_HOST_MAX, WINDOW_MS};
use crate::delta::DeltaBatch;

/// Rule, its version, subject.
pub(super) type Key = (u64, u64, u128);

/// All alerts of one worker.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    pub(super) hosts: BTreeMap<u64, Host>,
    /// When to look at a host for what is to be forgotten.
    pub(super) due: BTreeMap<u64, Vec<u64>>,
    /// Alerts that went before their time, and hits that found no room.
    pub(super) evicted: u64,
    /// How late an event may be.
    pub(super) retention_ms: u64,
}

/// Alerts of one host.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Host {
    /// By first hit; those that were withdrawn among them.
    pub(super) groups: BTreeMap<Key, Vec<Group>>,
    pub(super) count: usize,
    /// When it is to be looked at.
    pub(super) due: Option<u64>,
}

impl Groups {
    pub(crate) fn new(retention_ms: u64) -> Self {
        Self { retention_ms, ..Self::default() }
    }

    /// Alerts kept.
    pub(crate) fn len(&self) -> usize {
        self.hosts.values().map(|host| host.count).sum()
    }

    /// Alerts that went before their time, and hits that found no room.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The next moment at which something is to be forgotten.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.due.keys().next().copied()
    }

    /// All hits of a tick: the rows that changed. `rules`: other rules are in force from this tick on.
    pub(crate) fn advance(&mut self, tick: u64, told: Vec<HostGroups>, rules: Option<&Compiled>) -> Option<DeltaBatch> {
        let mut changes = Changes::default();
        if let Some(rules) = rules {
            self.withdraw(tick, rules, &mut changes);
        }
        self.take(tick, told, &mut changes);
        self.forget(tick, &mut changes);
        changes.encode(tick)
    }

    fn take(&mut self, tick: u64, told: Vec<HostGroups>, changes: &mut Changes) {
        let mut by_host: BTreeMap<u64, Vec<Group>> = BTreeMap::new();
        for HostGroups { host_key, groups } in told {
            by_host.entry(host_key).or_default().extend(groups);
        }
        for (host_key, mut groups) in by_host {
            // Whoever told first: where there is no room, it is the same ones that find none.
            groups.sort_by_key(|group| (group.first, group.rule.id));
            let host = self.hosts.entry(host_key).or_default();
            for mut group in groups {
                group.closed_through = tick;
                self.evicted += host.insert(tick, group, self.retention_ms, changes);
            }
            Self::schedule(&mut self.due, host_key, host);
        }
    }

    /// Sees to it that a host is looked at when its next alert goes.
    fn schedule(due: &mut BTreeMap<u64, Vec<u64>>, host_key: u64, host: &mut Host) {
        // An alert that grows goes later than was thought: the look finds nothing then, and is set anew.
        if host.due.is_none() {
            host.due = host.groups.values().flatten().map(|group| expiry(group.last)).min();
            if let Some(moment) = host.due {
                due.entry(moment).or_default().push(host_key);
            }
        }
    }

    /// Takes back what rules have said that are no more, or say something else now.
    fn withdraw(&mut self, tick: u64, rules: &Compiled, changes: &mut Changes) {
        for host in self.hosts.values_mut() {
            for group in host.groups.values_mut().flatten() {
                if group.withdrawn || rules.stands(&group.rule) {
                    continue;
                }
                changes.gone(group);
                (group.withdrawn, group.closed_through) = (true, tick);
                changes.come(group);
            }
        }
    }

    fn forget(&mut self, tick: u64, changes: &mut Changes) {
        while let Some(entry) = self.due.first_entry().filter(|entry| *entry.key() <= tick) {
            for host_key in entry.remove() {
                let Some(host) = self.hosts.get_mut(&host_key) else { continue };
                host.due = None;
                host.forget(tick, changes);
                if host.count == 0 {
                    self.hosts.remove(&host_key);
                } else {
                    Self::schedule(&mut self.due, host_key, host);
                }
            }
        }
    }
}

/// When an alert with this last hit goes.
fn expiry(last: i64) -> u64 {
    u64::try_from(last.div_euclid(1_000_000)).unwrap_or(0).saturating_add(KEEP_MS)
}

impl Host {
    /// Takes a part of an alert up. What comes back is how many alerts and hits had to be let go for want of room.
    fn insert(&mut self, tick: u64, mut group: Group, retention_ms: u64, changes: &mut Changes) -> u64 {
        let key = (group.rule.id, group.rule.version, group.subject.key);
        let mut joined = false;
        if let Some(known) = self.groups.get_mut(&key) {
            // What was withdrawn stays as it is. What the part bridges becomes one.
            while let Some(at) = known.iter().position(|old| !old.withdrawn && old.touches(&group, WINDOW_MS)) {
                let old = known.remove(at);
                changes.gone(&old);
                group.merge(old);
                self.count -= 1;
                joined = true;
            }
        }
        let mut lost = 0;
        if !joined && self.count >= PER_HOST_MAX {
            if !self.evict(tick, retention_ms, changes) {
                return group.count;
            }
            lost = 1;
        }
        changes.come(&group);
        let known = self.groups.entry(key).or_default();
        let at = known.partition_point(|other| other.first < group.first);
        known.insert(at, group);
        self.count += 1;
        lost
    }

    /// Makes room: the alert that was settled first goes.
    fn evict(&mut self, tick: u64, retention_ms: u64, changes: &mut Changes) -> bool {
        let all = self.groups.iter().flat_map(|(key, groups)| groups.iter().map(move |group| (group.last, group.first, *key)));
        let Some((last, first, key)) = all.min() else { return false };
        let settled =
            u64::try_from(last.div_euclid(1_000_000)).unwrap_or(0).saturating_add(retention_ms).saturating_add(WINDOW_MS);
        if settled >= tick {
            return false;
        }
        self.remove(&key, changes, |group| group.first == first);
        true
    }

    /// Lets go what is past its time.
    fn forget(&mut self, tick: u64, changes: &mut Changes) {
        let keys: Vec<Key> = self.groups.keys().copied().collect();
        keys.iter().for_each(|key| self.remove(key, changes, |group| expiry(group.last) <= tick));
    }

    fn remove(&mut self, key: &Key, changes: &mut Changes, goes: impl Fn(&Group) -> bool) {
        let Some(groups) = self.groups.get_mut(key) else { return };
        let before = groups.len();
        groups.retain(|group| {
            let goes = goes(group);
            if goes {
                changes.gone(group);
            }
            !goes
        });
        self.count -= before - groups.len();
        if groups.is_empty() {
            self.groups.remove(key);
        }
    }
}

/// Rows that come and go in a tick. One that comes and goes again was never there.
#[derive(Debug, Default)]
struct Changes(Vec<(AlertRow, i64)>);

impl Changes {
    fn come(&mut self, group: &Group) {
        self.0.push((AlertRow(group.clone()), 1));
    }

    fn gone(&mut self, group: &Group) {
        // What came in the same tick stands near the end.
        match self.0.iter().rposition(|(known, diff)| *diff == 1 && known.0 == *group) {
            Some(at) => drop(self.0.swap_remove(at)),
            None => self.0.push((AlertRow(group.clone()), -1)),
        }
    }

    fn encode(self, tick: u64) -> Option<DeltaBatch> {
        if self.0.is_empty() {
            return None;
        }
        let (rows, diffs): (Vec<AlertRow>, Vec<i64>) = self.0.into_iter().unzip();
        Some(DeltaBatch::new(tick, AlertRow::encode(&rows), diffs))
    }
}
