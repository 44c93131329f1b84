//! A match as it grows: a sum over its hits in their order, of fixed size.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_rules::{Shape, Stretch};
use weir_schema::Text;

use super::PLACES_MAX;
use super::hit::Hit;
use crate::alerts::EVIDENCE_MAX;
use crate::checkpoint::shared;
use crate::hits::{HitSource, Moment};

/// Hits that are one match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) first: Moment,
    /// The hit with which its first window met the condition.
    pub(crate) met: Moment,
    pub(crate) last: i64,
    pub(crate) last_anchor: i64,
    pub(crate) count: u64,
    /// Per rule.
    pub(crate) stages: Vec<Stage>,
    /// The earliest events.
    pub(crate) evidence: Vec<[u8; 16]>,
    /// How many of them came up to the moment at which it was met.
    pub(crate) met_evidence: usize,
    /// Of the first hit.
    #[serde(with = "shared")]
    pub(crate) source: Arc<HitSource>,
    pub(crate) hosts: Vec<Text>,
    pub(crate) regions: Vec<Text>,
    pub(crate) lost: u64,
}

/// What a match has of one rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stage {
    pub(crate) count: u64,
    /// Its first hit, and on which host.
    pub(crate) first: Option<([u8; 16], Text)>,
}

impl Run {
    /// The matches among the first hits of a group; windows reach beyond them. `under_way`: what was begun before.
    pub(crate) fn of_part(shape: &Shape, hits: &[Hit], anchors: &[bool], part: usize, under_way: Option<&Self>) -> Vec<Self> {
        let stretches = shape.stretches(&hits[..part], &anchors[..part], under_way.map(|run| run.last_anchor));
        let one = |Stretch { range, anchors: own, continues }: Stretch| {
            let mut run = match (under_way.filter(|_| continues), own) {
                (Some(run), _) => run.clone(),
                (None, Some((first, _))) => Self::begin(shape, hits, first),
                (None, None) => return None,
            };
            run.extend(hits, range);
            if let Some((_, last)) = own {
                run.last_anchor = hits[last].at.0;
            }
            Some(run)
        };
        stretches.into_iter().filter_map(one).collect()
    }

    fn begin(shape: &Shape, hits: &[Hit], first: usize) -> Self {
        let hit = &hits[first];
        Self {
            first: hit.at,
            met: hits[shape.met(hits, first)].at,
            last: hit.at.0,
            last_anchor: hit.at.0,
            count: 0,
            stages: vec![Stage::default(); shape.inputs],
            evidence: Vec::new(),
            met_evidence: 0,
            source: Arc::clone(&hit.source),
            hosts: Vec::new(),
            regions: Vec::new(),
            lost: 0,
        }
    }

    fn extend(&mut self, hits: &[Hit], range: Range<usize>) {
        for hit in &hits[range] {
            self.count += 1;
            self.last = self.last.max(hit.at.0);
            self.lost = self.lost.max(hit.source.lost);
            let place = &hit.source.place;
            let own = [hit.at.1];
            let events = if hit.evidence.is_empty() { own.as_slice() } else { hit.evidence.as_slice() };
            let room = EVIDENCE_MAX.saturating_sub(self.evidence.len());
            self.evidence.extend(events.iter().take(room));
            if hit.at <= self.met {
                self.met_evidence = self.evidence.len();
            }
            for (_, stage) in self.stages.iter_mut().enumerate().filter(|(bit, _)| hit.inputs >> bit & 1 == 1) {
                stage.count += 1;
                stage.first.get_or_insert_with(|| (events[0], place.host.clone()));
            }
            for (known, name) in [(&mut self.hosts, &place.host), (&mut self.regions, &place.region)] {
                if known.len() < PLACES_MAX && !known.contains(name) {
                    known.push(name.clone());
                }
            }
        }
    }
}
