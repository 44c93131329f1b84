//! DataFusion's logical plan, as its SQL planner makes it, to ours.
//!
//! Columns there are qualified and may share a name; ours have one name each. So every lowered node carries, by the place of its columns,
//! the names under which ours has them. Conditions over a product of relations become the keys of its joins.

use std::collections::BTreeSet;

use datafusion_common::tree_node::{Transformed, TreeNode};
use datafusion_common::{DFSchema, JoinType, NullEquality};
use datafusion_expr::expr::AggregateFunction;
use datafusion_expr::logical_plan::{Aggregate, Distinct, DistinctOn, Limit, Sort};
use datafusion_expr::utils::split_conjunction;
use datafusion_expr::{Expr, ExprSchemable, LogicalPlan, SortExpr, ident, lit};

use crate::window::Windowed;
use crate::{
    AggregateCall, AggregateFunc, Error, Plan, Recomputed, clock, grouping, joins, over, product, ranking, set_operation,
};

/// Lowers a whole SELECT: the result's columns are named as the SELECT names them.
pub(crate) fn lower(plan: &LogicalPlan) -> Result<Plan, Error> {
    let lowered = node(plan, Vec::new())?;
    let mut seen = BTreeSet::new();
    for field in plan.schema().fields() {
        if !seen.insert(field.name()) {
            return Err(Error::wrong_type("the view", format!("column \"{}\" specified more than once", field.name())));
        }
    }
    let names = plan.schema().fields().iter().map(|field| field.name().clone()).collect();
    Ok(lowered.renamed(names).plan)
}

/// A node's rows, and the name of each of its columns.
pub(crate) struct Lowered {
    pub(crate) plan: Plan,
    pub(crate) names: Vec<String>,
}

impl Lowered {
    /// Exactly these columns, under these names.
    pub(crate) fn renamed(self, names: Vec<String>) -> Self {
        let columns = self.names.iter().map(ident).zip(names.clone());
        Self { plan: self.plan.project(columns), names }
    }
}

/// Lowers a node whose rows must also pass all of `passing`, which are over its columns.
pub(crate) fn node(plan: &LogicalPlan, passing: Vec<Expr>) -> Result<Lowered, Error> {
    match plan {
        LogicalPlan::Filter(filter) => {
            let mut passing = passing;
            passing.extend(split_conjunction(&filter.predicate).into_iter().cloned());
            node(&filter.input, passing)
        }
        LogicalPlan::Join(join) if join.join_type == JoinType::Inner => product::lower(join, passing),
        LogicalPlan::Join(join) if let Some((join, passing)) = joins::with_conditions_below(join, &passing)? => {
            node(&LogicalPlan::Join(join), passing)
        }
        LogicalPlan::TableScan(scan) if let Some(windowed) = Windowed::of(scan) => windowed.lower(plan.schema(), passing),
        // A subquery's conditions are about the windows that it stands for.
        LogicalPlan::SubqueryAlias(alias) if matches!(alias.input.as_ref(), LogicalPlan::TableScan(scan) if Windowed::of(scan).is_some()) =>
        {
            let inner = passing.iter().map(|expr| over(expr, &alias.schema, &qualified(alias.input.schema())));
            node(&alias.input, inner.collect::<Result<Vec<_>, _>>()?)
        }
        other => {
            let lowered = match ranking::bound(other, &passing) {
                Some(limit) => ranking::lower(other, limit)?,
                None => unfiltered(other)?,
            };
            let Lowered { mut plan, names } = lowered;
            let passing =
                passing.iter().map(|condition| over(condition, other.schema(), &names)).collect::<Result<Vec<_>, _>>()?;
            let (timed, plain): (Vec<_>, Vec<_>) = passing.into_iter().partition(clock::reads_clock);
            if let Some(predicate) = plain.into_iter().reduce(Expr::and) {
                plan = plan.filter(predicate);
            }
            Ok(Lowered { plan: clock::visible(plan, &timed)?, names })
        }
    }
}

fn unfiltered(plan: &LogicalPlan) -> Result<Lowered, Error> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let names = scan.projected_schema.fields().iter().map(|field| field.name().clone()).collect();
            Ok(Lowered { plan: Plan::source(scan.table_name.table()), names })
        }
        LogicalPlan::SubqueryAlias(alias) => node(&alias.input, Vec::new()),
        LogicalPlan::Projection(projection) => {
            let input = node(&projection.input, Vec::new())?;
            let exprs = projection.expr.iter().map(|expr| over(expr, projection.input.schema(), &input.names));
            let (exprs, names) = (exprs.collect::<Result<Vec<_>, _>>()?, distinct_names(&projection.schema));
            Ok(Lowered { plan: input.plan.project(exprs.into_iter().zip(names.clone())), names })
        }
        LogicalPlan::Aggregate(aggregate) => grouped(aggregate),
        LogicalPlan::Distinct(Distinct::All(input)) => {
            let input = node(input, Vec::new())?;
            let keys: Vec<_> = input.names.iter().map(|name| (ident(name), name.clone())).collect();
            Ok(Lowered { plan: input.plan.distinct(keys), names: input.names })
        }
        LogicalPlan::Distinct(Distinct::On(distinct)) => first_of_each(distinct),
        LogicalPlan::Window(window) => over::over(window),
        LogicalPlan::Join(join) => match join.join_type {
            JoinType::LeftSemi | JoinType::LeftAnti if join.null_equality == NullEquality::NullEqualsNull => {
                set_operation::lower(join)
            }
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => joins::half(join),
            _ => joins::outer(join),
        },
        LogicalPlan::Union(union) => {
            let names = distinct_names(&union.schema);
            let inputs = union.inputs.iter().map(|input| Ok(node(input, Vec::new())?.renamed(names.clone()).plan));
            Ok(Lowered { plan: Plan::union(inputs.collect::<Result<Vec<_>, Error>>()?), names })
        }
        // Rows of a relation have no order: it is the reader's to ask for.
        LogicalPlan::Sort(sort) if sort.fetch.is_none() => node(&sort.input, Vec::new()),
        LogicalPlan::Limit(limit) => first(limit),
        other => Err(refused(named(other))),
    }
}

/// The names of a node's columns.
fn qualified(schema: &DFSchema) -> Vec<String> {
    schema.fields().iter().map(|field| field.name().clone()).collect()
}

/// What a node is called by who wrote it.
fn named(plan: &LogicalPlan) -> &'static str {
    match plan {
        LogicalPlan::EmptyRelation(_) => "a SELECT without FROM",
        LogicalPlan::Values(_) => "VALUES",
        LogicalPlan::Unnest(_) => "unnest",
        LogicalPlan::RecursiveQuery(_) => "WITH RECURSIVE",
        LogicalPlan::Subquery(_) => "LATERAL",
        _ => "this kind of query",
    }
}

pub(crate) fn refused(construct: &str) -> Error {
    Error::unsupported(construct, "standing views do not have it yet")
}

impl Lowered {
    /// Exactly its own columns: what operators below have beside them is dropped.
    pub(crate) fn renamed_to_itself(self) -> Self {
        let names = self.names.clone();
        self.renamed(names)
    }
}

fn grouped(aggregate: &Aggregate) -> Result<Lowered, Error> {
    if let [Expr::GroupingSet(set)] = aggregate.group_expr.as_slice() {
        return grouping::grouped(aggregate, set);
    }
    let (input, schema) = (node(&aggregate.input, Vec::new())?, aggregate.input.schema());
    let names = distinct_names(&aggregate.schema);
    let (key_names, call_names) = names.split_at(aggregate.group_expr.len());
    let keys = aggregate.group_expr.iter().zip(key_names);
    let keys = keys.map(|(expr, name)| Ok((over(expr, schema, &input.names)?, name.clone())));
    let calls = aggregate.aggr_expr.iter().zip(call_names).map(|(expr, name)| call(expr, name, schema, &input.names));
    let (keys, calls) = (keys.collect::<Result<Vec<_>, Error>>()?, calls.collect::<Result<Vec<_>, _>>()?);
    Ok(Lowered { plan: input.plan.aggregate(keys, calls), names })
}

pub(crate) fn call(expr: &Expr, name: &str, schema: &DFSchema, names: &[String]) -> Result<AggregateCall, Error> {
    let Expr::AggregateFunction(AggregateFunction { func, params }) = unaliased(expr) else {
        return Err(refused("an aggregate of this form"));
    };
    if params.null_treatment.is_some() {
        return Err(refused(&format!("{}(…) IGNORE NULLS", func.name())));
    }
    let args = params.args.iter().map(|arg| over(arg, schema, names)).collect::<Result<Vec<_>, _>>()?;
    // Integers add up exactly, and so can be taken away again.
    let exact = params.args.first().is_some_and(|arg| arg.get_type(schema).is_ok_and(|data_type| data_type.is_integer()));
    let ordered = !params.order_by.is_empty();
    let mut made = match (func.name(), args.as_slice(), params.distinct) {
        // `count(*)` comes as the count of a constant.
        ("count", [] | [Expr::Literal(_, _)], false) if !ordered && args.first().is_none_or(|arg| *arg != null()) => {
            AggregateCall::count(name)
        }
        ("count", [arg], false) if !ordered => AggregateCall::new(AggregateFunc::Count, arg.clone(), name),
        ("count", [arg], true) if !ordered => AggregateCall::count_distinct(arg.clone(), name),
        ("sum", [arg], false) if exact && !ordered => AggregateCall::sum(arg.clone(), name),
        ("avg", [arg], false) if exact && !ordered => AggregateCall::avg(arg.clone(), name),
        ("min", [arg], _) if !ordered => AggregateCall::min(arg.clone(), name),
        ("max", [arg], _) if !ordered => AggregateCall::max(arg.clone(), name),
        _ => {
            let (order, distinct) = (order(&params.order_by, schema, names)?, params.distinct);
            if distinct && order.iter().any(|(expr, _)| !args.contains(expr)) {
                return Err(refused(&format!("{}(DISTINCT …) ORDER BY anything but its arguments", func.name())));
            }
            let call = Recomputed { function: func.clone(), args, order, distinct };
            let func = AggregateFunc::Recomputed(Box::new(call));
            AggregateCall { func, arg: None, filter: None, name: name.to_owned() }
        }
    };
    if let Some(filter) = &params.filter {
        made = made.filter(over(filter, schema, names)?);
    }
    Ok(made)
}

/// ORDER BY, as PostgreSQL has it when it does not say where NULLs stand.
pub(crate) fn order(by: &[SortExpr], schema: &DFSchema, names: &[String]) -> Result<Vec<(Expr, bool)>, Error> {
    let one = |by: &SortExpr| {
        if by.nulls_first == by.asc {
            return Err(refused("NULLS FIRST or LAST, other than PostgreSQL's default,"));
        }
        Ok((over(&by.expr, schema, names)?, !by.asc))
    };
    by.iter().map(one).collect()
}

/// DISTINCT ON: the first row of each partition.
fn first_of_each(distinct: &DistinctOn) -> Result<Lowered, Error> {
    let (input, schema) = (node(&distinct.input, Vec::new())?.renamed_to_itself(), distinct.input.schema());
    let over_input = |exprs: &[Expr]| exprs.iter().map(|expr| over(expr, schema, &input.names)).collect::<Result<Vec<_>, _>>();
    let (partition, select) = (over_input(&distinct.on_expr)?, over_input(&distinct.select_expr)?);
    let order = order(distinct.sort_expr.as_deref().unwrap_or_default(), schema, &input.names)?;
    let rank = (0..).map(|n| format!("rank#{n}")).find(|rank| !input.names.contains(rank)).unwrap_or_default();
    let names = distinct_names(&distinct.schema);
    let plan = input.plan.top_k(partition, order, 1, rank).project(select.into_iter().zip(names.clone()));
    Ok(Lowered { plan, names })
}

fn null() -> Expr {
    lit(datafusion_common::ScalarValue::Null)
}

/// `ORDER BY … LIMIT n`: the first rows of a ranking over all.
fn first(limit: &Limit) -> Result<Lowered, Error> {
    let number = |expr: &Option<Box<Expr>>| match expr.as_deref().map(unaliased) {
        None => Ok(None),
        Some(Expr::Literal(value, _)) => match value.cast_to(&arrow::datatypes::DataType::Int64) {
            Ok(datafusion_common::ScalarValue::Int64(Some(rows))) if rows >= 0 => Ok(Some(rows.unsigned_abs())),
            _ => Err(refused("LIMIT of anything but a number")),
        },
        Some(_) => Err(refused("LIMIT of anything but a number")),
    };
    let (skip, fetch) = (number(&limit.skip)?.unwrap_or(0), number(&limit.fetch)?);
    let fetch = match fetch {
        None if skip > 0 => return Err(refused("OFFSET without LIMIT")),
        None => return node(&limit.input, Vec::new()),
        Some(0) => return Err(refused("LIMIT 0")),
        Some(fetch) => Ranks { skip, fetch },
    };
    match limit.input.as_ref() {
        LogicalPlan::Sort(sort) => ranked(sort, fetch),
        LogicalPlan::Projection(projection) => match projection.input.as_ref() {
            LogicalPlan::Sort(sort) => {
                let input = ranked(sort, fetch)?;
                let exprs = projection.expr.iter().map(|expr| over(expr, projection.input.schema(), &input.names));
                let (exprs, names) = (exprs.collect::<Result<Vec<_>, _>>()?, distinct_names(&projection.schema));
                Ok(Lowered { plan: input.plan.project(exprs.into_iter().zip(names.clone())), names })
            }
            _ => Err(refused("LIMIT without ORDER BY")),
        },
        _ => Err(refused("LIMIT without ORDER BY")),
    }
}

/// Which rows of a ranking are wanted: so many, behind those that are left out.
#[derive(Clone, Copy)]
struct Ranks {
    skip: u64,
    fetch: u64,
}

fn ranked(sort: &Sort, Ranks { skip, fetch }: Ranks) -> Result<Lowered, Error> {
    let input = node(&sort.input, Vec::new())?.renamed_to_itself();
    let order = order(&sort.expr, sort.input.schema(), &input.names)?;
    let names = input.names.clone();
    let rank = (0..).map(|n| format!("rank#{n}")).find(|rank| !names.contains(rank)).unwrap_or_default();
    let none: [Expr; 0] = [];
    let mut plan = input.plan.top_k(none, order, skip.saturating_add(fetch), rank.clone());
    if skip > 0 {
        plan = plan.filter(ident(rank).gt(lit(i64::try_from(skip).unwrap_or(i64::MAX))));
    }
    Ok(Lowered { plan, names }.renamed_to_itself())
}

/// The columns' names, made apart where two are the same.
pub(crate) fn distinct_names(schema: &DFSchema) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let fields = schema.fields().iter();
    fields
        .map(|field| {
            let new = (0..).map(|n| if n == 0 { field.name().clone() } else { format!("{}#{n}", field.name()) });
            let name = new.into_iter().find(|name| !taken.contains(name)).unwrap_or_default();
            taken.insert(name.clone());
            name
        })
        .collect()
}

pub(crate) fn unaliased(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

/// Whether an expression reads columns, and only of this side.
pub(crate) fn is_keyed(expr: &Expr, schema: &DFSchema) -> bool {
    !expr.column_refs().is_empty() && is_over(expr, schema)
}

pub(crate) fn is_over(expr: &Expr, schema: &DFSchema) -> bool {
    expr.column_refs().into_iter().all(|column| schema.has_column(column))
}

/// The expression over our names.
pub(crate) fn over(expr: &Expr, schema: &DFSchema, names: &[String]) -> Result<Expr, Error> {
    let ours = expr.clone().transform_up(|node| {
        Ok(match node {
            Expr::Column(column) => Transformed::yes(ident(&names[schema.index_of_column(&column)?])),
            Expr::Alias(alias) => Transformed::yes(*alias.expr),
            other => Transformed::no(other),
        })
    });
    Ok(ours.map_err(|source| Error::Sql(Box::new(source)))?.data)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

    use crate::{SchemaOf, compile, text_type, time_type};

    struct Relations(HashMap<String, SchemaRef>);

    impl SchemaOf for Relations {
        fn schema_of(&self, relation: &str) -> Option<SchemaRef> {
            self.0.get(relation).cloned()
        }

        fn text_of(&self, relation: &str) -> Option<String> {
            match relation {
                "big" => Some("SELECT * FROM t WHERE n > 10".into()),
                "bigger" => Some("SELECT a, n FROM big WHERE n > 100".into()),
                "endless" => Some("SELECT * FROM endless".into()),
                _ => None,
            }
        }
    }

    fn relations() -> Relations {
        let columns = [("a", text_type()), ("n", DataType::Int64), ("x", DataType::Float64), ("at", time_type())];
        let schema = |columns: Vec<(&str, DataType)>| {
            Arc::new(Schema::new(columns.into_iter().map(|(name, ty)| Field::new(name, ty, true)).collect::<Vec<_>>()))
        };
        let t = schema(columns.to_vec());
        let u = schema(vec![("a", text_type()), ("m", DataType::Int64)]);
        Relations(HashMap::from([("t".to_owned(), t), ("u".to_owned(), u)]))
    }

    fn columns(sql: &str) -> String {
        let plan = compile(sql, &relations()).unwrap_or_else(|error| panic!("{sql}: {error}"));
        let schema = plan.schema(&relations()).unwrap();
        schema.fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn selects_become_plans() {
        for (sql, expected) in [
            ("select * from t", "a,n,x,at"),
            ("select a as b, n + 1 as next from public.t where n > 3 and a like 'x%'", "b,next"),
            (
                "select a, count(*) as c, sum(n) as s, avg(n), min(x), max(at) from t group by a having count(*) > 2",
                "a,c,s,avg(t.n),min(t.x),max(t.at)",
            ),
            ("select count(distinct a) as k, count(*) filter (where n > 1) as f from t", "k,f"),
            ("select t.a, u.m from t join u on t.a = u.a and t.n < u.m", "a,m"),
            ("select t.a, u.a as b from t, u where t.a = u.a and t.n = 3", "a,b"),
            ("select p.a, q.n from t p, t q, u where p.a = q.a and u.a = q.a and p.n <> u.m", "a,n"),
            ("select t.a, u.m from t left join u on t.a = u.a and u.m > 3", "a,m"),
            ("select u.a, t.n from t right join u on t.a = u.a", "a,n"),
            ("select coalesce(t.a, u.a) as a from t full join u on t.a = u.a", "a"),
            ("select a, m from t join u using (a)", "a,m"),
            ("select distinct a from t", "a"),
            ("select a from t union all select a from u", "a"),
            ("select a from t union select a from u", "a"),
            ("select a from t except select a from u", "a"),
            ("select a, n as left from t intersect select a, m from u", "a,left"),
            ("select n from (select a, n from t except select a, m from u) as q where a = 'x'", "n"),
            ("select a, n from t order by n desc limit 3", "a,n"),
            ("select a from t order by n limit 3 offset 2", "a"),
            ("select a from t order by n limit 3", "a"),
            ("with b as (select a, sum(n) as s from t group by a) select u.a, s from b join u on b.a = u.a", "a,s"),
            ("select case when n > 3 then 'big' else 'small' end as size, count(*) as c from t group by 1", "size,c"),
            ("select a, date_trunc('minute', at) as minute, upper(a) as u from t", "a,minute,u"),
            ("select a, n from bigger", "a,n"),
            (
                "select a, window_end, count(*) as c from tumble(t, at, interval '10 seconds') group by a, window_end",
                "a,window_end,c",
            ),
            (
                "select window_start, sum(h.n) as s from hop(t, n, interval '1 second', interval '5 seconds') as h where h.a = 'x' and window_end > 7 group by 1",
                "window_start,s",
            ),
            (
                "select a, rank from (select a, row_number() over (partition by a order by n desc, a) as rank from t) as q where rank <= 3 and a <> 'x'",
                "a,rank",
            ),
            ("select sum(x) as s, string_agg(a, ',') as l, sum(distinct n) as d from t", "s,l,d"),
            ("select distinct on (a) a, n from t order by a, n desc", "a,n"),
            ("select a from t except all select a from u", "a"),
            ("select a from t intersect all select a from u", "a"),
            ("select t.a from t left semi join u on t.a = u.a", "a"),
            ("select a, n from t where a in (select a from u) and n not in (select m from u)", "a,n"),
            ("select a from t where exists (select 1 from u where u.a = t.a) or n > 3", "a"),
            ("select a, (select max(m) from u where u.a = t.a) as m from t", "a,m"),
            ("select a from t where n > (select avg(m) from u)", "a"),
            ("select a from t where at > now() - interval '1 minute' and at <= now()", "a"),
            ("select a, n, count(*) as c, grouping(a) as g from t group by rollup (a, n)", "a,n,c,g"),
            ("select a, row_number() over (order by n) as r, lag(a) over (partition by a order by n) as l from t", "a,r,l"),
            ("select a from (select a, sum(n) over (order by n) as r from t) as q where r <= 3", "a"),
            ("select t.a, m.c from t cross join (select count(*) as c from u) as m", "a,c"),
            ("select sum(s) as total from (select a, sum(n) as s from t group by a) as q", "total"),
        ] {
            assert_eq!(columns(sql), expected, "{sql}");
        }
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (sql, words) in [
            ("select 1", "without FROM"),
            ("select * from nowhere", "\"nowhere\" does not exist"),
            ("select b from t", "b"),
            ("select t.n from t, u", "without an equality"),
            ("select a from t limit 3", "LIMIT without ORDER BY"),
            ("select a from t order by a offset 2", "OFFSET without LIMIT"),
            ("select a from t order by a nulls first limit 3", "NULLS FIRST"),
            ("select a, now() from t", "now()"),
            ("select random() from t", "random()"),
            ("select a from t where at > now() - interval '1 month'", "now()"),
            ("select a from t where at > now() or n > 3", "now()"),
            ("select a, (select m from u) as m from t", "several rows"),
            ("select a, (select m from u where u.a = t.a) as m from t", "several rows"),
            ("select a from t where not (n > 1 and n in (select m from u))", "NOT EXISTS"),
            ("select a from t where n > 3 or n not in (select m from u)", "NOT EXISTS"),
            ("select a from t where n > all (select m from u)", "subquery"),
            ("select string_agg(distinct a, ',' order by n) from t", "string_agg(DISTINCT"),
            ("select a, array_agg(n) over (order by n rows between 1 preceding and current row) as r from t", "does not begin"),
            ("select t.a from t join u on t.n < u.m", "without an equality"),
            ("with recursive r as (select n from t union all select n + 1 from r where n < 9) select n from r", "ecursive"),
            ("select a, a from t", "unique expression names"),
            ("insert into t values (1)", "one SELECT"),
            ("select a from t; select a from t", "one SELECT"),
            ("select * from endless", "more than 6 times"),
            ("values (1)", "VALUES"),
            ("select * from tumble(t, a, interval '1 second')", "timestamp or milliseconds"),
            ("select * from tumble(t, at)", "TUMBLE(relation, time"),
            ("select * from hop(t, at, interval '3 seconds', interval '10 seconds')", "multiple of the hop"),
            ("select * from tumble(t, at, interval '1 month')", "without months"),
            ("select * from tumble(t, at, 10)", "an interval is needed"),
            ("select * from generate_series(1, 2)", "generate_series"),
        ] {
            let error = compile(sql, &relations()).map(|plan| plan.explain()).unwrap_err().to_string();
            assert!(error.contains(words), "{sql}: {error}");
        }
    }
}
