//! The reference: the same question asked of DataFusion over all present rows, from scratch at every tick.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::compute::cast as cast_array;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::datasource::MemTable;
use datafusion::functions::core::expr_fn::{get_field, named_struct};
use datafusion::functions_aggregate::expr_fn as agg;
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{ExprFunctionExt, JoinType, SortExpr};
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use weir_plan::{AggregateCall, AggregateFunc, Expr, JoinKind, Plan, cast, col, lit, text_type, time_type};

use super::questions::{at, now_of_datafusion};
use super::rows::{Bag, COLUMNS, History, SOURCES, add, batch, lines};

/// The answer after each tick.
pub fn answers(plan: &Plan, history: &History) -> BTreeMap<u64, Bag> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    history.ticks.iter().map(|(tick, _)| (*tick, runtime.block_on(answer(plan, history, *tick)))).collect()
}

/// The answer to a question in SQL after each tick.
pub fn told(sql: &str, history: &History) -> BTreeMap<u64, Bag> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let one = |tick: u64| async move {
        let mut bag = Bag::new();
        let asked = at(sql, &now_of_datafusion(tick));
        let frame = session(history, tick).sql(&asked).await.unwrap_or_else(|error| panic!("{asked}: {error}"));
        for rows in frame.collect().await.unwrap_or_else(|error| panic!("{asked}: {error}")) {
            lines(&rows).into_iter().for_each(|line| add(&mut bag, line, 1));
        }
        bag
    };
    history.ticks.iter().map(|(tick, _)| (*tick, runtime.block_on(one(*tick)))).collect()
}

fn session(history: &History, tick: u64) -> SessionContext {
    let session = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    for source in SOURCES {
        let rows = plain(&batch(&history.present(source, tick)));
        session.register_table(source, Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]]).unwrap())).unwrap();
    }
    session
}

async fn answer(plan: &Plan, history: &History, tick: u64) -> Bag {
    let session = session(history, tick);
    let mut bag = Bag::new();
    for rows in frame(plan, &session, tick).await.collect().await.unwrap() {
        lines(&rows).into_iter().for_each(|line| add(&mut bag, line, 1));
    }
    bag
}

/// Text as plain strings: the reference knows nothing of dictionaries.
fn plain(rows: &RecordBatch) -> RecordBatch {
    let column = |name: &str| match rows.column_by_name(name).unwrap() {
        text if text.data_type() == &text_type() => cast_array(text, &DataType::Utf8).unwrap(),
        other => Arc::clone(other),
    };
    RecordBatch::try_from_iter_with_nullable(COLUMNS.map(|name| (name, column(name), true))).unwrap()
}

async fn frame(plan: &Plan, session: &SessionContext, tick: u64) -> DataFrame {
    let mut inputs = vec![];
    for input in plan.inputs() {
        inputs.push(Box::pin(frame(input, session, tick)).await);
    }
    let mut inputs = inputs.into_iter();
    let mut input = || inputs.next().unwrap();
    match plan {
        Plan::Source { relation } => session.table(relation.as_str()).await.unwrap(),
        Plan::Filter { predicate, .. } => input().filter(predicate.clone()).unwrap(),
        Plan::Project { exprs, .. } => input().select(exprs.iter().map(|(expr, name)| expr.clone().alias(name))).unwrap(),
        Plan::Aggregate { keys, aggregates, .. } => {
            let names: Vec<_> = keys.iter().map(|(_, name)| col(name)).collect();
            let keys = keys.iter().map(|(key, name)| key.clone().alias(name)).collect::<Vec<_>>();
            // DataFusion has no group-by without aggregates in this API; a count on the side is left out again.
            let calls = aggregates.iter().map(call).chain([agg::count(lit(1)).alias("unused")]).collect();
            let grouped = input().aggregate(keys, calls).unwrap();
            let value = |call: &AggregateCall| match call.func {
                AggregateFunc::ArgMax { .. } | AggregateFunc::ArgMin { .. } => {
                    get_field(col(&call.name), "arg").alias(&call.name)
                }
                _ => col(&call.name),
            };
            grouped.select(names.into_iter().chain(aggregates.iter().map(value))).unwrap()
        }
        Plan::Join { on, kind, residual, .. } => {
            let kind = match kind {
                JoinKind::Inner => JoinType::Inner,
                JoinKind::Left => JoinType::Left,
                JoinKind::Full => JoinType::Full,
                JoinKind::Semi => JoinType::LeftSemi,
                JoinKind::Anti => JoinType::LeftAnti,
                JoinKind::Mark => JoinType::LeftMark,
            };
            let on = on.iter().map(|(left, right)| left.clone().eq(right.clone())).chain(residual.clone());
            let left = input();
            left.join_on(input(), kind, on).unwrap()
        }
        Plan::Temporal { visible_from, visible_until, .. } => {
            let now = |other: &Expr| {
                (
                    cast(lit(ScalarValue::TimestampNanosecond(Some(tick as i64 * 1_000_000), Some("UTC".into()))), time_type()),
                    other.clone(),
                )
            };
            let from = visible_from.as_ref().map(|from| now(from).1.lt_eq(now(from).0).or(from.clone().is_null()));
            let until = visible_until.as_ref().map(|until| now(until).0.lt(now(until).1).or(until.clone().is_null()));
            input().filter(from.into_iter().chain(until).fold(lit(true), Expr::and)).unwrap()
        }
        Plan::HopWindow { time, hop_ms, size_ms, start_name, end_name, .. } => {
            windows(input(), time, [*hop_ms, *size_ms], start_name, end_name)
        }
        Plan::TopK { partition, order, limit, rank_name, .. } => {
            let input = input();
            let ties = input.schema().columns().into_iter().map(|column| Expr::Column(column).sort(true, false));
            let order = order.iter().map(|(expr, desc)| expr.clone().sort(!*desc, *desc)).chain(ties).collect::<Vec<SortExpr>>();
            let rank = row_number().partition_by(partition.clone()).order_by(order).build().unwrap();
            input.window(vec![rank.alias(rank_name)]).unwrap().filter(col(rank_name).lt_eq(lit(*limit))).unwrap()
        }
        Plan::Union { .. } => {
            let first = input();
            inputs.fold(first, |all, next| all.union(next).unwrap())
        }
        Plan::Repeat { .. } | Plan::Over { .. } => unreachable!("asked in SQL"),
        Plan::Sequence { .. } => unreachable!("sequences have a brute-force matcher beside them"),
    }
}

fn windows(input: DataFrame, time: &Expr, [hop_ms, size_ms]: [u64; 2], start_name: &str, end_name: &str) -> DataFrame {
    let input = input.filter(time.clone().is_not_null()).unwrap();
    let columns: Vec<Expr> = input.schema().columns().into_iter().map(Expr::Column).collect();
    let hop = (hop_ms * 1_000_000) as i64;
    let back = |windows: i64| {
        let start = cast(time.clone(), DataType::Int64) / lit(hop) * lit(hop) - lit(windows * hop);
        let end = start.clone() + lit((size_ms * 1_000_000) as i64);
        let bounds = [cast(start, time_type()).alias(start_name), cast(end, time_type()).alias(end_name)];
        input.clone().select(columns.iter().cloned().chain(bounds)).unwrap()
    };
    (1..(size_ms / hop_ms) as i64).fold(back(0), |all, windows| all.union(back(windows)).unwrap())
}

fn call(call: &AggregateCall) -> Expr {
    let arg = call.arg.clone().unwrap_or_else(|| lit(1));
    let mut filter = call.filter.clone();
    // Not `first_value`: its groups trip an assertion of DataFusion's own. Structs compare field by field.
    let mut pair = |by: &Expr| {
        let takes_part = arg.clone().is_not_null().and(by.clone().is_not_null());
        filter = Some(filter.take().map_or_else(|| takes_part.clone(), |filter| filter.and(takes_part.clone())));
        named_struct(vec![lit("by"), by.clone(), lit("arg"), arg.clone()])
    };
    let plain = match &call.func {
        AggregateFunc::ArgMax { by } => agg::max(pair(by)),
        AggregateFunc::ArgMin { by } => agg::min(pair(by)),
        AggregateFunc::PercentileCont(fraction) => {
            let order = cast(arg, DataType::Float64).sort(true, false);
            let plain = agg::percentile_cont(order.clone(), lit(*fraction));
            let filtered = call.filter.clone().map(|filter| plain.clone().order_by(vec![order]).filter(filter).build().unwrap());
            return filtered.unwrap_or(plain).alias(&call.name);
        }
        AggregateFunc::Count => agg::count(arg),
        AggregateFunc::CountDistinct => agg::count_distinct(arg),
        AggregateFunc::Sum => agg::sum(arg),
        AggregateFunc::Avg => agg::avg(arg),
        AggregateFunc::Min => agg::min(arg),
        AggregateFunc::Max => agg::max(arg),
        AggregateFunc::Recomputed(_) => unreachable!("asked in SQL"),
    };
    match filter {
        // The builder replaces what the call has set.
        Some(filter) if call.func == AggregateFunc::CountDistinct => {
            plain.distinct().filter(filter).build().unwrap().alias(&call.name)
        }
        Some(filter) => plain.filter(filter).build().unwrap().alias(&call.name),
        None => plain.alias(&call.name),
    }
}
