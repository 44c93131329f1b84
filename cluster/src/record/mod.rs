//! The record: what is chained goes to the archive, and what is not there yet is read from the chain.
//!
//! `cursor.rs` reads ticks with their rows from any position of the chain; `archivist.rs` writes them to the archive, on the one node
//! that holds the archivist's lock, and `upkeep.rs` keeps it in shape there; `tail.rs` reads them for queries, on every node.

mod archivist;
mod cursor;
#[cfg(test)]
mod flaky;
#[cfg(test)]
mod s3_tests;
mod tail;
#[cfg(test)]
mod tests;
mod upkeep;

pub(crate) use archivist::{Archivist, start};
pub use tail::ChainTail;

use arrow::array::RecordBatch;
use weir_archive::{Convert, Piece, Table};
use weir_dataflow::Taken;

/// Rows that became readable, as the archive takes them.
pub fn piece(taken: Taken) -> Piece {
    let Taken { tick, late, identity, received_ms, batch, section, rows, .. } = taken;
    Piece { identity, received_ms, tick, late, batch, section, rows }
}

/// The columns of a piece's rows: the engine's own conversion.
pub const CONVERT: Convert = convert;

fn convert(piece: &Piece, rows: Option<&[u32]>) -> RecordBatch {
    let Piece { identity, received_ms, tick, late, batch, section, rows: own } = piece;
    let table = piece.table();
    let tail = match table {
        Table::Events => weir_dataflow::Tail::Events,
        Table::Samples => weir_dataflow::Tail::Samples,
    };
    let taken = Taken {
        tail,
        tick: *tick,
        late: *late,
        identity: identity.clone(),
        received_ms: *received_ms,
        batch: batch.clone(),
        section: *section,
        rows: own.clone(),
    };
    taken.record_batch(table.columns(), &weir_dataflow::schema_of(table.columns()), rows)
}
