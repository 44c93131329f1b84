//! The tables that Weir ships (`dataflow/src/shipped.rs`): a node that does not find them asks for them, as people ask for theirs.

use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info, warn};
use weir_dataflow::{ViewChange, ViewOutcome, shipped};
use weir_query::ViewStore;

/// Asks for them until they are there.
pub(crate) async fn make(store: Arc<dyn ViewStore>) {
    let known = loop {
        match store.definitions() {
            Some(known) => break known,
            // The chain is read first.
            None => tokio::time::sleep(AGAIN_AFTER).await,
        }
    };
    for definition in shipped::shipped_tables() {
        if known.find(&definition.name).is_some() {
            continue;
        }
        let table = definition.name.clone();
        // They do not count against what people may make.
        let change = ViewChange::Create { definition, views_max: u64::MAX };
        loop {
            match store.change(change.clone()).await.map(|changed| changed.outcome) {
                // Another node may have been faster.
                Ok(ViewOutcome::Created(_) | ViewOutcome::Exists(_)) => break info!(table, "a table that is shipped is there"),
                Ok(other) => break error!(table, outcome = ?other, "a table that is shipped cannot be made"),
                Err(why) => {
                    warn!(table, error = %why, "a table that is shipped could not be asked for; trying on");
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        }
    }
}

const AGAIN_AFTER: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use weir_dataflow::Definitions;
    use weir_query::Changed;

    use super::*;

    /// Keeps what is asked for; the first time it fails.
    #[derive(Debug, Default)]
    struct Asked(Mutex<(Definitions, u64)>);

    #[async_trait::async_trait]
    impl ViewStore for Asked {
        fn definitions(&self) -> Option<Definitions> {
            Some(self.0.lock().unwrap().0.clone())
        }

        async fn change(&self, change: ViewChange) -> Result<Changed, String> {
            let (definitions, tick) = &mut *self.0.lock().unwrap();
            *tick += 1;
            if *tick == 1 {
                Err("nobody is there".into())
            } else {
                Ok(Changed { tick: *tick, outcome: definitions.change(&change) })
            }
        }
    }

    #[tokio::test]
    async fn they_are_asked_for_until_they_are_there_and_never_twice() {
        let store = Arc::new(Asked::default());
        make(store.clone()).await;
        let asked = store.0.lock().unwrap().1;
        assert_eq!(asked as usize, shipped::shipped_tables().len() + 1);
        make(store.clone()).await;
        assert_eq!(store.0.lock().unwrap().1, asked);
        assert!(store.definitions().unwrap().find(shipped::EXCEPTIONS).is_some());
    }
}
