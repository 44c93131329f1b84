//! The kernel's side of the agent: programs attached, records read, checked and typed.
//!
//! `load` attaches what the kernel allows and reports the rest; `ring` reads; `decode` turns bytes into `raw::RawEvent`. Only this
//! folder of the crate contains `unsafe`. Where programs cannot run, `procfs` polls instead; `system` holds the few other
//! system calls.

pub mod call;
mod call_hooks;
pub mod call_table;
mod cgroup_hooks;
pub mod decode;
pub mod load;
mod nested;
pub mod procfs;
pub mod raw;
pub mod ring;
pub mod system;
mod tracefs;

pub use cgroup_hooks::UdpPolicy;
pub use decode::{DecodeError, decode};
pub use load::{CallPolicy, HookSet, HookState, OpenPolicy, Options, Probe, Report, Unavailable};
pub use raw::{RawEvent, What};
pub use ring::{Dropped, Ring};
