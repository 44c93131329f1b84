//! What an event is, everywhere: ids, entities, event kinds, batch, codec. No I/O.

#![forbid(unsafe_code)]

mod error;
mod event;
mod ids;
mod kind;

pub use error::Error;
pub use event::{Container, Event, Fields, Host, Process, Text};
pub use ids::{AgentIdentity, BootId, Epoch, EventId, EventIds, Lane, NAME_BYTES_MAX, Name, ProcessId, Seq};
pub use kind::Kind;
