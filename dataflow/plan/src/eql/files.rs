//! Files of EQL: `.eql` is a query alone, `.toml` one rule of Elastic's repository (`[rule]` with `name`, `severity`, `query` and `threat`).

use super::pattern::literal;
use super::{parse, translate};
use crate::{Error, Rule};
use arrow::datatypes::SchemaRef;

/// How files of EQL end.
pub const EQL_ENDINGS: &[&str] = &["eql", "toml"];

/// A rule of EQL, as a sequence rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EqlRule {
    /// Of the rule and its relation: the name of the file or in it, in lower case with `_` between words.
    pub name: String,
    /// The CREATE RULE.
    pub sql: String,
    /// What it asks and nothing supplies; empty: it is whole.
    pub partly: Vec<String>,
}

/// Reads, translates and plans the rule of a file. `stem` is its name without ending; `events` are the columns of `events` as the engine has them.
pub fn eql_rule(stem: &str, ending: &str, text: &str, events: &SchemaRef) -> Result<EqlRule, Error> {
    let written = if ending == "toml" { Written::of_toml(stem, text)? } else { Written::plain(stem, text) };
    let query = parse::parse(&written.query)?;
    let of = translate::translate(&query)?;
    let severity = written.severity.as_deref().map_or(Ok("warning"), |level| {
        let known = SEVERITIES.iter().find(|(eql, _)| *eql == level).map(|(_, ours)| *ours);
        known.ok_or_else(|| Error::wrong_type("severity", format!("{level:?} is not known: low, medium, high or critical")))
    })?;
    let name = name(&written.name);
    if name.is_empty() {
        return Err(Error::wrong_type("name", format!("{:?} has no letter: give the rule a name", written.name)));
    }
    let mut sql = format!(
        "CREATE RULE \"{name}\" AS SEQUENCE BY {} WITH MAXSPAN INTERVAL '{} milliseconds'",
        of.keys.join(", "),
        of.max_span_ms
    );
    if of.overlap {
        sql.push_str(" OVERLAP");
    }
    sql.push_str(" SEVERITY ");
    sql.push_str(severity);
    if !written.attack.is_empty() {
        let tags: Vec<String> = written.attack.iter().map(|tag| literal(tag)).collect();
        sql.push_str(" ATTACK ");
        sql.push_str(&tags.join(", "));
    }
    for step in &of.steps {
        sql.push_str("\n  ");
        sql.push_str(step);
    }
    Rule::parse(&sql, events)?;
    Ok(EqlRule { name, sql, partly: of.partly.into_iter().collect() })
}

/// What a file says.
struct Written {
    name: String,
    query: String,
    severity: Option<String>,
    attack: Vec<String>,
}

impl Written {
    fn plain(stem: &str, text: &str) -> Self {
        Self { name: stem.to_owned(), query: text.to_owned(), severity: None, attack: vec![] }
    }

    fn of_toml(stem: &str, text: &str) -> Result<Self, Error> {
        let table: toml::Table = toml::from_str(text).map_err(|why| {
            let line = why.span().map_or(1, |span| text.get(..span.start).unwrap_or_default().matches('\n').count() + 1);
            Error::wrong_type(format!("line {line}"), format!("this is no TOML: {}", why.message()))
        })?;
        let cure = "name a file with a query of EQL: [rule] type = \"eql\", query = '''…'''";
        // Elastic's have a [rule]; a file with the keys alone means the same.
        let rule = table.get("rule").and_then(toml::Value::as_table).unwrap_or(&table);
        let text_of = |key: &str| rule.get(key).and_then(toml::Value::as_str);
        let kind = text_of("type").or_else(|| text_of("language")).unwrap_or("eql");
        if kind != "eql" {
            return Err(Error::unsupported(format!("a rule of type {kind}"), cure));
        }
        let query = text_of("query").ok_or_else(|| Error::wrong_type("query", format!("there is none: {cure}")))?;
        Ok(Self {
            name: text_of("name").unwrap_or(stem).to_owned(),
            query: query.to_owned(),
            severity: text_of("severity").map(str::to_owned),
            attack: attack(rule),
        })
    }
}

/// Techniques and tactics of `[[rule.threat]]`, as rule files of ours have them.
fn attack(rule: &toml::Table) -> Vec<String> {
    let tables = |table: &toml::Table, key: &str| -> Vec<toml::Table> {
        let list = table.get(key).and_then(toml::Value::as_array).cloned().unwrap_or_default();
        list.into_iter().filter_map(|item| if let toml::Value::Table(table) = item { Some(table) } else { None }).collect()
    };
    let text = |table: &toml::Table, key: &str| table.get(key).and_then(toml::Value::as_str).map(str::to_owned);
    let mut tags: Vec<String> = Vec::new();
    for threat in tables(rule, "threat") {
        for technique in tables(&threat, "technique") {
            let below = tables(&technique, "subtechnique");
            // A technique that is told more exactly is not told twice.
            let ids = if below.is_empty() { vec![technique] } else { below };
            tags.extend(ids.iter().filter_map(|technique| text(technique, "id")));
        }
        let tactic = threat.get("tactic").and_then(toml::Value::as_table).and_then(|tactic| text(tactic, "name"));
        tags.extend(tactic.map(|name| format!("attack.{}", name.to_lowercase().replace(' ', "-"))));
    }
    let mut seen = std::collections::BTreeSet::new();
    tags.retain(|tag| seen.insert(tag.clone()));
    tags
}

/// Words of a name with `_` between them.
fn name(written: &str) -> String {
    let lower = written.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let mut name = words.join("_");
    name.truncate(NAME_BYTES_MAX);
    name
}

/// As PostgreSQL's.
const NAME_BYTES_MAX: usize = 63;
/// Elastic's levels and Falco's priorities.
const SEVERITIES: [(&str, &str); 4] = [("low", "notice"), ("medium", "warning"), ("high", "error"), ("critical", "critical")];
