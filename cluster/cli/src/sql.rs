//! `weir sql`: a small client of the SQL port. Any PostgreSQL client works as well.

use std::io::Write as _;
use std::pin::pin;

use anyhow::Context as _;
use futures::StreamExt as _;
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// Arguments of `weir sql`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  weir sql -c 'select * from region_connections'\n  weir sql -c 'subscribe to region_connections'\n  echo 'show views' | weir sql"
)]
pub(crate) struct Arguments {
    /// Where to ask
    #[arg(long, value_name = "URL", default_value = "postgres://weir@127.0.0.1:7432/weir")]
    url: String,
    /// The statement; read from standard input when absent
    #[arg(short = 'c', long = "command", value_name = "SQL")]
    command: Option<String>,
    /// Comma-separated values with a header line
    #[arg(long)]
    csv: bool,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let sql = match arguments.command {
        Some(sql) => sql,
        None => std::io::read_to_string(std::io::stdin()).context("could not read the statement from standard input")?,
    };
    let runtime = crate::runtime()?;
    let client = runtime.block_on(connect(&arguments.url))?;
    if is_subscription(&sql) {
        return runtime.block_on(follow(&client, &sql, arguments.csv));
    }
    let tables = runtime.block_on(query(&client, &sql))?;
    let mut out = std::io::stdout().lock();
    for table in tables {
        let text = if arguments.csv { table.csv() } else { table.aligned() };
        out.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// Connects, and drives the connection on a task of its own.
pub(crate) async fn connect(url: &str) -> anyhow::Result<tokio_postgres::Client> {
    let connecting = tokio_postgres::connect(url, NoTls).await;
    let (client, connection) = connecting.with_context(|| format!("could not connect to {url}: is a node running there?"))?;
    tokio::spawn(connection);
    Ok(client)
}

/// One result.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<Option<String>>>,
}

/// Runs one or more statements and collects a table for each.
pub(crate) async fn query(client: &tokio_postgres::Client, sql: &str) -> anyhow::Result<Vec<Table>> {
    let messages = client.simple_query(sql).await.map_err(in_plain_words)?;
    let mut tables = Vec::new();
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                let columns = columns.iter().map(|column| column.name().to_owned()).collect();
                tables.push(Table { columns, rows: Vec::new() });
            }
            SimpleQueryMessage::Row(row) => {
                let cells = (0..row.len()).map(|cell| row.get(cell).map(str::to_owned)).collect();
                if let Some(table) = tables.last_mut() {
                    table.rows.push(cells);
                }
            }
            _ => {}
        }
    }
    Ok(tables)
}

/// Whether its rows come for as long as anybody reads them.
fn is_subscription(sql: &str) -> bool {
    sql.split_whitespace().next().is_some_and(|word| word.eq_ignore_ascii_case("subscribe"))
}

/// Prints rows as they come, until there are no more.
async fn follow(client: &tokio_postgres::Client, sql: &str, csv: bool) -> anyhow::Result<()> {
    let mut messages = pin!(client.simple_query_raw(sql).await.map_err(in_plain_words)?);
    let mut widths: Vec<usize> = Vec::new();
    while let Some(message) = messages.next().await {
        let cells = match message.map_err(in_plain_words)? {
            SimpleQueryMessage::RowDescription(columns) => columns.iter().map(|column| Some(column.name().to_owned())).collect(),
            SimpleQueryMessage::Row(row) => (0..row.len()).map(|cell| row.get(cell).map(str::to_owned)).collect::<Vec<_>>(),
            _ => continue,
        };
        let line = if csv { csv_line(&cells) } else { padded(&cells, &mut widths) };
        let mut out = std::io::stdout().lock();
        out.write_all(line.as_bytes())?;
        out.flush()?;
    }
    Ok(())
}

/// Cells as wide as the widest so far: what comes is not known yet.
fn padded(cells: &[Option<String>], widths: &mut Vec<usize>) -> String {
    widths.resize(cells.len(), 0);
    let pad = |(cell, width): (&Option<String>, &mut usize)| {
        let text = cell.as_deref().unwrap_or_default();
        *width = (*width).max(text.chars().count());
        format!("{text:<width$}", width = *width)
    };
    let line = cells.iter().zip(widths.iter_mut()).map(pad).collect::<Vec<_>>().join("  ");
    format!("{}\n", line.trim_end())
}

/// Comma-separated values.
fn csv_line(cells: &[Option<String>]) -> String {
    let quoted = |text: &String| match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.clone(),
    };
    let cells = cells.iter().map(|cell| cell.as_ref().map(quoted).unwrap_or_default());
    cells.collect::<Vec<_>>().join(",") + "\n"
}

/// What the server said.
pub(crate) fn in_plain_words(failed: tokio_postgres::Error) -> anyhow::Error {
    match failed.as_db_error() {
        Some(told) => anyhow::anyhow!("{} ({})", told.message(), told.code().code()),
        None => failed.into(),
    }
}

impl Table {
    /// Columns under their names, as wide as their widest cell.
    pub(crate) fn aligned(&self) -> String {
        let cell = |cell: &Option<String>| cell.clone().unwrap_or_default();
        let mut widths: Vec<usize> = self.columns.iter().map(|name| name.chars().count()).collect();
        for row in &self.rows {
            for (width, text) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell(text).chars().count());
            }
        }
        let numeric: Vec<bool> = (0..self.columns.len()).map(|column| self.is_numeric(column)).collect();
        let line = |cells: Vec<String>| {
            let padded = cells.iter().enumerate().map(|(column, text)| match numeric[column] {
                true => format!("{text:>width$}", width = widths[column]),
                false => format!("{text:<width$}", width = widths[column]),
            });
            format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
        };
        let mut text = line(self.columns.clone());
        text += &line(widths.iter().map(|width| "-".repeat(*width)).collect());
        for row in &self.rows {
            text += &line(row.iter().map(cell).collect());
        }
        text + &format!("({} row{})\n", self.rows.len(), if self.rows.len() == 1 { "" } else { "s" })
    }

    fn is_numeric(&self, column: usize) -> bool {
        let mut cells = self.rows.iter().filter_map(|row| row[column].as_deref()).peekable();
        cells.peek().is_some() && cells.all(|text| text.parse::<f64>().is_ok())
    }

    /// Comma-separated values under a line of names.
    pub(crate) fn csv(&self) -> String {
        let header = self.columns.iter().map(|name| Some(name.clone())).collect();
        std::iter::once(&header).chain(&self.rows).map(|cells| csv_line(cells)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let row = |cells: [Option<&str>; 2]| cells.map(|cell| cell.map(str::to_owned)).to_vec();
        Table { columns: vec!["app".into(), "open".into()], rows: vec![row([Some("a,b"), Some("7")]), row([None, Some("12")])] }
    }

    #[test]
    fn tables_are_aligned_and_csv_is_quoted() {
        assert_eq!(table().aligned(), "app  open\n---  ----\na,b     7\n       12\n(2 rows)\n");
        assert_eq!(table().csv(), "app,open\n\"a,b\",7\n,12\n");
    }

    #[test]
    fn rows_that_come_one_by_one_line_up_as_far_as_known() {
        let (mut widths, row) = (Vec::new(), |cells: [&str; 2]| cells.map(|cell| Some(cell.to_owned())));
        assert_eq!(padded(&row(["a", "bb"]), &mut widths), "a  bb\n");
        assert_eq!(padded(&row(["long", "b"]), &mut widths), "long  b\n");
        assert_eq!(padded(&row(["a", "b"]), &mut widths), "a     b\n");
        assert!(is_subscription(" Subscribe to hosts") && !is_subscription("select 'subscribe'"));
    }
}
