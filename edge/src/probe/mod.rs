//! The kernel's side of the agent: programs attached, records read, checked and typed.
//!
//! `load` attaches what the kernel allows and reports the rest; `ring` reads; `decode` turns bytes into `raw::RawEvent`. Only this
//! folder of the crate contains `unsafe`. Nothing here knows hosts, containers or batches.

pub mod decode;
pub mod load;
pub mod procfs;
pub mod raw;
pub mod ring;
pub mod system;
mod tracefs;

pub use decode::{DecodeError, decode};
pub use load::{HookSet, HookState, OpenPolicy, Options, Probe, Report, Unavailable};
pub use raw::RawEvent;
pub use ring::{Dropped, Ring};

use raw::BootClock;

impl BootClock {
    /// The offset now: the tightest of a few readings of both clocks, so that being descheduled between them does not count.
    /// It moves when the wall clock is set; read it again now and then.
    pub fn measure() -> Self {
        let (mut best, mut offset_ns) = (i64::MAX, 0);
        for _ in 0..5 {
            let (before, wall, after) =
                (clock_ns(libc::CLOCK_BOOTTIME), clock_ns(libc::CLOCK_REALTIME), clock_ns(libc::CLOCK_BOOTTIME));
            if after - before < best {
                best = after - before;
                offset_ns = wall - (before + (after - before) / 2);
            }
        }
        Self { offset_ns }
    }
}

fn clock_ns(clock: libc::clockid_t) -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec for the whole call, which writes it and keeps no reference.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut now) };
    assert_eq!(failed, 0, "boot and wall clock exist on every kernel that runs eBPF");
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}
