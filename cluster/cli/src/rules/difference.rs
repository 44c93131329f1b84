//! Which alerts two sets of rules make of the same events, and where they differ. No I/O.
//!
//! An alert is what the cluster calls one: hits of one rule and one subject, each at most `ALERT_WINDOW_MS` behind the one before it. Alerts
//! of the two sides that lie in the same stretch of time are compared with each other.
//!
//! Promise: the difference is a function of the set of hits, whatever their order.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use weir_dataflow::ALERT_WINDOW_MS;
use weir_rules::Rule;

/// Whose hit it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Of the rules to compare with.
    Before,
    /// Of the changed ones.
    After,
}

/// An event that a rule matches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hit<'a> {
    pub(super) rule: &'a Rule,
    /// What repeats are grouped by.
    pub(super) subject: u128,
    pub(super) host: &'a str,
    pub(super) time: i64,
    /// The event's id, or its line.
    pub(super) event: &'a str,
}

/// Some hits of one rule and subject that follow each other closely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alert {
    pub(super) host: String,
    pub(super) first: i64,
    pub(super) last: i64,
    /// Of the first hit.
    pub(super) event: String,
    /// Of the first hit.
    pub(super) output: String,
    pub(super) events: u64,
    /// Of all events, in no order.
    digest: u64,
}

/// What a rule is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) name: String,
    pub(super) id: Option<String>,
    pub(super) priority: String,
    pub(super) tags: Vec<String>,
}

/// What becomes of alerts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// It is there with the changed rules only.
    Opened,
    /// It is there without the change only.
    Silenced,
    /// It has other events, or is several or one.
    Changed,
}

impl Change {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Silenced => "silenced",
            Self::Changed => "changed",
        }
    }
}

/// An alert that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Differing<'a> {
    pub(super) change: Change,
    pub(super) rule: &'a Head,
    /// The earliest of the side that has it; of a changed one, of the changed rules.
    pub(super) alert: &'a Alert,
    pub(super) last: i64,
    /// Before and after.
    pub(super) events: [u64; 2],
}

/// What a rule comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) rule: String,
    /// Both, where they differ.
    pub(super) priority: String,
    pub(super) before: usize,
    pub(super) after: usize,
    pub(super) opened: usize,
    pub(super) silenced: usize,
    pub(super) changed: usize,
}

/// The alerts of both sides.
#[derive(Debug, Default)]
pub(super) struct Difference {
    heads: BTreeMap<String, [Option<Head>; 2]>,
    /// By rule and subject.
    alerts: BTreeMap<(String, u128), [Vec<Alert>; 2]>,
    count: usize,
}

impl Difference {
    /// Takes up a hit. Its output is asked for when it is the first of an alert.
    pub(super) fn take(&mut self, side: Side, hit: Hit<'_>, output: impl FnOnce() -> String) -> anyhow::Result<()> {
        let Hit { rule, subject, host, time, event } = hit;
        // As the cluster knows a rule: it stays the same when its text changes.
        let key = rule.id.as_ref().unwrap_or(&rule.name);
        let heads = self.heads.entry(key.clone()).or_default();
        heads[side as usize].get_or_insert_with(|| Head {
            name: rule.name.clone(),
            id: rule.id.clone(),
            priority: rule.priority.to_string(),
            tags: rule.tags.clone(),
        });
        let alerts = &mut self.alerts.entry((key.clone(), subject)).or_default()[side as usize];
        let mut hasher = DefaultHasher::new();
        (time, event).hash(&mut hasher);
        let digest = hasher.finish();
        let Some(at) = alerts.iter().position(|alert| alert.is_near(time, time)) else {
            anyhow::ensure!(
                self.count < ALERTS_MAX,
                "there are more than {ALERTS_MAX} alerts: ask for less time with --since, or narrow the rules first"
            );
            self.count += 1;
            let (host, event) = (host.to_owned(), event.to_owned());
            alerts.push(Alert { host, first: time, last: time, event, output: output(), events: 1, digest });
            return Ok(());
        };
        let mut alert = alerts.swap_remove(at);
        if place(time, event) < alert.place() {
            (alert.first, alert.event, alert.output) = (time, event.to_owned(), output());
        }
        alert.last = alert.last.max(time);
        alert.events += 1;
        alert.digest = alert.digest.wrapping_add(digest);
        // It may have closed the gap to others.
        while let Some(at) = alerts.iter().position(|other| other.is_near(alert.first, alert.last)) {
            alert.merge(alerts.swap_remove(at));
            self.count -= 1;
        }
        alerts.push(alert);
        Ok(())
    }

    /// The alerts that differ, by time.
    pub(super) fn differing(&self) -> Vec<Differing<'_>> {
        let mut all: Vec<_> = self.alerts.iter().flat_map(|(key, sides)| self.of_subject(key, sides)).collect();
        all.sort_by_key(|differing| (differing.alert.first, differing.rule.name.clone(), differing.alert.host.clone()));
        all
    }

    fn of_subject<'a>(&'a self, (rule, _): &(String, u128), sides: &'a [Vec<Alert>; 2]) -> Vec<Differing<'a>> {
        let mut both: Vec<(&Alert, usize)> =
            sides.iter().enumerate().flat_map(|(side, all)| all.iter().map(move |alert| (alert, side))).collect();
        both.sort_by_key(|(alert, side)| (alert.first, *side));
        let mut differing = Vec::new();
        let mut rest = &both[..];
        while let Some((first, _)) = rest.first() {
            // All that lie in the same stretch of time.
            let (mut end, mut len) = (first.last, 0);
            while let Some((alert, _)) = rest.get(len).filter(|(alert, _)| alert.first <= end) {
                end = end.max(alert.last);
                len += 1;
            }
            let (stretch, behind) = rest.split_at(len);
            rest = behind;
            let of = |wanted: usize| {
                stretch.iter().filter(move |(_, side)| *side == wanted).map(|(alert, _)| *alert).collect::<Vec<_>>()
            };
            let (before, after) = (of(0), of(1));
            let (change, shown) = match (&before[..], &after[..]) {
                ([before], [after]) if before.same_events(after) => continue,
                ([gone, ..], []) => (Change::Silenced, *gone),
                (_, [shown, ..]) => (if before.is_empty() { Change::Opened } else { Change::Changed }, *shown),
                ([], []) => continue,
            };
            let side = usize::from(change != Change::Silenced);
            let Some(rule) = &self.heads[rule][side] else { continue };
            let events = [&before, &after].map(|alerts| alerts.iter().map(|alert| alert.events).sum());
            differing.push(Differing { change, rule, alert: shown, last: end, events });
        }
        differing
    }

    /// What each rule comes to; those first for which something changes.
    pub(super) fn counts(&self) -> Vec<Counts> {
        let mut counts: BTreeMap<&str, Counts> = BTreeMap::new();
        for (key, heads) in &self.heads {
            let priorities: Vec<&str> = heads.iter().flatten().map(|head| head.priority.as_str()).collect();
            let priority = match priorities[..] {
                [before, after] if before != after => format!("{before} → {after}"),
                [first, ..] => first.to_owned(),
                [] => continue,
            };
            let Some(rule) = heads.iter().flatten().next_back().map(|head| head.name.clone()) else { continue };
            counts.insert(key, Counts { rule, priority, before: 0, after: 0, opened: 0, silenced: 0, changed: 0 });
        }
        for (key, sides) in &self.alerts {
            let Some(counts) = counts.get_mut(key.0.as_str()) else { continue };
            counts.before += sides[0].len();
            counts.after += sides[1].len();
            for differing in self.of_subject(key, sides) {
                match differing.change {
                    Change::Opened => counts.opened += 1,
                    Change::Silenced => counts.silenced += 1,
                    Change::Changed => counts.changed += 1,
                }
            }
        }
        let mut counts: Vec<Counts> = counts.into_values().collect();
        counts.sort_by_key(|counts| (counts.opened + counts.silenced + counts.changed == 0, counts.rule.clone()));
        counts
    }
}

/// An event's place among others: ids of one length by their text, lines by their number.
fn place(time: i64, event: &str) -> (i64, usize, &str) {
    (time, event.len(), event)
}

impl Alert {
    fn place(&self) -> (i64, usize, &str) {
        place(self.first, &self.event)
    }

    fn is_near(&self, first: i64, last: i64) -> bool {
        let window = i64::try_from(ALERT_WINDOW_MS).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        first.saturating_sub(self.last) <= window && self.first.saturating_sub(last) <= window
    }

    fn merge(&mut self, other: Self) {
        self.last = self.last.max(other.last);
        self.events += other.events;
        self.digest = self.digest.wrapping_add(other.digest);
        if other.place() < self.place() {
            (self.first, self.event, self.output) = (other.first, other.event, other.output);
        }
    }

    fn same_events(&self, other: &Self) -> bool {
        (self.first, self.last, self.events, self.digest) == (other.first, other.last, other.events, other.digest)
    }
}

/// Alerts of both sides that are held: some hundred bytes each, and more than anybody reads.
const ALERTS_MAX: usize = 200_000;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use weir_loadtest::fleet::Random;
    use weir_rules::RuleSet;

    use super::*;

    const MINUTE: i64 = 60_000_000_000;

    fn rules() -> RuleSet {
        let rule =
            |name: &str| format!("- rule: {name}\n  desc: d\n  condition: evt.type = execve\n  output: o\n  priority: INFO\n");
        let text = ["a", "b"].map(rule).concat();
        RuleSet::load([("rules.yaml", &*text)])
    }

    type Hits = BTreeSet<(usize, u128, i64)>;

    fn difference(set: &RuleSet, before: &[(usize, u128, i64)], after: &[(usize, u128, i64)]) -> Difference {
        let mut difference = Difference::default();
        for (side, hits) in [(Side::Before, before), (Side::After, after)] {
            for (rule, subject, time) in hits {
                let event = time.to_string();
                let hit = Hit { rule: &set.rules[*rule], subject: *subject, host: "h", time: *time, event: &event };
                difference.take(side, hit, || event.clone()).unwrap();
            }
        }
        difference
    }

    #[test]
    fn what_opens_falls_silent_and_changes_is_told_apart() {
        let set = rules();
        let before = [(0, 1, 0), (0, 1, 4 * MINUTE), (0, 1, 8 * MINUTE), (0, 2, MINUTE), (1, 1, MINUTE), (1, 1, 20 * MINUTE)];
        // The first loses its middle and is two; the second goes; the third stays; one of another subject comes.
        let after = [(0, 1, 0), (0, 1, 8 * MINUTE), (1, 1, MINUTE), (1, 1, 20 * MINUTE), (1, 3, 2 * MINUTE)];
        let difference = difference(&set, &before, &after);
        let told = difference.differing();
        let told: Vec<_> =
            told.iter().map(|told| (told.change, told.rule.name.as_str(), told.alert.first, told.events)).collect();
        let expected = [
            (Change::Changed, "a", 0, [3, 2]),
            (Change::Silenced, "a", MINUTE, [1, 0]),
            (Change::Opened, "b", 2 * MINUTE, [0, 1]),
        ];
        assert_eq!(told, expected);
        let counts = difference.counts();
        let counts: Vec<_> =
            counts.iter().map(|c| (c.rule.as_str(), c.before, c.after, c.opened, c.silenced, c.changed)).collect();
        assert_eq!(counts, [("a", 2, 2, 0, 1, 1), ("b", 2, 3, 1, 0, 0)]);
    }

    /// Alerts as a plain walk over sorted hits makes them: rule, subject, first, last, events.
    fn walked(hits: &Hits) -> Vec<(usize, u128, i64, i64, u64)> {
        let mut alerts: Vec<(usize, u128, i64, i64, u64)> = Vec::new();
        for (rule, subject, time) in hits {
            match alerts.last_mut() {
                Some((r, s, _, last, events)) if (*r, *s) == (*rule, *subject) && time - *last <= 5 * MINUTE => {
                    (*last, *events) = (*time, *events + 1);
                }
                _ => alerts.push((*rule, *subject, *time, *time, 1)),
            }
        }
        alerts
    }

    #[test]
    fn random_hits_in_any_order_are_what_a_plain_walk_finds() {
        let set = rules();
        let mut random = Random(11);
        for _ in 0..300 {
            let mut sides: [Hits; 2] = Default::default();
            for _ in 0..random.below(60) {
                let hit = (random.below(2) as usize, u128::from(random.below(3)), random.below(90) as i64 * MINUTE);
                let where_to = random.below(4);
                if where_to != 0 {
                    sides[0].insert(hit);
                }
                if where_to != 1 {
                    sides[1].insert(hit);
                }
            }
            let shuffled = sides.clone().map(|hits| {
                let mut hits: Vec<_> = hits.into_iter().map(|hit| (random.next(), hit)).collect();
                hits.sort_unstable();
                hits.into_iter().map(|(_, hit)| hit).collect::<Vec<_>>()
            });
            let difference = difference(&set, &shuffled[0], &shuffled[1]);
            let walks = sides.each_ref().map(walked);
            for (side, walk) in walks.iter().enumerate() {
                let mut kept: Vec<_> = Vec::new();
                for ((rule, subject), sides) in &difference.alerts {
                    let rule = usize::from(rule == "b");
                    kept.extend(sides[side].iter().map(|a| (rule, *subject, a.first, a.last, a.events)));
                }
                kept.sort_unstable();
                assert_eq!(kept, *walk);
            }
            // An alert opens or falls silent if no alert of the other side shares a moment with it.
            for (change, own, others) in [(Change::Silenced, &walks[0], &walks[1]), (Change::Opened, &walks[1], &walks[0])] {
                let alone = own.iter().filter(|a| !others.iter().any(|b| (a.0, a.1) == (b.0, b.1) && a.2 <= b.3 && b.2 <= a.3));
                let mut alone: Vec<_> = alone.map(|a| (a.2, usize::from(a.0 == 1), a.3)).collect();
                alone.sort_unstable();
                let told = difference.differing();
                let told = told.iter().filter(|told| told.change == change);
                let mut told: Vec<_> = told.map(|t| (t.alert.first, usize::from(t.rule.name == "b"), t.last)).collect();
                told.sort_unstable();
                assert_eq!(told, alone, "{change:?}");
            }
            // Nothing differs where both have the same.
            let same = self::difference(&set, &shuffled[0], &sides[0].iter().copied().collect::<Vec<_>>());
            assert_eq!(same.differing(), []);
        }
    }
}
