//! An intake's state as bytes: what the archive keeps, so that the record goes on after its last tick.
//!
//! ```text
//! state    = version u8 (1) | one zstd frame, with its checksum, of the postcard of StateV1
//! StateV1  = AgentV1* by route | FrameV1* | WaitingV1* by moment, inside in chain order
//! AgentV1  = route, then by epoch (latest used last) and lane the seen seqs: (seqs since the range before, length)
//! FrameV1  = identity, received_ms, the frame as sent: once, however many moments its rows wait for
//! WaitingV1 = moment, number of the frame, by section the numbers of its rows, ascending
//! ```
//!
//! Promise: equal states give equal bytes; no bytes make `restore` panic or take memory out of proportion to
//! `STATE_BYTES_MAX`. Checksums of frames are not saved, no intake has them: see [`Dedupe::of_seqs`]. Neither is what follows
//! from the rest: how many rows of an agent wait.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, OnceLock};

use hashbrown::HashMap;
use serde::{Deserialize, Serialize, Serializer};
use weir_schema::{AgentIdentity, Decoder, Frame, Section};
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use super::{AHEAD_ROWS_MAX, Admission, Agent, Dedupe, Held, Intake, Origin, Pick, Picks, Waiting};
use crate::source::dedupe::Seen;

/// Why a state was not saved or not restored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IntakeError {
    /// Another version of this program wrote it.
    #[error("intake state has version {found}, this binary knows {known}: read the chain from its start")]
    Version {
        /// Its version.
        found: u8,
        /// The version known here.
        known: u8,
    },
    /// It is larger than a state may be.
    #[error("intake state is larger than {max} bytes: too many rows wait for their time, go on from an earlier state")]
    TooLarge {
        /// How large it may be, before compression.
        max: usize,
    },
    /// The bytes are not what an intake saves.
    #[error("intake state is damaged: {0}; go on from another one")]
    Damaged(&'static str),
}

#[derive(Serialize, Deserialize)]
struct StateV1<'a> {
    agents: Vec<AgentV1>,
    #[serde(borrow)]
    frames: Vec<FrameV1<'a>>,
    waiting: Vec<WaitingV1>,
}

#[derive(Serialize, Deserialize)]
struct AgentV1 {
    route: u64,
    seen: Seen,
}

#[derive(Serialize, Deserialize)]
struct FrameV1<'a> {
    identity: Arc<AgentIdentity>,
    received_ms: u64,
    #[serde(serialize_with = "as_bytes")]
    bytes: &'a [u8],
}

#[derive(Serialize, Deserialize)]
struct WaitingV1 {
    moment: u64,
    frame: u32,
    picks: Vec<(u32, Vec<u32>)>,
}

impl Intake {
    /// What it needs to go on after the last tick.
    pub fn save(&self) -> Result<Vec<u8>, IntakeError> {
        pack(&self.write(), STATE_BYTES_MAX)
    }

    /// Goes on from a saved state, with the bounds that the chain has had from its start.
    pub fn restore(admission: Admission, bytes: &[u8]) -> Result<Self, IntakeError> {
        Self::read(admission, &unpack(bytes, STATE_BYTES_MAX)?)
    }

    /// The state, not compressed.
    pub(super) fn write(&self) -> Vec<u8> {
        let seen = |(route, agent): (&u64, &Arc<Agent>)| AgentV1 { route: *route, seen: agent.dedupe.seen() };
        let mut agents: Vec<AgentV1> = self.agents.iter().map(seen).collect();
        agents.sort_by_key(|agent| agent.route);
        let (mut frames, mut waiting) = (Vec::new(), Vec::new());
        let mut numbers = HashMap::new();
        for (moment, waited) in self.waiting.iter().flat_map(|(moment, all)| all.iter().map(move |waited| (*moment, waited))) {
            let held = &waited.held;
            let frame = *numbers.entry(Arc::as_ptr(held)).or_insert_with(|| {
                let Origin { identity, received_ms, .. } = &held.origin;
                frames.push(FrameV1 { identity: Arc::clone(identity), received_ms: *received_ms, bytes: &held.frame.bytes });
                frames.len() as u32 - 1
            });
            let rows = |(section, pick): &(usize, Pick)| match pick {
                Pick::Some(rows) => (*section as u32, rows.clone()),
                Pick::All => unreachable!("only admitted sections are picked as a whole"),
            };
            waiting.push(WaitingV1 { moment, frame, picks: waited.picks.iter().map(rows).collect() });
        }
        postcard::to_stdvec(&StateV1 { agents, frames, waiting }).expect("numbers, names and bytes always serialise")
    }

    /// Reads what [`Self::write`] wrote.
    pub(super) fn read(admission: Admission, raw: &[u8]) -> Result<Self, IntakeError> {
        let malformed = |_| IntakeError::Damaged("it is malformed");
        let (state, left) = postcard::take_from_bytes::<StateV1<'_>>(raw).map_err(malformed)?;
        if !left.is_empty() {
            return Err(IntakeError::Damaged("there are bytes after its end"));
        }
        let mut intake = Self::new(admission);
        for AgentV1 { route, seen } in state.agents {
            let dedupe = Dedupe::restore(seen).ok_or(IntakeError::Damaged("an agent's seen seqs contradict themselves"))?;
            if intake.agents.insert(route, Arc::new(Agent::new(dedupe))).is_some() {
                return Err(IntakeError::Damaged("an agent stands in it twice"));
            }
        }
        let frames = state.frames.into_iter().map(|frame| frame.read(&mut intake.decoder));
        let frames = frames.collect::<Result<Vec<_>, IntakeError>>()?;
        let mut waiting: BTreeMap<u64, Vec<Arc<Waiting>>> = BTreeMap::new();
        for WaitingV1 { moment, frame, picks } in state.waiting {
            let none = IntakeError::Damaged("rows wait of a frame or an agent that is not there");
            let Some((held, sections)) = frames.get(frame as usize) else { return Err(none) };
            let Some(agent) = intake.agents.get_mut(&held.origin.route) else { return Err(none) };
            let rows: usize = picks.iter().map(|(_, rows)| rows.len()).sum();
            let picks = picks_of(picks, sections).ok_or(IntakeError::Damaged("rows wait that their frame does not have"))?;
            let agent = Arc::make_mut(agent);
            agent.waiting += rows;
            if agent.waiting > AHEAD_ROWS_MAX {
                return Err(IntakeError::Damaged("more rows of an agent wait than may"));
            }
            waiting.entry(moment).or_default().push(Arc::new(Waiting { held: Arc::clone(held), picks }));
        }
        intake.waiting = Arc::new(waiting);
        Ok(intake)
    }
}

impl FrameV1<'_> {
    /// The frame, and how many rows each of its sections has. What it decodes to is not kept: a small frame may be a large batch.
    fn read(self, decoder: &mut Decoder) -> Result<(Arc<Held>, Vec<usize>), IntakeError> {
        let Self { identity, received_ms, bytes } = self;
        let unreadable = |_| IntakeError::Damaged("a frame in it cannot be read");
        let frame = Frame::parse(bytes).map_err(unreadable)?;
        let sections = frame.decode(decoder).map_err(unreadable)?.sections.iter().map(Section::rows).collect();
        let origin = Origin { route: identity.routing_key(), identity, received_ms };
        Ok((Arc::new(Held { origin, frame, batch: OnceLock::new() }), sections))
    }
}

/// The picks, if they are ascending rows of such sections.
fn picks_of(picks: Vec<(u32, Vec<u32>)>, sections: &[usize]) -> Option<Picks> {
    let ascending = |rows: &[u32]| rows.is_sorted_by(|one, next| one < next);
    let fits = |(section, rows): &(u32, Vec<u32>)| {
        let within = sections.get(*section as usize).zip(rows.last()).is_some_and(|(rows, last)| (*last as usize) < *rows);
        within && ascending(rows)
    };
    let good = !picks.is_empty() && picks.iter().all(fits) && picks.is_sorted_by(|one, next| one.0 < next.0);
    good.then(|| picks.into_iter().map(|(section, rows)| (section as usize, Pick::Some(rows))).collect())
}

/// The bytes of a state, compressed.
pub(super) fn pack(raw: &[u8], max: usize) -> Result<Vec<u8>, IntakeError> {
    if raw.len() > max {
        return Err(IntakeError::TooLarge { max });
    }
    let mut compressor = Compressor::new(ZSTD_LEVEL).expect("zstd knows its own levels");
    compressor.set_parameter(CParameter::ChecksumFlag(true)).expect("zstd knows its own checksum");
    let packed = compressor.compress(raw).expect("the buffer is as large as zstd asks for");
    let mut bytes = Vec::with_capacity(1 + packed.len());
    bytes.push(STATE_VERSION);
    bytes.extend_from_slice(&packed);
    Ok(bytes)
}

/// What [`pack`] compressed; memory grows with what comes out, not with what the bytes claim.
pub(super) fn unpack(bytes: &[u8], max: usize) -> Result<Vec<u8>, IntakeError> {
    let (version, packed) = bytes.split_first().ok_or(IntakeError::Damaged("it is empty"))?;
    if *version != STATE_VERSION {
        return Err(IntakeError::Version { found: *version, known: STATE_VERSION });
    }
    let torn = |_| IntakeError::Damaged("it does not decompress");
    let mut raw = Vec::new();
    zstd::Decoder::with_buffer(packed).map_err(torn)?.take(max as u64 + 1).read_to_end(&mut raw).map_err(torn)?;
    if raw.len() > max { Err(IntakeError::TooLarge { max }) } else { Ok(raw) }
}

fn as_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

const STATE_VERSION: u8 = 1;
const ZSTD_LEVEL: i32 = 1;
/// Bytes of a state before compression. An agent takes about 50, one whose clock is so far ahead that all rows that may wait do
/// takes 2 MB: 500 of those, or 20 million others.
const STATE_BYTES_MAX: usize = 1 << 30;
