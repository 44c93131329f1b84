//! One language for every standing question.
//!
//! A [`Plan`] says which rows an answer holds, not how they are kept up to date: that is `weir-dataflow`'s. Scalar
//! expressions are DataFusion's logical `Expr`s, so live and past share one function library.
//! Promise: what [`Plan::schema`] accepts can be rendered; what has no exact meaning under retraction is refused here, by name.
#![forbid(unsafe_code)]

mod call;
mod check;
mod clock;
mod eql;
mod error;
mod explain;
mod grouping;
mod inet;
mod joins;
mod lower;
mod meaning;
mod over;
mod plan;
mod product;
mod prune;
mod ranking;
mod rule;
mod rule_syntax;
mod scalar;
mod script;
mod sequence;
mod set_operation;
mod sql;
mod subquery;
mod table;
mod window;

pub use datafusion_expr::{Expr, cast, col, lit, when};

pub use call::{Call, over_call, recomputed};
pub use check::SchemaOf;
pub use eql::{EQL_ENDINGS, EqlRule, eql_rule};
pub use error::Error;
pub use inet::{InetPlanner, inet_functions};
pub use meaning::{Meaning, named_as_postgresql};
pub use plan::{AggregateCall, AggregateFunc, Bounds, JoinKind, MARK, Plan, Recomputed};
pub use rule::{Rule, RuleStep, StepPart};
pub use scalar::{Scalar, normal_type, resolve, text_type, time_type};
pub use script::{compile_script, statements};
pub use sequence::{Absent, Sequence, Stage};
pub use sql::compile;
pub use table::Table;
