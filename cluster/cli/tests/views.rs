//! Views that people make, over the SQL port of a cluster of two nodes: before the data and after it, on both nodes, after a restart, dropped.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

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
const WITHIN: Duration = Duration::from_secs(90);

/// Each kept view and its SELECT.
const VIEWS: [(&str, &str); 7] = [
    ("hosts_by_region", "SELECT region, count(*) AS hosts FROM hosts GROUP BY region"),
    ("calls", "SELECT src_app, dst_app, sum(total) AS total, max(last_seen) AS last FROM service_map GROUP BY src_app, dst_app"),
    ("busy_calls", "SELECT src_app, total FROM calls WHERE total > 1"),
    (
        "quiet_hosts",
        "SELECT host FROM hosts AS h WHERE host IS NOT NULL AND NOT EXISTS (SELECT 1 FROM busy_calls AS c WHERE c.src_app = h.host)",
    ),
    ("ranked", "SELECT region, host, rank() OVER (PARTITION BY region ORDER BY host) AS place FROM hosts"),
    ("regions", "SELECT region, string_agg(host, ',' ORDER BY host) AS hosts, count(*) AS n FROM hosts GROUP BY ROLLUP (region)"),
    ("placed", "SELECT c.connection_id, h.region FROM named AS c JOIN hosts AS h ON c.src_host = h.host"),
];

async fn connect(cluster: &LocalCluster, node: usize) -> Client {
    let port = cluster.addresses[node].sql.port();
    let config = format!("host=127.0.0.1 port={port} user=weir dbname=weir");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn ask(client: &Client, sql: &str) -> String {
    match client.simple_query(sql).await {
        Ok(messages) => {
            let row = |message: &SimpleQueryMessage| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|column| row.get(column).unwrap_or("NULL").to_owned()).collect::<Vec<_>>().join("|"))
                }
                _ => None,
            };
            messages.iter().filter_map(row).collect::<Vec<_>>().join("\n")
        }
        Err(error) => match error.as_db_error() {
            Some(told) => format!("{} {}", told.code().code(), told.message()),
            None => panic!("{sql}: {error}"),
        },
    }
}

/// A view's rows and those of its SELECT are read at one tick, so they are the same at any moment.
async fn check(client: &Client, (name, select): (&str, &str)) -> u64 {
    let more = |one: &str, other: &str| format!("SELECT * FROM ({one}) AS a EXCEPT ALL SELECT * FROM ({other}) AS b");
    let kept = format!("SELECT * FROM {name}");
    let apart = format!("SELECT count(*) FROM ({}) AS x", more(&kept, select));
    assert_eq!(ask(client, &apart).await, "0", "{name} has rows too many");
    let apart = format!("SELECT count(*) FROM ({}) AS x", more(select, &kept));
    assert_eq!(ask(client, &apart).await, "0", "{name} lacks rows");
    let both = format!("SELECT (SELECT count(*) FROM {name}) AS a, (SELECT count(*) FROM ({select}) AS x) AS b");
    let counted = ask(client, &both).await;
    let (one, other) = counted.split_once('|').unwrap_or_else(|| panic!("{name}: {counted}"));
    assert_eq!(one, other, "{name}");
    one.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_are_made_kept_and_dropped() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::write(&on_free_ports(2, 1), scratch.path()).unwrap();
    for config in &setup.node_configs {
        let mut file = std::fs::OpenOptions::new().append(true).open(config).unwrap();
        writeln!(file, "[checkpoint]\nevery_ms = 1500\n[query]\nviews_max = 9\nview_sql_bytes_max = 400").unwrap();
    }
    let cluster = LocalCluster::start(Path::new(WEIR), &setup).await.unwrap();
    let (one, two) = (connect(&cluster, 0).await, connect(&cluster, 1).await);
    // Before there is any data.
    for (name, select) in &VIEWS[..6] {
        assert_eq!(ask(&one, &format!("CREATE MATERIALIZED VIEW {name} AS {select}")).await, "");
        // ROLLUP has a total of nothing, too, as in PostgreSQL.
        let rows = if *name == "regions" { "1" } else { "0" };
        assert_eq!(ask(&one, &format!("SELECT count(*) FROM {name}")).await, rows, "{name} is read as soon as it is made");
    }
    wrong_statements(&one).await;
    let target = Target {
        nodes: cluster.quic(),
        authority: setup.authority.clone(),
        tenant: TENANT.to_owned(),
        dialer: Some(Dialer::default()),
    };
    let fleet = runner::start(FleetOptions { hosts: 8, rate: 400, seed: 5, start_ns: 0 }, target).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    // After data, while more comes, by the other node.
    assert_eq!(ask(&two, "CREATE VIEW named AS SELECT connection_id, src_host FROM connections").await, "");
    assert_eq!(ask(&two, &format!("create materialized view PLACED as {}", VIEWS[6].1)).await, "");
    for view in VIEWS {
        check(&two, view).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    fleet.stop().await.unwrap();
    let deadline = Instant::now() + WITHIN;
    while ask(&one, "SELECT coalesce(sum(hosts), 0) FROM hosts_by_region").await != "8" {
        assert!(Instant::now() < deadline, "not all hosts are there");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // A machine that is busy may be behind what was acknowledged.
    let totals = "SELECT sum(total) FROM calls";
    let mut known = (ask(&one, "SHOW weir.tick").await, ask(&one, totals).await);
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = (ask(&one, "SHOW weir.tick").await, ask(&one, totals).await);
        if now.0 != known.0 && now.1 == known.1 {
            break;
        }
        assert!(Instant::now() < deadline, "the totals do not come to rest");
        known = now;
    }
    for node in [&one, &two] {
        for view in VIEWS {
            assert!(check(node, view).await > 0, "{} is empty", view.0);
        }
    }
    let before = ask(&one, "SELECT src_app, dst_app, total FROM calls ORDER BY 1, 2").await;
    let shown = ask(&two, "SHOW VIEWS").await;
    assert!(["calls", "named", "placed"].iter().all(|name| shown.lines().any(|line| line == *name)), "{shown}");
    assert!(ask(&two, "SHOW CREATE VIEW named").await.contains("CREATE VIEW named AS\nSELECT connection_id"));
    // A checkpoint with the views in it, and then everything anew.
    tokio::time::sleep(Duration::from_secs(4)).await;
    drop((one, two));
    cluster.stop().await;
    let cluster = LocalCluster::start(Path::new(WEIR), &setup).await.unwrap();
    let (one, two) = (connect(&cluster, 0).await, connect(&cluster, 1).await);
    let logs = std::fs::read_dir(setup.logs()).unwrap().map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    assert!(logs.into_iter().any(|log| log.contains("begins from a checkpoint")), "nobody began from a checkpoint");
    for node in [&two, &one] {
        for view in VIEWS {
            assert!(check(node, view).await > 0, "{} is empty", view.0);
        }
    }
    assert_eq!(ask(&one, "SELECT src_app, dst_app, total FROM calls ORDER BY 1, 2").await, before);
    assert!(ask(&one, "DROP VIEW calls").await.starts_with("2BP01"));
    assert_eq!(ask(&one, "DROP MATERIALIZED VIEW calls CASCADE").await, "");
    assert!(ask(&one, "SELECT * FROM busy_calls").await.starts_with("42P01"));
    assert_eq!(ask(&two, "DROP VIEW IF EXISTS placed, named, nothing").await, "");
    let left = ask(&two, "SHOW VIEWS").await;
    assert!(left.lines().any(|line| line == "hosts_by_region") && !left.contains("calls") && !left.contains("named"), "{left}");
    check(&two, VIEWS[0]).await;
    // The name is free again.
    assert_eq!(ask(&two, &format!("CREATE MATERIALIZED VIEW calls AS {}", VIEWS[1].1)).await, "");
    check(&two, VIEWS[1]).await;
    cluster.stop().await;
}

async fn wrong_statements(client: &Client) {
    let long = format!("CREATE VIEW long AS SELECT host FROM hosts WHERE host <> '{}'", "x".repeat(400));
    for (sql, expected) in [
        ("CREATE MATERIALIZED VIEW calls AS SELECT host FROM hosts", "42P07 relation \"calls\" already exists"),
        ("CREATE VIEW hosts AS SELECT host FROM agents", "42P07 relation \"hosts\" already exists"),
        ("CREATE VIEW containers AS SELECT host FROM agents", "42P07"),
        ("CREATE MATERIALIZED VIEW v AS SELECT host FROM nowhere", "42P01 relation \"nowhere\" does not exist"),
        ("CREATE MATERIALIZED VIEW v AS SELECT nothing FROM hosts", "42703 column \"nothing\" does not exist"),
        ("CREATE MATERIALIZED VIEW v AS SELECT host AS a, region AS a FROM hosts", "42"),
        ("CREATE MATERIALIZED VIEW v AS SELECT kind FROM events", "0A000 a materialized view over \"events\""),
        ("CREATE MATERIALIZED VIEW v AS SELECT host FROM containers", "0A000 a materialized view over \"containers\""),
        ("CREATE MATERIALIZED VIEW v AS SELECT host, random() AS n FROM hosts", "0A000 random()"),
        ("CREATE MATERIALIZED VIEW v AS SELECT host, now() AS n FROM hosts", "0A000 now()"),
        (
            "CREATE MATERIALIZED VIEW v AS SELECT host, (SELECT src_host FROM connections) AS n FROM hosts",
            "0A000 a scalar subquery",
        ),
        ("CREATE MATERIALIZED VIEW v AS SELECT 1 AS one", "0A000 a SELECT without FROM is not supported"),
        ("CREATE MATERIALIZED VIEW v (a) AS SELECT host FROM hosts", "0A000 a list of columns"),
        ("CREATE OR REPLACE VIEW calls AS SELECT host FROM hosts", "0A000 CREATE OR REPLACE VIEW"),
        ("CREATE MATERIALIZED VIEW v AS SELEC host FROM hosts", "42601"),
        ("CREATE VIEW other.v AS SELECT host FROM hosts", "3F000"),
        (&long, "54000"),
        ("DROP VIEW nothing", "42P01 view \"nothing\" does not exist"),
        ("DROP VIEW hosts", "0A000"),
        ("DROP VIEW calls RESTRICT", "2BP01 cannot drop view \"calls\" because view \"busy_calls\" depends on it"),
        ("CREATE MATERIALIZED VIEW IF NOT EXISTS calls AS SELECT host FROM hosts", ""),
        ("DROP VIEW IF EXISTS nothing", ""),
    ] {
        let told = ask(client, sql).await;
        assert!(if expected.is_empty() { told.is_empty() } else { told.starts_with(expected) }, "{sql}: {told}");
    }
    for number in 0..3 {
        assert_eq!(ask(client, &format!("CREATE VIEW more_{number} AS SELECT host FROM hosts")).await, "");
    }
    assert!(ask(client, "CREATE VIEW one_more AS SELECT host FROM hosts").await.starts_with("54000"));
    assert_eq!(ask(client, "DROP VIEW more_0, more_1, more_2").await, "");
}
