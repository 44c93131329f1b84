//! Sigma's condition language: text to tree.
//!
//! ```text
//! or   = and ("or" and)*
//! and  = not ("and" not)*
//! not  = "not"* ( "(" or ")" | (1 | any | all) "of" (them | pattern) | selection )
//! ```
//!
//! Words are case-insensitive but for selections' names. `them` and patterns leave out names that begin with `_`, unless the
//! pattern does, too. The aggregations of old rules (`| count() > 5`) are refused: correlation rules took their place.

use crate::error::{Fault, Why, shown};
use crate::limits::{CONDITION_BYTES_MAX, CONDITION_DEPTH_MAX};
use crate::text::{Glob, Piece};

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    /// Never empty.
    And(Vec<Self>),
    /// Never empty.
    Or(Vec<Self>),
    Not(Box<Self>),
    Selection(String),
    Of(Quantity, Group),
}

/// How many of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quantity {
    One,
    All,
}

/// Which selections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Group {
    Them,
    Named(String),
}

impl Group {
    /// Whether a selection belongs to it.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Them => !name.starts_with('_'),
            Self::Named(pattern) => {
                let pieces = pattern.chars().map(|c| if c == '*' { Piece::Star } else { Piece::Char(c) });
                (pattern.starts_with('_') || !name.starts_with('_')) && Glob::of(pieces).matches(name)
            }
        }
    }

    /// As written.
    pub(super) fn text(&self) -> &str {
        if let Self::Named(pattern) = self { pattern } else { "them" }
    }
}

/// Parses a condition.
pub(super) fn parse(text: &str) -> Result<Condition, Fault> {
    if text.len() > CONDITION_BYTES_MAX {
        let what = format!("the condition has {} bytes, {CONDITION_BYTES_MAX} are allowed", text.len());
        return Err(Fault::new(Why::Limit, what, "split the rule"));
    }
    if text.contains('|') {
        let what = "the condition has an aggregation behind |, which Sigma 2 no longer has";
        return Err(Fault::new(Why::Unsupported, what, "drop it, or count in SQL over the rule's alerts"));
    }
    let mut parser = Parser { words: words(text)?, at: 0, depth: 0 };
    let condition = parser.or()?;
    if parser.at < parser.words.len() {
        return Err(parser.unexpected("\"and\", \"or\" or the end"));
    }
    Ok(condition)
}

fn words(text: &str) -> Result<Vec<&str>, Fault> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(c) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '*' | '?');
        let length = match c {
            '(' | ')' => 1,
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            _ => {
                let near: String = rest.chars().take(30).collect();
                let what = format!("the condition has {} where a selection or an operator has to stand", shown(&near));
                return Err(Fault::new(Why::Syntax, what, "write selections, and, or, not, 1 of, all of, parentheses"));
            }
        };
        words.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    Ok(words)
}

struct Parser<'a> {
    words: Vec<&'a str>,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn or(&mut self) -> Result<Condition, Fault> {
        let mut parts = vec![self.and()?];
        while self.keyword("or") {
            parts.push(self.and()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Condition::Or(parts) })
    }

    fn and(&mut self) -> Result<Condition, Fault> {
        let mut parts = vec![self.not()?];
        while self.keyword("and") {
            parts.push(self.not()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Condition::And(parts) })
    }

    fn not(&mut self) -> Result<Condition, Fault> {
        let mut negated = false;
        while self.keyword("not") {
            negated = !negated;
        }
        let one = self.one()?;
        Ok(if negated { Condition::Not(Box::new(one)) } else { one })
    }

    fn one(&mut self) -> Result<Condition, Fault> {
        if self.keyword("(") {
            self.depth += 1;
            if self.depth > CONDITION_DEPTH_MAX {
                let what = format!("the condition is nested deeper than {CONDITION_DEPTH_MAX}");
                return Err(Fault::new(Why::Limit, what, "drop parentheses, or split the rule"));
            }
            let inner = self.or()?;
            if !self.keyword(")") {
                return Err(self.unexpected("\")\""));
            }
            self.depth -= 1;
            return Ok(inner);
        }
        let word = self.words.get(self.at).copied().unwrap_or("");
        if self.words.get(self.at + 1).is_some_and(|next| next.eq_ignore_ascii_case("of")) {
            let quantity = match word.to_ascii_lowercase().as_str() {
                "1" | "any" | "one" => Quantity::One,
                "all" => Quantity::All,
                _ => {
                    let what = format!("{} of … is no quantity", shown(word));
                    return Err(Fault::new(Why::Unsupported, what, "Sigma knows 1 of and all of"));
                }
            };
            self.at += 2;
            let group = match self.words.get(self.at) {
                Some(word) if word.eq_ignore_ascii_case("them") => Group::Them,
                Some(word) if is_name(word) => Group::Named((*word).to_owned()),
                _ => return Err(self.unexpected("them or the names of selections")),
            };
            self.at += 1;
            return Ok(Condition::Of(quantity, group));
        }
        if !is_name(word) || word.contains(['*', '?']) {
            return Err(self.unexpected("a selection, \"not\" or \"(\""));
        }
        self.at += 1;
        Ok(Condition::Selection(word.to_owned()))
    }

    fn keyword(&mut self, wanted: &str) -> bool {
        let here = self.words.get(self.at).is_some_and(|word| word.eq_ignore_ascii_case(wanted));
        self.at += usize::from(here);
        here
    }

    fn unexpected(&self, wanted: &str) -> Fault {
        let what = match self.words.get(self.at) {
            Some(word) => format!("the condition has {} where {wanted} has to stand", shown(word)),
            None => format!("the condition ends where {wanted} has to stand"),
        };
        Fault::new(Why::Syntax, what, "check operators and parentheses before it")
    }
}

fn is_name(word: &str) -> bool {
    !["", "(", ")", "and", "or", "not", "of", "them"].contains(&word.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn show(condition: &Condition) -> String {
        let all = |word: &str, parts: &[Condition]| format!("({word} {})", parts.iter().map(show).collect::<Vec<_>>().join(" "));
        match condition {
            Condition::And(parts) => all("and", parts),
            Condition::Or(parts) => all("or", parts),
            Condition::Not(part) => format!("(not {})", show(part)),
            Condition::Selection(name) => name.clone(),
            Condition::Of(quantity, group) => format!("[{quantity:?} {}]", group.text()),
        }
    }

    #[test]
    fn not_binds_more_than_and_more_than_or() {
        let cases = [
            ("a", "a"),
            ("a or b and not c", "(or a (and b (not c)))"),
            ("(a OR b) AND NOT (c)", "(and (or a b) (not c))"),
            ("not not a", "a"),
            ("1 of sel_* and not 1 of filter_main_*", "(and [One sel_*] (not [One filter_main_*]))"),
            ("all of them", "[All them]"),
            ("any of sel* or All of Them", "(or [One sel*] [All them])"),
            ("notify and order", "(and notify order)"),
        ];
        for (text, wanted) in cases {
            assert_eq!(parse(text).map(|condition| show(&condition)).as_deref(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_does_not_follow_the_grammar_is_refused() {
        let cases = [
            ("", Why::Syntax),
            ("a b", Why::Syntax),
            ("a and", Why::Syntax),
            ("(a", Why::Syntax),
            ("a)", Why::Syntax),
            ("sel*", Why::Syntax),
            ("1 of", Why::Syntax),
            ("2 of sel*", Why::Unsupported),
            ("a | count() > 5", Why::Unsupported),
            ("a & b", Why::Syntax),
        ];
        for (text, why) in cases {
            assert_eq!(parse(text).map_err(|fault| fault.why), Err(why), "{text}");
        }
        assert_eq!(parse(&"(".repeat(1_000)).map_err(|fault| fault.why), Err(Why::Limit));
    }

    #[test]
    fn underscores_hide_selections() {
        assert!(Group::Them.has("a") && !Group::Them.has("_a"));
        let named = |pattern: &str| Group::Named(pattern.to_owned());
        assert!(named("sel*").has("sel_a") && named("*").has("x") && !named("*").has("_x") && named("_*").has("_x"));
        assert!(!named("s[a-z]l").has("sel") && named("*_x_*").has("a_x_b"));
    }

    proptest! {
        #[test]
        fn any_text_never_panics(text in "(and|or|not|of|1|all|them|\\(|\\)| |\\*|é|\\PC){0,40}") {
            let _ = parse(&text);
        }
    }
}
