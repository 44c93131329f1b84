//! The rule files that are in force: what the chain says of them, and by which rules they change.
//!
//! The text of the files is in the chain, so every process compiles the same. Promise: the same changes in the same order are the same files
//! in the same order, in every process; what is asked for twice is done once.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use weir_rules::{Matching, RuleSet};
use weir_schema::Text;

/// A rule file, as text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RuleFile {
    /// Its name: one file of a name is in force.
    pub name: Text,
    /// What is in it.
    pub text: Text,
    /// Who brought it.
    pub origin: RuleOrigin,
}

/// Who brought a rule file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RuleOrigin {
    /// The config of a node. These come first.
    Config,
    /// `weir rules load`.
    Loaded,
}

/// Falco's `rule_matching`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub enum RuleMatching {
    /// One alert an event: of the first rule in the files' order.
    #[default]
    First,
    /// An alert of every rule that matches.
    All,
}

/// What the workers are given: everything that decides which events are hits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rules {
    /// Of the text: a build that does not know it refuses the record.
    pub format: u16,
    /// How many rules an event may hit.
    pub matching: RuleMatching,
    /// In the order in which they are read.
    pub files: Vec<RuleFile>,
}

/// What shall change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RulesChange {
    /// The config of a node has these files, and no others, and this matching.
    Configure {
        /// Which node.
        node: Text,
        /// How many rules an event may hit.
        matching: RuleMatching,
        /// Its files.
        files: Vec<RuleFile>,
    },
    /// These files come in the place of those of the same names, or behind all others.
    Load(Vec<RuleFile>),
    /// Files of these names go: all of them or none.
    Drop(Vec<Text>),
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RulesOutcome {
    /// Other rules are in force.
    Changed,
    /// The same rules are in force as before.
    Unchanged,
    /// Nothing was done: there is no file of this name.
    Missing(Text),
    /// Nothing was done: the files would be more than [`FILES_MAX`], or their text more than [`BYTES_MAX`].
    TooMuch {
        /// Files there would be.
        files: u64,
        /// Bytes there would be.
        bytes: u64,
    },
}

/// The rule files as of a place in the chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rulebook {
    rules: Rules,
    /// What each node's config asked for last, by its fingerprint: a node that starts again with the same files asks for nothing.
    asked: BTreeMap<Text, u64>,
}

impl Rulebook {
    /// What is in force.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether a change would do nothing that was not done before.
    pub fn has_done(&self, change: &RulesChange) -> bool {
        matches!(change, RulesChange::Configure { node, matching, files }
            if self.asked.get(node) == Some(&fingerprint(*matching, files)))
    }

    /// Changes the files, or says why not.
    pub fn change(&mut self, change: &RulesChange) -> RulesOutcome {
        if self.has_done(change) {
            return RulesOutcome::Unchanged;
        }
        let mut next = self.rules.clone();
        next.format = FORMAT;
        match change {
            RulesChange::Configure { matching, files, .. } => {
                let names: BTreeSet<&Text> = files.iter().map(|file| &file.name).collect();
                next.files.retain(|file| file.origin == RuleOrigin::Loaded && !names.contains(&file.name));
                next.files.splice(0..0, files.iter().cloned());
                next.matching = *matching;
            }
            RulesChange::Load(files) => {
                for file in files {
                    match next.files.iter_mut().find(|known| known.name == file.name) {
                        Some(known) => known.text.clone_from(&file.text),
                        None => next.files.push(file.clone()),
                    }
                }
            }
            RulesChange::Drop(names) => {
                if let Some(missing) = names.iter().find(|name| !next.files.iter().any(|file| file.name == **name)) {
                    return RulesOutcome::Missing(Text::clone(missing));
                }
                next.files.retain(|file| !names.contains(&file.name));
            }
        }
        let (files, bytes) = (next.files.len(), next.files.iter().map(|file| file.text.len()).sum::<usize>());
        if files > FILES_MAX || bytes > BYTES_MAX {
            return RulesOutcome::TooMuch { files: files as u64, bytes: bytes as u64 };
        }
        if let RulesChange::Configure { node, matching, files } = change {
            self.asked.insert(Text::clone(node), fingerprint(*matching, files));
        }
        let same = (next.matching, &next.files) == (self.rules.matching, &self.rules.files);
        self.rules = next;
        if same { RulesOutcome::Unchanged } else { RulesOutcome::Changed }
    }
}

impl Rules {
    /// Compiles the files.
    pub fn compile(&self) -> RuleSet {
        RuleSet::load(self.files.iter().map(|file| (&*file.name, &*file.text)))
    }
}

impl From<RuleMatching> for Matching {
    fn from(matching: RuleMatching) -> Self {
        match matching {
            RuleMatching::First => Self::First,
            RuleMatching::All => Self::All,
        }
    }
}

fn fingerprint(matching: RuleMatching, files: &[RuleFile]) -> u64 {
    let bytes = postcard::to_stdvec(&(matching, files)).expect("texts always serialise");
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

/// What the text of rule files means.
pub const FORMAT: u16 = 1;
/// Rule files at once.
pub const FILES_MAX: usize = 256;
/// Bytes of all rule files together: they are in one record of the chain, in every checkpoint's position and in each worker.
pub const BYTES_MAX: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str, origin: RuleOrigin) -> RuleFile {
        RuleFile { name: name.into(), text: text.into(), origin }
    }

    fn configure(node: &str, files: &[(&str, &str)]) -> RulesChange {
        let files = files.iter().map(|(name, text)| file(name, text, RuleOrigin::Config)).collect();
        RulesChange::Configure { node: node.into(), matching: RuleMatching::First, files }
    }

    fn load(name: &str, text: &str) -> RulesChange {
        RulesChange::Load(vec![file(name, text, RuleOrigin::Loaded)])
    }

    fn names(book: &Rulebook) -> Vec<String> {
        book.rules().files.iter().map(|file| format!("{}={}", file.name, file.text)).collect()
    }

    #[test]
    fn the_content_decides_and_not_who_came_first() {
        let mut book = Rulebook::default();
        assert_eq!(book.change(&configure("n1", &[("a", "1"), ("b", "1")])), RulesOutcome::Changed);
        assert_eq!(book.change(&configure("n2", &[("a", "1"), ("b", "1")])), RulesOutcome::Unchanged);
        assert_eq!(book.change(&load("mine", "1")), RulesOutcome::Changed);
        // One node is given new files, the other starts again with the old ones: it asks for nothing.
        assert_eq!(book.change(&configure("n1", &[("a", "2")])), RulesOutcome::Changed);
        assert!(book.has_done(&configure("n2", &[("a", "1"), ("b", "1")])));
        assert_eq!(book.change(&configure("n2", &[("a", "1"), ("b", "1")])), RulesOutcome::Unchanged);
        assert_eq!(names(&book), ["a=2", "mine=1"]);
        assert_eq!(book.change(&load("mine", "2")), RulesOutcome::Changed);
        assert_eq!(book.change(&load("mine", "2")), RulesOutcome::Unchanged);
        assert_eq!(book.change(&RulesChange::Drop(vec!["mine".into(), "x".into()])), RulesOutcome::Missing("x".into()));
        assert_eq!(names(&book), ["a=2", "mine=2"]);
        assert_eq!(book.change(&RulesChange::Drop(vec!["mine".into()])), RulesOutcome::Changed);
        assert_eq!(names(&book), ["a=2"]);
        let much = "x".repeat(BYTES_MAX);
        assert!(matches!(book.change(&load("much", &much)), RulesOutcome::TooMuch { files: 2, .. }));
        assert_eq!(names(&book), ["a=2"]);
        let read_back: Rulebook = postcard::from_bytes(&postcard::to_stdvec(&book).unwrap()).unwrap();
        assert_eq!(read_back, book);
    }
}
