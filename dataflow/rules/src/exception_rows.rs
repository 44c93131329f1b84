//! Exceptions as rows of a table: what a rule shall not fire on, beside what its file says.
//!
//! ```text
//! rule | name | field | comparator | value      rows of one rule and name hold together ("and"); names are alternatives ("or")
//! ```
//!
//! `rule` is a rule's name, or the id of a Sigma rule. `field` and `comparator` are those of conditions, but for `exists`. `value` is one
//! text, taken as it is; for `in`, `intersects` and `pmatch` it may be several: `(a, b, "c d")`. Lists of rule files are not named here.
//!
//! Promise: a row that is wrong hurts nobody. It leaves out all rows of its rule and name, because the others without it would except more
//! than was meant, and it is told.

use std::collections::{BTreeMap, BTreeSet};

use crate::ast::{Check, Expr, Op, Operand};
use crate::error::{Fault, Why, shown};
use crate::graph::NodeId;
use crate::matcher::Matcher;
use crate::parse;
use crate::resolve::Resolver;
use crate::set::Rule;
use crate::value::FieldSource;

/// One row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExceptionRow {
    /// The rule's name, or a Sigma rule's id.
    pub rule: String,
    /// The exception's name.
    pub name: String,
    /// A field, or a transformer over one.
    pub field: String,
    /// How it is compared.
    pub comparator: String,
    /// With what.
    pub value: String,
}

/// What is wrong with a row, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("exception {name:?} of rule {rule:?}: {what}")]
pub struct RowError {
    /// The row's rule.
    pub rule: String,
    /// The row's name.
    pub name: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub cure: String,
}

impl ExceptionRow {
    /// Whether it can be compiled.
    pub fn check(&self) -> Result<(), RowError> {
        let compiled = self.expr().and_then(|expr| Resolver::default().condition(&expr));
        compiled.map(drop).map_err(|fault| self.error(fault))
    }

    fn expr(&self) -> Result<Expr, Fault> {
        if self.rule.is_empty() || self.name.is_empty() {
            return Err(Fault::new(Why::Shape, "rule and name may not be empty", "name the rule, and the exception as you like"));
        }
        let left = parse::term(&self.field)?;
        crate::resolve::of_term(&left)?;
        let op = Op::named(&self.comparator).filter(|op| *op != Op::Exists).ok_or_else(|| {
            let what = format!("{} is no comparator", shown(&self.comparator));
            Fault::new(Why::Shape, what, "use =, !=, in, contains, startswith, endswith, glob, regex, pmatch, <, …")
        })?;
        let literal = |text: &str| Operand::Text { text: text.to_owned(), quoted: true };
        let trimmed = self.value.trim();
        let right = if op.is_list() && trimmed.starts_with('(') && trimmed.ends_with(')') {
            // What stands bare in conditions may name a list; here nothing does.
            let bare = |operand| match operand {
                Operand::Text { text, .. } | Operand::List(text) => literal(&text),
                other @ Operand::Term(_) => other,
            };
            parse::values(trimmed)?.into_iter().map(bare).collect()
        } else {
            vec![literal(&self.value)]
        };
        Ok(Expr::Check(Check { left, op, modifier: None, right }))
    }

    fn error(&self, fault: Fault) -> RowError {
        RowError { rule: self.rule.clone(), name: self.name.clone(), what: fault.what, cure: fault.cure }
    }
}

/// The exceptions of a table, compiled.
#[derive(Debug, Default)]
pub struct Exceptions {
    resolver: Resolver,
    rules: BTreeMap<String, OfRule>,
    /// What was left out, and why.
    pub refused: Vec<RowError>,
}

/// The exceptions of one rule.
#[derive(Debug)]
struct OfRule {
    nodes: Vec<NodeId>,
    /// What they were compiled from: tells whether they have changed.
    rows: BTreeSet<ExceptionRow>,
}

impl Exceptions {
    /// Compiles rows, in any order; the same row twice is one.
    pub fn compile<'a>(rows: impl IntoIterator<Item = &'a ExceptionRow>) -> Self {
        let mut exceptions = Self::default();
        let mut by_name: BTreeMap<(&str, &str), BTreeSet<&ExceptionRow>> = BTreeMap::new();
        for row in rows {
            by_name.entry((&row.rule, &row.name)).or_default().insert(row);
        }
        for ((rule, _), rows) in by_name {
            match exceptions.conjunction(&rows) {
                Ok(node) => {
                    let known = OfRule { nodes: Vec::new(), rows: BTreeSet::new() };
                    let of = exceptions.rules.entry(rule.to_owned()).or_insert(known);
                    of.nodes.push(node);
                    of.rows.extend(rows.into_iter().cloned());
                }
                Err(error) => exceptions.refused.push(error),
            }
        }
        exceptions
    }

    fn conjunction(&mut self, rows: &BTreeSet<&ExceptionRow>) -> Result<NodeId, RowError> {
        let mut parts = Vec::with_capacity(rows.len());
        for row in rows {
            let node = row.expr().and_then(|expr| self.resolver.condition(&expr));
            parts.push(node.map_err(|fault| row.error(fault))?);
        }
        let first = rows.first().expect("an exception has a row");
        self.resolver.graph.and(parts).map_err(|fault| first.error(fault))
    }

    /// Whether there are any for a rule.
    pub fn concern(&self, rule: &Rule) -> bool {
        self.of(rule).next().is_some()
    }

    /// Whether one of a rule's exceptions holds for an event.
    pub fn silence(&self, rule: &Rule, source: &(impl FieldSource + ?Sized), matcher: &mut Matcher) -> bool {
        self.of(rule).any(|of| of.nodes.iter().any(|node| matcher.node(&self.resolver.graph, *node, source)))
    }

    /// Whether a rule has other exceptions there.
    pub fn differ(&self, other: &Self, rule: &Rule) -> bool {
        !self.of(rule).map(|of| &of.rows).eq(other.of(rule).map(|of| &of.rows))
    }

    fn of<'a>(&'a self, rule: &'a Rule) -> impl Iterator<Item = &'a OfRule> {
        let id = rule.id.as_ref().filter(|id| **id != rule.name);
        std::iter::once(&rule.name).chain(id).filter_map(|name| self.rules.get(name))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use weir_schema::{Container, Event, Kind, Process};

    use super::*;
    use crate::event::EventFields;
    use crate::set::RuleSet;

    fn row(name: &str, field: &str, comparator: &str, value: &str) -> ExceptionRow {
        let [rule, name, field, comparator, value] = ["r", name, field, comparator, value].map(str::to_owned);
        ExceptionRow { rule, name, field, comparator, value }
    }

    fn event(comm: &str, image: Option<&str>) -> Event {
        let process = Process { comm: Some(comm.into()), ..Process::default() };
        let container = Container { container_id: Some("c".into()), image: image.map(Into::into), ..Container::default() };
        let (process, container) = (Some(Arc::new(process)), Some(Arc::new(container)));
        Event { kind: Kind::Exec, process, container, ..Event::default() }
    }

    fn set() -> RuleSet {
        RuleSet::load([("f", "- rule: r\n  desc: d\n  condition: evt.type=execve\n  output: o\n  priority: INFO\n")])
    }

    #[test]
    fn rows_of_one_name_hold_together_and_names_are_alternatives() {
        let set = set();
        let silent = |rows: &[ExceptionRow], event: &Event| {
            Exceptions::compile(rows).silence(&set.rules[0], &EventFields::new(event, "h"), &mut Matcher::default())
        };
        let image = |value: &str| row("a", "container.image.repository", "=", value);
        let (sh, bash) = (event("sh", Some("reg/shop:1")), event("bash", Some("reg/shop:1")));
        assert!(silent(&[image("reg/shop")], &sh) && !silent(&[image("reg/shop")], &event("sh", None)));
        let both = [image("reg/shop"), row("a", "proc.name", "=", "sh")];
        assert!(silent(&both, &sh) && !silent(&both, &bash));
        let either = [image("other"), row("b", "proc.name", "in", " (dash, \"bash\")")];
        assert!(silent(&either, &bash) && !silent(&either, &sh));
        // Nothing is a list's name, and parentheses are a list only where one may stand.
        assert!(silent(&[row("a", "proc.name", "in", "sh")], &sh));
        assert!(silent(&[row("a", "proc.name", "=", "(sh)")], &event("(sh)", None)));
        assert!(!silent(&[], &sh));
    }

    #[test]
    fn a_wrong_row_leaves_its_exception_out_and_is_told() {
        let good = row("good", "proc.name", "=", "sh");
        let rows = [good.clone(), row("bad", "proc.name", "=", "x"), row("bad", "proc.nmae", "=", "x")];
        let exceptions = Exceptions::compile(&rows);
        assert_eq!(exceptions.refused.len(), 1);
        assert!(exceptions.refused[0].to_string().contains("exception \"bad\" of rule \"r\""), "{:?}", exceptions.refused);
        let (set, one) = (set(), Exceptions::compile([&good]));
        assert!(!exceptions.differ(&one, &set.rules[0]) && one.differ(&Exceptions::default(), &set.rules[0]));
        for (field, comparator, value) in
            [("proc.name", "exists", ""), ("proc.name", "like", "x"), ("evt.rawtime.s", "<", "many"), ("", "=", "x")]
        {
            let error = row("n", field, comparator, value).check().unwrap_err();
            assert!(!error.what.is_empty() && !error.cure.is_empty(), "{error:?}");
        }
        assert!(ExceptionRow { rule: String::new(), ..good }.check().is_err());
    }

    proptest! {
        #[test]
        fn no_row_makes_it_panic(parts in prop::array::uniform5("[a-z.(),\"=<>! \\[\\]]{0,12}"), regex in ".{0,24}") {
            let [rule, name, field, comparator, value] = parts;
            let row = ExceptionRow { rule, name, field, comparator, value };
            let refused = Exceptions::compile([&row]).refused.len();
            prop_assert_eq!(row.check().is_err(), refused == 1);
            for comparator in ["regex", "glob", "in", "pmatch", "="] {
                let (field, comparator) = ("proc.cmdline".to_owned(), comparator.to_owned());
                _ = ExceptionRow { field, comparator, value: regex.clone(), ..row.clone() }.check();
            }
        }
    }
}
