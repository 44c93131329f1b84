//! The matches of one correlation and group: hits of a tick in, what changed out.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_rules::Shape;

use super::hit::Hit;
use super::row::{Changes, Told};
use super::run::Run;
use super::{KEEP_MS, MATCHES_PER_GROUP_MAX, SETTLE_EVERY_MS};
use crate::hits::{Capped, Moment, millis, nanos};

/// All that is kept of a correlation and group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    /// In order; those whose windows may yet change.
    pub(crate) hits: Vec<Hit>,
    /// The match that the hits may go on with.
    pub(crate) under_way: Option<Run>,
    /// By first hit.
    pub(crate) shown: BTreeMap<Moment, Shown>,
    pub(crate) capped: Option<Capped>,
    /// Up to when nothing changes any more, as of the last look at it: ticks may lie further apart than R.
    settled_to: i64,
    /// When it is to be looked at.
    pub(crate) due: Option<u64>,
}

/// A match that was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shown {
    pub(crate) run: Run,
    /// A late event has undone it.
    pub(crate) withdrawn: bool,
    /// How often it was told otherwise than before.
    pub(crate) revision: u64,
    /// The tick of its last change.
    pub(crate) changed: u64,
}

/// What a group is brought forward with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) tick: u64,
    pub(crate) shape: &'a Shape,
    /// How late a hit may come or go, in milliseconds: R, and what lies below.
    pub(crate) late_ms: u64,
    /// Hits kept at once.
    pub(crate) hits_max: usize,
}

impl Step<'_> {
    /// No hit before this moment comes or goes at this tick or later.
    fn horizon(&self) -> i64 {
        nanos(self.tick.saturating_sub(self.late_ms))
    }

    fn is_settled(&self, run: &Run) -> bool {
        self.settles(run) <= self.horizon()
    }

    /// The end of all windows that could go on with a match: once it is behind the horizon nothing changes it.
    fn settles(&self, run: &Run) -> i64 {
        run.last_anchor.saturating_add(self.shape.span).saturating_add(self.shape.span)
    }

    /// When a match is shown no more. It is not forgotten before nothing can change it.
    fn gone_at(&self, shown: &Shown) -> u64 {
        let settled = millis(self.settles(&shown.run)).saturating_add(self.late_ms).saturating_add(1);
        if shown.withdrawn { settled } else { settled.max(millis(shown.run.last).saturating_add(KEEP_MS)) }
    }

    /// When a hit's window is over.
    fn over_at(&self, hit: &Hit) -> u64 {
        millis(hit.at.0.saturating_add(self.shape.span)).saturating_add(1)
    }
}

impl Group {
    /// Takes up the hits of a tick (1: comes, −1: goes), and lets time pass. True when nothing is left of it.
    pub(crate) fn advance(&mut self, step: &Step<'_>, arrived: Vec<(Hit, i8)>, told: &Told<'_>, changes: &mut Changes) -> bool {
        let any = self.take(arrived);
        if self.hits.len() > step.hits_max {
            self.settle(step);
            self.cap(step, told, changes);
        }
        // Windows that wait are judged as time passes.
        if any || step.shape.waits() {
            self.match_again(step, told, changes);
        }
        self.settle(step);
        self.pass(step, told, changes);
        self.schedule(step);
        self.hits.is_empty() && self.under_way.is_none() && self.shown.is_empty() && self.capped.is_none()
    }

    /// True when there are other hits than before.
    fn take(&mut self, arrived: Vec<(Hit, i8)>) -> bool {
        let mut any = false;
        let (gone, come): (Vec<_>, Vec<_>) = arrived.into_iter().partition(|(_, diff)| *diff < 0);
        for (hit, diff) in gone.into_iter().chain(come) {
            let place = self.hits.partition_point(|known| known.at < hit.at);
            let known = self.hits.get_mut(place).filter(|known| known.at == hit.at);
            match (known, diff < 0) {
                (Some(_), true) => {
                    self.hits.remove(place);
                    any = true;
                }
                (Some(known), false) => {
                    any |= known.inputs | hit.inputs != known.inputs;
                    known.inputs |= hit.inputs;
                }
                (None, false) => {
                    self.hits.insert(place, hit);
                    any = true;
                }
                // It found no room.
                (None, true) => {}
            }
        }
        any
    }

    /// Makes the matches anew that can still change.
    fn match_again(&mut self, step: &Step<'_>, told: &Told<'_>, changes: &mut Changes) {
        let anchors = step.shape.anchors(&self.hits, nanos(step.tick));
        let found = Run::of_part(step.shape, &self.hits, &anchors, self.hits.len(), self.under_way.as_ref());
        let ranges: Vec<(Moment, i64)> = found.iter().map(|run| (run.first, run.last)).collect();
        let mut found: BTreeMap<Moment, Run> = found.into_iter().map(|run| (run.first, run)).collect();
        let mut gone = Vec::new();
        for (first, shown) in &mut self.shown {
            match found.remove(first) {
                Some(run) if run == shown.run && !shown.withdrawn => {}
                Some(run) => {
                    let was = shown.clone();
                    *shown = Shown { run, withdrawn: false, revision: was.revision + 1, changed: step.tick };
                    changes.change(told, Some(&was), Some(shown));
                }
                None if shown.withdrawn || step.settles(&shown.run) <= self.settled_to => {}
                // It is a part of another one now, which goes on under its first event.
                None if ranges.iter().any(|(from, to)| *from <= *first && first.0 <= *to) => {
                    changes.change(told, Some(shown), None);
                    gone.push(*first);
                }
                None => {
                    let was = shown.clone();
                    (shown.withdrawn, shown.revision, shown.changed) = (true, was.revision + 1, step.tick);
                    changes.change(told, Some(&was), Some(shown));
                }
            }
        }
        gone.iter().for_each(|first| _ = self.shown.remove(first));
        for (first, run) in found {
            let shown = Shown { run, withdrawn: false, revision: 1, changed: step.tick };
            changes.change(told, None, Some(&shown));
            self.shown.insert(first, shown);
        }
        while self.shown.len() > MATCHES_PER_GROUP_MAX {
            let oldest = self.shown.first_entry().filter(|entry| step.is_settled(&entry.get().run));
            let Some(entry) = oldest else { break };
            changes.forget(told, &entry.remove());
            changes.evicted += 1;
        }
    }

    /// Takes out the hits whose windows have passed the horizon; what is under way is carried on without them.
    fn settle(&mut self, step: &Step<'_>) {
        let horizon = step.horizon();
        self.settled_to = horizon;
        let part = self.hits.partition_point(|hit| hit.at.0.saturating_add(step.shape.span) <= horizon);
        if part > 0 {
            let anchors = step.shape.anchors(&self.hits, nanos(step.tick));
            self.under_way = Run::of_part(step.shape, &self.hits, &anchors, part, self.under_way.as_ref()).pop();
            self.hits.drain(..part);
        }
        self.under_way.take_if(|run| step.is_settled(run));
    }

    /// The first hits stay: of those that go on, a match is told by now.
    fn cap(&mut self, step: &Step<'_>, told: &Told<'_>, changes: &mut Changes) {
        if self.hits.len() > step.hits_max {
            let dropped = self.hits.split_off(step.hits_max);
            let source = Arc::clone(&dropped[0].source);
            let more = Capped { dropped: dropped.len() as u64, at: step.tick, source };
            changes.hot.capped(&told.rule.head.rule.name, &mut self.capped, more);
        }
    }

    /// Matches go as time passes.
    fn pass(&mut self, step: &Step<'_>, told: &Told<'_>, changes: &mut Changes) {
        self.shown.retain(|_, shown| {
            let stays = step.tick < step.gone_at(shown);
            if !stays {
                changes.forget(told, shown);
            }
            stays
        });
        if self.capped.as_ref().is_some_and(|capped| step.tick >= capped.at.saturating_add(KEEP_MS)) {
            changes.hot.uncapped(&told.rule.head.rule.name, &mut self.capped);
        }
    }

    fn schedule(&mut self, step: &Step<'_>) {
        let gone = self.shown.values().map(|shown| step.gone_at(shown)).min();
        let settling = |end: i64| millis(end).saturating_add(step.late_ms).saturating_add(SETTLE_EVERY_MS);
        let hits = self.hits.first().map(|hit| settling(hit.at.0.saturating_add(step.shape.span)));
        let under_way = self.under_way.as_ref().map(|run| settling(step.settles(run)));
        let judged = || self.hits.iter().map(|hit| step.over_at(hit)).find(|over| *over > step.tick);
        let judged = if step.shape.waits() { judged() } else { None };
        let capped = self.capped.as_ref().map(|capped| capped.at.saturating_add(KEEP_MS));
        let due = [gone, hits, under_way, judged, capped].into_iter().flatten().min();
        self.due = due.map(|due| due.max(step.tick + 1));
    }
}
