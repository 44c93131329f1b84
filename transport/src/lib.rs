//! Moves batches through space: session state machine, QUIC and TCP shells, identity, certificates.

#![forbid(unsafe_code)]

mod ack;
pub mod ca;
mod certificate;
mod client;
pub mod enrol;
mod error;
pub mod frame_stream;
pub mod identity;
mod link;
pub mod message;
pub mod metrics;
mod peer;
mod server;
pub mod session;
mod socket;
pub mod tls;
mod trust;

pub use ack::{AckRanges, Added, RANGES_MAX};
pub use client::{Client, ClientConfig, ClientStats, Dialer, Full, ensure_certificate};
pub use error::{Error, IdentityError, ProtocolError};
pub use link::Transport;
pub use message::{Bye, FrameKey, LaneAck, Nack, RefusedReason};
pub use peer::PeerTls;
pub use server::{AckHandle, Acknowledge, Doors, Incoming, Listening, Rates, ResumeState, Server, ServerHandle, TransportLimits};
pub use trust::{Admission, full_name};
