//! The rules of a tick, compiled, and which rules are in force when.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashSet;
use serde::{Deserialize, Serialize};
use weir_rules::Pass;
use weir_schema::Text;
use xxhash_rust::xxh3::xxh3_64;

use super::attack::{tactics, techniques};
use crate::chains::RulesInForce;
use crate::correlations::CorrelationRule;
use crate::rulebook::Rules;

/// What an alert says of its rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct RuleHead {
    /// A hash of its id (Sigma) or name (Falco): the rule stays the same when its text changes.
    pub(crate) id: u64,
    /// A hash of what it says.
    pub(crate) version: u64,
    pub(crate) name: Text,
    /// Falco's priority in lower case.
    pub(crate) severity: Text,
    /// A JSON array.
    pub(crate) tactics: Text,
    /// A JSON array.
    pub(crate) techniques: Text,
}

/// Rules as the workers run them.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) pass: Pass,
    /// Per place in the set.
    pub(crate) heads: Vec<Arc<RuleHead>>,
    /// Per place in the set; none: it takes no part.
    pub(crate) correlations: Vec<Option<Arc<CorrelationRule>>>,
    /// Id and version of those that alert on their own.
    standing: HashSet<(u64, u64), FixedState>,
}

impl Compiled {
    pub(crate) fn new(rules: &Rules) -> Self {
        let set = Arc::new(rules.compile());
        for error in &set.errors {
            // Whoever asked for the files was told; the others of its rules are in force.
            tracing::warn!(%error, "a rule is left out");
        }
        let heads = set.rules.iter().zip(set.fingerprints());
        let heads = heads.map(|(rule, version)| {
            Arc::new(RuleHead {
                id: xxh3_64(rule.id.as_ref().unwrap_or(&rule.name).as_bytes()),
                version,
                name: rule.name.as_str().into(),
                severity: rule.priority.to_string().to_ascii_lowercase().into(),
                tactics: json(&tactics(&rule.tags)),
                techniques: json(&techniques(&rule.tags)),
            })
        });
        let heads: Vec<Arc<RuleHead>> = heads.collect();
        let enabled = heads.iter().zip(&set.rules).filter(|(_, rule)| rule.enabled && rule.alerts);
        let standing = enabled.map(|(head, _)| (head.id, head.version)).collect();
        let correlations = CorrelationRule::all(&set);
        Self { pass: Pass::new(set, rules.matching.into()), heads, correlations, standing }
    }

    /// Whether a rule is there, and says what it said.
    pub(crate) fn stands(&self, head: &RuleHead) -> bool {
        self.standing.contains(&(head.id, head.version))
    }
}

/// A JSON array of texts.
pub(crate) fn json<T: AsRef<str>>(texts: &[T]) -> Text {
    let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
    serde_json::to_string(&texts).expect("texts are JSON").into()
}

/// The rules by the tick from which they are in force; shared by the operators of one worker.
#[derive(Debug, Clone, Default)]
pub struct InForce {
    files: Rc<RefCell<BTreeMap<u64, Rc<Compiled>>>>,
    /// Sequence rules.
    pub(crate) chains: RulesInForce,
}

impl InForce {
    /// From this tick on.
    pub(crate) fn set(&self, tick: u64, rules: &Rules) {
        self.files.borrow_mut().insert(tick, Rc::new(Compiled::new(rules)));
    }

    /// The rules of a tick; none: there are none.
    pub(crate) fn at(&self, tick: u64) -> Option<Rc<Compiled>> {
        self.files.borrow().range(..=tick).next_back().map(|(_, rules)| Rc::clone(rules))
    }

    /// The rules of the ticks before one.
    pub(crate) fn before(&self, tick: u64) -> Option<Rc<Compiled>> {
        self.files.borrow().range(..tick).next_back().map(|(_, rules)| Rc::clone(rules))
    }

    /// Nobody asks for ticks before this one any more.
    pub(crate) fn forget_before(&self, tick: u64) {
        self.chains.forget_before(tick);
        let mut rules = self.files.borrow_mut();
        while rules.range(..=tick).nth(1).is_some() {
            rules.pop_first();
        }
    }
}
