//! Exceptions of a rule: fields, operators and tuples of values that the rule shall not fire on.
//!
//! Each exception is an `and not` over an "or" of its tuples, a tuple an "and" of its comparisons. Without `comps` a list of
//! fields compares with `=`, a single field with `in` all its values. A later file adds values by the exception's name.

use crate::ast::{Check, Expr, Op, Operand, Term};
use crate::error::{Error, Fault, Place, Why, shown};
use crate::parse;
use crate::yaml::{Node, Yaml};

/// An exception as merged so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exception {
    pub(crate) name: String,
    pub(crate) place: Place,
    shape: Option<Shape>,
    comps: Option<Node>,
    values: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    /// `fields: proc.name`
    One(Term),
    /// `fields: [proc.name, fd.name]`
    Tuple(Vec<Term>),
}

impl Exception {
    /// Reads one item of `exceptions`.
    pub(crate) fn read(place: &Place, node: &Node) -> Result<Self, Error> {
        let pairs = if let Yaml::Map(pairs) = &node.value { pairs.as_slice() } else { &[] };
        let name = pairs.iter().find(|(key, _)| key.scalar() == Some("name")).and_then(|(_, name)| name.scalar());
        Self::of(place, node).map_err(|error| error.about("exception", name.unwrap_or("")))
    }

    fn of(place: &Place, node: &Node) -> Result<Self, Error> {
        let place = Place { line: node.line, ..place.clone() };
        let wrong = |what: &str, cure: &str| Error::new(Why::Shape, &place, what, cure);
        let Yaml::Map(pairs) = &node.value else {
            return Err(wrong("an exception is no mapping", "write name, fields, comps and values"));
        };
        let mut exception = Self { name: String::new(), place: place.clone(), shape: None, comps: None, values: Vec::new() };
        for (key, value) in pairs {
            match (key.scalar(), &value.value) {
                (Some("name"), Yaml::Scalar(name)) => exception.name.clone_from(name),
                (Some("fields"), _) => {
                    let shape = shape(value).map_err(|fault| fault.at(&Place { line: value.line, ..place.clone() }))?;
                    exception.shape = Some(shape);
                }
                (Some("comps"), Yaml::Scalar(_) | Yaml::Seq(_)) => exception.comps = Some(value.clone()),
                (Some("values"), Yaml::Seq(values)) => exception.values.clone_from(values),
                (Some("values"), Yaml::Null) => {}
                (key, _) => {
                    let what = format!("the exception's key {} is unknown or has the wrong shape", shown(key.unwrap_or("")));
                    return Err(wrong(&what, "write name, fields, comps and values"));
                }
            }
        }
        if exception.name.is_empty() {
            return Err(wrong("an exception has no name", "write name: …"));
        }
        Ok(exception)
    }

    /// Checks an exception that stands by itself.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.expr().map(drop)
    }

    /// Whether it says which fields it compares.
    pub(crate) fn has_fields(&self) -> bool {
        self.shape.is_some()
    }

    /// Adds the values that a later item has under the same name.
    pub(crate) fn append(&mut self, later: Self) {
        self.values.extend(later.values);
    }

    /// What must not hold; `None` when it has no values.
    pub(crate) fn expr(&self) -> Result<Option<Expr>, Error> {
        self.built().map_err(|fault| fault.at(&self.place).about("exception", &self.name))
    }

    fn built(&self) -> Result<Option<Expr>, Fault> {
        let shape_fault = |what: String, cure: &str| Fault::new(Why::Shape, what, cure);
        let mut cases = Vec::new();
        match &self.shape {
            None => return Err(shape_fault("an exception has no fields".into(), "write fields: [proc.name, …]")),
            Some(Shape::One(field)) => {
                let op = match &self.comps {
                    None => Op::In,
                    Some(Node { value: Yaml::Scalar(op), .. }) => operator(op)?,
                    Some(_) => {
                        return Err(shape_fault("comps is a list and fields is not".into(), "write both as lists, or neither"));
                    }
                };
                let mut values = Vec::new();
                for value in &self.values {
                    values.extend(operands(value)?);
                }
                if op.is_list() && !values.is_empty() {
                    cases.push(compare(field, op, values));
                } else {
                    cases.extend(values.into_iter().map(|value| compare(field, op, vec![value])));
                }
            }
            Some(Shape::Tuple(fields)) => {
                let ops = match &self.comps {
                    None => vec![Op::Eq; fields.len()],
                    Some(Node { value: Yaml::Seq(ops), .. }) => {
                        ops.iter().map(|op| operator(op.scalar().unwrap_or(""))).collect::<Result<_, _>>()?
                    }
                    Some(_) => {
                        return Err(shape_fault("fields is a list and comps is not".into(), "write both as lists, or neither"));
                    }
                };
                if ops.len() != fields.len() {
                    let what = format!("it has {} fields and {} comps", fields.len(), ops.len());
                    return Err(shape_fault(what, "give each field its operator"));
                }
                for tuple in &self.values {
                    cases.push(case(fields, &ops, tuple)?);
                }
            }
        }
        Ok(match cases.len() {
            0 => None,
            1 => cases.pop(),
            _ => Some(Expr::Or(cases)),
        })
    }
}

fn shape(node: &Node) -> Result<Shape, Fault> {
    match &node.value {
        Yaml::Scalar(field) => Ok(Shape::One(known(field)?)),
        Yaml::Seq(fields) if !fields.is_empty() => {
            Ok(Shape::Tuple(fields.iter().map(|field| known(field.scalar().unwrap_or(""))).collect::<Result<_, _>>()?))
        }
        _ => Err(Fault::new(Why::Shape, "fields is neither a field nor a list of fields", "write fields: [proc.name, …]")),
    }
}

/// A field that Falco knows: an exception without values would else hide a mistake until it has some.
fn known(text: &str) -> Result<Term, Fault> {
    let term = parse::term(text)?;
    crate::resolve::of_term(&term)?;
    Ok(term)
}

fn operator(text: &str) -> Result<Op, Fault> {
    Op::named(text).filter(|op| *op != Op::Exists).ok_or_else(|| {
        Fault::new(Why::Shape, format!("{} is no operator for an exception", shown(text)), "write =, in, contains, startswith …")
    })
}

fn case(fields: &[Term], ops: &[Op], tuple: &Node) -> Result<Expr, Fault> {
    let Yaml::Seq(values) = &tuple.value else {
        let what = format!("a value is no list, and {} fields want one each", fields.len());
        return Err(Fault::new(Why::Shape, what, "write values as a list of lists"));
    };
    if values.len() != fields.len() {
        let what = format!("a tuple has {} values for {} fields", values.len(), fields.len());
        return Err(Fault::new(Why::Shape, what, "give each field its value"));
    }
    let mut parts = Vec::new();
    for ((field, op), value) in fields.iter().zip(ops).zip(values) {
        let right = operands(value)?;
        if !op.is_list() && right.len() != 1 {
            let what = format!("the operator {} takes one value and gets {}", op.text(), right.len());
            return Err(Fault::new(Why::Shape, what, "use in, or write one value"));
        }
        parts.push(compare(field, *op, right));
    }
    Ok(if parts.len() == 1 { parts.remove(0) } else { Expr::And(parts) })
}

/// The values of a YAML value: a text, a text in quotes, `(a, list)` in a text, or a list.
fn operands(node: &Node) -> Result<Vec<Operand>, Fault> {
    match &node.value {
        Yaml::Seq(items) => {
            let mut all = Vec::new();
            for item in items {
                all.extend(operands(item)?);
            }
            Ok(all)
        }
        Yaml::Scalar(text) if text.trim_start().starts_with('(') && text.trim_end().ends_with(')') => parse::values(text.trim()),
        Yaml::Scalar(text) => Ok(vec![unquoted(text)]),
        Yaml::Null => Ok(vec![Operand::Text { text: String::new(), quoted: true }]),
        Yaml::Map(_) => Err(Fault::new(Why::Shape, "a value is a mapping", "write texts or lists of texts")),
    }
}

/// Quotes inside of YAML's own say that the text is no name of a list.
pub(crate) fn unquoted(text: &str) -> Operand {
    for quote in ['"', '\''] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote)) {
            return Operand::Text { text: inner.to_owned(), quoted: true };
        }
    }
    Operand::Text { text: text.to_owned(), quoted: false }
}

fn compare(field: &Term, op: Op, right: Vec<Operand>) -> Expr {
    Expr::Check(Check { left: field.clone(), op, modifier: None, right })
}
