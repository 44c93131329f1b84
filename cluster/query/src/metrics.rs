//! Every metric of the SQL port, with unit and meaning. Counted per delivery, never per row.

use metrics::{counter, gauge};

/// `weir_subscriptions`, `weir_subscriptions_total`: subscriptions that run now, and that were ever begun.
pub(crate) fn subscription_begun() {
    gauge!("weir_subscriptions").increment(1.0);
    counter!("weir_subscriptions_total").increment(1);
}

/// A subscription has ended, whatever the reason.
pub(crate) fn subscription_ended() {
    gauge!("weir_subscriptions").decrement(1.0);
}

/// `weir_subscription_rows_total`: rows handed to subscribers.
pub(crate) fn subscription_rows(rows: usize) {
    counter!("weir_subscription_rows_total").increment(rows as u64);
}

/// `weir_subscription_failures_total{code}`: subscriptions that were refused or ended with an error, by SQLSTATE.
pub(crate) fn subscription_failed(code: &'static str) {
    counter!("weir_subscription_failures_total", "code" => code).increment(1);
}

/// Names, units and help of all of them.
pub(crate) fn describe() {
    use metrics::{describe_counter, describe_gauge};
    describe_gauge!("weir_subscriptions", "Subscriptions that run now.");
    describe_counter!("weir_subscriptions_total", "Subscriptions that were begun.");
    describe_counter!("weir_subscription_rows_total", "Rows handed to subscribers.");
    describe_counter!("weir_subscription_failures_total", "Subscriptions refused or ended with an error, by SQLSTATE.");
}
