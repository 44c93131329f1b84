//! The sinks of alerts that people make: asked for through the store that all nodes share, ordered by the chain, known to every reader of it.
//!
//! ```text
//! wanted/sinks/<id>   version u8 | postcard of SinkRequest; the holder chains it and removes it
//! ```
//!
//! As with views, whether a change is done follows from the records before it, and a request is done once. No worker is told: sinks change no answer.
//! They stand in the chain so that whichever node sends knows them. A sink of a node's config goes before one of the same name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::error;
use weir_alert::Sinks;
use weir_archive::Store;
use weir_config::{AlertsConfig, NodeConfig, SinkConfig, SinkDefinition};
use weir_query::{KnownSink, SinkChange, SinkOutcome, SinkStatus, SinkStore};

use crate::alerts::AlertObjects;
use crate::error::Error;
use crate::log::nonce;
use crate::node::cluster_store;
use crate::requests;

/// A change of the sinks that somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkRequest {
    /// Random: tells it from every other.
    pub id: u128,
    /// What shall change.
    pub change: SinkChange,
}

/// The sinks of statements as of a place in the chain, and what became of the last requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainedSinks {
    definitions: Vec<SinkDefinition>,
    /// Names of the last that were dropped, the newest last: whoever sends forgets what it kept for them.
    dropped: VecDeque<String>,
    outcomes: VecDeque<(u128, SinkOutcome)>,
}

impl ChainedSinks {
    /// The sinks there are, in the order in which they were made.
    pub fn definitions(&self) -> &[SinkDefinition] {
        &self.definitions
    }

    /// Takes up the next request of the chain.
    pub(crate) fn apply(&mut self, request: &SinkRequest) {
        if self.outcome(request.id).is_some() {
            return;
        }
        let outcome = self.change(&request.change);
        self.outcomes.push_back((request.id, outcome));
        while self.outcomes.len() > OUTCOMES_MAX {
            self.outcomes.pop_front();
        }
    }

    /// What became of a request; none: the chain does not know it.
    pub fn outcome(&self, id: u128) -> Option<&SinkOutcome> {
        self.outcomes.iter().rev().find(|(known, _)| *known == id).map(|(_, outcome)| outcome)
    }

    fn change(&mut self, change: &SinkChange) -> SinkOutcome {
        match change {
            SinkChange::Create(definition, _) if self.has(&definition.name) => SinkOutcome::Exists(definition.name.clone()),
            SinkChange::Create(_, max) if self.definitions.len() as u64 >= *max => SinkOutcome::TooMany(*max),
            SinkChange::Create(definition, _) => {
                self.dropped.retain(|name| *name != definition.name);
                self.definitions.push(definition.clone());
                SinkOutcome::Done
            }
            SinkChange::Drop(names, if_exists) => {
                if let Some(missing) = names.iter().find(|name| !*if_exists && !self.has(name)) {
                    return SinkOutcome::Missing(missing.clone());
                }
                for name in names.iter().filter(|name| self.has(name)).cloned().collect::<BTreeSet<_>>() {
                    self.definitions.retain(|definition| definition.name != name);
                    self.dropped.push_back(name);
                }
                while self.dropped.len() > DROPPED_MAX {
                    self.dropped.pop_front();
                }
                SinkOutcome::Done
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        self.definitions.iter().any(|definition| definition.name == name)
    }
}

/// What is asked for and not yet removed.
pub(crate) async fn requests(store: &Store) -> Result<Vec<SinkRequest>, Error> {
    requests::read(store, WANTED, VERSION, REQUESTS_PER_LOOK).await
}

/// Removes a request that the chain has.
pub(crate) async fn settle(store: &Store, id: u128) -> Result<(), Error> {
    requests::settle(store, WANTED, id).await
}

/// What the SQL port of this node knows of sinks, and how it has them changed.
pub(crate) struct ClusterSinks {
    /// Where requests go.
    store: Store,
    /// Where whoever sends tells how the sinks are.
    objects: AlertObjects,
    /// Those of the config.
    config: Vec<SinkConfig>,
    /// This node's name.
    node: String,
    /// What the chain says; none: it was not read yet.
    chained: watch::Receiver<Option<ChainedSinks>>,
}

impl std::fmt::Debug for ClusterSinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClusterSinks({})", self.node)
    }
}

impl ClusterSinks {
    pub(crate) fn new(config: &NodeConfig, chained: watch::Receiver<Option<ChainedSinks>>) -> Result<Self, Error> {
        let (store, objects) = (cluster_store(config)?, AlertObjects::open(config)?);
        Ok(Self { store, objects, config: config.alerts.sinks.clone(), node: config.id.clone(), chained })
    }
}

#[async_trait::async_trait]
impl SinkStore for ClusterSinks {
    fn sinks(&self) -> Option<Vec<KnownSink>> {
        let chained = self.chained.borrow();
        let made = chained.as_ref()?.definitions().iter().filter_map(|definition| {
            let config = usable(definition, &self.config).ok()?;
            Some(KnownSink { config, definition: Some(definition.clone()) })
        });
        let config = self.config.iter().map(|config| KnownSink { config: config.clone(), definition: None });
        Some(config.chain(made).collect())
    }

    async fn change(&self, change: SinkChange) -> Result<SinkOutcome, String> {
        let request = SinkRequest { id: nonce(), change };
        let bytes = postcard::to_extend(&request, vec![VERSION]).expect("names and text always serialise");
        self.store.write(&requests::place(WANTED, request.id), bytes).await.map_err(|failed| failed.to_string())?;
        let mut chained = self.chained.clone();
        let done = async {
            let is_done = |sinks: &Option<ChainedSinks>| sinks.as_ref().is_some_and(|sinks| sinks.outcome(request.id).is_some());
            chained.wait_for(is_done).await.ok()?.as_ref()?.outcome(request.id).cloned()
        };
        if let Ok(outcome) = tokio::time::timeout(CHAINED_WITHIN, done).await {
            return outcome.ok_or_else(|| "this node stops".to_owned());
        }
        // Taken back: who was not answered should not find it done much later. It may be on its way into the chain all the same.
        match settle(&self.store, request.id).await {
            Ok(()) => Err("nobody wrote it into the chain in time: it was taken back".to_owned()),
            Err(failed) => Err(format!("nobody wrote it into the chain in time, and it could not be taken back: {failed}")),
        }
    }

    fn trouble(&self, sink: &SinkConfig) -> Option<String> {
        weir_alert::trouble_of(sink, &self.node)
    }

    async fn status(&self) -> Result<BTreeMap<String, SinkStatus>, String> {
        let told = weir_alert::read_status(&self.objects).await.map_err(|failed| failed.to_string())?;
        let status = |status: weir_alert::SinkStatus| SinkStatus {
            waiting: status.waiting,
            sent: status.sent,
            dead: status.dead,
            last_error: status.last_error,
            last_sent_ms: status.last_sent_ms,
        };
        Ok(told.into_iter().map(|(name, told)| (name, status(told))).collect())
    }
}

/// The sink of a definition; the error says why there is none.
fn usable(definition: &SinkDefinition, config: &[SinkConfig]) -> Result<SinkConfig, String> {
    if config.iter().any(|sink| sink.name == definition.name) {
        return Err("[[alerts.sinks]] has one of this name: rename that, or DROP SINK".to_owned());
    }
    // What this build refuses an older or newer one has taken.
    definition.check().map_err(|refused| format!("{}; {}", refused.problem, refused.cure))
}

/// Makes the sinks of the config and of the chain anew whenever the chain's are others, or while one of them is in trouble. Ends when dropped.
pub(crate) async fn follow(
    config: AlertsConfig,
    node: String,
    mut chained: watch::Receiver<Option<ChainedSinks>>,
    sinks: watch::Sender<Sinks>,
) {
    let config = Arc::new(config);
    let of_config = sinks.borrow().clone();
    let mut known: Option<ChainedSinks> = None;
    loop {
        let now = chained.borrow_and_update().clone();
        let Some(now) = now else {
            if chained.changed().await.is_err() {
                return;
            }
            continue;
        };
        let is_new = known.as_ref().is_none_or(|known| known.definitions != now.definitions || known.dropped != now.dropped);
        if is_new || sinks.borrow().any_trouble() {
            let (before, of_config, config, node, chained) =
                (sinks.borrow().clone(), of_config.clone(), Arc::clone(&config), node.clone(), now.clone());
            let make = move || make(&of_config, &before, &config, &node, &chained, is_new);
            // A task that was stopped: so is this one.
            let Ok(made) = tokio::task::spawn_blocking(make).await else { return };
            let better = made.any_trouble() != sinks.borrow().any_trouble();
            if is_new || better {
                sinks.send_replace(made);
            }
        }
        known = Some(now);
        if let Ok(Err(_)) = tokio::time::timeout(AGAIN_AFTER, chained.changed()).await {
            return;
        }
    }
}

fn make(of_config: &Sinks, before: &Sinks, config: &AlertsConfig, node: &str, chained: &ChainedSinks, tell: bool) -> Sinks {
    let mut made = of_config.clone();
    for definition in chained.definitions() {
        match usable(definition, &config.sinks) {
            Ok(sink) => {
                made.add(&sink, node, before);
                if let Some(why) = made.trouble(&sink.name).filter(|_| tell) {
                    error!(sink = sink.name, why, "nothing can be sent to a sink of CREATE SINK: its alerts wait; trying on");
                }
            }
            Err(why) if tell => error!(sink = definition.name, why, "a sink of CREATE SINK is not used"),
            Err(_) => {}
        }
    }
    made.drop_all(chained.dropped.iter().cloned().collect());
    made
}

const WANTED: &str = "wanted/sinks";
const VERSION: u8 = 1;
/// Requests whose outcome is remembered: many more than are ever under way.
const OUTCOMES_MAX: usize = 64;
/// Dropped sinks whose names are remembered. Whoever sends looks at each change; one that takes over looks at these.
const DROPPED_MAX: usize = 256;
/// The rest is found at the next look.
const REQUESTS_PER_LOOK: usize = 16;
/// A new holder is found within seconds.
const CHAINED_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks whether what hindered a sink is over.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use weir_config::SinkValue;

    use super::*;

    fn definition(name: &str) -> SinkDefinition {
        let url = SinkValue::Text("http://127.0.0.1:9/".to_owned());
        SinkDefinition { name: name.to_owned(), format: "webhook".to_owned(), keys: vec![("url".to_owned(), url)] }
    }

    fn create(id: u128, name: &str) -> SinkRequest {
        SinkRequest { id, change: SinkChange::Create(definition(name), 2) }
    }

    fn drop_sinks(id: u128, names: &[&str], if_exists: bool) -> SinkRequest {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        SinkRequest { id, change: SinkChange::Drop(names, if_exists) }
    }

    #[test]
    fn a_request_is_done_once_and_names_are_unique() {
        let mut sinks = ChainedSinks::default();
        for (request, expected) in [
            (create(1, "a"), SinkOutcome::Done),
            (create(1, "a"), SinkOutcome::Done),
            (create(2, "a"), SinkOutcome::Exists("a".to_owned())),
            (create(3, "b"), SinkOutcome::Done),
            (create(4, "c"), SinkOutcome::TooMany(2)),
            (drop_sinks(5, &["a", "x"], false), SinkOutcome::Missing("x".to_owned())),
            (drop_sinks(6, &["a", "x"], true), SinkOutcome::Done),
            (drop_sinks(7, &["a"], false), SinkOutcome::Missing("a".to_owned())),
        ] {
            sinks.apply(&request);
            assert_eq!(sinks.outcome(request.id), Some(&expected), "{request:?}");
        }
        assert_eq!((sinks.definitions(), &sinks.dropped), (&[definition("b")][..], &VecDeque::from(["a".to_owned()])));
        sinks.apply(&create(8, "a"));
        assert_eq!((sinks.definitions().len(), sinks.dropped.len()), (2, 0));
        let read_back: ChainedSinks = postcard::from_bytes(&postcard::to_stdvec(&sinks).unwrap()).unwrap();
        assert_eq!(read_back, sinks);
    }

    #[tokio::test]
    async fn a_sink_in_trouble_is_made_once_the_trouble_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        let mut secret = definition("a");
        secret.keys.push(("secret_file".to_owned(), SinkValue::Text(key.display().to_string())));
        let mut chained = ChainedSinks::default();
        chained.apply(&SinkRequest { id: 1, change: SinkChange::Create(secret, 9) });
        let (tell, told) = watch::channel(Some(chained.clone()));
        let (make, mut made) = watch::channel(Sinks::default());
        let task = tokio::spawn(follow(AlertsConfig::default(), "n1".to_owned(), told, make));
        let within = Duration::from_secs(60);
        let trouble = |sinks: &Sinks| sinks.trouble("a").is_some_and(|why| why.contains("could not read secret_file"));
        tokio::time::timeout(within, made.wait_for(trouble)).await.unwrap().unwrap();
        std::fs::write(&key, "s3cret\n").unwrap();
        let well = |sinks: &Sinks| sinks.routes().contains_key("a") && !sinks.any_trouble();
        tokio::time::timeout(within, made.wait_for(well)).await.unwrap().unwrap();
        chained.apply(&drop_sinks(2, &["a"], false));
        tell.send_replace(Some(chained));
        let gone = |sinks: &Sinks| sinks.routes().is_empty() && sinks.gone().contains("a");
        tokio::time::timeout(within, made.wait_for(gone)).await.unwrap().unwrap();
        task.abort();
    }

    #[test]
    fn a_sink_of_the_config_goes_before_one_of_the_same_name() {
        let config = [definition("a").check().unwrap()];
        assert!(usable(&definition("a"), &config).unwrap_err().contains("DROP SINK"));
        assert!(usable(&definition("b"), &config).is_ok());
        let strange = SinkDefinition { format: "smoke".to_owned(), ..definition("b") };
        assert!(usable(&strange, &config).unwrap_err().contains("no format"));
    }
}
