//! A frame: one batch as it is sent, stored and replayed. Whoever carries it needs no more than its header.
//!
//! ```text
//!  0  magic      4 bytes "WEIR"
//!  4  version    u16   1
//!  6  codec      u8    0 = body stored as it is, 1 = body is one zstd frame
//!  7  lane       u8
//!  8  epoch      u64
//! 16  first_seq  u64
//! 24  count      u32   events; their seqs are first_seq, first_seq + 1, …
//! 28  raw_len    u32   bytes of the body after decompression
//! 32  comp_len   u32   bytes of the body as it stands here
//! 36  reserved   24 bytes, 0; not looked at
//! 60  crc        u32   crc32c of bytes 0..60 and of the body as it stands here
//! 64  body       see wire.rs
//! ```
//!
//! All integers are little-endian. Promise: no bytes make `parse` or `decode` panic or take memory beyond `limits.rs`.
//! Who sent a frame does not stand in it: the server stamps that (`stamped.rs`).

use zstd::bulk::{Compressor, Decompressor};

use crate::batch::Batch;
use crate::error::Error;
use crate::ids::{Epoch, Lane, Seq};
use crate::limits::{EVENTS_MAX, FRAME_BYTES_MAX, RATIO_MAX, RAW_BYTES_MAX};

/// How a frame's body is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Plain = 0,
    /// One zstd frame.
    Zstd = 1,
}

/// The first 64 bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Version of the frame format.
    pub version: u16,
    /// How the body is stored.
    pub codec: Codec,
    /// Lane of all its events.
    pub lane: Lane,
    /// Run of the agent that made it.
    pub epoch: Epoch,
    /// Seq of its first event.
    pub first_seq: Seq,
    /// How many events it has, at least one.
    pub count: u32,
    /// Bytes of the body after decompression.
    pub raw_len: u32,
    /// Bytes of the body as sent.
    pub comp_len: u32,
    /// Checksum of header and body.
    pub crc: u32,
}

impl Default for FrameHeader {
    fn default() -> Self {
        Self {
            version: FRAME_VERSION,
            codec: Codec::Zstd,
            lane: Lane::Security,
            epoch: Epoch(0),
            first_seq: Seq(0),
            count: 0,
            raw_len: 0,
            comp_len: 0,
            crc: 0,
        }
    }
}

impl FrameHeader {
    /// The seq after the frame's last.
    pub fn end_seq(&self) -> Seq {
        Seq(self.first_seq.0.saturating_add(u64::from(self.count)))
    }

    /// Reads and checks everything but the checksum, which needs the body.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Error> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if bytes[..4] != MAGIC {
            return Err(Error::Magic([bytes[0], bytes[1], bytes[2], bytes[3]]));
        }
        let version = u16_at(4);
        if version != FRAME_VERSION {
            return Err(Error::Version { what: "frame", found: version, known: FRAME_VERSION });
        }
        let codec = match bytes[6] {
            0 => Codec::Plain,
            1 => Codec::Zstd,
            other => return Err(Error::Version { what: "frame codec", found: u16::from(other), known: 1 }),
        };
        let header = Self {
            version,
            codec,
            lane: Lane::from_u8(bytes[7]).ok_or(Error::Header("its lane is unknown"))?,
            epoch: Epoch(u64_at(8)),
            first_seq: Seq(u64_at(16)),
            count: u32_at(24),
            raw_len: u32_at(28),
            comp_len: u32_at(32),
            crc: u32_at(60),
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), Error> {
        let (raw, comp) = (self.raw_len as usize, self.comp_len as usize);
        limit("number of events in a frame", self.count as usize, EVENTS_MAX)?;
        limit("frame length", HEADER_BYTES + comp, FRAME_BYTES_MAX)?;
        limit("frame length after decompression", raw, RAW_BYTES_MAX)?;
        limit("compression ratio of a frame", raw.div_ceil(comp.max(1)), RATIO_MAX)?;
        if self.count == 0 {
            return Err(Error::Header("it has no events"));
        }
        if self.first_seq.0.checked_add(u64::from(self.count)).is_none() {
            return Err(Error::Header("its seqs overflow"));
        }
        if self.codec == Codec::Plain && raw != comp {
            return Err(Error::Header("its two lengths differ though the body is stored as it is"));
        }
        Ok(())
    }

    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.version.to_le_bytes());
        bytes[6] = self.codec as u8;
        bytes[7] = self.lane as u8;
        bytes[8..16].copy_from_slice(&self.epoch.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first_seq.0.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.count.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.raw_len.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.comp_len.to_le_bytes());
        bytes[CRC_AT..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }
}

/// A frame whose header and checksum have been checked. Its body has not been looked into.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// The header, read.
    pub header: FrameHeader,
    /// Header and body, as sent and stored.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame").field("header", &self.header).field("bytes", &self.bytes.len()).finish()
    }
}

impl Frame {
    /// Checks that `bytes` are exactly one whole frame: magic, version, limits, checksum. Does not decompress.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        Self::from_vec(bytes.to_vec())
    }

    /// As `parse`, without copying.
    pub fn from_vec(bytes: Vec<u8>) -> Result<Self, Error> {
        let header = Self::check(&bytes)?;
        Ok(Self { header, bytes })
    }

    /// As `parse`, for who needs the header alone.
    pub fn check(bytes: &[u8]) -> Result<FrameHeader, Error> {
        let cut_off = |expected: usize| Error::CutOff { what: "frame", found: bytes.len() as u64, expected: expected as u64 };
        let head = bytes.first_chunk::<HEADER_BYTES>().ok_or_else(|| cut_off(HEADER_BYTES))?;
        let header = FrameHeader::parse(head)?;
        let whole = HEADER_BYTES + header.comp_len as usize;
        if bytes.len() < whole {
            return Err(cut_off(whole));
        }
        if bytes.len() > whole {
            return Err(Error::Header("there are bytes after its end"));
        }
        let computed = checksum(bytes);
        if computed != header.crc {
            return Err(Error::Checksum { found: header.crc, computed });
        }
        Ok(header)
    }

    /// Decompresses and reads the body.
    pub fn decode(&self, decoder: &mut Decoder) -> Result<Batch, Error> {
        decoder.decode(self.header, &self.bytes)
    }

    /// Compresses `body` and puts `header` before it. A body that shrinks beyond the allowed ratio is stored as it is.
    pub(crate) fn build(mut header: FrameHeader, body: &[u8], compressor: &mut Compressor<'static>) -> Self {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + zstd::zstd_safe::compress_bound(body.len()));
        bytes.resize(HEADER_BYTES, 0);
        let room = bytes.capacity() - HEADER_BYTES;
        bytes.resize(HEADER_BYTES + room, 0);
        let compressed = compressor.compress_to_buffer(body, &mut bytes[HEADER_BYTES..]);
        match compressed {
            Ok(len) if len < body.len() && body.len().div_ceil(len.max(1)) <= RATIO_MAX => {
                header.codec = Codec::Zstd;
                bytes.truncate(HEADER_BYTES + len);
            }
            _ => {
                header.codec = Codec::Plain;
                bytes.truncate(HEADER_BYTES);
                bytes.extend_from_slice(body);
            }
        }
        header.raw_len = body.len() as u32;
        header.comp_len = (bytes.len() - HEADER_BYTES) as u32;
        header.check().expect("a builder keeps to every limit of a frame");
        seal(&mut header, &mut bytes);
        Self { header, bytes }
    }
}

/// Writes the header into the first bytes, with the checksum of all of them.
pub(crate) fn seal(header: &mut FrameHeader, bytes: &mut [u8]) {
    bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
    header.crc = checksum(bytes);
    bytes[CRC_AT..HEADER_BYTES].copy_from_slice(&header.crc.to_le_bytes());
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..CRC_AT]), &bytes[HEADER_BYTES..])
}

/// What decoding needs again and again. One per thread.
pub struct Decoder {
    decompressor: Decompressor<'static>,
    raw: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder without any buffer yet; it keeps at most `RAW_BYTES_MAX`.
    pub fn new() -> Self {
        let decompressor = Decompressor::new().expect("a decompressor without a dictionary needs nothing but memory");
        Self { decompressor, raw: Vec::new() }
    }

    /// Decodes a frame that `Frame::check` has found good and whose header it returned.
    pub fn decode(&mut self, header: FrameHeader, frame: &[u8]) -> Result<Batch, Error> {
        let body = frame.get(HEADER_BYTES..).unwrap_or_default();
        let raw_len = header.raw_len as usize;
        limit("frame length after decompression", raw_len, RAW_BYTES_MAX)?;
        if header.codec == Codec::Plain {
            return Batch::decode(header, body);
        }
        self.raw.clear();
        self.raw.reserve(raw_len);
        match self.decompressor.decompress_to_buffer(body, &mut self.raw) {
            Ok(len) if len == raw_len => Batch::decode(header, &self.raw),
            _ => Err(Error::Decompress(header.raw_len)),
        }
    }
}

/// The whole length of the frame that begins with `prefix`, once enough of it is there to tell; checks the header.
pub fn frame_len(prefix: &[u8]) -> Result<Option<usize>, Error> {
    let Some(head) = prefix.first_chunk::<HEADER_BYTES>() else {
        let known = prefix.len().min(MAGIC.len());
        if prefix[..known] == MAGIC[..known] {
            return Ok(None);
        }
        let mut found = [0; 4];
        found[..known].copy_from_slice(&prefix[..known]);
        return Err(Error::Magic(found));
    };
    Ok(Some(HEADER_BYTES + FrameHeader::parse(head)?.comp_len as usize))
}

pub(crate) fn limit(what: &'static str, found: usize, max: usize) -> Result<(), Error> {
    if found <= max { Ok(()) } else { Err(Error::Limit { what, found: found as u64, max: max as u64 }) }
}

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 64;
/// Version of the frame format that this crate writes and reads.
pub const FRAME_VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"WEIR";
const CRC_AT: usize = 60;
