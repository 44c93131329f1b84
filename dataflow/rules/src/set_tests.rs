//! Merge rules, operators, unset fields, sharing: small files in, hits out.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::ast::{Expr, Op, Operand};
use crate::check::{Check, Key, Right};
use crate::error::Why;
use crate::fields::{Field, Many, Ty};
use crate::matcher::Matcher;
use crate::parse;
use crate::resolve::of_term;
use crate::set::{Matching, RuleSet};
use crate::value::{FieldSource, Value};

/// An event as names and texts; the field's type says how a text is read, a `|` parts several values.
#[derive(Debug, Default)]
struct Facts(BTreeMap<String, String>);

impl Facts {
    fn new(facts: &[(&str, &str)]) -> Self {
        Self(facts.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }
}

impl FieldSource for Facts {
    fn get(&self, field: &Field) -> Option<Value<'_>> {
        let text = self.0.get(&field.to_string())?;
        let one = |text: &str| match field.def().ty {
            Ty::Text => Value::text(text.to_owned()),
            Ty::Int => Value::Int(text.parse().unwrap()),
            Ty::Bool => Value::Bool(text == "true"),
            Ty::Ip => Value::Ip(text.parse().unwrap()),
        };
        Some(match field.many() {
            Many::One => one(text),
            _ => Value::Many(text.split('|').filter(|text| !text.is_empty()).map(one).collect()),
        })
    }
}

fn load(text: &str) -> RuleSet {
    RuleSet::load([("f.yaml", text)])
}

/// Names of the rules that match.
fn hits(set: &RuleSet, facts: &Facts, matching: Matching) -> Vec<String> {
    let mut hits = Vec::new();
    Matcher::default().matches(set, facts, matching, &mut hits);
    hits.into_iter().map(|at| set.rules[at].name.clone()).collect()
}

fn rule(name: &str, condition: &str) -> String {
    format!("- rule: {name}\n  desc: d\n  condition: >\n    {condition}\n  output: o\n  priority: INFO\n")
}

/// Whether one condition holds.
fn holds(condition: &str, facts: &[(&str, &str)]) -> bool {
    let set = load(&rule("r", condition));
    assert_eq!(set.errors, [], "{condition}");
    !hits(&set, &Facts::new(facts), Matching::First).is_empty()
}

#[test]
fn operators() {
    let facts = [
        ("proc.name", "Bash"),
        ("proc.cmdline", "Bash -c \"rm -rf /\""),
        ("fd.name", "/usr/lib/x/y"),
        ("proc.pid", "42"),
        ("evt.failed", "true"),
        ("proc.aname", "sh|sshd|systemd"),
        ("proc.args", "-l|-x"),
        ("fd.ip", "10.1.2.3|127.0.0.1"),
        ("fd.net", "10.1.2.3|127.0.0.1"),
        ("fd.snet", "10.1.2.3"),
        ("proc.pname", "bash"),
        ("proc.exe", "YmFzaA=="),
    ];
    let cases = [
        ("proc.name = Bash", true),
        ("proc.name == Bash", true),
        ("proc.name = bash", false),
        ("proc.name != bash", true),
        ("proc.pid > 41 and proc.pid >= 42 and proc.pid < 43 and proc.pid <= 42", true),
        ("proc.pid > 42 or proc.pid < 42", false),
        ("proc.pid = 0x2a", true),
        ("proc.pid in (1, 42)", true),
        ("proc.pid != 42", false),
        ("proc.cmdline contains \"rm -rf\"", true),
        ("proc.cmdline contains RM", false),
        ("proc.cmdline icontains RM", true),
        ("proc.name bcontains 6173", true),
        ("proc.name bstartswith 4261", true),
        ("proc.name bstartswith 6173", false),
        ("fd.name startswith /usr", true),
        ("fd.name endswith /y", true),
        ("fd.name glob /usr/*/y", true),
        ("proc.name iglob b*H", true),
        ("proc.name glob b*", false),
        ("fd.name regex '/usr/[a-z/]+'", true),
        ("fd.name regex '/usr'", false),
        ("fd.name pmatch (/etc, /usr/lib)", true),
        ("fd.name pmatch (/usr/li)", false),
        ("proc.name in (sh, Bash)", true),
        ("proc.name in (sh, bash)", false),
        ("proc.name intersects (sh, Bash)", true),
        ("proc.name exists and not user.name exists", true),
        ("evt.failed = true and evt.failed != false", true),
        ("proc.aname = sshd and proc.aname contains std and proc.aname in (x, sh)", false),
        ("proc.aname = sshd and proc.aname contains ystem and proc.aname in (x, sh)", true),
        ("proc.aname != sh", true),
        ("proc.args = \"-l -x\" and proc.args contains \"l -\"", true),
        ("proc.args intersects (-x, -y)", true),
        ("proc.args in (-x)", false),
        ("proc.args in (-x, -l)", true),
        ("fd.ip = 127.0.0.1 and fd.net = 10.0.0.0/8", true),
        ("fd.ip != 127.0.0.1", false),
        ("fd.net != 192.168.0.0/16", true),
        ("fd.snet in (\"10.0.0.0/8\", \"172.16.0.0/12\")", true),
        ("tolower(proc.name) = bash and toupper(proc.name) = BASH", true),
        ("b64(proc.exe) = bash", true),
        ("basename(fd.name) = y", true),
        ("len(proc.name) = 4 and len(proc.args) = 2", true),
        ("join(\",\", proc.args) = \"-l,-x\"", true),
        ("concat(proc.name, \"/\", proc.pname) = Bash/bash", true),
        ("getopt(proc.cmdline, \"c\") = '\"rm'", true),
        ("proc.pname = val(proc.name)", false),
        ("proc.pname = tolower(proc.name)", true),
        ("proc.cmdline contains anyof (x, rm)", true),
        ("proc.cmdline contains allof (rm, rf)", true),
        ("proc.cmdline contains allof (rm, x)", false),
        ("proc.cmdline contains oneof (rm, x)", true),
        ("proc.cmdline contains oneof (rm, rf)", false),
    ];
    for (condition, wanted) in cases {
        assert_eq!(holds(condition, &facts), wanted, "{condition}");
    }
}

#[test]
fn what_is_not_known_makes_every_comparison_false() {
    for op in Op::ALL {
        let right = match op {
            Op::Exists => "",
            Op::BContains | Op::BStartsWith => "41",
            _ if op.is_list() => "(a)",
            _ if op.is_order() => continue,
            _ => "a",
        };
        let condition = format!("proc.name {} {right}", op.text());
        assert!(!holds(&condition, &[]), "{condition}");
        assert!(holds(&format!("not {condition}"), &[]), "{condition}");
    }
    assert!(!holds("proc.pid < 5 or proc.pid >= 5 or proc.pid != 1 or fd.ip != 1.2.3.4", &[]));
    assert!(!holds("proc.name = val(proc.pname) or proc.name != val(proc.pname)", &[("proc.name", "a")]));
}

#[test]
fn later_items_replace_append_and_override() {
    let cat: &[(&str, &str)] = &[("proc.name", "cat"), ("proc.pname", "sh")];
    // (file, whether r matches)
    let r = |condition: &str| rule("r", condition);
    let cases = [
        ("- list: l\n  items: [a]\n- list: l\n  items: [cat]\n".to_owned() + &r("proc.name in (l)"), true),
        ("- list: l\n  items: [cat]\n- list: l\n  items: [a]\n".to_owned() + &r("proc.name in (l)"), false),
        ("- list: l\n  items: [a]\n- list: l\n  items: [cat]\n  append: true\n".to_owned() + &r("proc.name in (b, l, c)"), true),
        ("- list: l\n  items: [cat]\n- list: l\n  items: [a]\n  append: false\n".to_owned() + &r("proc.name in (l)"), false),
        ("- list: l\n  items: [a]\n- list: l\n  items: [cat]\n  override:\n    items: append\n".to_owned() + &r("proc.name in l"), true),
        ("- list: l\n  items: [cat]\n- list: l\n  items: [a]\n  override:\n    items: replace\n".to_owned() + &r("proc.name in l"), false),
        ("- list: in\n  items: [cat]\n- list: l\n  items: [a, in]\n".to_owned() + &r("proc.name in (l)"), true),
        ("- list: in\n  items: [cat]\n- list: l\n  items: [a, '\"in\"']\n".to_owned() + &r("proc.name in (l)"), false),
        ("- list: l\n  items: [cat]\n".to_owned() + &r("proc.name = l"), true),
        ("- list: l\n  items: [cat]\n".to_owned() + &r("proc.name = \"l\""), false),
        ("- macro: m\n  condition: proc.name = a\n- macro: m\n  condition: proc.name = cat\n".to_owned() + &r("m"), true),
        ("- macro: m\n  condition: proc.name = a\n- macro: m\n  append: true\n  condition: or proc.name = cat\n".to_owned() + &r("m"), true),
        (
            "- macro: m\n  condition: proc.name = cat\n- macro: m\n  condition: and proc.name = a\n  override: {condition: append}\n"
                .to_owned()
                + &r("not m"),
            true,
        ),
        (r("proc.name = a") + "- rule: r\n  append: true\n  condition: or proc.name = cat\n", true),
        (r("proc.name = cat") + "- rule: r\n  condition: and proc.pname = x\n  override: {condition: append}\n", false),
        (r("proc.name = a") + "- rule: r\n  condition: proc.name = cat\n  override: {condition: replace}\n", true),
        (r("proc.name = a") + &r("proc.name = cat"), true),
        (r("proc.name = cat") + "- rule: r\n  enabled: false\n", false),
        (r("proc.name = cat") + "  enabled: false\n- rule: r\n  enabled: true\n", true),
        (r("proc.name = cat") + "- rule: r\n  enabled: false\n  override: {enabled: replace}\n", false),
    ];
    for (file, wanted) in cases {
        let set = load(&file);
        assert_eq!(set.errors, [], "{file}");
        assert_eq!(!hits(&set, &Facts::new(cat), Matching::First).is_empty(), wanted, "{file}");
    }
    let text = r("proc.name = cat")
        + "- rule: r\n  output: more\n  desc: e\n  tags: [t]\n  priority: error\n  override: {output: append, desc: replace, tags: append, priority: replace}\n";
    let set = load(&text);
    assert_eq!(set.errors, []);
    let loaded = &set.rules[0];
    assert_eq!((loaded.desc.as_str(), loaded.tags.join(","), loaded.priority.to_string()), ("e", "t".into(), "Error".into()));
    assert_eq!(loaded.output.render(&Facts::default()), "o more");
}

#[test]
fn exceptions_keep_a_rule_quiet() {
    let cat: &[(&str, &str)] = &[("proc.name", "cat"), ("proc.cmdline", "cat /dev/null"), ("fd.name", "/tmp/x")];
    // (exceptions, whether the rule still matches)
    let cases = [
        ("- {name: e, fields: [proc.name]}", true),
        ("- {name: e, fields: [proc.name], values: [[cat]]}", false),
        ("- {name: e, fields: [proc.name, fd.name], values: [[cat, /tmp/y], [cat, /tmp/x]]}", false),
        ("- {name: e, fields: [proc.name, fd.name], values: [[cat, /tmp/y], [dog, /tmp/x]]}", true),
        ("- {name: e, fields: [proc.name, fd.name], comps: [=, startswith], values: [[cat, /tmp]]}", false),
        ("- {name: e, fields: [proc.name, fd.name], comps: [=, in], values: [[cat, [/a, /tmp/x]]]}", false),
        ("- {name: e, fields: [proc.name, proc.cmdline], comps: [=, in], values: [[cat, (lines)]]}", false),
        ("- {name: e, fields: [proc.name, proc.cmdline], comps: [=, in], values: [[cat, lines]]}", false),
        ("- {name: e, fields: proc.cmdline, values: [x, cat /dev/null]}", false),
        ("- {name: e, fields: proc.cmdline, comps: contains, values: [x, /dev]}", false),
        ("- {name: e, fields: proc.cmdline, comps: in, values: ['\"cat /dev/null\"']}", false),
        ("- {name: e, fields: fd.name, comps: pmatch, values: [/tmp]}", false),
        ("- {name: a, fields: proc.name, values: [dog]}\n    - {name: b, fields: proc.name, values: [cat]}", false),
    ];
    for (exceptions, wanted) in cases {
        let file = "- list: lines\n  items: [x, 'cat /dev/null']\n".to_owned()
            + &rule("r", "proc.name = cat")
            + &format!("  exceptions:\n    {exceptions}\n");
        let set = load(&file);
        assert_eq!(set.errors, [], "{exceptions}");
        assert_eq!(!hits(&set, &Facts::new(cat), Matching::First).is_empty(), wanted, "{exceptions}");
    }
    let later = rule("r", "proc.name = cat")
        + "  exceptions:\n    - {name: e, fields: proc.name, values: [dog]}\n- rule: r\n  append: true\n  exceptions:\n    - {name: e, values: [cat]}\n";
    let set = load(&later);
    assert_eq!((set.errors.len(), hits(&set, &Facts::new(cat), Matching::First).len()), (0, 0));
}

#[test]
fn what_is_wrong_is_told_by_file_line_and_cure() {
    let r = |condition: &str| rule("r", condition);
    // (file, class, line, part of the message)
    let cases = [
        ("a: b\n".to_owned(), Why::Yaml, 1, "no array"),
        ("- x\n".to_owned(), Why::Shape, 1, "no mapping"),
        ("- foo: x\n".to_owned(), Why::Shape, 1, "no known kind"),
        ("- list:\n  items: [a]\n".to_owned(), Why::Shape, 1, "list is empty"),
        ("- list: l\n".to_owned(), Why::Shape, 1, "no items"),
        ("- macro: m\n  condition: a.b\n".to_owned(), Why::Syntax, 2, "operator"),
        ("- macro: m\n  condition: x\n".to_owned(), Why::UnknownMacro, 2, "\"x\""),
        (r("proc.name in names"), Why::UnknownList, 4, "\"names\""),
        ("- list: a\n  items: [b]\n- list: b\n  items: [a]\n".to_owned(), Why::Cycle, 1, "a → b → a"),
        ("- macro: a\n  condition: b\n- macro: b\n  condition: a\n".to_owned(), Why::Cycle, 2, "names itself"),
        (r("proc.nobody = x"), Why::UnknownField, 4, "proc.nobody"),
        (r("proc.name regex '('"), Why::Regex, 4, "regular expression"),
        (r("proc.pid = x"), Why::Value, 4, "number"),
        (r("proc.name > 3"), Why::Value, 4, "order"),
        (r("evt.failed = maybe"), Why::Value, 4, "true or false"),
        (r("fd.sip = x"), Why::Value, 4, "address"),
        (r("proc.name bcontains xyz"), Why::Value, 4, "hexadecimal"),
        (r("proc.pid = 1").replace("INFO", "LOUD"), Why::Shape, 6, "priority"),
        (r("proc.pid = 1").replace("output: o", "output: '%nobody'"), Why::UnknownField, 1, "placeholder"),
        ("- rule: r\n  condition: proc.pid = 1\n".to_owned(), Why::Shape, 1, "no output"),
        ("- rule: r\n  append: true\n  condition: or x\n".to_owned(), Why::Shape, 1, "before it"),
        ("- required_engine_version: 9999999\n".to_owned(), Why::Version, 1, "9999999"),
        ("- required_engine_version: x\n".to_owned(), Why::Version, 1, "no version"),
        (r("proc.pid = 1") + "  exceptions:\n    - {fields: [proc.name]}\n", Why::Shape, 8, "no name"),
        (r("proc.pid = 1") + "  exceptions:\n    - {name: e}\n", Why::Shape, 8, "no fields"),
        (r("proc.pid = 1") + "  exceptions:\n    - {name: e, fields: [x.y]}\n", Why::UnknownField, 8, "x.y"),
        (
            r("proc.pid = 1") + "  exceptions:\n    - {name: e, fields: [proc.pid, fd.name], comps: [=]}\n",
            Why::Shape,
            8,
            "1 comps",
        ),
    ];
    for (file, why, line, part) in cases {
        let set = load(&file);
        let error = set.errors.first().unwrap_or_else(|| panic!("nothing is wrong with {file}"));
        let text = error.to_string();
        assert_eq!((error.why, error.place.line), (why, line), "{text}\n{file}");
        assert!(text.starts_with(&format!("f.yaml:{line}: ")) && text.contains(part) && text.contains("; "), "{text}");
    }
}

#[test]
fn the_first_rule_or_all_of_them() {
    let file = rule("a", "proc.pid = 1") + &rule("b", "proc.pid = 2") + &rule("c", "proc.pid = 2") + &rule("d", "proc.pid >= 0");
    let set = load(&file);
    let facts = Facts::new(&[("proc.pid", "2")]);
    assert_eq!(hits(&set, &facts, Matching::First), ["b"]);
    assert_eq!(hits(&set, &facts, Matching::All), ["b", "c", "d"]);
}

#[test]
fn what_is_not_supplied_is_named_and_the_rule_loads() {
    let verdict = |condition: &str| load(&rule("r", condition)).rules[0].verdict();
    assert_eq!(verdict("evt.type in (execve, madvise) and proc.name = a"), "ok");
    assert_eq!(verdict("evt.type = open and container.privileged = true"), "partly: field container.privileged is not supplied");
    assert_eq!(verdict("evt.type = execve and not evt.type = madvise"), "ok");
    assert_eq!(verdict("evt.type = madvise"), "partly: events of type madvise are not collected");
}

#[test]
fn a_file_for_a_newer_engine_is_not_read_on() {
    let newer = "- required_engine_version: 0.99.0\n".to_owned() + &rule("r", "m");
    let other = rule("s", "n");
    let set = RuleSet::load([("b.yaml", newer.as_str()), ("a.yaml", other.as_str())]);
    let told: Vec<(Why, &str)> = set.errors.iter().map(|error| (error.why, &*error.place.file)).collect();
    assert_eq!(told, [(Why::Version, "b.yaml"), (Why::UnknownMacro, "a.yaml")]);
}

#[test]
fn what_rules_share_is_computed_once() {
    let mut file = "- macro: m\n  condition: proc.name in (a, b) and not fd.name startswith /x\n".to_owned();
    for number in 0..100 {
        file += &rule(&format!("r{number}"), &format!("m and proc.pid = {}", number % 10));
    }
    let set = load(&file);
    let mut matcher = Matcher::default();
    let mut hits = Vec::new();
    matcher.matches(&set, &Facts::new(&[("proc.name", "a"), ("fd.name", "/y"), ("proc.pid", "3")]), Matching::All, &mut hits);
    assert_eq!((hits.len(), matcher.checks_computed(), set.size().1), (10, 12, 12));
    hits.clear();
    matcher.matches(&set, &Facts::new(&[("proc.name", "c")]), Matching::All, &mut hits);
    assert_eq!((hits.len(), matcher.checks_computed()), (0, 13));
}

#[test]
fn outputs_are_rendered() {
    let text = rule("r", "proc.pid = 1")
        .replace("output: o", "output: '*%proc.name. 100%% (%proc.aname[2]) %evt.arg.flags %toupper(proc.name),%fd.name'");
    let set = load(&text);
    assert_eq!(set.errors, []);
    let facts = Facts::new(&[("proc.name", "cat"), ("proc.aname[2]", "sh"), ("evt.arg.flags", "A|B")]);
    assert_eq!(set.rules[0].output.render(&facts), "cat. 100% (sh) A|B CAT,<NA>");
    let lacks: Vec<String> =
        load(&text.replace("%fd.name", "%group.name")).rules[0].output_lacks.iter().map(ToString::to_string).collect();
    assert_eq!(lacks, ["group.name"]);
}

#[test]
fn a_refused_list_or_macro_refuses_its_users() {
    let file = "- list: a\n  items: [b]\n- list: b\n  items: [a]\n- macro: m\n  condition: proc.name in (a)\n".to_owned()
        + &rule("r", "m")
        + &rule("s", "proc.pid = 1");
    let set = load(&file);
    assert_eq!(set.rules.iter().map(|rule| rule.name.as_str()).collect::<Vec<_>>(), ["s"]);
    assert!(
        set.errors.iter().any(|error| error.why == Why::Cycle && error.to_string().contains("rule \"r\"")),
        "{:?}",
        set.errors
    );
}

#[test]
fn names_cannot_multiply_or_nest_without_bound() {
    let mut lists = "- list: l0\n  items: [x, y]\n".to_owned();
    let mut macros = "- macro: m0\n  condition: proc.pid = 0\n".to_owned();
    for level in 1..40 {
        let below = level - 1;
        lists += &format!("- list: l{level}\n  items: [l{below}, l{below}, l{below}, l{below}]\n");
        macros += &format!(
            "- macro: m{level}\n  condition: (m{below} and proc.pid != {level}) or (m{below} and proc.ppid != {level})\n"
        );
    }
    assert_eq!(load(&lists).errors[0].why, Why::Limit);
    let set = load(&(macros.clone() + &rule("r", "m39")));
    assert_eq!((set.errors.len(), set.size().1), (0, 79));
    assert_eq!(hits(&set, &Facts::new(&[("proc.pid", "0"), ("proc.ppid", "0")]), Matching::First), ["r"]);
    // Long chains of macros, in the order of their use and against it.
    let chain: Vec<String> = (1..2_000)
        .map(|level| {
            format!(
                "- macro: d{level}\n  condition: {} or d{} and proc.pid = {level}\n",
                "(m0 and ".repeat(9) + "m0" + &")".repeat(9),
                level - 1
            )
        })
        .collect();
    let first = "- macro: d0\n  condition: proc.pid = 0\n- macro: m0\n  condition: proc.pid = 1\n";
    for text in [chain.concat(), chain.iter().rev().map(String::as_str).collect()] {
        let set = load(&(first.to_owned() + &text + &rule("r", "d1999") + &rule("s", "d20")));
        assert!(!set.errors.is_empty() && set.errors.iter().all(|error| error.why == Why::Limit));
        let set = load(&(first.to_owned() + &text + &rule("s", "d20")));
        assert!(hits(&set, &Facts::new(&[("proc.pid", "5")]), Matching::All).is_empty());
    }
    let wide = rule("r", &vec!["proc.pid = 1"; 100_000].join(" or "));
    assert_eq!(load(&wide).errors[0].why, Why::Limit);
}

/// Plain recursion over the tree: no graph, no memo, macros and lists looked up where they stand.
fn plainly(expr: &Expr, names: &BTreeMap<String, Expr>, lists: &BTreeMap<String, Vec<String>>, facts: &Facts) -> bool {
    match expr {
        Expr::And(parts) => parts.iter().all(|part| plainly(part, names, lists, facts)),
        Expr::Or(parts) => parts.iter().any(|part| plainly(part, names, lists, facts)),
        Expr::Not(part) => !plainly(part, names, lists, facts),
        Expr::Macro(name) => plainly(&names[name], names, lists, facts),
        Expr::Check(check) => {
            let text = |operand: &Operand| match operand {
                Operand::Text { text, .. } => lists.get(text).cloned().unwrap_or_else(|| vec![text.clone()]),
                other => panic!("{other:?}"),
            };
            let right = Right::Texts(check.right.iter().flat_map(text).collect());
            Check::new(Key { left: of_term(&check.left).unwrap(), op: check.op, right }).unwrap().holds(facts)
        }
    }
}

/// Conditions over few fields and values, so that equal parts are common; `m0` … `m{macros-1}` may be named.
fn conditions(macros: usize) -> impl Strategy<Value = String> {
    let check = prop_oneof![
        (0..3u8, 0..3u8)
            .prop_map(|(field, value)| format!("{} = v{value}", ["proc.name", "proc.pname", "fd.name"][field as usize])),
        (0..3u8, 0..3u8)
            .prop_map(|(field, value)| format!("{} != v{value}", ["proc.name", "proc.pname", "fd.name"][field as usize])),
        (0..3i32).prop_map(|value| format!("proc.pid >= {value}")),
        Just("proc.name in (v0, l)".to_owned()),
        Just("fd.name exists".to_owned()),
        Just("proc.pname startswith v".to_owned()),
        (0..macros.max(1)).prop_map(move |at| if macros == 0 { "proc.ppid = 1".to_owned() } else { format!("m{at}") }),
    ];
    check.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| format!("({})", parts.join(" and "))),
            prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| format!("({})", parts.join(" or "))),
            inner.prop_map(|part| format!("not {part}")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn sharing_changes_no_answer(
        macros in (conditions(0), conditions(1), conditions(2)),
        rules in prop::collection::vec(conditions(3), 1..8),
        events in prop::collection::vec(prop::collection::vec(prop::option::of(0..3u8), 5), 1..8),
    ) {
        let macros = [macros.0, macros.1, macros.2];
        let mut file = "- list: l\n  items: [v1, w]\n".to_owned();
        for (at, condition) in macros.iter().enumerate() {
            file += &format!("- macro: m{at}\n  condition: {condition}\n");
        }
        for (at, condition) in rules.iter().enumerate() {
            file += &rule(&format!("r{at}"), condition);
        }
        let set = load(&file);
        prop_assert_eq!(&set.errors, &[]);
        let names: BTreeMap<String, Expr> =
            macros.iter().enumerate().map(|(at, text)| (format!("m{at}"), parse::condition(text).unwrap())).collect();
        let lists = BTreeMap::from([("l".to_owned(), vec!["v1".to_owned(), "w".to_owned()])]);
        let mut matcher = Matcher::default();
        for event in events {
            let texts = ["proc.name", "proc.pname", "fd.name", "proc.pid", "proc.ppid"].iter().zip(&event);
            let facts = Facts(texts.filter_map(|(name, value)| {
                let value = (*value)?;
                Some(((*name).to_owned(), if name.ends_with("pid") { value.to_string() } else { format!("v{value}") }))
            }).collect());
            let mut hits = Vec::new();
            matcher.matches(&set, &facts, Matching::All, &mut hits);
            let plain: Vec<usize> = rules.iter().enumerate()
                .filter(|(_, text)| plainly(&parse::condition(text).unwrap(), &names, &lists, &facts))
                .map(|(at, _)| at).collect();
            prop_assert_eq!(&hits, &plain);
            let mut first = vec![7];
            matcher.matches(&set, &facts, Matching::First, &mut first);
            prop_assert_eq!(&first[1..], &plain[..plain.len().min(1)]);
        }
    }

    #[test]
    fn hostile_files_never_panic(text in "(- (rule|list|macro|required_engine_version|items|condition|exceptions|override): ?[-a-z.=()'\"\\[\\]{}%*&!|> 0-9]{0,20}\n( {2}[a-z]{1,9}: [-a-z.=()'\"\\[\\]{}%*&!|> 0-9]{0,20}\n){0,3}){0,4}") {
        let _ = load(&text);
    }

    #[test]
    fn any_text_as_a_file_never_panics(text in "\\PC{0,200}") {
        let _ = load(&text);
        let _ = load(&(rule("r", "proc.pid = 1") + &text));
    }
}
