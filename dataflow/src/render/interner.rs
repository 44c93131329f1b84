//! Keys as small numbers, for as long as a worker gathers rows by them.
//!
//! One or two text columns are numbered by their codes, without looking at the text of a row whose code was seen in this dictionary; other
//! keys by their row bytes. A number stands for the key's bytes, which say who owns it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, UInt32Type};
use hashbrown::HashMap;

use super::exchange::owner;
use super::rows::{Bytes, RowCodec};

type Numbers<K> = HashMap<K, u32, foldhash::fast::FixedState>;

/// Keys of fixed types.
pub(super) struct Interner {
    codec: RowCodec,
    peers: usize,
    texts: Vec<Texts>,
    packed: Numbers<u64>,
    bytes: Numbers<Bytes>,
    keys: Vec<(Bytes, usize)>,
    numbers: Vec<u32>,
}

impl Interner {
    pub(super) fn new<'t>(types: impl IntoIterator<Item = &'t DataType>, peers: usize) -> Self {
        let types: Vec<_> = types.into_iter().cloned().collect();
        let packs = (1..=2).contains(&types.len()) && types.iter().all(|data_type| *data_type == weir_plan::text_type());
        let texts = if packs { types.iter().map(|_| Texts::default()).collect() } else { vec![] };
        let (packed, bytes) = (Numbers::default(), Numbers::default());
        Self { codec: RowCodec::new(&types), peers, texts, packed, bytes, keys: vec![], numbers: vec![] }
    }

    /// Each row's number.
    pub(super) fn intern(&mut self, columns: &[ArrayRef], rows: usize) -> &[u32] {
        let mut numbers = std::mem::take(&mut self.numbers);
        numbers.clear();
        let texts: Option<Vec<&DictionaryArray<UInt32Type>>> =
            columns.iter().map(|column| column.as_any().downcast_ref()).collect();
        match texts {
            Some(texts) if !self.texts.is_empty() && texts.iter().all(|text| text.values().null_count() == 0) => {
                self.by_codes(columns, &texts, &mut numbers);
            }
            _ => {
                let encoded = self.codec.encode(columns, rows);
                for row in 0..rows {
                    numbers.push(self.by_bytes(encoded.row(row)));
                }
            }
        }
        self.numbers = numbers;
        &self.numbers
    }

    /// The key's bytes, and the worker that owns it.
    pub(super) fn key(&self, number: u32) -> (&Bytes, usize) {
        let (key, owner) = &self.keys[number as usize];
        (key, *owner)
    }

    /// Numbers so far.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Forgets all numbers.
    pub(super) fn clear(&mut self) {
        self.texts.iter_mut().for_each(|text| *text = Texts::default());
        self.packed = Numbers::default();
        self.bytes = Numbers::default();
        self.keys = vec![];
    }

    fn by_codes(&mut self, columns: &[ArrayRef], texts: &[&DictionaryArray<UInt32Type>], numbers: &mut Vec<u32>) {
        self.texts.iter_mut().zip(texts).for_each(|(known, text)| known.turn_to(text.values()));
        let rows = texts.first().map_or(0, |text| text.len());
        let mut missing: Vec<u32> = vec![];
        for row in 0..rows {
            let mut packed = 0_u64;
            for (known, text) in self.texts.iter_mut().zip(texts) {
                packed = packed << 32 | u64::from(known.number(text, row));
            }
            // A new key is one beyond the last; its bytes follow below.
            let next = u32::try_from(self.keys.len() + missing.len()).expect("keys are cleared long before");
            let number = *self.packed.entry(packed).or_insert_with(|| {
                missing.push(u32::try_from(row).expect("a batch has fewer than 2^32 rows"));
                next
            });
            numbers.push(number);
        }
        if !missing.is_empty() {
            let at = UInt32Array::from(missing);
            let new: Vec<_> =
                columns.iter().map(|column| take(column, &at, None).expect("places are inside the batch")).collect();
            let encoded = self.codec.encode(&new, at.len());
            for row in 0..at.len() {
                self.push(encoded.row(row).into());
            }
        }
    }

    fn by_bytes(&mut self, key: &[u8]) -> u32 {
        if let Some(&number) = self.bytes.get(key) {
            return number;
        }
        let number = u32::try_from(self.keys.len()).expect("keys are cleared long before");
        self.bytes.insert(key.into(), number);
        self.push(key.into());
        number
    }

    fn push(&mut self, key: Bytes) {
        let owner = owner(&key, self.peers);
        self.keys.push((key, owner));
    }
}

/// The texts of one column, numbered; NULL is 0.
#[derive(Default)]
struct Texts {
    numbers: Numbers<Box<str>>,
    values: Option<ArrayRef>,
    /// Per code of `values`, as far as it was asked for; 0: not yet.
    by_code: Vec<u32>,
}

impl Texts {
    /// From here on codes are of this dictionary. Where it only goes on from the last one, what is known of that stays.
    fn turn_to(&mut self, values: &ArrayRef) {
        if self.values.as_ref().is_some_and(|known| Arc::ptr_eq(known, values)) {
            return;
        }
        let goes_on = self.values.as_ref().is_some_and(|known| begins_with(values, known));
        if !goes_on {
            self.by_code.clear();
        }
        self.by_code.resize(values.len(), 0);
        self.values = Some(Arc::clone(values));
    }

    fn number(&mut self, text: &DictionaryArray<UInt32Type>, row: usize) -> u32 {
        if text.keys().is_null(row) {
            return 0;
        }
        let code = text.keys().value(row) as usize;
        match self.by_code[code] {
            0 => {
                let value = text.values().as_string::<i32>().value(code);
                let next = u32::try_from(self.numbers.len() + 1).expect("keys are cleared long before");
                let number = match self.numbers.get(value) {
                    Some(&number) => number,
                    None => {
                        self.numbers.insert(value.into(), next);
                        next
                    }
                };
                self.by_code[code] = number;
                number
            }
            number => number,
        }
    }
}

/// Whether one dictionary is the beginning of another.
fn begins_with(values: &ArrayRef, beginning: &ArrayRef) -> bool {
    let (Some(longer), Some(shorter)) = (values.as_string_opt::<i32>(), beginning.as_string_opt::<i32>()) else { return false };
    let len = shorter.len();
    if longer.len() < len || longer.offsets()[0] != 0 || shorter.offsets()[0] != 0 {
        return false;
    }
    let bytes = usize::try_from(shorter.offsets()[len]).unwrap_or(0);
    longer.offsets()[..=len] == shorter.offsets()[..=len] && longer.value_data()[..bytes] == shorter.value_data()[..bytes]
}
