//! Whether answers advance: a watcher asks the workers for their frontier and remembers when it last moved.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::live::Live;

/// What the watcher saw last.
#[derive(Debug, Clone)]
pub(crate) struct Health(Arc<Mutex<Seen>>);

#[derive(Debug)]
struct Seen {
    closed: Option<u64>,
    moved: Instant,
    trouble: Option<String>,
}

/// The body of `/healthz`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Answers advance.
    pub(crate) healthy: bool,
    /// The newest closed tick.
    tick: Option<u64>,
    /// How long ago it was first seen.
    tick_age_ms: u64,
    /// Why the workers could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

impl Health {
    /// Nothing seen yet.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Seen { closed: None, moved: Instant::now(), trouble: None })))
    }

    /// What to tell.
    pub(crate) fn report(&self) -> Report {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let age = seen.moved.elapsed();
        let healthy = seen.closed.is_some() && age <= AGE_MAX;
        Report { healthy, tick: seen.closed, tick_age_ms: age.as_millis() as u64, trouble: seen.trouble.clone() }
    }

    /// Watches until dropped.
    pub(crate) async fn watch(self, live: Live) {
        loop {
            let frontier = live.frontier().await;
            {
                let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                match frontier {
                    Ok(frontier) if frontier.closed != seen.closed => {
                        *seen = Seen { closed: frontier.closed, moved: Instant::now(), trouble: None };
                    }
                    Ok(_) => seen.trouble = None,
                    Err(error) => seen.trouble = Some(error.to_string()),
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }
}

/// Between two looks.
const EVERY: Duration = Duration::from_millis(250);
/// Answers that have not moved for so long are stale.
const AGE_MAX: Duration = Duration::from_secs(5);
