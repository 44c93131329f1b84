//! The collector against the running kernel: does something, reads what the kernel said, compares exactly.
//!
//! Needs root and BTF; without them every case is skipped, loudly, and the last line says so for CI to judge:
//! `live tests: N ran, M skipped`. Other processes may be busy on the machine: every case looks only at its own pids, ports,
//! cgroups and paths. No harness: the cases share the machine's cgroups and one probe each, so they run one after the other.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use weir_edge::probe::raw::{CgroupOp, Exec, Role, Tcp, TcpOp, What, Who};
use weir_edge::probe::{Dropped, HookSet, OpenPolicy, Options, Probe, RawEvent, Report, UdpPolicy, Unavailable};

#[path = "live/actions.rs"]
mod actions;
#[path = "live/calls.rs"]
mod calls;
#[path = "live/datagrams.rs"]
mod datagrams;
#[path = "live/storms.rs"]
mod storms;

type Case = fn() -> Result<(), Skip>;
struct Skip(String);

const CASES: &[(&str, Case)] = &[
    ("every_hook_of_the_baseline_attaches", every_hook_of_the_baseline_attaches),
    ("an_exec_carries_exact_arguments_and_resolved_paths", an_exec_carries_exact_arguments_and_resolved_paths),
    ("a_process_of_many_threads_exits_once", a_process_of_many_threads_exits_once),
    ("a_hundred_connections_are_seen_from_both_ends", a_hundred_connections_are_seen_from_both_ends),
    ("a_storm_of_connections_is_read_to_the_last", a_storm_of_connections_is_read_to_the_last),
    ("changes_of_state_inside_others_are_told", changes_of_state_inside_others_are_told),
    ("both_families_and_their_mixture_mirror", both_families_and_their_mixture_mirror),
    ("a_connection_that_nobody_accepts_says_so", a_connection_that_nobody_accepts_says_so),
    ("a_refused_connect_says_why", a_refused_connect_says_why),
    ("a_connect_without_route_says_why", a_connect_without_route_says_why),
    ("a_short_container_leaves_its_cgroup_on_every_record", a_short_container_leaves_its_cgroup_on_every_record),
    ("opens_are_filtered_in_the_kernel", opens_are_filtered_in_the_kernel),
    ("a_full_ring_drops_and_counts_exactly", a_full_ring_drops_and_counts_exactly),
    ("connections_older_than_the_agent_are_found", connections_older_than_the_agent_are_found),
    ("the_task_iterator_knows_this_process", the_task_iterator_knows_this_process),
    ("sensitive_calls_are_told_field_by_field", calls::are_told_field_by_field),
    ("what_harms_nobody_is_not_told", calls::what_harms_nobody_is_not_told),
    ("a_kill_inside_a_container_names_the_target_of_the_host", calls::a_kill_inside_a_container_names_the_target_of_the_host),
    ("calls_beyond_the_limit_are_counted_exactly", calls::beyond_the_limit_are_counted_exactly),
    ("datagrams_to_one_peer_are_summed_up", datagrams::to_one_peer_are_summed_up),
    ("datagrams_beyond_the_limit_are_counted", datagrams::beyond_the_limit_are_counted),
    ("actions_are_told_field_by_field", actions::are_told_field_by_field),
    ("two_thousand_processes_are_told_or_counted", actions::two_thousand_processes_are_told_or_counted),
    ("calls_without_room_are_counted_exactly", calls::without_room_are_counted_exactly),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "child-threads") {
        return child_threads();
    }
    if args.iter().any(|a| a == "--list") {
        return ExitCode::SUCCESS;
    }
    let filter = args.iter().find(|a| !a.starts_with('-'));
    let (mut ran, mut skipped) = (0, 0);
    let storms = filter.is_some_and(|f| f.starts_with("storm"));
    let cases = if storms { storms::CASES } else { CASES };
    let wanted = |name: &str| filter.is_none_or(|f| name.contains(f.as_str()) || f == "storms");
    for (name, case) in cases.iter().filter(|(name, _)| wanted(name)) {
        let begun = Instant::now();
        match case() {
            Ok(()) => {
                ran += 1;
                say(&format!("live {name} ... ok ({} ms)", begun.elapsed().as_millis()));
            }
            Err(Skip(why)) => {
                skipped += 1;
                say(&format!("live {name} ... SKIPPED: {why}"));
            }
        }
    }
    say(&format!("live tests: {ran} ran, {skipped} skipped"));
    ExitCode::SUCCESS
}

// ---- cases ----

fn every_hook_of_the_baseline_attaches() -> Result<(), Skip> {
    let lab = Lab::new(calls::all())?;
    let refused: Vec<_> = lab.report.hooks.iter().filter(|hook| !hook.attached).collect();
    // arm64 and others have no open(2), and none of its kind; kernels without loadable modules have no calls for them.
    let may_lack = |name: &str| {
        name == "sys_exit_open" || name.ends_with("_module") || (cfg!(not(target_arch = "x86_64")) && !name.starts_with("sys"))
    };
    assert!(refused.iter().all(|hook| may_lack(hook.name)), "refused: {refused:?}");
    say(&format!("     {} hooks, refused: {:?}", lab.report.hooks.len(), refused.iter().map(|h| h.name).collect::<Vec<_>>()));
    Ok(())
}

fn an_exec_carries_exact_arguments_and_resolved_paths() -> Result<(), Skip> {
    let mut lab = Lab::new(all())?;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let long = "x".repeat(700);
    let mut child = Command::new("/bin/echo")
        .args(["LABMARK", "two words", "", long.as_str()])
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("echo exists");
    let pid = child.id();
    child.wait().expect("our child");
    let killed = run_killed();
    lab.until(|events| {
        has(events, pid, |what| matches!(what, What::Exit(_))) && has(events, killed, |what| matches!(what, What::Exit(_)))
    });

    let (who, exec) = exec_of(&lab.events, pid);
    assert_eq!(exec.filename, b"/bin/echo");
    let real = std::fs::canonicalize("/bin/echo").expect("echo exists");
    assert_eq!(String::from_utf8_lossy(&exec.exe), real.to_string_lossy());
    let cwd = std::fs::canonicalize(dir.path()).expect("it exists");
    assert_eq!(String::from_utf8_lossy(&exec.cwd), cwd.to_string_lossy());
    let args: Vec<_> = exec.args.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
    assert_eq!(args, ["/bin/echo", "LABMARK", "two words", "", long.as_str()]);
    assert!(!exec.args_truncated && !exec.exe_truncated && !exec.cwd_truncated && !exec.exe_unlinked);
    assert_eq!((who.uid, exec.euid, who.comm.as_str()), (0, 0, "echo"));
    assert_eq!(who.ppid, std::process::id());
    assert_eq!(who.mnt_ns, namespace("mnt"));
    assert_eq!(who.pid_ns, namespace("pid"));
    assert_eq!(who.net_ns, namespace("net"));
    assert_ne!(exec.capabilities, 0);

    let fork = lab.events.iter().find_map(|e| match &e.what {
        What::Fork(fork) if fork.child_pid == pid => Some(*fork),
        _ => None,
    });
    assert_eq!(fork.expect("the fork is told").child_start_ns, who.start_ns);
    assert_eq!(exit_of(&lab.events, pid), vec![(0, 0)]);
    assert_eq!(exit_of(&lab.events, killed), vec![(0, 9)]);
    Ok(())
}

fn a_process_of_many_threads_exits_once() -> Result<(), Skip> {
    let mut lab = Lab::new(all())?;
    let mut pids = Vec::new();
    for _ in 0..20 {
        let mut child = Command::new(std::env::current_exe().expect("ours")).arg("child-threads").spawn().expect("ourselves");
        pids.push(child.id());
        child.wait().expect("our child");
    }
    lab.until(|events| pids.iter().all(|pid| has(events, *pid, |what| matches!(what, What::Exit(_)))));
    lab.settle();
    for pid in pids {
        assert_eq!(exit_of(&lab.events, pid), vec![(3, 0)], "pid {pid}");
    }
    Ok(())
}

fn a_hundred_connections_are_seen_from_both_ends() -> Result<(), Skip> {
    let mut lab = Lab::new(all())?;
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    let server = std::thread::spawn(move || {
        for i in 0..100 {
            let (mut stream, _) = listener.accept().expect("a client comes");
            let mut asked = vec![0; 1 + i * 37];
            stream.read_exact(&mut asked).expect("the client writes");
            stream.write_all(&vec![7; i * 1001]).expect("the client reads");
        }
    });
    for i in 0..100 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        stream.write_all(&vec![1; 1 + i * 37]).expect("the server reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the server writes and closes");
        assert_eq!(answer.len(), i * 1001);
    }
    server.join().expect("no panic");
    lab.until(|events| tcp(events, port, TcpOp::Close).len() >= 200);
    lab.settle();

    let (connects, accepts, closes) =
        (tcp(&lab.events, port, TcpOp::Connect), tcp(&lab.events, port, TcpOp::Accept), tcp(&lab.events, port, TcpOp::Close));
    assert_eq!((connects.len(), accepts.len(), closes.len()), (100, 100, 200));
    assert_eq!(tcp(&lab.events, port, TcpOp::Listen).len(), 1);
    let me = std::process::id();
    let mut cookies = std::collections::BTreeSet::new();
    for (who, connect) in &connects {
        assert_eq!(who.pid, me);
        assert_eq!((connect.role, connect.peer.1, connect.net_ns), (Some(Role::Client), port, namespace("net")));
        let (_, accept) = accepts.iter().find(|(_, a)| a.peer == connect.local).expect("the other end");
        assert_eq!((accept.isn_local, accept.isn_peer), (connect.isn_peer, connect.isn_local), "mirrored");
        assert!(connect.isn_local.is_some() && connect.isn_local != connect.isn_peer);
        let ends: Vec<_> = closes.iter().filter(|(_, c)| c.local == connect.local || c.peer == connect.local).collect();
        let client = ends.iter().find(|(_, c)| c.cookie == connect.cookie).expect("the client's close");
        let server = ends.iter().find(|(_, c)| c.cookie == accept.cookie).expect("the server's close");
        assert_eq!((client.0.pid, server.0.pid), (me, me));
        assert_eq!((client.1.bytes_sent, client.1.bytes_received), (server.1.bytes_received, server.1.bytes_sent));
        assert_eq!((client.1.isn_local, client.1.isn_peer), (connect.isn_local, connect.isn_peer));
        assert_eq!(client.1.opened_ns, connect.opened_ns);
        assert!(!server.1.unaccepted);
        cookies.extend([connect.cookie, accept.cookie]);
    }
    assert_eq!(cookies.len(), 200);
    let mut sent: Vec<_> =
        closes.iter().filter(|(_, c)| c.role == Some(Role::Client)).map(|(_, c)| (c.bytes_sent, c.bytes_received)).collect();
    sent.sort_unstable();
    assert_eq!(sent, (0..100).map(|i| (1 + i * 37, i * 1001)).collect::<Vec<_>>());
    Ok(())
}

fn a_storm_of_connections_is_read_to_the_last() -> Result<(), Skip> {
    const MADE: usize = 5_000;
    let lab = Lab::new(Options { ring_bytes: 32 << 20, ..all() })?;
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    for _ in 0..MADE {
        let client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        let (server, _) = listener.accept().expect("a client");
        // The server end closes first: the clients' ports are free again at once.
        drop(server);
        drop(client);
    }
    // Nobody read meanwhile: all of it waits in the ring.
    let (events, dropped) = lab.finish();
    let of = |op| tcp(&events, port, op).len();
    let read = (of(TcpOp::Connect), of(TcpOp::Accept), of(TcpOp::Close));
    // The counters are the machine's: when others fill the ring, what is missing here must at least be counted there.
    let missing = (4 * MADE - (read.0 + read.1 + read.2)) as u64;
    assert!(missing <= dropped.tcp + dropped.skipped, "{missing} of {} missing, {dropped:?}", 4 * MADE);
    assert!(missing > 0 || read == (MADE, MADE, 2 * MADE), "{read:?}");
    Ok(())
}

/// Both ends are here and two threads are busy: softirqs change states while a program is at work on another socket's.
fn changes_of_state_inside_others_are_told() -> Result<(), Skip> {
    const MADE: usize = 10_000;
    let mut lab = Lab::new(Options { ring_bytes: 32 << 20, ..all() })?;
    let listeners: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").expect("loopback")).collect();
    let ports: Vec<_> = listeners.iter().map(|l| l.local_addr().expect("bound").port()).collect();
    let mut busy = Vec::new();
    for (listener, port) in listeners.into_iter().zip(ports.clone()) {
        busy.push(std::thread::spawn(move || {
            for i in 0..MADE {
                let client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
                if i % 2 == 0 {
                    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).expect("a socket");
                }
            }
        }));
        busy.push(std::thread::spawn(move || (0..MADE).for_each(|_| drop(listener.accept().expect("a client")))));
    }
    let told = |events: &[RawEvent], op| -> Vec<usize> { ports.iter().map(|port| tcp(events, *port, op).len()).collect() };
    while busy.iter().any(|thread| !thread.is_finished()) {
        lab.read();
    }
    busy.into_iter().for_each(|thread| thread.join().expect("no panic"));
    // What was dropped under way is sent again later: the last closes may take a while.
    lab.until(|events| told(events, TcpOp::Close).iter().sum::<usize>() >= 4 * MADE);
    lab.settle();
    let nested = lab.probe.programs().iter().find(|p| p.program == "on_state").map(|p| p.skipped);
    let (events, dropped) = lab.finish();
    assert_eq!((dropped.tcp, dropped.skipped), (0, 0), "nothing of ours is lost");
    assert_eq!(told(&events, TcpOp::Connect), [MADE, MADE]);
    assert_eq!(told(&events, TcpOp::Accept), [MADE, MADE]);
    assert_eq!(told(&events, TcpOp::Close), [2 * MADE, 2 * MADE], "each end once");
    say(&format!("     {} changes came inside others", nested.unwrap_or(0)));
    Ok(())
}

fn both_families_and_their_mixture_mirror() -> Result<(), Skip> {
    let mut lab = Lab::new(all())?;
    let listener = TcpListener::bind("[::]:0").map_err(|e| Skip(format!("no IPv6: {e}")))?;
    let port = listener.local_addr().expect("bound").port();
    for to in ["127.0.0.1", "::1"] {
        let client = TcpStream::connect((to, port)).map_err(|e| Skip(format!("no {to}: {e}")))?;
        drop((listener.accept().expect("a client"), client));
    }
    lab.until(|events| tcp(events, port, TcpOp::Close).len() >= 4);
    let accepts = tcp(&lab.events, port, TcpOp::Accept);
    for (to, (_, connect)) in ["127.0.0.1", "::1"].iter().zip(tcp(&lab.events, port, TcpOp::Connect)) {
        assert_eq!(connect.peer, (to.parse().expect("an address"), port));
        let mirrored = accepts.iter().filter(|(_, a)| (a.isn_local, a.isn_peer) == (connect.isn_peer, connect.isn_local));
        let ends: Vec<_> = mirrored.map(|(_, a)| (a.local, a.peer)).collect();
        assert_eq!(ends, [(connect.peer, connect.local)], "a mapped address is the IPv4 address that the client sees");
    }
    Ok(())
}

fn a_connection_that_nobody_accepts_says_so() -> Result<(), Skip> {
    let mut lab = Lab::new(all())?;
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    let client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    drop(listener);
    lab.until(|events| tcp(events, port, TcpOp::Close).len() >= 2);
    drop(client);
    let closes = tcp(&lab.events, port, TcpOp::Close);
    let of = |role| closes.iter().find(|(_, c)| c.role == Some(role)).cloned().expect("both ends are told");
    let ((ours, client), (nobody, server)) = (of(Role::Client), of(Role::Server));
    assert_eq!((ours.pid, nobody.pid), (std::process::id(), 0));
    assert!(server.unaccepted && server.isn_local.is_some() && server.isn_local == client.isn_peer);
    assert_eq!(client.errno, Some(104), "the kernel reset it");
    assert!(tcp(&lab.events, port, TcpOp::Accept).is_empty());
    Ok(())
}

fn a_refused_connect_says_why() -> Result<(), Skip> {
    let mut lab = Lab::new(all())?;
    let port = free_port();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    lab.until(|events| !tcp(events, port, TcpOp::Fail).is_empty());
    lab.settle();
    let fails = tcp(&lab.events, port, TcpOp::Fail);
    let [(who, fail)] = fails.as_slice() else { panic!("one attempt, one record: {fails:?}") };
    assert_eq!((who.pid, fail.errno, fail.role), (std::process::id(), Some(111), Some(Role::Client)));
    assert_eq!(fail.peer, ("127.0.0.1".parse().expect("an address"), port));
    Ok(())
}

fn a_connect_without_route_says_why() -> Result<(), Skip> {
    let mut lab = Lab::new(all())?;
    let mut child = Command::new("unshare")
        .args(["-n", "bash", "-c", "echo > /dev/tcp/203.0.113.9/443"])
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| Skip(format!("unshare: {e}")))?;
    let pid = child.id();
    child.wait().expect("our child");
    lab.until(|events| has(events, pid, |what| matches!(what, What::Exit(_))));
    let fail = lab.events.iter().find_map(|e| match (&e.who, &e.what) {
        (Some(who), What::Tcp(t)) if who.pid == pid => Some(t.clone()),
        _ => None,
    });
    let fail = fail.expect("an attempt that never left is told as well");
    assert_eq!((fail.op, fail.errno), (TcpOp::Fail, Some(101)));
    assert_eq!(fail.peer, ("203.0.113.9".parse().expect("an address"), 443));
    assert_ne!(fail.net_ns, namespace("net"));
    Ok(())
}

fn a_short_container_leaves_its_cgroup_on_every_record() -> Result<(), Skip> {
    let mut lab = Lab::new(all())?;
    let root = cgroup_root().ok_or_else(|| Skip("no cgroup hierarchy to write to".to_owned()))?;
    let id = format!("{:064x}", std::process::id());
    let cgroup = Group::make(&root, &format!("kubepods/burstable/pod{}/{id}", std::process::id()))?;
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    let script =
        format!("echo $$ > {}/cgroup.procs; exec bash -c 'echo > /dev/tcp/127.0.0.1/{port}; sleep 0.05'", cgroup.path.display());
    let mut child = Command::new("sh").args(["-c", &script]).spawn().expect("sh exists");
    let pid = child.id();
    assert!(child.wait().expect("our child").success());
    drop(cgroup);
    lab.until(|events| {
        has(events, pid, |what| matches!(what, What::Exit(_)))
            && rmdir(events, &id).is_some()
            && !tcp(events, port, TcpOp::Connect).is_empty()
    });

    let made = lab.events.iter().find_map(|e| match &e.what {
        What::Cgroup(c) if c.op == CgroupOp::Mkdir && c.path.ends_with(id.as_bytes()) => Some(c.clone()),
        _ => None,
    });
    let made = made.expect("the directory is told before anybody is in it");
    assert_eq!(String::from_utf8_lossy(&made.path), format!("/kubepods/burstable/pod{}/{id}", std::process::id()));
    assert_eq!(rmdir(&lab.events, &id), Some(made.id));
    let ours = |who: &Who| if made.hierarchy == 0 { who.cgroup_v2 } else { who.cgroup_v1 };
    let bash = lab.events.iter().find_map(|e| match (&e.who, &e.what) {
        (Some(who), What::Exec(exec)) if who.pid == pid && exec.exe.ends_with(b"bash") => Some(ours(who)),
        _ => None,
    });
    assert_eq!(bash, Some(made.id), "the exec carries the cgroup");
    let connects = tcp(&lab.events, port, TcpOp::Connect);
    assert_eq!(connects.len(), 1);
    assert_eq!((connects[0].0.pid, ours(&connects[0].0)), (pid, made.id), "the connect carries the cgroup");
    let moved = lab.events.iter().any(|e| matches!(&e.what, What::Cgroup(c) if c.op == CgroupOp::Attach && c.id == made.id && c.task.is_some_and(|t| t.0 == pid)));
    assert!(moved, "the move into it is told");
    Ok(())
}

fn opens_are_filtered_in_the_kernel() -> Result<(), Skip> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let real = std::fs::canonicalize(dir.path()).expect("it exists");
    let watched = format!("{}/secret", real.display());
    let mut lab = Lab::new(Options {
        open: OpenPolicy { writes: false, prefixes: vec![watched[..watched.len().min(64)].to_owned()], repeat_ms: 60_000 },
        ..all()
    })?;
    std::fs::write(real.join("secret.txt"), "x").expect("ours");
    std::fs::write(real.join("other.txt"), "x").expect("ours");
    for _ in 0..5 {
        std::fs::read(real.join("secret.txt")).expect("ours");
        std::fs::read(real.join("other.txt")).expect("ours");
    }
    std::os::unix::fs::symlink(real.join("secret.txt"), real.join("innocent")).expect("ours");
    Command::new("cat").arg(real.join("innocent")).stdout(Stdio::null()).status().expect("cat exists");
    std::fs::rename(real.join("other.txt"), real.join("secret.2")).expect("ours");
    std::fs::read(real.join("secret.2")).expect("ours");
    lab.settle();
    let opens: Vec<_> = lab
        .events
        .iter()
        .filter_map(|e| match &e.what {
            What::Open(open) => Some((String::from_utf8_lossy(&open.path).into_owned(), open.flags & 3)),
            _ => None,
        })
        .filter(|(path, _)| path.starts_with(&*real.to_string_lossy()))
        .collect();
    let secret = format!("{watched}.txt");
    // Written once, read five times by us (told once), read through a link by another process, and what was renamed into sight.
    assert_eq!(opens, [(secret.clone(), 1), (secret.clone(), 0), (secret, 0), (format!("{watched}.2"), 0)]);
    Ok(())
}

fn a_full_ring_drops_and_counts_exactly() -> Result<(), Skip> {
    const MADE: u64 = 5_000;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let real = std::fs::canonicalize(dir.path()).expect("it exists");
    let lab = Lab::new(Options {
        hooks: HookSet {
            exec: false,
            network: false,
            file: true,
            cgroup: false,
            security: false,
            changes: false,
            memory: false,
            absent_modules: false,
        },
        open: OpenPolicy { writes: false, prefixes: vec![real.to_string_lossy().into_owned()], repeat_ms: 0 },
        ring_bytes: 4096,
        ..all()
    })?;
    std::fs::write(real.join("f"), "x").expect("ours");
    for _ in 1..MADE {
        std::fs::File::open(real.join("f")).expect("ours");
    }
    let (events, dropped) = lab.finish();
    let read = events.len() as u64;
    assert!(dropped.open > 0, "a ring of 4 KiB overflows");
    assert_eq!(read + dropped.open, MADE - dropped.skipped, "read {read}, {dropped:?}");
    Ok(())
}

fn connections_older_than_the_agent_are_found() -> Result<(), Skip> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    let mut client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let (mut server, _) = listener.accept().expect("a client");
    client.write_all(&[1; 1000]).expect("it reads");
    server.read_exact(&mut [0; 1000]).expect("it writes");
    server.write_all(&[1; 70]).expect("it reads");
    client.read_exact(&mut [0; 70]).expect("it writes");

    let mut lab = Lab::new(all())?;
    let seen = lab.probe.sockets().expect("root may read them");
    let ends: Vec<_> = tcp(&seen, port, TcpOp::Seen);
    assert_eq!(ends.len(), 3, "two ends and a listener: {ends:?}");
    assert!(ends.iter().all(|(who, _)| who.pid == std::process::id()), "{ends:?}");
    let end = |role| ends.iter().find(|(_, t)| t.role == Some(role)).map(|(_, t)| t.clone()).expect("its role is told");
    let (c, s) = (end(Role::Client), end(Role::Server));
    assert_eq!((c.peer.1, s.local.1, end(Role::Listener).local.1), (port, port, port));
    assert_eq!((c.isn_local, c.isn_peer), (s.isn_peer, s.isn_local), "reckoned, and mirrored");
    assert!(c.isn_local.is_some() && c.inode.is_some());
    assert_eq!((c.bytes_sent, c.bytes_received), (1000, 70));

    drop((client, server));
    lab.until(|events| tcp(events, port, TcpOp::Close).len() >= 2);
    for (who, close) in tcp(&lab.events, port, TcpOp::Close) {
        let before = if close.cookie == c.cookie { &c } else { &s };
        assert_eq!((who.pid, close.isn_local, close.role), (std::process::id(), before.isn_local, before.role));
        assert!(!close.unaccepted);
    }
    Ok(())
}

fn the_task_iterator_knows_this_process() -> Result<(), Skip> {
    let mut lab = Lab::new(all())?;
    let tasks = lab.probe.tasks().expect("root may read them");
    let me = tasks.iter().find(|who| who.pid == std::process::id()).expect("we run");
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let ticks = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)).and_then(|t| t.parse().ok());
    assert_eq!(Some(me.start_ticks()), ticks);
    assert!(tasks.iter().any(|who| who.pid == me.ppid && who.start_ns == me.parent_start_ns), "and its parent");
    Ok(())
}

// ---- the lab ----

struct Lab {
    runtime: tokio::runtime::Runtime,
    probe: Probe,
    report: Report,
    events: Vec<RawEvent>,
}

impl Lab {
    fn new(options: Options) -> Result<Self, Skip> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let loaded = runtime.block_on(async { Probe::load(&options) });
        match loaded {
            Ok((probe, report)) => Ok(Self { runtime, probe, report, events: Vec::new() }),
            Err(error @ (Unavailable::NoBtf(_) | Unavailable::Refused(_))) if !may_load_programs() => {
                Err(Skip(error.to_string()))
            }
            Err(error @ Unavailable::NoBtf(_)) => Err(Skip(error.to_string())),
            Err(error) => panic!("capabilities, BTF, and yet: {error}"),
        }
    }

    fn until(&mut self, enough: impl Fn(&[RawEvent]) -> bool) {
        let begun = Instant::now();
        while !enough(&self.events) {
            assert!(begun.elapsed() < Duration::from_secs(20), "20 s, and not all is there: {} events", self.events.len());
            self.read();
        }
    }

    /// Reads on until everything that was on the ring before is read: three empty ticks in a row, or one second.
    fn settle(&mut self) {
        let begun = Instant::now();
        let mut empty = 0;
        while empty < 3 && begun.elapsed() < Duration::from_secs(1) {
            empty = if self.read() == 0 { empty + 1 } else { 0 };
        }
    }

    fn read(&mut self) -> usize {
        let Self { runtime, probe, events, .. } = self;
        runtime.block_on(probe.ring().wait());
        probe.ring().drain(100_000, |event| events.push(event.expect("our programs write what we decode")))
    }

    fn finish(self) -> (Vec<RawEvent>, Dropped) {
        let Self { runtime, probe, mut events, .. } = self;
        let guard = runtime.enter();
        let dropped = probe.finish(|event| events.push(event.expect("our programs write what we decode"))).expect("counters");
        drop(guard);
        (events, dropped)
    }
}

fn all() -> Options {
    // The cases act from this process: nothing of it is left out. System calls have their own cases: unhooking them takes seconds.
    let hooks = HookSet { security: false, changes: false, memory: false, ..Options::default().hooks };
    Options { skip_pid: None, hooks, udp: UdpPolicy::OFF, ..Options::default() }
}

struct Group {
    path: PathBuf,
    made: Vec<PathBuf>,
}

impl Group {
    fn make(root: &Path, path: &str) -> Result<Self, Skip> {
        let mut group = Self { path: root.join(path), made: Vec::new() };
        let mut at = root.to_owned();
        for part in path.split('/') {
            at.push(part);
            if !at.exists() {
                std::fs::create_dir(&at).map_err(|e| Skip(format!("cgroups are not ours to make: {e}")))?;
                group.made.push(at.clone());
            }
        }
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for dir in self.made.iter().rev() {
            let begun = Instant::now();
            while std::fs::remove_dir(dir).is_err() && begun.elapsed() < Duration::from_secs(2) {
                std::thread::yield_now();
            }
        }
    }
}

/// The hierarchy that containers live in: v1 memory on a hybrid host, else v2.
fn cgroup_root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    let find = |wanted: &dyn Fn(&[&str]) -> bool| {
        mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|m| m.len() > 3 && wanted(m))
            .map(|m| PathBuf::from(m[1]))
    };
    find(&|m| m[2] == "cgroup" && m[3].split(',').any(|o| o == "memory")).or_else(|| find(&|m| m[2] == "cgroup2"))
}

fn child_threads() -> ExitCode {
    let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(std::thread::yield_now)).collect();
    drop(threads);
    ExitCode::from(3)
}

fn run_killed() -> u32 {
    let mut child = Command::new("sleep").arg("60").spawn().expect("sleep exists");
    child.kill().expect("our child");
    assert_eq!(child.wait().expect("our child").signal(), Some(9));
    child.id()
}

fn has(events: &[RawEvent], pid: u32, what: impl Fn(&What) -> bool) -> bool {
    events.iter().any(|e| e.who.as_ref().is_some_and(|who| who.pid == pid) && what(&e.what))
}

fn exec_of(events: &[RawEvent], pid: u32) -> (Who, Exec) {
    let found = events.iter().find_map(|e| match (&e.who, &e.what) {
        (Some(who), What::Exec(exec)) if who.pid == pid => Some((who.clone(), (**exec).clone())),
        _ => None,
    });
    found.expect("the exec is told")
}

fn exit_of(events: &[RawEvent], pid: u32) -> Vec<(u8, u8)> {
    let of = |e: &RawEvent| match (&e.who, e.what.clone()) {
        (Some(who), What::Exit(exit)) if who.pid == pid => Some((exit.code, exit.signal)),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

fn tcp(events: &[RawEvent], port: u16, op: TcpOp) -> Vec<(Who, Tcp)> {
    let of = |e: &RawEvent| match &e.what {
        What::Tcp(t) if t.op == op && (t.local.1 == port || t.peer.1 == port) => {
            Some((e.who.clone().unwrap_or_default(), (**t).clone()))
        }
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

fn rmdir(events: &[RawEvent], id: &str) -> Option<u64> {
    events.iter().find_map(|e| match &e.what {
        What::Cgroup(c) if c.op == CgroupOp::Rmdir && c.path.ends_with(id.as_bytes()) => Some(c.id),
        _ => None,
    })
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("loopback");
    listener.local_addr().expect("bound").port()
}

fn namespace(kind: &str) -> u32 {
    let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("procfs");
    let text = link.to_string_lossy().into_owned();
    text.split(['[', ']']).nth(1).and_then(|n| n.parse().ok()).expect("kind:[number]")
}

/// CAP_SYS_ADMIN, or CAP_BPF with CAP_PERFMON: root of a container often has none of them.
fn may_load_programs() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let capabilities = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    capabilities.is_some_and(|c| c & (1 << 21) != 0 || (c & (1 << 38) != 0 && c & (1 << 39) != 0))
}

fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("stdout");
}
