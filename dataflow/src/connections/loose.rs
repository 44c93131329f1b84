//! Ends of sockets without a cookie (recordings): the events of one (side, addresses) on one boot, cut into lives by time.
//!
//! An open starts a life and ends the one before, if that has not ended; a failed connect is a life of its own; a close ends
//! the life it falls into, or is one of which nothing else is known. Cutting is a function of the events' set; lives that ended
//! are a prefix, so forgetting them changes nothing for those after.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::end::{Actor, End, EndKey, Place, Side, Touch, Tuple, Verb};
use super::state::{EndState, Shared};
use weir_schema::BootId;

/// What the events of a socket without a cookie have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct LooseGroup {
    pub(super) side: Side,
    pub(super) tuple: Tuple,
}

/// The events of one group.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Loose {
    events: Vec<(Touch, Shared)>,
}

struct Life {
    state: EndState,
    events: usize,
    next_open: Option<i64>,
}

impl Loose {
    pub(super) fn add(&mut self, touch: Touch, actor: Arc<Actor>) {
        let order = |touch: &Touch| (touch.time, touch.verb, touch.id);
        let place = self.events.binary_search_by_key(&order(&touch), |(known, _)| order(known));
        if let Err(place) = place {
            self.events.insert(place, (touch, Shared(actor)));
        }
    }

    pub(super) fn last(&self) -> i64 {
        self.events.iter().map(|(touch, _)| touch.time).max().unwrap_or(i64::MIN)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The ends that these events tell of, in order of time.
    pub(super) fn views(&self, at: &LooseAt<'_>) -> Vec<End> {
        let lives = self.lives(at);
        lives.iter().filter_map(|life| life.state.view(life.ended_by(at.implied))).collect()
    }

    /// Drops the lives that ended so that nothing admitted after `tick` can change them.
    pub(super) fn forget(&mut self, at: &LooseAt<'_>, settled: impl Fn(i64) -> bool) {
        let lives = self.lives(at);
        let over = |life: &&Life| life.state.closed(life.ended_by(at.implied)).is_some_and(&settled);
        let events: usize = lives.iter().take_while(over).map(|life| life.events).sum();
        self.events.drain(..events);
    }

    fn lives(&self, at: &LooseAt<'_>) -> Vec<Life> {
        let mut lives: Vec<Life> = Vec::new();
        for (touch, Shared(actor)) in &self.events {
            let begun = lives.last().is_some_and(|life| !life.state.ended_itself());
            if begun && touch.verb == Verb::Open {
                lives.iter_mut().last().expect("one has begun").next_open = Some(touch.time);
            }
            if !(begun && touch.verb == Verb::Close) {
                let key = EndKey::of_tuple(at.place, at.boot, at.group.side, &at.group.tuple, (touch.time, touch.id));
                lives.push(Life { state: EndState::new(key), events: 0, next_open: None });
            }
            let life = lives.last_mut().expect("one was pushed");
            life.state.join(touch, actor);
            life.events += 1;
        }
        lives
    }
}

impl Life {
    fn ended_by(&self, boot_end: Option<i64>) -> Option<i64> {
        self.next_open.or(boot_end)
    }
}

/// Where a loose group stands.
pub(super) struct LooseAt<'a> {
    pub(super) place: &'a Place,
    pub(super) boot: &'a BootId,
    pub(super) group: LooseGroup,
    pub(super) implied: Option<i64>,
}
