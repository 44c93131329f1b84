//! `INSERT`, `UPDATE`, `DELETE` and `TRUNCATE`: evaluated here, at one closed tick, and chained as rows that come and go.
//!
//! Whoever follows from rows of the table (all but an INSERT into a table without a key) is done only if the table has not changed since that tick;
//! else it is evaluated anew at a later one. Other relations that a statement reads are as of its tick.
//!
//! Promise: when a statement returns, this node answers from its tick on. A statement is done as a whole or not at all.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::{CastOptions, cast_with_options, concat_batches};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::common::{DFSchema, DataFusionError, ParamValues, ScalarValue};
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable as _, LogicalPlan, LogicalPlanBuilder, Projection, WriteOp, lit};
use datafusion::sql::parser::{DFParser, Statement as Parsed};
use datafusion::sql::sqlparser::ast::{Insert, Query, SetExpr, Statement as Ast, TableFactor, Truncate};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use weir_dataflow::handle::{At, Read};
use weir_dataflow::{RelationInfo, TableRows, TableWrite, ViewChange, ViewOutcome, row_bytes};
use weir_plan::Table;

use crate::error::{self, SqlError};
use crate::session::{Engine, Planned};
use crate::statement::Asked;
use crate::views::{Made, name_of};

/// What became of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Done {
    /// The command tag, before its number of rows.
    pub(crate) tag: &'static str,
    pub(crate) rows: usize,
    /// What is to be told beside it.
    pub(crate) note: Option<String>,
}

/// A table, as a statement finds it.
struct Target {
    info: RelationInfo,
    table: Table,
}

/// Rows that go and come.
struct Evaluated {
    old: RecordBatch,
    new: RecordBatch,
    /// The tick that was read; none: nothing was.
    tick: Option<u64>,
}

impl Engine {
    /// Plans a statement that changes rows.
    pub(crate) async fn plan_write(&self, asked: &Asked) -> Result<Planned, SqlError> {
        if let Parsed::Statement(ast) = &asked.parsed {
            refuse(ast)?;
        }
        let mut made = self.made().await?;
        let names = self.names_in(asked)?;
        if names.iter().any(|name| self.info(name, &made).is_err()) {
            self.views_known().await?;
            made = self.made().await?;
        }
        for name in &names {
            self.info(name, &made)?;
        }
        let (state, _) = self.state(&made)?;
        let plan = match inserted(&asked.parsed) {
            None => state.statement_to_plan(asked.parsed.clone()).await?,
            Some((insert, source)) => {
                let query = Parsed::Statement(Box::new(Ast::Query(Box::new(source.clone()))));
                let source = self.planned_over(&made, &Asked { parsed: query, as_of: None }).await?;
                let values = with_nulls(insert, source.schema().fields().len())?;
                from_query(state.statement_to_plan(values).await?, insert, source)?
            }
        };
        let LogicalPlan::Dml(dml) = &plan else {
            return Err(SqlError::unsupported("this statement that changes something"));
        };
        self.target(dml.table_name.table(), &made)?;
        Ok(Planned { plan, as_of: None })
    }

    /// Does a planned statement.
    pub(crate) async fn write(&self, planned: &Planned, parameters: Option<ParamValues>) -> Result<Done, SqlError> {
        let plan = match parameters {
            Some(values) => planned.plan.clone().with_param_values(values)?,
            None => planned.plan.clone(),
        };
        let LogicalPlan::Dml(dml) = plan else {
            return Err(SqlError::new(error::INTERNAL, "a change of rows is planned as one"));
        };
        let name = dml.table_name.table().to_owned();
        let (tag, source) = match &dml.op {
            WriteOp::Insert(InsertOp::Append) => ("INSERT 0", rounded(dml.input.as_ref().clone())?),
            WriteOp::Update => ("UPDATE", with_old(rounded(dml.input.as_ref().clone())?)?),
            WriteOp::Delete => ("DELETE", dml.input.as_ref().clone()),
            other => return Err(SqlError::unsupported(other.to_string())),
        };
        let source = Planned { plan: source, as_of: None };
        let deadline = Instant::now() + Duration::from_millis(self.limits().time_ms_max);
        loop {
            let made = self.made().await?;
            let target = self.target(&name, &made)?;
            if dml.target.schema() != target.info.schema {
                let message = format!("table \"{name}\" was made anew with other columns since the statement was prepared");
                return Err(SqlError::new(error::UNSUPPORTED, message).with_hint("prepare it again"));
            }
            let Evaluated { old, new, tick } = self.evaluate(&source, &dml.op, &target).await?;
            let rows = if dml.op == WriteOp::Delete { old.num_rows() } else { new.num_rows() };
            if rows == 0 {
                return Ok(Done { tag, rows, note: None });
            }
            let follows_rows = old.num_rows() > 0 || !target.table.key.is_empty();
            let read_at = match self.check_key(&target, (&old, &new), tick).await? {
                Some(tick) => tick,
                None => self.newest().await?,
            };
            let write = self.change_of(&target, (&old, &new), read_at)?;
            match self.chained(TableWrite { follows_rows, ..write }, deadline).await? {
                Some(note) => return Ok(Done { tag, rows, note }),
                None => continue,
            }
        }
    }

    /// TRUNCATE.
    pub(crate) async fn truncate(&self, name: &str) -> Result<Done, SqlError> {
        let deadline = Instant::now() + Duration::from_millis(self.limits().time_ms_max);
        self.views_known().await?;
        loop {
            self.target(name, &*self.made().await?)?;
            let write = TableWrite {
                table: name.to_owned(),
                read_at: self.newest().await?,
                follows_rows: false,
                rows: TableRows::Cleared,
                added_bytes: 0,
                removed_bytes: 0,
                bytes_max: self.limits().table_bytes_max,
            };
            if let Some(note) = self.chained(write, deadline).await? {
                return Ok(Done { tag: "TRUNCATE TABLE", rows: 0, note });
            }
        }
    }

    fn target(&self, name: &str, made: &Made) -> Result<Target, SqlError> {
        let info = self.info(name, made)?.clone();
        let Some(sql) = made.table_sql(name) else {
            let message = format!("cannot change \"{name}\": it is not a table");
            return Err(SqlError::new(error::WRONG_OBJECT, message).with_hint("CREATE TABLE makes tables that can be written"));
        };
        let table = Table::parse(sql).map_err(crate::views::told)?;
        Ok(Target { info, table })
    }

    async fn evaluate(&self, source: &Planned, op: &WriteOp, target: &Target) -> Result<Evaluated, SqlError> {
        let answer = self.run(source, None).await.map_err(as_assigned)?;
        let found: usize = answer.batches.iter().map(RecordBatch::num_rows).sum();
        let rows_max = self.limits().write_rows_max;
        if found as u64 > rows_max {
            let message = format!("the statement changes {found} rows, {rows_max} are allowed at once");
            return Err(SqlError::new(error::LIMIT, message).with_hint("change fewer at a time, or raise `query.write_rows_max`"));
        }
        let all = concat_batches(&answer.schema, &answer.batches).map_err(DataFusionError::from)?;
        let columns = target.info.schema.fields().len();
        let part = |from: usize| rows_of(&target.info.schema, all.columns().get(from..from + columns), found);
        let none = || RecordBatch::new_empty(Arc::clone(&target.info.schema));
        let (old, new) = match op {
            WriteOp::Update => (part(0)?, part(columns)?),
            WriteOp::Delete => (part(0)?, none()),
            _ => (none(), part(0)?),
        };
        for (field, column) in target.table.schema.fields().iter().zip(new.columns()) {
            if !field.is_nullable() && column.null_count() > 0 {
                let (name, table) = (field.name(), &target.info.name);
                let message = format!("null value in column \"{name}\" of table \"{table}\" violates not-null constraint");
                return Err(SqlError::new(error::NOT_NULL, message));
            }
        }
        weir_dataflow::shipped::check_rows(&target.info.name, &new).map_err(|wrong| {
            let message = format!("new row for table \"{}\" cannot be used: {wrong}", target.info.name);
            SqlError::new(error::CHECK, message).with_hint(wrong.cure)
        })?;
        Ok(Evaluated { old, new, tick: answer.tick })
    }

    /// Whether no key comes twice, among what comes and what stays. What is returned is the tick that is known to hold.
    async fn check_key(
        &self,
        target: &Target,
        (old, new): (&RecordBatch, &RecordBatch),
        tick: Option<u64>,
    ) -> Result<Option<u64>, SqlError> {
        let key = &target.table.key;
        if key.is_empty() || new.num_rows() == 0 {
            return Ok(tick);
        }
        let names = key.iter().map(|place| target.info.schema.field(*place).name().clone()).collect();
        let read = Read {
            relation: target.info.name.to_string(),
            columns: Some(names),
            limit: None,
            rows_max: self.limits().rows_max,
            bytes_max: self.limits().memory_bytes_max,
        };
        let snapshot = self.peek(tick.map_or(At::Latest, At::Tick), vec![read]).await?;
        let keys = Keys::new(&target.info.schema, key)?;
        let mut there = HashSet::new();
        for batch in snapshot.reads.iter().flatten() {
            there.extend(keys.of(batch.columns())?);
        }
        let columns = |rows: &RecordBatch| key.iter().map(|place| Arc::clone(rows.column(*place))).collect::<Vec<_>>();
        for gone in keys.of(&columns(old))? {
            there.remove(&gone);
        }
        for (row, comes) in keys.of(&columns(new))?.into_iter().enumerate() {
            if !there.insert(comes) {
                return Err(duplicate(target, new, row));
            }
        }
        Ok(Some(snapshot.tick))
    }

    fn change_of(&self, target: &Target, (old, new): (&RecordBatch, &RecordBatch), read_at: u64) -> Result<TableWrite, SqlError> {
        let both = concat_batches(&target.info.schema, [old, new]).map_err(DataFusionError::from)?;
        let diffs = std::iter::repeat_n(-1, old.num_rows()).chain(std::iter::repeat_n(1, new.num_rows())).collect();
        let rows = TableRows::encode(&both, diffs).map_err(DataFusionError::from)?;
        if rows.bytes() > WRITE_BYTES_MAX {
            let message = format!("the statement changes {} bytes of rows, {WRITE_BYTES_MAX} are allowed at once", rows.bytes());
            return Err(SqlError::new(error::LIMIT, message).with_hint("change fewer rows at a time"));
        }
        Ok(TableWrite {
            table: target.info.name.to_string(),
            read_at,
            follows_rows: true,
            rows,
            added_bytes: row_bytes(new),
            removed_bytes: row_bytes(old),
            bytes_max: self.limits().table_bytes_max,
        })
    }

    /// Has a change chained. Nothing: it is to be evaluated anew.
    async fn chained(&self, write: TableWrite, deadline: Instant) -> Result<Option<Option<String>>, SqlError> {
        let table = write.table.clone();
        let changed = self.view_store()?.change(ViewChange::Write(write)).await.map_err(|why| {
            SqlError::new(error::NOT_READY, format!("the rows could not be written down: {why}"))
                .with_hint("read the table before trying again: they may have been written all the same")
        })?;
        match changed.outcome {
            ViewOutcome::Written => {
                self.live().require(changed.tick);
                Ok(Some(self.reached(changed.tick).await))
            }
            ViewOutcome::Stale(at) if Instant::now() < deadline => {
                self.live().require(at);
                self.reached(at).await;
                Ok(None)
            }
            ViewOutcome::Stale(_) => {
                let message = format!("could not change table \"{table}\": others changed it each time before");
                Err(SqlError::new(error::SERIALIZATION, message).with_hint("try again"))
            }
            ViewOutcome::Full(bytes_max) => {
                let message = format!("table \"{table}\" would hold more than {bytes_max} bytes");
                Err(SqlError::new(error::LIMIT, message).with_hint("delete rows, or raise `query.table_bytes_max`"))
            }
            ViewOutcome::Missing(name) => Err(SqlError::unknown_relation(name)),
            _ => Err(SqlError::new(error::INTERNAL, "a change of rows became something else")),
        }
    }
}

/// An INSERT of a query's rows. DataFusion takes any VALUES in one for rows of the table, so the query is planned apart.
fn inserted(parsed: &Parsed) -> Option<(&Insert, &Query)> {
    let Parsed::Statement(ast) = parsed else { return None };
    let Ast::Insert(insert) = ast.as_ref() else { return None };
    let source = insert.source.as_deref()?;
    (!matches!(source.body.as_ref(), SetExpr::Values(_))).then_some((insert, source))
}

/// The same INSERT of one row of so many NULLs.
fn with_nulls(insert: &Insert, columns: usize) -> Result<Parsed, SqlError> {
    let nulls = format!("VALUES ({})", vec!["NULL"; columns].join(", "));
    let parsed = DFParser::parse_sql_with_dialect(&nulls, &PostgreSqlDialect {})?.pop_front();
    let Some(Parsed::Statement(ast)) = parsed else { return Err(SqlError::new(error::INTERNAL, "VALUES is a statement")) };
    let Ast::Query(query) = *ast else { return Err(SqlError::new(error::INTERNAL, "VALUES is a query")) };
    Ok(Parsed::Statement(Box::new(Ast::Insert(Insert { source: Some(query), ..insert.clone() }))))
}

/// A planned INSERT, of these rows in the place of its own.
fn from_query(plan: LogicalPlan, insert: &Insert, source: LogicalPlan) -> Result<LogicalPlan, SqlError> {
    let LogicalPlan::Dml(mut dml) = plan else { return Ok(plan) };
    let named: Vec<String> = insert.columns.iter().map(name_of).collect::<Result<_, _>>()?;
    let schema = dml.target.schema();
    let mut columns = Vec::new();
    for (place, field) in schema.fields().iter().enumerate() {
        let from = if named.is_empty() { Some(place) } else { named.iter().position(|name| name == field.name()) };
        let value = match from {
            Some(from) => Expr::Column(source.schema().qualified_field(from).into()),
            None => lit(ScalarValue::Null),
        };
        columns.push(value.cast_to(field.data_type(), source.schema())?.alias(field.name()));
    }
    dml.input = Arc::new(LogicalPlanBuilder::from(source).project(columns)?.build()?);
    Ok(LogicalPlan::Dml(dml))
}

/// TRUNCATE: of one table.
pub(crate) fn truncated(truncate: &Truncate) -> Result<String, SqlError> {
    let Truncate { table_names, partitions, if_exists, identity, cascade, on_cluster, .. } = truncate;
    let plain = partitions.is_none() && !if_exists && identity.is_none() && cascade.is_none() && on_cluster.is_none();
    match table_names.as_slice() {
        [one] if plain && !one.has_asterisk => name_of(&one.name),
        [_] => Err(SqlError::unsupported("this form of TRUNCATE")),
        _ => Err(SqlError::unsupported("TRUNCATE of several tables").with_hint("truncate one after the other")),
    }
}

/// Keys of rows as bytes that are equal when the keys are.
struct Keys {
    converter: RowConverter,
    schema: SchemaRef,
}

impl Keys {
    fn new(schema: &SchemaRef, key: &[usize]) -> Result<Self, SqlError> {
        let schema = Arc::new(schema.project(key).map_err(DataFusionError::from)?);
        let fields = schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
        Ok(Self { converter: RowConverter::new(fields).map_err(DataFusionError::from)?, schema })
    }

    fn of(&self, columns: &[ArrayRef]) -> Result<Vec<Box<[u8]>>, SqlError> {
        let typed =
            columns.iter().zip(self.schema.fields()).map(|(column, field)| arrow::compute::cast(column, field.data_type()));
        let typed = typed.collect::<Result<Vec<_>, _>>().map_err(DataFusionError::from)?;
        let rows = self.converter.convert_columns(&typed).map_err(DataFusionError::from)?;
        Ok(rows.iter().map(|row| row.as_ref().into()).collect())
    }
}

fn duplicate(target: &Target, new: &RecordBatch, row: usize) -> SqlError {
    let shown = |place: &usize| {
        let value = arrow::util::display::array_value_to_string(new.column(*place), row).unwrap_or_default();
        format!("{}={value}", target.info.schema.field(*place).name())
    };
    let key: Vec<_> = target.table.key.iter().map(shown).collect();
    let message = format!(
        "duplicate key value violates the primary key of table \"{}\": ({}) already exists",
        target.info.name,
        key.join(", ")
    );
    SqlError::new(error::DUPLICATE_KEY, message)
}

/// Rows in the table's types.
fn rows_of(schema: &SchemaRef, columns: Option<&[ArrayRef]>, rows: usize) -> Result<RecordBatch, SqlError> {
    let columns = columns.ok_or_else(|| SqlError::new(error::INTERNAL, "a change has fewer columns than its table"))?;
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let typed = columns.iter().zip(schema.fields()).map(|(column, field)| cast_with_options(column, field.data_type(), &options));
    let typed =
        typed.collect::<Result<Vec<_>, ArrowError>>().map_err(|error| as_assigned(DataFusionError::from(error).into()))?;
    let batch = RecordBatch::try_new(Arc::clone(schema), typed).map_err(DataFusionError::from)?;
    debug_assert_eq!(batch.num_rows(), rows);
    Ok(batch)
}

/// A number that does not fit its column is out of range; the rest is text that is none.
fn as_assigned(error: SqlError) -> SqlError {
    if error.code == error::BAD_TEXT && error.message.contains("Can't cast value") {
        return SqlError { code: error::OUT_OF_RANGE, ..error };
    }
    error
}

/// The rows before a change beside those after it.
fn with_old(input: LogicalPlan) -> Result<LogicalPlan, SqlError> {
    let LogicalPlan::Projection(Projection { expr, input, .. }) = input else {
        return Err(SqlError::new(error::INTERNAL, "an UPDATE is planned as a projection"));
    };
    let old = input.schema().columns().into_iter().enumerate();
    let old = old.map(|(place, column)| Expr::Column(column).alias(format!("old {place}")));
    let new = expr.into_iter().enumerate().map(|(place, new)| new.unalias().alias(format!("new {place}")));
    let all: Vec<Expr> = old.chain(new).collect();
    Ok(LogicalPlanBuilder::from(input).project(all)?.build()?)
}

/// Fractions that are assigned to whole numbers are rounded, as PostgreSQL does; a cast alone cuts them off.
fn rounded(input: LogicalPlan) -> Result<LogicalPlan, SqlError> {
    let mut top = true;
    let done = input.transform_down(|node| {
        let is_top = std::mem::take(&mut top);
        if !is_top && !matches!(node, LogicalPlan::Values(_)) {
            return Ok(Transformed::no(node));
        }
        let below = match node.inputs().first() {
            Some(input) => Arc::clone(input.schema()),
            None => Arc::new(DFSchema::empty()),
        };
        node.map_expressions(|expr| {
            expr.transform_down(|expr| match expr {
                Expr::Cast(Cast { expr, field }) if field.data_type().is_integer() => {
                    let fraction = expr.get_type(below.as_ref()).is_ok_and(|ty| ty.is_floating() || ty.is_decimal());
                    let expr = if fraction { Box::new(datafusion::functions::expr_fn::round(vec![*expr])) } else { expr };
                    Ok(Transformed::new(
                        Expr::Cast(Cast { expr, field }),
                        fraction,
                        datafusion::common::tree_node::TreeNodeRecursion::Jump,
                    ))
                }
                Expr::Alias(_) => Ok(Transformed::no(expr)),
                other => Ok(Transformed::new(other, false, datafusion::common::tree_node::TreeNodeRecursion::Jump)),
            })
        })
    })?;
    Ok(done.data)
}

/// What a statement may not have, by name.
fn refuse(ast: &Ast) -> Result<(), SqlError> {
    let refused: &[(bool, &str)] = match ast {
        Ast::Insert(insert) => &[
            (insert.on.is_some() || insert.or.is_some() || insert.ignore || insert.replace_into, "ON CONFLICT of INSERT"),
            (insert.returning.is_some() || insert.output.is_some(), "RETURNING"),
            (insert.overwrite, "INSERT OVERWRITE"),
            (insert.source.is_none(), "INSERT … DEFAULT VALUES"),
            (insert.table_alias.is_some() || insert.insert_alias.is_some(), "an alias of INSERT"),
        ],
        Ast::Update(update) => &[
            (update.from.is_some() || !update.table.joins.is_empty(), "UPDATE … FROM (use a subquery)"),
            (update.returning.is_some() || update.output.is_some(), "RETURNING"),
            (update.limit.is_some() || !update.order_by.is_empty() || update.or.is_some(), "this form of UPDATE"),
            (!matches!(update.table.relation, TableFactor::Table { .. }), "UPDATE of anything but a table"),
        ],
        Ast::Delete(delete) => &[
            (delete.using.is_some() || !delete.tables.is_empty(), "DELETE … USING (use a subquery)"),
            (delete.returning.is_some() || delete.output.is_some(), "RETURNING"),
            (delete.limit.is_some() || !delete.order_by.is_empty(), "this form of DELETE"),
        ],
        _ => &[(true, "this statement that changes something")],
    };
    if let Some((_, construct)) = refused.iter().find(|(given, _)| *given) {
        return Err(SqlError::unsupported(construct));
    }
    if let Ast::Update(update) = ast {
        let mut seen = HashSet::new();
        if let Some(twice) = update.assignments.iter().find(|one| !seen.insert(one.target.to_string())) {
            return Err(SqlError::new(error::SYNTAX, format!("multiple assignments to same column \"{}\"", twice.target)));
        }
    }
    Ok(())
}

/// Bytes of rows that one statement may chain: every worker reads them at one tick.
const WRITE_BYTES_MAX: usize = 1 << 20;
