//! Arrow values as PostgreSQL fields (text and binary) and as JSON.
//!
//! Types without a PostgreSQL counterpart here (intervals, lists of lists …) travel as text, as Arrow writes them.

mod list;
mod numeric;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, Schema, TimeUnit, TimestampNanosecondType,
};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use pgwire::api::Type;
use pgwire::api::portal::Format;
use pgwire::api::results::{FieldFormat, FieldInfo};
use pgwire::messages::data::DataRow;
use serde_json::Value;

/// A column in one of the few types that are encoded.
enum Column {
    Text(ArrayRef),
    Bool(ArrayRef),
    Int16(ArrayRef),
    Int32(ArrayRef),
    Int64(ArrayRef),
    Float32(ArrayRef),
    Float64(ArrayRef),
    Time(ArrayRef),
    LocalTime(ArrayRef),
    Date(ArrayRef),
    /// As text.
    Numeric(ArrayRef),
    Bytes(ArrayRef),
    /// The lists, all their elements, and the type of these.
    List(ArrayRef, Box<Self>, Type),
}

/// The PostgreSQL type of a column.
pub(crate) fn pg_type(data_type: &DataType) -> Type {
    match data_type {
        DataType::Boolean => Type::BOOL,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => Type::INT2,
        DataType::Int32 | DataType::UInt16 => Type::INT4,
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => Type::INT8,
        DataType::Float16 | DataType::Float32 => Type::FLOAT4,
        DataType::Float64 => Type::FLOAT8,
        DataType::Timestamp(_, Some(_)) => Type::TIMESTAMPTZ,
        DataType::Timestamp(_, None) => Type::TIMESTAMP,
        DataType::Date32 | DataType::Date64 => Type::DATE,
        DataType::Decimal128(..) | DataType::Decimal256(..) => Type::NUMERIC,
        DataType::Binary => Type::BYTEA,
        DataType::List(element) => list::type_of(&pg_type(element.data_type())).unwrap_or(Type::TEXT),
        _ => Type::TEXT,
    }
}

/// The SQL name of a column's type.
pub(crate) fn type_name(data_type: &DataType) -> &'static str {
    match pg_type(data_type) {
        Type::BOOL => "boolean",
        Type::INT2 => "smallint",
        Type::INT4 => "integer",
        Type::INT8 => "bigint",
        Type::FLOAT4 => "real",
        Type::FLOAT8 => "double precision",
        Type::TIMESTAMPTZ => "timestamp with time zone",
        Type::TIMESTAMP => "timestamp without time zone",
        Type::DATE => "date",
        Type::NUMERIC => "numeric",
        Type::BYTEA => "bytea",
        _ if matches!(data_type, DataType::List(_)) && pg_type(data_type) != Type::TEXT => "ARRAY",
        _ => "text",
    }
}

/// The name of a column, without what tells it from another of the same name.
pub(crate) fn shown(name: &str) -> &str {
    name.split_once(crate::catalog::MARK).map_or(name, |(shown, _)| shown)
}

/// The header of an answer.
pub(crate) fn fields(schema: &Schema, format: &Format) -> Vec<FieldInfo> {
    let field = |(place, field): (usize, &std::sync::Arc<arrow::datatypes::Field>)| {
        let format = match format {
            // A client that gives one format for all columns, or fewer than there are, means the first for the rest.
            Format::Individual(codes) => {
                codes.get(place).or_else(|| codes.first()).map_or(FieldFormat::Text, |code| FieldFormat::from(*code))
            }
            unified => unified.format_for(place),
        };
        FieldInfo::new(shown(field.name()).to_owned(), None, None, pg_type(field.data_type()), format)
    };
    schema.fields().iter().enumerate().map(field).collect()
}

/// The rows of a batch as PostgreSQL sends them.
pub(crate) fn data_rows(batch: &RecordBatch, formats: &[FieldFormat]) -> Result<Vec<DataRow>, ArrowError> {
    let columns = batch.columns().iter().map(Column::new).collect::<Result<Vec<_>, _>>()?;
    let count = i16::try_from(columns.len()).map_err(|_| ArrowError::InvalidArgumentError("too many columns".into()))?;
    let mut rows = Vec::with_capacity(batch.num_rows());
    let mut value = Vec::new();
    for row in 0..batch.num_rows() {
        let mut encoded = DataRow::new(Default::default(), count);
        for (place, column) in columns.iter().enumerate() {
            if column.array().is_null(row) {
                encoded.data.extend_from_slice(&(-1_i32).to_be_bytes());
                continue;
            }
            value.clear();
            match formats.get(place).copied().unwrap_or(FieldFormat::Text) {
                FieldFormat::Text => column.text(row, &mut value),
                FieldFormat::Binary => column.binary(row, &mut value),
            }
            let length =
                i32::try_from(value.len()).map_err(|_| ArrowError::InvalidArgumentError("a value is too long".into()))?;
            encoded.data.extend_from_slice(&length.to_be_bytes());
            encoded.data.extend_from_slice(&value);
        }
        rows.push(encoded);
    }
    Ok(rows)
}

/// The rows of a batch as JSON arrays.
pub(crate) fn json_rows(batch: &RecordBatch) -> Result<Vec<Value>, ArrowError> {
    let columns = batch.columns().iter().map(Column::new).collect::<Result<Vec<_>, _>>()?;
    let row = |row| Value::Array(columns.iter().map(|column| column.json(row)).collect());
    Ok((0..batch.num_rows()).map(row).collect())
}

impl Column {
    fn new(array: &ArrayRef) -> Result<Self, ArrowError> {
        let to = |data_type: &DataType| cast(array, data_type);
        let nanos = |zone: Option<&str>| DataType::Timestamp(TimeUnit::Nanosecond, zone.map(Into::into));
        Ok(match pg_type(array.data_type()) {
            Type::BOOL => Self::Bool(array.clone()),
            Type::INT2 => Self::Int16(to(&DataType::Int16)?),
            Type::INT4 => Self::Int32(to(&DataType::Int32)?),
            Type::INT8 => Self::Int64(to(&DataType::Int64)?),
            Type::FLOAT4 => Self::Float32(to(&DataType::Float32)?),
            Type::FLOAT8 => Self::Float64(array.clone()),
            Type::TIMESTAMPTZ => Self::Time(to(&nanos(Some("UTC")))?),
            Type::TIMESTAMP => Self::LocalTime(to(&nanos(None))?),
            Type::DATE => Self::Date(to(&DataType::Date32)?),
            Type::NUMERIC => Self::Numeric(text(array)?),
            Type::BYTEA => Self::Bytes(array.clone()),
            _ if let (Some(lists), true) = (array.as_list_opt::<i32>(), pg_type(array.data_type()) != Type::TEXT) => {
                let element = pg_type(&lists.value_type());
                Self::List(array.clone(), Box::new(Self::new(lists.values())?), element)
            }
            _ => Self::Text(text(array)?),
        })
    }

    fn array(&self) -> &ArrayRef {
        match self {
            Self::Text(array)
            | Self::Bool(array)
            | Self::Int16(array)
            | Self::Int32(array)
            | Self::Int64(array)
            | Self::Float32(array)
            | Self::Float64(array)
            | Self::Time(array)
            | Self::LocalTime(array)
            | Self::Date(array)
            | Self::Numeric(array)
            | Self::Bytes(array)
            | Self::List(array, ..) => array,
        }
    }

    fn text(&self, row: usize, out: &mut Vec<u8>) {
        let text = match self {
            Self::Text(array) | Self::Numeric(array) => {
                return out.extend_from_slice(array.as_string::<i32>().value(row).as_bytes());
            }
            Self::List(lists, elements, _) => return list::text(lists.as_list(), elements, row, out),
            Self::Bytes(array) => hex(array.as_binary::<i32>().value(row)),
            Self::Bool(array) => if array.as_boolean().value(row) { "t" } else { "f" }.to_owned(),
            Self::Int16(array) => array.as_primitive::<Int16Type>().value(row).to_string(),
            Self::Int32(array) => array.as_primitive::<Int32Type>().value(row).to_string(),
            Self::Int64(array) => array.as_primitive::<Int64Type>().value(row).to_string(),
            Self::Float32(array) => float(f64::from(array.as_primitive::<Float32Type>().value(row)), || {
                array.as_primitive::<Float32Type>().value(row).to_string()
            }),
            Self::Float64(array) => {
                let value = array.as_primitive::<Float64Type>().value(row);
                float(value, || value.to_string())
            }
            Self::Time(array) => time(array.as_primitive::<TimestampNanosecondType>().value(row), "+00"),
            Self::LocalTime(array) => time(array.as_primitive::<TimestampNanosecondType>().value(row), ""),
            Self::Date(array) => date(i64::from(array.as_primitive::<Date32Type>().value(row))),
        };
        out.extend_from_slice(text.as_bytes());
    }

    fn binary(&self, row: usize, out: &mut Vec<u8>) {
        match self {
            Self::Text(array) => out.extend_from_slice(array.as_string::<i32>().value(row).as_bytes()),
            Self::Numeric(array) => numeric::binary(array.as_string::<i32>().value(row), out),
            Self::Bytes(array) => out.extend_from_slice(array.as_binary::<i32>().value(row)),
            Self::List(lists, elements, element) => list::binary(lists.as_list(), elements, element, row, out),
            Self::Bool(array) => out.push(u8::from(array.as_boolean().value(row))),
            Self::Int16(array) => out.extend_from_slice(&array.as_primitive::<Int16Type>().value(row).to_be_bytes()),
            Self::Int32(array) => out.extend_from_slice(&array.as_primitive::<Int32Type>().value(row).to_be_bytes()),
            Self::Int64(array) => out.extend_from_slice(&array.as_primitive::<Int64Type>().value(row).to_be_bytes()),
            Self::Float32(array) => out.extend_from_slice(&array.as_primitive::<Float32Type>().value(row).to_be_bytes()),
            Self::Float64(array) => out.extend_from_slice(&array.as_primitive::<Float64Type>().value(row).to_be_bytes()),
            Self::Time(array) | Self::LocalTime(array) => {
                let micros = array.as_primitive::<TimestampNanosecondType>().value(row).div_euclid(1_000);
                out.extend_from_slice(&(micros - PG_EPOCH_S * 1_000_000).to_be_bytes());
            }
            Self::Date(array) => {
                let days = i64::from(array.as_primitive::<Date32Type>().value(row)) - PG_EPOCH_S / DAY_S;
                out.extend_from_slice(&(days as i32).to_be_bytes());
            }
        }
    }

    fn json(&self, row: usize) -> Value {
        if self.array().is_null(row) {
            return Value::Null;
        }
        match self {
            Self::Bool(array) => array.as_boolean().value(row).into(),
            Self::Int16(array) => array.as_primitive::<Int16Type>().value(row).into(),
            Self::Int32(array) => array.as_primitive::<Int32Type>().value(row).into(),
            Self::Int64(array) => array.as_primitive::<Int64Type>().value(row).into(),
            Self::Float32(array) => array.as_primitive::<Float32Type>().value(row).into(),
            Self::Float64(array) => array.as_primitive::<Float64Type>().value(row).into(),
            Self::Time(array) => rfc3339(array.as_primitive::<TimestampNanosecondType>().value(row)).into(),
            Self::List(lists, elements, _) => list::places(lists.as_list(), row).map(|place| elements.json(place)).collect(),
            Self::Text(_) | Self::LocalTime(_) | Self::Date(_) | Self::Numeric(_) | Self::Bytes(_) => {
                let mut text = Vec::new();
                self.text(row, &mut text);
                String::from_utf8_lossy(&text).into_owned().into()
            }
        }
    }
}

fn text(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if let Ok(text) = cast(array, &DataType::Utf8) {
        return Ok(text);
    }
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(array, &options)?;
    let values = (0..array.len()).map(|row| (!array.is_null(row)).then(|| formatter.value(row).to_string()));
    Ok(std::sync::Arc::new(values.collect::<arrow::array::StringArray>()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn float(value: f64, plain: impl FnOnce() -> String) -> String {
    if value.is_infinite() { if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned() } else { plain() }
}

/// A time as PostgreSQL writes it: microseconds, without trailing zeros.
fn time(nanos: i64, zone: &str) -> String {
    let (seconds, micros) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000) / 1_000);
    let mut text = format!("{} {}", date(seconds.div_euclid(DAY_S)), clock(seconds));
    if micros != 0 {
        text.push_str(format!(".{micros:06}").trim_end_matches('0'));
    }
    text + zone
}

fn rfc3339(nanos: i64) -> String {
    let (seconds, rest) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    format!("{}T{}.{rest:09}Z", date(seconds.div_euclid(DAY_S)), clock(seconds))
}

fn clock(seconds: i64) -> String {
    let second = seconds.rem_euclid(DAY_S);
    format!("{:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60)
}

/// Days since 1970 as a date of the Gregorian calendar (Howard Hinnant's `civil_from_days`).
fn date(days: i64) -> String {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// 2000-01-01 in seconds since 1970.
const PG_EPOCH_S: i64 = 946_684_800;
/// Seconds of a day.
const DAY_S: i64 = 86_400;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        BinaryArray, BooleanArray, Decimal128Array, Float64Array, Int64Array, ListArray, StringArray, TimestampNanosecondArray,
    };
    use arrow::datatypes::Int64Type;

    use super::*;

    #[test]
    fn times_are_written_as_postgresql_writes_them() {
        for (nanos, expected) in [
            (0, "1970-01-01 00:00:00+00"),
            (1_795_451_134_500_000_000, "2026-11-23 16:25:34.5+00"),
            (951_826_154_000_001_999, "2000-02-29 12:09:14.000001+00"),
            (-1, "1969-12-31 23:59:59.999999+00"),
        ] {
            assert_eq!(time(nanos, "+00"), expected);
        }
        assert_eq!(rfc3339(1_795_451_134_500_000_001), "2026-11-23T16:25:34.500000001Z");
    }

    #[test]
    fn values_are_encoded_and_nulls_kept() {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("t", Arc::new(StringArray::from(vec![Some("a"), None]))),
            ("b", Arc::new(BooleanArray::from(vec![Some(true), None]))),
            ("n", Arc::new(Int64Array::from(vec![Some(-7), None]))),
            ("f", Arc::new(Float64Array::from(vec![Some(f64::INFINITY), None]))),
            ("w", Arc::new(TimestampNanosecondArray::from(vec![Some(PG_EPOCH_S * 1_000_000_000), None]).with_timezone("UTC"))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let text = data_rows(&batch, &[FieldFormat::Text; 5]).unwrap();
        let mut expected = Vec::new();
        for value in ["a", "t", "-7", "Infinity", "2000-01-01 00:00:00+00"] {
            expected.extend_from_slice(&(value.len() as i32).to_be_bytes());
            expected.extend_from_slice(value.as_bytes());
        }
        assert_eq!(text[0].data, expected);
        assert_eq!(text[1].data.as_ref(), [0xff_u8; 20]);
        let binary = data_rows(&batch, &[FieldFormat::Binary; 5]).unwrap();
        assert!(binary[0].data.ends_with(&[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]));
        let json = serde_json::to_string(&json_rows(&batch).unwrap()).unwrap();
        assert_eq!(json, r#"[["a",true,-7,null,"2000-01-01T00:00:00.000000000Z"],[null,null,null,null,null]]"#);
    }

    #[test]
    fn numbers_bytes_and_arrays_are_written_as_postgresql_writes_them() {
        let decimal = Decimal128Array::from(vec![-1_234_i128]).with_precision_and_scale(10, 2).unwrap();
        let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None, Some(-3)])]);
        let columns: Vec<(&str, ArrayRef)> =
            vec![("d", Arc::new(decimal)), ("b", Arc::new(BinaryArray::from_vec(vec![b"\x00\xff"]))), ("l", Arc::new(list))];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let types: Vec<Type> = batch.schema().fields().iter().map(|field| pg_type(field.data_type())).collect();
        assert_eq!(types, [Type::NUMERIC, Type::BYTEA, Type::INT8_ARRAY]);
        let text = data_rows(&batch, &[FieldFormat::Text; 3]).unwrap();
        let mut expected = Vec::new();
        for value in ["-12.34", "\\x00ff", "{1,NULL,-3}"] {
            expected.extend_from_slice(&(value.len() as i32).to_be_bytes());
            expected.extend_from_slice(value.as_bytes());
        }
        assert_eq!(text[0].data, expected);
        let json = serde_json::to_string(&json_rows(&batch).unwrap()).unwrap();
        assert_eq!(json, r#"[["-12.34","\\x00ff",[1,null,-3]]]"#);
        let words = Column::new(&(Arc::new(StringArray::from(vec!["a b", "", "q\"", "null", "x"])) as ArrayRef)).unwrap();
        let offsets = arrow::buffer::OffsetBuffer::from_lengths([5, 0]);
        let field = Arc::new(arrow::datatypes::Field::new_list_field(DataType::Utf8, true));
        let lists = ListArray::new(field, offsets, words.array().clone(), None);
        let mut out = Vec::new();
        list::text(&lists, &words, 0, &mut out);
        list::text(&lists, &words, 1, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), r#"{"a b","","q\"","null",x}{}"#);
    }
}
