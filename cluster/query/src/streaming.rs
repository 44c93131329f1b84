//! `SUBSCRIBE`, `COPY (…) TO STDOUT` and cursors, which the parser does not know: read word by word.
//!
//! ```text
//! SUBSCRIBE [TO] relation | (query) [WITH (PROGRESS, SNAPSHOT = false)] [AS OF tick] [UP TO tick]
//! COPY (query | SUBSCRIBE …) TO STDOUT [[WITH] (FORMAT text | csv, HEADER)]
//! DECLARE name CURSOR FOR query | SUBSCRIBE …
//! FETCH [FORWARD] [NEXT | n | ALL] [FROM | IN] name [WITH (TIMEOUT = '1s')]
//! CLOSE name | ALL
//! ```

use std::time::Duration;

use datafusion::sql::sqlparser::tokenizer::Token;

use crate::error::{self, SqlError};
use crate::rules;
use crate::sinks;
use crate::source_text;
use crate::statement::{self, Asked, Statement};

/// SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subscribe {
    /// To what.
    pub(crate) to: Target,
    /// Rows say how far it is.
    pub(crate) progress: bool,
    /// It begins with the rows that are there.
    pub(crate) snapshot: bool,
    /// The tick that it begins at; none: the newest.
    pub(crate) as_of: Option<u64>,
    /// The first tick that it does not tell any more.
    pub(crate) up_to: Option<u64>,
}

/// What is subscribed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A relation by its name.
    Relation(String),
    /// A query.
    Query(String),
}

/// What a COPY or a cursor reads.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// Changes.
    Subscribe(Subscribe),
    /// Rows.
    Query(Box<Asked>),
}

/// COPY … TO STDOUT.
#[derive(Debug, Clone)]
pub(crate) struct CopyOut {
    pub(crate) source: Source,
    pub(crate) format: CopyFormat,
    /// Names come first.
    pub(crate) header: bool,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyFormat {
    Text,
    Csv,
}

/// DECLARE … CURSOR.
#[derive(Debug, Clone)]
pub(crate) struct Declare {
    pub(crate) cursor: String,
    pub(crate) source: Source,
}

/// FETCH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fetch {
    pub(crate) cursor: String,
    /// At most so many rows; none: all that are there.
    pub(crate) rows: Option<usize>,
    /// How long to wait for them; none: until there is one.
    pub(crate) within: Option<Duration>,
}

/// A statement of a text.
pub(crate) enum Piece {
    /// One of this file's.
    Streaming(Statement),
    /// Another one.
    Other(String),
}

/// Splits a text into its statements when one of them is of this file's; nothing when none is.
pub(crate) fn split(sql: &str) -> Result<Option<Vec<Piece>>, SqlError> {
    let lower = sql.to_ascii_lowercase();
    if !FIRST_WORDS.iter().any(|word| lower.contains(word)) && !["rule", "sink"].iter().any(|word| lower.contains(word)) {
        return Ok(None);
    }
    // What cannot be split into words the parser tells better.
    let Ok((tokens, texts)) = source_text::tokens(sql) else { return Ok(None) };
    let mut pieces = Vec::new();
    let mut any = false;
    let mut begin = 0;
    for tokens in tokens.split(|token| *token == Token::SemiColon) {
        let texts = &texts[begin..begin + tokens.len()];
        begin += tokens.len() + 1;
        let mut words = Words { tokens, texts, at: 0 };
        let Some(first) = words.peek() else { continue };
        let is_ours = FIRST_WORDS.iter().any(|word| is(first, word));
        if let Some(rule) = rules::read(&texts.concat())? {
            any = true;
            pieces.push(Piece::Streaming(Statement::Rule(rule)));
            continue;
        }
        if let Some(sink) = sinks::read(&texts.concat())? {
            any = true;
            pieces.push(Piece::Streaming(Statement::Sink(sink)));
            continue;
        }
        pieces.push(match statement_of(&mut words, is_ours)? {
            Some(statement) => {
                any = true;
                Piece::Streaming(statement)
            }
            None => Piece::Other(texts.concat()),
        });
    }
    Ok(any.then_some(pieces))
}

fn statement_of(words: &mut Words<'_>, is_ours: bool) -> Result<Option<Statement>, SqlError> {
    if !is_ours {
        return Ok(None);
    }
    let statement = if words.take("subscribe") {
        Statement::Subscribe(subscribe(words)?)
    } else if words.take("declare") {
        Statement::Declare(declare(words)?)
    } else if words.take("fetch") {
        Statement::Fetch(fetch(words)?)
    } else if words.take("close") {
        Statement::Close(if words.take("all") { None } else { Some(words.name()?) })
    } else if words.take("copy") && words.peek() == Some(&Token::LParen) {
        Statement::Copy(copy(words)?)
    } else {
        return Ok(None);
    };
    match words.peek() {
        None => Ok(Some(statement)),
        Some(token) => Err(syntax(format!("\"{token}\" is left at the end of the statement"))),
    }
}

fn subscribe(words: &mut Words<'_>) -> Result<Subscribe, SqlError> {
    words.take("to");
    let to = match words.peek() {
        Some(Token::LParen) => Target::Query(words.parentheses()?),
        _ => Target::Relation(words.relation()?),
    };
    let mut subscribe = Subscribe { to, progress: false, snapshot: true, as_of: None, up_to: None };
    loop {
        if words.take("with") || words.peek() == Some(&Token::LParen) {
            for (name, value) in words.options()? {
                let flag = flag(&name, value.as_deref())?;
                match name.as_str() {
                    "progress" => subscribe.progress = flag,
                    "snapshot" => subscribe.snapshot = flag,
                    other => return Err(SqlError::unsupported(format!("the option {other} of SUBSCRIBE"))),
                }
            }
        } else if words.take("as") {
            words.must("of")?;
            subscribe.as_of = Some(words.tick("AS OF")?);
        } else if words.take("up") {
            words.must("to")?;
            subscribe.up_to = Some(words.tick("UP TO")?);
        } else if words.peek().is_some_and(|token| is(token, "envelope")) {
            return Err(SqlError::unsupported("ENVELOPE of SUBSCRIBE"));
        } else {
            break;
        }
    }
    match (subscribe.as_of, subscribe.up_to) {
        (Some(as_of), Some(up_to)) if up_to < as_of => {
            Err(SqlError::new(error::BAD_VALUE, format!("UP TO {up_to} lies before AS OF {as_of}")))
        }
        _ => Ok(subscribe),
    }
}

fn source(sql: &str) -> Result<Source, SqlError> {
    let nothing_else = || SqlError::unsupported("anything but one query or SUBSCRIBE there");
    // One of these in another one, and so on without end, would be read ever deeper.
    let (tokens, texts) = source_text::tokens(sql).map_err(|error| syntax(error.to_string()))?;
    let first = Words { tokens: &tokens, texts: &texts, at: 0 }.peek().cloned();
    if first.is_some_and(|first| FIRST_WORDS[1..].iter().any(|word| is(&first, word))) {
        return Err(nothing_else());
    }
    let mut statements = statement::parse(sql)?;
    match (statements.pop(), statements.is_empty()) {
        (Some(Statement::Query(asked)), true) => Ok(Source::Query(asked)),
        (Some(Statement::Subscribe(subscribe)), true) => Ok(Source::Subscribe(subscribe)),
        _ => Err(nothing_else()),
    }
}

fn copy(words: &mut Words<'_>) -> Result<CopyOut, SqlError> {
    let inner = words.parentheses()?;
    words.must("to")?;
    if !words.take("stdout") {
        return Err(SqlError::unsupported("COPY to anything but STDOUT"));
    }
    words.take("with");
    let mut copy = CopyOut { source: source(&inner)?, format: CopyFormat::Text, header: false };
    if words.peek() == Some(&Token::LParen) {
        for (name, value) in words.options()? {
            match (name.as_str(), value.as_deref().map(str::to_ascii_lowercase).as_deref()) {
                ("format", Some("text")) => copy.format = CopyFormat::Text,
                ("format", Some("csv")) => copy.format = CopyFormat::Csv,
                ("header", value) => copy.header = flag("header", value)?,
                (other, _) => return Err(SqlError::unsupported(format!("this option {other} of COPY"))),
            }
        }
    } else if words.take("csv") {
        copy.format = CopyFormat::Csv;
        copy.header = words.take("header");
    }
    Ok(copy)
}

fn declare(words: &mut Words<'_>) -> Result<Declare, SqlError> {
    let cursor = words.name()?;
    while !words.take("cursor") {
        // They ask for less than is given anyway.
        if !["no", "scroll", "insensitive", "asensitive"].iter().any(|word| words.take(word)) {
            return Err(SqlError::unsupported("this form of DECLARE"));
        }
    }
    if words.take("with") {
        return Err(SqlError::unsupported("WITH HOLD"));
    }
    if words.take("without") {
        words.must("hold")?;
    }
    words.must("for")?;
    Ok(Declare { cursor, source: source(&words.rest())? })
}

fn fetch(words: &mut Words<'_>) -> Result<Fetch, SqlError> {
    words.take("forward");
    let rows = if matches!(words.peek(), Some(Token::Number(..))) {
        Some(usize::try_from(words.number("FETCH")?).unwrap_or(usize::MAX))
    } else if words.take("all") {
        None
    } else {
        words.take("next");
        Some(1)
    };
    if !words.take("from") {
        words.take("in");
    }
    let mut fetch = Fetch { cursor: words.name()?, rows, within: None };
    if words.take("with") || words.peek() == Some(&Token::LParen) {
        for (name, value) in words.options()? {
            match (name.as_str(), value) {
                ("timeout", Some(value)) => fetch.within = Some(duration(&value)?),
                (other, _) => return Err(SqlError::unsupported(format!("this option {other} of FETCH"))),
            }
        }
    }
    Ok(fetch)
}

/// `1s`, `500 ms`, `2 minutes`.
fn duration(text: &str) -> Result<Duration, SqlError> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let unit = match text[digits..].trim() {
        "ms" | "millisecond" | "milliseconds" => 0.001,
        "s" | "sec" | "second" | "seconds" => 1.0,
        "m" | "min" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3_600.0,
        _ => -1.0,
    };
    let seconds = text[..digits].parse::<f64>().map_or(-1.0, |number| number * unit);
    let wrong = || SqlError::new(error::BAD_VALUE, format!("\"{text}\" is no time to wait")).with_hint("write '1s' or '500ms'");
    if (0.0..=WAIT_S_MAX).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(wrong()) }
}

fn flag(name: &str, value: Option<&str>) -> Result<bool, SqlError> {
    match value.map(str::to_ascii_lowercase).as_deref() {
        None | Some("true" | "on" | "1") => Ok(true),
        Some("false" | "off" | "0") => Ok(false),
        Some(other) => Err(syntax(format!("{name} is true or false, not {other}"))),
    }
}

fn is(token: &Token, word: &str) -> bool {
    matches!(token, Token::Word(found) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
}

fn syntax(what: impl std::fmt::Display) -> SqlError {
    SqlError::new(error::SYNTAX, format!("syntax error: {what}"))
}

/// The words of one statement that are not read yet.
struct Words<'a> {
    tokens: &'a [Token],
    /// As they were written.
    texts: &'a [&'a str],
    at: usize,
}

impl Words<'_> {
    fn peek(&mut self) -> Option<&Token> {
        while matches!(self.tokens.get(self.at), Some(Token::Whitespace(_))) {
            self.at += 1;
        }
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        self.at += 1;
        token
    }

    /// Takes this word if it is the next.
    fn take(&mut self, word: &str) -> bool {
        let found = self.peek().is_some_and(|token| is(token, word));
        self.at += usize::from(found);
        found
    }

    fn must(&mut self, word: &str) -> Result<(), SqlError> {
        if self.take(word) {
            return Ok(());
        }
        let found = self.peek().map_or_else(|| "the end".to_owned(), |token| format!("\"{token}\""));
        Err(syntax(format!("{} is missing before {found}", word.to_ascii_uppercase())))
    }

    fn name(&mut self) -> Result<String, SqlError> {
        match self.next() {
            Some(Token::Word(word)) if word.quote_style.is_some() => Ok(word.value),
            Some(Token::Word(word)) => Ok(word.value.to_lowercase()),
            Some(other) => Err(syntax(format!("a name is missing before \"{other}\""))),
            None => Err(syntax("a name is missing at the end")),
        }
    }

    /// A name that may have its schema in front.
    fn relation(&mut self) -> Result<String, SqlError> {
        let first = self.name()?;
        if self.peek() != Some(&Token::Period) {
            return Ok(first);
        }
        self.at += 1;
        let name = self.name()?;
        match first == crate::tables::SCHEMA {
            true => Ok(name),
            false => Err(SqlError::unknown_relation(format!("{first}.{name}"))),
        }
    }

    fn number(&mut self, what: &str) -> Result<u64, SqlError> {
        let token = self.next();
        let number = match &token {
            Some(Token::Number(digits, _)) => digits.parse().ok(),
            _ => None,
        };
        number.ok_or_else(|| {
            let found = token.map_or_else(|| "the end".to_owned(), |token| token.to_string());
            syntax(format!("{what} {found}: not a whole number"))
        })
    }

    fn tick(&mut self, what: &str) -> Result<u64, SqlError> {
        self.number(what).map_err(|wrong| wrong.with_hint("a tick is milliseconds since 1970, as SHOW weir.tick says"))
    }

    /// What stands in parentheses.
    fn parentheses(&mut self) -> Result<String, SqlError> {
        let begin = self.at + 1;
        let mut depth = 0_usize;
        while let Some(token) = self.next() {
            match token {
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(self.texts[begin..self.at - 1].concat());
            }
        }
        Err(syntax("a parenthesis is not closed"))
    }

    fn rest(&mut self) -> String {
        let rest = self.texts.get(self.at..).unwrap_or_default().concat();
        self.at = self.tokens.len();
        rest
    }

    /// `(name [= value], …)`.
    fn options(&mut self) -> Result<Vec<(String, Option<String>)>, SqlError> {
        if self.next() != Some(Token::LParen) {
            return Err(syntax("options stand in parentheses"));
        }
        let mut options = Vec::new();
        loop {
            let name = self.name()?;
            let mut value = None;
            if self.peek() == Some(&Token::Eq) {
                self.at += 1;
            }
            if !matches!(self.peek(), Some(Token::Comma | Token::RParen) | None) {
                value = match self.next() {
                    Some(Token::SingleQuotedString(text)) => Some(text),
                    Some(Token::Word(word)) => Some(word.value),
                    Some(other) => Some(other.to_string()),
                    None => None,
                };
            }
            options.push((name, value));
            match self.next() {
                Some(Token::Comma) => {}
                Some(Token::RParen) => return Ok(options),
                Some(other) => return Err(syntax(format!("\"{other}\" among options"))),
                None => return Err(syntax("a parenthesis is not closed")),
            }
        }
    }
}

const FIRST_WORDS: [&str; 5] = ["subscribe", "copy", "declare", "fetch", "close"];
/// A day: who waits longer asks again.
const WAIT_S_MAX: f64 = 86_400.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn one(sql: &str) -> Result<Statement, SqlError> {
        statement::parse(sql).map(|mut statements| {
            assert_eq!(statements.len(), 1, "{sql}");
            statements.remove(0)
        })
    }

    fn subscribed(sql: &str) -> Subscribe {
        match one(sql) {
            Ok(Statement::Subscribe(subscribe)) => subscribe,
            other => panic!("{sql}: {other:?}"),
        }
    }

    #[test]
    fn what_is_subscribed_to_and_how() {
        let plain = Subscribe { to: Target::Relation("hosts".into()), progress: false, snapshot: true, as_of: None, up_to: None };
        assert_eq!(subscribed("subscribe hosts"), plain);
        assert_eq!(subscribed("SUBSCRIBE TO public.Hosts ;"), plain);
        assert_eq!(subscribed("subscribe to \"Hosts\"").to, Target::Relation("Hosts".into()));
        let all =
            subscribed("subscribe to (select a, ')' from t where b = (1)) with (progress, snapshot = false) as of 5 up to 7");
        assert_eq!(all.to, Target::Query("select a, ')' from t where b = (1)".into()));
        assert_eq!((all.progress, all.snapshot, all.as_of, all.up_to), (true, false, Some(5), Some(7)));
        let quoted = subscribed("subscribe (select '''); drop view v; --' as x)");
        assert_eq!(quoted.to, Target::Query("select '''); drop view v; --' as x".into()));
        assert_eq!(subscribed("subscribe hosts as of 5 with (progress = false, snapshot = true)").as_of, Some(5));
    }

    #[test]
    fn cursors_and_copies_are_read() {
        for (sql, expected) in [
            ("declare c cursor for subscribe hosts", "Declare(Declare { cursor: \"c\", source: Subscribe("),
            ("declare C no scroll cursor without hold for select 1", "Declare(Declare { cursor: \"c\", source: Query("),
            ("fetch c", "Fetch(Fetch { cursor: \"c\", rows: Some(1), within: None })"),
            ("fetch forward 10 from c with (timeout = '1s')", "Fetch(Fetch { cursor: \"c\", rows: Some(10), within: Some(1s) })"),
            ("fetch all in c with (timeout '250ms')", "Fetch(Fetch { cursor: \"c\", rows: None, within: Some(250ms) })"),
            ("close c", "Close(Some(\"c\"))"),
            ("close all", "Close(None)"),
            ("copy (subscribe hosts up to 3) to stdout", "Copy(CopyOut { source: Subscribe("),
            ("copy (select 1) to stdout with (format csv, header)", "Copy(CopyOut { source: Query("),
        ] {
            let told = format!("{:?}", one(sql).unwrap());
            assert!(told.starts_with(expected), "{sql}: {told}");
        }
        assert_eq!(statement::parse("select 'subscribe; x'; subscribe hosts; select 2").unwrap().len(), 3);
        assert!(matches!(one("select 1 as copy"), Ok(Statement::Query(_))));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (sql, expected) in [
            ("subscribe", "42601 syntax error: a name is missing at the end"),
            ("subscribe to hosts as of now", "42601 syntax error: AS OF now: not a whole number"),
            ("subscribe hosts up 5", "42601 syntax error: TO is missing before \"5\""),
            ("subscribe hosts as of 9 up to 5", "22023 UP TO 5 lies before AS OF 9"),
            ("subscribe hosts please", "42601 syntax error: \"please\" is left"),
            ("subscribe (select 1", "42601 syntax error: a parenthesis"),
            ("subscribe hosts with (progress = maybe)", "42601 syntax error: progress is true or false"),
            ("subscribe hosts with (cheese)", "0A000 the option cheese"),
            ("subscribe hosts envelope upsert (key (host))", "0A000 ENVELOPE"),
            ("subscribe other.hosts", "42P01"),
            ("copy (select 1) to 'x'", "0A000 COPY to anything but STDOUT"),
            ("copy (drop view v) to stdout", "0A000"),
            ("copy (select 1) to stdout (format binary)", "0A000 this option format of COPY"),
            ("declare c cursor with hold for select 1", "0A000 WITH HOLD"),
            ("declare c cursor for fetch d", "0A000"),
            ("fetch 3 c with (timeout = 'soon')", "22023 \"soon\" is no time"),
            ("fetch backward 3 c", "42601"),
        ] {
            let told = one(sql).map_or_else(|told| format!("{} {told}", told.code), |statement| format!("{statement:?}"));
            assert!(told.starts_with(expected), "{sql}: {told}");
        }
    }

    #[test]
    fn any_text_is_a_statement_or_an_error() {
        let pieces = [
            "subscribe",
            "to",
            "(",
            ")",
            "hosts",
            "with",
            "as",
            "of",
            "up",
            "5",
            "=",
            ",",
            "copy",
            "stdout",
            "fetch",
            "'x",
            "\"",
            ";",
            "for",
            "cursor",
            "declare",
            "é",
        ];
        let mut seed = 17_u64;
        for _ in 0..20_000 {
            let mut sql = String::from(pieces[(seed % 3 * 6 % 22) as usize]);
            for _ in 0..8 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                sql.push(' ');
                sql.push_str(pieces[(seed >> 33) as usize % pieces.len()]);
            }
            let _ = statement::parse(&sql);
        }
    }
}
