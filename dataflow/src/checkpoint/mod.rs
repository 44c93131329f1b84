//! Checkpoints: the state of every operator at one closed tick, as bytes, and back onto any number of workers.
//!
//! ```text
//! part     = "WCHK" | version u16 | raw_len u64 | crc32c u32 of raw_len and of what follows | one zstd frame of the postcard of PartV1
//! PartV1   = build, tick, worker, workers, settings, sections [(operator's name, postcard of its state)]
//! ```
//!
//! The chain commands a checkpoint at a tick. Every worker feeds nothing more until that tick is closed, saves, and goes on. A keyed
//! operator applies a tick only once it is closed, and no later tick can close before every worker has fed one: so what is saved is the state
//! at exactly that tick, on all workers, without any of them waiting for another one's disk.
//!
//! Promise: workers that begin from a checkpoint answer at its tick and at every later one as if they had read the whole chain. What is
//! not in it: rows of `events` and `samples` in memory (the record has them), and ticks before.
//! State is bytes of this build (`arrow-row` keys among them): another build refuses them and reads the chain instead.

pub(crate) mod keeper;
pub(crate) mod pairs;
pub(crate) mod shared;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::settings::ViewSettings;

pub(crate) use keeper::{Keeper, Kept, Share, State, encode};

/// One worker's share of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointPart {
    /// The tick.
    pub tick: u64,
    /// Which worker of the mesh.
    pub worker: usize,
    /// Workers of the mesh.
    pub workers: usize,
    /// The part, to be kept as it is.
    pub bytes: Vec<u8>,
}

/// Where parts go. Called on a thread of the engine's own, so that no worker waits for a disk.
pub trait CheckpointSink: Send + Sync {
    /// A worker begins to save its state, and answers nobody until it is done. Called on the worker's own thread.
    fn begun(&self, tick: u64);

    /// Keeps a part, or tells people why not.
    fn put(&self, part: CheckpointPart);
}

/// Why a checkpoint cannot be begun from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The bytes are not what was written.
    #[error("a part of the checkpoint is damaged: {0}; begin from another one")]
    Damaged(&'static str),
    /// Another build wrote it.
    #[error("the checkpoint is of build \"{found}\", this is \"{ours}\": the chain is read instead")]
    Build {
        /// Who wrote it.
        found: String,
        /// Who reads it.
        ours: String,
    },
    /// Some worker's part is missing, or is there twice, or is of another checkpoint.
    #[error("the parts are not one checkpoint: {0}")]
    Parts(String),
    /// An operator's state is missing or does not fit.
    #[error("the state of operator \"{operator}\" cannot be taken up: {why}")]
    State {
        /// Which.
        operator: String,
        /// Why.
        why: String,
    },
}

/// A whole checkpoint, to begin from.
#[derive(Debug)]
pub struct Restore {
    tick: u64,
    settings: ViewSettings,
    /// By operator, one per part.
    sections: HashMap<String, Vec<Vec<u8>>>,
}

#[derive(Serialize, Deserialize)]
struct PartV1 {
    build: String,
    tick: u64,
    worker: usize,
    workers: usize,
    settings: ViewSettings,
    sections: Vec<(String, Vec<u8>)>,
}

/// What a worker has saved, not yet packed.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) tick: u64,
    pub(crate) share: Share,
    pub(crate) settings: ViewSettings,
    pub(crate) sections: Vec<(String, Vec<u8>)>,
}

impl Saved {
    /// Packs it: takes a while, so it is done off the worker's thread.
    pub(crate) fn pack(self) -> CheckpointPart {
        let Self { tick, share: Share { index: worker, peers: workers }, settings, sections } = self;
        let part = PartV1 { build: BUILD.to_owned(), tick, worker, workers, settings, sections };
        let raw = postcard::to_stdvec(&part).expect("numbers, names and bytes always serialise");
        let body = zstd::bulk::compress(&raw, ZSTD_LEVEL).expect("memory can be compressed");
        let mut bytes = Vec::with_capacity(body.len() + HEADER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let raw_len = (raw.len() as u64).to_le_bytes();
        bytes.extend_from_slice(&raw_len);
        bytes.extend_from_slice(&checksum(&raw_len, &body).to_le_bytes());
        bytes.extend_from_slice(&body);
        CheckpointPart { tick, worker, workers, bytes }
    }
}

fn unpack(bytes: &[u8]) -> Result<PartV1, CheckpointError> {
    let damaged = CheckpointError::Damaged;
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("it does not begin like one"))?;
    let (version, rest) = rest.split_first_chunk().ok_or_else(|| damaged("it is cut off"))?;
    if u16::from_le_bytes(*version) != VERSION {
        return Err(damaged("it has a version that this program does not know"));
    }
    let (raw_len, rest) = rest.split_first_chunk().ok_or_else(|| damaged("it is cut off"))?;
    let (crc, body) = rest.split_first_chunk().ok_or_else(|| damaged("it is cut off"))?;
    if checksum(raw_len, body) != u32::from_le_bytes(*crc) {
        return Err(damaged("its checksum is wrong"));
    }
    let raw_len = u64::from_le_bytes(*raw_len);
    // Whatever the checksum says: it must not ask for memory out of proportion.
    let raw_len = usize::try_from(raw_len).ok().filter(|len| *len <= body.len().saturating_mul(RATIO_MAX));
    let raw = zstd::bulk::decompress(body, raw_len.ok_or_else(|| damaged("its length is impossible"))?);
    let raw = raw.map_err(|_| damaged("it cannot be unpacked"))?;
    let part: PartV1 = postcard::from_bytes(&raw).map_err(|_| damaged("it is malformed"))?;
    if part.build != BUILD {
        return Err(CheckpointError::Build { found: part.build, ours: BUILD.to_owned() });
    }
    Ok(part)
}

fn checksum(raw_len: &[u8; 8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(raw_len), body)
}

impl Restore {
    /// Reads all parts of one checkpoint, in any order.
    pub fn parse(parts: &[Vec<u8>]) -> Result<Self, CheckpointError> {
        let wrong = |why: String| Err(CheckpointError::Parts(why));
        let mut parts = parts.iter().map(|bytes| unpack(bytes)).collect::<Result<Vec<_>, _>>()?;
        parts.sort_by_key(|part| part.worker);
        let Some(first) = parts.first() else { return wrong("there are none".to_owned()) };
        let (tick, settings, workers) = (first.tick, first.settings, first.workers);
        if parts.len() != workers || parts.iter().enumerate().any(|(place, part)| part.worker != place) {
            return wrong(format!(
                "of {workers} workers those of {:?} are there",
                parts.iter().map(|part| part.worker).collect::<Vec<_>>()
            ));
        }
        if parts.iter().any(|part| (part.tick, part.settings, part.workers) != (tick, settings, workers)) {
            return wrong("they are of several ticks or settings".to_owned());
        }
        let mut sections: HashMap<String, Vec<Vec<u8>>> = HashMap::new();
        for (name, bytes) in parts.into_iter().flat_map(|part| part.sections) {
            sections.entry(name).or_default().push(bytes);
        }
        Ok(Self { tick, settings, sections })
    }

    /// Whether these bytes are a whole part: what can be known without the others.
    pub fn check(bytes: &[u8]) -> Result<(), CheckpointError> {
        unpack(bytes).map(drop)
    }

    /// The tick that answers begin at.
    pub fn tick(&self) -> u64 {
        self.tick
    }

    /// What the views were built for.
    pub fn settings(&self) -> ViewSettings {
        self.settings
    }
}

/// A part without any state, for tests of what keeps parts.
#[doc(hidden)]
pub fn empty_part(tick: u64, worker: usize, workers: usize) -> Vec<u8> {
    let share = Share { index: worker, peers: workers };
    Saved { tick, share, settings: ViewSettings::default(), sections: Vec::new() }.pack().bytes
}

/// State is bytes that only the same build understands. A change of any operator's state raises the last number.
const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), " arrow 59 state 7");
const MAGIC: &[u8] = b"WCHK";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 4 + 2 + 8 + 4;
const ZSTD_LEVEL: i32 = 1;
/// Repeated rows pack well; more than this is no packing of ours.
const RATIO_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn part(worker: usize, workers: usize, tick: u64) -> Vec<u8> {
        let sections = vec![("a".to_owned(), vec![worker as u8; 100])];
        Saved { tick, share: Share { index: worker, peers: workers }, settings: ViewSettings::default(), sections }.pack().bytes
    }

    #[test]
    fn a_checkpoint_is_all_parts_of_one_tick() {
        let restore = Restore::parse(&[part(1, 2, 7), part(0, 2, 7)]).unwrap();
        assert_eq!((restore.tick(), restore.sections["a"].len(), restore.sections["a"][1][0]), (7, 2, 1));
        let why = |parts: &[Vec<u8>]| Restore::parse(parts).unwrap_err().to_string();
        assert!(why(&[]).contains("none"));
        assert!(why(&[part(0, 2, 7)]).contains("of 2 workers"));
        assert!(why(&[part(0, 2, 7), part(0, 2, 7)]).contains("of 2 workers"));
        assert!(why(&[part(0, 2, 7), part(1, 2, 8)]).contains("several ticks"));
    }

    #[test]
    fn hostile_bytes_are_an_error() {
        let whole = part(0, 1, 7);
        for len in 0..whole.len() {
            assert!(Restore::parse(&[whole[..len].to_vec()]).is_err(), "cut to {len}");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x40;
            assert!(Restore::parse(&[flipped]).is_err(), "flipped at {at}");
        }
    }
}
