//! The owner's state in a checkpoint: its agents, and the rows that wait for their moment.
//!
//! A frame whose rows wait is saved as it was sent and decoded again when it is taken up.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_schema::{AgentIdentity, Frame};

use super::agent::Agent;
use super::keys::fold;
use super::owner::{Ahead, Decoded, Owner, SourceCounts};
use super::rows::Pick;
use super::touches::place_of;
use crate::checkpoint::{Share, State, encode};

/// The agents that one worker owns, and what of them waits.
pub(crate) struct Owned {
    pub(super) owner: Owner,
    /// By moment, in the order in which they came.
    pub(super) ahead: BTreeMap<u64, Vec<Ahead>>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Saved {
    agents: Vec<(u64, Agent)>,
    waiting: Vec<Waiting>,
    counts: SourceCounts,
}

#[derive(Serialize, Deserialize)]
struct Waiting {
    moment: u64,
    route: u64,
    identity: Arc<AgentIdentity>,
    received_ms: u64,
    frame: Vec<u8>,
    /// Per section: `None` all of its rows.
    picks: Vec<(usize, Option<Vec<u32>>)>,
    folded: Vec<u32>,
}

impl State for Owned {
    type Saved = Saved;

    fn save(&self) -> Vec<u8> {
        let mut agents: Vec<(u64, Agent)> = self.owner.agents.iter().map(|(route, agent)| (*route, agent.clone())).collect();
        agents.sort_by_key(|(route, _)| *route);
        let waiting = self.ahead.iter().flat_map(|(moment, all)| all.iter().map(|ahead| Waiting::of(*moment, ahead)));
        encode(&Saved { agents, waiting: waiting.collect(), counts: self.owner.counts })
    }

    fn load(&mut self, parts: Vec<Saved>, share: Share) {
        for Saved { agents, waiting, counts } in parts {
            self.owner.agents.extend(agents.into_iter().filter(|(route, _)| share.routes(*route)));
            if share.is_first() {
                self.owner.counts.add(&counts);
            }
            for waiting in waiting.into_iter().filter(|waiting| share.routes(waiting.route)) {
                let moment = waiting.moment;
                // It was decoded before it was saved, and the part's checksum was right.
                let Some(ahead) = waiting.read(&mut self.owner) else { continue };
                self.ahead.entry(moment).or_default().push(ahead);
            }
        }
    }
}

impl Waiting {
    fn of(moment: u64, ahead: &Ahead) -> Self {
        let Ahead { route, decoded, picks } = ahead;
        let rows = |(section, pick): &(usize, Pick)| match pick {
            Pick::All => (*section, None),
            Pick::Some(rows) => (*section, Some(rows.clone())),
        };
        Self {
            moment,
            route: *route,
            identity: Arc::clone(&decoded.identity),
            received_ms: decoded.received_ms,
            frame: decoded.frame.bytes.to_vec(),
            picks: picks.iter().map(rows).collect(),
            folded: decoded.folded.clone(),
        }
    }

    fn read(self, owner: &mut Owner) -> Option<Ahead> {
        let Self { route, identity, received_ms, frame, picks, folded, .. } = self;
        let frame = Frame::from_vec(frame).ok()?;
        let mut batch = frame.decode(&mut owner.decoder).ok()?;
        let fits = |(section, rows): &(usize, Option<Vec<u32>>)| {
            let section = batch.sections.get(*section);
            section.is_some_and(|section| rows.iter().flatten().all(|row| (*row as usize) < section.rows()))
        };
        if !picks.iter().all(fits) || folded.iter().any(|row| *row as usize >= batch.containers.rows()) {
            return None;
        }
        fold(&mut batch, &folded);
        let place = Arc::new(place_of(&identity, &batch));
        let picks = picks.into_iter().map(|(section, rows)| (section, rows.map_or(Pick::All, Pick::Some))).collect();
        let decoded = Arc::new(Decoded { identity, place, received_ms, frame: Arc::new(frame), batch, folded });
        Some(Ahead { route, decoded, picks })
    }
}
