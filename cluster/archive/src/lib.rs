//! The record: every chained event kept as Parquet on an object store, found again as DataFusion tables.
//!
//! ```text
//! pieces (sections of frames, in chain order) ─ Writer ─► fresh files ─ compaction ─► files by tenant, region, kind, hour
//!                                                 │                       │
//!                                                 └──► manifests: numbered, create-only, each with the hash of the one before
//!                                                                         │
//! queries ◄── Record: files of one catalog ∪ the chained tail behind its position
//! ```
//!
//! Promises:
//! - A manifest names a position of the chain; its files hold every event that was chained up to there, once. Whoever reads adds the
//!   chain behind that position, so an event is never missing and never twice, also across restarts and compactions.
//! - What a query reads is checked against checksums that the hash chain covers: a damaged file is an error that names it.
//! - A file is deleted only some time after the manifest that drops it; what retention drops is counted there.
//!
//! `manifest.rs` draws the format of manifests, `layout.rs` the names of objects, `seal.rs` the checksums inside a file. As evidence:
//! `verify.rs` says whether it is what was written, `export.rs` draws a case bundle, `import.rs` takes past events in.

#![forbid(unsafe_code)]

mod bundle;
pub mod catalog;
mod chunk;
pub mod compact;
mod error;
#[cfg(test)]
mod evidence_tests;
mod export;
mod hold;
mod import;
mod jsonl;
pub mod layout;
pub mod manifest;
mod merge;
mod piece;
mod properties;
mod query;
mod read;
pub mod retention;
mod seal;
mod sort;
mod split;
pub mod store;
pub mod sweep;
mod table;
#[cfg(test)]
mod upkeep_tests;
mod upload;
mod verify;
mod writer;

pub use bundle::Bundle;
pub use catalog::{Advance, Archive, Catalog, Change};
pub use compact::{Compacted, Job, Sizes, Work, choose, compact};
pub use error::Error;
pub use export::{Exported, export};
pub use hold::{hold, release};
pub use import::{BadLine, Imported, LineDefaults, import_archive, import_lines};
pub use layout::Table;
pub use manifest::{Dropped, FileEntry, Hold, Manifest, Position, Why};
pub use object_store::path::Path as ObjectPath;
pub use piece::{Convert, Part, Piece};
pub use properties::outside_schema;
pub use query::{Answer, cells, files_only, query};
pub use retention::{DroppedFile, Rule, retain};
pub use store::{Created, Store};
pub use sweep::{Sweep, Swept};
pub use table::{Record, RecordSnapshot, RecordTable, Tail, TailRequest};
pub use verify::{Fault, Progress, Verified, verify};
pub use writer::{Flush, Writer};
