//! How an agent comes to a certificate without its key ever leaving it, and to the next one in time.
//!
//! ```text
//! `weir token create`: id, secret, pinned authority → a line of text for the host; the store keeps a hash of the secret
//!
//! agent (makes its key, 0600)                   node (has the authority's key)
//!   Ask { token, signing request }      →       token known, in time, of a region taken here, agent not revoked?
//!                                               certificate for the agent that the token names, then `used` is created
//!                                       ←       Answer { certificate, roots }
//! half of the certificate's life later, on a connection with the certificate:
//!   Ask { no token, signing request }   →       the same agent again, by its certificate
//!                                       ←       Answer { certificate, roots }
//! ```
//!
//! On the agents' port, as an application protocol of its own; only there a caller need not show a certificate.
//!
//! Promises: a token makes one agent and, whatever is lost or repeated, certificates for one key only. Who the agent is stands in
//! the token's record or in its certificate, never in what it asks. The sockets are in `server/enrol.rs` and `client/enrol.rs`.

mod desk;
mod message;
mod token;

pub(crate) use desk::{Decided, Desk};
pub use desk::{DeskOptions, Tokens};
pub(crate) use message::{ANSWER_BYTES_MAX, ASK_BYTES_MAX, Ask, HEAD_BYTES, decode_answer, decode_head, encode_answer};
pub use message::{Answer, Grant, Refusal};
pub use token::{Redeemed, Token, TokenId, TokenRecord};

/// The application protocol of enrolment and renewal.
pub(crate) const ENROL_ALPN: &[u8] = b"weir-enrol/1";
