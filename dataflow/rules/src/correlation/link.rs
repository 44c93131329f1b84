//! Finds what correlations name: rules and correlations by name or id, fields in their events, and how deep they lie in each other.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::{Correlation, Input, InputOf, Part};
use crate::check::Of;
use crate::error::{Error, Place, Why, shown};
use crate::fields::{Supply, Ty};
use crate::limits::CORRELATION_LEVELS_MAX;
use crate::set::Rule;
use crate::sigma::{Logsource, Pipeline, Written, field_of};

/// A rule that correlations may refer to: its place among the rules.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) rule: usize,
    pub(crate) name: Option<String>,
    pub(crate) logsource: Logsource,
}

/// What came of linking.
#[derive(Debug, Default)]
pub(crate) struct Linked {
    pub(crate) correlations: Vec<Correlation>,
    pub(crate) errors: Vec<Error>,
    /// Rules that correlations refer to, and whether one of those lets them alert on their own.
    pub(crate) referred: HashMap<usize, bool>,
}

/// Who a name or an id stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Target {
    Base(usize),
    Written(usize),
}

struct Linker<'a> {
    rules: &'a [Rule],
    bases: &'a [Base],
    pipeline: &'a Pipeline,
    written: &'a [Written],
    /// None: several are called so.
    names: HashMap<&'a str, Option<Target>>,
    /// By place in `written`.
    made: Vec<Option<Result<usize, ()>>>,
    linked: Linked,
}

/// Links correlations with the rules of a set. `fingerprints`: of the rules. `refused`: names in correlations that were refused already.
pub(crate) fn link(
    (rules, bases, fingerprints): (&[Rule], &[Base], &[u64]),
    written: &[Written],
    refused: &[String],
    pipeline: &Pipeline,
) -> Linked {
    let mut linker = Linker {
        rules,
        bases,
        pipeline,
        written,
        names: HashMap::new(),
        made: written.iter().map(|_| None).collect(),
        linked: Linked::default(),
    };
    for (at, base) in bases.iter().enumerate() {
        linker.call(base.name.as_deref(), rules[base.rule].id.as_deref(), Target::Base(at));
    }
    for (at, one) in written.iter().enumerate() {
        linker.call(one.head.name.as_deref(), one.head.id.as_deref(), Target::Written(at));
    }
    linker.make_all(fingerprints);
    // What is referred to alerts on its own only if somebody who refers to it lets it.
    let mut referred: HashMap<Target, bool> = HashMap::new();
    let named = written.iter().flat_map(|one| one.rules.iter().map(|(name, _)| (name, one.generate)));
    for (name, generate) in named.chain(refused.iter().map(|name| (name, false))) {
        if let Some(target) = linker.names.get(name.as_str()).copied().flatten() {
            *referred.entry(target).or_default() |= generate;
        }
    }
    for (target, lets) in referred {
        match target {
            Target::Base(at) => _ = linker.linked.referred.insert(bases[at].rule, lets),
            Target::Written(at) => {
                if let Some(Ok(at)) = linker.made[at] {
                    linker.linked.correlations[at].alerts = lets;
                }
            }
        }
    }
    for one in linker.linked.correlations.iter_mut().filter(|one| !one.alerts) {
        one.version = one.version.wrapping_add(1);
    }
    linker.linked
}

impl<'a> Linker<'a> {
    fn call(&mut self, name: Option<&'a str>, id: Option<&'a str>, target: Target) {
        for name in [name, id].into_iter().flatten() {
            self.names.entry(name).and_modify(|known| *known = known.filter(|known| *known == target)).or_insert(Some(target));
        }
    }

    /// Links those first whose own correlations are linked, round by round: what is left over is too deep, or refers to itself.
    fn make_all(&mut self, fingerprints: &[u64]) {
        for _ in 0..=CORRELATION_LEVELS_MAX {
            for at in 0..self.written.len() {
                if self.made[at].is_none() {
                    self.made[at] = self.make(at, fingerprints).transpose().map(|made| {
                        made.map_err(|error| {
                            let title = &self.written[at].head.title;
                            self.linked.errors.push(error.about("correlation", title));
                        })
                    });
                }
            }
        }
        for written in self.written.iter().zip(&self.made).filter(|(_, made)| made.is_none()).map(|(written, _)| written) {
            let what =
                format!("it lies more than {CORRELATION_LEVELS_MAX} correlations deep, or refers to itself through others");
            let error = Error::new(Why::Cycle, &written.rules[0].1, what, "break the circle, or refer to the rules themselves");
            self.linked.errors.push(error.about("correlation", &written.head.title));
        }
    }

    /// Links one; none: one that it refers to is to be linked first.
    fn make(&mut self, at: usize, fingerprints: &[u64]) -> Result<Option<usize>, Error> {
        let written = &self.written[at];
        let mut targets = Vec::new();
        for (name, place) in &written.rules {
            let target = self.target(name, place)?;
            if targets.contains(&target) {
                let what = format!("{} is named twice, by its name and by its id", shown(name));
                return Err(Error::new(Why::Shape, place, what, "name each rule once"));
            }
            match target {
                Target::Written(other) if self.made[other].is_none() => return Ok(None),
                Target::Written(other) if self.made[other] == Some(Err(())) => {
                    let what = format!("the correlation {} that it refers to was refused", shown(name));
                    return Err(Error::new(Why::Shape, place, what, "correct that one first"));
                }
                _ => targets.push(target),
            }
        }
        self.check_aliases(written, &targets)?;
        let mut inputs = Vec::new();
        for (target, (name, _)) in targets.iter().zip(&written.rules) {
            inputs.push(self.input(written, *target, name)?);
        }
        let correlation = self.assemble(written, inputs, fingerprints)?;
        self.linked.correlations.push(correlation);
        Ok(Some(self.linked.correlations.len() - 1))
    }

    fn target(&self, name: &str, place: &Place) -> Result<Target, Error> {
        match self.names.get(name) {
            Some(Some(target)) => Ok(*target),
            Some(None) => {
                let what = format!("several rules are called {}", shown(name));
                Err(Error::new(Why::Shape, place, what, "refer to the rule's id, or rename one"))
            }
            None => {
                let what = format!("no Sigma rule has the name or id {}, or it was refused", shown(name));
                Err(Error::new(Why::Shape, place, what, "write name: into the rule and load it, too"))
            }
        }
    }

    /// Aliases name rules of the correlation, each one all of them.
    fn check_aliases(&self, written: &Written, targets: &[Target]) -> Result<(), Error> {
        for alias in &written.aliases {
            let known = |name: &str| self.names.get(name).copied().flatten().filter(|target| targets.contains(target));
            if let Some((rule, _, place)) = alias.of.iter().find(|(rule, ..)| known(rule).is_none()) {
                let what = format!("the alias {} is for {}, which rules: does not name", shown(&alias.name), shown(rule));
                return Err(Error::new(Why::Shape, place, what, "correct the rule's name, or add it to rules:"));
            }
            for (target, (name, _)) in targets.iter().zip(&written.rules) {
                if !alias.of.iter().any(|(rule, ..)| known(rule) == Some(*target)) {
                    let what = format!("the alias {} says no field for {}", shown(&alias.name), shown(name));
                    return Err(Error::new(Why::Shape, &alias.place, what, "write the field for each of the rules"));
                }
            }
        }
        Ok(())
    }

    /// The name in a rule's own events of what a correlation calls so.
    fn field<'w>(&self, written: &'w Written, target: Target, name: &'w str) -> &'w str {
        let alias = written.aliases.iter().find(|alias| alias.name == name);
        let is_of = |rule: &str| self.names.get(rule).copied().flatten() == Some(target);
        alias.and_then(|alias| alias.of.iter().find(|(rule, ..)| is_of(rule))).map_or(name, |(_, field, _)| field)
    }

    fn input(&self, written: &Written, target: Target, called: &str) -> Result<Input, Error> {
        let (name, of) = match target {
            Target::Base(at) => (self.rules[self.bases[at].rule].name.clone(), InputOf::Rule(self.bases[at].rule)),
            Target::Written(at) => {
                let Some(Ok(made)) = self.made[at] else { unreachable!("what it refers to was linked before") };
                (self.linked.correlations[made].name.clone(), InputOf::Correlation(made))
            }
        };
        let part = |(name, place): &(String, Place)| {
            let field = self.field(written, target, name);
            match (target, of) {
                (Target::Base(at), _) => Ok(self.part(&self.bases[at].logsource, field)),
                (_, InputOf::Correlation(made)) => {
                    let keys = &self.linked.correlations[made].group_by;
                    keys.iter().position(|key| key == field).map(Part::Key).ok_or_else(|| {
                        let what = format!("matches of {} have no {}: it does not group by it", shown(called), shown(field));
                        Error::new(Why::Shape, place, what, "group that correlation by it, too")
                    })
                }
                (Target::Written(_), InputOf::Rule(_)) => unreachable!("a correlation is no rule"),
            }
        };
        // Of the tenant everything is.
        let keys = written.group_by.iter().filter(|(name, _)| name != "tenant").map(part).collect::<Result<_, _>>()?;
        let values = written.fields.iter().map(part).collect::<Result<Vec<_>, _>>()?;
        if written.shape.measure.reads_numbers()
            && let Some(place) =
                values.iter().zip(&written.fields).find(|(part, _)| !is_number(part)).map(|(_, (_, place))| place)
        {
            let what = format!("a value of {} is no number", shown(&written.fields[0].0));
            return Err(Error::new(Why::Value, place, what, "name a column of numbers, or write type: value_count"));
        }
        Ok(Input { name, of, keys, values })
    }

    fn part(&self, logsource: &Logsource, name: &str) -> Part {
        match name {
            "region" => Part::Region,
            "cloud" => Part::Cloud,
            "zone" => Part::Zone,
            "process_id" => Part::Process,
            _ => Part::Of(field_of(logsource, self.pipeline, name)),
        }
    }

    fn assemble(&self, written: &Written, inputs: Vec<Input>, fingerprints: &[u64]) -> Result<Correlation, Error> {
        let head = &written.head;
        let below = |input: &Input| match input.of {
            InputOf::Rule(_) => None,
            InputOf::Correlation(at) => Some(&self.linked.correlations[at]),
        };
        let level = inputs.iter().filter_map(below).map(|below| below.level + 1).max().unwrap_or(0);
        if level >= CORRELATION_LEVELS_MAX {
            let what = format!("it is {} correlations deep, {CORRELATION_LEVELS_MAX} are allowed", level + 1);
            return Err(Error::new(Why::Limit, &head.place, what, "refer to the rules themselves"));
        }
        let settling = inputs.iter().filter_map(below).map(|below| below.settling.saturating_add(below.shape.span)).max();
        let priority_of = |input: &Input| match input.of {
            InputOf::Rule(at) => self.rules[at].priority,
            InputOf::Correlation(at) => self.linked.correlations[at].priority,
        };
        let priority = head.priority.or_else(|| inputs.iter().map(priority_of).min()).unwrap_or(crate::set::Priority::Warning);
        let mut lacks = Vec::new();
        let mut rules_lack = BTreeSet::new();
        let group_by: Vec<String> =
            written.group_by.iter().map(|(name, _)| name.clone()).filter(|name| name != "tenant").collect();
        let mut hash = DefaultHasher::new();
        (&written.shape, &group_by, priority, head.enabled, &head.tags, &head.title, &head.id).hash(&mut hash);
        for input in &inputs {
            for part in input.keys.iter().chain(&input.values) {
                if let Part::Of(of) = part {
                    of.fields(&mut |field| {
                        if !field.is_supplied() && !lacks.contains(field) {
                            lacks.push(field.clone());
                        }
                    });
                }
            }
            let (is_whole, version) = match input.of {
                InputOf::Rule(at) => (self.rules[at].is_fully_evaluable() && self.rules[at].enabled, fingerprints[at]),
                InputOf::Correlation(at) => {
                    let below = &self.linked.correlations[at];
                    (below.is_fully_evaluable() && below.enabled, below.version)
                }
            };
            if !is_whole {
                rules_lack.insert(input.name.clone());
            }
            (&input.name, &input.keys, &input.values, version).hash(&mut hash);
        }
        Ok(Correlation {
            name: head.title.clone(),
            id: head.id.clone(),
            place: head.place.clone(),
            desc: head.desc.clone(),
            priority,
            tags: head.tags.clone(),
            false_positives: head.false_positives.clone(),
            enabled: head.enabled,
            alerts: true,
            level,
            shape: written.shape.clone(),
            group_by,
            inputs,
            settling: settling.unwrap_or(0),
            lacks,
            rules_lack: rules_lack.into_iter().collect(),
            version: hash.finish(),
        })
    }
}

/// Whether values may be numbers: those of a correlation's group and of `detail` are texts that may say one.
fn is_number(part: &Part) -> bool {
    match part {
        Part::Of(Of::Field(field)) => {
            let def = field.def();
            def.ty == Ty::Int || def.ty == Ty::Text && !matches!(def.supply, Supply::From(_))
        }
        Part::Of(_) | Part::Key(_) => true,
        Part::Region | Part::Cloud | Part::Zone | Part::Process => false,
    }
}
