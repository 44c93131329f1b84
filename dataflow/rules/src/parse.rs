//! The condition language: text to tree.
//!
//! ```text
//! or      = and ("or" and)*
//! and     = not ("and" not)*
//! not     = "not"* ( "(" or ")" | check )
//! check   = macro | term "exists" | term op [oneof|anyof|allof] right
//! term    = class.name[.name…] ["[" argument "]"] | transformer "(" term {"," term} ")"
//! right   = value | "val(" field ")" | transformer "(" … ")"        for = == != < <= > >= contains … regex
//!         | "(" [value {"," value}] ")" | list                      for in, intersects, pmatch and after a modifier
//! value   = "text" | 'text' | bare                                  a bare text ends at blank ( ) , = " '
//! ```
//!
//! The grammar is Falco's (`userspace/libsinsp/filter/parser.h`). Keywords are lower case. Blanks between a symbol and its
//! neighbours may be left out.

use crate::ast::{Check, Expr, Modifier, Op, Operand, Term, Transformer};
use crate::error::{Fault, Why, shown};
use crate::limits::{CONDITION_BYTES_MAX, CONDITION_DEPTH_MAX};

/// Parses a whole condition.
pub(crate) fn condition(text: &str) -> Result<Expr, Fault> {
    if text.len() > CONDITION_BYTES_MAX {
        let what = format!("the condition has {} bytes, {CONDITION_BYTES_MAX} are allowed", text.len());
        return Err(Fault::new(Why::Limit, what, "move values into lists"));
    }
    let mut parser = Parser { text, at: 0, depth: 0 };
    let expr = parser.or()?;
    parser.blanks();
    if parser.at < text.len() {
        return Err(parser.unexpected("\"and\", \"or\" or the end"));
    }
    Ok(expr)
}

/// One term alone: what an exception's field or an output's placeholder names.
pub(crate) fn term(text: &str) -> Result<Term, Fault> {
    let mut parser = Parser { text, at: 0, depth: 0 };
    let term = parser.term()?;
    parser.blanks();
    if parser.at == text.len() { Ok(term) } else { Err(parser.unexpected("the end of the field")) }
}

/// The longest term that begins the text, and its length in bytes. No blanks before it.
pub(crate) fn term_prefix(text: &str) -> Option<(Term, usize)> {
    let mut parser = Parser { text, at: 0, depth: 0 };
    let term = parser.term().ok()?;
    Some((term, parser.at))
}

/// A parenthesised list of values, as exceptions may hold one in a text.
pub(crate) fn values(text: &str) -> Result<Vec<Operand>, Fault> {
    let mut parser = Parser { text, at: 0, depth: 0 };
    let values = parser.list()?;
    parser.blanks();
    if parser.at == text.len() { Ok(values) } else { Err(parser.unexpected("the end of the list")) }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn or(&mut self) -> Result<Expr, Fault> {
        let mut parts = vec![self.and()?];
        while self.keyword("or") {
            parts.push(self.and()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expr::Or(parts) })
    }

    fn and(&mut self) -> Result<Expr, Fault> {
        let mut parts = vec![self.not()?];
        while self.keyword("and") {
            parts.push(self.not()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expr::And(parts) })
    }

    fn not(&mut self) -> Result<Expr, Fault> {
        let mut negated = false;
        while self.keyword("not") {
            negated = !negated;
        }
        let expr = if self.symbol("(") {
            self.deeper()?;
            let expr = self.or()?;
            self.expect(")")?;
            self.depth -= 1;
            expr
        } else {
            self.check()?
        };
        Ok(if negated { Expr::Not(Box::new(expr)) } else { expr })
    }

    fn check(&mut self) -> Result<Expr, Fault> {
        self.blanks();
        let start = self.at;
        let name = self.take(|c| c.is_ascii_alphanumeric() || c == '_');
        let next = self.rest().chars().next();
        let is_call = next == Some('(') && Transformer::parse(name).is_some();
        if !is_call && next != Some('.') {
            if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || ["and", "or", "not"].contains(&name) {
                self.at = start;
                return Err(self.unexpected("a field, a macro or \"(\""));
            }
            return Ok(Expr::Macro(name.to_owned()));
        }
        self.at = start;
        let left = self.term()?;
        let op = self.operator()?;
        if op == Op::Exists {
            return Ok(Expr::Check(Check { left, op, modifier: None, right: Vec::new() }));
        }
        let modifier = match () {
            () if op.is_list() => None,
            () if self.modifier("oneof") => Some(Modifier::One),
            () if self.modifier("anyof") => Some(Modifier::Any),
            () if self.modifier("allof") => Some(Modifier::All),
            () => None,
        };
        let right = if op.is_list() || modifier.is_some() { self.list()? } else { vec![self.operand()?] };
        Ok(Expr::Check(Check { left, op, modifier, right }))
    }

    /// A modifier is one only before a list; `name = anyof` compares with a text.
    fn modifier(&mut self, word: &str) -> bool {
        let start = self.at;
        if self.keyword(word) {
            self.blanks();
            if self.rest().starts_with('(') {
                return true;
            }
            self.at = start;
        }
        false
    }

    fn term(&mut self) -> Result<Term, Fault> {
        self.blanks();
        let start = self.at;
        let name = self.take(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
        if let Some(transformer) = Transformer::parse(name)
            && self.symbol("(")
        {
            self.deeper()?;
            let mut arguments = vec![self.argument()?];
            while self.symbol(",") {
                arguments.push(self.argument()?);
            }
            self.expect(")")?;
            self.depth -= 1;
            return Ok(Term::Call(transformer, arguments));
        }
        // A point that ends a sentence is no part of a field.
        let name = name.trim_end_matches('.');
        self.at = start + name.len();
        let good = |part: &str| part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.contains('.') || !name.split('.').all(good) {
            self.at = start;
            return Err(self.unexpected("a field like proc.name"));
        }
        let argument = if self.rest().starts_with('[') { Some(self.bracket()?) } else { None };
        Ok(Term::Field { name: name.to_owned(), argument })
    }

    /// What a transformer takes: a term or a text in quotes.
    fn argument(&mut self) -> Result<Term, Fault> {
        self.blanks();
        if self.rest().starts_with(['"', '\'']) { Ok(Term::Text(self.quoted()?)) } else { self.term() }
    }

    fn bracket(&mut self) -> Result<String, Fault> {
        self.at += 1;
        let argument = if self.rest().starts_with(['"', '\'']) {
            self.quoted()?
        } else {
            self.take(|c| !c.is_whitespace() && !matches!(c, '[' | ']' | '"' | '\'')).to_owned()
        };
        self.expect("]")?;
        Ok(argument)
    }

    fn operator(&mut self) -> Result<Op, Fault> {
        self.blanks();
        for (symbol, op) in
            [("<=", Op::Le), (">=", Op::Ge), ("!=", Op::Ne), ("==", Op::Eq), ("=", Op::Eq), ("<", Op::Lt), (">", Op::Gt)]
        {
            if self.symbol(symbol) {
                return Ok(op);
            }
        }
        let start = self.at;
        let word = self.take(|c| c.is_ascii_alphabetic());
        let op = Op::parse(word).filter(|_| !word.is_empty());
        op.ok_or_else(|| {
            self.at = start;
            let names: Vec<&str> = Op::ALL.iter().map(|op| op.text()).collect();
            self.unexpected(&format!("an operator ({})", names.join(" ")))
        })
    }

    fn list(&mut self) -> Result<Vec<Operand>, Fault> {
        if !self.symbol("(") {
            return Ok(vec![match self.operand()? {
                Operand::Text { text, quoted: false } => Operand::List(text),
                other => other,
            }]);
        }
        let mut values = Vec::new();
        if self.symbol(")") {
            return Ok(values);
        }
        loop {
            values.push(self.value()?);
            if !self.symbol(",") {
                break;
            }
        }
        self.expect(")")?;
        Ok(values)
    }

    /// A value, `val(field)` or a transformer.
    fn operand(&mut self) -> Result<Operand, Fault> {
        self.blanks();
        let start = self.at;
        let word = self.take(|c| c.is_ascii_alphanumeric());
        if self.rest().starts_with('(') {
            if word == "val" {
                self.at += 1;
                let term = self.term()?;
                self.expect(")")?;
                return Ok(Operand::Term(term));
            }
            if Transformer::parse(word).is_some() {
                self.at = start;
                return self.term().map(Operand::Term);
            }
        }
        self.at = start;
        self.value()
    }

    fn value(&mut self) -> Result<Operand, Fault> {
        self.blanks();
        if self.rest().starts_with(['"', '\'']) {
            return Ok(Operand::Text { text: self.quoted()?, quoted: true });
        }
        let text = self.take(|c| !c.is_whitespace() && !matches!(c, '\u{8}' | '(' | ')' | ',' | '=' | '"' | '\''));
        if text.is_empty() {
            return Err(self.unexpected("a value"));
        }
        Ok(Operand::Text { text: text.to_owned(), quoted: false })
    }

    /// A text in quotes; a backslash before a quote or a backslash takes it as it is.
    fn quoted(&mut self) -> Result<String, Fault> {
        let start = self.at;
        let mut text = String::new();
        let mut chars = self.rest().char_indices();
        let quote = chars.next().map_or('"', |(_, quote)| quote);
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.at = start + at + 1;
                    return Ok(text);
                }
                '\\' => match chars.clone().next() {
                    Some((_, next)) if matches!(next, '"' | '\'' | '\\') => {
                        text.push(next);
                        chars.next();
                    }
                    _ => text.push('\\'),
                },
                c => text.push(c),
            }
        }
        let what = format!("the quote that begins at {} is never closed", near(self.text, start));
        Err(Fault::new(Why::Syntax, what, "close it, or write \\\" for a quote inside a text"))
    }

    fn deeper(&mut self) -> Result<(), Fault> {
        self.depth += 1;
        if self.depth > CONDITION_DEPTH_MAX {
            let what = format!("the condition is nested deeper than {CONDITION_DEPTH_MAX}");
            return Err(Fault::new(Why::Limit, what, "move parts of it into macros"));
        }
        Ok(())
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn blanks(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        self.blanks();
        let here = self.rest().starts_with(symbol);
        self.at += if here { symbol.len() } else { 0 };
        here
    }

    fn expect(&mut self, symbol: &str) -> Result<(), Fault> {
        if self.symbol(symbol) { Ok(()) } else { Err(self.unexpected(&format!("{symbol:?}"))) }
    }

    /// A word that is followed by nothing that could belong to a name.
    fn keyword(&mut self, word: &str) -> bool {
        self.blanks();
        let Some(after) = self.rest().strip_prefix(word) else { return false };
        if after.starts_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-')) {
            return false;
        }
        self.at += word.len();
        true
    }

    fn unexpected(&self, wanted: &str) -> Fault {
        let what = if self.rest().trim().is_empty() {
            format!("the condition ends where {wanted} has to stand")
        } else {
            format!("expected {wanted} at {}", near(self.text, self.at))
        };
        Fault::new(Why::Syntax, what, "check operators, quotes and parentheses before it")
    }
}

/// The text around a place.
fn near(text: &str, at: usize) -> String {
    let before = text[..at].char_indices().rev().take(20).last().map_or(at, |(start, _)| start);
    let shown_text: String = text[before..].chars().take(50).collect();
    shown(shown_text.trim())
}
