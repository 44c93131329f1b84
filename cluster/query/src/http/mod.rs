//! HTTP: the console, relations and queries as JSON, health, metrics. Read-only, from loopback only; where there are roles, with the password of one (`guard.rs`).

mod console;
mod guard;
mod statement;

use std::net::SocketAddr;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::access::Access;
use crate::encode;
use crate::error::{self, SqlError};
use crate::health::Health;
use crate::session::{Answer, Engine};
use crate::statement::{Statement, parse};

/// What renders the metrics of the process.
pub type MetricsRender = Arc<dyn Fn() -> String + Send + Sync>;

/// Serves until dropped.
pub(crate) async fn serve(
    listener: TcpListener,
    (engine, access): (Engine, Arc<Access>),
    health: Health,
    metrics: MetricsRender,
) {
    let places = engine.limits().connections_max.min(Semaphore::MAX_PERMITS);
    let shared = Arc::new(Shared { engine, access, health, metrics, places: Semaphore::new(places) });
    let router = Router::new()
        .route("/v1/views", get(views))
        .route("/v1/views/{name}", get(view))
        .route("/v1/query", get(query))
        .route("/v1/sql", post(statement::sql))
        .route("/v1/subscribe", post(statement::subscribe))
        .route_layer(from_fn_with_state(Arc::clone(&shared), not_too_many))
        .merge(console::routes())
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics_text))
        .fallback(async || told(StatusCode::NOT_FOUND, &json!({ "error": "no such path", "paths": PATHS })))
        .layer(from_fn_with_state(Arc::clone(&shared), guard::guard))
        .with_state(shared);
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    if let Err(error) = axum::serve(listener, service).await {
        tracing::error!(%error, "the HTTP server ended");
    }
}

struct Shared {
    /// Of nobody: `guard.rs` gives each request that of its role.
    engine: Engine,
    access: Arc<Access>,
    health: Health,
    metrics: MetricsRender,
    /// For questions at once.
    places: Semaphore,
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<u64>,
}

#[derive(Deserialize)]
struct Sql {
    sql: String,
}

async fn not_too_many(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    match shared.places.try_acquire() {
        Ok(_place) => next.run(request).await,
        Err(_) => {
            let message = format!("{} questions are asked over HTTP already", shared.engine.limits().connections_max);
            let cure = "ask again, or raise `query.connections_max`";
            failed(&SqlError::new(error::TOO_MANY, message).with_hint(cure))
        }
    }
}

async fn views(Extension(engine): Extension<Engine>) -> Response {
    told(StatusCode::OK, &json!({ "relations": names(&engine).await }))
}

async fn view(Extension(engine): Extension<Engine>, Path(name): Path<String>, Query(limit): Query<Limit>) -> Response {
    match engine.relation(&name, limit.limit).await.and_then(|answer| body(&answer, None)) {
        Ok(mut body) => {
            body["relation"] = name.into();
            told(StatusCode::OK, &body)
        }
        Err(error) if error.code == error::UNKNOWN_RELATION => {
            told(StatusCode::NOT_FOUND, &json!({ "error": error.message, "relations": names(&engine).await }))
        }
        Err(error) => failed(&error),
    }
}

async fn query(Extension(engine): Extension<Engine>, Query(sql): Query<Sql>) -> Response {
    match answer(&engine, &sql.sql).await.and_then(|answer| body(&answer, None)) {
        Ok(body) => told(StatusCode::OK, &body),
        Err(error) => failed(&error),
    }
}

async fn answer(engine: &Engine, sql: &str) -> Result<Answer, SqlError> {
    let mut statements = parse(sql)?;
    statements.iter().try_for_each(|statement| engine.role.permit(statement))?;
    match (statements.pop(), statements.is_empty()) {
        (Some(Statement::Query(parsed)), true) => engine.run(&engine.plan(&parsed).await?, None).await,
        (Some(Statement::Show(show)), true) => engine.show(&show).await,
        (Some(Statement::Rule(crate::rules::RuleStatement::Show)), true) => engine.show_rules().await,
        (Some(Statement::Sink(crate::sinks::SinkStatement::Show)), true) => engine.show_sinks().await,
        _ => Err(SqlError::unsupported("anything but one SELECT, EXPLAIN or SHOW over HTTP")),
    }
}

/// An answer with at most so many of its rows.
fn body(answer: &Answer, shown_max: Option<usize>) -> Result<Value, SqlError> {
    let (rows, total) = rows(&answer.batches, shown_max.unwrap_or(usize::MAX))?;
    let columns = columns(&answer.schema);
    let mut body = json!({ "tick": answer.tick, "completeness": answer.completeness, "columns": columns, "rows": rows });
    if shown_max.is_some() {
        body["rows_total"] = total.into();
    }
    if let Some(note) = &answer.note {
        body["note"] = note.as_str().into();
    }
    if let Some(notice) = &answer.note {
        body["notice"] = notice.as_str().into();
    }
    Ok(body)
}

fn columns(schema: &SchemaRef) -> Vec<Value> {
    let fields = schema.fields().iter();
    fields.map(|field| json!({ "name": encode::shown(field.name()), "type": encode::type_name(field.data_type()) })).collect()
}

/// The first rows, and how many there are.
fn rows(batches: &[RecordBatch], shown_max: usize) -> Result<(Vec<Value>, usize), SqlError> {
    let mut rows = Vec::new();
    for batch in batches {
        let shown = batch.slice(0, batch.num_rows().min(shown_max - rows.len()));
        rows.extend(encode::json_rows(&shown).map_err(|error| SqlError::new(error::INTERNAL, error.to_string()))?);
    }
    Ok((rows, batches.iter().map(RecordBatch::num_rows).sum()))
}

async fn healthz(State(shared): State<Arc<Shared>>) -> Response {
    let report = shared.health.report();
    let status = if report.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    told(status, &json!(report))
}

async fn metrics_text(State(shared): State<Arc<Shared>>) -> Response {
    let text = (shared.metrics)();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

fn failed(error: &SqlError) -> Response {
    let status = match error.code {
        error::UNKNOWN_RELATION => StatusCode::NOT_FOUND,
        error::NOT_READY | error::TOO_MANY => StatusCode::SERVICE_UNAVAILABLE,
        error::TIMED_OUT => StatusCode::GATEWAY_TIMEOUT,
        error::OUT_OF_MEMORY | error::TOO_MANY_ROWS => StatusCode::PAYLOAD_TOO_LARGE,
        error::PRIVILEGE | error::NOT_LET_IN => StatusCode::FORBIDDEN,
        error::INTERNAL => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    };
    told(status, &trouble(error))
}

fn trouble(error: &SqlError) -> Value {
    let position = statement::position(&error.message).map(|(line, column)| json!({ "line": line, "column": column }));
    json!({ "error": error.message, "sqlstate": error.code, "hint": error.hint, "position": position })
}

fn told(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

async fn names(engine: &Engine) -> Vec<String> {
    let made = engine.made().await.unwrap_or_default();
    engine.relations(&made).map(|info| info.name.to_string()).collect()
}

const PATHS: [&str; 8] =
    ["/", "/v1/views", "/v1/views/{name}", "/v1/query?sql=", "POST /v1/sql", "POST /v1/subscribe", "/healthz", "/metrics"];
