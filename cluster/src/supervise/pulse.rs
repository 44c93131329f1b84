//! Tells frozen workers from busy ones, by their answers and by how far they are. No clock: times are arguments.

/// What is known of a child.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// Since the child was started.
    pub(super) now_ms: u64,
    /// Its answer, if it gave one: the newest closed tick.
    pub(super) answer: Option<Option<u64>>,
    /// The chain's last tick.
    pub(super) chained: u64,
}

/// Watches one child.
#[derive(Debug)]
pub(super) struct Pulse {
    frozen_ms_max: u64,
    /// Before the first answer.
    start_ms_max: u64,
    answered_ms: Option<u64>,
    closed: Option<u64>,
    /// When `closed` moved last, or had nowhere to move to.
    moved_ms: u64,
    /// Until when silence means nothing: the workers said what they do.
    excused_ms: u64,
}

impl Pulse {
    pub(super) fn new(frozen_ms_max: u64, start_ms_max: u64) -> Self {
        Self { frozen_ms_max, start_ms_max, answered_ms: None, closed: None, moved_ms: 0, excused_ms: 0 }
    }

    /// The workers said that they will not answer for a while.
    pub(super) fn excuse(&mut self, until_ms: u64) {
        self.excused_ms = until_ms;
    }

    /// Why it is taken for frozen, if it is.
    pub(super) fn frozen(&mut self, seen: Seen) -> Option<&'static str> {
        let Seen { now_ms, answer, chained } = seen;
        let Some(closed) = answer else {
            let until_ms = match self.answered_ms {
                None => self.start_ms_max,
                Some(answered_ms) => answered_ms + self.frozen_ms_max,
            };
            return (now_ms > until_ms.max(self.excused_ms)).then_some("they do not answer");
        };
        self.answered_ms = Some(now_ms);
        // Until its first tick is closed a worker may read a long history.
        if closed != self.closed || closed.is_none() || closed.is_some_and(|closed| closed >= chained) {
            (self.closed, self.moved_ms) = (closed, now_ms);
        }
        (now_ms > self.excused_ms.max(self.moved_ms + self.frozen_ms_max)).then_some("no tick is closed any more")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse() -> Pulse {
        Pulse::new(10, 100)
    }

    fn seen(now_ms: u64, answer: Option<Option<u64>>, chained: u64) -> Seen {
        Seen { now_ms, answer, chained }
    }

    #[test]
    fn a_child_has_time_to_start_and_must_answer_from_then_on() {
        let mut pulse = pulse();
        assert_eq!(pulse.frozen(seen(100, None, 5)), None);
        assert!(pulse.frozen(seen(101, None, 5)).is_some());
        assert_eq!(pulse.frozen(seen(102, Some(None), 5)), None);
        assert_eq!(pulse.frozen(seen(112, None, 5)), None);
        assert!(pulse.frozen(seen(113, None, 5)).is_some());
    }

    #[test]
    fn who_saves_is_not_frozen() {
        let mut pulse = pulse();
        assert_eq!(pulse.frozen(seen(1, Some(Some(3)), 9)), None);
        pulse.excuse(100);
        assert_eq!(pulse.frozen(seen(100, None, 9)), None);
        assert!(pulse.frozen(seen(101, None, 9)).is_some());
    }

    #[test]
    fn ticks_must_close_as_long_as_there_are_some() {
        let mut pulse = pulse();
        assert_eq!(pulse.frozen(seen(1, Some(Some(3)), 9)), None);
        assert_eq!(pulse.frozen(seen(11, Some(Some(3)), 9)), None);
        assert!(pulse.frozen(seen(12, Some(Some(3)), 9)).is_some());
        assert_eq!(pulse.frozen(seen(13, Some(Some(4)), 9)), None);
        // Nothing new in the chain: nothing to close.
        for now_ms in 14..100 {
            assert_eq!(pulse.frozen(seen(now_ms, Some(Some(9)), 9)), None);
        }
    }
}
