//! All comparisons of one term with texts that are written out, looked for at once: equal ones in a table, the others in one automaton.

use std::collections::HashMap;

use aho_corasick::AhoCorasick;

use crate::ast::Op;
use crate::check::{Check, Of, Test};
use crate::fields::{Many, Ty};
use crate::value::{FieldSource, Value};

/// One term and what it is compared with.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) of: Of,
    many: Many,
    equal: HashMap<Box<str>, Vec<u32>>,
    parts: Option<Automaton>,
    /// Over the value in lower case.
    lowered: Option<Automaton>,
}

#[derive(Debug)]
struct Automaton {
    /// `None`: there are more patterns than it takes, and each is looked for by itself.
    find: Option<AhoCorasick>,
    /// Per pattern: the slots it fills, by where it was found.
    patterns: Vec<(String, Vec<(Where, u32)>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Where {
    Start,
    End,
    Anywhere,
}

/// Collects the comparisons of one term.
#[derive(Debug)]
pub(crate) struct Building {
    of: Of,
    many: Many,
    slots: u32,
    equal: HashMap<Box<str>, Vec<u32>>,
    parts: HashMap<String, Vec<(Where, u32)>>,
    lowered: HashMap<String, Vec<(Where, u32)>>,
}

/// Whether a comparison can be part of a scan.
pub(crate) fn is_scanned(check: &Check) -> bool {
    matches!(&check.key.left, Of::Field(field) if field.def().ty == Ty::Text)
        && match (&check.test, check.key.op) {
            // The words of a command line are one text here, and a set there.
            (Test::TextSet(_), Op::In | Op::Intersects) => check.many != Many::Words,
            (Test::Text(_, wanted), Op::Eq | Op::Contains | Op::IContains | Op::StartsWith | Op::EndsWith) => !wanted.is_empty(),
            _ => false,
        }
}

impl Building {
    pub(crate) fn new(check: &Check) -> Self {
        let (equal, parts, lowered) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { of: check.key.left.clone(), many: check.many, slots: 0, equal, parts, lowered }
    }

    /// Takes a comparison up and gives its slot.
    pub(crate) fn add(&mut self, check: &Check) -> u32 {
        let slot = self.slots;
        self.slots += 1;
        match (&check.test, check.key.op) {
            (Test::TextSet(texts), _) => texts.iter().for_each(|text| self.equal.entry(text.clone()).or_default().push(slot)),
            (Test::Text(_, text), Op::Eq) => self.equal.entry(text.as_str().into()).or_default().push(slot),
            (Test::Text(_, text), op) => {
                let at = match op {
                    Op::StartsWith => Where::Start,
                    Op::EndsWith => Where::End,
                    _ => Where::Anywhere,
                };
                let patterns = if op == Op::IContains { &mut self.lowered } else { &mut self.parts };
                patterns.entry(text.clone()).or_default().push((at, slot));
            }
            _ => unreachable!("only what is scanned is added"),
        }
        slot
    }

    pub(crate) fn finish(self) -> Scan {
        let Self { of, many, equal, parts, lowered, .. } = self;
        Scan { of, many, equal, parts: automaton(parts), lowered: automaton(lowered) }
    }
}

/// `None` without patterns.
fn automaton(patterns: HashMap<String, Vec<(Where, u32)>>) -> Option<Automaton> {
    let mut patterns: Vec<(String, Vec<(Where, u32)>)> = patterns.into_iter().collect();
    patterns.sort();
    if patterns.is_empty() {
        return None;
    }
    let find = AhoCorasick::new(patterns.iter().map(|(text, _)| text)).ok();
    Some(Automaton { find, patterns })
}

impl Scan {
    /// Appends the slots of the comparisons that hold for an event, ascending, each once.
    pub(crate) fn run(&self, source: &(impl FieldSource + ?Sized), found: &mut Vec<u32>) {
        let begin = found.len();
        match self.of.value(source) {
            None => return,
            Some(Value::Many(values)) if self.many != Many::Words => {
                values.iter().for_each(|value| self.text(&value.to_text(), found));
            }
            Some(value) => self.text(&value.to_text(), found),
        }
        let mut slots = found.split_off(begin);
        slots.sort_unstable();
        slots.dedup();
        found.append(&mut slots);
    }

    fn text(&self, text: &str, found: &mut Vec<u32>) {
        if let Some(slots) = self.equal.get(text) {
            found.extend_from_slice(slots);
        }
        if let Some(parts) = &self.parts {
            parts.run(text, found);
        }
        if let Some(lowered) = &self.lowered {
            lowered.run(&text.to_lowercase(), found);
        }
    }
}

impl Automaton {
    fn run(&self, text: &str, found: &mut Vec<u32>) {
        let mut hit = |pattern: usize, start: usize, end: usize| {
            let fits = |at: &Where| match at {
                Where::Start => start == 0,
                Where::End => end == text.len(),
                Where::Anywhere => true,
            };
            found.extend(self.patterns[pattern].1.iter().filter(|(at, _)| fits(at)).map(|(_, slot)| *slot));
        };
        match &self.find {
            Some(find) => find.find_overlapping_iter(text).for_each(|m| hit(m.pattern().as_usize(), m.start(), m.end())),
            None => {
                for (pattern, (wanted, _)) in self.patterns.iter().enumerate() {
                    text.match_indices(wanted.as_str()).for_each(|(at, _)| hit(pattern, at, at + wanted.len()));
                    if text.ends_with(wanted.as_str()) {
                        hit(pattern, text.len() - wanted.len(), text.len());
                    }
                }
            }
        }
    }
}
