//! What the writer is given: rows of one section of one frame, still as the wire's columns.

use std::sync::Arc;

use arrow::array::RecordBatch;
use weir_schema::{AgentIdentity, Batch, Section};

use crate::layout::{Partition, Table};

/// Rows of one host and one kind that became readable at one tick.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Who sent them.
    pub identity: Arc<AgentIdentity>,
    /// When they came, milliseconds.
    pub received_ms: u64,
    /// The tick from which on they can be read.
    pub tick: u64,
    /// Too late for any view.
    pub late: bool,
    /// The frame they came in.
    pub batch: Arc<Batch>,
    /// Place of their section in it.
    pub section: usize,
    /// Which rows of the section; none: every one.
    pub rows: Option<Vec<u32>>,
}

/// Some rows of a piece: its own, or these numbers of its section's rows, in this order.
pub type Part<'a> = (&'a Piece, Option<&'a [u32]>);

/// Turns the rows of all parts, which are of one relation, into the columns of its relation, in the relation's order. Text is
/// `Utf8`, times are nanoseconds in UTC.
pub type Convert = fn(&[Part<'_>]) -> RecordBatch;

impl Piece {
    /// The rows' section.
    pub fn section(&self) -> &Section {
        &self.batch.sections[self.section]
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows.as_ref().map_or_else(|| self.section().rows(), Vec::len)
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The relation.
    pub fn table(&self) -> Table {
        Table::of(self.section().kind)
    }

    /// What its rows have in common, but for the host.
    pub fn partition(&self) -> Partition {
        Partition {
            tenant: self.identity.tenant.as_str().to_owned(),
            region: self.identity.region.as_str().to_owned(),
            kind: self.section().kind.as_str().to_owned(),
        }
    }

    /// Numbers of its rows in the section.
    pub(crate) fn row_numbers(&self) -> Vec<u32> {
        self.rows.clone().unwrap_or_else(|| (0..self.section().rows() as u32).collect())
    }

    /// What the buffer counts it as: about the decoded size.
    pub(crate) fn weight(&self) -> usize {
        let share = self.batch.header.raw_len as usize * self.len();
        share / self.batch.rows().max(1) + size_of::<Self>()
    }
}
