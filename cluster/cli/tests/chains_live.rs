//! Sequence rules over the SQL port of a cluster of two nodes: made, read as a relation and as alerts while a recording is replayed, kept when the nodes are
//! killed, replaced, dropped, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use weir_loadtest::agents::Target;
use weir_loadtest::local::setup::{Setup, TENANT};
use weir_loadtest::local::{LocalCluster, on_free_ports};
use weir_loadtest::replay::{self, Recording, ReplayOptions};
use weir_loadtest::runner;
use weir_transport::Dialer;

const WEIR: &str = env!("CARGO_BIN_EXE_weir");
/// Generous: a debug build on a busy machine.
const WITHIN: Duration = Duration::from_secs(120);

/// On one host a file is written, run and calls out; on the other it is deleted before it calls out.
const RECORDING: &str = r#"{"kind":"write","time":"2026-11-23T16:00:00Z","host":"web-7","pid":70,"comm":"sh","exe":"/bin/sh","path":"/tmp/x"}
{"kind":"exec","time":"2026-11-23T16:00:01Z","host":"web-7","pid":71,"comm":"x","exe":"/tmp/x","path":"/tmp/x","result":0}
{"kind":"connect","time":"2026-11-23T16:00:02Z","host":"web-7","pid":71,"comm":"x","exe":"/tmp/x","dst_ip":"198.51.100.7","dst_port":443,"direction":"out","result":0}
{"kind":"write","time":"2026-11-23T16:00:00Z","host":"db-1","pid":80,"comm":"sh","exe":"/bin/sh","path":"/tmp/y"}
{"kind":"exec","time":"2026-11-23T16:00:01Z","host":"db-1","pid":81,"comm":"y","exe":"/tmp/y","path":"/tmp/y","result":0}
{"kind":"unlink","time":"2026-11-23T16:00:02Z","host":"db-1","pid":81,"comm":"y","exe":"/tmp/y","path":"/tmp/y"}
{"kind":"connect","time":"2026-11-23T16:00:03Z","host":"db-1","pid":81,"comm":"y","exe":"/tmp/y","dst_ip":"198.51.100.7","dst_port":443,"direction":"out","result":0}
"#;

const RULE: &str = "RULE dropped_and_run AS SEQUENCE BY host WITH MAXSPAN INTERVAL '5 minutes' SEVERITY critical ATTACK 'T1059.004', 'attack.execution'
  [kind = 'write' AND path LIKE '/tmp/%'] AS dropped
  [kind = 'exec' AND path LIKE '/tmp/%'] AS executed
  ![kind = 'unlink']
  [kind = 'connect' AND direction = 'out'] AS connected";

async fn connect(cluster: &LocalCluster, node: usize) -> Client {
    let port = cluster.addresses[node].sql.port();
    let config = format!("host=127.0.0.1 port={port} user=weir dbname=weir");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Rows, or the error.
async fn ask(client: &Client, sql: &str) -> String {
    let messages = match client.simple_query(sql).await {
        Ok(messages) => messages,
        Err(failed) => {
            let told = failed.as_db_error().unwrap_or_else(|| panic!("{sql}: {failed}"));
            return format!("{} {}", told.code().code(), told.message());
        }
    };
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|column| row.get(column).unwrap_or("NULL").to_owned()).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    messages.iter().filter_map(row).collect::<Vec<_>>().join("\n")
}

async fn until(client: &Client, sql: &str, expected: &str) {
    let deadline = Instant::now() + WITHIN;
    loop {
        let found = ask(client, sql).await;
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{sql}: {found}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn replay(cluster: &LocalCluster, setup: &Setup) {
    let target = Target {
        nodes: cluster.quic(),
        authority: setup.authority.clone(),
        tenant: TENANT.to_owned(),
        dialer: Some(Dialer::default()),
    };
    let recording = Recording::read(RECORDING.as_bytes(), "eu").unwrap();
    assert_eq!((recording.events, recording.skipped_count), (7, 0), "{:?}", recording.skipped);
    let options = ReplayOptions { as_recorded: false, region: "eu".to_owned() };
    replay::run(recording, &options, &target, runner::now_ns()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_events_is_a_row_and_an_alert() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::write(&on_free_ports(2, 1), scratch.path()).unwrap();
    for config in &setup.node_configs {
        let mut file = std::fs::OpenOptions::new().append(true).open(config).unwrap();
        writeln!(file, "[checkpoint]\nevery_ms = 2000").unwrap();
    }
    let mut cluster = LocalCluster::start(Path::new(WEIR), &setup).await.unwrap();
    let (client, other) = (connect(&cluster, 0).await, connect(&cluster, 1).await);
    wrong_statements(&client).await;
    assert_eq!(ask(&client, &format!("CREATE {RULE}")).await, "");
    assert_eq!(ask(&client, &format!("CREATE {RULE}")).await, "42P07 relation \"dropped_and_run\" already exists");
    assert_eq!(ask(&client, "SHOW RULES").await, format!("dropped_and_run|CREATE {RULE}"));
    let view = "CREATE MATERIALIZED VIEW by_host AS SELECT host, count(*) AS n FROM dropped_and_run GROUP BY host";
    assert_eq!(ask(&client, view).await, "");

    replay(&cluster, &setup).await;
    until(&client, "SELECT host, state FROM dropped_and_run", "web-7|provisional").await;
    let told = "web-7|critical|[\"execution\"]|[\"T1059.004\"]|open|[\"web-7\"]|[\"eu\"]|dropped_and_run: host=web-7, dropped on web-7, \
        executed on web-7, connected on web-7";
    let alert = "SELECT host, severity, tactics, techniques, state, hosts, regions, summary FROM alerts";
    until(&client, alert, told).await;
    until(&client, "SELECT host, n FROM by_host", "web-7|1").await;
    // Evidence are events of the record, and the relation names the alert.
    until(&client, "SELECT count(*) FROM events AS e JOIN alerts AS a ON strpos(a.evidence, e.event_id) > 0", "3").await;
    let joined = "SELECT e.kind FROM dropped_and_run AS r JOIN alerts AS a ON r.alert_id = a.alert_id \
        JOIN events AS e ON e.event_id = r.connected_event_id";
    until(&client, joined, "connect").await;

    // Nothing of it is lost when the nodes are killed, before a checkpoint or behind one.
    let all = "SELECT * FROM dropped_and_run";
    let before = ask(&client, all).await;
    until(&other, all, &before).await;
    for pause in [0, 5] {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        for node in cluster.nodes.drain(..) {
            node.kill().await;
        }
        cluster = LocalCluster::start(Path::new(WEIR), &setup).await.unwrap();
        for node in 0..2 {
            until(&connect(&cluster, node).await, all, &before).await;
        }
    }
    let client = connect(&cluster, 1).await;
    until(&client, "SELECT host, n FROM by_host", "web-7|1").await;

    // A view stands on it; without the view it is replaced, and begins anew.
    let replace = format!("CREATE OR REPLACE {}", RULE.replace("  ![kind = 'unlink']\n", ""));
    assert_eq!(
        ask(&client, &replace).await,
        "2BP01 cannot replace rule \"dropped_and_run\" because view \"by_host\" depends on it"
    );
    assert_eq!(
        ask(&client, "DROP RULE dropped_and_run").await,
        "2BP01 cannot drop rule \"dropped_and_run\" because view \"by_host\" depends on it"
    );
    assert_eq!(ask(&client, "DROP VIEW dropped_and_run").await, "42809 \"dropped_and_run\" is not a view");
    assert_eq!(ask(&client, "DROP VIEW by_host").await, "");
    assert_eq!(ask(&client, &replace).await, "");
    until(&client, "SELECT state, revision FROM alerts", "withdrawn|2").await;
    assert_eq!(ask(&client, all).await, "");
    replay(&cluster, &setup).await;
    until(&client, "SELECT host FROM dropped_and_run ORDER BY host", "db-1\nweb-7").await;
    assert_eq!(ask(&client, "DROP RULE dropped_and_run").await, "");
    assert_eq!(ask(&client, all).await, "42P01 relation \"dropped_and_run\" does not exist");
    until(&client, "SELECT count(*) FROM alerts WHERE state = 'withdrawn'", "3").await;
    for node in cluster.nodes.drain(..) {
        node.kill().await;
    }
}

async fn wrong_statements(client: &Client) {
    let with = "AS SEQUENCE BY host WITH MAXSPAN INTERVAL '1 minute'";
    for (sql, expected) in [
        (format!("CREATE RULE r {with} MAXSKEW INTERVAL '1 second' [pid = 1] [pid = 2]"), "0A000 MAXSKEW"),
        (format!("CREATE RULE r {with} [nothing = 1] [pid = 2]"), "42703"),
        (format!("CREATE RULE hosts {with} [pid = 1] [pid = 2]"), "42P07 relation \"hosts\" already exists"),
        ("DROP RULE r".to_owned(), "42P01 rule \"r\" does not exist"),
        ("DROP RULE IF EXISTS r".to_owned(), ""),
        ("SHOW RULES".to_owned(), ""),
    ] {
        let told = ask(client, &sql).await;
        assert!(told.starts_with(expected) && (!expected.is_empty() || told.is_empty()), "{sql}: {told}");
    }
}
