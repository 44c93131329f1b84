//! Files of SQL with the rows that they answer, run over the SQL port: `slt/*.slt`.
//!
//! The rows were written by PostgreSQL 15, never by Weir: `WEIR_SLT_WRITE=1 cargo test -p weir-query --test slt witness` has PostgreSQL run the
//! files and writes its answers into them. Where PostgreSQL is installed, every run asks it again. A record that PostgreSQL has no words for
//! stands behind `onlyif weir` with rows worked out by hand; one where Weir is known to fall short stands in `known_gaps.slt` with a refusal.

#![allow(clippy::unwrap_used)]

#[path = "slt/chain.rs"]
mod chain;
#[path = "slt/witness.rs"]
mod witness;
#[path = "../../../dataflow/tests/world/mod.rs"]
mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Record, Runner};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use weir_config::QueryLimits;
use weir_dataflow::{EngineOptions, run};
use weir_query::{ServeOptions, serve};

use chain::Chain;
use witness::Postgres;

/// So many records the suite has at least.
const RECORDS_MIN: usize = 800;
/// Files at once: more than cores, as most of the time goes by waiting for ticks.
const AT_ONCE: usize = 4;
/// Generous: a debug build on a busy machine.
const WITHIN: Duration = Duration::from_secs(120);

/// An error as a file names it: SQLSTATE and message.
#[derive(Debug)]
struct Told {
    code: String,
    message: String,
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.code, self.message)
    }
}

impl std::error::Error for Told {}

/// A connection to either.
struct Sql {
    client: Client,
    engine: &'static str,
}

impl Sql {
    async fn connect(config: &str, engine: &'static str) -> Self {
        let (client, connection) = tokio_postgres::connect(config, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.simple_query("set timezone = 'UTC'").await.unwrap();
        Self { client, engine }
    }

    /// PostgreSQL keeps no materialized view up to date: there each is a plain one.
    fn words(&self, sql: &str) -> String {
        if self.engine == "postgres" { sql.replace("materialized view", "view") } else { sql.to_owned() }
    }
}

#[async_trait::async_trait]
impl AsyncDB for Sql {
    type Error = Told;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Told> {
        let sql = self.words(sql);
        let asked = tokio::time::timeout(WITHIN, self.client.simple_query(&sql)).await;
        let messages = match asked.unwrap_or_else(|_| panic!("{}: no end of {sql}", self.engine)) {
            Ok(messages) => messages,
            Err(failed) => {
                let told = failed.as_db_error().unwrap_or_else(|| panic!("{}: {sql}: {failed}", self.engine));
                return Err(Told { code: told.code().code().to_owned(), message: told.message().to_owned() });
            }
        };
        let (mut columns, mut rows, mut changed) = (None, Vec::new(), 0);
        for message in messages {
            match message {
                SimpleQueryMessage::RowDescription(described) => columns = Some(described.len()),
                SimpleQueryMessage::Row(row) => rows.push((0..row.len()).map(|column| cell(row.get(column))).collect()),
                SimpleQueryMessage::CommandComplete(rows) => changed = rows,
                _ => {}
            }
        }
        Ok(match columns {
            Some(columns) => DBOutput::Rows { types: vec![DefaultColumnType::Text; columns], rows },
            None => DBOutput::StatementComplete(changed),
        })
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        self.engine
    }

    fn error_sql_state(told: &Told) -> Option<String> {
        Some(told.code.clone())
    }
}

fn cell(text: Option<&str>) -> String {
    match text {
        None => "NULL".to_owned(),
        Some("") => "(empty)".to_owned(),
        Some(text) => text.replace('\n', "\\n"),
    }
}

/// The files, by name.
fn files() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/slt");
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "slt"));
    let only = std::env::var("WEIR_SLT_ONLY").unwrap_or_default();
    files.retain(|path| path.display().to_string().contains(&only));
    files.sort();
    files
}

/// Runs a file to its end: how many records it has, and which of them were wrong.
async fn records(file: PathBuf, config: &str, engine: &'static str) -> (usize, Vec<String>) {
    let begun = tokio::time::Instant::now();
    let mut runner = Runner::new(async || Ok(Sql::connect(config, engine).await));
    let (mut count, mut wrong) = (0, Vec::new());
    for record in sqllogictest::parse_file(&file).unwrap() {
        count += usize::from(matches!(record, Record::Statement { .. } | Record::Query { .. }));
        if let Err(failed) = runner.run_async(record).await {
            wrong.push(format!("{}", failed.display(false)));
        }
    }
    eprintln!("{engine}: {}: {count} records, {} ms", file.file_name().unwrap().display(), begun.elapsed().as_millis());
    (count, wrong)
}

/// Runs all files.
async fn all(config: &str, engine: &'static str) -> usize {
    let runs = files().into_iter().map(|file| records(file, config, engine));
    let runs: Vec<_> = futures::stream::iter(runs).buffer_unordered(AT_ONCE).collect().await;
    let wrong: Vec<_> = runs.iter().flat_map(|(_, wrong)| wrong.iter().map(String::as_str)).collect();
    assert!(wrong.is_empty(), "{} records are wrong on {engine}:\n{}", wrong.len(), wrong.join("\n\n"));
    runs.iter().map(|(count, _)| count).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sql_port_answers_as_the_files_say() {
    let dir = std::env::temp_dir().join(format!("weir-slt-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (chain, socket) = (Chain::new(), dir.join("engine.sock"));
    let (feeds, options) = ((0..2).map(|_| chain.feed()).collect(), EngineOptions::alone(2, socket.clone()));
    std::thread::spawn(move || run(options, feeds));
    let any = "127.0.0.1:0".parse().unwrap();
    let limits = QueryLimits { views_max: 1_000, tables_max: 1_000, ..QueryLimits::default() };
    let views = Some(Arc::new(chain) as Arc<dyn weir_query::ViewStore>);
    let options = ServeOptions {
        node: "n1".into(),
        sql: any,
        http: any,
        socket,
        limits,
        record: None,
        views,
        sinks: None,
        access: Default::default(),
    };
    let running = serve(options, Arc::new(String::new)).await.unwrap();
    let config = format!("host=127.0.0.1 port={} user=weir dbname=weir", running.sql_addr().port());
    let count = all(&config, "weir").await;
    let _ = std::fs::remove_dir_all(&dir);
    assert!(count >= RECORDS_MIN || std::env::var("WEIR_SLT_ONLY").is_ok(), "{count} records");
    eprintln!("{count} records");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_is_the_witness() {
    let Some(postgres) = Postgres::start() else { return };
    let config = postgres.config();
    if std::env::var("WEIR_SLT_WRITE").is_err() {
        all(&config, "postgres").await;
        return;
    }
    for file in files() {
        let mut runner = Runner::new(async || Ok(Sql::connect(&config, "postgres").await));
        let (rows, text) = (sqllogictest::default_validator, sqllogictest::default_normalizer);
        runner.update_test_file(file, " ", rows, text, sqllogictest::default_column_validator).await.unwrap();
    }
}
