//! What was lost, why and how much: counted here, told as `loss` events.
//!
//! Promise: every count is told exactly once, in a `loss` event of its class and reason. A loss that cannot be told now (no memory)
//! stays counted until it can.

use std::collections::{BTreeMap, BTreeSet};

use weir_schema::{Event, Fields, Kind, Lane};

use crate::probe::Dropped;
use crate::spool::Gap;

/// Why events were lost: a short closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The ring between kernel and agent had no room.
    RingFull,
    /// A process made more of one kind than its allowance per second.
    Limited,
    /// The kernel skipped a hook because a program was already at work on that CPU, and no other program stood in.
    KernelSkipped,
    /// A kernel record could not be decoded.
    Undecoded,
    /// Un-acknowledged frames filled the agent's memory.
    MemoryFull,
    /// A node will never take the frame.
    Refused,
    /// The spool was full: the oldest of the least important class went.
    SpoolFull,
    /// The disk has lost a part of the spool.
    SpoolDamaged,
    /// The agent held more memory than its cap.
    MemoryCap,
    /// The agent took more of the processors than its cap.
    CpuCap,
    /// The agent was killed: what it had in memory only is gone.
    Killed,
}

impl Reason {
    /// The word in `loss_reason` and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::Limited => "limited",
            Self::KernelSkipped => "kernel_skipped",
            Self::Undecoded => "undecoded",
            Self::MemoryFull => "memory_full",
            Self::Refused => "refused",
            Self::SpoolFull => "spool_full",
            Self::SpoolDamaged => "spool_damaged",
            Self::MemoryCap => "memory_cap",
            Self::CpuCap => "cpu_cap",
            Self::Killed => "killed",
        }
    }
}

/// Losses not yet told.
#[derive(Debug, Default)]
pub struct Losses {
    counts: BTreeMap<(&'static str, Reason), u64>,
    /// Lost events that had seqs.
    gaps: Vec<(Reason, Gap)>,
    /// Losses of which nobody knows how many events they were.
    unknown: BTreeSet<(&'static str, Reason)>,
    kernel: Dropped,
    total: u64,
}

impl Losses {
    /// Counts events of `class` (a lane or a kind) that never had a seq.
    pub fn add(&mut self, class: &'static str, reason: Reason, count: u64) {
        if count > 0 {
            *self.counts.entry((class, reason)).or_insert(0) += count;
            self.total += count;
            metrics::counter!(crate::metrics::LOST, "class" => class, "reason" => reason.as_str()).increment(count);
        }
    }

    /// Counts events that had seqs and are gone.
    pub fn add_gap(&mut self, reason: Reason, gap: Gap) {
        self.total += gap.count;
        metrics::counter!(crate::metrics::LOST, "class" => gap.lane.as_str(), "reason" => reason.as_str()).increment(gap.count);
        self.gaps.push((reason, gap));
    }

    /// Notes that events of `class` were lost and that nobody knows how many.
    pub fn add_unknown(&mut self, class: &'static str, reason: Reason) {
        self.unknown.insert((class, reason));
    }

    /// Takes the kernel's counters, which only grow.
    pub fn kernel(&mut self, now: Dropped) {
        let old = std::mem::replace(&mut self.kernel, now);
        let classes = [
            ("exec", now.exec, old.exec),
            ("fork", now.fork, old.fork),
            ("exit", now.exit, old.exit),
            (Lane::Network.as_str(), now.tcp, old.tcp),
            ("send", now.udp, old.udp),
            ("dns", now.dns, old.dns),
            ("open", now.open, old.open),
            ("cgroup", now.cgroup, old.cgroup),
            (Lane::Security.as_str(), now.call, old.call),
            (Lane::File.as_str(), now.change, old.change),
        ];
        for (class, now, old) in classes {
            self.add(class, Reason::RingFull, now.saturating_sub(old));
        }
        self.add(Lane::Security.as_str(), Reason::Limited, now.call_limited.saturating_sub(old.call_limited));
        self.add(Lane::File.as_str(), Reason::Limited, now.change_limited.saturating_sub(old.change_limited));
        self.add("send", Reason::Limited, now.udp_limited.saturating_sub(old.udp_limited));
        self.add("dns", Reason::Limited, now.dns_limited.saturating_sub(old.dns_limited));
        self.add("any", Reason::KernelSkipped, now.skipped.saturating_sub(old.skipped));
        // Read while calls go on, `skipped` may fall a little behind for a moment: what is told once must not be told again.
        self.kernel.skipped = now.skipped.max(old.skipped);
    }

    /// All losses so far, told or not.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// True when there is something to tell.
    pub fn is_pending(&self) -> bool {
        !self.counts.is_empty() || !self.gaps.is_empty() || !self.unknown.is_empty()
    }

    /// The events that tell what was lost since the last call.
    pub fn take(&mut self, time: i64) -> Vec<Event> {
        let event = |class: &str, reason: Reason, count: Option<u64>, seqs: (u64, u64)| {
            let fields = Fields {
                loss_class: Some(class.into()),
                loss_first: Some(seqs.0),
                loss_last: Some(seqs.1),
                loss_count: count,
                loss_reason: Some(reason.as_str().into()),
                ..Fields::default()
            };
            Event { time, kind: Kind::Loss, process: None, container: None, fields }
        };
        let counts = std::mem::take(&mut self.counts).into_iter();
        let mut events: Vec<Event> = counts.map(|((class, reason), count)| event(class, reason, Some(count), (0, 0))).collect();
        events.extend(
            self.gaps.drain(..).map(|(reason, gap)| {
                event(gap.lane.as_str(), reason, Some(gap.count), (gap.first.0, gap.end.0.saturating_sub(1)))
            }),
        );
        let unknown = std::mem::take(&mut self.unknown).into_iter();
        events.extend(unknown.map(|(class, reason)| event(class, reason, None, (0, 0))));
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_schema::{Epoch, Seq};

    fn told(losses: &mut Losses) -> Vec<(String, String, u64)> {
        let events = losses.take(0);
        let text = |text: &Option<weir_schema::Text>| text.as_deref().unwrap_or("").to_owned();
        let row =
            |event: &Event| (text(&event.fields.loss_class), text(&event.fields.loss_reason), event.fields.loss_count.unwrap());
        events.iter().map(row).collect()
    }

    #[test]
    fn kernel_counters_become_differences() {
        let mut losses = Losses::default();
        losses.kernel(Dropped { exec: 2, tcp: 5, ..Dropped::default() });
        losses.kernel(Dropped { exec: 3, tcp: 5, ..Dropped::default() });
        let expected = [("exec".into(), "ring_full".into(), 3), ("network".into(), "ring_full".into(), 5)];
        assert_eq!(told(&mut losses), expected);
        losses.kernel(Dropped { exec: 3, tcp: 5, skipped: 4, ..Dropped::default() });
        assert_eq!(told(&mut losses), [("any".into(), "kernel_skipped".into(), 4)]);
        assert!(!losses.is_pending());
        assert_eq!(losses.total(), 12);
    }

    #[test]
    fn frames_tell_their_seqs() {
        let mut losses = Losses::default();
        losses.add("file", Reason::MemoryFull, 0);
        assert!(!losses.is_pending());
        let gap = Gap { epoch: Epoch(1), lane: Lane::File, first: Seq(100), end: Seq(150), count: 50 };
        losses.add_gap(Reason::SpoolFull, gap);
        losses.add_unknown("any", Reason::Killed);
        let events = losses.take(9);
        assert_eq!((events[0].fields.loss_first, events[0].fields.loss_last, events[0].time), (Some(100), Some(149), 9));
        assert_eq!((events[1].fields.loss_count, events[1].fields.loss_reason.as_deref()), (None, Some("killed")));
    }
}
