//! What a person is told when a question cannot be answered: an SQLSTATE, a sentence, sometimes a cure.

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::parquet::errors::ParquetError;
use datafusion::sql::sqlparser::parser::ParserError;
use weir_dataflow::handle::Failure;

use crate::live::LiveError;

/// Why the servers could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port could not be opened.
    #[error("could not listen for {what} on {address}: {source}")]
    Listen {
        /// SQL or HTTP.
        what: &'static str,
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Threads of the searches could not be started.
    #[error("could not start threads for searches: {0}")]
    Threads(std::io::Error),
    /// A role's secret could not be read.
    #[error("could not read secret_file = {} of role \"{role}\": {why}", path.display())]
    Secret {
        /// Whose.
        role: String,
        /// Where it should be.
        path: std::path::PathBuf,
        /// Why, without a word of what stands there.
        why: String,
    },
    /// The certificate of the SQL port, or its key, could not be used.
    #[error("could not use {} for TLS of the SQL port: {why}", path.display())]
    Certificate {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        why: String,
    },
    /// What is defined over the record could not be planned.
    #[error("could not plan the relations over the record: {0}")]
    Definitions(SqlError),
}

/// Why a statement was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    /// SQLSTATE.
    pub code: &'static str,
    /// What went wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl SqlError {
    /// An error without a hint.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// The same with a cure.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A construct that is not supported, by name.
    pub fn unsupported(construct: impl std::fmt::Display) -> Self {
        Self::new(UNSUPPORTED, format!("{construct} is not supported"))
    }

    /// A relation that does not exist.
    pub fn unknown_relation(name: impl std::fmt::Display) -> Self {
        let known: Vec<_> =
            weir_dataflow::relations().iter().map(|info| info.name.as_ref()).chain(crate::inventory::names()).collect();
        Self::new(UNKNOWN_RELATION, format!("relation \"{name}\" does not exist"))
            .with_hint(format!("relations are {}", known.join(", ")))
    }
}

impl From<DataFusionError> for SqlError {
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => (*inner).into(),
            DataFusionError::SQL(parser, _) => parser_error(&parser),
            DataFusionError::NotImplemented(what) => Self::new(UNSUPPORTED, what),
            DataFusionError::ResourcesExhausted(what) => {
                Self::new(OUT_OF_MEMORY, format!("the query needs too much memory: {what}"))
                    .with_hint("ask for less, or raise `query.memory_bytes_max`")
            }
            DataFusionError::SchemaError(schema, _) => schema_error(&schema),
            DataFusionError::ArrowError(arrow, _) => Self::new(arrow_code(&arrow), arrow.to_string()),
            DataFusionError::Plan(what) if what.contains("Invalid function") => Self::new(UNKNOWN_FUNCTION, what),
            DataFusionError::Plan(what) => Self::new(SYNTAX, what),
            DataFusionError::Execution(what) if what.starts_with("invalid input syntax") => Self::new(BAD_TEXT, what),
            DataFusionError::Execution(what) => Self::new(DATA, what),
            DataFusionError::External(inner) => match inner.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(other) => match recorded(&*other) {
                    Some(archive) => archive.into(),
                    None => Self::new(INTERNAL, other.to_string()),
                },
            },
            other => match recorded(&other) {
                Some(archive) => archive.into(),
                None => Self::new(INTERNAL, other.strip_backtrace()),
            },
        }
    }
}

/// The record's error that is the cause of this one.
fn recorded<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a weir_archive::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(ours) = error.downcast_ref() {
            return Some(ours);
        }
        // Parquet and DataFusion keep a foreign error in a box, whose content is not always their source.
        cause = match error.downcast_ref::<ParquetError>() {
            Some(ParquetError::External(inner)) => Some(&**inner),
            _ => error.source(),
        };
    }
    None
}

impl From<&weir_archive::Error> for SqlError {
    fn from(error: &weir_archive::Error) -> Self {
        let code = match error {
            weir_archive::Error::Damaged { .. } => DATA_CORRUPTED,
            weir_archive::Error::Behind { .. } | weir_archive::Error::Store { .. } => NOT_READY,
            _ => INTERNAL,
        };
        Self::new(code, error.to_string())
    }
}

impl From<weir_archive::Error> for SqlError {
    fn from(error: weir_archive::Error) -> Self {
        Self::from(&error)
    }
}

fn parser_error(error: &ParserError) -> SqlError {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.clone(),
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply".to_owned(),
    };
    SqlError::new(SYNTAX, format!("syntax error: {text}"))
}

fn schema_error(error: &SchemaError) -> SqlError {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let known: Vec<_> = valid_fields.iter().map(|column| column.name.as_str()).take(COLUMNS_SHOWN_MAX).collect();
            let error = SqlError::new(UNKNOWN_COLUMN, format!("column \"{}\" does not exist", field.flat_name()));
            if known.is_empty() { error } else { error.with_hint(format!("columns are {}", known.join(", "))) }
        }
        SchemaError::AmbiguousReference { field } => {
            SqlError::new(AMBIGUOUS_COLUMN, format!("column reference \"{}\" is ambiguous", field.name))
        }
        other => SqlError::new(SYNTAX, other.to_string()),
    }
}

fn arrow_code(error: &arrow::error::ArrowError) -> &'static str {
    match error {
        arrow::error::ArrowError::DivideByZero => DIVISION_BY_ZERO,
        arrow::error::ArrowError::CastError(_) | arrow::error::ArrowError::ParseError(_) => BAD_TEXT,
        arrow::error::ArrowError::ArithmeticOverflow(_) => OUT_OF_RANGE,
        _ => DATA,
    }
}

impl From<LiveError> for SqlError {
    fn from(error: LiveError) -> Self {
        let code = match &error {
            LiveError::Away | LiveError::Protocol(_) => NOT_READY,
            LiveError::Failed(failure) => match failure {
                Failure::UnknownRelation(_) => UNKNOWN_RELATION,
                Failure::UnknownColumn { .. } => UNKNOWN_COLUMN,
                Failure::NotReady | Failure::Busy(_) => NOT_READY,
                Failure::Rows { .. } => TOO_MANY_ROWS,
                Failure::Bytes { .. } => OUT_OF_MEMORY,
                Failure::TimedOut { .. } => TIMED_OUT,
                Failure::Forgotten { .. } => FORGOTTEN,
                Failure::Internal(_) => INTERNAL,
            },
        };
        Self::new(code, error.to_string())
    }
}

/// Syntax error.
pub(crate) const SYNTAX: &str = "42601";
/// No such relation.
pub(crate) const UNKNOWN_RELATION: &str = "42P01";
/// No such column.
pub(crate) const UNKNOWN_COLUMN: &str = "42703";
/// Several such columns.
pub(crate) const AMBIGUOUS_COLUMN: &str = "42702";
/// No such function.
pub(crate) const UNKNOWN_FUNCTION: &str = "42883";
/// Not supported.
pub(crate) const UNSUPPORTED: &str = "0A000";
/// The query took too long.
pub(crate) const TIMED_OUT: &str = "57014";
/// The query needed too much memory.
pub(crate) const OUT_OF_MEMORY: &str = "53200";
/// A relation has more rows than a query may read.
pub(crate) const TOO_MANY_ROWS: &str = "53400";
/// The workers are not there yet, or not any more.
pub(crate) const NOT_READY: &str = "57P03";
/// The tick is no longer held.
pub(crate) const FORGOTTEN: &str = "72000";
/// Division by zero.
pub(crate) const DIVISION_BY_ZERO: &str = "22012";
/// Text that is no such value.
pub(crate) const BAD_TEXT: &str = "22P02";
/// A number out of range.
pub(crate) const OUT_OF_RANGE: &str = "22003";
/// A value that the query cannot work with.
pub(crate) const DATA: &str = "22000";
/// What was read is not what was written.
pub(crate) const DATA_CORRUPTED: &str = "XX001";
/// A relation of this name is there.
pub(crate) const RELATION_EXISTS: &str = "42P07";
/// Something of this name is there.
pub(crate) const OBJECT_EXISTS: &str = "42710";
/// Nothing of this name is there.
pub(crate) const UNKNOWN_OBJECT: &str = "42704";
/// Others depend on it.
pub(crate) const DEPENDENTS: &str = "2BP01";
/// A column is named twice.
pub(crate) const DUPLICATE_COLUMN: &str = "42701";
/// A value of another type is needed.
pub(crate) const WRONG_TYPE: &str = "42804";
/// No such type.
pub(crate) const UNKNOWN_TYPE: &str = "42704";
/// No such schema.
pub(crate) const UNKNOWN_SCHEMA: &str = "3F000";
/// What cannot be a name.
pub(crate) const BAD_NAME: &str = "42602";
/// A limit of this server.
pub(crate) const LIMIT: &str = "54000";
/// The connection has ended.
pub(crate) const GONE: &str = "08006";
/// So many are there already.
pub(crate) const TOO_MANY: &str = "53300";
/// A value that a statement cannot take.
pub(crate) const BAD_VALUE: &str = "22023";
/// What cannot be done with a relation of this kind.
pub(crate) const WRONG_OBJECT: &str = "42809";
/// A NULL in a column that has none.
pub(crate) const NOT_NULL: &str = "23502";
/// A value that a table's own rules do not allow.
pub(crate) const CHECK: &str = "23514";
/// A primary key that is there.
pub(crate) const DUPLICATE_KEY: &str = "23505";
/// Others were faster.
pub(crate) const SERIALIZATION: &str = "40001";
/// Not within BEGIN and COMMIT.
pub(crate) const IN_TRANSACTION: &str = "25001";
/// A transaction block in which something failed.
pub(crate) const ABORTED: &str = "25P02";
/// Only within BEGIN and COMMIT.
pub(crate) const NO_TRANSACTION: &str = "25P01";
/// Nothing may be changed.
pub(crate) const READ_ONLY: &str = "25006";
/// What a role may not do.
pub(crate) const PRIVILEGE: &str = "42501";
/// Who may not come in, whatever their password.
pub(crate) const NOT_LET_IN: &str = "28000";
/// A password that is wrong, or of nobody.
pub(crate) const WRONG_PASSWORD: &str = "28P01";
/// No such database.
pub(crate) const UNKNOWN_DATABASE: &str = "3D000";
/// No such savepoint.
pub(crate) const NO_SAVEPOINT: &str = "3B001";
/// No such cursor.
pub(crate) const UNKNOWN_CURSOR: &str = "34000";
/// A cursor of this name is there.
pub(crate) const CURSOR_EXISTS: &str = "42P03";
/// An error of ours.
pub(crate) const INTERNAL: &str = "XX000";
/// Columns named in a hint.
const COLUMNS_SHOWN_MAX: usize = 60;
