//! One agent's talk with one node after another, as two state machines without sockets and clocks.
//!
//! The [`Sender`] holds every frame until it is settled (durable, or refused for good) and begins anew, on each connection, with
//! what the node's Welcome does not have. The [`Receiver`] lives as long as one connection; what outlasts it is in the node's log.
//! Both are told what came and asked what is to be sent. `client.rs` and `server.rs` put them on a `link.rs`; `tests/pair.rs` on a wire that loses.
//!
//! Promises: a frame leaves the sender's memory only when it is settled. Inside a lane frames go in the order they were pushed. Per
//! connection no more bytes are sent than credit was given for. An ack is sent only for what was said to be durable.

mod receiver;
mod sender;

pub use receiver::{Received, Receiver, ReceiverLimits, Ticket, Verdict};
pub use sender::{NotTaken, Sender, SenderLimits, SenderStats, Transmit};
