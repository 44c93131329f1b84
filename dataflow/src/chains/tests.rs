//! Chains against a plain search over the whole set of events: whatever the order, the parts and the copies in which they come, over a save and a
//! load in the middle.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::compiled::ChainRule;
use super::hit::{ChainHit, Hit, HitSource, Moment};
use super::key::ChainState;
use super::shape::{NANOS_PER_MS, Shape};
use super::spot::route;
use super::state::{Chains, RulesAt};
use crate::checkpoint::{Share, State};
use crate::connections::Place;
use crate::expr::Counters;
use crate::packed::Bytes;

const RETENTION_MS: u64 = 40;
const SPAN_MS: u64 = 25;
const BASE_MS: u64 = 1_795_000_000_000;

/// An event of some key: milliseconds, what it is.
#[derive(Debug, Clone, Copy)]
struct Seen {
    key: u8,
    at_ms: u64,
    id: u8,
    bits: u32,
}

fn rule(text: &str) -> Arc<ChainRule> {
    let sql = format!("CREATE RULE r AS SEQUENCE BY host WITH MAXSPAN INTERVAL '25 milliseconds' {text}");
    let rule = weir_plan::Rule::parse(&sql, &crate::schema_of(weir_schema::EVENTS)).unwrap();
    Arc::new(ChainRule::compile(&rule, &sql, 0, &Arc::<Counters>::default()).unwrap())
}

fn key(rule: &ChainRule, key: u8) -> Bytes {
    let columns = ["t".to_owned(), format!("h{key}")].map(|text| {
        let values: arrow::array::DictionaryArray<arrow::datatypes::UInt32Type> = std::iter::once(text.as_str()).collect();
        Arc::new(values) as arrow::array::ArrayRef
    });
    rule.codec.encode(&columns, 1).row(0).into()
}

fn hit(rule: &ChainRule, seen: &Seen) -> ChainHit {
    let place = Arc::new(Place::new("t".into(), "r".into(), format!("h{}", seen.key).into()));
    let source = Arc::new(HitSource { place, app: None, container_id: None, process_id: None, lost: 0 });
    let key = key(rule, seen.key);
    let at = (((BASE_MS + seen.at_ms) * 1_000_000).cast_signed(), [seen.id; 16]);
    let route = route(rule.version, &key);
    ChainHit { route, rule: rule.version, key, hit: Hit { at, bits: seen.bits, source } }
}

/// By the definition, of one key's events in order.
fn search(shape: &Shape, events: &[(Moment, u32)]) -> Vec<Vec<Moment>> {
    let has = |bits: u32, bit: usize| bits >> bit & 1 == 1;
    let mut found: Vec<Vec<Moment>> = vec![];
    for (first, bits) in events.iter().filter(|(_, bits)| has(*bits, 0)) {
        let _ = bits;
        if !shape.overlap && found.last().is_some_and(|chain| *first <= chain[chain.len() - 1]) {
            continue;
        }
        let mut chain = vec![*first];
        for stage in 1..shape.stages {
            let last = chain[stage - 1];
            let Some((next, _)) = events.iter().find(|(at, bits)| *at > last && has(*bits, stage)) else { break };
            chain.push(*next);
        }
        let last = chain[chain.len() - 1];
        let in_span = |at: &Moment| at.0 - first.0 < shape.span;
        let broken = |(bit, after): (usize, &usize)| {
            let from = chain[after - 1];
            events.iter().any(|(at, bits)| {
                let before = chain.get(*after).map_or_else(|| in_span(at), |next| at < next);
                has(*bits, shape.stages + bit) && *at > from && before
            })
        };
        let until = |(at, bits): &(Moment, u32)| has(*bits, shape.stages + shape.absent.len()) && at > first && *at < last;
        if chain.len() == shape.stages
            && in_span(&last)
            && !shape.absent.iter().enumerate().any(broken)
            && !(shape.has_until && events.iter().any(until))
        {
            found.push(chain);
        }
    }
    found
}

type Rows = BTreeMap<(Bytes, Vec<Moment>), &'static str>;

fn shown(parts: &[Chains]) -> Rows {
    let chains =
        parts.iter().flat_map(|part| part.keys.iter().flat_map(|(key, known)| known.chains.values().map(move |c| (key, c))));
    let told = chains.filter(|(_, chain)| chain.state != ChainState::Waiting);
    told.map(|((_, key), chain)| {
        let state = match chain.state {
            ChainState::Settled => "settled",
            ChainState::Withdrawn => "withdrawn",
            _ => "provisional",
        };
        ((key.clone(), chain.events.iter().map(|event| event.at).collect()), state)
    })
    .collect()
}

const RULES: [&str; 8] = [
    "OVERLAP [pid = 1]",
    "[pid = 1] ![pid = 4] UNTIL [pid = 5]",
    "OVERLAP [pid = 1] [pid = 2] [pid = 3]",
    "[pid = 1] [pid = 2]",
    "[pid = 1] ![pid = 4] [pid = 2] [pid = 3] UNTIL [pid = 5]",
    "FINAL [pid = 1] [pid = 2] ![pid = 4]",
    "OVERLAP [pid = 1] [pid = 2] ![pid = 4] UNTIL [pid = 5]",
    "FINAL OVERLAP [pid = 1] [pid = 2] ![pid = 4] [pid = 3]",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn chains_are_those_of_the_set(
        seen in prop::collection::vec((0_u8..2, 0_u64..120, 0_u8..3, 1_u32..32), 1..50),
        delays in prop::collection::vec((0_u64..=RETENTION_MS, 0_usize..3), 50),
        kind in 0_usize..8,
        (workers, later_workers, cut) in (1_usize..4, 1_usize..4, 0_u64..160),
    ) {
        let rule = rule(RULES[kind]);
        let bits = rule.shape.stages + rule.shape.absent.len() + usize::from(rule.shape.has_until);
        let mut set: BTreeMap<(u8, Moment), u32> = BTreeMap::new();
        let mut arrivals: BTreeMap<u64, Vec<ChainHit>> = BTreeMap::new();
        for ((key, at_ms, id, mark), (delay, copies)) in seen.into_iter().zip(delays) {
            let seen = Seen { key, at_ms, id, bits: mark & ((1 << bits) - 1) };
            let hit = hit(&rule, &seen);
            if seen.bits == 0 || set.contains_key(&(key, hit.hit.at)) {
                continue;
            }
            set.insert((key, hit.hit.at), seen.bits);
            for copy in 0..=copies as u64 {
                let late = (delay + copy * 7).min(RETENTION_MS);
                arrivals.entry(BASE_MS + at_ms + late).or_default().push(hit.clone());
            }
        }
        let mut parts: Vec<Chains> = (0..workers).map(|_| Chains::new(RETENTION_MS, 1_000)).collect();
        let rules = [Arc::clone(&rule)];
        let at = RulesAt { now: &rules, before: None };
        let mut now: BTreeMap<(u8, Moment), u32> = BTreeMap::new();
        for tick in BASE_MS..BASE_MS + 260 {
            let hits = arrivals.remove(&tick).unwrap_or_default();
            for hit in &hits {
                let host = hit.hit.source.place.host.trim_start_matches('h').parse().unwrap();
                now.insert((host, hit.hit.at), hit.hit.bits);
            }
            let peers = parts.len() as u64;
            for (index, part) in parts.iter_mut().enumerate() {
                let ours: Vec<ChainHit> = hits.iter().filter(|hit| hit.route % peers == index as u64).cloned().collect();
                part.advance(tick, ours, &at);
            }
            if tick == BASE_MS + cut {
                let saved: Vec<Vec<u8>> = parts.iter().map(|part| crate::checkpoint::shared::saving(|| part.save())).collect();
                parts = (0..later_workers).map(|index| {
                    let mut part = Chains::new(RETENTION_MS, 1_000);
                    let read = |bytes: &Vec<u8>| crate::checkpoint::shared::loading(|| postcard::from_bytes(bytes).unwrap());
                    part.load(saved.iter().map(read).collect(), Share { index, peers: later_workers });
                    part
                }).collect();
            }
            // What is there of the set up to now, at every tick.
            let mut expected = Rows::new();
            for host in 0..2 {
                let events: Vec<(Moment, u32)> = now.iter().filter(|((k, _), _)| *k == host).map(|((_, at), b)| (*at, *b)).collect();
                for chain in search(&rule.shape, &events) {
                    let (first, last) = (chain[0].0 / NANOS_PER_MS, chain[chain.len() - 1].0 / NANOS_PER_MS);
                    let end = if rule.shape.waits() { first + SPAN_MS as i64 } else { last };
                    let settled = tick as i64 > end + RETENTION_MS as i64;
                    let told = if rule.shape.is_final { settled } else { !rule.shape.waits() || tick as i64 > end };
                    if told {
                        expected.insert((key(&rule, host), chain), if settled { "settled" } else { "provisional" });
                    }
                }
            }
            let mut shown = shown(&parts);
            shown.retain(|_, state| *state != "withdrawn" || rule.shape.is_final);
            prop_assert_eq!(&shown, &expected, "at tick {}", tick - BASE_MS);
        }
        let hits: usize = parts.iter().flat_map(|part| part.keys.values()).map(|known| known.hits.len()).sum();
        prop_assert_eq!(hits, 0, "what no chain can be made of is let go");
        let counted: u64 = parts.iter().map(|part| part.counts()[1] + part.counts()[2]).sum();
        prop_assert_eq!(counted, shown(&parts).len() as u64);
        prop_assert_eq!(shown(&parts).values().filter(|state| **state != "settled").count(), 0);
    }
}

#[test]
fn a_flood_of_one_stage_leaves_room_for_the_others_and_is_told() {
    let rule = rule("[pid = 1] [pid = 2]");
    let rules = [Arc::clone(&rule)];
    let at = RulesAt { now: &rules, before: None };
    let mut chains = Chains::new(RETENTION_MS, 16);
    let flood: Vec<ChainHit> = (0..100).map(|id| hit(&rule, &Seen { key: 0, at_ms: 1, id, bits: 1 })).collect();
    let told = chains.advance(BASE_MS + 5, flood, &at);
    assert_eq!(told.losses.map(|losses| (losses.len(), losses.diffs[0])), Some((1, 1)));
    let told = chains.advance(BASE_MS + 6, vec![hit(&rule, &Seen { key: 0, at_ms: 3, id: 1, bits: 2 })], &at);
    assert_eq!((told.alerts.unwrap().len(), told.rows[0].delta.len()), (1, 1));
}

#[test]
fn alerts_of_a_rule_that_is_gone_are_withdrawn() {
    let rule = rule("[pid = 1] [pid = 2]");
    let rules = [Arc::clone(&rule)];
    let mut chains = Chains::new(RETENTION_MS, 16);
    let hits = [(1, 1), (2, 2)].map(|(at_ms, bits)| hit(&rule, &Seen { key: 0, at_ms, id: 1, bits }));
    chains.advance(BASE_MS + 5, hits.to_vec(), &RulesAt { now: &rules, before: None });
    let told = chains.advance(BASE_MS + 6, vec![], &RulesAt { now: &[], before: Some(&rules) });
    assert_eq!(told.alerts.map(|alerts| alerts.diffs), Some(vec![-1, 1]));
    assert!(told.rows.is_empty() && chains.keys.is_empty());
    let day = *chains.withdrawn.keys().next().unwrap();
    let told = chains.advance(day, vec![], &RulesAt { now: &[], before: None });
    assert_eq!(told.alerts.map(|alerts| alerts.diffs), Some(vec![-1]));
}
