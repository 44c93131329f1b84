//! The dictionary of one text column: each text once, under a code that stays.
//!
//! Texts of up to sixteen bytes, which are most, are found by one multiplication and one comparison. A dictionary that has grown to
//! [`TEXTS_MAX`] texts begins anew, so a column of many texts costs bounded memory.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::buffer::{Buffer, OffsetBuffer};
use hashbrown::HashMap;

/// A growing dictionary.
pub(super) struct Dictionary {
    short: Vec<Slot>,
    shorts: usize,
    long: HashMap<Box<[u8]>, u32, foldhash::fast::FixedState>,
    bytes: Vec<u8>,
    offsets: Vec<i32>,
    /// The array of all texts so far, while none is added.
    array: Option<ArrayRef>,
}

#[derive(Clone, Copy)]
struct Slot {
    text: u128,
    /// 0: the slot is free.
    len: u32,
    code: u32,
}

/// A text that is not UTF-8.
#[derive(Debug)]
pub(super) struct NotText;

impl Dictionary {
    pub(super) fn new() -> Self {
        let short = vec![FREE; SLOTS_MIN];
        Self { short, shorts: 0, long: HashMap::default(), bytes: vec![], offsets: vec![0], array: None }
    }

    /// The code of `bytes[start..end]`, which is not empty. Sixteen bytes from `start` on are there.
    pub(super) fn code(&mut self, bytes: &[u8], start: usize, end: usize) -> Result<u32, NotText> {
        let len = end - start;
        if len > SHORT {
            return self.long(&bytes[start..end]);
        }
        let mut sixteen = [0; SHORT];
        sixteen.copy_from_slice(&bytes[start..start + SHORT]);
        let text = u128::from_le_bytes(sixteen) & (u128::MAX >> (8 * (SHORT - len)));
        let (len, mask) = (len as u32, self.short.len() - 1);
        let mut place = hash(text, len) & mask;
        loop {
            let slot = self.short[place];
            if slot.text == text && slot.len == len {
                return Ok(slot.code);
            }
            if slot.len == 0 {
                break;
            }
            place = (place + 1) & mask;
        }
        let code = self.add(&bytes[start..end])?;
        self.short[place] = Slot { text, len, code };
        self.shorts += 1;
        if self.shorts * 2 > self.short.len() {
            self.grow();
        }
        Ok(code)
    }

    /// The code of the empty text.
    pub(super) fn empty(&mut self) -> Result<u32, NotText> {
        self.long(b"")
    }

    fn long(&mut self, text: &[u8]) -> Result<u32, NotText> {
        if let Some(&code) = self.long.get(text) {
            return Ok(code);
        }
        let code = self.add(text)?;
        self.long.insert(text.into(), code);
        Ok(code)
    }

    fn add(&mut self, text: &[u8]) -> Result<u32, NotText> {
        std::str::from_utf8(text).map_err(|_| NotText)?;
        let code = u32::try_from(self.offsets.len() - 1).expect("a dictionary begins anew long before");
        self.bytes.extend_from_slice(text);
        self.offsets.push(i32::try_from(self.bytes.len()).map_err(|_| NotText)?);
        self.array = None;
        Ok(code)
    }

    fn grow(&mut self) {
        let larger = vec![FREE; self.short.len() * 2];
        let mask = larger.len() - 1;
        for slot in std::mem::replace(&mut self.short, larger).into_iter().filter(|slot| slot.len > 0) {
            let mut place = hash(slot.text, slot.len) & mask;
            while self.short[place].len > 0 {
                place = (place + 1) & mask;
            }
            self.short[place] = slot;
        }
    }

    /// All texts, by their codes.
    pub(super) fn array(&mut self) -> ArrayRef {
        let made = self.array.get_or_insert_with(|| {
            let (offsets, bytes) = (OffsetBuffer::new(self.offsets.clone().into()), Buffer::from_slice_ref(&self.bytes));
            Arc::new(StringArray::new(offsets, bytes, None))
        });
        Arc::clone(made)
    }

    /// Begins anew when it has grown large. Codes of before are of arrays of before.
    pub(super) fn renew_if_large(&mut self) {
        if self.offsets.len() > TEXTS_MAX || self.bytes.len() > BYTES_MAX {
            *self = Self::new();
        }
    }
}

fn hash(text: u128, len: u32) -> usize {
    let folded = (text as u64 ^ u64::from(len)).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (text >> 64) as u64;
    let wide = u128::from(folded) * 0xD6E8_FEB8_6659_FD93_u128;
    ((wide as u64) ^ (wide >> 64) as u64) as usize
}

/// Bytes that one comparison covers; so many must be readable behind every text.
pub(super) const SHORT: usize = 16;
const FREE: Slot = Slot { text: 0, len: 0, code: 0 };
const SLOTS_MIN: usize = 256;
/// Behind it a dictionary costs more than the texts.
const TEXTS_MAX: usize = 1 << 17;
/// Far below what offsets of 32 bits hold: a batch adds at most its own bytes.
const BYTES_MAX: usize = 1 << 26;
