//! A node: agents come in over QUIC, their frames go to the log, the chain orders them, the worker child keeps the answers, and
//! people ask over SQL and HTTP.
//!
//! This is the one place where the rooms are put together, in the order of an event's way.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tracing::info;
use weir_archive::{Archive, Record, Store};
use weir_config::{LogLevel, NodeConfig, Views};
use weir_dataflow::ViewSettings;
use weir_schema::Name;
use weir_transport::{Incoming, Server, TransportLimits};

use crate::beats::{self, Board, Status};
use crate::child::ChildCommand;
use crate::error::Error;
use crate::follow::{Now, Told, follow};
use crate::forget::{self, Floor};
use crate::hold::Candidate;
use crate::ingest::{Durable, Ingest, open_log};
use crate::log::{self, Logs, nonce};
use crate::membership::{Beat, Workers};
use crate::mesh::greeting;
use crate::record::{self, Archivist, ChainTail};
use crate::sinks::{ChainedSinks, ClusterSinks};
use crate::supervise::Supervisor;
use crate::views::{ClusterViews, Views as MadeViews};
use crate::{alerts, identity, layout, metrics, rules, sequences, shipped};

/// Where a running node listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Agents, QUIC over UDP.
    pub quic: SocketAddr,
    /// PostgreSQL clients.
    pub sql: SocketAddr,
    /// HTTP clients.
    pub http: SocketAddr,
}

/// Runs a node until `shutdown` resolves. `started` is told where it listens, once it does.
pub async fn run(
    config: NodeConfig,
    child: ChildCommand,
    started: impl FnOnce(Addresses),
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let stop = Stop::default();
    for dir in [&config.data_dir, &config.shared_dir] {
        std::fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
    }
    let scrape = recorder()?;
    let logs = log::open(&config)?;
    if config.log.level == LogLevel::Object {
        // No lock keeps two processes from one log; the second one would take it from the first.
        let apart = Duration::from_millis(config.mesh.limits.member_ms_max / BEATS_PER_SILENCE * 2);
        if beats::is_alive(&cluster_store(&config)?, &node_name(&config)?, apart).await? {
            return Err(Error::NodeRuns(config.id.clone()));
        }
    }
    let (to_ingest, incoming) = mpsc::channel(INCOMING_FRAMES_MAX);
    let floor = Floor::default();
    let (ingest, received) = start_ingest(&config, logs.clone(), incoming, floor.clone())?;
    let board = Board::default();
    let holder = start_holder(&config, logs.clone(), board.clone(), floor.clone(), stop.clone())?;
    let (archivist, record) = match config.archive.enabled {
        true => start_record(&config, logs.clone(), &stop).map(|(archivist, record)| (Some(archivist), Some(record)))?,
        false => (None, None),
    };
    let record_archive = record.as_ref().map(|options: &weir_query::RecordOptions| options.record.archive().clone());
    let (doors, store) = identity::doors(&config).await?;
    let revoking = tokio::spawn(identity::follow(store, doors.admission.clone()));
    let limits = TransportLimits::from(&config.limits);
    let server = Server::listen_for((&config.listen).into(), &config.tls, limits, doors).await?;
    let quic = server.local_addr();
    let agents = server.handle();
    let serving = tokio::spawn(server.run(to_ingest, Arc::new(received)));
    let listener = mesh_listener(config.listen.mesh).await?;
    let socket = layout::engine_socket(&config.data_dir);
    let (tell_views, views) = watch::channel(None);
    let views = ClusterViews::shared(cluster_store(&config)?, views);
    let (tell_sinks, chained_sinks) = watch::channel(None);
    let options = weir_query::ServeOptions {
        node: config.id.clone(),
        sql: config.listen.sql,
        http: config.listen.http,
        socket,
        limits: config.query.clone(),
        access: config.sql.clone(),
        record,
        views: Some(Arc::clone(&views)),
        sinks: Some(Arc::new(ClusterSinks::new(&config, chained_sinks.clone())?)),
    };
    let reading =
        weir_query::serve(options, Arc::new(move || scrape.render())).await.map_err(|failed| Error::Query(failed.to_string()))?;
    let live = reading.live().clone();
    let watching = tokio::spawn(watch_engine(live.clone()));
    let archive = record_archive;
    let forgetting = tokio::spawn(forget::run(cluster_store(&config)?, archive, floor));
    let stopping = stop.clone();
    let alerting = alerts::Alerting { logs: logs.clone(), live: live.clone(), wall_ms, chained: chained_sinks };
    let (alerting, sinking) = alerting.start(&config, move || stopping.is_set())?;
    let parts = WorkersParts { logs, child, live, board, listener, tell_views, tell_sinks };
    let (following, mut workers) = start_workers(&config, parts, &stop)?;
    start_rules(&config, &stop);
    workers.extend([forgetting, revoking, sinking, tokio::spawn(shipped::make(Arc::clone(&views)))]);
    workers.push(tokio::spawn(sequences::configure(config.clone(), views)));
    let addresses = Addresses { quic, sql: reading.sql_addr(), http: reading.http_addr() };
    info!(node = config.id, quic = %addresses.quic, sql = %addresses.sql, http = %addresses.http, "node started");
    started(addresses);

    shutdown.await;
    info!(node = config.id, "node stops");
    stop.set();
    // First the agents' side, so that ingest sees its senders go; then what reads.
    agents.close();
    let _ = serving.await;
    let _ = tokio::task::spawn_blocking(move || {
        let rest = (archivist.map(JoinHandle::join), alerting.join());
        (ingest.join(), holder.join(), following.join(), rest)
    })
    .await;
    watching.abort();
    for task in workers {
        task.abort();
        let _ = task.await;
    }
    drop(reading);
    Ok(())
}

/// Keeps the metrics of the workers fresh.
async fn watch_engine(live: weir_query::Live) {
    let mut every = tokio::time::interval(STATS_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        // While the workers are away there is nothing new to tell; `/healthz` says so.
        if let Ok(stats) = live.stats().await {
            metrics::engine(&stats);
        }
    }
}

fn start_ingest(
    config: &NodeConfig,
    logs: Arc<dyn Logs>,
    incoming: mpsc::Receiver<Incoming>,
    floor: Floor,
) -> Result<(JoinHandle<()>, Durable), Error> {
    let id = node_name(config)?;
    let own = (floor, id.clone());
    let (ingest, received) = Ingest::new(move || open_log(&*logs, &id), own)?;
    let thread = std::thread::Builder::new().name("ingest".to_owned()).spawn(move || ingest.run(incoming, wall_ms));
    Ok((thread.expect("a thread can be started"), received))
}

fn start_holder(
    config: &NodeConfig,
    logs: Arc<dyn Logs>,
    board: Board,
    floor: Floor,
    stop: Stop,
) -> Result<JoinHandle<()>, Error> {
    let candidate = Candidate {
        logs,
        settings: settings(&config.views),
        every: Duration::from_millis(config.tick_ms),
        board,
        limits: config.mesh.limits.clone(),
        workers: config.workers as u32,
        checkpoint_ms: config.checkpoint.every_ms,
        floor,
        store: cluster_store(config)?,
        runtime: Handle::current(),
    };
    let hold = move || candidate.run(wall_ms, || stop.is_set());
    Ok(std::thread::Builder::new().name("chain".to_owned()).spawn(hold).expect("a thread can be started"))
}

/// Asks for the rules of the config. The thread ends when they are in force, or with `stop`.
fn start_rules(config: &NodeConfig, stop: &Stop) {
    let (config, stop, runtime) = (config.clone(), stop.clone(), Handle::current());
    let ask = move || rules::configure(&config, &runtime, || stop.is_set());
    std::thread::Builder::new().name("rules".to_owned()).spawn(ask).expect("a thread can be started");
}

/// Starts what keeps this node's workers in the newest generation. All of it ends with the returned tasks and with `stop`.
fn start_workers(
    config: &NodeConfig,
    parts: WorkersParts,
    stop: &Stop,
) -> Result<(JoinHandle<()>, Vec<tokio::task::JoinHandle<()>>), Error> {
    let WorkersParts { logs, child, live, board, listener, tell_views, tell_sinks } = parts;
    let node = node_name(config)?;
    let (status, run) = (Status::default(), nonce() as u64);
    let address = config.mesh.advertise.map_or_else(|| listener.local_addr(), Ok);
    let address = address.map_err(|failed| Error::Mesh(failed.to_string()))?.to_string();
    let build = greeting::BUILD.to_owned();
    let beat = Beat { node: node.clone(), run, number: 0, address, workers: Workers::None, wall_ms: 0, build };
    let store = cluster_store(config)?;
    let every = Duration::from_millis(config.mesh.limits.member_ms_max / BEATS_PER_SILENCE);
    let beating = tokio::spawn(beats::run(store, beat, status.clone(), board, every, wall_ms));
    let (told, now) = watch::channel(Now::default());
    let stop = stop.clone();
    let (bases, runtime) = (cluster_store(config)?, Handle::current());
    let base = move |first| runtime.block_on(forget::base(&bases, first));
    let following = std::thread::Builder::new()
        .name("follow".to_owned())
        .spawn(move || follow(logs, Told { now: told, views: tell_views, sinks: tell_sinks }, base, || stop.is_set()))
        .expect("a thread can be started");
    let socket = layout::engine_socket(&config.data_dir);
    let limits = config.mesh.limits.clone();
    let supervisor = Supervisor { node, run, command: child, listener, socket, now, live, status, limits };
    Ok((following, vec![beating, tokio::spawn(supervisor.run())]))
}

/// The socket on which the mesh calls. After a `kill -9` the workers of the run before may hold it for a moment longer than that run.
async fn mesh_listener(address: SocketAddr) -> Result<TcpListener, Error> {
    let deadline = tokio::time::Instant::now() + LISTEN_WITHIN;
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(taken) if taken.kind() == std::io::ErrorKind::AddrInUse && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(LISTEN_AGAIN).await;
            }
            Err(failed) => return Err(Error::Mesh(format!("could not listen at listen.mesh = {address}: {failed}"))),
        }
    }
}

/// What the workers' side of a node is made of.
struct WorkersParts {
    logs: Arc<dyn Logs>,
    child: ChildCommand,
    live: weir_query::Live,
    board: Board,
    listener: TcpListener,
    tell_views: watch::Sender<Option<MadeViews>>,
    tell_sinks: watch::Sender<Option<ChainedSinks>>,
}

/// The objects by which nodes agree: where their logs are.
pub(crate) fn cluster_store(config: &NodeConfig) -> Result<Store, Error> {
    match config.log.level {
        LogLevel::Local => Ok(Store::open(&layout::cluster_dir(&config.shared_dir).display().to_string())?),
        LogLevel::Object => Ok(Store::open(&config.log.location)?.below(layout::CLUSTER)),
    }
}

fn node_name(config: &NodeConfig) -> Result<Name, Error> {
    Name::new(&config.id).map_err(|wrong| Error::Engine(wrong.to_string()))
}

/// Starts to write the archive, and gives what queries read.
fn start_record(
    config: &NodeConfig,
    logs: Arc<dyn Logs>,
    stop: &Stop,
) -> Result<(JoinHandle<()>, weir_query::RecordOptions), Error> {
    let archive = Archive::new(Store::open(&config.archive.location)?);
    let searches_max = config.archive.limits.searches_max;
    let tail = Arc::new(ChainTail::new(logs.clone()));
    let record = Record::new(archive.clone(), tail);
    let config = config.archive.clone();
    let archivist = record::start(Archivist { logs, archive, config, wall_ms, stop: Arc::clone(&stop.0) })?;
    Ok((archivist, weir_query::RecordOptions { record, searches_max }))
}

fn settings(views: &Views) -> ViewSettings {
    ViewSettings {
        retention_ms: views.retention_ms,
        skew_ms: views.skew_ms,
        window_grace_ms: views.window_grace_ms,
        tail_rows_max: views.tail_rows_max,
        tail_bytes_max: views.tail_bytes_max,
        ends_max: views.ends_max,
        new_containers_per_minute_max: views.new_containers_per_minute_max,
        chain_events_per_key_max: views.chain_events_per_key_max,
    }
}

fn recorder() -> Result<PrometheusHandle, Error> {
    let builder = PrometheusBuilder::new().set_buckets(&SECONDS_BUCKETS).map_err(|wrong| Error::Query(wrong.to_string()))?;
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    // A second node in one process (tests) shares the first one's recorder.
    let _ = ::metrics::set_global_recorder(recorder);
    metrics::describe();
    Ok(handle)
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Tells the node's threads to end.
#[derive(Debug, Clone, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Frames between the sockets and ingest. Their bytes are bounded by the transport's in-flight budget.
const INCOMING_FRAMES_MAX: usize = 4_096;
/// Signs of life in the time after which a silent node is dead.
const BEATS_PER_SILENCE: u64 = 5;
/// For a socket that workers of an earlier run still hold.
const LISTEN_WITHIN: Duration = Duration::from_secs(5);
const LISTEN_AGAIN: Duration = Duration::from_millis(50);
const STATS_EVERY: Duration = Duration::from_secs(2);
const SECONDS_BUCKETS: [f64; 10] = [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0];
