//! The connections' states in a checkpoint. What many ends share is written once per state, see `checkpoint/shared.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use weir_schema::BootId;

use super::address::AddressFact;
use super::end::{End, IsnGroup, TupleGroup};
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
        for SavedFold { hosts, due, evicted } in parts {
            self.hosts.extend(hosts.into_iter().filter(|(key, _)| share.routes(*key)));
            take_due(&mut self.due, due, |(key, ..)| share.routes(*key));
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
        for SavedMeet { groups, due } in parts {
            self.groups.extend(groups.into_iter().filter(|(group, _)| share.routes(group.route())));
            take_due(&mut self.due, due, |group| share.routes(group.route()));
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
        for (place, SavedResolve { groups, due, facts }) in parts.into_iter().enumerate() {
            for (group, members) in groups.into_iter().filter(|(group, _)| share.routes(group.route())) {
                for member in &members {
                    self.asked.entry((group.tenant, missing_ip(&member.end))).or_default().insert(group);
                }
                self.groups.insert(group, members);
            }
            take_due(&mut self.due, due, |group| share.routes(group.route()));
            for fact in facts.into_iter().filter(|_| place == 0) {
                self.addresses.learn(fact);
            }
        }
    }
}

/// Takes up those calendar entries whose subject comes to this worker.
fn take_due<T>(due: &mut BTreeMap<u64, Vec<T>>, saved: BTreeMap<u64, Vec<T>>, is_ours: impl Fn(&T) -> bool) {
    for (tick, subjects) in saved {
        let ours: Vec<T> = subjects.into_iter().filter(&is_ours).collect();
        if !ours.is_empty() {
            due.entry(tick).or_default().extend(ours);
        }
    }
}
