//! Reading: SQL over the PostgreSQL wire and JSON over HTTP, answered from the live relations at one tick.
//!
//! A statement is parsed (`statement.rs`), planned against the relations' columns, what it reads is peeked from the workers
//! (`live.rs`, `tables.rs`) and DataFusion runs it (`session.rs`). A subscription asks for what changed, tick by tick (`subscription.rs`). `pgwire/` and `http/` carry the answer out (`encode.rs`).
//! Everything is bounded by `query.*` of the config. Nothing here changes anything but what people make: views and tables (`views.rs`, `create_table.rs`, `dml.rs`), rules (`rules.rs`), sinks of alerts (`sinks.rs`).

#![forbid(unsafe_code)]

mod access;
mod as_of;
mod catalog;
mod causal;
mod create_table;
mod dml;
mod dropped;
mod encode;
mod error;
mod freshness;
mod functions;
mod health;
mod http;
mod inventory;
mod json;
mod lineage;
mod live;
mod metrics;
mod pgwire;
mod process_tree;
mod rules;
mod search;
mod session;
mod settings;
mod show;
mod sinks;
mod source_text;
mod statement;
mod streaming;
mod subscription;
mod tables;
mod views;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use weir_archive::Record;
use weir_config::{QueryLimits, SqlConfig};

pub use access::Verifier;
pub use error::{Error, SqlError};
pub use http::MetricsRender;
pub use live::{Frontier, Live, LiveError, Snapshot};
pub use sinks::{KnownSink, SinkChange, SinkOutcome, SinkStatus, SinkStore};
pub use views::{Changed, ViewStore};

/// Where to listen, whom to ask, how much to allow.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Name of this node: it tells what its subscriptions keep from what those of others keep.
    pub node: String,
    /// PostgreSQL wire.
    pub sql: SocketAddr,
    /// HTTP.
    pub http: SocketAddr,
    /// The workers' Unix socket.
    pub socket: PathBuf,
    /// Limits of every query.
    pub limits: QueryLimits,
    /// Who may ask.
    pub access: SqlConfig,
    /// The record; none: `events` and `samples` are the workers' tails.
    pub record: Option<RecordOptions>,
    /// The views that people make; none: there are only those that ship.
    pub views: Option<Arc<dyn ViewStore>>,
    /// The sinks of alerts; none: there are none.
    pub sinks: Option<Arc<dyn SinkStore>>,
}

/// The record, and how it is searched.
#[derive(Debug, Clone)]
pub struct RecordOptions {
    /// What is read.
    pub record: Record,
    /// Searches at once; more wait.
    pub searches_max: usize,
}

/// The servers. Dropped, they stop.
#[derive(Debug)]
pub struct Running {
    sql: SocketAddr,
    http: SocketAddr,
    live: Live,
    _tasks: JoinSet<()>,
}

impl Running {
    /// Where the PostgreSQL wire listens.
    pub fn sql_addr(&self) -> SocketAddr {
        self.sql
    }

    /// Where HTTP listens.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// The workers, for other questions.
    pub fn live(&self) -> &Live {
        &self.live
    }
}

/// Starts both servers.
pub async fn serve(options: ServeOptions, metrics: MetricsRender) -> Result<Running, Error> {
    metrics::describe();
    let access = Arc::new(access::Access::load(&options.access)?);
    if !access.is_kept_from_listeners() && !options.sql.ip().is_loopback() {
        tracing::warn!(address = %options.sql, "the SQL port has no TLS: passwords are safe, what is asked and answered is in the clear");
    }
    let sql = listen("SQL", options.sql).await?;
    let http = listen("HTTP", options.http).await?;
    let address = |listener: &TcpListener, what, wanted| {
        listener.local_addr().map_err(|source| Error::Listen { what, address: wanted, source })
    };
    let (sql_addr, http_addr) = (address(&sql, "SQL", options.sql)?, address(&http, "HTTP", options.http)?);
    let live = Live::start(options.socket);
    let past = options.record.map(|RecordOptions { record, searches_max }| {
        let searches = search::Searches::start(searches_max).map_err(Error::Threads)?;
        Ok(session::PastReads { record, searches })
    });
    let stores = session::Stores { views: options.views, sinks: options.sinks };
    let engine = session::Engine::new(live.clone(), past.transpose()?, options.limits.clone(), (&options.node, stores)).await;
    let engine = engine.map_err(Error::Definitions)?;
    let health = health::Health::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(health.clone().watch(live.clone()));
    tasks.spawn(pgwire::serve(sql, engine.clone(), Arc::clone(&access), Duration::from_millis(options.access.idle_ms_max)));
    tasks.spawn(http::serve(http, (engine, access), health, metrics));
    Ok(Running { sql: sql_addr, http: http_addr, live, _tasks: tasks })
}

async fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { what, address, source })
}
