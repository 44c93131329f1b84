//! Sequences: rows of one key that follow each other in time.
//!
//! Promise: what is found is a function of the set of rows. Per key, rows stand in the order of (time, id); rows of one time that no id
//! sets apart have no order, so none of them follows another. Every row of the first stage begins a chain: the first row after it of the
//! second stage, the first row after that of the third, and so on (skip till next match). A chain is an answer when it is whole and its
//! last row is less than `max_span_ms` after its first. A row may stand in several chains (OVERLAP).

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion_expr::Expr;

use crate::check::{boolean, fields, key};
use crate::{Error, resolve, time_type};

/// What follows what. The answer's columns are the keys, then each stage's time.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// What the rows of a chain share, and the columns' names. A row with a NULL key is in no chain.
    pub keys: Vec<(Expr, String)>,
    /// A timestamp, or milliseconds as BIGINT. A row without time is in no chain.
    pub time: Expr,
    /// Sets rows of one time apart, and in order.
    pub id: Option<Expr>,
    /// Two at least, [`STAGES_MAX`] at most.
    pub stages: Vec<Stage>,
    /// From the first row of a chain to its last: less than this.
    pub max_span_ms: u64,
}

/// One step of a sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Which rows it takes.
    pub predicate: Expr,
    /// The column that has its row's time.
    pub time_name: String,
}

impl Sequence {
    pub(crate) fn columns(&self, schema: &Schema) -> Result<SchemaRef, Error> {
        let place = "sequence";
        if !(2..=STAGES_MAX).contains(&self.stages.len()) {
            return Err(Error::wrong_type(place, format!("{} stages: give 2 to {STAGES_MAX}", self.stages.len())));
        }
        if self.keys.is_empty() {
            return Err(Error::wrong_type(place, "without a key every row would follow every other: give BY"));
        }
        if self.max_span_ms == 0 || self.max_span_ms > SPAN_MS_MAX {
            return Err(Error::wrong_type(place, format!("a MAXSPAN of {} ms: give 1 to {SPAN_MS_MAX}", self.max_span_ms)));
        }
        let time = match resolve(&self.time, schema, "sequence, time")?.data_type {
            DataType::Timestamp(..) => time_type(),
            DataType::Int64 => DataType::Int64,
            other => {
                let why = format!("a timestamp or milliseconds (BIGINT) are needed, not {other}");
                return Err(Error::wrong_type(format!("sequence, time ({})", self.time), why));
            }
        };
        if let Some(id) = &self.id {
            key(id, schema, "sequence, id")?;
        }
        self.stages.iter().try_for_each(|stage| boolean(&stage.predicate, schema, "sequence, stage"))?;
        let keys = self.keys.iter().map(|(expr, name)| Ok(Field::new(name, key(expr, schema, "sequence, BY")?, true)));
        let times = self.stages.iter().map(|stage| Ok(Field::new(&stage.time_name, time.clone(), true)));
        fields(keys.chain(times), place)
    }
}

/// Which stages a row is of is one word of bits.
const STAGES_MAX: usize = 32;

/// A year: rows are kept at least as long.
const SPAN_MS_MAX: u64 = 366 * 86_400_000;
