//! Rules that the policy of a collector blinds: what they are about is turned off in an agent's config.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use weir_config::AgentConfig;
use weir_rules::{Matching, Pass, RuleSet};
use weir_schema::Kind;

/// Prints a line for each enabled rule of which an agent of this config does not send what it needs.
pub(super) fn tell(set: &Arc<RuleSet>, config: &Path) -> anyhow::Result<()> {
    let silent = weir_edge::silent_kinds(&AgentConfig::load(config)?.collector);
    let mut out = std::io::stdout().lock();
    for line in lines(set, &silent) {
        writeln!(out, "{line} in {}", config.display())?;
    }
    Ok(())
}

fn lines(set: &Arc<RuleSet>, silent: &[(Kind, &'static str)]) -> Vec<String> {
    let pass = Pass::new(Arc::clone(set), Matching::All);
    let mut lines = Vec::new();
    for (place, rule) in set.rules.iter().enumerate() {
        let needs: Vec<Kind> = pass.kinds_of(place).into_iter().filter(|kind| *kind != Kind::Sample).collect();
        // One that may hold for all kinds says nothing of what it is about.
        let lacks: Vec<_> = needs.iter().filter_map(|kind| silent.iter().find(|(other, _)| other == kind)).collect();
        if lacks.is_empty() || needs.len() >= KINDS_ANY {
            continue;
        }
        let mut keys: Vec<&str> = lacks.iter().map(|(_, key)| *key).collect();
        keys.dedup();
        let kinds: Vec<&str> = lacks.iter().map(|(kind, _)| kind.as_str()).collect();
        let how = if lacks.len() == needs.len() { "blind" } else { "partly blind" };
        lines.push(format!("{how}: {}: events of kind {} are turned off by {}", rule.name, kinds.join(", "), keys.join(", ")));
    }
    lines
}

/// A rule for so many kinds asks for none of them by name.
const KINDS_ANY: usize = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_told_by_name_with_what_blinds_them() {
        let rule = |name: &str, condition: &str| {
            format!("- rule: {name}\n  desc: d\n  condition: {condition}\n  output: o\n  priority: INFO\n")
        };
        let text = rule("calls", "evt.type in (ptrace, connect)")
            + &rule("execs", "evt.type = execve and proc.name = sh")
            + &rule("connects", "evt.type = connect")
            + &rule("all", "proc.name = sh");
        let set = Arc::new(RuleSet::load([("f", &*text)]));
        assert!(set.errors.is_empty(), "{:?}", set.errors);
        let silent = [(Kind::Exec, "collector.exec"), (Kind::Exit, "collector.exec"), (Kind::Ptrace, "collector.calls.security")];
        let expected = [
            "partly blind: calls: events of kind ptrace are turned off by collector.calls.security",
            "blind: execs: events of kind exec are turned off by collector.exec",
        ];
        assert_eq!(lines(&set, &silent), expected);
        assert!(lines(&set, &[]).is_empty());
    }
}
