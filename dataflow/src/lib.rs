//! Keeps every answer up to date: plans to timely and differential operators.
//!
//! A feed of chained ticks goes in (`feed.rs`); workers (`worker.rs`) decode it (`source/`), join connections (`connections/`),
//! judge events by rules (`alerts/`), count what the rules find (`correlations/`), follow events that belong together (`chains/`), keep the standing views (`views/`, and those that people make, `standing.rs`; rendered by `render/`) and hold their rows by tick (`output.rs`, packed by `packed/`); a node asks for them over
//! a Unix socket (`handle.rs` says how, `server.rs` serves, `ask.rs` and `peek.rs` are the two ends of a question in the mesh,
//! `subscribe.rs` answers what changed, out of `history.rs`).
//!
//! `checkpoint/` saves the state of all operators at a tick and takes it up again, on any number of workers.
//!
//! Promise: an answer at a closed tick is a function of the chain up to that tick, whatever the number of workers.
//! Nothing here reads a clock or awaits.

#![forbid(unsafe_code)]

mod alerts;
mod ask;
mod by_tick;
mod chains;
mod checkpoint;
pub mod connections;
mod correlations;
mod definition;
pub mod delta;
pub mod expr;
pub mod external;
mod feed;
pub mod handle;
mod history;
mod hits;
mod install;
mod lift;
mod mesh;
mod output;
mod packed;
mod peek;
mod relations;
pub mod render;
mod rulebook;
mod run;
mod server;
mod settings;
pub mod shipped;
pub mod source;
mod standing;
mod subscribe;
mod table;
mod views;
mod worker;

pub use alerts::{SUMMARY_BYTES_MAX as ALERT_SUMMARY_BYTES_MAX, WINDOW_MS as ALERT_WINDOW_MS, subject_key as alert_subject};
pub use chains::{RuleDefinition, eql_definition, rule_definition, rule_definitions};
#[doc(hidden)]
pub use checkpoint::empty_part;
pub use checkpoint::{CheckpointError, CheckpointPart, CheckpointSink, Restore};
pub use definition::{Definitions, Known, ViewChange, ViewDefinition, ViewKind, ViewOutcome};
pub use feed::{Arrived, Feed, FeedStep, Tick};
pub use history::ChangesKept;
pub use relations::{RelationInfo, relation, relations};
pub use rulebook::{
    BYTES_MAX as RULE_BYTES_MAX, FILES_MAX as RULE_FILES_MAX, FORMAT as RULE_FORMAT, RuleFile, RuleMatching, RuleOrigin,
    Rulebook, Rules, RulesChange, RulesOutcome,
};
pub use run::{EngineOptions, Error, run};
pub use settings::{Command, ViewSettings};
pub use source::{Admission, Dedupe, Intake, IntakeError, Tail, Taken, gather, schema_of};
pub use table::{TableRows, TableWrite, row_bytes};
