//! Where the record is kept, how it is written, and for how long.

use serde::Deserialize;

use crate::document::Document;
use crate::error::Error;
use crate::section::numbers;

/// The record of all events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveConfig {
    /// Write and read it. Default true. Without it `events` and `samples` are the last rows in memory.
    pub enabled: bool,
    /// A path, relative to the file, or a URL: `s3://bucket/folder`, `gs://…`, `az://…`. Default: `archive` in `shared_dir`, at log level
    /// `object` in `log.location`.
    pub location: String,
    /// How it is written.
    pub limits: ArchiveLimits,
    /// What may be dropped, and when. Default: one rule, 720 hours for everything.
    pub retention: Vec<RetentionRule>,
}

numbers! {
    /// How the archive is written.
    ArchiveLimits (RawArchiveLimits) in "archive.limits" {
        /// Milliseconds after which rows are flushed to a file, however few. Until then they are read from the log.
        flush_ms_max: u64 = 30000 in 100 ..= 3600000;
        /// Rows that are flushed together: about 30 MB in memory, a file of about 10 MB.
        flush_rows_max: usize = 262144 in 1000 ..= 4000000;
        /// Bytes of decoded rows that are flushed together.
        flush_bytes_max: usize = 134217728 in 1048576 ..= 2147483648;
        /// Bytes below which a compacted file is joined with its neighbours.
        file_bytes_min: u64 = 67108864 in 1024 ..= 1073741824;
        /// Bytes at which a compacted file ends.
        file_bytes_max: u64 = 268435456 in 4096 ..= 4294967296;
        /// Fresh files of one relation that are compacted together.
        fresh_files_max: usize = 16 in 2 ..= 1024;
        /// Milliseconds after which fresh files are compacted, however few.
        fresh_ms_max: u64 = 600000 in 1000 ..= 86400000;
        /// Milliseconds between a file's last mention in a manifest and its deletion: queries that began before may still read it.
        delete_after_ms: u64 = 900000 in 1000 ..= 86400000;
        /// Searches of the record at once; more wait. They run at a lower priority than the views.
        searches_max: usize = 4 in 1 ..= 64;
    }
}

/// How long, and how much, of what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetentionRule {
    /// `events` or `samples`; none: both.
    pub table: Option<String>,
    /// Only of this tenant.
    pub tenant: Option<String>,
    /// Only of this region.
    pub region: Option<String>,
    /// Hours that rows are kept, by their own time.
    pub age_hours_max: Option<u64>,
    /// Bytes of files that are kept; the oldest go first.
    pub bytes_max: Option<u64>,
}

/// What people write.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawArchive {
    enabled: Option<bool>,
    location: Option<String>,
    limits: RawArchiveLimits,
    retention: Option<Vec<RawRetention>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRetention {
    table: Option<String>,
    tenant: Option<String>,
    region: Option<String>,
    age_hours_max: Option<i64>,
    bytes_max: Option<i64>,
}

impl RawArchive {
    pub(crate) fn check(self, document: &Document, default_location: String) -> Result<ArchiveConfig, Error> {
        let location = match self.location {
            None => default_location,
            Some(raw) if raw.contains("://") => raw,
            Some(raw) => document.path("archive.location", raw.as_ref())?.display().to_string(),
        };
        let limits = self.limits.check(document)?;
        if limits.file_bytes_max < limits.file_bytes_min {
            let cure = format!("write at least archive.limits.file_bytes_min, {}", limits.file_bytes_min);
            return Err(document.wrong("archive.limits.file_bytes_max", "below the least size of a file", cure));
        }
        let keep_a_month = || vec![RetentionRule { age_hours_max: Some(720), ..RetentionRule::default() }];
        let retention = match self.retention {
            None => keep_a_month(),
            Some(rules) => {
                let rules = rules.into_iter().enumerate();
                rules
                    .map(|(place, rule)| rule.check(document, &format!("archive.retention[{place}]")))
                    .collect::<Result<_, _>>()?
            }
        };
        Ok(ArchiveConfig { enabled: self.enabled.unwrap_or(true), location, limits, retention })
    }
}

impl RawRetention {
    fn check(self, document: &Document, key: &str) -> Result<RetentionRule, Error> {
        if self.table.as_deref().is_some_and(|table| !matches!(table, "events" | "samples")) {
            return Err(document.wrong(
                &format!("{key}.table"),
                "no recorded relation",
                "write \"events\" or \"samples\", or leave it out",
            ));
        }
        if self.age_hours_max.is_none() && self.bytes_max.is_none() {
            return Err(document.wrong(key, "a rule without a limit", "add age_hours_max or bytes_max"));
        }
        let name = |name: &str, raw: Option<String>| raw.map(|raw| document.name(&format!("{key}.{name}"), raw)).transpose();
        let number = |name: &str, raw: Option<i64>, least, most| {
            raw.map(|raw| document.number(&format!("{key}.{name}"), Some(raw), least, least..=most)).transpose()
        };
        Ok(RetentionRule {
            table: self.table,
            tenant: name("tenant", self.tenant)?,
            region: name("region", self.region)?,
            age_hours_max: number("age_hours_max", self.age_hours_max, 1, 876_000)?,
            bytes_max: number("bytes_max", self.bytes_max, 1 << 20, 1 << 60)?,
        })
    }
}
