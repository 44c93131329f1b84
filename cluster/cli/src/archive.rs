//! `weir archive`: the record as evidence. Works on an archive or a case bundle by itself, without a cluster.

mod files;
mod transfer;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use weir_archive::manifest::Hold;
use weir_archive::{Archive, Progress, Store, Verified, cells, query, verify};
use weir_schema::{Name, parse_time, write_time};

use crate::sql::Table;

/// Arguments of `weir archive`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Check every byte of an archive or bundle against its chain of manifests
    #[command(
        after_help = "Examples:\n  weir archive verify /var/lib/weir/archive\n  weir archive verify s3://bank-record/prod --head 5c1f…\n\nPrints `damaged: OBJECT: WHY` for each damaged object, then a summary with the hash of the newest\nmanifest. Keep that hash elsewhere: given back as --head it proves that nothing before it was rewritten."
    )]
    Verify {
        /// The archive or bundle: a path, or a URL such as s3://bucket/folder
        #[arg(value_name = "LOCATION")]
        location: String,
        /// A head that an earlier verification has printed: it must still be in the chain
        #[arg(long, value_name = "HASH", value_parser = parse_hash)]
        head: Option<String>,
    },
    /// Ask an archive or bundle in SQL: the tables are `events` and `samples`
    #[command(
        after_help = "Example:\n  weir archive query case-17 -c \"SELECT time, host, exe, cmdline FROM events WHERE kind = 'exec' ORDER BY time\""
    )]
    Query {
        /// The archive or bundle: a path, or a URL such as s3://bucket/folder
        #[arg(value_name = "LOCATION")]
        location: String,
        /// The statement; read from standard input when absent
        #[arg(short = 'c', long = "command", value_name = "SQL")]
        command: Option<String>,
        /// Comma-separated values with a header line
        #[arg(long)]
        csv: bool,
    },
    /// Show what is kept, what retention has dropped, and the holds
    #[command(after_help = "Example:\n  weir archive files /var/lib/weir/archive")]
    Files {
        /// The archive or bundle: a path, or a URL such as s3://bucket/folder
        #[arg(value_name = "LOCATION")]
        location: String,
    },
    /// Write the rows of a case as a bundle: a small archive, and JSON lines
    #[command(
        after_help = "Example:\n  weir archive export --archive /var/lib/weir/archive --where \"host = 'web-7' AND time >= '2026-11-23'\" --out case-17"
    )]
    Export {
        /// The archive: a path, or a URL such as s3://bucket/folder
        #[arg(long, value_name = "LOCATION")]
        archive: String,
        /// A condition over the columns of events; absent: every row
        #[arg(long = "where", value_name = "SQL")]
        predicate: Option<String>,
        /// Directory of the bundle, new or empty
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Add past events: a bundle, another archive, or a file of JSON lines
    #[command(
        after_help = "Examples:\n  weir archive import --archive /var/lib/weir/archive case-17\n  weir archive import --archive /var/lib/weir/archive past.jsonl --tenant bank --region eu-west-1\n\nRows that the archive's files hold already are passed over: importing twice adds nothing."
    )]
    Import {
        /// The archive to add to: a path, or a URL such as s3://bucket/folder
        #[arg(long, value_name = "LOCATION")]
        archive: String,
        /// A bundle or archive (directory or URL), or a file of JSON lines
        #[arg(value_name = "PATH")]
        path: String,
        /// Tenant of JSON lines that name none [default: default]
        #[arg(long, value_name = "T", value_parser = parse_name)]
        tenant: Option<Name>,
        /// Region of JSON lines that name none [default: imported]
        #[arg(long, value_name = "R", value_parser = parse_name)]
        region: Option<Name>,
    },
    /// Keep rows from retention, under the name of a case
    #[command(
        after_help = "Example:\n  weir archive hold --archive /var/lib/weir/archive case-17 --host web-7 --from 2026-11-23T16:00:00Z --note \"asked for by audit\""
    )]
    Hold {
        /// The archive: a path, or a URL such as s3://bucket/folder
        #[arg(long, value_name = "LOCATION")]
        archive: String,
        /// Name of the case; a hold of that name is replaced
        #[arg(value_name = "NAME")]
        name: String,
        /// Only rows of this host
        #[arg(long, value_name = "H")]
        host: Option<String>,
        /// Only rows of this container
        #[arg(long, value_name = "C")]
        container: Option<String>,
        /// From this time on, as 2026-11-23T16:00:00Z
        #[arg(long, value_name = "TIME", value_parser = parse_moment)]
        from: Option<i64>,
        /// Up to this time, which is not part of it
        #[arg(long, value_name = "TIME", value_parser = parse_moment)]
        to: Option<i64>,
        /// Who asked for it, and why
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// End a hold: retention may drop its rows again
    #[command(after_help = "Example:\n  weir archive release --archive /var/lib/weir/archive case-17")]
    Release {
        /// The archive: a path, or a URL such as s3://bucket/folder
        #[arg(long, value_name = "LOCATION")]
        archive: String,
        /// Name of the case
        #[arg(value_name = "NAME")]
        name: String,
    },
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    crate::runtime()?.block_on(async {
        match arguments.command {
            Command::Verify { location, head } => run_verify(&location, head.as_deref()).await,
            Command::Query { location, command, csv } => run_query(&location, command, csv).await,
            Command::Files { location } => files::run(&open(&location).await?),
            Command::Export { archive, predicate, out } => transfer::export(&archive, predicate.as_deref(), &out).await,
            Command::Import { archive, path, tenant, region } => transfer::import(&archive, &path, tenant, region).await,
            Command::Hold { archive, name, host, container, from, to, note } => {
                hold(&archive, Hold { name, host, container_id: container, from, to, note }).await
            }
            Command::Release { archive, name } => release(&archive, name).await,
        }
    })
}

async fn run_verify(location: &str, head: Option<&str>) -> anyhow::Result<()> {
    let verified = verify(store_that_is_there(location)?, head, &mut progress_to_stderr()).await?;
    let Verified { manifests, files, rows, bytes, head, faults, unreferenced } = verified;
    let mut out = std::io::stdout().lock();
    for fault in &faults {
        writeln!(out, "damaged: {}: {}", fault.path, fault.why)?;
    }
    writeln!(out, "{manifests} manifests, {files} files, {rows} rows, {bytes} bytes, head {head}")?;
    out.flush()?;
    if unreferenced > 0 {
        eprintln!(
            "{unreferenced} objects are referred to by nothing: left by a writer that was stopped, or waiting for deletion"
        );
    }
    match faults.len() {
        0 => Ok(()),
        1 => anyhow::bail!("1 object of {location} is damaged: restore it from a copy"),
        many => anyhow::bail!("{many} objects of {location} are damaged: restore them from a copy"),
    }
}

/// A line on standard error that is written over, when a person looks at it.
fn progress_to_stderr() -> impl FnMut(Progress) + Send {
    let shown = std::io::stderr().is_terminal();
    let mut last: Option<Instant> = None;
    move |progress: Progress| {
        let Progress { manifests_done, manifests, files_done, files, bytes_done, bytes } = progress;
        let ended = files > 0 && files_done == files;
        if !shown || (!ended && last.is_some_and(|last| last.elapsed() < PROGRESS_EVERY)) {
            return;
        }
        last = Some(Instant::now());
        let (done, all) = (bytes_done >> 20, bytes >> 20);
        eprint!("\r\x1b[Kmanifests {manifests_done}/{manifests}, files {files_done}/{files}, {done}/{all} MiB");
        if ended {
            eprint!("\r\x1b[K");
        }
    }
}

async fn run_query(location: &str, command: Option<String>, csv: bool) -> anyhow::Result<()> {
    let store = store_that_is_there(location)?;
    let sql = match command {
        Some(sql) => sql,
        None => std::io::read_to_string(std::io::stdin()).context("could not read the statement from standard input")?,
    };
    let answer = query(store, &sql).await?;
    let columns = answer.schema.fields().iter().map(|field| field.name().clone()).collect();
    let rows = answer.batches.iter().map(cells).collect::<Result<Vec<_>, _>>().context("could not write the rows as text")?;
    print(&Table { columns, rows: rows.concat() }, csv)
}

async fn hold(location: &str, hold: Hold) -> anyhow::Result<()> {
    let name = hold.name.clone();
    let catalog = weir_archive::hold(&open(location).await?, hold, now_ms()?).await?;
    eprintln!("hold {name} is kept from manifest {} on", catalog.number);
    Ok(())
}

async fn release(location: &str, name: String) -> anyhow::Result<()> {
    let catalog = weir_archive::release(&open(location).await?, &name, now_ms()?).await?;
    eprintln!("hold {name} is released from manifest {} on", catalog.number);
    Ok(())
}

/// An archive that must have something in it.
async fn open(location: &str) -> anyhow::Result<Archive> {
    let archive = Archive::open(store_that_is_there(location)?).await?;
    archive.must_be_there()?;
    Ok(archive)
}

/// The store of a location. A mistyped path does not become a directory.
fn store_that_is_there(location: &str) -> anyhow::Result<Store> {
    let path = match location.split_once("://") {
        Some(("file", path)) => Some(path),
        Some(_) => None,
        None => Some(location),
    };
    if let Some(path) = path.filter(|path| !Path::new(path).is_dir()) {
        anyhow::bail!("there is no archive at {path:?}: it is no directory; check the path");
    }
    Ok(Store::open(location)?)
}

fn print(table: &Table, csv: bool) -> anyhow::Result<()> {
    let text = if csv { table.csv() } else { table.aligned() };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

fn now_ms() -> anyhow::Result<u64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970: set it")?;
    Ok(u64::try_from(since.as_millis())?)
}

/// As tables show a time.
fn time_text(time: i64) -> String {
    let mut text = String::new();
    write_time(&mut text, time);
    text
}

fn parse_name(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|error| error.to_string())
}

fn parse_moment(text: &str) -> Result<i64, String> {
    parse_time(text).ok_or_else(|| "write a time as 2026-11-23T16:00:00Z".to_owned())
}

fn parse_hash(text: &str) -> Result<String, String> {
    let hash = text.to_ascii_lowercase();
    let fits = hash.len() == 64 && hash.bytes().all(|digit| digit.is_ascii_hexdigit());
    if fits { Ok(hash) } else { Err("give the 64 hexadecimal digits that `weir archive verify` has printed".to_owned()) }
}

const PROGRESS_EVERY: Duration = Duration::from_millis(200);
