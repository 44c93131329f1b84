//! The rows of `rule_exceptions`, on every worker: each is given every change of every table, and has all of this one.

use std::collections::BTreeMap;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use serde::Deserialize;
use weir_rules::{ExceptionRow, Exceptions};

use crate::checkpoint::{Share, State, encode};
use crate::shipped::{EXCEPTION_COLUMNS, exception_rows};
use crate::table::TableRows;

/// The table, as the judges of alerts need it.
#[derive(Debug)]
pub(crate) struct ExceptionTable {
    share: Share,
    /// Each with how often it is there.
    rows: BTreeMap<ExceptionRow, i64>,
    /// Whether there is a table of these columns.
    is_there: bool,
    is_changed: bool,
}

impl ExceptionTable {
    pub(crate) fn new(share: Share) -> Self {
        Self { share, rows: BTreeMap::new(), is_there: false, is_changed: false }
    }

    /// A table of this name was made. Another one of the name, which somebody made in the place of ours, says nothing.
    pub(crate) fn made(&mut self, schema: &Schema) {
        self.is_there = schema.fields().iter().map(|field| field.name().as_str()).eq(EXCEPTION_COLUMNS);
        if !self.is_there {
            tracing::error!("the table rule_exceptions has other columns than {EXCEPTION_COLUMNS:?}: it has no effect");
        }
    }

    /// It was dropped, or was not there when it was made.
    pub(crate) fn clear(&mut self) {
        self.is_there = false;
        self.is_changed |= !self.rows.is_empty();
        self.rows.clear();
    }

    /// Takes up a change of its rows.
    pub(crate) fn write(&mut self, rows: &TableRows, schema: &SchemaRef) -> Result<(), ArrowError> {
        if !self.is_there {
            return Ok(());
        }
        self.is_changed = true;
        match rows {
            TableRows::Cleared => self.rows.clear(),
            TableRows::Changed(bytes) => {
                for (rows, diffs) in TableRows::decode(bytes, schema)? {
                    let wrong = || ArrowError::SchemaError("a column of rule_exceptions is no text".to_owned());
                    for (row, diff) in exception_rows(&rows).ok_or_else(wrong)?.into_iter().zip(diffs) {
                        *self.rows.entry(row).or_default() += diff;
                    }
                }
                self.rows.retain(|_, count| *count != 0);
            }
        }
        Ok(())
    }

    /// The exceptions, if they were changed since this was asked last.
    pub(crate) fn take_changed(&mut self) -> Option<Exceptions> {
        std::mem::take(&mut self.is_changed).then(|| self.compile())
    }

    /// The exceptions as they are.
    pub(crate) fn compile(&self) -> Exceptions {
        let exceptions = Exceptions::compile(self.rows.iter().filter(|(_, count)| **count > 0).map(|(row, _)| row));
        for error in &exceptions.refused {
            // Statements with such rows are refused; another build may have been of another mind.
            tracing::warn!(%error, cure = error.cure, "an exception has no effect");
        }
        exceptions
    }
}

fn row_of([rule, name, field, comparator, value]: [String; 5]) -> ExceptionRow {
    ExceptionRow { rule, name, field, comparator, value }
}

/// What the first worker writes for all.
#[derive(Default, Deserialize)]
pub(crate) struct SavedRows(Vec<([String; 5], i64)>);

impl State for ExceptionTable {
    type Saved = SavedRows;

    fn save(&self) -> Vec<u8> {
        let rows = self.rows.iter().filter(|_| self.share.is_first());
        let rows = rows.map(|(row, count)| {
            let ExceptionRow { rule, name, field, comparator, value } = row;
            ([rule, name, field, comparator, value], *count)
        });
        encode(&rows.collect::<Vec<_>>())
    }

    fn load(&mut self, parts: Vec<SavedRows>, _: Share) {
        for SavedRows(rows) in parts {
            self.rows.extend(rows.into_iter().map(|(row, count)| (row_of(row), count)));
        }
    }
}
