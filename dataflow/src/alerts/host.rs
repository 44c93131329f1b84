//! The alerts of one host, and the hits that they are made of.
//!
//! Hits of the last `KEEP_MS` are kept and can be judged again. What is older, or finds no room, is *fixed*: it stays a part of its alerts
//! as it was judged last, and what was silenced then is forgotten. An alert is what fixed parts and standing hits come to when they are
//! joined; as long as no hit leaves, hits are added to it one by one, else the alerts of the rule and subject are made anew.
//!
//! An alert whose first hit leaves is shown as withdrawn, so that whoever was told of it hears of that. Should the hit come back, so does
//! the alert, under its old id and with a higher revision.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::changes::Changes;
use super::compiled::{Compiled, RuleHead};
use super::group::{Group, Moment, Subject};
use super::hit::{Claim, Hit};
use super::identity::Identities;
use super::judge::Judge;
use super::{HIT_BYTES_PER_HOST_MAX, HITS_PER_HOST_MAX, KEEP_MS, PER_HOST_MAX, WINDOW_MS};

/// Rule, its version, subject.
pub(super) type Key = (u64, u64, u128);

/// Alerts of one host.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Host {
    /// By first hit; those that were withdrawn among them.
    pub(super) groups: BTreeMap<Key, Vec<Group>>,
    pub(super) count: usize,
    /// When it is to be looked at.
    pub(super) due: Option<u64>,
    hits: BTreeMap<Moment, Hit>,
    /// Of the hits.
    bytes: usize,
    /// Parts of alerts that are judged no more, by first hit.
    fixed: BTreeMap<Key, Vec<Group>>,
    pub(super) containers: Identities,
}

/// What found no room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lost {
    /// Alerts that went before their time, and hits that began none.
    pub(super) evicted: u64,
    /// Hits that were fixed before their time, and identities that were forgotten before theirs.
    pub(super) fixed: u64,
}

/// When a tick is, and how late an event may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) tick: u64,
    pub(super) retention_ms: u64,
}

/// When what happened at this time goes.
pub(super) fn expiry(time: i64) -> u64 {
    u64::try_from(time.div_euclid(1_000_000)).unwrap_or(0).saturating_add(KEEP_MS)
}

fn key_of(claim: &Claim, hit: &Hit) -> Key {
    (claim.rule.0, claim.rule.1, hit.subject)
}

impl Host {
    /// Takes a new hit up.
    pub(super) fn take(&mut self, now: Now, mut hit: Hit, judge: &mut Judge<'_>, changes: &mut Changes, lost: &mut Lost) {
        judge.judge(&mut hit, &self.containers);
        let standing: Vec<Claim> = hit.claims.iter().copied().filter(|claim| claim.stands).collect();
        for claim in standing {
            if !self.add(now, key_of(&claim, &hit), &hit, judge, changes, lost) {
                // It is counted only, and nobody else has the event.
                hit.claims.retain(|other| other.rule != claim.rule && !(claim.one_only && other.one_only));
            }
        }
        if hit.claims.is_empty() {
            return;
        }
        self.bytes += hit.bytes();
        self.hits.insert(hit.moment, hit);
        while self.hits.len() > HITS_PER_HOST_MAX || self.bytes > HIT_BYTES_PER_HOST_MAX {
            lost.fixed += u64::from(self.fix_first(judge));
        }
    }

    /// Adds a standing hit to the alerts of its rule and subject; false: there is no room for another one.
    fn add(&mut self, now: Now, key: Key, hit: &Hit, judge: &Judge<'_>, changes: &mut Changes, lost: &mut Lost) -> bool {
        let Some(place) = judge.rules.place((key.0, key.1)) else { return false };
        let subject = || judge.subject(place, hit, &self.containers);
        let near = |group: &Group| !group.withdrawn && group.is_near(hit.moment, WINDOW_MS);
        let known = self.groups.get_mut(&key).and_then(|known| Some((known.iter().position(near)?, known)));
        let group = if let Some((at, known)) = known {
            let mut group = known.remove(at);
            changes.gone(&group);
            group.add(hit, subject);
            self.count -= 1;
            // What it bridges becomes one.
            while let Some(at) = known.iter().position(|other| !other.withdrawn && other.touches(&group, WINDOW_MS)) {
                let other = known.remove(at);
                changes.gone(&other);
                group.merge(other);
                self.count -= 1;
            }
            group
        } else {
            let subject = subject();
            if self.count >= PER_HOST_MAX {
                lost.evicted += 1;
                if !self.evict(now, changes) {
                    return false;
                }
            }
            Group::of(hit, Arc::clone(&judge.rules.heads[place]), subject)
        };
        let group = Group { closed_through: now.tick, ..group };
        changes.come(&group);
        let known = self.groups.entry(key).or_default();
        let at = known.partition_point(|other| other.first < group.first);
        known.insert(at, group);
        self.count += 1;
        true
    }

    /// Judges hits again. `keys`: whose alerts are to be made anew.
    pub(super) fn judge_again(
        &mut self,
        tick: u64,
        judge: &mut Judge<'_>,
        is_meant: impl Fn(&Hit) -> bool,
        keys: &mut BTreeSet<Key>,
    ) {
        self.fix_old(tick, judge);
        for hit in self.hits.values_mut().filter(|hit| is_meant(hit)) {
            let standing =
                |hit: &Hit| hit.claims.iter().filter(|claim| claim.stands).map(|claim| key_of(claim, hit)).collect::<Vec<_>>();
            // Also where the same stand: what is known of the container may be part of what they say.
            keys.extend(standing(hit));
            judge.judge(hit, &self.containers);
            keys.extend(standing(hit));
        }
    }

    /// Makes the alerts of these keys anew.
    pub(super) fn remake(&mut self, tick: u64, keys: &BTreeSet<Key>, judge: &Judge<'_>, changes: &mut Changes) {
        let mut hits: BTreeMap<Key, Vec<&Hit>> = keys.iter().map(|key| (*key, Vec::new())).collect();
        for hit in self.hits.values() {
            for claim in hit.claims.iter().filter(|claim| claim.stands) {
                if let Some(of_key) = hits.get_mut(&key_of(claim, hit)) {
                    of_key.push(hit);
                }
            }
        }
        let mut made = Vec::new();
        for (key, hits) in hits {
            let Some(place) = judge.rules.place((key.0, key.1)) else { continue };
            let fixed = self.fixed.get(&key).map_or(&[][..], Vec::as_slice);
            let subject = |hit: &Hit| judge.subject(place, hit, &self.containers);
            made.push((key, join(fixed, &hits, &judge.rules.heads[place], subject)));
        }
        for (key, groups) in made {
            self.replace(tick, key, groups, changes);
        }
    }

    /// Shows these alerts of a key in the place of those that are shown.
    fn replace(&mut self, tick: u64, key: Key, made: Vec<Group>, changes: &mut Changes) {
        let known = self.groups.remove(&key).unwrap_or_default();
        self.count -= known.len();
        let (mut gone, mut old): (Vec<Group>, Vec<Group>) = known.into_iter().partition(|group| group.withdrawn);
        let mut shown = Vec::with_capacity(made.len());
        for group in made {
            let at = old.iter().position(|old| old.first == group.first);
            if let Some(at) = at.filter(|at| old[*at].tells_as(&group)) {
                shown.push(old.swap_remove(at));
                continue;
            }
            // An alert of this id was there, or was withdrawn.
            let before = at.map(|at| old.swap_remove(at));
            let before = before.or_else(|| {
                let at = gone.iter().position(|gone| gone.first == group.first)?;
                Some(gone.swap_remove(at))
            });
            let base = before.as_ref().map_or(0, |before| (before.revision() + 1).saturating_sub(group.count));
            before.iter().for_each(|before| changes.gone(before));
            let group = Group { closed_through: tick, base: group.base.max(base), ..group };
            changes.come(&group);
            shown.push(group);
        }
        for group in old {
            changes.gone(&group);
            let has_left = self.hits.get(&group.first).is_some_and(|hit| !hit.stands_for((key.0, key.1)));
            if has_left {
                let group = Group { withdrawn: true, closed_through: tick, ..group };
                changes.come(&group);
                gone.push(group);
            }
        }
        shown.append(&mut gone);
        shown.sort_by_key(|group| group.first);
        self.count += shown.len();
        if !shown.is_empty() {
            self.groups.insert(key, shown);
        }
    }

    /// Takes back what rules have said that are no more, or say something else now. Nobody else gets the events.
    pub(super) fn withdraw(&mut self, tick: u64, rules: &Compiled, changes: &mut Changes) {
        self.hits.retain(|_, hit| {
            let before = hit.bytes();
            let goes = |claim: &Claim| !rules.stands(claim.rule);
            let is_used = hit.claims.iter().any(|claim| claim.stands && claim.one_only && goes(claim));
            hit.claims.retain(|claim| !(goes(claim) || is_used && claim.one_only));
            let stays = !hit.claims.is_empty();
            self.bytes -= before - if stays { hit.bytes() } else { 0 };
            stays
        });
        self.fixed.retain(|key, _| rules.stands((key.0, key.1)));
        for group in self.groups.values_mut().flatten() {
            if group.withdrawn || rules.stands((group.rule.id, group.rule.version)) {
                continue;
            }
            changes.gone(group);
            (group.withdrawn, group.closed_through) = (true, tick);
            changes.come(group);
        }
    }

    /// Fixes what is past its time.
    fn fix_old(&mut self, tick: u64, judge: &Judge<'_>) {
        while self.hits.first_key_value().is_some_and(|(moment, _)| expiry(moment.0) <= tick) {
            self.fix_first(judge);
        }
    }

    /// Fixes the earliest hit; true if a rule has it.
    fn fix_first(&mut self, judge: &Judge<'_>) -> bool {
        let Some((_, hit)) = self.hits.pop_first() else { return false };
        self.bytes -= hit.bytes();
        let mut any = false;
        for claim in hit.claims.iter().filter(|claim| claim.stands) {
            let Some(place) = judge.rules.place(claim.rule) else { continue };
            any = true;
            let parts = self.fixed.entry(key_of(claim, &hit)).or_default();
            let subject = || judge.subject(place, &hit, &self.containers);
            match parts.iter().position(|part| part.is_near(hit.moment, WINDOW_MS)) {
                Some(at) => {
                    let mut part = parts.swap_remove(at);
                    part.add(&hit, subject);
                    while let Some(other) = parts.iter().position(|other| other.touches(&part, WINDOW_MS)) {
                        part.merge(parts.swap_remove(other));
                    }
                    parts.push(part);
                }
                None => parts.push(Group::of(&hit, Arc::clone(&judge.rules.heads[place]), subject())),
            }
            parts.sort_by_key(|part| part.first);
        }
        any
    }

    /// Makes room: the alert that was settled first goes.
    fn evict(&mut self, now: Now, changes: &mut Changes) -> bool {
        let all = self.groups.iter().flat_map(|(key, groups)| groups.iter().map(move |group| (group.last, group.first, *key)));
        let Some((last, first, key)) = all.min() else { return false };
        let settled =
            u64::try_from(last.div_euclid(1_000_000)).unwrap_or(0).saturating_add(now.retention_ms).saturating_add(WINDOW_MS);
        if settled >= now.tick {
            return false;
        }
        self.remove(&key, changes, |group| group.first == first);
        // Its hits go with it.
        for hit in self.hits.range_mut(first..=(last, [u8::MAX; 16])).map(|(_, hit)| hit).filter(|hit| hit.subject == key.2) {
            let used = hit.claims.iter().find(|claim| claim.stands && claim.rule == (key.0, key.1)).copied();
            if let Some(used) = used {
                let before = hit.bytes();
                hit.claims.retain(|claim| claim.rule != used.rule && !(used.one_only && claim.one_only));
                self.bytes -= before - hit.bytes();
            }
        }
        self.hits.retain(|_, hit| {
            let stays = !hit.claims.is_empty();
            self.bytes -= if stays { 0 } else { hit.bytes() };
            stays
        });
        true
    }

    /// Lets go what is past its time.
    pub(super) fn forget(&mut self, tick: u64, judge: Option<&Judge<'_>>, changes: &mut Changes, lost: &mut Lost) {
        judge.iter().for_each(|judge| self.fix_old(tick, judge));
        let keys: Vec<Key> = self.groups.keys().copied().collect();
        keys.iter().for_each(|key| self.remove(key, changes, |group| expiry(group.last) <= tick));
        let asked: BTreeSet<_> = self.hits.values().filter_map(|hit| hit.asks.as_ref()).collect();
        lost.fixed += self.containers.forget(tick, |id| asked.contains(id));
    }

    fn remove(&mut self, key: &Key, changes: &mut Changes, goes: impl Fn(&Group) -> bool) {
        let Some(groups) = self.groups.get_mut(key) else { return };
        let before = groups.len();
        let mut parts = self.fixed.get_mut(key);
        groups.retain(|group| {
            let goes = goes(group);
            if goes {
                changes.gone(group);
                if let Some(parts) = parts.as_mut().filter(|_| !group.withdrawn) {
                    parts.retain(|part| part.first < group.first || part.last > group.last);
                }
            }
            !goes
        });
        self.count -= before - groups.len();
        if groups.is_empty() {
            self.groups.remove(key);
        }
        if self.fixed.get(key).is_some_and(Vec::is_empty) {
            self.fixed.remove(key);
        }
    }

    /// Whether there is nothing to keep.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0 && self.hits.is_empty() && self.containers.is_empty()
    }

    /// When something goes: the next alert, or all the rest.
    pub(super) fn next_due(&self) -> Option<u64> {
        let groups = self.groups.values().flatten().map(|group| expiry(group.last)).min();
        let rest = || self.hits.last_key_value().map(|(moment, _)| expiry(moment.0)).or_else(|| self.containers.due());
        groups.or_else(rest)
    }

    /// Hits that can be judged again.
    pub(super) fn hits(&self) -> usize {
        self.hits.len()
    }
}

/// The alerts that parts and hits come to, both by their first moment.
fn join(fixed: &[Group], hits: &[&Hit], rule: &Arc<RuleHead>, subject: impl Fn(&Hit) -> Subject) -> Vec<Group> {
    let (mut fixed, mut hits) = (fixed.iter().peekable(), hits.iter().peekable());
    let mut made: Vec<Group> = Vec::new();
    loop {
        let is_hit = match (fixed.peek(), hits.peek()) {
            (None, None) => return made,
            (Some(part), Some(hit)) => hit.moment < part.first,
            (part, _) => part.is_none(),
        };
        // What comes next begins last, so it can only touch the last.
        if is_hit {
            let Some(hit) = hits.next() else { return made };
            match made.last_mut().filter(|last| last.is_near(hit.moment, WINDOW_MS)) {
                Some(last) => last.add(hit, || subject(hit)),
                None => made.push(Group::of(hit, Arc::clone(rule), subject(hit))),
            }
        } else {
            let Some(part) = fixed.next().cloned() else { return made };
            match made.last_mut().filter(|last| last.touches(&part, WINDOW_MS)) {
                Some(last) => last.merge(part),
                None => made.push(part),
            }
        }
    }
}
