//! What can go wrong with the record.

/// Why the record could not be written or read. Messages name what, where and the cure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The object store refused or could not be reached.
    #[error("could not {what} {path:?} in the archive's store: {why}")]
    Store {
        /// What was attempted.
        what: &'static str,
        /// On which object.
        path: String,
        /// The store's reason.
        why: object_store::Error,
    },
    /// The place of the archive is no place.
    #[error("archive location {url:?}: {why}")]
    Location {
        /// As configured.
        url: String,
        /// What is wrong with it, and the cure.
        why: String,
    },
    /// A file or manifest is not what it was when it was written.
    #[error("archive object {path:?} is damaged: {why}; restore it from a copy, `weir archive verify` names all that is damaged")]
    Damaged {
        /// The object.
        path: String,
        /// What does not fit.
        why: String,
    },
    /// A manifest is of a newer format than this build knows.
    #[error("archive manifest {path:?} has format {found}, this build reads {known}: use a newer build")]
    Format {
        /// The object.
        path: String,
        /// Its format.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// Somebody else has written the next manifest.
    #[error("manifest {number} was written by another writer: the archive is read again")]
    Fenced {
        /// Its number.
        number: u64,
    },
    /// Rows could not be written as Parquet, or read.
    #[error("{what}: {why}")]
    Parquet {
        /// What was attempted.
        what: String,
        /// The reason.
        why: String,
    },
    /// What was asked cannot be done.
    #[error("{0}")]
    Refused(String),
    /// The tail of the chain could not be read.
    #[error("the chain behind the archive could not be read: {0}")]
    Tail(String),
    /// The chain behind this catalog is forgotten: a newer catalog holds it.
    #[error("the chain behind manifest {number} is forgotten, a newer manifest holds it: ask again")]
    Behind {
        /// Number of the catalog that is too old.
        number: u64,
    },
}

impl Error {
    pub(crate) fn store(what: &'static str, path: impl ToString) -> impl FnOnce(object_store::Error) -> Self {
        let path = path.to_string();
        move |why| Self::Store { what, path, why }
    }

    pub(crate) fn parquet(what: impl Into<String>) -> impl FnOnce(parquet::errors::ParquetError) -> Self {
        let what = what.into();
        move |why| Self::Parquet { what, why: why.to_string() }
    }

    pub(crate) fn damaged(path: impl ToString, why: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_string(), why: why.into() }
    }

    /// True when the store may answer later.
    pub fn is_store(&self) -> bool {
        matches!(self, Self::Store { .. })
    }
}

impl From<Error> for datafusion::error::DataFusionError {
    fn from(error: Error) -> Self {
        Self::External(Box::new(error))
    }
}
