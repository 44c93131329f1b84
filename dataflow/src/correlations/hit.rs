//! A hit of a correlation, on its way to the worker that has its group.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_rules::{Datum, Seen};

use crate::checkpoint::shared;
use crate::hits::{HitSource, Moment};
use crate::packed::Bytes;

/// What is counted of a hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Counted {
    Number(i64),
    Digest(u128),
}

/// An event of a group, or a match of another correlation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hit {
    pub(crate) at: Moment,
    /// Bit n: it is a hit of the n-th rule.
    pub(crate) inputs: u32,
    pub(crate) datum: Option<Counted>,
    #[serde(with = "shared")]
    pub(crate) source: Arc<HitSource>,
    /// The events of a match; an event stands for itself.
    pub(crate) evidence: Vec<[u8; 16]>,
}

/// A hit that comes, or goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CorrelationHit {
    /// By which worker it is counted: a hash of correlation and group.
    pub(crate) route: u64,
    pub(crate) level: u8,
    /// The correlation's version.
    pub(crate) version: u64,
    /// The tenant and the values of the group.
    pub(crate) group: Bytes,
    pub(crate) hit: Hit,
    /// 1, or −1 where a match is no more.
    pub(crate) diff: i8,
}

impl From<Datum> for Counted {
    fn from(datum: Datum) -> Self {
        match datum {
            Datum::Number(number) => Self::Number(number),
            Datum::Digest(digest) => Self::Digest(digest),
        }
    }
}

impl Seen for Hit {
    fn at(&self) -> Moment {
        self.at
    }

    fn inputs(&self) -> u32 {
        self.inputs
    }

    fn datum(&self) -> Option<Datum> {
        self.datum.map(|counted| match counted {
            Counted::Number(number) => Datum::Number(number),
            Counted::Digest(digest) => Datum::Digest(digest),
        })
    }
}

/// A group's values as bytes: the tenant first.
pub(super) fn group_bytes(tenant: &str, keys: &[String]) -> Bytes {
    postcard::to_stdvec(&(tenant, keys)).expect("texts always serialise").into()
}

/// The tenant and the values of a group.
pub(super) fn group_values(group: &Bytes) -> (String, Vec<String>) {
    postcard::from_bytes(group).expect("bytes that this build made")
}
