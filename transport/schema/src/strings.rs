//! The strings of one batch: each distinct text once, named by a code. Code 0 is "no value" and reads as the empty text.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::cells::Growing;
use crate::error::Error;
use crate::event::Text;
use crate::limits::{STRING_BYTES_MAX, STRINGS_MAX};
use crate::wire::{Bytes, ColumnV1, StringsV1};

/// Decoded strings: one buffer and offsets into it, as Arrow has them. Entry 0 is the empty text of code 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strings {
    text: String,
    offsets: Vec<i32>,
}

impl Default for Strings {
    fn default() -> Self {
        Self { text: String::new(), offsets: vec![0, 0] }
    }
}

impl Strings {
    /// The text of `code`; code 0 and codes beyond the table are the empty text.
    pub fn text(&self, code: u32) -> &str {
        let at = |index: usize| self.offsets.get(index).and_then(|offset| usize::try_from(*offset).ok());
        let code = code as usize;
        at(code).zip(at(code + 1)).and_then(|(from, to)| self.text.get(from..to)).unwrap_or("")
    }

    /// How many entries there are, entry 0 included.
    pub fn entries(&self) -> usize {
        self.offsets.len() - 1
    }

    /// All entries by code, entry 0 included.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.offsets.windows(2).map(|pair| &self.text[pair[0] as usize..pair[1] as usize])
    }

    /// Adds a text; returns its code.
    pub(crate) fn push(&mut self, text: &str) -> u32 {
        self.text.push_str(text);
        self.offsets.push(i32::try_from(self.text.len()).expect("the strings of a frame are few megabytes"));
        self.entries() as u32 - 1
    }

    /// All bytes, end to end.
    pub fn bytes(&self) -> &str {
        &self.text
    }

    /// Where each entry begins, and where the last one ends: `entries() + 1` ascending offsets, from 0.
    pub fn offsets(&self) -> &[i32] {
        &self.offsets
    }

    /// The offsets and the bytes, to build an Arrow string array without copying.
    pub fn into_parts(self) -> (Vec<i32>, String) {
        (self.offsets, self.text)
    }

    pub(crate) fn decode(rows: u32, content: &[u8]) -> Result<Self, Error> {
        let rows = rows as usize;
        if rows >= STRINGS_MAX {
            return Err(Error::Limit { what: "number of strings", found: rows as u64, max: STRINGS_MAX as u64 - 1 });
        }
        let (wire, rest) =
            postcard::take_from_bytes::<StringsV1<'_>>(content).map_err(|_| Error::Body("the strings are malformed"))?;
        if !rest.is_empty() || !wire.lengths.valid.0.is_empty() {
            return Err(Error::Body("the strings are malformed"));
        }
        let lengths = wire.lengths.codes(rows, STRING_BYTES_MAX as u32)?;
        let text = std::str::from_utf8(wire.text.0).map_err(|_| Error::Body("the strings are not UTF-8"))?;
        let mut offsets = Vec::with_capacity(rows + 2);
        offsets.extend([0, 0]);
        let mut end = 0u32;
        for length in lengths {
            end += length;
            if !text.is_char_boundary(end as usize) {
                return Err(Error::Body("a string's end is inside a character or beyond the text"));
            }
            offsets.push(end.cast_signed());
        }
        if end as usize != text.len() {
            return Err(Error::Body("the strings' lengths do not add up to their text"));
        }
        Ok(Self { text: text.to_owned(), offsets })
    }
}

/// Strings while a batch grows.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    codes: HashMap<Text, u32, BuildHasherDefault<Xx>>,
    /// Codes of texts in `codes`, found by where they stand in memory: collectors hand out the same text again and again.
    /// `codes` keeps them alive, so an address here is never given to another text.
    recent: Vec<(usize, u32)>,
    text: Vec<u8>,
    lengths: Growing,
    /// Texts that were longer than allowed and were cut.
    pub(crate) cut: u64,
}

impl Interner {
    pub(crate) fn len(&self) -> usize {
        self.codes.len()
    }

    pub(crate) fn text_bytes(&self) -> usize {
        self.text.len()
    }

    pub(crate) fn clear(&mut self) {
        self.codes.clear();
        self.recent.fill((0, 0));
        self.text.clear();
        self.lengths.clear();
    }

    /// The code of `text`. A text that is too long is cut and ends with `…`.
    #[inline]
    pub(crate) fn code(&mut self, text: &Text) -> u32 {
        let address = text.as_ptr() as usize;
        let slot = (address >> 4) % RECENT;
        match self.recent.get(slot) {
            Some((known, code)) if *known == address => *code,
            _ => self.code_by_content(text, address, slot),
        }
    }

    fn code_by_content(&mut self, text: &Text, address: usize, slot: usize) -> u32 {
        if text.len() > STRING_BYTES_MAX {
            self.cut += 1;
            return self.code(&Text::from(cut(text)));
        }
        self.recent.resize(RECENT, (0, 0));
        if let Some((kept, code)) = self.codes.get_key_value(&**text) {
            if kept.as_ptr() as usize == address {
                self.recent[slot] = (address, *code);
            }
            return *code;
        }
        let code = self.codes.len() as u32 + 1;
        self.lengths.push(self.codes.len(), text.len() as i64);
        self.text.extend_from_slice(text.as_bytes());
        self.codes.insert(Text::clone(text), code);
        self.recent[slot] = (address, code);
        code
    }

    pub(crate) fn pack<'a>(&'a mut self, planes: &'a mut Vec<u8>) -> StringsV1<'a> {
        let rows = self.codes.len();
        let lengths: ColumnV1<'a> = self.lengths.pack_plain(0, rows, planes);
        StringsV1 { lengths, text: Bytes(&self.text) }
    }
}

/// Places in `Interner::recent`.
const RECENT: usize = 1_024;

fn cut(text: &str) -> String {
    let mut end = STRING_BYTES_MAX - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut cut = text[..end].to_owned();
    cut.push('…');
    cut
}

/// XXH3 over what the standard map hashes: ours are short texts that our own collectors made.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Xx(u64);

impl Hasher for Xx {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }
    fn write_u8(&mut self, byte: u8) {
        // A text's end mark, or an Option's: keys of one map are of one shape, so a cheap mix is enough.
        self.0 = self.0.rotate_left(5) ^ u64::from(byte);
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}
