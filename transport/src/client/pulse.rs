//! Tells a node that has died from one that is slow, by its packets.
//!
//! A living node acknowledges packets within a round trip, however long its disk takes for the frames in them. So when packets went
//! out and none came in for a while, nobody is there. QUIC's own time-out (60 s) is for idle links.

use std::time::{Duration, Instant};

/// Watches the packet counters of one connection.
#[derive(Debug)]
pub(super) struct Pulse {
    /// When the last packet was seen to have come in.
    heard: Instant,
    received: u64,
    /// Packets sent when the last one came in.
    sent: u64,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self { heard: now, received: 0, sent: 0 }
    }

    /// Takes the counters as of now; whether the node is taken for dead.
    pub(super) fn is_dead(&mut self, now: Instant, sent: u64, received: u64) -> bool {
        if received != self.received {
            *self = Self { heard: now, received, sent };
            return false;
        }
        if sent == self.sent {
            // Nothing was asked, so silence is no answer.
            self.heard = now;
        }
        sent >= self.sent + UNANSWERED_MIN && now >= self.heard + SILENCE_MAX
    }
}

/// Packets that must have gone out unanswered.
const UNANSWERED_MIN: u64 = 3;
/// How long a node may be silent while packets go out. Several round trips of the longest path, with losses.
const SILENCE_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_after_packets_is_death_and_idleness_is_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(start);
        assert!(!pulse.is_dead(at(1), 5, 5));
        for idle in 2..100 {
            assert!(!pulse.is_dead(at(idle), 5, 5));
        }
        assert!(!pulse.is_dead(at(100), 8, 5));
        assert!(!pulse.is_dead(at(103), 9, 5));
        assert!(pulse.is_dead(at(105), 10, 5));
        let mut slow = Pulse::new(start);
        for second in 1..100 {
            assert!(!slow.is_dead(at(second), 10 * second, second / 4));
        }
    }
}
