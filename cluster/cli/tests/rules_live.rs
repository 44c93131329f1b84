//! Rules in a running cluster of two nodes with the same config: from that config, from `weir rules load`; a recording is replayed, `alerts` is asked over SQL of both,
//! the nodes are killed and come back, a wrong file changes nothing, a dropped one takes its alerts back.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
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

/// A web server starts a shell, twice, and the shell reads the accounts; beside it somebody reads nothing special.
const RECORDING: &str = r#"{"kind":"exec","time":"2026-11-23T16:00:00Z","host":"web-7","pid":70,"process_id":"aa","ppid":7,"comm":"sh","exe":"/bin/sh","args":["sh","-c","id"],"parent_exe":"/usr/sbin/nginx","container_id":"0123456789abcdef0123","container_name":"shop","image":"reg/shop/web:1","app":"shop","uid":33,"user_name":"www","result":0,"path":"/bin/sh"}
{"kind":"exec","time":"2026-11-23T16:00:05Z","host":"web-7","pid":71,"ppid":7,"comm":"sh","exe":"/bin/sh","args":["sh","-c","cat /etc/shadow"],"parent_exe":"/usr/sbin/nginx","container_id":"0123456789abcdef0123","image":"reg/shop/web:1","app":"shop","uid":33,"result":0,"path":"/bin/sh"}
{"kind":"open","time":"2026-11-23T16:00:06Z","host":"web-7","pid":72,"ppid":71,"comm":"cat","exe":"/bin/cat","args":["cat","/etc/shadow"],"parent_exe":"/bin/sh","container_id":"0123456789abcdef0123","image":"reg/shop/web:1","app":"shop","path":"/etc/shadow","flags":0,"result":0}
{"kind":"open","time":"2026-11-23T16:00:07Z","host":"db-1","pid":9,"comm":"postgres","exe":"/usr/bin/postgres","path":"/var/lib/db/1","flags":2,"result":0}
"#;

const RULES: &str = "
- macro: spawned
  condition: evt.type in (execve, execveat) and evt.failed=false
- rule: Shell of a web server
  desc: A web server started a shell
  condition: spawned and proc.name in (sh, bash) and proc.pname=nginx
  output: shell %proc.cmdline of %proc.pname in %container.id
  priority: CRITICAL
  tags: [mitre_initial_access, T1190, mitre_execution, T1059.004]
";

const MORE: &str = "
- rule: Accounts are read
  desc: Somebody read the shadow file
  condition: evt.type in (open, openat) and evt.is_open_read=true and fd.name=/etc/shadow
  output: \"%proc.name read %fd.name\"
  priority: WARNING
";

const EXCEPTION: &str = "
- rule: Accounts are read
  exceptions:
    - name: cat
      fields: [proc.name]
      values: [[cat]]
  override:
    exceptions: append
";

async fn connect(cluster: &LocalCluster, node: usize) -> Client {
    let port = cluster.addresses[node].sql.port();
    let config = format!("host=127.0.0.1 port={port} user=weir dbname=weir");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn ask(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
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

/// Exit code, and what was said.
async fn weir(arguments: &[&str]) -> (Option<i32>, String) {
    let output = tokio::process::Command::new(WEIR).arg("rules").args(arguments).output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout) + &text(output.stderr))
}

async fn replay(cluster: &LocalCluster, setup: &Setup) {
    let target = Target {
        nodes: cluster.quic(),
        authority: setup.authority.clone(),
        tenant: TENANT.to_owned(),
        dialer: Some(Dialer::default()),
    };
    let recording = Recording::read(RECORDING.as_bytes(), "eu").unwrap();
    assert_eq!((recording.events, recording.skipped_count), (4, 0), "{:?}", recording.skipped);
    let options = ReplayOptions { as_recorded: false, region: "eu".to_owned() };
    replay::run(recording, &options, &target, runner::now_ns()).await.unwrap();
}

/// The stock Falco files, where they are at hand.
fn stock() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let found = ["../shared", "../../shared"].map(|shared| root.join(shared).join("data/falco/rules"));
    let found = found.into_iter().find(|path| path.is_dir());
    if found.is_none() {
        eprintln!("SKIPPED in part: ../shared/data/falco/rules is not there");
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_run_in_the_cluster_and_alerts_are_a_relation() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::write(&on_free_ports(2, 1), scratch.path()).unwrap();
    let (folder, more, wrong) =
        (scratch.path().join("rules.d"), scratch.path().join("more.yaml"), scratch.path().join("wrong.yaml"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("mine.yaml"), RULES).unwrap();
    std::fs::write(&more, MORE).unwrap();
    std::fs::write(&wrong, "- rule: w\n  desc: d\n  condition: evt.type=open and proc.nam=x\n  output: o\n  priority: INFO\n")
        .unwrap();
    let config = setup.node_configs[0].clone();
    for config in &setup.node_configs {
        let mut file = std::fs::OpenOptions::new().append(true).open(config).unwrap();
        writeln!(file, "[checkpoint]\nevery_ms = 2000\n[rules]\npaths = [{folder:?}]\nmatching = \"all\"").unwrap();
    }
    let at = config.to_str().unwrap().to_owned();
    let mut cluster = LocalCluster::start(Path::new(WEIR), &setup).await.unwrap();

    // The config's rules are in the chain soon after the first start.
    let deadline = Instant::now() + WITHIN;
    while !weir(&["list", "--config", &at]).await.1.contains("mine.yaml") {
        assert!(Instant::now() < deadline, "the config's rules are not in force");
    }
    let (code, said) = weir(&["load", "--config", &at, more.to_str().unwrap()]).await;
    assert!(code == Some(0) && said.contains("2 rules are in force from tick"), "{said}");
    let (code, said) = weir(&["load", "--config", &at, wrong.to_str().unwrap()]).await;
    assert!(code == Some(1) && said.contains("wrong.yaml:3") && said.contains("nothing is changed"), "{said}");
    let (code, said) = weir(&["drop", "--config", &at, "nothing.yaml"]).await;
    assert!(code == Some(1) && said.contains("no rule file is named \"nothing.yaml\""), "{said}");
    let (_, said) = weir(&["list", "--config", &at]).await;
    assert!(said.lines().count() == 2 && said.contains("more.yaml"), "{said}");

    let (client, other) = (connect(&cluster, 0).await, connect(&cluster, 1).await);
    replay(&cluster, &setup).await;
    let shell = "SELECT state, severity, tactics, techniques, host, app, summary, stages FROM alerts WHERE rule = 'Shell of a web server'";
    let told = "updated|critical|[\"initial-access\",\"execution\"]|[\"T1190\",\"T1059.004\"]|web-7|shop|shell sh -c id of nginx in \
        0123456789ab|[{\"stage\":1,\"rule\":\"Shell of a web server\",\"events\":2}]";
    until(&client, shell, told).await;
    until(
        &client,
        "SELECT severity, summary, revision FROM alerts WHERE rule = 'Accounts are read'",
        "warning|cat read /etc/shadow|1",
    )
    .await;
    assert_eq!(ask(&client, "SELECT count(*) FROM alerts").await, "2");
    assert!(ask(&client, "SHOW VIEWS").await.lines().any(|line| line == "alerts"));
    // Evidence are events of the record.
    let evidence = "SELECT count(*) FROM events AS e JOIN alerts AS a ON strpos(a.evidence, e.event_id) > 0";
    until(&client, evidence, "3").await;

    // What an exception would do is asked of the record; nothing is changed by it.
    let exception = scratch.path().join("exception.yaml");
    std::fs::write(&exception, EXCEPTION).unwrap();
    let url = format!("postgres://weir@{}/weir", cluster.addresses[0].sql);
    let (code, told) = weir(&["what-if", "--config", &at, "--url", &url, "--json", exception.to_str().unwrap()]).await;
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("0 alerts would open, 1 fall silent, 0 change"), "{told}");
    assert!(told.contains("\"change\":\"silenced\"") && told.contains("\"output\":\"cat read /etc/shadow\""), "{told}");
    let exists =
        format!("SELECT count(*) FROM events WHERE strpos('{}', event_id) > 0 AND path = '/etc/shadow'", told.replace('\'', ""));
    assert_eq!(ask(&client, &exists).await, "1", "it names its event");
    assert_eq!(ask(&client, "SELECT count(*) FROM alerts WHERE state = 'withdrawn'").await, "0");

    // Nothing of it is lost when the nodes are killed, before a checkpoint or behind one.
    let all = "SELECT * FROM alerts ORDER BY alert_id";
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
    assert_eq!(weir(&["list", "--config", &at]).await.1, said, "the same files are in force");

    // A rule that is gone takes back what it said; the other stays.
    let (code, told) = weir(&["drop", "--config", &at, "more.yaml"]).await;
    assert!(code == Some(0) && told.contains("1 rules are in force"), "{told}");
    until(&client, "SELECT state, revision FROM alerts WHERE rule = 'Accounts are read'", "withdrawn|2").await;
    assert_eq!(ask(&client, "SELECT state FROM alerts WHERE rule = 'Shell of a web server'").await, "updated");

    if let Some(stock) = stock() {
        let (code, said) = weir(&["load", "--config", &at, stock.to_str().unwrap()]).await;
        assert!(code == Some(0) && said.contains("57 rules are in force"), "{said}");
        replay(&cluster, &setup).await;
        let sensitive = "SELECT count(*) > 0 FROM alerts WHERE rule = 'Read sensitive file untrusted' AND state <> 'withdrawn'";
        until(&client, sensitive, "t").await;
    }
    cluster.stop().await;
}
