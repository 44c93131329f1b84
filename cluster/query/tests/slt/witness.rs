//! A PostgreSQL 15 of the test's own, where Debian's package is installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// A server on a socket in a directory of its own.
pub(crate) struct Postgres {
    directory: PathBuf,
}

impl Postgres {
    /// Starts one; None, and a loud word, where it is not installed.
    pub(crate) fn start() -> Option<Self> {
        if !Path::new(BIN).join("initdb").exists() {
            eprintln!("SKIPPED: no PostgreSQL 15 (apt-get install postgresql-15): nobody asks the witness again");
            return None;
        }
        let directory = std::env::temp_dir().join(format!("weir-slt-witness-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        let made = Self { directory };
        if is_root() && !Command::new("chown").arg("postgres").arg(&made.directory).status().is_ok_and(|told| told.success()) {
            eprintln!("SKIPPED: PostgreSQL does not run as root, and there is no user \"postgres\" to run it as");
            return None;
        }
        let (data, log) = (made.path("data"), made.path("log"));
        made.run(&["initdb", "-D", &data, "-A", "trust", "-U", "postgres", "--locale=C", "-E", "UTF8", "--no-sync"]);
        let options = format!("-c listen_addresses='' -c fsync=off -c unix_socket_directories={}", made.directory.display());
        made.run(&["pg_ctl", "-D", &data, "-w", "-l", &log, "-o", &options, "start"]);
        Some(made)
    }

    /// How to connect.
    pub(crate) fn config(&self) -> String {
        format!("host={} user=postgres dbname=postgres", self.directory.display())
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn run(&self, words: &[&str]) {
        let program = format!("{BIN}/{}", words[0]);
        let mut command = if is_root() { Command::new("runuser") } else { Command::new(&program) };
        if is_root() {
            command.args(["-u", "postgres", "--", &program]);
        }
        let done = command.args(&words[1..]).current_dir(&self.directory).stdout(Stdio::null()).status().unwrap();
        assert!(done.success(), "{words:?}");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.run(&["pg_ctl", "-D", &self.path("data"), "-m", "immediate", "stop"]);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.starts_with(b"0\n"))
}
