//! What is known of agents, hosts and losses: small keyed state whose rows are corrected as it changes.
//!
//! Every part is a minimum, a maximum, a sum over distinct events or the word of the latest event, so it is a function of the
//! set of events. Times of last signs are floored to the second, so that a row does not change with every event.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};
use serde::{Deserialize, Serialize};
use weir_schema::{AgentIdentity, BootId, Text};

use super::table::{Cell, Table};
use crate::checkpoint::{Share, State, encode};
use crate::connections::Place;
use crate::delta::DeltaBatch;
use crate::relations::{AGENTS, HOSTS, LOSSES};

/// What one frame's admitted events say of their host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNews {
    /// The host.
    pub place: Arc<Place>,
    /// Its boot.
    pub boot: BootId,
    /// True for a simulation.
    pub simulated: bool,
    /// Time of the earliest event.
    pub first: i64,
    /// Time of the latest event.
    pub last: i64,
    /// Latest word on the addresses: (time, event id), JSON.
    pub addresses: Option<((i64, u64), Text)>,
    /// Time of a host_stop.
    pub stopped: Option<i64>,
}

/// Every host, as its agents tell.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    hosts: HashMap<u64, Host, FixedState>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Host {
    /// By the latest event: (time, boot).
    word: ((i64, BootId), Arc<Place>, bool),
    first: i64,
    addresses: Option<((i64, u64), Text)>,
    stopped: Option<i64>,
    shown: Option<HostRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct HostRow {
    place: Arc<Place>,
    boot: BootId,
    addresses: Option<Text>,
    simulated: bool,
    first: i64,
    last: i64,
    ended: Option<i64>,
}

impl Hosts {
    /// All news of a tick: the rows that changed.
    pub(crate) fn advance(&mut self, tick: u64, news: Vec<HostNews>) -> Option<DeltaBatch> {
        let mut touched = BTreeMap::new();
        for news in news {
            touched.insert(news.place.host_key, ());
            let word = ((news.last, news.boot), news.place, news.simulated);
            match self.hosts.get_mut(&word.1.host_key) {
                Some(host) => {
                    host.first = host.first.min(news.first);
                    host.stopped = host.stopped.max(news.stopped);
                    if word > host.word {
                        host.word = word;
                    }
                    if news.addresses > host.addresses {
                        host.addresses = news.addresses;
                    }
                }
                None => {
                    let (first, addresses, stopped) = (news.first, news.addresses, news.stopped);
                    self.hosts.insert(word.1.host_key, Host { word, first, addresses, stopped, shown: None });
                }
            }
        }
        let mut rows = Changed::default();
        for key in touched.into_keys() {
            let host = self.hosts.get_mut(&key).expect("it was touched");
            let row = host.row();
            rows.change(&mut host.shown, row);
        }
        rows.encode(tick, HostRow::encode)
    }
}

impl State for Hosts {
    type Saved = Vec<(u64, Host)>;

    fn save(&self) -> Vec<u8> {
        let mut hosts: Vec<_> = self.hosts.iter().map(|(key, host)| (*key, host)).collect();
        hosts.sort_by_key(|(key, _)| *key);
        encode(&hosts)
    }

    fn load(&mut self, parts: Vec<Self::Saved>, share: Share) {
        self.hosts.extend(parts.into_iter().flatten().filter(|(key, _)| share.routes(*key)));
    }
}

impl Host {
    fn row(&self) -> HostRow {
        let ((last, boot), place, simulated) = &self.word;
        HostRow {
            place: Arc::clone(place),
            boot: *boot,
            addresses: self.addresses.as_ref().map(|(_, addresses)| Text::clone(addresses)),
            simulated: *simulated,
            first: self.first,
            last: second(*last),
            ended: self.stopped.filter(|stopped| stopped >= last),
        }
    }
}

impl HostRow {
    fn encode(rows: &[Self]) -> RecordBatch {
        let mut table = Table::new(HOSTS, rows.len());
        for row in rows {
            table.text(0, &row.place.tenant);
            table.maybe(1, row.place.cloud.as_deref());
            table.text(2, &row.place.region);
            table.maybe(3, row.place.zone.as_deref());
            table.text(4, &row.place.host);
            table.hex(5, &row.boot.0);
            table.maybe(6, row.addresses.as_deref());
            table.set(7, Cell::Bool(row.simulated));
            table.set(8, Cell::Int(row.first));
            table.set(9, Cell::Int(row.last));
            table.set(10, row.ended.map_or(Cell::Null, Cell::Int));
        }
        table.finish()
    }
}

/// An agent's row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AgentRow {
    pub(crate) identity: Arc<AgentIdentity>,
    pub(crate) host: Text,
    pub(crate) version: Option<Text>,
    pub(crate) hooks: Option<Text>,
    pub(crate) transport: Option<Text>,
    pub(crate) simulated: bool,
    pub(crate) first_seen: i64,
    pub(crate) last_heard: i64,
    pub(crate) events: u64,
    pub(crate) lost_events: u64,
    pub(crate) ended: Option<i64>,
    pub(crate) metadata: Option<Text>,
}

impl AgentRow {
    pub(crate) fn encode(rows: &[Self]) -> RecordBatch {
        let mut table = Table::new(AGENTS, rows.len());
        for row in rows {
            table.text(0, row.identity.tenant.as_str());
            table.text(1, row.identity.region.as_str());
            table.text(2, row.identity.agent.as_str());
            table.text(3, &row.host);
            table.maybe(4, row.version.as_deref());
            table.maybe(5, row.hooks.as_deref());
            table.maybe(6, row.transport.as_deref());
            table.set(7, Cell::Bool(row.simulated));
            table.set(8, Cell::Int(row.first_seen));
            table.set(9, Cell::Int(second(row.last_heard)));
            table.set(10, Cell::Int(row.events.cast_signed()));
            table.set(11, Cell::Int(row.lost_events.cast_signed()));
            table.set(12, row.ended.map_or(Cell::Null, Cell::Int));
            table.maybe(13, row.metadata.as_deref());
        }
        table.finish()
    }
}

/// What was lost of one kind and for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LossRow {
    pub(crate) identity: Arc<AgentIdentity>,
    pub(crate) host: Text,
    pub(crate) class: Text,
    pub(crate) reason: Text,
    pub(crate) time: i64,
    pub(crate) first_seq: Option<u64>,
    pub(crate) last_seq: Option<u64>,
    /// `None`: at least one loss of unknown size.
    pub(crate) lost: Option<u64>,
}

impl LossRow {
    /// Takes up another loss of the same kind.
    pub(crate) fn add(&mut self, other: Self) {
        self.time = self.time.max(other.time);
        self.first_seq = [self.first_seq, other.first_seq].into_iter().flatten().min();
        self.last_seq = self.last_seq.max(other.last_seq);
        self.lost = self.lost.zip(other.lost).map(|(a, b)| a.saturating_add(b));
    }

    pub(crate) fn encode(rows: &[Self]) -> RecordBatch {
        let mut table = Table::new(LOSSES, rows.len());
        let int = |value: Option<u64>| value.map_or(Cell::Null, |value| Cell::Int(value.cast_signed()));
        for row in rows {
            table.set(0, Cell::Int(row.time));
            table.text(1, row.identity.tenant.as_str());
            table.text(2, row.identity.region.as_str());
            table.text(3, &row.host);
            table.text(4, row.identity.agent.as_str());
            table.text(5, &row.class);
            table.set(6, int(row.first_seq));
            table.set(7, int(row.last_seq));
            table.set(8, int(row.lost));
            table.text(9, &row.reason);
        }
        table.finish()
    }
}

/// Rows that changed in a tick.
#[derive(Debug)]
pub(crate) struct Changed<R> {
    rows: Vec<R>,
    diffs: Vec<i64>,
}

impl<R> Default for Changed<R> {
    fn default() -> Self {
        Self { rows: Vec::new(), diffs: Vec::new() }
    }
}

impl<R: Clone + PartialEq> Changed<R> {
    /// Shows `row` in the place of what was shown.
    pub(crate) fn change(&mut self, shown: &mut Option<R>, row: R) {
        if shown.as_ref() == Some(&row) {
            return;
        }
        if let Some(old) = shown.replace(row.clone()) {
            self.rows.push(old);
            self.diffs.push(-1);
        }
        self.rows.push(row);
        self.diffs.push(1);
    }

    /// The changes; `None` when there are none.
    pub(crate) fn encode(self, tick: u64, encode: impl Fn(&[R]) -> RecordBatch) -> Option<DeltaBatch> {
        if self.rows.is_empty() { None } else { Some(DeltaBatch::new(tick, encode(&self.rows), self.diffs)) }
    }
}

/// One copy of texts that repeat.
#[derive(Debug, Default)]
pub(crate) struct Texts(HashSet<Text, FixedState>);

impl Texts {
    pub(crate) fn of(&mut self, text: &str) -> Text {
        if self.0.len() >= TEXTS_MAX {
            self.0.clear();
        }
        Text::clone(self.0.get_or_insert_with(text, |text| text.into()))
    }
}

/// A time floored to the second.
fn second(time_ns: i64) -> i64 {
    time_ns - time_ns.rem_euclid(1_000_000_000)
}

/// Texts that are kept once.
const TEXTS_MAX: usize = 65_536;
