//! When a node may try to take the chain over: after no new record for a while. No I/O; time is an argument.
//!
//! It only keeps nodes from disturbing a holder that lives. Who holds the chain is decided by who creates the next number.

/// Watches the chain's end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Takeover {
    ttl_ms: u64,
    /// The number behind the newest record, and since when it is that; by our own monotonic clock.
    seen: Option<(u64, u64)>,
}

impl Takeover {
    /// A chain without a new record for `ttl_ms` has no holder.
    pub(crate) fn new(ttl_ms: u64) -> Self {
        Self { ttl_ms, seen: None }
    }

    /// The number behind the newest record that is known.
    pub(crate) fn next(&self) -> Option<u64> {
        self.seen.map(|(next, _)| next)
    }

    /// The chain was looked at now: `next` is the number behind its newest record.
    pub(crate) fn saw(&mut self, next: u64, now_ms: u64) {
        if self.seen.is_none_or(|(known, _)| known < next) {
            self.seen = Some((next, now_ms));
        }
    }

    /// Whether to try to create the next number. To be asked right after a look.
    pub(crate) fn may_try(&self, now_ms: u64) -> bool {
        self.seen.is_some_and(|(next, since_ms)| next == 0 || now_ms.saturating_sub(since_ms) >= self.ttl_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_moves_is_left_alone() {
        let mut takeover = Takeover::new(5_000);
        assert!(!takeover.may_try(0), "nobody has looked");
        takeover.saw(0, 0);
        assert!(takeover.may_try(0), "there is no chain yet");
        takeover.saw(1, 100);
        assert!(!takeover.may_try(5_099));
        takeover.saw(1, 5_100);
        assert!(takeover.may_try(5_100), "no new record for long");
        takeover.saw(2, 5_100);
        assert!(!takeover.may_try(10_000));
        takeover.saw(1, 10_050);
        assert_eq!(takeover.next(), Some(2), "an older look changes nothing");
    }
}
