//! Sigma rules: YAML to nodes of the same graph that Falco's rules share.
//!
//! Follows specification 2.1.0 (rules, modifiers); correlations are read in `correlation.rs`. Filters and collections
//! (`action: global`) are refused by name. A value of `null` wants the field to be absent; of a field that nothing supplies nobody knows that, so there it is
//! false. `re` and `|re|i` are Rust's regular expressions, tried anywhere in the text: a superset of what Sigma allows.
//! A keyword is looked for in all texts of an event: command line, paths, executables, names, addresses, detail.

mod condition;
mod correlation;
mod head;
mod logsource;
mod pipeline;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeSet;

use weir_schema::Kind;

use self::condition::{Condition, Quantity};
pub(crate) use self::correlation::{Written, read as read_correlation};
pub(crate) use self::head::Head;
pub(crate) use self::logsource::Logsource;
use self::logsource::{Failed, Source};
pub use self::pipeline::Pipeline;
use self::value::{FieldKey, Item, Want};
use crate::ast::Op;
use crate::check::{Key, Of, Right};
use crate::error::{Error, Fault, Place, Why, shown};
use crate::fields::Field;
use crate::graph::{Graph, NodeId};
use crate::names::calls;
use crate::own::AUDIT_TYPES;
use crate::pattern::{Like, Pattern};
use crate::yaml::{Node, Yaml};

/// A rule as its file has it.
#[derive(Debug)]
pub(crate) struct SigmaRule<'a> {
    pub(crate) head: Head,
    pub(crate) logsource: Logsource,
    detection: &'a [(Node, Node)],
}

/// A rule's condition in the graph.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) node: NodeId,
    /// Log sources, system calls and record types that are not collected.
    pub(crate) lacks: Vec<String>,
    pub(crate) output: String,
}

/// Whether a document looks like Sigma's.
pub(crate) fn is_sigma(document: &Node) -> bool {
    let Yaml::Map(pairs) = &document.value else { return false };
    let signs = ["title", "detection", "logsource", "correlation", "filter", "action"];
    pairs.iter().any(|(key, _)| key.scalar().is_some_and(|key| signs.contains(&key)))
}

/// Whether a document of Sigma's is a correlation.
pub(crate) fn is_correlation(document: &Node) -> bool {
    find(document, "correlation").is_some()
}

/// Reads a document that is a rule.
pub(crate) fn read<'a>(file: &Place, document: &'a Node) -> Result<SigmaRule<'a>, Error> {
    rule(file, document).map_err(|error| error.about("rule", head::title(document)))
}

fn rule<'a>(file: &Place, document: &'a Node) -> Result<SigmaRule<'a>, Error> {
    let place = Place { line: document.line, ..file.clone() };
    let unbuilt = [
        ("filter", "filters are not built yet", "leave the document out; the rules it names load by themselves"),
        ("action", "rule collections with action: are not part of Sigma 2", "write each rule out"),
    ];
    if let Some((_, what, cure)) = unbuilt.iter().find(|(key, ..)| find(document, key).is_some()) {
        return Err(Error::new(Why::Unsupported, &place, *what, *cure));
    }
    let at = |node: &Node| Place { line: node.line, ..file.clone() };
    let missing = |key: &str| Error::new(Why::Shape, &place, format!("the rule has no {key}"), format!("write {key}:"));
    let head = Head::read(file, document)?;
    let logsource = logsource(file, find(document, "logsource").ok_or_else(|| missing("logsource"))?)?;
    let detection = find(document, "detection").ok_or_else(|| missing("detection"))?;
    let Yaml::Map(selections) = &detection.value else {
        return Err(Error::new(Why::Shape, &at(detection), "detection is no mapping", "write selections and a condition"));
    };
    Ok(SigmaRule { head, logsource, detection: selections })
}

/// The field that a name means in the events of a log source.
pub(crate) fn field_of(logsource: &Logsource, pipeline: &Pipeline, name: &str) -> Of {
    Source::find(logsource, pipeline).field(name, false)
}

fn find<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    let Yaml::Map(pairs) = &node.value else { return None };
    pairs.iter().find(|(known, _)| known.scalar() == Some(key)).map(|(_, value)| value)
}

fn logsource(file: &Place, node: &Node) -> Result<Logsource, Error> {
    let wrong = || {
        let place = Place { line: node.line, ..file.clone() };
        Error::new(Why::Shape, &place, "logsource says no product, category or service", "write category: process_creation")
    };
    let text = |key: &str| find(node, key).and_then(Node::scalar).map(str::to_owned);
    let source = Logsource { product: text("product"), category: text("category"), service: text("service") };
    if source == Logsource::default() { Err(wrong()) } else { Ok(source) }
}

impl SigmaRule<'_> {
    /// Puts the rule's condition into the graph.
    pub(crate) fn compile(&self, graph: &mut Graph, pipeline: &Pipeline) -> Result<Compiled, Error> {
        let source = Source::find(&self.logsource, pipeline);
        let mut compiler = Compiler { rule: self, source, pipeline, graph, lacks: BTreeSet::new() };
        let node = compiler.whole().map_err(|error| error.about("rule", &self.head.title))?;
        let lacks = compiler.lacks.into_iter().collect();
        Ok(Compiled { node, lacks, output: self.output() })
    }

    /// What an alert says: the title and what an analyst looks at first.
    fn output(&self) -> String {
        let title = self.head.title.replace('%', "%%");
        let about = match self.logsource.category.as_deref() {
            Some(category) if category.starts_with("file") => "file=%fs.path.name to=%fs.path.target ",
            Some("network_connection") => "connection=%fd.name ",
            Some("dns_query") => "name=%weir.dns_name ",
            Some("process_creation") => "",
            _ => "kind=%weir.kind path=%fs.path.name connection=%fd.name ",
        };
        format!(
            "{title} ({about}exe=%proc.exepath command=%proc.exeline parent=%proc.pexepath user=%user.name container=%container.id)"
        )
    }
}

struct Compiler<'a, 'g> {
    rule: &'a SigmaRule<'a>,
    source: Source<'a>,
    pipeline: &'a Pipeline,
    graph: &'g mut Graph,
    lacks: BTreeSet<String>,
}

impl Compiler<'_, '_> {
    fn place(&self, node: &Node) -> Place {
        Place { line: node.line, ..self.rule.head.place.clone() }
    }

    fn whole(&mut self) -> Result<NodeId, Error> {
        let place = self.rule.head.place.clone();
        let fault = |fault: Fault| fault.at(&place);
        let mut parts = self.guard().map_err(fault)?;
        let written = self.rule.detection.iter().find(|(key, _)| key.scalar() == Some("condition")).map(|(_, value)| value);
        let Some(written) = written else {
            return Err(Error::new(Why::Shape, &place, "the detection has no condition", "write condition: selection"));
        };
        let at = self.place(written);
        let one = std::slice::from_ref(written);
        let texts = if let Yaml::Seq(nodes) = &written.value { nodes.as_slice() } else { one };
        let mut alternatives = Vec::new();
        for text in texts {
            let text = text.scalar().unwrap_or("");
            let condition = condition::parse(text).map_err(|fault| fault.at(&at))?;
            alternatives.push(self.condition(&condition, &at)?);
        }
        if alternatives.is_empty() {
            return Err(Error::new(Why::Shape, &at, "the condition is an empty list", "write condition: selection"));
        }
        parts.push(self.graph.or(alternatives).map_err(|fault| fault.at(&at))?);
        // Selections that no condition names may be wrong, too.
        for (key, node) in self.rule.detection {
            if !matches!(key.scalar(), Some("condition" | "timeframe")) {
                self.selection(key, node)?;
            }
        }
        self.graph.and(parts).map_err(|fault| fault.at(&at))
    }

    /// Which events the log source is: what has to hold before the rule's own words count.
    fn guard(&mut self) -> Result<Vec<NodeId>, Fault> {
        let kinds = self.source.kinds();
        let named = |name: &str| Field::find(name, None).map(Of::Field);
        let mut parts = Vec::new();
        match kinds {
            None => {
                self.lacks.insert(self.source.name());
                parts.push(self.never(named("weir.kind")?)?);
            }
            Some(kinds) if kinds.is_empty() => {}
            Some(kinds) => {
                let texts = kinds.iter().map(|kind| kind.as_str().to_owned()).collect();
                parts.push(self.graph.check(Key { left: named("weir.kind")?, op: Op::In, right: Right::Texts(texts) })?);
            }
        }
        let truth = |graph: &mut Graph, name: &str, text: &str| {
            graph.check(Key { left: named(name)?, op: Op::Eq, right: Right::Texts(vec![text.to_owned()]) })
        };
        if self.source.failed() == Failed::LeftOut {
            let failed = truth(self.graph, "evt.failed", "true")?;
            parts.push(self.graph.not(failed)?);
        }
        if self.source.writes() {
            let open = truth(self.graph, "weir.kind", Kind::Open.as_str())?;
            let moved = self.graph.not(open)?;
            let writes = truth(self.graph, "evt.is_open_write", "true")?;
            let creates = truth(self.graph, "evt.is_open_create", "true")?;
            parts.push(self.graph.or(vec![moved, writes, creates])?);
        }
        Ok(parts)
    }

    /// A comparison that is never true and names its field.
    fn never(&mut self, left: Of) -> Result<NodeId, Fault> {
        self.graph.check(Key { left, op: Op::In, right: Right::Texts(Vec::new()) })
    }

    fn condition(&mut self, condition: &Condition, at: &Place) -> Result<NodeId, Error> {
        let parts = match condition {
            Condition::And(parts) | Condition::Or(parts) => {
                parts.iter().map(|part| self.condition(part, at)).collect::<Result<Vec<_>, _>>()?
            }
            Condition::Not(part) => {
                let part = self.condition(part, at)?;
                return self.graph.not(part).map_err(|fault| fault.at(at));
            }
            Condition::Selection(name) => {
                let found = self.rule.detection.iter().find(|(key, _)| key.scalar() == Some(name) && name != "condition");
                let Some((key, node)) = found else {
                    let what = format!("the condition names {}, which the detection does not have", shown(name));
                    return Err(Error::new(Why::Syntax, at, what, "correct the name, or add the selection"));
                };
                return self.selection(key, node);
            }
            Condition::Of(_, group) => {
                let all = self.rule.detection.iter();
                let named: Vec<_> = all
                    .filter(|(key, _)| {
                        key.scalar().is_some_and(|key| !matches!(key, "condition" | "timeframe") && group.has(key))
                    })
                    .collect();
                if named.is_empty() {
                    let what = format!("no selection is called like {}", shown(group.text()));
                    return Err(Error::new(Why::Syntax, at, what, "correct the pattern, or add the selection"));
                }
                named.into_iter().map(|(key, node)| self.selection(key, node)).collect::<Result<Vec<_>, _>>()?
            }
        };
        let is_and = matches!(condition, Condition::And(_) | Condition::Of(Quantity::All, _));
        if is_and { self.graph.and(parts) } else { self.graph.or(parts) }.map_err(|fault| fault.at(at))
    }

    fn selection(&mut self, key: &Node, node: &Node) -> Result<NodeId, Error> {
        let name = key.scalar().unwrap_or("");
        self.maps(node).map_err(|error| Error { what: format!("selection {}: {}", shown(name), error.what), ..error })
    }

    /// A mapping, a keyword, or a list of them of which one has to hold.
    fn maps(&mut self, node: &Node) -> Result<NodeId, Error> {
        let place = self.place(node);
        let fault = |fault: Fault| fault.at(&place);
        match &node.value {
            Yaml::Seq(items) if !items.is_empty() => {
                let is_keyword = |item: &&Node| !matches!(item.value, Yaml::Map(_) | Yaml::Seq(_));
                let words: Vec<Node> = items.iter().filter(is_keyword).cloned().collect();
                let mut parts = Vec::new();
                if !words.is_empty() {
                    parts.push(self.field("", &Node { line: node.line, value: Yaml::Seq(words) }, false).map_err(fault)?);
                }
                for item in items.iter().filter(|item| !is_keyword(item)) {
                    parts.push(self.maps(item)?);
                }
                self.graph.or(parts).map_err(fault)
            }
            Yaml::Map(pairs) if !pairs.is_empty() => {
                let registers = self.source.is_audit() && pairs.iter().any(is_syscall);
                let mut parts = Vec::new();
                for (key, value) in pairs {
                    let at = self.place(value);
                    let Some(key) = key.scalar() else {
                        return Err(Error::new(Why::Shape, &at, "a field's name is no text", "write Field: value"));
                    };
                    parts.push(self.field(key, value, registers).map_err(|fault| fault.at(&at))?);
                }
                self.graph.and(parts).map_err(fault)
            }
            Yaml::Scalar(_) => self.field("", node, false).map_err(fault),
            _ => Err(Error::new(Why::Shape, &place, "it is empty", "write fields and values, or a list of keywords")),
        }
    }

    fn field(&mut self, key: &str, node: &Node, registers: bool) -> Result<NodeId, Fault> {
        let key = FieldKey::parse(key)?;
        let item = key.read(node, self.pipeline)?;
        let left = match key.name {
            "" => Of::Field(Field::find("weir.text", None)?),
            name => self.source.field(name, registers),
        };
        self.collected(&left, &item);
        let others: Vec<Of> = item
            .wants
            .iter()
            .flatten()
            .filter_map(|want| if let Want::Field { name, .. } = want { Some(self.source.field(name, false)) } else { None })
            .collect();
        let mut parts = Vec::new();
        let mut likes: [Vec<Like>; 2] = [Vec::new(), Vec::new()];
        for wants in item.wants {
            let mut one = Vec::new();
            for want in wants {
                match want {
                    Want::Like { like, cased } if !item.all => likes[usize::from(cased)].push(like),
                    other => one.push(self.want(&left, other)?),
                }
            }
            if !one.is_empty() {
                parts.push(self.graph.or(one)?);
            }
        }
        for (cased, any) in [false, true].into_iter().zip(likes) {
            if !any.is_empty() {
                let right = Right::Pattern(Pattern::Like { cased, any });
                parts.push(self.graph.check(Key { left: left.clone(), op: Op::Eq, right })?);
            }
        }
        // `base64offset` of nothing leaves no text to look for.
        if parts.is_empty() {
            parts.push(self.never(left.clone())?);
        }
        let node = if item.all { self.graph.and(parts)? } else { self.graph.or(parts)? };
        if !item.neq {
            return Ok(node);
        }
        // What is not there differs from nothing, on either side.
        let mut parts = vec![left];
        parts.extend(others);
        let mut parts: Vec<NodeId> = parts
            .into_iter()
            .map(|left| self.graph.check(Key { left, op: Op::Exists, right: Right::Texts(Vec::new()) }))
            .collect::<Result<_, _>>()?;
        parts.push(self.graph.not(node)?);
        self.graph.and(parts)
    }

    fn want(&mut self, left: &Of, want: Want) -> Result<NodeId, Fault> {
        let exists = |graph: &mut Graph| graph.check(Key { left: left.clone(), op: Op::Exists, right: Right::Texts(Vec::new()) });
        let pattern = match want {
            Want::Exists(true) => return exists(self.graph),
            Want::Absent | Want::Exists(false) => {
                let is_supplied = matches!(left, Of::Field(field) if field.is_supplied());
                if !is_supplied {
                    return self.never(left.clone());
                }
                let there = exists(self.graph)?;
                return self.graph.not(there);
            }
            Want::Like { like, cased } => Pattern::Like { cased, any: vec![like] },
            Want::Pattern(pattern) => pattern,
            Want::Field { name, at, cased } => Pattern::Field { of: self.source.field(&name, false), at, cased },
        };
        self.graph.check(Key { left: left.clone(), op: Op::Eq, right: Right::Pattern(pattern) })
    }

    /// Notes system calls and record types that no event of ours stands for, if an item asks for nothing else.
    fn collected(&mut self, left: &Of, item: &Item) {
        let Of::Field(field) = left else { return };
        let known = |text: &str| match field.def().name {
            "weir.audit_type" => AUDIT_TYPES.iter().any(|known| known.eq_ignore_ascii_case(text)),
            "evt.type" => Kind::ALL.iter().any(|kind| calls(*kind).contains(&text)),
            _ => true,
        };
        let texts: Vec<&str> = item
            .wants
            .iter()
            .flatten()
            .filter_map(|want| if let Want::Like { like, .. } = want { like.plain() } else { None })
            .collect();
        if !texts.is_empty() && !texts.iter().any(|text| known(text)) {
            self.lacks.extend(texts.iter().map(|text| format!("type {text}")));
        }
    }
}

/// Whether a pair says that the selection is about a system call's record.
fn is_syscall((key, value): &(Node, Node)) -> bool {
    match key.scalar() {
        Some("SYSCALL" | "syscall") => true,
        Some("type") => value.scalar().is_some_and(|text| text.eq_ignore_ascii_case("SYSCALL")),
        _ => false,
    }
}
