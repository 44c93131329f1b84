//! The dataflow of all views on one worker, built when the chain's first command says how they look.
//!
//! frames → source → connections → plans → outputs. One probe behind all outputs says which ticks every worker has done.

mod counters;
mod created;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::TimestampNanosecondType;
use arrow::error::ArrowError;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::dataflow::operators::{Concat as _, Input as _};
use timely::dataflow::{InputHandle, Scope, Stream};
use timely::worker::Worker;
use weir_schema::Column;

use crate::alerts::{AlertCounts, AlertOptions, ExceptionTable, InForce, alerts};
use crate::chains::{ChainCounts, ChainOptions, Relations, chains};
use crate::checkpoint::{Keeper, Restore, Saved, Share};
use crate::connections::{Counts, connections};
use crate::correlations::{CorrelationCounts, CorrelationOptions, correlations};
use crate::definition::{ViewDefinition, ViewKind};
use crate::expr::{Counters, KeptCounters};
use crate::feed::Arrived;
use crate::handle::{Completeness, Held};
use crate::history::ChangesKept;
use crate::output::{Output, attach};
use crate::peek::{self, Made, Shelf};
use crate::relations::{AGENTS, ALERTS, CONNECTIONS, HOSTS, LOSSES, relations};
use crate::render::{Context, Relation, Sources, Ticks, render};
use crate::rulebook::Rules;
use crate::run::Error;
use crate::settings::ViewSettings;
use crate::shipped::EXCEPTIONS;
use crate::source::table::inside;
use crate::source::tail::Forgotten;
use crate::source::{SourceOptions, SourceState, Tail, schema_of, source};
use crate::standing::{Base, Standing};
use crate::table::{self, TableWrite};
use crate::views::views;

/// What a worker has of the views.
pub(crate) struct Installed {
    settings: ViewSettings,
    input: InputHandle<u64, CapacityContainerBuilder<Vec<Arrived>>>,
    /// Ticks from which other rules are in force.
    rule_ticks: RuleTicks,
    rules: InForce,
    exceptions: Rc<RefCell<ExceptionTable>>,
    ticks: Ticks,
    probe: Probe<u64>,
    shelf: Books,
    keeper: Keeper,
    standing: Standing,
    /// The rows that people write, by table, and those of sequence rules.
    tables: HashMap<String, Rc<RefCell<Output>>>,
    changes: ChangesKept,
    /// Where the rows of sequence rules go.
    relations: Relations,
}

type RuleTicks = InputHandle<u64, CapacityContainerBuilder<Vec<u64>>>;

/// What the peeks of one worker read.
#[derive(Default)]
pub(crate) struct Books {
    outputs: HashMap<String, Rc<RefCell<Output>>>,
    made: BTreeMap<String, Made>,
    source: Option<SourceState>,
    connections: Counts,
    alerts: AlertCounts,
    chains: ChainCounts,
    correlations: CorrelationCounts,
    chain_counters: Arc<Counters>,
    counters: Vec<(&'static str, Arc<Counters>)>,
}

impl Installed {
    /// Builds the dataflow. Every worker does so before it feeds the same tick.
    ///
    /// With a checkpoint the states begin as of its tick, which is fed and closed as soon as all workers have come so far.
    pub(crate) fn install(
        worker: &mut Worker,
        settings: ViewSettings,
        restore: Option<Arc<Restore>>,
        changes: ChangesKept,
    ) -> Result<Self, Error> {
        let keeper = Keeper::new(Share { index: worker.index(), peers: worker.peers() }, restore);
        let mut outputs = HashMap::new();
        for info in relations().iter().filter(|info| info.standing) {
            let output = Output::new(info, changes).map_err(|error| failed(&info.name, error))?;
            let output = keeper.keep(format!("output/{}", info.name), output).shared();
            output.borrow_mut().begin(keeper.restored().unwrap_or(0));
            outputs.insert(info.name.to_string(), output);
        }
        let source = SourceState::new(&settings);
        keeper.keep("source/tails", Forgotten(Rc::clone(&source.tails)));
        let shelf = Books { outputs, source: Some(source), ..Books::default() };
        let (ticks, rules) = (Ticks::noted(), InForce::default());
        let build = Build { settings, changes, ticks, rules, probe: Probe::new(), shelf, keeper };
        let mut installed = worker.dataflow_named("Views", |scope| build.build(scope))?;
        installed.keeper.check()?;
        if let Some(tick) = installed.keeper.restored() {
            installed.input.advance_to(tick + 1);
            installed.input.flush();
            installed.rule_ticks.advance_to(tick + 1);
            installed.rule_ticks.flush();
        }
        Ok(installed)
    }

    /// The state of all operators, as it is now: at the last closed tick, when no later one was fed here.
    pub(crate) fn save(&self, tick: u64) -> Saved {
        Saved { tick, share: self.keeper.share(), settings: self.settings, sections: self.keeper.save() }
    }

    /// What the views were built for.
    pub(crate) fn settings(&self) -> &ViewSettings {
        &self.settings
    }

    /// What peeks read.
    pub(crate) fn shelf(&self) -> &Books {
        &self.shelf
    }

    /// Feeds one tick's frames, and says that there will be no more of it.
    pub(crate) fn feed(&mut self, tick: u64, mut frames: Vec<Arrived>) {
        let exceptions = self.exceptions.borrow_mut().take_changed();
        if let Some(exceptions) = exceptions {
            self.rules.except(tick, exceptions);
            self.tell_rules(tick);
        }
        self.ticks.note(tick);
        self.input.advance_to(tick);
        self.input.send_batch(&mut frames);
        self.input.advance_to(tick + 1);
        self.input.flush();
        self.rule_ticks.advance_to(tick + 1);
        self.rule_ticks.flush();
    }

    /// These rules are in force from a tick on that is about to be fed. Every worker does so at the same one.
    pub(crate) fn set_rules(&mut self, tick: u64, rules: &Rules) {
        self.rules.set(tick, rules);
        self.rule_ticks.advance_to(tick);
        self.rule_ticks.send(tick);
    }

    /// These rules were in force at the tick of the checkpoint.
    pub(crate) fn begin_rules(&self, tick: u64, rules: &Rules) {
        self.rules.set(tick, rules);
    }

    /// Whether every worker has done this tick.
    pub(crate) fn is_closed(&self, tick: u64) -> bool {
        !self.probe.less_than(&(tick + 1)) && self.standing.is_closed(tick)
    }

    /// Makes a view, as of a tick that is about to be fed. Every worker does so at the same one.
    pub(crate) fn create(&mut self, worker: &mut Worker, tick: u64, definition: &ViewDefinition) {
        match definition.kind {
            ViewKind::Table => return self.create_table(tick, definition, None),
            ViewKind::Sequence => return self.create_rule(tick, definition, None),
            ViewKind::Plain | ViewKind::Materialized => {}
        }
        let share = self.keeper.share();
        let source = |relation: &str| {
            let shipped = self.shelf.outputs.get(relation).cloned();
            shipped.or_else(|| self.tables.get(relation).cloned())
        };
        if let Some(made) = self.standing.create(worker, tick, definition, Base { share, source: &source, changes: self.changes })
        {
            self.shelf.made.insert(definition.name.clone(), made);
        }
    }

    /// Takes up the views and tables that were there at the tick of the checkpoint.
    pub(crate) fn take_up(&mut self, worker: &mut Worker, tick: u64, definitions: &[ViewDefinition]) -> Result<(), Error> {
        for definition in definitions {
            match definition.kind {
                ViewKind::Table => self.create_table(tick, definition, Some(tick)),
                ViewKind::Sequence => self.create_rule(tick, definition, Some(tick)),
                ViewKind::Plain | ViewKind::Materialized => self.create(worker, tick, definition),
            }
        }
        self.rules.except(tick, self.exceptions.borrow().compile());
        Ok(self.keeper.check()?)
    }

    /// Changes a table's rows, as of a tick that is about to be fed.
    pub(crate) fn write_table(&mut self, tick: u64, write: &TableWrite) {
        let written = match self.tables.get(&write.table) {
            Some(output) => self.write_rows(output, tick, write).map_err(|error| error.to_string()),
            None => Err("it is not there".to_owned()),
        };
        if let Err(why) = written {
            tracing::error!(table = write.table, tick, why, "a change of a table's rows is left out");
        }
    }

    fn write_rows(&self, output: &Rc<RefCell<Output>>, tick: u64, write: &TableWrite) -> Result<(), ArrowError> {
        table::write(output, tick, &write.rows, self.keeper.share())?;
        if write.table == EXCEPTIONS {
            let schema = Arc::clone(output.borrow().schema());
            self.exceptions.borrow_mut().write(&write.rows, &schema)?;
        }
        Ok(())
    }

    /// Drops views and tables, as of a tick that is about to be fed.
    pub(crate) fn drop_views(&mut self, tick: u64, names: &[String]) {
        for name in names {
            self.drop_kept(tick, name);
        }
        self.standing.drop_views(tick, names);
        self.shelf.made.retain(|name, _| !names.contains(name));
    }

    /// Hands what is closed on to the views that people made. True when something was.
    pub(crate) fn pass_on(&mut self, worker: &mut Worker, fed: &VecDeque<u64>) -> bool {
        self.standing.pass_on(worker, fed, &self.probe)
    }

    /// No more is known to come for ticks before this one.
    pub(crate) fn closed(&self, tick: u64) {
        self.ticks.forget_before(tick);
        self.rules.forget_before(tick);
        self.standing.closed(tick);
    }

    /// Forgets what only reads before `since` need.
    pub(crate) fn compact(&mut self, since: u64) {
        let made = self.shelf.made.values().filter_map(|made| made.output.as_ref().ok());
        for output in self.shelf.outputs.values().chain(made) {
            output.borrow_mut().compact(since);
        }
    }
}

struct Build {
    settings: ViewSettings,
    changes: ChangesKept,
    ticks: Ticks,
    rules: InForce,
    probe: Probe<u64>,
    shelf: Books,
    keeper: Keeper,
}

impl Build {
    fn build(mut self, scope: Scope<'_, u64>) -> Result<Installed, Error> {
        let (input, arrived) = scope.new_input::<Vec<Arrived>>();
        let (told, rule_ticks) = scope.new_input::<Vec<u64>>();
        let relations = Relations::default();
        self.keeper.keep("counters/rules", KeptCounters(Arc::clone(&self.shelf.chain_counters)));
        let sources = self.sources(arrived, rule_ticks, &relations);
        for view in views(&self.settings) {
            let counters = Arc::<Counters>::default();
            self.keeper.keep(format!("counters/{}", view.name), KeptCounters(Arc::clone(&counters)));
            let context = Context {
                counters: Arc::clone(&counters),
                ticks: self.ticks.clone(),
                keeper: self.keeper.clone(),
                view: view.name,
                ..Context::default()
            };
            let relation = render(&view.plan, &sources, &context).map_err(|error| failed(view.name, error))?;
            self.attach(view.name, relation)?;
            self.shelf.counters.push((view.name, counters));
        }
        for base in ["hosts", "agents", "losses", "alerts"] {
            let relation = sources.0.get(base).cloned().ok_or_else(|| failed(base, "it has no source"))?;
            self.attach(base, relation)?;
        }
        let Self { settings, changes, ticks, rules, probe, shelf, keeper } = self;
        let (standing, tables) = (Standing::default(), HashMap::new());
        let exceptions = keeper.keep("alerts/exceptions", ExceptionTable::new(keeper.share())).shared();
        Ok(Installed {
            settings,
            input,
            rule_ticks: told,
            rules,
            exceptions,
            ticks,
            probe,
            shelf,
            keeper,
            standing,
            tables,
            changes,
            relations,
        })
    }

    /// What plans read.
    fn sources<'s>(
        &self,
        arrived: Stream<'s, u64, Vec<Arrived>>,
        rule_ticks: Stream<'s, u64, Vec<u64>>,
        relations: &Relations,
    ) -> Sources<'s> {
        let options = SourceOptions {
            settings: self.settings,
            events: EVENT_COLUMNS.to_vec(),
            samples: SAMPLE_COLUMNS.to_vec(),
            ticks: self.ticks.clone(),
            keeper: self.keeper.clone(),
            rules: self.rules.clone(),
        };
        let state = self.shelf.source.clone().unwrap_or_else(|| SourceState::new(&self.settings));
        let streams = source(arrived, options, &state);
        let rows = connections(streams.touches, streams.addresses, &self.settings, &self.shelf.connections, &self.keeper);
        let options = AlertOptions {
            retention_ms: self.settings.retention_ms,
            rules: self.rules.clone(),
            ticks: self.ticks.clone(),
            keeper: self.keeper.clone(),
            counts: self.shelf.alerts.clone(),
        };
        let alerts = alerts(streams.hits, rule_ticks.clone(), options);
        let options = ChainOptions {
            retention_ms: self.settings.retention_ms,
            rows_max: self.settings.chain_events_per_key_max,
            rules: self.rules.chains.clone(),
            ticks: self.ticks.clone(),
            keeper: self.keeper.clone(),
            counts: self.shelf.chains.clone(),
        };
        let chained = chains(streams.chain_hits, rule_ticks.clone(), options);
        relations.attach(chained.rows, &self.probe);
        let options = CorrelationOptions {
            retention_ms: self.settings.retention_ms,
            hits_max: self.settings.chain_events_per_key_max,
            rules: self.rules.clone(),
            ticks: self.ticks.clone(),
            keeper: self.keeper.clone(),
            counts: Rc::clone(&self.shelf.correlations),
        };
        let (matches, uncounted) = correlations(streams.counted, rule_ticks, &options);
        let alerts = alerts.concat(chained.alerts).concat(matches);
        let losses = streams.losses.concat(chained.losses).concat(uncounted);
        let mut sources = Sources::default();
        sources.insert("alerts", Relation { schema: inside(ALERTS), deltas: alerts });
        sources.insert("events", Relation { schema: schema_of(EVENT_COLUMNS), deltas: streams.events });
        sources.insert("samples", Relation { schema: schema_of(SAMPLE_COLUMNS), deltas: streams.samples });
        sources.insert("connections_all", Relation { schema: inside(CONNECTIONS), deltas: rows });
        sources.insert("hosts", Relation { schema: inside(HOSTS), deltas: streams.hosts });
        sources.insert("agents", Relation { schema: inside(AGENTS), deltas: streams.agents });
        sources.insert("losses", Relation { schema: inside(LOSSES), deltas: losses });
        sources
    }

    /// A relation's rows go to its output; they must have the columns that users see.
    fn attach(&self, name: &'static str, relation: Relation<'_>) -> Result<(), Error> {
        let output = self.shelf.outputs.get(name).ok_or_else(|| failed(name, "it is not a standing relation"))?;
        let names =
            |schema: &arrow::datatypes::Schema| schema.fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>();
        let (made, declared) = (names(&relation.schema), output.borrow().column_names());
        if made != declared {
            return Err(failed(name, format!("it makes the columns {made:?} where {declared:?} are declared")));
        }
        attach(relation.deltas, output, &self.probe);
        Ok(())
    }
}

impl Shelf for Books {
    fn output(&self, relation: &str) -> Option<Rc<RefCell<Output>>> {
        self.outputs.get(relation).cloned()
    }

    fn view(&self, relation: &str) -> Option<&Made> {
        self.made.get(relation)
    }

    fn views(&self) -> Vec<&Made> {
        self.made.values().collect()
    }

    fn tail(&self, read: &peek::TailRead<'_>, more: &mut dyn FnMut(RecordBatch) -> bool) -> Result<(), String> {
        let source = self.source.as_ref().ok_or("the views are not built yet")?;
        let (tail, all) = match read.relation {
            "events" => (Tail::Events, weir_schema::EVENTS),
            "samples" => (Tail::Samples, weir_schema::SAMPLES),
            other => return Err(format!("{other} is no tail")),
        };
        let columns: Vec<Column> = read.columns.iter().map(|place| all[*place]).collect();
        source.tails.borrow().visit(tail, &columns, read.tick, more)
    }

    fn completeness(&self, tick: u64) -> Completeness {
        let Some(source) = &self.source else { return Completeness::default() };
        let (counts, tails) = (*source.counts.borrow(), source.tails.borrow());
        let silent_hosts = self.outputs.get("hosts").map(|hosts| silent(&mut hosts.borrow_mut(), tick)).unwrap_or_default();
        Completeness {
            late_events: counts.late,
            duplicate_events: counts.duplicates,
            conflicting_events: counts.conflicts,
            lost_events: counts.lost,
            unknown_loss_intervals: counts.losses_unknown,
            forgotten_rows: [Tail::Events, Tail::Samples].map(|tail| tails.held(tail).dropped_rows).iter().sum(),
            negative_rows: 0,
            silent_hosts_total: silent_hosts.len() as u64,
            silent_hosts,
        }
    }

    fn tails_held(&self) -> Vec<Held> {
        let Some(source) = &self.source else { return vec![] };
        let tails = source.tails.borrow();
        [("events", Tail::Events), ("samples", Tail::Samples)]
            .map(|(name, tail)| (name, tails.held(tail)))
            .map(|(name, held)| Held { relation: name.into(), rows: held.rows, bytes: held.bytes })
            .to_vec()
    }

    fn counters(&self) -> Vec<(String, u64)> {
        counters::of(self)
    }
}

/// Hosts that have not ended and were not heard of for a while, by name.
fn silent(hosts: &mut Output, tick: u64) -> Vec<String> {
    let mut rows = Vec::new();
    hosts.at(tick, |row, _| rows.push(row.into()));
    let columns = ["host", "last_seen", "ended"].map(|column| HOSTS.iter().position(|(name, _)| *name == column).unwrap_or(0));
    let Ok(batch) = hosts.decode(&rows, &columns) else { return vec![] };
    let names = batch.column(0).as_string::<i32>();
    let (last, ended) = (batch.column(1).as_primitive::<TimestampNanosecondType>(), batch.column(2));
    let before = i64::try_from(tick.saturating_sub(SILENT_AFTER_MS)).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let is_silent = |row: &usize| ended.is_null(*row) && last.value(*row) < before;
    (0..batch.num_rows()).filter(is_silent).map(|row| names.value(row).to_owned()).collect()
}

fn failed(view: &str, why: impl std::fmt::Display) -> Error {
    Error::View { view: view.into(), why: why.to_string() }
}

/// A host not heard of for so long is named as silent. Every agent sends samples each second.
const SILENT_AFTER_MS: u64 = 10_000;
/// What the shipped views read of events: decoding stops there.
const EVENT_COLUMNS: &[Column] = &[
    Column::Time,
    Column::Kind,
    Column::Region,
    Column::Host,
    Column::App,
    Column::ContainerId,
    Column::BytesSent,
    Column::BytesReceived,
];

/// What the shipped views read of samples.
const SAMPLE_COLUMNS: &[Column] = &[
    Column::Time,
    Column::IntervalMs,
    Column::Region,
    Column::Host,
    Column::App,
    Column::ContainerId,
    Column::CpuMs,
    Column::MemBytes,
    Column::NetSentBytes,
    Column::NetReceivedBytes,
];
