//! The whole way over real sockets on loopback: certificates, frames, acks, restarts, blocked and frozen paths, hostile peers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod failover;
mod fallback;
mod fleet;
mod golden;
mod limits;
mod sessions;
