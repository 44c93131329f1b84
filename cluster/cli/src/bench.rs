//! `weir bench`: keeps the view of a SQL file up to date over files of rows, and says what that took. Works without a cluster.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use weir_dataflow::external::{ColumnType, ExternalTable, Format, maintain};

/// Arguments of `weir bench`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  weir bench --table fleet=data/1m --format csv --query loadtest/peers/weir/q1.sql --workers 2 --out result.csv\n\nThe query file holds CREATE RULE statements, if any, and one SELECT. The rows of the files are fed in ticks,\nand the answer is kept up to date after each. At the end its rows are written as CSV lines without header,\nin no order, and two lines are printed: `SECONDS s` and `CPU s`, from the first byte read to the last row of\nthe answer. Timestamps as BIGINT are milliseconds since 1970. CSV files are dealt to workers one by one,\nParquet files by row group."
)]
pub(crate) struct Arguments {
    /// A table: its name in the query, and the folder that has its files (repeatable)
    #[arg(long = "table", value_name = "NAME=DIR", required = true, value_parser = table)]
    tables: Vec<(String, PathBuf)>,
    /// How the rows stand in the files
    #[arg(long, value_enum)]
    format: FileFormat,
    /// The SQL
    #[arg(long, value_name = "FILE.sql")]
    query: PathBuf,
    /// Threads that read, and keep the view
    #[arg(long, value_name = "N", default_value = "1", value_parser = workers)]
    workers: usize,
    /// Where the answer goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The type of a CSV column, where the first rows mislead: bigint, double, boolean, timestamp or text (repeatable)
    #[arg(long = "column", value_name = "NAME=TYPE", value_parser = column)]
    columns: Vec<(String, ColumnType)>,
    /// Rows of each worker in a tick
    #[arg(long, value_name = "N", default_value = "250000")]
    tick_rows: NonZeroUsize,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum FileFormat {
    Csv,
    Parquet,
}

fn pair(text: &str, form: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("write it as {form}")),
    }
}

fn table(text: &str) -> Result<(String, PathBuf), String> {
    pair(text, "NAME=DIR").map(|(name, folder)| (name, folder.into()))
}

fn column(text: &str) -> Result<(String, ColumnType), String> {
    let (name, kind) = pair(text, "NAME=TYPE")?;
    Ok((name, kind.parse()?))
}

fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(workers @ 1..=WORKERS_MAX) => Ok(workers),
        _ => Err(format!("give a number from 1 to {WORKERS_MAX}")),
    }
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let format = match arguments.format {
        FileFormat::Csv => Format::Csv,
        FileFormat::Parquet => Format::Parquet,
    };
    let query = &arguments.query;
    let sql = std::fs::read_to_string(query).with_context(|| format!("could not read the query {}", query.display()))?;
    let mut out =
        std::fs::File::create(&arguments.out).with_context(|| format!("could not create {}", arguments.out.display()))?;

    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let mut tables = Vec::new();
    for (name, folder) in &arguments.tables {
        tables.push((name.clone(), ExternalTable::open(folder, format, &arguments.columns)?));
    }
    let relations =
        tables.iter().map(|(name, table)| (name.clone(), table.schema())).collect::<std::collections::HashMap<_, _>>();
    let plan = weir_plan::compile_script(&sql, &relations).with_context(|| query.display().to_string())?;
    let kept = maintain(&plan, &tables, arguments.workers, arguments.tick_rows.get())?;
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);

    let written = kept.lines.iter().try_for_each(|lines| out.write_all(lines.as_bytes()));
    written.with_context(|| format!("could not write {}", arguments.out.display()))?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "SECONDS {seconds:.6}\nCPU {cpu:.6}")?;
    if let (bad @ 1.., Some(why)) = kept.bad_rows {
        eprintln!("{bad} rows are left out because an expression fails for them, most recently: {why}");
    }
    Ok(())
}

/// What this process has used of the processors, to a hundredth of a second; 0 where the system does not say.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name may hold blanks: fields are counted behind its bracket. These are the 14th and 15th.
    let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
    let ticks = behind.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / CLOCK_TICKS_PER_SECOND
}

/// `USER_HZ`, which Linux has fixed for programs.
const CLOCK_TICKS_PER_SECOND: f64 = 100.0;
/// More threads than a large machine has.
const WORKERS_MAX: usize = 1_024;
