//! What the code under test logs, for tests that look at an operator's lines.

use std::io::Write;
use std::sync::{Mutex, OnceLock};

use tracing_subscriber::EnvFilter;

/// The subscriber writes a line at a time.
static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Into;

impl Write for Into {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        SAID.lock().unwrap().push(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// From now on all lines are kept; tests of one process share them.
pub fn listen() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let filter = EnvFilter::new("info");
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).without_time().with_writer(|| Into).init();
    });
}

/// The first line with all of these in it.
pub fn line(parts: &[&str]) -> Option<String> {
    let said = SAID.lock().unwrap();
    said.iter().find(|line| parts.iter().all(|part| line.contains(part))).cloned()
}

/// Waits for a line with all of these in it.
pub async fn until_line(parts: &[&str]) -> String {
    super::until(&format!("a line with {parts:?}"), || line(parts).is_some()).await;
    line(parts).unwrap()
}
