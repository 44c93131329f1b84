//! YAML to a tree of values with their lines.
//!
//! `saphyr-parser` gives events with positions and does not recurse: depth, size and the use of aliases are bounded here.
//! (`serde_yaml` is archived, its forks drop the positions of values.) Scalars stay text: Falco's keys say what they hold.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

use crate::error::{Error, Place, Why, shown};
use crate::limits::{FILE_BYTES_MAX, YAML_DEPTH_MAX, YAML_NODES_MAX};

/// A value and the line where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) value: Yaml,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Yaml {
    /// A text, a number, a truth: as written.
    Scalar(String),
    /// Nothing: `~`, `null` or an empty value.
    Null,
    Seq(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Node {
    pub(crate) fn scalar(&self) -> Option<&str> {
        if let Yaml::Scalar(text) = &self.value { Some(text) } else { None }
    }
}

/// Reads every document of a file.
pub(crate) fn parse(file: &Place, text: &str) -> Result<Vec<Node>, Error> {
    if text.len() > FILE_BYTES_MAX {
        let what = format!("the file has {} bytes, {FILE_BYTES_MAX} are allowed", text.len());
        return Err(Error::new(Why::Limit, file, what, "split it into several files"));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut tree = Tree { file, open: Vec::new(), anchors: HashMap::new(), nodes: 0, documents: Vec::new() };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let place = Place { line: error.marker().line().max(1), ..file.clone() };
            // The parser has a bound of its own for brackets that it meets before it has given out their events.
            if error.info().contains("recursion limit") {
                return too_deep(&place);
            }
            let what = format!("this is not YAML: {}", error.info());
            Error::new(Why::Yaml, &place, what, "check indentation, quotes and brackets near this line")
        })?;
        tree.take(event, span.start.line().max(1))?;
    }
    Ok(tree.documents)
}

/// The tree while it grows.
struct Tree<'a> {
    file: &'a Place,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    documents: Vec<Node>,
}

/// A sequence or mapping that has not ended yet.
struct Open {
    anchor: usize,
    node: Node,
    key: Option<Node>,
}

impl Tree<'_> {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), Error> {
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                let null = plain && matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL");
                let value = if null { Yaml::Null } else { Yaml::Scalar(text.into_owned()) };
                self.close(anchor, Node { line, value }, 1)
            }
            Event::SequenceStart(anchor, _) => self.begin(anchor, Node { line, value: Yaml::Seq(Vec::new()) }),
            Event::MappingStart(anchor, _) => self.begin(anchor, Node { line, value: Yaml::Map(Vec::new()) }),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                self.close(open.anchor, open.node, 1)
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    let place = Place { line, ..self.file.clone() };
                    return Err(Error::new(Why::Yaml, &place, "an alias names what is not complete yet", "write the value out"));
                };
                let size = size(&node);
                self.close(0, Node { line, ..node }, size)
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, anchor: usize, node: Node) -> Result<(), Error> {
        if self.open.len() >= YAML_DEPTH_MAX {
            let place = Place { line: node.line, ..self.file.clone() };
            return Err(too_deep(&place));
        }
        self.open.push(Open { anchor, node, key: None });
        Ok(())
    }

    /// A value is complete: it goes to what it stands in.
    fn close(&mut self, anchor: usize, node: Node, size: usize) -> Result<(), Error> {
        self.nodes += size;
        if self.nodes > YAML_NODES_MAX {
            let place = Place { line: node.line, ..self.file.clone() };
            let what = format!("the file has more than {YAML_NODES_MAX} values");
            return Err(Error::new(Why::Limit, &place, what, "split it, and write aliases out"));
        }
        if anchor != 0 {
            self.nodes += 1;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.documents.push(node);
            return Ok(());
        };
        match (&mut open.node.value, open.key.take()) {
            (Yaml::Seq(items), _) => items.push(node),
            (Yaml::Map(_), None) => open.key = Some(node),
            (Yaml::Map(pairs), Some(key)) => {
                if pairs.len() >= KEYS_MAX {
                    let place = Place { line: key.line, ..self.file.clone() };
                    let what = format!("a mapping has more than {KEYS_MAX} keys");
                    return Err(Error::new(Why::Limit, &place, what, "items are written as a sequence: begin each with `- `"));
                }
                if let Some(text) = key.scalar()
                    && pairs.iter().any(|(known, _)| known.scalar() == Some(text))
                {
                    let place = Place { line: key.line, ..self.file.clone() };
                    let what = format!("the key {} stands twice", shown(text));
                    return Err(Error::new(Why::Yaml, &place, what, "keep one of them"));
                }
                pairs.push((key, node));
            }
            _ => {}
        }
        Ok(())
    }
}

fn too_deep(place: &Place) -> Error {
    let what = format!("values are nested deeper than {YAML_DEPTH_MAX}");
    Error::new(Why::Limit, place, what, "a rule file needs no more than five levels")
}

fn size(node: &Node) -> usize {
    match &node.value {
        Yaml::Scalar(text) => 1 + text.len() / BYTES_PER_NODE,
        Yaml::Null => 1,
        Yaml::Seq(items) => 1 + items.iter().map(size).sum::<usize>(),
        Yaml::Map(pairs) => 1 + pairs.iter().map(|(key, value)| size(key) + size(value)).sum::<usize>(),
    }
}

/// Long texts count as several values, so that an alias to one is no way around the limit.
const BYTES_PER_NODE: usize = 64;
/// Keys of one mapping: no item of a rule file has more than thirty.
const KEYS_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { file: "f.yaml".into(), line: 1 }
    }

    #[test]
    fn values_keep_their_lines() {
        let documents = parse(&place(), "- a: 1\n  b: >\n    x\n    y\n- ~\n").unwrap();
        let Yaml::Seq(items) = &documents[0].value else { panic!("no sequence") };
        let Yaml::Map(pairs) = &items[0].value else { panic!("no mapping") };
        assert_eq!((pairs[0].1.scalar(), pairs[0].1.line), (Some("1"), 1));
        assert_eq!((pairs[1].1.scalar(), pairs[1].0.line), (Some("x y\n"), 2));
        assert_eq!((&items[1].value, items[1].line), (&Yaml::Null, 5));
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_line() {
        let cases = [
            ("- a\n- [b\n- c: }\n", Why::Yaml),
            ("a: 1\na: 2\n", Why::Yaml),
            (&"[".repeat(1_000), Why::Limit),
            (&"x".repeat(FILE_BYTES_MAX + 1), Why::Limit),
        ];
        for (text, why) in cases {
            let error = parse(&place(), text).unwrap_err();
            assert_eq!(error.why, why, "{error}");
            assert!(error.place.line >= 1);
        }
    }

    #[test]
    fn aliases_cannot_multiply_without_bound() {
        let mut text = "- &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let names: Vec<String> = (0..10).map(|_| format!("*a{}", level - 1)).collect();
            text += &format!("- &a{level} [{}]\n", names.join(", "));
        }
        assert_eq!(parse(&place(), &text).unwrap_err().why, Why::Limit);
    }
}
