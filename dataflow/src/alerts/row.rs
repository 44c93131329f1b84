//! Rows of `alerts`.

use std::fmt::Write as _;

use arrow::array::RecordBatch;
use xxhash_rust::xxh3::xxh3_128;

use super::compiled::json;
use super::group::Group;
use crate::relations::ALERTS;
use crate::source::table::{Cell, Table, push_hex};

/// An alert as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AlertRow(pub(crate) Group);

impl AlertRow {
    /// Hash of rule, subject and first evidence.
    pub(crate) fn id(&self) -> u128 {
        let Group { rule, subject, first, .. } = &self.0;
        let mut bytes = [0; 40];
        bytes[..8].copy_from_slice(&rule.id.to_le_bytes());
        bytes[8..24].copy_from_slice(&subject.key.to_le_bytes());
        bytes[24..].copy_from_slice(&first.1);
        xxh3_128(&bytes)
    }

    /// `open` with its first hit, `updated` with more, or once it has changed.
    fn state(&self) -> &'static str {
        match &self.0 {
            group if group.withdrawn => "withdrawn",
            group if group.revision() > 1 => "updated",
            _ => "open",
        }
    }

    pub(crate) fn encode(rows: &[Self]) -> RecordBatch {
        let mut table = Table::new(ALERTS, rows.len());
        for row in rows {
            let Group { rule, subject, first, last, evidence, lost, closed_through, .. } = &row.0;
            let int = |value: u64| Cell::Int(i64::try_from(value).unwrap_or(i64::MAX));
            let ids = evidence.iter().map(|moment| {
                let mut id = String::with_capacity(32);
                push_hex(&mut id, &Group::id_of(moment).0);
                id
            });
            table.hex(0, &row.id().to_be_bytes());
            table.set(1, int(row.0.revision()));
            table.text(2, row.state());
            table.text(3, &rule.name);
            table.hex(4, &rule.id.to_be_bytes());
            table.text(5, &rule.severity);
            table.text(6, &rule.tactics);
            table.text(7, &rule.techniques);
            table.set(8, Cell::Int(first.0));
            table.set(9, Cell::Int(first.0));
            table.set(10, Cell::Int(*last));
            table.text(11, &subject.place.tenant);
            table.maybe(12, subject.place.cloud.as_deref());
            table.text(13, &subject.place.region);
            table.text(14, &subject.place.host);
            table.maybe(15, subject.app.as_deref());
            table.maybe(16, subject.container_id.as_deref());
            match subject.process_id {
                Some(id) => table.hex(17, &id),
                None => table.set(17, Cell::Null),
            }
            table.text(18, &subject.summary);
            table.text(19, &json(&ids.collect::<Vec<_>>()));
            table.text(20, &row.stages());
            table.text(21, &json(&[&*subject.place.host]));
            table.text(22, &json(&[&*subject.place.region]));
            table.set(23, int(closed_through.saturating_mul(1_000_000)));
            table.set(24, int(*lost));
        }
        table.finish()
    }

    /// One stage: how often the rule has hit. Rules of several stages are to come.
    fn stages(&self) -> String {
        let mut text = String::new();
        let rule = serde_json::Value::from(&*self.0.rule.name);
        write!(text, "[{{\"stage\":1,\"rule\":{rule},\"events\":{}}}]", self.0.count).expect("a string takes everything");
        text
    }
}
