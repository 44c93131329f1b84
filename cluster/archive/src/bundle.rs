//! `bundle.json`: what a case bundle was made of. The rest of a bundle is a small archive (`export.rs`).
//!
//! ```json
//! { "format": 1, "where": "host = 'web-7'", "tick": …,
//!   "origin": { "number": 17, "manifest_sha256": "…" },
//!   "rows": { "events": 4711, "samples": 0 },
//!   "manifest_sha256": "<of manifest 1 of the bundle>",
//!   "events_jsonl": { "bytes": …, "sha256": "…" },
//!   "written_ms": … }
//! ```
//!
//! It is written last: a folder without it is no bundle, or one that was not finished.

use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::catalog::Catalog;
use crate::error::Error;
use crate::layout::Table;
use crate::store::Store;

/// What a bundle says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// Version of this format.
    pub format: u32,
    /// The predicate that its rows fulfil, as it was given; none: every row.
    #[serde(rename = "where")]
    pub predicate: Option<String>,
    /// The last tick whose rows are in it.
    pub tick: u64,
    /// Where its rows come from.
    pub origin: Origin,
    /// How many it has.
    pub rows: Rows,
    /// SHA-256 of the bundle's own manifest.
    pub manifest_sha256: String,
    /// The events as JSON lines.
    pub events_jsonl: Lines,
    /// The clock of whoever wrote it. Told to people.
    pub written_ms: u64,
}

/// The archive that a bundle was taken from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Number of its newest manifest then; 0 when it had none.
    pub number: u64,
    /// SHA-256 of that manifest.
    pub manifest_sha256: String,
}

/// Rows by relation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// Of `events`.
    pub events: u64,
    /// Of `samples`.
    pub samples: u64,
}

/// The file of JSON lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lines {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}

impl Bundle {
    /// Reads it, if there is one; `Err` inside: it is not readable, and why.
    pub(crate) async fn read(store: &Store) -> Result<Result<Option<Self>, String>, Error> {
        let Some(bytes) = store.read_if_there(&Path::from(BUNDLE)).await? else { return Ok(Ok(None)) };
        Ok(match serde_json::from_slice::<Self>(&bytes) {
            Ok(bundle) if bundle.format == FORMAT => Ok(Some(bundle)),
            Ok(bundle) => Err(format!("it has format {}, this build reads {FORMAT}", bundle.format)),
            Err(error) => Err(error.to_string()),
        })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("plain structs of texts and numbers always serialise");
        bytes.push(b'\n');
        bytes
    }

    /// What it says otherwise than the catalog that it belongs to.
    pub(crate) fn contradicts(&self, catalog: &Catalog) -> Option<String> {
        let rows = |table| catalog.files_of(table).fold(0u64, |rows, file| rows.saturating_add(file.rows));
        let has = Rows { events: rows(Table::Events), samples: rows(Table::Samples) };
        if self.rows != has {
            let Rows { events, samples } = self.rows;
            return Some(format!(
                "it says {events} events and {samples} samples, the manifest {} and {}",
                has.events, has.samples
            ));
        }
        (self.tick != catalog.position.tick)
            .then(|| format!("it says tick {}, the manifest {}", self.tick, catalog.position.tick))
    }
}

/// Name of the object.
pub(crate) const BUNDLE: &str = "bundle.json";
/// Name of the events as JSON lines.
pub(crate) const EVENTS_JSONL: &str = "events.jsonl";
/// Version of the format that this build writes.
pub(crate) const FORMAT: u32 = 1;
