//! Alerts to sinks: the shell between the relation `alerts`, the shared store and `weir-alert`.
//!
//! ```text
//! SHARED/cluster/alerts/outbox/<n>      what each sink has got and lacks (see `cluster/alert/src/ledger.rs`)
//! SHARED/cluster/alerts/status        how each sink is, for people (see `cluster/alert/src/status.rs`)
//! SHARED/cluster/alerts/redrive/<id>    a sink's name, or nothing for all: its dead letters are to be sent again
//! SHARED/alerts/lock                    at level `local`: held by the node that sends; at level `object` it is the chain's holder
//! ```

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{error, info, warn};
use weir_alert::{Alert, Entry, Memory, Objects, Rows, Sender, Sinks, Source};
use weir_archive::{Created, ObjectPath, Store};
use weir_config::NodeConfig;
use weir_dataflow::handle::{At, Failure, Read};
use weir_query::{Live, LiveError};

use crate::error::Error;
use crate::log::{Duty, Logs, nonce};
use crate::node::cluster_store;
use crate::sinks::{self, ChainedSinks};

/// One alert that a sink lacks, as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The sink.
    pub sink: String,
    /// The alert's key there.
    pub key: String,
    /// What is known of it.
    pub entry: Entry,
}

/// What the outbox of this config's cluster holds: the node that wrote it last, and every entry.
pub async fn outbox(config: &NodeConfig) -> Result<(Option<String>, Vec<Letter>), Error> {
    let Memory { entries, node, .. } = weir_alert::read_outbox(&AlertObjects::open(config)?).await?;
    let letters = entries.into_iter().map(|((sink, key), entry)| Letter { sink, key, entry });
    Ok((node, letters.collect()))
}

/// Asks for the dead letters of a sink, or of all, to be sent again.
pub async fn redrive(config: &NodeConfig, sink: Option<&str>) -> Result<(), Error> {
    Ok(weir_alert::ask_redrive(&AlertObjects::open(config)?, nonce(), sink).await?)
}

/// What the sender of a node is made of.
pub(crate) struct Alerting {
    pub(crate) logs: Arc<dyn Logs>,
    pub(crate) live: Live,
    pub(crate) wall_ms: fn() -> u64,
    /// The sinks that people made; none: the chain was not read yet.
    pub(crate) chained: watch::Receiver<Option<ChainedSinks>>,
}

impl Alerting {
    /// Checks the sinks of the config, and starts the thread that sends while this node is to, with the task that tells it of other sinks.
    pub(crate) fn start(
        self,
        config: &NodeConfig,
        stop: impl Fn() -> bool + Send + 'static,
    ) -> Result<(JoinHandle<()>, tokio::task::JoinHandle<()>), Error> {
        weir_alert::metrics::describe();
        let Self { logs, live, wall_ms, chained } = self;
        let (tell_sinks, sinks) = watch::channel(Sinks::new(&config.alerts, &config.id)?);
        let following = tokio::spawn(sinks::follow(config.alerts.clone(), config.id.clone(), chained, tell_sinks));
        let sender = Sender {
            sinks,
            limits: config.alerts.limits.clone(),
            objects: Arc::new(AlertObjects::open(config)?),
            source: Arc::new(Relation(live)),
            node: config.id.clone(),
            wall_ms,
            nonce,
        };
        let runtime = Handle::current();
        let send = move || {
            while !stop() {
                send_if_elected(&sender, &*logs, &runtime, &stop);
                std::thread::sleep(ELECT_EVERY);
            }
        };
        let sending = std::thread::Builder::new().name("alerts".to_owned()).spawn(send).expect("a thread can be started");
        Ok((sending, following))
    }
}

/// Sends for as long as this node is the one to do so. While there are no sinks nobody needs to.
fn send_if_elected(sender: &Sender, logs: &dyn Logs, runtime: &Handle, stop: &impl Fn() -> bool) {
    let idle = {
        let sinks = sender.sinks.borrow();
        sinks.routes().is_empty() && sinks.gone().is_empty()
    };
    if idle {
        return;
    }
    match logs.elect(Duty::Sender) {
        Ok(Some(office)) => {
            let held = || !stop() && office.is_held();
            match runtime.block_on(Box::pin(sender.run(held))) {
                Ok(()) => {}
                Err(weir_alert::Error::Fenced) => info!("another node sends alerts now"),
                Err(failed) => {
                    weir_alert::metrics::failed();
                    error!(error = %failed, "alerts are not sent; trying on");
                }
            }
        }
        Ok(None) => {}
        Err(failed) => warn!(error = %failed, "it is not known who sends alerts"),
    }
}

/// The relation `alerts`, through the workers of this node.
struct Relation(Live);

#[async_trait::async_trait]
impl Source for Relation {
    async fn rows(&self) -> Result<Option<Rows>, String> {
        let columns = COLUMNS.iter().map(|&name| name.to_owned()).collect();
        let read =
            Read { relation: "alerts".to_owned(), columns: Some(columns), limit: None, rows_max: ROWS_MAX, bytes_max: BYTES_MAX };
        match self.0.peek(At::Latest, vec![read]).await {
            Ok(snapshot) => {
                let alerts = snapshot.reads.iter().flatten().map(alerts).collect::<Result<Vec<_>, _>>()?;
                Ok(Some(Rows { tick: snapshot.tick, alerts: alerts.into_iter().flatten().collect() }))
            }
            // The workers are on their way, or of a build without rules.
            Err(LiveError::Away | LiveError::Failed(Failure::NotReady | Failure::UnknownRelation(_))) => Ok(None),
            Err(failed) => Err(failed.to_string()),
        }
    }
}

/// Rows of the relation as alerts. One that cannot be read is an error of ours, not of the data.
fn alerts(batch: &RecordBatch) -> Result<Vec<Alert>, String> {
    let texts = |name: &str| column::<StringArray>(batch, name, &DataType::Utf8);
    let ints = |name: &str| column::<Int64Array>(batch, name, &DataType::Int64);
    let text_columns: Vec<StringArray> = TEXTS.iter().map(|name| texts(name)).collect::<Result<_, _>>()?;
    let int_columns: Vec<Int64Array> = INTS.iter().map(|name| ints(name)).collect::<Result<_, _>>()?;
    let mut alerts = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let maybe = |place: usize| text_columns[place].is_valid(row).then(|| text_columns[place].value(row).to_owned());
        let text = |place: usize| maybe(place).unwrap_or_default();
        let list = |place: usize| maybe(place).and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let int = |place: usize| int_columns[place].is_valid(row).then(|| int_columns[place].value(row));
        let count = |place: usize| int(place).and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
        let word = |place: usize| format!("the relation alerts has {:?} in column {}", text(place), TEXTS[place]);
        alerts.push(Alert {
            alert_id: text(0),
            revision: count(0),
            state: text(1).parse().map_err(|_| word(1))?,
            rule: text(2),
            rule_id: text(3),
            severity: text(4).parse().map_err(|_| word(4))?,
            tactics: list(5),
            techniques: list(6),
            time: int(1).unwrap_or(0),
            first_seen: int(2).unwrap_or(0),
            last_seen: int(3).unwrap_or(0),
            tenant: text(7),
            cloud: maybe(8),
            region: text(9),
            host: text(10),
            app: maybe(11),
            container_id: maybe(12),
            process_id: maybe(13),
            summary: text(14),
            evidence: list(15),
            stages: maybe(16).unwrap_or_else(|| "[]".to_owned()),
            hosts: list(17),
            regions: list(18),
            closed_through: int(4),
            lost_events: count(5),
        });
    }
    Ok(alerts)
}

fn column<A: Clone + 'static>(batch: &RecordBatch, name: &str, wanted: &DataType) -> Result<A, String> {
    let wrong = || format!("the relation alerts has no column {name} that reads as {wanted}");
    let column: &ArrayRef = batch.column_by_name(name).ok_or_else(wrong)?;
    let column = cast(column, wanted).map_err(|_| wrong())?;
    column.as_any().downcast_ref::<A>().cloned().ok_or_else(wrong)
}

/// The folder `alerts` of the objects by which nodes agree.
pub(crate) struct AlertObjects(Store);

impl AlertObjects {
    pub(crate) fn open(config: &NodeConfig) -> Result<Self, Error> {
        Ok(Self(cluster_store(config)?.below("alerts")))
    }
}

#[async_trait::async_trait]
impl Objects for AlertObjects {
    async fn list(&self, folder: &str) -> Result<Vec<String>, String> {
        let listed = self.0.list(&ObjectPath::from(folder)).await.map_err(|failed| failed.to_string())?;
        Ok(listed.into_iter().map(|path| path.to_string()).collect())
    }

    async fn read(&self, name: &str) -> Result<Option<Vec<u8>>, String> {
        self.0.read_if_there(&ObjectPath::from(name)).await.map_err(|failed| failed.to_string())
    }

    async fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool, String> {
        let created = self.0.create(&ObjectPath::from(name), bytes).await.map_err(|failed| failed.to_string())?;
        Ok(created == Created::Yes)
    }

    async fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), String> {
        self.0.write(&ObjectPath::from(name), bytes).await.map_err(|failed| failed.to_string())
    }

    async fn remove(&self, name: &str) -> Result<(), String> {
        self.0.remove(&ObjectPath::from(name)).await.map_err(|failed| failed.to_string())
    }
}

const TEXTS: [&str; 19] = [
    "alert_id",
    "state",
    "rule",
    "rule_id",
    "severity",
    "tactics",
    "techniques",
    "tenant",
    "cloud",
    "region",
    "host",
    "app",
    "container_id",
    "process_id",
    "summary",
    "evidence",
    "stages",
    "hosts",
    "regions",
];
const INTS: [&str; 6] = ["revision", "time", "first_seen", "last_seen", "closed_through", "lost_events"];
/// Both, in any order.
const COLUMNS: [&str; 25] = {
    let mut all = [""; 25];
    let mut at = 0;
    while at < 19 {
        all[at] = TEXTS[at];
        at += 1;
    }
    while at < 25 {
        all[at] = INTS[at - 19];
        at += 1;
    }
    all
};
/// Alerts of a day; more are an error that is told, for a part of them would look like withdrawals.
const ROWS_MAX: u64 = 1_000_000;
const BYTES_MAX: u64 = 1 << 30;
/// Between two attempts to become the one that sends.
const ELECT_EVERY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use arrow::array::TimestampNanosecondArray;
    use arrow::datatypes::{Field, Schema};

    use super::*;

    #[test]
    fn rows_of_the_relation_become_alerts() {
        let text = |name: &str| match name {
            "state" => Some("updated"),
            "severity" => Some("critical"),
            "tactics" => Some("[\"execution\"]"),
            "evidence" => Some("[\"e1\",\"e2\"]"),
            "app" => None,
            "stages" | "hosts" | "regions" | "techniques" => Some("[]"),
            _ => Some("x"),
        };
        let mut columns: Vec<(&str, ArrayRef)> =
            TEXTS.iter().map(|&name| (name, Arc::new(StringArray::from(vec![text(name)])) as ArrayRef)).collect();
        for name in INTS {
            let is_time = !matches!(name, "revision" | "lost_events");
            let int: ArrayRef = if is_time {
                Arc::new(TimestampNanosecondArray::from(vec![5]).with_timezone("UTC"))
            } else {
                Arc::new(Int64Array::from(vec![7]))
            };
            columns.push((name, int));
        }
        let fields: Vec<Field> = columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
        let arrays = columns.into_iter().map(|(_, array)| array).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
        let read = alerts(&batch).unwrap();
        assert_eq!((read[0].revision, read[0].time, read[0].closed_through), (7, 5, Some(5)));
        assert_eq!((read[0].evidence.len(), &*read[0].tactics[0], read[0].app.as_deref()), (2, "execution", None));
        assert!(alerts(&batch.project(&[0, 1]).unwrap()).unwrap_err().contains("no column"));
    }

    #[tokio::test]
    async fn the_outbox_is_read_and_asked_through_the_shared_store() {
        let dir = tempfile::tempdir().unwrap();
        let objects = AlertObjects(Store::open(dir.path().to_str().unwrap()).unwrap().below("alerts"));
        assert!(objects.create("outbox/1", vec![1]).await.unwrap());
        assert!(!objects.create("outbox/1", vec![2]).await.unwrap());
        assert_eq!(objects.list("outbox").await.unwrap(), ["outbox/1"]);
        assert_eq!(objects.read("outbox/1").await.unwrap(), Some(vec![1]));
        assert_eq!(objects.read("outbox/2").await.unwrap(), None);
        weir_alert::ask_redrive(&objects, 7, Some("pager")).await.unwrap();
        assert_eq!(objects.list("redrive").await.unwrap().len(), 1);
        objects.remove("outbox/1").await.unwrap();
        assert!(objects.list("outbox").await.unwrap().is_empty());
    }
}
