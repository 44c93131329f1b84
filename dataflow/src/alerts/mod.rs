//! Alerts: what the rules say of the admitted events, repeats grouped, whatever the order in which events come.
//!
//! ```text
//! frames ─ own (pass over all rules) ─ hits, and what is said of containers (by host) ─ judge ─ groups ─ rows of `alerts`
//!                                          other rules or exceptions from this tick on ─┘
//! ```
//!
//! A rule's hits of one subject (a container, else a session of processes on a host) are one alert as long as no two of them that
//! follow each other lie further apart than `WINDOW_MS`. An alert is named by its rule, subject and first evidence.
//!
//! Events are not kept, hits are (`hit.rs`): for `KEEP_MS`, and as many as there is room for. They are judged again (`judge.rs`) when
//! exceptions of their rules come or go, and when more is known of their container (`identity.rs`).
//!
//! Promise: while the rules stay, the alerts at a closed tick that are not withdrawn are a function of the rows admitted up to it and of
//! the exceptions at it, but for the columns `closed_through` and `lost_events`, which tell of the chain, and `revision`, which rises with
//! every change. A withdrawn alert is one that was told and is no more. Which rules may have an event is decided by those of the tick that
//! admits it: alerts of a rule that was changed or dropped are withdrawn. An alert is kept for `KEEP_MS` after its last evidence.
//!
//! The logic is in pure structs (`Group`, `Groups`); `operator.rs` gives them to timely.

mod attack;
mod changes;
mod compiled;
mod exceptions;
mod group;
mod groups;
mod hit;
mod hits;
mod host;
mod identity;
mod judge;
mod operator;
mod row;
mod saved;
#[cfg(test)]
mod tests;

pub(crate) use attack::{tactics, techniques};
pub(crate) use compiled::{Compiled, InForce, RuleHead, json};
pub(crate) use exceptions::ExceptionTable;
pub(crate) use group::HostHits;
pub use hits::subject_key;
pub(crate) use hits::{Admitted, Spotter};
pub(crate) use operator::{AlertCounts, AlertOptions, alerts};

/// Hits of one alert lie at most so far apart: an attack's steps do, and a rule that fires all day is one alert.
pub const WINDOW_MS: u64 = 300_000;
/// How long an alert is shown after its last evidence: a day, for the people who look into it.
pub(crate) const KEEP_MS: u64 = 86_400_000;
/// Event ids told of one alert, the earliest; the count goes on.
pub(crate) const EVIDENCE_MAX: usize = 16;
/// Alerts kept of one host. Beyond it the longest settled goes; where none is settled, hits that begin a new one are counted only.
pub(crate) const PER_HOST_MAX: usize = 4_096;
/// Hits kept of one host to be judged again. Of more the earliest stay as they are, and are counted (`fixed_alert_hits_total`).
pub(crate) const HITS_PER_HOST_MAX: usize = 4_096;
/// Bytes of them: a command line may be of any length.
pub(crate) const HIT_BYTES_PER_HOST_MAX: usize = 2 << 20;
/// Containers of one host whose identity is known; of more the longest untold go, and are counted with the hits.
pub(crate) const CONTAINERS_PER_HOST_MAX: usize = 4_096;
/// Bytes of a summary: a rule's output may print a command line of any length.
pub const SUMMARY_BYTES_MAX: usize = 4_096;
