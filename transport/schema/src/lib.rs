//! What an event is, everywhere: ids, entities, event kinds, batch, codec. No I/O.
//!
//! The way out: `Event`s → `BatchBuilder` → `Frame`. The way in: `Frame` → `Batch`, still columnar. A node's log holds
//! `StampedFrame`s. The format is drawn in `frame.rs` and `wire.rs`; its limits stand in `limits`.

#![forbid(unsafe_code)]

mod batch;
mod builder;
mod cells;
mod clock_text;
mod column;
mod error;
mod event;
mod frame;
mod ids;
mod json;
mod kind;
pub mod limits;
mod stamped;
mod strings;
mod table;
mod wire;

pub use batch::{Batch, Section, Skipped, Why};
pub use builder::BatchBuilder;
pub use cells::Ints;
pub use clock_text::{parse_time, write_time};
pub use column::{Column, ColumnType, EVENTS, Home, SAMPLES};
pub use error::{Error, Refused};
pub use event::{Cell, Container, Event, Fields, Host, Process, Text};
pub use frame::{Codec, Decoder, FRAME_VERSION, Frame, FrameHeader, HEADER_BYTES, frame_len};
pub use ids::{AgentIdentity, BootId, Epoch, EventId, EventIds, Lane, NAME_BYTES_MAX, Name, ProcessId, Seq};
pub use json::{JsonEvent, LINE_BYTES_MAX, parse_line, write_line};
pub use kind::Kind;
pub use stamped::StampedFrame;
pub use strings::Strings;
pub use table::{Cells, Table};
