//! Correlations: what is counted, added up or put in order over the hits of other rules (Sigma's `correlation`).
//!
//! ```text
//! frames ─ own (pass over all rules) ─ hits (by correlation and group) ─ level 0 ─ matches ─┬─ rows of `alerts`
//!                                                              └──────── level 1 ◀ as hits ─┤
//!                                                              └──────── level 2 ◀──────────┴─ rows of `losses`: what was capped
//! ```
//!
//! What a match is stands in `weir_rules` (`correlation/window.rs`): windows slide, what goes on is one match. A correlation whose rules are
//! correlations is a level above them, because its hits are their matches of the same tick. A match is a hit at the moment at which its
//! first window met the condition, with the match's id.
//!
//! Promise: while the rules stay, the matches at a closed tick are a function of the set of events admitted up to it and of the tick, but for the
//! columns `revision`, `closed_through` and `lost_events` of `alerts`, and its rows that are `withdrawn` because a late event undid
//! a match: these are shown until the match would have been settled. What a hot key lost (`losses`) is no function of the set either.
//!
//! An event that is admitted at tick t is not older than t − R; a match below may come or go for the timespans of its levels longer (`settling`). So
//! the windows that end before t − R − settling stand, and of a group only later hits are kept; what is under way is carried on as a sum
//! (`Run`) of fixed size. A match is shown for `KEEP_MS` after its last event.
//!
//! The logic is in pure structs (`Run`, `Group`, `Correlations`); `operator.rs` gives them to timely.

mod compiled;
mod group;
mod hit;
mod operator;
mod row;
mod run;
mod saved;
mod spot;
mod state;
#[cfg(test)]
mod tests;

pub(crate) use compiled::CorrelationRule;
pub(crate) use hit::CorrelationHit;
pub(crate) use operator::{CorrelationCounts, CorrelationOptions, correlations};
pub(crate) use spot::spot;

/// How long a match is shown after its last event, as other alerts are.
pub(crate) const KEEP_MS: u64 = crate::alerts::KEEP_MS;
/// Matches shown of one group. Beyond it the oldest that is settled goes, as alerts of a host do.
pub(crate) const MATCHES_PER_GROUP_MAX: usize = 4_096;
/// Groups that one worker keeps of a level, some hundred bytes each and their hits. Hits of more are left out and counted.
pub(crate) const GROUPS_MAX: usize = 1 << 20;
/// Hosts and regions told of one match; a fleet-wide one may have any number.
pub(crate) const PLACES_MAX: usize = 64;
/// Levels of correlations over each other.
pub(crate) const LEVELS: usize = weir_rules::limits::CORRELATION_LEVELS_MAX;
/// Settled hits are taken out of a group so often: it changes no answer, and a busy group is not gone through each tick for it.
const SETTLE_EVERY_MS: u64 = 5_000;
