//! What can be wrong with a plan. Every message names the construct, so that a user can find it in what they wrote.

/// Why a plan is refused. Nothing that is refused here ever reaches a worker.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A plan reads a relation that does not exist.
    #[error("relation \"{0}\" does not exist")]
    NoRelation(String),
    /// SQL that is none, or that names what is not there.
    #[error("{0}")]
    Sql(Box<datafusion_common::DataFusionError>),
    /// A construct that a standing plan cannot hold (SQLSTATE 0A000).
    #[error("{construct} is not supported: {why}")]
    Unsupported {
        /// The operator or function.
        construct: String,
        /// Why it has no exact meaning here.
        why: String,
    },
    /// An expression that does not fit its place.
    #[error("{construct}: {why}")]
    Type {
        /// The operator and the expression in it.
        construct: String,
        /// What was expected and what was found.
        why: String,
    },
    /// DataFusion could not resolve or coerce an expression.
    #[error("{construct}: {source}")]
    Expression {
        /// The operator and the expression in it.
        construct: String,
        /// What DataFusion says.
        source: Box<datafusion_common::DataFusionError>,
    },
}

impl Error {
    pub(crate) fn unsupported(construct: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unsupported { construct: construct.into(), why: why.into() }
    }

    pub(crate) fn wrong_type(construct: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Type { construct: construct.into(), why: why.into() }
    }
}
