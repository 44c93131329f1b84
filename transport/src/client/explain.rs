//! The end of a connection in words, with a cure where there is one.

use std::io;

use quinn::ConnectionError;

use crate::link::{Lost, tls_of};
use crate::message::Bye;
use crate::socket;

/// Why a link was lost or not made.
pub(super) fn explain(lost: &Lost) -> String {
    match lost {
        Lost::Quic(error) => of_quic(error),
        Lost::Stream => "the node ended the stream".to_owned(),
        Lost::Tcp(error) => of_tcp(error),
    }
}

/// What a good-bye means, where more can be said than its name.
pub(super) fn of_bye(bye: Bye) -> Option<&'static str> {
    match bye {
        Bye::Full => Some("the node has as many agents as it takes"),
        Bye::Superseded => Some("another process with the same certificate took our place"),
        Bye::Penalty => Some("the node makes us wait, because we broke the protocol"),
        Bye::Expired => Some(
            "our certificate has expired, or is revoked, or its authority is not trusted any more (cure: see the node's log)",
        ),
        Bye::Done | Bye::Version | Bye::Protocol => None,
    }
}

fn of_quic(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TransportError(error) if crate::server::is_tls_alert(error.code) => theirs(&error.reason),
        ConnectionError::ConnectionClosed(close) if crate::server::is_tls_alert(close.error_code) => {
            ours(u64::from(close.error_code) - 0x100)
        }
        ConnectionError::ApplicationClosed(close) => {
            let said = String::from_utf8_lossy(&close.reason).escape_debug().to_string();
            let known = socket::bye_of(close.error_code).and_then(of_bye);
            known.map_or_else(|| format!("the node closed the connection: {said}"), str::to_owned)
        }
        ConnectionError::Reset => "the node was started anew".to_owned(),
        other => other.to_string(),
    }
}

fn of_tcp(error: &io::Error) -> String {
    match tls_of(error) {
        Some(rustls::Error::AlertReceived(alert)) => ours(u64::from(u8::from(*alert))),
        Some(error) => theirs(&error.to_string()),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "the node's end of the TCP connection is gone".to_owned(),
        None => error.to_string(),
    }
}

fn theirs(reason: &str) -> String {
    format!("the node's certificate is refused: {reason} (cure: `nodes`, `server_name` and `tls.ca` of this fleet)")
}

fn ours(alert: u64) -> String {
    if alert == NO_SUCH_PROTOCOL {
        return "the node issues no certificates (cure: `agents.authority` in its config)".to_owned();
    }
    let what = what(alert);
    format!("the node refuses our certificate: {what} (cure: a new one by `weir ca issue` of this fleet)")
}

/// The node speaks no protocol that we asked for. Sessions are spoken by all, so it was enrolment.
const NO_SUCH_PROTOCOL: u64 = 120;

/// What a TLS alert means here.
fn what(alert: u64) -> &'static str {
    match alert {
        42 => "it is damaged",
        45 => "it has expired or is not valid yet",
        46 => "it is not an agent's of this fleet, or is revoked, or of a region that this node does not take",
        48 => "its authority is unknown there",
        51 => "another authority of the same name signed it",
        116 => "it is missing",
        43 => "it is not for agents",
        49 => "access denied",
        _ => "for another reason",
    }
}
