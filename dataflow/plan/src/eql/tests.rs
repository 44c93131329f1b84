//! EQL to rules: every row of the table is SQL that plans, what is written means what it is to mean, and what is not ours is refused by name.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::fields::{What, names, predicates};
use super::{EqlRule, eql_rule};
use crate::{Rule, StepPart, text_type, time_type};

fn events() -> SchemaRef {
    let text = "event_id kind tenant cloud region zone host app container_id container_name image namespace pod process_id exe comm args cmdline \
                cwd user_name tty parent_process_id parent_exe parent_cmdline capabilities path path_to src_ip dst_ip proto direction \
                dns_name agent boot_id";
    let int = "pid tid ppid uid login_uid session_id result flags src_port dst_port bytes_sent bytes_received exit_code";
    let text = text.split(' ').map(|name| Field::new(name, text_type(), true));
    let int = int.split(' ').map(|name| Field::new(name, DataType::Int64, true));
    Arc::new(Schema::new(text.chain(int).chain([Field::new("time", time_type(), true)]).collect::<Vec<_>>()))
}

fn rule(query: &str) -> Result<EqlRule, String> {
    eql_rule("a rule", "eql", query, &events()).map_err(|why| why.to_string())
}

fn whole(query: &str) -> String {
    let rule = rule(query).unwrap_or_else(|why| panic!("{query}: {why}"));
    assert!(rule.partly.is_empty(), "{query}: {:?}", rule.partly);
    rule.sql
}

#[test]
fn every_row_of_the_table_is_sql_that_plans() {
    for (name, what) in names() {
        match what {
            What::Text(_) => drop(whole(&format!("any where {name} : \"a*\" and {name} != \"b\" and startsWith({name}, \"c\")"))),
            What::Int(_) => drop(whole(&format!("any where {name} > 1 and {name} in (1, 2) and {name} + 1 < 7"))),
            What::Texts(_) => drop(whole(&format!("any where {name} : (\"a*\", \"b\") and {name} != null"))),
            What::Named(values) => values.iter().for_each(|(value, _)| {
                whole(&format!("any where {name} == \"{value}\""));
            }),
        }
    }
    for (name, predicate) in predicates() {
        let sql = format!("CREATE RULE r AS SEQUENCE BY host WITH MAXSPAN INTERVAL '1 second' [{predicate}]");
        Rule::parse(&sql, &events()).unwrap_or_else(|why| panic!("{name}: {predicate}: {why}"));
    }
}

#[test]
fn a_sequence_says_it_all() {
    let query = "/* A shell\n that calls out. */ sequence by host.id with maxspan=5m // why
        [process where event.type == \"start\" and process.name in~ (\"SH\", \"bash\")] by process.entity_id with runs=2
        ![process where event.action == \"end\"] by process.entity_id
        [network where destination.port == 443 and not cidrmatch(destination.ip, \"127.0.0.0/8\", \"::1\")] by process.parent.entity_id
        until [file where file.path like (\"/tmp/*\", \"/x\")] by process.entity_id";
    let sql = whole(query);
    let rule = Rule::parse(&sql, &events()).unwrap();
    assert_eq!(
        (rule.name.as_str(), rule.max_span_ms, rule.overlap, rule.severity.as_str()),
        ("a_rule", 300_000, false, "warning")
    );
    assert_eq!(rule.keys, ["host", "process_id"]);
    let parts: Vec<&StepPart> = rule.steps.iter().map(|step| &step.part).collect();
    let stage = |n: u8| StepPart::Stage(format!("stage_{n}"));
    assert_eq!(parts, [&stage(1), &stage(2), &StepPart::Absent(2), &stage(3), &StepPart::Until]);
    assert_eq!(rule.steps[3].by, ["host", "parent_process_id"]);
    assert!(sql.contains("lower(split_part(exe, '/', -1)) IN ('sh', 'bash')"), "{sql}");
    assert!(sql.contains("NOT ((dst_ip <<= '127.0.0.0/8' OR dst_ip <<= '::1'))"), "{sql}");
}

#[test]
fn conditions_are_sql() {
    let body = |query: &str| whole(query).split_once("\n  ").unwrap().1.to_owned();
    for (query, sql) in [
        ("any where true", "[TRUE]"),
        ("any where user.name == null", "[user_name IS NULL]"),
        ("any where null != process.pid", "[pid IS NOT NULL]"),
        ("any where 5 < process.pid", "[5 < pid]"),
        ("any where user.name == \"it's\"", "[user_name = 'it''s']"),
        ("any where user.name : \"Root\"", "[lower(user_name) = 'root']"),
        ("any where user.name like \"r*\"", "[regexp_like(user_name, '(?s)^(?:r.*)$')]"),
        ("any where user.name regex~ \"r[a-z]+\"", "[regexp_like(user_name, '(?si)^(?:(?:r[a-z]+))$')]"),
        ("any where process.pid / process.parent.pid == -2", "[(pid / nullif(ppid, 0)) = -2]"),
        (
            "any where event.category == \"file\" or host.os.type : \"LIN*\"",
            "[(kind IN ('open', 'write', 'unlink', 'rename', 'link', 'symlink', 'chmod', 'chown', 'mkdir', 'truncate') OR TRUE)]",
        ),
        ("driver where event.outcome == \"failure\"", "[kind = 'module' AND result < 0]"),
        ("any where ?no.such == \"x\" or ?no.such == null", "[(CAST(NULL AS BOOLEAN) OR TRUE)]"),
        (
            "any where length(user.name) >= 3 and number(user.name) == 4",
            "[(character_length(user_name) >= 3 AND TRY_CAST(user_name AS BIGINT) = 4)]",
        ),
        ("any where concat(user.name, \":\", process.pid) == \"a:1\"", "[(user_name || ':' || CAST(pid AS TEXT)) = 'a:1']"),
        (
            "any where substring(user.name, 1, 3) == \"oo\" and indexOf(user.name, \"o\") == 1",
            "[(substr(user_name, 2, 2) = 'oo' AND (nullif(strpos(user_name, 'o'), 0) - 1) = 1)]",
        ),
        ("any where `user`.name == \"\"\"a\\b\"\"\"", "[user_name = 'a\\b']"),
    ] {
        assert_eq!(body(query), sql, "{query}");
    }
}

#[test]
fn what_nothing_supplies_is_named() {
    let partly = |query: &str| rule(query).unwrap().partly.join("; ");
    assert_eq!(partly("registry where true"), "category registry is not collected");
    assert_eq!(partly("process where process.hash.md5 == \"x\" and ?no.such == 1"), "field process.hash.md5 is not supplied");
    assert_eq!(partly("process where event.action in (\"exec\", \"shmget\")"), "event.action \"shmget\" is not collected");
    let renamed = "sequence by file.path with maxspan=1s [file where true] [file where event.type == \"deletion\"]";
    assert_eq!(partly(renamed), "by file.path of what is renamed: the old name counts");
}

#[test]
fn what_is_not_ours_is_refused_with_its_line_and_a_cure() {
    for (query, words) in [
        ("", "a category was expected"),
        ("process", "where, behind process was expected"),
        ("process where", "a value was expected, not the end"),
        ("process where\n\n process.name", "line 3 of the query: process.name is no condition"),
        ("sample by host.id [any where true] [any where true]", "line 1 of the query: sample is not supported"),
        ("process where true | head 5", "a pipe is not supported"),
        ("sequence by host.id [any where true] [any where true]", "a sequence without maxspan is not supported: bound"),
        ("sequence with maxspan=0s [any where true]", "maxspan=0s is no span"),
        ("sequence with maxspan=5 [any where true]", "has no unit"),
        ("sequence with maxspan=5y [any where true]", "maxspan=5y"),
        ("sequence with maxspan=400d [any where true] [any where true]", "at most"),
        ("sequence with maxspan=5s ![any where true] [any where true]", "a missing event before the first"),
        (
            "sequence with maxspan=5s [any where true] by user.id [any where true]",
            "0 keys of its own where the first event has 1",
        ),
        ("sequence by ?user.id with maxspan=5s [any where true] [any where true]", "by ?user.id is not supported"),
        ("sequence by process.name with maxspan=5s [any where true] [any where true]", "by process.name is not supported"),
        ("sequence with maxspan=5s [any where true] by process.pid [any where true] by user.name", "another type"),
        ("sequence with maxspan=5s [any where true] with runs=31", "runs=31: give 1 to 30"),
        ("sequence with maxspan=5s [any where true] ![any where true] with runs=2", "runs of what must not happen"),
        ("any where process.args[0] == \"x\"", "an index behind process.args"),
        ("any where process.pid == \"1\"", "a number and a text are compared"),
        ("any where user.name == 1", "give values of one type"),
        ("any where user.name == 'x'", "single quotes"),
        ("any where user.name == \"x", "no \" on its line"),
        ("any where user.name == \"\\d\"", "write \\\\ for a backslash"),
        ("any where user.name regex \"(\"", "the pattern cannot be read"),
        ("any where process.args regex \"x\"", "regex over a list of texts"),
        ("any where cidrMatch(source.ip, \"10.0.0.0/40\")", "cannot take \"10.0.0.0/40\""),
        ("any where length(process.args) > 1", "takes texts"),
        ("any where between(user.name, \"a\", \"b\") == \"c\"", "between() is not supported: these are: wildcard"),
        ("any where substring(user.name, -1) == \"a\"", "from the end"),
        ("any where true /*", "has no */"),
        ("any where user.name == \"x\" §", "is no part of EQL"),
        ("any where user.name in ()", "holds no value"),
        (&format!("any where {}true", "(".repeat(40)), "deeper than 24"),
        (&format!("any where user.name == \"{}\"", "x".repeat(70_000)), "are allowed"),
    ] {
        let told = rule(query).map(|rule| rule.sql).unwrap_err();
        assert!(told.contains(words), "{query}: {told}");
    }
}

#[test]
fn a_file_of_toml_has_name_severity_and_techniques() {
    let text = "[metadata]\nmaturity = \"production\"\n[rule]\nname = \"Shell (by a Server) & more\"\n\
                severity = \"high\"\ntype = \"eql\"\nquery = '''\nprocess where event.type == \"start\"\n'''\n
        [[rule.threat]]\nframework = \"MITRE ATT&CK\"\n[rule.threat.tactic]\nid = \"TA0011\"\nname = \"Command and Control\"\n
        [[rule.threat.technique]]\nid = \"T1059\"\n\
                [[rule.threat.technique.subtechnique]]\nid = \"T1059.004\"\n[[rule.threat.technique]]\nid = \"T1071\"\n";
    let made = eql_rule("file", "toml", text, &events()).unwrap();
    assert_eq!(made.name, "shell_by_a_server_more");
    let head = "CREATE RULE \"shell_by_a_server_more\" AS SEQUENCE BY host WITH MAXSPAN INTERVAL '1 milliseconds' OVERLAP SEVERITY error \
                ATTACK 'T1059.004', 'T1071', 'attack.command-and-control'\n";
    assert!(made.sql.starts_with(head), "{}", made.sql);
    for (from, to, words) in [
        ("\"eql\"", "\"esql\"", "a rule of type esql is not supported"),
        ("\"high\"", "\"grave\"", "low, medium, high or critical"),
        ("query = ", "query", "line 7: this is no TOML"),
        ("query = ", "queries = ", "there is none"),
        ("process where", "process here", "where, behind process was expected, not here"),
    ] {
        let told = eql_rule("file", "toml", &text.replacen(from, to, 1), &events()).unwrap_err().to_string();
        assert!(told.contains(words), "{told}");
    }
}

proptest::proptest! {
    #[test]
    fn words_are_a_rule_or_an_error(words in proptest::collection::vec(proptest::sample::select(WORDS), 0..30)) {
        let _ = rule(&words.join(" "));
        let _ = rule(&format!("sequence by host.id with maxspan=1s [any where {}] [any where true]", words.join(" ")));
    }

    #[test]
    fn any_text_is_a_rule_or_an_error(text in "\\PC{0,60}", toml in "[a-z=\\[\\]\"'\n.]{0,60}") {
        let _ = rule(&text);
        let _ = eql_rule("x", "toml", &toml, &events());
    }

    #[test]
    fn a_literal_stays_within_its_quotes(text in "[a-z'\"\\\\\\[\\];*?%_-]{0,20}") {
        let quoted = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        for compared in ["user.name ==", "user.name :", "user.name like", "process.args :", "process.args =="] {
            let sql = whole(&format!("any where {compared} {quoted}"));
            proptest::prop_assert_eq!(Rule::parse(&sql, &events()).unwrap().steps.len(), 1);
        }
    }
}

const WORDS: &[&str] = &[
    "sequence",
    "by",
    "host.id",
    "with",
    "maxspan",
    "=",
    "5",
    "s",
    "[",
    "]",
    "!",
    "until",
    "runs",
    "process",
    "where",
    "any",
    "true",
    "null",
    "not",
    "and",
    "or",
    "in",
    "~",
    "like",
    "regex",
    ":",
    "==",
    "!=",
    "<",
    "(",
    ")",
    ",",
    "\"a*\"",
    "\"\"\"",
    "'",
    "`",
    "user.name",
    "process.args",
    "event.type",
    "process.pid",
    "wildcard",
    "length",
    "cidrMatch",
    "concat",
    "?",
    ".",
    "+",
    "-",
    "/",
    "|",
    "//",
    "/*",
    "\"exec\"",
    "3.5",
];
