//! Storms: what was made is what was read and what was counted as lost, exactly. They take a minute: `cargo test … --test live -- storms`.
//!
//! The counters are the machine's. Where others made records of the same class meanwhile, some of what was lost may be theirs: then
//! read and lost may exceed what was made, and the line says how many of theirs were read.

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Instant;

use weir_edge::probe::raw::{TcpOp, What};
use weir_edge::probe::{Dropped, HookSet, OpenPolicy, Options, RawEvent, UdpPolicy};

use super::{Case, Lab, Skip, say};

pub(super) const CASES: &[(&str, Case)] = &[
    ("storm_of_processes", processes),
    ("storm_of_connections", connections),
    ("storm_of_datagrams", datagrams),
    ("storm_of_opens", opens),
];

/// Records of one sort: how many are made, which they are, which counter has the lost ones.
struct Class {
    name: &'static str,
    made: u64,
    is: fn(&What) -> bool,
    lost: fn(&Dropped) -> u64,
}

pub(super) const NONE: HookSet = HookSet {
    exec: false,
    network: false,
    file: false,
    cgroup: false,
    security: false,
    changes: false,
    memory: false,
    absent_modules: false,
};

fn processes() -> Result<(), Skip> {
    const MADE: u64 = 20_000;
    let classes = [
        Class { name: "forks", made: MADE, is: |what| matches!(what, What::Fork(_)), lost: |dropped| dropped.fork },
        Class { name: "execs", made: MADE, is: |what| matches!(what, What::Exec(_)), lost: |dropped| dropped.exec },
        Class { name: "exits", made: MADE, is: |what| matches!(what, What::Exit(_)), lost: |dropped| dropped.exit },
    ];
    let me = std::process::id();
    let ours = move |event: &RawEvent| {
        event.who.as_ref().is_some_and(|who| if matches!(event.what, What::Fork(_)) { who.pid == me } else { who.ppid == me })
    };
    let work = || {
        for _ in 0..MADE {
            let child = Command::new("/bin/true").stdin(Stdio::null()).status();
            assert!(child.expect("it is there").success());
        }
    };
    both_rings(&Options { hooks: HookSet { exec: true, ..NONE }, ..super::all() }, &classes, &ours, work)
}

fn connections() -> Result<(), Skip> {
    const MADE: u64 = 50_000;
    let is = |what: &What| matches!(what, What::Tcp(tcp) if tcp.op != TcpOp::Listen);
    // A connect, an accept, two closes: one counter for all.
    let classes = [Class { name: "TCP records", made: 4 * MADE, is, lost: |dropped| dropped.tcp }];
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    let ours = move |event: &RawEvent| matches!(&event.what, What::Tcp(tcp) if tcp.local.1 == port || tcp.peer.1 == port);
    let work = move || {
        for _ in 0..MADE {
            let client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
            let (server, _) = listener.accept().expect("a client");
            // The server end closes first: the clients' ports are free again at once.
            drop(server);
            drop(client);
        }
    };
    both_rings(&Options { hooks: HookSet { network: true, ..NONE }, ..super::all() }, &classes, &ours, work)
}

/// Every datagram goes to another peer: each is a record.
fn datagrams() -> Result<(), Skip> {
    const MADE: u64 = 50_000;
    let classes = [Class { name: "sends", made: MADE, is: |what| matches!(what, What::Udp(_)), lost: |dropped| dropped.udp }];
    let me = std::process::id();
    let ours = move |event: &RawEvent| event.who.as_ref().is_some_and(|who| who.pid == me);
    let work = || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback");
        for i in 0..MADE {
            let [.., high, low] = i.to_be_bytes();
            let to = Ipv4Addr::new(127, 1 + (i >> 16) as u8, high, low);
            socket.send_to(b"storm", (to, 9)).expect("loopback");
        }
    };
    let udp = UdpPolicy { dns: false, ..UdpPolicy::default() };
    both_rings(&Options { hooks: NONE, udp, ..super::all() }, &classes, &ours, work)
}

fn opens() -> Result<(), Skip> {
    const MADE: u64 = 200_000;
    let classes = [Class { name: "opens", made: MADE, is: |what| matches!(what, What::Open(_)), lost: |dropped| dropped.open }];
    let dir = tempfile::tempdir().expect("a temporary directory");
    let real = std::fs::canonicalize(dir.path()).expect("it exists");
    let file = real.join("f");
    std::fs::write(&file, "x").expect("ours");
    // Only this folder is told: nobody else can be among the lost.
    let open = OpenPolicy { writes: false, prefixes: vec![real.to_string_lossy().into_owned()], repeat_ms: 0 };
    let work = || {
        for _ in 0..MADE {
            std::fs::File::open(&file).expect("ours");
        }
    };
    both_rings(&Options { hooks: HookSet { file: true, ..NONE }, open, ..super::all() }, &classes, &|_| true, work)
}

fn both_rings(
    options: &Options,
    classes: &[Class],
    ours: &dyn Fn(&RawEvent) -> bool,
    work: impl Fn() + Send + Sync,
) -> Result<(), Skip> {
    for ring_bytes in [8 << 20, 64 << 10] {
        let mut lab = Lab::new(Options { ring_bytes, ..options.clone() })?;
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let busy = scope.spawn(&work);
            while !busy.is_finished() {
                lab.read();
            }
            busy.join().expect("no panic");
        });
        // Once nobody refers to a socket any more its close is told, some time after the last close(2).
        lab.settle();
        let took = begun.elapsed();
        // Where kernel.bpf_stats_enabled is 1.
        for p in lab.probe.programs().iter().filter(|p| p.calls > 0) {
            say(&format!("     {}: {} calls, {} ns each", p.program, p.calls, p.ns / p.calls));
        }
        let (events, dropped) = lab.finish();
        for class in classes {
            let (mine, theirs): (Vec<_>, Vec<_>) = events.iter().filter(|e| (class.is)(&e.what)).partition(|e| ours(e));
            let (read, lost) = (mine.len() as u64, (class.lost)(&dropped));
            say(&format!(
                "     ring {} KiB: {} {} made, {read} read, {lost} lost, {} skipped, {} of others read, {} ms",
                ring_bytes >> 10,
                class.made,
                class.name,
                dropped.skipped,
                theirs.len(),
                took.as_millis()
            ));
            let counted = read + lost + dropped.skipped;
            assert!(read <= class.made && counted >= class.made, "{counted} of {}", class.made);
            assert!(counted == class.made || !theirs.is_empty(), "{counted} of {}, and nobody else was there", class.made);
        }
    }
    Ok(())
}
