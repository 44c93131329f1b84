//! Reads EQL's grammar: `[sequence …] category where condition`, what stands in brackets, conditions by their precedence.

use super::ast::{Event, Expr, Field, How, Item, Query, Sequence};
use super::lex::{Lexed, Token, lex};
use super::{DEPTH_MAX, refused, wrong};
use crate::Error;

/// Reads a query.
pub(super) fn parse(text: &str) -> Result<Query, Error> {
    let tokens = lex(text)?;
    let mut parser = Parser { tokens: &tokens, at: 0, depth: 0 };
    let query = parser.query()?;
    if parser.is_symbol("|") {
        return Err(refused(parser.line(), "a pipe", "leave it out: every match is told"));
    }
    match parser.tokens.get(parser.at) {
        Some(_) => Err(parser.unexpected("the end of the query")),
        None => Ok(query),
    }
}

struct Parser<'a> {
    tokens: &'a [Lexed],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn query(&mut self) -> Result<Query, Error> {
        let line = self.line();
        for (word, cure) in
            [("sample", "write a sequence if the order matters, or one rule per event"), ("join", "write a sequence")]
        {
            if self.is_word(word) && !self.is_word_at(1, "where") {
                return Err(refused(line, word, cure));
            }
        }
        if !self.is_word("sequence") || self.is_word_at(1, "where") {
            return Ok(Query::Event(self.event()?));
        }
        self.at += 1;
        let by = self.keys()?;
        let span = self.span()?;
        let by = if by.is_empty() { self.keys()? } else { by };
        let (mut items, mut until) = (Vec::new(), None);
        while until.is_none() && (self.is_symbol("[") || self.is_symbol("!") || self.is_word("until")) {
            if self.take_word("until") {
                until = Some(self.item(true)?);
            } else {
                items.push(self.item(false)?);
            }
        }
        if items.is_empty() {
            return Err(self.unexpected("[category where condition]"));
        }
        let Some(max_span_ms) = span else {
            return Err(refused(line, "a sequence without maxspan", "bound what is kept: sequence by … with maxspan=30s"));
        };
        Ok(Query::Sequence(Sequence { by, max_span_ms, items, until, line }))
    }

    /// `by field, …`; none: no such words.
    fn keys(&mut self) -> Result<Vec<Field>, Error> {
        let mut keys = Vec::new();
        if self.take_word("by") {
            loop {
                let optional = self.take_symbol("?");
                keys.push(self.field(optional)?);
                if !self.take_symbol(",") {
                    break;
                }
            }
        }
        Ok(keys)
    }

    /// `with maxspan=30s`, in milliseconds.
    fn span(&mut self) -> Result<Option<u64>, Error> {
        if !self.take_word("with") {
            return Ok(None);
        }
        let line = self.line();
        if !(self.take_word("maxspan") && self.take_symbol("=")) {
            return Err(self.unexpected("maxspan=30s"));
        }
        let Some(Token::Number(number)) = self.next() else {
            return Err(wrong(line, "maxspan takes a number and a unit, such as 30s"));
        };
        let Some(Token::Word(unit)) = self.next() else {
            return Err(wrong(line, format!("maxspan={number} has no unit: give ms, s, m, h or d")));
        };
        let known = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, ms)| *ms);
        let ms = known.zip(number.parse::<u64>().ok()).and_then(|(unit, number)| number.checked_mul(unit));
        match ms.filter(|ms| *ms > 0) {
            Some(ms) => Ok(Some(ms)),
            None => Err(wrong(line, format!("maxspan={number}{unit} is no span: give a whole number of ms, s, m, h or d"))),
        }
    }

    fn item(&mut self, until: bool) -> Result<Item, Error> {
        let missing = !until && self.take_symbol("!");
        self.expect("[")?;
        let event = self.event()?;
        self.expect("]")?;
        if self.is_word("fork") {
            return Err(refused(self.line(), "fork", "leave it out"));
        }
        let by = self.keys()?;
        let (line, mut runs) = (self.line(), 1);
        if self.take_word("with") {
            if !(self.take_word("runs") && self.take_symbol("=")) {
                return Err(self.unexpected("runs=2"));
            }
            let Some(Token::Number(number)) = self.next() else { return Err(wrong(line, "runs takes a number")) };
            if missing || until {
                return Err(refused(line, "runs of what must not happen", "leave it out: one such event is enough"));
            }
            runs = number.parse().ok().filter(|runs| (1..=RUNS_MAX).contains(runs)).ok_or_else(|| {
                wrong(
                    line,
                    format!("runs={number}: give 1 to {RUNS_MAX}; more events are counted by a view or a Sigma correlation"),
                )
            })?;
        }
        Ok(Item { missing, event, by, runs })
    }

    fn event(&mut self) -> Result<Event, Error> {
        let line = self.line();
        let Some(Token::Word(category) | Token::Quoted(category) | Token::Text(category)) = self.next() else {
            return Err(wrong(line, "a category was expected, such as process, file, network or any"));
        };
        if !self.take_word("where") {
            return Err(self.unexpected(&format!("where, behind {category}")));
        }
        Ok(Event { category, condition: self.any_of()?, line })
    }

    fn any_of(&mut self) -> Result<Expr, Error> {
        let line = self.line();
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(wrong(
                line,
                format!("conditions stand in each other deeper than {DEPTH_MAX}: name their parts in several rules"),
            ));
        }
        let mut any = vec![self.all_of()?];
        while self.take_word("or") {
            any.push(self.all_of()?);
        }
        self.depth -= 1;
        Ok(one_or(any, Expr::Any))
    }

    fn all_of(&mut self) -> Result<Expr, Error> {
        let mut all = vec![self.condition()?];
        while self.take_word("and") {
            all.push(self.condition()?);
        }
        Ok(one_or(all, Expr::All))
    }

    fn condition(&mut self) -> Result<Expr, Error> {
        let mut negated = false;
        while self.take_word("not") {
            negated = !negated;
        }
        let line = self.line();
        let left = self.sum()?;
        let compared = if let Some((_, sql)) = COMPARISONS.iter().find(|(eql, _)| self.is_symbol(eql)) {
            self.at += 1;
            Expr::Compare { op: sql, sides: Box::new((left, self.sum()?)), line }
        } else if self.take_symbol(":") {
            self.among(left, How::Like, true, line)?
        } else {
            let not = self.is_word("not") && ["in", "like", "regex"].iter().any(|word| self.is_word_at(1, word));
            self.at += usize::from(not);
            let how = [("in", How::Equal), ("like", How::Like), ("regex", How::Regex)];
            match how.into_iter().find(|(word, _)| self.is_word(word)) {
                Some((_, how)) => {
                    self.at += 1;
                    let insensitive = self.take_symbol("~");
                    let among = self.among(left, how, insensitive, line)?;
                    if not { Expr::Not(Box::new(among)) } else { among }
                }
                None => left,
            }
        };
        Ok(if negated { Expr::Not(Box::new(compared)) } else { compared })
    }

    /// One value, or several in parentheses.
    fn among(&mut self, value: Expr, how: How, insensitive: bool, line: usize) -> Result<Expr, Error> {
        let options = if self.take_symbol("(") { self.list(")")? } else { vec![self.value()?] };
        if options.is_empty() {
            return Err(wrong(line, "( ) holds no value: give one"));
        }
        Ok(Expr::Among { value: Box::new(value), how, insensitive, options, line })
    }

    fn list(&mut self, end: &'static str) -> Result<Vec<Expr>, Error> {
        let mut list = Vec::new();
        while !self.take_symbol(end) {
            if !list.is_empty() {
                self.expect(",")?;
            }
            list.push(self.any_of()?);
        }
        Ok(list)
    }

    fn sum(&mut self) -> Result<Expr, Error> {
        let mut left = self.product()?;
        while let Some(op) = self.take_one_of(&["+", "-"]) {
            let line = self.line();
            left = Expr::Arithmetic { op, sides: Box::new((left, self.product()?)), line };
        }
        Ok(left)
    }

    fn product(&mut self) -> Result<Expr, Error> {
        let mut left = self.value()?;
        while let Some(op) = self.take_one_of(&["*", "/", "%"]) {
            let line = self.line();
            left = Expr::Arithmetic { op, sides: Box::new((left, self.value()?)), line };
        }
        Ok(left)
    }

    fn value(&mut self) -> Result<Expr, Error> {
        let line = self.line();
        if self.take_symbol("(") {
            let inner = self.any_of()?;
            self.expect(")")?;
            return Ok(inner);
        }
        if self.take_symbol("-") {
            return match self.next() {
                Some(Token::Number(number)) => Ok(Expr::Number(format!("-{number}"))),
                _ => Err(wrong(line, "a number was expected behind -")),
            };
        }
        let optional = self.take_symbol("?");
        match self.tokens.get(self.at).map(|lexed| lexed.token.clone()) {
            Some(Token::Text(text)) if !optional => {
                self.at += 1;
                Ok(Expr::Text(text))
            }
            Some(Token::Number(number)) if !optional => {
                self.at += 1;
                Ok(Expr::Number(number))
            }
            Some(Token::Word(word)) if !optional && !self.is_symbol_at(1, ".") => match word.to_ascii_lowercase().as_str() {
                "true" | "false" | "null" => {
                    self.at += 1;
                    Ok(match word.to_ascii_lowercase().as_str() {
                        "null" => Expr::Null,
                        word => Expr::Bool(word == "true"),
                    })
                }
                _ if self.is_symbol_at(1, "(") || (self.is_symbol_at(1, "~") && self.is_symbol_at(2, "(")) => {
                    let insensitive = self.is_symbol_at(1, "~");
                    self.at += 2 + usize::from(insensitive);
                    Ok(Expr::Call { name: word, insensitive, arguments: self.list(")")?, line })
                }
                _ => self.field(optional).map(Expr::Field),
            },
            Some(Token::Word(_) | Token::Quoted(_)) => self.field(optional).map(Expr::Field),
            _ => Err(self.unexpected("a value")),
        }
    }

    fn field(&mut self, optional: bool) -> Result<Field, Error> {
        let (line, mut name) = (self.line(), String::new());
        loop {
            match self.next() {
                Some(Token::Word(part) | Token::Quoted(part)) => name.push_str(&part),
                _ => return Err(wrong(line, "a field was expected, such as process.name")),
            }
            if !self.take_symbol(".") {
                break;
            }
            name.push('.');
        }
        if self.is_symbol("[") && matches!(self.tokens.get(self.at + 1), Some(Lexed { token: Token::Number(_), .. })) {
            return Err(refused(line, &format!("an index behind {name}"), "ask the whole list: process.args : \"-c\""));
        }
        Ok(Field { name, optional, line })
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).or_else(|| self.tokens.last()).map_or(1, |lexed| lexed.line)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).map(|lexed| lexed.token.clone());
        self.at += 1;
        token
    }

    fn is_word_at(&self, behind: usize, expected: &str) -> bool {
        let token = self.tokens.get(self.at + behind).map(|lexed| &lexed.token);
        matches!(token, Some(Token::Word(word)) if word.eq_ignore_ascii_case(expected))
    }

    fn is_word(&self, expected: &str) -> bool {
        self.is_word_at(0, expected)
    }

    fn is_symbol_at(&self, behind: usize, expected: &str) -> bool {
        matches!(self.tokens.get(self.at + behind), Some(Lexed { token: Token::Symbol(symbol), .. }) if *symbol == expected)
    }

    fn is_symbol(&self, expected: &str) -> bool {
        self.is_symbol_at(0, expected)
    }

    fn take_word(&mut self, expected: &str) -> bool {
        let is = self.is_word(expected);
        self.at += usize::from(is);
        is
    }

    fn take_symbol(&mut self, expected: &str) -> bool {
        let is = self.is_symbol(expected);
        self.at += usize::from(is);
        is
    }

    fn take_one_of(&mut self, symbols: &[&'static str]) -> Option<&'static str> {
        symbols.iter().copied().find(|symbol| self.take_symbol(symbol))
    }

    fn expect(&mut self, symbol: &str) -> Result<(), Error> {
        if self.take_symbol(symbol) { Ok(()) } else { Err(self.unexpected(symbol)) }
    }

    fn unexpected(&self, expected: &str) -> Error {
        let found = match self.tokens.get(self.at).map(|lexed| &lexed.token) {
            None => "the end".to_owned(),
            Some(Token::Word(word) | Token::Quoted(word) | Token::Number(word)) => word.clone(),
            Some(Token::Text(text)) => format!("{text:?}"),
            Some(Token::Symbol(symbol)) => (*symbol).to_owned(),
        };
        wrong(self.line(), format!("{expected} was expected, not {found}"))
    }
}

fn one_or(mut parts: Vec<Expr>, several: fn(Vec<Expr>) -> Expr) -> Expr {
    if parts.len() == 1 { parts.remove(0) } else { several(parts) }
}

const COMPARISONS: [(&str, &str); 6] = [("==", "="), ("!=", "<>"), ("<=", "<="), (">=", ">="), ("<", "<"), (">", ">")];
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
/// A run is a stage of its own, and a rule has 32 at most.
const RUNS_MAX: usize = 30;
