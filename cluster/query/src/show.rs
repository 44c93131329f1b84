//! SHOW: what this server knows by itself.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::SchemaRef;
use weir_dataflow::RelationInfo;

use crate::causal;
use crate::error::SqlError;
use crate::freshness::FRESHNESS;
use crate::session::{Answer, Engine};
use crate::settings;
use crate::sinks::SINKS;
use crate::statement::Show;
use crate::subscription::is_of_subscription;
use crate::views::Made;

impl Engine {
    /// What this server knows by itself.
    pub(crate) async fn show(&self, show: &Show) -> Result<Answer, SqlError> {
        let schema = show.schema();
        if matches!(show, Show::Views | Show::Tables | Show::Columns(_) | Show::Create(_)) {
            self.views_known().await?;
        }
        let made = self.made().await?;
        let columns: Vec<Vec<String>> = match show {
            Show::Views => {
                vec![self.names(&made, |info| (info.standing || info.sql.is_some()) && made.table_sql(&info.name).is_none())]
            }
            Show::Tables => {
                let shown = self.relations(&made).filter(|info| !is_of_subscription(&info.name));
                let kinds = shown.map(|info| self.kind_of(info, &made).to_owned());
                vec![self.names(&made, |_| true), kinds.collect()]
            }
            Show::Columns(name) => {
                let info = self.info(name, &made)?;
                let fields = info.schema.fields();
                let types = fields.iter().map(|field| crate::encode::type_name(field.data_type()).to_owned());
                vec![fields.iter().map(|field| field.name().clone()).collect(), types.collect()]
            }
            Show::Create(name) => {
                let info = self.info(name, &made)?;
                let sql = info
                    .sql
                    .as_deref()
                    .or_else(|| made.table_sql(name))
                    .ok_or_else(|| SqlError::unsupported(format!("SHOW CREATE of \"{name}\", which Weir itself keeps,")))?;
                vec![vec![name.clone()], vec![sql.to_owned()]]
            }
            Show::Setting(name) => vec![vec![settings::value(name)?.to_owned()]],
            Show::All => settings::all().fold(vec![vec![], vec![]], |mut columns, (name, value)| {
                columns[0].push(name.to_owned());
                columns[1].push(value.to_owned());
                columns
            }),
            Show::Tick => return self.show_tick(schema).await,
        };
        let arrays = columns.into_iter().map(|values| Arc::new(StringArray::from(values)) as _).collect();
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(datafusion::error::DataFusionError::from)?;
        Ok(Answer { schema, batches: vec![batch], tick: None, completeness: None, note: None })
    }

    fn kind_of(&self, info: &RelationInfo, made: &Made) -> &'static str {
        match (info.standing, info.sql.is_some(), self.is_recorded(info)) {
            _ if made.table_sql(&info.name).is_some() => "table",
            _ if info.name == causal::INCIDENTS => "view",
            (true, ..) => "standing",
            (false, true, _) => "view",
            _ if info.name == FRESHNESS || info.name == SINKS => "computed",
            (false, false, true) => "recorded",
            (false, false, false) => "tail",
        }
    }

    fn names(&self, made: &Made, keep: impl Fn(&RelationInfo) -> bool) -> Vec<String> {
        let shown = self.relations(made).filter(|info| keep(info) && !is_of_subscription(&info.name));
        shown.map(|info| info.name.to_string()).collect()
    }

    async fn show_tick(&self, schema: SchemaRef) -> Result<Answer, SqlError> {
        let frontier = self.live().frontier().await?;
        let tick = Int64Array::from(vec![frontier.closed.and_then(|tick| i64::try_from(tick).ok())]);
        let batch =
            RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(tick)]).map_err(datafusion::error::DataFusionError::from)?;
        Ok(Answer { schema, batches: vec![batch], tick: frontier.closed, completeness: None, note: None })
    }
}
