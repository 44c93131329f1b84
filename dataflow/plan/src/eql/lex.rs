//! Words of EQL, each with its line. Comments are `// …` and `/* … */`.

use super::{BYTES_MAX, refused, wrong};
use crate::Error;

/// A word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A name, or a keyword.
    Word(String),
    /// A name in backticks: never a keyword.
    Quoted(String),
    /// Its value.
    Text(String),
    /// Digits, as they are written.
    Number(String),
    Symbol(&'static str),
}

/// A word and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lexed {
    pub(super) token: Token,
    /// From 1.
    pub(super) line: usize,
}

/// Longer ones first.
const SYMBOLS: [&str; 22] =
    ["==", "!=", "<=", ">=", "<", ">", "=", ":", "(", ")", "[", "]", ",", ".", "+", "-", "*", "/", "%", "?", "!", "|"];

/// Reads all words.
pub(super) fn lex(text: &str) -> Result<Vec<Lexed>, Error> {
    if text.len() > BYTES_MAX {
        return Err(wrong(1, format!("the query has {} bytes, {BYTES_MAX} are allowed: split it", text.len())));
    }
    let (mut rest, mut line, mut found) = (text, 1, Vec::new());
    while let Some(first) = rest.chars().next() {
        let (token, used) = if first.is_whitespace() {
            (None, first.len_utf8())
        } else if let Some(comment) = comment(rest, line)? {
            (None, comment)
        } else {
            let (token, used) = word(rest, first, line)?;
            (Some(token), used)
        };
        let (taken, behind) = rest.split_at(used);
        found.extend(token.map(|token| Lexed { token, line }));
        line += taken.matches('\n').count();
        rest = behind;
    }
    Ok(found)
}

/// The length of a comment that begins here.
fn comment(rest: &str, line: usize) -> Result<Option<usize>, Error> {
    if rest.starts_with("//") {
        return Ok(Some(rest.find('\n').unwrap_or(rest.len())));
    }
    if !rest.starts_with("/*") {
        return Ok(None);
    }
    let end = rest[2..].find("*/").ok_or_else(|| wrong(line, "a comment begins with /* and has no */"))?;
    Ok(Some(end + 4))
}

fn word(rest: &str, first: char, line: usize) -> Result<(Token, usize), Error> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '@';
    let length = |is: fn(char) -> bool| rest.find(|c: char| !is(c)).unwrap_or(rest.len());
    if first.is_ascii_digit() {
        let whole = length(|c| c.is_ascii_digit());
        let fraction = rest[whole..].strip_prefix('.').filter(|behind| behind.starts_with(|c: char| c.is_ascii_digit()));
        let fraction = fraction.map_or(0, |behind| 1 + behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len()));
        return Ok((Token::Number(rest[..whole + fraction].to_owned()), whole + fraction));
    }
    if is_name(first) {
        let used = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
        return Ok((Token::Word(rest[..used].to_owned()), used));
    }
    match first {
        '`' => {
            let end = rest[1..].find('`').ok_or_else(|| wrong(line, "a name begins with ` and has no ` at its end"))?;
            Ok((Token::Quoted(rest[1..=end].to_owned()), end + 2))
        }
        '"' => match rest.strip_prefix("\"\"\"") {
            Some(raw) => {
                let end =
                    raw.find("\"\"\"").ok_or_else(|| wrong(line, "a text begins with \"\"\" and has no \"\"\" at its end"))?;
                Ok((Token::Text(raw[..end].to_owned()), end + 6))
            }
            None => text(rest, line),
        },
        '\'' => Err(refused(line, "a text in single quotes", "write it in double quotes")),
        // `in~`, `like~`, `length~(`.
        '~' => Ok((Token::Symbol("~"), 1)),
        _ => {
            let symbol = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol));
            let symbol = symbol.ok_or_else(|| wrong(line, format!("{first:?} is no part of EQL: quote it if it is a value")))?;
            Ok((Token::Symbol(symbol), symbol.len()))
        }
    }
}

/// A text in double quotes.
fn text(rest: &str, line: usize) -> Result<(Token, usize), Error> {
    let (mut value, mut chars) = (String::new(), rest.char_indices().skip(1));
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Token::Text(value), at + 1)),
            '\n' => break,
            '\\' => match chars.next().map(|(_, escaped)| escaped) {
                Some('n') => value.push('\n'),
                Some('r') => value.push('\r'),
                Some('t') => value.push('\t'),
                Some('b') => value.push('\u{8}'),
                Some('f') => value.push('\u{c}'),
                Some(same @ ('"' | '\'' | '\\')) => value.push(same),
                Some('u') => {
                    let digits: String = chars.by_ref().skip(1).map(|(_, c)| c).take_while(|c| *c != '}').take(9).collect();
                    let known = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                    value.push(known.ok_or_else(|| wrong(line, format!("\\u{{{digits}}} is no character: give 2 to 8 digits")))?);
                }
                other => {
                    let other = other.map_or_else(|| "the end".to_owned(), |c| format!("\\{c}"));
                    return Err(wrong(
                        line,
                        format!("{other} in a text: write \\\\ for a backslash, or the text in \"\"\"…\"\"\""),
                    ));
                }
            },
            other => value.push(other),
        }
    }
    Err(wrong(line, "a text begins with \" and has no \" on its line"))
}
