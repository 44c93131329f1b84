//! What the chain knows of tables: when each was made and changed last, and how many bytes its rows have. Never the rows.
//!
//! A statement is evaluated by the node that takes it, at a tick, and chained as rows that come and go. What follows from the rows that were
//! there then (a DELETE, a primary key) holds only if the table has not changed since: else it is refused, and evaluated anew.
//!
//! Promise: whether a change is done follows from the records before it, so every reader of the chain finds the same.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weir_dataflow::{TableRows, TableWrite, ViewKind, ViewOutcome};

/// All tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tables(BTreeMap<String, Table>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Table {
    /// The tick that it was made at.
    created: u64,
    /// The tick of its last change.
    changed: u64,
    /// Of its rows.
    bytes: u64,
}

impl Tables {
    /// Whether a change is done, at this tick.
    pub(crate) fn write(&mut self, tick: u64, write: &TableWrite) -> ViewOutcome {
        let Some(table) = self.0.get_mut(&write.table) else { return ViewOutcome::Missing(write.table.clone()) };
        let last = if write.follows_rows { table.changed } else { table.created };
        if last > write.read_at {
            return ViewOutcome::Stale(last);
        }
        let bytes = match write.rows {
            TableRows::Cleared => 0,
            TableRows::Changed(_) => table.bytes.saturating_sub(write.removed_bytes).saturating_add(write.added_bytes),
        };
        // What makes it smaller is done, also when the limit was lowered.
        if bytes > write.bytes_max && bytes > table.bytes {
            return ViewOutcome::Full(write.bytes_max);
        }
        (table.changed, table.bytes) = (tick, bytes);
        ViewOutcome::Written
    }

    /// Takes note of what was made and dropped.
    pub(crate) fn note(&mut self, tick: u64, outcome: &ViewOutcome) {
        match outcome {
            ViewOutcome::Created(made) if made.kind == ViewKind::Table => {
                self.0.insert(made.name.clone(), Table { created: tick, changed: tick, bytes: 0 });
            }
            ViewOutcome::Dropped(names) => self.0.retain(|name, _| !names.contains(name)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_dataflow::ViewDefinition;

    use super::*;

    fn write(read_at: u64, follows_rows: bool, (added_bytes, removed_bytes): (u64, u64)) -> TableWrite {
        let rows = TableRows::Changed(vec![]);
        TableWrite { table: "t".into(), read_at, follows_rows, rows, added_bytes, removed_bytes, bytes_max: 100 }
    }

    #[test]
    fn a_change_counts_only_over_the_rows_that_it_was_made_from() {
        let mut tables = Tables::default();
        assert_eq!(tables.write(4, &write(4, false, (1, 0))), ViewOutcome::Missing("t".into()));
        let definition = ViewDefinition { name: "t".into(), sql: String::new(), kind: ViewKind::Table, reads: vec![] };
        tables.note(5, &ViewOutcome::Created(definition.clone()));
        assert_eq!(tables.write(6, &write(4, false, (1, 0))), ViewOutcome::Stale(5), "it was another table");
        assert_eq!(tables.write(6, &write(5, true, (60, 0))), ViewOutcome::Written);
        assert_eq!(tables.write(7, &write(5, true, (1, 0))), ViewOutcome::Stale(6));
        assert_eq!(
            tables.write(7, &write(5, false, (40, 0))),
            ViewOutcome::Written,
            "an INSERT without a key follows from nothing"
        );
        assert_eq!(tables.write(8, &write(7, true, (1, 0))), ViewOutcome::Full(100));
        assert_eq!(tables.write(8, &write(7, true, (1, 2))), ViewOutcome::Written);
        let lowered = TableWrite { bytes_max: 10, ..write(8, true, (0, 50)) };
        assert_eq!(tables.write(9, &lowered), ViewOutcome::Written);
        let cleared = TableWrite { rows: TableRows::Cleared, ..write(9, false, (0, 0)) };
        assert_eq!(tables.write(9, &cleared), ViewOutcome::Written);
        assert_eq!(tables.write(9, &write(8, true, (1, 0))), ViewOutcome::Stale(9), "two in one record are in order");
        assert_eq!(tables.write(10, &write(9, true, (100, 0))), ViewOutcome::Written);
        tables.note(11, &ViewOutcome::Dropped(vec!["t".into()]));
        assert_eq!(tables.write(12, &write(11, false, (1, 0))), ViewOutcome::Missing("t".into()));
    }
}
