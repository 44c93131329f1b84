//! What detections over several events share: what alerts say of an event, how a row of `alerts` is written, and hits that found no room.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_schema::Text;
use xxhash_rust::xxh3::xxh3_128;

use crate::alerts::{RuleHead, json};
use crate::checkpoint::shared;
use crate::connections::Place;
use crate::delta::DeltaBatch;
use crate::relations::{ALERTS, LOSSES};
use crate::source::table::{Cell, Table, push_hex};

/// An event's place in time: (nanoseconds, event id).
pub(crate) type Moment = (i64, [u8; 16]);

/// What an alert says of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HitSource {
    #[serde(with = "shared")]
    pub(crate) place: Arc<Place>,
    pub(crate) app: Option<Text>,
    pub(crate) container_id: Option<Text>,
    /// In hexadecimal.
    pub(crate) process_id: Option<Text>,
    /// Events that its agent had reported as lost when it told of this one.
    pub(crate) lost: u64,
}

/// Hits of one rule and key that found no room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Capped {
    pub(crate) dropped: u64,
    /// The tick of the last.
    pub(crate) at: u64,
    /// Of one of them.
    #[serde(with = "shared")]
    pub(crate) source: Arc<HitSource>,
}

/// Rows of `losses` that come and go: which hits found no room.
#[derive(Debug, Default)]
pub(crate) struct HotKeys(Vec<(Text, Capped, i64)>);

impl HotKeys {
    /// Takes up hits that found no room.
    pub(crate) fn capped(&mut self, rule: &Text, known: &mut Option<Capped>, more: Capped) {
        let before = known.as_ref().map_or(0, |known| known.dropped);
        self.uncapped(rule, known);
        let capped = Capped { dropped: before + more.dropped, ..more };
        self.0.push((rule.clone(), capped.clone(), 1));
        *known = Some(capped);
    }

    /// What found no room is shown no more.
    pub(crate) fn uncapped(&mut self, rule: &Text, known: &mut Option<Capped>) {
        if let Some(capped) = known.take() {
            self.0.push((rule.clone(), capped, -1));
        }
    }

    /// The rows.
    pub(crate) fn losses(&self, tick: u64) -> Option<DeltaBatch> {
        let mut table = Table::new(LOSSES, self.0.len());
        for (rule, capped, _) in &self.0 {
            let place = &capped.source.place;
            table.set(0, Cell::Int(nanos(capped.at)));
            table.text(1, &place.tenant);
            table.text(2, &place.region);
            table.text(3, &place.host);
            table.set(4, Cell::Null);
            table.text(5, &format!("rule:{rule}"));
            table.set(6, Cell::Null);
            table.set(7, Cell::Null);
            table.set(8, Cell::Int(i64::try_from(capped.dropped).unwrap_or(i64::MAX)));
            table.text(9, "hot_key");
        }
        let diffs = self.0.iter().map(|(.., diff)| *diff).collect();
        (!self.0.is_empty()).then(|| DeltaBatch::new(tick, table.finish(), diffs))
    }
}

/// A row of `alerts` over several events.
pub(crate) struct AlertOfHits<'a> {
    pub(crate) id: u128,
    pub(crate) revision: u64,
    pub(crate) state: &'a str,
    pub(crate) rule: &'a RuleHead,
    /// Of the first event.
    pub(crate) source: &'a HitSource,
    /// Nanoseconds, of the first and the last event.
    pub(crate) times: (i64, i64),
    pub(crate) summary: &'a str,
    pub(crate) evidence: &'a [String],
    /// JSON.
    pub(crate) stages: &'a str,
    pub(crate) hosts: &'a [&'a str],
    pub(crate) regions: &'a [&'a str],
    /// The tick of its last change.
    pub(crate) changed: u64,
    pub(crate) lost: u64,
}

impl AlertOfHits<'_> {
    /// A table for such rows.
    pub(crate) fn table(rows: usize) -> Table {
        Table::new(ALERTS, rows)
    }

    pub(crate) fn encode(&self, table: &mut Table) {
        let Self { rule, source, times, .. } = self;
        let int = |value: u64| Cell::Int(i64::try_from(value).unwrap_or(i64::MAX));
        table.hex(0, &self.id.to_be_bytes());
        table.set(1, int(self.revision));
        table.text(2, self.state);
        table.text(3, &rule.name);
        table.hex(4, &rule.id.to_be_bytes());
        table.text(5, &rule.severity);
        table.text(6, &rule.tactics);
        table.text(7, &rule.techniques);
        table.set(8, Cell::Int(times.0));
        table.set(9, Cell::Int(times.0));
        table.set(10, Cell::Int(times.1));
        table.text(11, &source.place.tenant);
        table.maybe(12, source.place.cloud.as_deref());
        table.text(13, &source.place.region);
        table.text(14, &source.place.host);
        table.maybe(15, source.app.as_deref());
        table.maybe(16, source.container_id.as_deref());
        table.maybe(17, source.process_id.as_deref());
        table.text(18, self.summary);
        table.text(19, &json(self.evidence));
        table.text(20, self.stages);
        table.text(21, &json(self.hosts));
        table.text(22, &json(self.regions));
        table.set(23, Cell::Int(nanos(self.changed)));
        table.set(24, int(self.lost));
    }
}

/// The id of an alert over several events: a hash of its rule, its key and its first evidence.
pub(crate) fn alert_id(rule: u64, key: u64, first: &[u8; 16]) -> u128 {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&rule.to_le_bytes());
    bytes[8..16].copy_from_slice(&key.to_le_bytes());
    bytes[16..].copy_from_slice(first);
    xxh3_128(&bytes)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    push_hex(&mut text, bytes);
    text
}

pub(crate) fn nanos(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(NANOS_PER_MS)
}

pub(crate) fn millis(nanos: i64) -> u64 {
    u64::try_from(nanos.div_euclid(NANOS_PER_MS)).unwrap_or(0)
}

pub(crate) const NANOS_PER_MS: i64 = 1_000_000;
