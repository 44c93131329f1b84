//! SQL and HTTP over an engine with a scripted fleet: what a client asks is what it gets.

#![allow(clippy::unwrap_used)]

mod tools;
#[path = "../../../dataflow/tests/world/mod.rs"]
mod world;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use weir_config::QueryLimits;
use weir_dataflow::{EngineOptions, run};
use weir_query::{Running, ServeOptions, serve};
use world::World;

struct Node {
    world: World,
    running: Running,
    dir: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Node {
    async fn start(name: &str, limits: QueryLimits) -> Self {
        let world = World::new(23, 50);
        let dir = std::env::temp_dir().join(format!("weir-query-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("engine.sock");
        let options = EngineOptions::alone(2, socket.clone());
        let feeds = world.feeds(2);
        std::thread::spawn(move || run(options, feeds));
        let any = "127.0.0.1:0".parse().unwrap();
        let options = ServeOptions {
            node: "n1".into(),
            sql: any,
            http: any,
            socket,
            limits,
            access: Default::default(),
            record: None,
            views: None,
            sinks: None,
        };
        let running = serve(options, Arc::new(|| "weir_up 1\n".to_owned())).await.unwrap();
        let node = Self { world, running, dir };
        let sql = node.connect().await;
        let end = node.world.end().to_string();
        while sql.simple_query("show weir.tick").await.map(|rows| cells(&rows)).unwrap_or_default() != [[Some(end.clone())]] {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        node
    }

    async fn connect(&self) -> Client {
        let port = self.running.sql_addr().port();
        let config = format!("host=127.0.0.1 port={port} user=weir dbname=weir");
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    async fn http(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.running.http_addr()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

fn cells(messages: &[SimpleQueryMessage]) -> Vec<Vec<Option<String>>> {
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect()),
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

async fn ask(client: &Client, sql: &str) -> String {
    match client.simple_query(sql).await {
        Ok(messages) => {
            let text = |row: Vec<Option<String>>| {
                row.into_iter().map(|cell| cell.unwrap_or_else(|| "NULL".into())).collect::<Vec<_>>().join("|")
            };
            cells(&messages).into_iter().map(text).collect::<Vec<_>>().join("\n")
        }
        Err(error) => {
            let error = error.as_db_error().expect("an answer of the server").clone();
            format!("{} {}", error.code().code(), error.message())
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_answers_from_one_tick() {
    let node = Node::start("sql", QueryLimits::default()).await;
    let sql = node.connect().await;
    let world = &node.world;
    let open = world.begun - world.failed - world.closed;
    for (question, expected) in [
        ("select count(*) from connections".to_owned(), world.begun.to_string()),
        ("select count(*) from connections where state = 'open'".to_owned(), open.to_string()),
        ("select sum(open), sum(total), sum(failed) from region_connections".to_owned(), format!("{open}|{}|{}", world.begun, world.failed)),
        ("select host from hosts where simulated order by host limit 2".to_owned(), "host-0\nhost-1".to_owned()),
        ("select simulated, ended from hosts limit 1".to_owned(), "t|NULL".to_owned()),
        ("select rank from top_talkers order by rank limit 3".to_owned(), "1\n2\n3".to_owned()),
        ("select count(distinct app) from utilization".to_owned(), "3".to_owned()),
        // Two relations at one tick: the join is exact.
        ("select count(*) from connections c join hosts h on c.src_host = h.host".to_owned(), world.begun.to_string()),
        ("with a as (select src_region r, total from region_connections) select (select sum(total) from a) - sum(total) from service_map".to_owned(), "0".to_owned()),
        ("select count(*) from events where kind = 'host_start'".to_owned(), "6".to_owned()),
        ("select to_timestamp_millis(1500)::timestamptz".to_owned(), "1970-01-01 00:00:01.5+00".to_owned()),
        ("select current_database(), current_schema(), current_user".to_owned(), "weir|public|weir".to_owned()),
        ("show columns from top_talkers".to_owned(), "app|text\ncontainer_id|text\nhost|text\nregion|text\nbytes|bigint\nrank|bigint".to_owned()),
        ("set application_name = 'x'; begin; select 1; commit".to_owned(), "1".to_owned()),
        ("select 1 where false".to_owned(), String::new()),
        ("select now() > timestamptz '2024-01-01 00:00:00+00', now() = now(), count(*) from hosts".to_owned(), "t|t|6".to_owned()),
        ("select '10.1.2.3' <<= '10.0.0.0/8', '10.0.0.0/8'::inet << '10.0.0.0/8'::cidr, host('10.0.0.1/8'), 1 << 3".to_owned(), "t|f|10.0.0.1|8".to_owned()),
        ("select count(*) from connections where dst_ip <<= '0.0.0.0/0' or dst_ip <<= '::/0'".to_owned(), world.begun.to_string()),
        ("select '10.0.0' <<= '10.0.0.0/8'".to_owned(), "22P02 invalid input syntax for type inet: \"10.0.0\"; an address is like 10.0.0.1, 10.0.0.0/8 or 2001:db8::/32".to_owned()),
        ("select 12.50::numeric(10,2), make_array(1, null, 3), make_array('a b', 'c')".to_owned(), "12.50|{1,NULL,3}|{\"a b\",c}".to_owned()),
    ] {
        assert_eq!(ask(&sql, &question).await, expected, "{question}");
    }
    assert!(ask(&sql, "show create view service_map").await.contains("CREATE VIEW service_map AS"));
    assert!(ask(&sql, "explain select * from hosts").await.contains("logical_plan"));
    assert!(ask(&sql, "select version()").await.starts_with("PostgreSQL 15"));
    // Beside the workers' relations there is what this node computes.
    assert_eq!(ask(&sql, "show tables").await.lines().count(), weir_dataflow::relations().len() + 2);
    let heard =
        "select what, count(*), count(distinct heard_through), count(lag_ms), min(agents) from freshness group by 1 order by 1";
    let standing = weir_dataflow::relations().iter().filter(|info| info.standing).count();
    let told = ask(&sql, heard).await;
    assert!(told.starts_with("agent|6|") && told.contains("\nregion|"), "{told}");
    assert!(told.ends_with(&format!("relation|{standing}|1|{standing}|NULL")), "{told}");
    assert!(ask(&sql, "show views").await.lines().all(|name| name != "events"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_statements_are_told_with_their_sqlstate() {
    let node = Node::start("wrong", QueryLimits { rows_max: 20, ..QueryLimits::default() }).await;
    let sql = node.connect().await;
    for (statement, expected) in [
        ("select * from nowhere", "42P01 relation \"nowhere\" does not exist"),
        ("select nothing from hosts", "42703 column \"nothing\" does not exist"),
        ("selec 1", "42601 syntax error"),
        ("select frobnicate(1)", "42883"),
        ("drop table events", "0A000 a change of views or tables on a server without a chain is not supported"),
        ("insert into hosts (host) values ('x')", "42809 cannot change \"hosts\": it is not a table"),
        ("subscribe to events", "0A000 SUBSCRIBE to \"events\", whose rows the workers do not keep, is not supported"),
        ("select 1/0", "22012"),
        ("select 'x'::bigint", "22P02"),
        ("select count(host) from events", "53400"),
        ("show nothing", "42704"),
    ] {
        let told = ask(&sql, statement).await;
        assert!(told.starts_with(expected), "{statement}: {told}");
    }
    // Rows without columns are only counted, and a LIMIT reads no more than it needs.
    assert!(ask(&sql, "select count(*) from events").await.parse::<usize>().unwrap() > 20);
    assert_eq!(ask(&sql, "select kind from events limit 3").await.lines().count(), 3);
    // The connection goes on, and a query that takes too long is ended.
    assert_eq!(ask(&sql, "select 1").await, "1");
    let port = node.running.sql_addr().port();
    for (user, database, code) in [("root", "weir", "28000"), ("weir", "other", "3D000")] {
        let config = format!("host=127.0.0.1 port={port} user={user} dbname={database}");
        let refused = tokio_postgres::connect(&config, NoTls).await.err().unwrap();
        assert_eq!(refused.code().unwrap().code(), code);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_statements_take_parameters_and_answer_in_binary() {
    let node = Node::start("prepared", QueryLimits::default()).await;
    let sql = node.connect().await;
    let rows = sql
        .query(
            "select src_region, total, failed > 0 from region_connections where src_region = $1 order by total",
            &[&"eu-west-1"],
        )
        .await
        .unwrap();
    assert!(!rows.is_empty());
    let total: i64 = rows.iter().map(|row| row.get::<_, i64>(1)).sum();
    let expected = ask(&sql, "select sum(total) from region_connections where src_region = 'eu-west-1'").await;
    assert_eq!(total.to_string(), expected);
    assert!(rows.iter().all(|row| row.get::<_, &str>(0) == "eu-west-1"));
    let statement = sql.prepare("select cpu_ms_per_s, $1::bigint + 1 from utilization limit 1").await.unwrap();
    for number in [1_i64, 41] {
        let row = sql.query_one(&statement, &[&number]).await.unwrap();
        assert!(row.get::<_, f64>(0) > 0.0);
        assert_eq!(row.get::<_, i64>(1), number + 1);
    }
    assert!(sql.query("select 1 from nowhere", &[]).await.is_err());
    assert_eq!(sql.query_one("select 2::bigint", &[]).await.unwrap().get::<_, i64>(0), 2);
}

/// The tool that people use, where it is installed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_shows_rows() {
    if std::process::Command::new("psql").arg("--version").output().is_err() {
        return;
    }
    let node = Node::start("psql", QueryLimits::default()).await;
    let port = node.running.sql_addr().port().to_string();
    let psql = async |arguments: &[&str]| {
        let place = ["-X", "-h", "127.0.0.1", "-p", &port, "-U", "weir", "weir", "-v", "ON_ERROR_STOP=1"];
        let output = tokio::process::Command::new("psql").args(place).args(arguments).output().await.unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (fine, table, told) = psql(&["-c", "select host, simulated, first_seen from hosts order by 1 limit 1"]).await;
    assert!(fine && table.contains("host-0 | t         | 2026-11-18") && table.contains("(1 row)"), "{table} {told}");
    let (fine, rows, told) = psql(&["-A", "-t", "-c", "show weir.tick", "-c", "\\q"]).await;
    assert!(fine && rows.trim() == node.world.end().to_string(), "{rows} {told}");
    let (fine, _, told) = psql(&["-c", "select * from nowhere"]).await;
    assert!(!fine && told.contains("does not exist") && told.contains("HINT:"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_answers_in_json() {
    let node = Node::start("http", QueryLimits::default()).await;
    let (status, body) = node.http("/v1/views/hosts?limit=2").await;
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &json["relation"], json["rows"].as_array().unwrap().len()), (200, &"hosts".into(), 2));
    assert_eq!(json["tick"], node.world.end());
    assert_eq!(json["columns"][4]["name"], "host");
    assert_eq!(json["completeness"]["late_events"], 0);
    let (status, body) = node.http("/v1/views/nowhere").await;
    assert!(status == 404 && body.contains("region_connections"), "{body}");
    let (status, body) = node.http("/v1/query?sql=select%20count(*)%20n%20from%20hosts").await;
    assert!(status == 200 && body.contains("\"rows\":[[6]]"), "{body}");
    assert_eq!(node.http("/v1/query?sql=selec").await.0, 400);
    assert_eq!(node.http("/nothing").await.0, 404);
    assert_eq!(node.http("/metrics").await, (200, "weir_up 1\n".to_owned()));
    let (status, body) = node.http("/healthz").await;
    assert!(status == 200 && body.contains("\"healthy\":true"), "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_workers_questions_fail_and_health_says_so() {
    let dir = std::env::temp_dir().join(format!("weir-query-{}-away", std::process::id()));
    let any = "127.0.0.1:0".parse().unwrap();
    let options = ServeOptions {
        node: "n1".into(),
        sql: any,
        http: any,
        socket: dir.join("none.sock"),
        limits: QueryLimits::default(),
        record: None,
        access: Default::default(),
        views: None,
        sinks: None,
    };
    let node = Node { world: World::default(), running: serve(options, Arc::new(String::new)).await.unwrap(), dir };
    let sql = node.connect().await;
    assert_eq!(ask(&sql, "select 1").await, "1");
    assert!(ask(&sql, "select * from hosts").await.starts_with("57P03"));
    let (status, body) = node.http("/healthz").await;
    assert!(status == 503 && body.contains("\"healthy\":false"), "{body}");
}
