//! Groups whose aggregates add up: counts, sums, means, and extremes of rows that are never withdrawn.
//!
//! Each worker adds up a tick's rows by key before anything travels; the owner of a key adds up what the workers send. Over windows a
//! row is added once, to the pane (one hop) that holds its time; a window is the sum of its panes, made when one of them changes. So a
//! late or withdrawn row costs what its windows cost, and a window of sixty hops no more memory than one.

mod sender;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, TimestampNanosecondArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use weir_plan::{AggregateCall, AggregateFunc, Expr, Plan};

use self::sender::{Sender, Sums};
use super::accumulator::{argument, as_ints};
use super::gathered::gathered;
use super::interner::Interner;
use super::rows::{Bytes, RowCodec};
use super::stateless::{Window, bounds_column};
use super::{Context, Relation};
use crate::checkpoint::{Share, State, encode};
use crate::delta::{DeltaBatch, Deltas, options};
use crate::expr::{Counters, Exprs};

/// What is asked of the groups.
pub(super) struct Question<'p> {
    pub(super) keys: &'p [(Expr, String)],
    pub(super) aggregates: &'p [AggregateCall],
    pub(super) windows: Option<Windows<'p>>,
}

/// The windows that groups are of.
pub(super) struct Windows<'p> {
    pub(super) time: &'p Expr,
    pub(super) window: Window,
    pub(super) bounds: [&'p str; 2],
}

impl<'p> Question<'p> {
    /// The question that an aggregate asks, and the plan that it asks it of, if its answer adds up.
    pub(super) fn of(plan: &'p Plan, only_grows: bool) -> Option<(Self, &'p Plan)> {
        let Plan::Aggregate { input, keys, aggregates, settled_at: None, forget_at: None } = plan else { return None };
        let adds_up = |call: &AggregateCall| match call.func {
            AggregateFunc::Count | AggregateFunc::Sum | AggregateFunc::Avg => true,
            AggregateFunc::Min | AggregateFunc::Max => only_grows,
            _ => false,
        };
        if keys.is_empty() || !aggregates.iter().all(adds_up) {
            return None;
        }
        let Plan::HopWindow { input: rows, time, hop_ms, size_ms, start_name, end_name } = input.as_ref() else {
            return Some((Self { keys, aggregates, windows: None }, input));
        };
        let windows = Windows { time, window: Window { hop_ms: *hop_ms, size_ms: *size_ms }, bounds: [start_name, end_name] };
        let of_bounds = |expr: &Expr| expr.column_refs().iter().any(|column| windows.bounds.contains(&column.name.as_str()));
        let whole = |expr: &Expr| matches!(expr, Expr::Column(_)) || !of_bounds(expr);
        let called = aggregates.iter().flat_map(|call| call.arg.iter().chain(&call.filter)).any(of_bounds);
        let keyed = keys.iter().any(|(key, _)| of_bounds(key)) && keys.iter().all(|(key, _)| whole(key));
        (keyed && !called).then_some((Self { keys, aggregates, windows: Some(windows) }, rows))
    }

    /// The places of the keys that are a bound: (place, whether it is the end).
    fn bound(&self, key: &Expr) -> Option<bool> {
        let windows = self.windows.as_ref()?;
        let Expr::Column(column) = key else { return None };
        windows.bounds.iter().position(|bound| *bound == column.name).map(|place| place == 1)
    }
}

/// The groups' rows; none where an aggregate's type is not one that is added up here.
pub(super) fn fold<'s>(
    input: &Relation<'s>,
    question: &Question<'_>,
    schema: &SchemaRef,
    context: &Context,
) -> Result<Option<Deltas<'s>>, weir_plan::Error> {
    let Some((sender, groups)) = parts(input, question, schema, context)? else { return Ok(None) };
    let groups = context.keeper.keep(context.state_name("fold"), groups);
    Ok(Some(gathered(&input.deltas, "Fold", sender, move |tick, parcels| groups.borrow_mut().close(tick, parcels))))
}

fn parts(
    input: &Relation<'_>,
    question: &Question<'_>,
    schema: &SchemaRef,
    context: &Context,
) -> Result<Option<(Sender, Groups)>, weir_plan::Error> {
    let plain = || question.keys.iter().filter(|(key, _)| question.bound(key).is_none());
    let mut exprs: Vec<Expr> = plain().map(|(key, _)| key.clone()).collect();
    let keys = exprs.len();
    let mut place = |added: Vec<Expr>| {
        let start = exprs.len();
        exprs.extend(added);
        (start < exprs.len()).then_some(start)
    };
    let calls: Vec<_> = question
        .aggregates
        .iter()
        .map(|call| Call {
            kind: Kind::of(&call.func),
            arg: place(argument(call)),
            filter: place(call.filter.iter().cloned().collect()),
        })
        .collect();
    let time = question.windows.as_ref().and_then(|windows| place(vec![windows.time.clone()]));
    let exprs = Exprs::new(&exprs, &input.schema, "aggregate", &context.counters)?;
    let types: Vec<DataType> = exprs.types().cloned().collect();
    let added = |call: &Call| {
        call.kind == Kind::Count || call.arg.is_some_and(|arg| as_ints(&types[arg]) && types[arg] != DataType::Float64)
    };
    if !calls.iter().all(added) {
        return Ok(None);
    }
    let window = question.windows.as_ref().map(|windows| windows.window);
    let peers = input.deltas.scope().peers();
    let sender =
        Sender { interner: Interner::new(&types[..keys], peers), peers, keys, calls: calls.clone(), time, window, exprs };
    let unit = time.map_or(1, |time| if types[time] == DataType::Int64 { 1 } else { NANOS_PER_MS });
    let mut plain_keys = 0..keys;
    let columns = question.keys.iter().map(|(key, _)| match question.bound(key) {
        Some(end) => Column::Bound { end },
        None => Column::Key(plain_keys.next().unwrap_or_default()),
    });
    let groups = Groups {
        columns: columns.collect(),
        outputs: schema.fields().iter().skip(question.keys.len()).map(|field| field.data_type().clone()).collect(),
        kinds: calls.iter().map(|call| call.kind).collect(),
        codec: RowCodec::new(&types[..keys]),
        panes: window.map_or(1, |window| window.size(unit) / window.hop(unit)),
        hop: window.map_or(1, |window| window.hop(unit)),
        unit,
        schema: Arc::clone(schema),
        counters: Arc::clone(&context.counters),
        numbers: HashMap::default(),
        groups: vec![],
        free: vec![],
    };
    Ok(Some((sender, groups)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Count,
    Sum,
    Avg,
    Least,
    Greatest,
}

impl Kind {
    fn of(func: &AggregateFunc) -> Self {
        match func {
            AggregateFunc::Sum => Self::Sum,
            AggregateFunc::Avg => Self::Avg,
            AggregateFunc::Min => Self::Least,
            AggregateFunc::Max => Self::Greatest,
            _ => Self::Count,
        }
    }
}

/// One aggregate of one group and pane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Fold {
    /// The sum, or the extreme: 128 bits in two words, because one of 128 would be padded.
    high: i64,
    low: u64,
    /// Values in it.
    count: i64,
}

impl Fold {
    fn value(self) -> i128 {
        i128::from(self.high) << 64 | i128::from(self.low)
    }

    fn set(&mut self, value: i128) {
        (self.high, self.low) = ((value >> 64) as i64, value as u64);
    }

    fn add(&mut self, kind: Kind, value: i64, diff: i64) {
        match kind {
            Kind::Count => {}
            // Cannot overflow: 2^63 values of 2^63 fit.
            Kind::Sum | Kind::Avg => self.set(self.value() + i128::from(value) * i128::from(diff)),
            Kind::Least | Kind::Greatest => self.outdo(kind, i128::from(value)),
        }
        self.count += diff;
    }

    fn merge(&mut self, kind: Kind, other: Self) {
        match kind {
            Kind::Count => {}
            Kind::Sum | Kind::Avg => self.set(self.value() + other.value()),
            Kind::Least | Kind::Greatest if other.count > 0 => self.outdo(kind, other.value()),
            _ => {}
        }
        self.count += other.count;
    }

    fn outdo(&mut self, kind: Kind, value: i128) {
        let better = if kind == Kind::Least { value < self.value() } else { value > self.value() };
        if self.count == 0 || better {
            self.set(value);
        }
    }
}

#[derive(Debug, Clone)]
struct Call {
    kind: Kind,
    arg: Option<usize>,
    filter: Option<usize>,
}

/// Where a column of the answer comes from.
enum Column {
    Key(usize),
    Bound { end: bool },
}

/// All groups that this worker owns.
struct Groups {
    columns: Vec<Column>,
    outputs: Vec<DataType>,
    kinds: Vec<Kind>,
    codec: RowCodec,
    /// Panes of a window.
    panes: i64,
    hop: i64,
    unit: i64,
    schema: SchemaRef,
    counters: Arc<Counters>,
    numbers: HashMap<Bytes, u32, foldhash::fast::FixedState>,
    groups: Vec<Option<Group>>,
    free: Vec<u32>,
}

struct Group {
    key: Bytes,
    panes: BTreeMap<i64, Cell>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Cell {
    rows: i64,
    folds: Box<[Fold]>,
}

impl Cell {
    fn merge(&mut self, kinds: &[Kind], rows: i64, folds: &[Fold]) {
        self.rows += rows;
        for ((fold, kind), other) in self.folds.iter_mut().zip(kinds).zip(folds) {
            fold.merge(*kind, *other);
        }
    }
}

/// Rows of the answer to come: the group's place among the changed ones, the first pane, the values, the diff.
type Changes = Vec<(u32, i64, Vec<Option<i64>>, i64)>;

impl Groups {
    fn close(&mut self, _tick: u64, parcels: Vec<Sums>) -> Option<DeltaBatch> {
        let tick = parcels.first()?.tick;
        let mut arrived: Vec<(u32, i64, u32, u32)> = vec![];
        for (parcel, sums) in (0_u32..).zip(&parcels) {
            let numbers: Vec<u32> = sums.keys.iter().map(|key| self.number(key)).collect();
            let cells = (0_u32..).zip(&sums.cells);
            arrived.extend(cells.map(|(cell, (key, pane, _))| (numbers[*key as usize], *pane, parcel, cell)));
        }
        arrived.sort_unstable();
        let mut runs: Vec<&[(u32, i64, u32, u32)]> = arrived.chunk_by(|a, b| a.0 == b.0).collect();
        runs.sort_by(|a, b| self.key(a[0].0).cmp(self.key(b[0].0)));
        let (mut keys, mut changes) = (vec![], Changes::new());
        for run in runs {
            let number = run[0].0;
            let place = u32::try_from(keys.len()).expect("a tick has fewer than 2^32 groups");
            keys.push(Bytes::from(self.key(number)));
            self.change(number, place, run, &parcels, &mut changes);
        }
        (!changes.is_empty()).then(|| self.batch(tick, &keys, &changes))
    }

    /// Adds what arrived for one group; puts out the windows that are others than before.
    fn change(&mut self, number: u32, place: u32, run: &[(u32, i64, u32, u32)], parcels: &[Sums], changes: &mut Changes) {
        let Some(mut group) = self.groups[number as usize].take() else { return };
        let mut starts: Vec<i64> = Vec::with_capacity(run.len());
        for (_, pane, _, _) in run {
            let from = starts.last().map_or(i64::MIN, |last| last + 1).max(pane - (self.panes - 1));
            starts.extend(from..=*pane);
        }
        let before = self.windows(&group, &starts);
        for (_, pane, parcel, cell) in run {
            let sums = &parcels[*parcel as usize];
            let (cell, width) = (*cell as usize, self.kinds.len());
            let empty = || Cell { rows: 0, folds: vec![Fold::default(); width].into() };
            let changed = group.panes.entry(*pane).or_insert_with(empty);
            changed.merge(&self.kinds, sums.cells[cell].2, &sums.folds[cell * width..][..width]);
            if *changed == empty() {
                group.panes.remove(pane);
            }
        }
        let after = self.windows(&group, &starts);
        for ((start, before), after) in starts.into_iter().zip(before).zip(after) {
            if before == after {
                continue;
            }
            changes.extend(before.map(|values| (place, start, values, -1)));
            changes.extend(after.map(|values| (place, start, values, 1)));
        }
        if group.panes.is_empty() {
            self.numbers.remove(&group.key);
            self.free.push(number);
        } else {
            self.groups[number as usize] = Some(group);
        }
    }

    /// The rows of the windows that begin at these panes, which ascend.
    fn windows(&self, group: &Group, starts: &[i64]) -> Vec<Option<Vec<Option<i64>>>> {
        let (Some(first), Some(last)) = (starts.first(), starts.last()) else { return vec![] };
        let cells: Vec<(i64, &Cell)> = group.panes.range(*first..last + self.panes).map(|(pane, cell)| (*pane, cell)).collect();
        let mut from = 0;
        let row = |&start: &i64| {
            from += cells[from..].iter().take_while(|(pane, _)| *pane < start).count();
            let mut held = cells[from..].iter().take_while(|(pane, _)| *pane < start + self.panes).map(|(_, cell)| *cell);
            let cell = held.next()?;
            let Some(second) = held.next() else { return self.row(cell) };
            let mut sum = cell.clone();
            std::iter::once(second).chain(held).for_each(|cell| sum.merge(&self.kinds, cell.rows, &cell.folds));
            self.row(&sum)
        };
        starts.iter().map(row).collect()
    }

    /// What is shown of a group; nothing without rows.
    fn row(&self, cell: &Cell) -> Option<Vec<Option<i64>>> {
        let value = |(fold, kind): (&Fold, &Kind)| match kind {
            Kind::Count => Some(fold.count),
            _ if fold.count == 0 => None,
            Kind::Avg => Some(super::multiset::ordered(fold.value() as f64 / fold.count as f64)),
            _ => i64::try_from(fold.value()).inspect_err(|_| self.counters.add_overflow()).ok(),
        };
        (cell.rows > 0).then(|| cell.folds.iter().zip(&self.kinds).map(value).collect())
    }

    fn batch(&self, tick: u64, keys: &[Bytes], changes: &Changes) -> DeltaBatch {
        let keys = self.codec.decode(keys.iter().map(|key| &**key));
        let places = UInt32Array::from_iter_values(changes.iter().map(|(place, ..)| *place));
        let bound = |end: bool| {
            let panes = if end { self.panes } else { 0 };
            bounds_column(changes.iter().map(|(_, start, ..)| (start + panes) * self.hop).collect(), self.unit)
        };
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for column in &self.columns {
            columns.push(match column {
                Column::Key(key) => take(&keys[*key], &places, None).expect("each change has a key"),
                Column::Bound { end } => bound(*end),
            });
        }
        for (index, output) in self.outputs.iter().enumerate() {
            let values = changes.iter().map(|(_, _, values, _)| values[index]);
            columns.push(match output {
                DataType::Float64 => Arc::new(values.map(|value| value.map(super::multiset::float)).collect::<Float64Array>()),
                DataType::Timestamp(TimeUnit::Nanosecond, zone) => {
                    Arc::new(values.collect::<TimestampNanosecondArray>().with_timezone_opt(zone.clone()))
                }
                _ => Arc::new(values.collect::<Int64Array>()),
            });
        }
        let diffs: Vec<i64> = changes.iter().map(|(.., diff)| *diff).collect();
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options(diffs.len()));
        DeltaBatch::new(tick, rows.expect("columns have the types the plan was checked for"), diffs)
    }

    fn number(&mut self, key: &[u8]) -> u32 {
        if let Some(&number) = self.numbers.get(key) {
            return number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.groups.push(None);
            u32::try_from(self.groups.len()).expect("a worker has fewer than 2^32 groups") - 1
        });
        self.groups[number as usize] = Some(Group { key: key.into(), panes: BTreeMap::new() });
        self.numbers.insert(key.into(), number);
        number
    }

    fn key(&self, number: u32) -> &[u8] {
        self.groups[number as usize].as_ref().map_or(&[], |group| &group.key)
    }
}

impl State for Groups {
    type Saved = Vec<(Bytes, Vec<(i64, Cell)>)>;

    fn save(&self) -> Vec<u8> {
        let groups = self.groups.iter().flatten();
        encode(&groups.map(|group| (&group.key, group.panes.iter().collect())).collect::<Vec<(&Bytes, Vec<(&i64, &Cell)>)>>())
    }

    fn load(&mut self, parts: Vec<Self::Saved>, share: Share) {
        for (key, panes) in parts.into_iter().flatten().filter(|(key, _)| share.owns(key)) {
            let number = self.number(&key);
            self.groups[number as usize] = Some(Group { key, panes: panes.into_iter().collect() });
        }
    }
}

const NANOS_PER_MS: i64 = 1_000_000;
