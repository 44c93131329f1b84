//! The record: what is chained goes to the archive, and what is not there yet is read from the chain.
//!
//! `cursor.rs` reads ticks with their rows from any position of the chain; `archivist.rs` writes them to the archive, on one node,
//! and `upkeep.rs` keeps it in shape there; `tail.rs` reads them for queries, on every node.

mod archivist;
pub(crate) mod cursor;
#[cfg(test)]
pub(crate) mod flaky;
#[cfg(test)]
pub(crate) mod s3_tests;
mod tail;
#[cfg(test)]
mod tests;
mod upkeep;

pub(crate) use archivist::{Archivist, start};
pub use tail::ChainTail;

use arrow::array::RecordBatch;
use weir_archive::{Convert, Part, Piece, Table, outside_schema};
use weir_dataflow::{Taken, gather};

/// Rows that became readable, as the archive takes them.
pub fn piece(taken: Taken) -> Piece {
    let Taken { tick, late, identity, received_ms, batch, section, rows, .. } = taken;
    Piece { identity, received_ms, tick, late, batch, section, rows }
}

/// The columns of pieces' rows: the engine's own conversion.
pub const CONVERT: Convert = convert;

fn convert(parts: &[Part<'_>]) -> RecordBatch {
    let table = parts.first().map_or(Table::Events, |(piece, _)| piece.table());
    let taken: Vec<Taken> = parts.iter().map(|(piece, _)| taken(piece)).collect();
    let parts: Vec<_> = taken.iter().zip(parts).map(|(taken, (_, rows))| (taken, *rows)).collect();
    gather(&parts, table.columns(), &outside_schema(table))
}

fn taken(piece: &Piece) -> Taken {
    let Piece { identity, received_ms, tick, late, batch, section, rows } = piece.clone();
    let tail = match piece.table() {
        Table::Events => weir_dataflow::Tail::Events,
        Table::Samples => weir_dataflow::Tail::Samples,
    };
    Taken { tail, tick, late, identity, received_ms, batch, section, rows }
}
