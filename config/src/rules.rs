//! The rules that a node brings to its cluster.

use std::path::PathBuf;

use serde::Deserialize;

use crate::document::Document;
use crate::error::Error;

/// Rule files of a node's config. They come into force when they are others than this node last asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RulesConfig {
    /// Rule files of Falco and Sigma, and folders that stand for their .yaml and .yml files by name, those of folders in them too, in the
    /// order in which they are read; of .sql, .eql and .toml files the sequence rules. At most 256. Default: none, and the rules of the cluster stay as they are.
    pub paths: Vec<PathBuf>,
    /// How many rules an event may hit. Default `first`, as Falco's `rule_matching`.
    pub matching: RuleMatching,
}

/// How many rules an event may hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RuleMatching {
    /// The first that matches, in the files' order.
    #[default]
    First,
    /// All that match.
    All,
}

/// What people write.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawRules {
    paths: Option<Vec<PathBuf>>,
    matching: Option<String>,
}

impl RawRules {
    pub(crate) fn check(self, document: &Document) -> Result<RulesConfig, Error> {
        let key = "rules.paths";
        let paths = self.paths.unwrap_or_default();
        if paths.len() > PATHS_MAX {
            return Err(document.wrong(key, "too many paths", format!("name at most {PATHS_MAX}, or a folder")));
        }
        let paths = paths.iter().enumerate().map(|(at, raw)| document.path(&format!("{key}[{at}]"), raw));
        let matching = match self.matching.as_deref() {
            None | Some("first") => RuleMatching::First,
            Some("all") => RuleMatching::All,
            Some(_) => return Err(document.wrong("rules.matching", "not a way of matching", "write \"first\" or \"all\"")),
        };
        Ok(RulesConfig { paths: paths.collect::<Result<_, _>>()?, matching })
    }
}

/// Paths of one node.
const PATHS_MAX: usize = 256;
