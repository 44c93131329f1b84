//! Who made whom: the ancestors and descendants of a process, looked up in the record level by level.
//!
//! A process is another's child if any event of it says so: usually all name one parent, but who is orphaned gets another. Every
//! lookup names ids, so that statistics and bloom filters leave most row groups unread.
//!
//! Limits: 64 levels each way and 10,000 rows, the ancestors first, on a level those with the least ids. What is beyond is left out.
//! Each way a process is met once, where it is nearest: what claims to be its own ancestor ends there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array as _, AsArray as _, Int64Array, RecordBatch, UInt64Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{Schema, SchemaRef, TimestampNanosecondType};
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::execution::session_state::SessionState;
use datafusion::functions_aggregate::expr_fn::{bool_or, last_value};
use datafusion::logical_expr::expr::NullTreatment;
use datafusion::logical_expr::{Expr, ExprFunctionExt as _, LogicalPlan, LogicalPlanBuilder, cast, col, lit};
use datafusion::physical_plan::collect;

use crate::tables::{self, Binding, Past, Slot};

/// Looks processes up in one snapshot of the record.
pub(crate) struct Lineage {
    state: SessionState,
    slot: Arc<Slot>,
    processes: LogicalPlan,
}

/// Which way to go from a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl Lineage {
    /// Lookups in the snapshot of a slot; `processes` is what is executed for the view.
    pub(crate) fn new(state: SessionState, slot: &Arc<Slot>, processes: &LogicalPlan) -> Result<Self> {
        let processes = tables::rebind(processes.clone(), &Binding { slot, past: Past::Record, hosts: None, system: None })?;
        Ok(Self { state, slot: Arc::clone(slot), processes })
    }

    /// The rows of a tree, in order; `schema` is a depth and then what `processes` has.
    pub(crate) async fn tree(&self, root: &str, schema: SchemaRef) -> Result<RecordBatch> {
        let mut found = vec![(0, root.to_owned())];
        for way in [Way::Up, Way::Down] {
            self.walk(root, way, &mut found).await?;
        }
        let ids: BTreeSet<&str> = found.iter().map(|(_, id)| id.as_str()).collect();
        let columns = Arc::new(Schema::new(schema.fields()[1..].to_vec()));
        let known = one_batch(&columns, &self.known(&ids).await?)?;
        let known_ids: BTreeSet<String> = texts(&known, PROCESS_ID)?.into_iter().collect();
        let unknown: BTreeSet<&str> = ids.iter().copied().filter(|id| !known_ids.contains(*id)).collect();
        let mut rows = vec![known];
        if !unknown.is_empty() {
            rows.push(one_batch(&columns, &self.told(&ids, &unknown).await?)?);
        }
        in_order(&found, &concat_batches(&columns, &rows)?, schema)
    }

    /// Adds what is reached one way, with its depth.
    async fn walk(&self, root: &str, way: Way, found: &mut Vec<(i64, String)>) -> Result<()> {
        let mut met = BTreeSet::from([root.to_owned()]);
        let mut level = vec![root.to_owned()];
        for distance in 1..=LEVELS_MAX {
            let room = ROWS_MAX.saturating_sub(found.len());
            if room == 0 || level.is_empty() {
                break;
            }
            // As many of them may have been met before.
            let mut next = self.next(&level, way, met.len() + room).await?;
            next.retain(|id| met.insert(id.clone()));
            next.truncate(room);
            let depth = if way == Way::Up { -distance } else { distance };
            found.extend(next.iter().map(|id| (depth, id.clone())));
            level = next;
        }
        Ok(())
    }

    /// The parents or children of some processes, by id.
    async fn next(&self, level: &[String], way: Way, rows_max: usize) -> Result<Vec<String>> {
        let (from, to) = match way {
            Way::Up => (PROCESS_ID, PARENT),
            Way::Down => (PARENT, PROCESS_ID),
        };
        let plan = self.events()?.filter(among(from, level).and(col(to).is_not_null()))?.project([col(to)])?;
        let plan = plan.distinct()?.sort([col(to).sort(true, false)])?.limit(0, Some(rows_max))?;
        let mut ids = Vec::new();
        for batch in self.run(plan.build()?).await? {
            ids.extend(texts(&batch, to)?);
        }
        Ok(ids)
    }

    /// The rows of `processes` with these ids.
    async fn known(&self, ids: &BTreeSet<&str>) -> Result<Vec<RecordBatch>> {
        let processes = LogicalPlanBuilder::from(self.processes.clone()).alias("processes")?;
        self.run(processes.filter(among(PROCESS_ID, ids))?.build()?).await
    }

    /// What processes with these ids say of parents that have no events of their own, as rows of `processes`.
    async fn told(&self, ids: &BTreeSet<&str>, parents: &BTreeSet<&str>) -> Result<Vec<RecordBatch>> {
        let latest = |column: &str| {
            let order = ["time", "event_id"].map(|column| col(column).sort(true, false)).to_vec();
            last_value(col(column), vec![]).order_by(order).null_treatment(NullTreatment::IgnoreNulls).build()
        };
        let told = [
            bool_or(col("simulated")).alias("simulated"),
            latest("region")?.alias("region"),
            latest("ppid")?.alias("pid"),
            latest("parent_exe")?.alias("exe"),
            latest("parent_cmdline")?.alias("cmdline"),
        ];
        let plan = self
            .events()?
            .filter(among(PROCESS_ID, ids).and(among(PARENT, parents)))?
            .aggregate([col("tenant"), col("host"), col("boot_id"), col(PARENT).alias(PROCESS_ID)], told)?;
        let known = Arc::clone(plan.schema());
        let columns =
            self.processes.schema().fields().iter().map(|field| match known.index_of_column_by_name(None, field.name()) {
                Some(place) => Expr::from(known.qualified_field(place)).alias(field.name()),
                None => cast(lit(ScalarValue::Null), field.data_type().clone()).alias(field.name()),
            });
        let columns: Vec<Expr> = columns.collect();
        self.run(plan.project(columns)?.build()?).await
    }

    fn events(&self) -> Result<LogicalPlanBuilder> {
        LogicalPlanBuilder::scan("events", tables::recorded_events(&self.slot)?, None)
    }

    async fn run(&self, plan: LogicalPlan) -> Result<Vec<RecordBatch>> {
        let plan = self.state.optimize(&plan)?;
        let physical = self.state.query_planner().create_physical_plan(&plan, &self.state).await?;
        collect(physical, self.state.task_ctx()).await
    }
}

fn among<T: AsRef<str>>(column: &str, ids: impl IntoIterator<Item = T>) -> Expr {
    col(column).in_list(ids.into_iter().map(|id| lit(id.as_ref())).collect(), false)
}

fn one_batch(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<RecordBatch> {
    let same = |batch: &RecordBatch| RecordBatch::try_new(Arc::clone(schema), batch.columns().to_vec());
    let batches = batches.iter().map(same).collect::<Result<Vec<_>, _>>()?;
    Ok(concat_batches(schema, &batches)?)
}

fn texts(batch: &RecordBatch, column: &str) -> Result<Vec<String>> {
    let texts = batch.column_by_name(column).and_then(|column| column.as_string_opt::<i32>());
    let Some(texts) = texts else { return internal_err!("column {column} was looked up and is no text") };
    Ok(texts.iter().flatten().map(str::to_owned).collect())
}

/// Puts the rows of the processes that were found in order, each with its depth.
fn in_order(found: &[(i64, String)], rows: &RecordBatch, schema: SchemaRef) -> Result<RecordBatch> {
    let places: BTreeMap<String, usize> = texts(rows, PROCESS_ID)?.into_iter().zip(0..).collect();
    let first = rows.column_by_name("first_seen").and_then(|column| column.as_primitive_opt::<TimestampNanosecondType>());
    let Some(first) = first else { return internal_err!("processes have no first_seen") };
    let first = |place: usize| if first.is_null(place) { i64::MAX } else { first.value(place) };
    let place = |(depth, id): &(i64, String)| places.get(id).map(|place| (*depth, first(*place), id.clone(), *place));
    let mut order: Vec<_> = found.iter().filter_map(place).collect();
    order.sort_unstable();
    let depths = Int64Array::from_iter_values(order.iter().map(|(depth, ..)| *depth));
    let places = UInt64Array::from_iter_values(order.iter().map(|(.., place)| *place as u64));
    let mut columns = take_record_batch(rows, &places)?.columns().to_vec();
    columns.insert(0, Arc::new(depths));
    Ok(RecordBatch::try_new(schema, columns)?)
}

const PROCESS_ID: &str = "process_id";
const PARENT: &str = "parent_process_id";
/// Levels up, and levels down.
const LEVELS_MAX: i64 = 64;
/// Rows of a tree.
const ROWS_MAX: usize = 10_000;
