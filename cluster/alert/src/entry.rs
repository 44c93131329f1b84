//! What the outbox keeps of one alert and one sink, and what it tells of itself.

use serde::{Deserialize, Serialize};

use crate::alert::Alert;

/// One alert of one sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The alert's id in the relation now; the entry's key is the one it had first.
    pub id: String,
    /// Its rule.
    pub rule_id: String,
    /// Its first evidence, by which it is found again under another id.
    pub evidence: Option<String>,
    /// The revision that the sink lacks, as it will be sent.
    pub wanted: Option<Alert>,
    /// The newest revision that was taken up.
    pub seen: u64,
    /// Added to the relation's revisions, so that they rise over a change of the id.
    pub base: u64,
    /// The newest revision that the sink has.
    pub delivered: Option<u64>,
    /// Failed attempts in a row.
    pub attempts: u32,
    /// Since when, in milliseconds of Unix time.
    pub failing_ms: Option<u64>,
    /// Not sent before.
    pub next_ms: u64,
    /// When the wanted revision was taken up.
    pub since_ms: u64,
    /// It was given up.
    pub dead: Option<Dead>,
    /// Since when the relation shows it no more.
    pub gone_ms: Option<u64>,
}

/// Why and when an alert was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dead {
    /// What the sink said last.
    pub why: String,
    /// In milliseconds of Unix time.
    pub at_ms: u64,
}

/// What is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// To whom.
    pub sink: String,
    /// Under which key.
    pub key: String,
    /// What; its id is the key.
    pub alert: Alert,
}

/// What became of a revision that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The sink has it.
    Sent,
    /// It is sent again later, or a newer one is.
    Retried,
    /// It is a dead letter.
    Dead,
}

/// What an outbox has counted since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Alerts dropped, or not taken up, for want of room.
    pub dropped: u64,
}

/// What one sink has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SinkCounts {
    /// Alerts that wait or are under way.
    pub waiting: usize,
    /// Dead letters.
    pub dead: usize,
    /// Alerts whose latest revision it has.
    pub delivered: usize,
    /// When the oldest that waits was taken up.
    pub oldest_ms: Option<u64>,
}
