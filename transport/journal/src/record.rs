//! One record in a segment. All numbers are little-endian.
//!
//! ```text
//!  0       4       8               16              24            24 + len   (padded with zeros to a multiple of 8)
//!  +-------+-------+---------------+---------------+-------------+---------+
//!  | len+1 |  crc  |    offset     |     floor     |    bytes    |  zeros  |
//!  +-------+-------+---------------+---------------+-------------+---------+
//! ```
//!
//! `len+1` is zero where nothing was written yet. `crc` is crc32c over the segment's salt, len+1, offset, floor and bytes: bytes that a
//! sender put inside a record cannot pass for a record. `floor` is what was durable when this record was appended, so a
//! record that can be read proves that all records below its floor once were durable.

/// What a header says, its checksum not yet looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) len: usize,
    pub(crate) crc: u32,
    pub(crate) offset: u64,
    pub(crate) floor: u64,
}

impl Header {
    /// `None` where nothing was written.
    pub(crate) fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let len = u32_at(bytes, 0).checked_sub(1)? as usize;
        Some(Self { len, crc: u32_at(bytes, 4), offset: u64_at(bytes, 8), floor: u64_at(bytes, 16) })
    }

    /// Bytes of the whole record with header and padding.
    pub(crate) fn framed_bytes(&self) -> usize {
        framed_bytes(self.len)
    }

    /// Whether `bytes` are what was appended.
    pub(crate) fn holds(&self, salt: u64, bytes: &[u8]) -> bool {
        self.len == bytes.len() && self.crc == checksum(salt, self.offset, self.floor, bytes)
    }
}

/// Adds a record to `buffer`.
pub(crate) fn encode(buffer: &mut Vec<u8>, salt: u64, offset: u64, floor: u64, bytes: &[u8]) {
    buffer.extend_from_slice(&(bytes.len() as u32 + 1).to_le_bytes());
    buffer.extend_from_slice(&checksum(salt, offset, floor, bytes).to_le_bytes());
    buffer.extend_from_slice(&offset.to_le_bytes());
    buffer.extend_from_slice(&floor.to_le_bytes());
    buffer.extend_from_slice(bytes);
    let padding = framed_bytes(bytes.len()) - HEADER_BYTES - bytes.len();
    buffer.extend_from_slice(&[0; ALIGN_BYTES][..padding]);
}

/// Bytes that a record of `len` bytes takes.
pub(crate) fn framed_bytes(len: usize) -> usize {
    (HEADER_BYTES + len).next_multiple_of(ALIGN_BYTES)
}

fn checksum(salt: u64, offset: u64, floor: u64, bytes: &[u8]) -> u32 {
    let mut head = [0; 28];
    head[..8].copy_from_slice(&salt.to_le_bytes());
    head[8..12].copy_from_slice(&(bytes.len() as u32 + 1).to_le_bytes());
    head[12..20].copy_from_slice(&offset.to_le_bytes());
    head[20..].copy_from_slice(&floor.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&head), bytes)
}

/// Reads a number at a place that the caller knows to exist.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Reads a number at a place that the caller knows to exist.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(crate) const HEADER_BYTES: usize = 24;
/// Records begin at multiples of this, so that one can be found behind a broken one.
pub(crate) const ALIGN_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_each_flipped_bit_is_seen() {
        let mut buffer = Vec::new();
        encode(&mut buffer, 7, 41, 40, b"some bytes!");
        assert_eq!(buffer.len(), framed_bytes(11));
        for bit in 0..(HEADER_BYTES + 11) * 8 {
            buffer[bit / 8] ^= 1 << (bit % 8);
            let header = Header::parse(buffer[..HEADER_BYTES].try_into().unwrap());
            let good = header.is_some_and(|header| {
                buffer.get(HEADER_BYTES..HEADER_BYTES + header.len).is_some_and(|bytes| header.holds(7, bytes))
            });
            assert!(!good, "bit {bit}");
            buffer[bit / 8] ^= 1 << (bit % 8);
        }
        let header = Header::parse(buffer[..HEADER_BYTES].try_into().unwrap()).unwrap();
        assert!(header.holds(7, b"some bytes!") && !header.holds(8, b"some bytes!"));
        assert_eq!((header.offset, header.floor, header.framed_bytes()), (41, 40, 40));
    }
}
