//! What a worker counts, by the names of its metrics.

use super::Books;
use crate::expr::Counters;

/// Everything counted so far; none before the views are built.
pub(super) fn of(books: &Books) -> Vec<(String, u64)> {
    let Some(source) = &books.source else { return vec![] };
    let counts = *source.counts.borrow();
    let made = books.made.values().map(|made| &made.counters);
    let views = books.counters.iter().map(|(_, counters)| counters).chain(made).chain([&books.chain_counters]);
    let [chain_keys, chain_events, chains, chains_evicted] = books.chains.get();
    let levels = books.correlations.iter().map(std::cell::Cell::get);
    let correlated = |place: usize| levels.clone().map(|counts| counts[place]).sum::<u64>();
    let sum = |count: fn(&Counters) -> u64| views.clone().map(|counters| count(counters)).sum::<u64>();
    [
        ("frames_total", counts.frames),
        ("events_total", counts.events),
        ("late_events_total", counts.late),
        ("duplicate_events_total", counts.duplicates),
        ("conflicting_events_total", counts.conflicts),
        ("undecodable_frames_total", counts.undecodable),
        ("skipped_events_total", counts.skipped),
        ("refused_ahead_events_total", counts.ahead_refused),
        ("lost_events_total", counts.lost),
        ("unknown_losses_total", counts.losses_unknown),
        ("folded_events_total", counts.folded),
        ("connection_ends", books.connections.ends.get()),
        ("evicted_connection_ends_total", books.connections.ends_evicted.get()),
        ("connection_groups", books.connections.groups.get()),
        ("rule_hits_total", counts.hits),
        ("alerts", books.alerts.alerts.get()),
        ("evicted_alerts_total", books.alerts.evicted.get()),
        ("alert_hits", books.alerts.hits.get()),
        ("fixed_alert_hits_total", books.alerts.fixed.get()),
        ("chain_keys", chain_keys),
        ("chain_events", chain_events),
        ("chains", chains),
        ("evicted_chains_total", chains_evicted),
        ("correlation_groups", correlated(0)),
        ("correlation_hits", correlated(1)),
        ("correlation_matches", correlated(2)),
        ("evicted_correlations_total", correlated(3)),
        ("bad_rows", sum(|counters| counters.bad_rows().max(0).unsigned_abs())),
        ("forgotten_rows_total", sum(Counters::forgotten)),
        ("unmatched_withdrawals_total", sum(Counters::unmatched)),
        ("overflowed_sums_total", sum(Counters::overflows)),
    ]
    .map(|(name, count)| (name.to_owned(), count))
    .to_vec()
}
