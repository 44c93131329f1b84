//! The plan: relations in, one relation out.
//!
//! Every operator maps a multiset of rows to a multiset of rows; rows come and go with the tick. Columns are unqualified: a
//! join whose sides share a name is refused until one side renames it.

use std::sync::Arc;

use datafusion_expr::{AggregateUDF, Expr};

use crate::Sequence;

/// A standing question.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// The rows of a relation.
    Source {
        /// Its name.
        relation: String,
    },
    /// The rows for which the predicate is true (neither false nor NULL).
    Filter {
        /// Rows in.
        input: Box<Self>,
        /// A Boolean.
        predicate: Expr,
    },
    /// One row per row, of new columns.
    Project {
        /// Rows in.
        input: Box<Self>,
        /// Each column and its name.
        exprs: Vec<(Expr, String)>,
    },
    /// One row per group. Without keys there is always exactly one group, also over nothing.
    Aggregate {
        /// Rows in.
        input: Box<Self>,
        /// What makes a group; NULLs are equal.
        keys: Vec<(Expr, String)>,
        /// What is kept of it.
        aggregates: Vec<AggregateCall>,
        /// Over the input: the row is never retracted at a tick beyond this one. It bounds the state of min and max.
        settled_at: Option<Expr>,
        /// Over the key columns: from this tick on the group's state is dropped, its row stays as it is, and further rows
        /// of it are ignored and counted. A [`Plan::Temporal`] above takes the row away.
        forget_at: Option<Expr>,
    },
    /// Pairs of rows with equal keys; a NULL key matches nothing.
    Join {
        /// Rows whose columns come first.
        left: Box<Self>,
        /// Rows whose columns come second.
        right: Box<Self>,
        /// Equalities: (over left, over right).
        on: Vec<(Expr, Expr)>,
        /// What becomes of rows without a partner.
        kind: JoinKind,
        /// A Boolean over both sides that a pair must also pass.
        residual: Option<Expr>,
    },
    /// The calendar: a row is there while `visible_from` ≤ tick < `visible_until`. Timestamps, or milliseconds as integers;
    /// NULL is "since ever" or "for ever".
    Temporal {
        /// Rows in.
        input: Box<Self>,
        /// First tick.
        visible_from: Option<Expr>,
        /// First tick no more.
        visible_until: Option<Expr>,
    },
    /// One row per window that holds the row's time, with the window's start (inclusive) and end (exclusive) added. Windows
    /// are aligned to 1970; hop = size is a tumbling window. A NULL time is in no window.
    HopWindow {
        /// Rows in.
        input: Box<Self>,
        /// A timestamp, or milliseconds as BIGINT; the window's bounds are of its type.
        time: Expr,
        /// From one start to the next.
        hop_ms: u64,
        /// From start to end; a multiple of the hop.
        size_ms: u64,
        /// Name of the start column.
        start_name: String,
        /// Name of the end column.
        end_name: String,
    },
    /// The first rows per partition, ranked from 1; ties are broken on the whole row, copies of a row have ranks of their own.
    TopK {
        /// Rows in.
        input: Box<Self>,
        /// Empty: one ranking over all.
        partition: Vec<Expr>,
        /// (expression, descending); NULLs are last ascending and first descending, as in PostgreSQL.
        order: Vec<(Expr, bool)>,
        /// Ranks kept.
        limit: u64,
        /// Name of the rank column, which comes last.
        rank_name: String,
    },
    /// Each row as often as the number says; not at all where it is NULL or not above 0.
    Repeat {
        /// Rows in.
        input: Box<Self>,
        /// How often: a BIGINT.
        times: Expr,
    },
    /// Each row and what window functions say of it among the rows of its partition. A changed partition is answered anew.
    Over {
        /// Rows in.
        input: Box<Self>,
        /// What makes a partition; NULLs are equal.
        partition: Vec<Expr>,
        /// (expression, descending), as in [`Plan::TopK`]; ties are put in order by the whole row.
        order: Vec<(Expr, bool)>,
        /// Window functions over this partition and order, and the names of their columns, which come last.
        calls: Vec<(Expr, String)>,
    },
    /// All rows of all inputs (a bag: UNION ALL). Columns go by position; names are the first input's.
    Union {
        /// At least one.
        inputs: Vec<Self>,
    },
    /// Chains of rows that follow each other, per key.
    Sequence {
        /// Rows in.
        input: Box<Self>,
        /// What follows what.
        sequence: Sequence,
    },
}

/// What becomes of a join's rows without a partner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinKind {
    /// They are dropped.
    Inner,
    /// Those of the left side stay, with NULLs for the right.
    Left,
    /// Those of both sides stay.
    Full,
    /// Only rows of the left side that have a partner, as they are.
    Semi,
    /// Only rows of the left side that have none, as they are.
    Anti,
    /// Rows of the left side, and a last column `mark` that says whether they have a partner.
    Mark,
}

impl JoinKind {
    /// Whether a row is a pair, and not one of the left side.
    pub fn pairs(self) -> bool {
        matches!(self, Self::Inner | Self::Left | Self::Full)
    }
}

/// The column that [`JoinKind::Mark`] adds.
pub const MARK: &str = "mark";

/// One column of an aggregate.
#[derive(Debug, Clone, PartialEq)]
pub struct AggregateCall {
    /// What is computed.
    pub func: AggregateFunc,
    /// Of what; none only for [`AggregateFunc::Count`]. Rows where it is NULL do not take part.
    pub arg: Option<Expr>,
    /// Only of rows that pass.
    pub filter: Option<Expr>,
    /// The column's name.
    pub name: String,
}

/// The aggregates. All but `Count` and `CountDistinct` are NULL over nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum AggregateFunc {
    /// Rows, or non-NULL arguments.
    Count,
    /// Distinct non-NULL arguments.
    CountDistinct,
    /// Sum of integers, held in 128 bits; NULL and counted as an error while it does not fit 64.
    Sum,
    /// Mean of integers, from the exact sum.
    Avg,
    /// Least.
    Min,
    /// Greatest.
    Max,
    /// The argument of the row with the greatest `by`; of several, the greatest argument.
    ArgMax {
        /// Rows where it is NULL do not take part.
        by: Expr,
    },
    /// The argument of the row with the least `by`; of several, the least argument.
    ArgMin {
        /// Rows where it is NULL do not take part.
        by: Expr,
    },
    /// The value at this fraction (0 to 1) of the ordered arguments, interpolated.
    PercentileCont(f64),
    /// Any other aggregate function, made anew from all values of a group that changes. It keeps them all.
    Recomputed(Box<Recomputed>),
}

/// An aggregate without a state that rows can be taken from: see [`AggregateFunc::Recomputed`].
#[derive(Debug, Clone, PartialEq)]
pub struct Recomputed {
    /// The function.
    pub function: Arc<AggregateUDF>,
    /// Its arguments. NULLs are the function's to heed.
    pub args: Vec<Expr>,
    /// (expression, descending): in which order it is given the rows; of equal ones, in that of the arguments.
    pub order: Vec<(Expr, bool)>,
    /// Equal arguments count once.
    pub distinct: bool,
}

/// What keeps an aggregate's state bounded: see [`Plan::Aggregate`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bounds {
    /// Over the input.
    pub settled_at: Option<Expr>,
    /// Over the key columns.
    pub forget_at: Option<Expr>,
}

impl Plan {
    /// The rows of a relation.
    pub fn source(relation: impl Into<String>) -> Self {
        Self::Source { relation: relation.into() }
    }

    /// Keeps the rows that pass.
    pub fn filter(self, predicate: Expr) -> Self {
        Self::Filter { input: Box::new(self), predicate }
    }

    /// New columns.
    pub fn project<N: Into<String>>(self, exprs: impl IntoIterator<Item = (Expr, N)>) -> Self {
        Self::Project { input: Box::new(self), exprs: named(exprs) }
    }

    /// These columns, under their own names.
    pub fn select<'a>(self, columns: impl IntoIterator<Item = &'a str>) -> Self {
        self.project(columns.into_iter().map(|name| (datafusion_expr::ident(name), name)))
    }

    /// One row per group.
    pub fn aggregate<N: Into<String>>(
        self,
        keys: impl IntoIterator<Item = (Expr, N)>,
        aggregates: impl IntoIterator<Item = AggregateCall>,
    ) -> Self {
        self.aggregate_bounded(keys, aggregates, Bounds::default())
    }

    /// One row per group, of bounded state.
    pub fn aggregate_bounded<N: Into<String>>(
        self,
        keys: impl IntoIterator<Item = (Expr, N)>,
        aggregates: impl IntoIterator<Item = AggregateCall>,
        bounds: Bounds,
    ) -> Self {
        Self::Aggregate {
            input: Box::new(self),
            keys: named(keys),
            aggregates: aggregates.into_iter().collect(),
            settled_at: bounds.settled_at,
            forget_at: bounds.forget_at,
        }
    }

    /// The distinct rows of these expressions.
    pub fn distinct<N: Into<String>>(self, keys: impl IntoIterator<Item = (Expr, N)>) -> Self {
        self.aggregate(keys, [])
    }

    /// Pairs with equal keys.
    pub fn join(self, right: Self, kind: JoinKind, on: impl IntoIterator<Item = (Expr, Expr)>) -> Self {
        Self::Join { left: Box::new(self), right: Box::new(right), on: on.into_iter().collect(), kind, residual: None }
    }

    /// Pairs with equal keys that also pass a predicate over both.
    pub fn join_where(self, right: Self, kind: JoinKind, on: impl IntoIterator<Item = (Expr, Expr)>, residual: Expr) -> Self {
        let (left, right) = (Box::new(self), Box::new(right));
        Self::Join { left, right, on: on.into_iter().collect(), kind, residual: Some(residual) }
    }

    /// Rows are there from one tick on, until another.
    pub fn visible(self, from: Option<Expr>, until: Option<Expr>) -> Self {
        Self::Temporal { input: Box::new(self), visible_from: from, visible_until: until }
    }

    /// Rows are there until a tick.
    pub fn until(self, until: Expr) -> Self {
        self.visible(None, Some(until))
    }

    /// Rows are there from a tick on.
    pub fn from(self, from: Expr) -> Self {
        self.visible(Some(from), None)
    }

    /// One row per window of `size_ms` that holds `time`; adds `window_start` and `window_end`.
    pub fn hop(self, time: Expr, hop_ms: u64, size_ms: u64) -> Self {
        let (start_name, end_name) = ("window_start".to_owned(), "window_end".to_owned());
        Self::HopWindow { input: Box::new(self), time, hop_ms, size_ms, start_name, end_name }
    }

    /// Windows side by side; adds `window_start` and `window_end`.
    pub fn tumble(self, time: Expr, size_ms: u64) -> Self {
        self.hop(time, size_ms, size_ms)
    }

    /// The first rows per partition, with their rank.
    pub fn top_k(
        self,
        partition: impl IntoIterator<Item = Expr>,
        order: impl IntoIterator<Item = (Expr, bool)>,
        limit: u64,
        rank_name: impl Into<String>,
    ) -> Self {
        let (partition, order) = (partition.into_iter().collect(), order.into_iter().collect());
        Self::TopK { input: Box::new(self), partition, order, limit, rank_name: rank_name.into() }
    }

    /// Each row so many times.
    pub fn repeat(self, times: Expr) -> Self {
        Self::Repeat { input: Box::new(self), times }
    }

    /// All rows of all plans.
    pub fn union(inputs: impl IntoIterator<Item = Self>) -> Self {
        Self::Union { inputs: inputs.into_iter().collect() }
    }

    /// The plans this one reads.
    pub fn inputs(&self) -> Vec<&Self> {
        match self {
            Self::Source { .. } => vec![],
            Self::Filter { input, .. }
            | Self::Project { input, .. }
            | Self::Aggregate { input, .. }
            | Self::Temporal { input, .. }
            | Self::HopWindow { input, .. }
            | Self::TopK { input, .. }
            | Self::Repeat { input, .. }
            | Self::Over { input, .. }
            | Self::Sequence { input, .. } => vec![input],
            Self::Join { left, right, .. } => vec![left, right],
            Self::Union { inputs } => inputs.iter().collect(),
        }
    }

    /// The plans this one reads, to be changed.
    pub(crate) fn inputs_mut(&mut self) -> Vec<&mut Self> {
        match self {
            Self::Source { .. } => vec![],
            Self::Filter { input, .. }
            | Self::Project { input, .. }
            | Self::Aggregate { input, .. }
            | Self::Temporal { input, .. }
            | Self::HopWindow { input, .. }
            | Self::TopK { input, .. }
            | Self::Repeat { input, .. }
            | Self::Over { input, .. }
            | Self::Sequence { input, .. } => vec![input],
            Self::Join { left, right, .. } => vec![left, right],
            Self::Union { inputs } => inputs.iter_mut().collect(),
        }
    }

    /// The relations this plan reads, each once, sorted.
    pub fn relations(&self) -> Vec<&str> {
        let mut names = match self {
            Self::Source { relation } => vec![relation.as_str()],
            other => other.inputs().into_iter().flat_map(Self::relations).collect(),
        };
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl AggregateCall {
    /// `func` of `arg`.
    pub fn new(func: AggregateFunc, arg: Expr, name: impl Into<String>) -> Self {
        Self { func, arg: Some(arg), filter: None, name: name.into() }
    }

    /// Number of rows.
    pub fn count(name: impl Into<String>) -> Self {
        Self { func: AggregateFunc::Count, arg: None, filter: None, name: name.into() }
    }

    /// Number of rows that pass.
    pub fn count_if(filter: Expr, name: impl Into<String>) -> Self {
        Self::count(name).filter(filter)
    }

    /// Number of distinct values.
    pub fn count_distinct(arg: Expr, name: impl Into<String>) -> Self {
        Self::new(AggregateFunc::CountDistinct, arg, name)
    }

    /// Sum of integers.
    pub fn sum(arg: Expr, name: impl Into<String>) -> Self {
        Self::new(AggregateFunc::Sum, arg, name)
    }

    /// Mean of integers.
    pub fn avg(arg: Expr, name: impl Into<String>) -> Self {
        Self::new(AggregateFunc::Avg, arg, name)
    }

    /// Least value.
    pub fn min(arg: Expr, name: impl Into<String>) -> Self {
        Self::new(AggregateFunc::Min, arg, name)
    }

    /// Greatest value.
    pub fn max(arg: Expr, name: impl Into<String>) -> Self {
        Self::new(AggregateFunc::Max, arg, name)
    }

    /// `arg` where `by` is greatest.
    pub fn arg_max(arg: Expr, by: Expr, name: impl Into<String>) -> Self {
        Self::new(AggregateFunc::ArgMax { by }, arg, name)
    }

    /// `arg` where `by` is least.
    pub fn arg_min(arg: Expr, by: Expr, name: impl Into<String>) -> Self {
        Self::new(AggregateFunc::ArgMin { by }, arg, name)
    }

    /// The value at a fraction of the ordered values.
    pub fn percentile(fraction: f64, arg: Expr, name: impl Into<String>) -> Self {
        Self::new(AggregateFunc::PercentileCont(fraction), arg, name)
    }

    /// Only of rows that pass.
    pub fn filter(mut self, filter: Expr) -> Self {
        self.filter = Some(match self.filter.take() {
            Some(before) => before.and(filter),
            None => filter,
        });
        self
    }
}

fn named<N: Into<String>>(exprs: impl IntoIterator<Item = (Expr, N)>) -> Vec<(Expr, String)> {
    exprs.into_iter().map(|(expr, name)| (expr, name.into())).collect()
}
