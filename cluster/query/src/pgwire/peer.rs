//! Whether a client is still there while rows go out to it and nothing reads its socket.
//!
//! It looks at what waits to be read without taking it: the end of the stream, or a good-bye (`X`) behind messages that only end a request.
//! A client that has gone without either is noticed by writing to it.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

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

/// Lets the kernel find out that a client has vanished: a host that lost its power says nothing, and nothing is written to one that is idle.
pub(super) fn keep_alive(socket: &tokio::net::TcpStream) {
    use rustix::net::sockopt;
    let set = sockopt::set_socket_keepalive(socket, true)
        .and_then(|()| sockopt::set_tcp_keepidle(socket, KEEP_ALIVE_AFTER))
        .and_then(|()| sockopt::set_tcp_keepintvl(socket, KEEP_ALIVE_EVERY))
        .and_then(|()| sockopt::set_tcp_keepcnt(socket, KEEP_ALIVE_TRIES))
        // What was written and is not acknowledged counts as well.
        .and_then(|()| sockopt::set_tcp_user_timeout(socket, UNACKNOWLEDGED_MS_MAX));
    if let Err(error) = set {
        tracing::debug!(%error, "an SQL connection has no keep-alive");
    }
}

/// Whether `X` comes behind nothing but Sync (`S`), Flush (`H`) and Close (`C`).
fn says_good_bye(mut bytes: &[u8]) -> bool {
    if bytes.first() == Some(&TLS_DATA) {
        return closes_tls(bytes);
    }
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

/// Whether TLS records end with the one that says so: in TLS 1.3 an alert looks as data does, but nothing else is two bytes long.
fn closes_tls(mut bytes: &[u8]) -> bool {
    while let Some((&[TLS_DATA, _, _, high, low], rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == TLS_ALERT_BYTES {
            return true;
        }
        let Some(next) = rest.get(length..) else { return false };
        bytes = next;
    }
    false
}

/// Content type of a TLS record.
const TLS_DATA: u8 = 23;
/// Level, description, content type and the tag of the cipher.
const TLS_ALERT_BYTES: usize = 2 + 1 + 16;
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TRIES: u32 = 3;
/// As long as the keep-alive takes to find out.
const UNACKNOWLEDGED_MS_MAX: u32 = 60_000;
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
            (b"\x17\x03\x03\0\x02ab\x17\x03\x03\0\x13", true),
            (b"\x17\x03\x03\0\x16", false),
            (b"\x17\x03\x03", false),
            (b"", false),
        ] {
            assert_eq!(says_good_bye(bytes), expected, "{bytes:?}");
        }
    }
}
