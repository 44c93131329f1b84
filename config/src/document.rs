//! One configuration file while it is being checked: its text, the environment's overrides, and where each key stands.
//!
//! Every section checks its values through a `Document`, so that every complaint names the place, the key and the value
//! without the section knowing about files. Nothing here reads a file or the environment.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::agent::RawAgent;
use crate::demo::RawDemo;
use crate::error::Error;
use crate::node::RawNode;

/// A parsed file with its overrides; knows the line and the text of each key.
pub(crate) struct Document {
    file: PathBuf,
    spots: BTreeMap<String, Spot>,
    overrides: BTreeMap<String, Override>,
}

/// Where a key of the file stands and what is written there.
struct Spot {
    line: usize,
    key: Range<usize>,
    value: Range<usize>,
    text: String,
}

/// A key that the environment sets.
struct Override {
    variable: String,
    text: String,
}

impl Document {
    /// Parses `text` as `R`, with the variables of `environment` that begin with `WEIR_` laid over it.
    pub(crate) fn read<R: DeserializeOwned>(
        file: &Path,
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Self, R), Error> {
        let mut document = Self { file: file.to_owned(), spots: BTreeMap::new(), overrides: BTreeMap::new() };
        let tree = DeTable::parse(text).map_err(|error| document.syntax(text, &error))?;
        document.note_table("", tree.get_ref(), text);
        let raw = toml::from_str::<R>(text).map_err(|error| document.refusal(text, &error))?;
        let mut variables: Vec<_> =
            environment.into_iter().filter(|(name, _)| name.starts_with(PREFIX) && name != LOG_FILTER).collect();
        if variables.is_empty() {
            return Ok((document, raw));
        }
        variables.sort();
        let mut table = toml::from_str::<Table>(text).map_err(|error| document.syntax(text, &error))?;
        for (name, value) in variables {
            document.lay_over::<R>(&mut table, name, value)?;
        }
        let raw = Value::Table(table).try_into::<R>().map_err(|error| document.refusal(text, &error))?;
        Ok((document, raw))
    }

    /// A number, or its default when nothing is written; refused outside of `range`.
    pub(crate) fn number(&self, key: &str, raw: Option<i64>, default: u64, range: RangeInclusive<u64>) -> Result<u64, Error> {
        let Some(number) = raw else { return Ok(default) };
        match u64::try_from(number).ok().filter(|number| range.contains(number)) {
            Some(number) => Ok(number),
            None => Err(self.wrong(
                key,
                "out of range",
                format!("write a whole number from {} to {} (default {default})", range.start(), range.end()),
            )),
        }
    }

    /// A value that must be given.
    pub(crate) fn required<T>(&self, key: &str, raw: Option<T>, example: &str) -> Result<T, Error> {
        raw.ok_or_else(|| self.wrong(key, "missing", format!("add `{} = {example}`", key.rsplit('.').next().unwrap_or(key))))
    }

    /// Text that a type of the standard library or of this crate accepts; `cure` says what would be accepted.
    pub(crate) fn parsed<T: FromStr>(&self, key: &str, raw: &str, cure: &str) -> Result<T, Error>
    where
        T::Err: std::fmt::Display,
    {
        raw.parse().map_err(|error: T::Err| self.wrong(key, error.to_string(), cure))
    }

    /// A name of a tenant, host, node and the like: 1 to 128 characters out of `A-Z a-z 0-9 . _ -`.
    pub(crate) fn name(&self, key: &str, raw: String) -> Result<String, Error> {
        let plain = raw.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if plain && (1..=NAME_BYTES_MAX).contains(&raw.len()) {
            return Ok(raw);
        }
        Err(self.wrong(key, "not a name", "use 1 to 128 characters out of A-Z a-z 0-9 . _ -"))
    }

    /// A path; a relative one is relative to the folder of the configuration file.
    pub(crate) fn path(&self, key: &str, raw: &Path) -> Result<PathBuf, Error> {
        if raw.as_os_str().is_empty() {
            return Err(self.wrong(key, "empty path", "name a file or folder, relative to this file or absolute"));
        }
        let folder = self.file.parent().unwrap_or_else(|| Path::new(""));
        Ok(folder.join(raw))
    }

    /// A complaint about `key`, with its place and what is written there.
    pub(crate) fn wrong(&self, key: &str, problem: impl Into<String>, cure: impl Into<String>) -> Error {
        let (problem, cure) = (problem.into(), cure.into());
        if let Some(over) = self.overrides.get(key) {
            return over.wrong(key, problem, cure);
        }
        let spot = self.spots.get(key);
        // A key that is missing is looked for where its section or rule stands.
        let near = ancestors(key).find_map(|key| self.spots.get(key));
        let place = match near {
            Some(spot) => format!("{}:{}", self.file.display(), spot.line),
            None => self.file.display().to_string(),
        };
        Error::Key { place, key: key.to_owned(), value: spot.map(|spot| spot.text.clone()), problem, cure }
    }

    fn note_table(&mut self, path: &str, table: &DeTable<'_>, text: &str) {
        for (key, value) in table {
            let path = if path.is_empty() { key.get_ref().to_string() } else { format!("{path}.{}", key.get_ref()) };
            let spot = Spot {
                line: line_of(text, key.span().start),
                key: key.span(),
                value: value.span(),
                text: excerpt(text, value.span()),
            };
            self.spots.insert(path.clone(), spot);
            self.note_value(&path, value.get_ref(), text);
        }
    }

    fn note_value(&mut self, path: &str, value: &DeValue<'_>, text: &str) {
        match value {
            DeValue::Table(table) => self.note_table(path, table, text),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    let spot = Spot {
                        line: line_of(text, item.span().start),
                        key: 0..0,
                        value: item.span(),
                        text: excerpt(text, item.span()),
                    };
                    self.spots.insert(path.clone(), spot);
                    self.note_value(&path, item.get_ref(), text);
                }
            }
            _ => {}
        }
    }

    /// Writes one variable into `table`, as a TOML value when `R` takes it as such, else as text.
    fn lay_over<R: DeserializeOwned>(&mut self, table: &mut Table, variable: String, text: String) -> Result<(), Error> {
        let path: Vec<String> = variable[PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
        let key = path.join(".");
        let over = Override { variable, text };
        let as_toml = toml::from_str::<Table>(&format!("value = {}", over.text)).ok().and_then(|mut table| table.remove("value"));
        let mut first: Option<toml::de::Error> = None;
        for value in as_toml.into_iter().chain([Value::String(over.text.clone())]) {
            let mut trial = table.clone();
            if !insert(&mut trial, &path, value) {
                return Err(over.wrong(&key, "the file holds a plain value above this key".into(), "unset this variable".into()));
            }
            match Value::Table(trial.clone()).try_into::<R>() {
                Ok(_) => {
                    *table = trial;
                    self.overrides.insert(key, over);
                    return Ok(());
                }
                Err(error) => first = first.or(Some(error)),
            }
        }
        let error = first.expect("at least the text itself was tried");
        let Some(unknown) = Unknown::of(error.message()) else {
            let cure = cure_of_type(&key, &over.text);
            return Err(over.wrong(&key, plain(error.message()), cure));
        };
        // A variable without a section that is no key belongs to somebody else, as do sections of the roles that share this environment.
        let others = path.len() == 1 || (unknown.key == path[0] && is_section(&path[0]));
        if others { Ok(()) } else { Err(over.wrong(&key, "unknown key".into(), unknown.cure())) }
    }

    fn syntax(&self, text: &str, error: &toml::de::Error) -> Error {
        let line = line_of(text, error.span().map_or(0, |span| span.start));
        Error::Syntax { place: format!("{}:{line}", self.file.display()), problem: plain(error.message()) }
    }

    /// Turns what serde said about the file into a complaint about a key.
    fn refusal(&self, text: &str, error: &toml::de::Error) -> Error {
        let Some(span) = error.span() else { return self.wrong("(file)", error.message(), "correct this file") };
        let holder = self.spots.iter().filter(|(_, spot)| spot.holds(&span)).max_by_key(|(key, _)| key.len());
        let Some((key, spot)) = holder else { return self.syntax(text, error) };
        match Unknown::of(error.message()) {
            Some(unknown) => self.wrong(key, "unknown key", unknown.cure()),
            None => self.wrong(key, plain(error.message()), cure_of_type(key, &spot.text)),
        }
    }
}

impl Spot {
    fn holds(&self, span: &Range<usize>) -> bool {
        self.key.contains(&span.start) || (self.value.contains(&span.start) && self.value.end >= span.end)
    }
}

impl Override {
    fn wrong(&self, key: &str, problem: String, cure: String) -> Error {
        let place = format!("environment {}", self.variable);
        Error::Key { place, key: key.to_owned(), value: Some(excerpt(&self.text, 0..self.text.len())), problem, cure }
    }
}

/// serde's message about a key that nobody knows.
struct Unknown {
    key: String,
    known: Vec<String>,
}

impl Unknown {
    fn of(message: &str) -> Option<Self> {
        let rest = message.strip_prefix("unknown field `")?;
        let (key, rest) = rest.split_once('`')?;
        let known = rest.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Some(Self { key: key.to_owned(), known })
    }

    fn cure(&self) -> String {
        let near = self.known.iter().map(|known| (distance(&self.key, known), known)).min();
        match near {
            Some((distance, known)) if distance <= 1 + self.key.len() / 4 => format!("did you mean `{known}`?"),
            _ => format!("remove it; known here: {}", self.known.join(", ")),
        }
    }
}

/// Whether some role has a section of this name.
fn is_section(name: &str) -> bool {
    fn takes<R: DeserializeOwned>(name: &str) -> bool {
        let table = Table::from_iter([(name.to_owned(), Value::Table(Table::new()))]);
        let refused = Value::Table(table).try_into::<R>().err();
        refused.is_none_or(|error| Unknown::of(error.message()).is_none_or(|unknown| unknown.key != name))
    }
    takes::<RawNode>(name) || takes::<RawAgent>(name) || takes::<RawDemo>(name)
}

/// Sizes and times are whole numbers, their unit stands in the key. Whoever writes "8MiB" or "10ms" is told the number.
fn cure_of_type(key: &str, text: &str) -> String {
    let bare = text.trim_matches('"').trim();
    let split = bare.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(bare.len());
    let number = bare[..split].replace('_', "").parse::<u64>().ok();
    let factor = match (bare[split..].trim(), key.contains("_bytes"), key.contains("_ms")) {
        ("" | "B", true, _) | ("" | "ms", _, true) => Some(1),
        ("KiB" | "K" | "k", true, _) => Some(1 << 10),
        ("MiB" | "M", true, _) => Some(1 << 20),
        ("GiB" | "G", true, _) => Some(1 << 30),
        ("kB" | "KB", true, _) | ("s", _, true) => Some(1_000),
        ("MB", true, _) => Some(1_000_000),
        ("m" | "min", _, true) => Some(60_000),
        ("h", _, true) => Some(3_600_000),
        _ => None,
    };
    match number.zip(factor).and_then(|(number, factor)| number.checked_mul(factor)) {
        Some(number) => format!("write {number} without quotes: the unit stands in the key"),
        None => "write the type that the key takes, see the commented file in config/examples".to_owned(),
    }
}

fn insert(table: &mut Table, path: &[String], value: Value) -> bool {
    let Some((last, folders)) = path.split_last() else { return false };
    let mut here = table;
    for folder in folders {
        let Value::Table(inner) = here.entry(folder.clone()).or_insert_with(|| Value::Table(Table::new())) else { return false };
        here = inner;
    }
    here.insert(last.clone(), value);
    true
}

/// The key itself, then what holds it: `apps[0].app`, `apps[0]`, `apps`.
fn ancestors(key: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(key), |key| key.rfind(['.', '[']).map(|at| &key[..at]))
}

/// What the parser said, on one line and in the words of people.
fn plain(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join(", ").replace("expected i64", "expected a whole number")
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}

/// What is written in `span`, on one line, at most 60 characters.
fn excerpt(text: &str, span: Range<usize>) -> String {
    let flat = text.get(span).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    if flat.chars().count() <= EXCERPT_CHARS_MAX {
        return flat;
    }
    flat.chars().take(EXCERPT_CHARS_MAX).chain("…".chars()).collect()
}

/// Edits between two words (Levenshtein), for "did you mean".
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

/// What an environment variable begins with to be an override.
const PREFIX: &str = "WEIR_";
/// Not ours, though there is a section of that name: what the programs write to standard error.
const LOG_FILTER: &str = "WEIR_LOG";
/// Longest name, in bytes: the wire's own limit.
const NAME_BYTES_MAX: usize = 128;
/// Longest value that an error repeats.
const EXCERPT_CHARS_MAX: usize = 60;
