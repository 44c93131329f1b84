//! Which techniques of ATT&CK the rules claim: a table of techniques, and a layer for ATT&CK Navigator.
//!
//! The table of techniques is data that the caller brings (`AttackTable::parse`), so another version of ATT&CK needs no other
//! program. A rule claims a technique by a tag: Sigma's `attack.t1059.004`, or Falco's `T1059` and `T1059.004`. A claim says
//! that the rule is about the technique, not that it finds every use of it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};

use crate::set::{Priority, RuleSet};

/// Techniques by id, with the version that the table's first comment names.
#[derive(Debug, Clone, Default)]
pub struct AttackTable {
    version: String,
    techniques: BTreeMap<String, Technique>,
}

/// A technique or a sub-technique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Technique {
    /// Like `T1059.004`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Short names of its tactics: `defense-evasion`.
    pub tactics: Vec<String>,
    /// `Linux`, `Containers`.
    pub platforms: Vec<String>,
}

impl AttackTable {
    /// Reads a CSV text of technique, name, tactics and platforms (joined by `;`). The first comment names the version as
    /// `ATT&CK vN`. The error says the line and the cure.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut table = Self::default();
        for (at, line) in text.lines().enumerate() {
            let wrong = |what: &str| format!("line {}: {what}; write technique,name,tactics,platforms", at + 1);
            if let Some(comment) = line.strip_prefix('#') {
                let version =
                    comment.split("ATT&CK v").nth(1).map(|rest| rest.chars().take_while(char::is_ascii_digit).collect());
                table.version =
                    version.filter(|version: &String| table.version.is_empty() && !version.is_empty()).unwrap_or(table.version);
                continue;
            }
            let cells = cells(line).ok_or_else(|| wrong("a quote is not closed"))?;
            let [id, name, tactics, platforms] = cells.as_slice() else {
                if line.trim().is_empty() {
                    continue;
                }
                return Err(wrong(&format!("{} cells, 4 are wanted", cells.len())));
            };
            if id == "technique" {
                continue;
            }
            if !is_technique(id) {
                return Err(wrong(&format!("{id:?} is no id of a technique")));
            }
            let parts = |text: &String| text.split(';').map(str::to_owned).collect();
            let technique =
                Technique { id: id.clone(), name: name.clone(), tactics: parts(tactics), platforms: parts(platforms) };
            if table.techniques.insert(id.clone(), technique).is_some() {
                return Err(wrong(&format!("{id} stands twice")));
            }
        }
        if table.version.is_empty() {
            return Err("line 1: no version; begin with a comment that says ATT&CK vN".to_owned());
        }
        Ok(table)
    }

    /// A technique by id.
    pub fn get(&self, id: &str) -> Option<&Technique> {
        self.techniques.get(id)
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Technique> {
        self.techniques.values()
    }

    /// The version of ATT&CK.
    pub fn version(&self) -> &str {
        &self.version
    }
}

/// The cells of a line; quotes hold commas and doubled quotes.
fn cells(line: &str) -> Option<Vec<String>> {
    let mut cells = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.trim_end_matches('\r').chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                cells.last_mut()?.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            c => cells.last_mut()?.push(c),
        }
    }
    (!quoted).then_some(cells)
}

fn is_technique(text: &str) -> bool {
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some(rest) = text.strip_prefix('T') else { return false };
    match rest.split_once('.') {
        None => digits(rest, 4),
        Some((parent, sub)) => digits(parent, 4) && digits(sub, 3),
    }
}

/// The techniques that tags claim, by id.
pub fn techniques_of(tags: &[String]) -> BTreeSet<String> {
    let ids = tags.iter().map(|tag| tag.strip_prefix("attack.").unwrap_or(tag).to_ascii_uppercase());
    ids.filter(|id| is_technique(id)).collect()
}

/// What rules claim of each technique.
#[derive(Debug, Clone, Default)]
pub struct Coverage<'a> {
    /// Per technique: our rules, and others to compare with.
    pub claims: BTreeMap<String, (Vec<Claim<'a>>, Vec<Claim<'a>>)>,
}

/// A rule or a correlation that claims a technique.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// Its name.
    pub name: &'a str,
    /// How urgent its alerts are.
    pub priority: Priority,
}

/// Name, priority and tags of the rules and correlations that alert.
fn claims(set: &RuleSet) -> impl Iterator<Item = (Claim<'_>, &[String])> {
    let rules = set.rules.iter().filter(|rule| rule.enabled && rule.alerts);
    let correlations = set.correlations.iter().filter(|one| one.enabled && one.alerts);
    let rules = rules.map(|rule| (Claim { name: &rule.name, priority: rule.priority }, rule.tags.as_slice()));
    rules.chain(correlations.map(|one| (Claim { name: &one.name, priority: one.priority }, one.tags.as_slice())))
}

impl<'a> Coverage<'a> {
    /// Counts the rules and correlations that alert.
    pub fn new(own: &'a RuleSet, stock: &'a RuleSet) -> Self {
        let mut coverage = Self::default();
        for (claim, tags) in claims(own) {
            for id in techniques_of(tags) {
                coverage.claims.entry(id).or_default().0.push(claim);
            }
        }
        for (claim, tags) in claims(stock) {
            for id in techniques_of(tags) {
                coverage.claims.entry(id).or_default().1.push(claim);
            }
        }
        coverage
    }

    /// Lines of technique, name, numbers of rules and stock rules, tactics, and the names of the rules.
    pub fn lines(&self, table: &AttackTable) -> Vec<[String; 6]> {
        let claims = self.claims.iter();
        claims
            .map(|(id, (own, stock))| {
                let technique = table.get(id);
                [
                    id.clone(),
                    technique.map_or_else(|| "(not in the table)".to_owned(), |technique| technique.name.clone()),
                    own.len().to_string(),
                    stock.len().to_string(),
                    technique.map(|technique| technique.tactics.join(", ")).unwrap_or_default(),
                    own.iter().map(|claim| claim.name).collect::<Vec<_>>().join("; "),
                ]
            })
            .collect()
    }

    /// A layer for ATT&CK Navigator, format 4.5: score is the number of rules, the comment names them.
    pub fn layer(&self, table: &AttackTable) -> Json {
        let claimed = self.claims.iter().filter(|(_, (own, _))| !own.is_empty());
        let techniques: Vec<Json> = claimed
            .map(|(id, (own, _))| {
                let names: Vec<String> = own.iter().map(|claim| format!("{} ({})", claim.name, level(claim.priority))).collect();
                json!({
                    "techniqueID": id,
                    "score": own.len(),
                    "comment": names.join("\n"),
                    "enabled": true,
                    "showSubtechniques": true,
                })
            })
            .collect();
        let most = self.claims.values().map(|(own, _)| own.len()).max().unwrap_or(0).max(1);
        json!({
            "name": "Weir: detection rules",
            "versions": {"attack": table.version(), "navigator": "5.1.0", "layer": "4.5"},
            "domain": "enterprise-attack",
            "description": "Techniques that the loaded rules claim by their tags; the score is the number of rules.",
            "filters": {"platforms": ["Linux", "Containers"]},
            "sorting": 3,
            "layout": {"layout": "side", "showID": true, "showName": true},
            "hideDisabled": false,
            "techniques": techniques,
            "gradient": {"colors": ["#ffffff", "#66b1ff"], "minValue": 0, "maxValue": most},
        })
    }
}

/// The word of Sigma for a priority.
fn level(priority: Priority) -> &'static str {
    match priority {
        Priority::Emergency | Priority::Alert | Priority::Critical => "critical",
        Priority::Error => "high",
        Priority::Warning => "medium",
        Priority::Notice => "low",
        Priority::Informational | Priority::Debug => "informational",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "# ATT&CK v18\ntechnique,name,tactics,platforms\nT1003.008,\"/etc/passwd, and \"\"x\"\"\",credential-access,Linux\nT1059,Command,execution;impact,Linux;Containers\n";

    #[test]
    fn tables_are_read_or_refused_with_a_line() {
        let table = AttackTable::parse(TABLE).unwrap();
        assert_eq!((table.version(), table.get("T1003.008").unwrap().name.as_str()), ("18", "/etc/passwd, and \"x\""));
        assert_eq!(table.get("T1059").unwrap().tactics, ["execution", "impact"]);
        let wrong = [
            ("technique,name\n", "line 1: 2 cells"),
            ("# ATT&CK v1\nT10,a,b,c\n", "line 2: \"T10\" is no id"),
            ("# ATT&CK v1\nT1000,a,b,c\nT1000,a,b,c\n", "line 3: T1000 stands twice"),
            ("T1000,\"a,b,c\n", "line 1: a quote"),
            ("T1000,a,b,c\n", "no version"),
        ];
        for (text, part) in wrong {
            let error = AttackTable::parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn tags_of_both_languages_claim() {
        let tags = ["attack.t1059.004", "T1611", "mitre_execution", "attack.execution", "t1", "cve.2021-4034"].map(str::to_owned);
        assert_eq!(techniques_of(&tags).into_iter().collect::<Vec<_>>(), ["T1059.004", "T1611"]);
    }

    /// Keys, types and values that Navigator's format 4.5 asks for.
    #[test]
    fn a_layer_has_the_structure_of_format_4_5() {
        let rule = "title: a\ntags: [attack.t1059, attack.execution]\nlogsource: {service: weir}\ndetection: {s: {comm: a}, condition: s}\n";
        let stock = "- rule: f\n  desc: d\n  condition: evt.type = open\n  output: o\n  priority: INFO\n  tags: [T1003.008]\n";
        let (own, stock) = (RuleSet::load([("a", rule)]), RuleSet::load([("b", stock)]));
        let table = AttackTable::parse(TABLE).unwrap();
        let coverage = Coverage::new(&own, &stock);
        assert_eq!(
            coverage.lines(&table).iter().map(|line| line[..4].join(" ")).collect::<Vec<_>>(),
            ["T1003.008 /etc/passwd, and \"x\" 0 1", "T1059 Command 1 0",]
        );
        let layer = coverage.layer(&table);
        for key in ["name", "domain", "description"] {
            assert!(layer[key].is_string(), "{key}");
        }
        assert_eq!((&layer["domain"], &layer["versions"]["layer"]), (&json!("enterprise-attack"), &json!("4.5")));
        assert!(layer["versions"]["attack"].is_string() && layer["versions"]["navigator"].is_string());
        let techniques = layer["techniques"].as_array().unwrap();
        assert_eq!(techniques.len(), 1);
        for technique in techniques {
            assert!(is_technique(technique["techniqueID"].as_str().unwrap()));
            assert!(technique["score"].is_u64() && technique["comment"].is_string() && technique["enabled"].is_boolean());
        }
        let gradient = &layer["gradient"];
        assert!(
            gradient["colors"].as_array().unwrap().len() >= 2 && gradient["minValue"].is_u64() && gradient["maxValue"].is_u64()
        );
    }
}
