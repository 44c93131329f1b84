//! The groups in a checkpoint, by correlation.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::group::Group;
use super::row::MatchAlert;
use super::spot::route;
use super::state::{Correlations, Key};
use crate::checkpoint::{Share, State, encode};

/// Written as a tuple of the same parts.
#[derive(Deserialize)]
pub(crate) struct Saved {
    groups: BTreeMap<Key, Group>,
    withdrawn: BTreeMap<u64, Vec<(u64, MatchAlert)>>,
    evicted: u64,
}

impl State for Correlations {
    type Saved = Saved;

    fn save(&self) -> Vec<u8> {
        encode(&(&self.groups, &self.withdrawn, self.evicted))
    }

    fn load(&mut self, parts: Vec<Saved>, share: Share) {
        for Saved { groups, withdrawn, evicted } in parts {
            for (key, known) in groups.into_iter().filter(|((version, group), _)| share.routes(route(*version, group))) {
                if let Some(due) = known.due {
                    self.due.entry(due).or_default().insert(key.clone());
                }
                self.size.add(&known);
                self.groups.insert(key, known);
            }
            for (moment, alerts) in withdrawn {
                let ours: Vec<_> = alerts.into_iter().filter(|(route, _)| share.routes(*route)).collect();
                if !ours.is_empty() {
                    self.withdrawn.entry(moment).or_default().extend(ours);
                }
            }
            if share.is_first() {
                self.evicted += evicted;
            }
        }
    }
}
