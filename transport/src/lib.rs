//! Moves batches through space: session state machine, QUIC shells, identity, certificates.

#![forbid(unsafe_code)]

mod ack;
pub mod ca;
mod error;
pub mod frame_stream;
pub mod identity;
pub mod message;
pub mod session;

pub use ack::{AckRanges, Added, RANGES_MAX};
pub use error::{Error, IdentityError, ProtocolError};
pub use message::{Bye, FrameKey, LaneAck, Nack, Refusal};
