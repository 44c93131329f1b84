//! One alert as it grows: a join-semilattice over its hits, so that neither their order nor their coming in parts changes it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_schema::{EventId, Text};

use super::EVIDENCE_MAX;
use super::compiled::RuleHead;
use super::hit::Hit;
use super::identity::ContainerTold;
use crate::checkpoint::shared;
use crate::connections::Place;

/// A hit's place in time: (nanoseconds, event id).
pub(crate) type Moment = (i64, [u8; 16]);

/// What an alert takes from its first hit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Subject {
    #[serde(with = "shared")]
    pub(crate) place: Arc<Place>,
    /// The container, or the session of processes: what repeats are grouped by.
    pub(crate) key: u128,
    pub(crate) app: Option<Text>,
    pub(crate) container_id: Option<Text>,
    pub(crate) process_id: Option<[u8; 16]>,
    /// The rule's output for the event.
    pub(crate) summary: Text,
}

/// Some hits of one rule and subject that follow each other closely.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    #[serde(with = "shared")]
    pub(crate) rule: Arc<RuleHead>,
    /// Of the first hit.
    pub(crate) subject: Subject,
    pub(crate) first: Moment,
    pub(crate) last: i64,
    pub(crate) count: u64,
    /// The earliest, ascending.
    pub(crate) evidence: Vec<Moment>,
    /// Events that the agents had reported as lost when they told of these.
    pub(crate) lost: u64,
    /// The tick of its last change.
    pub(crate) closed_through: u64,
    pub(crate) withdrawn: bool,
    /// How many revisions it has had beside those of its hits: each change is a higher one, also where hits have left.
    pub(crate) base: u64,
}

/// What one frame's admitted rows say of one host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostHits {
    pub(crate) host_key: u64,
    pub(crate) hits: Vec<Hit>,
    pub(crate) containers: Vec<ContainerTold>,
}

impl Group {
    /// One hit of a rule.
    pub(crate) fn of(hit: &Hit, rule: Arc<RuleHead>, subject: Subject) -> Self {
        let (first, evidence) = (hit.moment, vec![hit.moment]);
        let (last, lost) = (first.0, hit.lost);
        Self { rule, subject, first, last, count: 1, evidence, lost, closed_through: 0, withdrawn: false, base: 0 }
    }

    /// Takes up a hit. `subject`: what the hit says, should it be the first.
    pub(crate) fn add(&mut self, hit: &Hit, subject: impl FnOnce() -> Subject) {
        let moment = hit.moment;
        if moment < self.first {
            (self.first, self.subject) = (moment, subject());
        }
        self.last = self.last.max(moment.0);
        self.count += 1;
        self.lost = self.lost.max(hit.lost);
        let place = self.evidence.partition_point(|other| *other < moment);
        self.evidence.insert(place, moment);
        self.evidence.truncate(EVIDENCE_MAX);
    }

    /// Higher with each change.
    pub(crate) fn revision(&self) -> u64 {
        self.count.saturating_add(self.base).saturating_add(u64::from(self.withdrawn))
    }

    /// Whether a hit of this moment is near enough.
    pub(crate) fn is_near(&self, (time, _): Moment, window_ms: u64) -> bool {
        let window = i64::try_from(window_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        time.saturating_sub(self.last) <= window && self.first.0.saturating_sub(time) <= window
    }

    /// Whether both tell people the same, but for when they were told.
    pub(crate) fn tells_as(&self, other: &Self) -> bool {
        let Self { subject, first, last, count, evidence, lost, .. } = self;
        (first, last, count, evidence, lost) == (&other.first, &other.last, &other.count, &other.evidence, &other.lost)
            && *subject == other.subject
    }

    /// Whether two are one: of the same rule and subject, which the caller has seen to, and close enough.
    pub(crate) fn touches(&self, other: &Self, window_ms: u64) -> bool {
        let window = i64::try_from(window_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        let apart = |later: i64, earlier: i64| later.saturating_sub(earlier) > window;
        !apart(self.first.0, other.last) && !apart(other.first.0, self.last)
    }

    /// Takes up another part of the same alert. Their hits are distinct events.
    pub(crate) fn merge(&mut self, other: Self) {
        let Self { subject, first, last, count, evidence, lost, closed_through, base, .. } = other;
        if first < self.first {
            (self.first, self.subject) = (first, subject);
        }
        self.last = self.last.max(last);
        self.count += count;
        self.lost = self.lost.max(lost);
        self.base = self.base.max(base);
        self.closed_through = self.closed_through.max(closed_through);
        self.evidence.extend(evidence);
        self.evidence.sort_unstable();
        self.evidence.truncate(EVIDENCE_MAX);
    }

    /// The id of an event of its evidence.
    pub(crate) fn id_of(moment: &Moment) -> EventId {
        EventId(moment.1)
    }
}
