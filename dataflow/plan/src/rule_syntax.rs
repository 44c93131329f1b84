//! How a sequence rule is written: words to parts, before anything is planned.
//!
//! ```sql
//! CREATE [OR REPLACE] RULE name AS SEQUENCE [FROM relation] BY column, … [ORDER BY time [, id]] WITH MAXSPAN INTERVAL '…'
//!   [OVERLAP] [FINAL] [SEVERITY level] [ATTACK 'T1059', 'attack.execution', …]
//!   [ predicate [BY column, …] ] [AS stage]  ![ predicate [BY column, …] ]  …  [UNTIL [ predicate [BY column, …] ]]
//! ```

use datafusion_expr::Expr;
use datafusion_sql::sqlparser::tokenizer::Token;

use crate::sql::Context;
use crate::window::milliseconds;
use crate::{Error, SchemaOf};

/// A CREATE RULE.
pub(crate) struct Created {
    pub(crate) name: String,
    pub(crate) replace: bool,
    pub(crate) head: Head,
    pub(crate) parts: Vec<Written>,
}

/// What stands before the stages.
pub(crate) struct Head {
    pub(crate) relation: Option<String>,
    pub(crate) keys: Vec<String>,
    pub(crate) order: Option<Vec<String>>,
    pub(crate) max_span: String,
    pub(crate) overlap: bool,
    pub(crate) is_final: bool,
    pub(crate) severity: Option<String>,
    pub(crate) attack: Vec<String>,
}

/// A predicate in brackets.
pub(crate) struct Written {
    pub(crate) predicate: String,
    pub(crate) by: Option<Vec<String>>,
    pub(crate) part: Part,
}

/// What a predicate is for.
pub(crate) enum Part {
    /// A stage of this name.
    Stage(String),
    Absent,
    Until,
}

/// Why words are no rule.
enum Refused {
    Wrong(String),
    Unsupported(&'static str, &'static str),
}

impl From<&str> for Refused {
    fn from(why: &str) -> Self {
        Self::Wrong(why.to_owned())
    }
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Self::Wrong(why)
    }
}

impl Created {
    /// Reads a statement without blanks that begins with CREATE.
    pub(crate) fn parse(tokens: &[Token]) -> Result<Self, Error> {
        let replace = word(tokens, 1, "or") && word(tokens, 2, "replace");
        let tokens = &tokens[if replace { 3 } else { 1 }.min(tokens.len())..];
        let (true, Some(Token::Word(name))) = (word(tokens, 0, "rule"), tokens.get(1)) else {
            return Err(wrong("CREATE RULE needs a name"));
        };
        let name = if name.quote_style.is_some() { name.value.clone() } else { name.value.to_ascii_lowercase() };
        let failed = |why: Refused| match why {
            Refused::Wrong(why) => wrong(format!("rule \"{name}\": {why}")),
            Refused::Unsupported(what, why) => Error::unsupported(format!("{what} (rule \"{name}\")"), why),
        };
        if !(word(tokens, 2, "as") && word(tokens, 3, "sequence")) {
            return Err(failed("AS SEQUENCE must follow the name".into()));
        }
        let is_bracket = |token: &Token| matches!(token, Token::LBracket | Token::ExclamationMark);
        let head_end = tokens.iter().position(is_bracket).unwrap_or(tokens.len());
        let head = Head::parse(&tokens[4..head_end.max(4)]).map_err(failed)?;
        let parts = parts(&tokens[head_end..]).map_err(failed)?;
        Ok(Self { replace, head, parts, name })
    }
}

impl Head {
    fn parse(tokens: &[Token]) -> Result<Self, Refused> {
        let mut at = 0;
        let mut clause = |begins: &[&str], ends: &[&str]| -> Option<Vec<Token>> {
            if !begins.iter().enumerate().all(|(n, expected)| word(tokens, at + n, expected)) {
                return None;
            }
            at += begins.len();
            let rest = &tokens[at..];
            let len = (0..rest.len()).find(|&n| ends.iter().any(|end| word(rest, n, end))).unwrap_or(rest.len());
            at += len;
            Some(rest[..len].to_vec())
        };
        let relation = clause(&["from"], &["by", "order", "with"]);
        let keys = clause(&["by"], &["order", "with"]).ok_or("BY must say what the rows of a chain share")?;
        let order = clause(&["order", "by"], &["with"]);
        let span = clause(&["with", "maxspan"], &["overlap", "maxskew", "severity", "attack", "final"]);
        let span = span.ok_or("WITH MAXSPAN INTERVAL '…' must bound the time from the first row to the last")?;
        // The span is an interval; what stands behind it is not a part of it.
        let is_interval = word(&span, 0, "interval") && matches!(span.get(1), Some(Token::SingleQuotedString(_)));
        let has_unit = UNITS.iter().any(|unit| word(&span, 2, unit));
        let taken = if is_interval { 2 + usize::from(has_unit) } else { span.len() };
        at -= span.len() - taken;
        let span = &span[..taken];
        let mut head = Self {
            relation: relation.map(|relation| text(&relation)),
            keys: columns(&keys)?,
            order: order.map(|order| commas(&order)),
            max_span: text(span),
            overlap: false,
            is_final: false,
            severity: None,
            attack: vec![],
        };
        head.options(&tokens[at..])?;
        Ok(head)
    }

    fn options(&mut self, mut tokens: &[Token]) -> Result<(), Refused> {
        while let Some(first) = tokens.first() {
            let is_one = |expected: &str| word(tokens, 0, expected);
            let used = if is_one("overlap") {
                self.overlap = true;
                1
            } else if is_one("final") {
                self.is_final = true;
                1
            } else if is_one("maxskew") {
                return Err(Refused::Unsupported("MAXSKEW", "rows are in the order of the events' own times"));
            } else if is_one("severity") {
                let severity = literal(tokens.get(1)).ok_or("SEVERITY takes a level, such as SEVERITY critical")?;
                self.severity = Some(severity.to_ascii_lowercase());
                2
            } else if is_one("attack") {
                let mut used = 0;
                loop {
                    let Some(Token::SingleQuotedString(tag)) = tokens.get(used + 1) else {
                        return Err("ATTACK takes quoted techniques and tactics: ATTACK 'T1059.004', 'attack.execution'".into());
                    };
                    self.attack.push(tag.clone());
                    used += 2;
                    if tokens.get(used) != Some(&Token::Comma) {
                        break used;
                    }
                }
            } else {
                return Err(format!("{first} is not known before the stages, only OVERLAP, FINAL, SEVERITY and ATTACK").into());
            };
            tokens = &tokens[used..];
        }
        Ok(())
    }
}

fn literal(token: Option<&Token>) -> Option<&str> {
    match token? {
        Token::Word(word) if word.quote_style.is_none() => Some(&word.value),
        Token::SingleQuotedString(text) => Some(text),
        _ => None,
    }
}

fn columns(tokens: &[Token]) -> Result<Vec<String>, Refused> {
    let columns = commas(tokens);
    let is_column = |key: &String| !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || "_\"".contains(c));
    match columns.iter().find(|key| !is_column(key)) {
        Some(key) => Err(format!("BY takes columns, not {key}").into()),
        None => Ok(columns),
    }
}

fn parts(mut tokens: &[Token]) -> Result<Vec<Written>, Refused> {
    let (mut parts, mut stages) = (Vec::<Written>::new(), 0);
    while !tokens.is_empty() {
        if parts.last().is_some_and(|last| matches!(last.part, Part::Until)) {
            return Err("UNTIL [ predicate ] must be the last".into());
        }
        let (negated, until) = (tokens[0] == Token::ExclamationMark, word(tokens, 0, "until"));
        let (predicate, by, rest) = predicate(&tokens[usize::from(negated || until)..])?;
        tokens = rest;
        if negated || until {
            if word(tokens, 0, "as") {
                return Err("what must not happen has no time: leave its AS out".into());
            }
            parts.push(Written { predicate, by, part: if until { Part::Until } else { Part::Absent } });
            continue;
        }
        stages += 1;
        let mut name = format!("stage_{stages}");
        if word(tokens, 0, "as") {
            let Some(Token::Word(given)) = tokens.get(1) else { return Err("a stage's name must follow AS".into()) };
            name = if given.quote_style.is_some() { given.value.clone() } else { given.value.to_ascii_lowercase() };
            tokens = &tokens[2..];
        }
        parts.push(Written { predicate, by, part: Part::Stage(name) });
    }
    Ok(parts)
}

/// A predicate, the BY of its own, and what stands behind its brackets.
type Bracketed<'a> = (String, Option<Vec<String>>, &'a [Token]);

fn predicate(tokens: &[Token]) -> Result<Bracketed<'_>, Refused> {
    let rest = match tokens.split_first() {
        Some((Token::LBracket, rest)) => rest,
        Some((other, _)) => return Err(format!("[ predicate ] was expected, not {other}").into()),
        None => return Err("[ predicate ] was expected, not the end".into()),
    };
    let mut depth = 1_u32;
    let end = rest.iter().position(|token| {
        match token {
            Token::LBracket => depth += 1,
            Token::RBracket => depth -= 1,
            _ => {}
        }
        depth == 0
    });
    let end = end.ok_or("a stage's ] is missing")?;
    let predicate = &rest[..end];
    let by = (0..predicate.len()).rposition(|n| word(predicate, n, "by"));
    let own = by.map(|by| columns(&predicate[by + 1..])).transpose()?;
    let predicate = &predicate[..by.unwrap_or(predicate.len())];
    if predicate.is_empty() {
        return Err("a stage's predicate is missing".into());
    }
    Ok((text(predicate), own, &rest[end + 1..]))
}

/// A MAXSPAN in milliseconds.
pub(crate) fn span_ms(max_span: &str, relation: &str, known: &dyn SchemaOf) -> Result<u64, String> {
    let context = Context::new(known);
    let planned = context.plan(&format!("SELECT {max_span} AS span FROM {relation}"));
    let planned = planned.map_err(|source| context.told(source).to_string())?;
    match planned.expressions().first() {
        Some(Expr::Alias(alias)) => milliseconds(&alias.expr).map_err(|why| format!("MAXSPAN: {}", why.strip_backtrace())),
        _ => Err("MAXSPAN must be an interval".to_owned()),
    }
}

/// The tokens without blanks and comments.
pub(crate) fn meaning(tokens: &[Token]) -> Vec<Token> {
    tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_) | Token::EOF)).cloned().collect()
}

pub(crate) fn is_something(tokens: &[Token]) -> bool {
    tokens.iter().any(|token| !matches!(token, Token::Whitespace(_) | Token::EOF))
}

pub(crate) fn word(tokens: &[Token], at: usize, expected: &str) -> bool {
    matches!(tokens.get(at), Some(Token::Word(word)) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(expected))
}

/// The tokens as SQL again.
pub(crate) fn text(tokens: &[Token]) -> String {
    let words = tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_) | Token::EOF));
    words.map(written).collect::<Vec<_>>().join(" ")
}

/// A token as SQL again. The tokens are read without unescaping, but for `E'…'`: of that the value is known, not how it was written.
pub(crate) fn written(token: &Token) -> String {
    match token {
        Token::EscapedStringLiteral(value) => format!("'{}'", value.replace('\'', "''")),
        other => other.to_string(),
    }
}

/// The parts between commas.
fn commas(tokens: &[Token]) -> Vec<String> {
    let mut depth = 0_i32;
    let parts = tokens.split(|token| {
        match token {
            Token::LParen | Token::LBracket => depth += 1,
            Token::RParen | Token::RBracket => depth -= 1,
            _ => {}
        }
        depth == 0 && *token == Token::Comma
    });
    parts.map(text).collect()
}

/// What an interval's number may be of, behind it.
const UNITS: [&str; 5] = ["day", "hour", "minute", "second", "millisecond"];

pub(crate) fn wrong(why: impl Into<String>) -> Error {
    Error::wrong_type("the statements", why)
}
