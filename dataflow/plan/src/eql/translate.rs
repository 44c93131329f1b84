//! A query as the text of a `CREATE RULE`: what each condition is over the columns of `events`.
//!
//! EQL and SQL have the same three values: a comparison with what is not there is unknown, and an event for which a condition is unknown is left
//! out. Categories `process`, `file` and `driver` tell of what succeeded, as Elastic's do, unless a condition asks for `event.outcome`.

use std::collections::BTreeSet;

use super::ast::{Event, Expr, Field, How, Item, Query, Sequence};
use super::fields::{What, category, field, key};
use super::functions::call;
use super::pattern::{element, equal, like, literal, matches, whole};
use super::{refused, wrong};
use crate::Error;

/// The parts of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Translated {
    pub(super) keys: Vec<&'static str>,
    pub(super) max_span_ms: u64,
    /// Predicates in brackets, in their order.
    pub(super) steps: Vec<String>,
    /// Events that begin chains at once may be of several: a query over one event tells of each.
    pub(super) overlap: bool,
    /// What is asked and not collected.
    pub(super) partly: BTreeSet<String>,
}

/// Translates a query.
pub(super) fn translate(query: &Query) -> Result<Translated, Error> {
    let mut of = Translation::default();
    let (keys, max_span_ms, steps, overlap) = match query {
        // A chain of one event is over at once.
        Query::Event(event) => (vec!["host"], 1, vec![format!("[{}]", of.event(event)?)], true),
        Query::Sequence(sequence) => {
            let (keys, steps) = of.sequence(sequence)?;
            (keys, sequence.max_span_ms, steps, false)
        }
    };
    Ok(Translated { keys, max_span_ms, steps, overlap, partly: of.partly })
}

/// A value as SQL has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Int(String),
    Bool(String),
    /// A literal's value.
    Literal(String),
    /// One of a list.
    Named(String, &'static [(&'static str, &'static str)]),
    /// A column that holds a JSON array of texts.
    Texts(&'static str),
    Null,
    /// Of a field that nothing supplies.
    Missing,
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Literal(_) => "a text",
            Self::Int(_) => "a number",
            Self::Bool(_) => "a condition",
            Self::Named(..) => "one of a list of names",
            Self::Texts(_) => "a list of texts",
            Self::Null | Self::Missing => "nothing",
        }
    }

    /// The SQL of a text.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Text(sql) => Some(sql.clone()),
            Self::Literal(text) => Some(literal(text)),
            _ => None,
        }
    }
}

/// What is found on the way.
#[derive(Debug, Default)]
pub(super) struct Translation {
    partly: BTreeSet<String>,
}

impl Translation {
    fn sequence(&mut self, sequence: &Sequence) -> Result<(Vec<&'static str>, Vec<String>), Error> {
        let mut steps = Vec::new();
        let mut keys: Option<Vec<&'static str>> = None;
        let items = sequence.items.iter().map(|item| (item, false)).chain(sequence.until.iter().map(|item| (item, true)));
        for (item, is_until) in items {
            let own = self.keys(&sequence.by, item)?;
            let predicate = self.event(&item.event)?;
            let known = keys.get_or_insert_with(|| own.clone());
            let first = sequence.items.first().map_or(0, |first| first.by.len());
            if item.by.len() != first {
                let why = format!("{} keys of its own where the first event has {first}: give each event as many", item.by.len());
                return Err(wrong(item.event.line, why));
            }
            let by = if *known == own { String::new() } else { format!(" BY {}", own.join(", ")) };
            let mark = match (item.missing, is_until) {
                (true, _) => "!",
                (_, true) => "UNTIL ",
                _ => "",
            };
            steps.extend(std::iter::repeat_n(format!("{mark}[{predicate}{by}]"), item.runs));
        }
        if sequence.items.first().is_some_and(|item| item.missing) {
            return Err(refused(
                sequence.line,
                "a missing event before the first",
                "put ![…] behind the event that begins the sequence",
            ));
        }
        Ok((keys.unwrap_or_default(), steps))
    }

    /// The columns that the events of a sequence share. Without any, all events of a tenant.
    fn keys(&mut self, shared: &[Field], item: &Item) -> Result<Vec<&'static str>, Error> {
        let mut columns = Vec::new();
        for (place, Field { name, optional, line }) in shared.iter().chain(&item.by).enumerate() {
            if *optional {
                return Err(refused(*line, &format!("by ?{name}"), "leave out the ?: events without a key are in no chain"));
            }
            let Some(column) = key(name) else {
                let cure = "give by host.id, process.entity_id, process.pid, user.id, container.id, destination.ip or another field that is a column";
                return Err(refused(*line, &format!("by {name}"), cure));
            };
            if name == "file.path" {
                self.partly.insert("by file.path of what is renamed: the old name counts".to_owned());
            }
            // host.id and host.name are one column. What an event has of its own stands for the same place of the others.
            if place >= shared.len() || !columns.contains(&column) {
                columns.push(column);
            }
        }
        if columns.is_empty() {
            columns.push("tenant");
        }
        Ok(columns)
    }

    fn event(&mut self, event: &Event) -> Result<String, Error> {
        let condition = self.condition(&event.condition)?;
        let Some(of) = category(&event.category) else {
            self.partly.insert(format!("category {} is not collected", event.category));
            return Ok("FALSE".to_owned());
        };
        let succeeded = SUCCEEDED.contains(&event.category.as_str()) && !event.condition.names("event.outcome");
        let parts = [(of != "TRUE").then(|| of.to_owned()), succeeded.then(|| "(result IS NULL OR result >= 0)".to_owned())];
        let parts: Vec<String> = parts.into_iter().flatten().chain((condition != "TRUE").then_some(condition)).collect();
        Ok(if parts.is_empty() { "TRUE".to_owned() } else { parts.join(" AND ") })
    }

    /// SQL that may stand beside AND.
    pub(super) fn condition(&mut self, expr: &Expr) -> Result<String, Error> {
        match expr {
            Expr::Not(inner) => Ok(format!("NOT ({})", self.condition(inner)?)),
            Expr::All(all) => Ok(joined(all.iter().map(|part| self.condition(part)).collect::<Result<_, _>>()?, " AND ")),
            Expr::Any(any) => Ok(joined(any.iter().map(|part| self.condition(part)).collect::<Result<_, _>>()?, " OR ")),
            Expr::Bool(value) => Ok(if *value { "TRUE" } else { "FALSE" }.to_owned()),
            Expr::Compare { op, sides, line } => {
                let (left, right) = (self.value(&sides.0)?, self.value(&sides.1)?);
                compare(self, op, left, right, *line)
            }
            Expr::Among { value, how, insensitive, options, line } => {
                let value = self.value(value)?;
                let options = options.iter().map(|option| self.value(option)).collect::<Result<Vec<_>, _>>()?;
                self.among(&value, *how, *insensitive, &options, *line)
            }
            Expr::Call { line, .. } => match self.value(expr)? {
                Value::Bool(sql) => Ok(sql),
                Value::Missing => Ok(UNKNOWN.to_owned()),
                other => Err(wrong(*line, format!("a condition was expected, not {}: compare it", other.kind()))),
            },
            Expr::Field(Field { name, line, .. }) => Err(wrong(*line, format!("{name} is no condition: compare it"))),
            Expr::Text(_) | Expr::Number(_) | Expr::Null | Expr::Arithmetic { .. } => {
                Err(wrong(1, "a value stands where a condition was expected: compare it"))
            }
        }
    }

    pub(super) fn value(&mut self, expr: &Expr) -> Result<Value, Error> {
        match expr {
            Expr::Field(Field { name, optional, .. }) => Ok(match field(name) {
                Some(What::Text(sql)) => Value::Text(sql.to_owned()),
                Some(What::Int(sql)) => Value::Int(sql.to_owned()),
                Some(What::Texts(column)) => Value::Texts(column),
                Some(What::Named(values)) => Value::Named(name.clone(), values),
                None => {
                    if !optional {
                        self.partly.insert(format!("field {name} is not supplied"));
                    }
                    Value::Missing
                }
            }),
            Expr::Text(text) => Ok(Value::Literal(text.clone())),
            Expr::Number(number) => Ok(Value::Int(number.clone())),
            Expr::Null => Ok(Value::Null),
            Expr::Arithmetic { op, sides, line } => match (self.value(&sides.0)?, self.value(&sides.1)?) {
                (Value::Missing | Value::Null, _) | (_, Value::Missing | Value::Null) => Ok(Value::Missing),
                (Value::Int(left), Value::Int(right)) => {
                    // EQL has no result where SQL has an error.
                    let right = if ["/", "%"].contains(op) { format!("nullif({right}, 0)") } else { right };
                    Ok(Value::Int(format!("({left} {op} {right})")))
                }
                (left, right) => Err(wrong(*line, format!("{op} takes two numbers, not {} and {}", left.kind(), right.kind()))),
            },
            Expr::Call { name, insensitive, arguments, line } => call(self, name, *insensitive, arguments, *line),
            Expr::Not(_) | Expr::All(_) | Expr::Any(_) | Expr::Compare { .. } | Expr::Among { .. } | Expr::Bool(_) => {
                Ok(Value::Bool(format!("({})", self.condition(expr)?)))
            }
        }
    }

    /// Whether a value is one of several, or as one of several.
    pub(super) fn among(
        &mut self,
        value: &Value,
        how: How,
        insensitive: bool,
        options: &[Value],
        line: usize,
    ) -> Result<String, Error> {
        if *value == Value::Missing {
            return Ok(UNKNOWN.to_owned());
        }
        let texts: Option<Vec<&str>> =
            options.iter().map(|option| if let Value::Literal(text) = option { Some(text.as_str()) } else { None }).collect();
        match (value, texts) {
            (Value::Text(text), Some(texts)) => match how {
                How::Equal => Ok(equal(text, &texts, insensitive)),
                How::Like => like(text, &texts, insensitive, line),
                How::Regex => whole(text, &texts, insensitive, line),
            },
            (Value::Literal(text), Some(texts)) if how == How::Equal => Ok(equal(&literal(text), &texts, insensitive)),
            (Value::Texts(column), Some(texts)) if how != How::Regex => {
                element(column, &texts, how == How::Like, insensitive, line)
            }
            (Value::Named(name, values), Some(texts)) if how != How::Regex => {
                Ok(self.named(name, values, &texts, insensitive, how == How::Like))
            }
            (Value::Texts(_) | Value::Named(..), _) => {
                Err(refused(line, &format!("regex over {}", value.kind()), "give the values, or patterns with * and ?"))
            }
            // `destination.port : 443`, and values of other fields.
            _ if how != How::Regex => {
                let any = options.iter().map(|option| compare(self, "=", value.clone(), option.clone(), line));
                Ok(joined(any.collect::<Result<_, _>>()?, " OR "))
            }
            _ => Err(wrong(line, format!("a pattern is asked of {}: compare it", value.kind()))),
        }
    }

    fn named(
        &mut self,
        field: &str,
        values: &[(&'static str, &'static str)],
        asked: &[&str],
        insensitive: bool,
        wild: bool,
    ) -> String {
        let mut found: Vec<&str> = Vec::new();
        for asked in asked {
            let of: Vec<&str> =
                values.iter().filter(|(value, _)| matches(asked, insensitive, wild, value)).map(|(_, of)| *of).collect();
            if of.is_empty() {
                self.partly.insert(format!("{field} {asked:?} is not collected"));
            }
            found.extend(of);
            let mut seen = BTreeSet::new();
            found.retain(|of| seen.insert(*of));
        }
        if found.contains(&"TRUE") {
            return "TRUE".to_owned();
        }
        joined(found.into_iter().map(str::to_owned).collect(), " OR ")
    }
}

/// `=`, `<>`, `<`, `<=`, `>`, `>=`.
fn compare(of: &mut Translation, op: &str, left: Value, right: Value, line: usize) -> Result<String, Error> {
    let is_swapped = matches!(left, Value::Literal(_) | Value::Null) && !matches!(right, Value::Literal(_) | Value::Null);
    if is_swapped {
        let op = match op {
            "<" => ">",
            "<=" => ">=",
            ">" => "<",
            ">=" => "<=",
            same => same,
        };
        return compare(of, op, right, left, line);
    }
    let is_equality = op == "=" || op == "<>";
    if right == Value::Null {
        let is_null = op == "=";
        let truth = |holds: bool| Ok(if holds { "TRUE" } else { "FALSE" }.to_owned());
        return match left {
            _ if !is_equality => Ok(UNKNOWN.to_owned()),
            Value::Missing | Value::Null => truth(is_null),
            Value::Named(..) | Value::Literal(_) => truth(!is_null),
            Value::Text(sql) | Value::Int(sql) | Value::Bool(sql) => {
                Ok(format!("{sql} IS {}", if is_null { "NULL" } else { "NOT NULL" }))
            }
            Value::Texts(column) => Ok(format!("{column} IS {}", if is_null { "NULL" } else { "NOT NULL" })),
        };
    }
    match (left, right) {
        (Value::Missing, _) | (_, Value::Missing) => Ok(UNKNOWN.to_owned()),
        (left @ (Value::Named(..) | Value::Texts(_)), right @ Value::Literal(_)) if is_equality => {
            let among = of.among(&left, How::Equal, false, &[right], line)?;
            Ok(if op == "=" { among } else { format!("NOT ({among})") })
        }
        (Value::Int(left), Value::Int(right)) => Ok(format!("{left} {op} {right}")),
        (Value::Bool(left), Value::Bool(right)) if is_equality => Ok(format!("({left}) {op} ({right})")),
        (left, right) => match (left.text(), right.text()) {
            (Some(left), Some(right)) => Ok(format!("{left} {op} {right}")),
            _ => Err(wrong(line, format!("{} and {} are compared: give values of one type", left.kind(), right.kind()))),
        },
    }
}

fn joined(mut parts: Vec<String>, between: &str) -> String {
    match parts.len() {
        0 => "FALSE".to_owned(),
        1 => parts.remove(0),
        _ => format!("({})", parts.join(between)),
    }
}

/// What a comparison with nothing is.
pub(super) const UNKNOWN: &str = "CAST(NULL AS BOOLEAN)";
/// Categories that tell of what succeeded.
const SUCCEEDED: [&str; 3] = ["process", "file", "driver"];
