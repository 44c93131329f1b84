//! The stateless pass: all rules over the columns of a decoded batch.
//!
//! Rules are compiled once more per kind of event: what the kind alone decides is decided then, so a rule costs nothing for
//! events of other kinds. The rest is computed once per distinct input (`inputs.rs`): per process or container of the batch,
//! per text of its string table, and only otherwise per event. Comparisons of one term with texts are one scan (`scan.rs`). A rule
//! that needs one of them to hold (its triggers) is not looked at for events where none does: so cost grows slower than rules.
//!
//! Promise: the same hits as `Matcher::hits` finds on the batch's events one by one.

use std::sync::Arc;

use weir_schema::{Batch, Cell, Cells, Column, Container, Event, Kind, Process, Section, Table, Text};

use crate::event::EventFields;
use crate::inputs::Inputs;
use crate::program::{Goal, Program, Step, Unit, What, units};
use crate::set::{Language, Matching, RuleSet};

/// Rules, compiled for batches.
#[derive(Debug)]
pub struct Pass {
    set: Arc<RuleSet>,
    matching: Matching,
    units: Vec<Unit>,
    /// By the kind's wire number.
    programs: Vec<Program>,
}

impl Pass {
    /// Compiles the enabled rules of a set.
    pub fn new(set: Arc<RuleSet>, matching: Matching) -> Self {
        let (units, of_check) = units(&set);
        let last = Kind::ALL.iter().map(|kind| *kind as usize).max().unwrap_or(0);
        let mut programs: Vec<Program> = Vec::new();
        programs.resize_with(last + 1, Program::default);
        for kind in Kind::ALL {
            programs[*kind as usize] = Program::new(&set, *kind, &of_check);
        }
        Self { set, matching, units, programs }
    }

    /// The rules.
    pub fn rules(&self) -> &Arc<RuleSet> {
        &self.set
    }

    /// The kinds of events that a rule may hold for, by its place in the set; none: it is not enabled, or can never hold.
    pub fn kinds_of(&self, rule: usize) -> Vec<Kind> {
        let holds = |kind: &Kind| self.programs[*kind as usize].rules.iter().any(|(place, _)| *place == rule);
        Kind::ALL.iter().copied().filter(holds).collect()
    }

    /// How many rules may hold for events of a kind.
    pub fn rules_of(&self, kind: Kind) -> usize {
        self.programs[kind as usize].rules.len()
    }
}

/// What a pass has computed of the batch at hand, and room for it. One per thread.
#[derive(Debug, Default)]
pub struct Scratch {
    stamp: u32,
    batch: u32,
    section: u32,
    processes: Vec<Option<Arc<Process>>>,
    containers: Vec<Option<Arc<Container>>>,
    texts: Vec<Option<Text>>,
    /// Per unit.
    kept: Vec<Kept>,
    /// Slots that hold, end to end, and where each list lies; list 0 is empty.
    slots: Vec<u32>,
    lists: Vec<(u32, u32)>,
    /// Per step of the program: twice the row's stamp, plus one if it holds.
    steps: Vec<u64>,
    row: u64,
    full: Option<(usize, Event)>,
    tried: Vec<u32>,
}

/// What a unit has come to, by what it depends on.
#[derive(Debug, Default)]
struct Kept {
    grain: (u32, Grain),
    /// Stamp and result.
    cells: Vec<(u32, u32)>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Grain {
    #[default]
    Once,
    Process,
    Container,
    Text(Column),
    Row,
}

/// The section at hand.
struct At<'a> {
    pass: &'a Pass,
    batch: &'a Batch,
    section: &'a Section,
    program: &'a Program,
}

impl Scratch {
    /// Begins the next batch.
    pub fn begin(&mut self, pass: &Pass, batch: &Batch) {
        if self.stamp >= STAMPS_MAX {
            self.kept.clear();
            self.stamp = 0;
        }
        self.stamp += 1;
        self.batch = self.stamp;
        self.kept.resize_with(pass.units.len(), Kept::default);
        self.processes.clear();
        self.processes.resize(batch.processes.rows(), None);
        self.containers.clear();
        self.containers.resize(batch.containers.rows(), None);
        self.texts.clear();
        self.texts.resize(batch.strings.entries(), None);
        self.slots.clear();
        self.lists.clear();
        self.lists.push((0, 0));
    }

    /// Runs the rules over rows of a section of the batch that was begun: `hit` is given each row and place of a rule that holds, in order.
    pub fn run(
        &mut self,
        pass: &Pass,
        batch: &Batch,
        section: &Section,
        rows: impl Iterator<Item = usize>,
        mut hit: impl FnMut(usize, usize, &Event),
    ) {
        let program = &pass.programs[section.kind as usize];
        if program.rules.is_empty() {
            return;
        }
        self.stamp += 1;
        self.section = self.stamp;
        self.full = None;
        self.steps.resize(self.steps.len().max(program.steps.len()), 0);
        let at = At { pass, batch, section, program };
        let mut tried = std::mem::take(&mut self.tried);
        for row in rows {
            self.row += 1;
            tried.clear();
            tried.extend_from_slice(&program.always);
            for (unit, rules) in &program.triggers {
                let list = self.unit(&at, *unit, row);
                let (start, end) = self.lists[list as usize];
                for slot in &self.slots[start as usize..end as usize] {
                    tried.extend_from_slice(rules.get(slot).map_or(&[], Vec::as_slice));
                }
            }
            tried.sort_unstable();
            tried.dedup();
            let mut is_told = false;
            for place in &tried {
                let (rule, goal) = program.rules[*place as usize];
                // The first of Falco's rules has the event; Sigma's are each for themselves.
                let one_only = pass.matching == Matching::First && pass.set.rules[rule].language == Language::Falco;
                if one_only && is_told {
                    continue;
                }
                let holds = match goal {
                    Goal::Known(holds) => holds,
                    Goal::Step(step) => self.step(&at, step, row),
                };
                if holds {
                    let event = self.whole(&at, row);
                    hit(row, rule, event);
                    is_told |= one_only;
                }
            }
        }
        self.tried = tried;
    }

    fn step(&mut self, at: &At<'_>, step: u32, row: usize) -> bool {
        let cell = self.steps[step as usize];
        if cell >> 1 == self.row {
            return cell & 1 == 1;
        }
        let holds = match &at.program.steps[step as usize] {
            Step::And(parts) => parts.iter().all(|part| self.step(at, *part, row)),
            Step::Or(parts) => parts.iter().any(|part| self.step(at, *part, row)),
            Step::Not(part) => !self.step(at, *part, row),
            Step::Check(unit) => self.unit(at, *unit, row) == 1,
            Step::Scan { unit, slot } => {
                let list = self.unit(at, *unit, row);
                let (start, end) = self.lists[list as usize];
                self.slots[start as usize..end as usize].binary_search(slot).is_ok()
            }
        };
        self.steps[step as usize] = self.row << 1 | u64::from(holds);
        holds
    }

    /// What a unit comes to for a row: 0 or 1 for a comparison, the number of a list for a scan.
    fn unit(&mut self, at: &At<'_>, number: u32, row: usize) -> u32 {
        let unit = &at.pass.units[number as usize];
        let kept = &mut self.kept[number as usize];
        if kept.grain.0 != self.section {
            kept.grain = (self.section, grain(unit, at.section));
        }
        let grain = kept.grain.1;
        let entity = |rows: &[u32]| rows.get(row).map_or(0, |row| *row as usize);
        let key = match grain {
            Grain::Once => 0,
            Grain::Process => entity(&at.section.process_rows),
            Grain::Container => entity(&at.section.container_rows),
            Grain::Text(column) => at.section.table.codes(column).map_or(0, |codes| codes[row] as usize),
            Grain::Row => row,
        };
        let stamp = if unit.inputs.is_entity_alone() && grain != Grain::Once { self.batch } else { self.section };
        if key >= kept.cells.len() {
            kept.cells.resize(key + 1, (0, 0));
        }
        let (known, result) = kept.cells[key];
        if known == stamp {
            return result;
        }
        let result = self.compute(at, unit, grain, row);
        self.kept[number as usize].cells[key] = (stamp, result);
        result
    }

    fn compute(&mut self, at: &At<'_>, unit: &Unit, grain: Grain, row: usize) -> u32 {
        let event = if grain == Grain::Row {
            self.whole(at, row);
            self.full.take().expect("it was just made").1
        } else {
            self.part(at, &unit.inputs, row)
        };
        let result = self.result(at, unit, &event);
        if grain == Grain::Row {
            self.full = Some((row, event));
        }
        result
    }

    fn result(&mut self, at: &At<'_>, unit: &Unit, event: &Event) -> u32 {
        let source = EventFields::new(event, &at.batch.host.host);
        match &unit.what {
            What::Check(check) => u32::from(at.pass.set.graph.checks[*check as usize].holds(&source)),
            What::Scan(scan) => {
                let begin = self.slots.len();
                scan.run(&source, &mut self.slots);
                if self.slots.len() == begin {
                    return 0;
                }
                self.lists.push((begin as u32, self.slots.len() as u32));
                self.lists.len() as u32 - 1
            }
        }
    }

    /// As much of a row's event as these inputs need.
    fn part(&mut self, at: &At<'_>, inputs: &Inputs, row: usize) -> Event {
        let mut event = Event { kind: at.section.kind, ..Event::default() };
        if inputs.process {
            event.process = self.process(at, row);
        }
        if inputs.container {
            event.container = self.container(at, row);
        }
        for column in inputs.columns_for(at.section.kind) {
            if let Some(cells) = at.section.table.cells(column) {
                self.cell(at.batch, cells, row, |cell| _ = event.fields.set(column, cell));
            }
        }
        event
    }

    /// The whole event of a row.
    fn whole(&mut self, at: &At<'_>, row: usize) -> &Event {
        if self.full.as_ref().is_none_or(|(known, _)| *known != row) {
            let mut event = Event { time: at.section.times[row], kind: at.section.kind, ..Event::default() };
            event.process = self.process(at, row);
            event.container = self.container(at, row);
            for (column, cells) in at.section.table.columns() {
                self.cell(at.batch, cells, row, |cell| _ = event.fields.set(column, cell));
            }
            self.full = Some((row, event));
        }
        &self.full.as_ref().expect("it was just made").1
    }

    fn process(&mut self, at: &At<'_>, row: usize) -> Option<Arc<Process>> {
        let number = (*at.section.process_rows.get(row)? as usize).checked_sub(1)?;
        if let Some(known) = self.processes.get(number)? {
            return Some(Arc::clone(known));
        }
        let mut process = Process::default();
        self.fill(at.batch, &at.batch.processes, number, |column, cell| match (column, cell) {
            (Column::Pid, Cell::Int(pid)) => process.pid = u32::try_from(pid).unwrap_or(0),
            (Column::StartNs, Cell::Int(start)) => process.start_ns = start.cast_unsigned(),
            _ => _ = process.set(column, cell),
        });
        let process = Arc::new(process);
        self.processes[number] = Some(Arc::clone(&process));
        Some(process)
    }

    fn container(&mut self, at: &At<'_>, row: usize) -> Option<Arc<Container>> {
        let number = (*at.section.container_rows.get(row)? as usize).checked_sub(1)?;
        if let Some(known) = self.containers.get(number)? {
            return Some(Arc::clone(known));
        }
        let mut container = Container::default();
        self.fill(at.batch, &at.batch.containers, number, |column, cell| _ = container.set(column, cell));
        let container = Arc::new(container);
        self.containers[number] = Some(Arc::clone(&container));
        Some(container)
    }

    fn fill(&mut self, batch: &Batch, table: &Table, row: usize, mut set: impl FnMut(Column, Cell<'_>)) {
        for (column, cells) in table.columns() {
            self.cell(batch, cells, row, |cell| set(column, cell));
        }
    }

    fn cell(&mut self, batch: &Batch, cells: &Cells, row: usize, set: impl FnOnce(Cell<'_>)) {
        match cells {
            Cells::Codes(codes) => match codes[row] as usize {
                0 => {}
                code => {
                    let text = self.texts[code].get_or_insert_with(|| batch.strings.text(code as u32).into());
                    set(Cell::Text(text));
                }
            },
            Cells::Ints(ints) => {
                if let Some(int) = ints.get(row) {
                    set(Cell::Int(int));
                }
            }
        }
    }
}

/// Per what a unit has to be computed in a section.
fn grain(unit: &Unit, section: &Section) -> Grain {
    let Inputs { time, process, container, .. } = unit.inputs;
    let process = process && !section.process_rows.is_empty();
    let container = container && !section.container_rows.is_empty();
    let mut columns = unit.inputs.columns_for(section.kind).filter_map(|column| Some((column, section.table.cells(column)?)));
    match (time, process, container, columns.next(), columns.next()) {
        (false, false, false, None, _) => Grain::Once,
        (false, true, false, None, _) => Grain::Process,
        (false, false, true, None, _) => Grain::Container,
        (false, false, false, Some((column, Cells::Codes(_))), None) => Grain::Text(column),
        _ => Grain::Row,
    }
}

/// Stamps of sections before all that is kept is let go; a batch has far fewer sections than the rest of the numbers.
const STAMPS_MAX: u32 = u32::MAX / 2;
