//! The agent on every host: kernel events to batches.
//!
//! The way of one event: `probe` (kernel record or procfs poll) → `enrich` (process, place, host) → `batch` (per lane) → `ship`
//! (the transport's client, and `spool` while no node acknowledges). `agent` is the one loop that calls the rooms in this order; it alone reads clocks.
//!
//! `record` writes the same events to a file, and `import` makes them of what other collectors recorded.
//!
//! `confine` gives up what the process does not need once the hooks are attached, `guard` sheds events when it takes too much of the host.
//!
//! Nothing is dropped uncounted: what the kernel could not hand over and what the agent could not keep both become `loss` events.

pub mod agent;
pub mod batch;
pub mod clock;
pub mod confine;
pub mod enrich;
pub mod error;
pub mod guard;
pub mod import;
pub mod loss;
pub mod metrics;
pub mod probe;
pub mod record;
pub mod sample;
pub mod ship;
mod silent;
pub mod spool;
mod start;

pub use silent::silent_kinds;
