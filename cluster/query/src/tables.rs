//! The relations as DataFusion tables. A query is planned against their columns alone; before it runs, what it reads of the live
//! ones is peeked at one tick and put into a snapshot, which every scan of the query shares. What is recorded is read from the
//! record as of the same tick, while the query runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider, Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::{ViewTable, provider_as_source, source_as_provider};
use datafusion::logical_expr::{
    Expr, LogicalPlan, SubqueryAlias, TableProviderFilterPushDown, TableScan, TableSource, TableType,
};
use datafusion::physical_plan::ExecutionPlan;
use weir_archive::{RecordSnapshot, Table as Recorded};
use weir_dataflow::RelationInfo;
use weir_dataflow::handle::Read;

use crate::catalog::System;
use crate::causal::Causal;
use crate::freshness;
use crate::inventory::{HOSTS_NAME, Inventory};
use crate::process_tree::Tree;
use crate::sinks::{SINKS, SinksOf};
use crate::views::Made;

/// What one query reads, put here between planning and running.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    live: OnceLock<BTreeMap<String, Rows>>,
    record: OnceLock<RecordSnapshot>,
    notices: Mutex<Vec<String>>,
}

/// The rows of one relation: some of its columns.
#[derive(Debug)]
struct Rows {
    columns: Vec<usize>,
    batches: Vec<RecordBatch>,
}

/// What a query reads of one relation.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// The relation.
    pub(crate) info: RelationInfo,
    /// Columns by place, sorted.
    pub(crate) columns: BTreeSet<usize>,
    /// Any so many rows are enough.
    pub(crate) limit: Option<u64>,
    /// Left out at ticks that the workers do not hold.
    pub(crate) optional: bool,
}

impl Wanted {
    /// As the workers are asked.
    pub(crate) fn read(&self, rows_max: u64, bytes_max: u64) -> Read {
        let schema = &self.info.schema;
        let columns = self.columns.iter().map(|column| schema.field(*column).name().clone()).collect::<Vec<_>>();
        // Rows without columns cost nothing: `count(*)` may count them all.
        let rows_max = if columns.is_empty() { u64::MAX } else { rows_max };
        Read { relation: self.info.name.to_string(), columns: Some(columns), limit: self.limit, rows_max, bytes_max }
    }
}

impl Slot {
    /// Puts in what was read, once.
    pub(crate) fn fill(&self, wanted: &[Wanted], reads: Vec<Vec<RecordBatch>>) -> Result<()> {
        let rows = wanted.iter().zip(reads).map(|(wanted, batches)| {
            let columns = wanted.columns.iter().copied().collect();
            (wanted.info.name.to_string(), Rows { columns, batches })
        });
        self.live.set(rows.collect()).map_err(|_| DataFusionError::Internal("a snapshot is filled once".into()))
    }

    /// Puts in the record, once.
    pub(crate) fn fill_record(&self, snapshot: RecordSnapshot) -> Result<()> {
        self.record.set(snapshot).map_err(|_| DataFusionError::Internal("a snapshot is filled once".into()))
    }

    /// Something that a person should be told beside the rows.
    pub(crate) fn notice(&self, notice: String) {
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        if !notices.contains(&notice) {
            notices.push(notice);
        }
    }

    /// All that is to be told, behind what is told anyway.
    pub(crate) fn note(&self, note: Option<String>) -> Option<String> {
        let notices = std::mem::take(&mut *self.notices.lock().unwrap_or_else(PoisonError::into_inner));
        let all: Vec<String> = note.into_iter().chain(notices).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Leaves out what need not be read: the workers do not hold the tick.
    pub(crate) fn leave_out(&self, live: &mut Vec<Wanted>) {
        live.retain(|wanted| !wanted.optional);
        self.notice("the workers do not hold the alerts of this tick: an alert_id is not looked up".into());
    }

    /// The tick of the record that was put in; 0 without one.
    pub(crate) fn tick(&self) -> u64 {
        self.record.get().map_or(0, |record| record.tick)
    }

    /// The alerts, if they were read.
    pub(crate) fn alerts(&self) -> Option<Vec<RecordBatch>> {
        self.live.get()?.get(ALERTS).map(|rows| rows.batches.clone())
    }

    fn batches(&self, info: &RelationInfo, projection: &[usize]) -> Result<Vec<RecordBatch>> {
        // An EXPLAIN is planned without ever being filled. Only then may a relation be absent: see `Engine::run`.
        let Some(rows) = self.live.get().map(|all| all.get(info.name.as_ref())) else { return Ok(vec![]) };
        let Some(rows) = rows else { return internal_err!("relation {} was not read", info.name) };
        let places: Vec<_> = projection.iter().map(|column| rows.columns.binary_search(column)).collect();
        let Ok(places) = places.into_iter().collect::<std::result::Result<Vec<_>, _>>() else {
            return internal_err!("a column of relation {} was not read", info.name);
        };
        let schema = Arc::new(info.schema.project(projection)?);
        let project = |batch: &RecordBatch| {
            let columns = places.iter().map(|place| Arc::clone(batch.column(*place))).collect();
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options).map_err(DataFusionError::from)
        };
        rows.batches.iter().map(project).collect()
    }
}

/// Where the rows of `events` and `samples` come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Past {
    /// The tails in the workers' memory.
    Tails,
    /// The record.
    Record,
}

impl Past {
    /// The recorded relation of this name, if the record is what is read.
    pub(crate) fn recorded(self, name: &str) -> Option<Recorded> {
        Recorded::from_name(name).filter(|_| self == Self::Record)
    }
}

/// A catalog of all relations over one snapshot, and of those that are defined over the record.
pub(crate) fn catalog(
    slot: &Arc<Slot>,
    past: Past,
    inventory: Option<&Inventory>,
    (made, sinks): (&Made, &SinksOf),
) -> Result<Arc<dyn CatalogProvider>> {
    let schema = MemorySchemaProvider::new();
    for info in weir_dataflow::relations().iter().chain([freshness::info()]).chain(&made.kept) {
        let table = Table { info: info.clone(), past, slot: Arc::clone(slot) };
        schema.register_table(info.name.to_string(), Arc::new(table))?;
    }
    schema.register_table(SINKS.into(), Arc::new(sinks.clone()))?;
    for (info, plan) in &made.named {
        let view = ViewTable::new(plan.clone(), info.sql.as_deref().map(str::to_owned));
        schema.register_table(info.name.to_string(), Arc::new(view))?;
    }
    for (name, view) in inventory.into_iter().flat_map(Inventory::tables) {
        schema.register_table(name.into(), view)?;
    }
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(SCHEMA, Arc::new(schema))?;
    Ok(Arc::new(catalog))
}

/// What an optimised plan reads, each relation once.
pub(crate) fn wanted(plan: &LogicalPlan) -> Result<Vec<Wanted>> {
    let mut found: Vec<Wanted> = Vec::new();
    plan.apply_with_subqueries(|node| {
        let LogicalPlan::TableScan(scan) = node else { return Ok(TreeNodeRecursion::Continue) };
        for scan in one(scan).into_iter().chain(alerts_of(scan)) {
            match found.iter_mut().find(|other| other.info.name == scan.info.name) {
                None => found.push(scan),
                Some(other) => {
                    other.columns.extend(scan.columns);
                    other.limit = other.limit.zip(scan.limit).map(|(a, b)| a.max(b));
                    other.optional &= scan.optional;
                }
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

fn one(scan: &TableScan) -> Option<Wanted> {
    if Tree::of(scan).is_some() || Causal::of(scan).is_some() {
        // Its lookups read what they need when the query runs.
        let info = weir_dataflow::relation(Recorded::Events.name())?.clone();
        return Some(Wanted { info, columns: BTreeSet::new(), limit: None, optional: false });
    }
    let info = source_as_provider(&scan.source).ok()?.downcast_ref::<Table>()?.info.clone();
    let columns = match &scan.projection {
        Some(columns) => columns.iter().copied().collect(),
        None => (0..info.schema.fields().len()).collect(),
    };
    Some(Wanted { info, columns, limit: scan.fetch.map(|rows| rows as u64), optional: false })
}

/// The relation that a scan reads, if it reads one.
pub(crate) fn scanned(scan: &TableScan) -> Option<RelationInfo> {
    Some(source_as_provider(&scan.source).ok()?.downcast_ref::<Table>()?.info.clone())
}

/// The alerts that a question of the causal graph begins at: all columns.
fn alerts_of(scan: &TableScan) -> Option<Wanted> {
    let causal = Causal::of(scan)?;
    let info = weir_dataflow::relation(ALERTS)?.clone();
    let columns = (0..info.schema.fields().len()).collect();
    Some(Wanted { info, columns, limit: None, optional: causal.needs_no_alerts() })
}

#[derive(Debug)]
struct Table {
    info: RelationInfo,
    past: Past,
    slot: Arc<Slot>,
}

#[async_trait]
impl TableProvider for Table {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.info.schema)
    }

    fn table_type(&self) -> TableType {
        if self.info.sql.is_some() { TableType::View } else { TableType::Base }
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let how = match self.past.recorded(&self.info.name) {
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(vec![how; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if let (Some(table), Some(record)) = (self.past.recorded(&self.info.name), self.slot.record.get()) {
            return record.scan(table, state, projection, filters, limit);
        }
        let all;
        let projection = match projection {
            Some(columns) => columns,
            None => {
                all = (0..self.info.schema.fields().len()).collect();
                &all
            }
        };
        let batches = self.slot.batches(&self.info, projection)?;
        let schema = Arc::new(self.info.schema.project(projection)?);
        Ok(MemorySourceConfig::try_new_exec(&[batches], schema, None)?)
    }
}

const ALERTS: &str = "alerts";
/// The schema (in PostgreSQL's sense) that holds the relations.
pub(crate) const SCHEMA: &str = "public";
/// The catalog that holds the schema: the database's name.
pub(crate) const CATALOG: &str = "weir";

/// What a plan is bound to before it runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Binding<'a> {
    /// The snapshot.
    pub(crate) slot: &'a Arc<Slot>,
    /// Where the past comes from.
    pub(crate) past: Past,
    /// What `hosts` is, when the workers do not hold it at the tick.
    pub(crate) hosts: Option<&'a LogicalPlan>,
    /// What tools are told of the relations, where a plan may read it.
    pub(crate) system: Option<&'a System>,
}

/// The same plan over this snapshot's tables.
pub(crate) fn rebind(plan: LogicalPlan, binding: &Binding<'_>) -> Result<LogicalPlan> {
    let Binding { slot, past, hosts, system } = *binding;
    let rebound = plan.transform_down_with_subqueries(|node| {
        let LogicalPlan::TableScan(mut scan) = node else { return Ok(Transformed::no(node)) };
        if let Some(tree) = Tree::of(&scan) {
            scan.source = tree.on(slot);
            return Ok(Transformed::yes(LogicalPlan::TableScan(scan)));
        }
        if let Some(causal) = Causal::of(&scan) {
            scan.source = causal.on(slot);
            return Ok(Transformed::yes(LogicalPlan::TableScan(scan)));
        }
        // A catalog tells of the relations as they are when the query runs, not as they were when it was prepared.
        if let Some(schema) = scan.table_name.schema()
            && let Some(system) = system
            && let Some(table) = system.table(schema, scan.table_name.table())?
        {
            scan.source = provider_as_source(table);
            return Ok(Transformed::yes(LogicalPlan::TableScan(scan)));
        }
        let Some(wanted) = one(&scan) else { return Ok(Transformed::no(LogicalPlan::TableScan(scan))) };
        if let Some(definition) = hosts.filter(|_| wanted.info.name == HOSTS_NAME) {
            // Its own scans are bound next: the walk goes on below it.
            let view = SubqueryAlias::try_new(Arc::new(definition.clone()), scan.table_name)?;
            return Ok(Transformed::yes(LogicalPlan::SubqueryAlias(view)));
        }
        scan.source = provider_as_source(Arc::new(Table { info: wanted.info, past, slot: Arc::clone(slot) }));
        Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
    })?;
    Ok(rebound.data)
}

/// The recorded events of a snapshot, to build plans on.
pub(crate) fn recorded_events(slot: &Arc<Slot>) -> Result<Arc<dyn TableSource>> {
    let Some(info) = weir_dataflow::relation(Recorded::Events.name()) else { return internal_err!("there are no events") };
    let info = info.clone();
    Ok(provider_as_source(Arc::new(Table { info, past: Past::Record, slot: Arc::clone(slot) })))
}
