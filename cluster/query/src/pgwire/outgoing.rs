//! Rows that go out as they come: SUBSCRIBE, and COPY … TO STDOUT.
//!
//! Every delivery is flushed. Nothing reads the socket meanwhile (`peer.rs` looks at it), so a client that has gone without a word is
//! noticed by writing to it: one that is told nothing for a while is sent the tick as a parameter, `weir.tick`, which clients keep and do not show.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use futures::{Sink, SinkExt as _};
use pgwire::api::portal::Format;
use pgwire::api::results::{FieldFormat, FieldInfo};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::copy::{CopyData, CopyDone, CopyOutResponse};
use pgwire::messages::data::{DataRow, RowDescription};
use pgwire::messages::startup::ParameterStatus;
use tokio::time::Instant;

use super::peer::Peer;
use super::told;
use crate::encode;
use crate::error::{self, SqlError};
use crate::streaming::CopyFormat;
use crate::subscription::Subscription;

/// How rows go out.
#[derive(Debug, Clone)]
pub(super) enum Shape {
    /// As rows of a query.
    Rows(Vec<FieldFormat>),
    /// As lines of a COPY.
    Copy(CopyFormat),
}

impl Shape {
    /// Says what comes.
    pub(super) async fn begin<C>(&self, client: &mut C, schema: &Schema, header: bool) -> PgWireResult<()>
    where
        C: Sink<PgWireBackendMessage> + Unpin + Send,
        C::Error: Debug,
        PgWireError: From<C::Error>,
    {
        let fields = encode::fields(schema, &Format::UnifiedText);
        match self {
            Self::Rows(_) => {
                let description = RowDescription::new(fields.iter().map(Into::into).collect());
                client.feed(PgWireBackendMessage::RowDescription(description)).await?;
            }
            Self::Copy(format) => {
                let columns = i16::try_from(fields.len()).unwrap_or(i16::MAX);
                let response = CopyOutResponse::new(0, columns, vec![0; fields.len()]);
                client.feed(PgWireBackendMessage::CopyOutResponse(response)).await?;
                if header {
                    let names: Vec<_> = fields.iter().map(|field| Some(field.name().as_bytes())).collect();
                    client.feed(PgWireBackendMessage::CopyData(CopyData::new(line(&names, *format).into()))).await?;
                }
            }
        }
        flush(client).await
    }

    /// Sends rows; they are on their way once they are flushed.
    pub(super) async fn feed<C>(&self, client: &mut C, batch: &RecordBatch) -> PgWireResult<usize>
    where
        C: Sink<PgWireBackendMessage> + Unpin + Send,
        C::Error: Debug,
        PgWireError: From<C::Error>,
    {
        let text = Vec::new();
        let formats = if let Self::Rows(formats) = self { formats } else { &text };
        let rows = encode::data_rows(batch, formats);
        let rows = rows.map_err(|failed| told(SqlError::new(error::INTERNAL, failed.to_string())))?;
        let count = rows.len();
        for row in rows {
            let message = match self {
                Self::Rows(_) => PgWireBackendMessage::DataRow(row),
                Self::Copy(format) => PgWireBackendMessage::CopyData(CopyData::new(line(&cells(&row), *format).into())),
            };
            feed(client, message).await?;
        }
        Ok(count)
    }

    /// Says that nothing more comes.
    pub(super) async fn end<C>(&self, client: &mut C) -> PgWireResult<()>
    where
        C: Sink<PgWireBackendMessage> + Unpin + Send,
        C::Error: Debug,
        PgWireError: From<C::Error>,
    {
        match self {
            Self::Rows(_) => Ok(()),
            Self::Copy(_) => Ok(client.feed(PgWireBackendMessage::CopyDone(CopyDone::new())).await?),
        }
    }
}

/// The formats in which a client wants the columns.
pub(super) fn formats(schema: &Schema, format: &Format) -> Vec<FieldFormat> {
    encode::fields(schema, format).iter().map(FieldInfo::format).collect()
}

/// Sends what a subscription tells, until its end or an error of its own. How many rows it were is returned.
pub(super) async fn send<C>(
    (client, peer): (&mut C, &Peer),
    subscription: &mut Subscription,
    shape: &Shape,
) -> PgWireResult<Result<usize, SqlError>>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
    C::Error: Debug,
    PgWireError: From<C::Error>,
{
    let (mut rows, mut through, mut spoken) = (0, None, Instant::now());
    loop {
        let delivery = {
            // Kept over the pulses: a question to the workers is not asked anew because of one.
            let mut next = pin!(subscription.next());
            loop {
                match tokio::time::timeout(PULSE_EVERY, &mut next).await {
                    Ok(delivery) => break delivery,
                    Err(_) if peer.has_left() => return Err(gone()),
                    Err(_) => {
                        pulse(client, through).await?;
                        spoken = Instant::now();
                    }
                }
            }
        };
        let delivery = match delivery {
            Ok(Some(delivery)) => delivery,
            Ok(None) => return Ok(Ok(rows)),
            Err(failed) => return Ok(Err(failed)),
        };
        through = Some(delivery.through);
        if peer.has_left() {
            return Err(gone());
        }
        for batch in &delivery.batches {
            rows += shape.feed(client, batch).await?;
        }
        if !delivery.batches.is_empty() {
            flush(client).await?;
            spoken = Instant::now();
        } else if spoken.elapsed() >= PULSE_EVERY {
            pulse(client, through).await?;
            spoken = Instant::now();
        }
    }
}

async fn pulse<C>(client: &mut C, through: Option<u64>) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
    PgWireError: From<C::Error>,
{
    let tick = through.map(|tick| tick.to_string()).unwrap_or_default();
    let status = ParameterStatus::new("weir.tick".to_owned(), tick);
    feed(client, PgWireBackendMessage::ParameterStatus(status)).await?;
    flush(client).await
}

async fn feed<C>(client: &mut C, message: PgWireBackendMessage) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
    PgWireError: From<C::Error>,
{
    let fed = tokio::time::timeout(STALLED_AFTER, client.feed(message)).await;
    Ok(fed.map_err(|_| stalled())??)
}

async fn flush<C>(client: &mut C) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
    PgWireError: From<C::Error>,
{
    let flushed = tokio::time::timeout(STALLED_AFTER, client.flush()).await;
    Ok(flushed.map_err(|_| stalled())??)
}

fn gone() -> PgWireError {
    PgWireError::IoError(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "the client has left"))
}

fn stalled() -> PgWireError {
    let what = format!("the client has taken nothing for {} s", STALLED_AFTER.as_secs());
    PgWireError::IoError(std::io::Error::new(std::io::ErrorKind::TimedOut, what))
}

/// The values of a row of texts.
fn cells(row: &DataRow) -> Vec<Option<&[u8]>> {
    let mut rest = row.data.as_ref();
    let mut cells = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        // Written by ourselves: a length is -1 for no value, and else there are so many bytes.
        let length = usize::try_from(i32::from_be_bytes(*length)).ok();
        let (cell, after) = after.split_at(length.unwrap_or(0).min(after.len()));
        cells.push(length.map(|_| cell));
        rest = after;
    }
    cells
}

/// One line of a COPY.
fn line(cells: &[Option<&[u8]>], format: CopyFormat) -> Vec<u8> {
    let mut line = Vec::new();
    for (place, cell) in cells.iter().enumerate() {
        if place > 0 {
            line.push(if format == CopyFormat::Csv { b',' } else { b'\t' });
        }
        match (cell, format) {
            (None, CopyFormat::Text) => line.extend_from_slice(b"\\N"),
            (None, CopyFormat::Csv) => {}
            (Some(cell), CopyFormat::Text) => cell.iter().for_each(|byte| escaped(*byte, &mut line)),
            // An empty text is told from no value by its quotes.
            (Some(cell), CopyFormat::Csv) if cell.is_empty() || cell.iter().any(|byte| b",\"\r\n".contains(byte)) => {
                line.push(b'"');
                for byte in *cell {
                    line.extend_from_slice(if *byte == b'"' { b"\"\"" } else { std::slice::from_ref(byte) });
                }
                line.push(b'"');
            }
            (Some(cell), CopyFormat::Csv) => line.extend_from_slice(cell),
        }
    }
    line.push(b'\n');
    line
}

fn escaped(byte: u8, line: &mut Vec<u8>) {
    match byte {
        b'\\' => line.extend_from_slice(b"\\\\"),
        b'\t' => line.extend_from_slice(b"\\t"),
        b'\n' => line.extend_from_slice(b"\\n"),
        b'\r' => line.extend_from_slice(b"\\r"),
        other => line.push(other),
    }
}

/// A client that is told nothing for so long is sent a sign of life. Two of them tell that it has gone.
const PULSE_EVERY: Duration = Duration::from_secs(2);
/// A client that takes not one byte for so long gives its subscription up.
const STALLED_AFTER: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_copy_writes_them() {
        let cells: [Option<&[u8]>; 5] = [Some(b"a\tb\\"), None, Some(b""), Some(b"say \"x\", y\n"), Some(b"1")];
        let text = |format| String::from_utf8(line(&cells, format)).unwrap();
        assert_eq!(text(CopyFormat::Text), "a\\tb\\\\\t\\N\t\tsay \"x\", y\\n\t1\n");
        assert_eq!(text(CopyFormat::Csv), "a\tb\\,,\"\",\"say \"\"x\"\", y\n\",1\n");
    }
}
