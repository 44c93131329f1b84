//! A statement between Parse and Execute: parsed, planned where it is a query, its columns known.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use pgwire::api::portal::Format;
use pgwire::api::results::FieldInfo;
use pgwire::api::stmt::QueryParser;
use pgwire::api::{ClientInfo, Type};
use pgwire::error::PgWireResult;

use super::cursors::{self, Cursors};
use super::{parameters, told};
use crate::encode;
use crate::error::{self, SqlError};
use crate::rules::{RuleStatement, rules_schema};
use crate::session::{Engine, Planned};
use crate::sinks::{self, SinkStatement};
use crate::statement::{Statement, parse};
use crate::streaming::Source;
use crate::subscription::Subscribable;

/// A statement that was parsed, and planned where it is a query.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) statement: Statement,
    pub(super) planned: Option<Planned>,
    /// What a SUBSCRIBE, or a COPY of one, subscribes to.
    pub(super) subscribable: Option<Subscribable>,
    /// The columns of the cursor that is fetched from.
    fetched: Option<SchemaRef>,
}

impl Prepared {
    /// Plans a statement.
    pub(super) async fn of(engine: &Engine, cursors: &Cursors, statement: Statement) -> Result<Self, SqlError> {
        engine.role.permit(&statement)?;
        let (mut planned, mut subscribable, mut fetched) = (None, None, None);
        match &statement {
            Statement::Query(parsed) => planned = Some(engine.plan(parsed).await?),
            Statement::Write(asked) => planned = Some(engine.plan_write(asked).await?),
            Statement::Subscribe(asked) => subscribable = Some(engine.subscribable(asked).await?),
            Statement::Copy(copy) => match &copy.source {
                Source::Query(parsed) => planned = Some(engine.plan(parsed).await?),
                Source::Subscribe(asked) => subscribable = Some(engine.subscribable(asked).await?),
            },
            Statement::Fetch(fetch) => fetched = Some(cursors.schema(&fetch.cursor).await?),
            _ => {}
        }
        Ok(Self { statement, planned, subscribable, fetched })
    }

    /// The columns of its answer; none for a statement without rows.
    pub(super) fn schema(&self) -> Option<SchemaRef> {
        match (&self.statement, &self.planned) {
            (Statement::Show(show), _) => Some(show.schema()),
            (Statement::Rule(RuleStatement::Show), _) => Some(rules_schema()),
            (Statement::Sink(SinkStatement::Show), _) => Some(sinks::shown_schema()),
            (Statement::Subscribe(_), _) => self.subscribable.as_ref().map(|subscribable| Arc::clone(&subscribable.schema)),
            (Statement::Fetch(_), _) => self.fetched.clone(),
            (Statement::Copy(_) | Statement::Write(_), _) => None,
            (_, Some(planned)) => Some(Arc::new(planned.plan.schema().as_arrow().clone())),
            _ => None,
        }
    }
}

/// Parses for the extended protocol.
pub(super) struct Parser {
    pub(super) engine: Engine,
}

#[async_trait]
impl QueryParser for Parser {
    type Statement = Prepared;

    async fn parse_sql<C>(&self, client: &C, sql: &str, _types: &[Option<Type>]) -> PgWireResult<Option<Self::Statement>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        let mut statements = parse(sql).map_err(told)?;
        if statements.len() > 1 {
            return Err(told(SqlError::new(error::SYNTAX, "a prepared statement holds one statement")));
        }
        let Some(statement) = statements.pop() else { return Ok(None) };
        Prepared::of(&self.engine, &cursors::of(client), statement).await.map(Some).map_err(told)
    }

    fn get_parameter_types(&self, stmt: &Self::Statement) -> PgWireResult<Vec<Type>> {
        stmt.planned.as_ref().map_or(Ok(vec![]), |planned| parameters::types(&planned.plan))
    }

    fn get_result_schema(&self, stmt: &Self::Statement, format: Option<&Format>) -> PgWireResult<Vec<FieldInfo>> {
        let text = Format::UnifiedText;
        Ok(stmt.schema().map_or_else(Vec::new, |schema| encode::fields(&schema, format.unwrap_or(&text))))
    }
}
