//! Starts the programs that take over where the kernel skips `on_state`, and counts what they took. How it works: `bpf/nested.h`.
//!
//! Promise: no change of TCP state is told twice, whenever the programs are attached.

use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, MapData, PerCpuArray};

use super::load::Report;
use super::system;

/// The program whose misses the others make good, and they, in the order in which they must be attached.
pub(super) const CHAIN: [&str; 3] = ["on_state", "on_state_nested", "on_state_after"];
/// What the report calls the two.
pub(super) const LABELS: [&str; 2] = ["inet_sock_set_state (nested)", "inet_sock_set_state (after)"];

/// True for programs whose own misses lose nothing.
pub(super) fn is_spare(program: &str) -> bool {
    CHAIN[1..].contains(&program)
}

/// Calls of `on_state` that were skipped and made good, per cpu.
pub(super) struct Nested(PerCpuArray<MapData, [u64; NUMBERS]>);

impl Nested {
    /// Starts the chain where both helpers are attached; else `on_state` works alone and its misses stay losses.
    pub(super) fn start(ebpf: &mut Ebpf, report: &Report) -> Result<Self, aya::maps::MapError> {
        let counts = PerCpuArray::try_from(ebpf.take_map("NESTED").expect("declared in nested.h"))?;
        if LABELS.iter().all(|label| report.attached(label)) {
            let mut twins: Array<_, u32> = Array::try_from(ebpf.map_mut("TWINS").expect("declared in nested.h"))?;
            twins.set(0, TWINS_NOTE, 0)?;
            // An event that passed on_state before this has left no note: let it end before a missing note means work.
            if !system::wait_for_every_cpu() {
                std::thread::sleep(GRACE);
            }
            twins.set(0, TWINS_ON, 0)?;
        }
        Ok(Self(counts))
    }

    /// How many until now. Read after the misses, so that a call counts as lost only when it is.
    pub(super) fn count(&self) -> Result<u64, aya::maps::MapError> {
        Ok(self.0.get(&0, 0)?.iter().fold(0, |sum: u64, numbers| sum.wrapping_add(numbers[NUMBERS - 1])))
    }
}

/// Misses of `on_state` that nobody made good. `made_good` is below zero, wrapped, while events without room for a note are on
/// their way to the twin.
pub(super) fn lost(missed: u64, made_good: u64) -> u64 {
    u64::try_from(missed.wrapping_sub(made_good).cast_signed()).unwrap_or(0)
}

/// `struct notes`: four notes of two numbers, then the count.
const NUMBERS: usize = 9;
const TWINS_NOTE: u32 = 1;
const TWINS_ON: u32 = 2;
/// Instead of a wait for every cpu, where the kernel has none: far longer than one event lasts.
const GRACE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_is_what_was_missed_and_not_made_good() {
        assert_eq!((lost(5, 5), lost(7, 5), lost(0, 1), lost(0, 0_u64.wrapping_sub(2))), (0, 2, 0, 2));
        assert!(is_spare("on_state_after") && !is_spare("on_state"));
    }
}
