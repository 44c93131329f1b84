//! One column: how it is gathered while a batch grows, packed into `ColumnV1`, and unpacked again. See `wire.rs` for the format.

use crate::error::Error;
use crate::wire::{Bytes, ColumnV1, PLAIN, STEPS};

/// A column while a batch grows: the values that are known, and which rows have one.
#[derive(Debug, Default)]
pub(crate) struct Growing {
    pub(crate) values: Vec<i64>,
    /// Empty as long as every row so far has a value. Bits, least significant first.
    valid: Vec<u8>,
}

impl Growing {
    /// Gives row `row` the value. Rows come in ascending order; a row left out has no value.
    #[inline]
    pub(crate) fn push(&mut self, row: usize, value: i64) {
        if self.valid.is_empty() {
            if self.values.len() == row {
                self.values.push(value);
                return;
            }
            self.valid = ones(self.values.len());
        }
        self.valid.resize(row / 8 + 1, 0);
        self.valid[row / 8] |= 1 << (row % 8);
        self.values.push(value);
    }

    pub(crate) fn clear(&mut self) {
        self.values.clear();
        self.valid.clear();
    }

    /// The column of `rows` rows as it is sent, in the form that is narrower; its planes are built in `planes`.
    pub(crate) fn pack<'a>(&'a mut self, number: u16, rows: usize, planes: &'a mut Vec<u8>) -> ColumnV1<'a> {
        let (_, width) = range(&self.values);
        let (step, step_width) = if width > 1 { steps(&self.values) } else { (0, width) };
        if step_width >= width {
            return self.pack_plain(number, rows, planes);
        }
        self.close(rows);
        let offsets = || self.values.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]).wrapping_sub(step).cast_unsigned());
        write_planes(offsets, step_width, planes);
        let (first, valid) = (self.values[0], Bytes(&self.valid));
        ColumnV1 { number, form: STEPS, width: step_width, first, base: step, valid, planes: Bytes(planes) }
    }

    /// The column of `rows` rows as it is sent, each value by itself. Codes are always packed so.
    pub(crate) fn pack_plain<'a>(&'a mut self, number: u16, rows: usize, planes: &'a mut Vec<u8>) -> ColumnV1<'a> {
        self.close(rows);
        let (base, width) = range(&self.values);
        write_planes(|| self.values.iter().map(|value| value.wrapping_sub(base).cast_unsigned()), width, planes);
        ColumnV1 { number, form: PLAIN, width, first: 0, base, valid: Bytes(&self.valid), planes: Bytes(planes) }
    }

    /// Makes the bits cover all `rows` rows, if there are bits.
    fn close(&mut self, rows: usize) {
        if self.valid.is_empty() && self.values.len() < rows {
            self.valid = ones(self.values.len());
        }
        if !self.valid.is_empty() {
            self.valid.resize(rows.div_ceil(8), 0);
        }
    }
}

/// Least value and the bytes that the distance to the largest needs.
fn range(values: &[i64]) -> (i64, u8) {
    least_and_width(values.iter().copied())
}

/// The same of the steps between values.
fn steps(values: &[i64]) -> (i64, u8) {
    least_and_width(values.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])))
}

fn least_and_width(values: impl Iterator<Item = i64>) -> (i64, u8) {
    let (min, max) = values.fold((i64::MAX, i64::MIN), |(min, max), value| (min.min(value), max.max(value)));
    if min > max { (0, 0) } else { (min, width_of(max.wrapping_sub(min).cast_unsigned())) }
}

fn width_of(distance: u64) -> u8 {
    (64 - distance.leading_zeros()).div_ceil(8) as u8
}

fn write_planes<I: Iterator<Item = u64>>(offsets: impl Fn() -> I, width: u8, planes: &mut Vec<u8>) {
    planes.clear();
    for plane in 0..u32::from(width) {
        planes.extend(offsets().map(|offset| (offset >> (8 * plane)) as u8));
    }
}

/// `count` bits that are set.
fn ones(count: usize) -> Vec<u8> {
    let mut bits = vec![0xff; count / 8];
    if !count.is_multiple_of(8) {
        bits.push((1u8 << (count % 8)) - 1);
    }
    bits
}

/// A decoded column of integers. A row without a value holds 0 and has its bit cleared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ints {
    /// One value a row.
    pub values: Vec<i64>,
    /// Which rows have one: bits, least significant first (Arrow's layout). `None`: all.
    pub valid: Option<Vec<u8>>,
}

impl Ints {
    /// The value of a row.
    pub fn get(&self, row: usize) -> Option<i64> {
        let known = self.valid.as_ref().is_none_or(|bits| bit(bits, row));
        if known { self.values.get(row).copied() } else { None }
    }
}

pub(crate) fn bit(bits: &[u8], row: usize) -> bool {
    bits.get(row / 8).is_some_and(|byte| byte & (1 << (row % 8)) != 0)
}

/// An integer as wide as a decoded column needs it.
pub(crate) trait Int: Copy + Default {
    fn wrap(value: i64) -> Self;
}
impl Int for i64 {
    fn wrap(value: i64) -> Self {
        value
    }
}
impl Int for u32 {
    fn wrap(value: i64) -> Self {
        value as Self
    }
}

impl ColumnV1<'_> {
    /// The column as integers, one a row.
    pub(crate) fn ints(&self, rows: usize) -> Result<Ints, Error> {
        let present = self.present(rows)?;
        let values = self.values::<i64>(present)?;
        if self.valid.0.is_empty() {
            return Ok(Ints { values, valid: None });
        }
        Ok(Ints { values: scatter(&values, self.valid.0, rows), valid: Some(self.valid.0.to_vec()) })
    }

    /// The column as codes or row numbers up to and including `code_max`; 0 where a row has none.
    pub(crate) fn codes(&self, rows: usize, code_max: u32) -> Result<Vec<u32>, Error> {
        let present = self.present(rows)?;
        let fits = self.form == PLAIN && self.width <= 2 && (0..=i64::from(code_max)).contains(&self.base);
        if !fits {
            return Err(Error::Body("a column of codes is packed as no builder packs it"));
        }
        let values = self.values::<u32>(present)?;
        if values.iter().copied().fold(0, u32::max) > code_max {
            return Err(Error::Body("a code is beyond its table"));
        }
        Ok(if self.valid.0.is_empty() { values } else { scatter(&values, self.valid.0, rows) })
    }

    /// How many of the rows have a value; checks the bits.
    fn present(&self, rows: usize) -> Result<usize, Error> {
        let bits = self.valid.0;
        if bits.is_empty() {
            return Ok(rows);
        }
        let spare = rows.div_ceil(8) * 8 - rows;
        let clean = bits.last().is_some_and(|last| spare == 0 || last >> (8 - spare) == 0);
        if bits.len() != rows.div_ceil(8) || !clean {
            return Err(Error::Body("a column's bits do not match its rows"));
        }
        Ok(bits.iter().map(|byte| byte.count_ones() as usize).sum())
    }

    fn values<T: Int>(&self, present: usize) -> Result<Vec<T>, Error> {
        let width = usize::from(self.width);
        let n = match self.form {
            PLAIN => present,
            STEPS if present > 0 => present - 1,
            _ => return Err(Error::Body("a column's form is unknown")),
        };
        if width > 8 || self.planes.0.len() != width * n {
            return Err(Error::Body("a column's bytes do not match its rows"));
        }
        let mut values = Vec::with_capacity(present);
        if self.form == PLAIN {
            read_planes(self.planes.0, width, n, self.base, &mut values);
            return Ok(values);
        }
        let mut steps = Vec::<i64>::with_capacity(n);
        read_planes(self.planes.0, width, n, self.base, &mut steps);
        let mut value = self.first;
        values.push(T::wrap(value));
        values.extend(steps.iter().map(|step| {
            value = value.wrapping_add(*step);
            T::wrap(value)
        }));
        Ok(values)
    }
}

/// Appends `base` + the `n` integers of `planes`, whose length is `width * n`.
fn read_planes<T: Int>(planes: &[u8], width: usize, n: usize, base: i64, values: &mut Vec<T>) {
    let plane = |number: usize| planes[number * n..(number + 1) * n].iter();
    let sum = |offset: u64| T::wrap(base.wrapping_add(offset.cast_signed()));
    match width {
        0 => values.resize(n, T::wrap(base)),
        1 => values.extend(plane(0).map(|a| sum(u64::from(*a)))),
        2 => values.extend(plane(0).zip(plane(1)).map(|(a, b)| sum(u64::from(u16::from_le_bytes([*a, *b]))))),
        3 => values
            .extend(plane(0).zip(plane(1)).zip(plane(2)).map(|((a, b), c)| sum(u64::from(u32::from_le_bytes([*a, *b, *c, 0]))))),
        _ => values.extend((0..n).map(|i| {
            let offset = (0..width).rev().fold(0u64, |high, number| (high << 8) | u64::from(planes[number * n + i]));
            sum(offset)
        })),
    }
}

/// Spreads the known values over all rows.
fn scatter<T: Int>(known: &[T], bits: &[u8], rows: usize) -> Vec<T> {
    let mut all = vec![T::default(); rows];
    let mut next = known.iter();
    for (byte, rows) in bits.iter().zip(all.chunks_mut(8)) {
        let mut left = *byte;
        while left != 0 {
            let row = left.trailing_zeros() as usize;
            if let (Some(slot), Some(value)) = (rows.get_mut(row), next.next()) {
                *slot = *value;
            }
            left &= left - 1;
        }
    }
    all
}
