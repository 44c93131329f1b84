//! What Sigma compares a value with: texts with wildcards, regular expressions, networks, numbers, parts of a date, fields.
//!
//! Texts compare without regard to upper and lower case (character by character, Unicode), unless `cased` says otherwise. One
//! pattern holds all texts of a list, sorted by how they are tried: whole texts by hash, ends by comparison, only what has
//! wildcards elsewhere by a matcher that is linear in text times pattern.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::IpAddr;

use regex::{Regex, RegexBuilder};
use weir_schema::parse_time;

use crate::ast::Op;
use crate::check::{Of, ordered};
use crate::error::{Fault, Why, shown};
use crate::limits::REGEX_BYTES_MAX;
use crate::text::{Glob, Network, Piece as GlobPiece};
use crate::value::{FieldSource, Value};

/// A comparison's right side, as a key: equal ones are compiled once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Pattern {
    /// One of these texts.
    Like { cased: bool, any: Vec<Like> },
    /// A regular expression, anywhere in the text.
    Regex { text: String, insensitive: bool, lines: bool, dot_all: bool },
    /// An address in a network.
    Network(String),
    /// A whole number; `op` compares sizes.
    Number { op: Op, bound: i64 },
    /// A part of a date, in UTC.
    Date { part: DatePart, op: Op, bound: i64 },
    /// The value of another field.
    Field { of: Of, at: At, cased: bool },
}

/// Where in a text another one stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum At {
    Whole,
    Start,
    End,
    Anywhere,
}

/// What is asked of a date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum DatePart {
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Year,
}

/// A text with wildcards. Never two texts or two `Many` in a row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Like(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Piece {
    Text(String),
    /// `?`
    One,
    /// `*`
    Many,
    /// Any of the characters that begin an option of a Windows command.
    Dash,
}

/// The characters of `Piece::Dash`.
pub(crate) const DASHES: [char; 5] = ['-', '/', '–', '—', '―'];

impl Like {
    pub(crate) fn push(&mut self, piece: Piece) {
        match (self.0.last_mut(), piece) {
            (_, Piece::Text(text)) if text.is_empty() => {}
            (Some(Piece::Text(last)), Piece::Text(text)) => last.push_str(&text),
            (Some(Piece::Many), Piece::Many) => {}
            (_, piece) => self.0.push(piece),
        }
    }

    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.0
    }

    /// With `*` where the text may go on.
    pub(crate) fn at(&self, at: At) -> Self {
        let mut like = Self::default();
        if matches!(at, At::End | At::Anywhere) {
            like.push(Piece::Many);
        }
        self.0.iter().for_each(|piece| like.push(piece.clone()));
        if matches!(at, At::Start | At::Anywhere) {
            like.push(Piece::Many);
        }
        like
    }

    /// The text, if it has no wildcards.
    pub(crate) fn plain(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    fn glob(&self, cased: bool) -> Glob {
        let dashes = || DASHES.iter().map(|c| (*c, *c)).collect();
        Glob::of(self.0.iter().flat_map(|piece| match piece {
            Piece::Text(text) => folded(text, cased).chars().map(GlobPiece::Char).collect(),
            Piece::One => vec![GlobPiece::Any],
            Piece::Many => vec![GlobPiece::Star],
            Piece::Dash => vec![GlobPiece::Set { negated: false, ranges: dashes() }],
        }))
    }
}

/// A compiled pattern.
#[derive(Debug)]
pub(crate) enum PatternTest {
    Like(Box<Texts>),
    Regex(Regex),
    Network(Network),
    Number(Op, i64),
    Date(DatePart, Op, i64),
    Field(Of, At, bool),
}

/// Texts by how they are tried.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    cased: bool,
    whole: HashSet<Box<str>>,
    starts: Vec<String>,
    ends: Vec<String>,
    parts: Vec<String>,
    others: Vec<Glob>,
}

impl Pattern {
    /// How much of the limit on operands it takes.
    pub(crate) fn operands(&self) -> usize {
        if let Self::Like { any, .. } = self { any.len() } else { 1 }
    }

    /// The fields on the right side.
    pub(crate) fn of(&self) -> Option<&Of> {
        if let Self::Field { of, .. } = self { Some(of) } else { None }
    }

    pub(crate) fn compile(&self) -> Result<PatternTest, Fault> {
        Ok(match self {
            Self::Like { cased, any } => PatternTest::Like(Box::new(Texts::new(any, *cased))),
            Self::Regex { text, insensitive, lines, dot_all } => {
                let mut builder = RegexBuilder::new(text);
                builder.case_insensitive(*insensitive).multi_line(*lines).dot_matches_new_line(*dot_all);
                PatternTest::Regex(builder.size_limit(REGEX_BYTES_MAX).build().map_err(|error| regex_fault(text, &error))?)
            }
            Self::Network(text) => PatternTest::Network(Network::parse(text).ok_or_else(|| {
                Fault::new(Why::Value, format!("{} is no network", shown(text)), "write one like 10.0.0.0/8 or fd00::/8")
            })?),
            Self::Number { op, bound } => PatternTest::Number(*op, *bound),
            Self::Date { part, op, bound } => PatternTest::Date(*part, *op, *bound),
            Self::Field { of, at, cased } => PatternTest::Field(of.clone(), *at, *cased),
        })
    }
}

fn regex_fault(text: &str, error: &regex::Error) -> Fault {
    let text_of = error.to_string();
    let why = text_of.lines().last().unwrap_or("it does not compile").trim_start_matches("error: ").to_owned();
    let what = format!("the regular expression {} is wrong: {why}", shown(text));
    Fault::new(Why::Regex, what, "correct it; look-around and back-references are not part of the language")
}

impl PatternTest {
    pub(crate) fn passes(&self, value: &Value<'_>, source: &(impl FieldSource + ?Sized)) -> bool {
        match self {
            Self::Like(texts) => texts.has(&value.to_text()),
            Self::Regex(regex) => regex.is_match(&value.to_text()),
            Self::Network(network) => match value {
                Value::Ip(ip) => network.contains(*ip),
                other => other.to_text().parse::<IpAddr>().is_ok_and(|ip| network.contains(ip)),
            },
            Self::Number(op, bound) => int(value).is_some_and(|int| ordered(*op, int.cmp(bound))),
            Self::Date(part, op, bound) => {
                let time = int(value).or_else(|| parse_time(&value.to_text()));
                time.is_some_and(|time| ordered(*op, part.of(time).cmp(bound)))
            }
            Self::Field(of, at, cased) => {
                let left = value.to_text();
                let left = folded(&left, *cased);
                of.value(source).is_some_and(|right| match &right {
                    Value::Many(values) => values.iter().any(|right| stands(&left, *at, &folded(&right.to_text(), *cased))),
                    one => stands(&left, *at, &folded(&one.to_text(), *cased)),
                })
            }
        }
    }
}

fn int(value: &Value<'_>) -> Option<i64> {
    match value {
        Value::Int(int) => Some(*int),
        Value::Text(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn stands(text: &str, at: At, part: &str) -> bool {
    match at {
        At::Whole => text == part,
        At::Start => text.starts_with(part),
        At::End => text.ends_with(part),
        At::Anywhere => text.contains(part),
    }
}

impl Texts {
    fn new(any: &[Like], cased: bool) -> Self {
        let mut texts = Self { cased, ..Self::default() };
        let fold = |text: &String| folded(text, cased).into_owned();
        for like in any {
            match like.pieces() {
                [] => _ = texts.whole.insert("".into()),
                [Piece::Text(text)] => _ = texts.whole.insert(fold(text).into()),
                [Piece::Many] => texts.parts.push(String::new()),
                [Piece::Text(text), Piece::Many] => texts.starts.push(fold(text)),
                [Piece::Many, Piece::Text(text)] => texts.ends.push(fold(text)),
                [Piece::Many, Piece::Text(text), Piece::Many] => texts.parts.push(fold(text)),
                _ => texts.others.push(like.glob(cased)),
            }
        }
        texts
    }

    fn has(&self, text: &str) -> bool {
        let text = folded(text, self.cased);
        let text = text.as_ref();
        (!self.whole.is_empty() && self.whole.contains(text))
            || self.starts.iter().any(|start| text.starts_with(start.as_str()))
            || self.ends.iter().any(|end| text.ends_with(end.as_str()))
            || self.parts.iter().any(|part| text.contains(part.as_str()))
            || self.others.iter().any(|glob| glob.matches(text))
    }
}

/// The text in lower case. Each character by itself: `str::to_lowercase` looks at neighbours, and a part has others.
fn folded(text: &str, cased: bool) -> Cow<'_, str> {
    let is_upper = |c: char| if c.is_ascii() { c.is_ascii_uppercase() } else { c.is_uppercase() };
    if cased || !text.contains(is_upper) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(if text.is_ascii() { text.to_ascii_lowercase() } else { text.chars().flat_map(char::to_lowercase).collect() })
}

impl DatePart {
    /// The part of a time in nanoseconds since 1970, UTC.
    fn of(self, time: i64) -> i64 {
        let seconds = time.div_euclid(NS_PER_S);
        let days = seconds.div_euclid(S_PER_DAY);
        let second = seconds.rem_euclid(S_PER_DAY);
        let (year, month, day) = civil(days);
        match self {
            Self::Minute => second / 60 % 60,
            Self::Hour => second / 3_600,
            Self::Day => day,
            Self::Week => week(days),
            Self::Month => month,
            Self::Year => year,
        }
    }
}

/// Year, month and day of a day since 1970 (Gregorian calendar; years begin in March to put the leap day last).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The week of ISO 8601: the first one has the year's first Thursday.
fn week(days: i64) -> i64 {
    let weekday = (days + 3).rem_euclid(7);
    let thursday = days - weekday + 3;
    let (year, ..) = civil(thursday);
    let mut first = thursday;
    while civil(first - 7).0 == year {
        first -= 7;
    }
    (thursday - first) / 7 + 1
}

const NS_PER_S: i64 = 1_000_000_000;
const S_PER_DAY: i64 = 86_400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_date() {
        let cases = [
            ("2025-08-02T23:59:30Z", [59, 23, 2, 31, 8, 2025]),
            ("2024-12-30T00:00:00Z", [0, 0, 30, 1, 12, 2024]),
            ("2021-01-01T10:05:00Z", [5, 10, 1, 53, 1, 2021]),
            ("1969-12-31T23:00:00Z", [0, 23, 31, 1, 12, 1969]),
            ("2024-02-29T12:00:00Z", [0, 12, 29, 9, 2, 2024]),
        ];
        for (text, wanted) in cases {
            let time = parse_time(text).unwrap();
            use DatePart::*;
            let found = [Minute, Hour, Day, Week, Month, Year].map(|part| part.of(time));
            assert_eq!(found, wanted, "{text}");
        }
    }

    #[test]
    fn case_is_folded_by_character() {
        assert_eq!((folded("ÄB", false), folded("ÄB", true), folded("ab", false)), ("äb".into(), "ÄB".into(), "ab".into()));
        assert_eq!(folded("ΟΔΟΣ", false), "οδοσ");
    }
}
