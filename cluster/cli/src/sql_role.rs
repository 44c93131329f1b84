//! `weir sql-role`: what a node keeps of a role's password.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, ensure};

/// Arguments of `weir sql-role`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read a password from the first line of standard input and print its SCRAM-SHA-256 verifier
    #[command(
        after_help = "Example:\n  weir sql-role hash < password > analyst.scram\n\nThe file is the `secret_file` of a [[sql.roles]] in the node's config. It has the form of PostgreSQL's pg_authid.rolpassword; nobody can log in with it."
    )]
    Hash,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Command::Hash = arguments.command;
    if std::io::stdin().is_terminal() {
        eprintln!("password (it is shown as you type):");
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("could not read the password from standard input")?;
    let password = line.trim_end_matches(['\n', '\r']);
    ensure!(!password.is_empty(), "the password is empty: give it as the first line of standard input");
    writeln!(std::io::stdout(), "{}", weir_query::Verifier::of(password))?;
    Ok(())
}
