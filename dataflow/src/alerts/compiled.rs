//! The rules of a tick, compiled, and which rules are in force when.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use weir_rules::{Exceptions, Language, Matching, Pass, RuleSet};
use weir_schema::Text;
use xxhash_rust::xxh3::xxh3_64;

use super::attack::{tactics, techniques};
use super::hit::Claim;
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
    /// Finds every rule that holds: which of them has the event is judged later, with the exceptions.
    pub(crate) pass: Pass,
    /// Per place in the set.
    pub(crate) heads: Vec<Arc<RuleHead>>,
    /// Per place in the set; none: it takes no part.
    pub(crate) correlations: Vec<Option<Arc<CorrelationRule>>>,
    matching: Matching,
    /// Those that take part and alert on their own, by id and version.
    standing: HashMap<(u64, u64), usize, FixedState>,
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
        let enabled = heads.iter().zip(&set.rules).enumerate().filter(|(_, (_, rule))| rule.enabled && rule.alerts);
        // Of two that say the same under one id the first counts.
        let mut standing = HashMap::default();
        enabled.for_each(|(place, (head, _))| _ = standing.entry((head.id, head.version)).or_insert(place));
        let correlations = CorrelationRule::all(&set);
        Self { pass: Pass::new(set, Matching::All), heads, correlations, matching: rules.matching.into(), standing }
    }

    /// Where a rule is that takes part and says what it said.
    pub(crate) fn place(&self, rule: (u64, u64)) -> Option<usize> {
        self.standing.get(&rule).copied()
    }

    /// Whether a rule is there, and says what it said.
    pub(crate) fn stands(&self, rule: (u64, u64)) -> bool {
        self.standing.contains_key(&rule)
    }

    /// What a rule that holds says of an event; none: another one of its id and version says it.
    pub(crate) fn claim(&self, place: usize) -> Option<Claim> {
        let rule = (self.heads[place].id, self.heads[place].version);
        let is_falco = self.set().rules[place].language == Language::Falco;
        let one_only = self.matching == Matching::First && is_falco;
        (self.place(rule) == Some(place)).then_some(Claim { rule, one_only, stands: false })
    }

    /// The rules.
    pub(crate) fn set(&self) -> &Arc<RuleSet> {
        self.pass.rules()
    }
}

/// A JSON array of texts.
pub(crate) fn json<T: AsRef<str>>(texts: &[T]) -> Text {
    let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
    serde_json::to_string(&texts).expect("texts are JSON").into()
}

/// Something that holds from a tick on, until the next.
type ByTick<T> = Rc<RefCell<BTreeMap<u64, Rc<T>>>>;

/// The rules by the tick from which they are in force; shared by the operators of one worker.
#[derive(Debug, Clone, Default)]
pub struct InForce {
    files: ByTick<Compiled>,
    exceptions: ByTick<Exceptions>,
    /// Sequence rules.
    pub(crate) chains: RulesInForce,
}

impl InForce {
    /// From this tick on.
    pub(crate) fn set(&self, tick: u64, rules: &Rules) {
        self.files.borrow_mut().insert(tick, Rc::new(Compiled::new(rules)));
    }

    /// From this tick on.
    pub(crate) fn except(&self, tick: u64, exceptions: Exceptions) {
        self.exceptions.borrow_mut().insert(tick, Rc::new(exceptions));
    }

    /// The rules of a tick; none: there are none.
    pub(crate) fn at(&self, tick: u64) -> Option<Rc<Compiled>> {
        self.files.borrow().range(..=tick).next_back().map(|(_, rules)| Rc::clone(rules))
    }

    /// The exceptions of a tick, and those of the tick before.
    pub(crate) fn exceptions(&self, tick: u64) -> [Rc<Exceptions>; 2] {
        let all = self.exceptions.borrow();
        let before = all.range(..tick).next_back().map(|(_, exceptions)| Rc::clone(exceptions)).unwrap_or_default();
        [all.get(&tick).map_or_else(|| Rc::clone(&before), Rc::clone), before]
    }

    /// The rules of the ticks before one.
    pub(crate) fn before(&self, tick: u64) -> Option<Rc<Compiled>> {
        self.files.borrow().range(..tick).next_back().map(|(_, rules)| Rc::clone(rules))
    }

    /// Nobody asks for ticks before this one any more.
    pub(crate) fn forget_before(&self, tick: u64) {
        self.chains.forget_before(tick);
        forget(&self.files, tick);
        forget(&self.exceptions, tick);
    }
}

fn forget<T>(by_tick: &ByTick<T>, tick: u64) {
    let mut all = by_tick.borrow_mut();
    while all.range(..=tick).nth(1).is_some() {
        all.pop_first();
    }
}
