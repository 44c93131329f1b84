//! Tells whether a rule still says the same after its files have changed: a hash over its condition with macros and lists written out, over
//! its output, priority and tags. Where it stands in which file is no part of it.
//!
//! Equal in all processes of one build.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::graph::Node;
use crate::set::RuleSet;

impl RuleSet {
    /// The fingerprint of each rule, in the order of `rules`.
    pub fn fingerprints(&self) -> Vec<u64> {
        let mut nodes: Vec<u64> = Vec::with_capacity(self.graph.nodes.len());
        for node in &self.graph.nodes {
            let mut hash = DefaultHasher::new();
            std::mem::discriminant(node).hash(&mut hash);
            match node {
                Node::And(parts) | Node::Or(parts) => parts.iter().for_each(|part| nodes[part.0 as usize].hash(&mut hash)),
                Node::Not(part) => nodes[part.0 as usize].hash(&mut hash),
                Node::Check(check) => self.graph.checks[*check as usize].key.hash(&mut hash),
            }
            nodes.push(hash.finish());
        }
        let rule = |rule: &crate::set::Rule| {
            let mut hash = DefaultHasher::new();
            nodes[rule.node.0 as usize].hash(&mut hash);
            (rule.priority, rule.enabled, rule.alerts, &rule.tags).hash(&mut hash);
            format!("{:?}", rule.output).hash(&mut hash);
            hash.finish()
        };
        self.rules.iter().map(rule).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::set::RuleSet;

    const RULE: &str = "- list: l\n  items: [a, b]\n- rule: r\n  desc: d\n  condition: evt.type=execve and proc.name in (l)\n  output: \"%proc.name\"\n  priority: INFO\n";

    #[test]
    fn what_a_rule_says_changes_it_and_nothing_else_does() {
        let print = |text: &str| {
            let set = RuleSet::load([("f.yaml", text)]);
            assert!(set.errors.is_empty(), "{:?}", set.errors);
            let at = set.rules.iter().position(|rule| rule.name == "r").unwrap();
            set.fingerprints()[at]
        };
        let same = print(RULE);
        let other = "- rule: q\n  desc: d\n  condition: evt.type=open\n  output: o\n  priority: INFO\n";
        assert_eq!(print(&format!("# a comment\n{other}{RULE}")), same);
        for (from, to) in [("[a, b]", "[a, c]"), ("INFO", "ERROR"), ("%proc.name", "%proc.pid"), ("execve and", "execve or")] {
            assert_ne!(print(&RULE.replace(from, to)), same, "{to}");
        }
    }
}
