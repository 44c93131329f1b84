//! A file of SQL: rules, then the SELECT that reads them.
//!
//! ```sql
//! CREATE RULE name AS SEQUENCE [FROM relation] BY column, … [ORDER BY time [, id]] WITH MAXSPAN INTERVAL '…' OVERLAP
//!   [ predicate ] AS stage  ![ predicate ]  [ predicate ] AS stage  …  UNTIL [ predicate ];
//! SELECT column, stage_time, … FROM name;
//! ```
//!
//! Without FROM the relation is `events`, ordered by `time, event_id`. A rule is a relation of its keys and a `…_time` per stage; what
//! a chain is stands in `sequence.rs`. What rules over live events have and this does not (a stage's own BY, no OVERLAP, what alerts say) is
//! refused by name. How a rule is written stands in `rule_syntax.rs`.

use std::collections::HashMap;

use arrow::datatypes::SchemaRef;
use datafusion_expr::ident;
use datafusion_sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion_sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::rule_syntax::{Created, Part, is_something, meaning, span_ms, text, word, written, wrong};
use crate::sql::compile;
use crate::{Absent, Error, Plan, SchemaOf, Sequence, Stage};

/// Makes the plan of a file's SELECT, with the rules that stand before it as relations.
pub fn compile_script(sql: &str, relations: &dyn SchemaOf) -> Result<Plan, Error> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).with_unescape(false).tokenize();
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

/// The statements of a file, as they are written there but for `E'…'`, which becomes `'…'`.
pub fn statements(sql: &str) -> Result<Vec<String>, Error> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).with_unescape(false).tokenize();
    let tokens = tokens.map_err(|why| wrong(format!("this is no SQL: {why}")))?;
    let parts = tokens.split(|token| *token == Token::SemiColon).filter(|part| is_something(part));
    Ok(parts.map(|part| part.iter().map(written).collect::<String>().trim().to_owned()).collect())
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
    let Created { name, head, parts, .. } = Created::parse(&tokens)?;
    let refused = |what: &str, why: &str| Err(Error::unsupported(format!("{what} (rule \"{name}\")"), why));
    if !head.overlap {
        return refused(
            "a sequence without OVERLAP over a relation of files",
            "write OVERLAP, then every row of the first stage begins a chain",
        );
    }
    if head.is_final || head.severity.is_some() || !head.attack.is_empty() {
        return refused("FINAL, SEVERITY or ATTACK over a relation of files", "they are for rules over live events");
    }
    let relation = head.relation.as_deref().unwrap_or("events");
    let mut order = match head.order {
        Some(order) => order,
        None if relation == "events" => vec!["time".to_owned(), "event_id".to_owned()],
        None => return Err(failed(&name, "ORDER BY must name the time of the relation's rows")),
    }
    .into_iter();
    let time = order.next().filter(|time| !time.trim().is_empty());
    let time = time.ok_or_else(|| failed(&name, "ORDER BY must name the time"))?;
    let id = order.next();
    if order.next().is_some() {
        return Err(failed(&name, "ORDER BY takes the time and at most one id"));
    }

    // The planner names and types everything that the stages compute, as the columns of a SELECT.
    let mut columns: Vec<String> = head.keys.iter().enumerate().map(|(n, key)| format!("{key} AS \"key#{n}\"")).collect();
    columns.push(format!("{time} AS \"time#\""));
    columns.extend(id.iter().map(|id| format!("{id} AS \"id#\"")));
    let (mut stages, mut absent, mut until) = (vec![], vec![], None);
    for step in parts {
        if step.by.is_some() {
            return refused("a stage's own BY over a relation of files", "every stage is of the rule's BY");
        }
        let (column, predicate) = match step.part {
            Part::Stage(stage) => {
                let column = format!("stage#{}", stages.len());
                stages.push(Stage { predicate: ident(&column), time_name: format!("{stage}_time") });
                (column, step.predicate)
            }
            Part::Absent => {
                let column = format!("absent#{}", absent.len());
                absent.push(Absent { predicate: ident(&column), after: stages.len() });
                (column, step.predicate)
            }
            Part::Until => {
                until = Some(ident("until#"));
                ("until#".to_owned(), step.predicate)
            }
        };
        columns.push(format!("({predicate}) AS \"{column}\""));
    }
    let input = compile(&format!("SELECT {} FROM {relation}", columns.join(", ")), known)?;
    let max_span_ms = span_ms(&head.max_span, relation, known).map_err(|why| failed(&name, &why))?;
    let keys = head.keys.iter().enumerate();
    let keys = keys.map(|(n, key)| (ident(format!("key#{n}")), key.trim().trim_matches('"').to_owned())).collect();
    let id = id.map(|_| ident("id#"));
    let sequence = Sequence { keys, time: ident("time#"), id, stages, absent, until, max_span_ms };
    Ok((name, Plan::Sequence { input: Box::new(input), sequence }))
}

fn failed(rule: &str, why: &str) -> Error {
    wrong(format!("rule \"{rule}\": {why}"))
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
    fn statements_are_cut_apart_and_mean_the_same() {
        let file = "-- Why.\nCREATE RULE a AS 'it''s; so';\n\n select E'\\'' ; -- end\n";
        assert_eq!(statements(file).unwrap(), ["-- Why.\nCREATE RULE a AS 'it''s; so'", "select ''''"]);
        let quoted = "CREATE RULE r AS SEQUENCE BY host WITH MAXSPAN INTERVAL '5 seconds' OVERLAP [kind = 'it''s'] AS a [kind = ''''] AS b";
        assert!(columns(&format!("{quoted}; SELECT host FROM r WHERE host <> 'it''s'")).starts_with("host"));
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
