//! SQL text to what this server does with it. What it does not do is refused here, by name.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::sql::parser::{DFParser, ResetStatement, Statement as Parsed};
use datafusion::sql::sqlparser::ast::{
    ContextModifier, CreateTable, CreateView, DiscardObject, Expr, Ident, ObjectName, Reset, Set, SetExpr, ShowCreateObject,
    ShowStatementIn, Statement as Ast, TransactionAccessMode, TransactionIsolationLevel, TransactionMode, Value,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::ParserError;

use crate::as_of;
use crate::catalog;
use crate::dml;
use crate::error::SqlError;
use crate::rules::RuleStatement;
use crate::settings::Assignment;
use crate::sinks::SinkStatement;
use crate::streaming::{self, CopyOut, Declare, Fetch, Piece, Subscribe};
use crate::views::{self, Dropping};

/// One statement.
#[derive(Debug, Clone)]
pub(crate) enum Statement {
    /// SELECT, WITH, VALUES, EXPLAIN: for DataFusion to plan.
    Query(Box<Asked>),
    /// What this server knows by itself.
    Show(Show),
    /// CREATE [MATERIALIZED] VIEW.
    CreateView(Box<CreateView>),
    /// DROP [MATERIALIZED] VIEW, DROP TABLE.
    DropViews(Dropping),
    /// CREATE TABLE.
    CreateTable(Box<CreateTable>),
    /// INSERT, UPDATE, DELETE: for DataFusion to plan.
    Write(Box<Asked>),
    /// TRUNCATE.
    Truncate(String),
    /// SUBSCRIBE.
    Subscribe(Subscribe),
    /// COPY … TO STDOUT.
    Copy(CopyOut),
    /// DECLARE … CURSOR.
    Declare(Declare),
    /// FETCH.
    Fetch(Fetch),
    /// CLOSE: a cursor, or all.
    Close(Option<String>),
    /// CREATE RULE, DROP RULE, SHOW RULES.
    Rule(RuleStatement),
    /// CREATE SINK, DROP SINK, SHOW SINKS.
    Sink(SinkStatement),
    /// Said by tools, without effect here; the text is the command tag.
    Accepted(&'static str),
    /// BEGIN.
    Begin(Modes),
    /// SET TRANSACTION, SET SESSION CHARACTERISTICS.
    Characteristics(Modes),
    /// SAVEPOINT.
    Savepoint(String),
    /// RELEASE SAVEPOINT.
    Release(String),
    /// ROLLBACK TO SAVEPOINT.
    RollbackTo(String),
    /// SET.
    Set(Assignment),
    /// RESET: a setting, or all.
    Reset(Option<String>),
    /// DISCARD ALL.
    Discard,
    /// COMMIT or ROLLBACK; the text is the command tag.
    End(&'static str),
}

impl Statement {
    /// Whether it changes what there is.
    pub(crate) fn changes(&self) -> bool {
        let sink = matches!(self, Self::Sink(SinkStatement::Create { .. } | SinkStatement::Drop { .. }));
        sink || matches!(self, Self::CreateView(_) | Self::DropViews(_)) || self.changes_rows()
    }

    /// Whether it cannot stand in a transaction block.
    pub(crate) fn changes_rows(&self) -> bool {
        matches!(self, Self::Write(_) | Self::Truncate(_) | Self::CreateTable(_))
    }
}

/// How a transaction reads, where that is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Modes {
    /// As settings write it.
    pub(crate) isolation: Option<&'static str>,
    pub(crate) access: Option<Access>,
    /// Of this and of all later transactions.
    pub(crate) session: bool,
}

/// What a transaction may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

impl Modes {
    fn of(modes: &[TransactionMode], session: bool) -> Self {
        let mut told = Self { session, ..Self::default() };
        for mode in modes {
            match mode {
                TransactionMode::IsolationLevel(level) => {
                    told.isolation = Some(match level {
                        TransactionIsolationLevel::ReadUncommitted | TransactionIsolationLevel::ReadCommitted => "read committed",
                        TransactionIsolationLevel::RepeatableRead | TransactionIsolationLevel::Snapshot => "repeatable read",
                        TransactionIsolationLevel::Serializable => "serializable",
                    });
                }
                TransactionMode::AccessMode(TransactionAccessMode::ReadOnly) => told.access = Some(Access::Read),
                TransactionMode::AccessMode(TransactionAccessMode::ReadWrite) => told.access = Some(Access::Write),
            }
        }
        told
    }

    /// The setting `transaction_read_only`.
    pub(crate) fn read_only(&self) -> Option<&'static str> {
        self.access.map(|access| if access == Access::Read { "on" } else { "off" })
    }
}

/// A query, and the tick it is asked at.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// The query.
    pub(crate) parsed: Parsed,
    /// `AS OF` at its end: the tick to answer at; none: the newest.
    pub(crate) as_of: Option<u64>,
}

/// What SHOW shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Show {
    /// Maintained relations.
    Views,
    /// All relations.
    Tables,
    /// The columns of a relation.
    Columns(String),
    /// The SQL of a view.
    Create(String),
    /// The newest closed tick.
    Tick,
    /// A setting.
    Setting(String),
    /// Every setting.
    All,
}

impl Show {
    /// The columns of its answer.
    pub(crate) fn schema(&self) -> SchemaRef {
        let text = |name: &str| Field::new(name, DataType::Utf8, true);
        Arc::new(Schema::new(match self {
            Self::Views => vec![text("view_name")],
            Self::Tables => vec![text("table_name"), text("kind")],
            Self::Columns(_) => vec![text("column_name"), text("data_type")],
            Self::Create(_) => vec![text("view_name"), text("create_statement")],
            Self::Tick => vec![Field::new("tick", DataType::Int64, true)],
            Self::Setting(name) => vec![text(name)],
            Self::All => vec![text("name"), text("setting")],
        }))
    }
}

/// Parses any number of statements.
pub(crate) fn parse(sql: &str) -> Result<Vec<Statement>, SqlError> {
    let Some(pieces) = streaming::split(sql)? else { return parse_plain(sql) };
    let mut statements = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Streaming(statement) => statements.push(statement),
            Piece::Other(sql) => statements.extend(parse_plain(&sql)?),
        }
    }
    Ok(statements)
}

fn parse_plain(sql: &str) -> Result<Vec<Statement>, SqlError> {
    let mut statements = Vec::new();
    for (sql, as_of) in as_of::split(sql)? {
        match DFParser::parse_sql_with_dialect(&sql, &PostgreSqlDialect {}) {
            Ok(parsed) => {
                for parsed in parsed {
                    statements.push(at(classify(parsed)?, as_of)?);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(statements)
}

/// The statement, asked at a tick.
fn at(statement: Statement, as_of: Option<u64>) -> Result<Statement, SqlError> {
    match (statement, as_of) {
        (Statement::Query(asked), as_of) => Ok(Statement::Query(Box::new(Asked { as_of, ..*asked }))),
        (other, None) => Ok(other),
        (_, Some(_)) => Err(SqlError::unsupported("AS OF after anything but a query")),
    }
}

fn plain(mut parsed: Parsed) -> Statement {
    catalog::as_postgresql(&mut parsed);
    Statement::Query(Box::new(Asked { parsed, as_of: None }))
}

fn classify(parsed: Parsed) -> Result<Statement, SqlError> {
    let ast = match &parsed {
        Parsed::Statement(ast) => ast.as_ref(),
        Parsed::Explain(_) => return Ok(plain(parsed)),
        Parsed::Reset(ResetStatement::Variable(name)) => {
            return Ok(Statement::Reset(Some(name.to_string().to_lowercase()).filter(|name| name != "all")));
        }
        Parsed::CreateExternalTable(_) => return Err(SqlError::unsupported("CREATE EXTERNAL TABLE")),
        Parsed::CopyTo(_) => return Err(SqlError::unsupported("COPY")),
    };
    if let Some(dropping) = views::dropping(ast) {
        return dropping.map(Statement::DropViews);
    }
    Ok(match ast {
        Ast::CreateTable(create) => Statement::CreateTable(Box::new(create.clone())),
        Ast::Insert(_) | Ast::Update(_) | Ast::Delete(_) => Statement::Write(Box::new(Asked { parsed, as_of: None })),
        Ast::Truncate(truncate) => Statement::Truncate(dml::truncated(truncate)?),
        Ast::CreateView(view) => Statement::CreateView(Box::new(view.clone())),
        Ast::Query(query) => match query.body.as_ref() {
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
                return Err(SqlError::unsupported("a statement that changes data"));
            }
            _ => plain(parsed),
        },
        Ast::Explain { statement, .. } if matches!(statement.as_ref(), Ast::Query(_)) => plain(parsed),
        Ast::ShowViews { .. } => Statement::Show(Show::Views),
        Ast::ShowTables { .. } => Statement::Show(Show::Tables),
        Ast::ShowColumns { show_options, .. } => Statement::Show(Show::Columns(shown_in(show_options.show_in.as_ref())?)),
        Ast::ShowCreate { obj_type: ShowCreateObject::View | ShowCreateObject::Table, obj_name } => {
            Statement::Show(Show::Create(last(obj_name)))
        }
        Ast::ShowVariable { variable } => {
            let name = variable.iter().map(|part| part.value.to_lowercase()).collect::<Vec<_>>().join(".");
            Statement::Show(match name.as_str() {
                "weir.tick" => Show::Tick,
                "all" => Show::All,
                _ => Show::Setting(name),
            })
        }
        Ast::Set(set) => setting(set)?,
        Ast::Reset(reset) => Statement::Reset(match &reset.reset {
            Reset::ALL => None,
            Reset::ConfigurationParameter(name) => Some(name.to_string().to_lowercase()),
        }),
        Ast::Discard { object_type: DiscardObject::ALL } => Statement::Discard,
        Ast::Discard { .. } => Statement::Accepted("DISCARD"),
        Ast::Deallocate { .. } => Statement::Accepted("DEALLOCATE"),
        Ast::StartTransaction { modes, .. } => Statement::Begin(Modes::of(modes, false)),
        Ast::Commit { chain: true, .. } | Ast::Rollback { chain: true, .. } => return Err(SqlError::unsupported("AND CHAIN")),
        Ast::Commit { .. } => Statement::End("COMMIT"),
        Ast::Rollback { savepoint: Some(name), .. } => Statement::RollbackTo(plain_name(name)),
        Ast::Rollback { .. } => Statement::End("ROLLBACK"),
        Ast::Savepoint { name } => Statement::Savepoint(plain_name(name)),
        Ast::ReleaseSavepoint { name } => Statement::Release(plain_name(name)),
        other => return Err(SqlError::unsupported(construct(&other.to_string()))),
    })
}

fn setting(set: &Set) -> Result<Statement, SqlError> {
    let assigned = |name: String, value: String, local| Ok(Statement::Set(Assignment { name, value, local }));
    match set {
        Set::SingleAssignment { scope, variable, values, .. } => {
            let values: Vec<String> = values.iter().map(assigned_value).collect();
            let name = variable.to_string().to_lowercase();
            assigned(name, values.join(", "), matches!(scope, Some(ContextModifier::Local)))
        }
        Set::SetTimeZone { local, value } => assigned("timezone".into(), assigned_value(value), *local),
        Set::SetNames { charset_name, .. } => assigned("client_encoding".into(), charset_name.value.clone(), false),
        Set::SetNamesDefault {} => assigned("client_encoding".into(), "default".into(), false),
        Set::SetTransaction { snapshot: Some(_), .. } => Err(SqlError::unsupported("SET TRANSACTION SNAPSHOT")),
        Set::SetTransaction { modes, session, .. } => Ok(Statement::Characteristics(Modes::of(modes, *session))),
        other => {
            let text = other.to_string();
            Err(SqlError::unsupported(text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")))
        }
    }
}

fn assigned_value(expr: &Expr) -> String {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => text.clone(),
            other => other.to_string(),
        },
        Expr::Identifier(ident) => ident.value.clone(),
        other => other.to_string(),
    }
}

fn plain_name(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

fn shown_in(place: Option<&ShowStatementIn>) -> Result<String, SqlError> {
    let name = place.and_then(|place| place.parent_name.as_ref()).map(last);
    name.ok_or_else(|| SqlError::from_parser("SHOW COLUMNS needs FROM and a relation"))
}

fn last(name: &ObjectName) -> String {
    name.0.last().map(|part| part.to_string().trim_matches('"').to_owned()).unwrap_or_default()
}

/// The words that name a statement: `DROP TABLE`, `INSERT`.
fn construct(text: &str) -> String {
    let mut words = text.split_whitespace();
    let first = words.next().unwrap_or("this statement").to_owned();
    match (first.as_str(), words.next()) {
        ("CREATE" | "DROP" | "ALTER" | "SHOW", Some(second)) => format!("{first} {second}"),
        _ => first,
    }
}

impl SqlError {
    fn from_parser(what: &str) -> Self {
        datafusion::error::DataFusionError::from(ParserError::ParserError(what.into())).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql: &str, expected: &str) {
        let told = match parse(sql) {
            Ok(statements) => statements.iter().map(|statement| format!("{statement:?} ")).collect(),
            Err(error) => format!("{} {error}", error.code),
        };
        assert!(told.starts_with(expected), "{sql}: {told}");
    }

    #[test]
    fn statements_are_told_apart() {
        for (sql, expected) in [
            ("select 1", "Query"),
            ("with a as (select 1) select * from a", "Query"),
            ("explain select 1", "Query"),
            ("show views", "Show(Views)"),
            ("SHOW TABLES", "Show(Tables)"),
            ("show columns from hosts", "Show(Columns(\"hosts\"))"),
            ("show create view service_map", "Show(Create(\"service_map\"))"),
            ("show weir.tick", "Show(Tick)"),
            ("show server_version", "Show(Setting(\"server_version\"))"),
            ("set extra_float_digits = 3", "Set(Assignment { name: \"extra_float_digits\", value: \"3\", local: false })"),
            (
                "set session characteristics as transaction read only",
                "Characteristics(Modes { isolation: None, access: Some(Read), session: true })",
            ),
            ("reset all", "Reset(None)"),
            ("reset datestyle", "Reset(Some(\"datestyle\"))"),
            ("set local search_path to a, 'b'", "Set(Assignment { name: \"search_path\", value: \"a, b\", local: true })"),
            ("set time zone 'UTC'", "Set(Assignment { name: \"timezone\", value: \"UTC\", local: false })"),
            ("savepoint A", "Savepoint(\"a\")"),
            ("rollback to savepoint a", "RollbackTo(\"a\")"),
            ("release savepoint a", "Release(\"a\")"),
            ("begin isolation level repeatable read", "Begin(Modes { isolation: Some(\"repeatable read\")"),
            ("begin", "Begin"),
            ("start transaction read only", "Begin(Modes { isolation: None, access: Some(Read)"),
            ("rollback", "End(\"ROLLBACK\")"),
            ("create view v as select 1", "CreateView"),
            ("create materialized view if not exists v as select 1", "CreateView"),
            (
                "drop view if exists V, public.\"W\" cascade",
                "DropViews(Dropping { what: View, names: [\"v\", \"W\"], cascade: true, if_exists: true })",
            ),
            (
                "drop materialized view v restrict",
                "DropViews(Dropping { what: View, names: [\"v\"], cascade: false, if_exists: false })",
            ),
            ("drop table events", "DropViews(Dropping { what: Table, names: [\"events\"], cascade: false"),
            ("create table t (a int)", "CreateTable"),
            ("insert into hosts values (1)", "Write"),
            ("update t set a = 1", "Write"),
            ("delete from hosts", "Write"),
            ("truncate table T", "Truncate(\"t\")"),
            ("show sinks", "Sink(Show)"),
            ("create sink s format webhook to 'https://h/'; select 1", "Sink(Create { definition"),
            ("discard all", "Discard"),
        ] {
            check(sql, expected);
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (sql, expected) in [
            ("drop index i", "0A000 DROP INDEX"),
            ("create or replace sink s format webhook", "0A000 CREATE OR REPLACE SINK"),
            ("truncate a, b", "0A000 TRUNCATE of several tables"),
            ("with a as (select 1) insert into t select * from a", "0A000"),
            ("create external table t stored as csv location 'x'", "0A000 CREATE EXTERNAL TABLE"),
            ("copy (select 1) to 'x'", "0A000 COPY"),
            ("selec 1", "42601"),
            ("select 1 from", "42601"),
        ] {
            check(sql, expected);
        }
    }
}
