//! One aggregate of one group: a value that rows are added to and taken from.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, TimestampNanosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampNanosecondType};
use serde::{Deserialize, Serialize};
use weir_plan::{AggregateCall, AggregateFunc, Expr};

use super::multiset::{End, Extreme, Multiset, Value, float, ordered};
use super::recomputed::Recomputation;
use super::rows::{Encoded, RowCodec};
use crate::expr::Counters;

/// What is kept per group and aggregate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Accumulator {
    Count(i64),
    Sum(Sum),
    Avg(Sum),
    Extreme(Extreme),
    Distinct(Multiset),
    Percentile {
        values: Multiset,
        fraction: f64,
    },
    /// All rows, from which [`Recomputation`] makes the value.
    Recomputed(Multiset),
}

/// An exact sum and how many values are in it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Sum {
    sum: i128,
    values: i64,
}

impl Accumulator {
    pub(super) fn new(func: &AggregateFunc) -> Self {
        match func {
            AggregateFunc::Count => Self::Count(0),
            AggregateFunc::CountDistinct => Self::Distinct(Multiset::default()),
            AggregateFunc::Sum => Self::Sum(Sum::default()),
            AggregateFunc::Avg => Self::Avg(Sum::default()),
            AggregateFunc::Min | AggregateFunc::ArgMin { .. } => Self::Extreme(Extreme::new(End::Least)),
            AggregateFunc::Max | AggregateFunc::ArgMax { .. } => Self::Extreme(Extreme::new(End::Greatest)),
            AggregateFunc::Recomputed(_) => Self::Recomputed(Multiset::default()),
            AggregateFunc::PercentileCont(fraction) => Self::Percentile { values: Multiset::default(), fraction: *fraction },
        }
    }

    /// Adds a row's value `diff` times. `settled_at`: the last tick at which the row may be withdrawn.
    pub(super) fn add(&mut self, arg: &Arg, row: usize, settled_at: u64, diff: i64) {
        match self {
            Self::Count(count) => *count += diff,
            Self::Sum(sum) | Self::Avg(sum) => {
                let Arg::Ints(ints) = arg else { unreachable!("sums are of integers") };
                // Cannot overflow: 2^63 values of 2^63 fit.
                sum.sum += i128::from(ints.value(row)) * i128::from(diff);
                sum.values += diff;
            }
            Self::Extreme(extreme) => extreme.add(arg.value(row), settled_at, diff),
            Self::Distinct(values) | Self::Percentile { values, .. } | Self::Recomputed(values) => {
                values.add(arg.value(row), diff)
            }
        }
    }

    /// The aggregate's value at this tick; None is NULL.
    pub(super) fn value(&mut self, tick: u64, counters: &Counters) -> Option<Value> {
        match self {
            Self::Count(count) => Some(Value::Int(*count)),
            Self::Distinct(values) => Some(Value::Int(values.distinct())),
            Self::Sum(sum) if sum.values == 0 => None,
            Self::Sum(sum) => {
                let fits = i64::try_from(sum.sum);
                fits.inspect_err(|_| counters.add_overflow()).ok().map(Value::Int)
            }
            Self::Avg(sum) => (sum.values != 0).then(|| Value::Int(ordered(sum.sum as f64 / sum.values as f64))),
            Self::Extreme(extreme) => {
                let unmatched = extreme.settle(tick);
                if unmatched > 0 {
                    counters.add_unmatched(unmatched);
                }
                extreme.value().cloned()
            }
            Self::Recomputed(_) => unreachable!("its shape makes the value"),
            Self::Percentile { values, fraction } => percentile(values, *fraction).map(|value| Value::Int(ordered(value))),
        }
    }
}

/// As DataFusion's `percentile_cont` computes it, to the last bit: the weight is quantised.
fn percentile(values: &Multiset, fraction: f64) -> Option<f64> {
    let total = values.total();
    if total <= 0 {
        return None;
    }
    let place = fraction * (total - 1) as f64;
    let (lower, upper) = values.pair_at(place.floor() as i64)?;
    let (lower, upper) = (float(lower), float(upper));
    if place.floor() == place.ceil() {
        return Some(lower);
    }
    let weight = ((place - place.floor()) * PERCENTILE_WEIGHT_STEPS).trunc() / PERCENTILE_WEIGHT_STEPS;
    Some(lower + (upper - lower) * weight)
}

/// The arguments of one aggregate over one batch.
pub(super) enum Arg {
    /// `Count` of rows.
    Rows,
    /// Integers and times as they are; floats as ordered integers.
    Ints(Int64Array),
    /// Anything else: bytes, and the columns that say which rows take part.
    Bytes(Encoded, Vec<ArrayRef>),
}

impl Arg {
    /// Whether the row takes part: nothing that it gives is NULL.
    pub(super) fn takes_part(&self, row: usize) -> bool {
        match self {
            Self::Rows => true,
            Self::Ints(ints) => ints.is_valid(row),
            Self::Bytes(_, columns) => columns.iter().all(|column| column.is_valid(row)),
        }
    }

    fn value(&self, row: usize) -> Value {
        match self {
            Self::Rows => unreachable!("only a count has no argument"),
            Self::Ints(ints) => Value::Int(ints.value(row)),
            Self::Bytes(bytes, _) => Value::Bytes(bytes.row(row).into()),
        }
    }
}

/// How one aggregate's argument becomes values, and its values a column.
pub(super) struct Shape {
    /// Places of the argument's columns among the operator's evaluated ones. Two for arg_min and arg_max: by, argument.
    pub(super) columns: Vec<usize>,
    codec: Option<RowCodec>,
    counted: bool,
    output: DataType,
    recomputation: Option<Recomputation>,
}

impl Shape {
    /// `types` are those of `columns`; `output` is the aggregate's own.
    pub(super) fn new(func: &AggregateFunc, columns: Vec<usize>, types: &[&DataType], output: &DataType) -> Self {
        let plain = types.len() == 1 && as_ints(types[0]);
        let counted = matches!(func, AggregateFunc::Count);
        let codec = (!plain && !counted).then(|| RowCodec::new(types.iter().copied()));
        Self { columns, codec, counted, output: output.clone(), recomputation: None }
    }

    /// Of an aggregate that is made anew.
    pub(super) fn recomputed(recomputation: Recomputation, columns: Vec<usize>, types: &[&DataType], output: &DataType) -> Self {
        let codec = Some(recomputation.codec(types));
        Self { columns, codec, counted: false, output: output.clone(), recomputation: Some(recomputation) }
    }

    /// An accumulator's value at this tick; None is NULL.
    pub(super) fn value(&self, accumulator: &mut Accumulator, tick: u64, counters: &Counters) -> Option<Value> {
        match (accumulator, &self.recomputation, &self.codec) {
            (Accumulator::Recomputed(values), Some(recomputation), Some(codec)) => recomputation.value(values, codec, counters),
            (accumulator, ..) => accumulator.value(tick, counters),
        }
    }

    /// The values of a batch.
    pub(super) fn arg(&self, evaluated: &[ArrayRef], rows: usize) -> Arg {
        let columns: Vec<_> = self.columns.iter().map(|&index| Arc::clone(&evaluated[index])).collect();
        match (&self.codec, columns.as_slice()) {
            // The function itself heeds NULLs.
            (Some(codec), _) if self.recomputation.is_some() => Arg::Bytes(codec.encode(&columns, rows), vec![]),
            (_, []) => Arg::Rows,
            (Some(codec), _) => Arg::Bytes(codec.encode(&columns, rows), columns),
            (None, [column]) if self.counted => Arg::Ints(Int64Array::new(vec![0; rows].into(), column.logical_nulls())),
            (None, [column, ..]) => Arg::Ints(ints(column)),
        }
    }

    /// The column of these values.
    pub(super) fn column<'v>(&self, values: impl Iterator<Item = Option<&'v Value>> + Clone) -> ArrayRef {
        let int = |value: Option<&Value>| match value {
            Some(Value::Int(int)) => Some(*int),
            _ => None,
        };
        if let Some(recomputation) = &self.recomputation {
            return recomputation.column(values);
        }
        match &self.output {
            DataType::Float64 if self.codec.is_none() => {
                Arc::new(values.map(|value| int(value).map(float)).collect::<Float64Array>())
            }
            DataType::Timestamp(TimeUnit::Nanosecond, zone) if self.codec.is_none() => {
                Arc::new(values.map(int).collect::<TimestampNanosecondArray>().with_timezone_opt(zone.clone()))
            }
            DataType::Int64 if values.clone().all(|value| !matches!(value, Some(Value::Bytes(_)))) => {
                Arc::new(values.map(int).collect::<Int64Array>())
            }
            _ => self.decoded(values),
        }
    }

    fn decoded<'v>(&self, values: impl Iterator<Item = Option<&'v Value>>) -> ArrayRef {
        let codec = self.codec.as_ref().expect("values that are no integers are row bytes");
        let null = codec.null();
        let bytes = values.map(|value| match value {
            Some(Value::Bytes(bytes)) => &**bytes,
            _ => &*null,
        });
        codec.decode(bytes).pop().expect("the argument is the codec's last column")
    }
}

/// What the argument is cast to before it is evaluated over a batch, so that values that do not fit are bad rows.
pub(super) fn argument(call: &AggregateCall) -> Vec<Expr> {
    let Some(arg) = call.arg.clone() else { return vec![] };
    match &call.func {
        AggregateFunc::Sum | AggregateFunc::Avg => vec![weir_plan::cast(arg, DataType::Int64)],
        AggregateFunc::PercentileCont(_) => vec![weir_plan::cast(arg, DataType::Float64)],
        AggregateFunc::ArgMax { by } | AggregateFunc::ArgMin { by } => vec![by.clone(), arg],
        _ => vec![arg],
    }
}

pub(super) fn as_ints(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Int64 | DataType::Float64 | DataType::Timestamp(TimeUnit::Nanosecond, _))
}

pub(super) fn ints(column: &ArrayRef) -> Int64Array {
    match column.data_type() {
        DataType::Int64 => column.as_primitive::<Int64Type>().clone(),
        DataType::Float64 => column.as_primitive::<Float64Type>().unary(ordered),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => column.as_primitive::<TimestampNanosecondType>().unary(|nanos| nanos),
        _ => cast(column, &DataType::Int64)
            .expect("the shape asks for integers only where they are")
            .as_primitive::<Int64Type>()
            .clone(),
    }
}

/// DataFusion's `INTERPOLATION_PRECISION`.
const PERCENTILE_WEIGHT_STEPS: f64 = 1_000_000.0;
