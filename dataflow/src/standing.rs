//! The views that people made, on one worker: each is a dataflow of its own, built while the others run.
//!
//! A view begins with the rows that its inputs have at the tick of its command, and is then given, tick by tick, what changed of them. Both
//! are read from the inputs' outputs, once a tick is closed there: every worker hands on the share that it keeps. So nothing that runs
//! is touched when a view comes or goes, and nothing of it needs to be in a checkpoint: a view without a clock is a function of its inputs' rows.
//!
//! A tick is closed when it is closed in every view that is there at it. A dropped view goes on up to the tick of its end, or the other workers
//! would wait for it for ever.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::InputHandle;
use timely::dataflow::operators::Input as _;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::worker::Worker;
use weir_plan::{Plan, Rule, SchemaOf as _};

use crate::checkpoint::{Keeper, Share};
use crate::definition::{Known, ViewDefinition};
use crate::delta::{DeltaBatch, options};
use crate::expr::Counters;
use crate::history::ChangesKept;
use crate::output::{Output, attach};
use crate::packed::Bytes;
use crate::peek::Made;
use crate::relations::RelationInfo;
use crate::render::{Context, Relation, Sources, Ticks, render};

type Source = Rc<RefCell<Output>>;
type Changes = InputHandle<u64, CapacityContainerBuilder<Vec<DeltaBatch>>>;

/// All views that people made.
#[derive(Default)]
pub(crate) struct Standing {
    known: Known,
    /// In the order in which they were made: what a view reads comes before it.
    views: Vec<View>,
}

/// What is there before them.
pub(crate) struct Base<'a> {
    /// Which worker this is.
    pub(crate) share: Share,
    /// The rows of a relation that ships, or of a table.
    pub(crate) source: &'a dyn Fn(&str) -> Option<Source>,
    /// What is kept of what changed.
    pub(crate) changes: ChangesKept,
}

struct View {
    name: String,
    dataflow: usize,
    /// Its first tick.
    created: u64,
    /// Its first tick no more.
    dropped: Option<u64>,
    inputs: Vec<Input>,
    ticks: Ticks,
    probe: Probe<u64>,
    output: Source,
    /// The last tick that it was given.
    fed: Option<u64>,
}

struct Input {
    source: Source,
    /// When the source is complete; none: with the views that ship, as a table is.
    complete: Option<Probe<u64>>,
    schema: SchemaRef,
    changes: Changes,
}

impl Standing {
    /// Makes a view. What is returned is how it is read; nothing for a plain one.
    pub(crate) fn create(&mut self, worker: &mut Worker, tick: u64, definition: &ViewDefinition, base: Base<'_>) -> Option<Made> {
        let counters = Arc::<Counters>::default();
        // Whoever asked for it has planned it. Should it not be planned here all the same, it alone has no rows.
        let failed = |why: String| {
            tracing::error!(view = definition.name, why, "a view cannot be kept");
            let info = RelationInfo {
                name: definition.name.clone().into(),
                schema: Arc::new(arrow::datatypes::Schema::empty()),
                standing: true,
                sql: Some(definition.statement().into()),
            };
            Some(Made { info, created: tick, output: Err(why), counters: Arc::default() })
        };
        let (plan, info) = match self.known.add(definition) {
            Ok(None) => return None,
            Ok(Some(planned)) => planned,
            Err(why) => return failed(why.to_string()),
        };
        match self.build(worker, tick, &plan, &info, Parts { base, counters: Arc::clone(&counters) }) {
            Ok(output) => Some(Made { info, created: tick, output: Ok(output), counters }),
            Err(why) => {
                self.known.remove(&definition.name);
                failed(why)
            }
        }
    }

    /// Makes a table: how it is seen. Its rows are for the caller to keep.
    pub(crate) fn create_table(&mut self, definition: &ViewDefinition) -> Result<RelationInfo, String> {
        self.known.add_table(definition).map_err(|why| why.to_string())
    }

    /// Takes up a sequence rule: what it says, and how it is seen. Its rows are for the caller to keep.
    pub(crate) fn create_rule(&mut self, definition: &ViewDefinition) -> Result<(Rule, RelationInfo), String> {
        self.known.add_rule(definition).map_err(|why| why.to_string())
    }

    fn build(
        &mut self,
        worker: &mut Worker,
        tick: u64,
        plan: &Plan,
        info: &RelationInfo,
        Parts { base, counters }: Parts<'_>,
    ) -> Result<Source, String> {
        let mut output = Output::new(info, base.changes).map_err(|error| error.to_string())?;
        output.begin(tick);
        let output = Rc::new(RefCell::new(output));
        let mut found = Vec::new();
        for relation in plan.relations() {
            let schema = self.known.schema_of(relation).ok_or_else(|| format!("relation \"{relation}\" is not there"))?;
            let made = self.views.iter().rev().find(|view| view.name == relation && view.dropped.is_none());
            let (source, complete) = match made {
                Some(view) => (Rc::clone(&view.output), Some(view.probe.clone())),
                None => ((base.source)(relation).ok_or_else(|| format!("relation \"{relation}\" has no rows here"))?, None),
            };
            found.push((relation.to_owned(), schema, source, complete));
        }
        let (ticks, probe, dataflow) = (Ticks::noted(), Probe::new(), worker.next_dataflow_index());
        let context =
            Context { counters, ticks: ticks.clone(), keeper: Keeper::new(base.share, None), view: "made", ..Context::default() };
        let inputs = worker.dataflow_named(&format!("View {}", info.name), |scope| {
            let (mut sources, mut inputs) = (Sources::default(), Vec::new());
            for (relation, schema, source, complete) in found {
                let (changes, deltas) = scope.new_input::<Vec<DeltaBatch>>();
                sources.insert(relation, Relation { schema: Arc::clone(&schema), deltas });
                inputs.push(Input { source, complete, schema, changes });
            }
            let relation = render(plan, &sources, &context).map_err(|error| error.to_string())?;
            attach(relation.deltas, &output, &probe);
            Ok::<_, String>(inputs)
        })?;
        let shared = Rc::clone(&output);
        let (name, dropped, fed) = (info.name.to_string(), None, None);
        self.views.push(View { name, dataflow, created: tick, dropped, inputs, ticks, probe, output, fed });
        Ok(shared)
    }

    /// Drops views: they have no rows from this tick on.
    pub(crate) fn drop_views(&mut self, tick: u64, names: &[String]) {
        names.iter().for_each(|name| self.known.remove(name));
        for view in self.views.iter_mut().filter(|view| view.dropped.is_none() && names.contains(&view.name)) {
            view.dropped = Some(tick);
        }
    }

    /// Gives the views what is complete of the ticks that were fed, and lets go of those whose time is over.
    pub(crate) fn pass_on(&mut self, worker: &mut Worker, fed: &VecDeque<u64>, base: &Probe<u64>) -> bool {
        let mut any = false;
        for view in &mut self.views {
            let created = view.created;
            for tick in fed.iter().copied().filter(|tick| *tick >= created) {
                if view.fed.is_some_and(|last| last >= tick) {
                    continue;
                }
                let complete = |input: &Input| !input.complete.as_ref().unwrap_or(base).less_than(&(tick + 1));
                if let Some(end) = view.dropped.filter(|end| tick >= *end) {
                    view.end(end);
                    break;
                }
                if !view.inputs.iter().all(complete) {
                    break;
                }
                view.feed(tick);
                any = true;
            }
        }
        self.views.retain(|view| {
            let over = view.is_over();
            if over {
                worker.drop_dataflow(view.dataflow);
            }
            !over
        });
        any
    }

    /// Whether every worker has done this tick in every view that is there at it.
    pub(crate) fn is_closed(&self, tick: u64) -> bool {
        self.views.iter().all(|view| !view.is_there(tick) || !view.probe.less_than(&(tick + 1)))
    }

    /// No more is known to come for ticks before this one.
    pub(crate) fn closed(&self, tick: u64) {
        self.views.iter().for_each(|view| view.ticks.forget_before(tick));
    }
}

/// What a view is built with.
struct Parts<'a> {
    base: Base<'a>,
    counters: Arc<Counters>,
}

impl View {
    fn is_there(&self, tick: u64) -> bool {
        self.created <= tick && self.dropped.is_none_or(|end| tick < end)
    }

    /// Whether nobody waits for it any more: every worker has done all of its ticks.
    fn is_over(&self) -> bool {
        self.dropped.is_some_and(|end| end <= self.created || !self.probe.less_than(&end))
    }

    /// Lets its time come to its end: it was given all ticks before.
    fn end(&mut self, end: u64) {
        self.ticks.note(end);
        for input in &mut self.inputs {
            input.changes.advance_to(end);
            input.changes.flush();
        }
        self.fed = Some(u64::MAX);
    }

    /// Gives it one tick: all rows of its inputs at its first, then what changed.
    fn feed(&mut self, tick: u64) {
        self.ticks.note(tick);
        for input in &mut self.inputs {
            input.changes.advance_to(tick);
            let rows = match self.fed {
                None => input.source.borrow_mut().rows_at(tick),
                Some(_) => input.source.borrow().changes_at(tick),
            };
            for piece in rows.chunks(ROWS_PER_BATCH) {
                match input.batch(tick, piece) {
                    Ok(batch) => input.changes.send(batch),
                    Err(error) => tracing::error!(view = self.name, %error, "rows of an input do not fit its columns"),
                }
            }
            input.changes.advance_to(tick + 1);
            input.changes.flush();
        }
        self.fed = Some(tick);
    }
}

impl Input {
    /// Rows in the types that operators take.
    fn batch(&self, tick: u64, rows: &[(Bytes, i64)]) -> Result<DeltaBatch, ArrowError> {
        let (rows, diffs): (Vec<Bytes>, Vec<i64>) = rows.iter().cloned().unzip();
        let columns: Vec<usize> = (0..self.schema.fields().len()).collect();
        let decoded = self.source.borrow().decode(&rows, &columns)?;
        let typed = decoded.columns().iter().zip(self.schema.fields()).map(|(column, field)| cast(column, field.data_type()));
        let typed = typed.collect::<Result<Vec<_>, _>>()?;
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), typed, &options(diffs.len()))?;
        Ok(DeltaBatch::new(tick, rows, diffs))
    }
}

/// Rows of one batch.
const ROWS_PER_BATCH: usize = 16_384;
