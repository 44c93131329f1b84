//! A chain in memory: orders what the SQL port asks for, and gives it to the workers of this process a tick at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use weir_dataflow::{
    Command, Definitions, Feed, FeedStep, TableRows, TableWrite, Tick, ViewChange, ViewKind, ViewOutcome, ViewSettings,
};
use weir_query::{Changed, ViewStore};

/// When the first tick is; what follows is 100 ms apart.
const START_MS: u64 = 1_800_000_000_000;
const TICK_MS: u64 = 100;

const SETTINGS: ViewSettings = crate::world::SETTINGS;

/// All that was ordered, as every worker sees it.
#[derive(Debug, Default)]
struct Ordered {
    /// The commands of each tick.
    ticks: Vec<Vec<Command>>,
    definitions: Definitions,
    /// When each table was made, and when it changed last.
    tables: HashMap<String, (u64, u64)>,
}

/// The chain.
#[derive(Debug, Clone)]
pub(crate) struct Chain(Arc<Mutex<Ordered>>);

impl Chain {
    /// With one tick, that of the settings.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Ordered { ticks: vec![vec![Command::Configure(SETTINGS)]], ..Ordered::default() })))
    }

    /// What a worker follows.
    pub(crate) fn feed(&self) -> Box<dyn Feed> {
        Box::new(Follower { chain: self.clone(), given: 0 })
    }
}

struct Follower {
    chain: Chain,
    given: usize,
}

fn tick(place: usize) -> u64 {
    START_MS + TICK_MS * place as u64
}

impl Feed for Follower {
    fn poll(&mut self) -> FeedStep {
        let ordered = self.chain.0.lock().unwrap();
        let Some(commands) = ordered.ticks.get(self.given) else { return FeedStep::Idle };
        self.given += 1;
        FeedStep::Tick(Tick { tick: tick(self.given - 1), commands: commands.clone(), frames: vec![] })
    }
}

impl Ordered {
    fn write(&mut self, at: u64, write: &TableWrite) -> ViewOutcome {
        let Some((made, changed)) = self.tables.get_mut(&write.table) else { return ViewOutcome::Missing(write.table.clone()) };
        let last = if write.follows_rows { *changed } else { *made };
        if last > write.read_at && !matches!(write.rows, TableRows::Cleared) {
            return ViewOutcome::Stale(last);
        }
        *changed = at;
        ViewOutcome::Written
    }
}

#[async_trait::async_trait]
impl ViewStore for Chain {
    fn definitions(&self) -> Option<Definitions> {
        Some(self.0.lock().unwrap().definitions.clone())
    }

    async fn change(&self, change: ViewChange) -> Result<Changed, String> {
        let mut ordered = self.0.lock().unwrap();
        let at = tick(ordered.ticks.len());
        let outcome = match &change {
            ViewChange::Write(write) => ordered.write(at, write),
            other => ordered.definitions.change(other),
        };
        let command = match (&outcome, change) {
            (ViewOutcome::Written, ViewChange::Write(write)) => Some(Command::WriteTable(write)),
            (ViewOutcome::Created(definition), _) => {
                if definition.kind == ViewKind::Table {
                    ordered.tables.insert(definition.name.clone(), (at, at));
                }
                Some(Command::CreateView(definition.clone()))
            }
            (ViewOutcome::Dropped(names), _) if !names.is_empty() => Some(Command::DropViews(names.clone())),
            _ => None,
        };
        ordered.ticks.push(command.into_iter().collect());
        Ok(Changed { tick: at, outcome })
    }
}
