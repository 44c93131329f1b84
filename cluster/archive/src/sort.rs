//! The order of rows in a fresh file: tenant, region, kind, host, time.
//!
//! Sections come nearly sorted, so whole pieces are put in order, and rows only where pieces overlap in time.

use arrow::array::{RecordBatch, UInt64Array};
use arrow::compute::take_record_batch;

use crate::error::Error;
use crate::piece::{Convert, Part, Piece};

/// Hands out the rows of the pieces in order.
pub(crate) fn in_order(
    pieces: &[Piece],
    convert: Convert,
    out: &mut dyn FnMut(&RecordBatch) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut order: Vec<Ordered<'_>> = pieces.iter().filter(|piece| !piece.is_empty()).map(Ordered::new).collect();
    order.sort_by(|a, b| a.group().cmp(&b.group()).then(a.first.cmp(&b.first)));
    let mut together = Together { convert, parts: Vec::new(), rows: 0 };
    for group in order.chunk_by(|a, b| a.group() == b.group()) {
        if group.windows(2).all(|pair| pair[0].last <= pair[1].first) {
            for ordered in group {
                together.add(ordered.part(), out)?;
            }
        } else {
            together.hand_out(out)?;
            interleaved(group, convert, out)?;
        }
    }
    together.hand_out(out)
}

/// Parts that are converted in one go: a batch of few rows would cost more than they.
struct Together<'a> {
    convert: Convert,
    parts: Vec<Part<'a>>,
    rows: usize,
}

impl<'a> Together<'a> {
    fn add(&mut self, part: Part<'a>, out: &mut dyn FnMut(&RecordBatch) -> Result<(), Error>) -> Result<(), Error> {
        self.rows += part.1.map_or_else(|| part.0.len(), <[u32]>::len);
        self.parts.push(part);
        if self.rows < ROWS_TOGETHER { Ok(()) } else { self.hand_out(out) }
    }

    fn hand_out(&mut self, out: &mut dyn FnMut(&RecordBatch) -> Result<(), Error>) -> Result<(), Error> {
        self.rows = 0;
        let parts = std::mem::take(&mut self.parts);
        if parts.is_empty() { Ok(()) } else { out(&(self.convert)(&parts)) }
    }
}

/// A piece, with its rows in order of time.
struct Ordered<'a> {
    piece: &'a Piece,
    /// None: they are in order as they stand.
    rows: Option<Vec<u32>>,
    first: i64,
    last: i64,
}

impl<'a> Ordered<'a> {
    fn new(piece: &'a Piece) -> Self {
        let times = &piece.section().times;
        if piece.rows.is_none() && times.is_sorted() {
            return Self { piece, rows: None, first: times[0], last: times[times.len() - 1] };
        }
        let mut rows = piece.row_numbers();
        rows.sort_by_key(|row| times[*row as usize]);
        let at = |row: Option<&u32>| row.map_or(0, |row| times[*row as usize]);
        let (first, last) = (at(rows.first()), at(rows.last()));
        Self { piece, rows: Some(rows), first, last }
    }

    fn group(&self) -> (&str, &str, &str, &str) {
        let Piece { identity, batch, .. } = self.piece;
        (identity.tenant.as_str(), identity.region.as_str(), self.piece.section().kind.as_str(), &batch.host.host)
    }

    fn part(&self) -> Part<'_> {
        (self.piece, self.rows.as_deref())
    }

    fn times(&self) -> Vec<i64> {
        let times = &self.piece.section().times;
        match &self.rows {
            None => times.clone(),
            Some(rows) => rows.iter().map(|row| times[*row as usize]).collect(),
        }
    }
}

/// Pieces that overlap: row by row.
fn interleaved(
    group: &[Ordered<'_>],
    convert: Convert,
    out: &mut dyn FnMut(&RecordBatch) -> Result<(), Error>,
) -> Result<(), Error> {
    let parts: Vec<Part<'_>> = group.iter().map(Ordered::part).collect();
    let whole = convert(&parts);
    let times: Vec<i64> = group.iter().flat_map(Ordered::times).collect();
    let mut rows: Vec<u64> = (0..times.len() as u64).collect();
    rows.sort_by_key(|row| times[*row as usize]);
    for rows in rows.chunks(ROWS_TOGETHER) {
        let batch = take_record_batch(&whole, &UInt64Array::from(rows.to_vec()));
        out(&batch.map_err(|error| Error::Parquet { what: "sorting rows".to_owned(), why: error.to_string() })?)?;
    }
    Ok(())
}

const ROWS_TOGETHER: usize = 8_192;
