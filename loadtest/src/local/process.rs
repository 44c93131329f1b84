//! A part of a local cluster as a process of its own, its log in a file.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// A running `weir node` or `weir agent`.
pub struct Running {
    name: String,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// While it is open, the process runs.
    _hold: ChildStdin,
    log: std::path::PathBuf,
}

impl Running {
    /// Starts `PROGRAM WHAT --config CONFIG`.
    pub async fn start(program: &Path, what: &str, config: &Path, logs: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(logs).with_context(|| format!("could not create {}", logs.display()))?;
        let name = config.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let log = logs.join(format!("{name}.log"));
        let log_file = File::options()
            .append(true)
            .create(true)
            .open(&log)
            .with_context(|| format!("could not create {}", log.display()))?;
        let mut child = Command::new(program)
            .args([what, "--with-parent", "--config"])
            .arg(config)
            // Held: should this process be killed, its parts end too.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("could not start {name}"))?;
        let stdout = child.stdout.take().context("standard output was asked for")?;
        let hold = child.stdin.take().context("standard input was asked for")?;
        Ok(Self { _hold: hold, name, child, lines: BufReader::new(stdout).lines(), log })
    }

    /// The first line it prints; an error when it ends before.
    pub async fn first_line(&mut self) -> anyhow::Result<String> {
        let line = tokio::time::timeout(FIRST_LINE_WITHIN, self.lines.next_line()).await;
        match line {
            Ok(Ok(Some(line))) => Ok(line),
            Ok(_) => anyhow::bail!("{} ended at its start:\n{}", self.name, self.last_words()),
            Err(_) => anyhow::bail!("{} said nothing for {} s", self.name, FIRST_LINE_WITHIN.as_secs()),
        }
    }

    /// Waits until it ends by itself; the end of its log.
    pub async fn ended(&mut self) -> String {
        let _ = self.child.wait().await;
        self.last_words()
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Ends it as `kill -9` does.
    pub async fn kill(mut self) {
        let _ = self.child.kill().await;
    }

    /// Asks it to end, waits, and ends it by force when it does not.
    pub async fn stop(mut self) {
        if let Some(pid) = self.child.id() {
            signal(&[pid], Signal::TERM);
        }
        if tokio::time::timeout(STOP_WITHIN, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// Sends a signal to each process.
pub(crate) fn signal(pids: &[u32], signal: Signal) {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid as i32)) {
        // One that has gone meanwhile needs none.
        let _ = kill_process(pid, signal);
    }
}

/// The living children of a process, whichever of its threads started them.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let listed = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    listed.flat_map(|line| line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

const FIRST_LINE_WITHIN: Duration = Duration::from_secs(30);
const STOP_WITHIN: Duration = Duration::from_secs(10);
