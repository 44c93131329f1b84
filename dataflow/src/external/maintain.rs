//! A view over tables of files: its plan kept up to date by timely workers while they read the files, tick by tick.
//!
//! A tick is so many rows of each worker. A worker reads on once the tick before the last is answered everywhere, so what is under way is
//! bounded. The answer is what all changes add up to: it is the same however the rows were cut into ticks or dealt to workers.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use std::cell::RefCell;
use std::rc::Rc;

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Int64Type, SchemaRef};
use hashbrown::HashMap;
use timely::dataflow::operators::Inspect as _;
use timely::dataflow::operators::Probe as _;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::dataflow::operators::vec::Input as _;
use timely::worker::Worker;
use weir_plan::Plan;

use super::{ExternalError, ExternalTable};
use crate::delta::DeltaBatch;
use crate::expr::Counters;
use crate::render::{Context, Relation, RowCodec, Sources, Ticks, render};

/// A view's rows, and what it took.
#[derive(Debug)]
pub struct Maintained {
    /// Comma-separated lines, without order.
    pub lines: Vec<String>,
    /// Rows read.
    pub rows: u64,
    /// Ticks of the worker that had most.
    pub ticks: u64,
    /// Rows left out because an expression fails for them, and why most recently.
    pub bad_rows: (i64, Option<String>),
}

/// Keeps a plan over tables, by their names, on so many workers, and returns what its answer is at the end.
pub fn maintain(
    plan: &Plan,
    tables: &[(String, ExternalTable)],
    workers: usize,
    tick_rows: usize,
) -> Result<Maintained, ExternalError> {
    let job = Arc::new(Job {
        plan: plan.clone(),
        tables: tables.iter().filter(|(name, _)| plan.relations().contains(&name.as_str())).cloned().collect(),
        tick_rows,
        counters: Arc::default(),
        failed: AtomicBool::new(false),
        failure: Mutex::default(),
    });
    let communication =
        if workers == 1 { timely::CommunicationConfig::Thread } else { timely::CommunicationConfig::Process(workers) };
    let config = timely::Config { communication, worker: timely::WorkerConfig::default() };
    let shared = Arc::clone(&job);
    let guards = timely::execute(config, move |worker| shared.work(worker)).map_err(ExternalError::Workers)?;
    let mut all = Maintained { lines: vec![], rows: 0, ticks: 0, bad_rows: (0, None) };
    for part in guards.join() {
        let (lines, rows, ticks) = part.map_err(ExternalError::Workers)?;
        all.lines.push(lines);
        all.rows += rows;
        all.ticks = all.ticks.max(ticks);
    }
    if let Some(why) = job.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(why);
    }
    all.bad_rows = (job.counters.bad_rows(), job.counters.last_error());
    Ok(all)
}

/// What all workers share.
struct Job {
    plan: Plan,
    tables: Vec<(String, ExternalTable)>,
    tick_rows: usize,
    counters: Arc<Counters>,
    failed: AtomicBool,
    failure: Mutex<Option<ExternalError>>,
}

impl Job {
    /// One worker's lines, the rows that it read, its ticks.
    fn work(&self, worker: &mut Worker) -> (String, u64, u64) {
        match self.answer(worker) {
            Ok(done) => done,
            Err(why) => {
                self.failed.store(true, Relaxed);
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
                (String::new(), 0, 0)
            }
        }
    }

    fn answer(&self, worker: &mut Worker) -> Result<(String, u64, u64), ExternalError> {
        let (index, peers) = (worker.index(), worker.peers());
        let columns = self.plan.named_columns();
        let context =
            Context { counters: Arc::clone(&self.counters), ticks: Ticks::every_ms(), only_grows: true, ..Context::default() };
        let probe = Probe::new();
        let answer: Rc<RefCell<Option<Answer>>> = Rc::default();
        let mut inputs = worker.dataflow::<u64, _, _>(|scope| {
            let (mut sources, mut inputs) = (Sources::default(), vec![]);
            for (name, table) in &self.tables {
                let (input, deltas) = scope.new_input::<DeltaBatch>();
                let schema = table.projected(&columns);
                sources.insert(name, Relation { schema: Arc::clone(&schema), deltas });
                inputs.push((input, table, schema));
            }
            let relation = render(&self.plan, &sources, &context)?;
            *answer.borrow_mut() = Some(Answer::new(&relation.schema));
            let kept = Rc::clone(&answer);
            let keep = move |batch: &DeltaBatch| kept.borrow_mut().iter_mut().for_each(|answer| answer.add(batch.compact()));
            relation.deltas.inspect(keep).probe_with(&probe);
            Ok::<_, ExternalError>(inputs)
        })?;
        let parts = inputs.iter().map(|(_, table, schema)| table.part(schema, index, peers));
        let parts: Result<Vec<_>, _> = parts.collect();
        let (mut tick, mut read, mut failure) = (1, 0_u64, None);
        let mut parts = parts.unwrap_or_else(|why| {
            failure = Some(why);
            vec![]
        });
        let mut ended = false;
        while !ended && failure.is_none() && !self.failed.load(Relaxed) {
            ended = true;
            for ((input, ..), part) in inputs.iter_mut().zip(&mut parts) {
                let mut rows = 0;
                while rows < self.tick_rows && failure.is_none() {
                    match part.next() {
                        Some(Ok(batch)) => {
                            rows += batch.num_rows();
                            input.send(DeltaBatch::inserted(tick, batch));
                            input.flush();
                            worker.step();
                        }
                        Some(Err(why)) => failure = Some(why),
                        None => break,
                    }
                }
                read += rows as u64;
                ended &= rows < self.tick_rows;
            }
            tick += 1;
            inputs.iter_mut().for_each(|(input, ..)| input.advance_to(tick));
            worker.step_or_park_while(None, || !self.failed.load(Relaxed) && probe.less_than(&(tick - 1)));
        }
        // Others learn of it from the flag: all of them end, and so do their waits.
        if let Some(why) = failure {
            self.failed.store(true, Relaxed);
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        }
        drop(inputs);
        worker.step_or_park_while(None, || !probe.done());
        let answer = answer.borrow_mut().take();
        Ok((answer.map(Answer::into_lines).unwrap_or_default(), read, tick - 1))
    }
}

/// The changes of one worker's part of the answer, added up from time to time.
struct Answer {
    codec: RowCodec,
    batches: Vec<DeltaBatch>,
    rows: usize,
    add_up_at: usize,
}

impl Answer {
    fn new(schema: &SchemaRef) -> Self {
        Self { codec: RowCodec::of(schema), batches: vec![], rows: 0, add_up_at: ADD_UP_MIN }
    }

    fn add(&mut self, batch: DeltaBatch) {
        self.rows += batch.len();
        self.batches.push(batch);
        if self.rows >= self.add_up_at {
            self.add_up();
            self.add_up_at = (self.rows * 2).max(ADD_UP_MIN);
        }
    }

    fn add_up(&mut self) {
        let batches = std::mem::take(&mut self.batches);
        if batches.iter().all(|batch| batch.diffs.iter().all(|diff| *diff > 0)) {
            self.batches = batches;
            return;
        }
        let encoded: Vec<_> = batches.iter().map(|batch| self.codec.encode(batch.rows.columns(), batch.len())).collect();
        let mut sums: HashMap<&[u8], (usize, u32, i64), foldhash::fast::FixedState> = HashMap::default();
        for (place, (batch, encoded)) in batches.iter().zip(&encoded).enumerate() {
            for (row, diff) in (0_u32..).zip(&batch.diffs) {
                sums.entry(encoded.row(row as usize)).or_insert((place, row, 0)).2 += diff;
            }
        }
        let mut kept: Vec<Vec<(u32, i64)>> = vec![vec![]; batches.len()];
        sums.into_values().filter(|(.., diff)| *diff != 0).for_each(|(place, row, diff)| kept[place].push((row, diff)));
        self.rows = 0;
        for (batch, mut rows) in batches.iter().zip(kept).filter(|(_, rows)| !rows.is_empty()) {
            rows.sort_unstable();
            self.rows += rows.len();
            let places = UInt32Array::from_iter_values(rows.iter().map(|(row, _)| *row));
            let taken = take_record_batch(&batch.rows, &places).expect("places are inside the batch");
            self.batches.push(DeltaBatch::new(batch.tick, taken, rows.iter().map(|(_, diff)| *diff).collect()).compact());
        }
    }

    /// A line per row.
    fn into_lines(mut self) -> String {
        self.add_up();
        let mut lines = String::new();
        for batch in &self.batches {
            let columns: Vec<Shown> = batch.rows.columns().iter().map(Shown::of).collect();
            for (row, &diff) in batch.diffs.iter().enumerate() {
                assert!(diff > 0, "a row of an answer is there {diff} times");
                for _ in 0..diff {
                    for (place, column) in columns.iter().enumerate() {
                        if place > 0 {
                            lines.push(',');
                        }
                        column.write(row, &mut lines);
                    }
                    lines.push('\n');
                }
            }
        }
        lines
    }
}

/// A column as text.
enum Shown {
    Integers(ArrayRef),
    Texts(ArrayRef),
}

impl Shown {
    fn of(column: &ArrayRef) -> Self {
        match column.data_type() {
            DataType::Int64 => Self::Integers(Arc::clone(column)),
            _ => Self::Texts(cast(column, &DataType::Utf8).expect("what the engine holds can be shown")),
        }
    }

    /// NULL is empty; what would not be one field stands in quotes.
    fn write(&self, row: usize, line: &mut String) {
        match self {
            Self::Integers(column) if column.is_valid(row) => {
                let _ = std::fmt::Write::write_fmt(line, format_args!("{}", column.as_primitive::<Int64Type>().value(row)));
            }
            Self::Texts(column) if column.is_valid(row) => {
                let text = column.as_string::<i32>().value(row);
                if text.is_empty() || text.contains([',', '"', '\n', '\r']) {
                    line.push('"');
                    line.push_str(&text.replace('"', "\"\""));
                    line.push('"');
                } else {
                    line.push_str(text);
                }
            }
            _ => {}
        }
    }
}

/// Fewer changes are not worth adding up.
const ADD_UP_MIN: usize = 1 << 16;
