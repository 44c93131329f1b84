//! The views and tables that people make: asked for through the store that all nodes share, ordered by the chain, known to every reader of it.
//!
//! ```text
//! wanted/views/<id>   version u8 | postcard of ViewRequest; the holder chains it and removes it
//! ```
//!
//! Whether a change is done or refused follows from the records before it, so every node finds the same without asking. Promise: a request is done
//! once, however often it is found: its id is remembered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use weir_archive::Store;
use weir_dataflow::{Command as EngineCommand, Definitions, ViewChange, ViewOutcome};
use weir_query::{Changed, ViewStore};

use crate::error::Error;
use crate::log::nonce;
use crate::requests;
use crate::tables::Tables;

/// A change of the views that somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewRequest {
    /// Random: tells it from every other.
    pub id: u128,
    /// What shall change.
    pub change: ViewChange,
}

impl ViewRequest {
    /// About so much of the chain it takes.
    pub(crate) fn bytes(&self) -> usize {
        match &self.change {
            ViewChange::Create { definition, .. } | ViewChange::Replace { definition, .. } => definition.sql.len(),
            ViewChange::Drop { names, .. } => names.iter().map(String::len).sum(),
            ViewChange::Write(write) => write.rows.bytes(),
        }
    }
}

/// The views as of a place in the chain, and what became of the last requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Views {
    definitions: Definitions,
    outcomes: VecDeque<(u128, u64, ViewOutcome)>,
}

impl Views {
    /// The views there are.
    pub fn definitions(&self) -> &Definitions {
        &self.definitions
    }

    /// Takes up the next request of the chain.
    pub(crate) fn apply(&mut self, tick: u64, request: &ViewRequest, tables: &mut Tables) {
        if self.outcome(request.id).is_some() {
            return;
        }
        let outcome = match &request.change {
            ViewChange::Write(write) => tables.write(tick, write),
            change => self.definitions.change(change),
        };
        tables.note(tick, &outcome);
        self.outcomes.push_back((request.id, tick, outcome));
        while self.outcomes.len() > OUTCOMES_MAX {
            self.outcomes.pop_front();
        }
    }

    /// What became of a request, and at which tick; none: the chain does not know it.
    pub fn outcome(&self, id: u128) -> Option<(u64, &ViewOutcome)> {
        self.outcomes.iter().rev().find(|(known, ..)| *known == id).map(|(_, tick, outcome)| (*tick, outcome))
    }

    /// What the workers do for a request of this tick's record, once it was applied.
    pub(crate) fn engine(&self, tick: u64, ViewRequest { id, change }: ViewRequest) -> Option<EngineCommand> {
        match self.outcome(id)? {
            (at, ViewOutcome::Written) if at == tick => match change {
                ViewChange::Write(write) => Some(EngineCommand::WriteTable(write)),
                _ => None,
            },
            (at, ViewOutcome::Created(definition)) if at == tick => Some(EngineCommand::CreateView(definition.clone())),
            (at, ViewOutcome::Dropped(names)) if at == tick && !names.is_empty() => Some(EngineCommand::DropViews(names.clone())),
            _ => None,
        }
    }
}

/// What is asked for and not yet removed.
pub(crate) async fn requests(store: &Store) -> Result<Vec<ViewRequest>, Error> {
    requests::read(store, WANTED, VERSION, REQUESTS_PER_LOOK).await
}

/// Removes a request that the chain has.
pub(crate) async fn settle(store: &Store, id: u128) -> Result<(), Error> {
    requests::settle(store, WANTED, id).await
}

/// What the SQL port of this node knows of views, and how it has them changed.
#[derive(Debug)]
pub(crate) struct ClusterViews {
    /// Where requests go.
    pub(crate) store: Store,
    /// What the chain says; none: it was not read yet.
    pub(crate) views: watch::Receiver<Option<Views>>,
}

#[async_trait::async_trait]
impl ViewStore for ClusterViews {
    fn definitions(&self) -> Option<Definitions> {
        self.views.borrow().as_ref().map(|views| views.definitions.clone())
    }

    async fn change(&self, change: ViewChange) -> Result<Changed, String> {
        let request = ViewRequest { id: nonce(), change };
        let bytes = postcard::to_extend(&request, vec![VERSION]).expect("names and text always serialise");
        self.store.write(&requests::place(WANTED, request.id), bytes).await.map_err(|failed| failed.to_string())?;
        let mut views = self.views.clone();
        let chained = async {
            let views =
                views.wait_for(|views| views.as_ref().is_some_and(|views| views.outcome(request.id).is_some())).await.ok()?;
            let (tick, outcome) = views.as_ref()?.outcome(request.id)?;
            Some(Changed { tick, outcome: outcome.clone() })
        };
        if let Ok(changed) = tokio::time::timeout(CHAINED_WITHIN, chained).await {
            return changed.ok_or_else(|| "this node stops".to_owned());
        }
        // Taken back: who was not answered should not find it done much later. It may be on its way into the chain all the same.
        match settle(&self.store, request.id).await {
            Ok(()) => Err("nobody wrote it into the chain in time: it was taken back".to_owned()),
            Err(failed) => Err(format!("nobody wrote it into the chain in time, and it could not be taken back: {failed}")),
        }
    }
}

impl ClusterViews {
    /// Shared with the SQL port.
    pub(crate) fn shared(store: Store, views: watch::Receiver<Option<Views>>) -> Arc<dyn ViewStore> {
        Arc::new(Self { store, views })
    }
}

const WANTED: &str = "wanted/views";
const VERSION: u8 = 1;
/// Requests whose outcome is remembered: many more than are ever under way.
const OUTCOMES_MAX: usize = 1_024;
/// The rest is found at the next look.
const REQUESTS_PER_LOOK: usize = 64;
/// A new holder is found within seconds.
const CHAINED_WITHIN: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use weir_dataflow::{ViewDefinition, ViewKind};

    use super::*;

    fn request(id: u128, name: &str) -> ViewRequest {
        let reads = vec!["hosts".to_owned()];
        let sql = "SELECT host FROM hosts".to_owned();
        let definition = ViewDefinition { name: name.to_owned(), sql, kind: ViewKind::Materialized, reads };
        ViewRequest { id, change: ViewChange::Create { definition, views_max: 10 } }
    }

    #[test]
    fn a_request_is_done_once() {
        let mut views = Views::default();
        views.apply(5, &request(1, "v"), &mut Tables::default());
        views.apply(6, &request(1, "v"), &mut Tables::default());
        views.apply(7, &request(2, "v"), &mut Tables::default());
        assert!(matches!(views.outcome(1), Some((5, ViewOutcome::Created(_)))));
        assert_eq!(views.outcome(2), Some((7, &ViewOutcome::Exists("v".to_owned()))));
        assert!(matches!(views.engine(5, request(1, "v")), Some(EngineCommand::CreateView(_))));
        assert_eq!((views.engine(6, request(1, "v")), views.engine(7, request(2, "v"))), (None, None));
        let read_back: Views = postcard::from_bytes(&postcard::to_stdvec(&views).unwrap()).unwrap();
        assert_eq!(read_back, views);
    }

    #[tokio::test]
    async fn what_is_asked_for_is_found_until_it_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(requests(&store).await.unwrap(), []);
        let (tell, views) = watch::channel(Some(Views::default()));
        let cluster = ClusterViews { store: store.clone(), views };
        let asked = tokio::spawn(async move { cluster.change(request(0, "v").change).await });
        let found = loop {
            if let Some(found) = requests(&store).await.unwrap().pop() {
                break found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        tell.send_modify(|views| views.get_or_insert_default().apply(9, &found, &mut Tables::default()));
        let changed = asked.await.unwrap().unwrap();
        assert!(matches!(changed, Changed { tick: 9, outcome: ViewOutcome::Created(_) }));
        settle(&store, found.id).await.unwrap();
        assert_eq!(requests(&store).await.unwrap(), []);
        std::fs::create_dir_all(dir.path().join("wanted/views")).unwrap();
        std::fs::write(dir.path().join("wanted/views/strange"), [9, 9]).unwrap();
        assert_eq!(requests(&store).await.unwrap(), []);
    }
}
