//! How fast one agent may send, in events and in bytes. No clock: time is an argument.
//!
//! Over it nothing is dropped or refused: the agent gets no new credit until what it sent is paid for. So the most that it can send at once
//! is the burst and, behind it, one window. An agent that sends without credit breaks the protocol.

use std::time::{Duration, Instant};

/// Events and bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Events per second in the long run.
    pub events_per_second_max: u64,
    /// Bytes of frames per second in the long run.
    pub bytes_per_second_max: u64,
}

/// What an agent has sent, as the times at which it will be paid for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    rates: Rates,
    events_paid: Instant,
    bytes_paid: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant, rates: Rates) -> Self {
        Self { rates, events_paid: now, bytes_paid: now }
    }

    /// Charges a frame.
    pub(super) fn charge(&mut self, now: Instant, events: u64, bytes: u64) {
        let add = |paid: &mut Instant, count: u64, per_second: u64| {
            *paid = (*paid).max(now) + Duration::from_secs_f64(count as f64 / per_second.max(1) as f64);
        };
        add(&mut self.events_paid, events, self.rates.events_per_second_max);
        add(&mut self.bytes_paid, bytes, self.rates.bytes_per_second_max);
    }

    /// How long credit is to be withheld.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        let over = self.events_paid.max(self.bytes_paid).saturating_duration_since(now + BURST);
        (!over.is_zero()).then_some(over)
    }

    /// Whether all is paid for, so that nothing need be remembered.
    pub(super) fn is_even(&self, now: Instant) -> bool {
        self.events_paid <= now && self.bytes_paid <= now
    }
}

/// So many seconds' worth may come at once: an agent that was cut off for a moment catches up.
const BURST: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_the_long_run_is_held_to_the_rate() {
        let start = Instant::now();
        let rates = Rates { events_per_second_max: 1_000, bytes_per_second_max: 100_000 };
        let mut pace = Pace::new(start, rates);
        pace.charge(start, 5_000, 1_000);
        assert_eq!(pace.wait(start), None);
        pace.charge(start, 1_000, 1_000);
        assert_eq!(pace.wait(start), Some(Duration::from_secs(1)));
        assert_eq!(pace.wait(start + Duration::from_secs(1)), None);
        assert!(!pace.is_even(start + Duration::from_secs(5)) && pace.is_even(start + Duration::from_secs(6)));
        // An hour as fast as it may: 1,000 a second and the burst.
        let mut pace = Pace::new(start, rates);
        let (mut now, mut sent) = (start, 0);
        while now < start + Duration::from_secs(3_600) {
            now += pace.wait(now).unwrap_or_default().max(Duration::from_millis(1));
            pace.charge(now, 100, 2_000);
            sent += 100;
        }
        assert!((3_600_000..=3_610_000).contains(&sent), "{sent}");
    }

    #[test]
    fn bytes_count_apart_from_events() {
        let start = Instant::now();
        let mut pace = Pace::new(start, Rates { events_per_second_max: 1_000_000, bytes_per_second_max: 1_000 });
        pace.charge(start, 1, 10_000);
        assert_eq!(pace.wait(start), Some(Duration::from_secs(5)));
        pace.charge(start + Duration::from_secs(600), 1, 5_000);
        assert_eq!(pace.wait(start + Duration::from_secs(600)), None, "what was not used long ago is not saved up");
    }
}
