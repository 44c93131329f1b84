//! `blast_radius('<entity>' [, '<interval or time>'])`, `attack_path('<alert_id>')` and `incidents`, as tables.
//!
//! The rows are made when they are read, on the snapshot of the query. Arguments are literals, so that a plan names one entity.

use std::fmt;
use std::sync::Arc;

use arrow::compute::kernels::cast_utils::{parse_interval_month_day_nano, string_to_timestamp_nanos};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{DataFusionError, Result, internal_datafusion_err};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::execution::session_state::SessionState;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableScan, TableSource, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};

use super::answer::{answer, hops_schema};
use super::facts::Id;
use super::incidents::incidents_schema;
use crate::error::{self, SqlError};
use crate::inventory;
use crate::tables::Slot;

/// What is asked.
#[derive(Debug, Clone)]
pub(super) enum Question {
    /// All that an entity may have caused.
    BlastRadius { entity: Id, since: Option<Since> },
    /// What led to an alert.
    AttackPath { alert: Id },
    /// Alerts by path.
    Incidents,
}

/// Since when effects are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    /// Nanoseconds since the epoch.
    Time(i64),
    /// Nanoseconds before the tick of the answer.
    Ago(i64),
}

/// One of the functions.
#[derive(Debug, Clone, Copy)]
struct Function {
    /// [`BLAST_RADIUS`] or [`ATTACK_PATH`].
    name: &'static str,
    /// Whether there is a record to look into.
    recorded: bool,
}

impl TableFunctionImpl for Function {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let refused = |error: SqlError| DataFusionError::External(Box::new(error));
        if !self.recorded {
            return Err(refused(inventory::no_record(self.name)));
        }
        let texts: Option<Vec<&str>> = args.exprs().iter().map(text).collect();
        let question = match (self.name, texts.as_deref()) {
            (ATTACK_PATH, Some([alert])) => Question::AttackPath { alert: (*alert).into() },
            (BLAST_RADIUS, Some([entity])) => Question::BlastRadius { entity: (*entity).into(), since: None },
            (BLAST_RADIUS, Some([entity, since])) => {
                let since = Some(parse_since(since).map_err(refused)?);
                Question::BlastRadius { entity: (*entity).into(), since }
            }
            (ATTACK_PATH, _) => {
                let wrong = SqlError::new(error::SYNTAX, "attack_path takes one alert_id, written out as a text");
                return Err(refused(wrong.with_hint("select * from attack_path('0123456789abcdef0123456789abcdef')")));
            }
            _ => {
                let message =
                    "blast_radius takes an alert_id, process_id, container_id or host, and since when, written out as texts";
                let wrong = SqlError::new(error::SYNTAX, message);
                return Err(refused(wrong.with_hint("select * from blast_radius('web-1', '1 hour')")));
            }
        };
        Ok(Arc::new(Causal::new(question)))
    }
}

/// The functions, by name.
pub(crate) fn functions(recorded: bool) -> impl Iterator<Item = (&'static str, Arc<dyn TableFunctionImpl>)> {
    [BLAST_RADIUS, ATTACK_PATH].into_iter().map(move |name| (name, Arc::new(Function { name, recorded }) as _))
}

fn text(argument: &Expr) -> Option<&str> {
    match argument {
        Expr::Literal(value, _) => value.try_as_str().flatten(),
        _ => None,
    }
}

fn parse_since(text: &str) -> Result<Since, SqlError> {
    if let Ok(time) = string_to_timestamp_nanos(text) {
        return Ok(Since::Time(time));
    }
    let interval = parse_interval_month_day_nano(text).ok();
    let nanoseconds = interval.and_then(|interval| {
        let days = i64::from(interval.months).checked_mul(30)?.checked_add(i64::from(interval.days))?;
        days.checked_mul(86_400_000_000_000)?.checked_add(interval.nanoseconds)
    });
    nanoseconds.filter(|nanoseconds| *nanoseconds >= 0).map(Since::Ago).ok_or_else(|| {
        SqlError::new(error::BAD_TEXT, format!("blast_radius cannot read \"{text}\" as an interval or a time"))
            .with_hint("'2 hours', or '2026-11-26 12:00:00Z'")
    })
}

/// A question as a table, on one snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Causal {
    question: Question,
    schema: SchemaRef,
    slot: Arc<Slot>,
}

impl Causal {
    fn new(question: Question) -> Self {
        let schema = match question {
            Question::Incidents => incidents_schema(),
            _ => hops_schema(),
        };
        Self { question, schema, slot: Arc::default() }
    }

    /// The relation `incidents`.
    pub(crate) fn incidents() -> Self {
        Self::new(Question::Incidents)
    }

    /// The question that a scan reads, if it reads one.
    pub(crate) fn of(scan: &TableScan) -> Option<Self> {
        source_as_provider(&scan.source).ok()?.downcast_ref::<Self>().cloned()
    }

    /// The same question on another snapshot.
    pub(crate) fn on(self, slot: &Arc<Slot>) -> Arc<dyn TableSource> {
        provider_as_source(Arc::new(Self { slot: Arc::clone(slot), ..self }))
    }

    /// It can be answered without the alerts, though with less.
    pub(crate) fn needs_no_alerts(&self) -> bool {
        matches!(self.question, Question::BlastRadius { .. })
    }
}

#[async_trait]
impl TableProvider for Causal {
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
        let state = state.ok_or_else(|| internal_datafusion_err!("a path is planned by a session"))?.clone();
        let all = || (0..self.schema.fields().len()).collect();
        let projection = projection.cloned().unwrap_or_else(all);
        let schema = Arc::new(self.schema.project(&projection)?);
        let stream = Arc::new(Rows { causal: self.clone(), state, projection, schema: Arc::clone(&schema) });
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![stream], None, None, false, limit)?))
    }
}

/// Walks when it is read.
struct Rows {
    causal: Causal,
    state: SessionState,
    projection: Vec<usize>,
    schema: SchemaRef,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.causal.question)
    }
}

impl PartitionStream for Rows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let Causal { question, slot, .. } = self.causal.clone();
        let (state, projection) = (self.state.clone(), self.projection.clone());
        let rows = async move { Ok(Box::pin(answer(&question, state, &slot)).await?.project(&projection)?) };
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), futures::stream::once(rows)))
    }
}

/// What an entity may have caused.
pub(crate) const BLAST_RADIUS: &str = "blast_radius";
/// What led to an alert.
pub(crate) const ATTACK_PATH: &str = "attack_path";
/// Alerts by path.
pub(crate) const INCIDENTS: &str = "incidents";
