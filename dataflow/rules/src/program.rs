//! Rules compiled once more, for batches: what is computed by itself (units), and per kind of event what the kind leaves open of the rules.

use std::collections::{BTreeMap, HashMap};

use weir_schema::{Event, Kind};

use crate::check::Of;
use crate::event::EventFields;
use crate::graph::{Node, NodeId};
use crate::inputs::Inputs;
use crate::scan::{Building, Scan, is_scanned};
use crate::set::RuleSet;

/// What is computed by itself and kept for events alike.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) inputs: Inputs,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    /// A comparison by its number in the graph.
    Check(u32),
    Scan(Scan),
}

/// The rules as they are for events of one kind.
#[derive(Debug, Default)]
pub(crate) struct Program {
    /// What the kind leaves open; parts come before what they are part of.
    pub(crate) steps: Vec<Step>,
    /// Rules that may hold, ascending: place in the set, and what has to hold.
    pub(crate) rules: Vec<(usize, Goal)>,
    /// Places in `rules` of those that are always looked at, ascending.
    pub(crate) always: Vec<u32>,
    /// Per scan and slot: places in `rules` of those that may hold where it does.
    pub(crate) triggers: Vec<(u32, HashMap<u32, Vec<u32>>)>,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    And(Box<[u32]>),
    Or(Box<[u32]>),
    Not(u32),
    Check(u32),
    Scan { unit: u32, slot: u32 },
}

/// What a condition has come to for a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    Known(bool),
    Step(u32),
}

impl Program {
    /// The rules of a set for events of one kind.
    pub(crate) fn new(set: &RuleSet, kind: Kind, of_check: &OfCheck) -> Self {
        Folding { set, kind, of_check, known: HashMap::new(), steps: Vec::new() }.program()
    }
}

/// A check's unit, and its slot there if that is a scan.
pub(crate) type OfCheck = Vec<(u32, Option<u32>)>;

/// The units of all rules.
pub(crate) fn units(set: &RuleSet) -> (Vec<Unit>, OfCheck) {
    let (mut units, mut scans): (Vec<Unit>, BTreeMap<usize, Building>) = (Vec::new(), BTreeMap::new());
    let mut by_term: HashMap<&Of, usize> = HashMap::new();
    let mut of_check = Vec::with_capacity(set.graph.checks.len());
    for (number, check) in set.graph.checks.iter().enumerate() {
        if !is_scanned(check) {
            of_check.push((units.len() as u32, None));
            units.push(Unit { inputs: Inputs::of(&check.key), what: What::Check(number as u32) });
            continue;
        }
        let unit = *by_term.entry(&check.key.left).or_insert_with(|| {
            // What is to be looked for is known when all comparisons were seen.
            units.push(Unit { inputs: Inputs::of_term(&check.key.left), what: What::Check(number as u32) });
            units.len() - 1
        });
        let slot = scans.entry(unit).or_insert_with(|| Building::new(check)).add(check);
        of_check.push((unit as u32, Some(slot)));
    }
    for (unit, scan) in scans {
        units[unit].what = What::Scan(scan.finish());
    }
    (units, of_check)
}

/// Makes the program of one kind.
struct Folding<'a> {
    set: &'a RuleSet,
    kind: Kind,
    of_check: &'a OfCheck,
    known: HashMap<NodeId, Goal>,
    steps: Vec<Step>,
}

/// Scans and slots of which one has to hold.
type Triggers = Vec<(u32, u32)>;

impl Folding<'_> {
    fn program(mut self) -> Program {
        let set = self.set;
        let mut rules = Vec::new();
        for (at, rule) in set.rules.iter().enumerate().filter(|(_, rule)| rule.enabled) {
            match self.fold(rule.node) {
                Goal::Known(false) => {}
                goal => rules.push((at, goal)),
            }
        }
        let mut program = Program { steps: std::mem::take(&mut self.steps), rules, ..Program::default() };
        let mut triggers: BTreeMap<u32, HashMap<u32, Vec<u32>>> = BTreeMap::new();
        for (place, (at, _)) in program.rules.iter().enumerate() {
            let place = place as u32;
            let ranks = Ranks { set, of_check: self.of_check, known: &self.known };
            match ranks.triggers(set.rules[*at].node, 0) {
                Some((_, found)) => {
                    for (unit, slot) in found {
                        triggers.entry(unit).or_default().entry(slot).or_default().push(place);
                    }
                }
                None => program.always.push(place),
            }
        }
        program.triggers = triggers.into_iter().collect();
        program
    }

    fn fold(&mut self, id: NodeId) -> Goal {
        if let Some(known) = self.known.get(&id) {
            return *known;
        }
        let goal = match &self.set.graph.nodes[id.0 as usize] {
            Node::And(parts) => self.group(parts, false),
            Node::Or(parts) => self.group(parts, true),
            Node::Not(part) => match self.fold(*part) {
                Goal::Known(holds) => Goal::Known(!holds),
                Goal::Step(part) => self.step(Step::Not(part)),
            },
            Node::Check(check) => self.check(*check),
        };
        self.known.insert(id, goal);
        goal
    }

    /// `ends`: what one part has to come to, for the whole to come to it.
    fn group(&mut self, parts: &[NodeId], ends: bool) -> Goal {
        let mut open = Vec::new();
        for part in parts {
            match self.fold(*part) {
                Goal::Known(holds) if holds == ends => return Goal::Known(ends),
                Goal::Known(_) => {}
                Goal::Step(step) => open.push(step),
            }
        }
        match open.as_slice() {
            [] => Goal::Known(!ends),
            [one] => Goal::Step(*one),
            _ if ends => self.step(Step::Or(open.into())),
            _ => self.step(Step::And(open.into())),
        }
    }

    fn check(&mut self, number: u32) -> Goal {
        let check = &self.set.graph.checks[number as usize];
        if Inputs::of(&check.key).is_kind_alone(self.kind) {
            let event = Event { kind: self.kind, ..Event::default() };
            return Goal::Known(check.holds(&EventFields::new(&event, "")));
        }
        let (unit, slot) = self.of_check[number as usize];
        self.step(slot.map_or(Step::Check(unit), |slot| Step::Scan { unit, slot }))
    }

    fn step(&mut self, step: Step) -> Goal {
        self.steps.push(step);
        Goal::Step(self.steps.len() as u32 - 1)
    }
}

/// Looks for what a rule needs.
struct Ranks<'a> {
    set: &'a RuleSet,
    of_check: &'a OfCheck,
    known: &'a HashMap<NodeId, Goal>,
}

impl Ranks<'_> {
    /// Comparisons of which one holds wherever the node holds, the rarest that are found, and how common they are thought to be.
    fn triggers(&self, id: NodeId, depth: usize) -> Option<(usize, Triggers)> {
        if depth > TRIGGER_DEPTH_MAX || matches!(self.known.get(&id), Some(Goal::Known(true))) {
            return None;
        }
        if matches!(self.known.get(&id), Some(Goal::Known(false))) {
            return Some((0, Vec::new()));
        }
        match &self.set.graph.nodes[id.0 as usize] {
            Node::And(parts) => {
                let found = parts.iter().filter_map(|part| self.triggers(*part, depth + 1));
                found.min_by_key(|(rank, slots)| (*rank, slots.len()))
            }
            Node::Or(parts) => {
                let mut all = (0, Vec::new());
                for part in parts {
                    let (rank, slots) = self.triggers(*part, depth + 1)?;
                    all = (all.0.max(rank), all.1);
                    all.1.extend(slots);
                }
                all.1.sort_unstable();
                all.1.dedup();
                (all.1.len() <= TRIGGERS_MAX).then_some(all)
            }
            Node::Not(_) => None,
            Node::Check(check) => {
                let (unit, slot) = self.of_check[*check as usize];
                let key = &self.set.graph.checks[*check as usize].key;
                let Of::Field(field) = &key.left else { return None };
                Some((rank(field.def().name), vec![(unit, slot?)]))
            }
        }
    }
}

/// Fields whose values differ from event to event come first.
fn rank(field: &str) -> usize {
    match field {
        "fd.typechar" | "fd.type" | "fd.l4proto" | "container.id" | "container.name" | "user.name" | "evt.res"
        | "fd.sockfamily" => 3,
        "proc.name" | "proc.pname" | "proc.aname" | "proc.exepath" | "container.image.repository" => 2,
        _ => 1,
    }
}

/// How deep a search for triggers goes.
const TRIGGER_DEPTH_MAX: usize = 16;
/// Alternatives of one rule beyond which it is looked at for every event of its kind.
const TRIGGERS_MAX: usize = 4_096;
