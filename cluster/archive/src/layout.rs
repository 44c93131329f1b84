//! Names of the archive's objects.
//!
//! ```text
//! manifest/00000000000000000017.json                                      dense from 1, create-only
//! state/<id>.bin                                                          what the writer goes on from
//! events/fresh/<id>.parquet                                               as flushed, all partitions in one file
//! events/tenant=T/region=R/kind=K/hour=2026-11-25T22/<id>.parquet         compacted
//! samples/…                                                               the same
//! ```
//!
//! `<id>` is random: a name is never used twice, so that a writer that died can harm nobody.

use std::hash::{BuildHasher as _, RandomState};

use object_store::path::Path;
use serde::{Deserialize, Serialize};
use weir_schema::{Column, EVENTS, Kind, Lane, SAMPLES, write_time};

/// A recorded relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// `events`
    Events,
    /// `samples`
    Samples,
}

impl Table {
    /// Every one.
    pub const ALL: [Self; 2] = [Self::Events, Self::Samples];

    /// Its SQL name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Samples => "samples",
        }
    }

    /// The relation of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }

    /// Its columns, in SQL's order.
    pub fn columns(self) -> &'static [Column] {
        match self {
            Self::Events => EVENTS,
            Self::Samples => SAMPLES,
        }
    }

    /// Where an event of this kind is recorded.
    pub fn of(kind: Kind) -> Self {
        if kind.lane() == Lane::Sample { Self::Samples } else { Self::Events }
    }
}

/// What the rows of a compacted file have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Partition {
    /// The tenant.
    pub tenant: String,
    /// The region, as the certificate says.
    pub region: String,
    /// SQL's name of the kind; `sample` for samples.
    pub kind: String,
}

/// Nanoseconds of an hour.
pub const HOUR_NS: i64 = 3_600_000_000_000;

/// The hour that a time lies in, hours since the Unix epoch.
pub fn hour_of(time_ns: i64) -> i64 {
    time_ns.div_euclid(HOUR_NS)
}

/// `2026-11-25T22`
pub(crate) fn hour_text(hour: i64) -> String {
    let mut text = String::new();
    write_time(&mut text, hour.saturating_mul(HOUR_NS));
    text.truncate(13);
    text
}

pub(crate) fn manifest_path(number: u64) -> Path {
    Path::from(format!("{MANIFESTS}/{number:020}.json"))
}

pub(crate) fn state_path(id: &str) -> Path {
    Path::from(format!("{STATES}/{id}.bin"))
}

pub(crate) fn fresh_path(table: Table, id: &str) -> Path {
    Path::from(format!("{}/fresh/{id}.parquet", table.name()))
}

pub(crate) fn partition_path(table: Table, partition: &Partition, hour: i64, id: &str) -> Path {
    let Partition { tenant, region, kind } = partition;
    let hour = hour_text(hour);
    Path::from(format!("{}/tenant={tenant}/region={region}/kind={kind}/hour={hour}/{id}.parquet", table.name()))
}

/// 128 random bits, in hexadecimal: the standard library's keys, which the system's randomness seeds.
pub(crate) fn random_id() -> String {
    let half = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", half(), half())
}

pub(crate) const MANIFESTS: &str = "manifest";
pub(crate) const STATES: &str = "state";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_header_draws() {
        assert_eq!(manifest_path(17).as_ref(), "manifest/00000000000000000017.json");
        let partition = Partition { tenant: "acme".into(), region: "eu".into(), kind: "connect".into() };
        let hour = hour_of(1_764_108_000_000_000_001);
        let path = partition_path(Table::Events, &partition, hour, "x");
        assert_eq!(path.as_ref(), "events/tenant=acme/region=eu/kind=connect/hour=2025-11-25T22/x.parquet");
        assert_eq!(hour_of(-1), -1);
        assert_ne!(random_id(), random_id());
    }
}
