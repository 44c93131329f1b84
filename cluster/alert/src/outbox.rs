//! What each sink has got, and what it shall get next: a state machine without I/O, clock or dice.
//!
//! Per sink and key there is one [`Entry`]: the latest revision that it lacks, and what it has. The key is the first id that was sent; an
//! alert whose start moves, and so has another id, keeps it. Everything that must outlive this process is a [`Change`], to be made durable
//! before anything of [`Outbox::due`] is sent. What is under way is not: whoever takes over sends it again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use weir_config::{AlertLimits, Route, Severity};

use crate::alert::{Alert, State};
use crate::entry::{Counts, Dead, Entry, Fate, Send, SinkCounts};
use crate::ledger::Change;
use crate::retry::{Jitter, pause};
use crate::sink::Outcome;

/// What waits, and for how long.
pub type Limits = AlertLimits;

/// The outbox of all sinks. See the module.
#[derive(Debug)]
pub struct Outbox {
    limits: Limits,
    routes: BTreeMap<String, Route>,
    entries: BTreeMap<Place, Entry>,
    /// By id in the relation.
    ids: HashMap<Place, String>,
    /// What could be sent, by when.
    queue: BTreeSet<(String, u64, String)>,
    /// What has an alert in it, the least important first.
    ranks: BTreeSet<(Rank, Place)>,
    in_flight: HashMap<Place, u64>,
    /// Failures of a sink since it last took something, those aside for which it named the wait itself.
    failures: HashMap<String, u32>,
    bytes: usize,
    tick: u64,
    changed: BTreeSet<Place>,
    /// What found no room, told once.
    refused: HashSet<u64>,
    counts: Counts,
}

/// Sink, and key or id.
type Place = (String, String);
type Rank = (Severity, i64);

impl Outbox {
    /// An empty one, or the last one's state, for these sinks.
    pub fn new(limits: Limits, routes: BTreeMap<String, Route>, tick: u64, entries: BTreeMap<(String, String), Entry>) -> Self {
        let mut outbox = Self {
            limits,
            routes,
            entries: BTreeMap::new(),
            ids: HashMap::new(),
            queue: BTreeSet::new(),
            ranks: BTreeSet::new(),
            in_flight: HashMap::new(),
            failures: HashMap::new(),
            bytes: 0,
            tick,
            changed: BTreeSet::new(),
            refused: HashSet::new(),
            counts: Counts::default(),
        };
        for (place, entry) in entries {
            outbox.put(&place, Some(entry));
        }
        outbox.changed.clear();
        outbox
    }

    /// These are the sinks from now on. What is kept of those in `gone`, which somebody dropped, is forgotten; how many alerts of it waited.
    ///
    /// What is kept of other sinks that are no more stays: one that is missing from a config may be back in it tomorrow.
    pub fn reroute(&mut self, routes: BTreeMap<String, Route>, gone: &BTreeSet<String>) -> usize {
        self.routes = routes;
        let dropped = |(sink, _): &&Place| gone.contains(sink) && !self.routes.contains_key(sink);
        let dropped: Vec<Place> = self.entries.keys().filter(dropped).cloned().collect();
        let waited = |place: &&Place| self.entries.get(*place).is_some_and(|entry| entry.wanted.is_some());
        let waited = dropped.iter().filter(waited).count();
        for place in dropped {
            self.in_flight.remove(&place);
            self.put(&place, None);
        }
        waited
    }

    /// Nothing that waits is sent for `wait_ms`: the last sender may still have requests under way.
    pub fn hold_back(&mut self, now_ms: u64, wait_ms: u64) {
        let waiting: Vec<Place> = self.queue.iter().map(|(sink, _, key)| (sink.clone(), key.clone())).collect();
        for place in waiting {
            self.change(&place, |entry| entry.next_ms = entry.next_ms.max(now_ms.saturating_add(wait_ms)));
        }
    }

    /// Takes up the rows of `alerts` as of closed tick `tick`. Older looks than the last are passed over.
    pub fn observe(&mut self, now_ms: u64, tick: u64, rows: &[Alert]) {
        if tick <= self.tick {
            return;
        }
        self.tick = tick;
        let sinks: Vec<(String, Route)> = self.routes.iter().map(|(name, route)| (name.clone(), route.clone())).collect();
        let shown: HashSet<&str> = rows.iter().map(|row| row.alert_id.as_str()).collect();
        for (sink, route) in sinks {
            let mut moved = self.miss(now_ms, &sink, &shown);
            for row in rows {
                let id = (sink.clone(), row.alert_id.clone());
                if let Some(key) = self.ids.get(&id).cloned() {
                    self.update(now_ms, &(sink.clone(), key), row);
                    continue;
                }
                let before = row.evidence.iter().find_map(|event| moved.remove(&(row.rule_id.clone(), event.clone())));
                match before {
                    Some(key) => self.follow(now_ms, &(sink.clone(), key), row),
                    // Nobody was told of it: there is nothing to take back.
                    None if row.is_withdrawn() || !takes(&route, row) => {}
                    None => self.take_up(now_ms, &(sink.clone(), row.alert_id.clone()), row),
                }
            }
            self.close_merged(now_ms, &sink, rows, &moved);
        }
    }

    /// What to send now; it counts as under way. To be called only once all changes are durable.
    pub fn due(&mut self, now_ms: u64) -> Vec<Send> {
        let mut free: HashMap<String, usize> = self.routes.keys().map(|sink| (sink.clone(), self.limits.in_flight_max)).collect();
        for (sink, _) in self.in_flight.keys() {
            free.entry(sink.clone()).and_modify(|free| *free = free.saturating_sub(1));
        }
        let mut sends = Vec::new();
        for (sink, free) in free {
            let range = (sink.clone(), 0, String::new())..=(sink.clone(), now_ms, LAST_KEY.to_owned());
            let due = self.queue.range(range).filter(|(_, next_ms, _)| *next_ms <= now_ms);
            let due: Vec<String> = due.take(free).map(|(_, _, key)| key.clone()).collect();
            for key in due {
                let place = (sink.clone(), key);
                let alert = self.entries.get(&place).and_then(|entry| entry.wanted.clone()).expect("what is queued is wanted");
                self.in_flight.insert(place.clone(), alert.revision);
                self.requeue(&place);
                sends.push(Send { sink: place.0, key: place.1, alert });
            }
        }
        sends
    }

    /// What became of a send; none: nobody waits for it any more.
    pub fn answered(&mut self, now_ms: u64, send: &Send, outcome: Outcome, jitter: Jitter) -> Option<Fate> {
        let place = (send.sink.clone(), send.key.clone());
        self.in_flight.remove(&place)?;
        let delivered = outcome == Outcome::Delivered;
        self.heard(now_ms, &send.sink, &outcome);
        let (revision, limits) = (send.alert.revision, self.limits.clone());
        self.change(&place, |entry| match outcome {
            Outcome::Delivered => {
                entry.delivered = entry.delivered.max(Some(revision));
                (entry.attempts, entry.failing_ms, entry.dead, entry.next_ms) = (0, None, None, now_ms);
                entry.wanted = entry.wanted.take().filter(|wanted| wanted.revision > revision);
            }
            Outcome::Retry { why, after_ms } => {
                entry.attempts = entry.attempts.saturating_add(1);
                let since = *entry.failing_ms.get_or_insert(now_ms);
                if now_ms.saturating_sub(since) >= limits.retry_for_ms_max {
                    entry.dead = Some(Dead { why, at_ms: now_ms });
                } else {
                    entry.next_ms = now_ms.saturating_add(pause(&limits, entry.attempts, after_ms, jitter));
                }
            }
            Outcome::Refused { why } => {
                entry.attempts = entry.attempts.saturating_add(1);
                // A newer revision may be taken; what was refused will not.
                match &entry.wanted {
                    Some(wanted) if wanted.revision > revision => entry.next_ms = now_ms,
                    _ => entry.dead = Some(Dead { why, at_ms: now_ms }),
                }
            }
        });
        self.requeue(&place);
        let dead = self.entries.get(&place)?.dead.is_some();
        Some(if delivered {
            Fate::Sent
        } else if dead {
            Fate::Dead
        } else {
            Fate::Retried
        })
    }

    /// A sink that takes something after it failed for a while is back: what waits because it failed is due at once, however long it would wait.
    fn heard(&mut self, now_ms: u64, sink: &str, outcome: &Outcome) {
        let failures = self.failures.entry(sink.to_owned()).or_default();
        match outcome {
            Outcome::Retry { after_ms: None, .. } => *failures = failures.saturating_add(1),
            Outcome::Delivered if std::mem::take(failures) >= AWAY_FAILURES => {
                let range =
                    (sink.to_owned(), now_ms.saturating_add(1), String::new())..=(sink.to_owned(), u64::MAX, LAST_KEY.to_owned());
                let waiting: Vec<Place> = self.queue.range(range).map(|(sink, _, key)| (sink.clone(), key.clone())).collect();
                for place in waiting {
                    self.change(&place, |entry| {
                        if entry.attempts > 0 {
                            entry.next_ms = now_ms;
                        }
                    });
                }
            }
            _ => {}
        }
    }

    /// Sends the dead letters of a sink again, or of all; how many there are.
    pub fn redrive(&mut self, now_ms: u64, sink: Option<&str>) -> usize {
        let fits = |place: &Place| sink.is_none_or(|sink| sink == place.0);
        let dead = self.entries.iter().filter(|(place, entry)| entry.dead.is_some() && fits(place));
        let dead: Vec<Place> = dead.map(|(place, _)| place.clone()).collect();
        for place in &dead {
            self.change(place, |entry| {
                (entry.dead, entry.attempts, entry.failing_ms, entry.next_ms) = (None, 0, None, now_ms);
            });
        }
        dead.len()
    }

    /// Forgets what was delivered and is shown no more, some time after.
    pub fn forget(&mut self, now_ms: u64) {
        let old = |entry: &Entry| entry.gone_ms.is_some_and(|gone| now_ms.saturating_sub(gone) >= GONE_MS);
        let done = self.entries.iter().filter(|(_, entry)| entry.wanted.is_none() && old(entry));
        for place in done.map(|(place, _)| place.clone()).collect::<Vec<_>>() {
            self.put(&place, None);
        }
    }

    /// What changed since it was last asked: to be made durable.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let changed = std::mem::take(&mut self.changed);
        changed
            .into_iter()
            .map(|place| Change { entry: self.entries.get(&place).cloned(), sink: place.0, key: place.1 })
            .collect()
    }

    /// Everything, for a snapshot.
    pub fn all(&self) -> Vec<Change> {
        let change =
            |(place, entry): (&Place, &Entry)| Change { sink: place.0.clone(), key: place.1.clone(), entry: Some(entry.clone()) };
        self.entries.iter().map(change).collect()
    }

    /// The last tick that was taken up.
    pub fn tick(&self) -> u64 {
        self.tick
    }

    /// When the next of what waits is due.
    pub fn next_ms(&self) -> Option<u64> {
        self.routes.keys().filter_map(|sink| self.queue.range((sink.clone(), 0, String::new())..).next()).map(|next| next.1).min()
    }

    /// What was dropped.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Per sink, configured or not.
    pub fn sinks(&self) -> BTreeMap<String, SinkCounts> {
        let mut sinks: BTreeMap<String, SinkCounts> =
            self.routes.keys().map(|name| (name.clone(), SinkCounts::default())).collect();
        for ((sink, _), entry) in &self.entries {
            let counts = sinks.entry(sink.clone()).or_default();
            match entry {
                Entry { dead: Some(_), .. } => counts.dead += 1,
                Entry { wanted: Some(_), since_ms, .. } => {
                    counts.waiting += 1;
                    counts.oldest_ms = Some(counts.oldest_ms.map_or(*since_ms, |oldest| oldest.min(*since_ms)));
                }
                _ => counts.delivered += 1,
            }
        }
        sinks
    }

    /// The entries, by sink and key.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str, &Entry)> {
        self.entries.iter().map(|((sink, key), entry)| (sink.as_str(), key.as_str(), entry))
    }

    /// Notes what is shown no more. By rule and first evidence: what may go on under another id.
    fn miss(&mut self, now_ms: u64, sink: &str, shown: &HashSet<&str>) -> HashMap<(String, String), String> {
        let range = (sink.to_owned(), String::new())..=(sink.to_owned(), LAST_KEY.to_owned());
        let missing =
            self.entries.range(range).filter(|(_, entry)| entry.gone_ms.is_none() && !shown.contains(entry.id.as_str()));
        let missing: Vec<Place> = missing.map(|(place, _)| place.clone()).collect();
        let mut moved = HashMap::new();
        for place in missing {
            self.change(&place, |entry| entry.gone_ms = Some(now_ms));
            let Some(entry) = self.entries.get(&place) else { continue };
            if let Some(evidence) = &entry.evidence {
                moved.insert((entry.rule_id.clone(), evidence.clone()), place.1.clone());
            }
        }
        moved
    }

    fn take_up(&mut self, now_ms: u64, place: &Place, row: &Alert) {
        let alert = row.clone().trimmed();
        if !self.make_room(place, &alert) {
            return;
        }
        let entry = Entry {
            id: row.alert_id.clone(),
            rule_id: row.rule_id.clone(),
            evidence: row.evidence.first().cloned(),
            seen: row.revision,
            base: 0,
            wanted: Some(alert),
            delivered: None,
            attempts: 0,
            failing_ms: None,
            next_ms: now_ms,
            since_ms: now_ms,
            dead: None,
            gone_ms: None,
        };
        self.put(place, Some(entry));
    }

    fn update(&mut self, now_ms: u64, place: &Place, row: &Alert) {
        let Some(entry) = self.entries.get(place) else { return };
        if entry.gone_ms.is_some() {
            self.change(place, |entry| entry.gone_ms = None);
        }
        let Some(entry) = self.entries.get(place) else { return };
        let revision = row.revision.saturating_add(entry.base);
        if revision > entry.seen {
            self.want(now_ms, place, row, revision);
        }
    }

    /// Goes on under another id.
    fn follow(&mut self, now_ms: u64, place: &Place, row: &Alert) {
        let Some(entry) = self.entries.get(place) else { return };
        let (seen, id) = (entry.seen, row.alert_id.clone());
        let base = (seen + 1).saturating_sub(row.revision);
        self.change(place, |entry| (entry.id, entry.base, entry.gone_ms) = (id, base, None));
        self.want(now_ms, place, row, row.revision + base);
    }

    fn want(&mut self, now_ms: u64, place: &Place, row: &Alert, revision: u64) {
        let alert = Alert { alert_id: place.1.clone(), revision, ..row.clone().trimmed() };
        if !self.make_room(place, &alert) {
            return;
        }
        let evidence = row.evidence.first().cloned();
        self.change(place, |entry| {
            if entry.wanted.is_none() || entry.dead.is_some() {
                entry.since_ms = now_ms;
            }
            if entry.dead.take().is_some() {
                (entry.attempts, entry.failing_ms) = (0, None);
            }
            if entry.attempts == 0 {
                entry.next_ms = entry.next_ms.max(now_ms);
            }
            (entry.seen, entry.wanted, entry.evidence) = (revision, Some(alert), evidence);
        });
    }

    /// An alert whose evidence is now another's has become a part of that one: its sink is told that it is withdrawn.
    fn close_merged(&mut self, now_ms: u64, sink: &str, rows: &[Alert], moved: &HashMap<(String, String), String>) {
        if moved.is_empty() {
            return;
        }
        for row in rows {
            let merged = row.evidence.iter().find_map(|event| moved.get(&(row.rule_id.clone(), event.clone())));
            let Some(key) = merged else { continue };
            let place = (sink.to_owned(), key.clone());
            let Some(entry) = self.entries.get(&place) else { continue };
            let into = self.ids.get(&(sink.to_owned(), row.alert_id.clone())).unwrap_or(&row.alert_id);
            let summary = format!("it is part of alert {into} now: {}", row.summary);
            let part = Alert { state: State::Withdrawn, summary, ..row.clone() };
            let revision = entry.seen + 1;
            self.want(now_ms, &place, &part, revision);
        }
    }

    /// Makes room for `alert` by dropping what is less important; false: there is none.
    fn make_room(&mut self, place: &Place, alert: &Alert) -> bool {
        let old = self.entries.get(place);
        let freed = old.and_then(|entry| entry.wanted.as_ref()).map_or(0, Alert::bytes);
        let new_entry = usize::from(old.is_none());
        let rank = rank(alert);
        loop {
            let fits = self.bytes - freed + alert.bytes() <= self.limits.bytes_max;
            if fits && self.entries.len() + new_entry <= self.limits.entries_max {
                self.refused.remove(&mark(place, alert.revision));
                return true;
            }
            let mut least = self.ranks.iter().filter(|(_, least)| least != place && !self.in_flight.contains_key(least));
            match least.next().filter(|(least, _)| *least < rank).cloned() {
                Some((_, victim)) => {
                    let Some(entry) = self.entries.get(&victim) else { continue };
                    let revision = entry.wanted.as_ref().map_or(0, |alert| alert.revision);
                    let delivered = entry.delivered;
                    self.drop_one(&victim, revision);
                    match delivered {
                        Some(delivered) => self.change(&victim, |entry| {
                            (entry.wanted, entry.seen, entry.dead) = (None, delivered, None);
                        }),
                        None => self.put(&victim, None),
                    }
                }
                None => {
                    self.drop_one(place, alert.revision);
                    return false;
                }
            }
        }
    }

    /// Counts a revision that finds no room, once.
    fn drop_one(&mut self, place: &Place, revision: u64) {
        if self.refused.len() >= REFUSED_MAX {
            self.refused.clear();
        }
        self.counts.dropped += u64::from(self.refused.insert(mark(place, revision)));
    }

    fn change(&mut self, place: &Place, change: impl FnOnce(&mut Entry)) {
        if let Some(mut entry) = self.entries.get(place).cloned() {
            change(&mut entry);
            self.put(place, Some(entry));
        }
    }

    /// The one way in which entries change, so that what is counted and sorted about them follows.
    fn put(&mut self, place: &Place, entry: Option<Entry>) {
        if let Some(old) = self.entries.remove(place) {
            self.queue.remove(&(place.0.clone(), old.next_ms, place.1.clone()));
            self.ids.remove(&(place.0.clone(), old.id));
            if let Some(wanted) = old.wanted {
                self.bytes -= wanted.bytes();
                self.ranks.remove(&(rank(&wanted), place.clone()));
            }
        }
        if let Some(entry) = entry {
            self.ids.insert((place.0.clone(), entry.id.clone()), place.1.clone());
            if let Some(wanted) = &entry.wanted {
                self.bytes += wanted.bytes();
                self.ranks.insert((rank(wanted), place.clone()));
            }
            self.entries.insert(place.clone(), entry);
            self.requeue(place);
        }
        self.changed.insert(place.clone());
    }

    /// In the queue is what is wanted, not dead and not under way.
    fn requeue(&mut self, place: &Place) {
        let Some(entry) = self.entries.get(place) else { return };
        let slot = (place.0.clone(), entry.next_ms, place.1.clone());
        let waits = entry.wanted.is_some() && entry.dead.is_none() && !self.in_flight.contains_key(place);
        if waits {
            self.queue.insert(slot)
        } else {
            self.queue.remove(&slot)
        };
    }
}

fn takes(route: &Route, alert: &Alert) -> bool {
    let one = |globs: &[weir_config::Glob], text: &str| globs.iter().any(|glob| glob.fits(text));
    alert.severity >= route.severity_min
        && one(&route.rules, &alert.rule)
        && one(&route.regions, &alert.region)
        && one(&route.tenants, &alert.tenant)
}

fn mark(place: &Place, revision: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(format!("{}\0{}", place.0, place.1).as_bytes(), revision)
}

fn rank(alert: &Alert) -> Rank {
    (alert.severity, alert.last_seen)
}

/// Behind every id, which are hexadecimal or the like.
const LAST_KEY: &str = "\u{10ffff}";
/// What is delivered and shown no more is remembered for so long, in case it comes back: a mesh that is formed anew may be behind.
const GONE_MS: u64 = 3_600_000;
/// Marks of what was dropped; with more, some are counted twice.
const REFUSED_MAX: usize = 1 << 20;
/// A sink that failed so often in a row was away.
const AWAY_FAILURES: u32 = 3;
