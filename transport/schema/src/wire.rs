//! What stands inside a frame's body. All integers of section heads are little-endian; the rest is postcard.
//!
//! ```text
//! body    = section*                     in this order:
//!           host | strings | processes | containers | one per event kind, in seq order
//! section = kind u16 | version u16 | rows u32 | bytes u32 | that many bytes
//!           kind 0xfff0 host        HostV1                     rows = 1
//!           kind 0xfff1 strings     StringsV1                  rows = strings, the empty one at code 0 not counted
//!           kind 0xfff2 processes   SectionV1                  rows = processes
//!           kind 0xfff3 containers  SectionV1                  rows = containers
//!           kind k      events      SectionV1                  rows = events
//! SectionV1 = count | ColumnV1*          (postcard's sequence)
//! ColumnV1  = number | form | width | first | base | valid | planes
//!
//!   valid   empty: every row has a value. Else one bit a row, least significant first: 1 = has one
//!   planes  width × n bytes, all lowest bytes first, then all second bytes …: n unsigned integers d
//!           form 0: n = values,     value[i] = base + d[i]
//!           form 1: n = values - 1, value[0] = first, value[i+1] = value[i] + base + d[i]
//!           width 0: no bytes, a constant (form 0) or a constant step (form 1)
//! ```
//!
//! What may change without a new version: columns of new numbers (passed over and counted), fields at the end of HostV1 (passed
//! over). A new form needs a new version of the section, and a new version of the four tables is refused with the whole batch:
//! it needs a new version of the frame, agreed on when a session begins.
//!
//! A text is a code into the strings, a process or container a row number + 1 of its table; 0 is none. Sums wrap at 64 bits.
//! Byte planes instead of varints: both sides are loops without branches, and zstd finds the high planes empty.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;

/// Section of the host: never a kind of event.
pub(crate) const HOST: u16 = 0xfff0;
/// Section of the strings.
pub(crate) const STRINGS: u16 = 0xfff1;
/// Section of the processes.
pub(crate) const PROCESSES: u16 = 0xfff2;
/// Section of the containers.
pub(crate) const CONTAINERS: u16 = 0xfff3;
/// The version of every section that this crate writes.
pub(crate) const VERSION: u16 = 1;
/// Bytes of a section's head.
pub(crate) const HEAD_BYTES: usize = 12;

/// Bytes that serde takes as one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Bytes<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(Self)
    }
}

/// The host of a batch.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HostV1<'a> {
    pub(crate) host: &'a str,
    pub(crate) cloud: Option<&'a str>,
    pub(crate) zone: Option<&'a str>,
    pub(crate) boot_id: [u8; 16],
    pub(crate) simulated: bool,
}

/// The strings of a batch, code 1 first: their lengths (a column of form 0, number 0) and their bytes end to end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StringsV1<'a> {
    #[serde(borrow)]
    pub(crate) lengths: ColumnV1<'a>,
    #[serde(borrow)]
    pub(crate) text: Bytes<'a>,
}

/// One column of a table or section.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct ColumnV1<'a> {
    pub(crate) number: u16,
    pub(crate) form: u8,
    pub(crate) width: u8,
    pub(crate) first: i64,
    pub(crate) base: i64,
    #[serde(borrow)]
    pub(crate) valid: Bytes<'a>,
    #[serde(borrow)]
    pub(crate) planes: Bytes<'a>,
}

/// `ColumnV1::form`: each value by itself.
pub(crate) const PLAIN: u8 = 0;
/// `ColumnV1::form`: each value as the step from the one before.
pub(crate) const STEPS: u8 = 1;

/// Head of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: u16,
    pub(crate) version: u16,
    pub(crate) rows: u32,
    pub(crate) bytes: u32,
}

impl Head {
    pub(crate) fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[0..2].copy_from_slice(&self.kind.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.version.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.rows.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    /// Takes the next section off `body`: its head and its bytes.
    pub(crate) fn take<'a>(body: &mut &'a [u8]) -> Result<(Self, &'a [u8]), Error> {
        let Some((head, rest)) = body.split_first_chunk::<HEAD_BYTES>() else {
            return Err(Error::Body("a section's head is cut off"));
        };
        let head = Self {
            kind: u16::from_le_bytes([head[0], head[1]]),
            version: u16::from_le_bytes([head[2], head[3]]),
            rows: u32::from_le_bytes([head[4], head[5], head[6], head[7]]),
            bytes: u32::from_le_bytes([head[8], head[9], head[10], head[11]]),
        };
        let Some((content, rest)) = rest.split_at_checked(head.bytes as usize) else {
            return Err(Error::Body("a section is longer than the body"));
        };
        *body = rest;
        Ok((head, content))
    }
}
