//! `process_tree('<process_id>')`: a process, its ancestors and its descendants, as the events told them.
//!
//! Rows: `depth` (0 itself, -1 its parents, 1 its children, …), then the columns of `processes`; in order of depth, first_seen. A
//! process that only its children know by id is there with what they say of it: its pid, exe, cmdline, host.
//!
//! `lineage.rs` looks the rows up, on the snapshot of the query, when the query runs. The argument is a literal, so that a plan names
//! one process.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{DataFusionError, Result, internal_datafusion_err};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::execution::session_state::SessionState;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, TableScan, TableSource, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};

use crate::error::{self, SqlError};
use crate::inventory::{self, Inventory};
use crate::lineage::Lineage;
use crate::tables::Slot;

/// The function.
#[derive(Debug)]
pub(crate) struct ProcessTree {
    /// What is executed for `processes`; none without a record.
    processes: Option<Arc<LogicalPlan>>,
}

impl ProcessTree {
    /// Over the record's processes.
    pub(crate) fn new(inventory: Option<&Inventory>) -> Self {
        Self { processes: inventory.map(|inventory| Arc::new(inventory.processes().clone())) }
    }
}

impl TableFunctionImpl for ProcessTree {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let refused = |error: SqlError| DataFusionError::External(Box::new(error));
        let processes = self.processes.as_ref().ok_or_else(|| refused(inventory::no_record(inventory::PROCESS_TREE)))?;
        let id = match args.exprs() {
            [Expr::Literal(value, _)] => value.try_as_str().flatten(),
            _ => None,
        };
        let wrong = || {
            SqlError::new(error::SYNTAX, "process_tree takes one process_id, written out as a text")
                .with_hint("select * from process_tree('0123456789abcdef0123456789abcdef')")
        };
        let process_id = id.ok_or_else(|| refused(wrong()))?.into();
        let depth = Arc::new(Field::new("depth", DataType::Int64, true));
        let fields = processes.schema().fields().iter().map(|field| Arc::new(field.as_ref().clone().with_nullable(true)));
        let schema = Arc::new(Schema::new([depth].into_iter().chain(fields).collect::<Vec<_>>()));
        Ok(Arc::new(Tree { process_id, processes: Arc::clone(processes), schema, slot: Arc::default() }))
    }
}

/// The tree of one process, on one snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    process_id: Arc<str>,
    processes: Arc<LogicalPlan>,
    schema: SchemaRef,
    slot: Arc<Slot>,
}

impl Tree {
    /// The tree that a scan reads, if it reads one.
    pub(crate) fn of(scan: &TableScan) -> Option<Self> {
        source_as_provider(&scan.source).ok()?.downcast_ref::<Self>().cloned()
    }

    /// The same tree on another snapshot.
    pub(crate) fn on(self, slot: &Arc<Slot>) -> Arc<dyn TableSource> {
        provider_as_source(Arc::new(Self { slot: Arc::clone(slot), ..self }))
    }
}

#[async_trait]
impl TableProvider for Tree {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let state = state.as_any().downcast_ref::<SessionState>();
        let state = state.ok_or_else(|| internal_datafusion_err!("a tree is planned by a session"))?.clone();
        let all = || (0..self.schema.fields().len()).collect();
        let projection = projection.cloned().unwrap_or_else(all);
        let schema = Arc::new(self.schema.project(&projection)?);
        let stream = Arc::new(Rows { tree: self.clone(), state, projection, schema: Arc::clone(&schema) });
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![stream], None, None, false, limit)?))
    }
}

/// Looks the tree up when it is read.
struct Rows {
    tree: Tree,
    state: SessionState,
    projection: Vec<usize>,
    schema: SchemaRef,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process_tree({})", self.tree.process_id)
    }
}

impl PartitionStream for Rows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let Tree { process_id, processes, schema, slot } = self.tree.clone();
        let (state, projection) = (self.state.clone(), self.projection.clone());
        let rows = async move {
            let lineage = Lineage::new(state, &slot, &processes)?;
            let rows = lineage.tree(&process_id, schema).await?;
            Ok(rows.project(&projection)?)
        };
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), futures::stream::once(rows)))
    }
}
