//! Where the fields of comma-separated lines begin and end.
//!
//! Without quotes every comma and line feed ends a field: they are found sixty-four bytes at a time. Bytes with quotes are written anew
//! without them, each field followed by one byte, so that both look the same afterwards.

use std::collections::HashSet;

use super::texts::SHORT;

/// Whole records: field n is what stands between end n−1 and end n.
#[derive(Default)]
pub(super) struct Records {
    /// With at least [`SHORT`] bytes behind the last record.
    pub(super) bytes: Vec<u8>,
    pub(super) ends: Vec<u32>,
    /// Fields that stood in quotes and are empty: they are no NULLs.
    pub(super) empty: HashSet<usize>,
    /// The line of each record, where it is not one a line.
    lines: Vec<u64>,
}

/// Why bytes are no records.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken {
    /// The line from the first byte on, from 0.
    pub(super) line: u64,
    pub(super) why: String,
}

impl Records {
    /// Takes the whole records from the front of `bytes`; returns what is left of them, and how many lines it took. `last`: nothing follows.
    pub(super) fn take(&mut self, mut bytes: Vec<u8>, width: usize, last: bool) -> Result<(Vec<u8>, u64), Broken> {
        self.ends.clear();
        self.empty.clear();
        self.lines.clear();
        if memchr::memchr(b'"', &bytes).is_some() {
            self.bytes.clear();
            let (taken, lines) = self.quoted(&bytes, width, last)?;
            return Ok((bytes.split_off(taken.min(bytes.len())), lines));
        }
        let rest = match memchr::memrchr(b'\n', &bytes) {
            _ if last => vec![],
            end => bytes.split_off(end.map_or(0, |end| end + 1)),
        };
        while last && bytes.last().is_some_and(|byte| b"\r\n".contains(byte)) {
            bytes.pop();
        }
        if last && !bytes.is_empty() {
            bytes.push(b'\n');
        }
        let lines = memchr::memchr_iter(b'\n', &bytes).count();
        separators(&bytes, &mut self.ends);
        bytes.resize(bytes.len() + SHORT, 0);
        self.bytes = bytes;
        let ends_line = |end: &u32| self.bytes[*end as usize] == b'\n';
        let whole = self.ends.len() == lines * width && self.ends.iter().skip(width - 1).step_by(width).all(ends_line);
        if whole { Ok((rest, lines as u64)) } else { Err(self.broken(width)) }
    }

    /// Number of records.
    pub(super) fn len(&self, width: usize) -> usize {
        self.ends.len() / width
    }

    /// The line of a record, from 0.
    pub(super) fn line(&self, record: usize) -> u64 {
        self.lines.get(record).copied().unwrap_or(record as u64)
    }

    /// A field, without the carriage return that may end its line.
    pub(super) fn field(&self, width: usize, record: usize, field: usize) -> (usize, usize) {
        let place = record * width + field;
        let start = if place == 0 { 0 } else { self.ends[place - 1] as usize + 1 };
        let end = self.ends[place] as usize;
        let returns = field + 1 == width && end > start && self.bytes[end - 1] == b'\r' && self.bytes[end] == b'\n';
        (start, end - usize::from(returns))
    }

    /// The first line that has another number of fields.
    fn broken(&self, width: usize) -> Broken {
        let (mut line, mut fields) = (0, 0);
        for &end in &self.ends {
            fields += 1;
            if self.bytes[end as usize] == b'\n' {
                if fields != width {
                    return wrong_width(line, fields, width);
                }
                (line, fields) = (line + 1, 0);
            }
        }
        wrong_width(line, fields, width)
    }

    fn quoted(&mut self, bytes: &[u8], width: usize, last: bool) -> Result<(usize, u64), Broken> {
        let mut reader = Quoted { bytes, at: 0, line: 0 };
        let (mut taken, mut lines) = (0, 0);
        while reader.at < bytes.len() {
            if last && bytes[reader.at..].iter().all(|byte| b"\r\n".contains(byte)) {
                taken = bytes.len();
                break;
            }
            let (len, fields, line) = (self.bytes.len(), self.ends.len(), reader.line);
            match reader.record(self, last)? {
                true if self.ends.len() - fields == width => self.lines.push(line),
                true => return Err(wrong_width(line, self.ends.len() - fields, width)),
                false => {
                    self.bytes.truncate(len);
                    self.ends.truncate(fields);
                    self.empty.retain(|field| *field < fields);
                    break;
                }
            }
            (taken, lines) = (reader.at, reader.line);
        }
        self.bytes.resize(self.bytes.len() + SHORT, 0);
        Ok((taken, lines))
    }
}

fn wrong_width(line: u64, fields: usize, width: usize) -> Broken {
    let why = format!("the line has {fields} fields where the header has {width}: mend it, or put fields with commas in quotes");
    Broken { line, why }
}

/// Reads records with quotes, a byte at a time.
struct Quoted<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u64,
}

impl Quoted<'_> {
    /// Writes one record; false when its end is not there yet.
    fn record(&mut self, out: &mut Records, last: bool) -> Result<bool, Broken> {
        loop {
            let in_quotes = self.bytes.get(self.at) == Some(&b'"');
            let start = out.bytes.len();
            if in_quotes {
                let begun = self.line;
                if !self.in_quotes(out) {
                    let why = "a quote is not closed: close it, or write it twice inside quotes".to_owned();
                    return if last { Err(Broken { line: begun, why }) } else { Ok(false) };
                }
            } else {
                let rest = &self.bytes[self.at..];
                let len = memchr::memchr2(b',', b'\n', rest).unwrap_or(rest.len());
                out.bytes.extend_from_slice(&rest[..len]);
                self.at += len;
            }
            if self.bytes.get(self.at..self.at + 2) == Some(b"\r\n") {
                self.at += 1;
            }
            let end = match self.bytes.get(self.at) {
                Some(b',') => b',',
                Some(b'\n') => b'\n',
                None if last => b'\n',
                None => return Ok(false),
                Some(b'\r') if !last && self.at + 1 == self.bytes.len() => return Ok(false),
                Some(_) => {
                    let why =
                        "behind a closing quote a comma or the end of the line must follow: write quotes inside quotes twice";
                    return Err(Broken { line: self.line, why: why.to_owned() });
                }
            };
            if in_quotes && out.bytes.len() == start {
                out.empty.insert(out.ends.len());
            }
            out.ends.push(u32::try_from(out.bytes.len()).expect("a chunk is far below 4 GiB"));
            // Behind quotes a carriage return is the field's own.
            out.bytes.push(if in_quotes { b',' } else { end });
            self.at += 1;
            if end == b'\n' {
                self.line += 1;
                return Ok(true);
            }
        }
    }

    /// What stands in quotes; false when they are not closed.
    fn in_quotes(&mut self, out: &mut Records) -> bool {
        self.at += 1;
        while let Some(&byte) = self.bytes.get(self.at) {
            self.at += 1;
            match byte {
                b'"' if self.bytes.get(self.at) == Some(&b'"') => self.at += 1,
                b'"' => return true,
                b'\n' => self.line += 1,
                _ => {}
            }
            out.bytes.push(byte);
        }
        false
    }
}

/// The places of all commas and line feeds.
fn separators(bytes: &[u8], ends: &mut Vec<u32>) {
    let mut blocks = bytes.chunks_exact(BLOCK);
    let mut at = 0;
    for block in &mut blocks {
        let mut bits = marks(block);
        while bits != 0 {
            ends.push(at + bits.trailing_zeros());
            bits &= bits - 1;
        }
        at += BLOCK as u32;
    }
    let rest = blocks.remainder().iter().zip(at..).filter(|(byte, _)| b",\n".contains(byte));
    ends.extend(rest.map(|(_, place)| place));
}

/// Bit n: byte n is a comma or a line feed.
fn marks(block: &[u8]) -> u64 {
    let mut ones = [0_u8; BLOCK];
    for (one, byte) in ones.iter_mut().zip(block) {
        *one = u8::from(*byte == b',') | u8::from(*byte == b'\n');
    }
    let mut bits = 0;
    for (place, eight) in ones.as_chunks::<8>().0.iter().enumerate() {
        // Each byte is 0 or 1: the product has byte n's bit at 56 + n.
        bits |= (u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * place);
    }
    bits
}

const BLOCK: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rows of cells.
    type Cells = Vec<Vec<Option<String>>>;

    fn fields(text: &str, width: usize, last: bool) -> Result<(Cells, usize), Broken> {
        let mut records = Records::default();
        let (rest, _) = records.take(text.as_bytes().to_vec(), width, last)?;
        let taken = text.len() - rest.len();
        let field = |record: usize, field: usize| {
            let (start, end) = records.field(width, record, field);
            let empty = start == end && !records.empty.contains(&(record * width + field));
            (!empty).then(|| String::from_utf8(records.bytes[start..end].to_vec()).unwrap())
        };
        let rows = (0..records.len(width)).map(|record| (0..width).map(|place| field(record, place)).collect()).collect();
        Ok((rows, taken))
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            rows in prop::collection::vec(prop::collection::vec(prop::option::of("[a\",\r\n ü]{0,30}"), 3), 1..40),
            ending in prop::sample::select(vec!["\n", "\r\n"]),
            cut in 0_usize..2_000,
            always_quote in any::<bool>(),
        ) {
            let field = |field: &Option<String>| match field {
                None => String::new(),
                Some(text) if always_quote || text.is_empty() || text.contains(['"', ',', '\r', '\n']) => {
                    format!("\"{}\"", text.replace('"', "\"\""))
                }
                Some(text) => text.clone(),
            };
            let line = |row: &Vec<Option<String>>| row.iter().map(field).collect::<Vec<_>>().join(",") + ending;
            let text: String = rows.iter().map(line).collect();
            prop_assert_eq!(&fields(&text, 3, true).unwrap().0, &rows);
            // In two parts, wherever they are cut.
            let cut = (0..=cut.min(text.len())).rev().find(|cut| text.is_char_boundary(*cut)).unwrap_or(0);
            let (mut first, taken) = fields(&text[..cut], 3, false).unwrap();
            first.extend(fields(&text[taken..], 3, true).unwrap().0);
            prop_assert_eq!(first, rows);
        }

        #[test]
        fn any_bytes_are_records_or_an_error(bytes in prop::collection::vec(prop::sample::select(b"ab\",\n\r\xff".to_vec()), 0..200), last in any::<bool>()) {
            let mut records = Records::default();
            if let Ok((rest, _)) = records.take(bytes.clone(), 2, last) {
                prop_assert!(rest.len() <= bytes.len() && records.ends.len().is_multiple_of(2));
                for record in 0..records.len(2) {
                    let (start, end) = records.field(2, record, 1);
                    prop_assert!(start <= end && end + SHORT <= records.bytes.len());
                }
            }
        }
    }

    #[test]
    fn broken_lines_are_named() {
        let broken = |text: &str| fields(text, 2, true).unwrap_err();
        assert_eq!((broken("a,b\na\n").line, broken("a,b\na,b\na,b,c\n").line), (1, 2));
        // As many fields too few as there are too many.
        assert_eq!(broken("a,b\na\na,b,c\n").line, 1);
        assert!(broken("\"a\",b\na,\"b\n").why.contains("not closed"));
        assert!(broken("\"a\"x,b\n").why.contains("closing quote"));
        assert_eq!(fields("a,b\n\n", 2, true).unwrap().0.len(), 1);
    }
}
