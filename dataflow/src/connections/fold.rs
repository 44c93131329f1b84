//! Folds the events of every socket into its end: the one place that knows what a host's agent said.
//!
//! Promise: after [`Fold::advance`] the ends told so far are a function of the set of events given so far, whatever their order
//! and however often they came. A later boot of a host closes the sockets of the boots before it. An end is forgotten, without
//! a word, when it is closed and nothing admitted any more can change it. Open ends are bounded per host (`ends_max`): beyond,
//! the one silent for longest is told as closed at its last event, and counted.
//!
//! Assumed of hosts: a cookie names one socket per boot, and no event of a socket is later than its close.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};
use serde::{Deserialize, Serialize};
use weir_schema::BootId;

use super::end::{Actor, End, EndKey, HostTouches, IsnGroup, Lateness, Place, Side, Told, Touch, TupleGroup, millis};
use super::loose::{Loose, LooseAt, LooseGroup};
use super::state::EndState;
use crate::checkpoint::pairs;

type Map<K, V> = HashMap<K, V, FixedState>;

/// The ends of the hosts that one worker keeps.
#[derive(Debug)]
pub struct Fold {
    lateness: Lateness,
    ends_max: usize,
    pub(super) hosts: Map<u64, Host>,
    /// What may be forgotten, by the first tick at which it may.
    pub(super) due: BTreeMap<u64, Vec<(u64, BootId, Slot)>>,
    actors: HashSet<Arc<Actor>, FixedState>,
    actors_swept: usize,
    pub(super) evicted: u64,
}

/// What changed in one tick, told to where the ends meet.
#[derive(Debug, Default)]
pub struct Changes {
    /// To the groups by sequence numbers.
    pub by_isns: Vec<Told<IsnGroup>>,
    /// To the groups by addresses: ends without sequence numbers.
    pub by_tuple: Vec<Told<TupleGroup>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Host {
    place: Arc<Place>,
    boots: Vec<Boot>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Boot {
    id: BootId,
    start: i64,
    #[serde(with = "pairs")]
    ends: Map<u64, EndState>,
    #[serde(with = "pairs")]
    loose: Map<LooseGroup, Loose>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Slot {
    Socket(u64),
    Loose(LooseGroup),
}

/// The ends of touched slots as they were before the tick.
type Before = Map<(usize, Slot), Vec<End>>;

impl Fold {
    /// Nothing known yet. `ends_max` bounds each host.
    pub fn new(lateness: Lateness, ends_max: u64) -> Self {
        Self {
            lateness,
            ends_max: usize::try_from(ends_max).unwrap_or(usize::MAX).max(1),
            hosts: Map::default(),
            due: BTreeMap::new(),
            actors: HashSet::default(),
            actors_swept: 0,
            evicted: 0,
        }
    }

    /// How many ends are kept.
    pub fn len(&self) -> usize {
        self.hosts.values().map(Host::len).sum()
    }

    /// True when no end is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many open ends were given up because a host had too many.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// All that was admitted at `tick`: what changed by it.
    pub fn advance(&mut self, tick: u64, told: Vec<HostTouches>) -> Changes {
        let mut changes = Changes::default();
        let mut by_host: Map<u64, Vec<HostTouches>> = Map::default();
        for told in told {
            by_host.entry(told.place.host_key).or_default().push(told);
        }
        for (key, told) in by_host {
            self.advance_host(key, told, &mut changes);
        }
        self.forget(tick);
        changes
    }

    fn advance_host(&mut self, key: u64, told: Vec<HostTouches>, changes: &mut Changes) {
        let Some(first) = told.first() else { return };
        let place = Arc::clone(&first.place);
        let mut host = self.hosts.remove(&key).unwrap_or_else(|| Host { place, boots: Vec::new() });
        let ends_before = host.boot_ends();
        for told in &told {
            host.boot_seen(told.boot, told.first_seen);
        }
        let mut before = host.views_of_moved_boots(&ends_before);
        for told in told {
            self.join(&mut host, told, &ends_before, &mut before);
        }
        let now = host.boot_ends();
        for ((boot, slot), old) in before {
            let new = host.views(boot, slot, now[boot]);
            let id = host.boots[boot].id;
            for end in &new {
                self.schedule(key, id, slot, end.closed);
            }
            if new.is_empty() {
                self.schedule(key, id, slot, Some(host.last(boot, slot)));
            }
            tell(old, new, changes);
        }
        if host.len() > self.ends_max {
            self.evicted += host.evict(self.ends_max, changes);
        }
        self.hosts.insert(key, host);
    }

    fn join(&mut self, host: &mut Host, told: HostTouches, ends_before: &[Option<i64>], before: &mut Before) {
        let boot = host.boot(told.boot);
        let actors: Vec<Arc<Actor>> = told.actors.into_iter().map(|actor| self.intern(actor)).collect();
        for touch in told.touches {
            let Some(slot) = slot_of(&touch) else { continue };
            let Some(actor) = actors.get(touch.actor as usize) else { continue };
            let implied = ends_before.get(boot).copied().flatten();
            before.entry((boot, slot)).or_insert_with(|| host.views(boot, slot, implied));
            host.join(boot, slot, touch, actor);
        }
    }

    /// One copy of every actor, however many sockets it has.
    fn intern(&mut self, actor: Arc<Actor>) -> Arc<Actor> {
        if self.actors.len() > 2 * self.actors_swept + 1024 {
            self.actors.retain(|actor| Arc::strong_count(actor) > 1);
            self.actors_swept = self.actors.len();
        }
        Arc::clone(self.actors.get_or_insert(actor))
    }

    fn schedule(&mut self, host: u64, boot: BootId, slot: Slot, closed: Option<i64>) {
        if let Some(closed) = closed {
            let tick = millis(closed).saturating_add(self.lateness.retention_ms).saturating_add(1);
            self.due.entry(tick).or_default().push((host, boot, slot));
        }
    }

    /// Drops what is closed and can no longer change. What moved since it was scheduled was scheduled again.
    fn forget(&mut self, tick: u64) {
        let horizon = tick.saturating_sub(self.lateness.retention_ms);
        while let Some(entry) = self.due.first_entry() {
            if *entry.key() > tick {
                break;
            }
            for (key, boot, slot) in entry.remove() {
                let Some(host) = self.hosts.get_mut(&key) else { continue };
                let Some(boot) = host.boots.iter().position(|known| known.id == boot) else { continue };
                host.forget(boot, slot, |closed| millis(closed) < horizon);
                let skew = self.lateness.skew_ms;
                host.forget_boots(|ended| millis(ended).saturating_add(skew) < horizon);
            }
        }
    }
}

impl Host {
    fn len(&self) -> usize {
        self.boots.iter().map(|boot| boot.ends.len() + boot.loose.len()).sum()
    }

    fn boot(&mut self, id: BootId) -> usize {
        self.boots.iter().position(|boot| boot.id == id).unwrap_or_else(|| {
            self.boots.push(Boot { id, start: i64::MAX, ends: Map::default(), loose: Map::default() });
            self.boots.len() - 1
        })
    }

    fn boot_seen(&mut self, id: BootId, time: i64) {
        let boot = self.boot(id);
        self.boots[boot].start = self.boots[boot].start.min(time);
    }

    /// When each boot was over: the start of the next one.
    fn boot_ends(&self) -> Vec<Option<i64>> {
        let later = |boot: &Boot| {
            let starts = self.boots.iter().filter(|next| (next.start, next.id) > (boot.start, boot.id));
            starts.map(|next| next.start).min()
        };
        self.boots.iter().map(later).collect()
    }

    /// Views, as they were, of the open ends of boots whose end moved.
    fn views_of_moved_boots(&self, ends_before: &[Option<i64>]) -> Before {
        let mut before = Before::default();
        let ends = self.boot_ends();
        for (boot, (was, is)) in ends_before.iter().zip(&ends).enumerate() {
            if was == is {
                continue;
            }
            let open = self.boots[boot].ends.iter().filter(|(_, end)| !end.ended_itself());
            let sockets = open.map(|(socket, _)| Slot::Socket(*socket));
            let loose = self.boots[boot].loose.keys().map(|group| Slot::Loose(*group));
            for slot in sockets.chain(loose) {
                before.insert((boot, slot), self.views(boot, slot, *was));
            }
        }
        before
    }

    fn views(&self, boot: usize, slot: Slot, implied: Option<i64>) -> Vec<End> {
        let known = &self.boots[boot];
        match slot {
            Slot::Socket(socket) => known.ends.get(&socket).and_then(|end| end.view(implied)).into_iter().collect(),
            Slot::Loose(group) => {
                let at = LooseAt { place: &self.place, boot: &known.id, group, implied };
                known.loose.get(&group).map_or_else(Vec::new, |loose| loose.views(&at))
            }
        }
    }

    /// Time of the last event of a slot.
    fn last(&self, boot: usize, slot: Slot) -> i64 {
        let known = &self.boots[boot];
        match slot {
            Slot::Socket(socket) => known.ends.get(&socket).map_or(i64::MIN, |end| end.last),
            Slot::Loose(group) => known.loose.get(&group).map_or(i64::MIN, Loose::last),
        }
    }

    fn join(&mut self, boot: usize, slot: Slot, touch: Touch, actor: &Arc<Actor>) {
        let known = &mut self.boots[boot];
        match slot {
            Slot::Socket(socket) => {
                let new = || EndState::new(EndKey::of_socket(&self.place, &known.id, socket));
                known.ends.entry(socket).or_insert_with(new).join(&touch, actor);
            }
            Slot::Loose(group) => known.loose.entry(group).or_default().add(touch, Arc::clone(actor)),
        }
    }

    fn forget(&mut self, boot: usize, slot: Slot, settled: impl Fn(i64) -> bool) {
        let implied = self.boot_ends()[boot];
        let known = &mut self.boots[boot];
        match slot {
            Slot::Socket(socket) => {
                let over = |end: &EndState| match end.closed(implied) {
                    Some(closed) => settled(closed),
                    None => end.view(implied).is_none() && settled(end.last),
                };
                if known.ends.get(&socket).is_some_and(over) {
                    known.ends.remove(&socket);
                }
            }
            Slot::Loose(group) => {
                let Some(loose) = known.loose.get_mut(&group) else { return };
                loose.forget(&LooseAt { place: &self.place, boot: &known.id, group, implied }, settled);
                if loose.is_empty() {
                    known.loose.remove(&group);
                }
            }
        }
    }

    /// Drops boots that are over, have no ends left and cannot get any.
    fn forget_boots(&mut self, settled: impl Fn(i64) -> bool) {
        if self.boots.len() > 1 {
            let ends = self.boot_ends();
            let mut ends = ends.iter();
            self.boots.retain(|boot| {
                let over = ends.next().copied().flatten().is_some_and(&settled);
                !(over && boot.ends.is_empty() && boot.loose.is_empty())
            });
        }
    }

    /// Gives up the slots that were silent for longest, an eighth of what is allowed. Returns how many.
    fn evict(&mut self, ends_max: usize, changes: &mut Changes) -> u64 {
        let ends = self.boot_ends();
        let mut slots: Vec<(i64, usize, Slot)> = Vec::new();
        for (boot, known) in self.boots.iter().enumerate() {
            slots.extend(known.ends.iter().map(|(socket, end)| (end.last, boot, Slot::Socket(*socket))));
            slots.extend(known.loose.iter().map(|(group, loose)| (loose.last(), boot, Slot::Loose(*group))));
        }
        slots.sort_unstable();
        slots.truncate(self.len() - (ends_max - ends_max / 8));
        for (last, boot, slot) in &slots {
            let old = self.views(*boot, *slot, ends[*boot]);
            let mut new = old.clone();
            new.iter_mut().for_each(|end| end.closed = end.closed.or(Some(*last)));
            tell(old, new, changes);
            match slot {
                Slot::Socket(socket) => drop(self.boots[*boot].ends.remove(socket)),
                Slot::Loose(group) => drop(self.boots[*boot].loose.remove(group)),
            }
        }
        slots.len() as u64
    }
}

/// Where an event belongs; `None` for one with neither cookie nor addresses.
fn slot_of(touch: &Touch) -> Option<Slot> {
    if touch.socket != 0 {
        return Some(Slot::Socket(touch.socket));
    }
    let side = touch.side.unwrap_or(Side::Client);
    touch.tuple.map(|tuple| Slot::Loose(LooseGroup { side, tuple }))
}

/// Tells the groups how a slot's ends changed.
fn tell(old: Vec<End>, new: Vec<End>, changes: &mut Changes) {
    for gone in &old {
        let kept = new.iter().find(|end| end.key == gone.key);
        let (isns, tuple) = (gone.isn_group(), gone.tuple_group());
        match isns {
            Some(group) if kept.is_none_or(|end| end.isn_group() != isns) => {
                changes.by_isns.push(Told { group, key: gone.key, end: None, nth: 0 });
            }
            None if kept.is_none_or(|end| end.isns.is_some() || end.tuple_group() != tuple) => {
                changes.by_tuple.push(Told { group: tuple, key: gone.key, end: None, nth: 0 });
            }
            _ => {}
        }
    }
    for end in new {
        if old.contains(&end) {
            continue;
        }
        let key = end.key;
        match end.isn_group() {
            Some(group) => changes.by_isns.push(Told { group, key, end: Some(Arc::new(end)), nth: 0 }),
            None => changes.by_tuple.push(Told { group: end.tuple_group(), key, end: Some(Arc::new(end)), nth: 0 }),
        }
    }
}
