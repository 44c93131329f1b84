//! Pipelines: what the names of Sigma rules mean in somebody's own surroundings, in a YAML file.
//!
//! ```yaml
//! pipeline: shop
//! logsources:
//!   - category: process_creation   # product, category, service: those given have to fit
//!     product: linux
//!     kinds: [exec]                # which of our events these are; without it the built-in table says
//!     fields:
//!       Image: exe                 # a column of events, detail.KEY, or a Falco field
//! placeholders:
//!   Administrators: [root, admin]
//! ```

use std::collections::HashMap;

use weir_schema::Kind;

use super::logsource::{Logsource, target};
use crate::check::Of;
use crate::error::{Error, Place, Why, shown};
use crate::limits::EXPANSIONS_MAX;
use crate::yaml::{self, Node, Yaml};

/// Field names, log sources and placeholders that users add. The default has none.
#[derive(Debug, Clone, Default)]
pub struct Pipeline {
    pub(super) sources: Vec<OwnSource>,
    placeholders: HashMap<String, Vec<String>>,
}

/// What a pipeline says of a log source.
#[derive(Debug, Clone)]
pub(super) struct OwnSource {
    pub(super) logsource: Logsource,
    pub(super) kinds: Option<Vec<Kind>>,
    pub(super) fields: HashMap<String, Of>,
}

impl Pipeline {
    /// Adds a file. What is wrong is refused with its line; the pipeline then is as before.
    pub fn read(&mut self, name: &str, text: &str) -> Result<(), Error> {
        let file = Place { file: name.into(), line: 1 };
        let mut read = self.clone();
        for document in yaml::parse(&file, text)? {
            for (key, value) in pairs(&file, &document)? {
                match key.scalar() {
                    Some("pipeline" | "name" | "description") => {}
                    Some("logsources") => {
                        for item in items(&file, value)? {
                            read.sources.push(source(&file, item)?);
                        }
                    }
                    Some("placeholders") => read.values(&file, value)?,
                    _ => return Err(unknown(&file, key, "write pipeline, logsources and placeholders")),
                }
            }
        }
        *self = read;
        Ok(())
    }

    fn values(&mut self, file: &Place, node: &Node) -> Result<(), Error> {
        for (key, value) in pairs(file, node)? {
            let one = std::slice::from_ref(value);
            let nodes = if let Yaml::Seq(nodes) = &value.value { nodes.as_slice() } else { one };
            let texts: Option<Vec<String>> = nodes.iter().map(|node| node.scalar().map(str::to_owned)).collect();
            let name = key.scalar().unwrap_or("").trim_matches('%').to_owned();
            match texts.filter(|texts| !texts.is_empty() && texts.len() <= EXPANSIONS_MAX) {
                Some(texts) if !name.is_empty() => _ = self.placeholders.insert(name, texts),
                _ => {
                    let what = format!("the placeholder {} has no texts, or more than {EXPANSIONS_MAX}", shown(&name));
                    return Err(wrong(file, value, what, "write name: [value, …]"));
                }
            }
        }
        Ok(())
    }

    pub(super) fn placeholder(&self, name: &str) -> Option<&[String]> {
        self.placeholders.get(name).map(Vec::as_slice)
    }
}

fn source(file: &Place, node: &Node) -> Result<OwnSource, Error> {
    let mut source = OwnSource { logsource: Logsource::default(), kinds: None, fields: HashMap::new() };
    for (key, value) in pairs(file, node)? {
        match (key.scalar(), value.scalar()) {
            (Some("product"), Some(text)) => source.logsource.product = Some(text.to_owned()),
            (Some("category"), Some(text)) => source.logsource.category = Some(text.to_owned()),
            (Some("service"), Some(text)) => source.logsource.service = Some(text.to_owned()),
            (Some("kinds"), _) => {
                let kinds = items(file, value)?.iter().map(|node| {
                    let text = node.scalar().unwrap_or("");
                    Kind::parse(text).ok_or_else(|| {
                        let what = format!("{} is no kind of event", shown(text));
                        wrong(file, node, what, "write kinds like exec, open, connect")
                    })
                });
                source.kinds = Some(kinds.collect::<Result<_, _>>()?);
            }
            (Some("fields"), _) => {
                for (name, to) in pairs(file, value)? {
                    let text = to.scalar().unwrap_or("");
                    let Some(of) = target(text) else {
                        let what = format!("{} is neither a column of events nor a field", shown(text));
                        return Err(wrong(file, to, what, "write a column like cmdline, detail.KEY, or a Falco field"));
                    };
                    source.fields.insert(name.scalar().unwrap_or("").to_owned(), of);
                }
            }
            _ => return Err(unknown(file, key, "write product, category, service, kinds and fields")),
        }
    }
    if source.logsource == Logsource::default() {
        return Err(wrong(file, node, "a log source has neither product, category nor service".into(), "write one of them"));
    }
    Ok(source)
}

fn pairs<'a>(file: &Place, node: &'a Node) -> Result<&'a [(Node, Node)], Error> {
    match &node.value {
        Yaml::Map(pairs) => Ok(pairs),
        Yaml::Null => Ok(&[]),
        _ => Err(wrong(file, node, "a mapping is wanted here".into(), "write key: value")),
    }
}

fn items<'a>(file: &Place, node: &'a Node) -> Result<&'a [Node], Error> {
    match &node.value {
        Yaml::Seq(items) => Ok(items),
        _ => Err(wrong(file, node, "a list is wanted here".into(), "begin each item with - ")),
    }
}

fn unknown(file: &Place, key: &Node, cure: &str) -> Error {
    wrong(file, key, format!("the key {} is unknown or has the wrong shape", shown(key.scalar().unwrap_or(""))), cure)
}

fn wrong(file: &Place, node: &Node, what: String, cure: &str) -> Error {
    Error::new(Why::Shape, &Place { line: node.line, ..file.clone() }, what, cure)
}
