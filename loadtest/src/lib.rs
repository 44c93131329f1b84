//! Load, replay, benchmarks: what drives Weir from outside, over the real transport.

#![forbid(unsafe_code)]

pub mod agents;
pub mod alerts;
pub mod bench;
pub mod chaos;
pub mod death;
pub mod facts;
pub mod fleet;
pub mod load;
pub mod local;
pub mod outage;
pub mod peers;
pub mod probe;
pub mod record;
pub mod relay;
pub mod replay;
pub mod runner;
pub mod scenario;
pub mod simulate;
