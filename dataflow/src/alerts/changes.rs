//! Rows of `alerts` that come and go in a tick. One that comes and goes again was never there.

use std::collections::BTreeMap;

use super::group::Group;
use super::row::AlertRow;
use crate::delta::DeltaBatch;

/// By the alert's id.
#[derive(Debug, Default)]
pub(super) struct Changes(BTreeMap<u128, Vec<(AlertRow, i64)>>);

impl Changes {
    pub(super) fn come(&mut self, group: &Group) {
        self.change(group, 1);
    }

    pub(super) fn gone(&mut self, group: &Group) {
        self.change(group, -1);
    }

    fn change(&mut self, group: &Group, diff: i64) {
        let row = AlertRow(group.clone());
        let rows = self.0.entry(row.id()).or_default();
        match rows.iter().rposition(|(known, other)| *other == -diff && *known == row) {
            Some(at) => drop(rows.swap_remove(at)),
            None => rows.push((row, diff)),
        }
    }

    pub(super) fn encode(self, tick: u64) -> Option<DeltaBatch> {
        let (rows, diffs): (Vec<AlertRow>, Vec<i64>) = self.0.into_values().flatten().unzip();
        (!rows.is_empty()).then(|| DeltaBatch::new(tick, AlertRow::encode(&rows), diffs))
    }
}
