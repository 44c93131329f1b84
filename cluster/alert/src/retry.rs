//! How long what failed waits until it is tried again.

use crate::outbox::Limits;

/// A fraction by which the next retry is earlier, in 1/1024: 0 to 511.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jitter(pub u16);

/// Doubled with each attempt, made earlier by up to a half so that many do not come at once, and never before the sink asks.
pub(crate) fn pause(limits: &Limits, attempts: u32, after_ms: Option<u64>, jitter: Jitter) -> u64 {
    let doubled = limits.retry_ms_min.saturating_mul(1 << attempts.saturating_sub(1).min(32)).min(limits.retry_ms_max);
    let earlier = doubled.saturating_mul(u64::from(jitter.0.min(511))) / 1_024;
    (doubled - earlier).max(after_ms.unwrap_or(0).min(AFTER_MS_MAX))
}

/// A sink may ask for so long a pause.
const AFTER_MS_MAX: u64 = 3_600_000;
