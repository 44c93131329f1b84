//! One comparison, compiled: a term of the event and a test of its value.
//!
//! A value that the event does not have makes every test false, `!=` too; `not` turns that round. Texts compare byte by
//! byte. Of several values (`fields::Many`) one has to pass, but for `!=` on both ends of a connection: there none may be equal.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashSet;

use regex::{Regex, RegexBuilder};

use crate::ast::{Op, Transformer};
use crate::error::{Fault, Why, shown};
use crate::fields::{Field, Many, Ty};
use crate::limits::REGEX_BYTES_MAX;
use crate::pattern::{Pattern, PatternTest};
use crate::text::{Glob, Network, PathPrefix, basename, contains, from_base64, from_hex};
use crate::value::{FieldSource, Value};

/// What is computed from an event, names resolved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Of {
    Field(Field),
    Call(Transformer, Vec<Self>),
    Text(String),
}

/// A comparison with names resolved and lists spliced in: equal ones are compiled once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) left: Of,
    pub(crate) op: Op,
    pub(crate) right: Right,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Right {
    Texts(Vec<String>),
    Of(Of),
    /// What Sigma compares with; the operator is `Op::Eq`.
    Pattern(Pattern),
}

/// A compiled comparison.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) key: Key,
    pub(crate) many: Many,
    pub(crate) test: Test,
}

#[derive(Debug)]
pub(crate) enum Test {
    Exists,
    /// Against another term of the same event.
    Of(Op, Of),
    Ints(Op, Vec<i64>),
    IntSet(HashSet<i64>),
    Bools(Vec<bool>),
    Networks(Vec<Network>),
    Text(Op, String),
    TextSet(HashSet<Box<str>>),
    Bytes(Op, Vec<u8>),
    Glob(Glob, Fold),
    Regex(Regex),
    Paths(Vec<PathPrefix>),
    Pattern(PatternTest),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fold {
    Case,
    No,
}

impl Of {
    fn ty(&self) -> Ty {
        match self {
            Self::Field(field) => field.def().ty,
            Self::Call(Transformer::Len, _) => Ty::Int,
            Self::Call(..) | Self::Text(_) => Ty::Text,
        }
    }

    fn many(&self) -> Many {
        match self {
            Self::Field(field) => field.many(),
            Self::Call(Transformer::Len | Transformer::Join | Transformer::Concat | Transformer::GetOpt, _) => Many::One,
            Self::Call(_, arguments) => arguments.first().map_or(Many::One, Self::many),
            Self::Text(_) => Many::One,
        }
    }

    /// Every field it reads.
    pub(crate) fn fields(&self, found: &mut impl FnMut(&Field)) {
        match self {
            Self::Field(field) => found(field),
            Self::Call(_, arguments) => arguments.iter().for_each(|argument| argument.fields(found)),
            Self::Text(_) => {}
        }
    }

    /// Its value for an event.
    pub(crate) fn value<'a>(&'a self, source: &'a (impl FieldSource + ?Sized)) -> Option<Value<'a>> {
        match self {
            Self::Field(field) => source.get(field),
            Self::Text(text) => Some(Value::text(text.as_str())),
            Self::Call(transformer, arguments) => call(*transformer, arguments, source),
        }
    }
}

fn call<'a>(transformer: Transformer, arguments: &'a [Of], source: &'a (impl FieldSource + ?Sized)) -> Option<Value<'a>> {
    let first = arguments.first()?.value(source)?;
    let second = || arguments.get(1)?.value(source);
    match transformer {
        Transformer::ToLower => each(first, |text| Some(text.to_lowercase())),
        Transformer::ToUpper => each(first, |text| Some(text.to_uppercase())),
        Transformer::B64 => each(first, from_base64),
        Transformer::Basename => each(first, |text| Some(basename(text).to_owned())),
        Transformer::Len => Some(Value::Int(match &first {
            Value::Many(values) => values.len() as i64,
            other => other.to_text().len() as i64,
        })),
        Transformer::Join => {
            let separator = first.to_text().into_owned();
            let joined: Vec<String> = match second()? {
                Value::Many(values) => values.iter().map(ToString::to_string).collect(),
                one => vec![one.to_string()],
            };
            Some(Value::text(joined.join(&separator)))
        }
        Transformer::Concat => {
            let parts: Option<Vec<String>> =
                arguments.iter().map(|argument| argument.value(source).map(|value| value.to_string())).collect();
            Some(Value::text(parts?.concat()))
        }
        Transformer::GetOpt => {
            let words: Vec<String> = match first {
                Value::Many(values) => values.iter().map(ToString::to_string).collect(),
                one => one.to_text().split_whitespace().map(str::to_owned).collect(),
            };
            option(&words, &second()?.to_text()).map(Value::text)
        }
    }
}

/// The value of an option among words: `-o v`, `-ov`, `--name v`, `--name=v`; empty when nothing follows.
fn option(words: &[String], name: &str) -> Option<String> {
    let name = name.trim_start_matches('-');
    let flag = if name.chars().count() == 1 { format!("-{name}") } else { format!("--{name}") };
    let at = words.iter().position(|word| {
        word.strip_prefix(flag.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('=') || !flag.starts_with("--"))
    })?;
    let rest = words[at].strip_prefix(flag.as_str())?;
    let next = || words.get(at + 1).filter(|word| !word.starts_with('-')).cloned().unwrap_or_default();
    Some(if rest.is_empty() { next() } else { rest.trim_start_matches('=').to_owned() })
}

fn each<'a>(value: Value<'_>, change: impl Fn(&str) -> Option<String> + Copy) -> Option<Value<'a>> {
    match value {
        Value::Many(values) => Some(Value::Many(values.into_iter().filter_map(|value| each(value, change)).collect())),
        one => change(&one.to_text()).map(Value::text),
    }
}

impl Check {
    /// Compiles a comparison; `right` is never empty but for `exists` and lists.
    pub(crate) fn new(key: Key) -> Result<Self, Fault> {
        let (many, test) = (key.left.many(), test(&key)?);
        Ok(Self { key, many, test })
    }

    /// Whether the event passes.
    pub(crate) fn holds(&self, source: &(impl FieldSource + ?Sized)) -> bool {
        let Some(value) = self.key.left.value(source) else { return false };
        let Value::Many(values) = &value else { return self.passes(&value, source) };
        match (self.many, self.key.op) {
            (_, Op::Exists) => true,
            (Many::Words, Op::In | Op::Intersects) => {
                let whole = Value::text(value.to_string());
                let mut words = values.iter().map(|word| self.passes(word, source));
                let some =
                    if self.key.op == Op::In { !values.is_empty() && words.all(|in_it| in_it) } else { words.any(|in_it| in_it) };
                some || self.passes(&whole, source)
            }
            (Many::Words, _) => self.passes(&Value::text(value.to_string()), source),
            (Many::Same, Op::Ne) => !values.is_empty() && values.iter().all(|value| self.passes(value, source)),
            _ => values.iter().any(|value| self.passes(value, source)),
        }
    }

    fn passes(&self, value: &Value<'_>, source: &(impl FieldSource + ?Sized)) -> bool {
        let negated = self.key.op == Op::Ne;
        match (&self.test, value) {
            (Test::Exists, _) => true,
            (Test::Pattern(pattern), _) => pattern.passes(value, source),
            (Test::Of(op, right), _) => right.value(source).is_some_and(|right| compare_values(*op, value, &right)),
            (Test::Ints(op, wanted), Value::Int(int)) => wanted.iter().any(|wanted| ordered(*op, int.cmp(wanted))),
            (Test::IntSet(wanted), Value::Int(int)) => wanted.contains(int),
            (Test::Bools(wanted), Value::Bool(truth)) => wanted.contains(truth) != negated,
            (Test::Networks(wanted), Value::Ip(ip)) => wanted.iter().any(|network| network.contains(*ip)) != negated,
            (Test::Ints(..) | Test::IntSet(_) | Test::Bools(_) | Test::Networks(_), _) => false,
            (Test::Text(op, wanted), _) => compare_texts(*op, &value.to_text(), wanted),
            (Test::TextSet(wanted), _) => wanted.contains(value.to_text().as_ref()),
            (Test::Bytes(Op::BStartsWith, wanted), _) => value.to_text().as_bytes().starts_with(wanted),
            (Test::Bytes(_, wanted), _) => contains(value.to_text().as_bytes(), wanted),
            (Test::Glob(glob, Fold::No), _) => glob.matches(&value.to_text()),
            (Test::Glob(glob, Fold::Case), _) => glob.matches(&value.to_text().to_lowercase()),
            (Test::Regex(regex), _) => regex.is_match(&value.to_text()),
            (Test::Paths(wanted), _) => wanted.iter().any(|prefix| prefix.matches(&value.to_text())),
        }
    }
}

fn test(key: &Key) -> Result<Test, Fault> {
    let op = key.op;
    let texts = match &key.right {
        _ if op == Op::Exists => return Ok(Test::Exists),
        Right::Of(_) if op == Op::Regex => {
            return Err(value_fault(key, "is matched with a computed regular expression", "write the expression as a text"));
        }
        Right::Of(of) => return Ok(Test::Of(op, of.clone())),
        Right::Pattern(pattern) => return pattern.compile().map(Test::Pattern),
        Right::Texts(texts) => texts,
    };
    let ty = key.left.ty();
    let is_set = matches!(op, Op::In | Op::Intersects);
    let is_equal = matches!(op, Op::Eq | Op::Ne) || is_set;
    match ty {
        Ty::Int if is_equal || op.is_order() => {
            let ints: Vec<i64> = texts.iter().map(|text| int(key, text)).collect::<Result<_, _>>()?;
            return Ok(if is_set { Test::IntSet(ints.into_iter().collect()) } else { Test::Ints(op, ints) });
        }
        Ty::Bool if is_equal => return Ok(Test::Bools(texts.iter().map(|text| truth(key, text)).collect::<Result<_, _>>()?)),
        Ty::Ip if is_equal => return Ok(Test::Networks(texts.iter().map(|text| network(key, text)).collect::<Result<_, _>>()?)),
        Ty::Bool | Ty::Ip if op.is_order() => return Err(value_fault(key, "has no order", "compare with = or !=")),
        _ => {}
    }
    if is_set {
        return Ok(Test::TextSet(texts.iter().map(|text| text.as_str().into()).collect()));
    }
    if op == Op::PMatch {
        return Ok(Test::Paths(texts.iter().map(|text| PathPrefix::new(text)).collect()));
    }
    let text = texts.first().map_or("", String::as_str);
    match op {
        Op::Lt | Op::Le | Op::Gt | Op::Ge => Err(value_fault(key, "is a text and has no order", "compare numbers only")),
        Op::BContains | Op::BStartsWith => {
            let bytes = from_hex(text).ok_or_else(|| {
                value_fault(
                    key,
                    &format!("is compared with {}, which are no hexadecimal bytes", shown(text)),
                    "write bytes like 48656c6c6f",
                )
            })?;
            Ok(Test::Bytes(op, bytes))
        }
        Op::Glob => Ok(Test::Glob(Glob::new(text), Fold::No)),
        Op::IGlob => Ok(Test::Glob(Glob::new(&text.to_lowercase()), Fold::Case)),
        Op::Regex => regex(text).map(Test::Regex),
        Op::IContains => Ok(Test::Text(op, text.to_lowercase())),
        _ => Ok(Test::Text(op, text.to_owned())),
    }
}

/// A regular expression over the whole text.
fn regex(text: &str) -> Result<Regex, Fault> {
    let build = RegexBuilder::new(&format!("^(?:{text})$")).size_limit(REGEX_BYTES_MAX).dot_matches_new_line(true).build();
    // Alone, so that a stray parenthesis cannot pair with ours.
    let alone = RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build();
    alone.and(build).map_err(|error| {
        let text_of = error.to_string();
        let why = text_of.lines().last().unwrap_or("it does not compile").trim_start_matches("error: ").to_owned();
        let what = format!("the regular expression {} is wrong: {why}", shown(text));
        Fault::new(Why::Regex, what, "correct it; look-around and back-references are not part of the language")
    })
}

fn value_fault(key: &Key, what: &str, cure: &str) -> Fault {
    let mut name = String::new();
    key.left.fields(&mut |field| name = field.to_string());
    Fault::new(Why::Value, format!("{name} {what}"), cure)
}

fn int(key: &Key, text: &str) -> Result<i64, Fault> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let parsed = match hex {
        Some(hex) => u64::from_str_radix(hex, 16).ok().map(u64::cast_signed),
        None => text.parse::<i64>().ok().or_else(|| text.parse::<u64>().ok().map(u64::cast_signed)),
    };
    parsed.ok_or_else(|| value_fault(key, &format!("is a number and is compared with {}", shown(text)), "write a whole number"))
}

fn truth(key: &Key, text: &str) -> Result<bool, Fault> {
    match text {
        "true" | "True" | "TRUE" | "1" => Ok(true),
        "false" | "False" | "FALSE" | "0" => Ok(false),
        _ => Err(value_fault(key, &format!("is true or false and is compared with {}", shown(text)), "write true or false")),
    }
}

fn network(key: &Key, text: &str) -> Result<Network, Fault> {
    Network::parse(text).ok_or_else(|| {
        let what = format!("is an address and is compared with {}", shown(text));
        value_fault(key, &what, "write an address or a network like 10.0.0.0/8")
    })
}

/// Whether the operator accepts how a value compares with the wanted one.
pub(crate) fn ordered(op: Op, found: Ordering) -> bool {
    match op {
        Op::Ne => found.is_ne(),
        Op::Lt => found.is_lt(),
        Op::Le => found.is_le(),
        Op::Gt => found.is_gt(),
        Op::Ge => found.is_ge(),
        _ => found.is_eq(),
    }
}

/// `wanted` is in lower case for `icontains`.
fn compare_texts(op: Op, text: &str, wanted: &str) -> bool {
    match op {
        Op::Ne => text != wanted,
        Op::Contains => text.contains(wanted),
        Op::IContains => text.to_lowercase().contains(wanted),
        Op::StartsWith => text.starts_with(wanted),
        Op::EndsWith => text.ends_with(wanted),
        _ => text == wanted,
    }
}

/// Two values of one event.
fn compare_values(op: Op, left: &Value<'_>, right: &Value<'_>) -> bool {
    if let Value::Many(values) = right {
        return values.iter().any(|right| compare_values(op, left, right));
    }
    match (op, left, right) {
        (_, Value::Int(left), Value::Int(right)) if op.is_order() => ordered(op, left.cmp(right)),
        (Op::Lt | Op::Le | Op::Gt | Op::Ge, ..) => false,
        (Op::Glob, ..) => Glob::new(&right.to_text()).matches(&left.to_text()),
        (Op::IGlob, ..) => Glob::new(&right.to_text().to_lowercase()).matches(&left.to_text().to_lowercase()),
        (Op::PMatch, ..) => PathPrefix::new(&right.to_text()).matches(&left.to_text()),
        (Op::BContains, ..) => contains(left.to_text().as_bytes(), right.to_text().as_bytes()),
        (Op::BStartsWith, ..) => left.to_text().as_bytes().starts_with(right.to_text().as_bytes()),
        (Op::IContains, ..) => compare_texts(op, &left.to_text(), &right.to_text().to_lowercase()),
        _ => {
            let (left, right): (Cow<'_, str>, Cow<'_, str>) = (left.to_text(), right.to_text());
            compare_texts(op, &left, &right)
        }
    }
}
