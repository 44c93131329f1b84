//! Which ends of a group are two ends of one connection: pure functions of the group's ends.
//!
//! Two ends may belong together when one is a client and one a server, and each told of itself before the other was over, but
//! for the skew of two clocks. So whatever may still match arrives before a settled end is forgotten. Nothing here depends on
//! the order of arrival.

use std::sync::Arc;

use super::end::{End, Isns, Lateness, Side};

/// Positions of a client and a server in their group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) client: usize,
    pub(super) server: usize,
}

/// Since when an end is a member of this kind of group.
pub(super) type Since = fn(&End) -> i64;

/// Among ends with the same sequence numbers: who was known first is joined first, so that what is settled stays; then equal
/// addresses, then the closest in time, then by key.
pub(super) fn by_isns(ends: &[Arc<End>], lateness: Lateness) -> Vec<Pair> {
    let mut candidates = candidates(ends, lateness, |end| end.isns_since);
    if candidates.len() > 1 {
        candidates.sort_by_key(|pair| {
            let (client, server) = (&ends[pair.client], &ends[pair.server]);
            let known = client.isns_since.max(server.isns_since);
            (known, client.tuple != server.tuple, client.opened.abs_diff(server.opened), client.key, server.key)
        });
    }
    let mut taken = vec![false; ends.len()];
    candidates.retain(|pair| {
        let free = !taken[pair.client] && !taken[pair.server];
        if free {
            (taken[pair.client], taken[pair.server]) = (true, true);
        }
        free
    });
    candidates
}

/// Among ends with the same addresses: only those that have exactly one candidate, which has no other.
pub(super) fn by_tuple(ends: &[Arc<End>], lateness: Lateness) -> Vec<Pair> {
    let mut candidates = candidates(ends, lateness, |end| end.tuple_since);
    candidates.retain(|pair| agree(ends[pair.client].isns, ends[pair.server].isns));
    let mut degree = vec![0u32; ends.len()];
    for pair in &candidates {
        degree[pair.client] += 1;
        degree[pair.server] += 1;
    }
    candidates.retain(|pair| degree[pair.client] == 1 && degree[pair.server] == 1);
    candidates
}

/// Which ends may be dropped: those whose whole cluster of possible partners is settled before `tick`.
pub(super) fn settled(ends: &[Arc<End>], lateness: Lateness, since: Since, tick: u64) -> Vec<bool> {
    let over = |end: &Arc<End>| end.settles_at(lateness).is_some_and(|settles| settles < tick);
    let mut droppable: Vec<bool> = ends.iter().map(over).collect();
    if droppable.iter().all(|over| *over) || !droppable.contains(&true) {
        return droppable;
    }
    let edges = candidates(ends, lateness, since);
    loop {
        let mut moved = false;
        for pair in &edges {
            if droppable[pair.client] != droppable[pair.server] {
                (droppable[pair.client], droppable[pair.server]) = (false, false);
                moved = true;
            }
        }
        if !moved {
            return droppable;
        }
    }
}

fn candidates(ends: &[Arc<End>], lateness: Lateness, since: Since) -> Vec<Pair> {
    let mut pairs = Vec::new();
    if ends.len() < 2 {
        return pairs;
    }
    for (client, first) in ends.iter().enumerate().filter(|(_, end)| end.side == Side::Client) {
        for (server, second) in ends.iter().enumerate().filter(|(_, end)| end.side == Side::Server) {
            if overlap(first, second, lateness, since) {
                pairs.push(Pair { client, server });
            }
        }
    }
    pairs
}

/// Whether each was known before the other was over.
pub(super) fn overlap(a: &End, b: &End, lateness: Lateness, since: Since) -> bool {
    let skew = lateness.skew_ns();
    let over = |end: &End| end.closed.map_or(i64::MAX, |closed| closed.saturating_add(skew));
    since(a) <= over(b) && since(b) <= over(a)
}

/// True unless both know their sequence numbers and these differ.
fn agree(a: Option<Isns>, b: Option<Isns>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    }
}
