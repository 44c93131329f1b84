//! What is wrong with a configuration, told in one line: where, which key, which value, and what to do about it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a configuration was not accepted. Its text is one line and names file, key, value and cure.
#[derive(Debug, Error)]
pub enum Error {
    /// The file could not be read at all.
    #[error("could not read config {file:?}: {source}; check the path and its permissions")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{place}: not valid TOML: {problem}; correct this line, strings stand in double quotes")]
    Syntax {
        /// `file:line`.
        place: String,
        /// What the parser said.
        problem: String,
    },
    /// A key is unknown, missing, of the wrong type or out of its range.
    #[error("{place}: {}: {problem}; {cure}", shown(key, value.as_deref()))]
    Key {
        /// `file:line`, `file`, or `environment VARIABLE`.
        place: String,
        /// The key's whole path, such as `batch.events_max`.
        key: String,
        /// What was written there; `None` when nothing was.
        value: Option<String>,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        cure: String,
    },
}

fn shown(key: &str, value: Option<&str>) -> String {
    match value {
        Some(value) => format!("{key} = {value}"),
        None => key.to_owned(),
    }
}
