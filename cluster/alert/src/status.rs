//! What whoever sends tells of the sinks, for people: one object beside the outbox, written over while it changes.
//!
//! ```text
//! status   JSON: per sink how many alerts wait, were sent and are dead, when it took something last, and what went wrong last
//! ```
//!
//! The counts are those of the outbox. The object decides nothing: what a killed sender did not write is missing until the next one counts anew.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::alert::cut;
use crate::entry::SinkCounts;
use crate::error::Error;
use crate::ledger::Objects;
use crate::sink::Sinks;

/// How one sink is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkStatus {
    /// Alerts that it lacks a revision of.
    pub waiting: u64,
    /// Alerts of which it has the latest revision.
    pub sent: u64,
    /// Dead letters.
    pub dead: u64,
    /// When it took something last, in milliseconds of Unix time.
    pub last_sent_ms: Option<u64>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_ms: Option<u64>,
}

/// Of all sinks, as it is gathered.
#[derive(Debug, Default)]
pub(crate) struct Status {
    sinks: BTreeMap<String, SinkStatus>,
    written: BTreeMap<String, SinkStatus>,
}

impl Status {
    /// Goes on from what the last sender told, if it can be read.
    pub(crate) async fn read(objects: &dyn Objects) -> Self {
        let written = read_status(objects).await.unwrap_or_default();
        Self { sinks: written.clone(), written }
    }

    /// Notes what became of a request.
    pub(crate) fn note(&mut self, sink: &str, now_ms: u64, why: Option<&str>) {
        let status = self.sinks.entry(sink.to_owned()).or_default();
        match why {
            None => status.last_sent_ms = Some(now_ms),
            Some(why) => {
                let why: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                (status.last_error, status.last_error_ms) = (Some(cut(&why, WHY_BYTES_MAX)), Some(now_ms));
            }
        }
    }

    /// Takes over the outbox's counts, and what hinders sinks from being sent to at all.
    pub(crate) fn count(&mut self, counts: &BTreeMap<String, SinkCounts>, sinks: &Sinks) {
        self.keep(|name| sinks.routes().contains_key(name));
        for name in sinks.routes().keys() {
            let counted = counts.get(name).cloned().unwrap_or_default();
            let status = self.sinks.entry(name.clone()).or_default();
            (status.waiting, status.sent, status.dead) = (counted.waiting as u64, counted.delivered as u64, counted.dead as u64);
            if let Some(why) = sinks.trouble(name) {
                status.last_error = Some(cut(why, WHY_BYTES_MAX));
            }
        }
    }

    /// Forgets the others.
    pub(crate) fn keep(&mut self, keep: impl Fn(&str) -> bool) {
        self.sinks.retain(|name, _| keep(name));
    }

    /// Whether there is something to write.
    pub(crate) fn is_new(&self) -> bool {
        self.sinks != self.written
    }

    /// Writes it; what fails is written at a later time.
    pub(crate) async fn write(&mut self, objects: &dyn Objects) {
        let bytes = serde_json::to_vec(&self.sinks).expect("numbers and text always serialise");
        match objects.write(STATUS, bytes).await {
            Ok(()) => self.written = self.sinks.clone(),
            Err(why) => tracing::debug!(why, "how the sinks are could not be written"),
        }
    }
}

/// What whoever sends has told last, by sink.
///
/// # Errors
/// When the store is away. Nothing told yet, or by another version, is no error: then nothing is known.
pub async fn read_status(objects: &dyn Objects) -> Result<BTreeMap<String, SinkStatus>, Error> {
    let read = objects.read(STATUS).await;
    let bytes = read.map_err(|why| Error::Store { action: "read", object: STATUS.to_owned(), why })?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
}

const STATUS: &str = "status";
/// What of an error is kept.
const WHY_BYTES_MAX: usize = 500;
