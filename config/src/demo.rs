//! The demo's configuration: how many nodes, how large a simulated fleet, which ports. Every key has a default.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::document::Document;
use crate::error::Error;
use crate::node::{Listen, RawListen};

/// One demo, valid. `DemoConfig::default()` is what `weir demo` runs without a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoConfig {
    /// Nodes on loopback. Default 3 (the smallest real mesh), from 1 to 16.
    pub nodes: usize,
    /// Dataflow workers of each node. Default 1, from 1 to 16.
    pub workers: usize,
    /// Simulated hosts in six regions of three clouds; 0 for none. Default 60 (ten a region), up to 10000.
    pub fleet: usize,
    /// Events that the whole fleet makes each second. Default 2000 (a laptop hardly notices), from 1 to 1000000.
    pub rate: u64,
    /// Look at this host with eBPF where that is allowed. Default true.
    pub ebpf: bool,
    /// Folder of certificates and logs. Default `None`: a temporary one, removed at the end.
    pub data_dir: Option<PathBuf>,
    /// Ports of the first node, on loopback; taken ones are replaced by free ones, which the demo names.
    pub listen: Listen,
}

impl Default for DemoConfig {
    fn default() -> Self {
        let mut listen = Listen::default();
        listen.quic.set_ip([127, 0, 0, 1].into());
        Self { nodes: 3, workers: 1, fleet: 60, rate: 2000, ebpf: true, data_dir: None, listen }
    }
}

impl DemoConfig {
    /// Reads and checks the file at `path`, with the environment's `WEIR_` overrides.
    pub fn load(path: &Path) -> Result<Self, Error> {
        crate::read(path).and_then(|text| Self::parse(path, &text, crate::environment()))
    }

    /// Checks `text` as if it stood in the file `path`. Touches neither disk nor environment.
    pub fn parse(path: &Path, text: &str, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let (document, raw) = Document::read::<RawDemo>(path, text, environment)?;
        raw.check(&document)
    }
}

/// What people write.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawDemo {
    nodes: Option<i64>,
    workers: Option<i64>,
    fleet: Option<i64>,
    rate: Option<i64>,
    ebpf: Option<bool>,
    data_dir: Option<PathBuf>,
    listen: RawListen,
}

impl RawDemo {
    fn check(self, document: &Document) -> Result<DemoConfig, Error> {
        let default = DemoConfig::default();
        Ok(DemoConfig {
            nodes: document.number("nodes", self.nodes, default.nodes as u64, 1..=16)? as usize,
            workers: document.number("workers", self.workers, default.workers as u64, 1..=16)? as usize,
            fleet: document.number("fleet", self.fleet, default.fleet as u64, 0..=10_000)? as usize,
            rate: document.number("rate", self.rate, default.rate, 1..=1_000_000)?,
            ebpf: self.ebpf.unwrap_or(default.ebpf),
            data_dir: self.data_dir.map(|raw| document.path("data_dir", &raw)).transpose()?,
            listen: self.listen.check(document, default.listen)?,
        })
    }
}
