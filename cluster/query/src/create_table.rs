//! `CREATE TABLE`: checked here, and then asked for as views are.

use datafusion::sql::sqlparser::ast::CreateTable;
use weir_dataflow::{ViewChange, ViewDefinition, ViewKind, ViewOutcome};
use weir_plan::Table;

use crate::error::{self, SqlError};
use crate::session::Engine;
use crate::views::{exists, name_of, not_changed, refused, told};

impl Engine {
    /// CREATE TABLE. What is returned is to be told beside the result.
    pub(crate) async fn create_table(&self, create: &CreateTable) -> Result<Option<String>, SqlError> {
        let store = self.view_store()?;
        self.views_known().await?;
        let name = name_of(&create.name)?;
        if crate::subscription::is_of_subscription(&name) {
            return Err(SqlError::new(error::BAD_NAME, format!("\"{name}\": names of this kind are those of subscriptions")));
        }
        if self.is_taken(&name, &*self.made().await?) {
            return exists(&name, create.if_not_exists);
        }
        let sql = Table::of(create).map_err(told)?.statement(&name);
        let definition = ViewDefinition { name, sql, kind: ViewKind::Table, reads: vec![] };
        let change = ViewChange::Create { definition, views_max: self.limits().tables_max };
        let changed = store.change(change).await.map_err(|why| not_changed(&why))?;
        match changed.outcome {
            ViewOutcome::Created(_) => {
                self.live().require(changed.tick);
                Ok(self.reached(changed.tick).await)
            }
            ViewOutcome::Exists(name) => exists(&name, create.if_not_exists),
            ViewOutcome::TooMany(tables_max) => {
                Err(SqlError::new(error::LIMIT, format!("there are {tables_max} tables already"))
                    .with_hint("drop one, or raise `query.tables_max`"))
            }
            other => Err(refused(&other)),
        }
    }
}
