//! Tells a node that has died from one that is slow.
//!
//! On QUIC by packets: a living node acknowledges packets within a round trip, however long its disk takes for the frames in them. So
//! when packets went out and none came in for a while, nobody is there. QUIC's own time-out (60 s) is for idle links.
//!
//! On TCP the kernel acknowledges for a frozen process too, so only its words count: while frames are on their way, a node says
//! something every second, if only an empty ack.

use std::time::{Duration, Instant};

/// Watches what was asked and what came on one connection.
#[derive(Debug)]
pub(super) struct Pulse {
    /// When something was last seen to have come in.
    heard: Instant,
    received: u64,
    /// What was asked when the last word came in.
    asked: u64,
    unanswered_min: u64,
}

impl Pulse {
    /// By packets sent and received.
    pub(super) fn of_packets(now: Instant) -> Self {
        Self { heard: now, received: 0, asked: 0, unanswered_min: PACKETS_MIN }
    }

    /// By ticks at which an answer was waited for, and words received.
    pub(super) fn of_words(now: Instant) -> Self {
        Self { heard: now, received: 0, asked: 0, unanswered_min: 1 }
    }

    /// Takes the counters as of now; whether the node is taken for dead.
    pub(super) fn is_dead(&mut self, now: Instant, asked: u64, received: u64) -> bool {
        if received != self.received {
            *self = Self { heard: now, received, asked, ..*self };
            return false;
        }
        if asked == self.asked {
            // Nothing was asked, so silence is no answer.
            self.heard = now;
        }
        asked >= self.asked + self.unanswered_min && now >= self.heard + SILENCE_MAX
    }
}

/// Packets that must have gone out unanswered.
const PACKETS_MIN: u64 = 3;
/// How long a node may be silent while it is asked. Several round trips of the longest path, with losses; short enough that with the
/// way to the next node acks go on within 5 s.
const SILENCE_MAX: Duration = Duration::from_millis(3_500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_after_packets_is_death_and_idleness_is_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::of_packets(start);
        assert!(!pulse.is_dead(at(1), 5, 5));
        for idle in 2..100 {
            assert!(!pulse.is_dead(at(idle), 5, 5));
        }
        assert!(!pulse.is_dead(at(100), 8, 5));
        assert!(!pulse.is_dead(at(102), 9, 5));
        assert!(pulse.is_dead(at(103), 10, 5));
        let mut slow = Pulse::of_packets(start);
        for second in 1..100 {
            assert!(!slow.is_dead(at(second), 10 * second, second / 4));
        }
    }

    #[test]
    fn one_unanswered_frame_is_enough_where_words_count() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::of_words(start);
        assert!(!pulse.is_dead(at(50), 0, 7));
        for second in 51..54 {
            assert!(!pulse.is_dead(at(second), second - 50, 7));
        }
        assert!(!pulse.is_dead(at(54), 4, 8), "a word at the last moment");
        for second in 55..58 {
            assert!(!pulse.is_dead(at(second), second - 50, 8));
        }
        assert!(pulse.is_dead(at(58), 8, 8));
    }
}
