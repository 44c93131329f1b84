//! What a fleet goes through while it is measured: pure functions of the time since its start.

use std::ops::Range;
use std::time::Duration;

/// How the load and the agents behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// The same rate all the time
    Steady,
    /// Of each five seconds, one at three times the rate and four at half of it
    Burst,
    /// In each second one agent in twenty ends and starts anew
    Churn,
    /// Every ten seconds all agents end at once and start anew
    ReconnectStorm,
}

impl Scenario {
    /// Its name, as in the command.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Burst => "burst",
            Self::Churn => "churn",
            Self::ReconnectStorm => "reconnect-storm",
        }
    }

    /// Events a second at this time, where `rate` is the average.
    pub fn rate(self, rate: u64, elapsed: Duration) -> u64 {
        match self {
            Self::Burst if elapsed.as_millis() % BURST_EVERY_MS < BURST_LASTS_MS => rate * 3,
            Self::Burst => rate / 2,
            Self::Steady | Self::Churn | Self::ReconnectStorm => rate,
        }
    }

    /// The agents that start anew after `from` and not after `to`, counted on and on: number n is agent n modulo `agents`.
    pub fn restarts(self, agents: usize, from: Duration, to: Duration) -> Range<u64> {
        let until = |elapsed: Duration| match self {
            Self::Steady | Self::Burst => 0,
            Self::Churn => (elapsed.as_millis() as u64 * agents as u64) / CHURN_MS,
            Self::ReconnectStorm => (elapsed.as_millis() as u64 / STORM_EVERY_MS) * agents as u64,
        };
        until(from)..until(to)
    }
}

const BURST_EVERY_MS: u128 = 5_000;
const BURST_LASTS_MS: u128 = 1_000;
/// In this time every agent starts anew once.
const CHURN_MS: u64 = 20_000;
const STORM_EVERY_MS: u64 = 10_000;

/// Looks for the highest rate that holds, from a first guess: doubles while rates hold, then halves what is in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    /// The highest rate that held.
    pub held: Option<u64>,
    /// The lowest that did not.
    pub broke: Option<u64>,
    first: u64,
    tried: u32,
}

impl Search {
    /// Begins at `first` events a second.
    pub fn new(first: u64) -> Self {
        Self { held: None, broke: None, first: first.max(RATE_MIN), tried: 0 }
    }

    /// The next rate to try; none when the answer is known to a tenth.
    pub fn next_rate(&self) -> Option<u64> {
        if self.tried >= TRIALS_MAX {
            return None;
        }
        match (self.held, self.broke) {
            (None, None) => Some(self.first),
            (Some(held), None) => Some(held * 2),
            (None, Some(broke)) => Some(broke / 2).filter(|rate| *rate >= RATE_MIN),
            (Some(held), Some(broke)) => Some(u64::midpoint(held, broke)).filter(|_| broke - held > held / 10),
        }
    }

    /// Whether the rate of the last trial held.
    pub fn note(&mut self, rate: u64, held: bool) {
        self.tried += 1;
        match held {
            true => self.held = Some(self.held.map_or(rate, |before| before.max(rate))),
            false => self.broke = Some(self.broke.map_or(rate, |before| before.min(rate))),
        }
    }
}

/// Below this a fleet is idle.
const RATE_MIN: u64 = 100;
/// Doublings and halvings from any guess that is of use.
const TRIALS_MAX: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_keep_the_average_and_restarts_are_counted_once() {
        let second = Duration::from_secs;
        let whole: u64 = (0..100).map(|tenth| Scenario::Burst.rate(1_000, Duration::from_millis(tenth * 100)) / 10).sum();
        assert_eq!(whole, 10_000);
        for (scenario, expected) in
            [(Scenario::Steady, 0), (Scenario::Burst, 0), (Scenario::Churn, 60 * 3 / 2), (Scenario::ReconnectStorm, 60 * 3)]
        {
            let steps = (0..3_000).map(|step| (second(1) / 100 * step, second(1) / 100 * (step + 1)));
            let restarts: Vec<u64> = steps.flat_map(|(from, to)| scenario.restarts(60, from, to)).collect();
            assert_eq!(restarts, (0..expected).collect::<Vec<u64>>(), "{scenario:?}");
        }
    }

    #[test]
    fn the_search_ends_within_a_tenth_of_what_holds() {
        for limit in [50, 100, 999, 20_000, 123_456, 4_000_000] {
            let mut search = Search::new(20_000);
            while let Some(rate) = search.next_rate() {
                search.note(rate, rate <= limit);
            }
            match search.held {
                Some(held) => assert!(held <= limit && held * 115 / 100 >= limit, "{limit}: {search:?}"),
                None => assert!(limit < 200, "{limit}: {search:?}"),
            }
        }
    }
}
