//! Rows of a catalog's tables, and how they become columns.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Float32Builder, Int64Builder, ListBuilder, StringBuilder, TimestampNanosecondBuilder,
};
use arrow::datatypes::{DataType, Field, TimeUnit};

/// One value of a row.
#[derive(Debug, Clone)]
pub(super) enum Cell {
    Null,
    Int(i64),
    Bool(bool),
    Text(String),
    List(Vec<String>),
}

/// The columns of a row that are said; more may be said than a table has.
pub(super) type Row = BTreeMap<&'static str, Cell>;

pub(super) fn row<const N: usize>(cells: [(&'static str, Cell); N]) -> Row {
    BTreeMap::from(cells)
}

pub(super) fn id(value: i64) -> Cell {
    Cell::Int(value)
}

pub(super) fn text(value: impl Into<String>) -> Cell {
    Cell::Text(value.into())
}

/// A column of a catalog's table.
pub(super) struct Column {
    pub(super) name: &'static str,
    ty: &'static str,
    default: Option<&'static str>,
}

impl Column {
    pub(super) fn of(spec: &'static str) -> Self {
        let (name, rest) = spec.split_once(':').unwrap_or((spec, "t"));
        let (ty, default) = rest.split_once('=').map_or((rest, None), |(ty, default)| (ty, Some(default)));
        Self { name, ty, default }
    }

    pub(super) fn data_type(&self) -> DataType {
        match self.ty {
            "o" | "i" => DataType::Int64,
            "f" => DataType::Float32,
            "b" => DataType::Boolean,
            "l" => DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))),
            "z" => DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
            _ => DataType::Utf8,
        }
    }

    pub(super) fn array(&self, rows: &[Row]) -> ArrayRef {
        let cells = rows.iter().map(|row| row.get(self.name));
        let default = self.default;
        match self.ty {
            "o" | "i" => {
                let mut built = Int64Builder::new();
                cells.for_each(|cell| {
                    built.append_option(match cell {
                        Some(Cell::Int(value)) => Some(*value),
                        _ => default.and_then(|text| text.parse().ok()),
                    })
                });
                Arc::new(built.finish())
            }
            "f" => {
                let mut built = Float32Builder::new();
                cells.for_each(|_| built.append_option(default.and_then(|text| text.parse().ok())));
                Arc::new(built.finish())
            }
            "b" => {
                let mut built = BooleanBuilder::new();
                cells.for_each(|cell| {
                    built.append_option(match cell {
                        Some(Cell::Bool(value)) => Some(*value),
                        _ => default.map(|text| text == "t"),
                    })
                });
                Arc::new(built.finish())
            }
            "l" => {
                let mut built = ListBuilder::new(StringBuilder::new());
                cells.for_each(|cell| match cell {
                    Some(Cell::List(values)) => built.append_value(values.iter().map(Some)),
                    _ => built.append_null(),
                });
                Arc::new(built.finish())
            }
            "z" => {
                let mut built = TimestampNanosecondBuilder::new();
                cells.for_each(|_| built.append_null());
                Arc::new(built.finish().with_timezone("UTC"))
            }
            _ => {
                let mut built = StringBuilder::new();
                cells.for_each(|cell| {
                    built.append_option(match cell {
                        Some(Cell::Text(value)) => Some(value.as_str()),
                        _ => default,
                    })
                });
                Arc::new(built.finish())
            }
        }
    }
}
