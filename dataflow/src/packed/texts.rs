//! Texts that rows share, each kept once under a number.

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::hash::BuildHasher as _;

/// The texts of one relation's rows.
#[derive(Debug, Default)]
pub(super) struct Texts {
    by_text: HashTable<u32>,
    texts: Vec<Option<Box<[u8]>>>,
    free: Vec<u32>,
    bytes: usize,
    /// How many there were when those that no row had were let go.
    swept: usize,
}

impl Texts {
    /// The number of a text; a new one when it was not known.
    pub(super) fn number(&mut self, text: &[u8]) -> u32 {
        let hash = hash(text);
        let Self { by_text, texts, .. } = self;
        if let Some(number) = by_text.find(hash, |number| texts[*number as usize].as_deref() == Some(text)) {
            return *number;
        }
        self.bytes += text.len();
        let number = match self.free.pop() {
            Some(number) => {
                self.texts[number as usize] = Some(text.into());
                number
            }
            None => {
                self.texts.push(Some(text.into()));
                u32::try_from(self.texts.len() - 1).expect("fewer texts than bytes of memory")
            }
        };
        let texts = &self.texts;
        self.by_text.insert_unique(hash, number, |number| texts[*number as usize].as_deref().map_or(0, self::hash));
        number
    }

    /// The text of a number that is in use.
    pub(super) fn text(&self, number: u32) -> Option<&[u8]> {
        self.texts.get(number as usize)?.as_deref()
    }

    /// All texts by number.
    pub(super) fn all(&self) -> &[Option<Box<[u8]>>] {
        &self.texts
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.by_text.len() * TEXT_BYTES
    }

    /// Whether it is worth asking which ones are still in use.
    pub(super) fn may_be_swept(&self) -> bool {
        self.by_text.len() > 2 * self.swept + SWEEP_MIN
    }

    /// Lets go of all but those in use, by number.
    pub(super) fn keep(&mut self, in_use: &[bool]) {
        for (number, slot) in self.texts.iter_mut().enumerate() {
            if in_use.get(number).copied().unwrap_or(false) {
                continue;
            }
            let Some(text) = slot.take() else { continue };
            self.bytes -= text.len();
            let number = number as u32;
            if let Ok(entry) = self.by_text.find_entry(hash(&text), |known| *known == number) {
                entry.remove();
            }
            self.free.push(number);
        }
        self.swept = self.by_text.len();
    }
}

fn hash(text: &[u8]) -> u64 {
    FixedState::default().hash_one(text)
}

/// What a text costs beside its bytes.
const TEXT_BYTES: usize = 32;
/// Fewer texts are not worth a walk over all rows.
const SWEEP_MIN: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_one_number_until_it_is_let_go() {
        let mut texts = Texts::default();
        let numbers: Vec<u32> = (0..6_000).map(|text| texts.number(format!("text {text}").as_bytes())).collect();
        assert_eq!(texts.number(b"text 17"), numbers[17]);
        assert!(texts.may_be_swept());
        let in_use: Vec<bool> = (0..6_000).map(|number| number % 2 == 1).collect();
        texts.keep(&in_use);
        assert!(!texts.may_be_swept());
        assert_eq!((texts.text(numbers[16]), texts.text(numbers[17])), (None, Some(&b"text 17"[..])));
        let again = texts.number(b"something else");
        assert!(again % 2 == 0 && again < 6_000, "a number that was free is taken: {again}");
        assert_eq!((texts.number(b"text 17"), texts.text(again)), (numbers[17], Some(&b"something else"[..])));
        let before = texts.bytes();
        texts.keep(&[]);
        assert!(before > 0 && texts.bytes() == 0);
    }
}
