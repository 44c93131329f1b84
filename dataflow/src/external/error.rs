//! What can be wrong with tables of files: each error names what, where, and the cure.

use std::path::PathBuf;

/// Why a table cannot be read, or its view not be kept.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    /// A folder or file that cannot be opened or read.
    #[error("could not read {path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder without files of the format.
    #[error("{path} has no .{ending} file: name a folder that has some", path = path.display())]
    NoFiles {
        /// Which.
        path: PathBuf,
        /// The format's ending.
        ending: &'static str,
    },
    /// A file whose content does not fit.
    #[error("{path}: {why}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it, and the cure.
        why: String,
    },
    /// A line that does not fit.
    #[error("{path}:{line}: {why}", path = path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong with it, and the cure.
        why: String,
    },
    /// A declaration of a column that is not there.
    #[error("the table has no column \"{name}\": its columns are {there}")]
    NoColumn {
        /// What was declared.
        name: String,
        /// What there is.
        there: String,
    },
    /// A plan that cannot be kept.
    #[error(transparent)]
    Plan(#[from] weir_plan::Error),
    /// The workers.
    #[error("the workers ended early: {0}")]
    Workers(String),
}
