//! Texts and patterns of EQL as SQL: literals, `*` and `?`, regular expressions, and what is asked of one element of a JSON array of texts.

use regex::Regex;

use super::wrong;
use crate::Error;

/// A text as SQL writes it.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Whether a pattern has `*` or `?`.
pub(super) fn is_wild(pattern: &str) -> bool {
    pattern.contains(['*', '?'])
}

/// Whether a value of a fixed list is one that a pattern means.
pub(super) fn matches(pattern: &str, insensitive: bool, wild: bool, value: &str) -> bool {
    let of = if wild { glob(pattern, Of::Value) } else { regex::escape(pattern) };
    Regex::new(&anchored(&[of], insensitive)).is_ok_and(|regex| regex.is_match(value))
}

/// The SQL that says whether a text is one of several, with `*` and `?` as any other characters.
pub(super) fn equal(text: &str, options: &[&str], insensitive: bool) -> String {
    let (text, options): (String, Vec<String>) = if insensitive {
        (format!("lower({text})"), options.iter().map(|option| literal(&option.to_lowercase())).collect())
    } else {
        (text.to_owned(), options.iter().map(|option| literal(option)).collect())
    };
    match options.as_slice() {
        [one] => format!("{text} = {one}"),
        several => format!("{text} IN ({})", several.join(", ")),
    }
}

/// The SQL that says whether a text is as one of several patterns. Those without `*` and `?` are compared; the others are one expression.
pub(super) fn like(text: &str, patterns: &[&str], insensitive: bool, line: usize) -> Result<String, Error> {
    let (wild, plain): (Vec<&str>, Vec<&str>) = patterns.iter().partition(|pattern| is_wild(pattern));
    let mut any = Vec::new();
    if !plain.is_empty() {
        any.push(equal(text, &plain, insensitive));
    }
    if !wild.is_empty() {
        let globs: Vec<String> = wild.iter().map(|pattern| glob(pattern, Of::Value)).collect();
        any.push(regexp(text, &anchored(&globs, insensitive), line)?);
    }
    Ok(if any.len() == 1 { any.remove(0) } else { format!("({})", any.join(" OR ")) })
}

/// The SQL that says whether a whole text is as one of several regular expressions says.
pub(super) fn whole(text: &str, patterns: &[&str], insensitive: bool, line: usize) -> Result<String, Error> {
    let patterns: Vec<String> = patterns.iter().map(|pattern| format!("(?:{pattern})")).collect();
    regexp(text, &anchored(&patterns, insensitive), line)
}

/// The SQL that says whether an element of a JSON array of texts, as our agents write it, is as one of several patterns.
pub(super) fn element(column: &str, patterns: &[&str], wild: bool, insensitive: bool, line: usize) -> Result<String, Error> {
    let one = |pattern: &&str| if wild { glob(pattern, Of::Json) } else { regex::escape(&in_json(pattern)) };
    let any: Vec<String> = patterns.iter().map(one).collect();
    let case = if insensitive { "(?i)" } else { "" };
    regexp(column, &format!(r#"{case}^\[(?:"{JSON_CHAR}*",)*"(?:{})"[,\]]"#, any.join("|")), line)
}

/// Where a pattern is held against a text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Value,
    /// As it is written in JSON.
    Json,
}

/// `*` and `?` as a regular expression.
fn glob(pattern: &str, of: Of) -> String {
    let mut found = String::new();
    for c in pattern.chars() {
        match (c, of) {
            ('*', Of::Value) => found.push_str(".*"),
            ('?', Of::Value) => found.push('.'),
            ('*', Of::Json) => {
                found.push_str(JSON_CHAR);
                found.push('*');
            }
            ('?', Of::Json) => found.push_str(JSON_CHAR),
            (other, Of::Value) => found.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
            (other, Of::Json) => found.push_str(&regex::escape(&in_json(other.encode_utf8(&mut [0; 4])))),
        }
    }
    found
}

/// A text as it stands between the quotes of JSON.
fn in_json(text: &str) -> String {
    let mut found = String::new();
    for c in text.chars() {
        match c {
            '"' => found.push_str("\\\""),
            '\\' => found.push_str("\\\\"),
            '\n' => found.push_str("\\n"),
            '\r' => found.push_str("\\r"),
            '\t' => found.push_str("\\t"),
            '\u{8}' => found.push_str("\\b"),
            '\u{c}' => found.push_str("\\f"),
            c if c < ' ' => found.push_str(&format!("\\u{:04x}", u32::from(c))),
            other => found.push(other),
        }
    }
    found
}

fn anchored(any: &[String], insensitive: bool) -> String {
    format!("(?s{})^(?:{})$", if insensitive { "i" } else { "" }, any.join("|"))
}

fn regexp(text: &str, pattern: &str, line: usize) -> Result<String, Error> {
    Regex::new(pattern).map_err(|why| {
        let why = why.to_string();
        let last = why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        wrong(line, format!("the pattern cannot be read ({last}): quote what is meant literally with \\"))
    })?;
    Ok(format!("regexp_like({text}, {})", literal(pattern)))
}

/// One character in a text of JSON.
const JSON_CHAR: &str = r#"(?:[^"\\]|\\u[0-9a-f]{4}|\\[^u])"#;
