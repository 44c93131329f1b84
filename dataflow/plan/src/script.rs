//! A file of SQL: rules, then the SELECT that reads them.
//!
//! ```sql
//! CREATE RULE name AS SEQUENCE [FROM relation] BY column, … [ORDER BY time [, id]] WITH MAXSPAN INTERVAL '…' OVERLAP
//!   [ predicate ] AS stage  ![ predicate ]  [ predicate ] AS stage  …  UNTIL [ predicate ];
//! SELECT column, stage_time, … FROM name;
//! ```
//!
//! Without FROM the relation is `events`, ordered by `time, event_id`. A rule is a relation of its keys and a `…_time` per stage; what
//! a chain is stands in `sequence.rs`. What the syntax of the rules has and this does not (a stage's own BY, no OVERLAP)
//! is refused by name.

use std::collections::HashMap;

use arrow::datatypes::SchemaRef;
use datafusion_expr::{Expr, ident};
use datafusion_sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion_sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::sql::{Context, compile};
use crate::window::milliseconds;
use crate::{Absent, Error, Plan, SchemaOf, Sequence, Stage};

/// Makes the plan of a file's SELECT, with the rules that stand before it as relations.
pub fn compile_script(sql: &str, relations: &dyn SchemaOf) -> Result<Plan, Error> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize();
    let tokens = tokens.map_err(|why| wrong(format!("this is no SQL: {why}")))?;
    let mut known = Known { relations, rules: HashMap::new() };
    let mut statements: Vec<&[Token]> =
        tokens.split(|token| *token == Token::SemiColon).filter(|part| is_something(part)).collect();
    let Some(select) = statements.pop() else { return Err(wrong("there is no statement: give a SELECT")) };
    for statement in statements {
        let (name, plan) = rule(statement, &known)?;
        if known.schema_of(&name).is_some() {
            return Err(wrong(format!("relation \"{name}\" already exists")));
        }
        let schema = plan.schema(&known)?;
        known.rules.insert(name, (schema, plan));
    }
    if word(&meaning(select), 0, "create") {
        return Err(wrong("the last statement must be the SELECT whose rows are asked for"));
    }
    let plan = compile(&text(select), &known)?;
    Ok(known.with_rules(plan))
}

/// The relations, and the rules so far.
struct Known<'a> {
    relations: &'a dyn SchemaOf,
    rules: HashMap<String, (SchemaRef, Plan)>,
}

impl SchemaOf for Known<'_> {
    fn schema_of(&self, relation: &str) -> Option<SchemaRef> {
        self.rules.get(relation).map(|(schema, _)| schema.clone()).or_else(|| self.relations.schema_of(relation))
    }

    fn text_of(&self, relation: &str) -> Option<String> {
        self.relations.text_of(relation)
    }
}

impl Known<'_> {
    /// The plan with each rule's plan in place of its name.
    fn with_rules(&self, mut plan: Plan) -> Plan {
        if let Plan::Source { relation } = &plan {
            return self.rules.get(relation).map_or_else(|| plan.clone(), |(_, rule)| rule.clone());
        }
        for input in plan.inputs_mut() {
            *input = self.with_rules(std::mem::replace(input, Plan::source("")));
        }
        plan
    }
}

/// `CREATE RULE`, as its name and plan.
fn rule(statement: &[Token], known: &Known<'_>) -> Result<(String, Plan), Error> {
    let tokens = meaning(statement);
    if !(word(&tokens, 0, "create") && word(&tokens, 1, "rule")) {
        return Err(wrong("before the SELECT only CREATE RULE … AS SEQUENCE may stand"));
    }
    let Some(Token::Word(name)) = tokens.get(2) else { return Err(wrong("CREATE RULE needs a name")) };
    let name = if name.quote_style.is_some() { name.value.clone() } else { name.value.to_ascii_lowercase() };
    let failed = |why: String| wrong(format!("rule \"{name}\": {why}"));
    if !(word(&tokens, 3, "as") && word(&tokens, 4, "sequence")) {
        return Err(failed("AS SEQUENCE must follow the name".into()));
    }
    let head_end =
        tokens.iter().position(|token| matches!(token, Token::LBracket | Token::ExclamationMark)).unwrap_or(tokens.len());
    let head = Head::parse(&tokens[5..head_end.max(5)]).map_err(&failed)?;
    let Steps { stages, absent, until } = Steps::parse(&tokens[head_end..]).map_err(&failed)?;

    // The planner names and types everything that the stages compute, as the columns of a SELECT.
    let mut columns: Vec<String> = head.keys.iter().enumerate().map(|(n, key)| format!("{key} AS \"key#{n}\"")).collect();
    columns.push(format!("{} AS \"time#\"", head.time));
    columns.extend(head.id.iter().map(|id| format!("{id} AS \"id#\"")));
    columns.extend(stages.iter().enumerate().map(|(n, (predicate, _))| format!("({predicate}) AS \"stage#{n}\"")));
    columns.extend(absent.iter().enumerate().map(|(n, (predicate, _))| format!("({predicate}) AS \"absent#{n}\"")));
    columns.extend(until.iter().map(|predicate| format!("({predicate}) AS \"until#\"")));
    let input = compile(&format!("SELECT {} FROM {}", columns.join(", "), head.relation), known)?;
    let span = Context::new(known);
    let span =
        span.plan(&format!("SELECT {} AS span FROM {}", head.max_span, head.relation)).map_err(|source| span.told(source))?;
    let max_span_ms = match span.expressions().first() {
        Some(Expr::Alias(alias)) => {
            milliseconds(&alias.expr).map_err(|why| failed(format!("MAXSPAN: {}", why.strip_backtrace())))?
        }
        _ => return Err(failed("MAXSPAN must be an interval".into())),
    };
    let sequence = Sequence {
        keys: head
            .keys
            .iter()
            .enumerate()
            .map(|(n, key)| (ident(format!("key#{n}")), key.trim().trim_matches('"').to_owned()))
            .collect(),
        time: ident("time#"),
        id: head.id.as_ref().map(|_| ident("id#")),
        stages: stages
            .iter()
            .enumerate()
            .map(|(n, (_, name))| Stage { predicate: ident(format!("stage#{n}")), time_name: format!("{name}_time") })
            .collect(),
        absent: absent
            .iter()
            .enumerate()
            .map(|(n, (_, after))| Absent { predicate: ident(format!("absent#{n}")), after: *after })
            .collect(),
        until: until.as_ref().map(|_| ident("until#")),
        max_span_ms,
    };
    Ok((name.clone(), Plan::Sequence { input: Box::new(input), sequence }))
}

/// What stands before the stages.
struct Head {
    relation: String,
    keys: Vec<String>,
    time: String,
    id: Option<String>,
    max_span: String,
}

impl Head {
    fn parse(tokens: &[Token]) -> Result<Self, String> {
        let mut at = 0;
        let mut clause = |begins: &[&str], ends: &[&str]| -> Option<Vec<Token>> {
            if !begins.iter().enumerate().all(|(n, expected)| word(tokens, at + n, expected)) {
                return None;
            }
            at += begins.len();
            let rest = &tokens[at..];
            let len = (0..rest.len()).find(|&n| ends.iter().any(|end| word(rest, n, end))).unwrap_or(rest.len());
            at += len;
            Some(rest[..len].to_vec())
        };
        let relation = clause(&["from"], &["by", "order", "with"]);
        let keys = clause(&["by"], &["order", "with"]).ok_or("BY must say what the rows of a chain share")?;
        let order = clause(&["order", "by"], &["with"]);
        let span = clause(&["with", "maxspan"], &["overlap", "maxskew", "severity", "attack"]);
        let span = span.ok_or("WITH MAXSPAN INTERVAL '…' must bound the time from the first row to the last")?;
        let rest = &tokens[at..];
        match rest {
            [] => return Err("a sequence without OVERLAP is not supported yet: write OVERLAP, then every row of the first stage begins a chain".into()),
            [_] if word(rest, 0, "overlap") => {}
            [found, ..] => return Err(format!("{found} is not supported before the stages, only OVERLAP")),
        }
        let default = relation.is_none() || relation.as_ref().is_some_and(|relation| text(relation).trim() == "events");
        let mut order = match order {
            Some(order) => commas(&order),
            None if default => vec!["time".to_owned(), "event_id".to_owned()],
            None => return Err("ORDER BY must name the time of the relation's rows".into()),
        }
        .into_iter();
        let time = order.next().filter(|time| !time.trim().is_empty()).ok_or("ORDER BY must name the time")?;
        let id = order.next();
        if order.next().is_some() {
            return Err("ORDER BY takes the time and at most one id".into());
        }
        let relation = relation.map_or_else(|| "events".to_owned(), |relation| text(&relation));
        let keys = commas(&keys);
        let is_column = |key: &String| !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || "_\"".contains(c));
        if let Some(key) = keys.iter().find(|key| !is_column(key)) {
            return Err(format!("BY takes columns, not {key}"));
        }
        Ok(Self { relation, keys, time, id, max_span: text(&span) })
    }
}

/// What stands behind the head.
#[derive(Default)]
struct Steps {
    /// Each stage's predicate and name.
    stages: Vec<(String, String)>,
    /// What must not happen, and behind how many stages.
    absent: Vec<(String, usize)>,
    until: Option<String>,
}

impl Steps {
    fn parse(mut tokens: &[Token]) -> Result<Self, String> {
        let mut steps = Self::default();
        while !tokens.is_empty() {
            if steps.until.is_some() {
                return Err("UNTIL [ predicate ] must be the last".into());
            }
            let (negated, until) = (tokens[0] == Token::ExclamationMark, word(tokens, 0, "until"));
            let (predicate, rest) = predicate(&tokens[usize::from(negated || until)..])?;
            tokens = rest;
            if negated || until {
                if word(tokens, 0, "as") {
                    return Err("what must not happen has no time: leave its AS out".into());
                }
                match until {
                    true => steps.until = Some(predicate),
                    false => steps.absent.push((predicate, steps.stages.len())),
                }
                continue;
            }
            let mut name = format!("stage_{}", steps.stages.len() + 1);
            if word(tokens, 0, "as") {
                let Some(Token::Word(given)) = tokens.get(1) else { return Err("a stage's name must follow AS".into()) };
                name = if given.quote_style.is_some() { given.value.clone() } else { given.value.to_ascii_lowercase() };
                tokens = &tokens[2..];
            }
            steps.stages.push((predicate, name));
        }
        Ok(steps)
    }
}

/// A predicate in brackets, and what stands behind it.
fn predicate(tokens: &[Token]) -> Result<(String, &[Token]), String> {
    let rest = match tokens.split_first() {
        Some((Token::LBracket, rest)) => rest,
        Some((other, _)) => return Err(format!("[ predicate ] was expected, not {other}")),
        None => return Err("[ predicate ] was expected, not the end".into()),
    };
    let mut depth = 1_u32;
    let end = rest.iter().position(|token| {
        match token {
            Token::LBracket => depth += 1,
            Token::RBracket => depth -= 1,
            _ => {}
        }
        depth == 0
    });
    let end = end.ok_or("a stage's ] is missing")?;
    let predicate = &rest[..end];
    if predicate.is_empty() {
        return Err("a stage's predicate is missing".into());
    }
    if (0..predicate.len()).any(|n| word(predicate, n, "by")) {
        return Err("a stage's own BY is not supported yet".into());
    }
    Ok((text(predicate), &rest[end + 1..]))
}

/// The tokens without blanks and comments.
fn meaning(tokens: &[Token]) -> Vec<Token> {
    tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_) | Token::EOF)).cloned().collect()
}

fn is_something(tokens: &[Token]) -> bool {
    tokens.iter().any(|token| !matches!(token, Token::Whitespace(_) | Token::EOF))
}

fn word(tokens: &[Token], at: usize, expected: &str) -> bool {
    matches!(tokens.get(at), Some(Token::Word(word)) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(expected))
}

/// The tokens as SQL again.
fn text(tokens: &[Token]) -> String {
    let words = tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_) | Token::EOF));
    words.map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// The parts between commas.
fn commas(tokens: &[Token]) -> Vec<String> {
    let mut depth = 0_i32;
    let parts = tokens.split(|token| {
        match token {
            Token::LParen | Token::LBracket => depth += 1,
            Token::RParen | Token::RBracket => depth -= 1,
            _ => {}
        }
        depth == 0 && *token == Token::Comma
    });
    parts.map(text).collect()
}

fn wrong(why: impl Into<String>) -> Error {
    Error::wrong_type("the statements", why)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;
    use crate::{text_type, time_type};

    fn relations() -> HashMap<String, SchemaRef> {
        let columns = [
            ("host", text_type()),
            ("kind", text_type()),
            ("ms", DataType::Int64),
            ("time", time_type()),
            ("event_id", text_type()),
        ];
        let schema = Arc::new(Schema::new(columns.map(|(name, ty)| Field::new(name, ty, true)).to_vec()));
        HashMap::from([("t".to_owned(), Arc::clone(&schema)), ("events".to_owned(), schema)])
    }

    fn columns(sql: &str) -> String {
        let plan = compile_script(sql, &relations()).unwrap_or_else(|error| panic!("{sql}: {error}"));
        let schema = plan.schema(&relations()).unwrap();
        schema.fields().iter().map(|field| format!("{}:{}", field.name(), field.data_type())).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn rules_are_relations() {
        let sequence = "SEQUENCE FROM t BY host ORDER BY ms WITH MAXSPAN INTERVAL '10 minutes' OVERLAP\n-- first\n[kind = 'a' AND ms IN (1, 2)] AS one [kind IN ('b', 'c')]";
        assert_eq!(
            columns(&format!(
                "CREATE RULE r AS {sequence}; SELECT host, one_time AS began, stage_2_time FROM r WHERE one_time > 5"
            )),
            "host:Dictionary(UInt32, Utf8) began:Int64 stage_2_time:Int64"
        );
        let events =
            "CREATE RULE r AS SEQUENCE BY host, kind WITH MAXSPAN INTERVAL '5 seconds' OVERLAP [ms = 1] AS a [ms = 2] AS b";
        assert!(columns(&format!("{events}; SELECT host, count(*) AS c FROM r GROUP BY host;")).ends_with("c:Int64"));
        assert_eq!(columns("SELECT host FROM t;"), "host:Dictionary(UInt32, Utf8)");
        let plan = compile_script(&format!("{events}; SELECT host FROM r"), &relations()).unwrap().explain();
        let broken = events.replace(" [ms = 2] AS b", " ![ms = 3] [ms = 2] AS b ![ms = 4] UNTIL [ms IN (5, 6)]");
        assert_eq!(columns(&format!("{broken}; SELECT * FROM r")).matches("_time:").count(), 2);
        let told = compile_script(&format!("{broken}; SELECT host FROM r"), &relations()).unwrap().explain();
        let words = ["none of absent#0 after stage 1", "none of absent#1 after stage 2", "until until#"];
        assert!(words.iter().all(|words| told.contains(words)), "{told}");
        assert!(plan.contains("sequence by [key#0 as host, key#1 as kind]") && plan.contains("within 5000 ms"), "{plan}");
    }

    #[test]
    fn what_rules_do_not_have_is_refused_by_name() {
        let rule = |rest: &str| format!("CREATE RULE r AS SEQUENCE {rest}; SELECT * FROM r");
        let with = "BY host WITH MAXSPAN INTERVAL '1 minute' OVERLAP";
        for (sql, words) in [
            ("", "no statement"),
            ("SELECT 'x", "no SQL"),
            ("CREATE RULE r AS SEQUENCE BY host", "last statement"),
            ("SELECT 1; SELECT * FROM t", "only CREATE RULE"),
            (&rule("WITH MAXSPAN INTERVAL '1 minute' [ms = 1] [ms = 2]"), "BY must"),
            (&rule("BY host [ms = 1] [ms = 2]"), "WITH MAXSPAN"),
            (&rule("BY host WITH MAXSPAN INTERVAL '1 minute' [ms = 1] [ms = 2]"), "without OVERLAP"),
            (&rule("BY host WITH MAXSPAN INTERVAL '1 month' OVERLAP [ms = 1] [ms = 2]"), "without months"),
            (&rule("BY host WITH MAXSPAN 5 OVERLAP [ms = 1] [ms = 2]"), "an interval is needed"),
            (&rule("BY host WITH MAXSPAN INTERVAL '1 minute' MAXSKEW 5 OVERLAP [ms = 1] [ms = 2]"), "MAXSKEW"),
            (&rule("FROM t BY host WITH MAXSPAN INTERVAL '1 minute' OVERLAP [ms = 1] [ms = 2]"), "ORDER BY"),
            (&rule("BY upper(host) WITH MAXSPAN INTERVAL '1 minute' OVERLAP [ms = 1] [ms = 2]"), "BY takes columns"),
            (&rule(&format!("{with} [ms = 1]")), "1 stages"),
            (&rule(&format!("{with} ![ms = 1] [ms = 2] [ms = 3]")), "before the first stage"),
            (&rule(&format!("{with} [ms = 1] ![ms = 2]")), "1 stages"),
            (&rule(&format!("{with} [ms = 1] ![ms = 2] AS a [ms = 3]")), "leave its AS out"),
            (&rule(&format!("{with} [ms = 1] ![ms] [ms = 3]")), "Boolean"),
            (&rule(&format!("{with} [ms = 1] [ms = 2] !")), "not the end"),
            (&rule(&format!("{with} [ms = 1] [ms = 2] UNTIL [ms = 3] [ms = 4]")), "must be the last"),
            (&rule(&format!("{with} {} [ms = 1] UNTIL [ms = 3]", "[ms = 2]".repeat(31))), "32 are allowed"),
            (&rule(&format!("{with} [ms = 1 BY kind] [ms = 2]")), "own BY"),
            (&rule(&format!("{with} [ms = 1] [ms = 2")), "] is missing"),
            (&rule(&format!("{with} [ms] [ms = 2]")), "Boolean"),
            (&rule(&format!("{with} [nothing = 1] [ms = 2]")), "nothing"),
            (&rule(&format!("{with} [ms = 1] AS a [ms = 2] AS a")), "a_time"),
        ] {
            let error = compile_script(sql, &relations()).map(|plan| plan.explain()).unwrap_err().to_string();
            assert!(error.contains(words), "{sql}: {error}");
        }
    }
}
