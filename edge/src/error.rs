//! What can go wrong in the agent. Each variant is something a caller may act on.

/// Why the agent did not start or could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A batch could not be made: our own limits disagree.
    #[error("could not make a batch: {0}")]
    Batch(#[from] weir_schema::Error),
    /// No session with the nodes could be set up: certificates, addresses.
    #[error(transparent)]
    Transport(#[from] weir_transport::Error),
    /// The recording's file could not be opened.
    #[error("could not record to {file}: {source}; name a file in a folder that may be written", file = file.display())]
    Record {
        /// The file.
        file: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// There is nothing to do with what is collected.
    #[error("the config names no nodes and nothing is recorded; set `nodes`, or ask for a recording with --record FILE")]
    Idle,
    /// Something of the operating system.
    #[error("could not {what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}
