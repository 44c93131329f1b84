//! The views and tables that people make: how queries see them, and the statements that change them.
//!
//! A statement is checked here against what there is, planned as the workers will plan it, and then asked for: where the views are written
//! down, and by whom, is the node's business ([`ViewStore`]). When it is done it is waited for until the workers have come to its tick.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::{DFParser, Statement as Parsed};
use datafusion::sql::sqlparser::ast::{CreateTableOptions, CreateView, ObjectName, Statement as Ast};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use weir_dataflow::{Definitions, Known, RelationInfo, ViewChange, ViewDefinition, ViewKind, ViewOutcome};

use crate::error::{self, SqlError};
use crate::session::Engine;
use crate::statement::Asked;

/// Where views are written down, so that all nodes know them.
#[async_trait]
pub trait ViewStore: std::fmt::Debug + Send + Sync {
    /// The views there are; none while that is not known yet.
    fn definitions(&self) -> Option<Definitions>;

    /// Has the views changed, and says what became of it once it is written down.
    async fn change(&self, change: ViewChange) -> Result<Changed, String>;
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// At which tick.
    pub tick: u64,
    /// What.
    pub outcome: ViewOutcome,
}

/// The views there are, planned.
#[derive(Debug, Clone, Default)]
pub(crate) struct Made {
    definitions: Definitions,
    /// What a kept view may read.
    known: Known,
    /// Those whose rows are kept.
    pub(crate) kept: Vec<RelationInfo>,
    /// Those that are names for a plan.
    pub(crate) named: Vec<(RelationInfo, LogicalPlan)>,
}

impl Made {
    /// Every view, as a relation.
    pub(crate) fn infos(&self) -> impl Iterator<Item = &RelationInfo> {
        self.kept.iter().chain(self.named.iter().map(|(info, _)| info))
    }

    /// The statement that makes a table; none: there is no table of this name.
    pub(crate) fn table_sql(&self, name: &str) -> Option<&str> {
        self.definitions.find(name).filter(|found| found.kind == ViewKind::Table).map(|found| found.sql.as_str())
    }

    /// The sequence rules.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &ViewDefinition> {
        crate::rules::rules_of(&self.definitions)
    }

    /// How many plain views are put into each other below what reads these. What a view reads comes before it.
    fn depth_of(&self, reads: &[String]) -> usize {
        let mut depths = BTreeMap::new();
        let deepest = |depths: &BTreeMap<&str, usize>, reads: &[String]| {
            reads.iter().filter_map(|name| depths.get(name.as_str())).max().copied().unwrap_or(0)
        };
        for view in self.definitions.all().iter().filter(|view| view.kind == ViewKind::Plain) {
            let depth = deepest(&depths, &view.reads) + 1;
            depths.insert(view.name.as_str(), depth);
        }
        deepest(&depths, reads)
    }
}

/// Where the views are, and how they were planned last.
#[derive(Debug, Clone, Default)]
pub(crate) struct ViewsOf {
    pub(crate) store: Option<Arc<dyn ViewStore>>,
    planned: Arc<Mutex<Arc<Made>>>,
}

impl ViewsOf {
    pub(crate) fn new(store: Option<Arc<dyn ViewStore>>) -> Self {
        Self { store, planned: Arc::default() }
    }

    fn last(&self) -> Arc<Made> {
        Arc::clone(&self.planned.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// DROP [MATERIALIZED] VIEW, DROP TABLE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dropping {
    pub(crate) what: Dropped,
    pub(crate) names: Vec<String>,
    pub(crate) cascade: bool,
    pub(crate) if_exists: bool,
}

/// What is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    View,
    Table,
    Rule,
}

impl Dropped {
    fn of(kind: ViewKind) -> Self {
        match kind {
            ViewKind::Plain | ViewKind::Materialized => Self::View,
            ViewKind::Table => Self::Table,
            ViewKind::Sequence => Self::Rule,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Table => "table",
            Self::Rule => "rule",
        }
    }

    /// The command tag.
    pub(crate) fn tag(self) -> &'static str {
        match self {
            Self::View => "DROP VIEW",
            Self::Table => "DROP TABLE",
            Self::Rule => "DROP RULE",
        }
    }
}

impl Engine {
    /// The views there are now.
    pub(crate) async fn made(&self) -> Result<Arc<Made>, SqlError> {
        let last = self.views.last();
        let Some(definitions) = self.views.store.as_ref().and_then(|store| store.definitions()) else { return Ok(last) };
        if definitions == last.definitions {
            return Ok(last);
        }
        let mut made = Made::default();
        for definition in definitions.all() {
            // One that cannot be planned is not there for queries; the workers have said why.
            if let Err(why) = self.plan_view(&mut made, definition).await {
                tracing::error!(view = definition.name, %why, "a view cannot be planned");
            }
        }
        made.definitions = definitions;
        let made = Arc::new(made);
        *self.views.planned.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&made);
        Ok(made)
    }

    async fn plan_view(&self, made: &mut Made, definition: &ViewDefinition) -> Result<(), SqlError> {
        if definition.kind == ViewKind::Table {
            made.kept.push(made.known.add_table(definition).map_err(told)?);
            return Ok(());
        }
        if definition.kind == ViewKind::Sequence {
            made.kept.push(made.known.add_rule(definition).map_err(told)?.1);
            return Ok(());
        }
        if let Some((_, info)) = made.known.add(definition).map_err(told)? {
            made.kept.push(info);
            return Ok(());
        }
        let plan = self.planned_over(made, &query(&definition.sql)?).await?;
        let schema = Arc::clone(plan.schema().inner());
        let sql = Some(definition.statement().into());
        made.named.push((RelationInfo { name: definition.name.clone().into(), schema, standing: false, sql }, plan));
        Ok(())
    }

    /// Waits until it is known which views there are: a node that has just started reads the chain first.
    pub(crate) async fn views_known(&self) -> Result<(), SqlError> {
        let Some(store) = &self.views.store else { return Ok(()) };
        let deadline = Instant::now() + Duration::from_millis(self.limits().away_ms_max);
        while store.definitions().is_none() {
            if Instant::now() >= deadline {
                return Err(SqlError::new(
                    error::NOT_READY,
                    "it is not known yet which views there are: this node has just started",
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// CREATE [MATERIALIZED] VIEW. What is returned is to be told beside the result.
    pub(crate) async fn create_view(&self, view: &CreateView) -> Result<Option<String>, SqlError> {
        let store = self.view_store()?;
        self.views_known().await?;
        refuse_options(view)?;
        let name = name_of(&view.name)?;
        if crate::subscription::is_of_subscription(&name) {
            return Err(SqlError::new(error::BAD_NAME, format!("\"{name}\": names of this kind are those of subscriptions")));
        }
        let sql = view.query.to_string();
        let sql_bytes_max = self.limits().view_sql_bytes_max;
        if sql.len() as u64 > sql_bytes_max {
            let message = format!("the SELECT of view \"{name}\" has {} bytes, {sql_bytes_max} are allowed", sql.len());
            return Err(SqlError::new(error::LIMIT, message).with_hint("raise `query.view_sql_bytes_max`"));
        }
        let made = self.made().await?;
        if self.is_taken(&name, &made) {
            return exists(&name, view.if_not_exists);
        }
        let asked = query(&sql)?;
        let plan = self.planned_over(&made, &asked).await?;
        if !plan.get_parameter_names()?.is_empty() {
            return Err(SqlError::unsupported("a parameter in a view"));
        }
        let kind = if view.materialized { ViewKind::Materialized } else { ViewKind::Plain };
        let reads = self.names_in(&asked)?;
        let definition = ViewDefinition { name: name.clone(), sql, kind, reads };
        self.check(&definition, &plan, &made).await?;
        let change = ViewChange::Create { definition, views_max: self.limits().views_max };
        let changed = store.change(change).await.map_err(|why| not_changed(&why))?;
        match changed.outcome {
            ViewOutcome::Created(_) if kind == ViewKind::Plain => Ok(None),
            ViewOutcome::Created(_) => Ok(self.reached(changed.tick).await),
            ViewOutcome::Exists(name) => exists(&name, view.if_not_exists),
            other => Err(refused(&other)),
        }
    }

    /// Whether a subscription's query can be kept as this view, and how that would be seen.
    pub(crate) async fn keepable(&self, definition: ViewDefinition) -> Result<(ViewDefinition, RelationInfo), SqlError> {
        self.view_store()?;
        let made = self.made().await?;
        let asked = query(&definition.sql)?;
        let plan = self.planned_over(&made, &asked).await?;
        if !plan.get_parameter_names()?.is_empty() {
            return Err(SqlError::unsupported("a parameter in a SUBSCRIBE"));
        }
        let definition = ViewDefinition { reads: self.names_in(&asked)?, ..definition };
        self.check(&definition, &plan, &made).await?;
        match made.known.clone().add(&definition).map_err(told)? {
            Some((_, info)) => Ok((definition, info)),
            None => Err(SqlError::new(error::INTERNAL, "a subscription keeps its view")),
        }
    }

    /// Has a subscription's view made. What is returned is its first tick, which this node's workers have come to.
    pub(crate) async fn keep_view(&self, definition: ViewDefinition) -> Result<u64, SqlError> {
        let change = ViewChange::Create { definition, views_max: self.limits().views_max };
        let changed = self.view_store()?.change(change).await.map_err(|why| not_changed(&why))?;
        match changed.outcome {
            ViewOutcome::Created(_) => match self.reached(changed.tick).await {
                None => Ok(changed.tick),
                Some(late) => Err(SqlError::new(error::TIMED_OUT, late)),
            },
            other => Err(refused(&other)),
        }
    }

    /// DROP [MATERIALIZED] VIEW, DROP TABLE.
    pub(crate) async fn drop_views(&self, dropping: &Dropping) -> Result<Option<String>, SqlError> {
        let store = self.view_store()?;
        self.views_known().await?;
        let made = self.made().await?;
        let word = dropping.what.word();
        for name in &dropping.names {
            let found = made.definitions.find(name).map(|found| Dropped::of(found.kind));
            if let Some(other) = found.filter(|found| *found != dropping.what) {
                let other = other.word().to_uppercase();
                return Err(SqlError::new(error::WRONG_OBJECT, format!("\"{name}\" is not a {word}"))
                    .with_hint(format!("use DROP {other}")));
            }
            let is_ours = made.definitions.find(name).is_none() && self.is_taken(name, &made);
            if is_ours || weir_dataflow::shipped::is_shipped(name) {
                return Err(SqlError::unsupported(format!("DROP of \"{name}\", which Weir itself keeps,")));
            }
        }
        let Dropping { names, cascade, if_exists, .. } = dropping.clone();
        let missing: Vec<_> = names.iter().filter(|name| made.definitions.find(name).is_none()).cloned().collect();
        let changed = store.change(ViewChange::Drop { names, cascade, if_exists }).await.map_err(|why| not_changed(&why))?;
        match changed.outcome {
            ViewOutcome::Dropped(_) if missing.is_empty() => Ok(None),
            ViewOutcome::Dropped(_) => Ok(Some(format!("{word} \"{}\" does not exist, skipping", missing.join("\", \"")))),
            ViewOutcome::Missing(name) => {
                Err(SqlError::new(error::UNKNOWN_RELATION, format!("{word} \"{name}\" does not exist")))
            }
            ViewOutcome::Needed { name, by } => {
                let message = format!("cannot drop {word} \"{name}\" because view \"{by}\" depends on it");
                Err(SqlError::new(error::DEPENDENTS, message).with_hint("use DROP … CASCADE to drop the dependent views too"))
            }
            other => Err(refused(&other)),
        }
    }

    /// The relations of ours that a query names.
    pub(crate) fn names_in(&self, Asked { parsed, .. }: &Asked) -> Result<Vec<String>, SqlError> {
        let mut names = Vec::new();
        for name in self.state.resolve_table_references(parsed)? {
            let ours = name.schema().is_none_or(|schema| schema == crate::tables::SCHEMA);
            let inside = name.schema().is_some_and(|schema| crate::catalog::is_table(schema, name.table()));
            let tree = crate::inventory::is_function(name.table()) && self.inventory.is_some();
            if inside || (ours && tree) {
                continue;
            }
            if !ours {
                return Err(SqlError::unknown_relation(name));
            }
            names.push(name.table().to_owned());
        }
        Ok(names)
    }

    pub(crate) fn view_store(&self) -> Result<&Arc<dyn ViewStore>, SqlError> {
        self.views.store.as_ref().ok_or_else(|| SqlError::unsupported("a change of views or tables on a server without a chain"))
    }

    /// Whether the workers can keep it, or queries expand it.
    async fn check(&self, definition: &ViewDefinition, plan: &LogicalPlan, made: &Made) -> Result<(), SqlError> {
        let mut columns = BTreeSet::new();
        if let Some(twice) = plan.schema().fields().iter().find(|field| !columns.insert(field.name())) {
            let message = format!("column \"{}\" specified more than once", twice.name());
            return Err(SqlError::new(error::DUPLICATE_COLUMN, message));
        }
        if made.depth_of(&definition.reads) >= DEPTH_MAX {
            let message =
                format!("view \"{}\" stands on more than {DEPTH_MAX} views that are put into each other", definition.name);
            return Err(SqlError::new(error::LIMIT, message).with_hint("make a view that it reads MATERIALIZED"));
        }
        let mut nodes = 0;
        plan.apply_with_subqueries(|_| {
            nodes += 1;
            Ok(if nodes > NODES_MAX { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })?;
        if nodes > NODES_MAX {
            let message = format!("view \"{}\" is a plan of more than {NODES_MAX} steps", definition.name);
            return Err(SqlError::new(error::LIMIT, message).with_hint("make a view that it reads MATERIALIZED"));
        }
        match made.known.clone().add(definition) {
            Ok(_) => Ok(()),
            Err(weir_plan::Error::NoRelation(name)) if self.is_taken(&name, made) => {
                let construct = format!("a materialized view over \"{name}\", whose rows the workers do not keep,");
                Err(SqlError::unsupported(construct).with_hint("leave MATERIALIZED out: the view is then read from the record"))
            }
            Err(other) => {
                let told = told(other);
                // Queries know the function, or the SELECT would have been refused before.
                let code = if told.code == error::UNKNOWN_FUNCTION { error::UNSUPPORTED } else { told.code };
                Err(SqlError { code, ..told })
            }
        }
    }

    pub(crate) fn is_taken(&self, name: &str, made: &Made) -> bool {
        self.relations(made).any(|info| info.name == name) || crate::inventory::needs_record(name)
    }

    /// Waits until this node's workers have closed a tick. What is returned is to be told.
    pub(crate) async fn reached(&self, tick: u64) -> Option<String> {
        let deadline = Instant::now() + Duration::from_millis(self.limits().time_ms_max);
        loop {
            let closed = self.live().frontier().await.ok().and_then(|frontier| frontier.closed);
            if closed.is_some_and(|closed| closed >= tick) {
                return None;
            }
            if Instant::now() >= deadline {
                return Some(format!("it is done as of tick {tick}, which the workers have not come to yet"));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A SELECT, to be planned.
fn query(sql: &str) -> Result<Asked, SqlError> {
    let parsed = DFParser::parse_sql_with_dialect(sql, &PostgreSqlDialect {})?.pop_front();
    match parsed {
        Some(parsed @ Parsed::Statement(_)) => Ok(Asked { parsed, as_of: None }),
        _ => Err(SqlError::new(error::SYNTAX, "a view is one SELECT")),
    }
}

fn refuse_options(view: &CreateView) -> Result<(), SqlError> {
    for (given, construct) in [
        (view.or_replace || view.or_alter, "CREATE OR REPLACE VIEW"),
        (view.temporary, "CREATE TEMPORARY VIEW"),
        (!view.columns.is_empty(), "a list of columns in CREATE VIEW (name them in the SELECT)"),
        (!matches!(view.options, CreateTableOptions::None), "WITH in CREATE VIEW"),
        (view.secure || view.to.is_some() || view.params.is_some(), "this form of CREATE VIEW"),
        (view.with_no_schema_binding || view.comment.is_some() || !view.cluster_by.is_empty(), "this form of CREATE VIEW"),
    ] {
        if given {
            return Err(SqlError::unsupported(construct));
        }
    }
    Ok(())
}

/// The name of a view: in lower case unless it is quoted.
pub(crate) fn name_of(name: &ObjectName) -> Result<String, SqlError> {
    let part = |place: usize| {
        let ident = name.0.get(place)?.as_ident()?;
        Some(if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() })
    };
    let found = match name.0.len() {
        1 => part(0),
        2 if part(0).is_some_and(|schema| schema == crate::tables::SCHEMA) => part(1),
        _ => {
            return Err(SqlError::new(
                error::UNKNOWN_SCHEMA,
                format!("schema of \"{name}\" does not exist: views and tables are in public"),
            ));
        }
    };
    let good = |name: &String| !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control);
    found.filter(good).ok_or_else(|| {
        SqlError::new(error::BAD_NAME, format!("\"{name}\" is no name of a view or table: 1 to {NAME_BYTES_MAX} bytes of text"))
    })
}

pub(crate) fn exists(name: &str, if_not_exists: bool) -> Result<Option<String>, SqlError> {
    let message = format!("relation \"{name}\" already exists");
    match if_not_exists {
        true => Ok(Some(format!("{message}, skipping"))),
        false => Err(SqlError::new(error::RELATION_EXISTS, message)),
    }
}

pub(crate) fn refused(outcome: &ViewOutcome) -> SqlError {
    match outcome {
        ViewOutcome::Exists(name) => SqlError::new(error::RELATION_EXISTS, format!("relation \"{name}\" already exists")),
        ViewOutcome::Missing(name) => SqlError::new(error::UNKNOWN_RELATION, format!("view \"{name}\" does not exist")),
        ViewOutcome::TooMany(views_max) => SqlError::new(error::LIMIT, format!("there are {views_max} views already"))
            .with_hint("drop one, or raise `query.views_max`"),
        ViewOutcome::Created(_)
        | ViewOutcome::Dropped(_)
        | ViewOutcome::Needed { .. }
        | ViewOutcome::Written
        | ViewOutcome::Stale(_)
        | ViewOutcome::Full(_) => SqlError::new(error::INTERNAL, "a change was done that was not asked for"),
    }
}

pub(crate) fn not_changed(why: &str) -> SqlError {
    SqlError::new(error::NOT_READY, format!("the change of views could not be written down: {why}"))
        .with_hint("SHOW VIEWS tells what there is; try again")
}

/// A plan that is refused, as SQL tells it.
pub(crate) fn told(error: weir_plan::Error) -> SqlError {
    match error {
        weir_plan::Error::NoRelation(name) => SqlError::unknown_relation(name),
        weir_plan::Error::Unsupported { .. } => SqlError::new(error::UNSUPPORTED, error.to_string()),
        weir_plan::Error::Type { .. } => SqlError::new(error::WRONG_TYPE, error.to_string()),
        weir_plan::Error::Sql(source) | weir_plan::Error::Expression { source, .. } => (*source).into(),
    }
}

/// Whether a statement is one of those that this file answers.
pub(crate) fn dropping(ast: &Ast) -> Option<Result<Dropping, SqlError>> {
    use datafusion::sql::sqlparser::ast::ObjectType;
    let Ast::Drop { object_type, if_exists, names, cascade, .. } = ast else { return None };
    let what = match object_type {
        ObjectType::View | ObjectType::MaterializedView => Dropped::View,
        ObjectType::Table => Dropped::Table,
        _ => return None,
    };
    let names = names.iter().map(name_of).collect::<Result<Vec<_>, _>>();
    Some(names.map(|names| Dropping { what, names, cascade: *cascade, if_exists: *if_exists }))
}

/// As PostgreSQL's.
const NAME_BYTES_MAX: usize = 63;
/// Views that are put into each other twice and twice again grow without bound.
const NODES_MAX: usize = 10_000;
/// Planning goes as deep as views are put into each other.
const DEPTH_MAX: usize = 6;
const PAUSE: Duration = Duration::from_millis(20);
