//! What one worker adds up of a tick before anything travels: per key and pane, the rows and each aggregate's sum.

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array};
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::{Call, Fold, Kind};
use crate::delta::DeltaBatch;
use crate::expr::Exprs;
use crate::render::accumulator::ints;
use crate::render::gathered::{Gather, Parcel};
use crate::render::interner::Interner;
use crate::render::rows::Bytes;
use crate::render::stateless::{Window, times};

/// What one worker adds up of a tick.
pub(super) struct Sender {
    pub(super) exprs: Exprs,
    pub(super) interner: Interner,
    pub(super) peers: usize,
    pub(super) keys: usize,
    pub(super) calls: Vec<Call>,
    pub(super) time: Option<usize>,
    pub(super) window: Option<Window>,
}

#[derive(Default)]
pub(super) struct Held {
    panes: Vec<i64>,
    pane_numbers: HashMap<i64, u32, foldhash::fast::FixedState>,
    /// By pane's number and key's number.
    cells: HashMap<u64, u32, foldhash::fast::FixedState>,
    /// Key, pane, rows.
    rows: Vec<(u32, i64, i64)>,
    /// As many per cell as there are aggregates.
    folds: Vec<Fold>,
}

/// What goes to the owner of some keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Sums {
    to: u64,
    pub(super) tick: u64,
    pub(super) keys: Vec<Bytes>,
    /// Place of the key, pane, rows.
    pub(super) cells: Vec<(u32, i64, i64)>,
    pub(super) folds: Vec<Fold>,
}

impl Parcel for Sums {
    fn to(&self) -> u64 {
        self.to
    }

    fn tick(&self) -> u64 {
        self.tick
    }
}

impl Gather for Sender {
    type Held = Held;
    type Parcel = Sums;

    fn add(&mut self, held: &mut Held, batch: DeltaBatch) {
        let (batch, columns) = self.exprs.evaluate(batch);
        let keys = self.interner.intern(&columns[..self.keys], batch.len());
        let mut cells = Vec::with_capacity(batch.len());
        let panes = self.window.zip(self.time).map(|(window, time)| Panes::new(window, &columns[time]));
        let mut last = Pane::none();
        for (row, (&key, &diff)) in keys.iter().zip(&batch.diffs).enumerate() {
            if let Some(panes) = &panes {
                match panes.of(row, last) {
                    Some(pane) if pane.first == last.first => {}
                    Some(pane) => last = Pane { number: held.pane(pane.pane), ..pane },
                    None => {
                        cells.push(NOWHERE);
                        continue;
                    }
                }
            }
            let next = u32::try_from(held.rows.len()).expect("a tick has fewer than 2^32 groups");
            let cell = *held.cells.entry(u64::from(last.number) << 32 | u64::from(key)).or_insert(next);
            if cell == next {
                held.rows.push((key, last.pane, 0));
                held.folds.resize(held.folds.len() + self.calls.len(), Fold::default());
            }
            held.rows[cell as usize].2 += diff;
            cells.push(cell);
        }
        for (index, call) in self.calls.iter().enumerate() {
            let arg = call.arg.map(|arg| match call.kind {
                Kind::Count => Int64Array::new(vec![0; batch.len()].into(), columns[arg].logical_nulls()),
                _ => ints(&columns[arg]),
            });
            let filter: Option<&BooleanArray> = call.filter.map(|filter| columns[filter].as_boolean());
            let all = filter.is_none() && arg.as_ref().is_none_or(|arg| arg.null_count() == 0);
            for (row, (&cell, &diff)) in cells.iter().zip(&batch.diffs).enumerate() {
                let passes = all
                    || (filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
                        && arg.as_ref().is_none_or(|arg| arg.is_valid(row)));
                if cell != NOWHERE && passes {
                    let value = arg.as_ref().map_or(0, |arg| arg.values()[row]);
                    held.folds[cell as usize * self.calls.len() + index].add(call.kind, value, diff);
                }
            }
        }
    }

    fn flush(&mut self, held: Held, tick: u64) -> Vec<Sums> {
        let none = |to: usize| Sums { to: to as u64, tick, keys: vec![], cells: vec![], folds: vec![] };
        let mut parcels: Vec<Sums> = (0..self.peers).map(none).collect();
        let mut places = vec![NOWHERE; self.interner.len()];
        for (cell, &(key, pane, rows)) in held.rows.iter().enumerate() {
            let folds = &held.folds[cell * self.calls.len()..][..self.calls.len()];
            if rows == 0 && folds.iter().all(|fold| *fold == Fold::default()) {
                continue;
            }
            let (bytes, owner) = self.interner.key(key);
            let (parcel, place) = (&mut parcels[owner], &mut places[key as usize]);
            if *place == NOWHERE {
                *place = u32::try_from(parcel.keys.len()).expect("a tick has fewer than 2^32 groups");
                parcel.keys.push(bytes.clone());
            }
            parcel.cells.push((*place, pane, rows));
            parcel.folds.extend_from_slice(folds);
        }
        parcels.retain(|parcel| !parcel.cells.is_empty());
        parcels
    }

    fn rest(&mut self) {
        if self.interner.len() > KEYS_MAX {
            self.interner.clear();
        }
    }
}

impl Held {
    fn pane(&mut self, pane: i64) -> u32 {
        *self.pane_numbers.entry(pane).or_insert_with(|| {
            self.panes.push(pane);
            u32::try_from(self.panes.len()).expect("a tick has fewer than 2^32 panes") - 1
        })
    }
}

/// The panes of a batch's rows.
struct Panes {
    times: Int64Array,
    hop: i64,
    size: i64,
}

/// One hop: its place, its first time, and its number within the tick.
#[derive(Debug, Clone, Copy)]
struct Pane {
    pane: i64,
    first: i64,
    number: u32,
}

impl Pane {
    /// Without windows there is one pane; with windows it is none that a time is in.
    fn none() -> Self {
        Self { pane: 0, first: i64::MIN, number: 0 }
    }
}

impl Panes {
    fn new(window: Window, column: &ArrayRef) -> Self {
        let (times, unit) = times(column);
        Self { times, hop: window.hop(unit), size: window.size(unit) }
    }

    /// The pane of a row. Times within a window of the type's ends are in none.
    fn of(&self, row: usize, last: Pane) -> Option<Pane> {
        if self.times.is_null(row) {
            return None;
        }
        let time = self.times.value(row);
        if last.first != i64::MIN && time.wrapping_sub(last.first) >= 0 && time.wrapping_sub(last.first) < self.hop {
            return Some(last);
        }
        let pane = time.div_euclid(self.hop);
        let first = pane.checked_mul(self.hop)?;
        first.checked_sub(self.size)?;
        first.checked_add(self.size)?;
        Some(Pane { pane, first, number: 0 })
    }
}

/// In place of a number: none.
const NOWHERE: u32 = u32::MAX;

/// More keys than these (some hundred bytes each) are forgotten between ticks and numbered anew.
const KEYS_MAX: usize = 1 << 20;
