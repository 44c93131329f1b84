//! A node's configuration: where it listens, where it keeps its log, and every limit it holds.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::alerts::{AlertsConfig, RawAlerts};
use crate::archive::{ArchiveConfig, RawArchive};
use crate::document::Document;
use crate::error::Error;
use crate::log::{LogConfig, LogLevel, RawLog};
use crate::rules::{RawRules, RulesConfig};
use crate::section::numbers;
use crate::sql::{RawSql, SqlConfig};
use crate::tls::{RawTls, ServerTls};

/// One node, valid. Made by [`NodeConfig::load`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// The node's name, unique in the cluster; it names its log. Required; a name as in certificates.
    pub id: String,
    /// Folder of the node's own run files (sockets, locks). Default `/var/lib/weir`.
    pub data_dir: PathBuf,
    /// Folder that all nodes of this machine share: the chain and the logs. Default `shared` inside `data_dir`.
    pub shared_dir: PathBuf,
    /// Where the node listens.
    pub listen: Listen,
    /// Certificates.
    pub tls: ServerTls,
    /// Which agents are taken, and whether this node makes new ones.
    pub agents: Agents,
    /// How this node's workers and those of other nodes work as one mesh.
    pub mesh: Mesh,
    /// Dataflow workers of every node, threads, when a cluster is started for the first time. `weir cluster rescale` changes it.
    ///
    /// Default 1 (a worker keeps a core busy; ingest and queries need one too), from 1 to 64. The chain says how many there are.
    pub workers: usize,
    /// When the state of all views is saved.
    pub checkpoint: CheckpointLimits,
    /// What is kept of what changed, for subscribers.
    pub changes: ChangesLimits,
    /// What the standing views keep.
    pub views: Views,
    /// What agents may use of this node.
    pub limits: Limits,
    /// Where the chain and the logs lie.
    pub log: LogConfig,
    /// The node's log at level `local`.
    pub journal: JournalLimits,
    /// What one query may use.
    pub query: QueryLimits,
    /// Who may ask.
    pub sql: SqlConfig,
    /// The record of all events.
    pub archive: ArchiveConfig,
    /// The rules that this node brings.
    pub rules: RulesConfig,
    /// Where alerts go.
    pub alerts: AlertsConfig,
    /// Milliseconds between two ticks: the grain of answers.
    ///
    /// Default 100 (a fifth of the 500 ms from event to answer), at log level `object` 250 (each tick is an object), from 10 to 10000.
    pub tick_ms: u64,
}

/// Where a node listens. Port 0 takes a free port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Agents, UDP. Default `0.0.0.0:7443`: agents come from other hosts, and mutual TLS refuses strangers.
    pub quic: SocketAddr,
    /// Agents from networks that let no UDP through, TCP. Default: the address of `quic`, where agents look for it; `"off"` for none.
    pub tcp: TcpListen,
    /// PostgreSQL clients, TCP. Default `127.0.0.1:7432`: without `sql.roles` only loopback can be listened to, and no password is asked.
    pub sql: SocketAddr,
    /// Views as JSON, health, metrics, TCP. Default `127.0.0.1:7480`.
    pub http: SocketAddr,
    /// Other nodes' workers, TCP with mutual TLS. Default `127.0.0.1:7444`; several machines need an address that the others reach.
    pub mesh: SocketAddr,
}

/// Where agents come in by TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TcpListen {
    /// At the address and port number of `listen.quic`.
    #[default]
    SameAsQuic,
    /// At another, which something maps: agents know one port number only.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

impl Default for Listen {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (quic, tcp) = (SocketAddr::from(([0, 0, 0, 0], 7443)), TcpListen::SameAsQuic);
        Self { quic, tcp, sql: loopback(7432), http: loopback(7480), mesh: loopback(7444) }
    }
}

/// Which agents a node takes, and whether it gives them certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agents {
    /// Regions whose agents are taken, by their certificates; at most 256. Default: all.
    pub regions: Vec<String>,
    /// Folder of the authority, with its key: agents are enrolled and their certificates renewed here. Whoever reads that key can be
    /// anybody in the fleet. Default: this node does neither; one or two nodes of a cluster are enough.
    pub authority: Option<PathBuf>,
    /// Milliseconds that a certificate made here is valid; agents renew it after half of that.
    ///
    /// Default 86400000 (a day: a stolen key is soon of no use, and an outage of half a day stops nobody), from 60000 to 2592000000.
    pub certificate_ms: u64,
}

/// The mesh of workers. Its members are the nodes that share a chain; they find each other there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mesh {
    /// The address under which other nodes reach `listen.mesh`. Default: `listen.mesh` itself.
    pub advertise: Option<SocketAddr>,
    /// When a member is given up.
    pub limits: MeshLimits,
}

numbers! {
    /// When a member of the mesh is given up. Equal on all nodes, or the holder's count.
    MeshLimits (RawMeshLimits) in "mesh.limits" {
        /// Milliseconds without a sign of life after which a node is taken for dead. Nodes give one every fifth of it.
        member_ms_max: u64 = 4000 in 1000 ..= 10000;
        /// Milliseconds that the workers of one generation have to find each other.
        meet_ms_max: u64 = 10000 in 1000 ..= 120000;
        /// Milliseconds without an answer, or without a step forward, after which workers are taken for frozen.
        frozen_ms_max: u64 = 20000 in 2000 ..= 600000;
        /// Milliseconds that a node must have been there before it is taken in: one that comes and goes must not stop the others.
        join_ms_min: u64 = 2000 in 0 ..= 600000;
    }
}

numbers! {
    /// When the state of all views is saved, so that a restart reads only what came since.
    CheckpointLimits (RawCheckpointLimits) in "checkpoint" {
        /// Milliseconds between two checkpoints. Every one stops the views for as long as it takes to copy their state.
        every_ms: u64 = 60000 in 100 ..= 86400000;
        /// Checkpoints that are kept. The log is forgotten only behind the oldest of them, and never behind fewer than two.
        kept: usize = 2 in 2 ..= 100;
    }
}

numbers! {
    /// What the standing views keep. The chain's first record fixes these for all nodes; a later edit asks for a new chain.
    Views (RawViews) in "views" {
        /// Milliseconds after its event time that an event still counts, and that closed connections stay.
        /// Ten minutes outlast an agent's usual loss of its link.
        retention_ms: u64 = 600000 in 1000 ..= 86400000;
        /// Milliseconds that an event may be ahead of the tick; those further ahead wait. Clocks kept by NTP differ by less.
        skew_ms: u64 = 5000 in 0 ..= 600000;
        /// Milliseconds that a window waits for its last events before it is shown.
        window_grace_ms: u64 = 1000 in 0 ..= 60000;
        /// Rows of `events` and `samples` kept in memory by each worker. What is older answers "not kept yet" and is counted.
        tail_rows_max: u64 = 500000 in 1000 ..= 100000000;
        /// Bytes of those rows, each worker.
        tail_bytes_max: u64 = 268435456 in 1048576 ..= 68719476736;
        /// Connection ends kept by each worker, about 400 bytes each. Beyond it the answer says that it is capped.
        ends_max: u64 = 1000000 in 1000 ..= 100000000;
        /// Containers that one agent may name anew in a minute. The events of more are told as `__other__` in the views, and counted in
        /// `losses`; the record has them as they were sent. Views keep state per container, so made-up names would fill the memory.
        new_containers_per_minute_max: u64 = 6000 in 10 ..= 1000000;
        /// Events of one stage that a sequence rule keeps of one key, and hits that a correlation keeps of one group where its condition needs no more,
        /// about 200 bytes each: the earliest. More are left out and counted in `losses`; what does so much of one thing within a rule's span is noise.
        chain_events_per_key_max: u64 = 4096 in 16 ..= 1000000;
    }
}

numbers! {
    /// What agents may use of this node. All are per node.
    Limits (RawLimits) in "limits" {
        /// Bytes of one frame as it is on the wire. A full batch of 1,000 events is about 25 kB.
        frame_bytes_max: usize = 1048576 in 65536 ..= 8388608;
        /// Bytes of frames received but not yet durable, all agents together. Shared out as credit.
        in_flight_bytes_max: usize = 268435456 in 1048576 ..= 17179869184;
        /// Agents connected at once, 64 KiB each. More are refused and go to another node.
        agents_max: usize = 10000 in 1 ..= 100000;
        /// Connections with one certificate: one in use and one that is being replaced.
        connections_per_agent_max: usize = 2 in 1 ..= 16;
        /// Events per second of one agent in the long run, five seconds' worth at once. Over it an agent gets no new credit for a
        /// while: it waits, nothing is dropped here. Fifty times what a busy host makes.
        agent_events_per_second_max: u64 = 100000 in 100 ..= 1000000000;
        /// Bytes of frames per second of one agent, in the same way.
        agent_bytes_per_second_max: u64 = 33554432 in 65536 ..= 17179869184;
        /// TLS handshakes at once on TCP, a quarter of it from one address; others are closed. Each holds a file descriptor.
        half_open_max: usize = 2048 in 16 ..= 65536;
        /// Milliseconds for a TLS handshake. A silent client must not hold a place.
        handshake_ms_max: u64 = 5000 in 100 ..= 60000;
        /// Milliseconds from a frame's first byte to its last.
        frame_ms_max: u64 = 30000 in 1000 ..= 300000;
        /// Milliseconds without a packet after which a connection is given up. Agents send a keep-alive every 15 s.
        idle_ms_max: u64 = 60000 in 20000 ..= 600000;
    }
}

numbers! {
    /// The node's log at level `local`: when it is synced and how it is cut.
    JournalLimits (RawJournalLimits) in "journal" {
        /// Bytes gathered before a sync is made at once.
        sync_bytes_max: usize = 4194304 in 65536 ..= 67108864;
        /// Bytes of a segment: the least that can be forgotten.
        segment_bytes_max: u64 = 67108864 in 16777216 ..= 1073741824;
    }
}

numbers! {
    /// What one query may use. Beyond a limit it fails and says which.
    QueryLimits (RawQueryLimits) in "query" {
        /// Rows read from one view for one query.
        rows_max: u64 = 1000000 in 1 ..= 100000000;
        /// Bytes of memory for one query.
        memory_bytes_max: u64 = 268435456 in 1048576 ..= 68719476736;
        /// Milliseconds for one query.
        time_ms_max: u64 = 30000 in 10 ..= 3600000;
        /// Milliseconds that a query waits for workers that are started anew, as after the death of a node; 0: it fails at once.
        away_ms_max: u64 = 20000 in 0 ..= 3600000;
        /// SQL and HTTP connections at once, each kind.
        connections_max: usize = 128 in 1 ..= 10000;
        /// Views that people may make in this cluster. Every one costs the workers memory and a little time at each tick.
        views_max: u64 = 100 in 0 ..= 10000;
        /// Bytes of the SELECT of one view: it is kept in the chain and in every checkpoint.
        view_sql_bytes_max: u64 = 65536 in 1 ..= 1048576;
        /// Tables that people may make in this cluster: a person's reference data, not a database.
        tables_max: u64 = 100 in 0 ..= 10000;
        /// Bytes of the rows of one table. The workers hold them in memory, and a statement on a table with a key reads all its keys.
        table_bytes_max: u64 = 16777216 in 0 ..= 1073741824;
        /// Rows that one INSERT, UPDATE or DELETE may change: they are one record of the chain.
        write_rows_max: u64 = 10000 in 1 ..= 1000000;
        /// Subscriptions at once. Each asks the workers up to five times a second; one to a query is a view as well while it lasts.
        subscriptions_max: usize = 64 in 0 ..= 10000;
    }
}

numbers! {
    /// What this node's workers keep of what changed in every view, so that a subscriber who was away or is slow goes on without a gap.
    ChangesLimits (RawChangesLimits) in "changes" {
        /// Milliseconds that changes are kept. A client that connects anew, or a mesh that is formed anew, takes some seconds.
        kept_ms: u64 = 60000 in 0 ..= 86400000;
        /// Bytes of them, each view and each worker: a busy view must not fill the memory. The oldest go first.
        kept_bytes_max: u64 = 16777216 in 0 ..= 17179869184;
    }
}

impl NodeConfig {
    /// Reads and checks the file at `path`, with the environment's `WEIR_` overrides.
    pub fn load(path: &Path) -> Result<Self, Error> {
        crate::read(path).and_then(|text| Self::parse(path, &text, crate::environment()))
    }

    /// Checks `text` as if it stood in the file `path`. Touches neither disk nor environment.
    pub fn parse(path: &Path, text: &str, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let (document, raw) = Document::read::<RawNode>(path, text, environment)?;
        raw.check(&document)
    }
}

/// What people write.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawNode {
    id: Option<String>,
    data_dir: Option<PathBuf>,
    shared_dir: Option<PathBuf>,
    listen: RawListen,
    tls: RawTls,
    agents: RawAgents,
    mesh: RawMesh,
    checkpoint: RawCheckpointLimits,
    changes: RawChangesLimits,
    workers: Option<i64>,
    views: RawViews,
    limits: RawLimits,
    log: RawLog,
    journal: RawJournalLimits,
    query: RawQueryLimits,
    sql: RawSql,
    archive: RawArchive,
    rules: RawRules,
    alerts: RawAlerts,
    tick_ms: Option<i64>,
}

/// What people write of `listen`; the demo's file has the same section.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawListen {
    quic: Option<String>,
    tcp: Option<String>,
    sql: Option<String>,
    http: Option<String>,
    mesh: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawAgents {
    regions: Option<Vec<String>>,
    authority: Option<PathBuf>,
    certificate_ms: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawMesh {
    advertise: Option<String>,
    limits: RawMeshLimits,
}

impl RawNode {
    fn check(self, document: &Document) -> Result<NodeConfig, Error> {
        let id = document.required("id", self.id, "\"node-1\"")?;
        let data_dir = document.path("data_dir", &self.data_dir.unwrap_or_else(|| "/var/lib/weir".into()))?;
        let shared_dir = match self.shared_dir {
            Some(raw) => document.path("shared_dir", &raw)?,
            None => data_dir.join("shared"),
        };
        let log = self.log.check(document, &shared_dir.join("object"))?;
        let archive = match log.level {
            LogLevel::Local => shared_dir.join("archive").display().to_string(),
            LogLevel::Object => format!("{}/archive", log.location.trim_end_matches('/')),
        };
        let listen = self.listen.check(document, Listen::default())?;
        let config = NodeConfig {
            id: document.name("id", id)?,
            data_dir,
            shared_dir,
            sql: self.sql.check(document, listen.sql)?,
            listen,
            tls: self.tls.server(document)?,
            agents: self.agents.check(document)?,
            mesh: self.mesh.check(document)?,
            checkpoint: self.checkpoint.check(document)?,
            changes: self.changes.check(document)?,
            workers: document.number("workers", self.workers, 1, 1..=64)? as usize,
            views: self.views.check(document)?,
            limits: self.limits.check(document)?,
            tick_ms: document.number("tick_ms", self.tick_ms, log.tick_ms(), 10..=10_000)?,
            log,
            journal: self.journal.check(document)?,
            query: self.query.check(document)?,
            archive: self.archive.check(document, archive)?,
            rules: self.rules.check(document)?,
            alerts: self.alerts.check(document)?,
        };
        if config.listen.mesh.ip().is_unspecified() && config.mesh.advertise.is_none() {
            let cure = "write the address that other nodes reach it at, such as \"10.0.0.7:7444\"";
            return Err(document.wrong("mesh.advertise", "listen.mesh is every address of this machine", cure));
        }
        if config.log.level == LogLevel::Object && config.log.holder_ttl_ms < 4 * config.tick_ms {
            let cure = format!("write at least {}, four times tick_ms, or lower tick_ms", 4 * config.tick_ms);
            return Err(document.wrong("log.holder_ttl_ms", "less than four ticks", cure));
        }
        if config.limits.in_flight_bytes_max < config.limits.frame_bytes_max {
            let cure = format!("write at least limits.frame_bytes_max, {}", config.limits.frame_bytes_max);
            return Err(document.wrong("limits.in_flight_bytes_max", "not even one frame fits", cure));
        }
        Ok(config)
    }
}

impl RawListen {
    pub(crate) fn check(self, document: &Document, default: Listen) -> Result<Listen, Error> {
        let address = |key: &str, raw: Option<String>, default: SocketAddr| match raw {
            Some(raw) => document.parsed(key, &raw, "write address:port, such as \"127.0.0.1:7432\" or \"[::]:7443\""),
            None => Ok(default),
        };
        let quic = address("listen.quic", self.quic, default.quic)?;
        let tcp = match self.tcp.as_deref() {
            None => default.tcp,
            Some("off") => TcpListen::Off,
            Some(raw) => {
                let at = document.parsed("listen.tcp", raw, "write address:port, such as \"0.0.0.0:7443\", or \"off\"")?;
                if at == quic { TcpListen::SameAsQuic } else { TcpListen::At(at) }
            }
        };
        Ok(Listen {
            quic,
            tcp,
            sql: address("listen.sql", self.sql, default.sql)?,
            http: address("listen.http", self.http, default.http)?,
            mesh: address("listen.mesh", self.mesh, default.mesh)?,
        })
    }
}

impl RawAgents {
    fn check(self, document: &Document) -> Result<Agents, Error> {
        let key = "agents.regions";
        if self.regions.as_ref().is_some_and(|regions| regions.is_empty() || regions.len() > REGIONS_MAX) {
            let cure = format!("name 1 to {REGIONS_MAX} regions, or remove the key to take agents of all");
            return Err(document.wrong(key, "a node that takes no agents, or too many regions", cure));
        }
        let regions = self.regions.unwrap_or_default().into_iter().enumerate();
        Ok(Agents {
            regions: regions.map(|(at, region)| document.name(&format!("{key}[{at}]"), region)).collect::<Result<_, _>>()?,
            authority: self.authority.map(|raw| document.path("agents.authority", &raw)).transpose()?,
            certificate_ms: document.number("agents.certificate_ms", self.certificate_ms, 86_400_000, 60_000..=2_592_000_000)?,
        })
    }
}

impl RawMesh {
    fn check(self, document: &Document) -> Result<Mesh, Error> {
        let cure = "write address:port as other nodes reach it, such as \"10.0.0.7:7444\"";
        let advertise = self.advertise.map(|raw| document.parsed::<SocketAddr>("mesh.advertise", &raw, cure)).transpose()?;
        if let Some(address) = advertise.filter(|address| address.ip().is_unspecified() || address.port() == 0) {
            return Err(document.wrong("mesh.advertise", format!("{address} is no address to reach a node at"), cure));
        }
        Ok(Mesh { advertise, limits: self.limits.check(document)? })
    }
}

/// Most regions of one node.
const REGIONS_MAX: usize = 256;
