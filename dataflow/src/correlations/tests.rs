//! Correlations against a plain search over the whole set of events at every tick: whatever the order, the parts and the copies in which they
//! come, on any number of workers, over a save and a load in the middle; correlations of correlations too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use weir_rules::{Comparison, Correlation, InputOf, Measure, RuleSet};
use xxhash_rust::xxh3::xxh3_64;

use super::LEVELS;
use super::compiled::CorrelationRule;
use super::hit::{CorrelationHit, Counted, Hit, group_bytes};
use super::spot::route;
use super::state::{Correlations, RulesAt};
use crate::alerts::EVIDENCE_MAX;
use crate::checkpoint::{Share, State};
use crate::connections::Place;
use crate::hits::{HitSource, Moment, alert_id, nanos};

const RETENTION_MS: u64 = 1_500;
const BASE_MS: u64 = 1_795_000_000_000;
const TICK_MS: u64 = 100;

const RULES: &str = "
title: B0
name: b0
logsource: {service: weir}
detection: {selection: {kind: exec}, condition: selection}
---
title: B1
name: b1
logsource: {service: weir}
detection: {selection: {kind: open}, condition: selection}
---
title: B2
name: b2
logsource: {service: weir}
detection: {selection: {kind: connect}, condition: selection}
";

/// Correlations: name, type, rules, condition, all of one second by host.
const KINDS: [&[(&str, &str, &str, &str)]; 11] = [
    &[("c", "event_count", "b0, b1", "gte: 3")],
    &[("c", "value_count", "b0, b1, b2", "field: dst_port, gt: 2")],
    &[("c", "value_sum", "b0, b1", "field: bytes_sent, gte: 7")],
    &[("c", "value_avg", "b0, b1", "field: bytes_sent, lt: 2")],
    &[("c", "value_percentile", "b0, b1, b2", "field: bytes_sent, percentile: 75, gte: 4")],
    &[("c", "temporal", "b0, b1, b2", "gte: 3")],
    &[("c", "temporal_ordered", "b2, b0, b1", "gte: 3")],
    &[("c", "event_count", "b0", "gt: 1, lte: 3")],
    &[("c", "event_count", "b0, b1", "gte: 2"), ("d", "temporal_ordered", "c, b2", "gte: 2")],
    &[("c", "event_count", "b0", "lte: 2"), ("d", "event_count", "c, b1", "neq: 2"), ("e", "event_count", "d", "gte: 1")],
    &[
        ("c", "value_count", "b0, b1", "field: dst_port, gte: 2"),
        ("d", "temporal", "b0, c", "gte: 2"),
        ("e", "event_count", "c, d", "gt: 2"),
    ],
];

fn load(kind: usize) -> (Arc<RuleSet>, Vec<Arc<CorrelationRule>>) {
    let one = |(name, of, rules, condition): &(&str, &str, &str, &str)| {
        format!(
            "---\ntitle: {name}\nname: {name}\ncorrelation: {{type: {of}, rules: [{rules}], group-by: [host], timespan: 1s, generate: true, condition: {{{condition}}}}}\n"
        )
    };
    let text: String = std::iter::once(RULES.to_owned()).chain(KINDS[kind].iter().map(one)).collect();
    let set = Arc::new(RuleSet::load([("r.yml", text.as_str())]));
    assert!(set.errors.is_empty(), "{:?}", set.errors);
    let rules = CorrelationRule::all(&set).into_iter().flatten().collect();
    (set, rules)
}

/// An event: on which host, of which rules, with which value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    host: u8,
    at: Moment,
    rules: u32,
    value: i64,
}

fn source(host: u8) -> Arc<HitSource> {
    let place = Arc::new(Place::new("t".into(), "r".into(), format!("h{host}").into()));
    Arc::new(HitSource { place, app: None, container_id: None, process_id: None, lost: 0 })
}

/// As which of a correlation's rules an event counts.
fn inputs(says: &Correlation, seen: &Seen) -> u32 {
    let is_of = |input: InputOf| matches!(input, InputOf::Rule(rule) if seen.rules >> rule & 1 == 1);
    says.inputs.iter().enumerate().filter(|(_, input)| is_of(input.of)).fold(0, |bits, (bit, _)| bits | 1 << bit)
}

fn hits(rules: &[Arc<CorrelationRule>], seen: &Seen) -> Vec<CorrelationHit> {
    let group = group_bytes("t", &[format!("h{}", seen.host)]);
    let of_rule = |rule: &Arc<CorrelationRule>| {
        let says = rule.says();
        let datum = match says.shape.measure {
            Measure::Values => Some(Counted::Digest(seen.value.cast_unsigned().into())),
            measure => measure.reads_numbers().then_some(Counted::Number(seen.value)),
        };
        let inputs = inputs(says, seen);
        let hit = Hit { at: seen.at, inputs, datum, source: source(seen.host), evidence: Vec::new() };
        let (route, level, version) = (route(says.version, &group), says.level as u8, says.version);
        (inputs != 0).then(|| CorrelationHit { route, level, version, group: group.clone(), hit, diff: 1 })
    };
    rules.iter().filter_map(of_rule).collect()
}

/// A hit as the search sees it: rules, value, events.
type Plain = (u32, i64, Vec<[u8; 16]>);

/// A match: first, met, last, hits, the first events, those up to the moment it was met.
type Found = (Moment, Moment, i64, u64, Vec<[u8; 16]>, Vec<[u8; 16]>);

fn meets(says: &Correlation, window: &[(&Moment, &Plain)]) -> bool {
    let mut values: Vec<i64> = window.iter().map(|(_, (_, value, _))| *value).collect();
    values.sort_unstable();
    let has = |hit: &(&Moment, &Plain), bit: usize| hit.1.0 >> bit & 1 == 1;
    let compare = |numerator: i64, denominator: i64| {
        says.shape.condition.0.iter().all(|(how, number)| {
            let other = number * denominator;
            match how {
                Comparison::Over => numerator > other,
                Comparison::AtLeast => numerator >= other,
                Comparison::Under => numerator < other,
                Comparison::AtMost => numerator <= other,
                Comparison::Equal => numerator == other,
                Comparison::Other => numerator != other,
            }
        })
    };
    match says.shape.measure {
        Measure::Events => compare(window.len() as i64, 1),
        Measure::Values => compare(values.iter().collect::<BTreeSet<_>>().len() as i64, 1),
        Measure::Sum => compare(values.iter().sum(), 1),
        Measure::Average => compare(values.iter().sum(), values.len() as i64),
        Measure::Percentile(percentile) => {
            let below = |value: i64| values.iter().filter(|other| **other <= value).count() * 100;
            let ranked = values.iter().find(|value| below(**value) >= values.len() * usize::from(percentile));
            compare(*ranked.unwrap(), 1)
        }
        Measure::Rules => compare((0..says.inputs.len()).filter(|bit| window.iter().any(|hit| has(hit, *bit))).count() as i64, 1),
        Measure::Ordered => {
            let mut rest = window;
            has(&window[0], 0)
                && (0..says.inputs.len()).all(|bit| {
                    let Some(at) = rest.iter().position(|hit| has(hit, bit)) else { return false };
                    rest = &rest[at + 1..];
                    true
                })
        }
    }
}

/// The matches of a group by the definition.
fn search(says: &Correlation, hits: &BTreeMap<Moment, Plain>, tick: u64) -> Vec<Found> {
    let all: Vec<(&Moment, &Plain)> = hits.iter().collect();
    let mut found: Vec<(usize, usize, usize)> = Vec::new();
    for (at, (moment, _)) in all.iter().enumerate() {
        let until = moment.0 + says.shape.span;
        let len = all[at..].iter().take_while(|(other, _)| other.0 < until).count();
        let judged = !says.shape.waits() || until < nanos(tick);
        if judged && meets(says, &all[at..at + len]) {
            match found.last_mut() {
                Some((_, end, _)) if at < *end => *end = at + len,
                _ => {
                    let met = (1..=len)
                        .find(|end| says.shape.waits() && *end == len || !says.shape.waits() && meets(says, &all[at..at + end]));
                    found.push((at, at + len, at + met.unwrap() - 1));
                }
            }
        }
    }
    let one = |(at, end, met): (usize, usize, usize)| {
        let events = |end: usize| all[at..end].iter().flat_map(|(_, plain)| plain.2.clone()).take(EVIDENCE_MAX).collect();
        (*all[at].0, *all[met].0, all[end - 1].0.0, (end - at) as u64, events(end), events(met + 1))
    };
    found.into_iter().map(one).collect()
}

/// All matches of a set: by correlation and host.
fn expected(rules: &[Arc<CorrelationRule>], seen: &[Seen], tick: u64) -> BTreeSet<(String, u8, Found)> {
    let mut all: BTreeSet<(String, u8, Found)> = BTreeSet::new();
    for (host, level) in (0..2).flat_map(|host| (0..LEVELS).map(move |level| (host, level))) {
        for rule in rules.iter().filter(|rule| rule.says().level == level) {
            let says = rule.says();
            let mut hits: BTreeMap<Moment, Plain> = BTreeMap::new();
            for one in seen.iter().filter(|one| one.host == host && inputs(says, one) != 0) {
                hits.insert(one.at, (inputs(says, one), one.value, vec![one.at.1]));
            }
            for (bit, input) in says.inputs.iter().enumerate() {
                let InputOf::Correlation(_) = input.of else { continue };
                for (_, _, (first, met, .., events)) in all.iter().filter(|(name, of, _)| *name == input.name && *of == host) {
                    let group = xxh3_64(&group_bytes("t", &[format!("h{host}")]));
                    let id = alert_id(xxh3_64(input.name.as_bytes()), group, &first.1).to_be_bytes();
                    hits.insert((met.0, id), (1 << bit, 0, events.clone()));
                }
            }
            all.extend(search(says, &hits, tick).into_iter().map(|found| (says.name.clone(), host, found)));
        }
    }
    all
}

type Worker = [Correlations; LEVELS];

fn worker() -> Worker {
    std::array::from_fn(|_| Correlations::new(RETENTION_MS, 1_000))
}

/// One tick on all workers, level by level. What they told of alerts, summed up.
fn advance(workers: &mut [Worker], rules: &[Arc<CorrelationRule>], tick: u64, hits: Vec<CorrelationHit>) {
    let (peers, mut rest) = (workers.len() as u64, hits);
    for level in 0..LEVELS {
        let now: Vec<_> = rules.iter().filter(|rule| rule.says().level == level).cloned().collect();
        for (index, worker) in workers.iter_mut().enumerate() {
            let is_ours = |hit: &CorrelationHit| usize::from(hit.level) == level && hit.route % peers == index as u64;
            let ours: Vec<CorrelationHit> = rest.iter().filter(|hit| is_ours(hit)).cloned().collect();
            let told = worker[level].advance(tick, ours, &RulesAt { now: &now, before: None });
            rest.extend(told.fed);
        }
    }
}

fn shown(workers: &[Worker], rules: &[Arc<CorrelationRule>]) -> BTreeSet<(String, u8, Found)> {
    let groups = workers.iter().flatten().flat_map(|level| &level.groups);
    let told = groups.flat_map(|(key, group)| group.shown.values().map(move |shown| (key, shown)));
    told.filter(|(_, shown)| !shown.withdrawn)
        .map(|((version, _), shown)| {
            let says = rules.iter().find(|rule| rule.version == *version).unwrap().says();
            let run = &shown.run;
            let host = run.source.place.host.trim_start_matches('h').parse().unwrap();
            let met = run.evidence[..run.met_evidence].to_vec();
            (says.name.clone(), host, (run.first, run.met, run.last, run.count, run.evidence.clone(), met))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn matches_are_those_of_the_set(
        seen in prop::collection::vec((0_u8..2, 0_u64..5_000, 0_u8..3, 1_u32..8, 0_i64..6), 1..60),
        delays in prop::collection::vec((0_u64..=RETENTION_MS - TICK_MS, 0_usize..3), 60),
        kind in 0_usize..KINDS.len(),
        (workers, later_workers, cut) in (1_usize..4, 1_usize..4, 0_u64..70),
    ) {
        let (_, rules) = load(kind);
        let mut set: BTreeSet<(u8, Moment)> = BTreeSet::new();
        let mut arrivals: BTreeMap<u64, Vec<Seen>> = BTreeMap::new();
        for ((host, at_ms, id, bits, value), (delay, copies)) in seen.into_iter().zip(delays) {
            // Times stand close together, so that many are equal.
            let at_ms = BASE_MS + at_ms / 50 * 50;
            let one = Seen { host, at: (nanos(at_ms), [id; 16]), rules: bits, value };
            if !set.insert((host, one.at)) {
                continue;
            }
            for copy in 0..=copies as u64 {
                let late = (delay + copy * 300).min(RETENTION_MS - TICK_MS);
                arrivals.entry((at_ms + late).next_multiple_of(TICK_MS)).or_default().push(one);
            }
        }
        let mut parts: Vec<Worker> = (0..workers).map(|_| worker()).collect();
        let mut now: Vec<Seen> = Vec::new();
        for place in 0..180 {
            let tick = BASE_MS + place * TICK_MS;
            let come = arrivals.remove(&tick).unwrap_or_default();
            advance(&mut parts, &rules, tick, come.iter().flat_map(|one| hits(&rules, one)).collect());
            for one in come {
                if !now.contains(&one) {
                    now.push(one);
                }
            }
            if place == cut {
                let save = |worker: &Worker| worker.each_ref().map(|level| crate::checkpoint::shared::saving(|| level.save()));
                let saved: Vec<_> = parts.iter().map(save).collect();
                parts = (0..later_workers).map(|index| {
                    let mut part = worker();
                    for (level, part) in part.iter_mut().enumerate() {
                        let read = |bytes: &[Vec<u8>; LEVELS]| crate::checkpoint::shared::loading(|| postcard::from_bytes(&bytes[level]).unwrap());
                        part.load(saved.iter().map(read).collect(), Share { index, peers: later_workers });
                    }
                    part
                }).collect();
            }
            let (told, wanted) = (shown(&parts, &rules), expected(&rules, &now, tick));
            prop_assert_eq!(&told, &wanted, "kind {} at place {}", kind, place);
        }
        let left: usize = parts.iter().flatten().flat_map(|level| level.groups.values()).map(|group| group.hits.len()).sum();
        let under_way = parts.iter().flatten().flat_map(|level| level.groups.values()).filter(|group| group.under_way.is_some()).count();
        prop_assert_eq!((left, under_way), (0, 0), "what no match can be made of is let go");
        let counted: u64 = parts.iter().flatten().map(|level| level.counts()[1] + level.counts()[2]).sum();
        prop_assert_eq!(counted, shown(&parts, &rules).len() as u64);
    }
}

fn one(host: u8, at_ms: u64, id: u8, rules: u32, value: i64) -> Seen {
    Seen { host, at: (nanos(BASE_MS + at_ms), [id; 16]), rules, value }
}

#[test]
fn a_hot_group_is_capped_and_told() {
    let (_, rules) = load(0);
    let mut state = Correlations::new(RETENTION_MS, 16);
    let flood: Vec<CorrelationHit> = (0..100).flat_map(|id| hits(&rules, &one(0, 1, id, 1, 0))).collect();
    let told = state.advance(BASE_MS + 5, flood, &RulesAt { now: &rules, before: None });
    assert_eq!(told.losses.map(|losses| (losses.len(), losses.diffs[0])), Some((1, 1)));
    assert_eq!((told.alerts.unwrap().len(), state.counts()), (1, [1, 16, 1, 0]));
}

#[test]
fn what_a_late_event_undoes_is_withdrawn_and_shown_until_it_is_settled() {
    // An average below two, which a late high value lifts.
    let (_, rules) = load(3);
    let at = RulesAt { now: &rules, before: None };
    let mut state = Correlations::new(RETENTION_MS, 16);
    let first = state.advance(BASE_MS + 100, hits(&rules, &one(0, 0, 0, 1, 1)), &at);
    assert!(first.alerts.is_none(), "its window is not over");
    let over = state.advance(BASE_MS + 1_001, vec![], &at);
    assert_eq!(over.alerts.map(|alerts| alerts.diffs), Some(vec![1]));
    let undone = state.advance(BASE_MS + 1_400, hits(&rules, &one(0, 10, 1, 1, 9)), &at);
    assert_eq!(undone.alerts.map(|alerts| alerts.diffs), Some(vec![-1, 1]));
    let ticks = (15..60).map(|place| BASE_MS + place * TICK_MS);
    let gone: Vec<Vec<i64>> =
        ticks.filter_map(|tick| state.advance(tick, vec![], &at).alerts).map(|alerts| alerts.diffs).collect();
    assert_eq!(gone, [vec![-1]]);
}

#[test]
fn alerts_of_a_correlation_that_is_gone_are_withdrawn() {
    let (_, rules) = load(0);
    let mut state = Correlations::new(RETENTION_MS, 16);
    let events = (0..3).flat_map(|id| hits(&rules, &one(0, 1, id, 1, 0))).collect();
    state.advance(BASE_MS + 5, events, &RulesAt { now: &rules, before: None });
    let told = state.advance(BASE_MS + 6, vec![], &RulesAt { now: &[], before: Some(&rules) });
    assert_eq!(told.alerts.map(|alerts| alerts.diffs), Some(vec![-1, 1]));
    assert!(state.groups.is_empty());
    let day = *state.withdrawn.keys().next().unwrap();
    let told = state.advance(day, vec![], &RulesAt { now: &[], before: None });
    assert_eq!(told.alerts.map(|alerts| alerts.diffs), Some(vec![-1]));
}
