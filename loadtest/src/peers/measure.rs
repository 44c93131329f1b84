//! One run of one peer: a process of its own, its time and CPU by its own word, its peak memory, and a digest of its answer.
//!
//! Peak memory is the kernel's high-water mark (`VmHWM`), looked at every few milliseconds: what grows in the last moment is missed.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use super::input::hex12;
use crate::facts::status_kib;

/// What one run has shown.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measured {
    /// From the first byte read to the answer.
    pub(super) seconds: f64,
    /// CPU seconds over the same span.
    pub(super) cpu_s: f64,
    /// Peak memory of the process.
    pub(super) peak_bytes: u64,
    /// Of the sorted rows.
    pub(super) digest: String,
}

/// Runs `command`, which prints `SECONDS s` and `CPU s` and writes its rows to `answer`; its words go to `log`.
pub(super) fn run(mut command: Command, answer: &Path, log: &Path, within: Duration) -> anyhow::Result<Measured> {
    let _ = std::fs::remove_file(answer);
    let said = File::create(log).with_context(|| format!("could not create {}", log.display()))?;
    let also = said.try_clone().context("sharing the log")?;
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child =
        command.stdin(Stdio::null()).stdout(said).stderr(also).spawn().with_context(|| format!("could not start {program}"))?;
    let (begun, mut peak_bytes) = (Instant::now(), 0);
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for a peer")? {
            break status;
        }
        peak_bytes = peak_bytes.max(peak_of(child.id()));
        if begun.elapsed() > within {
            child.kill().and_then(|()| child.wait()).context("ending a peer")?;
            anyhow::bail!("no answer within {} s", within.as_secs());
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let words = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    anyhow::ensure!(status.success(), "{program} failed ({status}): {}", last_words(&words));
    let value = |name: &str| -> anyhow::Result<f64> {
        let found = words.lines().rev().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        found.with_context(|| format!("{program} did not say {name}: {}", last_words(&words)))
    };
    let (seconds, cpu_s) = (value("SECONDS ")?, value("CPU ")?);
    let rows = std::fs::read(answer).with_context(|| format!("{program} left no answer in {}", answer.display()))?;
    Ok(Measured { seconds, cpu_s, peak_bytes, digest: digest(&rows) })
}

/// The first twelve hexadecimal digits of a SHA-256 over the sorted lines, joined by line feeds.
fn digest(rows: &[u8]) -> String {
    let rows = rows.strip_suffix(b"\n").unwrap_or(rows);
    let mut lines: Vec<&[u8]> = rows.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
    lines.sort_unstable();
    hex12(&Sha256::digest(lines.join(&b"\n"[..])))
}

fn peak_of(pid: u32) -> u64 {
    status_kib(pid, "VmHWM:").unwrap_or(0) * 1_024
}

fn last_words(words: &str) -> String {
    let last: Vec<&str> = words.lines().rev().filter(|line| !line.trim().is_empty()).take(3).collect();
    let text = last.into_iter().rev().collect::<Vec<_>>().join(" | ");
    text.chars().take(400).collect()
}

const LOOK_EVERY: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, within: Duration) -> anyhow::Result<Measured> {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).current_dir(dir.path());
        run(command, &dir.path().join("answer"), &dir.path().join("log"), within)
    }

    #[test]
    fn a_peer_is_taken_by_its_word_and_its_rows_in_any_order() {
        let long = Duration::from_secs(30);
        let one = shell("printf 'b\\na\\n' > answer; sleep 0.1; echo SECONDS 1.5; echo CPU 0.25", long).unwrap();
        let other = shell("printf 'a\\r\\nb' > answer; echo SECONDS 1; echo CPU 1", long).unwrap();
        assert_eq!((one.seconds, one.cpu_s), (1.5, 0.25));
        assert!(one.peak_bytes > 0 && one.digest == other.digest && one.digest.len() == 12, "{one:?} {other:?}");
        let why = |script| shell(script, long).unwrap_err().to_string();
        assert!(why("echo no such query; exit 3").contains("no such query"));
        assert!(why("echo SECONDS 1; echo > answer").contains("CPU"));
        assert!(why("echo SECONDS 1; echo CPU 1").contains("left no answer"));
        assert!(shell("sleep 20", Duration::from_millis(50)).unwrap_err().to_string().contains("within"));
    }
}
