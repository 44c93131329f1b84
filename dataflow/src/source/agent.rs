//! What one agent's owner knows of it: which of its events were seen, what it said of itself, what was lost of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_schema::{AgentIdentity, Batch, Column, Kind, Seq, Text};

use super::dedupe::Dedupe;
use super::facts::{AgentRow, LossRow};
use super::keys::Keys;
use super::rows::Picks;
use super::touches::{rows, short};

/// One agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Agent {
    pub(crate) identity: Arc<AgentIdentity>,
    pub(crate) dedupe: Dedupe,
    pub(crate) keys: Keys,
    /// Rows that wait for their time.
    pub(crate) waiting: usize,
    word: Option<((i64, u64), Word)>,
    host: Option<(i64, Text, bool)>,
    first_seen: i64,
    last_heard: i64,
    stopped: Option<i64>,
    pub(crate) events: u64,
    pub(crate) lost_events: u64,
    pub(crate) losses: BTreeMap<(Text, Text, Text), (LossRow, Option<LossRow>)>,
    pub(crate) shown: Option<AgentRow>,
}

/// What an agent says when it starts, and again when something of it has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Word {
    version: Option<Text>,
    hooks: Option<Text>,
    transport: Option<Text>,
    metadata: Option<Text>,
}

/// A loss, before it is added up.
#[derive(Debug, Clone)]
pub(crate) struct Loss<'a> {
    pub(crate) host: &'a str,
    pub(crate) class: &'a str,
    pub(crate) reason: &'a str,
    pub(crate) time: i64,
    pub(crate) seqs: Option<(u64, u64)>,
    pub(crate) lost: Option<u64>,
}

/// What agents reported as lost in some events.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reported {
    pub(crate) lost: u64,
    pub(crate) unknown: u64,
}

impl Agent {
    pub(crate) fn new(identity: Arc<AgentIdentity>) -> Self {
        Self {
            identity,
            dedupe: Dedupe::default(),
            keys: Keys::default(),
            waiting: 0,
            word: None,
            host: None,
            first_seen: i64::MAX,
            last_heard: i64::MIN,
            stopped: None,
            events: 0,
            lost_events: 0,
            losses: BTreeMap::new(),
            shown: None,
        }
    }

    /// Notes who the picked, new events of a frame come from.
    pub(crate) fn heard(&mut self, batch: &Batch, picks: &Picks, ids: &mut weir_schema::EventIds) {
        for (at, pick) in picks {
            let section = &batch.sections[*at];
            for row in rows(section, pick) {
                let time = section.times[row];
                self.events += 1;
                self.first_seen = self.first_seen.min(time);
                self.last_heard = self.last_heard.max(time);
            }
            if matches!(section.kind, Kind::HostStart | Kind::HostStop) {
                for row in rows(section, pick) {
                    let at = (section.times[row], short(&ids.id(Seq(section.first_seq.0 + row as u64)).0));
                    let code = section.table.codes(Column::Detail).map_or(0, |codes| codes[row]);
                    self.said(section.kind, at, batch.strings.text(code));
                }
            }
        }
        let host = (self.last_heard, Text::clone(&batch.host.host), batch.host.simulated);
        if self.host.as_ref().is_none_or(|known| *known < host) {
            self.host = Some(host);
        }
    }

    fn said(&mut self, kind: Kind, at: (i64, u64), detail: &str) {
        if kind == Kind::HostStop {
            self.stopped = self.stopped.max(Some(at.0));
        } else if self.word.as_ref().is_none_or(|(known, _)| *known < at) {
            self.word = Some((at, Word::parse(detail)));
        }
    }

    /// Adds up the picked loss events of a frame.
    pub(crate) fn reported(&mut self, batch: &Batch, picks: &Picks) -> Reported {
        let mut reported = Reported::default();
        for (at, pick) in picks {
            let section = &batch.sections[*at];
            if section.kind != Kind::Loss {
                continue;
            }
            let text = |column: Column, row: usize| {
                let code = section.table.codes(column).map_or(0, |codes| codes[row]);
                batch.strings.text(code)
            };
            let int =
                |column: Column, row: usize| section.table.ints(column).and_then(|ints| ints.get(row)).map(i64::cast_unsigned);
            for row in rows(section, pick) {
                let lost = int(Column::LossCount, row);
                reported.lost += lost.unwrap_or(0);
                reported.unknown += u64::from(lost.is_none());
                self.lost_events += lost.unwrap_or(0);
                self.lose(&Loss {
                    host: &batch.host.host,
                    class: text(Column::LossClass, row),
                    reason: text(Column::LossReason, row),
                    time: section.times[row],
                    seqs: int(Column::LossFirst, row).zip(int(Column::LossLast, row)).filter(|seqs| *seqs != (0, 0)),
                    lost,
                });
            }
        }
        reported
    }

    /// Adds up a loss.
    pub(crate) fn lose(&mut self, loss: &Loss<'_>) {
        let (mut class, mut reason): (Text, Text) = (loss.class.into(), loss.reason.into());
        let mut host: Text = loss.host.into();
        let full = self.losses.len() >= LOSSES_MAX;
        if full && !self.losses.contains_key(&(Text::clone(&class), Text::clone(&reason), Text::clone(&host))) {
            (class, reason, host) = ("__other__".into(), "__other__".into(), "__other__".into());
        }
        let row = LossRow {
            identity: Arc::clone(&self.identity),
            host: Text::clone(&host),
            class: Text::clone(&class),
            reason: Text::clone(&reason),
            time: loss.time,
            first_seq: loss.seqs.map(|seqs| seqs.0),
            last_seq: loss.seqs.map(|seqs| seqs.1),
            lost: loss.lost,
        };
        match self.losses.get_mut(&(Text::clone(&class), Text::clone(&reason), Text::clone(&host))) {
            Some((known, _)) => known.add(row),
            None => drop(self.losses.insert((class, reason, host), (row, None))),
        }
    }

    /// Its row; `None` as long as no event of it was understood.
    pub(crate) fn row(&self) -> Option<AgentRow> {
        let (_, host, simulated) = self.host.as_ref()?;
        let word = self.word.as_ref().map(|(_, word)| word);
        Some(AgentRow {
            identity: Arc::clone(&self.identity),
            host: Text::clone(host),
            version: word.and_then(|word| word.version.clone()),
            hooks: word.and_then(|word| word.hooks.clone()),
            transport: word.and_then(|word| word.transport.clone()),
            simulated: *simulated,
            first_seen: self.first_seen,
            last_heard: self.last_heard,
            events: self.events,
            lost_events: self.lost_events,
            ended: self.stopped.filter(|stopped| *stopped >= self.last_heard),
            metadata: word.and_then(|word| word.metadata.clone()),
        })
    }
}

impl Word {
    /// `agent_version` (or `version`), `hooks` (else `mode`) and `transport` of a host_start's detail, and as one JSON what it says of
    /// the sources of metadata (`metadata`), of the instance and of its region.
    fn parse(detail: &str) -> Self {
        let json: serde_json::Value = serde_json::from_str(detail).unwrap_or_default();
        let text = |key: &str| match json.get(key)? {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(Text::from(text.as_str())),
            other => Some(Text::from(other.to_string())),
        };
        let of_metadata = [("sources", "metadata"), ("instance", "instance"), ("region_mismatch", "region_mismatch")];
        let told = of_metadata.into_iter().filter_map(|(name, key)| Some((name.to_owned(), json.get(key)?.clone())));
        let told: serde_json::Map<String, serde_json::Value> = told.collect();
        Self {
            metadata: (!told.is_empty()).then(|| serde_json::Value::from(told).to_string().into()),
            version: text("agent_version").or_else(|| text("version")),
            hooks: text("hooks").or_else(|| text("mode")),
            transport: text("transport"),
        }
    }
}

/// Kinds of losses told apart per agent.
const LOSSES_MAX: usize = 256;
