//! What a chain of a rule is: found in the hits of one key, in their order.

use weir_plan::{Rule, StepPart};

use super::hit::{Hit, Moment};
pub(crate) use crate::hits::NANOS_PER_MS;

/// A rule's stages, without their predicates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) stages: usize,
    /// Nanoseconds.
    pub(crate) span: i64,
    /// Behind how many stages what must not happen stands.
    pub(crate) absent: Vec<usize>,
    pub(crate) has_until: bool,
    pub(crate) overlap: bool,
    pub(crate) is_final: bool,
}

impl Shape {
    pub(crate) fn of(rule: &Rule) -> Self {
        let absent = rule.steps.iter().filter_map(|step| match step.part {
            StepPart::Absent(after) => Some(after),
            _ => None,
        });
        Self {
            stages: rule.stages().count(),
            span: i64::try_from(rule.max_span_ms).unwrap_or(i64::MAX).saturating_mul(NANOS_PER_MS),
            absent: absent.collect(),
            has_until: rule.steps.iter().any(|step| step.part == StepPart::Until),
            overlap: rule.overlap,
            is_final: rule.is_final,
        }
    }

    /// The bit of each step of the rule, in the order in which they are written.
    pub(crate) fn bits_of(rule: &Rule) -> Vec<usize> {
        let stages = rule.stages().count();
        let absents = rule.steps.iter().filter(|step| matches!(step.part, StepPart::Absent(_))).count();
        let (mut stage, mut absent) = (0..stages, stages..);
        let bit = |part: &StepPart| match part {
            StepPart::Stage(_) => stage.next(),
            StepPart::Absent(_) => absent.next(),
            StepPart::Until => Some(stages + absents),
        };
        rule.steps.iter().map(|step| &step.part).filter_map(bit).collect()
    }

    /// Whether a chain is whole only when its span is over.
    pub(crate) fn waits(&self) -> bool {
        self.absent.contains(&self.stages)
    }

    fn bits(&self) -> usize {
        self.stages + self.absent.len() + usize::from(self.has_until)
    }

    /// The chains among hits, which are in order: the places of each one's events. Without OVERLAP none begins at `busy` or before.
    pub(crate) fn chains(&self, hits: &[Hit], busy: Option<Moment>) -> Vec<Vec<usize>> {
        let bits = self.bits();
        // Per hit and bit: the next hit behind it that has the bit.
        let mut next = vec![NONE; hits.len() * bits];
        let mut earliest = vec![NONE; bits];
        for (place, hit) in hits.iter().enumerate().rev() {
            next[place * bits..(place + 1) * bits].copy_from_slice(&earliest);
            for bit in (0..bits).filter(|bit| hit.bits >> bit & 1 == 1) {
                earliest[bit] = place;
            }
        }
        let mut found: Vec<Vec<usize>> = vec![];
        let mut busy = busy.filter(|_| !self.overlap);
        for first in (0..hits.len()).filter(|first| hits[*first].bits & 1 == 1) {
            if busy.is_some_and(|busy| hits[first].at <= busy) {
                continue;
            }
            if let Some(chain) = self.chain(hits, &next, first) {
                if !self.overlap {
                    busy = chain.last().map(|last| hits[*last].at);
                }
                found.push(chain);
            }
        }
        found
    }

    fn chain(&self, hits: &[Hit], next: &[usize], first: usize) -> Option<Vec<usize>> {
        let behind = |place: usize, bit: usize| next[place * self.bits() + bit];
        let mut places = vec![first];
        for stage in 1..self.stages {
            let place = behind(places[stage - 1], stage);
            let in_span = |hit: &Hit| hit.at.0 - hits[first].at.0 < self.span;
            hits.get(place).filter(|hit| in_span(hit))?;
            places.push(place);
        }
        let broken = |(bit, after): (usize, &usize)| {
            let breaking = behind(places[after - 1], self.stages + bit);
            match places.get(*after) {
                Some(following) => breaking < *following,
                None => hits.get(breaking).is_some_and(|hit| hit.at.0 - hits[first].at.0 < self.span),
            }
        };
        let last = *places.last()?;
        let is_ended = self.has_until && behind(first, self.bits() - 1) < last;
        (!self.absent.iter().enumerate().any(broken) && !is_ended).then_some(places)
    }
}

const NONE: usize = usize::MAX;
