//! Keeps the agent's certificate in force: renews it around the half of its life, again and again until a node gives one.
//!
//! Works beside the session and never stops it: a session goes on with the certificate it was made with, and moves to a new connection
//! once there is a newer one (`connect.rs`).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tracing::{error, warn};
use weir_config::Enrol;

use super::connect::Waits;
use super::enrol::{by_token, is_in_force, renew};
use super::{ClientConfig, Shared};
use crate::ca::CLOCK_SKEW;
use crate::certificate::Validity;
use crate::tls::AgentTls;

/// Renews for ever; ends when dropped.
pub(super) async fn run(shared: Arc<Shared>, config: ClientConfig, enrol: Enrol) {
    let mut waits = Waits::new();
    let mut failed = false;
    loop {
        // The files may be another program's work as well: they are read each time.
        let validity = AgentTls::load(&config.tls).map(|tls| tls.validity).ok();
        let due = validity.map_or(SystemTime::UNIX_EPOCH, |validity| due(validity, waits.random()));
        if !failed {
            sleep_until(due).await;
        }
        let in_force = is_in_force(&config.tls);
        let tried = match in_force {
            true => renew(&config).await,
            // It was off for too long. A new token may have been put there.
            false => by_token(&config, &enrol.token_file).await,
        };
        let why = match tried {
            Ok(Ok(())) => {
                failed = false;
                waits = Waits::new();
                shared.renewed();
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Ok(Err(not_given)) => not_given.to_string(),
            Err(failed) => failed.to_string(),
        };
        failed = true;
        let wait = waits.grown();
        let next_try_ms = wait.as_millis() as u64;
        match in_force {
            true => warn!(why, next_try_ms, "the certificate was not renewed"),
            false => error!(
                why,
                next_try_ms, "there is no certificate in force: nothing can be sent (cure: a token by `weir token create`)"
            ),
        }
        tokio::time::sleep(wait).await;
    }
}

/// Between two fifths and three fifths of the certificate's life, so that agents made together do not come together.
fn due(validity: Validity, random: u64) -> SystemTime {
    // It holds a little longer than since it was made.
    let made = (validity.from + CLOCK_SKEW).min(validity.until);
    let life = validity.until.duration_since(made).unwrap_or_default();
    let part = 0.4 + 0.2 * (random as f64 / u64::MAX as f64);
    made + life.mul_f64(part)
}

/// By the wall clock, which may be set meanwhile.
async fn sleep_until(due: SystemTime) {
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
    }
}

/// After a renewal, whatever the dates in it say: a wrong clock shall not make us ask without end.
const PAUSE: Duration = Duration::from_secs(10);
/// How often the clock is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_around_the_half_of_its_life() {
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let validity = Validity { from: made - CLOCK_SKEW, until: made + Duration::from_secs(1_000) };
        let after = |random| due(validity, random).duration_since(made).unwrap().as_secs();
        assert_eq!((after(0), after(u64::MAX / 2), after(u64::MAX)), (400, 500, 600));
    }
}
