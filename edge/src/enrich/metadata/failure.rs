//! Why a source did not answer.

use std::error::Error;
use std::io;

/// Why a source did not answer, as it is logged and told in `host_start`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nothing listens there.
    #[error("not there")]
    Missing,
    /// The door is there, and shut.
    #[error("permission denied")]
    Denied,
    /// It does not do this.
    #[error("not supported")]
    Unsupported,
    /// Too slow, the whole answer counted.
    #[error("no whole answer within {0} ms")]
    Timeout(u64),
    /// Too long.
    #[error("an answer of more than {0} bytes")]
    TooLong(usize),
    /// HTTP's status.
    #[error("status {0}")]
    Status(u16),
    /// What came was none of the protocol.
    #[error("{0}")]
    Broken(String),
}

impl Failure {
    /// Something that is no answer, in short.
    pub(crate) fn broken(what: &str, error: impl std::fmt::Display) -> Self {
        let text = format!("{what}: {error}");
        Self::Broken(text[..text.floor_char_boundary(WHY_BYTES_MAX)].to_owned())
    }

    /// The failure of a connection.
    pub(crate) fn io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::Missing,
            io::ErrorKind::PermissionDenied => Self::Denied,
            _ => Self::broken("connection", error),
        }
    }

    /// A cause that can be cured, if there is one among them, else `what` is broken.
    pub(crate) fn of(what: &str, error: &(dyn Error + 'static)) -> Self {
        let causes = || std::iter::successors(Some(error), |error| cause(*error));
        let curable = causes().filter_map(|error| error.downcast_ref::<io::Error>()).map(Self::io);
        let found = curable.into_iter().find(|failure| matches!(failure, Self::Missing | Self::Denied));
        found.unwrap_or_else(|| Self::broken(what, causes().last().unwrap_or(error)))
    }
}

/// What is behind an error. An I/O error shows as its source what is behind the error that it holds, not that error.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    held.map(|held| held as &(dyn Error + 'static)).or_else(|| error.source())
}

/// Longest reason kept: several of them fit into one `detail`.
const WHY_BYTES_MAX: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_cured_is_told_apart() {
        for (kind, expected) in [
            (io::ErrorKind::PermissionDenied, "permission denied"),
            (io::ErrorKind::NotFound, "not there"),
            (io::ErrorKind::ConnectionRefused, "not there"),
            (io::ErrorKind::BrokenPipe, "connection: broken pipe"),
        ] {
            assert_eq!(Failure::io(&kind.into()).to_string(), expected);
        }
        let nested = io::Error::other(io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(Failure::of("x", &nested), Failure::Denied);
        assert!(Failure::broken("x", "é".repeat(500)).to_string().len() <= WHY_BYTES_MAX);
    }
}
