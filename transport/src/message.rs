//! The small messages that stand between frames on the stream.
//!
//! ```text
//! stream  = (frame | message)*             a frame begins with "WEIR", see weir-schema's frame.rs
//! message = "WCTL" | length u32 | crc32c u32 | length bytes: postcard of `Message`      integers little-endian
//!
//! agent                                    node
//!   Hello {versions, epochs, lanes}   →
//!                                     ←    Welcome {version, node, acked, credit}
//!   frame, frame, frame …             →
//!                                     ←    Nack {key, refusal}, Ack {lanes, credit} …
//!   Bye                               →
//!                                     ←    Bye {why}
//! ```
//!
//! A new variant goes to the end, and only after both ends have agreed on a version that has it; no variant is ever edited.

use serde::{Deserialize, Serialize};
use weir_schema::{Epoch, FrameHeader, Lane, Name, Seq};

use crate::ack::AckRanges;
use crate::error::ProtocolError;

/// What is said besides frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The agent's first word.
    Hello(Hello),
    /// The node's answer.
    Welcome(Welcome),
    /// The node has made frames durable, or gives more credit.
    Ack(Ack),
    /// The node will never take a frame; it is not to be sent again.
    Nack(Nack),
    /// The last word of either end.
    Bye(Bye),
}

/// The agent's first word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The lowest protocol version the agent speaks.
    pub version_min: u16,
    /// The highest protocol version the agent speaks.
    pub version_max: u16,
    /// The agent's program and its version, for `agents`.
    pub software: String,
    /// From where on the agent holds frames, of each (epoch, lane) that it will send; below is nothing to be asked for.
    pub lanes: Vec<LaneStart>,
}

/// Where an agent's frames of one lane begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStart {
    /// The agent's run.
    pub epoch: Epoch,
    /// The class of event.
    pub lane: Lane,
    /// The first seq that is still held.
    pub first: Seq,
}

/// The node's answer to Hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol version that is spoken from here on.
    pub version: u16,
    /// Who answers; equals the node's certificate.
    pub node: Name,
    /// What is durable already, of the lanes in Hello.
    pub acked: Vec<LaneAck>,
    /// Bytes of frames that may be sent on this connection, counted from its start.
    pub credit_bytes: u64,
    /// Longest frame that this node takes. The agent gives up a longer one by itself, counted.
    pub frame_bytes_max: u32,
}

/// What the node has settled since its last ack. One without lanes and new credit says only that the node lives; on TCP that is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Per lane: everything below one seq, and ranges that are new.
    pub lanes: Vec<LaneAck>,
    /// Bytes of frames that may be sent on this connection, counted from its start. Never falls.
    pub credit_bytes: u64,
}

/// Settled seqs of one lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneAck {
    /// The agent's run.
    pub epoch: Epoch,
    /// The class of event.
    pub lane: Lane,
    /// Its settled seqs.
    pub acked: AckRanges,
}

/// Which frame: its part of the event key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FrameKey {
    /// The agent's run.
    pub epoch: Epoch,
    /// The class of event.
    pub lane: Lane,
    /// The first event's seq.
    pub first_seq: Seq,
    /// How many events.
    pub count: u32,
}

/// A frame that will never be taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nack {
    /// Which.
    pub key: FrameKey,
    /// Why.
    pub refusal: RefusedReason,
}

/// Why a frame is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusedReason {
    /// The same key was stored with other content.
    Conflict,
    /// It is over a limit of the node: length, events, strings.
    Limit,
    /// It does not check or does not decode.
    Malformed,
    /// Its version is not known to this node.
    Version,
}

/// Why an end says good-bye.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Bye {
    /// All is done, or the end is being stopped.
    Done,
    /// No protocol version in common.
    Version,
    /// The other end broke the protocol.
    Protocol,
    /// The node has as many agents as it takes: try another.
    Full,
    /// A newer connection with the same certificate took this one's place.
    Superseded,
    /// The agent broke the protocol a short while ago and has to wait.
    Penalty,
    /// The certificate's time is over.
    Expired,
}

impl FrameKey {
    /// The key that a frame's header says.
    pub fn of(header: &FrameHeader) -> Self {
        Self { epoch: header.epoch, lane: header.lane, first_seq: header.first_seq, count: header.count }
    }

    /// The seqs of the frame, if they are seqs at all.
    pub fn seqs(&self) -> Option<std::ops::Range<Seq>> {
        let end = self.first_seq.0.checked_add(u64::from(self.count))?;
        Some(self.first_seq..Seq(end))
    }
}

impl RefusedReason {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Conflict, Self::Limit, Self::Malformed, Self::Version];

    /// A short fixed word for metrics and `losses`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Limit => "limit",
            Self::Malformed => "malformed",
            Self::Version => "version",
        }
    }
}

impl Bye {
    /// A short fixed word for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Version => "version",
            Self::Protocol => "protocol",
            Self::Full => "full",
            Self::Superseded => "superseded",
            Self::Penalty => "penalty",
            Self::Expired => "expired",
        }
    }
}

impl Message {
    /// A short fixed word for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Welcome(_) => "Welcome",
            Self::Ack(_) => "Ack",
            Self::Nack(_) => "Nack",
            Self::Bye(_) => "Bye",
        }
    }

    /// The message as it stands on the stream.
    pub fn encode(&self) -> Vec<u8> {
        let body = postcard::to_stdvec(self).expect("messages have no maps nor unsized sequences");
        debug_assert!(body.len() <= MESSAGE_BYTES_MAX, "{} of {} bytes", self.name(), body.len());
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// The length, head included, of the message that `bytes` begin; `None` while the head is not all there.
    pub(crate) fn length(bytes: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let Some(length) = bytes.get(4..8) else { return Ok(None) };
        let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
        if length > MESSAGE_BYTES_MAX {
            let (bytes, bytes_max) = (length as u64, MESSAGE_BYTES_MAX as u64);
            return Err(ProtocolError::TooLong { what: "control message", bytes, bytes_max });
        }
        Ok(Some(HEAD_BYTES + length))
    }

    /// Reads one whole message, head included.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let wrong = |why: &str| ProtocolError::Control(why.to_owned());
        let (head, body) = bytes.split_at_checked(HEAD_BYTES).ok_or_else(|| wrong("cut off"))?;
        let crc = u32::from_le_bytes(head[8..12].try_into().expect("four bytes"));
        if crc32c::crc32c(body) != crc {
            return Err(wrong("checksum"));
        }
        match postcard::take_from_bytes(body) {
            Ok((message, [])) => Ok(message),
            Ok(_) => Err(wrong("bytes behind its end")),
            Err(error) => Err(wrong(&error.to_string())),
        }
    }
}

/// The protocol version of this binary.
pub const PROTOCOL_VERSION: u16 = 1;

/// How every message begins.
pub(crate) const MAGIC: [u8; 4] = *b"WCTL";

/// Magic, length, checksum.
pub(crate) const HEAD_BYTES: usize = 12;

/// Longest message after its head. 128 lanes of 64 ranges of at most 20 bytes would be 160 KiB; acks are cut into several.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Most lanes in one Hello, Welcome or Ack, so that it stays under the limit whatever its numbers: 32 × (64 × 20 + 22) bytes.
pub(crate) const LANES_PER_MESSAGE_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn worst_ack(lanes: usize) -> Message {
        let mut acked = AckRanges::default();
        for i in 0..64 {
            acked.add(Seq((1 << 63) + i * (1 << 57) + 1)..Seq((1 << 63) + i * (1 << 57) + (1 << 56)));
        }
        let lane = LaneAck { epoch: Epoch(u64::MAX), lane: Lane::Sample, acked };
        Message::Ack(Ack { lanes: vec![lane; lanes], credit_bytes: u64::MAX })
    }

    #[test]
    fn the_largest_ack_fits() {
        let bytes = worst_ack(LANES_PER_MESSAGE_MAX).encode();
        assert!(bytes.len() <= MESSAGE_BYTES_MAX, "{}", bytes.len());
        assert_eq!(Message::length(&bytes).unwrap(), Some(bytes.len()));
        assert_eq!(Message::decode(&bytes).unwrap(), worst_ack(LANES_PER_MESSAGE_MAX));
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let good = worst_ack(1).encode();
        for at in 8..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Message::decode(&bad).is_err(), "byte {at}");
        }
        for length in 0..good.len() {
            assert!(Message::decode(&good[..length]).is_err());
        }
    }

    /// The bytes of version 1: added to, never edited.
    #[test]
    fn golden_bytes() {
        let key = FrameKey { epoch: Epoch(300), lane: Lane::File, first_seq: Seq(7), count: 2 };
        let lane = LaneAck { epoch: Epoch(1), lane: Lane::Network, acked: AckRanges::below(Seq(5)) };
        let lanes = vec![LaneStart { epoch: Epoch(1), lane: Lane::Security, first: Seq(9) }];
        let node = Name::new("n1").unwrap();
        let cases = [
            (Message::Hello(Hello { version_min: 1, version_max: 1, software: "w".into(), lanes }), "0001010177010100 09"),
            (
                Message::Welcome(Welcome { version: 1, node, acked: vec![lane.clone()], credit_bytes: 128, frame_bytes_max: 3 }),
                "0101026e310101010500 800103",
            ),
            (Message::Ack(Ack { lanes: vec![lane], credit_bytes: 1 }), "02010101050001"),
            (Message::Nack(Nack { key, refusal: RefusedReason::Conflict }), "03ac0202070200"),
            (Message::Bye(Bye::Expired), "0406"),
        ];
        for (message, hex) in cases {
            let body: String = message.encode()[HEAD_BYTES..].iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(body, hex.replace(' ', ""), "{message:?}");
        }
    }
}
