//! Roles: who comes in, what they may say, and what happens at their limits.

#![allow(clippy::unwrap_used)]

#[path = "../../../dataflow/tests/world/mod.rs"]
mod world;

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use weir_config::{Grants, QueryLimits, RoleConfig, RoleLimits, SqlConfig, SqlTls, TlsMode};
use weir_dataflow::{EngineOptions, run};
use weir_query::{Running, ServeOptions, Verifier, serve};
use world::World;

struct Node {
    running: Running,
    dir: tempfile::TempDir,
}

impl Node {
    /// A node with these roles; everybody's password is their name and `-password`. It is known once it has closed the last tick.
    async fn start(roles: Vec<RoleConfig>, tls: Option<TlsMode>, idle_ms_max: u64) -> Self {
        let (world, dir) = (World::new(23, 50), tempfile::tempdir().unwrap());
        let socket = dir.path().join("engine.sock");
        let (engine, feeds) = (EngineOptions::alone(2, socket.clone()), world.feeds(2));
        std::thread::spawn(move || run(engine, feeds));
        let any = "127.0.0.1:0".parse().unwrap();
        let roles = roles.into_iter().map(|role| secret(dir.path(), role)).collect();
        let access = SqlConfig { idle_ms_max, tls: tls.map(|mode| certificate(dir.path(), mode)), roles };
        let limits = QueryLimits::default();
        let options = ServeOptions {
            node: "n1".into(),
            sql: any,
            http: any,
            socket,
            limits,
            access,
            record: None,
            views: None,
            sinks: None,
        };
        let node = Self { running: serve(options, Arc::new(String::new)).await.unwrap(), dir };
        let end = Some(world.end());
        let deadline = Instant::now() + Duration::from_secs(120);
        while node.running.live().frontier().await.ok().and_then(|frontier| frontier.closed) != end {
            assert!(Instant::now() < deadline, "the last tick does not close");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        node
    }

    async fn connect(&self, user: &str) -> Client {
        self.try_connect(user, &format!("{user}-password")).await.unwrap()
    }

    /// Of a refusal the SQLSTATE and what was said.
    async fn try_connect(&self, user: &str, password: &str) -> Result<Client, String> {
        let port = self.running.sql_addr().port();
        let config = format!("host=127.0.0.1 port={port} user={user} password={password} dbname=weir");
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await.map_err(|error| told(&error))?;
        tokio::spawn(connection);
        Ok(client)
    }

    async fn get(&self, path: &str, authorization: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.running.http_addr()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{authorization}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        (answer[9..12].parse().unwrap(), answer)
    }

    /// psql; none when it is not installed.
    async fn psql(&self, password: &str, more: &str, sql: &str) -> Option<Output> {
        let config = format!("host=localhost port={} user=eve dbname=weir {more}", self.running.sql_addr().port());
        let psql = tokio::process::Command::new("psql")
            .args(["-XAtc", sql, &config])
            .env("PGPASSWORD", password)
            .env("PGHOSTADDR", "127.0.0.1")
            .output()
            .await;
        if psql.is_err() {
            eprintln!("SKIPPED: psql is not installed");
        }
        psql.ok()
    }
}

fn role(name: &str, grants: Grants) -> RoleConfig {
    let (limits, secret_file) = (RoleLimits::default(), PathBuf::new());
    RoleConfig { name: name.into(), secret_file, grants, regions: vec![], relations: vec![], limits }
}

/// Every second role has its password in the file, the others the verifier.
fn secret(dir: &Path, role: RoleConfig) -> RoleConfig {
    let (file, password) = (dir.join(&role.name), format!("{}-password", role.name));
    let text = if role.name.len().is_multiple_of(2) { password } else { Verifier::of(&password).to_string() };
    std::fs::write(&file, text + "\n").unwrap();
    RoleConfig { secret_file: file, ..role }
}

fn certificate(dir: &Path, mode: TlsMode) -> SqlTls {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    SqlTls { cert, key, mode }
}

fn told(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |db| format!("{} {}", db.code().code(), db.message()))
}

/// Rows as lines; of an error its SQLSTATE and text.
async fn ask(sql: &Client, text: &str) -> String {
    match sql.simple_query(text).await {
        Ok(messages) => {
            let rows = messages.iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|cell| row.get(cell).unwrap_or("null")).collect::<Vec<_>>().join("|"))
                }
                _ => None,
            });
            rows.collect::<Vec<_>>().join("\n")
        }
        Err(error) => told(&error),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_roles_with_their_password_come_in_and_do_what_they_may() {
    let roles = vec![role("reader", Grants::Read), role("bob", Grants::Write), role("carol", Grants::Admin)];
    let node = Node::start(roles, None, 0).await;
    let wrong = node.try_connect("reader", "bob-password").await.err().unwrap();
    assert_eq!(wrong, "28P01 password authentication failed for user \"reader\"");
    let nobody = node.try_connect("nobody", "bob-password").await.err().unwrap();
    assert_eq!(nobody, wrong.replace("reader", "nobody"), "no word more for who is not there");
    assert!(node.try_connect("weir", "").await.is_err(), "the user of a server without roles");

    let [reader, bob, carol] = [node.connect("reader").await, node.connect("bob").await, node.connect("carol").await];
    assert_eq!(ask(&reader, "select current_user").await, "reader");
    assert_eq!(ask(&carol, "select session_user").await, "carol");
    for sql in
        ["insert into t values (1)", "create view v as select 1", "drop table t", "truncate t", "drop rule r", "drop sink s"]
    {
        assert!(ask(&reader, sql).await.starts_with("42501 permission denied"), "{sql}");
        assert!(reader.prepare(sql).await.is_err_and(|error| told(&error).starts_with("42501")), "{sql}, prepared");
    }
    assert!(ask(&bob, "drop rule r").await.starts_with("42501"));
    assert!(!ask(&bob, "drop view v").await.starts_with("42501"));
    assert!(!ask(&carol, "drop rule r").await.starts_with("42501"));
}

#[tokio::test(flavor = "multi_thread")]
async fn http_asks_for_the_same_passwords() {
    let node = Node::start(vec![role("reader", Grants::Read)], None, 0).await;
    let (status, answer) = node.get("/v1/query?sql=select%20current_user", "").await;
    assert!(status == 401 && answer.to_lowercase().contains("www-authenticate: basic realm=\"weir\""), "{answer}");
    // reader:reader-password, reader:wrong, nobody:reader-password
    let good = "authorization: Basic cmVhZGVyOnJlYWRlci1wYXNzd29yZA==\r\n";
    for wrong in ["cmVhZGVyOndyb25n", "bm9ib2R5OnJlYWRlci1wYXNzd29yZA==", "!", ""] {
        assert_eq!(node.get("/v1/views", &format!("authorization: Basic {wrong}\r\n")).await.0, 401, "{wrong}");
    }
    let (status, answer) = node.get("/v1/query?sql=select%20current_user", good).await;
    assert!(status == 200 && answer.contains("[[\"reader\"]]"), "{answer}");
    assert_eq!(node.get("/", "").await.0, 401, "the console asks as well");
    assert_eq!(node.get("/", good).await.0, 200);
    assert_eq!(node.get("/healthz", "").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_comes_in_over_tls_that_it_has_checked() {
    let node = Node::start(vec![role("eve", Grants::Read)], Some(TlsMode::Required), 0).await;
    let checked = format!("sslmode=verify-full sslrootcert={}", node.dir.path().join("cert.pem").display());
    let Some(asked) = node.psql("eve-password", &checked, "select current_user").await else { return };
    assert_eq!(String::from_utf8_lossy(&asked.stdout), "eve\n", "{}", String::from_utf8_lossy(&asked.stderr));
    let bound = format!("{checked} channel_binding=require");
    let asked = node.psql("eve-password", &bound, "select 1").await.unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let said = |output: Option<Output>| String::from_utf8_lossy(&output.unwrap().stderr).into_owned();
    let wrong = said(node.psql("wrong", &checked, "select 1").await);
    assert!(wrong.contains("password authentication failed for user \"eve\""), "{wrong}");
    let clear = said(node.psql("eve-password", "sslmode=disable", "select 1").await);
    assert!(clear.contains("over TLS only"), "{clear}");
    let stranger = said(node.psql("eve-password", "sslmode=verify-full sslrootcert=/dev/null", "select 1").await);
    assert!(!stranger.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn at_each_limit_a_role_is_told_which() {
    let limits = RoleLimits { rows_max: Some(10), connections_max: Some(2), subscriptions_max: Some(1), ..RoleLimits::default() };
    let node = Node::start(vec![RoleConfig { limits, ..role("eve", Grants::Read) }], None, 0).await;
    let first = node.connect("eve").await;
    let many = ask(&first, "select 1 from connections a join connections b on true limit 11").await;
    assert_eq!(many, "54000 the answer has 11 rows, role \"eve\" takes 10");
    let second = node.connect("eve").await;
    let refused = node.try_connect("eve", "eve-password").await.err().unwrap();
    assert!(refused.starts_with("53300"), "{refused}");

    let follow = "copy (subscribe to region_connections) to stdout";
    let running = first.copy_out(follow).await.unwrap();
    let refused = second.copy_out(follow).await.err().unwrap();
    assert!(told(&refused).starts_with("53300"), "{}", told(&refused));
    drop(running);
    drop((first, second));
    let deadline = Instant::now() + Duration::from_secs(120);
    while node.try_connect("eve", "eve-password").await.is_err() {
        assert!(Instant::now() < deadline, "connections that have ended are not freed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_ended() {
    let node = Node::start(vec![role("eve", Grants::Read)], None, 5_000).await;
    let client = node.connect("eve").await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !client.is_closed() {
        assert!(Instant::now() < deadline, "it is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
