//! DataFusion's logical plan, as its SQL planner makes it, to ours.
//!
//! Columns there are qualified and may share a name; ours have one name each. So every lowered node carries, by the place of its columns,
//! the names under which ours has them. Conditions over a product of relations become the keys of its joins.

use std::collections::BTreeSet;

use datafusion_common::tree_node::{Transformed, TreeNode};
use datafusion_common::{DFSchema, JoinType, NullEquality};
use datafusion_expr::expr::AggregateFunction;
use datafusion_expr::logical_plan::{Aggregate, Distinct, Join, JoinConstraint, Limit, Sort};
use datafusion_expr::utils::split_conjunction;
use datafusion_expr::{BinaryExpr, Expr, LogicalPlan, Operator, ident, lit};

use crate::window::Windowed;
use crate::{AggregateCall, AggregateFunc, Error, JoinKind, Plan, ranking};

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
    fn renamed(self, names: Vec<String>) -> Self {
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
        LogicalPlan::Join(join) if join.join_type == JoinType::Inner => inner_join(join, passing),
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
            match passing.into_iter().reduce(Expr::and) {
                None => Ok(lowered),
                Some(predicate) => {
                    let predicate = over(&predicate, other.schema(), &lowered.names)?;
                    Ok(Lowered { plan: lowered.plan.filter(predicate), names: lowered.names })
                }
            }
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
        LogicalPlan::Distinct(Distinct::On(_)) => Err(refused("DISTINCT ON")),
        LogicalPlan::Join(join) if matches!(join.join_type, JoinType::LeftSemi | JoinType::LeftAnti) => set_operation(join),
        LogicalPlan::Join(join) => outer_join(join),
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
        LogicalPlan::Window(_) => "a window function (OVER) without a bound such as rank <= 10",
        LogicalPlan::EmptyRelation(_) => "a SELECT without FROM",
        LogicalPlan::Values(_) => "VALUES",
        LogicalPlan::Unnest(_) => "unnest",
        LogicalPlan::RecursiveQuery(_) => "WITH RECURSIVE",
        LogicalPlan::Subquery(_) => "LATERAL",
        _ => "this kind of query",
    }
}

fn refused(construct: &str) -> Error {
    Error::unsupported(construct, "standing views do not have it yet")
}

/// Rows of both sides that meet. A condition over one side alone goes down to it.
fn inner_join(join: &Join, passing: Vec<Expr>) -> Result<Lowered, Error> {
    let (left, right) = (join.left.schema(), join.right.schema());
    let conditions = join.filter.iter().flat_map(|filter| split_conjunction(filter).into_iter().cloned()).chain(passing);
    let (mut to_left, mut to_right, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for condition in conditions {
        let place = match (is_over(&condition, left), is_over(&condition, right)) {
            (true, false) => &mut to_left,
            (false, true) => &mut to_right,
            _ => &mut both,
        };
        place.push(condition);
    }
    let (to_the_left, to_the_right) = (node(&join.left, to_left)?, node(&join.right, to_right)?);
    joined(join, JoinKind::Inner, (to_the_left, to_the_right), both)
}

/// EXCEPT and INTERSECT, which come as joins of what is distinct on the left, with NULL equal to NULL: rows of both sides in groups, and how
/// many of each side there are.
fn set_operation(join: &Join) -> Result<Lowered, Error> {
    let is_except = join.join_type == JoinType::LeftAnti;
    let LogicalPlan::Distinct(Distinct::All(left)) = join.left.as_ref() else {
        return Err(refused(if is_except { "EXCEPT ALL or ANTI JOIN" } else { "INTERSECT ALL or SEMI JOIN" }));
    };
    if join.null_equality != NullEquality::NullEqualsNull || join.filter.is_some() {
        return Err(refused("SEMI or ANTI JOIN"));
    }
    let (left, right) = (node(left, Vec::new())?, node(&join.right, Vec::new())?);
    let names = distinct_names(&join.schema);
    if names.len() != left.names.len() || names.len() != right.names.len() || names.len() != join.on.len() {
        return Err(refused("SEMI or ANTI JOIN"));
    }
    let apart = |name: &str| (0..).map(|n| format!("{name}#{n}")).find(|new| !names.contains(new)).unwrap_or_default();
    let (side, here, there) = (apart("side"), apart("left"), apart("right"));
    let sided = |of: Lowered, number: i64| {
        let columns = of.names.iter().map(ident).zip(names.clone());
        of.plan.project(columns.chain([(lit(number), side.clone())]))
    };
    let rows = Plan::union([sided(left, 0), sided(right, 1)]);
    let count = |name: &String, number: i64| AggregateCall::count(name).filter(ident(&side).eq(lit(number)));
    let counted = rows.aggregate(names.iter().map(|name| (ident(name), name.clone())), [count(&here, 0), count(&there, 1)]);
    let beyond = if is_except { ident(&there).eq(lit(0_i64)) } else { ident(&there).gt(lit(0_i64)) };
    Ok(Lowered { plan: counted.filter(ident(&here).gt(lit(0_i64)).and(beyond)), names }.renamed_to_itself())
}

fn outer_join(join: &Join) -> Result<Lowered, Error> {
    let kind = match join.join_type {
        JoinType::Left | JoinType::Right => JoinKind::Left,
        JoinType::Full => JoinKind::Full,
        _ => return Err(refused("this kind of join")),
    };
    if join.join_constraint == JoinConstraint::Using && join.join_type != JoinType::Left {
        return Err(refused("RIGHT or FULL JOIN with USING or NATURAL"));
    }
    let conditions = join.filter.iter().flat_map(|filter| split_conjunction(filter).into_iter().cloned()).collect();
    joined(join, kind, (node(&join.left, Vec::new())?, node(&join.right, Vec::new())?), conditions)
}

fn joined(join: &Join, kind: JoinKind, (left, right): (Lowered, Lowered), conditions: Vec<Expr>) -> Result<Lowered, Error> {
    if join.null_equality != NullEquality::NullEqualsNothing {
        return Err(refused("a join in which NULL equals NULL"));
    }
    // Names are made apart only where the sides share one.
    let taken: BTreeSet<String> = left.names.iter().cloned().collect();
    let apart = |name: &String| match taken.contains(name) {
        false => name.clone(),
        true => (1..)
            .map(|n| format!("{name}#{n}"))
            .find(|new| !taken.contains(new) && !right.names.contains(new))
            .unwrap_or_default(),
    };
    let left = left.renamed_to_itself();
    let right_names: Vec<String> = right.names.iter().map(apart).collect();
    let right = right.renamed(right_names);
    let mut on = Vec::new();
    let (left_schema, right_schema) = (join.left.schema(), join.right.schema());
    let over_left = |expr: &Expr| over(expr, left_schema, &left.names);
    let over_right = |expr: &Expr| over(expr, right_schema, &right.names);
    for (over_the_left, over_the_right) in &join.on {
        on.push((over_left(over_the_left)?, over_right(over_the_right)?));
    }
    let names: Vec<String> = left.names.iter().chain(&right.names).cloned().collect();
    let mut residual = Vec::new();
    for condition in conditions {
        match &condition {
            Expr::BinaryExpr(BinaryExpr { left: a, op: Operator::Eq, right: b })
                if is_keyed(a, left_schema) && is_keyed(b, right_schema) =>
            {
                on.push((over_left(a)?, over_right(b)?));
            }
            Expr::BinaryExpr(BinaryExpr { left: a, op: Operator::Eq, right: b })
                if is_keyed(b, left_schema) && is_keyed(a, right_schema) =>
            {
                on.push((over_left(b)?, over_right(a)?));
            }
            other => residual.push(over(other, &join.schema, &names)?),
        }
    }
    if on.is_empty() {
        return Err(Error::unsupported("a join without an equality of both sides", "every row would meet every other"));
    }
    let residual = residual.into_iter().reduce(Expr::and);
    // A right join is a left join with its sides changed; columns are found by name.
    let (first, second, on) = match join.join_type {
        JoinType::Right => (right.plan, left.plan, on.into_iter().map(|(a, b)| (b, a)).collect()),
        _ => (left.plan, right.plan, on),
    };
    let plan = match residual {
        Some(residual) => first.join_where(second, kind, on, residual),
        None => first.join(second, kind, on),
    };
    Ok(Lowered { plan, names })
}

impl Lowered {
    /// Exactly its own columns: what operators below have beside them is dropped.
    pub(crate) fn renamed_to_itself(self) -> Self {
        let names = self.names.clone();
        self.renamed(names)
    }
}

fn grouped(aggregate: &Aggregate) -> Result<Lowered, Error> {
    let (input, schema) = (node(&aggregate.input, Vec::new())?, aggregate.input.schema());
    if aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) {
        return Err(refused("GROUPING SETS, ROLLUP or CUBE"));
    }
    let names = distinct_names(&aggregate.schema);
    let (key_names, call_names) = names.split_at(aggregate.group_expr.len());
    let keys = aggregate.group_expr.iter().zip(key_names);
    let keys = keys.map(|(expr, name)| Ok((over(expr, schema, &input.names)?, name.clone())));
    let calls = aggregate.aggr_expr.iter().zip(call_names).map(|(expr, name)| call(expr, name, schema, &input.names));
    let (keys, calls) = (keys.collect::<Result<Vec<_>, Error>>()?, calls.collect::<Result<Vec<_>, _>>()?);
    Ok(Lowered { plan: input.plan.aggregate(keys, calls), names })
}

fn call(expr: &Expr, name: &str, schema: &DFSchema, names: &[String]) -> Result<AggregateCall, Error> {
    let Expr::AggregateFunction(AggregateFunction { func, params }) = unaliased(expr) else {
        return Err(refused("an aggregate of this form"));
    };
    let refused = |what: &str| refused(&format!("{}({what})", func.name()));
    if !params.order_by.is_empty() || params.null_treatment.is_some() {
        return Err(refused("… ORDER BY or IGNORE NULLS"));
    }
    let args = params.args.iter().map(|arg| over(arg, schema, names)).collect::<Result<Vec<_>, _>>()?;
    let mut made = match (func.name(), args.as_slice(), params.distinct) {
        // `count(*)` comes as the count of a constant.
        ("count", [] | [Expr::Literal(_, _)], false) if args.first().is_none_or(|arg| *arg != null()) => {
            AggregateCall::count(name)
        }
        ("count", [arg], false) => AggregateCall::new(AggregateFunc::Count, arg.clone(), name),
        ("count", [arg], true) => AggregateCall::count_distinct(arg.clone(), name),
        ("sum", [arg], false) => AggregateCall::sum(arg.clone(), name),
        ("avg", [arg], false) => AggregateCall::avg(arg.clone(), name),
        ("min", [arg], _) => AggregateCall::min(arg.clone(), name),
        ("max", [arg], _) => AggregateCall::max(arg.clone(), name),
        (_, _, true) => return Err(refused("DISTINCT …")),
        _ => return Err(refused("…")),
    };
    if let Some(filter) = &params.filter {
        made = made.filter(over(filter, schema, names)?);
    }
    Ok(made)
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
    let mut order = Vec::new();
    for by in &sort.expr {
        if by.nulls_first == by.asc {
            return Err(refused("NULLS FIRST or LAST, other than PostgreSQL's default,"));
        }
        order.push((over(&by.expr, sort.input.schema(), &input.names)?, !by.asc));
    }
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
fn is_keyed(expr: &Expr, schema: &DFSchema) -> bool {
    !expr.column_refs().is_empty() && is_over(expr, schema)
}

fn is_over(expr: &Expr, schema: &DFSchema) -> bool {
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
            ("select * from t, u", "without an equality"),
            ("select a from t limit 3", "LIMIT without ORDER BY"),
            ("select a from t order by a offset 2", "OFFSET without LIMIT"),
            ("select a from t order by a nulls first limit 3", "NULLS FIRST"),
            ("select sum(x) from t", "not exact"),
            ("select distinct on (a) a, n from t", "DISTINCT ON"),
            ("select a from t except all select a from u", "EXCEPT ALL"),
            ("select a from t intersect all select a from u", "INTERSECT ALL"),
            ("select t.a from t left semi join u on t.a = u.a", "SEMI JOIN"),
            ("select t.a from (select distinct a from t) as t left anti join u on t.a = u.a", "ANTI JOIN"),
            ("select a from t where a in (select a from u)", "subquery"),
            ("select a from t where exists (select 1 from u where u.a = t.a)", "subquery"),
            ("select a, now() from t", "now()"),
            ("select a from t where at > now() - interval '1 minute'", "now()"),
            ("select random() from t", "random()"),
            ("select a, count(*) from t group by rollup (a)", "ROLLUP"),
            ("select string_agg(a, ',') from t", "string_agg"),
            ("select sum(distinct n) from t", "sum(DISTINCT"),
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
            ("select a, row_number() over (order by n) as r from t", "without a bound"),
            ("select a from (select a, row_number() over (order by n) as r from t) as q where r > 3", "without a bound"),
            ("select a from (select a, sum(n) over (order by n) as r from t) as q where r <= 3", "other than row_number"),
        ] {
            let error = compile(sql, &relations()).map(|plan| plan.explain()).unwrap_err().to_string();
            assert!(error.contains(words), "{sql}: {error}");
        }
    }
}
