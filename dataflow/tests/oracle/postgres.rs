//! A PostgreSQL 15 of the test's own, where Debian's package is installed: the third opinion.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use arrow::datatypes::Schema;

use super::questions::{at, now_of_postgres, type_name};
use super::rows::{Bag, History, Row, SOURCES, add, schema};

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// A server on a socket in a directory of its own.
pub struct Postgres {
    directory: PathBuf,
}

impl Postgres {
    /// Starts one; None, and a loud word, where it is not installed.
    pub fn start(name: &str) -> Option<Self> {
        if !Path::new(BIN).join("initdb").exists() {
            eprintln!("SKIPPED: no PostgreSQL 15 (apt-get install postgresql-15): answers are compared with DataFusion only");
            return None;
        }
        let directory = std::env::temp_dir().join(format!("weir-oracle-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        let made = Self { directory };
        if !made.owned() {
            eprintln!("SKIPPED: PostgreSQL does not run as root, and there is no user \"postgres\" to run it as");
            return None;
        }
        made.run(&["initdb", "-D", &made.data(), "-A", "trust", "-U", "postgres", "--locale=C", "-E", "UTF8", "--no-sync"]);
        let options = format!("-c listen_addresses='' -c fsync=off -c unix_socket_directories={}", made.directory.display());
        made.run(&[
            "pg_ctl",
            "-D",
            &made.data(),
            "-w",
            "-l",
            &format!("{}/log", made.directory.display()),
            "-o",
            &options,
            "start",
        ]);
        Some(made)
    }

    /// The answer after each tick.
    pub fn answers(&self, sql: &str, answer: &Schema, history: &History) -> Vec<Bag> {
        let mut script = String::from("SET client_min_messages = warning; SET timezone = 'UTC';\n");
        for source in SOURCES {
            let columns = schema()
                .fields()
                .iter()
                .map(|field| format!("{} {}", field.name(), type_name(field.data_type())))
                .collect::<Vec<_>>()
                .join(", ");
            writeln!(script, "DROP TABLE IF EXISTS \"{source}\"; CREATE TABLE \"{source}\" ({columns});").unwrap();
        }
        let cells =
            answer.fields().iter().map(|field| cell(field.name(), field.data_type())).collect::<Vec<_>>().join(" || ' ' || ");
        for (tick, _) in &history.ticks {
            for source in SOURCES {
                writeln!(script, "TRUNCATE \"{source}\";").unwrap();
                let rows = history.present(source, *tick).iter().map(values).collect::<Vec<_>>().join(", ");
                if !rows.is_empty() {
                    writeln!(script, "INSERT INTO \"{source}\" VALUES {rows};").unwrap();
                }
            }
            writeln!(script, "SELECT {cells} FROM ({}) AS answer; SELECT '=';", at(sql, &now_of_postgres(*tick))).unwrap();
        }
        let told = self.psql(&script, sql);
        let mut answers = vec![Bag::new()];
        for line in told.lines() {
            match line {
                "=" => answers.push(Bag::new()),
                line => add(answers.last_mut().unwrap(), line.to_owned(), 1),
            }
        }
        answers.pop();
        answers
    }

    fn psql(&self, script: &str, sql: &str) -> String {
        use std::io::Write as _;
        let mut psql = Command::new(format!("{BIN}/psql"));
        psql.args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h"]).arg(&self.directory).arg("postgres");
        let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let script = script.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(script.as_bytes()).ok());
        let done = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(done.status.success(), "{sql}\n{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    fn data(&self) -> String {
        self.directory.join("data").display().to_string()
    }

    fn owned(&self) -> bool {
        let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.starts_with(b"0\n"));
        !root || Command::new("chown").arg("postgres").arg(&self.directory).status().is_ok_and(|status| status.success())
    }

    fn run(&self, words: &[&str]) {
        let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.starts_with(b"0\n"));
        let program = format!("{BIN}/{}", words[0]);
        let mut command = if root { Command::new("runuser") } else { Command::new(&program) };
        if root {
            command.args(["-u", "postgres", "--", &program]);
        }
        let done = command.args(&words[1..]).current_dir(&self.directory).stdout(Stdio::null()).status().unwrap();
        assert!(done.success(), "{words:?}");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if Path::new(&self.data()).join("postmaster.pid").exists() {
            self.run(&["pg_ctl", "-D", &self.data(), "-m", "immediate", "stop"]);
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A column as `rows::lines` writes it.
fn cell(name: &str, data_type: &arrow::datatypes::DataType) -> String {
    use arrow::datatypes::DataType;
    let column = format!("\"{name}\"");
    let text = match data_type {
        DataType::Timestamp(..) => format!("(extract(epoch FROM {column}) * 1000000000)::bigint::text"),
        DataType::Float64 => format!(
            "CASE WHEN {column} = trunc({column}::numeric) THEN trunc({column}::numeric)::text || '.0' ELSE {column}::double precision::text END"
        ),
        DataType::List(_) => {
            format!("replace(replace(replace(replace({column}::text, '{{', '['), '}}', ']'), ',', ', '), 'NULL', '')")
        }
        DataType::Int64 | DataType::Int32 | DataType::UInt64 => format!("({column})::bigint::text"),
        _ => format!("{column}::text"),
    };
    format!("coalesce('''' || {text} || '''', 'NULL')")
}

fn values(row: &Row) -> String {
    let text = row.text.as_ref().map(|text| format!("'{text}'"));
    let time = row.time_ms.map(|ms| format!("timestamptz 'epoch' + interval '{ms} milliseconds'"));
    let cells = [
        text,
        row.int.map(|int| int.to_string()),
        time,
        row.float.map(|float| float.to_string()),
        row.flag.map(|flag| flag.to_string()),
    ];
    format!("({})", cells.map(|cell| cell.unwrap_or_else(|| "NULL".to_owned())).join(", "))
}
