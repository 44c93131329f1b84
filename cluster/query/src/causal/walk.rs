//! Ways through the facts: forwards to all effects, backwards to the causes. No I/O.
//!
//! An edge leaves a process at a time of its host's clock and comes to another at a time of the other's. It is followed forwards if
//! it leaves at or after its process was reached, backwards if it comes at or before the effect that is to be explained. Only the
//! edge of a connection goes from clock to clock, so clocks that differ break no path.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::facts::{End, Facts, File, Id, Side};

/// What an edge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Origin,
    Container,
    Host,
    Fork,
    Exec,
    File,
    Connection,
    Alert,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::Container => "container",
            Self::Host => "host",
            Self::Fork => "fork",
            Self::Exec => "exec",
            Self::File => "file",
            Self::Connection => "connection",
            Self::Alert => "alert",
        }
    }
}

/// One step from cause to effect. Ordered by time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edge {
    pub(super) at: i64,
    pub(super) kind: Kind,
    pub(super) from: Option<Id>,
    pub(super) left: i64,
    pub(super) to: Id,
    pub(super) path: Option<Id>,
    pub(super) connection_id: Option<Id>,
}

impl Edge {
    /// Where a walk begins.
    pub(super) fn origin(to: &Id, at: i64) -> Self {
        Self { at, kind: Kind::Origin, from: None, left: at, to: Arc::clone(to), path: None, connection_id: None }
    }
}

/// A walk to effects, step by step: between two steps the caller adds the facts of what was reached.
#[derive(Debug, Clone, Default)]
pub(super) struct Forward {
    /// Every process that was reached: by which edge earliest, and in which step first.
    pub(super) reached: BTreeMap<Id, (Edge, usize)>,
    /// What was reached by the last step, or earlier than before.
    pub(super) fresh: BTreeSet<Id>,
    tainted: BTreeMap<File, i64>,
    steps: usize,
}

impl Forward {
    pub(super) fn new(seeds: impl IntoIterator<Item = Edge>) -> Self {
        let mut walk = Self::default();
        for seed in seeds {
            walk.offer(seed);
        }
        walk
    }

    /// Follows the edges out of what is fresh, as the facts tell.
    pub(super) fn step(&mut self, facts: &Facts) {
        self.steps += 1;
        let mut edges = Vec::new();
        for id in std::mem::take(&mut self.fresh) {
            let since = self.reached[&id].0.at;
            made_by(facts, &id, since, &mut edges);
            self.executed(facts, &id, since, &mut edges);
            accepted(facts, &id, since, &mut edges);
        }
        for edge in edges {
            self.offer(edge);
        }
    }

    /// Walks on, with no more facts to come. False: more than so many steps.
    pub(super) fn finish(&mut self, facts: &Facts, steps_max: usize) -> bool {
        while !self.fresh.is_empty() && self.steps < steps_max {
            self.step(facts);
        }
        self.fresh.is_empty()
    }

    fn offer(&mut self, edge: Edge) {
        let known = self.reached.get(&edge.to);
        if known.is_some_and(|(known, _)| *known <= edge) {
            return;
        }
        if known.is_none_or(|(known, _)| edge.at < known.at) {
            self.fresh.insert(Arc::clone(&edge.to));
        }
        let step = known.map_or(self.steps, |(_, step)| *step);
        self.reached.insert(Arc::clone(&edge.to), (edge, step));
    }

    /// A file carries the earliest write alone: later ones reach nothing that it does not.
    fn executed(&mut self, facts: &Facts, id: &Id, since: i64, edges: &mut Vec<Edge>) {
        for (file, times) in facts.written.get(id).into_iter().flatten() {
            let Some(left) = times.range(since..).next().copied() else { continue };
            let until = self.tainted.get(file).copied().unwrap_or(i64::MAX);
            if left >= until {
                continue;
            }
            self.tainted.insert(file.clone(), left);
            for (at, to) in facts.runs.get(file).into_iter().flat_map(|runs| runs.range((left, "".into())..)) {
                if to != id {
                    edges.push(file_edge(id, left, to, *at, file));
                }
            }
        }
    }

    /// The steps from an origin to a process, first to last.
    pub(super) fn path_to(&self, id: &Id) -> Vec<&Edge> {
        let (mut edges, mut met, mut at) = (Vec::new(), BTreeSet::new(), Some(id));
        while let Some(id) = at.filter(|id| met.insert(Arc::clone(id))) {
            let Some((edge, _)) = self.reached.get(id) else { break };
            edges.push(edge);
            at = edge.from.as_ref();
        }
        edges.reverse();
        edges
    }
}

fn made_by(facts: &Facts, id: &Id, since: i64, edges: &mut Vec<Edge>) {
    for child in facts.children(id) {
        let at = facts.made(child);
        if at >= since {
            edges.push(made_edge(id, child.executed, &child.id, at));
        }
    }
}

fn accepted(facts: &Facts, id: &Id, since: i64, edges: &mut Vec<Edge>) {
    for end in facts.ends.get(id).into_iter().flatten().filter(|end| end.side == Side::Client && end.time >= since) {
        if let Some(server) = facts.other_end(end).filter(|server| server.process != *id) {
            edges.push(connection_edge(end, server));
        }
    }
}

fn made_edge(from: &Id, executed: bool, to: &Id, at: i64) -> Edge {
    let kind = if executed { Kind::Exec } else { Kind::Fork };
    Edge { at, kind, from: Some(Arc::clone(from)), left: at, to: Arc::clone(to), path: None, connection_id: None }
}

fn file_edge(from: &Id, left: i64, to: &Id, at: i64, file: &File) -> Edge {
    let (from, path) = (Some(Arc::clone(from)), Some(Arc::clone(&file.path)));
    Edge { at, kind: Kind::File, from, left, to: Arc::clone(to), path, connection_id: None }
}

fn connection_edge(client: &End, server: &End) -> Edge {
    Edge {
        at: server.time,
        kind: Kind::Connection,
        from: Some(Arc::clone(&client.process)),
        left: client.time,
        to: Arc::clone(&server.process),
        path: None,
        connection_id: client.connection_id().or_else(|| server.connection_id()),
    }
}

/// Connections out of what was reached to addresses where nobody tells of an end: the first to each.
pub(super) fn leaving(facts: &Facts, walk: &Forward) -> BTreeSet<Edge> {
    let mut first: BTreeMap<(Id, Id), Edge> = BTreeMap::new();
    for (id, (edge, _)) in &walk.reached {
        let out = facts.ends.get(id).into_iter().flatten().filter(|end| end.side == Side::Client && end.time >= edge.at);
        for end in out.filter(|end| facts.other_end(end).is_none()) {
            let Some(to) = end.peer_address() else { continue };
            let edge = Edge {
                at: end.time,
                kind: Kind::Connection,
                from: Some(Arc::clone(id)),
                left: end.time,
                to: Arc::clone(&to),
                path: None,
                connection_id: end.connection_id(),
            };
            first.entry((Arc::clone(id), to)).or_insert(edge);
        }
    }
    first.into_values().collect()
}

/// A walk to causes, step by step.
#[derive(Debug, Clone, Default)]
pub(super) struct Backward {
    /// The steps that explain, each with its distance from the effect.
    pub(super) edges: BTreeMap<Edge, usize>,
    /// A process, and until when its causes are looked for.
    pub(super) fresh: BTreeSet<(Id, i64)>,
    met: BTreeSet<(Id, i64)>,
    /// Some connections of a busy process were left out.
    pub(super) crowded: bool,
    steps: usize,
}

impl Backward {
    pub(super) fn new(effects: impl IntoIterator<Item = (Id, i64)>) -> Self {
        let fresh: BTreeSet<_> = effects.into_iter().collect();
        Self { met: fresh.clone(), fresh, ..Self::default() }
    }

    pub(super) fn step(&mut self, facts: &Facts) {
        self.steps += 1;
        for (id, until) in std::mem::take(&mut self.fresh) {
            let (causes, crowded) = causes(facts, &id, until);
            self.crowded |= crowded;
            for edge in causes {
                let next = edge.from.clone().filter(|from| !from.contains(':')).map(|from| (from, edge.left));
                self.edges.entry(edge).or_insert(self.steps);
                self.fresh.extend(next.filter(|next| self.met.insert(next.clone())));
            }
        }
    }
}

/// The nearest causes of what a process did at a time: who made it; who wrote last what it had executed; whose connection it had
/// accepted and not yet closed, the latest of them, or else the last that was closed.
pub(super) fn causes(facts: &Facts, id: &Id, until: i64) -> (Vec<Edge>, bool) {
    let mut edges = Vec::new();
    if let Some(process) = facts.processes.get(id)
        && let Some(maker) = process.maker.as_ref().filter(|maker| *maker != id)
        && facts.made(process) <= until
    {
        edges.push(made_edge(maker, process.executed, id, facts.made(process)));
    }
    for (at, file) in facts.ran.get(id).into_iter().flatten().filter(|(at, _)| *at <= until) {
        // Of writes at one time the one of the greatest id counts.
        let last = facts.writes.get(file).and_then(|writes| writes.range(..(at.saturating_add(1), "".into())).next_back());
        if let Some((left, from)) = last.filter(|(_, from)| from != id) {
            edges.push(file_edge(from, *left, id, *at, file));
        }
    }
    let before = |end: &&Arc<End>| end.side == Side::Server && end.time <= until;
    let latest_first = facts.ends.get(id).into_iter().flat_map(|ends| ends.iter().rev()).filter(before);
    let (open, closed): (Vec<_>, Vec<_>) = latest_first.partition(|end| facts.closed(end).is_none_or(|closed| closed >= until));
    let crowded = open.len() > CALLERS_MAX;
    let (from, most) = if open.is_empty() { (closed, 1) } else { (open, CALLERS_MAX) };
    let callers = from.into_iter().take(most);
    for server in callers {
        match facts.other_end(server) {
            Some(client) if client.process == *id => {}
            Some(client) => edges.push(connection_edge(client, server)),
            None => edges.push(Edge {
                at: server.time,
                kind: Kind::Connection,
                from: server.peer_address(),
                left: server.time,
                to: Arc::clone(id),
                path: None,
                connection_id: server.connection_id(),
            }),
        }
    }
    (edges, crowded)
}

/// Open connections of one process that may each have been the cause. A server with more at once is no lead.
const CALLERS_MAX: usize = 8;
