//! The door: which columns a plan's answer has, or why the plan is refused.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion_expr::Expr;

use crate::call::{over_call, recomputed};
use crate::plan::MARK;
use crate::{AggregateCall, AggregateFunc, Error, JoinKind, Plan, normal_type, resolve, time_type};

/// Which relations there are.
pub trait SchemaOf {
    /// The columns of a relation, if it exists.
    fn schema_of(&self, relation: &str) -> Option<SchemaRef>;

    /// The SELECT that a relation is only a name for: it is put in the name's place.
    fn text_of(&self, _relation: &str) -> Option<String> {
        None
    }

    /// Whether a relation is a table that people write, whose size has a limit: every row of it may meet every row of another.
    fn is_table(&self, _relation: &str) -> bool {
        false
    }
}

impl<S: BuildHasher> SchemaOf for HashMap<String, SchemaRef, S> {
    fn schema_of(&self, relation: &str) -> Option<SchemaRef> {
        self.get(relation).cloned()
    }
}

impl Plan {
    /// Checks the whole plan and says which columns its rows have. Derived columns are always nullable.
    pub fn schema(&self, relations: &dyn SchemaOf) -> Result<SchemaRef, Error> {
        match self {
            Self::Source { relation } => relations.schema_of(relation).ok_or_else(|| Error::NoRelation(relation.clone())),
            Self::Filter { input, predicate } => {
                let schema = input.schema(relations)?;
                boolean(predicate, &schema, "filter")?;
                Ok(schema)
            }
            Self::Project { input, exprs } => {
                let schema = input.schema(relations)?;
                fields(exprs.iter().map(|(expr, name)| typed(expr, name, &schema, "project")), "project")
            }
            Self::Aggregate { input, keys, aggregates, settled_at, forget_at } => {
                let schema = input.schema(relations)?;
                if let Some(at) = settled_at {
                    moment(at, &schema, "aggregate, settled_at")?;
                }
                aggregate(keys, aggregates, forget_at.as_ref(), &schema)
            }
            Self::Join { left, right, on, kind, residual } => {
                let meets_all = on.iter().all(|(left, right)| left.column_refs().is_empty() && right.column_refs().is_empty());
                if meets_all && !on.is_empty() && !is_bounded(left, relations) && !is_bounded(right, relations) {
                    return Err(Error::unsupported(
                        "a join without an equality of both sides",
                        "every row would meet every other; one side must be a table, a single row or a LIMIT",
                    ));
                }
                let (left, right) = (left.schema(relations)?, right.schema(relations)?);
                join(&left, &right, on, *kind, residual.as_ref())
            }
            Self::Repeat { input, times } => {
                let schema = input.schema(relations)?;
                match resolve(times, &schema, "repeat")?.data_type {
                    DataType::Int64 => Ok(schema),
                    other => Err(Error::wrong_type(format!("repeat ({times})"), format!("a BIGINT is needed, not {other}"))),
                }
            }
            Self::Over { input, partition, order, calls } => {
                let schema = input.schema(relations)?;
                partition.iter().try_for_each(|expr| key(expr, &schema, "over, partition").map(drop))?;
                order.iter().try_for_each(|(expr, _)| resolve(expr, &schema, "over, order").map(drop))?;
                let added = calls.iter().map(|(call, name)| Ok(Field::new(name, over_call(call, &schema)?.1, true)));
                fields(copied(&schema).chain(added), "over")
            }
            Self::Temporal { input, visible_from, visible_until } => {
                let schema = input.schema(relations)?;
                for at in [visible_from, visible_until].into_iter().flatten() {
                    moment(at, &schema, "visible")?;
                }
                Ok(schema)
            }
            Self::HopWindow { input, time, hop_ms, size_ms, start_name, end_name } => {
                hop(input.schema(relations)?.as_ref(), time, [*hop_ms, *size_ms], [start_name, end_name])
            }
            Self::TopK { input, partition, order, limit, rank_name } => {
                let schema = input.schema(relations)?;
                partition.iter().try_for_each(|expr| key(expr, &schema, "top-k, partition").map(drop))?;
                order.iter().try_for_each(|(expr, _)| resolve(expr, &schema, "top-k, order").map(drop))?;
                if *limit == 0 {
                    return Err(Error::wrong_type("top-k", "a limit of 0 keeps nothing"));
                }
                fields(copied(&schema).chain([Ok(Field::new(rank_name, DataType::Int64, true))]), "top-k")
            }
            Self::Union { inputs } => union(inputs, relations),
            Self::Sequence { input, sequence } => sequence.columns(input.schema(relations)?.as_ref()),
        }
    }
}

fn aggregate(
    keys: &[(Expr, String)],
    aggregates: &[AggregateCall],
    forget_at: Option<&Expr>,
    schema: &Schema,
) -> Result<SchemaRef, Error> {
    let keys = || keys.iter().map(|(expr, name)| Ok(Field::new(name, key(expr, schema, "aggregate, key")?, true)));
    if let Some(at) = forget_at {
        moment(at, fields(keys(), "aggregate")?.as_ref(), "aggregate, forget_at")?;
    }
    fields(keys().chain(aggregates.iter().map(|call| call.field(schema))), "aggregate")
}

impl AggregateCall {
    /// The column that this call makes over rows of `schema`.
    fn field(&self, schema: &Schema) -> Result<Field, Error> {
        let place = format!("aggregate \"{}\"", self.name);
        if let Some(filter) = &self.filter {
            boolean(filter, schema, &place)?;
        }
        if let AggregateFunc::Recomputed(call) = &self.func {
            return Ok(Field::new(&self.name, recomputed(call, schema, &place)?.data_type, true));
        }
        let arg = self.arg.as_ref().map(|arg| resolve(arg, schema, &place)).transpose()?.map(|arg| arg.data_type);
        let data_type = match (&self.func, arg) {
            (AggregateFunc::Count, _) | (AggregateFunc::CountDistinct, Some(_)) => DataType::Int64,
            (_, None) => return Err(Error::wrong_type(place, "an argument is missing")),
            (AggregateFunc::Sum, Some(arg)) if arg.is_integer() => DataType::Int64,
            (AggregateFunc::Avg, Some(arg)) if arg.is_integer() => DataType::Float64,
            (AggregateFunc::Sum | AggregateFunc::Avg, Some(arg)) => {
                let why = format!("a sum of {arg} is not exact when rows are withdrawn: cast it to BIGINT");
                return Err(Error::unsupported(place, why));
            }
            (AggregateFunc::Min | AggregateFunc::Max, Some(arg)) => arg,
            (AggregateFunc::ArgMax { by } | AggregateFunc::ArgMin { by }, Some(arg)) => {
                resolve(by, schema, &place)?;
                arg
            }
            (AggregateFunc::Recomputed(_), Some(_)) => return Err(Error::wrong_type(place, "its arguments are in the call")),
            (AggregateFunc::PercentileCont(fraction), Some(arg)) => {
                if !arg.is_numeric() || !(0.0..=1.0).contains(fraction) {
                    return Err(Error::wrong_type(
                        place,
                        format!("percentile_cont({fraction}) of {arg}: give a number and 0 to 1"),
                    ));
                }
                DataType::Float64
            }
        };
        Ok(Field::new(&self.name, data_type, true))
    }
}

fn join(left: &Schema, right: &Schema, on: &[(Expr, Expr)], kind: JoinKind, residual: Option<&Expr>) -> Result<SchemaRef, Error> {
    let place = format!("{kind:?} join").to_lowercase();
    if on.is_empty() {
        return Err(Error::unsupported(place, "without an equality every row would meet every other"));
    }
    for (over_left, over_right) in on {
        let (a, b) = (key(over_left, left, &place)?, key(over_right, right, &place)?);
        if a != b {
            return Err(Error::wrong_type(place, format!("{over_left} = {over_right} compares {a} with {b}: cast one of them")));
        }
    }
    let both = fields(copied(left).chain(copied(right)), &place)?;
    if let Some(residual) = residual {
        boolean(residual, &both, &place)?;
    }
    match kind {
        JoinKind::Inner | JoinKind::Left | JoinKind::Full => Ok(both),
        JoinKind::Semi | JoinKind::Anti => fields(copied(left), &place),
        JoinKind::Mark => fields(copied(left).chain([Ok(Field::new(MARK, DataType::Boolean, true))]), &place),
    }
}

/// Whether a plan has so few rows, whatever comes, that each may meet every row of another.
fn is_bounded(plan: &Plan, relations: &dyn SchemaOf) -> bool {
    match plan {
        Plan::Source { relation } => relations.is_table(relation),
        Plan::Aggregate { keys, .. } if keys.is_empty() => true,
        Plan::TopK { partition, limit, .. } if partition.is_empty() && *limit <= MEETS_ALL_MAX => true,
        Plan::Join { left, right, kind, .. } => is_bounded(left, relations) && (!kind.pairs() || is_bounded(right, relations)),
        Plan::Repeat { .. } | Plan::HopWindow { .. } | Plan::Sequence { .. } => false,
        other => other.inputs().into_iter().all(|input| is_bounded(input, relations)),
    }
}

fn hop(schema: &Schema, time: &Expr, [hop_ms, size_ms]: [u64; 2], names: [&String; 2]) -> Result<SchemaRef, Error> {
    let found = resolve(time, schema, "window")?.data_type;
    let bound = match found {
        DataType::Timestamp(..) => time_type(),
        DataType::Int64 => DataType::Int64,
        _ => {
            let why = format!("a timestamp or milliseconds (BIGINT) are needed, not {found}");
            return Err(Error::wrong_type(format!("window ({time})"), why));
        }
    };
    if size_ms > WINDOW_MS_MAX {
        return Err(Error::wrong_type("window", format!("a size of {size_ms} ms is above the limit of {WINDOW_MS_MAX}")));
    }
    if hop_ms == 0 || size_ms == 0 || !size_ms.is_multiple_of(hop_ms) || size_ms / hop_ms > WINDOWS_PER_ROW_MAX {
        let why = format!(
            "a size of {size_ms} ms by {hop_ms} ms: the size must be a multiple of the hop, at most {WINDOWS_PER_ROW_MAX} times as long"
        );
        return Err(Error::wrong_type("window", why));
    }
    fields(copied(schema).chain(names.into_iter().map(|name| Ok(Field::new(name, bound.clone(), true)))), "window")
}

fn union(inputs: &[Plan], relations: &dyn SchemaOf) -> Result<SchemaRef, Error> {
    let schemas = inputs.iter().map(|input| input.schema(relations)).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = schemas.first() else {
        return Err(Error::wrong_type("union", "it has no input"));
    };
    let types = |schema: &Schema| schema.fields().iter().map(|field| field.data_type().clone()).collect::<Vec<_>>();
    for (index, schema) in schemas.iter().enumerate() {
        if types(schema) != types(first) {
            let why = format!("input {} has {:?}, input 1 has {:?}", index + 1, types(schema), types(first));
            return Err(Error::wrong_type("union", why));
        }
    }
    fields(copied(first), "union")
}

/// The type of an expression by which rows meet.
pub(crate) fn key(expr: &Expr, schema: &Schema, place: &str) -> Result<DataType, Error> {
    let data_type = resolve(expr, schema, place)?.data_type;
    if data_type.is_floating() || data_type.is_nested() {
        return Err(Error::unsupported(
            format!("{place} ({expr})"),
            format!("values of {data_type} have no single form to meet by"),
        ));
    }
    Ok(data_type)
}

pub(crate) fn boolean(expr: &Expr, schema: &Schema, place: &str) -> Result<(), Error> {
    match resolve(expr, schema, place)?.data_type {
        DataType::Boolean => Ok(()),
        other => Err(Error::wrong_type(format!("{place} ({expr})"), format!("a Boolean is needed, not {other}"))),
    }
}

/// A moment is a timestamp, or milliseconds.
pub(crate) fn moment(expr: &Expr, schema: &Schema, place: &str) -> Result<(), Error> {
    match resolve(expr, schema, place)?.data_type {
        DataType::Timestamp(..) | DataType::Int64 => Ok(()),
        other => {
            let why = format!("a timestamp or milliseconds (BIGINT) are needed, not {other}");
            Err(Error::wrong_type(format!("{place} ({expr})"), why))
        }
    }
}

fn typed(expr: &Expr, name: &str, schema: &Schema, place: &str) -> Result<Field, Error> {
    Ok(Field::new(name, resolve(expr, schema, &format!("{place} \"{name}\""))?.data_type, true))
}

fn copied(schema: &Schema) -> impl Iterator<Item = Result<Field, Error>> {
    schema.fields().iter().map(|field| Ok(Field::new(field.name(), normal_type(field.data_type()), true)))
}

pub(crate) fn fields(columns: impl Iterator<Item = Result<Field, Error>>, place: &str) -> Result<SchemaRef, Error> {
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    let mut seen = BTreeSet::new();
    for column in &columns {
        if !seen.insert(column.name()) {
            return Err(Error::wrong_type(
                place,
                format!("two columns are named \"{}\": rename one with a projection", column.name()),
            ));
        }
    }
    Ok(Arc::new(Schema::new(columns)))
}

/// Rows of a ranking that each may meet every row of another relation.
const MEETS_ALL_MAX: u64 = 1_000;

/// A row is copied into each of its windows.
const WINDOWS_PER_ROW_MAX: u64 = 10_000;

/// Ten years.
const WINDOW_MS_MAX: u64 = 10 * 366 * 86_400_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cast, col, lit, text_type};

    fn relations() -> HashMap<String, SchemaRef> {
        let columns = [("host", text_type()), ("port", DataType::Int64), ("load", DataType::Float64), ("time", time_type())];
        let schema = Schema::new(columns.map(|(name, data_type)| Field::new(name, data_type, true)).to_vec());
        HashMap::from([("samples".to_owned(), Arc::new(schema))])
    }

    fn columns(plan: &Plan) -> String {
        let schema = plan.schema(&relations()).unwrap();
        schema.fields().iter().map(|field| format!("{}: {}", field.name(), field.data_type())).collect::<Vec<_>>().join(", ")
    }

    fn refused(plan: &Plan, words: &[&str]) {
        let error = plan.schema(&relations()).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }

    #[test]
    fn a_plan_knows_its_columns() {
        let plan = Plan::source("samples")
            .filter(col("host").eq(lit("a")).and(col("port").gt(lit(1))))
            .tumble(col("time"), 10_000)
            .aggregate(
                [(col("host"), "host"), (col("window_end"), "until")],
                [
                    AggregateCall::count("n"),
                    AggregateCall::percentile(0.95, col("port"), "p95"),
                    AggregateCall::max(col("host"), "last"),
                ],
            )
            .until(col("until"))
            .top_k([], [(col("n"), true)], 5, "rank");
        let text = "Dictionary(UInt32, Utf8)";
        let expected = format!("host: {text}, until: Timestamp(ns, \"UTC\"), n: Int64, p95: Float64, last: {text}, rank: Int64");
        assert_eq!(columns(&plan), expected);
        assert_eq!(plan.relations(), ["samples"]);
        let lines = "top 5 by [] in order [n desc]\n  visible until until\n    aggregate by [host, window_end as until] of";
        assert!(plan.explain().starts_with(lines), "{plan}");
    }

    #[test]
    fn what_has_no_exact_meaning_is_refused_by_name() {
        let samples = || Plan::source("samples");
        let none: [(Expr, &str); 0] = [];
        refused(&Plan::source("nowhere"), &["\"nowhere\" does not exist"]);
        refused(&samples().filter(col("port")), &["filter (port)", "Boolean", "Int64"]);
        refused(&samples().filter(col("prot").gt(lit(1))), &["filter", "prot"]);
        refused(&samples().project([(col("host"), "x"), (col("port"), "x")]), &["project", "two columns", "\"x\""]);
        refused(
            &samples().aggregate(none.clone(), [AggregateCall::sum(col("load"), "sum")]),
            &["aggregate \"sum\"", "Float64", "not supported"],
        );
        refused(&samples().aggregate([(col("load"), "load")], []), &["aggregate, key (load)", "Float64"]);
        refused(&samples().join(samples(), JoinKind::Inner, []), &["inner join", "equality"]);
        refused(&samples().join(samples(), JoinKind::Left, [(col("host"), col("host"))]), &["left join", "\"host\"", "rename"]);
        refused(&samples().join(samples(), JoinKind::Full, [(col("host"), col("port"))]), &["full join", "cast one of them"]);
        refused(&samples().hop(col("time"), 300, 1_000), &["window", "multiple of the hop"]);
        refused(&samples().hop(col("host"), 500, 1_000), &["window (host)", "timestamp"]);
        refused(&samples().until(col("host")), &["visible (host)", "timestamp or milliseconds"]);
        refused(&samples().top_k([], [(col("port"), true)], 0, "rank"), &["top-k", "limit of 0"]);
        refused(&Plan::union([samples(), samples().select(["host"])]), &["union", "input 2"]);
        refused(&Plan::union([]), &["union", "no input"]);
        let bounds = crate::Bounds { forget_at: Some(col("time")), ..Default::default() };
        refused(&samples().aggregate_bounded([(col("host"), "host")], [], bounds), &["forget_at", "time"]);
    }

    #[test]
    fn text_is_text_whatever_it_was() {
        let plan =
            Plan::source("samples").project([(cast(col("port"), DataType::Utf8View), "a"), (lit("x"), "b"), (col("host"), "c")]);
        assert!(plan.schema(&relations()).unwrap().fields().iter().all(|field| field.data_type() == &text_type()));
    }
}
