//! The grammar, case by case, and hostile input.

use proptest::prelude::*;

use crate::ast::{Expr, Op, Operand, Term};
use crate::error::Why;
use crate::limits::CONDITION_DEPTH_MAX;
use crate::parse::condition;

/// A tree in one line: prefix form.
fn show(expr: &Expr) -> String {
    let all = |name: &str, parts: &[Expr]| format!("({name} {})", parts.iter().map(show).collect::<Vec<_>>().join(" "));
    match expr {
        Expr::And(parts) => all("and", parts),
        Expr::Or(parts) => all("or", parts),
        Expr::Not(part) => format!("(not {})", show(part)),
        Expr::Macro(name) => name.clone(),
        Expr::Check(check) => {
            let right: Vec<String> = check.right.iter().map(operand).collect();
            let modifier = check.modifier.map_or(String::new(), |modifier| format!(":{modifier:?}"));
            format!("[{} {}{modifier} {}]", term(&check.left), check.op.text(), right.join(","))
        }
    }
}

fn term(of: &Term) -> String {
    match of {
        Term::Field { name, argument: None } => name.clone(),
        Term::Field { name, argument: Some(argument) } => format!("{name}<{argument}>"),
        Term::Call(transformer, arguments) => {
            format!("{}({})", transformer.text(), arguments.iter().map(term).collect::<Vec<_>>().join(","))
        }
        Term::Text(text) => format!("{text:?}"),
    }
}

fn operand(of: &Operand) -> String {
    match of {
        Operand::Text { text, quoted: true } => format!("{text:?}"),
        Operand::Text { text, quoted: false } => text.clone(),
        Operand::List(name) => format!("@{name}"),
        Operand::Term(of) => format!("val {}", term(of)),
    }
}

#[test]
fn conditions_parse_as_written() {
    let cases = [
        ("a.b=1 and c.d!=2 or m", "(or (and [a.b = 1] [c.d != 2]) m)"),
        ("not not a.b=1", "[a.b = 1]"),
        ("not(a.b=1 or m1)and m2", "(and (not (or [a.b = 1] m1)) m2)"),
        ("a.b in (x, \"y z\",'w' )", "[a.b in x,\"y z\",\"w\"]"),
        ("a.b in ()", "[a.b in ]"),
        ("a.b in names or a.b pmatch (/x)", "(or [a.b in @names] [a.b pmatch /x])"),
        ("proc.aname[2]=sh and evt.arg[\"a b\"] exists", "(and [proc.aname<2> = sh] [evt.arg<a b> exists ])"),
        ("proc.pname in (runc:[0:PARENT], exe)", "[proc.pname in runc:[0:PARENT],exe]"),
        ("tolower(basename(proc.name)) contains SH", "[tolower(basename(proc.name)) contains SH]"),
        ("proc.name = val(proc.pname)", "[proc.name = val proc.pname]"),
        ("proc.name != tolower(proc.pname)", "[proc.name != val tolower(proc.pname)]"),
        ("proc.cmdline contains anyof (a, b)", "[proc.cmdline contains:Any a,b]"),
        ("proc.cmdline contains anyof", "[proc.cmdline contains anyof]"),
        ("concat(proc.name, \"-\", proc.pname) = x", "[concat(proc.name,\"-\",proc.pname) = x]"),
        ("a.b>=-1 and a.b<0x10", "(and [a.b >= -1] [a.b < 0x10])"),
        ("a.b==1", "[a.b = 1]"),
        ("a.b contains 'it\\'s' and a.b glob *[a]?", "(and [a.b contains \"it's\"] [a.b glob *[a]?])"),
        ("notify and order", "(and notify order)"),
        ("a.b = and_more or or_else", "(or [a.b = and_more] or_else)"),
    ];
    for (text, wanted) in cases {
        assert_eq!(condition(text).map(|expr| show(&expr)).as_deref(), Ok(wanted), "{text}");
    }
}

#[test]
fn every_operator_has_its_word() {
    for op in Op::ALL {
        let text = if *op == Op::Exists { "a.b exists".to_owned() } else { format!("a.b {} c", op.text()) };
        let Ok(Expr::Check(check)) = condition(&text) else { panic!("{text}") };
        assert_eq!(check.op, *op);
    }
}

#[test]
fn what_does_not_follow_the_grammar_is_refused() {
    for text in
        ["", "and", "a.b", "a.b =", "(a.b=1", "a.b=1)", "a.b=1 m", "a.b in (x", "a.b in (x,)", "a.b='x", "a.b like x", "1.b=2"]
    {
        assert_eq!(condition(text).map_err(|fault| fault.why), Err(Why::Syntax), "{text}");
    }
    let deep = CONDITION_DEPTH_MAX + 1;
    let text = format!("{}m{}", "(".repeat(deep), ")".repeat(deep));
    assert_eq!(condition(&text).map_err(|fault| fault.why), Err(Why::Limit));
    let nots = "not ".repeat(10_001) + "m";
    assert_eq!(show(&condition(&nots).unwrap()), "(not m)");
}

proptest! {
    #[test]
    fn hostile_text_never_panics(text in "[a-z.()=<>!,'\"\\\\\\[\\] 0-9é]{0,80}") {
        let _ = condition(&text);
    }

    #[test]
    fn any_text_never_panics(text in "\\PC{0,60}") {
        let _ = condition(&text);
        let _ = crate::parse::term(&text);
    }
}
