//! What can stop a node, or a part of it.

use std::path::PathBuf;

use crate::log::LogError;

/// Why a node's work failed. Messages name what, where and the cure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A chain record breaks the chain's rules or does not decode.
    #[error("chain record {0}")]
    ChainRecord(String),
    /// The chain or a log failed.
    #[error("{what}: {why}")]
    Log {
        /// What was attempted, on which of them.
        what: String,
        /// Its own reason.
        why: LogError,
    },
    /// A file or directory could not be used.
    #[error("could not {what} {}: {why}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's reason.
        why: std::io::Error,
    },
    /// The chain ends before the tick that was asked for.
    #[error("the chain ends at tick {last}, before tick {asked}: ask for {last} or earlier")]
    ChainEnds {
        /// Last tick of the chain.
        last: u64,
        /// Tick that was asked for.
        asked: u64,
    },
    /// There is no chain at all.
    #[error("no chain in {0}: start a node with this config first")]
    NoChain(String),
    /// Another node of the same name runs on this shared directory.
    #[error("the log of node {0:?} is in use: another process runs under the same node id; stop it, or choose another `id`")]
    NodeRuns(String),
    /// Tokens, enrolled and revoked agents.
    #[error("identity: {0}")]
    Identity(String),
    /// Sinks of alerts and their outbox.
    #[error("alerts: {0}")]
    Alerts(#[from] weir_alert::Error),
    /// Agents' side of the node.
    #[error("transport: {0}")]
    Transport(weir_transport::Error),
    /// The links between the workers of several nodes.
    #[error("mesh: {0}")]
    Mesh(String),
    /// A checkpoint could not be written or begun from.
    #[error("checkpoint of tick {tick}: {why}")]
    Checkpoint {
        /// Its tick.
        tick: u64,
        /// Why.
        why: String,
    },
    /// Rule files that are not taken.
    #[error("rules: {0}")]
    Rules(String),
    /// The engine.
    #[error("engine: {0}")]
    Engine(String),
    /// The record.
    #[error("archive: {0}")]
    Archive(String),
    /// The reading side.
    #[error("query: {0}")]
    Query(String),
}

impl Error {
    /// Wraps an error of the chain or a log with what was attempted.
    pub fn log<E: Into<LogError>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |why| Self::Log { what, why: why.into() }
    }

    /// Wraps an I/O error with what was attempted on which path.
    pub fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |why| Self::File { what, path, why }
    }
}

impl From<weir_archive::Error> for Error {
    fn from(why: weir_archive::Error) -> Self {
        Self::Archive(why.to_string())
    }
}

impl From<weir_transport::Error> for Error {
    fn from(why: weir_transport::Error) -> Self {
        Self::Transport(why)
    }
}
