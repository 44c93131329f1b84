//! What a host's fold keeps of one socket: a join-semilattice over its events.
//!
//! Each part is a minimum, a maximum or the value of the earliest event that had one, by (time, event id). So the order of
//! arrival and arriving twice change nothing.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::end::{Actor, End, EndKey, Isns, Side, Touch, Tuple, Verb};
use crate::checkpoint::shared;

/// The value of the earliest event that had one.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct First<T> {
    time: i64,
    id: u64,
    value: T,
}

impl<T> First<T> {
    fn offer(slot: &mut Option<Self>, touch: &Touch, value: impl FnOnce() -> T) {
        let earlier = slot.as_ref().is_none_or(|known| (touch.time, touch.id) < (known.time, known.id));
        if earlier {
            *slot = Some(Self { time: touch.time, id: touch.id, value: value() });
        }
    }
}

/// An actor that many sockets have.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Shared(#[serde(with = "shared")] pub(super) Arc<Actor>);

/// One socket, as far as its host has told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct EndState {
    pub(super) key: EndKey,
    first: i64,
    pub(super) last: i64,
    opened: Option<i64>,
    opened_derived: Option<i64>,
    closed: Option<i64>,
    stood: bool,
    failed: Option<(i64, i32)>,
    side: Option<First<Side>>,
    tuple: Option<First<Tuple>>,
    isns: Option<First<(u32, u32)>>,
    named: Option<First<Shared>>,
    anyone: Option<First<Shared>>,
    sent: u64,
    received: u64,
}

impl EndState {
    pub(super) fn new(key: EndKey) -> Self {
        Self {
            key,
            first: i64::MAX,
            last: i64::MIN,
            opened: None,
            opened_derived: None,
            closed: None,
            stood: false,
            failed: None,
            side: None,
            tuple: None,
            isns: None,
            named: None,
            anyone: None,
            sent: 0,
            received: 0,
        }
    }

    /// Joins one event.
    pub(super) fn join(&mut self, touch: &Touch, actor: &Arc<Actor>) {
        let begun = touch.time.saturating_sub(ns(touch.duration_ms.unwrap_or(0)));
        self.first = self.first.min(touch.time);
        self.last = self.last.max(touch.time);
        match touch.verb {
            Verb::Open if stands(touch.result) => {
                self.stood = true;
                lower(&mut self.opened, touch.time);
            }
            Verb::Open => {
                let failure = (touch.time, touch.result);
                self.failed = Some(self.failed.map_or(failure, |known| known.min(failure)));
                lower(&mut self.opened_derived, begun);
            }
            Verb::Close => {
                self.closed = self.closed.max(Some(touch.time));
                lower(&mut self.opened_derived, begun);
            }
        }
        if let Some(side) = touch.side {
            First::offer(&mut self.side, touch, || side);
        }
        if let Some(tuple) = touch.tuple {
            First::offer(&mut self.tuple, touch, || tuple);
        }
        if let Some(isns) = touch.isns {
            First::offer(&mut self.isns, touch, || isns);
        }
        let slot = if actor.process_id.is_some() { &mut self.named } else { &mut self.anyone };
        First::offer(slot, touch, || Shared(Arc::clone(actor)));
        self.sent = self.sent.max(touch.sent);
        self.received = self.received.max(touch.received);
    }

    /// When it ended: by its own word, else by what ended its host's boot (`implied`).
    pub(super) fn closed(&self, implied: Option<i64>) -> Option<i64> {
        match self.failed {
            Some((time, _)) if !self.stood => Some(time),
            _ => self.closed.or_else(|| implied.map(|implied| implied.max(self.last))),
        }
    }

    /// True when its own events end it.
    pub(super) fn ended_itself(&self) -> bool {
        self.closed.is_some() || (self.failed.is_some() && !self.stood)
    }

    /// The end as others see it; `None` as long as no event told its addresses and which end it is.
    pub(super) fn view(&self, implied: Option<i64>) -> Option<End> {
        let tuple = self.tuple.as_ref()?;
        let actor = self.named.as_ref().or(self.anyone.as_ref())?;
        let side = self.side.as_ref()?.value;
        let oriented = |(local, peer): (u32, u32)| match side {
            Side::Client => Isns { client: local, server: peer },
            Side::Server => Isns { client: peer, server: local },
        };
        Some(End {
            key: self.key,
            side,
            tuple: tuple.value,
            isns: self.isns.as_ref().map(|isns| oriented(isns.value)),
            tuple_since: tuple.time,
            isns_since: self.isns.as_ref().map_or(i64::MAX, |isns| isns.time),
            opened: self.opened.or(self.opened_derived).unwrap_or(self.first),
            closed: self.closed(implied),
            failed: self.failed.filter(|_| !self.stood).map(|(_, errno)| errno),
            sent: self.sent,
            received: self.received,
            actor: Arc::clone(&actor.value.0),
        })
    }
}

/// True for a connect that stands or is on its way (EINPROGRESS).
fn stands(result: i32) -> bool {
    matches!(result.abs(), 0 | EINPROGRESS)
}

fn lower(slot: &mut Option<i64>, time: i64) {
    *slot = Some(slot.map_or(time, |known| known.min(time)));
}

fn ns(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1_000_000)
}

const EINPROGRESS: i32 = 115;
