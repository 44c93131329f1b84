//! What can go wrong with the chain or a log, at either level, as far as a caller may act on it.

/// Why the chain or a log did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// There is none, or its writer has not made it yet.
    #[error("there is none in {place}")]
    Missing {
        /// Where it would be.
        place: String,
    },
    /// The record asked for was forgotten on purpose.
    #[error("record {asked} is forgotten; the first that is kept is {first}")]
    Forgotten {
        /// The record asked for.
        asked: u64,
        /// The first that is kept.
        first: u64,
    },
    /// Records were durable once and cannot be read any more. A reader stays before the gap; `seek(to)` goes on behind it.
    #[error("records {from} to {to} (exclusive) are lost")]
    Gap {
        /// First lost record.
        from: u64,
        /// First record behind the gap.
        to: u64,
    },
    /// Another process writes it.
    #[error("another process writes it")]
    Held,
    /// Another process has written what we were to write next: from here on it is the writer.
    #[error("another process has taken it over: {object} is that one's")]
    Fenced {
        /// The object that we were to create.
        object: String,
    },
    /// The log has ended for good: its node was removed.
    #[error("it has ended: its node was removed from the cluster; start this one under another `id`")]
    Retired,
    /// An object is not what was written.
    #[error("object {object} is damaged: {why}; restore it from a copy")]
    Damaged {
        /// Which one.
        object: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The store did not answer in time, or with an error. It may later.
    #[error("the store does not answer as it should: {0}")]
    Store(String),
    /// The journal failed otherwise.
    #[error(transparent)]
    Journal(weir_journal::Error),
}

impl From<weir_journal::Error> for LogError {
    fn from(why: weir_journal::Error) -> Self {
        match why {
            weir_journal::Error::Missing { dir } => Self::Missing { place: dir.display().to_string() },
            weir_journal::Error::Forgotten { asked, first } => Self::Forgotten { asked: asked.0, first: first.0 },
            weir_journal::Error::Gap { from, to } => Self::Gap { from: from.0, to: to.0 },
            weir_journal::Error::Locked { .. } => Self::Held,
            other => Self::Journal(other),
        }
    }
}
