//! What subscribers are answered: what some closed ticks changed in one standing relation, or all of its rows at a tick.
//!
//! Nothing is kept for a subscriber here. It asks again and again for what came behind the tick that it has, so one that is slow or has gone
//! costs nothing, and one that comes back, also to other workers, goes on without a gap while the changes are kept (`history.rs`).

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;

use crate::handle::{ChangesRead, Failure};
use crate::mesh::Body;
use crate::output::Output;
use crate::packed::Bytes;
use crate::peek::{PART_BYTES_MAX, ROWS_PER_PART, Shelf, internal, ipc};
use crate::relations;

/// The output that a subscriber reads.
pub(crate) fn output_of(read: &ChangesRead, shelf: &dyn Shelf) -> Result<Rc<RefCell<Output>>, Failure> {
    let name = &read.relation;
    match (relations::relation(name), shelf.view(name)) {
        (Some(info), _) if info.standing => shelf.output(name).ok_or(Failure::NotReady),
        (None, Some(made)) => made.output.clone().map_err(|why| Failure::Internal(format!("view \"{name}\": {why}"))),
        _ => Err(Failure::UnknownRelation(name.clone())),
    }
}

/// Whether so many bytes may be answered.
pub(crate) fn check_bytes(read: &ChangesRead, bytes: u64) -> Result<(), Failure> {
    if bytes <= read.bytes_max {
        return Ok(());
    }
    Err(Failure::Bytes { relation: read.relation.clone(), bytes_max: read.bytes_max })
}

/// Answers with this worker's share.
pub(crate) fn answer(read: &ChangesRead, shelf: &dyn Shelf, send: &mut dyn FnMut(Body)) -> Result<(), Failure> {
    let output = output_of(read, shelf)?;
    let mut output = output.borrow_mut();
    let since = output.changes_since();
    let tick = read.after.unwrap_or(read.upto);
    if tick < since {
        return Err(Failure::Forgotten { tick, since });
    }
    let ticks = match read.after {
        Some(after) => output.changes_between(after, read.upto),
        None => vec![(read.upto, output.rows_back_at(read.upto))],
    };
    let mut sender = Sender { read, schema: schema(output.schema()), bytes: 0, send };
    let mut gathered = Vec::new();
    for (tick, changes) in ticks {
        gathered.extend(changes.into_iter().map(|(row, diff)| (tick, row, diff)));
        if gathered.len() >= ROWS_PER_PART {
            sender.rows(&output, &std::mem::take(&mut gathered))?;
        }
    }
    sender.rows(&output, &gathered)
}

/// The columns of an answer.
fn schema(of: &SchemaRef) -> SchemaRef {
    let number = |name| Arc::new(Field::new(name, DataType::Int64, true));
    let fields = [number("weir_tick"), number("weir_diff")].into_iter().chain(of.fields().iter().cloned());
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

struct Sender<'a> {
    read: &'a ChangesRead,
    schema: SchemaRef,
    bytes: u64,
    send: &'a mut dyn FnMut(Body),
}

impl Sender<'_> {
    fn rows(&mut self, output: &Output, rows: &[(u64, Bytes, i64)]) -> Result<(), Failure> {
        rows.chunks(ROWS_PER_PART).try_for_each(|piece| self.piece(&self.batch(output, piece).map_err(internal)?))
    }

    fn batch(&self, output: &Output, rows: &[(u64, Bytes, i64)]) -> Result<RecordBatch, ArrowError> {
        let columns: Vec<usize> = (0..output.schema().fields().len()).collect();
        let bytes: Vec<Bytes> = rows.iter().map(|(_, row, _)| row.clone()).collect();
        let ticks = Int64Array::from_iter_values(rows.iter().map(|(tick, ..)| i64::try_from(*tick).unwrap_or(i64::MAX)));
        let diffs = Int64Array::from_iter_values(rows.iter().map(|(.., diff)| *diff));
        let mut arrays: Vec<ArrayRef> = vec![Arc::new(ticks), Arc::new(diffs)];
        arrays.extend_from_slice(output.decode(&bytes, &columns)?.columns());
        RecordBatch::try_new(Arc::clone(&self.schema), arrays)
    }

    fn piece(&mut self, piece: &RecordBatch) -> Result<(), Failure> {
        let ipc = ipc(piece).map_err(internal)?;
        if ipc.len() > PART_BYTES_MAX && piece.num_rows() > 1 {
            let half = piece.num_rows() / 2;
            self.piece(&piece.slice(0, half))?;
            return self.piece(&piece.slice(half, piece.num_rows() - half));
        }
        self.bytes += ipc.len() as u64;
        check_bytes(self.read, self.bytes)?;
        (self.send)(Body::Rows { read: 0, rows: piece.num_rows() as u64, ipc });
        Ok(())
    }
}
