//! Whether a client is still there while rows go out to it and nothing reads its socket.
//!
//! It looks at what waits to be read without taking it: the end of the stream, or a good-bye (`X`) behind messages that only end a request.
//! A client that has gone without either is noticed by writing to it.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::sync::Arc;

/// The other end of a connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Peer(Option<Arc<TcpStream>>);

impl Peer {
    /// Of this connection. One that cannot be looked at is taken to be there.
    pub(super) fn of(socket: &tokio::net::TcpStream) -> Self {
        // The same socket, so it does not block here either.
        Self(socket.as_fd().try_clone_to_owned().ok().map(|socket| Arc::new(TcpStream::from(socket))))
    }

    /// Whether it has said that it goes, or is gone.
    pub(super) fn has_left(&self) -> bool {
        let Some(socket) = &self.0 else { return false };
        let mut bytes = [0; LOOKED_AT];
        match socket.peek(&mut bytes) {
            Ok(0) => true,
            Ok(length) => says_good_bye(&bytes[..length]),
            Err(failed) => !matches!(failed.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }
}

/// Whether `X` comes behind nothing but Sync (`S`), Flush (`H`) and Close (`C`).
fn says_good_bye(mut bytes: &[u8]) -> bool {
    while let Some((kind @ (b'S' | b'H' | b'C' | b'X'), rest)) = bytes.split_first() {
        if *kind == b'X' {
            return true;
        }
        let length = rest.first_chunk().map_or(0, |length| u32::from_be_bytes(*length) as usize);
        let Some(next) = rest.get(length.max(4)..) else { return false };
        bytes = next;
    }
    false
}

/// Some short messages.
const LOOKED_AT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_bye_is_found_behind_what_ends_a_request() {
        for (bytes, expected) in [
            (&b"X\0\0\0\x04"[..], true),
            (b"S\0\0\0\x04X\0\0\0\x04", true),
            (b"C\0\0\0\x06S\0S\0\0\0\x04X", true),
            (b"S\0\0\0\x04", false),
            (b"Q\0\0\0\x06X\0X\0\0\0\x04", false),
            (b"S\xff\xff\xff\xff", false),
            (b"S\0\0", false),
            (b"", false),
        ] {
            assert_eq!(says_good_bye(bytes), expected, "{bytes:?}");
        }
    }
}
