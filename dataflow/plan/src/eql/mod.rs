//! EQL, the event query language of Elastic's rules, as sequence rules of ours: text in, the text of a `CREATE RULE` out.
//!
//! Promise: what is translated means in SQL over `events` what EQL says of the same event; what has no such meaning is refused with its line and a
//! cure, and what asks for a field that nothing supplies is named in [`EqlRule::partly`]. A query over one event becomes a rule of one stage.
//! Where EQL and our sequences differ, ours hold: the span is less than `maxspan`, and of several events that could begin a chain the first does
//! (`sequence.rs`); a sequence without `by` has the tenant as its key. Which of ECS's fields are which of our columns stands in `fields.rs`.

mod ast;
mod fields;
mod files;
mod functions;
mod lex;
mod parse;
mod pattern;
mod translate;

#[cfg(test)]
mod tests;

pub use files::{EQL_ENDINGS, EqlRule, eql_rule};

use crate::Error;

/// A query with more bytes is refused.
pub(super) const BYTES_MAX: usize = 64 * 1024;
/// Parentheses, calls and `not` may stand in each other so deep: reading and planning go as deep on the stack.
pub(super) const DEPTH_MAX: usize = 24;

/// A mistake at a line.
fn wrong(line: usize, why: impl Into<String>) -> Error {
    Error::wrong_type(format!("line {line} of the query"), why)
}

/// A construct that is EQL's and not ours.
fn refused(line: usize, what: &str, cure: &str) -> Error {
    Error::unsupported(format!("line {line} of the query: {what}"), cure)
}
