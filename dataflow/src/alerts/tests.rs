//! Groups against a plain recount: hits in any order and in any parts are the same alerts, also over a save and a load.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::compiled::RuleHead;
use super::group::{Group, HostGroups, Moment, Subject};
use super::groups::Groups;
use super::{EVIDENCE_MAX, KEEP_MS, WINDOW_MS};
use crate::checkpoint::{Share, State};
use crate::connections::Place;

const RETENTION_MS: u64 = 600_000;
const BASE_MS: u64 = 1_795_000_000_000;

#[derive(Debug, Clone, Copy)]
struct Hit {
    rule: u64,
    subject: u128,
    at_ms: u64,
    id: u8,
}

fn head(rule: u64) -> Arc<RuleHead> {
    let text = |text: &str| text.into();
    let (name, severity, tactics, techniques) = (format!("r{rule}").into(), text("error"), text("[]"), text("[]"));
    Arc::new(RuleHead { id: rule, version: 1, name, severity, tactics, techniques })
}

fn moment(hit: &Hit) -> Moment {
    (((BASE_MS + hit.at_ms) * 1_000_000) as i64, [hit.id; 16])
}

fn group(hit: &Hit) -> HostGroups {
    let place = Arc::new(Place::new("t".into(), "r".into(), format!("h{}", hit.subject % 2).into()));
    let (host_key, first) = (place.host_key, moment(hit));
    let summary = format!("{hit:?}").into();
    let subject = Subject { place, key: hit.subject, app: None, container_id: None, process_id: None, summary };
    let evidence = vec![first];
    let group = Group {
        rule: head(hit.rule),
        subject,
        first,
        last: first.0,
        count: 1,
        evidence,
        lost: 0,
        closed_through: 0,
        withdrawn: false,
    };
    HostGroups { host_key, groups: vec![group] }
}

/// Rule, subject, first, last, count, evidence, summary.
type Plain = (u64, u128, Moment, i64, u64, Vec<Moment>, String);

/// Sorts the hits of each rule and subject and cuts where the gap is too long.
fn recount(hits: &[Hit]) -> Vec<Plain> {
    let mut by_key: BTreeMap<(u64, u128), Vec<&Hit>> = BTreeMap::new();
    hits.iter().for_each(|hit| by_key.entry((hit.rule, hit.subject)).or_default().push(hit));
    let mut alerts = Vec::new();
    for ((rule, subject), mut hits) in by_key {
        hits.sort_by_key(|hit| moment(hit));
        for run in hits.chunk_by(|a, b| b.at_ms - a.at_ms <= WINDOW_MS) {
            let moments: Vec<Moment> = run.iter().map(|hit| moment(hit)).collect();
            let evidence = moments.iter().take(EVIDENCE_MAX).copied().collect();
            let last = moments[moments.len() - 1].0;
            alerts.push((rule, subject, moments[0], last, moments.len() as u64, evidence, format!("{:?}", run[0])));
        }
    }
    alerts
}

fn held(groups: &Groups) -> Vec<Plain> {
    let all = groups.hosts.values().flat_map(|host| host.groups.values().flatten());
    let mut held: Vec<Plain> = all
        .map(|group| {
            let Group { rule, subject, first, last, count, evidence, .. } = group.clone();
            (rule.id, subject.key, first, last, count, evidence, subject.summary.to_string())
        })
        .collect();
    held.sort();
    held
}

fn hits() -> impl Strategy<Value = Vec<Hit>> {
    let one = (0..3_u64, 0..4_u128, 0..4_000_u64);
    prop::collection::vec(one, 1..120).prop_map(|all| {
        let hit = |(id, (rule, subject, at)): (usize, (u64, u128, u64))| Hit { rule, subject, at_ms: at * 1_000, id: id as u8 };
        all.into_iter().enumerate().map(hit).collect()
    })
}

proptest! {
    #[test]
    fn any_order_and_any_parts_are_the_same_alerts(hits in hits(), seed in any::<u64>(), ticks in 1..20_u64) {
        let mut expected = recount(&hits);
        expected.sort();
        let mut order: Vec<&Hit> = hits.iter().collect();
        order.sort_by_key(|hit| xxhash_rust::xxh3::xxh3_64_with_seed(&[hit.id], seed));
        let mut groups = Groups::new(RETENTION_MS);
        let mut shown: BTreeMap<String, i64> = BTreeMap::new();
        for (number, part) in order.chunks(order.len().div_ceil(ticks as usize)).enumerate() {
            let told = part.iter().map(|hit| group(hit)).collect();
            if let Some(delta) = groups.advance(BASE_MS + number as u64, told, None) {
                let text = arrow::util::pretty::pretty_format_batches(std::slice::from_ref(&delta.rows)).unwrap().to_string();
                let lines = text.lines().filter(|line| line.starts_with('|')).skip(1);
                // How wide a column is differs from batch to batch.
                let squeeze = |line: &str| line.split('|').map(str::trim).collect::<Vec<_>>().join("|");
                lines.zip(&delta.diffs).for_each(|(line, diff)| *shown.entry(squeeze(line)).or_default() += diff);
            }
            // What was saved goes on as if nothing had been.
            let saved = postcard::from_bytes(&groups.save()).unwrap();
            groups = Groups::new(RETENTION_MS);
            groups.load(vec![saved], Share { index: 0, peers: 1 });
        }
        prop_assert_eq!(held(&groups), expected.clone());
        shown.retain(|_, count| *count != 0);
        prop_assert!(shown.values().all(|count| *count == 1));
        prop_assert_eq!(shown.len(), expected.len());
        // After their time nothing is left, and nothing is shown.
        while let Some(due) = groups.next_due() {
            prop_assert!(due >= BASE_MS + KEEP_MS);
            groups.advance(due, vec![], None);
        }
        prop_assert_eq!(groups.len(), 0);
        prop_assert!(groups.hosts.is_empty());
    }
}

#[test]
fn a_host_with_too_many_alerts_lets_the_settled_go_first() {
    let mut groups = Groups::new(RETENTION_MS);
    let many = super::PER_HOST_MAX as u64;
    let hit = |number: u64, at_ms: u64| {
        let mut told = group(&Hit { rule: number, subject: 0, at_ms, id: 1 });
        told.groups[0].rule = head(number);
        told
    };
    groups.advance(BASE_MS, (0..many).map(|number| hit(number, 0)).collect(), None);
    assert_eq!((groups.len() as u64, groups.evicted()), (many, 0));
    // Nothing is settled: the new one finds no room. Later it does.
    groups.advance(BASE_MS + 1, vec![hit(many, 1)], None);
    assert_eq!((groups.len() as u64, groups.evicted()), (many, 1));
    let later = RETENTION_MS + WINDOW_MS + 1;
    groups.advance(BASE_MS + later, vec![hit(many, later)], None);
    assert_eq!((groups.len() as u64, groups.evicted()), (many, 2));
    assert!(held(&groups).iter().any(|alert| alert.0 == many));
}
