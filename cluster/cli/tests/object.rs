//! A cluster whose chain and logs are objects: what the workers answer is what a replay of the objects gives, and every event is there.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::time::Instant;
use weir_dataflow::handle::{At, Client, Request, Response};
use weir_loadtest::agents::Target;
use weir_loadtest::fleet::FleetOptions;
use weir_loadtest::local::setup::{Setup, TENANT};
use weir_loadtest::local::{LocalCluster, on_free_ports};
use weir_loadtest::runner;
use weir_transport::Dialer;

const WEIR: &str = env!("CARGO_BIN_EXE_weir");
/// Generous: a debug build on a busy machine.
const WITHIN: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn with_logs_as_objects_a_replay_gives_what_is_answered() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::write(&on_free_ports(2, 1), scratch.path()).unwrap();
    for config in &setup.node_configs {
        let mut file = std::fs::OpenOptions::new().append(true).open(config).unwrap();
        writeln!(file, "[log]\nlevel = \"object\"").unwrap();
    }
    let cluster = LocalCluster::start(Path::new(WEIR), &setup).await.unwrap();
    let target = Target {
        nodes: cluster.quic(),
        authority: setup.authority.clone(),
        tenant: TENANT.to_owned(),
        dialer: Some(Dialer::default()),
    };
    let fleet = runner::start(FleetOptions { hosts: 8, rate: 400, seed: 5, start_ns: 0 }, target).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let told = fleet.stop().await.unwrap().events;

    let deadline = Instant::now() + WITHIN;
    let url = format!("postgres://weir@{}/weir", cluster.addresses[0].sql);
    loop {
        let counted = sql(&url, "select coalesce(sum(events), 0) from agents where agent like 'sim-%'");
        if counted == told {
            break;
        }
        assert!(Instant::now() < deadline, "{counted} of {told} acknowledged events were counted");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let socket = scratch.path().join("node-1/engine.sock");
    let answered = tokio::task::spawn_blocking(move || digests(&socket)).await.unwrap();
    let shared = scratch.path().join("shared");
    assert!(shared.join("object/chain").is_dir() && !shared.join("chain").exists(), "there are objects and no journals");
    cluster.stop().await;
    let tick = answered.lines().next().unwrap().strip_prefix("tick ").unwrap().to_owned();
    let config = &setup.node_configs[1];
    let replayed = tokio::task::spawn_blocking({
        let config = config.clone();
        move || run(&["node", "--replay-to", &tick, "--config", config.to_str().unwrap()])
    });
    assert_eq!(replayed.await.unwrap(), answered);
}

fn sql(url: &str, statement: &str) -> u64 {
    let csv = run(&["sql", "--csv", "--url", url, "-c", statement]);
    csv.lines().nth(1).and_then(|line| line.parse().ok()).unwrap_or(0)
}

fn run(arguments: &[&str]) -> String {
    let output = Command::new(WEIR).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What the workers hold, as a replay prints it.
fn digests(socket: &Path) -> String {
    let mut client = Client::connect(socket).unwrap();
    match client.ask(&Request::Digest { id: 1, at: At::Latest }).unwrap().into_iter().next() {
        Some(Response::Digests { tick, views, .. }) => {
            let lines = views.iter().map(|view| format!("{} {} {} rows\n", view.relation, view.hash, view.rows));
            format!("tick {tick}\n{}", lines.collect::<String>())
        }
        other => panic!("{other:?}"),
    }
}
