//! A set of rules, loaded from files and ready to meet events.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use crate::correlation::{Base, Correlation, InputOf, Linked, link};
use crate::error::{Error, Place, Why};
use crate::fields::Field;
use crate::graph::{Graph, NodeId};
use crate::merge::{Catalog, RuleText};
use crate::resolve::Resolver;
use crate::sigma::{self, Head, Pipeline, Written};
use crate::template::Template;
use crate::text::Glob;
use crate::yaml::Node;

/// How urgent a rule's alerts are, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// The system is unusable.
    Emergency,
    /// Somebody must act at once.
    Alert,
    /// Critical.
    Critical,
    /// An error.
    Error,
    /// A warning.
    Warning,
    /// Normal but worth a look.
    Notice,
    /// For information.
    Informational,
    /// For debugging.
    Debug,
}

impl Priority {
    /// Falco's word, case ignored; `INFO` is short for informational.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "emergency" => Self::Emergency,
            "alert" => Self::Alert,
            "critical" => Self::Critical,
            "error" => Self::Error,
            "warning" => Self::Warning,
            "notice" => Self::Notice,
            "informational" | "info" => Self::Informational,
            "debug" => Self::Debug,
            _ => return None,
        })
    }
}

/// As Falco prints it.
impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Whose language a rule is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Language {
    /// Falco's: one alert an event where `Matching::First` is asked for.
    Falco,
    /// Sigma's: every rule that matches alerts.
    Sigma,
}

/// A rule that was loaded.
#[derive(Debug)]
pub struct Rule {
    /// Its name (Falco, unique in the set) or title (Sigma).
    pub name: String,
    /// Sigma's id, unique in the set.
    pub id: Option<String>,
    /// Whose language it is written in.
    pub language: Language,
    /// What else makes it fire, in the author's words.
    pub false_positives: Vec<String>,
    /// Where it is defined.
    pub place: Place,
    /// What it is about.
    pub desc: String,
    /// How urgent its alerts are.
    pub priority: Priority,
    /// Its tags, in the file's order.
    pub tags: Vec<String>,
    /// Where its events come from; only `syscall` is collected.
    pub source: String,
    /// Whether it takes part.
    pub enabled: bool,
    /// Whether its hits are alerts; those of a rule that correlations only refer to are not.
    pub alerts: bool,
    /// The text of its alerts.
    pub output: Template,
    /// Fields of its condition that the collector does not supply: comparisons with them are false.
    pub condition_lacks: Vec<Field>,
    /// Of those, what only excludes: without it the rule may alert more often.
    pub exclusions_lack: Vec<Field>,
    /// Values of `evt.type` that it asks for, where none of those it asks for together stands for a kind of event; of a Sigma
    /// rule also log sources and types of records.
    pub types_lacking: Vec<String>,
    /// Fields that only its output prints and the collector does not supply.
    pub output_lacks: Vec<Field>,
    pub(crate) node: NodeId,
}

impl Rule {
    /// Whether its whole condition can be evaluated.
    pub fn is_fully_evaluable(&self) -> bool {
        self.condition_lacks.is_empty() && self.types_lacking.is_empty()
    }

    /// What `weir rules check` says of it: `ok`, or `partly: ` and what is not supplied.
    pub fn verdict(&self) -> String {
        let fields = self.condition_lacks.iter().map(|field| {
            let excludes = if self.exclusions_lack.contains(field) { " (an exclusion needs it)" } else { "" };
            format!("field {field} is not supplied{excludes}")
        });
        let types = self.types_lacking.iter().map(|name| match self.language {
            Language::Falco => format!("events of type {name} are not collected"),
            Language::Sigma => format!("events of {name} are not collected"),
        });
        let lacks: Vec<String> = fields.chain(types).collect();
        if lacks.is_empty() { "ok".to_owned() } else { format!("partly: {}", lacks.join(", ")) }
    }
}

/// Something to know about a rule that is loaded, or was left out on purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Where.
    pub place: Place,
    /// The rule's name.
    pub rule: String,
    /// What.
    pub what: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: rule {:?}: {}", self.place, self.rule, self.what)
    }
}

/// Falco's `rule_matching`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Matching {
    /// One alert per event: the first of Falco's rules in file order. Sigma's are each for themselves.
    #[default]
    First,
    /// An alert for every rule that matches.
    All,
}

/// Which rules take part.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only rules at least this urgent.
    pub priority_min: Option<Priority>,
    /// Only rules with one of these tags; empty: all.
    pub tags_on: Vec<String>,
    /// No rules with one of these tags.
    pub tags_off: Vec<String>,
    /// No rules whose names match one of these patterns (`*`, `?`, `[…]`).
    pub rules_off: Vec<String>,
}

/// A selection that names what to run and what not to run: Falco refuses that, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("tags to run stand beside rules or tags to leave out; give one of the two")]
pub struct Contradiction;

/// Rules that were loaded, and what was wrong with the others.
#[derive(Debug, Default)]
pub struct RuleSet {
    /// Rules in the order of their first definition.
    pub rules: Vec<Rule>,
    /// Correlations, each behind those that it refers to.
    pub correlations: Vec<Correlation>,
    /// What was refused and why, in the order of files and lines.
    pub errors: Vec<Error>,
    /// What is worth knowing.
    pub notices: Vec<Notice>,
    /// Plugins that the files want: name and version. `container` is built in here.
    pub plugins: Vec<(String, String)>,
    pub(crate) graph: Graph,
    /// Rules by what they all begin with, mostly the event's type: where that does not hold, none of them is tried.
    pub(crate) groups: Vec<(NodeId, Vec<usize>)>,
    /// Enabled correlations that count hits of a rule or matches of a correlation, and as which of theirs.
    feeds: HashMap<InputOf, Vec<(usize, usize)>>,
}

impl RuleSet {
    /// Loads files, given as name and text, in their order. Never fails as a whole: what is wrong stands in `errors`.
    pub fn load<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::load_with(files, &Pipeline::default())
    }

    /// Loads files of both languages; the pipeline says what names of Sigma rules mean here.
    pub fn load_with<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>, pipeline: &Pipeline) -> Self {
        let mut catalog = Catalog::default();
        let mut order: HashMap<Arc<str>, usize> = HashMap::new();
        for (name, text) in files {
            let next = order.len();
            order.entry(name.into()).or_insert(next);
            catalog.take(name, text);
        }
        let Catalog { lists, macros, rules: texts, plugins, mut errors, mut notices, sigma, .. } = catalog;
        let mut resolver = Resolver::new(&lists, &macros, &mut errors);
        let mut rules = Vec::with_capacity(texts.len());
        for text in texts {
            if text.source != "syscall" {
                let what = format!("events of source {:?} are not collected", text.source);
                notices.push(Notice { place: text.place, rule: text.name, what });
                continue;
            }
            match compile(&text, &mut resolver) {
                Ok(rule) => {
                    if text.warn_evttypes && !resolver.graph.asks_for_type(rule.node) {
                        let what = "it does not say which event types it is about, so all are tried".to_owned();
                        notices.push(Notice { place: text.place.clone(), rule: text.name.clone(), what });
                    }
                    rules.push(rule);
                }
                Err(error) if error.why == Why::UnknownField && text.skip_unknown => {
                    let what = format!("skipped: {}", error.what);
                    notices.push(Notice { place: text.place, rule: text.name, what });
                }
                Err(error) => errors.push(error.about("rule", &text.name)),
            }
        }
        let mut sigma = Documents { pipeline, ids: HashMap::new(), bases: Vec::new(), written: Vec::new(), refused: Vec::new() }
            .read(&sigma, &mut rules, &mut resolver.graph, (&mut errors, &mut notices));
        let mut set = Self { rules, notices, plugins, graph: resolver.graph, ..Self::default() };
        let fingerprints = set.fingerprints();
        let Linked { correlations, errors: unlinked, referred } =
            link((&set.rules, &sigma.bases, &fingerprints), &std::mem::take(&mut sigma.written), &sigma.refused, pipeline);
        errors.extend(unlinked);
        errors.sort_by_cached_key(|error| (order.get(&error.place.file).copied(), error.place.line, error.to_string()));
        for (rule, lets) in referred {
            set.rules[rule].alerts = lets;
        }
        set.notices.extend(correlations.iter().filter(|one| !one.enabled).map(|one| Notice {
            place: one.place.clone(),
            rule: one.name.clone(),
            what: UNSUPPORTED.to_owned(),
        }));
        set.groups = groups(&set.rules, &set.graph);
        set.correlations = correlations;
        set.errors = errors;
        set.feed();
        set
    }

    /// Notes who counts what.
    fn feed(&mut self) {
        self.feeds.clear();
        for (at, correlation) in self.correlations.iter().enumerate().filter(|(_, correlation)| correlation.enabled) {
            for (input, of) in correlation.inputs.iter().enumerate() {
                self.feeds.entry(of.of).or_default().push((at, input));
            }
        }
    }

    /// The correlations that count hits of a rule, or matches of a correlation: places in `correlations`, and as which of their inputs.
    pub fn feeds(&self, of: InputOf) -> &[(usize, usize)] {
        self.feeds.get(&of).map_or(&[], Vec::as_slice)
    }

    /// Disables the rules that are not selected; an enabled rule stays enabled only if it is.
    pub fn select(&mut self, selection: &Selection) -> Result<(), Contradiction> {
        let Selection { tags_on, tags_off, rules_off, .. } = selection;
        let leaves_out = !tags_off.is_empty() || !rules_off.is_empty();
        if leaves_out && !tags_on.is_empty() {
            return Err(Contradiction);
        }
        let off: Vec<Glob> = rules_off.iter().map(|pattern| Glob::new(pattern)).collect();
        let selected = |name: &str, priority: Priority, tags: &[String]| {
            let has = |wanted: &[String]| wanted.iter().any(|tag| tags.contains(tag));
            let urgent = selection.priority_min.is_none_or(|min| priority <= min);
            let on = tags_on.is_empty() || has(tags_on);
            urgent && on && !has(tags_off) && !off.iter().any(|pattern| pattern.matches(name))
        };
        let wanted: Vec<bool> =
            self.correlations.iter().map(|one| selected(&one.name, one.priority, &one.tags) && one.enabled).collect();
        // Those that a selected one counts go on counting, without alerts of their own; they stand before it.
        for at in (0..self.correlations.len()).rev() {
            let feeds = self.feeds(InputOf::Correlation(at)).iter().any(|(upper, _)| self.correlations[*upper].enabled);
            let one = &mut self.correlations[at];
            one.alerts &= wanted[at];
            one.enabled &= wanted[at] && one.alerts || feeds;
        }
        self.feed();
        for at in 0..self.rules.len() {
            let feeds = !self.feeds(InputOf::Rule(at)).is_empty();
            let rule = &mut self.rules[at];
            let wanted = selected(&rule.name, rule.priority, &rule.tags) && rule.enabled;
            rule.alerts &= wanted;
            rule.enabled &= wanted && rule.alerts || feeds;
        }
        Ok(())
    }

    /// Nodes and distinct comparisons of all conditions together.
    pub fn size(&self) -> (usize, usize) {
        self.graph.size()
    }
}

fn groups(rules: &[Rule], graph: &Graph) -> Vec<(NodeId, Vec<usize>)> {
    let mut groups: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    for (at, rule) in rules.iter().enumerate() {
        groups.entry(graph.guard(rule.node)).or_default().push(at);
    }
    groups.into_iter().collect()
}

fn compile(text: &RuleText, resolver: &mut Resolver) -> Result<Rule, Error> {
    let (condition, exceptions) = text.parts()?;
    let place = &text.condition_place;
    let mut parts = vec![resolver.condition(&condition).map_err(|fault| fault.at(place))?];
    for exception in &exceptions {
        let node = resolver.condition(exception).map_err(|fault| fault.at(&text.place))?;
        parts.push(resolver.graph.not(node).map_err(|fault| fault.at(place))?);
    }
    let node = resolver.graph.and(parts).map_err(|fault| fault.at(place))?;
    let output = Template::parse(&text.output).map_err(|fault| fault.at(&text.place))?;
    let lacks = |fields: Vec<Field>| fields.into_iter().filter(|field| !field.is_supplied()).collect::<Vec<_>>();
    let condition_lacks = lacks(resolver.graph.fields(node));
    let mut output_lacks = lacks(output.fields());
    output_lacks.retain(|field| !condition_lacks.contains(field));
    Ok(Rule {
        name: text.name.clone(),
        place: text.place.clone(),
        desc: text.desc.clone(),
        priority: text.priority,
        tags: text.tags.clone(),
        source: text.source.clone(),
        enabled: text.enabled,
        alerts: true,
        output,
        id: None,
        language: Language::Falco,
        false_positives: Vec::new(),
        types_lacking: resolver.graph.types_lacking(node),
        exclusions_lack: Vec::new(),
        condition_lacks,
        output_lacks,
        node,
    })
}

/// Sigma's documents as they are read.
struct Documents<'a> {
    pipeline: &'a Pipeline,
    ids: HashMap<String, Place>,
    bases: Vec<Base>,
    written: Vec<Written>,
    /// What refused correlations refer to.
    refused: Vec<String>,
}

impl Documents<'_> {
    fn read(
        mut self,
        documents: &[(Place, Node)],
        rules: &mut Vec<Rule>,
        graph: &mut Graph,
        (errors, notices): (&mut Vec<Error>, &mut Vec<Notice>),
    ) -> Self {
        for (file, document) in documents {
            if sigma::is_correlation(document) {
                match sigma::read_correlation(file, document) {
                    Ok(written) => match self.is_new(&written.head) {
                        Ok(()) => self.written.push(written),
                        Err(error) => errors.push(error),
                    },
                    Err(refused) => {
                        self.refused.extend(refused.rules);
                        errors.push(refused.error);
                    }
                }
                continue;
            }
            match self.rule(file, document, graph) {
                Ok((rule, base)) => {
                    if !rule.enabled {
                        notices.push(Notice { place: rule.place.clone(), rule: rule.name.clone(), what: UNSUPPORTED.to_owned() });
                    }
                    self.bases.push(Base { rule: rules.len(), ..base });
                    rules.push(rule);
                }
                Err(error) => errors.push(error),
            }
        }
        self
    }

    /// Refuses an id that another rule has.
    fn is_new(&mut self, head: &Head) -> Result<(), Error> {
        if let Some(known) = head.id.as_ref().and_then(|id| self.ids.get(id)) {
            let what = format!("its id stands at {known}, too");
            return Err(Error::new(Why::Shape, &head.place, what, "load one of them, or give it an id of its own")
                .about("rule", &head.title));
        }
        self.ids.extend(head.id.clone().map(|id| (id, head.place.clone())));
        Ok(())
    }

    fn rule(&mut self, file: &Place, document: &Node, graph: &mut Graph) -> Result<(Rule, Base), Error> {
        let rule = sigma::read(file, document)?;
        let compiled = rule.compile(graph, self.pipeline)?;
        let sigma::SigmaRule { head, logsource, .. } = rule;
        self.is_new(&head)?;
        let output = Template::parse(&compiled.output).map_err(|fault| fault.at(&head.place).about("rule", &head.title))?;
        let mut condition_lacks = graph.fields(compiled.node);
        condition_lacks.retain(|field| !field.is_supplied());
        let excluding = graph.excluding_fields(compiled.node);
        let base = Base { rule: 0, name: head.name, logsource };
        let rule = Rule {
            name: head.title,
            id: head.id,
            language: Language::Sigma,
            place: head.place,
            desc: head.desc,
            priority: head.priority.unwrap_or(Priority::Warning),
            tags: head.tags,
            false_positives: head.false_positives,
            source: "syscall".to_owned(),
            enabled: head.enabled,
            alerts: true,
            output,
            exclusions_lack: condition_lacks.iter().filter(|field| excluding.contains(field)).cloned().collect(),
            condition_lacks,
            types_lacking: compiled.lacks,
            output_lacks: Vec::new(),
            node: compiled.node,
        };
        Ok((rule, base))
    }
}

/// Of a rule whose status says that it cannot be used.
const UNSUPPORTED: &str = "its status is unsupported, so it takes no part";
