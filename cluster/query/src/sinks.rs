//! `CREATE SINK`, `DROP SINK`, `SHOW SINKS` and the relation `sinks`.
//!
//! ```text
//! CREATE SINK [IF NOT EXISTS] name FORMAT format [TO 'place'] [WITH (key = 'text' | true | ('text', …), …)]
//! DROP SINK [IF EXISTS] name, …
//! ```
//!
//! The keys are those of a section `[[alerts.sinks]]`, checked by the same rule; `TO` stands for the key that says where the sink is. Where sinks
//! are written down, and who sends to them, is the node's business ([`SinkStore`]).

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result as PlanResult};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use serde::{Deserialize, Serialize};
use weir_config::{SINKS_MAX, SinkConfig, SinkDefinition};
use weir_dataflow::RelationInfo;

use crate::error::{self, SqlError};
use crate::session::{Answer, Engine};

pub(crate) use self::parse::{SinkStatement, read};

mod parse;

/// Where sinks are written down, so that all nodes know them.
#[async_trait]
pub trait SinkStore: std::fmt::Debug + Send + Sync {
    /// The sinks of this node's config, and those of statements; none while these are not known yet.
    fn sinks(&self) -> Option<Vec<KnownSink>>;

    /// Has the sinks changed, and says what became of it once it is written down.
    async fn change(&self, change: SinkChange) -> Result<SinkOutcome, String>;

    /// Why this node could not send to a sink, such as a secret that is not there.
    fn trouble(&self, sink: &SinkConfig) -> Option<String>;

    /// By name, what whoever sends has told last.
    async fn status(&self) -> Result<BTreeMap<String, SinkStatus>, String>;
}

/// A sink, and the definition that made it unless it is of the config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownSink {
    /// What it is.
    pub config: SinkConfig,
    /// How it was made.
    pub definition: Option<SinkDefinition>,
}

/// A change of the sinks that people make: a record of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SinkChange {
    /// CREATE SINK, while there are fewer than so many.
    Create(SinkDefinition, u64),
    /// DROP SINK: all of them or none; those that are not there are skipped if so said.
    Drop(Vec<String>, bool),
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SinkOutcome {
    /// It is done.
    Done,
    /// There is a sink of this name.
    Exists(String),
    /// There is no sink of this name.
    Missing(String),
    /// There are so many already.
    TooMany(u64),
}

/// What a sink has got, and how it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SinkStatus {
    /// Alerts that it lacks a revision of.
    pub waiting: u64,
    /// Alerts of which it has the latest revision.
    pub sent: u64,
    /// Dead letters.
    pub dead: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When it took something last, in milliseconds of Unix time.
    pub last_sent_ms: Option<u64>,
}

/// The store of a server, if it has one.
#[derive(Debug, Clone, Default)]
pub(crate) struct SinksOf(pub(crate) Option<Arc<dyn SinkStore>>);

impl Engine {
    /// CREATE SINK, DROP SINK. What is returned is to be told beside the result.
    pub(crate) async fn change_sinks(&self, sink: &SinkStatement) -> Result<Option<String>, SqlError> {
        match sink {
            SinkStatement::Create { definition, if_not_exists } => self.create_sink(definition, *if_not_exists).await,
            SinkStatement::Drop { names, if_exists } => self.drop_sinks(names, *if_exists).await,
            SinkStatement::Show => Ok(None),
        }
    }

    /// CREATE SINK. What is returned is to be told beside the result.
    async fn create_sink(&self, definition: &SinkDefinition, if_not_exists: bool) -> Result<Option<String>, SqlError> {
        let store = self.sinks.store()?;
        let known = self.sinks_known().await?;
        let sink = definition.check().map_err(|refused| {
            let code = if refused.problem.starts_with("name") { error::BAD_NAME } else { error::BAD_VALUE };
            let message = format!("sink \"{}\": {}", definition.name, refused.problem);
            SqlError::new(code, message).with_hint(refused.cure)
        })?;
        let (bytes, bytes_max) = (definition.bytes() as u64, self.limits().view_sql_bytes_max);
        if bytes > bytes_max {
            let message = format!("the definition of sink \"{}\" has {bytes} bytes, {bytes_max} are allowed", definition.name);
            return Err(SqlError::new(error::LIMIT, message).with_hint("raise `query.view_sql_bytes_max`"));
        }
        let name = definition.name.clone();
        if let Some(there) = known.iter().find(|there| there.config.name == name) {
            return exists(&name, there.definition.is_none(), if_not_exists);
        }
        let of_config = known.iter().filter(|sink| sink.definition.is_none()).count();
        let max = SINKS_MAX.saturating_sub(of_config) as u64;
        let outcome = store.change(SinkChange::Create(definition.clone(), max)).await.map_err(|why| not_changed(&why))?;
        match outcome {
            SinkOutcome::Done => Ok(store.trouble(&sink).map(|why| {
                format!("this node could not send to sink \"{name}\": {why}; its alerts wait while the node that sends cannot")
            })),
            SinkOutcome::Exists(name) => exists(&name, false, if_not_exists),
            SinkOutcome::TooMany(_) => Err(SqlError::new(error::LIMIT, format!("there are {SINKS_MAX} sinks already"))
                .with_hint("drop one: each costs a look at every alert")),
            SinkOutcome::Missing(_) => Err(SqlError::new(error::INTERNAL, "a change was done that was not asked for")),
        }
    }

    /// DROP SINK.
    async fn drop_sinks(&self, names: &[String], if_exists: bool) -> Result<Option<String>, SqlError> {
        let store = self.sinks.store()?;
        let known = self.sinks_known().await?;
        let found = |name: &String| known.iter().find(|sink| sink.config.name == *name);
        if let Some(name) = names.iter().find(|name| found(name).is_some_and(|sink| sink.definition.is_none())) {
            let message = format!("cannot drop sink \"{name}\": it is a section [[alerts.sinks]] of the nodes' config");
            return Err(
                SqlError::new(error::WRONG_OBJECT, message).with_hint("remove the section on all nodes and start them again")
            );
        }
        let missing: Vec<&str> = names.iter().filter(|name| found(name).is_none()).map(String::as_str).collect();
        let outcome = store.change(SinkChange::Drop(names.to_vec(), if_exists)).await.map_err(|why| not_changed(&why))?;
        match outcome {
            SinkOutcome::Done if missing.is_empty() => Ok(None),
            SinkOutcome::Done => Ok(Some(format!("sink \"{}\" does not exist, skipping", missing.join("\", \"")))),
            SinkOutcome::Missing(name) => Err(SqlError::new(error::UNKNOWN_OBJECT, format!("sink \"{name}\" does not exist"))
                .with_hint("SHOW SINKS tells which there are")),
            SinkOutcome::Exists(_) | SinkOutcome::TooMany(_) => {
                Err(SqlError::new(error::INTERNAL, "a change was done that was not asked for"))
            }
        }
    }

    /// SHOW SINKS.
    pub(crate) async fn show_sinks(&self) -> Result<Answer, SqlError> {
        self.sinks.store()?;
        let mut known = self.sinks_known().await?;
        known.sort_by(|a, b| a.config.name.cmp(&b.config.name));
        let column =
            |text: &dyn Fn(&KnownSink) -> Option<String>| Arc::new(known.iter().map(text).collect::<StringArray>()) as ArrayRef;
        let columns = vec![
            column(&|sink| Some(sink.config.name.clone())),
            column(&|sink| Some(sink.config.format.as_str().to_owned())),
            column(&|sink| Some(sink.config.target.to_string())),
            column(&|sink| Some(sink.origin().to_owned())),
            column(&|sink| sink.definition.as_ref().map(SinkDefinition::statement)),
        ];
        let schema = shown_schema();
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).map_err(DataFusionError::from)?;
        Ok(Answer { schema, batches: vec![batch], tick: None, completeness: None, note: None })
    }

    /// Waits until it is known which sinks there are: a node that has just started reads the chain first.
    async fn sinks_known(&self) -> Result<Vec<KnownSink>, SqlError> {
        let store = self.sinks.store()?;
        let deadline = Instant::now() + Duration::from_millis(self.limits().away_ms_max);
        loop {
            match store.sinks() {
                Some(known) => return Ok(known),
                None if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
                None => {
                    let message = "it is not known yet which sinks there are: this node has just started";
                    return Err(SqlError::new(error::NOT_READY, message).with_hint("try again"));
                }
            }
        }
    }
}

impl SinksOf {
    fn store(&self) -> Result<&Arc<dyn SinkStore>, SqlError> {
        self.0.as_ref().ok_or_else(|| SqlError::unsupported("a sink on a server without a chain"))
    }
}

impl KnownSink {
    fn origin(&self) -> &'static str {
        if self.definition.is_some() { "sql" } else { "config" }
    }
}

fn exists(name: &str, of_config: bool, if_not_exists: bool) -> Result<Option<String>, SqlError> {
    let place = if of_config { " in the nodes' config" } else { "" };
    let message = format!("sink \"{name}\" already exists{place}");
    match if_not_exists {
        true => Ok(Some(format!("{message}, skipping"))),
        false => Err(SqlError::new(error::OBJECT_EXISTS, message)
            .with_hint("take another name: what was sent is remembered under it; SHOW SINKS tells which there are")),
    }
}

fn not_changed(why: &str) -> SqlError {
    SqlError::new(error::NOT_READY, format!("the change of sinks could not be written down: {why}"))
        .with_hint("SHOW SINKS tells what there is; try again")
}

/// The relation of sinks is not kept by tick.
pub(crate) fn only_now(names: &[String], as_of: Option<u64>) -> Result<(), SqlError> {
    match as_of {
        Some(_) if names.iter().any(|name| name == SINKS) => {
            Err(SqlError::unsupported("AS OF over \"sinks\"").with_hint("it tells how sinks are now: ask without AS OF"))
        }
        _ => Ok(()),
    }
}

/// The columns of SHOW SINKS.
pub(crate) fn shown_schema() -> SchemaRef {
    let names = ["sink_name", "format", "target", "origin", "create_statement"];
    Arc::new(Schema::new(names.map(|name| Field::new(name, DataType::Utf8, true)).to_vec()))
}

/// The relation's name.
pub(crate) const SINKS: &str = "sinks";

/// The relation's columns.
pub(crate) fn info() -> &'static RelationInfo {
    static INFO: LazyLock<RelationInfo> = LazyLock::new(|| {
        let fields = [
            ("name", DataType::Utf8),
            ("format", DataType::Utf8),
            ("target", DataType::Utf8),
            ("origin", DataType::Utf8),
            ("severity_min", DataType::Utf8),
            ("waiting", DataType::Int64),
            ("sent", DataType::Int64),
            ("dead", DataType::Int64),
            ("last_error", DataType::Utf8),
            ("last_sent", DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))),
        ];
        let schema = Schema::new(fields.map(|(name, data_type)| Field::new(name, data_type, true)).to_vec());
        RelationInfo { name: SINKS.into(), schema: Arc::new(schema), standing: false, sql: None }
    });
    &INFO
}

#[async_trait]
impl TableProvider for SinksOf {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&info().schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> PlanResult<Arc<dyn ExecutionPlan>> {
        let rows = self.rows().await.map_err(|failed| DataFusionError::External(Box::new(failed)))?;
        Ok(MemorySourceConfig::try_new_exec(&[vec![rows]], self.schema(), projection.cloned())?)
    }
}

impl SinksOf {
    /// The rows of the relation; none on a server without a chain.
    async fn rows(&self) -> Result<RecordBatch, SqlError> {
        let (known, told) = match &self.0 {
            Some(store) => {
                let status = store.status().await;
                let away = |why| SqlError::new(error::NOT_READY, format!("it could not be read how the sinks are: {why}"));
                (store.sinks().unwrap_or_default(), status.map_err(away)?)
            }
            None => (Vec::new(), BTreeMap::new()),
        };
        let with_status = |sink: KnownSink| {
            let status = told.get(&sink.config.name).cloned().unwrap_or_default();
            (sink, status)
        };
        let mut rows: Vec<(KnownSink, SinkStatus)> = known.into_iter().map(with_status).collect();
        rows.sort_by(|a, b| a.0.config.name.cmp(&b.0.config.name));
        let text = |text: &dyn Fn(&(KnownSink, SinkStatus)) -> Option<String>| {
            Arc::new(rows.iter().map(text).collect::<StringArray>()) as ArrayRef
        };
        let count = |count: &dyn Fn(&SinkStatus) -> u64| {
            let counts = rows.iter().map(|(_, status)| i64::try_from(count(status)).unwrap_or(i64::MAX));
            Arc::new(counts.collect::<Int64Array>()) as ArrayRef
        };
        let nanos = |ms: u64| i64::try_from(ms).unwrap_or(0).saturating_mul(1_000_000);
        let sent: TimestampNanosecondArray = rows.iter().map(|(_, status)| status.last_sent_ms.map(nanos)).collect();
        let columns = vec![
            text(&|(sink, _)| Some(sink.config.name.clone())),
            text(&|(sink, _)| Some(sink.config.format.as_str().to_owned())),
            text(&|(sink, _)| Some(sink.config.target.to_string())),
            text(&|(sink, _)| Some(sink.origin().to_owned())),
            text(&|(sink, _)| Some(sink.config.route.severity_min.to_string())),
            count(&|status| status.waiting),
            count(&|status| status.sent),
            count(&|status| status.dead),
            text(&|(_, status)| status.last_error.clone()),
            Arc::new(sent.with_timezone("UTC")),
        ];
        Ok(RecordBatch::try_new(Arc::clone(&info().schema), columns).map_err(DataFusionError::from)?)
    }
}

const PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Store(Vec<KnownSink>);

    #[async_trait]
    impl SinkStore for Store {
        fn sinks(&self) -> Option<Vec<KnownSink>> {
            Some(self.0.clone())
        }
        async fn change(&self, _: SinkChange) -> Result<SinkOutcome, String> {
            Ok(SinkOutcome::Done)
        }
        fn trouble(&self, _: &SinkConfig) -> Option<String> {
            None
        }
        async fn status(&self) -> Result<BTreeMap<String, SinkStatus>, String> {
            let told =
                SinkStatus { waiting: 2, last_error: Some("away".to_owned()), last_sent_ms: Some(5), ..SinkStatus::default() };
            Ok(BTreeMap::from([("b".to_owned(), told)]))
        }
    }

    #[tokio::test]
    async fn every_sink_is_a_row_also_one_that_nobody_has_sent_to() {
        let known = |name: &str, made: bool| {
            let url = weir_config::SinkValue::Text("https://h.example/secret/path".to_owned());
            let keys = vec![("url".to_owned(), url)];
            let definition = SinkDefinition { name: name.to_owned(), format: "webhook".to_owned(), keys };
            KnownSink { config: definition.check().unwrap(), definition: made.then_some(definition) }
        };
        let store = SinksOf(Some(Arc::new(Store(vec![known("b", true), known("a", false)]))));
        let rows = store.rows().await.unwrap();
        let shown = arrow::util::pretty::pretty_format_batches(&[rows]).unwrap().to_string();
        let lines: Vec<Vec<&str>> = shown
            .lines()
            .skip(3)
            .map(|line| line.split('|').map(str::trim).collect())
            .filter(|row: &Vec<&str>| row.len() > 2)
            .collect();
        assert_eq!(lines[0][1..9], ["a", "webhook", "https://h.example", "config", "debug", "0", "0", "0"]);
        assert_eq!(lines[1][1..10], ["b", "webhook", "https://h.example", "sql", "debug", "2", "0", "0", "away"]);
        assert_eq!(SinksOf(None).rows().await.unwrap().num_rows(), 0);
        assert!(only_now(&["sinks".to_owned()], Some(1)).is_err() && only_now(&["sinks".to_owned()], None).is_ok());
    }
}
