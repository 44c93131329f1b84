//! `weir-loadtest`: a simulated fleet, a recording, or a benchmark, over the real transport.
//!
//! Exit codes: 0 done, 1 the work failed, 2 used wrongly.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::BufReader;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use weir_loadtest::agents::Target;
use weir_loadtest::alerts::command::AlertsArguments;
use weir_loadtest::bench::{self, BenchOptions};
use weir_loadtest::chaos::{self, ChaosOptions};
use weir_loadtest::death::{self, DeathOptions};
use weir_loadtest::load::{self, LoadOptions, OwnCluster, Report};
use weir_loadtest::outage::{self, Outage, OutageOptions};
use weir_loadtest::peers::{self, Peer, PeersOptions, Shape};
use weir_loadtest::record::{self, RecordOptions, Recorded};
use weir_loadtest::replay::{self, Recording, ReplayOptions};
use weir_loadtest::runner;
use weir_loadtest::scenario::Scenario;
use weir_loadtest::simulate::{self, SimulateOptions};
use weir_transport::Dialer;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Drives Weir from outside: simulated fleets, recordings, benchmarks.
#[derive(Debug, Parser)]
#[command(name = "weir-loadtest", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send the events of a simulated fleet through a scenario, and report what came of them
    #[command(
        after_help = "Examples:\n  weir-loadtest fleet --node 127.0.0.1:7443 --ca ca --hosts 60 --rate 2000 --seconds 60\n  weir-loadtest fleet --own-cluster --scenario churn --rate 20000 --seconds 50\n  weir-loadtest fleet --own-cluster --find-max --p99-ms 500 --rate 20000 --seconds 10\n\nExit code 1 when the fleet's books and what the cluster has differ."
    )]
    Fleet {
        #[command(flatten)]
        target: TargetArguments,
        /// Simulated hosts
        #[arg(long, default_value_t = 60, value_parser = positive)]
        hosts: usize,
        /// Events a second of the whole fleet, on average
        #[arg(long, default_value_t = 2_000)]
        rate: u64,
        /// How long; with --find-max, each trial
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Everything random comes from it
        #[arg(long, default_value_t = 42)]
        seed: u64,
        /// What it goes through
        #[arg(long, value_enum, default_value = "steady")]
        scenario: Scenario,
        /// SQL of one of the nodes, such as postgres://weir@127.0.0.1:7432/weir: adds freshness, counts and losses
        #[arg(long, value_name = "URL", conflicts_with = "own_cluster")]
        sql: Option<String>,
        /// Start a cluster on this machine for it, instead of --node: adds CPU and memory of its parts
        #[arg(long)]
        own_cluster: bool,
        /// Nodes of that cluster
        #[arg(long, default_value_t = 1, value_parser = positive, requires = "own_cluster")]
        cluster_nodes: usize,
        /// Workers per node of that cluster
        #[arg(long, default_value_t = 1, value_parser = positive, requires = "own_cluster")]
        workers: usize,
        /// Find the highest rate that holds --p99-ms, to a tenth, from --rate on
        #[arg(long, requires = "own_cluster")]
        find_max: bool,
        /// Event to visible row, in every view that is watched
        #[arg(long, default_value_t = 500, requires = "find_max")]
        p99_ms: u32,
    },
    /// Send a recording (JSON lines), one simulated agent per host in it
    #[command(after_help = "Example:\n  weir-loadtest replay --node 127.0.0.1:7443 --ca ca recording.jsonl")]
    Replay {
        #[command(flatten)]
        target: TargetArguments,
        /// The recording
        file: PathBuf,
        /// Keep the recording's times; otherwise they are moved so that its last event happens now
        #[arg(long)]
        as_recorded: bool,
        /// Region of hosts whose lines name none
        #[arg(long, default_value = "replay")]
        region: String,
    },
    /// Measure events/s from fleet to views, and the time from event to visible row, on a cluster of its own
    #[command(after_help = "Example:\n  weir-loadtest bench --rate 100000 --seconds 30")]
    Bench {
        /// Simulated hosts
        #[arg(long, default_value_t = 60)]
        hosts: usize,
        /// Events a second of the whole fleet
        #[arg(long, default_value_t = 100_000)]
        rate: u64,
        /// How long
        #[arg(long, default_value_t = 30)]
        seconds: u64,
        /// Nodes
        #[arg(long, default_value_t = 1)]
        nodes: usize,
        /// Workers per node
        #[arg(long, default_value_t = 1)]
        workers: usize,
    },
    /// Kill one node at full load, and say how long acknowledgements and answers are missing
    #[command(after_help = "Example:\n  weir-loadtest death --nodes 3 --rate 30000 --seconds 20")]
    Death {
        /// Nodes, of which the last one dies
        #[arg(long, default_value_t = 3)]
        nodes: usize,
        /// Simulated hosts
        #[arg(long, default_value_t = 60)]
        hosts: usize,
        /// Events a second of the whole fleet
        #[arg(long, default_value_t = 30_000)]
        rate: u64,
        /// How long before the death, and how long after it
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// Leave an agent without a node for an hour of events, then drain its spool, and say what came of it
    #[command(after_help = "Example:\n  weir-loadtest outage --minutes 60 --rate 2000")]
    Outage {
        /// Minutes without a node, in the events' own time
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// Events a second, during the outage and after it
        #[arg(long, default_value_t = 2_000)]
        rate: u64,
        /// The spool's bound, in bytes
        #[arg(long, default_value_t = 256 << 20)]
        spool_bytes_max: u64,
    },
    /// Measure the way of alerts to a webhook, or take the webhook away while the node that sends dies
    #[command(
        after_help = "Examples:\n  weir-loadtest alerts --latency 200 --rate 2000\n  weir-loadtest alerts --outage 600 --nodes 3 --hits 4 --rate 2000\n\nExit code 1 when a hit did not come, or the books of an outage differ."
    )]
    Alerts(AlertsArguments),
    /// Kill and freeze the nodes of a cluster under load, then check that every event is there once
    #[command(after_help = "Example:\n  weir-loadtest chaos --rounds 20 --nodes 3 --dir chaos")]
    Chaos {
        /// Faults, one after the other
        #[arg(long, default_value_t = 10)]
        rounds: u32,
        /// Nodes
        #[arg(long, default_value_t = 3)]
        nodes: usize,
        /// Simulated hosts
        #[arg(long, default_value_t = 20)]
        hosts: usize,
        /// Events a second of the whole fleet
        #[arg(long, default_value_t = 1_000)]
        rate: u64,
        /// Which faults, when, to whom [default: of the clock]
        #[arg(long)]
        seed: Option<u64>,
        /// Keep everything here [default: a temporary directory, removed at the end]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Answer the same questions over the same files with Weir and with other systems, side by side
    #[command(
        after_help = "Example:\n  weir-loadtest peers --events 1000000 --rounds 3 --peers loop,duckdb,polars --out loadtest/results\n\nPython packages come from PyPI into a virtual environment below --dir. A peer that cannot be made ready is\nleft out, and the table says why. Exit code 1 when two answers differ."
    )]
    Peers {
        /// Events of each input
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
        events: u64,
        /// Runs of each; the median counts
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
        rounds: u32,
        /// Beside Weir
        #[arg(long, value_delimiter = ',', default_value = "loop,duckdb,polars,flink,pathway")]
        peers: Vec<Peer>,
        /// Inputs
        #[arg(long, value_delimiter = ',', default_value = "plain")]
        shapes: Vec<Shape>,
        /// Threads of each peer but the loop
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1_024))]
        workers: u16,
        /// Of the input
        #[arg(long, default_value_t = 42)]
        seed: u64,
        /// Where the table and the picture go
        #[arg(long, value_name = "DIR", default_value = "loadtest/results")]
        out: PathBuf,
        /// Inputs, environment and logs are kept here [default: a temporary directory, removed at the end]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Written below the table, such as what else the machine did
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// The one-thread loop that `peers` runs, a process of its own
    #[command(hide = true)]
    PeersLoop { query: String, shape: Shape, input: PathBuf, answer: PathBuf },
    /// Drive agents, nodes, journals and the chain through faults in one process, many worlds by seed
    #[command(
        visible_alias = "sim",
        after_help = "Examples:\n  weir-loadtest simulate --seeds 1000\n  weir-loadtest simulate --seed 17      what a failure says"
    )]
    Simulate {
        /// How many seeds
        #[arg(long, default_value_t = 1_000)]
        seeds: u64,
        /// The first of them
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// This one only
        #[arg(long, conflicts_with_all = ["seeds", "first"])]
        seed: Option<u64>,
        /// Worlds at once [default: one per CPU]
        #[arg(long)]
        threads: Option<usize>,
    },
    /// Write a simulated fleet's past into a new archive, and say what an event costs
    #[command(
        after_help = "Example:\n  weir-loadtest record --events 10000000 --dir record && weir archive query record -c 'select count(*) from events'"
    )]
    Record {
        /// Directory of the archive
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Events in all
        #[arg(long, default_value_t = 10_000_000)]
        events: u64,
        /// Events a second, in the fleet's own time
        #[arg(long, default_value_t = 2_000)]
        rate: u64,
        /// Simulated hosts
        #[arg(long, default_value_t = 60)]
        hosts: usize,
    },
}

#[derive(Debug, clap::Args)]
struct TargetArguments {
    /// A node's QUIC address; may be given more than once
    #[arg(long = "node", value_name = "ADDRESS", default_value = "127.0.0.1:7443")]
    nodes: Vec<SocketAddr>,
    /// Directory of the certificate authority (`weir ca init`)
    #[arg(long = "ca", value_name = "DIR", default_value = "ca")]
    authority: PathBuf,
    /// Tenant of the simulated agents
    #[arg(long, default_value = "demo")]
    tenant: String,
}

impl From<TargetArguments> for Target {
    fn from(arguments: TargetArguments) -> Self {
        Self { nodes: arguments.nodes, authority: arguments.authority, tenant: arguments.tenant, dialer: Some(Dialer::default()) }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // What a simulated node logs about its faults is of interest for one seed at most, and only when asked for.
    let usual = if matches!(arguments.command, Command::Simulate { .. }) { "off" } else { "warn" };
    let filter = EnvFilter::try_from_env("WEIR_LOG").unwrap_or_else(|_| EnvFilter::new(usual));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(failed) => {
            eprintln!("weir-loadtest: {failed}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(arguments.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("weir-loadtest: {failed:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Fleet {
            target,
            hosts,
            rate,
            seconds,
            seed,
            scenario,
            sql,
            own_cluster,
            cluster_nodes,
            workers,
            find_max,
            p99_ms,
        } => {
            let options = LoadOptions { scenario, hosts, rate, lasts: Duration::from_secs(seconds), seed };
            let say = |line: &str| eprintln!("{line}");
            if !own_cluster {
                let report = Box::pin(load::run(&target.into(), sql.as_deref(), &[], options, say)).await?;
                return report_load(&report);
            }
            let program = weir_program()?;
            let own = OwnCluster { program: &program, nodes: cluster_nodes, workers };
            if !find_max {
                return report_load(&Box::pin(load::run_own(own, options, say)).await?);
            }
            let (search, best) = Box::pin(load::find_max(own, options, p99_ms.into(), say)).await?;
            let best = best.with_context(|| format!("no rate holds {p99_ms} ms: {search:?}"))?;
            eprintln!("{} events/s hold a p99 of {p99_ms} ms, {} do not", best.options.rate, search.broke.unwrap_or(0));
            report_load(&best)?;
        }
        Command::Replay { target, file, as_recorded, region } => replay_file(target.into(), file, as_recorded, region).await?,
        Command::Bench { hosts, rate, seconds, nodes, workers } => {
            let options = BenchOptions { hosts, rate, lasts: Duration::from_secs(seconds), nodes, workers };
            report(&options, &Box::pin(bench::run(&weir_program()?, options)).await?);
        }
        Command::Death { nodes, hosts, rate, seconds } => {
            let options = DeathOptions { nodes, hosts, rate, each: Duration::from_secs(seconds) };
            report_death(&Box::pin(death::run(&weir_program()?, options)).await?)?;
        }
        Command::Outage { minutes, rate, spool_bytes_max } => {
            let scratch = tempfile::Builder::new().prefix("weir-outage-").tempdir()?;
            let options = OutageOptions { outage: Duration::from_secs(minutes * 60), rate, spool_bytes_max };
            report_outage(&options, &outage::run(scratch.path(), options).await?);
        }
        Command::Alerts(arguments) => Box::pin(arguments.run(&weir_program()?)).await?,
        Command::Chaos { rounds, nodes, hosts, rate, seed, dir } => {
            let seed = seed.unwrap_or_else(|| runner::now_ns().unsigned_abs());
            eprintln!("seed {seed}");
            let options = ChaosOptions { rounds, nodes, hosts, rate, seed };
            let scratch = tempfile::Builder::new().prefix("weir-chaos-").tempdir()?;
            let dir = dir.as_deref().unwrap_or_else(|| scratch.path());
            let report = chaos::run(&weir_program()?, dir, options, |line| eprintln!("{line}")).await?;
            eprintln!("{report}");
            anyhow::ensure!(report.is_exact(), "the cluster differs from the fleet's books (seed {seed})");
        }
        Command::Peers { events, rounds, peers, shapes, workers, seed, out, dir, note } => {
            let scratch = tempfile::Builder::new().prefix("weir-peers-").tempdir()?;
            let dir = dir.unwrap_or_else(|| scratch.path().to_owned());
            let options = PeersOptions { events, rounds, peers, shapes, workers: workers.into(), seed, out, dir, note };
            let weir = weir_program()?;
            tokio::task::spawn_blocking(move || peers::run(&weir, &options, |line| eprintln!("{line}"))).await??;
        }
        Command::PeersLoop { query, shape, input, answer } => {
            tokio::task::spawn_blocking(move || peers::run_loop(&query, shape, &input, &answer)).await??;
        }
        Command::Simulate { seeds, first, seed, threads } => {
            let threads = threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
            simulate_seeds(&match seed {
                Some(seed) => SimulateOptions { first: seed, seeds: 1, threads: 1 },
                None => SimulateOptions { first, seeds, threads },
            })?;
        }
        Command::Record { dir, events, rate, hosts } => {
            report_record(&record::write(&dir, RecordOptions { events, rate, hosts }).await?);
        }
    }
    Ok(())
}

/// `weir` beside this program.
fn weir_program() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name("weir");
    anyhow::ensure!(program.exists(), "{} is not there: build it with `cargo build --release --bin weir`", program.display());
    Ok(program)
}

fn report_load(report: &Report) -> anyhow::Result<()> {
    eprintln!("{report}");
    anyhow::ensure!(report.is_exact(), "the cluster differs from the fleet's books");
    Ok(())
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "give a number from 1 on".to_owned())
}

fn report_death(seen: &death::Seen) -> anyhow::Result<()> {
    eprintln!("{:<22} {:>15} {:>15}", "longest time between", "before, ms", "after, ms");
    let line = |what: &str, (before, after): (Duration, Duration)| {
        eprintln!("{what:<22} {:>15.0} {:>15.0}", before.as_secs_f64() * 1e3, after.as_secs_f64() * 1e3);
    };
    for (node, gaps) in seen.acks.iter().enumerate() {
        let dies = if node + 1 == seen.acks.len() { ", dies" } else { "" };
        line(&format!("acks (node {}{dies})", node + 1), *gaps);
    }
    line("answers", seen.answers);
    eprintln!("acknowledged {:>12} events, counted {}", seen.books.events, seen.counted);
    anyhow::ensure!(seen.counted == seen.books.events, "the views and the fleet's books differ");
    Ok(())
}

fn report_outage(options: &OutageOptions, seen: &Outage) {
    let per_second = |events: u64, time: Duration| events as f64 / time.as_secs_f64();
    let drained = per_second(seen.spooled + seen.made_meanwhile, seen.draining);
    eprintln!("made             {:>12} events in {} minutes without a node", seen.made, options.outage.as_secs() / 60);
    eprintln!("dropped          {:>12} events, told as losses", seen.dropped);
    eprintln!(
        "spooled          {:>12} events, {} bytes on the disk, {:.1} bytes an event",
        seen.spooled,
        seen.disk_bytes,
        seen.disk_bytes as f64 / seen.spooled.max(1) as f64
    );
    eprintln!("into the spool   {:>12.0} events/s", per_second(seen.made, seen.spooling));
    eprintln!(
        "drained          {drained:>12.0} events/s in {:.1} s beside new ones: {:.0} times {} events/s",
        seen.draining.as_secs_f64(),
        drained / options.rate as f64,
        options.rate
    );
    eprintln!(
        "new events       {:>12} made meanwhile; the longest wait for an ack {:?}",
        seen.made_meanwhile, seen.live_wait_max
    );
    eprintln!("stored           {:>12} events once, {} again", seen.stored, seen.twice);
}

fn simulate_seeds(options: &SimulateOptions) -> anyhow::Result<()> {
    let done = simulate::run(options, |done| {
        if done.is_multiple_of(100) {
            eprintln!("{done} of {} seeds", options.seeds);
        }
    });
    for (_, why) in &done.broken {
        eprintln!("{why}\n");
    }
    eprintln!("{done}");
    let seeds: Vec<u64> = done.broken.iter().map(|(seed, _)| *seed).collect();
    anyhow::ensure!(seeds.is_empty(), "these seeds do not hold: {seeds:?}");
    Ok(())
}

fn report_record(done: &Recorded) {
    let per = |total: f64, rows: u64| total / rows.max(1) as f64;
    eprintln!("written          {:>12} rows in {} flushes", done.rows, done.flushes);
    eprintln!("fresh files      {:>12.1} bytes a row", per(done.fresh_bytes as f64, done.rows));
    eprintln!(
        "in the end       {:>12.1} bytes a row, {} files, {} bytes",
        per(done.bytes as f64, done.rows),
        done.files,
        done.bytes
    );
    eprintln!("flushing         {:>12.2} us a row", per(done.flushing.as_secs_f64() * 1e6, done.rows));
    eprintln!(
        "compacting       {:>12.2} us a row read, each row {:.1} times",
        per(done.compacting.as_secs_f64() * 1e6, done.compacted_rows),
        per(done.compacted_rows as f64, done.rows)
    );
}

async fn replay_file(target: Target, file: PathBuf, as_recorded: bool, region: String) -> anyhow::Result<()> {
    let opened = File::open(&file).with_context(|| format!("could not open {}", file.display()))?;
    let recording = Recording::read(BufReader::new(opened), &region)?;
    for (line, why) in &recording.skipped {
        eprintln!("{}:{line}: skipped: {why}", file.display());
    }
    let (events, hosts, skipped) = (recording.events, recording.hosts.len(), recording.skipped_count);
    replay::run(recording, &ReplayOptions { as_recorded, region }, &target, runner::now_ns()).await?;
    eprintln!("{events} events of {hosts} hosts acknowledged, {skipped} lines skipped");
    Ok(())
}

fn report(options: &BenchOptions, measured: &bench::Measured) {
    let seconds = measured.took.as_secs_f64();
    eprintln!("asked for        {:>12} events/s for {} s", options.rate, options.lasts.as_secs());
    eprintln!("told             {:>12} events, {} connections", measured.books.events, measured.books.connections);
    eprintln!(
        "counted in views {:>12} events in {seconds:.1} s: {:.0} events/s",
        measured.counted,
        measured.counted as f64 / seconds
    );
    eprintln!("event to row     {:>12.0} ms p50, {:.0} ms p99", measured.latency_ms(0.5), measured.latency_ms(0.99));
    eprintln!("frame to ack     {:>12.0} ms p50, {:.0} ms p99", measured.ack_ms(0.5), measured.ack_ms(0.99));
    eprintln!(
        "CPU of the nodes {:>12.1} s: {:.2} us per event",
        measured.cpu_s,
        measured.cpu_s * 1e6 / measured.counted.max(1) as f64
    );
}
