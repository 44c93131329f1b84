//! A worker's answers to the asks of the mesh: its share of the rows at one closed tick, its share of digests and counters.
//!
//! An ask waits until this worker's own closed tick has reached it. While it waits, nothing it needs is compacted away.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;

use crate::expr::Counters;
use crate::handle::{Completeness, Failure, Held, Read, Stats};
use crate::mesh::{Body, Peek, What};
use crate::output::{Output, project};
use crate::relations::{self, RelationInfo};
use crate::subscribe;

/// What the peeks of one worker read.
pub(crate) trait Shelf {
    /// The output of a standing relation.
    fn output(&self, relation: &str) -> Option<Rc<RefCell<Output>>>;
    /// A view that somebody made.
    fn view(&self, relation: &str) -> Option<&Made>;
    /// All views that people made.
    fn views(&self) -> Vec<&Made>;
    /// Hands out the rows of a tail that arrived up to a tick, newest first, for as long as more are wanted.
    fn tail(&self, read: &TailRead<'_>, more: &mut dyn FnMut(RecordBatch) -> bool) -> Result<(), String>;
    /// What this worker's share of an answer at this tick lacks.
    fn completeness(&self, tick: u64) -> Completeness;
    /// Rows and bytes of the tails.
    fn tails_held(&self) -> Vec<Held>;
    /// Counters by name.
    fn counters(&self) -> Vec<(String, u64)>;
}

/// A view that somebody made, as it is read.
#[derive(Debug)]
pub(crate) struct Made {
    /// Its columns.
    pub(crate) info: RelationInfo,
    /// The first tick at which it has rows.
    pub(crate) created: u64,
    /// Its rows, or why it has none.
    pub(crate) output: Result<Rc<RefCell<Output>>, String>,
    /// What is counted of it.
    pub(crate) counters: Arc<Counters>,
}

/// What is read of a tail.
#[derive(Debug)]
pub(crate) struct TailRead<'a> {
    /// Its name.
    pub(crate) relation: &'a str,
    /// Columns by place.
    pub(crate) columns: &'a [usize],
    /// The tick.
    pub(crate) tick: u64,
}

/// Asks of the mesh that wait for their tick.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    peeks: BTreeMap<(u64, usize, u64), Peek>,
}

impl Waiting {
    /// Takes up an ask.
    pub(crate) fn push(&mut self, peek: Peek) {
        self.peeks.insert((peek.tick, peek.asker, peek.number), peek);
    }

    /// The oldest tick that is waited for.
    pub(crate) fn tick_min(&self) -> Option<u64> {
        self.peeks.keys().next().map(|key| key.0)
    }

    /// The next ask that can be answered.
    pub(crate) fn pop_ready(&mut self, closed: Option<u64>) -> Option<Peek> {
        let entry = self.peeks.first_entry()?;
        let ready = matches!(entry.get().what, What::Stats) || closed.is_some_and(|closed| entry.key().0 <= closed);
        ready.then(|| entry.remove())
    }
}

/// Answers one ask, piece by piece.
pub(crate) fn answer(peek: &Peek, shelf: &dyn Shelf, send: &mut dyn FnMut(Body)) {
    let answered = match &peek.what {
        What::Rows(reads) => reads
            .iter()
            .zip(0..)
            .try_for_each(|(read, place)| answer_read(peek.tick, read, place, shelf, send))
            .map(|()| Body::Done(completeness(peek.tick, shelf))),
        What::Changes(read) => subscribe::answer(read, shelf, send).map(|()| Body::Done(Completeness::default())),
        What::Digest => digests(peek.tick, shelf).map(Body::Digests),
        What::Stats => Ok(Body::Stats(stats(shelf))),
    };
    send(answered.unwrap_or_else(Body::Failed));
}

/// Finds a read's relation and columns.
pub(crate) fn resolve(read: &Read, shelf: &dyn Shelf) -> Result<(RelationInfo, Vec<usize>), Failure> {
    let shipped = relations::relation(&read.relation);
    let info = shipped.or_else(|| shelf.view(&read.relation).map(|made| &made.info)).cloned();
    let info = info.ok_or_else(|| Failure::UnknownRelation(read.relation.clone()))?;
    let columns = match &read.columns {
        None => (0..info.schema.fields().len()).collect(),
        Some(names) => names
            .iter()
            .map(|name| {
                let unknown = |_| Failure::UnknownColumn { relation: read.relation.clone(), column: name.clone() };
                info.schema.index_of(name).map_err(unknown)
            })
            .collect::<Result<_, _>>()?,
    };
    Ok((info, columns))
}

fn answer_read(tick: u64, read: &Read, place: u32, shelf: &dyn Shelf, send: &mut dyn FnMut(Body)) -> Result<(), Failure> {
    let (info, columns) = resolve(read, shelf)?;
    let mut sender = Sender { read, place, rows: 0, bytes: 0, send };
    // One more than allowed tells that there are too many.
    let rows_enough = read.limit.unwrap_or(u64::MAX).min(read.rows_max.saturating_add(1));
    if info.standing {
        let output = match shelf.view(&info.name) {
            Some(made) => made.output.clone().map_err(|why| Failure::Internal(format!("view \"{}\": {why}", info.name)))?,
            None => shelf.output(&info.name).ok_or(Failure::NotReady)?,
        };
        let mut output = output.borrow_mut();
        if tick < output.since() {
            return Err(Failure::Forgotten { tick, since: output.since() });
        }
        let (mut rows, mut found) = (Vec::<Box<[u8]>>::new(), 0);
        output.at(tick, |row, count| {
            let take = count.min(rows_enough - found);
            found += take;
            rows.extend((0..take).map(|_| row.into()));
        });
        for piece in rows.chunks(ROWS_PER_PART) {
            let batch = output.decode(piece, &columns).map_err(internal)?;
            sender.batch(&batch)?;
        }
    } else {
        answer_tail(&info, &TailRead { relation: &info.name, columns: &columns, tick }, rows_enough, shelf, &mut sender)?;
    }
    Ok(())
}

/// Sends a tail's rows, many small frames at a time: what is in memory is one part, not the tail.
fn answer_tail(
    info: &RelationInfo,
    read: &TailRead<'_>,
    rows_enough: u64,
    shelf: &dyn Shelf,
    sender: &mut Sender<'_>,
) -> Result<(), Failure> {
    let schema = info.schema.project(read.columns).map(Arc::new).map_err(internal)?;
    let places: Vec<_> = (0..read.columns.len()).collect();
    let (mut gathered, mut rows, mut found) = (Vec::new(), 0, 0);
    let mut sent = Ok(());
    let mut take = |batch: &RecordBatch| -> Result<bool, Failure> {
        gathered.push(project(batch.columns(), &schema, &places, batch.num_rows()).map_err(internal)?);
        rows += batch.num_rows();
        found += batch.num_rows() as u64;
        if rows >= ROWS_PER_PART || found >= rows_enough {
            rows = 0;
            let part = concat(&schema, &std::mem::take(&mut gathered)).map_err(internal)?;
            sender.batch(&part)?;
        }
        Ok(found < rows_enough)
    };
    let mut more = |batch: RecordBatch| {
        let taken = take(&batch);
        let go_on = matches!(taken, Ok(true));
        sent = taken.map(drop);
        go_on
    };
    shelf.tail(read, &mut more).map_err(Failure::Internal)?;
    sent?;
    let rest = concat(&schema, &gathered).map_err(internal)?;
    sender.batch(&rest)
}

/// All batches as one. A batch without columns still counts its rows.
fn concat(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
    if schema.fields().is_empty() {
        return project(&[], schema, &[], batches.iter().map(RecordBatch::num_rows).sum());
    }
    concat_batches(schema, batches)
}

/// Sends a read's rows and watches its limits.
struct Sender<'a> {
    read: &'a Read,
    place: u32,
    rows: u64,
    bytes: u64,
    send: &'a mut dyn FnMut(Body),
}

impl Sender<'_> {
    fn batch(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        let mut start = 0;
        while start < batch.num_rows() {
            let piece = batch.slice(start, ROWS_PER_PART.min(batch.num_rows() - start));
            self.piece(&piece)?;
            start += piece.num_rows();
        }
        Ok(())
    }

    fn piece(&mut self, piece: &RecordBatch) -> Result<(), Failure> {
        let ipc = ipc(piece).map_err(internal)?;
        if ipc.len() > PART_BYTES_MAX && piece.num_rows() > 1 {
            let half = piece.num_rows() / 2;
            self.piece(&piece.slice(0, half))?;
            return self.piece(&piece.slice(half, piece.num_rows() - half));
        }
        let rows = piece.num_rows() as u64;
        self.rows += rows;
        self.bytes += ipc.len() as u64;
        check_limits(self.read, self.rows, self.bytes)?;
        (self.send)(Body::Rows { read: self.place, rows, ipc });
        Ok(())
    }
}

/// Whether so much may be answered to a read.
pub(crate) fn check_limits(read: &Read, rows: u64, bytes: u64) -> Result<(), Failure> {
    if rows > read.rows_max && read.limit.is_none_or(|limit| limit > read.rows_max) {
        return Err(Failure::Rows { relation: read.relation.clone(), rows_max: read.rows_max });
    }
    if bytes > read.bytes_max {
        return Err(Failure::Bytes { relation: read.relation.clone(), bytes_max: read.bytes_max });
    }
    Ok(())
}

/// A batch as it travels.
pub(crate) fn ipc(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(batch)?;
    writer.finish()?;
    writer.into_inner()
}

fn digests(tick: u64, shelf: &dyn Shelf) -> Result<Vec<(u128, u64)>, Failure> {
    let standing = relations::relations().iter().filter(|info| info.standing);
    let digest = |info: &RelationInfo| {
        let output = shelf.output(&info.name).ok_or(Failure::NotReady)?;
        let mut output = output.borrow_mut();
        if tick < output.since() {
            return Err(Failure::Forgotten { tick, since: output.since() });
        }
        Ok(output.digest(tick))
    };
    standing.map(digest).collect()
}

fn outputs(shelf: &dyn Shelf) -> impl Iterator<Item = Rc<RefCell<Output>>> {
    let shipped = relations::relations().iter().filter(|info| info.standing).filter_map(|info| shelf.output(&info.name));
    shipped.chain(shelf.views().into_iter().filter_map(|made| made.output.clone().ok()))
}

fn completeness(tick: u64, shelf: &dyn Shelf) -> Completeness {
    let faults: u64 = outputs(shelf).map(|output| output.borrow().faults()).sum();
    let mut completeness = shelf.completeness(tick);
    completeness.negative_rows += faults;
    completeness
}

fn stats(shelf: &dyn Shelf) -> Stats {
    let mut relations = shelf.tails_held();
    relations.extend(outputs(shelf).map(|output| output.borrow().held()));
    Stats { workers: 1, closed: None, fed: None, relations, counters: shelf.counters() }
}

pub(crate) fn internal(error: ArrowError) -> Failure {
    Failure::Internal(error.to_string())
}

/// Rows of one piece of an answer.
pub(crate) const ROWS_PER_PART: usize = 16_384;
/// A piece of more bytes is halved, until it is one row.
pub(crate) const PART_BYTES_MAX: usize = 8 << 20;
