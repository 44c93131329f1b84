//! What is wrong with a rule file: where, what, and what to do about it.

use std::fmt;
use std::sync::Arc;

/// A place in a rule file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// The file as the caller named it.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Which class of mistake it is: what a caller may act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The text is not YAML, or not an array of items.
    Yaml,
    /// A key is missing, unknown or of the wrong shape.
    Shape,
    /// A condition does not follow the grammar.
    Syntax,
    /// A macro that no file defines.
    UnknownMacro,
    /// A list that no file defines.
    UnknownList,
    /// A list or macro that names itself, directly or through others.
    Cycle,
    /// A field that Falco does not know.
    UnknownField,
    /// A value that its field or operator cannot take.
    Value,
    /// A regular expression that does not compile.
    Regex,
    /// The file asks for a newer engine.
    Version,
    /// A part of the language that is not built.
    Unsupported,
    /// A limit of `limits` is exceeded.
    Limit,
}

/// One mistake in a rule file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {subject}{what}; {cure}")]
pub struct Error {
    /// Class of the mistake.
    pub why: Why,
    /// File and line.
    pub place: Place,
    /// `rule "X": `, `macro "X": `, or nothing when it is the file itself.
    pub subject: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub cure: String,
}

impl Error {
    pub(crate) fn new(why: Why, place: &Place, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { why, place: place.clone(), subject: String::new(), what: what.into(), cure: cure.into() }
    }

    /// Says which item it is about, if nothing nearer said so.
    pub(crate) fn about(mut self, item: &str, name: &str) -> Self {
        if self.subject.is_empty() {
            self.subject = format!("{item} {}: ", shown(name));
        }
        self
    }
}

/// A mistake before its place is known: the condition language knows no files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) why: Why,
    pub(crate) what: String,
    pub(crate) cure: String,
    /// Whether `what` already names the macro or list it came through.
    is_named: bool,
}

impl Fault {
    pub(crate) fn new(why: Why, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { why, what: what.into(), cure: cure.into(), is_named: false }
    }

    /// The same fault as who names `item` sees it. Only the item where it arose is named, however long the way.
    pub(crate) fn through(&self, item: &str, name: &str) -> Self {
        if self.is_named {
            return self.clone();
        }
        Self { what: format!("the {item} {} is wrong: {}", shown(name), self.what), is_named: true, ..self.clone() }
    }

    pub(crate) fn at(self, place: &Place) -> Error {
        Error::new(self.why, place, self.what, self.cure)
    }
}

/// Somebody else's text in quotes, cut to a length that fits a line.
pub(crate) fn shown(text: &str) -> String {
    let mut cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

const SHOWN_CHARS_MAX: usize = 80;
