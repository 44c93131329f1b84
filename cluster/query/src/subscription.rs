//! A subscription: the rows of a view at one closed tick, and then what every closed tick changes, exactly.
//!
//! It asks the workers again and again for what came behind the tick that it has. So there is no queue: who reads slowly asks later, for more
//! ticks at once, and is told so once the workers have forgotten them (`[changes]` of the config). Workers that are started anew are asked
//! for the same ticks: a change of the mesh is a pause.
//!
//! Promise: the sum of all `weir_diff` of a row up to a tick that was told as closed is how often the row is in the view at that tick.
//!
//! A query is kept as a view of its own while it is subscribed to. Dropping it is the sweeper's work, so that no failure leaves one behind
//! for long: it drops every such view of this node that nobody reads.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, new_null_array};
use arrow::compute::{SortColumn, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use weir_dataflow::handle::{ChangesRead, Failure};
use weir_dataflow::{ViewChange, ViewDefinition, ViewKind};

use crate::error::{self, SqlError};
use crate::live::{Live, LiveError};
use crate::metrics;
use crate::session::Engine;
use crate::streaming::{Subscribe, Target};
use crate::views::ViewStore;

/// What all subscriptions of a node share.
#[derive(Debug, Clone)]
pub(crate) struct Subscriptions {
    node: Arc<str>,
    places: Arc<Semaphore>,
    places_max: usize,
    pulse: Arc<watch::Sender<Pulse>>,
    kept: Arc<Kept>,
}

/// How far the workers are, as this node sees it.
#[derive(Debug, Clone, Copy)]
struct Pulse {
    closed: Option<u64>,
    /// When they were heard last.
    heard: Instant,
}

/// The views of subscriptions that run.
#[derive(Debug, Default)]
struct Kept {
    names: Mutex<BTreeSet<String>>,
    left: Notify,
}

impl Subscriptions {
    /// Begins to watch the workers. Must be called inside a tokio runtime.
    pub(crate) fn start(node: &str, live: Live, places_max: usize, store: Option<Arc<dyn ViewStore>>) -> Self {
        let (pulse, _) = watch::channel(Pulse { closed: None, heard: Instant::now() });
        let (pulse, kept) = (Arc::new(pulse), Arc::<Kept>::default());
        tokio::spawn(watch_workers(live, Arc::downgrade(&pulse)));
        if let Some(store) = store {
            tokio::spawn(sweep(format!("{NAME_PREFIX}{node}_"), store, Arc::downgrade(&kept)));
        }
        let places = Arc::new(Semaphore::new(places_max.min(Semaphore::MAX_PERMITS)));
        Self { node: node.into(), places, places_max, pulse, kept }
    }

    fn place(&self) -> Result<Place, SqlError> {
        let full = |_| {
            let message = format!("{} subscriptions run on this node already", self.places_max);
            SqlError::new(error::TOO_MANY, message).with_hint("end one, ask another node, or raise `query.subscriptions_max`")
        };
        let permit = Arc::clone(&self.places).try_acquire_owned().map_err(full)?;
        metrics::subscription_begun();
        Ok(Place { _permit: permit })
    }

    /// A name that no other view has.
    fn name(&self) -> String {
        let random = std::hash::RandomState::new().build_hasher().finish();
        format!("{NAME_PREFIX}{}_{random:016x}", self.node)
    }

    fn keep(&self, name: &str) -> KeptView {
        self.kept.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        KeptView { name: name.to_owned(), kept: Arc::clone(&self.kept) }
    }
}

/// Whether a view is a subscription's own.
pub(crate) fn is_of_subscription(name: &str) -> bool {
    name.starts_with(NAME_PREFIX)
}

#[derive(Debug)]
struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::subscription_ended();
    }
}

/// A view that is there while this is.
#[derive(Debug)]
struct KeptView {
    name: String,
    kept: Arc<Kept>,
}

impl Drop for KeptView {
    fn drop(&mut self) {
        self.kept.names.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
        self.kept.left.notify_one();
    }
}

async fn watch_workers(live: Live, pulse: Weak<watch::Sender<Pulse>>) {
    loop {
        tokio::time::sleep(PULSE_EVERY).await;
        let Some(pulse) = pulse.upgrade() else { return };
        if pulse.receiver_count() == 0 {
            continue;
        }
        if let Ok(frontier) = live.frontier().await {
            pulse.send_replace(Pulse { closed: frontier.closed, heard: Instant::now() });
        }
    }
}

async fn sweep(prefix: String, store: Arc<dyn ViewStore>, kept: Weak<Kept>) {
    loop {
        let Some(running) = kept.upgrade() else { return };
        let _ = tokio::time::timeout(SWEEP_EVERY, running.left.notified()).await;
        let names = running.names.lock().unwrap_or_else(PoisonError::into_inner).clone();
        drop(running);
        let Some(definitions) = store.definitions() else { continue };
        let ours = definitions.all().iter().map(|view| &view.name).filter(|name| name.starts_with(&prefix));
        let names: Vec<String> = ours.filter(|name| !names.contains(*name)).cloned().collect();
        if names.is_empty() {
            continue;
        }
        let views = names.len();
        if let Err(why) = store.change(ViewChange::Drop { names, cascade: true, if_exists: true }).await {
            tracing::warn!(why, views, "views of subscriptions that have ended are still there: trying on");
        }
    }
}

/// A SUBSCRIBE that can be begun.
#[derive(Debug, Clone)]
pub(crate) struct Subscribable {
    asked: Subscribe,
    relation: Relation,
    /// Columns of what is told.
    pub(crate) schema: SchemaRef,
}

#[derive(Debug, Clone)]
enum Relation {
    Standing(String),
    /// To be made.
    Query(Box<ViewDefinition>),
}

/// One that runs.
pub(crate) struct Subscription {
    engine: Engine,
    relation: String,
    asked: Subscribe,
    /// Columns of what is told.
    pub(crate) schema: SchemaRef,
    pulse: watch::Receiver<Pulse>,
    next: Next,
    /// When the workers may be asked again.
    not_before: Instant,
    /// Since when there is no answer.
    troubled: Option<Instant>,
    _view: Option<KeptView>,
    _place: Place,
    /// Of the role.
    _role: OwnedSemaphorePermit,
}

#[derive(Debug, Clone, Copy)]
enum Next {
    /// All rows at this tick.
    Rows(u64),
    /// What came behind this tick.
    Behind(u64),
}

/// What some ticks have changed, in their order.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// Rows.
    pub(crate) batches: Vec<RecordBatch>,
    /// Everything up to this tick has been told.
    pub(crate) through: u64,
}

impl Engine {
    /// Whether it can be subscribed, and to which columns.
    pub(crate) async fn subscribable(&self, asked: &Subscribe) -> Result<Subscribable, SqlError> {
        self.views_known().await?;
        let made = self.made().await?;
        let query = match &asked.to {
            Target::Query(sql) => sql.clone(),
            Target::Relation(name) => {
                let info = self.info(name, &made)?;
                if info.standing {
                    let schema = told_schema(&info.schema, asked.progress);
                    return Ok(Subscribable { asked: asked.clone(), relation: Relation::Standing(name.clone()), schema });
                }
                if made.named.iter().all(|(named, _)| named.name != info.name) {
                    let construct = format!("SUBSCRIBE to \"{name}\", whose rows the workers do not keep,");
                    return Err(SqlError::unsupported(construct));
                }
                format!("SELECT * FROM \"{}\"", name.replace('"', "\"\""))
            }
        };
        if asked.as_of.is_some() {
            return Err(SqlError::unsupported("AS OF in a SUBSCRIBE to a query")
                .with_hint("its rows are kept from now on only: make it a MATERIALIZED VIEW and subscribe to that"));
        }
        let definition =
            ViewDefinition { name: self.subscriptions.name(), sql: query, kind: ViewKind::Materialized, reads: vec![] };
        let (definition, info) = self.keepable(definition).await?;
        let schema = told_schema(&info.schema, asked.progress);
        Ok(Subscribable { asked: asked.clone(), relation: Relation::Query(Box::new(definition)), schema })
    }

    /// Begins it.
    pub(crate) async fn subscribe(&self, subscribable: &Subscribable) -> Result<Subscription, SqlError> {
        let begun = self.begin(subscribable).await;
        if let Err(failed) = &begun {
            metrics::subscription_failed(failed.code);
        }
        begun
    }

    async fn begin(&self, Subscribable { asked, relation, schema }: &Subscribable) -> Result<Subscription, SqlError> {
        let (place, role) = (self.subscriptions.place()?, self.role.subscribe()?);
        let (relation, view, made) = match relation {
            Relation::Standing(name) => (name.clone(), None, 0),
            Relation::Query(definition) => {
                // A prepared statement may be begun more than once.
                let definition = ViewDefinition { name: self.subscriptions.name(), ..definition.as_ref().clone() };
                let (name, view) = (definition.name.clone(), self.subscriptions.keep(&definition.name));
                (name, Some(view), self.keep_view(definition).await?)
            }
        };
        let pulse = self.subscriptions.pulse.subscribe();
        let begin = match asked.as_of {
            Some(tick) => tick,
            None => self.newest().await?.max(made),
        };
        let next = if asked.snapshot { Next::Rows(begin) } else { Next::Behind(begin) };
        let (asked, schema, not_before) = (asked.clone(), Arc::clone(schema), Instant::now());
        let engine = self.clone();
        Ok(Subscription {
            engine,
            relation,
            asked,
            schema,
            pulse,
            next,
            not_before,
            troubled: None,
            _view: view,
            _place: place,
            _role: role,
        })
    }

    /// The newest closed tick; workers that are started anew are waited for.
    pub(crate) async fn newest(&self) -> Result<u64, SqlError> {
        let deadline = Instant::now() + Duration::from_millis(self.limits().away_ms_max);
        loop {
            match self.live().frontier().await.map(|frontier| frontier.closed) {
                Ok(Some(closed)) => return Ok(closed),
                Ok(None) | Err(LiveError::Away) if Instant::now() < deadline => tokio::time::sleep(PULSE_EVERY).await,
                Ok(None) => return Err(LiveError::Failed(Failure::NotReady).into()),
                Err(other) => return Err(other.into()),
            }
        }
    }
}

impl Subscription {
    /// What came next; nothing when `UP TO` is reached. May be dropped at any moment and called again: nothing is lost or told twice.
    pub(crate) async fn next(&mut self) -> Result<Option<Delivery>, SqlError> {
        let next = self.advance().await;
        match &next {
            Ok(Some(delivery)) => metrics::subscription_rows(delivery.batches.iter().map(RecordBatch::num_rows).sum()),
            Ok(None) => {}
            Err(failed) => metrics::subscription_failed(failed.code),
        }
        next
    }

    async fn advance(&mut self) -> Result<Option<Delivery>, SqlError> {
        let last = self.asked.up_to.map_or(u64::MAX, |end| end.saturating_sub(1));
        let (after, from) = match self.next {
            Next::Rows(tick) if tick > last => return Ok(None),
            Next::Rows(tick) => (None, tick),
            Next::Behind(tick) if tick >= last => return Ok(None),
            Next::Behind(tick) => (Some(tick), tick + 1),
        };
        loop {
            let closed = self.closed(from).await?;
            tokio::time::sleep_until(self.not_before).await;
            self.not_before = Instant::now() + ASK_EVERY;
            let upto = if after.is_some() { closed.min(last) } else { from };
            let Some((batches, upto)) = self.ask(after, upto).await? else { continue };
            let told = self.told(&batches, upto).map_err(DataFusionError::from)?;
            self.troubled = None;
            self.next = Next::Behind(upto);
            return Ok(Some(Delivery { batches: told, through: upto }));
        }
    }

    /// Waits until the workers have closed a tick, and says how far they are.
    async fn closed(&mut self, tick: u64) -> Result<u64, SqlError> {
        let away_max = Duration::from_millis(self.engine.limits().away_ms_max).max(PULSE_EVERY * 4);
        loop {
            let Pulse { closed, heard } = *self.pulse.borrow_and_update();
            if let Some(closed) = closed.filter(|closed| *closed >= tick) {
                return Ok(closed);
            }
            let silent = heard.max(self.not_before).elapsed();
            if silent > away_max {
                return Err(self.told_where(LiveError::Away.into()));
            }
            let _ = tokio::time::timeout(away_max.saturating_sub(silent) + PULSE_EVERY, self.pulse.changed()).await;
        }
    }

    /// Asks the workers once; nothing when they are to be asked again.
    async fn ask(&mut self, after: Option<u64>, upto: u64) -> Result<Option<(Vec<RecordBatch>, u64)>, SqlError> {
        let memory = self.engine.limits().memory_bytes_max;
        let (mut upto, mut bytes_max) = (upto, if after.is_some() { ASK_BYTES_MAX.min(memory) } else { memory });
        let why = loop {
            let read = ChangesRead { relation: self.relation.clone(), after, upto, bytes_max };
            match (self.engine.live().changes(read).await, after) {
                (Ok(batches), _) => return Ok(Some((batches, upto))),
                // Fewer ticks, or the one tick whole.
                (Err(LiveError::Failed(Failure::Bytes { .. })), Some(after)) if upto > after + 1 => {
                    upto = after + (upto - after) / 2;
                }
                (Err(LiveError::Failed(Failure::Bytes { .. })), Some(_)) if bytes_max < memory => bytes_max = memory,
                (Err(why), _) => break why,
            }
        };
        let passing = match &why {
            LiveError::Away => true,
            LiveError::Failed(Failure::UnknownRelation(_)) if self.is_gone().await => {
                let message = format!("view \"{}\" was dropped while it was subscribed to", self.relation);
                return Err(self.told_where(SqlError::new(error::UNKNOWN_RELATION, message)));
            }
            // Workers that begin anew come to the view's first tick again.
            LiveError::Failed(failure) => {
                matches!(failure, Failure::NotReady | Failure::Busy(_) | Failure::TimedOut { .. } | Failure::UnknownRelation(_))
            }
            LiveError::Protocol(_) => false,
        };
        let since = *self.troubled.get_or_insert_with(Instant::now);
        if passing && since.elapsed() <= Duration::from_millis(self.engine.limits().away_ms_max) {
            return Ok(None);
        }
        Err(match why {
            LiveError::Failed(Failure::Forgotten { tick, since }) => {
                let message = format!("what changed behind tick {tick} is no longer held: the oldest is behind tick {since}");
                SqlError::new(error::FORGOTTEN, message).with_hint(
                    "subscribe anew with a snapshot; read faster, or raise `changes.kept_ms` and `changes.kept_bytes_max`",
                )
            }
            other => self.told_where(other.into()),
        })
    }

    async fn is_gone(&self) -> bool {
        let Ok(made) = self.engine.made().await else { return false };
        weir_dataflow::relation(&self.relation).is_none() && made.kept.iter().all(|info| info.name != self.relation)
    }

    /// An error that says from where to go on.
    fn told_where(&self, failed: SqlError) -> SqlError {
        let Next::Behind(tick) = self.next else { return failed };
        let so_far = format!("everything through tick {tick} was told: go on WITH (SNAPSHOT = false) AS OF {tick}");
        let hint = failed.hint.as_ref().map_or_else(|| so_far.clone(), |hint| format!("{hint}; {so_far}"));
        failed.with_hint(hint)
    }

    /// The rows in the order of their ticks, and how far it is when that is asked for.
    fn told(&self, batches: &[RecordBatch], through: u64) -> Result<Vec<RecordBatch>, ArrowError> {
        let mut told = Vec::new();
        if let Some(first) = batches.iter().find(|batch| batch.num_rows() > 0) {
            let batches = batches.iter().filter(|batch| batch.num_rows() > 0);
            let rows = concat_batches(&first.schema(), batches)?;
            let by = |column: usize| SortColumn { values: Arc::clone(rows.column(column)), options: None };
            let sorted = take_record_batch(&rows, &lexsort_to_indices(&[by(0), by(1)], None)?)?;
            let mut columns: Vec<ArrayRef> = sorted.columns().to_vec();
            if self.asked.progress {
                columns.insert(1, Arc::new(BooleanArray::from(vec![false; sorted.num_rows()])));
            }
            told.push(RecordBatch::try_new(Arc::clone(&self.schema), columns)?);
        }
        if self.asked.progress {
            let tick = i64::try_from(through).unwrap_or(i64::MAX);
            let mut columns: Vec<ArrayRef> =
                vec![Arc::new(Int64Array::from(vec![tick])), Arc::new(BooleanArray::from(vec![true]))];
            columns.extend(self.schema.fields().iter().skip(2).map(|field| new_null_array(field.data_type(), 1)));
            told.push(RecordBatch::try_new(Arc::clone(&self.schema), columns)?);
        }
        Ok(told)
    }
}

fn told_schema(of: &SchemaRef, progress: bool) -> SchemaRef {
    let number = |name| Arc::new(Field::new(name, DataType::Int64, true));
    let progressed = progress.then(|| Arc::new(Field::new("weir_progressed", DataType::Boolean, true)));
    let fields = std::iter::once(number("weir_tick")).chain(progressed).chain([number("weir_diff")]);
    Arc::new(Schema::new(fields.chain(of.fields().iter().cloned()).collect::<Vec<_>>()))
}

/// Names of views that subscriptions keep; nobody else may use it.
const NAME_PREFIX: &str = "weir_subscription_";
/// How often the workers are asked how far they are, while anybody wants to know.
const PULSE_EVERY: Duration = Duration::from_millis(50);
/// One subscription asks no more often: a row is told within this and a tick.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// Bytes of one delivery, unless one tick has more.
const ASK_BYTES_MAX: u64 = 16 << 20;
/// Views of subscriptions that have ended are looked for so often, and when one ends.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
