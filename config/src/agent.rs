//! The agent's configuration: whom it reports to, what it looks at, and how much of the host it may use.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::address::HostPort;
use crate::apps::{AppRule, RawAppRule};
use crate::collector::{Collector, RawCollector};
use crate::document::Document;
use crate::error::Error;
use crate::metadata::{MetadataConfig, RawMetadata};
use crate::process::{ProcessConfig, RawProcess};
use crate::section::numbers;
use crate::tls::{ClientTls, Enrol, RawEnrol, RawTls};

/// One agent, valid. Made by [`AgentConfig::load`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// The host's name in all events. Default: the system's host name.
    pub host: Option<String>,
    /// Cloud provider, such as `aws` or `onprem`. Default: unknown.
    pub cloud: Option<String>,
    /// Availability zone. Default: unknown.
    pub zone: Option<String>,
    /// The nodes, tried in turn until one answers. Required, at most 64: a list, not a fleet's inventory. Empty
    /// only behind [`AgentConfig::load_for_recording`].
    pub nodes: Vec<HostPort>,
    /// What carries events to a node. Default `auto`: QUIC, or TLS over TCP at the same port number while no node answers on UDP.
    pub transport: TransportChoice,
    /// Milliseconds until an agent that had to take TCP tries UDP again, at the most: the first try comes after a minute, each later
    /// one waits twice as long.
    ///
    /// Default 600000 (ten minutes: a firewall is seldom changed, and a try costs a few packets), from 10000 to 86400000.
    pub udp_retry_ms_max: u64,
    /// The name that the nodes' certificates must carry. Default `weir-node`, which `weir ca issue` gives every node.
    pub server_name: String,
    /// Certificates.
    pub tls: ClientTls,
    /// How the agent gets its certificate and renews it. Default: not at all, `tls` names files that somebody else keeps in force.
    pub enrol: Option<Enrol>,
    /// Folder of the agent's own files. Default `/var/lib/weir-agent`, where systemd's `StateDirectory` puts it.
    pub data_dir: PathBuf,
    /// What is looked at.
    pub collector: Collector,
    /// Who is asked whose something is.
    pub metadata: MetadataConfig,
    /// What the process may do and use.
    pub process: ProcessConfig,
    /// When a batch is sent.
    pub batch: BatchLimits,
    /// Where batches lie that no node acknowledges.
    pub spool: SpoolLimits,
    /// Memory for batches that no node has acknowledged yet, in bytes. As it fills, because the spool cannot be written, new
    /// events of the least important lanes are dropped first, and counted.
    ///
    /// Default 33554432 (32 MiB: half of the 64 MiB that an agent may hold), from 1 MiB to 4 GiB.
    pub memory_bytes_max: u64,
    /// Milliseconds between two utilisation samples of a container.
    ///
    /// Default 1000 (bursts of a second are seen; a host of 100 containers costs under 1 % of a core), from 100 to 60000.
    pub sample_interval_ms: u64,
    /// Which application a container or process belongs to; the first rule that fits wins. At most 1024.
    pub apps: Vec<AppRule>,
}

/// What carries events to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransportChoice {
    /// QUIC, or TCP while UDP is not let through.
    #[default]
    Auto,
    /// QUIC only.
    Quic,
    /// TCP only.
    Tcp,
}

impl std::str::FromStr for TransportChoice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "quic" => Ok(Self::Quic),
            "tcp" => Ok(Self::Tcp),
            _ => Err("not a transport"),
        }
    }
}

numbers! {
    /// When a batch is complete: whichever limit is reached first.
    BatchLimits (RawBatchLimits) in "batch" {
        /// Events in a batch. More would not compress better; fewer cost header and string table.
        events_max: usize = 1000 in 1 ..= 65536;
        /// Bytes of a batch before compression. A node refuses frames of more than 8 MiB.
        bytes_max: usize = 524288 in 4096 ..= 4194304;
        /// Milliseconds from a batch's first event until it is sent. The largest part of an answer's delay.
        age_ms_max: u64 = 50 in 1 ..= 10000;
        /// The same while no node is there, for all lanes but security: larger batches are smaller per event, so the spool lasts longer.
        away_age_ms_max: u64 = 2000 in 1 ..= 10000;
    }
}

numbers! {
    /// The spool: batches that no node acknowledges lie in memory first, then in `data_dir/spool`.
    SpoolLimits (RawSpoolLimits) in "spool" {
        /// Bytes on the disk. 256 MiB hold about 90 minutes of 2,000 events a second. Full: the oldest of the least important lane go, counted.
        bytes_max: u64 = 268435456 in 16777216 ..= 1099511627776;
        /// Un-acknowledged bytes in memory beyond which new batches go to the disk, because the link is slow.
        memory_bytes_max: u64 = 4194304 in 65536 ..= 1073741824;
        /// Milliseconds without a session after which everything un-acknowledged goes to the disk.
        away_ms_max: u64 = 2000 in 0 ..= 60000;
    }
}

impl AgentConfig {
    /// Reads and checks the file at `path`, with the environment's `WEIR_` overrides.
    pub fn load(path: &Path) -> Result<Self, Error> {
        crate::read(path).and_then(|text| Self::parse(path, &text, crate::environment()))
    }

    /// The same for an agent that records what it collects: without `nodes` it reports to nobody, and needs no `tls`. Without a file
    /// everything has its default, the environment's overrides apart.
    pub fn load_for_recording(path: Option<&Path>) -> Result<Self, Error> {
        let (path, text) = match path {
            Some(path) => (path, crate::read(path)?),
            None => (Path::new("(defaults)"), String::new()),
        };
        Self::parse_for_recording(path, &text, crate::environment())
    }

    /// Checks `text` as [`AgentConfig::load_for_recording`] does. Touches neither disk nor environment.
    pub fn parse_for_recording(
        path: &Path,
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        let (document, mut raw) = Document::read::<RawAgent>(path, text, environment)?;
        raw.alone = raw.nodes.is_none();
        raw.check(&document)
    }

    /// Checks `text` as if it stood in the file `path`. Touches neither disk nor environment.
    pub fn parse(path: &Path, text: &str, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let (document, raw) = Document::read::<RawAgent>(path, text, environment)?;
        raw.check(&document)
    }
}

/// What people write.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawAgent {
    host: Option<String>,
    cloud: Option<String>,
    zone: Option<String>,
    nodes: Option<Vec<String>>,
    transport: Option<String>,
    udp_retry_ms_max: Option<i64>,
    server_name: Option<String>,
    tls: RawTls,
    enrol: Option<RawEnrol>,
    data_dir: Option<PathBuf>,
    collector: RawCollector,
    metadata: RawMetadata,
    process: RawProcess,
    batch: RawBatchLimits,
    spool: RawSpoolLimits,
    memory_bytes_max: Option<i64>,
    sample_interval_ms: Option<i64>,
    apps: Vec<RawAppRule>,
    /// Set by the door for recordings, never by people: there are no nodes.
    #[serde(skip)]
    alone: bool,
}

impl RawAgent {
    fn check(self, document: &Document) -> Result<AgentConfig, Error> {
        let name = |key: &str, raw: Option<String>| raw.map(|raw| document.name(key, raw)).transpose();
        let nodes = match self.alone {
            true => Vec::new(),
            false => document.required("nodes", self.nodes, "[\"weir-1.example.org:7443\"]")?,
        };
        if (nodes.is_empty() && !self.alone) || nodes.len() > NODES_MAX {
            return Err(document.wrong("nodes", format!("{} nodes", nodes.len()), format!("name 1 to {NODES_MAX} nodes")));
        }
        let cure = "write host:port, such as \"weir-1.example.org:7443\" or \"[fd00::7]:7443\"";
        let nodes = nodes.iter().enumerate().map(|(index, node)| document.parsed(&format!("nodes[{index}]"), node, cure));
        if self.apps.len() > APPS_MAX {
            let cure = format!("merge rules until at most {APPS_MAX} are left");
            return Err(document.wrong("apps", format!("{} rules", self.apps.len()), cure));
        }
        let data_dir = document.path("data_dir", &self.data_dir.unwrap_or_else(|| "/var/lib/weir-agent".into()))?;
        let enrol = self.enrol.map(|raw| raw.check(document)).transpose()?;
        let apps = self.apps.into_iter().enumerate().map(|(index, rule)| rule.check(index, document));
        Ok(AgentConfig {
            host: name("host", self.host)?,
            cloud: name("cloud", self.cloud)?,
            zone: name("zone", self.zone)?,
            nodes: nodes.collect::<Result<_, _>>()?,
            transport: match self.transport {
                Some(raw) => document.parsed("transport", &raw, "write \"auto\", \"quic\" or \"tcp\"")?,
                None => TransportChoice::default(),
            },
            udp_retry_ms_max: document.number("udp_retry_ms_max", self.udp_retry_ms_max, 600_000, 10_000..=86_400_000)?,
            server_name: name("server_name", self.server_name)?.unwrap_or_else(|| "weir-node".to_owned()),
            tls: match &enrol {
                Some(_) => self.tls.made_in(&data_dir.join("identity"), document)?,
                // Never read: an agent without nodes opens no session.
                None if self.alone => self.tls.made_in(&data_dir.join("identity"), document)?,
                None => self.tls.client(document)?,
            },
            enrol,
            data_dir,
            collector: self.collector.check(document)?,
            metadata: self.metadata.check(document)?,
            process: self.process.check(document)?,
            batch: self.batch.check(document)?,
            spool: self.spool.check(document)?,
            memory_bytes_max: document.number("memory_bytes_max", self.memory_bytes_max, 32 << 20, 1 << 20..=4 << 30)?,
            sample_interval_ms: document.number("sample_interval_ms", self.sample_interval_ms, 1000, 100..=60_000)?,
            apps: apps.collect::<Result<_, _>>()?,
        })
    }
}

/// Most nodes an agent is told of.
const NODES_MAX: usize = 64;
/// Most rules: each new process is held against all of them.
const APPS_MAX: usize = 1024;
