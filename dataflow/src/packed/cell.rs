//! One value of a packed row as bytes.
//!
//! ```text
//! null      0
//! number    1 + n, then the n low bytes of its zigzag form, little-endian, without leading zeros (widths up to 8 bytes)
//! wide      1, then its bytes (other fixed widths)
//! text      LEB128 of (x << 2 | kind)
//!             kind 1: x bytes follow
//!             kind 2: x is the number of a text that rows share
//!             kind 3: x bytes follow, which are the text's hexadecimal digits by two
//! ```
//!
//! A text has exactly one form in a packed row, so equal rows have equal bytes. In a portable row kind 2 does not occur: its bytes mean the
//! same everywhere.

/// How a text stands in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextCell<'a> {
    Null,
    Bytes(&'a [u8]),
    Shared(u32),
    Hex(&'a [u8]),
}

pub(super) const NULL: u8 = 0;
/// A shorter text takes no more room than its number may.
pub(super) const INLINE_MAX: usize = 11;
/// Digits of identifiers that rows rarely share: event, process and connection ids. Container ids are longer, and shared.
const HEX_DIGITS: std::ops::RangeInclusive<usize> = 12..=32;

/// Whether these bytes are written as what hexadecimal digits stand for.
pub(super) fn is_hex(text: &[u8]) -> bool {
    let digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    HEX_DIGITS.contains(&text.len()) && text.len().is_multiple_of(2) && text.iter().all(digit)
}

pub(super) fn put_bytes(text: &[u8], to: &mut Vec<u8>) {
    put_head(text.len() as u64, 1, to);
    to.extend_from_slice(text);
}

pub(super) fn put_shared(number: u32, to: &mut Vec<u8>) {
    put_head(u64::from(number), 2, to);
}

/// Only for what [`is_hex`].
pub(super) fn put_hex(text: &[u8], to: &mut Vec<u8>) {
    put_head(text.len() as u64 / 2, 3, to);
    let value = |digit: u8| if digit <= b'9' { digit - b'0' } else { digit - b'a' + 10 };
    to.extend(text.chunks_exact(2).map(|pair| value(pair[0]) << 4 | value(pair[1])));
}

/// The digits that bytes stand for.
pub(super) fn hex_digits(bytes: &[u8], to: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    to.extend(bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]));
}

pub(super) fn put_number(number: i64, to: &mut Vec<u8>) {
    let zigzag = (number << 1) ^ (number >> 63);
    let bytes = zigzag.to_le_bytes();
    let len = 8 - zigzag.cast_unsigned().leading_zeros() as usize / 8;
    to.push(1 + len as u8);
    to.extend_from_slice(&bytes[..len]);
}

/// The number that stands first, `Some(None)` for NULL.
pub(super) fn take_number(row: &mut &[u8]) -> Option<Option<i64>> {
    let (tag, rest) = row.split_first()?;
    let Some(len) = tag.checked_sub(1).map(usize::from).filter(|len| *len <= 8) else {
        *row = rest;
        return (*tag == NULL).then_some(None);
    };
    let (low, rest) = rest.split_at_checked(len)?;
    *row = rest;
    let mut bytes = [0; 8];
    bytes[..len].copy_from_slice(low);
    let zigzag = u64::from_le_bytes(bytes);
    Some(Some((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed()))
}

/// The wide value that stands first.
pub(super) fn take_wide<'a>(row: &mut &'a [u8], width: usize) -> Option<Option<&'a [u8]>> {
    let (tag, rest) = row.split_first()?;
    let (value, rest) =
        if *tag == NULL { (None, rest) } else { rest.split_at_checked(width).map(|(value, rest)| (Some(value), rest))? };
    *row = rest;
    Some(value)
}

/// The text that stands first.
pub(super) fn take_text<'a>(row: &mut &'a [u8]) -> Option<TextCell<'a>> {
    let head = take_head(row)?;
    let x = head >> 2;
    let bytes = |row: &mut &'a [u8]| {
        let (bytes, rest) = row.split_at_checked(usize::try_from(x).ok()?)?;
        *row = rest;
        Some(bytes)
    };
    match head & 3 {
        0 => (x == 0).then_some(TextCell::Null),
        1 => bytes(row).map(TextCell::Bytes),
        2 => u32::try_from(x).ok().map(TextCell::Shared),
        _ => bytes(row).map(TextCell::Hex),
    }
}

fn put_head(x: u64, kind: u64, to: &mut Vec<u8>) {
    let mut head = x << 2 | kind;
    while head >= 0x80 {
        to.push(head as u8 | 0x80);
        head >>= 7;
    }
    to.push(head as u8);
}

fn take_head(row: &mut &[u8]) -> Option<u64> {
    let mut head = 0;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = row.split_first()?;
        *row = rest;
        head |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(head);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_small_ones_are_short() {
        for (number, len) in [(0, 1), (-1, 2), (1, 2), (127, 2), (128, 3), (-129, 3), (i64::MAX, 9), (i64::MIN, 9)] {
            let mut row = Vec::new();
            put_number(number, &mut row);
            assert_eq!(row.len(), len, "{number}");
            let mut rest = &row[..];
            assert_eq!((take_number(&mut rest), rest.len()), (Some(Some(number)), 0));
        }
        assert_eq!(take_number(&mut &[NULL][..]), Some(None));
        assert_eq!(take_number(&mut &[3, 1][..]), None);
        assert_eq!(take_number(&mut &[10, 1, 1, 1, 1, 1, 1, 1, 1, 1][..]), None);
    }

    #[test]
    fn texts_come_back() {
        for text in [&b""[..], b"a", b"00ff00ff00ff", b"00FF00FF00FF", b"0123456789abcdef0123456789abcdef", &[7; 300]] {
            let mut row = Vec::new();
            if is_hex(text) {
                put_hex(text, &mut row)
            } else {
                put_bytes(text, &mut row)
            }
            let mut found = Vec::new();
            match take_text(&mut &row[..]).unwrap() {
                TextCell::Bytes(bytes) => found.extend_from_slice(bytes),
                TextCell::Hex(bytes) => hex_digits(bytes, &mut found),
                other => panic!("{other:?}"),
            }
            assert_eq!(found, text);
        }
        let mut row = Vec::new();
        put_shared(u32::MAX, &mut row);
        assert_eq!(take_text(&mut &row[..]), Some(TextCell::Shared(u32::MAX)));
        for cut in [&[][..], &[0x80], &[0xff; 12], &[5 << 2 | 1, 1], &[4]] {
            assert_eq!(take_text(&mut &cut[..]), None, "{cut:?}");
        }
    }
}
