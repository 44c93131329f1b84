//! Statements by POST: `/v1/sql` answers one SELECT, EXPLAIN or SHOW, `/v1/subscribe` tells what a SUBSCRIBE is told as server-sent events.
//!
//! The request is JSON: `{"sql": "select …", "rows_shown_max": 1000}`. The limits are those of the SQL port (`query.*`); beyond `rows_shown_max`
//! rows are counted (`rows_total`) and not sent. An error names its SQLSTATE, a cure where there is one, and where the parser knows it the line and
//! column. Neither path changes anything but the view that a SUBSCRIBE to a query has while it runs.
//!
//! ```text
//! event: columns   data: {"columns":[{"name","type"}, …]}
//! event: changes   data: {"tick": everything through it is told, "rows":[[weir_tick, weir_diff, …], …]}
//! event: error     data: as the body of an error; it is the last one
//! ```

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{answer, body, columns, failed, rows, told, trouble};
use crate::error::{self, SqlError};
use crate::session::Engine;
use crate::statement::{Statement, parse};
use crate::subscription::Subscription;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Posted {
    sql: String,
    rows_shown_max: Option<usize>,
}

/// `POST /v1/sql`.
pub(super) async fn sql(Extension(engine): Extension<Engine>, request: Request) -> Response {
    let posted = match posted(request).await {
        Ok(posted) => posted,
        Err(refused) => return refused,
    };
    match Box::pin(answer(&engine, &posted.sql)).await.and_then(|answer| body(&answer, posted.rows_shown_max)) {
        Ok(body) => told(StatusCode::OK, &body),
        Err(error) => failed(&error),
    }
}

/// `POST /v1/subscribe`.
pub(super) async fn subscribe(Extension(engine): Extension<Engine>, request: Request) -> Response {
    let posted = match posted(request).await {
        Ok(posted) => posted,
        Err(refused) => return refused,
    };
    let subscription = match Box::pin(begin(&engine, &posted.sql)).await {
        Ok(subscription) => subscription,
        Err(error) => return failed(&error),
    };
    let head = event("columns", &json!({ "columns": columns(&subscription.schema) }));
    let changes = stream::unfold(Some(subscription), |running| async move {
        let mut running = running?;
        let next = running.next().await;
        let told = match &next {
            Ok(None) => return None,
            Ok(Some(delivery)) => rows(&delivery.batches, usize::MAX).map(|(rows, _)| (rows, delivery.through)),
            Err(error) => Err(error.clone()),
        };
        Some(match told {
            Ok((rows, through)) => (event("changes", &json!({ "tick": through, "rows": rows })), Some(running)),
            Err(error) => (event("error", &trouble(&error)), None),
        })
    });
    let all = futures::StreamExt::chain(stream::iter([head]), changes);
    Sse::new(all).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

async fn begin(engine: &Engine, sql: &str) -> Result<Subscription, SqlError> {
    let mut statements = parse(sql)?;
    statements.iter().try_for_each(|statement| engine.role.permit(statement))?;
    match (statements.pop(), statements.is_empty()) {
        (Some(Statement::Subscribe(asked)), true) => engine.subscribe(&engine.subscribable(&asked).await?).await,
        _ => Err(SqlError::unsupported("anything but one SUBSCRIBE on this path").with_hint("POST a SELECT to /v1/sql")),
    }
}

fn event(name: &str, data: &Value) -> Result<Event, Infallible> {
    Ok(Event::default().event(name).data(data.to_string()))
}

/// Reads what was posted, or says what is wrong with it.
async fn posted(request: Request) -> Result<Posted, Response> {
    let refused = |status, why: String| told(status, &json!({ "error": why, "sqlstate": error::SYNTAX, "hint": SHAPE }));
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // A form of another site cannot send this type, and a script of it is asked for its origin first.
    if content_type.split(';').next().unwrap_or_default().trim() != "application/json" {
        return Err(refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("content type {content_type:?} is not application/json"),
        ));
    }
    let read = tokio::time::timeout(READ_WITHIN, to_bytes(request.into_body(), POSTED_BYTES_MAX)).await;
    let bytes = match read {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let why = format!("the request is cut off, or has more than {POSTED_BYTES_MAX} bytes");
            return Err(refused(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        Err(_) => {
            return Err(refused(
                StatusCode::REQUEST_TIMEOUT,
                format!("the request took longer than {} s", READ_WITHIN.as_secs()),
            ));
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| refused(StatusCode::BAD_REQUEST, format!("no request: {error}")))
}

/// Where the parser stopped: it says so at the end of what it says.
pub(super) fn position(message: &str) -> Option<(u64, u64)> {
    let (_, rest) = message.rsplit_once("Line: ")?;
    let (line, rest) = rest.split_once(", Column: ")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((line.parse().ok()?, rest[..digits].parse().ok()?)).filter(|(line, _)| *line > 0)
}

const SHAPE: &str = "post {\"sql\": \"select …\"} as application/json";
/// A statement that people write is far shorter; the rest is for long lists of values.
const POSTED_BYTES_MAX: usize = 1 << 20;
/// From loopback it is there at once.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// So a client that is gone is noticed while nothing changes.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::position;

    #[test]
    fn a_position_is_read_out_of_what_the_parser_says() {
        for (message, expected) in [
            ("syntax error: Expected: an SQL statement, found: selec at Line: 1, Column: 1", Some((1, 1))),
            ("found: \"at Line: 9, Column: 9\" at Line: 2, Column: 14.", Some((2, 14))),
            ("at Line: 0, Column: 0", None),
            ("Line: x, Column: 4", None),
            ("Line: 3", None),
            ("", None),
        ] {
            assert_eq!(position(message), expected, "{message}");
        }
    }
}
