//! A hit: an event that some stage of a rule asks for, on its way to the worker that has its key.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::checkpoint::shared;
pub(crate) use crate::hits::{HitSource, Moment};
use crate::packed::Bytes;

/// An event of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hit {
    pub(crate) at: Moment,
    /// Bit n: it is an event of stage n. Bits behind the stages: of what must not happen, and of UNTIL.
    pub(crate) bits: u32,
    #[serde(with = "shared")]
    pub(crate) source: Arc<HitSource>,
}

/// A hit that travels.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ChainHit {
    /// By which worker it is chosen: a hash of rule and key.
    pub(crate) route: u64,
    /// The rule's version.
    pub(crate) rule: u64,
    /// The tenant and the rule's keys, as the rule's codec writes them.
    pub(crate) key: Bytes,
    pub(crate) hit: Hit,
}
