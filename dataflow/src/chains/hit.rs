//! A hit: an event that some stage of a rule asks for, on its way to the worker that has its key.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_schema::Text;

use crate::checkpoint::shared;
use crate::connections::Place;
use crate::packed::Bytes;

/// An event's place in time: (nanoseconds, event id).
pub(crate) type Moment = (i64, [u8; 16]);

/// An event of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hit {
    pub(crate) at: Moment,
    /// Bit n: it is an event of stage n. Bits behind the stages: of what must not happen, and of UNTIL.
    pub(crate) bits: u32,
    #[serde(with = "shared")]
    pub(crate) source: Arc<HitSource>,
}

/// What an alert says of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HitSource {
    #[serde(with = "shared")]
    pub(crate) place: Arc<Place>,
    pub(crate) app: Option<Text>,
    pub(crate) container_id: Option<Text>,
    /// In hexadecimal.
    pub(crate) process_id: Option<Text>,
    /// Events that its agent had reported as lost when it told of this one.
    pub(crate) lost: u64,
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
