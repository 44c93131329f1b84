//! Where the chain and the logs lie, and how they are written there.

use std::path::Path;

use serde::Deserialize;

use crate::document::Document;
use crate::error::Error;

/// The chain and the logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// How they are kept. Default `local`. The same on all nodes of a cluster.
    pub level: LogLevel,
    /// At level `object`: a path, relative to the file, or a URL: `s3://bucket/folder`, `gs://…`, `az://…`. Default: `object` in
    /// `shared_dir`. The same place for all nodes of a cluster.
    pub location: String,
    /// Bytes of a log's segment at level `object`: with so many it is written at once.
    ///
    /// Default 8388608 (a store takes it in one request), from 65536 to 67108864.
    pub segment_bytes_max: usize,
    /// Milliseconds between two segments of a log at level `object`, unless the first is full: most of the time to an acknowledgement.
    ///
    /// Default 250 (four requests a second and node), from 10 to 10000.
    pub segment_ms_max: u64,
    /// Milliseconds without a new record of the chain after which another node takes it over, at level `object`.
    ///
    /// Default 5000 (a store that is slow for a moment is no reason), from 1000 to 10000, and at least four ticks.
    pub holder_ttl_ms: u64,
}

/// How the chain and the logs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogLevel {
    /// In files of a directory of this machine, each write synced: what one machine needs.
    #[default]
    Local,
    /// As objects of a store, each created once: what a cluster of machines uses.
    Object,
}

/// What people write.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawLog {
    level: Option<String>,
    location: Option<String>,
    segment_bytes_max: Option<i64>,
    segment_ms_max: Option<i64>,
    holder_ttl_ms: Option<i64>,
}

impl RawLog {
    pub(crate) fn check(self, document: &Document, default_location: &Path) -> Result<LogConfig, Error> {
        let level = match self.level.as_deref() {
            None | Some("local") => LogLevel::Local,
            Some("object") => LogLevel::Object,
            Some(_) => return Err(document.wrong("log.level", "no such level", "write \"local\" or \"object\"")),
        };
        let location = match self.location {
            None => default_location.display().to_string(),
            Some(raw) if raw.contains("://") => raw,
            Some(raw) => document.path("log.location", raw.as_ref())?.display().to_string(),
        };
        let bytes = document.number("log.segment_bytes_max", self.segment_bytes_max, 8_388_608, 65_536..=67_108_864)?;
        Ok(LogConfig {
            level,
            location,
            segment_bytes_max: bytes as usize,
            segment_ms_max: document.number("log.segment_ms_max", self.segment_ms_max, 250, 10..=10_000)?,
            holder_ttl_ms: document.number("log.holder_ttl_ms", self.holder_ttl_ms, 5_000, 1_000..=10_000)?,
        })
    }
}

impl LogConfig {
    /// Milliseconds between two ticks, unless people say otherwise.
    pub(crate) fn tick_ms(&self) -> u64 {
        match self.level {
            LogLevel::Local => 100,
            LogLevel::Object => 250,
        }
    }
}
