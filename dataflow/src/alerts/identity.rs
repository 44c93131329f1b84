//! What is known of containers: an agent that sees a process before the runtime has described its container says the image and the names
//! later, or never with the same event.
//!
//! The identity of a container is, per column, what the least (time, event id) of its admitted rows says that say anything: so it is a
//! function of the set of rows, whatever their order. Rows of `samples` count, too: they come every second. `app` is none of it, for
//! processes of one container may be of several.
//!
//! An identity only fills in what an event does not say.

use std::collections::BTreeMap;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use weir_schema::{Batch, Cell, Column, Container, Event, EventIds, Seq, Text};

use super::group::Moment;
use super::hits::Admitted;
use super::{CONTAINERS_PER_HOST_MAX, KEEP_MS};
use crate::source::keys::OTHER;
use crate::source::touches::rows;

/// The columns of an identity.
const COLUMNS: [Column; 5] = [Column::ContainerName, Column::Image, Column::Namespace, Column::Pod, Column::Workload];

/// What rows of one frame say of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerTold {
    pub(crate) id: Text,
    /// The least of the rows.
    pub(crate) moment: Moment,
    /// In the order of `COLUMNS`.
    pub(crate) columns: [Option<Text>; 5],
}

/// What this worker has told lately: the same again says nothing.
#[derive(Debug, Default)]
pub(crate) struct Told(HashMap<u64, (Moment, i64), FixedState>);

impl Told {
    /// The containers that admitted rows say something new of.
    pub(crate) fn news(&mut self, of: Admitted<'_>) -> Vec<ContainerTold> {
        let Admitted { identity, place, batch, picks, .. } = of;
        if batch.containers.rows() == 0 {
            return Vec::new();
        }
        let mut ids = EventIds::new(identity, batch.header.epoch, batch.header.lane);
        let mut least: Vec<Option<(i64, Seq)>> = vec![None; batch.containers.rows()];
        for (at, pick) in picks {
            let section = &batch.sections[*at];
            if section.container_rows.is_empty() {
                continue;
            }
            for row in rows(section, pick) {
                let Some(least) = (section.container_rows[row] as usize).checked_sub(1).and_then(|at| least.get_mut(at)) else {
                    continue;
                };
                let (time, seq) = (section.times[row], Seq(section.first_seq.0 + row as u64));
                let is_less =
                    least.is_none_or(|(known, other)| time < known || (time == known && ids.id(seq).0 < ids.id(other).0));
                if is_less {
                    *least = Some((time, seq));
                }
            }
        }
        let mut news = Vec::new();
        for (row, least) in least.into_iter().enumerate() {
            let Some((time, seq)) = least else { continue };
            let Some((id, columns)) = stated(batch, row) else { continue };
            let moment = (time, ids.id(seq).0);
            let key = FixedState::default().hash_one((place.host_key, id, &columns));
            if self.is_new(key, moment) {
                let columns = columns.map(|text| text.map(Into::into));
                news.push(ContainerTold { id: id.into(), moment, columns });
            }
        }
        news
    }

    fn is_new(&mut self, key: u64, moment: Moment) -> bool {
        if self.0.len() >= TOLD_MAX {
            // What is told again changes nothing.
            self.0.clear();
        }
        let hour = hour(moment.0);
        match self.0.get_mut(&key) {
            None => self.0.insert(key, (moment, hour)).is_none(),
            Some((least, latest)) => {
                let is_new = moment < *least || hour > *latest;
                (*least, *latest) = ((*least).min(moment), (*latest).max(hour));
                is_new
            }
        }
    }
}

/// A container of a batch that has an id and of which something is known.
fn stated(batch: &Batch, row: usize) -> Option<(&str, [Option<&str>; 5])> {
    let text = |column| batch.containers.codes(column).map_or("", |codes| batch.strings.text(codes[row]));
    let id = text(Column::ContainerId);
    let columns = COLUMNS.map(|column| Some(text(column)).filter(|text| !text.is_empty()));
    (!id.is_empty() && id != OTHER && columns.iter().any(Option::is_some)).then_some((id, columns))
}

/// The container of an event, if it has an id and something of it is unknown.
pub(crate) fn asks(event: &Event) -> Option<Text> {
    let container = event.container.as_deref()?;
    let id = container.container_id.as_ref().filter(|id| ***id != *OTHER)?;
    let known = known(container);
    known.iter().any(Option::is_none).then(|| Text::clone(id))
}

fn known(container: &Container) -> [Option<&Text>; 5] {
    let Container { container_name, image, namespace, pod, workload, .. } = container;
    [container_name, image, namespace, pod, workload].map(Option::as_ref)
}

/// The containers of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identities(BTreeMap<Text, Identity>);

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    columns: [Option<(Moment, Text)>; 5],
    /// The hour in which it was told last: whole hours, so that what is told again within one changes nothing.
    last_hour: i64,
}

impl Identities {
    /// Takes up what was told; true if something is other than before.
    pub(crate) fn take(&mut self, told: ContainerTold) -> bool {
        let ContainerTold { id, moment, columns } = told;
        let identity = self.0.entry(id).or_default();
        identity.last_hour = identity.last_hour.max(hour(moment.0));
        let mut changed = false;
        for (known, text) in identity.columns.iter_mut().zip(columns) {
            let Some(text) = text else { continue };
            let is_less = known.as_ref().is_none_or(|(least, _)| moment < *least);
            if is_less {
                changed |= known.as_ref().is_none_or(|(_, known)| *known != text);
                *known = Some((moment, text));
            }
        }
        changed
    }

    /// The event with what is known of its container filled in; `None` where that is nothing more.
    pub(crate) fn complete(&self, told: &Event) -> Option<Event> {
        let container = told.container.as_deref()?;
        let identity = self.0.get(container.container_id.as_ref()?)?;
        let mut full = container.clone();
        let mut is_more = false;
        for ((known, column), stated) in known(container).into_iter().zip(COLUMNS).zip(&identity.columns) {
            if let (None, Some((_, text))) = (known, stated) {
                is_more |= full.set(column, Cell::Text(text));
            }
        }
        is_more.then(|| Event { container: Some(Arc::new(full)), ..told.clone() })
    }

    /// Whether anything is known of a container.
    pub(crate) fn has(&self, id: &Text) -> bool {
        self.0.contains_key(id)
    }

    /// Lets go what was not told for long and nobody asks for, and the longest untold of too many; how many of these there were.
    pub(crate) fn forget(&mut self, tick: u64, is_asked: impl Fn(&Text) -> bool) -> u64 {
        self.0.retain(|id, identity| expiry(identity.last_hour) > tick || is_asked(id));
        let mut dropped = 0;
        while self.0.len() > CONTAINERS_PER_HOST_MAX {
            let oldest = self.0.iter().min_by_key(|(id, identity)| (identity.last_hour, *id)).map(|(id, _)| Text::clone(id));
            oldest.iter().for_each(|id| _ = self.0.remove(id));
            dropped += 1;
        }
        dropped
    }

    /// When the last of them may be let go.
    pub(crate) fn due(&self) -> Option<u64> {
        self.0.values().map(|identity| expiry(identity.last_hour)).max()
    }

    /// Whether nothing is known of any.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn hour(time: i64) -> i64 {
    time.div_euclid(NS_PER_HOUR)
}

/// As long as alerts, from the end of its last hour.
fn expiry(last_hour: i64) -> u64 {
    let end_ms = last_hour.saturating_add(1).saturating_mul(NS_PER_HOUR / 1_000_000);
    u64::try_from(end_ms).unwrap_or(0).saturating_add(KEEP_MS)
}

const NS_PER_HOUR: i64 = 3_600_000_000_000;
/// Containers whose telling is remembered, some bytes each.
const TOLD_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(id: u8, time: i64, columns: [u8; 5]) -> ContainerTold {
        let columns = columns.map(|text| (text > 0).then(|| text.to_string().into()));
        ContainerTold { id: format!("c{id}").into(), moment: (time, [id; 16]), columns }
    }

    fn event(image: Option<&str>) -> Event {
        let container = Container { container_id: Some("c1".into()), image: image.map(Into::into), ..Container::default() };
        Event { container: Some(Arc::new(container)), ..Event::default() }
    }

    #[test]
    fn an_identity_fills_in_what_an_event_does_not_say() {
        let mut known = Identities::default();
        assert_eq!(known.complete(&event(None)), None);
        assert!(known.take(told(1, 5, [0, 7, 8, 0, 0])));
        assert!(!known.take(told(1, 6, [0, 9, 0, 0, 0])), "the first word holds");
        let full = known.complete(&event(None)).unwrap().container.unwrap();
        assert_eq!((full.image.as_deref(), full.namespace.as_deref(), full.pod.as_deref()), (Some("7"), Some("8"), None));
        let own = known.complete(&event(Some("own"))).unwrap().container.unwrap();
        assert_eq!((own.image.as_deref(), own.namespace.as_deref()), (Some("own"), Some("8")));
        assert_eq!(known.complete(&Event::default()), None);
        assert!(asks(&event(None)).is_some() && asks(&Event::default()).is_none());
        // What somebody asks for stays.
        let late = known.due().unwrap();
        known.forget(late, |_| true);
        assert!(!known.is_empty());
        known.forget(late, |_| false);
        assert!(known.is_empty());
    }

    proptest! {
        #[test]
        fn the_order_of_words_changes_nothing(
            words in prop::collection::vec((0..3_u8, 0..50_i64, prop::array::uniform5(0..3_u8)), 1..30),
            seed in any::<u64>(),
        ) {
            let mut seen = std::collections::BTreeSet::new();
            let words: Vec<_> = words.into_iter().filter(|(id, time, _)| seen.insert((*id, *time))).collect();
            let mut orders = [Identities::default(), Identities::default()];
            words.iter().for_each(|(id, time, columns)| _ = orders[0].take(told(*id, *time, *columns)));
            let mut other: Vec<_> = words.iter().enumerate().collect();
            other.sort_by_key(|(place, _)| xxhash_rust::xxh3::xxh3_64_with_seed(&place.to_le_bytes(), seed));
            other.iter().for_each(|(_, (id, time, columns))| _ = orders[1].take(told(*id, *time, *columns)));
            prop_assert_eq!(&orders[0], &orders[1]);
        }
    }
}
