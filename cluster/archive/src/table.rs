//! The recorded relations as DataFusion tables: the files of one catalog, and the chain behind its position, up to one tick.
//!
//! Rows of the files have ticks up to the catalog's position; the tail gives the rows after it. Both are a pure function of the chain, so
//! their union at a tick is the same whatever has been flushed or compacted.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, DFSchema, DataFusionError, Result, ScalarValue, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType, col, lit, utils::conjunction};
use datafusion::physical_expr::expressions::Column as PhysicalColumn;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};
use weir_schema::Column;

use crate::catalog::{Archive, Catalog};
use crate::error::Error;
use crate::layout::Table;
use crate::manifest::{FileEntry, Position};
use crate::properties::outside_schema;
use crate::read::SealedReaders;

/// Reads the chain behind the archive. Blocks; called on a thread for it.
pub trait Tail: Debug + Send + Sync {
    /// Hands out the rows whose tick is after the position and not after `until_tick`, until `out` wants no more. Rows are the asked
    /// columns in the types of `RecordTable`. `Error::Behind` when the chain at the position is forgotten.
    fn read(&self, request: &TailRequest, out: &mut dyn FnMut(RecordBatch) -> bool) -> std::result::Result<(), Error>;

    /// The last tick that is chained, seen from this position.
    fn last_tick(&self, position: &Position) -> std::result::Result<u64, Error>;
}

/// A tail without rows: only what is in files is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoTail;

impl Tail for NoTail {
    fn read(&self, _request: &TailRequest, _out: &mut dyn FnMut(RecordBatch) -> bool) -> std::result::Result<(), Error> {
        Ok(())
    }

    fn last_tick(&self, position: &Position) -> std::result::Result<u64, Error> {
        Ok(position.tick)
    }
}

/// What is asked of a tail.
#[derive(Debug, Clone)]
pub struct TailRequest {
    /// Number of the catalog it follows.
    pub number: u64,
    /// Where the archive ends.
    pub position: Position,
    /// What its writer would go on from there; none before the first manifest.
    pub state: Option<Arc<Vec<u8>>>,
    /// The last tick that is wanted.
    pub until_tick: u64,
    /// Of which relation.
    pub table: Table,
    /// Which columns.
    pub columns: Vec<Column>,
}

/// The record: an archive and the chain behind it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Record {
    archive: Archive,
    tail: Arc<dyn Tail>,
    newest: Arc<Mutex<Option<Newest>>>,
}

/// A catalog, and what its writer would go on from.
#[derive(Debug, Clone)]
struct Newest {
    catalog: Arc<Catalog>,
    state: Option<Arc<Vec<u8>>>,
}

/// The record at one tick. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RecordSnapshot {
    archive: Archive,
    tail: Arc<dyn Tail>,
    /// What is in files.
    pub catalog: Arc<Catalog>,
    state: Option<Arc<Vec<u8>>>,
    /// The last tick whose rows are in it.
    pub tick: u64,
}

impl Record {
    /// Reads `archive`, and behind it `tail`.
    pub fn new(archive: Archive, tail: Arc<dyn Tail>) -> Self {
        Self { archive, tail, newest: Arc::default() }
    }

    /// The archive.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// The newest catalog that can be reached: while the store is away, the last one that was read here.
    pub async fn newest(&self) -> std::result::Result<Arc<Catalog>, Error> {
        match self.archive.refresh().await {
            Ok(catalog) => Ok(catalog),
            Err(error) => {
                let known = self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
                known.filter(|_| error.is_store()).map(|known| known.catalog).ok_or(error)
            }
        }
    }

    /// The record at a tick, over the newest catalog that can be reached: while the store is away, the last one that was read here.
    pub async fn at(&self, tick: u64) -> std::result::Result<RecordSnapshot, Error> {
        let known = || self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let newest = match self.look().await {
            Ok(newest) => newest,
            Err(error) => known().filter(|_| error.is_store()).ok_or(error)?,
        };
        let Newest { catalog, state } = newest;
        Ok(RecordSnapshot { archive: self.archive.clone(), tail: Arc::clone(&self.tail), catalog, state, tick })
    }

    /// The newest catalog, with the state that belongs to it.
    async fn look(&self) -> std::result::Result<Newest, Error> {
        let catalog = self.archive.refresh().await?;
        let known = self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let state = match (&catalog.state, known) {
            (None, _) => None,
            (Some(_), Some(known)) if known.catalog.state == catalog.state => known.state,
            (Some(reference), _) => Some(Arc::new(self.archive.read_state(reference).await?)),
        };
        let newest = Newest { catalog, state };
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(newest.clone());
        Ok(newest)
    }

    /// The last tick that is chained.
    pub async fn last_tick(&self) -> std::result::Result<u64, Error> {
        let (tail, position) = (Arc::clone(&self.tail), self.archive.catalog().position.clone());
        let last = tokio::task::spawn_blocking(move || tail.last_tick(&position)).await;
        last.map_err(|died| Error::Tail(died.to_string()))?
    }
}

impl RecordSnapshot {
    /// One file by itself.
    pub(crate) fn alone(archive: &Archive, file: &Arc<FileEntry>) -> Self {
        let position = Position { tick: file.tick_max, ..Position::default() };
        let files = BTreeMap::from([(file.path.clone(), Arc::clone(file))]);
        let catalog = Arc::new(Catalog { position, files, ..Catalog::default() });
        Self { archive: archive.clone(), tail: Arc::new(NoTail), catalog, state: None, tick: file.tick_max }
    }

    /// A relation of it.
    pub fn table(&self, table: Table) -> RecordTable {
        RecordTable { snapshot: Some(self.clone()), table }
    }

    /// A plan that reads a relation: rows that the filters surely exclude may be left out, no others.
    pub fn scan(
        &self,
        table: Table,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = outside_schema(table);
        let all: Vec<usize> = (0..schema.fields().len()).collect();
        let projection = projection.unwrap_or(&all);
        let scan = Scan { snapshot: self, table, schema: &schema, session, limit };
        let (whole, cut): (Vec<_>, Vec<_>) = self
            .catalog
            .files_of(table)
            .filter(|file| file.tick_min <= self.tick)
            .cloned()
            .partition(|file| file.tick_max <= self.tick);
        let mut inputs = Vec::new();
        if !whole.is_empty() {
            inputs.push(scan.files(whole, projection, filters)?);
        }
        if !cut.is_empty() {
            inputs.push(scan.cut_files(cut, projection, filters)?);
        }
        if self.tick > self.catalog.position.tick {
            inputs.push(scan.tail(projection)?);
        }
        match inputs.len() {
            0 => Ok(Arc::new(EmptyExec::new(Arc::new(schema.project(projection)?)))),
            1 => Ok(inputs.remove(0)),
            _ => UnionExec::try_new(inputs),
        }
    }
}

/// One scan of one relation.
struct Scan<'a> {
    snapshot: &'a RecordSnapshot,
    table: Table,
    schema: &'a SchemaRef,
    session: &'a dyn Session,
    limit: Option<usize>,
}

impl Scan<'_> {
    fn predicate(&self, filters: &[Expr]) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let Some(filter) = conjunction(filters.to_vec()) else { return Ok(None) };
        let schema = DFSchema::try_from(Arc::clone(self.schema))?;
        self.session.create_physical_expr(filter, &schema).map(Some)
    }

    fn files(&self, files: Vec<Arc<FileEntry>>, projection: &[usize], filters: &[Expr]) -> Result<Arc<dyn ExecutionPlan>> {
        let archive = &self.snapshot.archive;
        let url = ObjectStoreUrl::parse(STORE_URL)?;
        self.session.runtime_env().register_object_store(url.as_ref(), Arc::clone(archive.store().objects()));
        let readers = SealedReaders { store: archive.store().clone(), footers: Arc::clone(archive.footers()) };
        let mut source = ParquetSource::new(Arc::clone(self.schema))
            .with_parquet_file_reader_factory(Arc::new(readers))
            .with_pushdown_filters(true)
            .with_reorder_filters(true)
            .with_bloom_filter_on_read(true)
            .with_enable_page_index(true);
        if let Some(predicate) = self.predicate(filters)? {
            source = source.with_predicate(predicate);
        }
        let groups = groups(files, self.session.config().target_partitions(), self.schema);
        let config = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(groups)
            .with_projection_indices(Some(projection.to_vec()))?
            .with_limit(self.limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    /// Files that also hold rows of later ticks.
    fn cut_files(&self, files: Vec<Arc<FileEntry>>, projection: &[usize], filters: &[Expr]) -> Result<Arc<dyn ExecutionPlan>> {
        let tick = self.schema.index_of(Column::Tick.name())?;
        let mut wider = projection.to_vec();
        if !wider.contains(&tick) {
            wider.push(tick);
        }
        let until = col(Column::Tick.name()).lt_eq(lit(i64::try_from(self.snapshot.tick).unwrap_or(i64::MAX)));
        let filters: Vec<Expr> = filters.iter().cloned().chain([until.clone()]).collect();
        let unlimited = Scan { limit: None, ..*self };
        let read = unlimited.files(files, &wider, &filters)?;
        let schema = DFSchema::try_from(read.schema())?;
        let until = self.session.create_physical_expr(until, &schema)?;
        let kept: Arc<dyn ExecutionPlan> = Arc::new(FilterExec::try_new(until, read)?);
        let columns = (0..projection.len()).map(|place| {
            let name = kept.schema().field(place).name().clone();
            (Arc::new(PhysicalColumn::new(&name, place)) as Arc<dyn PhysicalExpr>, name)
        });
        Ok(Arc::new(ProjectionExec::try_new(columns.collect::<Vec<_>>(), Arc::clone(&kept))?))
    }

    fn tail(&self, projection: &[usize]) -> Result<Arc<dyn ExecutionPlan>> {
        let RecordSnapshot { tail, catalog, state, tick, .. } = self.snapshot;
        let request = TailRequest {
            number: catalog.number,
            position: catalog.position.clone(),
            state: state.clone(),
            until_tick: *tick,
            table: self.table,
            columns: projection.iter().map(|place| self.table.columns()[*place]).collect(),
        };
        let schema = Arc::new(self.schema.project(projection)?);
        let stream = TailStream { tail: Arc::clone(tail), request, schema: Arc::clone(&schema) };
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(stream)], None, None, false, self.limit)?))
    }
}

/// Spreads files over the threads of a query, about equal in bytes.
fn groups(mut files: Vec<Arc<FileEntry>>, threads: usize, schema: &SchemaRef) -> Vec<FileGroup> {
    files.sort_by_key(|file| std::cmp::Reverse(file.bytes));
    let mut groups = vec![(0, Vec::new()); threads.clamp(1, files.len().max(1))];
    for file in files {
        let least = groups.iter_mut().min_by_key(|(bytes, _)| *bytes).expect("there is one");
        least.0 += file.bytes;
        least.1.push(partitioned(file, schema));
    }
    groups.into_iter().map(|(_, files)| FileGroup::new(files)).collect()
}

/// A file as DataFusion knows it, with what its manifest entry says of its columns.
fn partitioned(file: Arc<FileEntry>, schema: &SchemaRef) -> PartitionedFile {
    let mut statistics = Statistics::new_unknown(schema);
    statistics.num_rows = Precision::Exact(usize::try_from(file.rows).unwrap_or(usize::MAX));
    let span = |min: ScalarValue, max: ScalarValue| ColumnStatistics {
        min_value: Precision::Exact(min),
        max_value: Precision::Exact(max),
        null_count: Precision::Exact(0),
        ..ColumnStatistics::new_unknown()
    };
    let text = |value: &str| span(ScalarValue::Utf8(Some(value.to_owned())), ScalarValue::Utf8(Some(value.to_owned())));
    let time = |time| ScalarValue::TimestampNanosecond(Some(time), Some("UTC".into()));
    let tick = |tick| ScalarValue::Int64(i64::try_from(tick).ok());
    let mut set = |column: Column, known: ColumnStatistics| {
        if let Ok(place) = schema.index_of(column.name()) {
            statistics.column_statistics[place] = known;
        }
    };
    set(Column::Time, span(time(file.time_min), time(file.time_max)));
    set(Column::Tick, span(tick(file.tick_min), tick(file.tick_max)));
    if let Some(partition) = &file.partition {
        set(Column::Tenant, text(&partition.tenant));
        set(Column::Region, text(&partition.region));
        set(Column::Kind, text(&partition.kind));
    }
    PartitionedFile::new(file.path.clone(), file.bytes).with_statistics(Arc::new(statistics)).with_extension(file)
}

/// The tail as one partition of a plan.
struct TailStream {
    tail: Arc<dyn Tail>,
    request: TailRequest,
    schema: SchemaRef,
}

impl Debug for TailStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tail({} after tick {})", self.request.table.name(), self.request.position.tick)
    }
}

impl PartitionStream for TailStream {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut stream = RecordBatchReceiverStreamBuilder::new(Arc::clone(&self.schema), TAIL_BATCHES_AHEAD);
        let (out, tail, request) = (stream.tx(), Arc::clone(&self.tail), self.request.clone());
        stream.spawn_blocking(move || {
            let read = tail.read(&request, &mut |batch| out.blocking_send(Ok(batch)).is_ok());
            read.map_err(DataFusionError::from)
        });
        stream.build()
    }
}

/// A recorded relation. Without a snapshot it can be planned over, not read.
#[derive(Debug, Clone)]
pub struct RecordTable {
    snapshot: Option<RecordSnapshot>,
    table: Table,
}

#[async_trait]
impl TableProvider for RecordTable {
    fn schema(&self) -> SchemaRef {
        outside_schema(self.table)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let snapshot = self.snapshot.as_ref().ok_or_else(|| DataFusionError::Internal("no snapshot to read".into()))?;
        snapshot.scan(self.table, session, projection, filters, limit)
    }
}

const STORE_URL: &str = "weir-archive://record";
/// Batches of the tail that are read before the query has taken them.
const TAIL_BATCHES_AHEAD: usize = 4;
