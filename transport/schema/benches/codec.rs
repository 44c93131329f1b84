//! Bytes and nanoseconds per event of the codec: `cargo bench -p weir-schema`.
//!
//! The mix is that of the encoding measurement: 10 % exec, 50 % connect, 25 % file, 15 % cpu samples, about 12 fields each,
//! 1,000 events of one host in one second. As frames are per lane, the mix is four frames; figures are sums over them, divided
//! by 1,000. `per_lane` batches 1,000 events of the mix; `live` are the same events as full live records (sockets' cookies,
//! initial sequence numbers, thread ids, namespaces, ancestors). `network` is one batch of 1,000 connects, `per_lane_100` the
//! mix in batches of 100.
//! Encode = events pushed, packed, compressed. Decode = checksum, decompressed, unpacked to columns.

#![allow(clippy::print_stdout, clippy::unwrap_used)]
#![allow(missing_docs)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_schema::{BatchBuilder, BootId, Container, Decoder, Epoch, Event, Fields, Frame, Host, Kind, Lane, Process, Seq, Text};

/// XorShift: the same events on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }
    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.next(of.len() as u64) as usize]
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Record {
    Lean,
    Live,
}

fn text(text: impl AsRef<str>) -> Text {
    text.as_ref().into()
}

fn hex(random: &mut Random, digits: usize) -> String {
    (0..digits).map(|_| char::from_digit(random.next(16) as u32, 16).unwrap()).collect()
}

struct Fleet {
    containers: Vec<Arc<Container>>,
    processes: Vec<(Arc<Process>, usize)>,
    peers: Vec<Text>,
    own: Vec<Text>,
    paths: Vec<Text>,
}

const COMMANDS: [&str; 8] = ["nginx", "postgres", "redis-server", "python3", "java", "node", "curl", "sh"];

fn process(random: &mut Random, record: Record, container: &Container, nth: u64) -> Process {
    let command = *random.pick(&COMMANDS);
    let live = record == Record::Live;
    let only_live = |value: String| live.then(|| text(value));
    Process {
        pid: 2_000 + nth as u32,
        start_ns: 5_000_000_000_000 + nth * 1_000_000 + random.next(1_000_000),
        ppid: Some(1_000 + random.next(40) as u32),
        parent_start_ns: live.then(|| 4_000_000_000_000 + random.next(40) * 77_777_777),
        exe: Some(text(format!("/usr/bin/{command}"))),
        comm: Some(text(command)),
        cmdline: live.then(|| text(format!("{command} --config /etc/{command}.conf --worker {}", random.next(20)))),
        args: None,
        cwd: only_live("/srv".to_owned()),
        uid: Some(*random.pick(&[0, 33, 999, 1000])),
        user_name: only_live("app".to_owned()),
        login_uid: live.then_some(u32::MAX),
        session_id: live.then(|| random.next(50) as u32),
        parent_exe: only_live("/usr/bin/containerd-shim".to_owned()),
        ancestors: only_live(r#"["/usr/bin/containerd-shim","/usr/lib/systemd/systemd"]"#.to_owned()),
        capabilities: only_live("00000000a80425fb".to_owned()),
        cgroup: live.then(|| text(format!("/kubepods/burstable/{}", container.container_id.as_deref().unwrap_or("")))),
        pid_ns: live.then(|| 4_026_532_000 + random.next(30) as u32),
        mnt_ns: live.then(|| 4_026_532_000 + random.next(30) as u32),
        net_ns: live.then(|| 4_026_532_000 + random.next(30) as u32),
        ..Process::default()
    }
}

fn fleet(random: &mut Random, record: Record) -> Fleet {
    let apps = ["web", "api", "db", "cache", "billing", "search"];
    let containers: Vec<_> = (0..20)
        .map(|_| {
            let app = *random.pick(&apps);
            Arc::new(Container {
                app: Some(text(app)),
                container_id: Some(text(hex(random, 64))),
                image: (record == Record::Live).then(|| text(format!("registry.example/{app}:1.{}", random.next(9)))),
                pod: (record == Record::Live).then(|| text(format!("{app}-7d9f8b6c5-{}", random.next(100_000)))),
                namespace: (record == Record::Live).then(|| text("prod")),
                ..Container::default()
            })
        })
        .collect();
    let processes = (0..100)
        .map(|nth| {
            let at = random.next(20) as usize;
            (Arc::new(process(random, record, &containers[at], nth)), at)
        })
        .collect();
    let address = |random: &mut Random| text(format!("10.{}.{}.{}", random.next(4), random.next(16), random.next(250) + 1));
    Fleet {
        peers: (0..200).map(|_| address(random)).collect(),
        own: (0..20).map(|_| address(random)).collect(),
        paths: (0..200).map(|nth| text(format!("/var/lib/app/data/{:02}/segment-{nth:05}.dat", nth % 17))).collect(),
        containers,
        processes,
    }
}

/// The events of one second of one host.
fn mix(record: Record, kinds: &[(u64, Kind)], count: u64) -> Vec<Event> {
    let random = &mut Random(0x5eed_5eed_5eed_5eed);
    let fleet = fleet(random, record);
    let (tcp, out) = (text("tcp"), text("out"));
    let all: u64 = kinds.iter().map(|(share, _)| share).sum();
    let mut time = 1_790_000_000_000_000_000i64;
    let mut fresh = 0u64;
    (0..count)
        .map(|_| {
            time += random.next(2_000_000) as i64;
            let mut draw = random.next(all);
            let kind = kinds
                .iter()
                .find(|(share, _)| {
                    let hit = draw < *share;
                    draw = draw.wrapping_sub(*share);
                    hit
                })
                .unwrap()
                .1;
            let (process_of, at) = random.pick(&fleet.processes).clone();
            let container = Some(Arc::clone(&fleet.containers[at]));
            let mut fields = Fields::default();
            let mut who = Some(process_of);
            match kind {
                Kind::Exec => {
                    fresh += 1;
                    let mut new = process(random, record, &fleet.containers[at], 1_000 + fresh);
                    new.args = Some(text(format!(r#"["{}","-c","job {}"]"#, new.comm.as_deref().unwrap(), random.next(40))));
                    new.cwd = Some(text("/srv"));
                    fields.path = new.exe.clone();
                    who = Some(Arc::new(new));
                }
                Kind::Connect => {
                    fields.src_ip = Some(Text::clone(&fleet.own[at]));
                    fields.src_port = Some(32_768 + random.next(28_000) as u16);
                    // A collector formats the peer and the path anew each time: their texts are equal, not the same.
                    fields.dst_ip = Some(text(random.pick(&fleet.peers)));
                    fields.dst_port = Some(*random.pick(&[443, 5432, 6379, 8080, 9092]));
                    fields.proto = Some(Text::clone(&tcp));
                    fields.direction = Some(Text::clone(&out));
                    fields.result = Some(if random.next(50) == 0 { 111 } else { 0 });
                    if record == Record::Live {
                        fields.socket_id = Some(90_000 + random.next(1_000) * 3);
                        fields.isn_local = Some(random.next(1 << 32) as u32);
                        fields.isn_peer = Some(random.next(1 << 32) as u32);
                    }
                }
                Kind::Open => {
                    fields.path = Some(text(random.pick(&fleet.paths)));
                    fields.flags = Some(*random.pick(&[0, 0o102, 0o100_001]));
                    fields.mode = Some(0o644);
                    fields.result = Some(0);
                }
                _ => {
                    who = None;
                    fields.interval_ms = Some(1_000);
                    fields.cpu_ms = Some(random.next(900));
                    fields.cpu_limit_ms = Some(2_000);
                    fields.mem_bytes = Some((50_000 + random.next(40_000)) * 4_096);
                    fields.mem_limit_bytes = Some(512 << 20);
                    fields.processes = Some(1 + random.next(30));
                    if record == Record::Live {
                        fields.io_read_bytes = Some(random.next(100) * 4_096);
                        fields.io_write_bytes = Some(random.next(1_000) * 4_096);
                        fields.net_sent_bytes = Some(random.next(10_000_000));
                        fields.net_received_bytes = Some(random.next(10_000_000));
                        (fields.oom_kills, fields.throttled_ms) = (Some(0), Some(random.next(30)));
                    }
                }
            }
            if record == Record::Live {
                fields.tid = who.as_ref().map(|process| process.pid + random.next(3) as u32);
            }
            Event { time, kind, process: who, container, fields }
        })
        .collect()
}

/// One builder per lane, as an agent has them.
struct Lanes(Vec<BatchBuilder>);

impl Lanes {
    fn new() -> Self {
        let host = Arc::new(Host {
            host: text("ip-10-0-3-17.eu-west-1.compute.internal"),
            cloud: Some(text("aws")),
            zone: Some(text("eu-west-1b")),
            boot_id: BootId([7; 16]),
            simulated: false,
        });
        Self(Lane::ALL.iter().map(|lane| BatchBuilder::new(Arc::clone(&host), Epoch(1), *lane, Seq(0))).collect())
    }

    fn encode(&mut self, events: &[Event]) -> Vec<Frame> {
        for event in events {
            self.0[event.kind.lane() as usize].push(event).unwrap();
        }
        self.0.iter_mut().filter(|builder| !builder.is_empty()).map(|builder| builder.finish().unwrap()).collect()
    }
}

const MIX: [(u64, Kind); 4] = [(10, Kind::Exec), (50, Kind::Connect), (25, Kind::Open), (15, Kind::Sample)];

fn codec(criterion: &mut Criterion) {
    let cases = [
        ("per_lane", Record::Lean, &MIX[..], 1_000),
        ("per_lane_100", Record::Lean, &MIX[..], 100),
        ("live", Record::Live, &MIX[..], 1_000),
        ("network", Record::Lean, &MIX[1..2], 1_000),
        ("live_network", Record::Live, &MIX[1..2], 1_000),
    ];
    let mut group = criterion.benchmark_group("codec");
    for (name, record, kinds, count) in cases {
        let events = mix(record, kinds, count);
        group.throughput(Throughput::Elements(count));
        let mut lanes = Lanes::new();
        let frames = lanes.encode(&events);
        let sum = |of: fn(&Frame) -> usize| frames.iter().map(of).sum::<usize>() as f64 / count as f64;
        let by_lane: Vec<_> = frames
            .iter()
            .map(|f| format!("{} {:.1}", f.header.lane.as_str(), f.bytes.len() as f64 / f64::from(f.header.count)))
            .collect();
        println!(
            "{name}: {:.1} bytes/event on the wire, {:.1} before compression; by lane: {}",
            sum(|frame| frame.bytes.len()),
            sum(|frame| frame.header.raw_len as usize),
            by_lane.join(", ")
        );
        events.iter().for_each(|event| lanes.0[event.kind.lane() as usize].push(event).unwrap());
        let estimate: usize = lanes.0.iter().filter(|builder| !builder.is_empty()).map(BatchBuilder::bytes_estimate).sum();
        println!("{name}: {:.2} of the builder's estimate", sum(|frame| frame.bytes.len()) * count as f64 / estimate as f64);
        lanes = Lanes::new();
        let mut decoder = Decoder::new();
        let encode = least(count, || drop(black_box(lanes.encode(black_box(&events)))));
        let decode = least(count, || {
            for frame in &frames {
                let header = Frame::check(black_box(&frame.bytes)).unwrap();
                black_box(decoder.decode(header, &frame.bytes).unwrap());
            }
        });
        println!("{name}: least of 2,000 runs: encode {encode} ns/event, decode {decode} ns/event");
        group.bench_function(format!("encode/{name}"), |bencher| bencher.iter(|| black_box(lanes.encode(black_box(&events)))));
        group.bench_function(format!("decode/{name}"), |bencher| {
            bencher.iter(|| {
                for frame in &frames {
                    let header = Frame::check(black_box(&frame.bytes)).unwrap();
                    black_box(decoder.decode(header, &frame.bytes).unwrap());
                }
            });
        });
    }
    group.finish();
}

/// Least time of many runs: what the code needs when nobody else has the core. Nanoseconds per event.
fn least(events: u64, mut run: impl FnMut()) -> u128 {
    let time = |run: &mut dyn FnMut()| {
        let start = std::time::Instant::now();
        run();
        start.elapsed().as_nanos()
    };
    (0..2_000).map(|_| time(&mut run)).min().unwrap_or(0) / u128::from(events)
}

criterion_group!(benches, codec);
criterion_main!(benches);
