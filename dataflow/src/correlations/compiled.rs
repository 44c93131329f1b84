//! A correlation as the workers run it.

use std::sync::Arc;

use weir_rules::{Correlation, InputOf, RuleSet};
use xxhash_rust::xxh3::xxh3_64;

use crate::alerts::{RuleHead, json, tactics, techniques};
use crate::chains::ChainHead;

/// A correlation of a set of rules.
#[derive(Debug)]
pub(crate) struct CorrelationRule {
    pub(crate) version: u64,
    pub(crate) head: Arc<ChainHead>,
    set: Arc<RuleSet>,
    place: usize,
    /// Versions of the correlations that count its matches, as which of their inputs, and their places.
    pub(crate) feeds: Vec<(u64, usize, usize)>,
}

impl CorrelationRule {
    /// Those of a set that take part, each at its place.
    pub(crate) fn all(set: &Arc<RuleSet>) -> Vec<Option<Arc<Self>>> {
        let of = |(place, one): (usize, &Correlation)| {
            let upper = set.feeds(InputOf::Correlation(place)).iter();
            one.enabled.then(|| {
                Arc::new(Self {
                    version: one.version,
                    head: Arc::new(head(one)),
                    set: Arc::clone(set),
                    place,
                    feeds: upper.map(|(at, input)| (set.correlations[*at].version, *input, *at)).collect(),
                })
            })
        };
        set.correlations.iter().enumerate().map(of).collect()
    }

    pub(crate) fn says(&self) -> &Correlation {
        &self.set.correlations[self.place]
    }

    /// Another one of its set.
    pub(crate) fn other(&self, place: usize) -> &Correlation {
        &self.set.correlations[place]
    }
}

fn head(one: &Correlation) -> ChainHead {
    ChainHead {
        rule: RuleHead {
            id: xxh3_64(one.id.as_ref().unwrap_or(&one.name).as_bytes()),
            version: one.version,
            name: one.name.as_str().into(),
            severity: one.priority.to_string().to_ascii_lowercase().into(),
            tactics: json(&tactics(&one.tags)),
            techniques: json(&techniques(&one.tags)),
        },
        stages: one.inputs.iter().map(|input| input.name.as_str().into()).collect(),
    }
}
