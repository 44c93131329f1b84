//! Ends that know their sequence numbers meet here: NAT and overlapping private addresses do not fool them.
//!
//! Two ends that match are a connection; all others are passed on, to meet by address. A group is forgotten when all of its
//! ends are settled; then nothing admitted can belong to it any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::end::{End, EndKey, IsnGroup, Lateness, Told, TupleGroup};
use super::pairs::{by_isns, overlap};
use super::row::{Connection, Ends, changes};

/// The groups by sequence numbers that one worker keeps.
#[derive(Debug)]
pub struct Meet {
    lateness: Lateness,
    pub(super) groups: HashMap<IsnGroup, Vec<Arc<End>>, FixedState>,
    pub(super) due: BTreeMap<u64, Vec<IsnGroup>>,
}

/// What changed in one tick.
#[derive(Debug, Default)]
pub struct Met {
    /// Connections with both ends seen.
    pub rows: Vec<(Connection, i64)>,
    /// Ends without a partner here.
    pub single: Vec<Told<TupleGroup>>,
}

/// What a group's ends make.
struct Outcome<'a> {
    both: Vec<Connection>,
    single: Vec<(u32, &'a Arc<End>)>,
}

impl Meet {
    /// Nothing known yet.
    pub fn new(lateness: Lateness) -> Self {
        Self { lateness, groups: HashMap::default(), due: BTreeMap::new() }
    }

    /// How many groups are kept.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// True when no group is kept.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// All that was told at `tick`: what changed by it.
    pub fn advance(&mut self, tick: u64, told: Vec<Told<IsnGroup>>) -> Met {
        let mut met = Met::default();
        let mut by_group: HashMap<IsnGroup, Vec<Told<IsnGroup>>, FixedState> = HashMap::default();
        for told in told {
            by_group.entry(told.group).or_default().push(told);
        }
        for (group, told) in by_group {
            let before = self.groups.remove(&group).unwrap_or_default();
            let mut after = before.clone();
            for told in told {
                if let Some(settles) = told.end.as_ref().and_then(|end| end.settles_at(self.lateness)) {
                    self.due.entry(settles.saturating_add(1)).or_default().push(group);
                }
                put(&mut after, told.key, told.end);
            }
            compare(&outcome(&before, self.lateness), &outcome(&after, self.lateness), &mut met);
            if !after.is_empty() {
                self.groups.insert(group, after);
            }
        }
        self.forget(tick);
        met
    }

    fn forget(&mut self, tick: u64) {
        while let Some(entry) = self.due.first_entry() {
            if *entry.key() > tick {
                break;
            }
            for group in entry.remove() {
                let over = |end: &Arc<End>| end.settles_at(self.lateness).is_some_and(|settles| settles < tick);
                if self.groups.get(&group).is_some_and(|ends| ends.iter().all(over)) {
                    self.groups.remove(&group);
                }
            }
        }
    }
}

/// Sets or takes away an end; ends stay sorted by key.
fn put(ends: &mut Vec<Arc<End>>, key: EndKey, end: Option<Arc<End>>) {
    match (ends.binary_search_by_key(&key, |known| known.key), end) {
        (Ok(place), Some(end)) => ends[place] = end,
        (Ok(place), None) => drop(ends.remove(place)),
        (Err(place), Some(end)) => ends.insert(place, end),
        (Err(_), None) => {}
    }
}

fn outcome(ends: &[Arc<End>], lateness: Lateness) -> Outcome<'_> {
    let pairs = by_isns(ends, lateness);
    let alone = |place: &usize| !pairs.iter().any(|pair| pair.client == *place || pair.server == *place);
    let singles: Vec<usize> = (0..ends.len()).filter(alone).collect();
    // In a collision each connection has a name of its own: numbered by side among ends of the same time, which is settled when
    // the end is.
    let begins = |place: usize| (ends[place].isns_since, ends[place].key);
    let nth = |place: usize| {
        let alike = |other: &usize| ends[*other].side == ends[place].side && begins(*other) < begins(place);
        let near = |other: &usize| overlap(&ends[place], &ends[*other], lateness, |end| end.isns_since);
        (0..ends.len()).filter(alike).filter(near).count() as u32
    };
    let both = pairs.iter().map(|pair| {
        let ends = Ends::Both { client: &ends[pair.client], server: &ends[pair.server] };
        Connection::new(ends, nth(pair.client), lateness)
    });
    Outcome { both: both.collect(), single: singles.iter().map(|place| (nth(*place), &ends[*place])).collect() }
}

fn compare(before: &Outcome<'_>, after: &Outcome<'_>, met: &mut Met) {
    changes(before.both.clone(), after.both.clone(), &mut met.rows);
    for (_, gone) in &before.single {
        let group = gone.tuple_group();
        let stays = after.single.iter().any(|(_, end)| end.key == gone.key && end.tuple_group() == group);
        if !stays {
            met.single.push(Told { group, key: gone.key, end: None, nth: 0 });
        }
    }
    for (nth, end) in &after.single {
        if !before.single.contains(&(*nth, end)) {
            met.single.push(Told { group: end.tuple_group(), key: end.key, end: Some(Arc::clone(end)), nth: *nth });
        }
    }
}
