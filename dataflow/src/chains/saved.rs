//! The chains in a checkpoint, by rule and key.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::key::KeyChains;
use super::row::ChainAlert;
use super::spot::route;
use super::state::{Chains, Key};
use crate::checkpoint::{Share, State, encode};

/// Written as a tuple of the same parts.
#[derive(Deserialize)]
pub(crate) struct Saved {
    keys: BTreeMap<Key, KeyChains>,
    withdrawn: BTreeMap<u64, Vec<(u64, ChainAlert)>>,
    evicted: u64,
}

impl State for Chains {
    type Saved = Saved;

    fn save(&self) -> Vec<u8> {
        encode(&(&self.keys, &self.withdrawn, self.evicted))
    }

    fn load(&mut self, parts: Vec<Saved>, share: Share) {
        for Saved { keys, withdrawn, evicted } in parts {
            for (key, known) in keys.into_iter().filter(|((rule, key), _)| share.routes(route(*rule, key))) {
                if let Some(due) = known.due {
                    self.due.entry(due).or_default().insert(key.clone());
                }
                self.size.add(&known);
                self.keys.insert(key, known);
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
