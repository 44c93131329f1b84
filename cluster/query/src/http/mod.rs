//! HTTP: relations and queries as JSON, health, metrics. Read-only, without passwords: from loopback only.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::encode;
use crate::error::{self, SqlError};
use crate::health::Health;
use crate::session::{Answer, Engine};
use crate::statement::{Statement, parse};

/// What renders the metrics of the process.
pub type MetricsRender = Arc<dyn Fn() -> String + Send + Sync>;

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, engine: Engine, health: Health, metrics: MetricsRender) {
    let shared = Arc::new(Shared { engine, health, metrics });
    let router = Router::new()
        .route("/v1/views", get(views))
        .route("/v1/views/{name}", get(view))
        .route("/v1/query", get(query))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics_text))
        .fallback(async || told(StatusCode::NOT_FOUND, &json!({ "error": "no such path", "paths": PATHS })))
        .layer(from_fn(loopback_only))
        .with_state(shared);
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    if let Err(error) = axum::serve(listener, service).await {
        tracing::error!(%error, "the HTTP server ended");
    }
}

struct Shared {
    engine: Engine,
    health: Health,
    metrics: MetricsRender,
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<u64>,
}

#[derive(Deserialize)]
struct Sql {
    sql: String,
}

async fn loopback_only(ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request, next: Next) -> Response {
    if peer.ip().to_canonical().is_loopback() {
        return next.run(request).await;
    }
    told(StatusCode::FORBIDDEN, &json!({ "error": "there are no passwords yet, so only loopback is let in" }))
}

async fn views(State(shared): State<Arc<Shared>>) -> Response {
    told(StatusCode::OK, &json!({ "relations": names(&shared.engine).await }))
}

async fn view(State(shared): State<Arc<Shared>>, Path(name): Path<String>, Query(limit): Query<Limit>) -> Response {
    match shared.engine.relation(&name, limit.limit).await.and_then(|answer| body(&answer, Some(&name))) {
        Ok(body) => told(StatusCode::OK, &body),
        Err(error) if error.code == error::UNKNOWN_RELATION => {
            told(StatusCode::NOT_FOUND, &json!({ "error": error.message, "relations": names(&shared.engine).await }))
        }
        Err(error) => failed(&error),
    }
}

async fn query(State(shared): State<Arc<Shared>>, Query(sql): Query<Sql>) -> Response {
    match answer(&shared.engine, &sql.sql).await {
        Ok(body) => told(StatusCode::OK, &body),
        Err(error) => failed(&error),
    }
}

async fn answer(engine: &Engine, sql: &str) -> Result<Value, SqlError> {
    let mut statements = parse(sql)?;
    let answer = match (statements.pop(), statements.is_empty()) {
        (Some(Statement::Query(parsed)), true) => engine.run(&engine.plan(&parsed).await?, None).await?,
        (Some(Statement::Show(show)), true) => engine.show(&show).await?,
        (Some(Statement::Rule(crate::rules::RuleStatement::Show)), true) => engine.show_rules().await?,
        _ => return Err(SqlError::unsupported("anything but one SELECT, EXPLAIN or SHOW over HTTP")),
    };
    body(&answer, None)
}

fn body(answer: &Answer, relation: Option<&str>) -> Result<Value, SqlError> {
    let mut rows = Vec::new();
    for batch in &answer.batches {
        rows.extend(encode::json_rows(batch).map_err(|error| SqlError::new(error::INTERNAL, error.to_string()))?);
    }
    let fields = answer.schema.fields().iter();
    let columns: Vec<_> = fields
        .map(|field| json!({ "name": encode::shown(field.name()), "type": encode::type_name(field.data_type()) }))
        .collect();
    let mut body = json!({ "tick": answer.tick, "completeness": answer.completeness, "columns": columns, "rows": rows });
    if let Some(relation) = relation {
        body["relation"] = relation.into();
    }
    if let Some(notice) = &answer.note {
        body["notice"] = notice.as_str().into();
    }
    Ok(body)
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
        error::NOT_READY => StatusCode::SERVICE_UNAVAILABLE,
        error::TIMED_OUT => StatusCode::GATEWAY_TIMEOUT,
        error::OUT_OF_MEMORY | error::TOO_MANY_ROWS => StatusCode::PAYLOAD_TOO_LARGE,
        error::INTERNAL => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    };
    told(status, &json!({ "error": error.message, "sqlstate": error.code, "hint": error.hint }))
}

fn told(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

async fn names(engine: &Engine) -> Vec<String> {
    let made = engine.made().await.unwrap_or_default();
    engine.relations(&made).map(|info| info.name.to_string()).collect()
}

const PATHS: [&str; 5] = ["/v1/views", "/v1/views/{name}", "/v1/query?sql=", "/healthz", "/metrics"];
