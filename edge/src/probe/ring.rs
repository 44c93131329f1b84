//! Reads the ring: when the kernel says 64 KiB wait, and every 10 ms otherwise.
//!
//! Promise: what the kernel put there is handed out once and in order; what found no room is counted per kind by the kernel
//! and told by `dropped`. Read + dropped = made, exactly once `Probe::finish` has detached.

use std::time::Duration;

use aya::maps::{MapData, PerCpuArray, RingBuf};
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior};

use super::decode::{self, DecodeError, decode};
use super::load::ReadError;
use super::raw::RawEvent;

/// The reading end. One exists per probe.
pub struct Ring {
    events: AsyncFd<RingBuf<MapData>>,
    drops: PerCpuArray<MapData, u64>,
    tick: Interval,
}

/// Records that found no room (and what was left out beyond an allowance) since the probe was loaded, per kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Execs.
    pub exec: u64,
    /// Forks.
    pub fork: u64,
    /// Exits.
    pub exit: u64,
    /// TCP records of every sort.
    pub tcp: u64,
    /// Opens.
    pub open: u64,
    /// Cgroup records.
    pub cgroup: u64,
    /// Sensitive system calls.
    pub call: u64,
    /// System calls that change files.
    pub change: u64,
    /// Sensitive system calls beyond their process's allowance: not told, by policy, whether there was room or not.
    pub call_limited: u64,
    /// The same of changes of files.
    pub change_limited: u64,
    /// Records of UDP sends. Their bytes are told with the next one.
    pub udp: u64,
    /// Messages of DNS.
    pub dns: u64,
    /// Records of UDP sends beyond their process's allowance.
    pub udp_limited: u64,
    /// Messages of DNS beyond their process's allowance.
    pub dns_limited: u64,
    /// Calls of any hook that the kernel skipped and that no twin made good. `Ring` cannot see it: `Probe::dropped` and
    /// `Probe::finish` fill it.
    pub skipped: u64,
}

impl Dropped {
    /// All of them.
    pub fn total(&self) -> u64 {
        let processes = self.exec + self.fork + self.exit + self.cgroup;
        let full = processes + self.tcp + self.udp + self.dns + self.open + self.call + self.change;
        full + self.call_limited + self.change_limited + self.udp_limited + self.dns_limited + self.skipped
    }
}

impl Ring {
    pub(super) fn new(events: RingBuf<MapData>, drops: PerCpuArray<MapData, u64>) -> std::io::Result<Self> {
        // SAFETY: the ring's file descriptor is owned by `events`, stays open and the same for the life of the AsyncFd, and is
        // registered with this runtime only.
        let events = unsafe { AsyncFd::register(events) }.map_err(std::io::Error::other)?;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { events, drops, tick })
    }

    /// Waits until there may be something: at most 10 ms. May be cancelled and called again.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.tick.tick() => {}
            ready = self.events.readable() => {
                if let Ok(mut guard) = ready {
                    guard.clear_ready();
                }
            }
        }
    }

    /// Hands out at most `records_max` records and answers how many there were. Less than `records_max` means that the ring is empty.
    pub fn drain(&mut self, records_max: usize, mut sink: impl FnMut(Result<RawEvent, DecodeError>)) -> usize {
        let ring = self.events.get_mut();
        for read in 0..records_max {
            match ring.next() {
                Some(record) => sink(decode(&record)),
                None => return read,
            }
        }
        records_max
    }

    /// What found no room until now.
    pub fn dropped(&self) -> Result<Dropped, ReadError> {
        let count = |kind: u32| -> Result<u64, ReadError> {
            let per_cpu =
                self.drops.get(&kind, 0).map_err(|e| ReadError::Refused { what: "drop counters", why: e.to_string() })?;
            Ok(per_cpu.iter().sum())
        };
        Ok(Dropped {
            exec: count(decode::K_EXEC)?,
            fork: count(decode::K_FORK)?,
            exit: count(decode::K_EXIT)?,
            tcp: count(decode::K_TCP)?,
            open: count(decode::K_OPEN)?,
            cgroup: count(decode::K_CGROUP)?,
            call: count(decode::K_CALL)?,
            change: count(decode::K_CHANGE)?,
            call_limited: count(decode::K_CALL_LIMITED)?,
            change_limited: count(decode::K_CHANGE_LIMITED)?,
            udp: count(decode::K_UDP)?,
            dns: count(decode::K_DNS)?,
            udp_limited: count(decode::K_UDP_LIMITED)?,
            dns_limited: count(decode::K_DNS_LIMITED)?,
            skipped: 0,
        })
    }
}

const TICK: Duration = Duration::from_millis(10);
