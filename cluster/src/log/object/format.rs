//! The bytes of an object: one record of the chain, a segment of a log, or the tombstone that ends a log. Numbers are little-endian.
//!
//! ```text
//!  0         8     9      12      28       44    60      68      72           76         80         84
//!  +---------+-----+------+-------+--------+-----+-------+-------+------------+----------+----------+------
//!  |"weirobj1"| kind| zero | nonce | before | run | first | count | body bytes | body crc | head crc | body
//!  +---------+-----+------+-------+--------+-----+-------+-------+------------+----------+----------+------
//!
//!  body = (len u32, crc32c u32, bytes) for each of `count` records; of a segment and a tombstone the owner's name comes before them
//! ```
//!
//! `nonce` is random per object: whoever does not know whether its create succeeded compares it. `before` is the nonce of the object
//! with the number below, so that objects are a chain whoever created them. `run` is random per process. `first` is the number of the
//! first record. A name carries only the object's number.

use std::ops::Range;

use weir_schema::Name;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One record of the chain.
    Chain,
    /// Records of a log; none in the one with which a process begins to write it.
    Segment,
    /// The end of a log: nothing comes after.
    Tombstone,
}

/// What stands before the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) nonce: u128,
    pub(crate) before: u128,
    pub(crate) run: u128,
    pub(crate) first: u64,
    pub(crate) count: u32,
    body_bytes: u32,
    body_crc: u32,
}

/// An object that is whole.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) head: Head,
    bytes: Vec<u8>,
    records: Vec<Range<usize>>,
}

/// An object to be made, record by record.
#[derive(Debug)]
pub(crate) struct Draft {
    kind: Kind,
    body: Vec<u8>,
    count: u32,
}

impl Draft {
    /// Of the chain: its one record.
    pub(crate) fn chain(record: &[u8]) -> Self {
        let mut draft = Self { kind: Kind::Chain, body: Vec::with_capacity(record.len() + RECORD_HEAD_BYTES), count: 0 };
        draft.push(record);
        draft
    }

    /// Of a log.
    pub(crate) fn of_log(kind: Kind, owner: &Name) -> Self {
        let owner = owner.as_str().as_bytes();
        let mut body = vec![u8::try_from(owner.len()).expect("a name has 128 bytes at most")];
        body.extend_from_slice(owner);
        Self { kind, body, count: 0 }
    }

    /// Adds a record.
    pub(crate) fn push(&mut self, record: &[u8]) {
        self.body.extend_from_slice(&(record.len() as u32).to_le_bytes());
        self.body.extend_from_slice(&crc32c::crc32c(record).to_le_bytes());
        self.body.extend_from_slice(record);
        self.count += 1;
    }

    /// Records so far.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> usize {
        HEAD_BYTES + self.body.len()
    }

    /// The object's bytes.
    pub(crate) fn encode(&self, place: Link, first: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[self.kind as u8, 0, 0, 0]);
        for number in [place.nonce, place.before, place.run] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&first.to_le_bytes());
        for number in [self.count, self.body.len() as u32, crc32c::crc32c(&self.body)] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// Where an object stands among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its own.
    pub(crate) nonce: u128,
    /// The nonce of the object below; 0: it is the first.
    pub(crate) before: u128,
    /// Of the process.
    pub(crate) run: u128,
}

impl Head {
    /// Reads the first bytes of an object; else says what is wrong with them.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let head: &[u8; HEAD_BYTES] = bytes.first_chunk().ok_or("it is cut off")?;
        if head[..8] != *MAGIC {
            return Err("it is no object of this version");
        }
        if crc32c::crc32c(&head[..80]) != u32_at(head, 80) {
            return Err("its head is not what was written");
        }
        let kind = match head[8] {
            0 => Kind::Chain,
            1 => Kind::Segment,
            2 => Kind::Tombstone,
            _ => return Err("it is of an unknown kind"),
        };
        let wide = |at: usize| u128::from_le_bytes(head[at..at + 16].try_into().expect("sixteen bytes"));
        let first = u64::from_le_bytes(head[60..68].try_into().expect("eight bytes"));
        let (count, body_bytes, body_crc) = (u32_at(head, 68), u32_at(head, 72), u32_at(head, 76));
        Ok(Self { kind, nonce: wide(12), before: wide(28), run: wide(44), first, count, body_bytes, body_crc })
    }

    /// The number of the record behind its last.
    pub(crate) fn end(&self) -> u64 {
        self.first.saturating_add(u64::from(self.count))
    }
}

impl Object {
    /// Reads a whole object; else says what is wrong with it.
    pub(crate) fn decode(bytes: Vec<u8>) -> Result<Self, &'static str> {
        let head = Head::decode(&bytes)?;
        let body = &bytes[HEAD_BYTES..];
        if body.len() != head.body_bytes as usize || crc32c::crc32c(body) != head.body_crc {
            return Err("its body is not what was written");
        }
        let mut at = HEAD_BYTES;
        if head.kind != Kind::Chain {
            at += 1 + usize::from(*bytes.get(at).ok_or("it has no owner")?);
        }
        // A count out of nowhere must not take memory: a record has eight bytes at least.
        let mut records = Vec::with_capacity((head.count as usize).min(bytes.len() / RECORD_HEAD_BYTES));
        for _ in 0..head.count {
            let from = at.saturating_add(RECORD_HEAD_BYTES);
            let (len, crc) = match bytes.get(at..from) {
                Some(record_head) => (u32_at(record_head, 0) as usize, u32_at(record_head, 4)),
                None => return Err("it has fewer records than it says"),
            };
            at = from.saturating_add(len);
            match bytes.get(from..at) {
                Some(record) if crc32c::crc32c(record) == crc => records.push(from..at),
                Some(_) => return Err("a record in it is not what was written"),
                None => return Err("it has fewer records than it says"),
            }
        }
        if at != bytes.len() { Err("it has more in it than it says") } else { Ok(Self { head, bytes, records }) }
    }

    /// The record of a number, if it is in here.
    pub(crate) fn record(&self, number: u64) -> Option<&[u8]> {
        let index = usize::try_from(number.checked_sub(self.head.first)?).ok()?;
        self.records.get(index).map(|range| &self.bytes[range.clone()])
    }

    /// Bytes of memory that it takes, about.
    pub(crate) fn weight(&self) -> usize {
        self.bytes.len() + self.records.len() * size_of::<Range<usize>>() + size_of::<Self>()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

const MAGIC: &[u8; 8] = b"weirobj1";
/// Bytes of a head: enough to know all but the records.
pub(crate) const HEAD_BYTES: usize = 84;
const RECORD_HEAD_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(records: &[&[u8]]) -> Vec<u8> {
        let mut draft = Draft::of_log(Kind::Segment, &Name::new("n1").unwrap());
        records.iter().for_each(|record| draft.push(record));
        draft.encode(Link { nonce: 7, before: 6, run: 5 }, 100)
    }

    #[test]
    fn what_was_written_is_read_back() {
        let object = Object::decode(segment(&[b"one", b"", b"three"])).unwrap();
        let head = object.head;
        assert_eq!((head.kind, head.nonce, head.before, head.run), (Kind::Segment, 7, 6, 5));
        assert_eq!((head.first, head.end()), (100, 103));
        assert_eq!(object.record(100), Some(&b"one"[..]));
        assert_eq!(object.record(102), Some(&b"three"[..]));
        assert_eq!((object.record(99), object.record(103)), (None, None));
        let chain = Object::decode(Draft::chain(b"record").encode(Link { nonce: 1, before: 0, run: 0 }, 9)).unwrap();
        assert_eq!((chain.head.kind, chain.record(9)), (Kind::Chain, Some(&b"record"[..])));
    }

    #[test]
    fn each_flipped_bit_and_each_cut_is_seen() {
        let whole = segment(&[b"one", b"three"]);
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Object::decode(bytes).is_err(), "bit {bit}");
        }
        for len in 0..whole.len() {
            assert!(Object::decode(whole[..len].to_vec()).is_err(), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_no_object(body in proptest::collection::vec(any::<u8>(), 0..200), count in any::<u32>()) {
            let _ = Object::decode(body.clone());
            // The checksums are right, the rest is not.
            for kind in [Kind::Chain, Kind::Segment] {
                let bytes = Draft { kind, body: body.clone(), count }.encode(Link { nonce: 1, before: 2, run: 3 }, u64::MAX);
                if let Ok(object) = Object::decode(bytes) {
                    prop_assert!(object.records.len() <= body.len() / RECORD_HEAD_BYTES);
                }
            }
        }
    }
}
