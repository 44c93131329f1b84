//! What can be wrong with an event, a batch or a frame. Each variant is something a caller may act on.

/// Why bytes, text or an event were not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name has a character or a length that is not allowed.
    #[error("{0:?} is no name: use 1 to 128 of A-Z a-z 0-9 . _ -")]
    Name(String),
}
