//! Who is compared, how each is made ready and called, and what each cannot do.
//!
//! A peer that cannot be made ready here is left out, with the reason in the table. The scripts stand in `loadtest/peers` and travel in this
//! program, so it needs no checkout. Python packages are of pinned versions, in a virtual environment below the working directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::input::{LATE_MS_MAX, Shape};

/// A system that answers the queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Peer {
    /// `weir bench` with two workers: the answer is kept up to date tick by tick
    Weir,
    /// A loop in Rust on one thread, by hand
    Loop,
    /// DuckDB, which reads all and answers once
    Duckdb,
    /// Polars, which reads all and answers once
    Polars,
    /// Flink SQL, in one process with two slots
    Flink,
    /// Pathway with two workers
    Pathway,
}

impl Peer {
    /// Its name, as in the command and the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weir => "weir",
            Self::Loop => "loop",
            Self::Duckdb => "duckdb",
            Self::Polars => "polars",
            Self::Flink => "flink",
            Self::Pathway => "pathway",
        }
    }

    /// Why this peer has no answer to this query over this input.
    pub fn cannot(self, shape: Shape, query: &str) -> Option<&'static str> {
        match (self, shape, query) {
            (Self::Loop, Shape::Disorder, "q2" | "q3" | "q4") => {
                Some("closes its windows as time passes, so it needs events in order")
            }
            (Self::Flink, Shape::Duplicates, _) => Some("its text here does not drop events that come again"),
            (Self::Pathway, Shape::Duplicates, _) => Some("its script here does not drop events that come again"),
            _ => None,
        }
    }
}

/// Where things are.
pub(super) struct Workshop {
    /// Input, environment, answers, logs.
    pub(super) dir: PathBuf,
    /// The program `weir`.
    pub(super) weir: PathBuf,
    /// Threads of the peers that take a number.
    pub(super) workers: usize,
}

impl Workshop {
    /// Makes a peer ready, and says which version of what it is.
    pub(super) fn prepare(&self, peer: Peer) -> anyhow::Result<String> {
        match peer {
            Peer::Weir => self.prepare_weir(),
            Peer::Loop => Ok(concat!("of weir-loadtest ", env!("CARGO_PKG_VERSION")).to_owned()),
            Peer::Duckdb => self.prepare_python("duckdb", DUCKDB, ("duckdb_peer.py", include_str!("../../peers/duckdb_peer.py"))),
            Peer::Polars => self.prepare_python("polars", POLARS, ("polars_peer.py", include_str!("../../peers/polars_peer.py"))),
            Peer::Pathway => {
                self.prepare_python("pathway", PATHWAY, ("pathway_peer.py", include_str!("../../peers/pathway_peer.py")))
            }
            Peer::Flink => self.prepare_flink(),
        }
    }

    /// How a peer is called for one query: it reads `input`, writes its rows to `answer`.
    pub(super) fn command(&self, peer: Peer, (shape, query): (Shape, &str), input: &Path, answer: &Path) -> Command {
        let mut command = match peer {
            Peer::Weir => return self.weir_command((shape, query), input, answer),
            Peer::Loop => {
                let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "weir-loadtest".into()));
                command.arg("peers-loop");
                command
            }
            Peer::Duckdb | Peer::Polars | Peer::Pathway => {
                let mut command = Command::new(self.python());
                command.arg(self.scripts().join(format!("{}_peer.py", peer.name())));
                command
            }
            Peer::Flink => {
                let mut command = Command::new("java");
                command.args(["-Xmx4g", "-Dlog4j2.level=ERROR"]);
                for package in OPENED {
                    command.arg(format!("--add-opens={package}=ALL-UNNAMED"));
                }
                let classes =
                    format!("{}:{}/*", self.scripts().join("classes").display(), self.flink_jars().unwrap_or_default().display());
                command.args(["-cp", &classes, "FlinkPeer"]);
                command
            }
        };
        command.args([query, shape.name()]).arg(input).arg(answer);
        command.env("PEER_WORKERS", self.workers.to_string()).env("PATHWAY_THREADS", self.workers.to_string());
        command.env("PEER_LATE_MS", if shape == Shape::Disorder { LATE_MS_MAX.to_string() } else { "0".to_owned() });
        command
    }

    fn weir_command(&self, (shape, query): (Shape, &str), input: &Path, answer: &Path) -> Command {
        let folder = if shape == Shape::Duplicates { self.scripts().join("once") } else { self.scripts() };
        let mut command = Command::new(&self.weir);
        command.args(["bench", "--format", "csv", "--workers", &self.workers.to_string()]);
        command.arg("--table").arg(format!("fleet={}", input.display()));
        command.arg("--query").arg(folder.join(format!("{query}.sql"))).arg("--out").arg(answer);
        command
    }

    fn prepare_weir(&self) -> anyhow::Result<String> {
        for (name, text) in WEIR_QUERIES {
            self.script(name, text)?;
        }
        said(Command::new(&self.weir).arg("--version"))
    }

    fn prepare_python(&self, package: &str, version: &str, (name, text): (&str, &str)) -> anyhow::Result<String> {
        self.script(name, text)?;
        self.install(&[&format!("{package}=={version}")])?;
        self.version(package)
    }

    fn prepare_flink(&self) -> anyhow::Result<String> {
        said(Command::new("javac").arg("-version")).context("needs a JDK, 17 or later, on the path")?;
        // The libraries alone: Flink's Python is not needed.
        self.install(&["--no-deps", &format!("apache-flink-libraries=={FLINK}")])?;
        let source = self.script("FlinkPeer.java", include_str!("../../peers/flink/FlinkPeer.java"))?;
        let jars = format!("{}/*", self.flink_jars()?.display());
        said(Command::new("javac").args(["-nowarn", "-cp", &jars, "-d"]).arg(self.scripts().join("classes")).arg(source))?;
        self.version("apache-flink-libraries")
    }

    fn flink_jars(&self) -> anyhow::Result<PathBuf> {
        let find = "import importlib.util; print(importlib.util.find_spec('pyflink').submodule_search_locations[0])";
        Ok(PathBuf::from(said(Command::new(self.python()).args(["-c", find]))?).join("lib"))
    }

    fn version(&self, package: &str) -> anyhow::Result<String> {
        let ask = format!("import importlib.metadata as m; print(m.version('{package}'))");
        Ok(format!("{package} {}", said(Command::new(self.python()).args(["-c", &ask]))?))
    }

    fn install(&self, packages: &[&str]) -> anyhow::Result<()> {
        if !self.python().exists() {
            said(Command::new("python3").args(["-m", "venv"]).arg(self.dir.join("env")))
                .context("making a virtual environment")?;
        }
        let pip = ["-m", "pip", "--quiet", "--disable-pip-version-check", "install"];
        said(Command::new(self.python()).args(pip).args(packages))
            .with_context(|| format!("installing {}", packages.join(" ")))?;
        Ok(())
    }

    fn python(&self) -> PathBuf {
        self.dir.join("env/bin/python")
    }

    fn scripts(&self) -> PathBuf {
        self.dir.join("scripts")
    }

    fn script(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.scripts().join(name);
        let folder = path.parent().unwrap_or(&self.dir);
        std::fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
        std::fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
        Ok(path)
    }
}

/// What a command prints; an error with its last words when it fails.
fn said(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("could not run {program}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    anyhow::ensure!(output.status.success(), "{program} failed: {last}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

const DUCKDB: &str = "2.0.1";
const POLARS: &str = "2.1.0";
const PATHWAY: &str = "0.33.0";
const FLINK: &str = "2.3.0";

const WEIR_QUERIES: [(&str, &str); 10] = [
    ("q1.sql", include_str!("../../peers/weir/q1.sql")),
    ("q2.sql", include_str!("../../peers/weir/q2.sql")),
    ("q3.sql", include_str!("../../peers/weir/q3.sql")),
    ("q4.sql", include_str!("../../peers/weir/q4.sql")),
    ("q5.sql", include_str!("../../peers/weir/q5.sql")),
    ("once/q1.sql", include_str!("../../peers/weir/once/q1.sql")),
    ("once/q2.sql", include_str!("../../peers/weir/once/q2.sql")),
    ("once/q3.sql", include_str!("../../peers/weir/once/q3.sql")),
    ("once/q4.sql", include_str!("../../peers/weir/once/q4.sql")),
    ("once/q5.sql", include_str!("../../peers/weir/once/q5.sql")),
];

/// What Flink reaches into.
const OPENED: [&str; 9] = [
    "java.base/java.lang",
    "java.base/java.lang.reflect",
    "java.base/java.net",
    "java.base/java.io",
    "java.base/java.nio",
    "java.base/sun.nio.ch",
    "java.base/java.time",
    "java.base/java.util",
    "java.base/java.util.concurrent",
];
