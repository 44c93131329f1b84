//! The alerts in a checkpoint, by host.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::groups::Groups;
use super::host::{Host, Lost};
use crate::checkpoint::{Share, State, encode};

/// Written as a tuple of the same parts.
#[derive(Deserialize)]
pub(crate) struct Saved {
    hosts: BTreeMap<u64, Host>,
    due: BTreeMap<u64, Vec<u64>>,
    lost: Lost,
}

impl State for Groups {
    type Saved = Saved;

    fn save(&self) -> Vec<u8> {
        encode(&(&self.hosts, &self.due, self.lost))
    }

    fn load(&mut self, parts: Vec<Saved>, share: Share) {
        for Saved { hosts, due, lost } in parts {
            self.hosts.extend(hosts.into_iter().filter(|(key, _)| share.routes(*key)));
            for (moment, hosts) in due {
                let ours: Vec<u64> = hosts.into_iter().filter(|key| share.routes(*key)).collect();
                if !ours.is_empty() {
                    self.due.entry(moment).or_default().extend(ours);
                }
            }
            if share.is_first() {
                self.lost.evicted += lost.evicted;
                self.lost.fixed += lost.fixed;
            }
        }
    }
}
