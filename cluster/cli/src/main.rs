//! `weir`, the one binary: parses arguments and calls the rooms.
//!
//! Exit codes: 0 done, 1 the work failed, 2 used wrongly.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

mod agent;
mod agents;
mod alerts;
mod archive;
mod bench;
mod ca;
mod cluster;
mod demo;
mod import;
mod node;
mod rules;
mod sql;
mod sql_role;
mod token;
mod when;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Streaming analytics for runtime security: who talks to whom across regions, what it costs, as it happens.
#[derive(Debug, Parser)]
#[command(name = "weir", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start nodes, this host's agent and a simulated fleet on loopback, and show a live table
    Demo(demo::Arguments),
    /// Run one node
    Node(node::Arguments),
    /// Run the agent of this host
    Agent(agent::Arguments),
    /// Ask in SQL
    Sql(sql::Arguments),
    /// Make what a node keeps of a role's password
    SqlRole(sql_role::Arguments),
    /// Make a certificate authority, and certificates of agents and nodes
    Ca(ca::Arguments),
    /// Make tokens by which new agents get their certificates
    Token(token::Arguments),
    /// List enrolled agents, and revoke agents
    Agents(agents::Arguments),
    /// Show what sinks of alerts have got, and send dead letters again
    Alerts(alerts::Arguments),
    /// Show the nodes of a cluster, and change how many workers it has
    Cluster(cluster::Arguments),
    /// Verify, search, export and import the record
    Archive(archive::Arguments),
    /// Turn recordings of Falco, Sysmon, auditd or Zeek into events
    Import(import::Arguments),
    /// Check Falco rule files, and run them over a recording
    Rules(rules::Arguments),
    /// Keep the view of a SQL file up to date over CSV or Parquet files, and say what that took
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Demo(arguments) => demo::run(arguments),
        Command::Node(arguments) => node::run(arguments),
        Command::Agent(arguments) => agent::run(arguments),
        Command::Sql(arguments) => sql::run(arguments),
        Command::SqlRole(arguments) => sql_role::run(arguments),
        Command::Ca(arguments) => ca::run(arguments),
        Command::Token(arguments) => token::run(arguments),
        Command::Agents(arguments) => agents::run(arguments),
        Command::Alerts(arguments) => alerts::run(arguments),
        Command::Cluster(arguments) => cluster::run(arguments),
        Command::Archive(arguments) => archive::run(arguments),
        Command::Import(arguments) => import::run(arguments),
        Command::Rules(arguments) => rules::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("weir: {failed:#}");
            ExitCode::FAILURE
        }
    }
}

/// Logs go to standard error, at `info` or as `WEIR_LOG` says.
fn log_to_stderr(default: &str) {
    let filter = EnvFilter::try_from_env("WEIR_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// How long a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Ctrl-C or SIGTERM.
    Signal,
    /// The same, or the end of the process that holds the other end of standard input, however it ended.
    SignalOrParentsEnd,
}

/// Resolves when the process is to end.
async fn asked_to_stop(until: Until) {
    use tokio::signal::unix::{SignalKind, signal};
    let (parents_end, mut parent_ended) = tokio::sync::oneshot::channel::<()>();
    let mut watched = false;
    if until == Until::SignalOrParentsEnd {
        std::thread::spawn(move || {
            // Nothing is ever sent: any return means that the parent has gone.
            let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0; 1]);
            drop(parents_end);
        });
        watched = true;
    }
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = &mut parent_ended, if watched => {}
    }
}
