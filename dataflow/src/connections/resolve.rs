//! The rest meets by address: ends without sequence numbers, and those whose partner's are not known.
//!
//! Exactly one candidate makes a connection; else an end stands alone, and the missing one is named by its address where one host
//! claims it. When an address becomes known later, unsettled rows are corrected. A cluster of possible partners is forgotten when
//! all of it is settled.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};
use serde::{Deserialize, Serialize};

use super::address::{AddressFact, Addresses};
use super::end::{Actor, End, Lateness, Side, Told, TupleGroup};
use super::pairs::{by_tuple, settled};
use super::row::{Connection, Ends, changes};
use crate::checkpoint::shared;

/// The groups by address that one worker keeps, and everybody's addresses.
#[derive(Debug)]
pub struct Resolve {
    lateness: Lateness,
    pub(super) groups: HashMap<TupleGroup, Vec<Member>, FixedState>,
    /// Who asked for an address.
    pub(super) asked: HashMap<(u64, IpAddr), HashSet<TupleGroup, FixedState>, FixedState>,
    pub(super) addresses: Addresses,
    pub(super) due: BTreeMap<u64, Vec<TupleGroup>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) end: Arc<End>,
    nth: u32,
    /// The other end, by its address.
    #[serde(with = "shared::maybe")]
    missing: Option<Arc<Actor>>,
}

impl Resolve {
    /// Nothing known yet.
    pub fn new(lateness: Lateness) -> Self {
        Self {
            lateness,
            groups: HashMap::default(),
            asked: HashMap::default(),
            addresses: Addresses::default(),
            due: BTreeMap::new(),
        }
    }

    /// How many groups are kept.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// True when no group is kept.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// All that was told at `tick`: the rows that changed by it.
    pub fn advance(&mut self, tick: u64, told: Vec<Told<TupleGroup>>, facts: Vec<AddressFact>) -> Vec<(Connection, i64)> {
        let mut touched: HashMap<TupleGroup, Vec<Told<TupleGroup>>, FixedState> = HashMap::default();
        for told in told {
            touched.entry(told.group).or_default().push(told);
        }
        let moved: BTreeSet<_> = facts.into_iter().flat_map(|fact| self.addresses.learn(fact)).collect();
        for group in moved.iter().filter_map(|address| self.asked.get(address)).flatten() {
            touched.entry(*group).or_default();
        }
        let mut rows = Vec::new();
        for (group, told) in touched {
            self.advance_group(tick, group, told, &mut rows);
        }
        self.forget(tick);
        rows
    }

    fn advance_group(
        &mut self,
        tick: u64,
        group: TupleGroup,
        mut told: Vec<Told<TupleGroup>>,
        rows: &mut Vec<(Connection, i64)>,
    ) {
        let mut members = self.groups.remove(&group).unwrap_or_default();
        let before = self.rows(&members);
        // An end that changes its way here is told gone by one sender and there by another, in any order.
        told.sort_by_key(|told| (told.end.is_some(), told.key));
        for told in told {
            if let Some(end) = &told.end {
                self.asked.entry((group.tenant, missing_ip(end))).or_default().insert(group);
                if let Some(settles) = end.settles_at(self.lateness) {
                    self.due.entry(settles.saturating_add(1)).or_default().push(group);
                }
            }
            put(&mut members, told);
        }
        for member in &mut members {
            let open = member.end.settles_at(self.lateness).is_none_or(|settles| settles >= tick);
            if open {
                member.missing = self.missing(&member.end, member.missing.take());
            }
        }
        changes(before, self.rows(&members), rows);
        self.keep(group, members);
    }

    fn keep(&mut self, group: TupleGroup, members: Vec<Member>) {
        if members.is_empty() {
            for ip in [group.tuple.src, group.tuple.dst] {
                let address = (group.tenant, ip);
                if let Some(groups) = self.asked.get_mut(&address) {
                    groups.remove(&group);
                    if groups.is_empty() {
                        self.asked.remove(&address);
                    }
                }
            }
        } else {
            self.groups.insert(group, members);
        }
    }

    fn rows(&self, members: &[Member]) -> Vec<Connection> {
        let ends: Vec<Arc<End>> = members.iter().map(|member| Arc::clone(&member.end)).collect();
        let pairs = by_tuple(&ends, self.lateness);
        let alone = |place: &usize| !pairs.iter().any(|pair| pair.client == *place || pair.server == *place);
        let singles = (0..members.len()).filter(alone).map(|place| {
            let Member { end, nth, missing } = &members[place];
            let missing = missing.as_ref();
            let ends = match end.side {
                Side::Client => Ends::Src { client: end, missing },
                Side::Server => Ends::Dst { server: end, missing },
            };
            Connection::new(ends, *nth, self.lateness)
        });
        let both = pairs.iter().map(|pair| {
            let (client, server) = (&members[pair.client], &members[pair.server]);
            let nth = if client.end.isns.is_some() { client.nth } else { server.nth };
            Connection::new(Ends::Both { client: &client.end, server: &server.end }, nth, self.lateness)
        });
        singles.chain(both).collect()
    }

    /// Who is at the other end of `end`, by its address. Keeps `known` where it is the same.
    fn missing(&self, end: &End, known: Option<Arc<Actor>>) -> Option<Arc<Actor>> {
        let place = self.addresses.owner(missing_ip(end), &end.actor.place, end.closed, self.lateness)?;
        known.filter(|known| known.place == place).or_else(|| Some(Arc::new(Actor::nobody(place))))
    }

    fn forget(&mut self, tick: u64) {
        let mut moved = false;
        while let Some(entry) = self.due.first_entry() {
            if *entry.key() > tick {
                break;
            }
            moved = true;
            for group in entry.remove() {
                let Some(mut members) = self.groups.remove(&group) else { continue };
                let ends: Vec<Arc<End>> = members.iter().map(|member| Arc::clone(&member.end)).collect();
                let over = settled(&ends, self.lateness, |end| end.tuple_since, tick);
                let mut over = over.iter();
                members.retain(|_| over.next() != Some(&true));
                self.keep(group, members);
            }
        }
        if moved {
            self.addresses.forget(tick, self.lateness);
        }
    }
}

/// The address of the end that `end` does not see.
pub(super) fn missing_ip(end: &End) -> IpAddr {
    match end.side {
        Side::Client => end.tuple.dst,
        Side::Server => end.tuple.src,
    }
}

/// Sets or takes away an end; members stay sorted by key.
fn put(members: &mut Vec<Member>, told: Told<TupleGroup>) {
    match (members.binary_search_by_key(&told.key, |member| member.end.key), told.end) {
        (Ok(place), Some(end)) => (members[place].end, members[place].nth) = (end, told.nth),
        (Ok(place), None) => drop(members.remove(place)),
        (Err(place), Some(end)) => members.insert(place, Member { end, nth: told.nth, missing: None }),
        (Err(_), None) => {}
    }
}
