//! One item of a rule file: what is written, before it is merged with what other items say of the same name.

use crate::error::{Error, Place, Why, shown};
use crate::exception::{Exception, unquoted};
use crate::resolve::Item as ListItem;
use crate::yaml::{Node, Yaml};
use crate::{ast::Operand, set::Priority};

/// What an item is.
#[derive(Debug)]
pub(crate) enum Kind {
    EngineVersion(String),
    PluginVersions(Vec<(String, String)>),
    List(Vec<ListItem>),
    Macro(String),
    Rule(Box<RulePart>),
}

/// An item, whose name is empty for versions.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) name: String,
    pub(crate) place: Place,
    /// Where the condition begins, else the item.
    pub(crate) condition_place: Place,
    pub(crate) kind: Kind,
    pub(crate) merge: Merge,
}

/// How an item meets an earlier one of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Merge {
    Replace,
    /// `append: true`
    Append,
    /// `override: {condition: append, …}`: key and whether it is appended.
    Keys(Vec<(String, Change)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Append,
    Replace,
}

/// What an item says of a rule.
#[derive(Debug, Default)]
pub(crate) struct RulePart {
    pub(crate) desc: Option<String>,
    pub(crate) condition: Option<String>,
    pub(crate) output: Option<String>,
    pub(crate) priority: Option<Priority>,
    pub(crate) tags: Option<Vec<String>>,
    pub(crate) source: Option<String>,
    pub(crate) enabled: Option<bool>,
    pub(crate) exceptions: Option<Vec<Exception>>,
    pub(crate) warn_evttypes: Option<bool>,
    pub(crate) skip_unknown: Option<bool>,
    pub(crate) keys: Vec<String>,
}

/// Reads one item; `place` is its file.
pub(crate) fn read(place: &Place, node: &Node) -> Result<Item, Error> {
    let place = Place { line: node.line, ..place.clone() };
    let Yaml::Map(pairs) = &node.value else {
        return Err(Error::new(Why::Shape, &place, "an item is no mapping", "begin each with - rule:, - macro: or - list:"));
    };
    let reader = Reader { place: place.clone(), pairs };
    for kind in ["rule", "macro", "list", "required_engine_version", "required_plugin_versions"] {
        let Some(value) = reader.find(kind) else { continue };
        return match kind {
            "required_engine_version" => {
                let version = reader.text(kind, value)?;
                Ok(reader.item(String::new(), Kind::EngineVersion(version), Merge::Replace))
            }
            "required_plugin_versions" => {
                let plugins = reader.plugins(value)?;
                Ok(reader.item(String::new(), Kind::PluginVersions(plugins), Merge::Replace))
            }
            _ => {
                let name = reader.text(kind, value)?;
                reader.named(kind, &name).map_err(|error| error.about(kind, &name))
            }
        };
    }
    let key = pairs.first().and_then(|(key, _)| key.scalar()).unwrap_or("");
    let what = format!("an item that begins with {} is of no known kind", shown(key));
    Err(Error::new(Why::Shape, &place, what, "begin each with - rule:, - macro: or - list:"))
}

struct Reader<'a> {
    place: Place,
    pairs: &'a [(Node, Node)],
}

impl Reader<'_> {
    fn find(&self, key: &str) -> Option<&Node> {
        self.pairs.iter().find(|(known, _)| known.scalar() == Some(key)).map(|(_, value)| value)
    }

    fn at(&self, node: &Node) -> Place {
        Place { line: node.line, ..self.place.clone() }
    }

    fn wrong(&self, node: &Node, what: String, cure: &str) -> Error {
        Error::new(Why::Shape, &self.at(node), what, cure)
    }

    fn item(&self, name: String, kind: Kind, merge: Merge) -> Item {
        let condition_place = self.find("condition").map_or_else(|| self.place.clone(), |node| self.at(node));
        Item { name, place: self.place.clone(), condition_place, kind, merge }
    }

    fn text(&self, key: &str, node: &Node) -> Result<String, Error> {
        match node.scalar() {
            Some(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
            _ => Err(self.wrong(node, format!("{key} is empty or no text"), "write a text behind the colon")),
        }
    }

    fn truth(&self, key: &str, node: &Node) -> Result<bool, Error> {
        match node.scalar() {
            Some("true" | "True" | "TRUE" | "yes" | "on") => Ok(true),
            Some("false" | "False" | "FALSE" | "no" | "off") => Ok(false),
            _ => Err(self.wrong(node, format!("{key} is neither true nor false"), "write true or false")),
        }
    }

    fn texts(&self, key: &str, node: &Node) -> Result<Vec<String>, Error> {
        match &node.value {
            Yaml::Null => Ok(Vec::new()),
            Yaml::Seq(items) => items
                .iter()
                .map(|item| {
                    item.scalar()
                        .map(str::to_owned)
                        .ok_or_else(|| self.wrong(item, format!("{key} holds no text"), "write texts"))
                })
                .collect(),
            _ => Err(self.wrong(node, format!("{key} is no list"), "write [a, b]")),
        }
    }

    fn plugins(&self, node: &Node) -> Result<Vec<(String, String)>, Error> {
        let wrong = || {
            self.wrong(node, "required_plugin_versions is no list of name and version".into(), "write - name: … and version: …")
        };
        let Yaml::Seq(items) = &node.value else { return Err(wrong()) };
        items
            .iter()
            .map(|item| {
                let Yaml::Map(pairs) = &item.value else { return Err(wrong()) };
                let find =
                    |key: &str| pairs.iter().find(|(known, _)| known.scalar() == Some(key)).and_then(|(_, value)| value.scalar());
                find("name").zip(find("version")).map(|(name, version)| (name.to_owned(), version.to_owned())).ok_or_else(wrong)
            })
            .collect()
    }

    fn merge(&self, allowed: &[&str]) -> Result<Merge, Error> {
        let append = self.find("append").map(|node| self.truth("append", node)).transpose()?.unwrap_or(false);
        let Some(node) = self.find("override") else {
            return Ok(if append { Merge::Append } else { Merge::Replace });
        };
        if append {
            return Err(self.wrong(node, "append and override stand together".into(), "keep override"));
        }
        let Yaml::Map(pairs) = &node.value else {
            return Err(self.wrong(node, "override is no mapping".into(), "write override: {condition: append}"));
        };
        let mut keys = Vec::new();
        for (key, change) in pairs {
            let name = key.scalar().unwrap_or("");
            let can_append = ["condition", "output", "desc", "tags", "exceptions", "items"].contains(&name);
            let change_of = match change.scalar() {
                Some("append") if can_append => Change::Append,
                Some("replace") => Change::Replace,
                _ => {
                    return Err(self.wrong(
                        key,
                        format!("override of {} is not allowed so", shown(name)),
                        "write append or replace",
                    ));
                }
            };
            if !allowed.contains(&name) || self.find(name).is_none() {
                return Err(self.wrong(
                    key,
                    format!("override names {}, which the item does not have", shown(name)),
                    "add the key or drop it",
                ));
            }
            keys.push((name.to_owned(), change_of));
        }
        Ok(Merge::Keys(keys))
    }

    fn named(&self, kind: &str, name: &str) -> Result<Item, Error> {
        let (kind, merge) = match kind {
            "list" => {
                let items = self.find("items").map(|node| self.texts("items", node)).transpose()?;
                let items =
                    items.ok_or_else(|| Error::new(Why::Shape, &self.place, "a list has no items", "write items: [a, b]"))?;
                let items = items.iter().map(|item| match unquoted(item) {
                    Operand::Text { text, quoted } => ListItem { text, quoted },
                    _ => ListItem { text: item.clone(), quoted: false },
                });
                (Kind::List(items.collect()), self.merge(&["items"])?)
            }
            "macro" => {
                let condition = self.find("condition").map(|node| self.text("condition", node)).transpose()?;
                let missing = || Error::new(Why::Shape, &self.place, "a macro has no condition", "write condition: …");
                (Kind::Macro(condition.ok_or_else(missing)?), self.merge(&["condition"])?)
            }
            _ => {
                let part = self.rule()?;
                let keys: Vec<&str> = part.keys.iter().map(String::as_str).collect();
                let merge = self.merge(&keys)?;
                (Kind::Rule(Box::new(part)), merge)
            }
        };
        Ok(self.item(name.to_owned(), kind, merge))
    }

    fn rule(&self) -> Result<RulePart, Error> {
        let mut part = RulePart::default();
        for (key, value) in self.pairs {
            let Some(name) = key.scalar() else {
                return Err(self.wrong(key, "a key is no text".into(), "write key: value"));
            };
            match name {
                "rule" | "append" | "override" => continue,
                "desc" => part.desc = Some(value.scalar().unwrap_or("").trim().to_owned()),
                "condition" => part.condition = Some(self.text(name, value)?),
                "output" => part.output = Some(self.text(name, value)?),
                "priority" => {
                    let text = self.text(name, value)?;
                    let priority = Priority::parse(&text);
                    let wrong = || {
                        self.wrong(
                            value,
                            format!("{} is no priority", shown(&text)),
                            "write emergency, alert, critical, error, warning, notice, informational or debug",
                        )
                    };
                    part.priority = Some(priority.ok_or_else(wrong)?);
                }
                "tags" => part.tags = Some(self.texts(name, value)?),
                "source" => part.source = Some(self.text(name, value)?),
                "enabled" => part.enabled = Some(self.truth(name, value)?),
                "warn_evttypes" => part.warn_evttypes = Some(self.truth(name, value)?),
                "skip-if-unknown-filter" => part.skip_unknown = Some(self.truth(name, value)?),
                "exceptions" => part.exceptions = Some(self.exceptions(value)?),
                // Known, without a use here: Falco writes system-call captures.
                "capture" | "capture_duration" => {}
                // Falco ignores what it does not know, with a warning; files of newer versions stay readable.
                _ => {}
            }
            part.keys.push(name.to_owned());
        }
        Ok(part)
    }

    fn exceptions(&self, node: &Node) -> Result<Vec<Exception>, Error> {
        match &node.value {
            Yaml::Null => Ok(Vec::new()),
            Yaml::Seq(items) => items.iter().map(|item| Exception::read(&self.place, item)).collect(),
            _ => Err(self.wrong(node, "exceptions is no list".into(), "begin each with - name:")),
        }
    }
}

/// Keys that Falco gives a rule.
pub(crate) const RULE_KEYS: &[&str] = &[
    "rule",
    "desc",
    "condition",
    "output",
    "priority",
    "tags",
    "source",
    "enabled",
    "exceptions",
    "warn_evttypes",
    "skip-if-unknown-filter",
    "capture",
    "capture_duration",
    "append",
    "override",
];
