//! A sequence rule over live events: what CREATE RULE says, planned.
//!
//! A rule of one stage tells of every event that it asks for, and with a trailing `![…]` of those that nothing of the kind follows.
//! A stage is asked of one event at a time, so its predicate is an expression over the columns of `events`; what a chain of them is stands in
//! `sequence.rs`, and how it is written in `rule_syntax.rs`. Columns that tell how an event came (`received`, `tick`, `late`) are refused: a chain is
//! a function of the set of events.

use std::collections::{BTreeSet, HashMap};

use arrow::datatypes::SchemaRef;
use datafusion_common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion_expr::Expr;
use datafusion_sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion_sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::check::boolean;
use crate::rule_syntax::{Created, Part, meaning, span_ms, wrong};
use crate::sequence::{SPAN_MS_MAX, STAGES_MAX};
use crate::sql::compile;
use crate::{Error, Plan};

/// A sequence rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// OR REPLACE.
    pub replace: bool,
    /// What the events of a chain share: columns of `events`, as the answer names them.
    pub keys: Vec<String>,
    /// From the first event of a chain to its last: less than this.
    pub max_span_ms: u64,
    /// Chains may have events in common.
    pub overlap: bool,
    /// A chain is told only when no event that is still admitted can undo it.
    pub is_final: bool,
    /// Falco's priority in lower case.
    pub severity: String,
    /// Tags of ATT&CK, as rule files have them.
    pub attack: Vec<String>,
    /// In the order in which they are written.
    pub steps: Vec<RuleStep>,
}

/// A predicate of a rule.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleStep {
    /// Which events.
    pub predicate: Expr,
    /// The columns that stand for the rule's keys: as many, of the same types.
    pub by: Vec<String>,
    /// What it is for.
    pub part: StepPart,
}

/// What a predicate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepPart {
    /// A stage of this name.
    Stage(String),
    /// It must not happen behind so many stages.
    Absent(usize),
    /// It must not happen between the first event and the last.
    Until,
}

impl Rule {
    /// Reads and plans `CREATE RULE … AS SEQUENCE`. `events` are the columns of `events` as the engine has them.
    pub fn parse(sql: &str, events: &SchemaRef) -> Result<Self, Error> {
        let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).with_unescape(false).tokenize();
        let tokens = meaning(&tokens.map_err(|why| wrong(format!("this is no SQL: {why}")))?);
        if tokens.contains(&Token::SemiColon) {
            return Err(wrong("a rule is one statement"));
        }
        let Created { name, replace, head, parts } = Created::parse(&tokens)?;
        let failed = |why: String| wrong(format!("rule \"{name}\": {why}"));
        let refused = |what: &str, why: &str| Error::unsupported(format!("{what} (rule \"{name}\")"), why);
        if head.relation.as_deref().is_some_and(|relation| relation != "events") {
            return Err(refused("FROM another relation than events", "the workers ask the stages where events arrive"));
        }
        if head.order.is_some() {
            return Err(refused("ORDER BY", "events are in the order of time, event_id"));
        }
        let known = HashMap::from([("events".to_owned(), SchemaRef::clone(events))]);
        let max_span_ms = span_ms(&head.max_span, "events", &known).map_err(failed)?;
        if max_span_ms > SPAN_MS_MAX {
            return Err(failed(format!("a MAXSPAN of {max_span_ms} ms: give at most {SPAN_MS_MAX}")));
        }
        let severity = head.severity.unwrap_or_else(|| "warning".to_owned());
        if !SEVERITIES.contains(&severity.as_str()) {
            return Err(failed(format!("SEVERITY {severity} is not known: {}", SEVERITIES.join(", "))));
        }
        let keys = columns_of(&head.keys, events).map_err(failed)?;
        let mut steps = Vec::with_capacity(parts.len());
        let predicates = compile(&select(parts.iter().map(|part| part.predicate.as_str())), &known)?;
        // The names of the SELECT's columns are a step of their own.
        let predicates = match predicates {
            Plan::Project { input, .. } => match *input {
                Plan::Project { input, exprs } if matches!(*input, Plan::Source { .. }) => Some(exprs),
                _ => None,
            },
            _ => None,
        };
        let Some(predicates) = predicates else {
            return Err(refused("a stage that asks more than one event", "its predicate is about the event alone"));
        };
        let mut stages = 0;
        for (part, (predicate, _)) in parts.into_iter().zip(predicates) {
            if let Some(function) = rewritten_only(&predicate) {
                return Err(refused(
                    &format!("{function}()"),
                    "it would not be evaluated where the stages are asked: write CASE or CAST",
                ));
            }
            boolean(&predicate, events, "rule, stage")?;
            let by = part.by.map_or_else(|| Ok(keys.clone()), |by| columns_of(&by, events)).map_err(failed)?;
            same_types(&keys, &by, events).map_err(failed)?;
            let part = match part.part {
                Part::Stage(name) => {
                    stages += 1;
                    StepPart::Stage(name)
                }
                Part::Absent if stages == 0 => {
                    return Err(failed(
                        "what must not happen before the first stage has no beginning: put it behind a stage".into(),
                    ));
                }
                Part::Absent => StepPart::Absent(stages),
                Part::Until => StepPart::Until,
            };
            steps.push(RuleStep { predicate, by, part });
        }
        let (overlap, is_final, attack) = (head.overlap, head.is_final, head.attack);
        let rule = Self { name: name.clone(), replace, keys, max_span_ms, overlap, is_final, severity, attack, steps };
        rule.check().map_err(failed)?;
        Ok(rule)
    }

    /// The names of its stages.
    pub fn stages(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().filter_map(|step| match &step.part {
            StepPart::Stage(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The columns of events that a predicate names.
    pub fn columns(&self) -> BTreeSet<String> {
        let names = self.steps.iter().flat_map(|step| step.predicate.column_refs());
        names.map(|column| column.name.clone()).collect()
    }

    fn check(&self) -> Result<(), String> {
        let stages: Vec<&str> = self.stages().collect();
        if stages.is_empty() || self.steps.len() > STAGES_MAX {
            return Err(format!(
                "{} stages and {} predicates in all: give 1 stage at least and {STAGES_MAX} predicates at most",
                stages.len(),
                self.steps.len()
            ));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = stages.iter().find(|name| !names.insert(**name)) {
            return Err(format!("two stages are named {twice}: rename one"));
        }
        match self.columns().into_iter().find(|name| ARRIVAL.contains(&name.as_str())) {
            Some(name) => Err(format!("{name} tells how an event came: a chain may not depend on it")),
            None => Ok(()),
        }
    }
}

/// A function that has no meaning but by DataFusion's optimizer, which rules do without: workers would fail on every row.
fn rewritten_only(predicate: &Expr) -> Option<String> {
    let mut found = None;
    let walked = predicate.apply(|node| {
        if let Expr::ScalarFunction(call) = node
            && REWRITTEN.contains(&call.func.name())
        {
            found = Some(call.func.name().to_owned());
        }
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    walked.ok().and(found)
}

/// What the planner is to name and type.
fn select<'a>(predicates: impl Iterator<Item = &'a str>) -> String {
    let columns: Vec<String> = predicates.enumerate().map(|(n, predicate)| format!("({predicate}) AS \"step#{n}\"")).collect();
    format!("SELECT {} FROM events", if columns.is_empty() { "1".to_owned() } else { columns.join(", ") })
}

fn columns_of(written: &[String], events: &SchemaRef) -> Result<Vec<String>, String> {
    let mut found: Vec<String> = Vec::new();
    for written in written {
        let name = match written.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
            Some(quoted) => quoted.to_owned(),
            None => written.to_ascii_lowercase(),
        };
        if events.field_with_name(&name).is_err() {
            return Err(format!("BY {name}: events have no such column"));
        }
        if ARRIVAL.contains(&name.as_str()) || ["time", "event_id"].contains(&name.as_str()) {
            return Err(format!("BY {name}: no two events of an attack share it"));
        }
        if found.contains(&name) {
            return Err(format!("BY names {name} twice"));
        }
        found.push(name);
    }
    Ok(found)
}

fn same_types(keys: &[String], by: &[String], events: &SchemaRef) -> Result<(), String> {
    let ty = |name: &String| events.field_with_name(name).map(|field| field.data_type().clone()).ok();
    if keys.len() != by.len() {
        return Err(format!("a stage's BY names {} columns, the rule's {}", by.len(), keys.len()));
    }
    match keys.iter().zip(by).find(|(key, own)| ty(key) != ty(own)) {
        Some((key, own)) => Err(format!("BY {own} stands for {key}, which is of another type")),
        None => Ok(()),
    }
}

/// Their `invoke` is an error.
const REWRITTEN: [&str; 5] = ["coalesce", "nvl", "nvl2", "arrow_cast", "arrow_try_cast"];
/// What tells how an event came and not what happened.
const ARRIVAL: [&str; 3] = ["received", "tick", "late"];
/// Falco's priorities.
const SEVERITIES: [&str; 8] = ["emergency", "alert", "critical", "error", "warning", "notice", "informational", "debug"];

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;
    use crate::{text_type, time_type};

    fn events() -> SchemaRef {
        let text = ["event_id", "kind", "host", "path", "exe", "process_id", "parent_process_id"].map(|name| (name, text_type()));
        let other = [("time", time_type()), ("pid", DataType::Int64), ("tick", DataType::Int64), ("late", DataType::Boolean)];
        let fields = text.into_iter().chain(other).map(|(name, ty)| Field::new(name, ty, true));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    #[test]
    fn a_rule_says_it_all() {
        let sql = "create or replace rule \"Drop\" as sequence by host, process_id with maxspan interval '5 minutes' final \
                   severity Critical attack 'T1059.004', 'attack.execution'
                   [kind = 'open' AND path LIKE '/tmp/%'] AS dropped -- a comment
                   ![kind = 'exit'] [kind IN ('exec') BY host, parent_process_id] UNTIL [kind = 'unlink']";
        let rule = Rule::parse(sql, &events()).unwrap();
        assert_eq!((rule.name.as_str(), rule.replace, rule.overlap, rule.is_final), ("Drop", true, false, true));
        assert_eq!((rule.max_span_ms, rule.severity.as_str(), rule.attack.len()), (300_000, "critical", 2));
        assert_eq!(rule.stages().collect::<Vec<_>>(), ["dropped", "stage_2"]);
        assert_eq!(rule.steps[2].by, ["host", "parent_process_id"]);
        assert_eq!(rule.steps[1].part, StepPart::Absent(1));
        assert_eq!(rule.columns().into_iter().collect::<Vec<_>>(), ["kind", "path"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = "BY host WITH MAXSPAN INTERVAL '1 minute'";
        for (rest, words) in [
            ("BY host [pid = 1] [pid = 2]", "WITH MAXSPAN"),
            ("WITH MAXSPAN INTERVAL '1 minute' [pid = 1] [pid = 2]", "BY must"),
            ("BY nothing WITH MAXSPAN INTERVAL '1 minute' [pid = 1] [pid = 2]", "no such column"),
            ("BY time WITH MAXSPAN INTERVAL '1 minute' [pid = 1] [pid = 2]", "no two events"),
            ("BY host WITH MAXSPAN INTERVAL '400 days' [pid = 1] [pid = 2]", "at most"),
            ("FROM hosts BY host WITH MAXSPAN INTERVAL '1 minute' [pid = 1] [pid = 2]", "is not supported"),
            (&format!("{with} MAXSKEW INTERVAL '1 second' [pid = 1] [pid = 2]"), "MAXSKEW (rule \"r\") is not supported"),
            (&format!("{with} SEVERITY high [pid = 1] [pid = 2]"), "SEVERITY high"),
            (&format!("{with} ATTACK T1059 [pid = 1] [pid = 2]"), "quoted"),
            (&format!("{with} QUICKLY [pid = 1] [pid = 2]"), "QUICKLY is not known"),
            (with, "0 stages"),
            (&format!("{with} ![pid = 3] [pid = 1] [pid = 2]"), "before the first stage"),
            (&format!("{with} [pid = 1 BY pid] [pid = 2]"), "another type"),
            (&format!("{with} [pid = 1 BY host, path] [pid = 2]"), "2 columns"),
            (&format!("{with} [pid = 1] AS a [pid = 2] AS a"), "named a"),
            (&format!("{with} [pid = 1] [tick = 2]"), "how an event came"),
            (&format!("{with} [pid] [pid = 2]"), "Boolean"),
            (&format!("{with} [pid = 1] [first.pid = 2]"), "first"),
            (&format!("{with} [coalesce(pid, 0) = 1] [pid = 2]"), "coalesce() (rule \"r\") is not supported"),
            (&format!("{with} [now() > time] [pid = 2]"), "now"),
            (&format!("{with} [count(*) > 1] [pid = 2]"), "aggregate"),
            (&format!("{with} [pid = 1] [pid = 2]; SELECT 1"), "one statement"),
            (&format!("{with} {} [pid = 2]", "[pid = 1]".repeat(40)), "32 predicates"),
        ] {
            let told = Rule::parse(&format!("CREATE RULE r AS SEQUENCE {rest}"), &events());
            let told = told.map(|rule| format!("{rule:?}")).unwrap_err().to_string();
            assert!(told.contains(words), "{rest}: {told}");
        }
    }

    proptest::proptest! {
        #[test]
        fn words_are_a_rule_or_an_error(words in proptest::collection::vec(proptest::sample::select(WORDS), 0..24)) {
            let _ = Rule::parse(&format!("CREATE RULE {}", words.join(" ")), &events());
        }
    }

    const WORDS: &[&str] = &[
        "r",
        "AS",
        "SEQUENCE",
        "BY",
        "host",
        "WITH",
        "MAXSPAN",
        "INTERVAL",
        "'1 minute'",
        "OVERLAP",
        "FINAL",
        "SEVERITY",
        "ATTACK",
        "'T1'",
        "[",
        "]",
        "!",
        "pid = 1",
        "UNTIL",
        ",",
        "(",
        ")",
        "\"",
        "'",
        "x",
        "RULE",
        "OR",
        "REPLACE",
    ];
}
