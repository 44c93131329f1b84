//! Which events enter the views, and when.
//!
//! An event committed at tick c with time e (its own, floored to milliseconds) is admitted if c ≤ e + R, at tick max(c, e − skew):
//! those ahead wait for the rest. Late ones enter no view; they stay in the tail, marked, and are counted.

/// How late and how early an event may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// R: milliseconds after its own time.
    pub retention_ms: u64,
    /// Milliseconds before its own time.
    pub skew_ms: u64,
}

/// What becomes of an event that is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Judgement {
    /// It enters at the tick of its commit.
    Admitted,
    /// It enters no view.
    Late,
    /// It waits for this moment.
    Ahead(u64),
}

impl Admission {
    /// Judges an event committed at `tick` by its time in nanoseconds.
    #[inline]
    pub fn judge(&self, tick: u64, time_ns: i64) -> Judgement {
        let time = time_ns.div_euclid(1_000_000);
        let tick_ms = i64::try_from(tick).unwrap_or(i64::MAX);
        let span = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        if tick_ms > time.saturating_add(span(self.retention_ms)) {
            Judgement::Late
        } else if time > tick_ms.saturating_add(span(self.skew_ms)) {
            Judgement::Ahead(time.saturating_sub(span(self.skew_ms)).unsigned_abs())
        } else {
            Judgement::Admitted
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_belong_to_the_admitted() {
        let admission = Admission { retention_ms: 1_000, skew_ms: 10 };
        let judge = |tick, time_us: i64| admission.judge(tick, time_us * 1_000);
        assert_eq!(judge(2_000, 1_000_000), Judgement::Admitted);
        assert_eq!(judge(2_000, 999_999), Judgement::Late);
        assert_eq!(judge(2_000, 2_010_999), Judgement::Admitted);
        assert_eq!(judge(2_000, 2_011_000), Judgement::Ahead(2_001));
        assert_eq!(judge(2_001, 2_011_000), Judgement::Admitted);
        assert_eq!(judge(5_000, -1), Judgement::Late);
        assert_eq!(judge(5, -1), Judgement::Admitted);
    }
}
