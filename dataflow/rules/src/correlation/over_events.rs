//! Correlations over events that are all there: a recording, the fixtures of rules. Keeps every hit until the end.

use std::collections::{BTreeMap, BTreeSet};

use super::window::{Datum, Moment, Seen};
use super::{Around, Correlation, Grouped, InputOf};
use crate::set::RuleSet;
use crate::value::FieldSource;

/// Takes hits in any order, and tells of the matches when there are no more.
#[derive(Debug, Default)]
pub struct Correlator {
    /// By correlation and group, tenant first.
    groups: BTreeMap<(usize, Vec<String>), BTreeMap<Moment, Member>>,
    hits: usize,
    /// Hits that found no room.
    pub refused: u64,
}

/// A hit of a group.
#[derive(Debug, Clone)]
struct Member {
    at: Moment,
    inputs: u32,
    datum: Option<Datum>,
    evidence: Vec<usize>,
}

/// A match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Its place in `RuleSet::correlations`.
    pub correlation: usize,
    /// The tenant, and the values of the group.
    pub keys: Vec<String>,
    /// Times of its first and last hits, in nanoseconds.
    pub times: (i64, i64),
    /// Hits of it.
    pub count: usize,
    /// The numbers of its events as they were given, in order.
    pub events: Vec<usize>,
}

impl Seen for Member {
    fn at(&self) -> Moment {
        self.at
    }

    fn inputs(&self) -> u32 {
        self.inputs
    }

    fn datum(&self) -> Option<Datum> {
        self.datum
    }
}

/// An event that rules match.
#[derive(Debug, Clone, Copy)]
pub struct CorrelationHit<'a> {
    /// Its tenant.
    pub tenant: &'a str,
    /// Nanoseconds.
    pub time: i64,
    /// A number of its own: events of one time are in its order.
    pub number: usize,
    /// What its fields do not hold.
    pub around: Around<'a>,
}

impl Correlator {
    /// Takes the hits of an event: places in `set.rules`.
    pub fn take(&mut self, set: &RuleSet, hits: &[usize], source: &(impl FieldSource + ?Sized), of: &CorrelationHit<'_>) {
        for hit in hits {
            for (at, input) in set.feeds(InputOf::Rule(*hit)) {
                let correlation = &set.correlations[*at];
                let Some(grouped) = correlation.grouped(*input, source, &of.around) else { continue };
                if self.hits >= HITS_MAX {
                    self.refused += 1;
                    continue;
                }
                let id = (of.number as u128).to_be_bytes();
                self.add((*at, of.tenant), *input, (of.time, id), grouped, vec![of.number]);
            }
        }
    }

    fn add(&mut self, (at, tenant): (usize, &str), input: usize, moment: Moment, grouped: Grouped, evidence: Vec<usize>) {
        let keys = std::iter::once(tenant.to_owned()).chain(grouped.keys).collect();
        let group = self.groups.entry((at, keys)).or_default();
        let member = group.entry(moment).or_insert_with(|| {
            self.hits += 1;
            Member { at: moment, inputs: 0, datum: grouped.datum, evidence }
        });
        member.inputs |= 1 << input;
    }

    /// All matches, those of correlations too that only others refer to; every window is over.
    pub fn finish(mut self, set: &RuleSet) -> Vec<Match> {
        let mut found = Vec::new();
        let levels: BTreeSet<usize> = set.correlations.iter().map(|correlation| correlation.level).collect();
        for level in levels {
            let of_level: Vec<_> = self
                .groups
                .iter()
                .filter(|((at, _), _)| set.correlations[*at].level == level)
                .map(|(key, _)| key.clone())
                .collect();
            for key in of_level {
                let Some(group) = self.groups.remove(&key) else { continue };
                let (at, keys) = key;
                let hits: Vec<Member> = group.into_values().collect();
                for (one, met) in matches(&set.correlations[at], &hits) {
                    let hits = &hits[one];
                    let events = hits.iter().flat_map(|hit| hit.evidence.iter().copied()).collect();
                    let times = (hits[0].at.0, hits[hits.len() - 1].at.0);
                    let id = hits[0].at.1;
                    for (upper, input) in set.feeds(InputOf::Correlation(at)) {
                        let Some(grouped) = set.correlations[*upper].regrouped(*input, &keys[1..]) else { continue };
                        let evidence = hits.iter().take_while(|hit| hit.at <= met).flat_map(|hit| hit.evidence.clone()).collect();
                        self.add((*upper, &keys[0]), *input, (met.0, id), grouped, evidence);
                    }
                    found.push(Match { correlation: at, keys: keys.clone(), times, count: hits.len(), events });
                }
            }
        }
        found
    }
}

type Found = (std::ops::Range<usize>, Moment);

/// The hits of each match, and the moment at which it first met the condition.
fn matches(correlation: &Correlation, hits: &[Member]) -> Vec<Found> {
    let shape = &correlation.shape;
    let anchors = shape.anchors(hits, i64::MAX);
    let found = shape.stretches(hits, &anchors, None).into_iter();
    found.filter_map(|one| Some((one.range, hits[shape.met(hits, one.anchors?.0)].at))).collect()
}

/// Hits kept at once, some hundred bytes each; more are counted.
const HITS_MAX: usize = 4_000_000;
