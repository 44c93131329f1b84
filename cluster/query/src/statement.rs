//! SQL text to what this server does with it. What it does not do is refused here, by name.

use datafusion::sql::parser::{DFParser, Statement as Parsed};
use datafusion::sql::sqlparser::ast::{
    CreateTable, CreateView, ObjectName, SetExpr, ShowCreateObject, ShowStatementIn, Statement as Ast,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::ParserError;

use crate::as_of;
use crate::dml;
use crate::error::SqlError;
use crate::rules::RuleStatement;
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
    /// Said by tools, without effect here; the text is the command tag.
    Accepted(&'static str),
    /// BEGIN.
    Begin,
    /// COMMIT or ROLLBACK; the text is the command tag.
    End(&'static str),
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
            Err(error) => return Err(planned(&sql).unwrap_or_else(|| error.into())),
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

fn plain(parsed: Parsed) -> Statement {
    Statement::Query(Box::new(Asked { parsed, as_of: None }))
}

/// Statements that the manual names and the parser does not know yet.
fn planned(sql: &str) -> Option<SqlError> {
    let words: Vec<_> = sql.split_whitespace().take(2).map(str::to_ascii_uppercase).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["CREATE", kind @ "SINK"] => Some(SqlError::unsupported(format!("CREATE {kind}"))),
        _ => None,
    }
}

fn classify(parsed: Parsed) -> Result<Statement, SqlError> {
    let ast = match &parsed {
        Parsed::Statement(ast) => ast.as_ref(),
        Parsed::Explain(_) => return Ok(plain(parsed)),
        Parsed::Reset(_) => return Ok(Statement::Accepted("RESET")),
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
            Statement::Show(if name == "weir.tick" { Show::Tick } else { Show::Setting(name) })
        }
        Ast::Set(_) => Statement::Accepted("SET"),
        Ast::Reset(_) => Statement::Accepted("RESET"),
        Ast::Discard { .. } => Statement::Accepted("DISCARD"),
        Ast::Deallocate { .. } => Statement::Accepted("DEALLOCATE"),
        Ast::StartTransaction { .. } => Statement::Begin,
        Ast::Commit { .. } => Statement::End("COMMIT"),
        Ast::Rollback { .. } => Statement::End("ROLLBACK"),
        other => return Err(SqlError::unsupported(construct(&other.to_string()))),
    })
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
            ("set extra_float_digits = 3", "Accepted(\"SET\")"),
            ("set session characteristics as transaction read only", "Accepted(\"SET\")"),
            ("reset all", "Accepted(\"RESET\")"),
            ("begin", "Begin"),
            ("start transaction read only", "Begin"),
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
            ("discard all", "Accepted(\"DISCARD\")"),
        ] {
            check(sql, expected);
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (sql, expected) in [
            ("drop index i", "0A000 DROP INDEX"),
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
