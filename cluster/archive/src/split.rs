//! Rows in order of tenant, region, kind, host and time become files of one partition each. No I/O: bytes come out as they are ready.
//!
//! ```text
//! rows: acme eu exec  web-1 22:10 │ web-1 23:01 │ web-2 22:40 ║ acme eu open …
//!       └─ file of hour 22 ──────┘ └ of hour 23┘ └─ hour 22 ─┘║ both are finished here
//! ```
//!
//! Rows stay in their order, so each file is sorted by host and time. At most `OPEN_MAX` files are written at a time: when hosts report
//! so many hours at once that another is needed, the one that was used longest ago is finished, and its hour gets a second file.

use std::ops::Range;

use arrow::array::{Array as _, ArrayRef, Int64Array, RecordBatch, StringViewArray, TimestampNanosecondArray};
use arrow::compute::partition;
use bytes::Bytes;
use weir_schema::{Column, Kind};

use crate::error::Error;
use crate::layout::{Partition, Table, hour_of, partition_path, random_id};
use crate::manifest::FileEntry;
use crate::properties::{Stage, merge_schema, properties_of};
use crate::seal::Sealer;
use crate::writer::Span;

/// What files are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) table: Table,
    pub(crate) hours: Hours,
    /// A file ends when it has about so many bytes,
    pub(crate) file_bytes_max: u64,
    /// but no more than so many files end because of that.
    pub(crate) rolls_max: usize,
    /// All rows together are so many.
    pub(crate) rows: u64,
    /// Whether any row was imported.
    pub(crate) imported: bool,
}

/// Whether hours get files of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hours {
    Apart,
    Together,
}

/// Bytes of a file, in its order.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) path: String,
    pub(crate) bytes: Bytes,
    /// With the last bytes: what the manifest says of it.
    pub(crate) end: Option<FileEntry>,
}

/// Splits rows into files.
pub(crate) struct Split {
    shape: Shape,
    partition: Option<Partition>,
    open: Vec<Open>,
    runs: u64,
    rolls: usize,
}

/// A file that is being written.
struct Open {
    hour: i64,
    path: String,
    sealer: Sealer,
    span: Span,
    last_run: u64,
}

impl Split {
    pub(crate) fn new(shape: Shape) -> Self {
        Self { shape, partition: None, open: Vec::new(), runs: 0, rolls: 0 }
    }

    /// Takes the next rows, columns as `merge_schema` has them.
    pub(crate) fn take(&mut self, batch: &RecordBatch, out: &mut Vec<Part>) -> Result<(), Error> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let rows = Rows::of(self.shape.table, batch)?;
        let same = partition(&rows.group).map_err(|why| failed(&why))?;
        for range in same.ranges() {
            let partition = rows.partition(range.start);
            if self.partition.as_ref() != Some(&partition) {
                self.finish_open(out)?;
                self.partition = Some(partition);
            }
            for run in self.runs_of(&rows, range) {
                self.run(batch, &rows, run, out)?;
            }
        }
        Ok(())
    }

    /// Ends all files.
    pub(crate) fn finish(mut self, out: &mut Vec<Part>) -> Result<(), Error> {
        self.finish_open(out)
    }

    /// Cuts rows of one partition where the hour changes, if hours are kept apart.
    fn runs_of(&self, rows: &Rows<'_>, range: Range<usize>) -> Vec<Range<usize>> {
        if self.shape.hours == Hours::Together {
            return vec![range];
        }
        let hours = &rows.times.values()[range.clone()];
        let runs = hours.chunk_by(|a, b| hour_of(*a) == hour_of(*b));
        let mut start = range.start;
        runs.map(|run| {
            start += run.len();
            start - run.len()..start
        })
        .collect()
    }

    /// Writes rows of one partition and hour.
    fn run(&mut self, batch: &RecordBatch, rows: &Rows<'_>, run: Range<usize>, out: &mut Vec<Part>) -> Result<(), Error> {
        let hour = hour_of(rows.times.value(run.start));
        let at = self.place(hour, out)?;
        self.runs += 1;
        let open = &mut self.open[at];
        open.last_run = self.runs;
        rows.widen(&mut open.span, run.clone());
        if let Some(bytes) = open.sealer.write(&batch.slice(run.start, run.len()))? {
            out.push(Part { path: open.path.clone(), bytes, end: None });
        }
        if open.sealer.bytes() >= self.shape.file_bytes_max && self.rolls < self.shape.rolls_max {
            self.rolls += 1;
            let full = self.open.swap_remove(at);
            self.end(full, out)?;
        }
        Ok(())
    }

    /// The open file of an hour, which is opened if need be.
    fn place(&mut self, hour: i64, out: &mut Vec<Part>) -> Result<usize, Error> {
        let together = self.shape.hours == Hours::Together;
        if let Some(at) = self.open.iter().position(|open| together || open.hour == hour) {
            return Ok(at);
        }
        if self.open.len() >= OPEN_MAX {
            let oldest = (0..self.open.len()).min_by_key(|at| self.open[*at].last_run).expect("some are open");
            let oldest = self.open.swap_remove(oldest);
            self.end(oldest, out)?;
        }
        let partition = self.partition.as_ref().expect("set before its rows");
        let path = partition_path(self.shape.table, partition, hour, &random_id()).to_string();
        let sealer = Sealer::new(&path, merge_schema(self.shape.table), properties_of(Stage::Compacted, self.shape.rows))?;
        let span = Span { time_min: i64::MAX, time_max: i64::MIN, tick_min: u64::MAX, tick_max: 0 };
        self.open.push(Open { hour, path, sealer, span, last_run: 0 });
        Ok(self.open.len() - 1)
    }

    fn finish_open(&mut self, out: &mut Vec<Part>) -> Result<(), Error> {
        std::mem::take(&mut self.open).into_iter().try_for_each(|open| self.end(open, out))
    }

    fn end(&self, open: Open, out: &mut Vec<Part>) -> Result<(), Error> {
        let (bytes, seal) = open.sealer.finish()?;
        let mut entry = open.span.entry(open.path.clone(), self.shape.table, seal);
        entry.partition.clone_from(&self.partition);
        entry.imported = self.shape.imported;
        out.push(Part { path: open.path, bytes, end: Some(entry) });
        Ok(())
    }
}

/// The columns of a batch that say where its rows go.
struct Rows<'a> {
    group: Vec<ArrayRef>,
    texts: Vec<&'a StringViewArray>,
    times: &'a TimestampNanosecondArray,
    ticks: &'a Int64Array,
}

impl<'a> Rows<'a> {
    fn of(table: Table, batch: &'a RecordBatch) -> Result<Self, Error> {
        let (mut group, mut texts) = (Vec::new(), Vec::new());
        for column in group_columns(table) {
            let array = column_of(batch, *column)?;
            let views = array.as_any().downcast_ref::<StringViewArray>();
            texts.push(views.ok_or_else(|| failed(&column.name()))?);
            group.push(array.clone());
        }
        let times = column_of(batch, Column::Time)?.as_any().downcast_ref::<TimestampNanosecondArray>();
        let ticks = column_of(batch, Column::Tick)?.as_any().downcast_ref::<Int64Array>();
        let (times, ticks) = times.zip(ticks).ok_or_else(|| failed(&"time or tick"))?;
        if times.null_count() > 0 || texts.iter().any(|texts| texts.null_count() > 0) {
            return Err(failed(&"a row lacks its time or partition"));
        }
        Ok(Self { group, texts, times, ticks })
    }

    fn partition(&self, row: usize) -> Partition {
        let text = |at: usize| self.texts.get(at).map(|texts| texts.value(row).to_owned());
        let kind = text(2).unwrap_or_else(|| Kind::Sample.as_str().to_owned());
        Partition { tenant: text(0).unwrap_or_default(), region: text(1).unwrap_or_default(), kind }
    }

    fn widen(&self, span: &mut Span, run: Range<usize>) {
        for time in &self.times.values()[run.clone()] {
            span.time_min = span.time_min.min(*time);
            span.time_max = span.time_max.max(*time);
        }
        // A row without a tick belongs to every tick.
        for tick in run.map(|row| if self.ticks.is_null(row) { 0 } else { self.ticks.value(row) }) {
            let tick = u64::try_from(tick).unwrap_or(0);
            span.tick_min = span.tick_min.min(tick);
            span.tick_max = span.tick_max.max(tick);
        }
    }
}

/// The columns that a partition is made of; `samples` has no kind.
pub(crate) fn group_columns(table: Table) -> &'static [Column] {
    match table {
        Table::Events => &[Column::Tenant, Column::Region, Column::Kind],
        Table::Samples => &[Column::Tenant, Column::Region],
    }
}

fn column_of(batch: &RecordBatch, column: Column) -> Result<&ArrayRef, Error> {
    batch.column_by_name(column.name()).ok_or_else(|| failed(&column.name()))
}

fn failed(why: &dyn std::fmt::Display) -> Error {
    Error::Parquet { what: "splitting rows".to_owned(), why: why.to_string() }
}

/// Files that are written at a time. Each takes up to a row group of memory.
pub(crate) const OPEN_MAX: usize = 8;
