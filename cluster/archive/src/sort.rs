//! The order of rows in a fresh file: tenant, region, kind, host, time.
//!
//! Sections come nearly sorted, so whole pieces are put in order, and rows only where pieces overlap in time.

use arrow::array::RecordBatch;
use arrow::compute::interleave_record_batch;

use crate::error::Error;
use crate::piece::{Convert, Piece};

/// Hands out the rows of the pieces in order.
pub(crate) fn in_order(
    pieces: &[Piece],
    convert: Convert,
    out: &mut dyn FnMut(&RecordBatch) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut order: Vec<Ordered<'_>> = pieces.iter().filter(|piece| !piece.is_empty()).map(Ordered::new).collect();
    order.sort_by(|a, b| a.group().cmp(&b.group()).then(a.first.cmp(&b.first)));
    for group in order.chunk_by(|a, b| a.group() == b.group()) {
        if group.windows(2).all(|pair| pair[0].last <= pair[1].first) {
            for ordered in group {
                out(&convert(ordered.piece, ordered.rows.as_deref()))?;
            }
        } else {
            interleaved(group, convert, out)?;
        }
    }
    Ok(())
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
    let batches: Vec<RecordBatch> = group.iter().map(|ordered| convert(ordered.piece, ordered.rows.as_deref())).collect();
    let batches: Vec<&RecordBatch> = batches.iter().collect();
    let mut rows: Vec<(i64, usize, usize)> = Vec::new();
    for (piece, ordered) in group.iter().enumerate() {
        rows.extend(ordered.times().into_iter().enumerate().map(|(row, time)| (time, piece, row)));
    }
    rows.sort_unstable();
    for rows in rows.chunks(INTERLEAVED_ROWS) {
        let places: Vec<(usize, usize)> = rows.iter().map(|(_, piece, row)| (*piece, *row)).collect();
        let batch = interleave_record_batch(&batches, &places);
        out(&batch.map_err(|error| Error::Parquet { what: "sorting rows".to_owned(), why: error.to_string() })?)?;
    }
    Ok(())
}

const INTERLEAVED_ROWS: usize = 8_192;
