//! Chains: events that follow each other, of rules that people make (`CREATE RULE … AS SEQUENCE`).
//!
//! ```text
//! frames ─ own (each stage asked of the columns of a batch) ─ hits (by rule and key) ─ keys ─┬─ rows of `alerts`
//!                                        another rule from this tick on ─────────────────────┼─ rows of the rule's relation
//!                                                                                            └─ rows of `losses`: what was capped
//! ```
//!
//! What a chain is stands in `weir_plan::Sequence`; keys are the rule's, and the tenant before them. Without OVERLAP, of the chains of a key in the
//! order of their first events one that begins before the last one told has ended is left out. What must not happen behind the last stage is
//! waited for until the span is over.
//!
//! Promise: while the rules stay, the chains at a closed tick are a function of the set of events admitted up to it and of the tick, but for the columns
//! `revision`, `closed_through` and `lost_events` of `alerts`, and its rows that are `withdrawn` because a late event undid a chain: these
//! are shown until the chain would have been settled. An event is asked by the rules of the tick that admits it, never again.
//!
//! An event that is admitted at tick t is not older than t − R. So a chain whose first event is older than t − R − MAXSPAN changes no more, and of a key
//! only younger hits are kept. A chain is shown for `KEEP_MS` after its last event.
//!
//! The logic is in pure structs (`Shape`, `KeyChains`, `Chains`); `operator.rs` gives them to timely.

mod compiled;
mod hit;
mod key;
mod operator;
mod row;
mod saved;
mod shape;
mod spot;
mod state;
#[cfg(test)]
mod tests;

pub(crate) use compiled::{ChainHead, ChainRule, RulesInForce, info_of};
pub use compiled::{RuleDefinition, eql_definition, rule_definition, rule_definitions};
pub(crate) use hit::ChainHit;
pub(crate) use operator::{ChainCounts, ChainOptions, Relations, chains};
pub(crate) use spot::spot;

/// How long a chain is shown after its last event, as other alerts are.
pub(crate) const KEEP_MS: u64 = crate::alerts::KEEP_MS;
/// Chains shown of one key. Beyond it the oldest that is settled goes, as alerts of a host do.
pub(crate) const CHAINS_PER_KEY_MAX: usize = 4_096;
/// Keys that one worker keeps, some hundred bytes each and their hits. Hits of more are left out and counted.
pub(crate) const KEYS_MAX: usize = 1 << 20;
