//! One file of a journal: a header, then records until nothing is written any more.
//!
//! ```text
//!  DIR/00000000000000000042.seg     42 = offset of its first record
//!  DIR/00000000000000000042.bad     the same, found broken: read as far as it goes, never written again
//!
//!  0                      512                    1024
//!  +----------------------+----------------------+--------+--------+--- - - -
//!  | header, zeros        | the same again       | record | record | zeros
//!  +----------------------+----------------------+--------+--------+--- - - -
//!  header = magic [8], version u32, 0 u32, first u64, salt u64, crc32c u32 of what is before it
//! ```
//!
//! The header stands twice, in two sectors: without its salt no record could be checked.

use std::io;
use std::path::{Path, PathBuf};

use crate::Offset;
use crate::disk::{Disk, DiskFile};
use crate::record::{self, Header, u32_at, u64_at};

/// A segment as its name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) first: Offset,
    pub(crate) bad: bool,
}

impl Name {
    pub(crate) fn good(first: Offset) -> Self {
        Self { first, bad: false }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (digits, kind) = name.split_once('.')?;
        let plain = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
        let bad = match kind {
            "seg" => false,
            "bad" => true,
            _ => return None,
        };
        // A number beyond any real one is somebody else's file, and counting on from it would overflow.
        let first: u64 = plain.then(|| digits.parse().ok()).flatten().filter(|first| *first <= OFFSET_MAX)?;
        Some(Self { first: Offset(first), bad })
    }

    pub(crate) fn path(self, dir: &Path) -> PathBuf {
        dir.join(format!("{:020}.{}", self.first.0, if self.bad { "bad" } else { "seg" }))
    }
}

/// The segments of a folder, in the order of their offsets.
pub(crate) fn list(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<Name>> {
    let mut names: Vec<Name> = disk.list(dir)?.iter().filter_map(|name| Name::parse(name)).collect();
    names.sort();
    Ok(names)
}

/// The two headers of a new segment, ready to be written at its beginning.
pub(crate) fn encode_head(first: Offset, salt: u64) -> Vec<u8> {
    let mut head = vec![0; HEAD_BYTES as usize];
    for copy in [0, COPY_AT] {
        let bytes = &mut head[copy..copy + COPY_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&first.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&salt.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..32]);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
    }
    head
}

/// The salt, when one of the two headers is whole and belongs to a segment that begins at `first`.
fn parse_head(head: &[u8], first: Offset) -> Option<u64> {
    [0, COPY_AT].into_iter().find_map(|copy| {
        let bytes = head.get(copy..copy + COPY_BYTES)?;
        let whole = bytes.starts_with(MAGIC) && u32_at(bytes, 32) == crc32c::crc32c(&bytes[..32]);
        let ours = u32_at(bytes, 8) == VERSION && u64_at(bytes, 16) == first.0;
        (whole && ours).then(|| u64_at(bytes, 24))
    })
}

/// Walks over the records of one segment.
pub(crate) struct Cursor {
    file: Box<dyn DiskFile>,
    salt: u64,
    /// The record that stands at `at`.
    offset: Offset,
    at: u64,
    /// What was read of the file ahead: `filled` bytes from `buffer_at` on.
    buffer: Vec<u8>,
    filled: usize,
    buffer_at: u64,
    /// How much is read ahead: more and more while all of it is used, little again behind a `reread`.
    window: usize,
}

/// What stands at a cursor.
pub(crate) enum Step<'a> {
    /// A whole record; the cursor is behind it.
    Record { offset: Offset, bytes: &'a [u8] },
    /// Nothing was written here.
    End,
    /// Something stands here that is not the expected record.
    Broken,
}

/// What stands behind the last whole record of a segment.
pub(crate) struct Behind {
    /// Bytes up to the last one that is not zero.
    pub(crate) bytes: u64,
    /// Everything before this offset was durable or can still be seen; `None` when nothing proves that.
    pub(crate) proven: Option<Offset>,
}

impl Cursor {
    /// Opens a segment at its first record; `None` when no header is whole.
    pub(crate) fn open(file: Box<dyn DiskFile>, first: Offset) -> io::Result<Option<Self>> {
        let mut head = [0; HEAD_BYTES as usize];
        let filled = file.read_at(&mut head, 0)?;
        let salt = parse_head(&head[..filled], first);
        Ok(salt.map(|salt| Self {
            file,
            salt,
            offset: first,
            at: HEAD_BYTES,
            buffer: Vec::new(),
            filled: 0,
            buffer_at: HEAD_BYTES,
            window: READ_BYTES_MIN,
        }))
    }

    /// The record that comes next, and where it stands in the file.
    pub(crate) fn place(&self) -> (Offset, u64) {
        (self.offset, self.at)
    }

    /// Goes back to where the cursor stood before its last step.
    pub(crate) fn back_to(&mut self, place: (Offset, u64)) {
        (self.offset, self.at) = place;
    }

    pub(crate) fn salt(&self) -> u64 {
        self.salt
    }

    /// Forgets what was read ahead: it may be older than the file.
    pub(crate) fn reread(&mut self) {
        self.filled = 0;
        self.window = READ_BYTES_MIN;
    }

    /// The next record, checked.
    pub(crate) fn next(&mut self) -> io::Result<Step<'_>> {
        let Some(head) = self.ahead(record::HEADER_BYTES)? else { return Ok(Step::End) };
        let head: &[u8; record::HEADER_BYTES] = head.try_into().expect("asked for as many");
        let Some(header) = Header::parse(head) else {
            let blank = head.iter().all(|byte| *byte == 0);
            return Ok(if blank { Step::End } else { Step::Broken });
        };
        if header.offset != self.offset.0 || !self.reaches(record::HEADER_BYTES + header.len)? {
            return Ok(Step::Broken);
        }
        let (salt, offset) = (self.salt, self.offset);
        let Some(whole) = self.ahead(record::HEADER_BYTES + header.len)? else { return Ok(Step::Broken) };
        if !header.holds(salt, &whole[record::HEADER_BYTES..]) {
            return Ok(Step::Broken);
        }
        let from = (self.at - self.buffer_at) as usize + record::HEADER_BYTES;
        self.at += header.framed_bytes() as u64;
        self.offset = self.offset.after(1);
        Ok(Step::Record { offset, bytes: &self.buffer[from..from + header.len] })
    }

    /// Looks at what stands behind the last whole record.
    pub(crate) fn behind(&self) -> io::Result<Behind> {
        let mut bytes = Vec::new();
        let mut piece = vec![0; READ_BYTES_MAX];
        let mut at = self.at;
        let mut blank = 0;
        // Only what is not blank is kept: a fresh segment is nearly all blank.
        loop {
            let filled = self.file.read_at(&mut piece, at)?;
            if piece[..filled] == BLANK[..filled] {
                blank += filled;
            } else {
                bytes.resize(bytes.len() + blank, 0);
                blank = 0;
                bytes.extend_from_slice(&piece[..filled]);
            }
            at += filled as u64;
            if filled < piece.len() {
                break;
            }
        }
        let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes.truncate(written.next_multiple_of(record::ALIGN_BYTES).min(bytes.len()));
        Ok(Behind { bytes: written as u64, proven: self.proven_in(&bytes) })
    }

    /// Looks for whole records in `bytes`, which begin at the cursor. When the floor of one proves that what is broken here was
    /// durable, gives the offset behind all that was found: none of those may be used again.
    fn proven_in(&self, bytes: &[u8]) -> Option<Offset> {
        let (mut floor, mut behind) = (self.offset.0, self.offset.0);
        let mut at = record::ALIGN_BYTES;
        while let Some(head) = bytes.get(at..at + record::HEADER_BYTES) {
            let header = Header::parse(head.try_into().expect("asked for as many"));
            let whole = header.filter(|header| {
                let from = at + record::HEADER_BYTES;
                // The offset is looked at first: it is cheap and rules out nearly all.
                let near = header.offset > self.offset.0 && header.offset - self.offset.0 <= bytes.len() as u64;
                near && bytes.get(from..from + header.len).is_some_and(|bytes| header.holds(self.salt, bytes))
            });
            if let Some(header) = whole {
                floor = floor.max(header.floor);
                behind = behind.max(header.offset + 1);
            }
            at += whole.map_or(record::ALIGN_BYTES, |header| header.framed_bytes());
        }
        (floor > self.offset.0).then_some(Offset(behind))
    }

    /// Whether the file has `bytes` from here on. Asked before memory is taken for them.
    fn reaches(&self, bytes: usize) -> io::Result<bool> {
        let buffered = self.buffer_at + self.filled as u64;
        Ok(self.at + bytes as u64 <= buffered || self.at + bytes as u64 <= self.file.size()?)
    }

    /// The next `bytes` of the file, from the buffer or read ahead; `None` when the file ends before.
    fn ahead(&mut self, bytes: usize) -> io::Result<Option<&[u8]>> {
        if self.at < self.buffer_at {
            self.filled = 0;
            self.buffer_at = self.at;
        }
        let skip = ((self.at - self.buffer_at) as usize).min(self.filled);
        if (self.at - self.buffer_at) as usize + bytes > self.filled {
            let wanted = self.window.max(bytes);
            let kept = skip..self.filled;
            self.filled -= skip;
            if self.buffer.len() < wanted {
                let mut larger = vec![0; wanted];
                larger[..self.filled].copy_from_slice(&self.buffer[kept]);
                self.buffer = larger;
            } else {
                self.buffer.copy_within(kept, 0);
            }
            self.buffer_at = self.at;
            self.filled += self.file.read_at(&mut self.buffer[self.filled..wanted], self.at + self.filled as u64)?;
            self.window = (self.window * 2).min(READ_BYTES_MAX);
        }
        let from = (self.at - self.buffer_at) as usize;
        Ok(self.buffer[..self.filled].get(from..from + bytes))
    }
}

/// No journal gets here: a record each nanosecond for a hundred years.
const OFFSET_MAX: u64 = 1 << 62;
/// Where records begin.
pub(crate) const HEAD_BYTES: u64 = 1024;
const COPY_AT: usize = 512;
const COPY_BYTES: usize = 36;
const MAGIC: &[u8; 8] = b"weirjrnl";
const VERSION: u32 = 1;
/// How much is read ahead.
const READ_BYTES_MIN: usize = 32 << 10;
const READ_BYTES_MAX: usize = 1 << 20;
/// Compared with what was read: a plain loop over bytes is slow where nothing is optimised.
static BLANK: [u8; READ_BYTES_MAX] = [0; READ_BYTES_MAX];
