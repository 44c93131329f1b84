//! EQL's functions as SQL. A `~` behind a name leaves upper and lower case out of account.

use std::net::IpAddr;

use super::ast::{Expr, How};
use super::pattern::literal;
use super::translate::{Translation, UNKNOWN, Value};
use super::{refused, wrong};
use crate::Error;

/// What a call is.
pub(super) fn call(of: &mut Translation, name: &str, insensitive: bool, written: &[Expr], line: usize) -> Result<Value, Error> {
    let arguments = written.iter().map(|argument| of.value(argument)).collect::<Result<Vec<_>, _>>()?;
    if arguments.is_empty() {
        return Err(wrong(line, format!("{name}() has no argument")));
    }
    let name = name.to_ascii_lowercase();
    let call = Call { name: &name, insensitive, arguments: &arguments, line };
    match name.as_str() {
        "wildcard" => call.pattern(of, How::Like),
        "match" => call.pattern(of, How::Regex),
        "cidrmatch" => call.cidr(),
        "startswith" => call.two(|text, part| format!("starts_with({text}, {part})")),
        "endswith" => call.two(|text, part| format!("ends_with({text}, {part})")),
        "stringcontains" => call.two(|text, part| format!("strpos({text}, {part}) > 0")),
        "length" => call.one(|text| Value::Int(format!("character_length({text})"))),
        "number" => call.one(|text| Value::Int(format!("TRY_CAST({text} AS BIGINT)"))),
        "string" | "concat" => call.concat(),
        "substring" => call.substring(),
        "indexof" => match call.two(|text, part| format!("(nullif(strpos({text}, {part}), 0) - 1)"))? {
            Value::Bool(sql) => Ok(Value::Int(sql)),
            other => Ok(other),
        },
        "add" | "subtract" | "multiply" | "divide" | "modulo" => {
            let op = match name.as_str() {
                "add" => "+",
                "subtract" => "-",
                "multiply" => "*",
                "divide" => "/",
                _ => "%",
            };
            let [left, right] = written else { return Err(call.wrong("takes two numbers")) };
            of.value(&Expr::Arithmetic { op, sides: Box::new((left.clone(), right.clone())), line })
        }
        _ => Err(refused(line, &format!("{name}()"), KNOWN)),
    }
}

struct Call<'a> {
    name: &'a str,
    insensitive: bool,
    arguments: &'a [Value],
    line: usize,
}

impl Call<'_> {
    fn wrong(&self, why: &str) -> Error {
        wrong(self.line, format!("{}() {why}", self.name))
    }

    fn is_unknown(&self) -> bool {
        self.arguments.iter().any(|argument| matches!(argument, Value::Missing | Value::Null))
    }

    fn pattern(&self, of: &mut Translation, how: How) -> Result<Value, Error> {
        let (value, patterns) = self.arguments.split_first().ok_or_else(|| self.wrong("has no argument"))?;
        if patterns.is_empty() || !patterns.iter().all(|pattern| matches!(pattern, Value::Literal(_))) {
            return Err(self.wrong("takes a field, and patterns in quotes"));
        }
        of.among(value, how, self.insensitive, patterns, self.line).map(Value::Bool)
    }

    fn cidr(&self) -> Result<Value, Error> {
        let (address, nets) = self.arguments.split_first().ok_or_else(|| self.wrong("has no argument"))?;
        if nets.is_empty() {
            return Err(self.wrong("takes an address, and networks such as \"10.0.0.0/8\""));
        }
        let mut any = Vec::new();
        for net in nets {
            let Value::Literal(net) = net else { return Err(self.wrong("takes networks in quotes")) };
            let (base, bits) = net.split_once('/').map_or((net.as_str(), None), |(base, bits)| (base, Some(bits)));
            let base: Option<IpAddr> = base.parse().ok();
            let bits_max = if matches!(base, Some(IpAddr::V4(_))) { 32 } else { 128 };
            if base.is_none() || bits.is_some_and(|bits| !bits.parse::<u8>().is_ok_and(|bits| bits <= bits_max)) {
                return Err(self.wrong(&format!("cannot take {net:?}: give an address, or one with /bits")));
            }
            any.push(net);
        }
        match address {
            Value::Missing => Ok(Value::Bool(UNKNOWN.to_owned())),
            Value::Text(text) => {
                let any: Vec<String> = any.into_iter().map(|net| format!("{text} <<= {}", literal(net))).collect();
                Ok(Value::Bool(format!("({})", any.join(" OR "))))
            }
            _ => Err(self.wrong("takes a field that is an address, such as destination.ip")),
        }
    }

    fn texts(&self) -> Result<Vec<String>, Error> {
        let text = |value: &Value| value.text().map(|text| if self.insensitive { format!("lower({text})") } else { text });
        let texts: Option<Vec<String>> = self.arguments.iter().map(text).collect();
        texts.ok_or_else(|| self.wrong("takes texts: of lists ask with : and *, of numbers with string()"))
    }

    fn one(&self, sql: impl Fn(&str) -> Value) -> Result<Value, Error> {
        if self.is_unknown() {
            return Ok(Value::Missing);
        }
        match self.texts()?.as_slice() {
            [text] => Ok(sql(text)),
            _ => Err(self.wrong("takes one text")),
        }
    }

    fn two(&self, sql: impl Fn(&str, &str) -> String) -> Result<Value, Error> {
        if self.arguments.len() != 2 {
            return Err(self.wrong("takes two texts"));
        }
        if self.is_unknown() {
            return Ok(Value::Missing);
        }
        match self.texts()?.as_slice() {
            [text, part] => Ok(Value::Bool(sql(text, part))),
            _ => Err(self.wrong("takes two texts")),
        }
    }

    /// Nothing, if a part is nothing.
    fn concat(&self) -> Result<Value, Error> {
        if self.is_unknown() {
            return Ok(Value::Missing);
        }
        let part = |value: &Value| match value {
            Value::Int(sql) => Ok(format!("CAST({sql} AS TEXT)")),
            other => other.text().ok_or_else(|| self.wrong("takes texts and numbers")),
        };
        let parts = self.arguments.iter().map(part).collect::<Result<Vec<_>, _>>()?;
        Ok(Value::Text(format!("({})", parts.join(" || "))))
    }

    /// From a place, counted from 0, to before another.
    fn substring(&self) -> Result<Value, Error> {
        let place = |value: &Value| match value {
            Value::Int(sql) => sql.parse::<u32>().ok(),
            _ => None,
        };
        if self.arguments.first() == Some(&Value::Missing) {
            return Ok(Value::Missing);
        }
        let text = self.arguments.first().and_then(Value::text);
        let (text, from, to) = match (text, &self.arguments[1..]) {
            (Some(text), [from]) => (text, place(from), None),
            (Some(text), [from, to]) => (text, place(from), Some(place(to))),
            _ => return Err(self.wrong("takes a text, where it begins, and where it ends")),
        };
        let (Some(from), false) = (from, to == Some(None)) else {
            return Err(refused(self.line, "substring() from the end", "count from the beginning, from 0 on"));
        };
        let from_one = u64::from(from) + 1;
        Ok(Value::Text(match to.flatten() {
            Some(to) => format!("substr({text}, {from_one}, {})", to.saturating_sub(from)),
            None => format!("substr({text}, {from_one})"),
        }))
    }
}

/// What a call of another function is told.
const KNOWN: &str = "these are: wildcard, match, cidrMatch, startsWith, endsWith, stringContains, length, concat, string, number, substring, \
                     indexOf, add, subtract, multiply, divide, modulo";
