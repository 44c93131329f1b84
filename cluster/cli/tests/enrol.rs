//! A host becomes an agent as a person makes it one: authority, node, token, agent; then it is revoked.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const WEIR: &str = env!("CARGO_BIN_EXE_weir");
/// Generous: a debug build on a busy machine.
const WITHIN: Duration = Duration::from_secs(90);

/// A process and the lines it logs.
struct Running {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Running {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let mut child =
            Command::new(WEIR).args(arguments).current_dir(folder).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        for pipe in [Box::new(out) as Box<dyn std::io::Read + Send>, Box::new(err)] {
            let lines = lines.clone();
            std::thread::spawn(move || {
                BufReader::new(pipe).lines().map_while(Result::ok).for_each(|line| lines.lock().unwrap().push(line));
            });
        }
        Self { child, lines }
    }

    fn line(&self, parts: &[&str]) -> String {
        let late = Instant::now() + WITHIN;
        loop {
            let lines = self.lines.lock().unwrap().clone();
            if let Some(found) = lines.iter().find(|line| parts.iter().all(|part| line.contains(part))) {
                return found.clone();
            }
            assert!(Instant::now() < late, "no line with {parts:?} in:\n{}", lines.join("\n"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn weir(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(WEIR).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const NODE: &str = r#"id = "n1"
data_dir = "data"
[listen]
quic = "127.0.0.1:0"
sql = "127.0.0.1:0"
http = "127.0.0.1:0"
mesh = "127.0.0.1:0"
[tls]
ca = "tls/ca.pem"
cert = "tls/cert.pem"
key = "tls/key.pem"
[agents]
regions = ["eu"]
authority = "ca"
"#;

#[test]
fn a_host_is_enrolled_by_a_token_and_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    weir(at, &["ca", "init", "--dir", "ca", "--trust-domain", "bank.test"]);
    weir(at, &["ca", "issue", "--dir", "ca", "--node", "n1", "--out", "tls"]);
    std::fs::write(at.join("node.toml"), NODE).unwrap();
    let node = Running::start(at, &["node", "--config", "node.toml"]);
    let ready = node.line(&["ready ", " quic="]);
    let quic = ready.rsplit_once("quic=").unwrap().1;

    let create = ["token", "create", "--config", "node.toml", "--tenant", "acme", "--region", "eu", "--agent", "web-7"];
    let token = weir(at, &create);
    assert!(token.starts_with("weir1-") && token.trim_end().len() == 152, "{token}");
    let config =
        format!("nodes = [\"{quic}\"]\ndata_dir = \"agent\"\n[enrol]\ntoken_file = \"token\"\n[collector]\nebpf = false\n");
    std::fs::write(at.join("agent.toml"), config).unwrap();
    std::fs::write(at.join("token"), &token).unwrap();
    let agent = Running::start(at, &["agent", "--config", "agent.toml"]);
    agent.line(&["certificate in force", "acme/eu/web-7"]);
    node.line(&["agent enrolled", "acme/eu/web-7", &token[6..22]]);
    node.line(&["agent welcome", "web-7"]);
    let key = std::fs::metadata(at.join("agent/identity/key.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);

    let listed = weir(at, &["token", "list", "--config", "node.toml"]);
    assert!(listed.contains("acme/eu/web-7") && listed.contains("used at n1"), "{listed}");
    let listed = weir(at, &["agents", "list", "--config", "node.toml"]);
    assert!(listed.contains("acme/eu/web-7") && listed.contains("taken"), "{listed}");
    // The secret is in no file of the cluster.
    let secret = &token[23..87];
    let found = Command::new("grep").args(["-rl", secret, "data"]).current_dir(at).output().unwrap();
    assert_eq!(found.stdout, b"");

    // The same token on another host.
    std::fs::write(
        at.join("second.toml"),
        std::fs::read_to_string(at.join("agent.toml")).unwrap().replace("\"agent\"", "\"second\""),
    )
    .unwrap();
    let second = Command::new(WEIR).args(["agent", "--config", "second.toml"]).current_dir(at).output().unwrap();
    let why = String::from_utf8(second.stderr).unwrap();
    assert!(second.status.code() == Some(1) && why.contains("the token was used before"), "{why}");

    let begun = Instant::now();
    weir(at, &["agents", "revoke", "--config", "node.toml", "web-7"]);
    node.line(&["WARN", "agent disconnected: its certificate is not taken any more", "agent acme/eu/web-7 is revoked"]);
    assert!(begun.elapsed() < Duration::from_secs(60), "in force within a minute");
    assert!(weir(at, &["agents", "list", "--config", "node.toml"]).contains("revoked"));
    weir(at, &["agents", "revoke", "--config", "node.toml", "--undo", "acme/eu/web-7"]);
}
