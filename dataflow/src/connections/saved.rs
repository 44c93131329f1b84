//! The connections' states in a checkpoint. Equal actors are one again after it is taken up.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashSet;
use serde::Deserialize;
use weir_schema::BootId;

use super::address::AddressFact;
use super::end::{Actor, End, IsnGroup, Place, TupleGroup};
use super::fold::{Fold, Host, Slot};
use super::meet::Meet;
use super::resolve::{Member, Resolve, missing_ip};
use crate::checkpoint::{Share, State, encode};

/// Written as a tuple of the same parts.
#[derive(Deserialize)]
pub(crate) struct SavedFold {
    hosts: Vec<(u64, Host)>,
    due: BTreeMap<u64, Vec<(u64, BootId, Slot)>>,
    evicted: u64,
}

impl State for Fold {
    type Saved = SavedFold;

    fn save(&self) -> Vec<u8> {
        encode(&(self.hosts.iter().collect::<Vec<_>>(), &self.due, self.evicted))
    }

    fn load(&mut self, parts: Vec<SavedFold>, share: Share) {
        let mut places = One::default();
        for SavedFold { hosts, due, evicted } in parts {
            for (key, mut host) in hosts.into_iter().filter(|(key, _)| share.routes(*key)) {
                host.share(&mut |actor| {
                    let actor = places.actor(actor);
                    self.intern(actor)
                });
                self.hosts.insert(key, host);
            }
            for (tick, slots) in due {
                let ours: Vec<_> = slots.into_iter().filter(|(key, ..)| share.routes(*key)).collect();
                if !ours.is_empty() {
                    self.due.entry(tick).or_default().extend(ours);
                }
            }
            if share.is_first() {
                self.evicted += evicted;
            }
        }
    }
}

/// Written as a tuple of the same parts.
#[derive(Deserialize)]
pub(crate) struct SavedMeet {
    groups: Vec<(IsnGroup, Vec<Arc<End>>)>,
    due: BTreeMap<u64, Vec<IsnGroup>>,
}

impl State for Meet {
    type Saved = SavedMeet;

    fn save(&self) -> Vec<u8> {
        encode(&(self.groups.iter().collect::<Vec<_>>(), &self.due))
    }

    fn load(&mut self, parts: Vec<SavedMeet>, share: Share) {
        let mut one = One::default();
        for SavedMeet { groups, due } in parts {
            for (group, ends) in groups.into_iter().filter(|(group, _)| share.routes(group.route())) {
                self.groups.insert(group, ends.into_iter().map(|end| one.end(end)).collect());
            }
            for (tick, groups) in due {
                let ours: Vec<_> = groups.into_iter().filter(|group| share.routes(group.route())).collect();
                if !ours.is_empty() {
                    self.due.entry(tick).or_default().extend(ours);
                }
            }
        }
    }
}

/// Written as a tuple of the same parts.
#[derive(Deserialize)]
pub(crate) struct SavedResolve {
    groups: Vec<(TupleGroup, Vec<Member>)>,
    due: BTreeMap<u64, Vec<TupleGroup>>,
    /// Every worker has all of them.
    facts: Vec<AddressFact>,
}

impl State for Resolve {
    type Saved = SavedResolve;

    fn save(&self) -> Vec<u8> {
        encode(&(self.groups.iter().collect::<Vec<_>>(), &self.due, self.addresses.facts()))
    }

    fn load(&mut self, parts: Vec<SavedResolve>, share: Share) {
        let mut one = One::default();
        for (place, SavedResolve { groups, due, facts }) in parts.into_iter().enumerate() {
            for (group, mut members) in groups.into_iter().filter(|(group, _)| share.routes(group.route())) {
                for member in &mut members {
                    member.end = one.end(Arc::clone(&member.end));
                    member.missing = member.missing.take().map(|missing| one.actor(missing));
                    self.asked.entry((group.tenant, missing_ip(&member.end))).or_default().insert(group);
                }
                self.groups.insert(group, members);
            }
            for (tick, groups) in due {
                let ours: Vec<_> = groups.into_iter().filter(|group| share.routes(group.route())).collect();
                if !ours.is_empty() {
                    self.due.entry(tick).or_default().extend(ours);
                }
            }
            for fact in facts.into_iter().filter(|_| place == 0) {
                self.addresses.learn(fact);
            }
        }
    }
}

/// One copy of equal actors and places.
#[derive(Default)]
struct One {
    actors: HashSet<Arc<Actor>, FixedState>,
    places: HashSet<Arc<Place>, FixedState>,
}

impl One {
    fn actor(&mut self, actor: Arc<Actor>) -> Arc<Actor> {
        if let Some(known) = self.actors.get(&actor) {
            return Arc::clone(known);
        }
        let mut actor = Arc::unwrap_or_clone(actor);
        actor.place = Arc::clone(self.places.get_or_insert(actor.place));
        Arc::clone(self.actors.get_or_insert(Arc::new(actor)))
    }

    fn end(&mut self, end: Arc<End>) -> Arc<End> {
        let mut end = Arc::unwrap_or_clone(end);
        end.actor = self.actor(end.actor);
        Arc::new(end)
    }
}
