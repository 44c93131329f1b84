//! What shapes every view: chained as a command, never a node's own config.

use serde::{Deserialize, Serialize};

use crate::definition::ViewDefinition;
use crate::rulebook::Rules;
use crate::table::TableWrite;

/// A record of the chain that changes answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first command of every chain: how long and how late the views look.
    Configure(ViewSettings),
    /// Every worker saves its state as of this tick, if it was told where to.
    Checkpoint,
    /// A view or a table that somebody made, from this tick on.
    CreateView(ViewDefinition),
    /// Views and tables that are there no more, from this tick on.
    DropViews(Vec<String>),
    /// These rules and no others, from this tick on.
    SetRules(Rules),
    /// Rows of a table change, at this tick.
    WriteTable(TableWrite),
}

/// How long, how late and how much the views hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewSettings {
    /// Milliseconds after its own time in which an event still enters the views, and for which a closed connection stays.
    pub retention_ms: u64,
    /// Milliseconds an event may be ahead of the tick; it waits for the rest.
    pub skew_ms: u64,
    /// Milliseconds after a window's end until its first result is shown.
    pub window_grace_ms: u64,
    /// Most rows of `events` and of `samples` that a worker keeps.
    pub tail_rows_max: u64,
    /// Most bytes of `events` and of `samples` that a worker keeps.
    pub tail_bytes_max: u64,
    /// Most connection ends that a worker keeps.
    pub ends_max: u64,
    /// Containers that an agent may name anew in a minute; the events of more are told as `__other__`.
    pub new_containers_per_minute_max: u64,
    /// Most events of one stage that a sequence rule keeps per key, and most hits that a correlation keeps per group if it needs no more.
    pub chain_events_per_key_max: u64,
}

impl Default for ViewSettings {
    fn default() -> Self {
        Self {
            retention_ms: 600_000,
            skew_ms: 5_000,
            window_grace_ms: 1_000,
            tail_rows_max: 1_000_000,
            tail_bytes_max: 256 << 20,
            ends_max: 4_000_000,
            new_containers_per_minute_max: 6_000,
            chain_events_per_key_max: 4_096,
        }
    }
}
