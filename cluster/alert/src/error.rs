//! What may go wrong on an alert's way, apart from what a sink answers.

/// Why alerts cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A sink cannot be made from its section.
    #[error("sink {sink}: {why}")]
    Sink {
        /// Its name.
        sink: String,
        /// What is wrong, and the cure.
        why: String,
    },
    /// The store of the outbox is away.
    #[error("could not {action} the outbox's {object}: {why}")]
    Store {
        /// What was attempted.
        action: &'static str,
        /// On what.
        object: String,
        /// What the store said.
        why: String,
    },
    /// An object of the outbox is not what was written.
    #[error("the outbox's {0} does not decode: is it of a newer version? move it away to begin at the object before it")]
    Broken(String),
    /// Another node sends now.
    #[error("another node sends alerts now")]
    Fenced,
}
