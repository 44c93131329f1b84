//! Sequences: rows of one key that follow each other in time.
//!
//! Promise: what is found is a function of the set of rows. Per key, rows stand in the order of (time, id); rows of one time that no id
//! sets apart have no order, so none of them follows another. Every row of the first stage begins a chain: the first row after it of the
//! second stage, the first row after that of the third, and so on (skip till next match). A chain is an answer when it is whole and its
//! last row is less than `max_span_ms` after its first. A row may stand in several chains (OVERLAP).
//!
//! A row of an [`Absent`] between the rows of the stages around it breaks a chain; behind the last stage, any that is less than `max_span_ms`
//! after the first row. A row of `until` between its first and its last row breaks it, too. Between is after the one and before the other, so
//! a row never breaks the chain that it is part of at that place. A broken chain is not tried again with later rows.

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
    /// What must not happen between stages.
    pub absent: Vec<Absent>,
    /// What must not happen between the first row and the last.
    pub until: Option<Expr>,
    /// From the first row of a chain to its last: less than this.
    pub max_span_ms: u64,
}

/// What must not happen at some place of a chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Absent {
    /// Which rows.
    pub predicate: Expr,
    /// How many stages come before it: one at least; all of them: it must not happen up to the end of the span.
    pub after: usize,
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
    /// Of the stages, then of what must not happen, then UNTIL.
    pub fn predicates(&self) -> impl Iterator<Item = &Expr> {
        let stages = self.stages.iter().map(|stage| &stage.predicate);
        stages.chain(self.absent.iter().map(|absent| &absent.predicate)).chain(&self.until)
    }

    pub(crate) fn columns(&self, schema: &Schema) -> Result<SchemaRef, Error> {
        let place = "sequence";
        if !(2..=STAGES_MAX).contains(&self.stages.len()) {
            return Err(Error::wrong_type(place, format!("{} stages: give 2 to {STAGES_MAX}", self.stages.len())));
        }
        if self.predicates().count() > STAGES_MAX {
            let why = format!(
                "{} stages, with those that must not happen and UNTIL: {STAGES_MAX} are allowed",
                self.predicates().count()
            );
            return Err(Error::wrong_type(place, why));
        }
        if self.absent.iter().any(|absent| !(1..=self.stages.len()).contains(&absent.after)) {
            return Err(Error::wrong_type(
                place,
                "what must not happen before the first stage has no beginning: put it behind a stage",
            ));
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
        self.predicates().try_for_each(|predicate| boolean(predicate, schema, "sequence, stage"))?;
        let keys = self.keys.iter().map(|(expr, name)| Ok(Field::new(name, key(expr, schema, "sequence, BY")?, true)));
        let times = self.stages.iter().map(|stage| Ok(Field::new(&stage.time_name, time.clone(), true)));
        fields(keys.chain(times), place)
    }
}

/// Which stages a row is of is one word of bits.
pub(crate) const STAGES_MAX: usize = 32;

/// A year: rows are kept at least as long.
pub(crate) const SPAN_MS_MAX: u64 = 366 * 86_400_000;
