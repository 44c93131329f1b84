//! A node, and nodes together: ingest, log, chain, workers, recovery.
//!
//! ```text
//! agents ── QUIC ──> ingest ── log (journal) ──┐
//!                                              ├─> worker child (feed → engine) <── Unix socket ── SQL, HTTP
//! holder ── chain (journal, a record a tick) ──┘
//!   ▲ signs of life ── membership ── generation ── supervise (worker child) ── mesh (links to other nodes' children)
//! ```

#![forbid(unsafe_code)]

pub mod alerts;
mod beats;
pub mod chain;
mod checkpoint;
pub mod child;
pub mod control;
mod error;
mod feed;
mod follow;
mod forget;
mod generation;
mod hold;
mod holder;
pub mod identity;
mod ingest;
pub mod layout;
mod log;
mod membership;
mod mesh;
mod metrics;
pub mod node;
pub mod record;
pub mod replay;
mod requests;
pub mod rules;
pub mod sequences;
mod shipped;
#[doc(hidden)]
pub mod simulate;
mod sinks;
mod supervise;
mod tables;
pub mod views;

pub use error::Error;
pub use log::LogError;
