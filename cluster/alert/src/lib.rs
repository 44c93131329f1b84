//! Alerts on their way to people: what waits for each sink, and how each sink is spoken to.
//!
//! ```text
//! rows of `alerts` at a closed tick ─ Outbox (what is new, for whom) ─ Ledger (durable) ─ Sender ─ Sink ─ request ─► tool
//!                                        ▲                                                  │
//!                                        └── delivered, retry, refused ◄── answer ──────────┘
//! ```
//!
//! Promises: an alert's latest revision reaches every sink that takes it at least once, or becomes a dead letter that can be sent again.
//! What is to be sent is durable before it is sent. A sink never gets an older revision after a newer one from one sender, and a
//! resend carries the same key. What is dropped for want of room is counted.
//!
//! `outbox.rs` decides and does no I/O; `ledger.rs` keeps its changes as numbered objects, so that the next sender goes on where
//! the last one was; `sender.rs` is the loop; `sink/` has one file per sink.

#![forbid(unsafe_code)]

mod alert;
mod entry;
mod error;
mod http;
mod kafka;
mod ledger;
pub mod metrics;
mod outbox;
mod retry;
mod sender;
pub mod sink;
mod smtp;
mod socket;
mod status;
mod tls;

pub use alert::{Alert, State, cut, time_text};
pub use entry::{Counts, Dead, Entry, Fate, Send, SinkCounts};
pub use error::Error;
pub use ledger::{Batch, Change, Ledger, Memory, Objects, read_outbox};
pub use outbox::{Limits, Outbox};
pub use retry::Jitter;
pub use sender::{Rows, Sender, Source, ask_redrive};
pub use sink::{Outcome, Sinks, trouble_of};
pub use status::{SinkStatus, read_status};
