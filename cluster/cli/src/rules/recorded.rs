//! The recorded events of a span of time, asked of a cluster in SQL: piece by piece, so that neither side holds more than one.
//!
//! How many events there are is asked first; pieces are cut so that none is much larger than `ROWS_AT_ONCE`. All see the record up to one
//! tick. Late and imported events are left out: rules do not meet them in the cluster either.

use std::io::IsTerminal as _;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use serde_json::{Map, Value};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use weir_dataflow::shipped;
use weir_rules::ExceptionRow;
use weir_schema::{Column, EVENTS, JsonEvent, Kind, parse_line, write_time};

use crate::sql;
use crate::when::now_ms;

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Window {
    /// From so long ago until now.
    pub(super) since: Duration,
    /// Events of these kinds.
    pub(super) kinds: Vec<Kind>,
}

/// Nanoseconds from and to, and how many events are thought to be there.
type Piece = (i64, i64, u64);

/// Gives every event and its id to `take`, in no order.
pub(super) async fn read(
    url: &str,
    window: &Window,
    mut take: impl FnMut(&str, &JsonEvent) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if window.kinds.is_empty() {
        return Ok(());
    }
    let client = sql::connect(url).await?;
    let to = i64::try_from(now_ms()).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let span = i64::try_from(window.since.as_nanos()).unwrap_or(i64::MAX).clamp(1, to.max(1));
    let (tick, pieces) = cut(&client, to - span, to, &window.kinds).await?;
    let all: u64 = pieces.iter().map(|(.., rows)| rows).sum();
    let (mut read, shown) = (0_u64, std::io::stderr().is_terminal());
    for (from, to, _) in pieces {
        let sql = format!("SELECT {} FROM events WHERE tick <= {tick} AND {}", columns(), condition(from, to, &window.kinds));
        let mut messages = pin!(client.simple_query_raw(&sql).await.map_err(sql::in_plain_words)?);
        while let Some(message) = messages.next().await {
            let SimpleQueryMessage::Row(row) = message.map_err(sql::in_plain_words)? else { continue };
            let (id, line) = line_of(&row);
            match parse_line(&line) {
                Ok(event) => take(&id, &event)?,
                Err(why) => eprintln!("event {id}: skipped: {why}"),
            }
            read += 1;
        }
        if shown {
            eprint!("\r\x1b[K{read} of {all} events");
        }
    }
    if shown {
        eprint!("\r\x1b[K");
    }
    Ok(())
}

/// The exceptions that are in force in a cluster.
pub(super) async fn exceptions(url: &str) -> anyhow::Result<Vec<ExceptionRow>> {
    let client = sql::connect(url).await?;
    let table = format!("SELECT {} FROM {}", shipped::EXCEPTION_COLUMNS.join(", "), shipped::EXCEPTIONS);
    let tables = sql::query(&client, &table).await.context("could not read the exceptions in force")?;
    let row = |row: Vec<Option<String>>| {
        let [rule, name, field, comparator, value] = <[_; 5]>::try_from(row).ok()?.map(Option::unwrap_or_default);
        Some(ExceptionRow { rule, name, field, comparator, value })
    };
    let rows = tables.into_iter().flat_map(|table| table.rows).map(row);
    rows.collect::<Option<_>>().context("the exceptions in force have other columns: is this a node of Weir?")
}

/// The newest tick that has such events, and pieces that are not too large.
async fn cut(client: &Client, from: i64, to: i64, kinds: &[Kind]) -> anyhow::Result<(i64, Vec<Piece>)> {
    let width = ((to - from) / SLOTS).max(SLOT_NS_MIN);
    let sql = format!(
        "SELECT CAST(\"time\" AS BIGINT) / {width} AS slot, count(*) AS events, max(tick) AS tick FROM events WHERE {} GROUP BY 1 ORDER BY 1",
        condition(from, to, kinds)
    );
    let tables = sql::query(client, &sql).await.context("could not count the recorded events")?;
    let (mut tick, mut slots) = (0, Vec::new());
    for row in tables.iter().flat_map(|table| &table.rows) {
        let [slot, rows, last] = &row[..] else { continue };
        let number = |cell: &Option<String>| cell.as_deref().and_then(|text| text.parse::<i64>().ok());
        let (Some(slot), Some(rows), last) = (number(slot), number(rows), number(last)) else {
            anyhow::bail!("the count of the recorded events is no number: is this a node of Weir?");
        };
        tick = tick.max(last.unwrap_or(0));
        slots.push(((slot * width).max(from), ((slot + 1) * width).min(to), rows.unsigned_abs()));
    }
    Ok((tick, pieces(&slots)))
}

/// Slots that follow each other, joined while they are small, and cut where they are large.
fn pieces(slots: &[Piece]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for &(from, to, rows) in slots {
        if let Some((_, end, known)) = pieces.last_mut().filter(|(.., known)| *known + rows <= ROWS_AT_ONCE) {
            (*end, *known) = (to, *known + rows);
            continue;
        }
        let parts = i64::try_from(rows.div_ceil(ROWS_AT_ONCE).max(1)).unwrap_or(1).min((to - from).max(1));
        let width = (to - from) / parts;
        let begins = (0..parts).map(|part| from + part * width);
        pieces.extend(begins.enumerate().map(|(part, begin)| {
            let end = if part as i64 + 1 == parts { to } else { begin + width };
            (begin, end, rows / parts.unsigned_abs() + if part == 0 { rows % parts.unsigned_abs() } else { 0 })
        }));
    }
    pieces
}

fn condition(from: i64, to: i64, kinds: &[Kind]) -> String {
    let moment = |time: i64| {
        let mut text = String::new();
        write_time(&mut text, time);
        text
    };
    let kinds: Vec<String> = kinds.iter().map(|kind| format!("'{}'", kind.as_str())).collect();
    let (from, to, kinds) = (moment(from), moment(to), kinds.join(", "));
    format!("\"time\" >= '{from}' AND \"time\" < '{to}' AND kind IN ({kinds}) AND late IS NOT TRUE AND imported IS NOT TRUE")
}

/// What an event is made of again.
fn columns() -> String {
    let asked =
        EVENTS.iter().filter(|column| !matches!(column, Column::Received | Column::Late | Column::Tick | Column::Imported));
    let asked = asked.map(|column| match column {
        Column::Time => "CAST(\"time\" AS BIGINT) AS \"time\"".to_owned(),
        other => format!("\"{}\"", other.name()),
    });
    asked.collect::<Vec<_>>().join(", ")
}

/// A row's id, and the row as a line.
fn line_of(row: &SimpleQueryRow) -> (String, String) {
    let mut keys = Map::new();
    for (at, column) in row.columns().iter().enumerate() {
        let Some(text) = row.get(at) else { continue };
        let value = match column.name() {
            "simulated" => Value::Bool(text.starts_with('t')),
            _ => Value::from(text),
        };
        keys.insert(column.name().to_owned(), value);
    }
    let id = keys.get("event_id").and_then(Value::as_str).unwrap_or("unknown").to_owned();
    (id, Value::Object(keys).to_string())
}

/// Rows of one query: some ten MiB at the node.
const ROWS_AT_ONCE: u64 = 20_000;
/// Pieces of time in which events are counted.
const SLOTS: i64 = 1_000;
/// The finest of them.
const SLOT_NS_MIN: i64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_everything_once_and_are_small() {
        let slots = [(0, 100, 5), (100, 200, 7), (300, 400, 3 * ROWS_AT_ONCE + 1), (400, 500, 1), (500, 501, 2 * ROWS_AT_ONCE)];
        let pieces = pieces(&slots);
        assert_eq!(pieces[0], (0, 200, 12));
        assert!(pieces.windows(2).all(|two| two[0].1 <= two[1].0), "{pieces:?}");
        for (from, to, rows) in slots {
            assert!(pieces.iter().any(|piece| piece.0 <= from) && pieces.iter().any(|piece| piece.1 >= to));
            assert!(rows > 0);
        }
        let all: u64 = pieces.iter().map(|piece| piece.2).sum();
        assert_eq!(all, slots.iter().map(|slot| slot.2).sum::<u64>());
        // A nanosecond cannot be cut.
        assert_eq!(pieces.iter().filter(|piece| piece.2 > ROWS_AT_ONCE).count(), 1);
        assert!(pieces.iter().all(|piece| piece.0 < piece.1));
    }
}
