//! Whether a connection has a statement that runs, and since when it has none.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What one connection does.
#[derive(Debug)]
pub(super) struct Busy(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Statements that run.
    running: usize,
    /// When the last one ended, or the connection began.
    since: Instant,
}

/// A statement runs while this is there.
pub(super) struct Running(Arc<Busy>);

impl Default for Busy {
    fn default() -> Self {
        Self(Mutex::new(State { running: 0, since: Instant::now() }))
    }
}

impl Busy {
    /// A statement begins.
    pub(super) fn begin(self: &Arc<Self>) -> Running {
        self.change(|state| state.running += 1);
        Running(Arc::clone(self))
    }

    /// Resolves once nothing ran for so long; never when that is no time.
    pub(super) async fn idle_for(&self, max: Duration) {
        if max.is_zero() {
            return std::future::pending().await;
        }
        loop {
            match self.idle_at(max) {
                Some(until) if until <= Instant::now() => return,
                Some(until) => tokio::time::sleep_until(until).await,
                None => tokio::time::sleep(max).await,
            }
        }
    }

    /// When nothing will have run for so long; none: something runs.
    fn idle_at(&self, max: Duration) -> Option<Instant> {
        self.change(|state| (state.running == 0).then(|| state.since + max))
    }

    fn change<T>(&self, how: impl FnOnce(&mut State) -> T) -> T {
        how(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.change(|state| (state.running, state.since) = (state.running - 1, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_runs_nothing_is_idle() {
        let (busy, max) = (Arc::<Busy>::default(), Duration::from_secs(3_600));
        let begun = busy.idle_at(max).unwrap();
        let (one, two) = (busy.begin(), busy.begin());
        assert_eq!(busy.idle_at(max), None);
        drop(one);
        assert_eq!(busy.idle_at(max), None, "another runs");
        drop(two);
        assert!(busy.idle_at(max).unwrap() >= begun);
    }
}
