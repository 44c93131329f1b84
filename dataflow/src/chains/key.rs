//! The chains of one rule and key: hits of a tick in, what changed out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::hit::{Hit, HitSource, Moment};
use super::row::{Changes, Told};
use super::shape::Shape;
use super::{CHAINS_PER_KEY_MAX, KEEP_MS};
use crate::checkpoint::shared;
use crate::hits::{Capped, millis, nanos};

/// All that is kept of a rule and key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyChains {
    /// In order; those that a chain may yet be made of.
    pub(crate) hits: Vec<Hit>,
    /// By first event.
    pub(crate) chains: BTreeMap<Moment, Chain>,
    pub(crate) capped: Option<Capped>,
    /// When it is to be looked at.
    pub(crate) due: Option<u64>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chain {
    /// One of each stage.
    pub(crate) events: Vec<Event>,
    pub(crate) state: ChainState,
    /// How often it was told otherwise than before.
    pub(crate) revision: u64,
    /// The tick of its last change.
    pub(crate) changed: u64,
}

/// An event of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    pub(crate) at: Moment,
    #[serde(with = "shared")]
    pub(crate) source: Arc<HitSource>,
}

/// How far a chain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ChainState {
    /// It is not told yet.
    Waiting,
    /// A late event may undo it.
    Provisional,
    /// Nothing changes it any more.
    Settled,
    /// A late event has undone it.
    Withdrawn,
}

/// What a key is brought forward with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) tick: u64,
    pub(crate) shape: &'a Shape,
    /// R.
    pub(crate) retention_ms: u64,
    /// Hits kept of each mark.
    pub(crate) rows_max: usize,
}

impl Step<'_> {
    /// No event before this moment is admitted at this tick or later.
    fn horizon(&self) -> i64 {
        nanos(self.tick.saturating_sub(self.retention_ms))
    }

    /// When nothing can change a chain any more.
    fn settled_at(&self, chain: &Chain) -> u64 {
        let end = if self.shape.waits() { chain.first().0.saturating_add(self.shape.span) } else { chain.last().0 };
        millis(end).saturating_add(self.retention_ms).saturating_add(1)
    }

    /// When a chain is told.
    fn told_at(&self, chain: &Chain) -> u64 {
        match (self.shape.is_final, self.shape.waits()) {
            (true, _) => self.settled_at(chain),
            (false, true) => millis(chain.first().0.saturating_add(self.shape.span)).saturating_add(1),
            (false, false) => 0,
        }
    }

    /// When a chain is shown no more. Until then it also keeps later ones from beginning before its end.
    fn gone_at(&self, chain: &Chain) -> u64 {
        let kept = KEEP_MS.max(self.retention_ms.saturating_add(millis(self.shape.span)).saturating_add(1));
        match chain.state {
            ChainState::Withdrawn => self.settled_at(chain),
            _ => millis(chain.last().0).saturating_add(kept),
        }
    }

    fn state_of(&self, chain: &Chain) -> ChainState {
        match self.tick {
            tick if tick < self.told_at(chain) => ChainState::Waiting,
            tick if tick < self.settled_at(chain) => ChainState::Provisional,
            _ => ChainState::Settled,
        }
    }
}

impl Chain {
    pub(crate) fn first(&self) -> Moment {
        self.events.first().map_or((0, [0; 16]), |event| event.at)
    }

    pub(crate) fn last(&self) -> Moment {
        self.events.last().map_or((0, [0; 16]), |event| event.at)
    }

    /// When an alert of it has been shown for long enough.
    pub(crate) fn gone_by_age(&self) -> u64 {
        millis(self.last().0).saturating_add(KEEP_MS)
    }

    /// Whether people see it.
    pub(crate) fn is_told(&self) -> bool {
        matches!(self.state, ChainState::Provisional | ChainState::Settled)
    }
}

impl KeyChains {
    /// Takes up the hits of a tick, and lets time pass. True when nothing is left of it.
    pub(crate) fn advance(&mut self, step: &Step<'_>, arrived: Vec<Hit>, told: &Told<'_>, changes: &mut Changes) -> bool {
        let horizon = step.horizon();
        let is_frozen = |first: i64| first.saturating_add(step.shape.span) <= horizon;
        if self.insert(step, arrived, told, changes) {
            self.match_again(step, is_frozen, told, changes);
        }
        self.pass(step, told, changes);
        self.hits.retain(|hit| !is_frozen(hit.at.0));
        self.schedule(step);
        self.hits.is_empty() && self.chains.is_empty() && self.capped.is_none()
    }

    /// True when there are hits that were not there before.
    fn insert(&mut self, step: &Step<'_>, arrived: Vec<Hit>, told: &Told<'_>, changes: &mut Changes) -> bool {
        let mut any = false;
        for hit in arrived {
            let place = self.hits.partition_point(|known| known.at < hit.at);
            match self.hits.get_mut(place).filter(|known| known.at == hit.at) {
                Some(known) => {
                    any |= known.bits | hit.bits != known.bits;
                    known.bits |= hit.bits;
                }
                None => {
                    self.hits.insert(place, hit);
                    any = true;
                }
            }
        }
        if self.hits.len() > step.rows_max {
            self.cap(step, told, changes);
        }
        any
    }

    /// Of each mark the first hits stay: a flood of one stage takes no room from the others.
    fn cap(&mut self, step: &Step<'_>, told: &Told<'_>, changes: &mut Changes) {
        let mut counts: HashMap<u32, usize> = HashMap::new();
        let (mut dropped, mut source) = (0, None);
        self.hits.retain(|hit| {
            let count = counts.entry(hit.bits).or_default();
            *count += 1;
            if *count > step.rows_max {
                dropped += 1;
                source = Some(Arc::clone(&hit.source));
            }
            *count <= step.rows_max
        });
        if let Some(source) = source {
            changes.hot.capped(&told.rule.head.rule.name, &mut self.capped, Capped { dropped, at: step.tick, source });
        }
    }

    /// Makes the chains anew that can still change.
    fn match_again(&mut self, step: &Step<'_>, is_frozen: impl Fn(i64) -> bool, told: &Told<'_>, changes: &mut Changes) {
        let standing = |chain: &&Chain| chain.state != ChainState::Withdrawn;
        let frozen = self.chains.values().take_while(|chain| is_frozen(chain.first().0));
        let busy = frozen.filter(standing).map(Chain::last).max();
        let open = self.hits.partition_point(|hit| is_frozen(hit.at.0));
        let mut found: BTreeMap<Moment, Vec<Event>> = BTreeMap::new();
        for chain in step.shape.chains(&self.hits[open..], busy) {
            let events = chain.into_iter().map(|place| &self.hits[open + place]);
            let events: Vec<Event> = events.map(|hit| Event { at: hit.at, source: Arc::clone(&hit.source) }).collect();
            found.insert(events[0].at, events);
        }
        for (first, chain) in &mut self.chains {
            if is_frozen(first.0) {
                continue;
            }
            let events = found.remove(first);
            let is_same = events.as_ref().is_some_and(|events| *events == chain.events);
            if is_same && chain.state != ChainState::Withdrawn || events.is_none() && chain.state == ChainState::Withdrawn {
                continue;
            }
            changes.gone(told, chain);
            match events {
                Some(events) => {
                    // What people were told of is told of again, with what is otherwise now.
                    let was_told = chain.state != ChainState::Waiting;
                    *chain = Chain {
                        events,
                        state: ChainState::Waiting,
                        revision: chain.revision + u64::from(was_told),
                        changed: step.tick,
                    };
                    chain.state = step.state_of(chain);
                }
                None if chain.is_told() => {
                    (chain.state, chain.changed) = (ChainState::Withdrawn, step.tick);
                    chain.revision += 1;
                }
                // Nobody was told.
                None => chain.events.clear(),
            }
            if !chain.events.is_empty() {
                changes.come(told, chain);
            }
        }
        self.chains.retain(|_, chain| !chain.events.is_empty());
        for (first, events) in found {
            let mut chain = Chain { events, state: ChainState::Waiting, revision: 1, changed: step.tick };
            chain.state = step.state_of(&chain);
            changes.come(told, &chain);
            self.chains.insert(first, chain);
        }
        while self.chains.len() > CHAINS_PER_KEY_MAX {
            let Some(entry) = self.chains.first_entry().filter(|entry| is_frozen(entry.key().0)) else { break };
            changes.gone(told, &entry.remove());
            changes.evicted += 1;
        }
    }

    /// Chains are told, settle and go as time passes.
    fn pass(&mut self, step: &Step<'_>, told: &Told<'_>, changes: &mut Changes) {
        self.chains.retain(|_, chain| {
            if step.tick >= step.gone_at(chain) {
                changes.gone(told, chain);
                return false;
            }
            let state = if chain.state == ChainState::Withdrawn { chain.state } else { step.state_of(chain) };
            if state != chain.state {
                changes.gone(told, chain);
                if chain.state == ChainState::Waiting {
                    chain.changed = step.tick;
                }
                chain.state = state;
                changes.come(told, chain);
            }
            true
        });
        if self.capped.as_ref().is_some_and(|capped| step.tick >= capped.at.saturating_add(KEEP_MS)) {
            changes.hot.uncapped(&told.rule.head.rule.name, &mut self.capped);
        }
    }

    fn schedule(&mut self, step: &Step<'_>) {
        let of_chain = |chain: &Chain| {
            let moments = [step.told_at(chain), step.settled_at(chain), step.gone_at(chain)];
            moments.into_iter().filter(|moment| *moment > step.tick).min()
        };
        let frozen_at =
            |hit: &Hit| millis(hit.at.0.saturating_add(step.shape.span)).saturating_add(step.retention_ms).saturating_add(1);
        let capped = self.capped.as_ref().map(|capped| capped.at.saturating_add(KEEP_MS));
        let due = self.chains.values().filter_map(of_chain).chain(self.hits.first().map(frozen_at)).chain(capped).min();
        self.due = due.map(|due| due.max(step.tick + 1));
    }
}
