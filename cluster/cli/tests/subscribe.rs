//! Subscriptions over a cluster of two nodes: to a view, to a query, over the death of a node, while views are dropped, and by `weir sql`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use weir_loadtest::agents::Target;
use weir_loadtest::fleet::FleetOptions;
use weir_loadtest::local::setup::{Setup, TENANT};
use weir_loadtest::local::{LocalCluster, on_free_ports};
use weir_loadtest::runner;
use weir_transport::Dialer;

const WEIR: &str = env!("CARGO_BIN_EXE_weir");
/// Generous: a debug build on a busy machine.
const WITHIN: Duration = Duration::from_secs(120);
const QUERY: &str = "SELECT src_app, state, count(*) AS n FROM connections GROUP BY src_app, state";

type Rows = BTreeMap<Vec<String>, i64>;

async fn connect(cluster: &LocalCluster, node: usize) -> Client {
    connect_for_a_while(cluster, node).await.0
}

/// With what ends the connection. A client that is dropped reads on while rows come.
async fn connect_for_a_while(cluster: &LocalCluster, node: usize) -> (Client, AbortHandle) {
    let port = cluster.addresses[node].sql.port();
    let config = format!("host=127.0.0.1 port={port} user=weir dbname=weir");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
    let connection = tokio::spawn(async move { drop(connection.await) });
    (client, connection.abort_handle())
}

fn cells(message: &SimpleQueryMessage) -> Option<Vec<String>> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    Some((0..row.len()).map(|column| row.get(column).unwrap_or("NULL").to_owned()).collect())
}

async fn ask(client: &Client, sql: &str) -> Vec<Vec<String>> {
    match tokio::time::timeout(WITHIN, client.simple_query(sql)).await.unwrap_or_else(|_| panic!("{sql}: no end")) {
        Ok(messages) => messages.iter().filter_map(cells).collect(),
        Err(error) => {
            let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}")).clone();
            vec![vec![error.code().code().to_owned(), error.message().to_owned(), error.hint().unwrap_or_default().to_owned()]]
        }
    }
}

/// Takes what is told until enough ticks were compared with a SELECT, and none can be wrong. Where workers begin anew from a checkpoint that is
/// newer than what was told last, the gap is an error that says what to do: that is done.
async fn follow(teller: &Client, sql: &Client, subscribe: &str, select: &str, until: impl Fn(usize, &Rows) -> bool) -> u64 {
    let mut told = Box::pin(teller.simple_query_raw(subscribe).await.unwrap());
    let (mut rows, mut compared, mut anew) = (Rows::new(), 0, 0);
    loop {
        let message = tokio::time::timeout(WITHIN, told.next()).await.unwrap_or_else(|_| panic!("{subscribe}: silence"));
        let message = match message.unwrap() {
            Ok(message) => message,
            Err(error) => {
                let gap = error.as_db_error().filter(|told| told.code().code() == "72000");
                let cure = gap.and_then(|told| told.hint()).unwrap_or_default();
                assert!(cure.contains("subscribe anew with a snapshot") && anew < 3, "{subscribe}: {error:?}");
                anew += 1;
                rows.clear();
                told = Box::pin(teller.simple_query_raw(subscribe).await.unwrap());
                continue;
            }
        };
        let Some(row) = cells(&message) else { continue };
        if row[1] == "f" {
            let count = rows.entry(row[3..].to_vec()).or_default();
            *count += row[2].parse::<i64>().unwrap();
            rows.retain(|_, count| *count != 0);
            continue;
        }
        let mut selected = Rows::new();
        let found = ask(sql, &format!("{select} AS OF {}", row[0])).await;
        if found.first().is_some_and(|row| ["72000", "57P03"].contains(&row[0].as_str())) {
            // It took too long to ask, or the workers are being started anew.
            continue;
        }
        found.into_iter().for_each(|row| *selected.entry(row).or_default() += 1);
        assert_eq!(rows, selected, "{subscribe} at {}", row[0]);
        compared += 1;
        if until(compared, &rows) {
            return row[0].parse().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_are_told_what_changes() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::write(&on_free_ports(2, 1), scratch.path()).unwrap();
    for config in &setup.node_configs {
        let mut file = std::fs::OpenOptions::new().append(true).open(config).unwrap();
        writeln!(file, "[checkpoint]\nevery_ms = 1500\n[query]\ntime_ms_max = 120000\naway_ms_max = 60000").unwrap();
    }
    let mut cluster = LocalCluster::start(Path::new(WEIR), &setup).await.unwrap();
    let (one, two) = (connect(&cluster, 0).await, connect(&cluster, 1).await);
    assert_eq!(ask(&one, &format!("CREATE MATERIALIZED VIEW by_app AS {QUERY}")).await, [] as [Vec<String>; 0]);
    assert_eq!(ask(&two, "CREATE VIEW hosts_named AS SELECT host, region FROM hosts").await, [] as [Vec<String>; 0]);
    let target = Target {
        nodes: cluster.quic(),
        authority: setup.authority.clone(),
        tenant: TENANT.to_owned(),
        dialer: Some(Dialer::default()),
    };
    let fleet = runner::start(FleetOptions { hosts: 8, rate: 300, seed: 9, start_ns: 0 }, target).await.unwrap();
    // A view, a query, and a name for one, by both nodes.
    let a = connect(&cluster, 0).await;
    let ((b, end_b), (c, end_c)) = (connect_for_a_while(&cluster, 1).await, connect_for_a_while(&cluster, 1).await);
    let enough = |compared: usize, rows: &Rows| compared > 10 && !rows.is_empty();
    follow(&a, &one, "SUBSCRIBE by_app WITH (PROGRESS)", "SELECT * FROM by_app", enough).await;
    follow(&b, &two, &format!("SUBSCRIBE ({QUERY}) WITH (PROGRESS)"), QUERY, enough).await;
    follow(&c, &two, "SUBSCRIBE hosts_named WITH (PROGRESS)", "SELECT * FROM hosts_named", enough).await;
    let views = ask(&one, "SHOW VIEWS").await.concat();
    assert!(!views.iter().any(|name| name.starts_with("weir_subscription")), "{views:?}");
    assert_eq!(ask(&one, "SUBSCRIBE (SELECT kind FROM events)").await[0][0], "0A000");
    assert_eq!(ask(&one, "SUBSCRIBE (SELECT host, random() AS n FROM hosts)").await[0][0], "0A000");
    // What they kept goes with them.
    end_b.abort();
    end_c.abort();
    let kept = "SELECT table_name FROM information_schema.tables WHERE table_name LIKE 'weir_subscription%'";
    let deadline = Instant::now() + WITHIN;
    while !ask(&one, kept).await.is_empty() {
        assert!(Instant::now() < deadline, "views of subscriptions are left: {:?}", ask(&one, kept).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    by_the_client(&cluster);
    // The other node dies: a subscription of this one goes on, or says that there is a gap, and sums are right.
    let d = connect(&cluster, 0).await;
    let victim = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.nodes.pop().unwrap().kill().await;
    };
    let begun = Instant::now();
    let long = |compared: usize, _: &Rows| compared > 10 && begun.elapsed() > Duration::from_secs(15);
    let subscribe = "SUBSCRIBE by_app WITH (PROGRESS)";
    let (through, ()) = tokio::join!(follow(&d, &one, subscribe, "SELECT * FROM by_app", long), victim);
    assert!(through > 0);
    fleet.stop().await.ok();
    // Dropped while somebody is told of it.
    let (e, sql) = (connect(&cluster, 0).await, connect(&cluster, 0).await);
    let told = tokio::spawn(async move { ask(&e, "SUBSCRIBE by_app").await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(ask(&sql, "DROP VIEW by_app").await, [] as [Vec<String>; 0]);
    let told = told.await.unwrap();
    assert!(told[0][0] == "42P01" && told[0][1].contains("dropped") && told[0][2].contains("AS OF"), "{told:?}");
    cluster.stop().await;
}

/// `weir sql` prints rows before there is an end.
fn by_the_client(cluster: &LocalCluster) {
    let url = format!("postgres://weir@127.0.0.1:{}/weir", cluster.addresses[0].sql.port());
    let arguments = ["sql", "--url", &url, "--csv", "-c", "SUBSCRIBE TO by_app WITH (PROGRESS)"];
    let mut child = Command::new(WEIR).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let lines: Vec<String> = lines.map(Result::unwrap).take(20).collect();
    assert_eq!(lines[0], "weir_tick,weir_progressed,weir_diff,src_app,state,n");
    assert_eq!(lines.len(), 20);
    child.kill().unwrap();
    child.wait().unwrap();
}
