//! How many containers an agent may name anew in a minute: events of more than that are told under one name, [`OTHER`].
//!
//! Views keep state per app and container, so an agent that makes up names would fill every worker's memory. What is folded keeps its
//! events, sums and connections; it only loses its own name, is counted among the losses and stands in the record as it was sent.
//!
//! The minutes are the chain's, and frames come in its order: so all workers, and every later replay, fold the same.

use std::collections::BTreeMap;
use std::hash::BuildHasher as _;

use foldhash::fast::FixedState;
use serde::{Deserialize, Serialize};
use weir_schema::{Batch, Column};

/// What stands for all containers beyond the limit.
pub(crate) const OTHER: &str = "__other__";

/// How many new names, and how long a name is known after it was last told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyLimits {
    pub(crate) new_per_minute_max: u64,
    pub(crate) known_minutes: u64,
}

/// The containers that one agent has named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Keys {
    /// The minute of the latest frame, and the names that were new in it.
    minute: u64,
    new: u64,
    /// Last minute in which a name was told, by its hash.
    known: BTreeMap<u64, u64>,
}

impl Keys {
    /// Folds the containers of `batch` that are beyond the limit; returns their places in its table.
    pub(crate) fn fold(&mut self, batch: &mut Batch, tick_ms: u64, limits: KeyLimits) -> Vec<u32> {
        let minute = tick_ms / 60_000;
        if minute != self.minute {
            (self.minute, self.new) = (minute, 0);
            self.known.retain(|_, last| *last + limits.known_minutes >= minute);
        }
        let beyond: Vec<u32> =
            (0..batch.containers.rows() as u32).filter(|row| !self.admits(batch, *row as usize, limits)).collect();
        fold(batch, &beyond);
        beyond
    }

    fn admits(&mut self, batch: &Batch, row: usize, limits: KeyLimits) -> bool {
        let text = |column| batch.containers.codes(column).map_or("", |codes| batch.strings.text(codes[row]));
        let key = (text(Column::App), text(Column::ContainerId));
        if key == ("", "") {
            return true;
        }
        let hash = FixedState::default().hash_one(key);
        if let Some(last) = self.known.get_mut(&hash) {
            *last = self.minute;
            return true;
        }
        let room = self.new < limits.new_per_minute_max;
        if room {
            self.new += 1;
            self.known.insert(hash, self.minute);
        }
        room
    }
}

/// Gives these containers of a batch the one name.
pub(crate) fn fold(batch: &mut Batch, containers: &[u32]) {
    batch.rename_containers(containers, OTHER);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use weir_schema::{BatchBuilder, Container, Decoder, Epoch, Event, Fields, Host, Kind, Lane, Seq};

    use super::*;

    const LIMITS: KeyLimits = KeyLimits { new_per_minute_max: 3, known_minutes: 2 };

    fn batch(containers: &[u8]) -> Batch {
        let host = Arc::new(Host { host: "h".into(), ..Host::default() });
        let mut builder = BatchBuilder::new(host, Epoch(1), Lane::File, Seq(0));
        for number in containers {
            let (id, app) = (format!("id-{number}"), format!("app-{number}"));
            let container = Container {
                container_id: Some(id.as_str().into()),
                app: Some(app.as_str().into()),
                image: Some("image".into()),
                ..Container::default()
            };
            let fields = Fields::default();
            let event = Event { time: 1, kind: Kind::Open, process: None, container: Some(Arc::new(container)), fields };
            builder.push(&event).unwrap();
        }
        builder.finish().unwrap().decode(&mut Decoder::default()).unwrap()
    }

    fn told(batch: &Batch) -> Vec<String> {
        let container = |event: Event| event.container.unwrap();
        let texts = |container: Arc<Container>| {
            let text = |text: &Option<weir_schema::Text>| text.as_deref().unwrap_or("-").to_owned();
            format!("{} {} {}", text(&container.container_id), text(&container.app), text(&container.image))
        };
        batch.events().into_iter().map(|event| texts(container(event))).collect()
    }

    #[test]
    fn what_is_beyond_has_one_name_and_no_other_marks() {
        let mut keys = Keys::default();
        let mut first = batch(&[1, 2, 3, 4, 1, 5]);
        assert_eq!(keys.fold(&mut first, 60_000, LIMITS), [3, 4]);
        let other = "__other__ __other__ -";
        assert_eq!(told(&first), ["id-1 app-1 image", "id-2 app-2 image", "id-3 app-3 image", other, "id-1 app-1 image", other]);
        // Known names stay, and a new minute has room again.
        let mut second = batch(&[4, 2]);
        assert_eq!(keys.fold(&mut second, 119_999, LIMITS), [0]);
        assert!(keys.fold(&mut batch(&[4, 2]), 120_000, LIMITS).is_empty());
        // A name that was not told for long is new again.
        assert_eq!(keys.fold(&mut batch(&[6, 7, 8, 1, 2, 4]), 300_000, LIMITS), [3, 4, 5]);
    }

    proptest! {
        #[test]
        fn at_most_so_many_names_a_minute_and_a_saved_state_goes_on(
            frames in prop::collection::vec((prop::collection::vec(0_u8..30, 1..8), 0_u64..40_000), 1..60),
            at in 0_usize..60,
        ) {
            let mut keys = Keys::default();
            let (mut tick, mut known) = (0, 0);
            for (number, (containers, later)) in frames.iter().enumerate() {
                if number == at {
                    keys = postcard::from_bytes(&postcard::to_allocvec(&keys).unwrap()).unwrap();
                }
                tick += later;
                let mut folded = batch(containers);
                let rows = keys.fold(&mut folded, tick, LIMITS);
                prop_assert!(keys.new <= LIMITS.new_per_minute_max && keys.known.len() as u64 <= known + keys.new);
                prop_assert!(rows.is_empty() || keys.new == LIMITS.new_per_minute_max);
                known = keys.known.len() as u64;
                let others = told(&folded).iter().filter(|told| told.starts_with(OTHER)).count();
                prop_assert_eq!(others > 0, !rows.is_empty());
            }
        }
    }
}
