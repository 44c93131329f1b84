//! What watching costs: CPU of an exec, a connection, a pair of file changes and a call that nobody hooks, without and with the
//! programs attached, and nanoseconds per call.
//!
//!     cargo run --release -p weir-edge --example overhead [EXECS] [CONNECTIONS] [CHANGES] [CALLS]
//!
//! A count of 0 leaves that out.
//! Needs root and BTF. The work is done by a child process whose CPU time the kernel reports exactly; runs without and with the
//! programs take turns and the median of five counts, because the machine may be busy. A last run with `kernel.bpf_stats_enabled`
//! (set back afterwards) gives the nanoseconds per call; it costs a little itself, so it is not part of the comparison.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use weir_edge::probe::{OpenPolicy, Options, Probe};

fn main() -> anyhow::Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: u32| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    match args.first().map(String::as_str) {
        Some("spawn") => return work(number(1, 0), spawn),
        Some("connect") => return connections(number(1, 0)),
        Some("change") => return changes(number(1, 0)),
        Some("call") => return work(number(1, 0), call),
        _ => {}
    }
    let plan = [
        ("spawn", number(0, 2_000)),
        ("connect", number(1, 20_000)),
        ("change", number(2, 20_000)),
        ("call", number(3, 1_000_000)),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let plan: Vec<_> = plan.into_iter().filter(|(_, count)| *count > 0).collect();
    for &(what, count) in &plan {
        let (mut without, mut with, mut agent) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..5 {
            without.push(cpu_us(what, count)?);
            let attached = runtime.block_on(watched(what, count))?;
            with.push(attached.work_us);
            agent.push(attached.agent_us);
        }
        let per = |samples: &mut Vec<f64>| {
            samples.sort_by(f64::total_cmp);
            samples[samples.len() / 2] / f64::from(count)
        };
        let (without, with, agent) = (per(&mut without), per(&mut with), per(&mut agent));
        let ratio = (with + agent) / without;
        say(&format!(
            "{what:8} {count:6} times: {without:7.1} us alone, {with:7.1} us watched + {agent:5.1} us agent = {ratio:.3}x"
        ))?;
    }
    let before = std::fs::read_to_string(STATS)?;
    std::fs::write(STATS, "1")?;
    let told = runtime.block_on(per_call(&plan));
    std::fs::write(STATS, before)?;
    told.map(|()| ExitCode::SUCCESS)
}

struct Watched {
    work_us: f64,
    agent_us: f64,
}

/// Runs the work in a child while this process reads the ring, as the agent does.
async fn watched(what: &str, count: u32) -> anyhow::Result<Watched> {
    let (mut probe, _) = Probe::load(&options())?;
    let before = used_us(libc::RUSAGE_SELF);
    let (name, child) = (
        what.to_owned(),
        tokio::task::spawn_blocking({
            let what = what.to_owned();
            move || cpu_us(&what, count)
        }),
    );
    let mut read = 0_u64;
    while !child.is_finished() {
        probe.ring().wait().await;
        probe.ring().drain(usize::MAX, |_| read += 1);
    }
    let work_us = child.await??;
    let agent_us = used_us(libc::RUSAGE_SELF) - before;
    let skipped: Vec<_> = probe.programs().into_iter().filter(|p| p.skipped > 0).map(|p| (p.program, p.skipped)).collect();
    let dropped = probe.finish(|_| read += 1)?;
    if dropped.skipped > 0 {
        say(&format!("{name}: {} calls were skipped and not made good, of {skipped:?}", dropped.skipped))?;
    }
    anyhow::ensure!(dropped.total() == dropped.skipped, "{name}: {dropped:?} of {read} dropped");
    Ok(Watched { work_us, agent_us })
}

async fn per_call(plan: &[(&'static str, u32)]) -> anyhow::Result<()> {
    let (mut probe, _) = Probe::load(&options())?;
    for (what, count) in plan.iter().copied() {
        let child = tokio::task::spawn_blocking(move || cpu_us(what, count));
        while !child.is_finished() {
            probe.ring().wait().await;
            probe.ring().drain(usize::MAX, drop);
        }
        child.await??;
    }
    for program in probe.programs().iter().filter(|program| program.calls > 0) {
        let ns = program.ns / program.calls;
        say(&format!("{:18} {:8} calls {ns:6} ns each, {} skipped", program.program, program.calls, program.skipped))?;
    }
    Ok(())
}

fn options() -> Options {
    Options { open: OpenPolicy { writes: true, prefixes: vec!["/etc/".to_owned()], repeat_ms: 10_000 }, ..Options::default() }
}

/// CPU of a child that does the work, its own children included, in microseconds.
fn cpu_us(what: &str, count: u32) -> anyhow::Result<f64> {
    let before = used_us(libc::RUSAGE_CHILDREN);
    let status = Command::new(std::env::current_exe()?).args([what, &count.to_string()]).status()?;
    anyhow::ensure!(status.success(), "{what} failed");
    Ok(used_us(libc::RUSAGE_CHILDREN) - before)
}

fn used_us(who: libc::c_int) -> f64 {
    // SAFETY: all zeroes is a valid rusage, and getrusage writes it whole before it is read.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(who, &raw mut usage);
        usage
    };
    let us = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000).as_secs_f64() * 1e6;
    us(usage.ru_utime) + us(usage.ru_stime)
}

fn work(count: u32, one: fn() -> anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    (0..count).try_for_each(|_| one())?;
    Ok(ExitCode::SUCCESS)
}

fn spawn() -> anyhow::Result<()> {
    anyhow::ensure!(Command::new("/bin/true").stdin(Stdio::null()).status()?.success(), "true is true");
    Ok(())
}

/// A directory made and removed.
fn changes(count: u32) -> anyhow::Result<ExitCode> {
    let path = std::env::temp_dir().join(format!("weir-overhead-{}", std::process::id()));
    for _ in 0..count {
        std::fs::create_dir(&path)?;
        std::fs::remove_dir(&path)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A system call that no hook is on.
fn call() -> anyhow::Result<()> {
    // SAFETY: getppid takes nothing and cannot fail.
    unsafe { libc::getppid() };
    Ok(())
}

/// Both ends in one thread: the kernel finishes the handshake before accept is called.
fn connections(count: u32) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = listener.local_addr()?;
    for _ in 0..count {
        let client = TcpStream::connect(to)?;
        let (server, _) = listener.accept()?;
        // The server end closes first, so that the ports of the clients are free again at once.
        drop(server);
        drop(client);
    }
    Ok(ExitCode::SUCCESS)
}

fn say(line: &str) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{line}")
}

const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";
