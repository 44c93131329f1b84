//! Names in conditions: macros become nodes of the graph, lists become their values, fields rows of the table.
//!
//! A macro or list may be defined anywhere in the files (Falco wants it before its use); the last definition counts. A list's
//! name is spliced in where it stands bare on the right side: among the values of `in (a, names)`, alone as `in names`, in
//! parentheses as `(names)`, and where one value is wanted if the list has one. In quotes it is a text.

use std::collections::HashMap;

use crate::ast::{Check, Expr, Modifier, Op, Operand, Term};
use crate::check::{Key, Of, Right};
use crate::error::{Error, Fault, Place, Why, shown};
use crate::fields::Field;
use crate::graph::{Graph, NodeId};
use crate::limits::{EXPANDED_DEPTH_MAX, LIST_DEPTH_MAX, LIST_ITEMS_MAX};
use crate::parse;

/// A list as files have it.
#[derive(Debug, Clone)]
pub(crate) struct List {
    pub(crate) place: Place,
    pub(crate) items: Vec<Item>,
}

/// One value of a list; in the file's own quotes it is still a name, in quotes inside of them it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) text: String,
    pub(crate) quoted: bool,
}

/// A macro as files have it.
#[derive(Debug, Clone)]
pub(crate) struct Macro {
    pub(crate) place: Place,
    pub(crate) condition: String,
}

/// Resolves conditions against the lists and macros of all files.
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    pub(crate) graph: Graph,
    lists: HashMap<String, Vec<String>>,
    /// Lists that were refused; who names one is refused for the same reason.
    refused: HashMap<String, Fault>,
    macros: HashMap<String, State>,
}

#[derive(Debug)]
enum State {
    Parsed(Expr),
    Busy,
    Done(NodeId),
    /// Refused before; who uses it is refused for the same reason.
    Refused(Fault),
}

impl Resolver {
    /// Takes the lists and macros; what is wrong with them is told, each by itself.
    pub(crate) fn new(lists: &HashMap<String, List>, macros: &HashMap<String, Macro>, errors: &mut Vec<Error>) -> Self {
        let mut resolver = Self::default();
        let mut names: Vec<&String> = lists.keys().collect();
        names.sort();
        for name in names {
            let mut path = Vec::new();
            if let Err(fault) = resolver.list(name, lists, &mut path) {
                errors.push(fault.clone().at(&lists[name].place).about("list", name));
                resolver.refused.insert(name.clone(), fault);
            }
        }
        for (name, of) in macros {
            let state = match parse::condition(&of.condition) {
                Ok(expr) => State::Parsed(expr),
                Err(fault) => {
                    errors.push(fault.clone().at(&of.place).about("macro", name));
                    State::Refused(fault)
                }
            };
            resolver.macros.insert(name.clone(), state);
        }
        let mut names: Vec<(&Place, &String)> = macros.iter().map(|(name, of)| (&of.place, name)).collect();
        names.sort_by_key(|(place, name)| (place.file.clone(), place.line, (*name).clone()));
        for (place, name) in names {
            let known_bad = matches!(resolver.macros.get(name), Some(State::Refused(_)));
            if !known_bad && let Err(fault) = resolver.expand(name, 0) {
                errors.push(fault.at(place).about("macro", name));
            }
        }
        resolver
    }

    /// Splices a list's lists in.
    fn list(&mut self, name: &str, all: &HashMap<String, List>, path: &mut Vec<String>) -> Result<(), Fault> {
        if self.lists.contains_key(name) {
            return Ok(());
        }
        self.values(name)?;
        if path.iter().any(|above| above == name) {
            let what = format!("the list names itself: {} → {}", path.join(" → "), name);
            return Err(Fault::new(Why::Cycle, what, "remove one of these names from the items"));
        }
        if path.len() >= LIST_DEPTH_MAX {
            let what = format!("lists name lists deeper than {LIST_DEPTH_MAX}");
            return Err(Fault::new(Why::Limit, what, "write the inner lists out"));
        }
        path.push(name.to_owned());
        let mut values = Vec::new();
        for item in &all[name].items {
            if !item.quoted && all.contains_key(&item.text) {
                self.list(&item.text, all, path)?;
                values.extend_from_slice(&self.lists[&item.text]);
            } else {
                values.push(item.text.clone());
            }
            if values.len() > LIST_ITEMS_MAX {
                let what = format!("the list has more than {LIST_ITEMS_MAX} values");
                return Err(Fault::new(Why::Limit, what, "split it over several rules"));
            }
        }
        path.pop();
        self.lists.insert(name.to_owned(), values);
        Ok(())
    }

    /// The node of a macro.
    fn expand(&mut self, name: &str, depth: usize) -> Result<NodeId, Fault> {
        match self.macros.get(name) {
            None => {
                let what = format!("no file defines the macro {}", shown(name));
                return Err(Fault::new(Why::UnknownMacro, what, "define it, correct its name, or load the file that has it"));
            }
            Some(State::Done(id)) => return Ok(*id),
            Some(State::Refused(fault)) => return Err(fault.through("macro", name)),
            Some(State::Busy) => {
                let what = format!("the macro {} names itself", shown(name));
                return Err(Fault::new(Why::Cycle, what, "remove it from its own condition and from the macros there"));
            }
            Some(State::Parsed(_)) => {}
        }
        let Some(State::Parsed(expr)) = self.macros.insert(name.to_owned(), State::Busy) else {
            unreachable!("the state was just matched")
        };
        let node = self.node(&expr, depth);
        let state = match &node {
            Ok(id) => State::Done(*id),
            Err(fault) => State::Refused(fault.clone()),
        };
        self.macros.insert(name.to_owned(), state);
        node
    }

    /// The node of a condition.
    pub(crate) fn condition(&mut self, expr: &Expr) -> Result<NodeId, Fault> {
        self.node(expr, 0)
    }

    fn node(&mut self, expr: &Expr, above: usize) -> Result<NodeId, Fault> {
        let depth = above + 1;
        if depth > EXPANDED_DEPTH_MAX {
            return Err(too_deep());
        }
        match expr {
            Expr::And(parts) => {
                let parts = parts.iter().map(|part| self.node(part, depth)).collect::<Result<_, _>>()?;
                self.graph.and(parts)
            }
            Expr::Or(parts) => {
                let parts = parts.iter().map(|part| self.node(part, depth)).collect::<Result<_, _>>()?;
                self.graph.or(parts)
            }
            Expr::Not(part) => {
                let part = self.node(part, depth)?;
                self.graph.not(part)
            }
            Expr::Macro(name) => self.expand(name, depth),
            Expr::Check(check) => self.check(check),
        }
    }

    /// The values of a list; `None` if it is none.
    fn values(&self, name: &str) -> Result<Option<&[String]>, Fault> {
        match self.refused.get(name) {
            Some(fault) => Err(fault.through("list", name)),
            None => Ok(self.lists.get(name).map(Vec::as_slice)),
        }
    }

    fn check(&mut self, check: &Check) -> Result<NodeId, Fault> {
        let Check { left, op, modifier, right } = check;
        let (left, op) = (of_term(left)?, *op);
        if let [Operand::Term(term)] = right.as_slice() {
            return self.graph.check(Key { left, op, right: Right::Of(of_term(term)?) });
        }
        let mut texts = Vec::new();
        for operand in right {
            match operand {
                Operand::Text { text, quoted: false } => match self.values(text)? {
                    Some(values) => texts.extend_from_slice(values),
                    None => texts.push(text.clone()),
                },
                Operand::Text { text, .. } => texts.push(text.clone()),
                Operand::List(name) => match self.values(name)? {
                    Some(values) => texts.extend_from_slice(values),
                    None => {
                        let what = format!("no file defines the list {}", shown(name));
                        return Err(Fault::new(Why::UnknownList, what, "define it, or write one value as (value)"));
                    }
                },
                Operand::Term(_) => {
                    return Err(Fault::new(
                        Why::Syntax,
                        "a field stands among the values of a list",
                        "compare with it by itself",
                    ));
                }
            }
        }
        let Some(modifier) = modifier else {
            if !op.is_list() && op != Op::Exists && texts.len() != 1 {
                let what = format!("a list of {} values stands where {} takes one", texts.len(), op.text());
                return Err(Fault::new(Why::Value, what, "use in, or name one value"));
            }
            return self.graph.check(Key { left, op, right: Right::Texts(texts) });
        };
        let each: Vec<NodeId> = texts
            .into_iter()
            .map(|text| self.graph.check(Key { left: left.clone(), op, right: Right::Texts(vec![text]) }))
            .collect::<Result<_, _>>()?;
        self.modified(*modifier, each, left)
    }

    /// `anyof` is a disjunction, `allof` a conjunction, `oneof` holds if exactly one does.
    fn modified(&mut self, modifier: Modifier, each: Vec<NodeId>, left: Of) -> Result<NodeId, Fault> {
        if each.is_empty() {
            return self.graph.check(Key { left, op: Op::In, right: Right::Texts(Vec::new()) });
        }
        match modifier {
            Modifier::Any => self.graph.or(each),
            Modifier::All => self.graph.and(each),
            Modifier::One if each.len() > ONE_OF_MAX => {
                let what = format!("oneof has {} values, {ONE_OF_MAX} are allowed", each.len());
                Err(Fault::new(Why::Limit, what, "use anyof"))
            }
            Modifier::One => {
                let mut cases = Vec::new();
                for one in &each {
                    let mut parts = vec![*one];
                    for other in each.iter().filter(|other| *other != one) {
                        parts.push(self.graph.not(*other)?);
                    }
                    cases.push(self.graph.and(parts)?);
                }
                self.graph.or(cases)
            }
        }
    }
}

/// A condition is deeper than evaluation may go.
pub(crate) fn too_deep() -> Fault {
    let what = format!("the condition is nested deeper than {EXPANDED_DEPTH_MAX} with its macros written out");
    Fault::new(Why::Limit, what, "name fewer macros within macros")
}

/// A term with its fields found in the table.
pub(crate) fn of_term(term: &Term) -> Result<Of, Fault> {
    match term {
        Term::Field { name, argument } => Field::find(name, argument.as_deref()).map(Of::Field),
        Term::Text(text) => Ok(Of::Text(text.clone())),
        Term::Call(transformer, arguments) => {
            use crate::ast::Transformer::{Concat, GetOpt, Join};
            let fits = match transformer {
                Concat => arguments.len() >= 2,
                Join | GetOpt => arguments.len() == 2,
                _ => arguments.len() == 1,
            };
            if !fits {
                let what = format!("{} does not take {} arguments", transformer.text(), arguments.len());
                return Err(Fault::new(Why::Value, what, "join and getopt take two, concat two or more, the others one"));
            }
            let arguments = arguments.iter().map(of_term).collect::<Result<_, _>>()?;
            Ok(Of::Call(*transformer, arguments))
        }
    }
}

/// Values of `oneof`: its expansion grows with their square.
const ONE_OF_MAX: usize = 100;
