//! The alerts of the hosts that come to one worker: hits of a tick in, rows that changed out.

use std::collections::{BTreeMap, BTreeSet};

use weir_rules::Exceptions;

use super::changes::Changes;
use super::compiled::Compiled;
use super::group::HostHits;
use super::host::{Host, Key, Lost, Now, expiry};
use super::judge::{Judge, Matchers};
use crate::delta::DeltaBatch;

/// All alerts of one worker.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    pub(super) hosts: BTreeMap<u64, Host>,
    /// When to look at a host for what is to be forgotten.
    pub(super) due: BTreeMap<u64, Vec<u64>>,
    pub(super) lost: Lost,
    /// How late an event may be.
    retention_ms: u64,
    matchers: Matchers,
}

/// What holds at a tick.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Law<'a> {
    /// None: there were never any.
    pub(crate) rules: Option<&'a Compiled>,
    /// Those of the tick, and those of the tick before.
    pub(crate) exceptions: [&'a Exceptions; 2],
    /// Whether any of it may be other than at the tick before.
    pub(crate) is_new: bool,
}

impl Groups {
    pub(crate) fn new(retention_ms: u64) -> Self {
        Self { retention_ms, ..Self::default() }
    }

    /// Alerts kept.
    pub(crate) fn len(&self) -> usize {
        self.hosts.values().map(|host| host.count).sum()
    }

    /// Hits kept.
    pub(crate) fn hits(&self) -> usize {
        self.hosts.values().map(Host::hits).sum()
    }

    /// Alerts that went before their time, and hits that found no room.
    pub(crate) fn evicted(&self) -> u64 {
        self.lost.evicted
    }

    /// Hits that can be judged no more before their time, and identities that were forgotten before theirs.
    pub(crate) fn fixed(&self) -> u64 {
        self.lost.fixed
    }

    /// The next moment at which something is to be forgotten.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.due.keys().next().copied()
    }

    /// All hits of a tick: the rows that changed.
    pub(crate) fn advance(&mut self, tick: u64, told: Vec<HostHits>, law: Law<'_>) -> Option<DeltaBatch> {
        let mut matchers = std::mem::take(&mut self.matchers);
        let mut changes = Changes::default();
        let [exceptions, _] = law.exceptions;
        let mut judge = law.rules.map(|rules| Judge { rules, exceptions, matchers: &mut matchers });
        if let Some(judge) = judge.as_mut().filter(|_| law.is_new) {
            self.renew(tick, law, judge, &mut changes);
        }
        self.take(tick, told, judge.as_mut(), &mut changes);
        self.forget(tick, judge.as_ref(), &mut changes);
        self.matchers = matchers;
        changes.encode(tick)
    }

    /// Rules or exceptions are others from this tick on.
    fn renew(&mut self, tick: u64, law: Law<'_>, judge: &mut Judge<'_>, changes: &mut Changes) {
        let Law { exceptions: [now, before], .. } = law;
        let all = judge.rules.heads.iter().zip(&judge.rules.set().rules);
        let others = all.filter(|(_, rule)| now.differ(before, rule)).map(|(head, _)| (head.id, head.version));
        let others: BTreeSet<(u64, u64)> = others.collect();
        for (host_key, host) in &mut self.hosts {
            host.withdraw(tick, judge.rules, changes);
            if others.is_empty() {
                continue;
            }
            let mut keys = BTreeSet::new();
            host.judge_again(tick, judge, |hit| hit.claims.iter().any(|claim| others.contains(&claim.rule)), &mut keys);
            host.remake(tick, &keys, judge, changes);
            let due = host.next_due();
            Self::schedule(&mut self.due, *host_key, host, due);
        }
    }

    fn take(&mut self, tick: u64, told: Vec<HostHits>, mut judge: Option<&mut Judge<'_>>, changes: &mut Changes) {
        let mut by_host: BTreeMap<u64, HostHits> = BTreeMap::new();
        for HostHits { host_key, hits, containers } in told {
            let of = by_host.entry(host_key).or_insert(HostHits { host_key, hits: Vec::new(), containers: Vec::new() });
            of.hits.extend(hits);
            of.containers.extend(containers);
        }
        let now = Now { tick, retention_ms: self.retention_ms };
        for (host_key, HostHits { mut hits, containers, .. }) in by_host {
            let host = self.hosts.entry(host_key).or_default();
            let mut known = BTreeSet::new();
            for told in containers {
                let id = told.id.clone();
                if host.containers.take(told) {
                    known.insert(id);
                }
            }
            if let Some(judge) = &mut judge {
                if !known.is_empty() {
                    let mut keys: BTreeSet<Key> = BTreeSet::new();
                    host.judge_again(tick, judge, |hit| hit.asks.as_ref().is_some_and(|id| known.contains(id)), &mut keys);
                    host.remake(tick, &keys, judge, changes);
                }
                // Whoever told first: where there is no room, it is the same ones that find none.
                hits.sort_by_key(|hit| hit.moment);
                let first = hits.first().map(|hit| expiry(hit.moment.0));
                hits.into_iter().for_each(|hit| host.take(now, hit, judge, changes, &mut self.lost));
                Self::schedule(&mut self.due, host_key, host, first);
            }
            if host.due.is_none() || !known.is_empty() {
                let due = host.next_due();
                Self::schedule(&mut self.due, host_key, host, due);
            }
        }
    }

    /// Sees to it that a host is looked at by then.
    fn schedule(due: &mut BTreeMap<u64, Vec<u64>>, host_key: u64, host: &mut Host, moment: Option<u64>) {
        // An alert that grows goes later than was thought: the look finds nothing then, and is set anew.
        let Some(moment) = moment.filter(|moment| host.due.is_none_or(|due| *moment < due)) else { return };
        host.due = Some(moment);
        due.entry(moment).or_default().push(host_key);
    }

    fn forget(&mut self, tick: u64, judge: Option<&Judge<'_>>, changes: &mut Changes) {
        while let Some(entry) = self.due.first_entry().filter(|entry| *entry.key() <= tick) {
            let (moment, hosts) = entry.remove_entry();
            for host_key in hosts {
                // It may be looked at earlier than was thought once.
                let Some(host) = self.hosts.get_mut(&host_key).filter(|host| host.due == Some(moment)) else { continue };
                host.due = None;
                host.forget(tick, judge, changes, &mut self.lost);
                if host.is_empty() {
                    self.hosts.remove(&host_key);
                } else {
                    // What is due by now goes at the next tick.
                    let next = host.next_due().map(|moment| moment.max(tick + 1));
                    Self::schedule(&mut self.due, host_key, host, next);
                }
            }
        }
    }
}
