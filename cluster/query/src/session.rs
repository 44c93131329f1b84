//! From a statement to an answer: planned by DataFusion, read from the workers at one tick, run by DataFusion.
//!
//! Every query has its own snapshot, memory pool and time limit; queries share nothing but the function registry.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::CatalogProviderList;
use datafusion::catalog::MemoryCatalogProviderList;
use datafusion::common::ParamValues;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::collect;
use datafusion::prelude::SessionConfig;
use weir_archive::{Record, Table as Recorded};
use weir_config::QueryLimits;
use weir_dataflow::handle::{self, At, Completeness, Failure};
use weir_dataflow::{RelationInfo, relation, relations};

use crate::access::{self, Role};
use crate::dropped::{self, LOSSES_NAME};
use crate::error::{self, SqlError};
use crate::freshness::{self, FRESHNESS};
use crate::functions;
use crate::inventory::{self, HOSTS_NAME, Inventory};
use crate::live::{Live, LiveError, Snapshot};
use crate::process_tree::ProcessTree;
use crate::search::Searches;
use crate::sinks::{self, SINKS, SinkStore, SinksOf};
use crate::statement::{Asked, Statement, parse};
use crate::subscription::{Subscriptions, is_of_subscription};
use crate::tables::{self, Binding, CATALOG, Past, SCHEMA, Slot, wanted};
use crate::views::{Made, ViewStore, ViewsOf};
use crate::{catalog, causal};

/// Answers statements.
#[derive(Clone)]
pub(crate) struct Engine {
    live: Live,
    past: Option<PastReads>,
    /// What is defined over the record.
    pub(crate) inventory: Option<Arc<Inventory>>,
    limits: QueryLimits,
    /// Who asks.
    pub(crate) role: Arc<Role>,
    pub(crate) state: Arc<SessionState>,
    /// What people made.
    pub(crate) views: ViewsOf,
    /// Where alerts go.
    pub(crate) sinks: SinksOf,
    /// Who is told changes.
    pub(crate) subscriptions: Subscriptions,
}

/// Where what people make is written down.
#[derive(Debug, Default)]
pub(crate) struct Stores {
    pub(crate) views: Option<Arc<dyn ViewStore>>,
    pub(crate) sinks: Option<Arc<dyn SinkStore>>,
}

/// The record, and where it is searched.
#[derive(Debug, Clone)]
pub(crate) struct PastReads {
    pub(crate) record: Record,
    pub(crate) searches: Searches,
}

/// Rows, and what they may lack.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The columns.
    pub(crate) schema: SchemaRef,
    /// The rows.
    pub(crate) batches: Vec<RecordBatch>,
    /// The tick they are of; none when no relation was read.
    pub(crate) tick: Option<u64>,
    /// What they may lack.
    pub(crate) completeness: Option<Completeness>,
    /// What a person should be told beside the rows.
    pub(crate) note: Option<String>,
}

impl Answer {
    /// One text.
    pub(crate) fn of_text(name: &str, text: Option<String>) -> Result<Self, SqlError> {
        let schema = Arc::new(Schema::new(vec![Field::new(name, DataType::Utf8, true)]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(StringArray::from(vec![text]))]);
        let batches = vec![batch.map_err(datafusion::error::DataFusionError::from)?];
        Ok(Self { schema, batches, tick: None, completeness: None, note: None })
    }
}

/// What to say of tails that have forgotten rows.
fn note(wanted: &[tables::Wanted], completeness: &Completeness) -> Option<String> {
    let tails: Vec<&str> =
        wanted.iter().map(|wanted| wanted.info.name.as_ref()).filter(|name| Recorded::from_name(name).is_some()).collect();
    let forgotten = completeness.forgotten_rows;
    let say =
        || format!("{} older rows of events and samples are not kept yet: {} holds the latest only", forgotten, tails.join(", "));
    (forgotten > 0 && !tails.is_empty()).then(say)
}

/// A planned query, not yet read or run.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) plan: LogicalPlan,
    /// The tick it is to be answered at; none: the newest.
    pub(crate) as_of: Option<u64>,
}

/// What a query reads at one tick.
#[derive(Default)]
struct Read {
    tick: Option<u64>,
    completeness: Option<Completeness>,
    note: Option<String>,
    searches: Option<Searches>,
}

impl Engine {
    /// An engine over live relations.
    pub(crate) async fn new(
        live: Live,
        past: Option<PastReads>,
        limits: QueryLimits,
        (node, Stores { views, sinks }): (&str, Stores),
    ) -> Result<Self, SqlError> {
        let mut config = SessionConfig::new()
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_create_default_catalog_and_schema(false)
            .with_target_partitions(PARTITIONS);
        let options = config.options_mut();
        options.sql_parser.dialect = datafusion::config::Dialect::PostgreSQL;
        options.sql_parser.map_string_types_to_utf8view = false;
        options.execution.time_zone = Some("UTC".into());
        let mut builder = SessionStateBuilder::new().with_config(config).with_default_features();
        builder = functions::added(builder);
        let subscriptions = Subscriptions::start(node, live.clone(), limits.subscriptions_max, views.clone());
        let (state, views, sinks) = (Arc::new(builder.build()), ViewsOf::new(views), SinksOf(sinks));
        let role = Arc::new(Role::nobody());
        let mut engine = Self { live, past, inventory: None, limits, role, state, views, sinks, subscriptions };
        if engine.past.is_some() {
            let (state, _) = engine.state(&Made::default())?;
            engine.inventory = Some(Arc::new(Inventory::plan(&state).await?));
        }
        let mut state = engine.state.as_ref().clone();
        state.register_udtf(inventory::PROCESS_TREE, Arc::new(ProcessTree::new(engine.inventory.as_deref())));
        causal::functions(engine.inventory.is_some()).for_each(|(name, function)| state.register_udtf(name, function));
        engine.state = Arc::new(state);
        Ok(engine)
    }

    /// The same engine, asked by somebody.
    pub(crate) fn asked_by(&self, role: &Arc<Role>) -> Self {
        let mut limits = self.limits.clone();
        limits.time_ms_max = limits.time_ms_max.min(role.limits.statement_ms_max.unwrap_or(u64::MAX));
        limits.memory_bytes_max = limits.memory_bytes_max.min(role.limits.memory_bytes_max.unwrap_or(u64::MAX));
        Self { role: Arc::clone(role), limits, ..self.clone() }
    }

    pub(crate) fn limits(&self) -> &QueryLimits {
        &self.limits
    }

    pub(crate) fn live(&self) -> &Live {
        &self.live
    }

    /// Every relation that can be asked for.
    pub(crate) fn relations<'a>(&'a self, made: &'a Made) -> impl Iterator<Item = &'a RelationInfo> {
        let recorded = self.inventory.iter().flat_map(|inventory| inventory.views());
        relations().iter().chain([freshness::info(), sinks::info()]).chain(recorded).chain(made.infos())
    }

    pub(crate) fn info<'a>(&'a self, name: &str, made: &'a Made) -> Result<&'a RelationInfo, SqlError> {
        self.relations(made).find(|info| info.name == name).ok_or_else(|| match inventory::needs_record(name) {
            true => inventory::no_record(name),
            false => SqlError::unknown_relation(name),
        })
    }

    /// Plans a query over the relations' columns.
    pub(crate) async fn plan(&self, asked: &Asked) -> Result<Planned, SqlError> {
        let mut made = self.made().await?;
        let unknown = |made: &Made, name: &String| self.info(name, made).is_err();
        let names = self.names_in(asked)?;
        sinks::only_now(&names, asked.as_of)?;
        if names.iter().any(|name| unknown(&made, name)) {
            self.views_known().await?;
            made = self.made().await?;
        }
        Ok(Planned { plan: self.planned_over(&made, asked).await?, as_of: asked.as_of })
    }

    /// Plans a query over these views and what ships.
    pub(crate) async fn planned_over(&self, made: &Made, asked: &Asked) -> Result<LogicalPlan, SqlError> {
        for name in self.names_in(asked)? {
            self.info(&name, made)?;
        }
        let (state, _) = self.state(made)?;
        let plan = state.statement_to_plan(asked.parsed.clone()).await?;
        match &plan {
            LogicalPlan::Ddl(_) | LogicalPlan::Dml(_) | LogicalPlan::Copy(_) | LogicalPlan::Statement(_) => {
                Err(SqlError::unsupported("a statement that changes something"))
            }
            _ => Ok(plan),
        }
    }

    /// Reads and runs a planned query.
    pub(crate) async fn run(&self, planned: &Planned, parameters: Option<ParamValues>) -> Result<Answer, SqlError> {
        let limit = Duration::from_millis(self.limits.time_ms_max);
        let work = self.run_unlimited(planned, parameters);
        tokio::time::timeout(limit, work)
            .await
            .unwrap_or_else(|_| {
                let message = format!("the query took longer than {} ms", self.limits.time_ms_max);
                Err(SqlError::new(error::TIMED_OUT, message).with_hint("ask for less, or raise `query.time_ms_max`"))
            })
            .map_err(|failed| self.role.in_its_words(failed))
    }

    async fn run_unlimited(&self, planned: &Planned, parameters: Option<ParamValues>) -> Result<Answer, SqlError> {
        let made = self.made().await?;
        let (state, slot) = self.state(&made)?;
        let plan = match parameters {
            Some(values) => planned.plan.clone().with_param_values(values)?,
            None => planned.plan.clone(),
        };
        // The plan was made over another, empty snapshot: put this query's tables in its scans.
        let hosts = self.recorded_hosts(&plan, planned.as_of).await?;
        let plan = tables::rebind(plan, &Binding { slot: &slot, past: self.past(), hosts, system: Some(&self.system(&made)) })?;
        let plan = access::restricted(plan, &self.role)?;
        let optimised = state.optimize(&plan)?;
        let wanted = match &optimised {
            LogicalPlan::Explain(explain) => {
                wanted(&explain.plan)?.into_iter().filter(|read| self.is_recorded(&read.info)).collect()
            }
            other => wanted(other)?,
        };
        let Read { tick, completeness, note, searches } = self.read(&wanted, &made, planned.as_of, &slot).await?;
        let physical = state.query_planner().create_physical_plan(&optimised, &state).await?;
        let schema = physical.schema();
        let context = state.task_ctx();
        let work = async move { collect(physical, context).await.map_err(SqlError::from) };
        let batches = match searches {
            Some(searches) => searches.run(work).await?,
            None => work.await?,
        };
        let bytes: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
        if bytes as u64 > self.limits.memory_bytes_max {
            return Err(SqlError::new(error::OUT_OF_MEMORY, format!("the answer has {bytes} bytes"))
                .with_hint("add a LIMIT, or raise `query.memory_bytes_max`"));
        }
        self.role.takes(batches.iter().map(RecordBatch::num_rows).sum())?;
        let note = slot.note(note);
        // They count what is there of all regions.
        let (completeness, note) = if self.role.is_restricted() { (None, None) } else { (completeness, note) };
        Ok(Answer { schema, batches, tick, completeness, note })
    }

    /// What `hosts` is, when it is asked for at a tick that the workers do not hold.
    async fn recorded_hosts(&self, plan: &LogicalPlan, as_of: Option<u64>) -> Result<Option<&LogicalPlan>, SqlError> {
        let (Some(tick), Some(inventory)) = (as_of, &self.inventory) else { return Ok(None) };
        if wanted(plan)?.iter().all(|read| read.info.name != HOSTS_NAME) {
            return Ok(None);
        }
        Ok((!self.live.holds(Some(tick)).await?).then(|| inventory.hosts()))
    }

    fn past(&self) -> Past {
        if self.past.is_some() { Past::Record } else { Past::Tails }
    }

    pub(crate) fn is_recorded(&self, info: &RelationInfo) -> bool {
        self.past().recorded(&info.name).is_some()
    }

    /// Reads the live relations at one tick, and opens the record at the same one.
    async fn read(&self, wanted: &[tables::Wanted], made: &Made, as_of: Option<u64>, slot: &Slot) -> Result<Read, SqlError> {
        let (recorded, mut live): (Vec<_>, Vec<_>) = wanted.iter().cloned().partition(|wanted| self.is_recorded(&wanted.info));
        let mut read = Read::default();
        if live.iter().any(|wanted| wanted.optional) && !self.live.holds(as_of).await? {
            slot.leave_out(&mut live);
        }
        if !live.is_empty() {
            let (rows_max, bytes_max) = (self.limits.rows_max, self.limits.memory_bytes_max);
            let asked = live.iter().map(|wanted| freshness::read(wanted, rows_max, bytes_max)).collect();
            let snapshot = self.peek(as_of.map_or(At::Latest, At::Tick), asked).await?;
            read.note = note(&live, &snapshot.completeness);
            (read.tick, read.completeness) = (Some(snapshot.tick), Some(snapshot.completeness));
            let mut reads = snapshot.reads;
            for (wanted, batches) in live.iter().zip(&mut reads) {
                let columns: Vec<usize> = wanted.columns.iter().copied().collect();
                if wanted.info.name == FRESHNESS {
                    let names = self.relations(made).filter(|info| info.standing && !is_of_subscription(&info.name));
                    let names = names.map(|info| info.name.as_ref());
                    *batches = vec![freshness::now(snapshot.tick, batches, names, &columns)?];
                }
                batches.extend(self.dropped(&wanted.info, &columns, &mut read.note).await?);
            }
            slot.fill(&live, reads)?;
        }
        if let (Some(past), false) = (&self.past, recorded.is_empty()) {
            let tick = match read.tick {
                Some(tick) => tick,
                None => self.past_tick(past, as_of, &mut read).await?,
            };
            slot.fill_record(past.record.at(tick).await?)?;
            read.tick = Some(tick);
            read.searches = Some(past.searches.clone());
        }
        Ok(read)
    }

    /// Asks the workers. While they are started anew it waits, so that a change of the mesh is a pause and no error.
    pub(crate) async fn peek(&self, at: At, reads: Vec<handle::Read>) -> Result<Snapshot, LiveError> {
        let deadline = Instant::now() + Duration::from_millis(self.limits.away_ms_max);
        let made_until = Instant::now() + MADE_WITHIN;
        loop {
            match self.live.peek(at, reads.clone()).await {
                Err(LiveError::Away | LiveError::Failed(Failure::NotReady)) if Instant::now() < deadline => {
                    tokio::time::sleep(AWAY_PAUSE).await;
                }
                // The chain has made a view that these workers have not come to yet.
                Err(LiveError::Failed(Failure::UnknownRelation(_) | Failure::Forgotten { .. }))
                    if at == At::Latest && Instant::now() < made_until =>
                {
                    tokio::time::sleep(AWAY_PAUSE).await;
                }
                answered => return answered,
            }
        }
    }

    /// The rows of `losses` that the record knows of: what retention dropped. While its store is away the others are told alone.
    async fn dropped(
        &self,
        info: &RelationInfo,
        columns: &[usize],
        note: &mut Option<String>,
    ) -> Result<Option<RecordBatch>, SqlError> {
        let Some(past) = self.past.as_ref().filter(|_| info.name == LOSSES_NAME) else { return Ok(None) };
        match past.record.newest().await {
            Ok(catalog) => {
                let rows = dropped::rows(&catalog, &info.schema, columns).map_err(datafusion::error::DataFusionError::from)?;
                Ok(Some(rows))
            }
            Err(away) => {
                *note = Some(format!("what retention has dropped is not among the losses: {away}"));
                Ok(None)
            }
        }
    }

    /// The tick at which a query of the record alone is answered.
    async fn past_tick(&self, past: &PastReads, as_of: Option<u64>, read: &mut Read) -> Result<u64, SqlError> {
        let newest = match self.live.frontier().await {
            Ok(frontier) => frontier.closed.ok_or_else(|| SqlError::new(error::NOT_READY, "no tick has closed yet"))?,
            // The record needs no workers: all that is chained can be read.
            Err(LiveError::Away) => {
                let newest = past.record.last_tick().await?;
                read.note = Some(format!("the workers are away: answered from the record alone, at tick {newest}"));
                newest
            }
            Err(other) => return Err(other.into()),
        };
        match as_of {
            Some(tick) if tick > newest => {
                let message = format!("tick {tick} has not closed yet: the newest is {newest}");
                Err(SqlError::new(error::NOT_READY, message).with_hint("ask AS OF an earlier tick, or without AS OF"))
            }
            Some(tick) => Ok(tick),
            None => Ok(newest),
        }
    }

    /// All rows of one relation, for HTTP.
    pub(crate) async fn relation(&self, name: &str, limit: Option<u64>) -> Result<Answer, SqlError> {
        let made = self.made().await?;
        if self.role.is_restricted() {
            self.info(name, &made)?;
            let limit = limit.unwrap_or(RECORD_ROWS_SHOWN).min(self.limits.rows_max);
            return self.ask(&format!("select * from \"{}\" limit {limit}", name.replace('"', "\"\""))).await;
        }
        let live = relation(name).filter(|info| !self.is_recorded(info));
        let Some(info) = live.or_else(|| made.kept.iter().find(|info| info.name == name)) else {
            // The latest first: the whole record is nothing to look through.
            let info = self.info(name, &made)?;
            if made.named.iter().any(|(named, _)| named.name == name) {
                return Err(SqlError::unsupported(format!("reading \"{name}\", a name for a SELECT, over this path"))
                    .with_hint("ask /v1/query?sql="));
            }
            let latest = match name {
                FRESHNESS => "lag_ms desc",
                SINKS => "name",
                _ if self.is_recorded(info) => "tick desc, time desc",
                _ => "last_seen desc",
            };
            let limit = limit.unwrap_or(RECORD_ROWS_SHOWN).min(self.limits.rows_max);
            return self.ask(&format!("select * from {name} order by {latest} limit {limit}")).await;
        };
        let mut wanted =
            tables::Wanted { info: info.clone(), columns: (0..info.schema.fields().len()).collect(), limit, optional: false };
        wanted.limit = wanted.limit.filter(|limit| *limit <= self.limits.rows_max);
        let read = wanted.read(self.limits.rows_max, self.limits.memory_bytes_max);
        let peek = self.peek(At::Latest, vec![read]);
        let timed = tokio::time::timeout(Duration::from_millis(self.limits.time_ms_max), peek).await;
        let snapshot = timed.map_err(|_| SqlError::new(error::TIMED_OUT, "the workers did not answer in time"))??;
        let mut left = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let mut batches = Vec::new();
        let mut note = None;
        let columns: Vec<usize> = (0..info.schema.fields().len()).collect();
        let dropped = self.dropped(info, &columns, &mut note).await?;
        for batch in snapshot.reads.into_iter().flatten().chain(dropped) {
            let rows = batch.num_rows().min(left);
            left -= rows;
            batches.push(batch.slice(0, rows));
        }
        let schema = Arc::clone(&info.schema);
        Ok(Answer { schema, batches, tick: Some(snapshot.tick), completeness: Some(snapshot.completeness), note })
    }

    async fn ask(&self, sql: &str) -> Result<Answer, SqlError> {
        match parse(sql)?.pop() {
            Some(Statement::Query(asked)) => self.run(&self.plan(&asked).await?, None).await,
            _ => Err(SqlError::new(error::INTERNAL, "a query is a query")),
        }
    }

    /// A state of its own for one query: fresh tables, a memory pool, the shared functions.
    pub(crate) fn state(&self, made: &Made) -> Result<(SessionState, Arc<Slot>), SqlError> {
        let slot = Arc::new(Slot::default());
        let catalogs = MemoryCatalogProviderList::new();
        let catalog = tables::catalog(&slot, self.past(), self.inventory.as_deref(), (made, &self.sinks))?;
        let system = Arc::new(self.system(made));
        for schema in [catalog::PG, catalog::INFORMATION] {
            catalog.register_schema(schema, Arc::new(catalog::Catalog { schema, system: Arc::clone(&system) }))?;
        }
        catalogs.register_catalog(CATALOG.into(), catalog);
        let memory = usize::try_from(self.limits.memory_bytes_max).unwrap_or(usize::MAX);
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(GreedyMemoryPool::new(memory))).build_arc()?;
        let mut builder = SessionStateBuilder::new_from_existing(self.state.as_ref().clone())
            .with_catalog_list(Arc::new(catalogs))
            .with_runtime_env(runtime);
        builder.scalar_functions().get_or_insert_default().extend(catalog::functions(&system));
        builder.scalar_functions().get_or_insert_default().extend(functions::of_user(&self.role.name));
        let mut state = builder.build();
        // `now()` is the time of the question; without this it fails.
        state.mark_start_execution();
        Ok((state, slot))
    }

    /// The relations, as tools see them.
    fn system(&self, made: &Made) -> catalog::System {
        let shown = self.relations(made).filter(|info| !is_of_subscription(&info.name));
        catalog::System::new(shown.map(|info| catalog::Described::of(info, made.table_sql(&info.name))))
    }
}

/// Rows of a recorded relation that HTTP shows when not asked for a number.
const RECORD_ROWS_SHOWN: u64 = 1_000;
/// Between two attempts to ask workers that are away.
const AWAY_PAUSE: Duration = Duration::from_millis(100);
/// Workers that run come to a view's first tick long before.
const MADE_WITHIN: Duration = Duration::from_secs(5);
/// Threads that one query may use: answers must not starve the workers.
const PARTITIONS: usize = 2;
