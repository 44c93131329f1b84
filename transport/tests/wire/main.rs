//! The whole way over real sockets on loopback: certificates, frames, acks, restarts, blocked and frozen paths, hostile peers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

/// Each of these tests, once on each transport.
macro_rules! on_both {
    ($($test:ident)*) => {
        mod quic {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(Fleet::on(TransportChoice::Quic)).await;
            })*
        }
        mod tcp {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(Fleet::on(TransportChoice::Tcp)).await;
            })*
        }
    };
}

mod enrol;
mod failover;
mod fallback;
mod fleet;
mod golden;
mod limits;
mod refusals;
mod sessions;
