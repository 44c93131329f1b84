//! The whole system as a stranger starts it: three nodes, this host's agent, a simulated fleet; asked over SQL and HTTP, ended by
//! a signal, and rebuilt from its log by one node or three.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const WEIR: &str = env!("CARGO_BIN_EXE_weir");
/// Generous: a debug build on a busy machine.
const WITHIN: Duration = Duration::from_secs(240);

/// What the rules say of the intrusion that the fleet plays.
const INTRUSION: [&str; 10] = [
    "Account in use asked below a web server",
    "Everything allowed on a program in a scratch directory",
    "File written into a scratch directory and run",
    "Password hashes read by an unusual program",
    "Program below a web server run from a scratch directory",
    "Program fetched from a bare address into a scratch directory",
    "Shell started by a web server",
    "download_and_run",
    "dropped_made_executable_run_calls_out",
    "web_shell_calls_out",
];

struct Demo {
    child: Child,
    sql: String,
    http: String,
    quic: String,
}

impl Demo {
    fn start(data: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(WEIR)
            .args(["demo", "--no-ebpf", "--data"])
            .arg(data)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.find_map(|line| line.ok().filter(|line| line.starts_with("ready "))).expect("the demo becomes ready");
        // Its tables are read on, so that it never waits for us.
        std::thread::spawn(move || lines.for_each(drop));
        let address = |key: &str| ready.split_whitespace().find_map(|word| word.strip_prefix(key)).unwrap().to_owned();
        Self { child, sql: address("sql="), http: address("http="), quic: address("quic=") }
    }

    fn sql(&self, statement: &str) -> String {
        let output = self.weir_sql(statement);
        assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn weir_sql(&self, statement: &str) -> Output {
        let url = format!("postgres://weir@{}/weir", self.sql);
        Command::new(WEIR).args(["sql", "--csv", "--url", &url, "-c", statement]).output().unwrap()
    }

    /// Asks until the first cell satisfies `enough`.
    fn sql_until(&self, statement: &str, enough: impl Fn(i64) -> bool) -> i64 {
        let deadline = Instant::now() + WITHIN;
        loop {
            let csv = self.sql(statement);
            let value = csv.lines().nth(1).and_then(|line| line.parse().ok()).unwrap_or(0);
            if enough(value) {
                return value;
            }
            assert!(Instant::now() < deadline, "{statement} stays at {value}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn http(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    fn interrupt(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        let deadline = Instant::now() + WITHIN;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "the demo ended with {status}");
                return;
            }
            assert!(Instant::now() < deadline, "the demo does not end");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

#[test]
fn a_demo_answers_ends_and_is_rebuilt_from_its_log() {
    let scratch = tempfile::tempdir().unwrap();
    let demo = Demo::start(scratch.path(), &["--fleet", "12", "--rate", "250"]);

    // Regions talk to each other, and both ends of their connections were joined.
    demo.sql_until(
        "select count(distinct src_region) from region_connections where src_region not in ('local', 'unknown')",
        |n| n >= 6,
    );
    demo.sql_until("select count(*) from connections where seen = 'both' and src_region <> dst_region", |n| n > 50);
    demo.sql_until("select count(*) from top_talkers", |n| n > 0);
    demo.sql_until("select count(*) from utilization", |n| n > 0);
    demo.sql_until("select count(*) from service_map where total > 0", |n| n > 0);
    // The real host is beside the simulated ones, and labelled as real.
    assert_eq!(demo.sql_until("select count(*) from hosts where not simulated", |n| n >= 1), 1);
    assert_eq!(demo.sql_until("select count(*) from hosts where simulated", |n| n >= 12), 12);
    demo.sql_until("select count(*) from samples where region = 'local' and container_id is null", |n| n > 0);
    // Snapshots are consistent: no connection is open and closed, none is counted twice.
    let doubled = "select count(*) - count(distinct connection_id) from connections";
    assert_eq!(demo.sql(doubled).lines().nth(1), Some("0"));

    // The rules that ship, sequences too, find the intrusion that is played, on its host, and nothing else in the fleet.
    let found = "select rule, host from alerts where host like 'sim-%' order by rule";
    demo.sql_until(&format!("select count(*) from ({found}) as found"), |n| n >= INTRUSION.len() as i64);
    let expected: String = INTRUSION.iter().map(|rule| format!("{rule},sim-aws-eu-west-1-000\n")).collect();
    assert_eq!(demo.sql(found), format!("rule,host\n{expected}"));

    // What is wrong is said, with its SQLSTATE, and disturbs nothing.
    for (statement, code) in [("select * from nowhere", "42P01"), ("selec 1", "42601"), ("drop table events", "0A000")] {
        let output = demo.weir_sql(statement);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(code), "{statement}: {told}");
    }
    let garbage = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    (0..100).for_each(|byte| drop(garbage.send_to(&[byte; 700], &demo.quic)));

    let (status, body) = demo.http("/v1/views/region_connections");
    assert!(status.contains("200") && body.contains("\"tick\"") && body.contains("dst_region"), "{status} {body}");
    assert!(demo.http("/v1/views/nowhere").0.contains("404"));
    assert!(demo.http("/healthz").0.contains("200"));
    if has("promtool") {
        check_metrics(&demo.http("/metrics").1);
    }
    if has("psql") {
        check_psql(&demo);
    }
    demo.interrupt();
    check_replays(scratch.path());
}

fn check_metrics(text: &str) {
    let mut promtool =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
}

fn check_psql(demo: &Demo) {
    let (host, port) = demo.sql.rsplit_once(':').unwrap();
    let output = Command::new("psql")
        .args(["-h", host, "-p", port, "-U", "weir", "weir", "-At", "-c", "select * from region_connections"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8(output.stdout).unwrap().lines().count() >= 6);
}

/// Three processes with one worker each, one with one, one with two: the same digests from the same log.
fn check_replays(data: &Path) {
    let config = data.join("node-1.toml");
    let one = replay(&config, 1, 1);
    assert!(one.contains("region_connections"), "{one}");
    assert_eq!(one, replay(&config, 1, 2), "two workers differ from one");
    assert_eq!(one, replay(&config, 3, 1), "three processes differ from one");
}

fn replay(config: &Path, processes: usize, workers: usize) -> String {
    let (processes, workers) = (processes.to_string(), workers.to_string());
    let arguments = ["node", "--replay-to", "last", "--processes", &processes, "--workers", &workers, "--config"];
    let output = Command::new(WEIR).args(arguments).arg(config).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_wrong_config_names_file_key_and_cure() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("node.toml");
    std::fs::write(&path, "id = \"n\"\nworkerz = 2\n").unwrap();
    let output = Command::new(WEIR).args(["node", "--config"]).arg(&path).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("node.toml") && told.contains("workerz") && told.contains("workers"), "{told}");
}

#[test]
fn help_has_an_example_and_wrong_use_is_two() {
    for command in ["demo", "node", "agent", "sql"] {
        let output = Command::new(WEIR).args([command, "--help"]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("Example"), "{command} --help has no example");
        assert_eq!(Command::new(WEIR).args([command, "--nonsense"]).output().unwrap().status.code(), Some(2));
    }
}
