//! A plan as text: one operator a line, its inputs indented below it.

use std::fmt::{self, Display, Formatter, Write};

use crate::{AggregateCall, AggregateFunc, Plan};

impl Plan {
    /// The plan as text.
    pub fn explain(&self) -> String {
        self.to_string()
    }

    fn write(&self, out: &mut Formatter<'_>, depth: usize) -> fmt::Result {
        writeln!(out, "{:width$}{}", "", self.line(), width = depth * 2)?;
        self.inputs().into_iter().try_for_each(|input| input.write(out, depth + 1))
    }

    fn line(&self) -> String {
        match self {
            Self::Source { relation } => format!("source {relation}"),
            Self::Filter { predicate, .. } => format!("filter {predicate}"),
            Self::Project { exprs, .. } => format!("project {}", list(exprs.iter().map(as_name))),
            Self::Aggregate { keys, aggregates, settled_at, forget_at, .. } => {
                let keys = list(keys.iter().map(as_name));
                let mut line = format!("aggregate by [{keys}] of [{}]", list(aggregates.iter().map(ToString::to_string)));
                option(&mut line, "settled at", settled_at);
                option(&mut line, "forgotten at", forget_at);
                line
            }
            Self::Join { on, kind, residual, .. } => {
                let pairs = list(on.iter().map(|(left, right)| format!("{left} = {right}")));
                let mut line = format!("{} join on {pairs}", format!("{kind:?}").to_lowercase());
                option(&mut line, "where", residual);
                line
            }
            Self::Temporal { visible_from, visible_until, .. } => {
                let mut line = "visible".to_owned();
                option(&mut line, "from", visible_from);
                option(&mut line, "until", visible_until);
                line
            }
            Self::HopWindow { time, hop_ms, size_ms, .. } => format!("window of {size_ms} ms by {hop_ms} ms over {time}"),
            Self::TopK { partition, order, limit, .. } => {
                let order = list(order.iter().map(|(expr, desc)| format!("{expr}{}", if *desc { " desc" } else { "" })));
                format!("top {limit} by [{}] in order [{order}]", list(partition.iter().map(ToString::to_string)))
            }
            Self::Repeat { times, .. } => format!("repeat {times} times"),
            Self::Over { partition, order, calls, .. } => {
                let order = list(order.iter().map(|(expr, desc)| format!("{expr}{}", if *desc { " desc" } else { "" })));
                let calls = list(calls.iter().map(as_name));
                format!("over [{}] in order [{order}]: {calls}", list(partition.iter().map(ToString::to_string)))
            }
            Self::Union { .. } => "union".to_owned(),
            Self::Sequence { sequence, .. } => {
                let stages = list(sequence.stages.iter().map(|stage| format!("{} as {}", stage.predicate, stage.time_name)));
                let keys = list(sequence.keys.iter().map(as_name));
                let (time, within) = (&sequence.time, sequence.max_span_ms);
                let mut text = format!("sequence by [{keys}] of [{stages}] in order of {time} within {within} ms");
                for absent in &sequence.absent {
                    text += &format!(", none of {} after stage {}", absent.predicate, absent.after);
                }
                if let Some(until) = &sequence.until {
                    text += &format!(", until {until}");
                }
                text
            }
        }
    }
}

impl Display for Plan {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        self.write(out, 0)
    }
}

impl Display for AggregateCall {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let arg = self.arg.as_ref().map_or_else(|| "*".to_owned(), ToString::to_string);
        match &self.func {
            AggregateFunc::Count => write!(out, "count({arg})"),
            AggregateFunc::CountDistinct => write!(out, "count(distinct {arg})"),
            AggregateFunc::Sum => write!(out, "sum({arg})"),
            AggregateFunc::Avg => write!(out, "avg({arg})"),
            AggregateFunc::Min => write!(out, "min({arg})"),
            AggregateFunc::Max => write!(out, "max({arg})"),
            AggregateFunc::ArgMax { by } => write!(out, "arg_max({arg} by {by})"),
            AggregateFunc::ArgMin { by } => write!(out, "arg_min({arg} by {by})"),
            AggregateFunc::PercentileCont(fraction) => write!(out, "percentile_cont({fraction}, {arg})"),
            AggregateFunc::Recomputed(call) => {
                let order = list(call.order.iter().map(|(expr, desc)| format!("{expr}{}", if *desc { " desc" } else { "" })));
                let args = list(call.args.iter().map(ToString::to_string));
                let (distinct, by) =
                    (if call.distinct { "distinct " } else { "" }, if order.is_empty() { "" } else { " order by " });
                write!(out, "{}({distinct}{args}{by}{order})", call.function.name())
            }
        }?;
        if let Some(filter) = &self.filter {
            write!(out, " filter {filter}")?;
        }
        write!(out, " as {}", self.name)
    }
}

fn as_name((expr, name): &(datafusion_expr::Expr, String)) -> String {
    let text = expr.to_string();
    if &text == name { text } else { format!("{text} as {name}") }
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

fn option(line: &mut String, word: &str, expr: &Option<datafusion_expr::Expr>) {
    if let Some(expr) = expr {
        write!(line, " {word} {expr}").expect("a String takes text");
    }
}
