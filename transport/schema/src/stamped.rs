//! One record of a node's log: a frame as it was sent, who sent it and when it came.
//!
//! ```text
//! 0  version  u16  1
//! 2  head     u16  bytes of the head that follows
//! 4  StampV1  postcard: identity (tenant, region, agent), received_ms
//! …  frame    the rest, as `frame.rs` draws it
//! ```
//!
//! Integers are little-endian. The stamp comes from the sender's certificate and the server's clock, never from the payload.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::AgentIdentity;
use crate::limits::FRAME_BYTES_MAX;

/// A frame with the server's stamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StampedFrame {
    /// Who sent it, by its certificate.
    pub identity: AgentIdentity,
    /// When it came, milliseconds since the Unix epoch, by the node's clock. Never part of an answer but as `received`.
    pub received_ms: u64,
    /// The frame as sent. `Frame::check` reads it.
    pub frame: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct StampV1 {
    identity: AgentIdentity,
    received_ms: u64,
}

impl StampedFrame {
    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        Self::encode_parts(&self.identity, self.received_ms, &self.frame)
    }

    /// The same without owning the parts.
    pub fn encode_parts(identity: &AgentIdentity, received_ms: u64, frame: &[u8]) -> Vec<u8> {
        let stamp = StampV1 { identity: identity.clone(), received_ms };
        let mut bytes = Vec::with_capacity(64 + frame.len());
        bytes.extend_from_slice(&STAMP_VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0, 0]);
        let mut bytes = postcard::to_extend(&stamp, bytes).expect("names and a number always serialise");
        let head = (bytes.len() - HEAD_AT) as u16;
        bytes[2..HEAD_AT].copy_from_slice(&head.to_le_bytes());
        bytes.extend_from_slice(frame);
        bytes
    }

    /// Reads a record. The frame inside is not looked at, only its length is limited.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let Some((lead, rest)) = bytes.split_first_chunk::<HEAD_AT>() else {
            return Err(Error::Stamped("it is shorter than its lead"));
        };
        let version = u16::from_le_bytes([lead[0], lead[1]]);
        if version != STAMP_VERSION {
            return Err(Error::Version { what: "stamped record", found: version, known: STAMP_VERSION });
        }
        let head = usize::from(u16::from_le_bytes([lead[2], lead[3]]));
        let (head, frame) = rest.split_at_checked(head).ok_or(Error::Stamped("its head is cut off"))?;
        let (stamp, left) = postcard::take_from_bytes::<StampV1>(head).map_err(|_| Error::Stamped("its head is malformed"))?;
        if !left.is_empty() {
            return Err(Error::Stamped("its head is longer than the stamp"));
        }
        crate::frame::limit("frame length", frame.len(), FRAME_BYTES_MAX)?;
        Ok(Self { identity: stamp.identity, received_ms: stamp.received_ms, frame: frame.to_vec() })
    }
}

const STAMP_VERSION: u16 = 1;
const HEAD_AT: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Name;

    fn stamped() -> StampedFrame {
        let name = |text: &str| Name::new(text).unwrap();
        let identity = AgentIdentity { tenant: name("acme"), region: name("eu-west-1"), agent: name("web-7") };
        StampedFrame { identity, received_ms: 1_790_000_000_123, frame: b"any bytes".to_vec() }
    }

    #[test]
    fn a_record_reads_back_equal() {
        assert_eq!(StampedFrame::decode(&stamped().encode()), Ok(stamped()));
    }

    #[test]
    fn cut_or_changed_records_are_refused_and_never_panic() {
        let bytes = stamped().encode();
        let frame_at = bytes.len() - stamped().frame.len();
        for end in 0..frame_at {
            assert!(StampedFrame::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x81;
            _ = StampedFrame::decode(&changed);
        }
        let mut newer = bytes;
        newer[0] = 9;
        assert!(matches!(StampedFrame::decode(&newer), Err(Error::Version { found: 9, .. })));
    }
}
