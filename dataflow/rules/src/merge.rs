//! Items of all files, in order, to one catalog: later items append, override or replace.
//!
//! An item that is wrong is told and left out; the others go on. A replaced rule keeps its place in the order, which decides
//! who alerts when only the first may.

use std::collections::HashMap;

use crate::ast::Expr;
use crate::error::{Error, Place, Why, shown};
use crate::exception::Exception;
use crate::item::{self, Change, Item, Kind, Merge, RULE_KEYS, RulePart};
use crate::limits::{CONDITION_BYTES_MAX, ITEMS_MAX, LIST_ITEMS_MAX};
use crate::resolve::{List, Macro};
use crate::set::{Notice, Priority};
use crate::sigma;
use crate::version::{ENGINE, Version};
use crate::yaml::{self, Node, Yaml};

/// A rule as merged so far.
#[derive(Debug, Clone)]
pub(crate) struct RuleText {
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) condition_place: Place,
    pub(crate) desc: String,
    pub(crate) condition: String,
    pub(crate) output: String,
    pub(crate) priority: Priority,
    pub(crate) tags: Vec<String>,
    pub(crate) source: String,
    pub(crate) enabled: bool,
    pub(crate) exceptions: Vec<Exception>,
    pub(crate) warn_evttypes: bool,
    pub(crate) skip_unknown: bool,
}

/// Everything that the files say.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) lists: HashMap<String, List>,
    pub(crate) macros: HashMap<String, Macro>,
    pub(crate) rules: Vec<RuleText>,
    by_name: HashMap<String, usize>,
    pub(crate) plugins: Vec<(String, String)>,
    pub(crate) errors: Vec<Error>,
    pub(crate) notices: Vec<Notice>,
    /// Sigma's documents, with their files: they are no part of the merging.
    pub(crate) sigma: Vec<(Place, Node)>,
    items: usize,
}

impl Catalog {
    /// Takes a file.
    pub(crate) fn take(&mut self, name: &str, text: &str) {
        let file = Place { file: name.into(), line: 1 };
        match yaml::parse(&file, text) {
            Ok(documents) => _ = documents.iter().all(|document| self.document(&file, document)),
            Err(error) => self.errors.push(error),
        }
    }

    /// Takes a document; false if the rest of the file must not be read: it is for a newer engine.
    fn document(&mut self, file: &Place, document: &Node) -> bool {
        let items = match &document.value {
            Yaml::Seq(items) => items,
            Yaml::Null => return true,
            _ if sigma::is_sigma(document) => {
                self.items += 1;
                if self.items > ITEMS_MAX {
                    let place = Place { line: document.line, ..file.clone() };
                    self.errors.push(too_many(&place));
                    return false;
                }
                self.sigma.push((file.clone(), document.clone()));
                return true;
            }
            _ => {
                let place = Place { line: document.line, ..file.clone() };
                let cure = "begin each item with - rule:, - macro: or - list:, or write a Sigma rule with title and detection";
                self.errors.push(Error::new(Why::Yaml, &place, "the file is no array of items", cure));
                return true;
            }
        };
        for node in items {
            let taken = item::read(file, node).and_then(|item| self.item(item));
            if let Err(error) = taken {
                let is_version = error.why == Why::Version;
                self.errors.push(error);
                if is_version {
                    return false;
                }
            }
        }
        true
    }

    fn item(&mut self, item: Item) -> Result<(), Error> {
        self.items += 1;
        if self.items > ITEMS_MAX {
            return Err(too_many(&item.place));
        }
        let Item { name, place, condition_place, kind, merge } = item;
        match kind {
            Kind::EngineVersion(text) => engine(&place, &text),
            Kind::PluginVersions(plugins) => {
                self.plugins.extend(plugins);
                Ok(())
            }
            Kind::List(items) => {
                let appends = appends(&merge, "items");
                match self.lists.get_mut(&name) {
                    Some(list) if appends => {
                        list.items.extend(items);
                        if list.items.len() > LIST_ITEMS_MAX {
                            let what = format!("the list has more than {LIST_ITEMS_MAX} values");
                            return Err(Error::new(Why::Limit, &place, what, "split it").about("list", &name));
                        }
                    }
                    None if merge != Merge::Replace => return Err(nothing_to_change(&place, "list", &name)),
                    _ => _ = self.lists.insert(name, List { place, items }),
                }
                Ok(())
            }
            Kind::Macro(condition) => {
                let appends = appends(&merge, "condition");
                match self.macros.get_mut(&name) {
                    Some(known) if appends => {
                        join(&mut known.condition, &condition, &place).map_err(|error| error.about("macro", &name))?;
                        known.place = condition_place;
                    }
                    None if merge != Merge::Replace => return Err(nothing_to_change(&place, "macro", &name)),
                    _ => _ = self.macros.insert(name, Macro { place: condition_place, condition }),
                }
                Ok(())
            }
            Kind::Rule(part) => {
                for key in part.keys.iter().filter(|key| !RULE_KEYS.contains(&key.as_str())) {
                    let what = format!("the key {} is unknown and has no effect", shown(key));
                    self.notices.push(Notice { place: place.clone(), rule: name.clone(), what });
                }
                self.rule(&name, &place, condition_place, *part, merge).map_err(|error| error.about("rule", &name))
            }
        }
    }

    fn rule(&mut self, name: &str, place: &Place, condition_place: Place, part: RulePart, merge: Merge) -> Result<(), Error> {
        let at = self.by_name.get(name).copied();
        let only_enabled = part.keys.iter().all(|key| key == "enabled") && part.enabled.is_some();
        match (merge, at) {
            (Merge::Replace, Some(at)) if only_enabled => {
                self.rules[at].enabled = part.enabled.unwrap_or(true);
                Ok(())
            }
            (Merge::Replace, at) => {
                let rule = define(name, place, condition_place, part)?;
                match at {
                    Some(at) => self.rules[at] = rule,
                    None => {
                        self.by_name.insert(name.to_owned(), self.rules.len());
                        self.rules.push(rule);
                    }
                }
                Ok(())
            }
            (_, None) => Err(nothing_to_change(place, "rule", name)),
            (Merge::Append, Some(at)) => {
                if part.condition.is_none() && part.exceptions.is_none() {
                    let what = "append has neither condition nor exceptions";
                    return Err(Error::new(Why::Shape, place, what, "add one of them, or use override"));
                }
                let rule = &mut self.rules[at];
                if let Some(condition) = part.condition {
                    join(&mut rule.condition, &condition, place)?;
                    rule.condition_place = condition_place;
                }
                exceptions(rule, part.exceptions.unwrap_or_default())
            }
            (Merge::Keys(keys), Some(at)) => change(&mut self.rules[at], place, condition_place, part, &keys),
        }
    }
}

fn too_many(place: &Place) -> Error {
    Error::new(Why::Limit, place, format!("the files have more than {ITEMS_MAX} items"), "load fewer files")
}

fn appends(merge: &Merge, key: &str) -> bool {
    match merge {
        Merge::Replace => false,
        Merge::Append => true,
        Merge::Keys(keys) => keys.iter().any(|(name, change)| name == key && *change == Change::Append),
    }
}

fn nothing_to_change(place: &Place, item: &str, name: &str) -> Error {
    let what = format!("it appends or overrides, but no {item} of that name is defined before it");
    Error::new(Why::Shape, place, what, "load the file that defines it first, or correct the name").about(item, name)
}

fn join(text: &mut String, more: &str, place: &Place) -> Result<(), Error> {
    if text.len() + more.len() >= CONDITION_BYTES_MAX {
        let what = format!("the condition has more than {CONDITION_BYTES_MAX} bytes");
        return Err(Error::new(Why::Limit, place, what, "move values into lists"));
    }
    text.push(' ');
    text.push_str(more);
    Ok(())
}

fn define(name: &str, place: &Place, condition_place: Place, part: RulePart) -> Result<RuleText, Error> {
    let missing = |key: &str| Error::new(Why::Shape, place, format!("the rule has no {key}"), format!("write {key}: …"));
    let mut rule = RuleText {
        name: name.to_owned(),
        place: place.clone(),
        condition_place,
        condition: part.condition.ok_or_else(|| missing("condition"))?,
        output: part.output.ok_or_else(|| missing("output"))?,
        desc: part.desc.ok_or_else(|| missing("desc"))?,
        priority: part.priority.ok_or_else(|| missing("priority"))?,
        tags: part.tags.unwrap_or_default(),
        source: part.source.unwrap_or_else(|| "syscall".to_owned()),
        enabled: part.enabled.unwrap_or(true),
        exceptions: Vec::new(),
        warn_evttypes: part.warn_evttypes.unwrap_or(true),
        skip_unknown: part.skip_unknown.unwrap_or(false),
    };
    exceptions(&mut rule, part.exceptions.unwrap_or_default())?;
    Ok(rule)
}

/// Adds exceptions by name: values to a known one, a new one if it says its fields.
fn exceptions(rule: &mut RuleText, more: Vec<Exception>) -> Result<(), Error> {
    for exception in more {
        let known = rule.exceptions.iter().position(|known| known.name == exception.name);
        match known {
            Some(at) => {
                let mut merged = rule.exceptions[at].clone();
                merged.append(exception);
                merged.check()?;
                rule.exceptions[at] = merged;
            }
            None if exception.has_fields() => {
                exception.check()?;
                rule.exceptions.push(exception);
            }
            None => {
                let what = "a new exception has no fields, and the rule has none of that name";
                let error = Error::new(Why::Shape, &exception.place, what, "write fields: [proc.name, …], or correct the name");
                return Err(error.about("exception", &exception.name));
            }
        }
    }
    Ok(())
}

/// Applies `override`.
fn change(
    rule: &mut RuleText,
    place: &Place,
    condition_place: Place,
    part: RulePart,
    keys: &[(String, Change)],
) -> Result<(), Error> {
    if let Some(key) = part.keys.iter().find(|key| !keys.iter().any(|(name, _)| name == *key)) {
        let what = format!("the item has {} and override does not name it", shown(key));
        return Err(Error::new(Why::Shape, place, what, "add it to override, or drop it"));
    }
    let appended = |key: &str| keys.iter().any(|(name, change)| name == key && *change == Change::Append);
    if let Some(condition) = part.condition {
        if appended("condition") {
            join(&mut rule.condition, &condition, place)?
        } else {
            rule.condition = condition
        }
        rule.condition_place = condition_place;
    }
    for (key, text, own) in [("output", part.output, &mut rule.output), ("desc", part.desc, &mut rule.desc)] {
        match text {
            Some(text) if appended(key) => join(own, &text, place)?,
            Some(text) => *own = text,
            None => {}
        }
    }
    if let Some(tags) = part.tags {
        if !appended("tags") {
            rule.tags.clear();
        }
        for tag in tags {
            if !rule.tags.contains(&tag) {
                rule.tags.push(tag);
            }
        }
    }
    rule.priority = part.priority.unwrap_or(rule.priority);
    rule.enabled = part.enabled.unwrap_or(rule.enabled);
    rule.warn_evttypes = part.warn_evttypes.unwrap_or(rule.warn_evttypes);
    rule.skip_unknown = part.skip_unknown.unwrap_or(rule.skip_unknown);
    if let Some(source) = part.source {
        rule.source = source;
    }
    if let Some(more) = part.exceptions {
        if !appended("exceptions") {
            rule.exceptions.clear();
        }
        exceptions(rule, more)?;
    }
    Ok(())
}

/// Refuses a file that wants a newer engine than this one follows.
fn engine(place: &Place, text: &str) -> Result<(), Error> {
    let Some(version) = Version::parse(text) else {
        let what = format!("required_engine_version {} is no version", shown(text));
        return Err(Error::new(Why::Version, place, what, "write it like 0.57.0"));
    };
    if version > ENGINE {
        let what = format!("the rules want engine version {version}, this one is {ENGINE}");
        return Err(Error::new(Why::Version, place, what, "upgrade Weir, or use the rules of an older release"));
    }
    Ok(())
}

impl RuleText {
    /// The condition without its exceptions, parsed; and the exceptions, each as what must not hold.
    pub(crate) fn parts(&self) -> Result<(Expr, Vec<Expr>), Error> {
        let condition = crate::parse::condition(&self.condition).map_err(|fault| fault.at(&self.condition_place))?;
        let mut exceptions = Vec::new();
        for exception in &self.exceptions {
            exceptions.extend(exception.expr()?);
        }
        Ok((condition, exceptions))
    }
}
