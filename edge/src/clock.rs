//! From the kernel's boot clock to the time of an event.
//!
//! Promise: within one boot, a later kernel time never gets an earlier event time. The offset is measured at start and again
//! every few seconds; a step forward is taken at once, a step back is spread so that time slows down and never turns. What
//! was stamped before is never rewritten.

/// Maps boot-clock nanoseconds to nanoseconds since the Unix epoch.
#[derive(Debug, Clone)]
pub struct Clock {
    /// Boot time of the last measurement.
    anchor_ns: u64,
    /// Offset before the anchor and, until a step back is worked off, behind it.
    from_ns: i64,
    /// Offset wanted.
    to_ns: i64,
}

impl Clock {
    /// Starts from one reading of both clocks.
    pub fn new(boot_ns: u64, wall_ns: i64) -> Self {
        let offset_ns = wall_ns - signed(boot_ns);
        Self { anchor_ns: boot_ns, from_ns: offset_ns, to_ns: offset_ns }
    }

    /// The wall time of a kernel time.
    pub fn wall_ns(&self, boot_ns: u64) -> i64 {
        signed(boot_ns).saturating_add(self.offset_ns(boot_ns))
    }

    /// Takes a new reading of both clocks and returns by how many nanoseconds the wall clock had moved against ours.
    pub fn measure(&mut self, boot_ns: u64, wall_ns: i64) -> i64 {
        let boot_ns = boot_ns.max(self.anchor_ns);
        let wanted_ns = wall_ns - signed(boot_ns);
        let moved_ns = wanted_ns - self.offset_ns(boot_ns);
        if moved_ns.abs() >= NOISE_NS {
            self.from_ns = self.offset_ns(boot_ns);
            self.to_ns = wanted_ns;
            self.anchor_ns = boot_ns;
        }
        moved_ns
    }

    fn offset_ns(&self, boot_ns: u64) -> i64 {
        if boot_ns < self.anchor_ns {
            return self.from_ns;
        }
        let worked_off_ns = signed(boot_ns - self.anchor_ns) / SLEW_DIVISOR;
        self.to_ns.max(self.from_ns - worked_off_ns)
    }
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

/// Differences below this are the cost of reading two clocks.
const NOISE_NS: i64 = 100_000;
/// A step back is worked off at a tenth of the speed of time.
const SLEW_DIVISOR: i64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const EPOCH: i64 = 1_700_000_000_000_000_000;

    #[test]
    fn a_step_forward_is_taken_at_once() {
        let mut clock = Clock::new(0, EPOCH);
        assert_eq!(clock.measure(10 * SECOND, EPOCH + 15_000_000_000), 5_000_000_000);
        assert_eq!(clock.wall_ns(10 * SECOND), EPOCH + 15_000_000_000);
        assert_eq!(clock.wall_ns(9 * SECOND), EPOCH + 9_000_000_000);
    }

    #[test]
    fn noise_changes_nothing() {
        let mut clock = Clock::new(0, EPOCH);
        clock.measure(SECOND, EPOCH + 1_000_000_000 + NOISE_NS - 1);
        assert_eq!(clock.wall_ns(2 * SECOND), EPOCH + 2_000_000_000);
    }

    #[test]
    fn time_never_turns_back() {
        let mut clock = Clock::new(0, EPOCH);
        let steps: [i64; 6] = [-3_000_000_000, 500_000_000, -10_000_000_000, 0, 7, -1];
        let mut last = i64::MIN;
        let mut wall_shift = 0;
        for second in 0..600_u64 {
            let boot = second * SECOND;
            if second % 10 == 0 {
                wall_shift += steps[(second / 10) as usize % steps.len()];
                clock.measure(boot, EPOCH + boot as i64 + wall_shift);
            }
            for part in 0..10 {
                let wall = clock.wall_ns(boot + part * SECOND / 10);
                assert!(wall > last, "second {second}");
                last = wall;
            }
        }
    }

    #[test]
    fn a_step_back_is_worked_off() {
        let mut clock = Clock::new(0, EPOCH);
        clock.measure(SECOND, EPOCH);
        assert_eq!(clock.wall_ns(SECOND), EPOCH + 1_000_000_000);
        assert_eq!(clock.wall_ns(20 * SECOND), EPOCH + 19_000_000_000);
    }
}
