//! What the agent sheds when it takes too much of its host. No clock, no I/O: it is told what the process uses.
//!
//! Promise: what is shed is named by lane and cause, so that it is counted. Each second beyond a cap one more lane goes, the least important
//! first; each second well below it one comes back. The security lane goes for memory only, as the last, and never what tells losses or
//! that the host starts and stops.

use weir_config::ProcessConfig;
use weir_schema::{Kind, Lane};

use crate::loss::Reason;
use crate::probe::{RawEvent, What};

/// What the process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Memory that the kernel cannot take back, in bytes.
    pub resident_bytes: u64,
    /// Time on processors since the process began, all threads, in nanoseconds.
    pub cpu_ns: u64,
}

/// The caps, and how far beyond them the process is.
#[derive(Debug)]
pub struct Guard {
    limits: ProcessConfig,
    /// Usage and boot-clock time of the last look.
    last: Option<(Usage, u64)>,
    memory_step: u8,
    cpu_step: u8,
}

impl Guard {
    /// Nothing is shed yet.
    pub fn new(limits: ProcessConfig) -> Self {
        Self { limits, last: None, memory_step: 0, cpu_step: 0 }
    }

    /// Takes in what the process uses at `now_ns` of the boot clock; called about once a second. Returns whether what is shed has changed.
    pub fn look(&mut self, usage: Usage, now_ns: u64) -> bool {
        let before = (self.memory_step, self.cpu_step);
        self.memory_step = stepped(self.memory_step, usage.resident_bytes, self.limits.resident_bytes_max, MEMORY_STEPS);
        if let Some((last, last_ns)) = self.last {
            let spent_ns = usage.cpu_ns.saturating_sub(last.cpu_ns);
            let allowed_ns = now_ns.saturating_sub(last_ns).saturating_mul(self.limits.cpu_percent_max) / 100;
            self.cpu_step = stepped(self.cpu_step, spent_ns, allowed_ns, CPU_STEPS);
        }
        self.last = Some((usage, now_ns));
        before != (self.memory_step, self.cpu_step)
    }

    /// Why events of this kind are shed, if they are.
    pub fn sheds(&self, kind: Kind) -> Option<Reason> {
        match kind {
            Kind::Loss | Kind::HostStart | Kind::HostStop => None,
            kind => self.sheds_lane(kind.lane()),
        }
    }

    /// Why this record is shed before anything is made of it, if it is: only records that nothing later is understood by.
    pub fn sheds_raw(&self, raw: &RawEvent) -> Option<(Lane, Reason)> {
        let lane = match raw.what {
            What::Open(_) => Lane::File,
            What::Udp(_) | What::Dns(_) => Lane::Network,
            _ => return None,
        };
        Some((lane, self.sheds_lane(lane)?))
    }

    fn sheds_lane(&self, lane: Lane) -> Option<Reason> {
        let step = match lane {
            Lane::Sample | Lane::File => 1,
            Lane::Network => 2,
            Lane::Security => 3,
        };
        if self.memory_step >= step {
            return Some(Reason::MemoryCap);
        }
        (self.cpu_step >= step).then_some(Reason::CpuCap)
    }
}

/// One step up beyond the cap, one down below nine tenths of it: between the two nothing changes, so that it does not flutter.
fn stepped(step: u8, used: u64, cap: u64, steps: u8) -> u8 {
    if used > cap {
        (step + 1).min(steps)
    } else if used < cap / 10 * 9 {
        step.saturating_sub(1)
    } else {
        step
    }
}

/// Samples and files, network, security.
const MEMORY_STEPS: u8 = 3;
/// The same without security.
const CPU_STEPS: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SECOND_NS: u64 = 1_000_000_000;

    fn shed(guard: &Guard) -> Vec<(&'static str, &'static str)> {
        let kinds = [Kind::Sample, Kind::Open, Kind::Connect, Kind::Exec, Kind::Loss, Kind::HostStart];
        kinds.iter().filter_map(|kind| Some((kind.as_str(), guard.sheds(*kind)?.as_str()))).collect()
    }

    #[test]
    fn memory_takes_lane_after_lane_and_gives_them_back() {
        let mut guard = Guard::new(ProcessConfig::default());
        let mut seconds = 0;
        let mut look = |guard: &mut Guard, mib: u64| {
            seconds += 1;
            guard.look(Usage { resident_bytes: mib * MIB, cpu_ns: 0 }, seconds * SECOND_NS)
        };
        assert!(!look(&mut guard, 96), "the cap itself is within it");
        assert_eq!(shed(&guard), []);
        assert!(look(&mut guard, 97));
        assert_eq!(shed(&guard), [("sample", "memory_cap"), ("open", "memory_cap")]);
        assert!(!look(&mut guard, 90), "neither beyond nor well below");
        look(&mut guard, 97);
        assert_eq!(shed(&guard).len(), 3);
        look(&mut guard, 97);
        assert_eq!(shed(&guard).len(), 4, "exec, but not what tells losses and starts");
        assert!(!look(&mut guard, 97));
        for left in [3, 2, 0, 0] {
            look(&mut guard, 20);
            assert_eq!(shed(&guard).len(), left);
        }
    }

    #[test]
    fn the_processor_never_takes_security() {
        let mut guard = Guard::new(ProcessConfig { cpu_percent_max: 50, ..ProcessConfig::default() });
        let mut cpu_ns = 7 * SECOND_NS;
        for second in 1..=10 {
            guard.look(Usage { resident_bytes: 0, cpu_ns }, second * SECOND_NS);
            cpu_ns += SECOND_NS * 6 / 10;
        }
        assert_eq!(shed(&guard), [("sample", "cpu_cap"), ("open", "cpu_cap"), ("connect", "cpu_cap")]);
        for second in 11..=14 {
            guard.look(Usage { resident_bytes: 0, cpu_ns }, second * SECOND_NS);
            cpu_ns += SECOND_NS / 10;
        }
        assert_eq!(shed(&guard), []);
    }
}
