//! Connections: both ends joined and counted once, whatever the order in which hosts tell of them.
//!
//! ```text
//! events ─ fold (by host) ─┬─ knows its sequence numbers ─ meet (by them) ─┬─ both ends ────────────────┐
//!                          │                                               └─ alone ─┐                  ├─ rows
//!                          └─ does not ──────────────────────────────────────────────┴─ resolve ────────┘
//!                                                           addresses of all hosts ────┘ (by address)
//! ```
//!
//! Promise: the sum of the rows told up to a closed tick is a function of the set of events admitted up to it. A row is
//! corrected as `−old, +new`. Nothing is retracted for its age: state is dropped silently when nothing admitted can change it
//! any more (closed, and the tick is beyond closed + hold, see `Lateness`), so totals can be summed over these rows for ever.
//!
//! The logic is in pure structs ([`Fold`], [`Meet`], [`Resolve`]); `operators.rs` gives them to timely.

mod address;
mod end;
mod fold;
mod loose;
mod meet;
mod operators;
#[cfg(test)]
mod oracle;
mod pairs;
mod resolve;
mod row;
mod saved;
mod state;
#[cfg(test)]
mod tests;

pub use address::{AddressFact, Addresses};
pub use end::{
    Actor, End, EndKey, HostTouches, IsnGroup, Isns, Lateness, Place, Proto, Side, Told, Touch, Tuple, TupleGroup, Verb,
    is_local, millis, parse_ip,
};
pub use fold::{Changes, Fold};
pub use meet::{Meet, Met};
pub use operators::{Counts, connections};
pub use resolve::Resolve;
pub use row::{Connection, Seen, State, encode};
