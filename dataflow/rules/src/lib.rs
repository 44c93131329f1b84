//! Falco and Sigma rule files: parse, merge, compile to one shared graph of checks, evaluate. No I/O.
//!
//! The way of a rule: text → `yaml` → `item` → `merge` (append, override, replace) → `parse` (condition to tree) → `resolve`
//! (macros, lists, fields, exceptions) → `graph` (equal expressions once) → `Matcher` (each once per event). What fields
//! mean stands in one table, `fields`; what an event of ours has for them in `event`.
//!
//! Chosen, and not compared with a running Falco: `regex` matches the whole text, `oneof` means exactly one, an unset field
//! makes `!=` false, macros and lists may be defined after their use, a rule that is wrong leaves the others loaded.
//!
//! Sigma's way: text → `yaml` → `sigma` (selections, condition) → the same `graph`; its comparisons stand in `pattern`, its
//! log sources in one table, `sigma/logsource`. Falco's macros, lists and merging are not Sigma's. What correlations make of the
//! hits of rules stands in `correlation`.
//!
//! Promise: no text makes it panic or grow without bound (`limits`); what is refused is refused by file, line and cure.

#![forbid(unsafe_code)]

mod ast;
mod check;
mod correlation;
mod coverage;
mod error;
mod event;
#[cfg(test)]
mod event_tests;
mod exception;
mod exception_rows;
mod fields;
mod fingerprint;
mod graph;
mod inputs;
mod item;
pub mod limits;
mod matcher;
mod merge;
mod names;
mod own;
mod parse;
#[cfg(test)]
mod parse_tests;
mod pass;
mod pattern;
mod program;
mod resolve;
mod scan;
mod set;
#[cfg(test)]
mod set_tests;
mod sigma;
mod template;
mod text;
mod value;
mod version;
mod yaml;

pub use correlation::{
    Around, Comparison, Condition, Correlation, CorrelationHit, Correlator, Datum, Grouped, Input, InputOf, Match, Measure,
    Moment, Seen, Shape, Stretch,
};
pub use coverage::{AttackTable, Claim, Coverage, Technique, techniques_of};
pub use error::{Error, Place, Why};
pub use event::EventFields;
pub use exception_rows::{ExceptionRow, Exceptions, RowError};
pub use fields::{Argument, FIELDS, Field, FieldDef, FieldId, Many, Ty};
pub use matcher::Matcher;
pub use pass::{Pass, Scratch};
pub use set::{Contradiction, Language, Matching, Notice, Priority, Rule, RuleSet, Selection};
pub use sigma::Pipeline;
pub use template::Template;
pub use value::{FieldSource, Value};
pub use version::{ENGINE, Version};
