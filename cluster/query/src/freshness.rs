//! `freshness`: how old the answers are, and of whom they know how much. Made when it is asked for: no worker reads a clock.
//!
//! Rows, by `what`:
//! - `relation`: the tick that its rows are of. All standing relations of one answer are of one tick.
//! - `agent`: until when it was heard, and how many of its events are known to be lost.
//! - `region`: of its agents that have not ended how many there are (`agents`), how many of these were not heard for half a minute
//!   (`silent`), and until when the one was heard that was silent for longest.
//!
//! `lag_ms` is the answering node's clock less `heard_through`.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

use arrow::array::{
    Array as _, ArrayRef, AsArray as _, Int64Array, RecordBatch, RecordBatchOptions, StringArray, TimestampNanosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampNanosecondType};
use arrow::error::ArrowError;
use weir_dataflow::RelationInfo;
use weir_dataflow::handle::Read;

use crate::error::SqlError;
use crate::tables::Wanted;

/// Its name.
pub(crate) const FRESHNESS: &str = "freshness";

/// Its columns.
pub(crate) fn info() -> &'static RelationInfo {
    static INFO: LazyLock<RelationInfo> = LazyLock::new(|| {
        let time = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
        let fields = [
            ("what", DataType::Utf8),
            ("name", DataType::Utf8),
            ("tenant", DataType::Utf8),
            ("region", DataType::Utf8),
            ("host", DataType::Utf8),
            ("heard_through", time),
            ("lag_ms", DataType::Int64),
            ("agents", DataType::Int64),
            ("silent", DataType::Int64),
            ("lost_events", DataType::Int64),
        ];
        let schema = Schema::new(fields.map(|(name, data_type)| Field::new(name, data_type, true)).to_vec());
        RelationInfo { name: FRESHNESS.into(), schema: Arc::new(schema), standing: false, sql: None }
    });
    &INFO
}

/// What the workers are asked, for a relation as a query wants it.
pub(crate) fn read(wanted: &Wanted, rows_max: u64, bytes_max: u64) -> Read {
    match wanted.info.name.as_ref() {
        FRESHNESS => {
            let columns = Some(AGENT_COLUMNS.map(str::to_owned).to_vec());
            Read { relation: "agents".to_owned(), columns, limit: None, rows_max, bytes_max }
        }
        _ => wanted.read(rows_max, bytes_max),
    }
}

/// One row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Row {
    what: &'static str,
    name: String,
    tenant: Option<String>,
    region: Option<String>,
    host: Option<String>,
    heard_ns: Option<i64>,
    agents: Option<i64>,
    silent: Option<i64>,
    lost: Option<i64>,
}

/// The rows at a tick by this node's clock, in the columns at these places: `agents` is what [`read`] asked for.
pub(crate) fn now<'n>(
    tick: u64,
    agents: &[RecordBatch],
    relations: impl Iterator<Item = &'n str>,
    columns: &[usize],
) -> Result<RecordBatch, SqlError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let rows = rows(tick, agents, relations, i64::try_from(now).unwrap_or(i64::MAX), columns);
    rows.map_err(|error| datafusion::error::DataFusionError::from(error).into())
}

fn rows<'n>(
    tick: u64,
    agents: &[RecordBatch],
    relations: impl Iterator<Item = &'n str>,
    now_ns: i64,
    columns: &[usize],
) -> Result<RecordBatch, ArrowError> {
    let tick_ns = i64::try_from(tick).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let relation = |name: &str| Row { what: "relation", name: name.to_owned(), heard_ns: Some(tick_ns), ..Row::default() };
    let mut rows: Vec<Row> = relations.map(relation).collect();
    let (mut regions, mut known) = (BTreeMap::<(Option<String>, Option<String>), Row>::new(), Vec::new());
    for batch in agents {
        for place in 0..batch.num_rows() {
            let agent = Agent::of(batch, place);
            if !agent.ended {
                let region = regions.entry((agent.row.tenant.clone(), agent.row.region.clone())).or_insert_with(|| Row {
                    what: "region",
                    name: agent.row.region.clone().unwrap_or_default(),
                    host: None,
                    agents: Some(0),
                    silent: Some(0),
                    lost: Some(0),
                    ..agent.row.clone()
                });
                let silent = agent.row.heard_ns.is_none_or(|heard| now_ns.saturating_sub(heard) > SILENT_NS);
                let add = |slot: &mut Option<i64>, more: i64| *slot = slot.map(|so_far| so_far.saturating_add(more));
                add(&mut region.agents, 1);
                add(&mut region.silent, i64::from(silent));
                add(&mut region.lost, agent.row.lost.unwrap_or(0));
                region.heard_ns = region.heard_ns.min(agent.row.heard_ns);
            }
            known.push(agent.row);
        }
    }
    rows.extend(regions.into_values());
    rows.extend(known);
    encode(&rows, now_ns, columns)
}

struct Agent {
    row: Row,
    ended: bool,
}

impl Agent {
    /// A row of `agents`, its columns as [`AGENT_COLUMNS`] has them.
    fn of(batch: &RecordBatch, place: usize) -> Self {
        let text = |column: usize| {
            let texts = batch.column(column).as_string::<i32>();
            texts.is_valid(place).then(|| texts.value(place).to_owned())
        };
        let time = |column: usize| {
            let times = batch.column(column).as_primitive::<TimestampNanosecondType>();
            times.is_valid(place).then(|| times.value(place))
        };
        let lost = batch.column(5).as_primitive::<Int64Type>();
        let row = Row {
            what: "agent",
            name: text(2).unwrap_or_default(),
            tenant: text(0),
            region: text(1),
            host: text(3),
            heard_ns: time(4),
            lost: lost.is_valid(place).then(|| lost.value(place)),
            ..Row::default()
        };
        Self { row, ended: time(6).is_some() }
    }
}

fn encode(rows: &[Row], now_ns: i64, columns: &[usize]) -> Result<RecordBatch, ArrowError> {
    let schema = &info().schema;
    let texts = |text: fn(&Row) -> Option<&str>| Arc::new(StringArray::from_iter(rows.iter().map(text))) as ArrayRef;
    let ints = |int: &dyn Fn(&Row) -> Option<i64>| Arc::new(Int64Array::from_iter(rows.iter().map(int))) as ArrayRef;
    let column = |place: &usize| match schema.field(*place).name().as_str() {
        "what" => texts(|row| Some(row.what)),
        "name" => texts(|row| Some(&row.name)),
        "tenant" => texts(|row| row.tenant.as_deref()),
        "region" => texts(|row| row.region.as_deref()),
        "host" => texts(|row| row.host.as_deref()),
        "heard_through" => {
            Arc::new(TimestampNanosecondArray::from_iter(rows.iter().map(|row| row.heard_ns)).with_timezone("UTC"))
        }
        "lag_ms" => ints(&|row| row.heard_ns.map(|heard| now_ns.saturating_sub(heard).div_euclid(1_000_000))),
        "agents" => ints(&|row| row.agents),
        "silent" => ints(&|row| row.silent),
        _ => ints(&|row| row.lost),
    };
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(Arc::new(schema.project(columns)?), columns.iter().map(column).collect(), &options)
}

/// Columns of `agents`.
const AGENT_COLUMNS: [&str; 7] = ["tenant", "region", "agent", "host", "last_heard", "lost_events", "ended"];
/// An agent that has nothing to tell says so every few seconds.
const SILENT_NS: i64 = 30_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_as_far_as_its_most_silent_agent() {
        let texts = |values: [&str; 4]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
        let times = |values: [Option<i64>; 4]| {
            let times = values.into_iter().map(|seconds| seconds.map(|seconds| seconds * 1_000_000_000));
            Arc::new(times.collect::<TimestampNanosecondArray>().with_timezone("UTC")) as ArrayRef
        };
        let columns: Vec<ArrayRef> = vec![
            texts(["t", "t", "t", "t"]),
            texts(["eu", "eu", "us", "eu"]),
            texts(["a", "b", "c", "d"]),
            texts(["a", "b", "c", "d"]),
            times([Some(95), Some(60), Some(99), Some(1)]),
            Arc::new(Int64Array::from(vec![1, 2, 3, 4])),
            times([None, None, None, Some(2)]),
        ];
        let fields = AGENT_COLUMNS.iter().zip(&columns).map(|(name, column)| Field::new(*name, column.data_type().clone(), true));
        let agents = RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), columns).unwrap();
        let all: Vec<usize> = (0..10).collect();
        let rows = rows(99_500, &[agents], ["hosts"].into_iter(), 100_000_000_000, &all).unwrap();
        let shown = arrow::util::pretty::pretty_format_batches(&[rows]).unwrap().to_string();
        let cells = |line: &str| {
            line.split('|').map(|cell| cell.trim().to_owned()).filter(|cell| !cell.is_empty()).collect::<Vec<_>>().join(" ")
        };
        let lines: Vec<String> = shown.lines().skip(3).filter(|line| line.starts_with('|')).map(cells).collect();
        assert_eq!(lines[0], "relation hosts 1970-01-01T00:01:39.500Z 500");
        assert_eq!(lines[1], "region eu t eu 1970-01-01T00:01:00Z 40000 2 1 3");
        assert_eq!(lines[2], "region us t us 1970-01-01T00:01:39Z 1000 1 0 3");
        assert_eq!(lines[3], "agent a t eu a 1970-01-01T00:01:35Z 5000 1");
        assert_eq!(lines.len(), 7);
    }
}
