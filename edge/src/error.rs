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
    /// Something of the operating system.
    #[error("could not {what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}
