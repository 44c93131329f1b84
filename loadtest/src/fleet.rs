//! A synthetic fleet: hosts in regions of several clouds, containers of apps, and what they do, all from one seed.
//!
//! Pure: time goes in, events come out. Both ends of every connection are told, each by its own host, with mirrored initial
//! sequence numbers, as kernels would. Every batch of the fleet is marked `simulated`.
//!
//! What it does by itself is harmless (`habits.rs`): the detection rules that ship find nothing in it. A small intrusion is played on
//! request (`intrusion.rs`).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use weir_schema::{BootId, Container, Event, Fields, Host, Kind, Process, Text};

use habits::{APPS, Habits};

mod habits;
mod intrusion;

pub use intrusion::INTRUSION_LASTS_NS;

/// What to simulate.
#[derive(Debug, Clone, Copy)]
pub struct FleetOptions {
    /// Hosts, spread evenly over the regions.
    pub hosts: usize,
    /// Events per second of the whole fleet.
    pub rate: u64,
    /// Everything random comes from it.
    pub seed: u64,
    /// Nanoseconds since the Unix epoch at which the fleet starts.
    pub start_ns: i64,
}

/// A fleet that acts as time goes on.
pub struct Fleet {
    random: Random,
    hosts: Vec<SimHost>,
    /// Connections that are open, by when they close.
    open: BinaryHeap<Reverse<(i64, u64)>>,
    closing: HashMap<u64, Connection>,
    connections: u64,
    /// When the next event is due.
    next_ns: i64,
    /// Nanoseconds between two actions.
    step_ns: i64,
    rate: u64,
    samples_due_ns: i64,
    texts: Texts,
    /// What is to be told, by time and host; empty but for an intrusion.
    script: VecDeque<(usize, Event)>,
    books: Books,
}

/// What the fleet has done: the answers that a view must give.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Books {
    /// Events told, samples included.
    pub events: u64,
    /// Connections that came to be.
    pub connections: u64,
    /// Connections that were refused.
    pub refused: u64,
    /// Connections that are open now.
    pub open: u64,
}

/// One simulated host, as its agent would present itself.
#[derive(Debug, Clone)]
pub struct SimHost {
    /// What its batches say of it.
    pub host: Arc<Host>,
    /// Region, as in its certificate.
    pub region: &'static str,
    address: Text,
    actors: Vec<Actor>,
    sockets: u64,
    port: u16,
    pid: u32,
}

#[derive(Debug, Clone)]
struct Actor {
    process: Arc<Process>,
    container: Arc<Container>,
    habits: &'static Habits,
}

struct Connection {
    id: u64,
    client: End,
    server: End,
    opened_ns: i64,
    fields: Fields,
}

#[derive(Clone, Copy)]
struct End {
    host: usize,
    actor: usize,
    socket: u64,
}

/// The six regions of three clouds.
pub const REGIONS: [(&str, &str); 6] = [
    ("aws", "aws-eu-west-1"),
    ("aws", "aws-us-east-1"),
    ("gcp", "gcp-europe-west4"),
    ("gcp", "gcp-us-central1"),
    ("azure", "azure-westeurope"),
    ("azure", "azure-eastus"),
];

struct Texts {
    tcp: Text,
    outward: Text,
    inward: Text,
}

const ACTORS_PER_HOST: usize = 6;
const SECOND_NS: i64 = 1_000_000_000;
/// Each connection tells four events, a run of a tool two, a file one: see `act`.
const EVENTS_PER_ACTION: f64 = 2.6;

impl Fleet {
    /// Makes the hosts. The first call of [`Fleet::advance`] tells their starts.
    pub fn new(options: FleetOptions) -> Self {
        let mut random = Random(options.seed | 1);
        let hosts: Vec<SimHost> = (0..options.hosts).map(|index| SimHost::new(index, &mut random)).collect();
        let step_ns = step_ns(options.rate, hosts.len());
        Self {
            random,
            hosts,
            open: BinaryHeap::new(),
            closing: HashMap::new(),
            connections: 0,
            next_ns: options.start_ns,
            step_ns,
            rate: options.rate,
            samples_due_ns: options.start_ns + SECOND_NS,
            texts: Texts { tcp: "tcp".into(), outward: "out".into(), inward: "in".into() },
            script: VecDeque::new(),
            books: Books::default(),
        }
    }

    /// The hosts, in the order of the indices that [`Fleet::advance`] gives.
    pub fn hosts(&self) -> &[SimHost] {
        &self.hosts
    }

    /// What has been told so far.
    pub fn books(&self) -> Books {
        self.books
    }

    /// The first event of every host: its start and its addresses.
    pub fn start(&mut self, now_ns: i64, mut tell: impl FnMut(usize, Event)) {
        for index in 0..self.hosts.len() {
            self.agent_starts(index, now_ns, &mut tell);
        }
    }

    /// What the agent of a host says first, each time it starts.
    pub fn agent_starts(&mut self, index: usize, now_ns: i64, mut tell: impl FnMut(usize, Event)) {
        let fields = Fields {
            addresses: Some(format!("[\"{}\"]", self.hosts[index].address).into()),
            detail: Some("{\"agent_version\":\"simulated\",\"mode\":\"simulated\"}".into()),
            ..Fields::default()
        };
        tell(index, Event { time: now_ns, kind: Kind::HostStart, process: None, container: None, fields });
        self.books.events += 1;
    }

    /// From now on so many events a second.
    pub fn set_rate(&mut self, rate: u64) {
        self.rate = rate;
        self.step_ns = step_ns(rate, self.hosts.len());
    }

    /// Acts up to `now_ns` and tells every event with the index of the host that saw it.
    pub fn advance(&mut self, now_ns: i64, mut tell: impl FnMut(usize, Event)) {
        while self.next_ns <= now_ns {
            let at = self.next_ns;
            self.close_due(at, &mut tell);
            self.act(at, &mut tell);
            self.next_ns += self.step_ns;
        }
        self.close_due(now_ns, &mut tell);
        self.play(now_ns, &mut tell);
        if now_ns >= self.samples_due_ns {
            self.sample(now_ns, &mut tell);
            self.samples_due_ns = now_ns + SECOND_NS;
        }
    }

    /// One action: of 100, 45 are connections (4 events), 15 runs of a tool (2), 40 file opens (1).
    fn act(&mut self, at: i64, tell: &mut impl FnMut(usize, Event)) {
        match self.random.below(100) {
            0..45 => self.connect(at, tell),
            45..60 => self.run_tool(at, tell),
            _ => self.open_file(at, tell),
        }
    }

    fn connect(&mut self, at: i64, tell: &mut impl FnMut(usize, Event)) {
        let client = self.end();
        let server = self.end();
        let port = self.hosts[server.host].actors[server.actor].habits.port;
        let source_port = self.hosts[client.host].next_port();
        let fields = Fields {
            src_ip: Some(self.hosts[client.host].address.clone()),
            src_port: Some(source_port),
            dst_ip: Some(self.hosts[server.host].address.clone()),
            dst_port: Some(port),
            proto: Some(self.texts.tcp.clone()),
            ..Fields::default()
        };
        if self.random.below(50) == 0 {
            let refused = Fields {
                direction: Some(self.texts.outward.clone()),
                result: Some(CONNECTION_REFUSED),
                socket_id: Some(client.socket),
                ..fields
            };
            self.books.refused += 1;
            return self.tell(client, at, Kind::Connect, refused, tell);
        }
        self.connections += 1;
        self.books.connections += 1;
        self.books.open += 1;
        let isns = (self.random.next() as u32, self.random.next() as u32);
        let fields = Fields { isn_local: Some(isns.0), isn_peer: Some(isns.1), result: Some(0), ..fields };
        let connection = Connection { id: self.connections, client, server, opened_ns: at, fields };
        let latency = 200_000 + self.random.below(20_000_000) as i64;
        self.tell(client, at, Kind::Connect, connection.seen_by_client(&self.texts), tell);
        self.tell(server, at + latency, Kind::Accept, connection.seen_by_server(&self.texts), tell);
        let life = match self.random.below(20) {
            0 => 20 * SECOND_NS + self.random.below(100 * SECOND_NS as u64) as i64,
            _ => 5_000_000 + self.random.below(3 * SECOND_NS as u64) as i64,
        };
        self.open.push(Reverse((at + latency + life, connection.id)));
        self.closing.insert(connection.id, connection);
    }

    fn close_due(&mut self, now_ns: i64, tell: &mut impl FnMut(usize, Event)) {
        while let Some(&Reverse((at, id))) = self.open.peek() {
            if at > now_ns {
                return;
            }
            self.open.pop();
            let Some(connection) = self.closing.remove(&id) else { continue };
            let sent = 200 + self.random.below(20_000);
            let received = 500 + self.random.below(2_000_000) / (1 + self.random.below(50));
            let life_ms = ((at - connection.opened_ns) / 1_000_000) as u64;
            let closed = |seen: Fields, sent, received| Fields {
                bytes_sent: Some(sent),
                bytes_received: Some(received),
                duration_ms: Some(life_ms),
                ..seen
            };
            let client = closed(connection.seen_by_client(&self.texts), sent, received);
            let server = closed(connection.seen_by_server(&self.texts), received, sent);
            self.books.open -= 1;
            self.tell(connection.client, at, Kind::Close, client, tell);
            self.tell(connection.server, at + 100_000, Kind::Close, server, tell);
        }
    }

    fn run_tool(&mut self, at: i64, tell: &mut impl FnMut(usize, Event)) {
        let end = self.end();
        let life = 2_000_000 + self.random.below(200_000_000) as i64;
        let pick = self.random.next() as usize;
        let host = &mut self.hosts[end.host];
        let pid = host.next_pid();
        let actor = &host.actors[end.actor];
        let tool = &actor.habits.tools[pick % actor.habits.tools.len()];
        let exe = tool.exe;
        // A probe is the container runtime's child, and not the app's.
        let (ppid, parent_start_ns, parent_exe) = match tool.parent {
            Some(exe) => (RUNTIME_PID, None, Some(exe.into())),
            None => (actor.process.pid, Some(actor.process.start_ns), actor.process.exe.clone()),
        };
        let process = Arc::new(Process {
            pid,
            start_ns: at as u64,
            ppid: Some(ppid),
            parent_start_ns,
            exe: Some(exe.into()),
            comm: exe.rsplit('/').next().map(Into::into),
            cmdline: Some(tool.cmdline.into()),
            uid: actor.process.uid,
            parent_exe,
            ..Process::default()
        });
        let container = Some(actor.container.clone());
        let run = Fields { path: Some(exe.into()), result: Some(0), ..Fields::default() };
        let exit = Fields { exit_code: Some(0), duration_ms: Some((life / 1_000_000) as u64), ..Fields::default() };
        let event =
            |time, kind, fields| Event { time, kind, process: Some(process.clone()), container: container.clone(), fields };
        tell(end.host, event(at, Kind::Exec, run));
        tell(end.host, event(at + life, Kind::Exit, exit));
        self.books.events += 2;
    }

    fn open_file(&mut self, at: i64, tell: &mut impl FnMut(usize, Event)) {
        let end = self.end();
        let pick = self.random.next() as usize;
        let files = self.hosts[end.host].actors[end.actor].habits.files;
        let (path, flags) = files[pick % files.len()];
        let fields = Fields { path: Some(path.into()), flags: Some(flags), result: Some(0), ..Fields::default() };
        self.tell(end, at, Kind::Open, fields, tell);
    }

    fn sample(&mut self, at: i64, tell: &mut impl FnMut(usize, Event)) {
        for index in 0..self.hosts.len() {
            let mut whole = Fields { interval_ms: Some(1_000), processes: Some(40), ..Fields::default() };
            for actor in 0..ACTORS_PER_HOST {
                let fields = self.utilisation();
                whole.cpu_ms = Some(whole.cpu_ms.unwrap_or(20) + fields.cpu_ms.unwrap_or(0));
                whole.mem_bytes = Some(whole.mem_bytes.unwrap_or(1 << 30) + fields.mem_bytes.unwrap_or(0));
                let container = Some(self.hosts[index].actors[actor].container.clone());
                tell(index, Event { time: at, kind: Kind::Sample, process: None, container, fields });
            }
            tell(index, Event { time: at, kind: Kind::Sample, process: None, container: None, fields: whole });
            self.books.events += ACTORS_PER_HOST as u64 + 1;
        }
    }

    fn utilisation(&mut self) -> Fields {
        Fields {
            interval_ms: Some(1_000),
            cpu_ms: Some(self.random.below(400)),
            cpu_limit_ms: Some(2_000),
            mem_bytes: Some((64 + self.random.below(512)) << 20),
            mem_limit_bytes: Some(1 << 30),
            io_read_bytes: Some(self.random.below(1 << 20)),
            io_write_bytes: Some(self.random.below(1 << 20)),
            net_sent_bytes: Some(self.random.below(1 << 22)),
            net_received_bytes: Some(self.random.below(1 << 22)),
            processes: Some(1 + self.random.below(8)),
            oom_kills: Some(0),
            throttled_ms: Some(self.random.below(10)),
            ..Fields::default()
        }
    }

    fn end(&mut self) -> End {
        let host = self.random.below(self.hosts.len() as u64) as usize;
        let actor = self.random.below(ACTORS_PER_HOST as u64) as usize;
        self.hosts[host].sockets += 1;
        End { host, actor, socket: self.hosts[host].sockets }
    }

    fn tell(&mut self, end: End, time: i64, kind: Kind, fields: Fields, tell: &mut impl FnMut(usize, Event)) {
        let actor = &self.hosts[end.host].actors[end.actor];
        let process = Some(actor.process.clone());
        tell(end.host, Event { time, kind, process, container: Some(actor.container.clone()), fields });
        self.books.events += 1;
    }

    /// Events per second asked for.
    pub fn rate(&self) -> u64 {
        self.rate
    }
}

/// Samples come once a second of every actor and host; the rest of the rate is shared by actions.
fn step_ns(rate: u64, hosts: usize) -> i64 {
    let samples = (hosts * (ACTORS_PER_HOST + 1)) as f64;
    let actions = ((rate as f64 - samples).max(1.0) / EVENTS_PER_ACTION).max(0.5);
    (SECOND_NS as f64 / actions) as i64
}

impl Connection {
    fn seen_by_client(&self, texts: &Texts) -> Fields {
        Fields { direction: Some(texts.outward.clone()), socket_id: Some(self.client.socket), ..self.fields.clone() }
    }

    fn seen_by_server(&self, texts: &Texts) -> Fields {
        Fields {
            direction: Some(texts.inward.clone()),
            socket_id: Some(self.server.socket),
            isn_local: self.fields.isn_peer,
            isn_peer: self.fields.isn_local,
            ..self.fields.clone()
        }
    }
}

impl SimHost {
    fn new(index: usize, random: &mut Random) -> Self {
        let (cloud, region) = REGIONS[index % REGIONS.len()];
        let number = index / REGIONS.len();
        let name = format!("sim-{region}-{number:03}");
        let mut boot = [0; 16];
        boot[..8].copy_from_slice(&random.next().to_le_bytes());
        boot[8..].copy_from_slice(&(index as u64).to_le_bytes());
        let actors = (0..ACTORS_PER_HOST).map(|slot| Actor::new(index, slot, random)).collect();
        Self {
            host: Arc::new(Host {
                host: name.into(),
                cloud: Some(cloud.into()),
                zone: Some(format!("{region}-{}", char::from(b'a' + (number % 3) as u8)).into()),
                boot_id: BootId(boot),
                simulated: true,
            }),
            region,
            address: format!("10.{}.{}.{}", 100 + index % REGIONS.len(), number / 250, 1 + number % 250).into(),
            actors,
            sockets: 0,
            port: FIRST_PORT,
            pid: 10_000,
        }
    }

    fn next_port(&mut self) -> u16 {
        self.port = self.port.checked_add(1).unwrap_or(FIRST_PORT).max(FIRST_PORT);
        self.port
    }

    fn next_pid(&mut self) -> u32 {
        self.pid += 1;
        self.pid
    }

    /// The name of its agent.
    pub fn agent(&self) -> &str {
        &self.host.host
    }
}

impl Actor {
    fn new(host: usize, slot: usize, random: &mut Random) -> Self {
        let habits = &APPS[(host + slot) % APPS.len()];
        let Habits { app, image, exe, uid, .. } = *habits;
        let container_id = (0..4).map(|_| format!("{:016x}", random.next())).collect::<String>();
        let pid = 1_000 + slot as u32;
        Self {
            process: Arc::new(Process {
                pid,
                start_ns: random.next() >> 20,
                ppid: Some(1),
                exe: Some(exe.into()),
                comm: exe.rsplit('/').next().map(Into::into),
                cmdline: Some(exe.into()),
                uid: Some(uid),
                net_ns: Some(4_026_532_000 + slot as u32),
                cgroup: Some(format!("/kubepods/burstable/pod{host}-{slot}/{container_id}").into()),
                ..Process::default()
            }),
            container: Arc::new(Container {
                app: Some(app.into()),
                container_name: Some(format!("{app}-{slot}").into()),
                image: Some(image.into()),
                namespace: Some("bank".into()),
                pod: Some(format!("{app}-{host}-{slot}").into()),
                workload: Some(app.into()),
                container_id: Some(container_id.into()),
            }),
            habits,
        }
    }
}

/// xorshift64*: small, seeded, the same everywhere.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    #[expect(clippy::should_implement_trait, reason = "not an iterator: it never ends and is asked for by several kinds")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Evenly from 0 up to, not with, `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

const FIRST_PORT: u16 = 20_000;
const CONNECTION_REFUSED: i32 = 111;
/// The container runtime of every simulated host.
const RUNTIME_PID: u32 = 900;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_one_fleet_and_the_rate_is_kept() {
        let options = FleetOptions { hosts: 12, rate: 2_000, seed: 7, start_ns: 0 };
        let run = || {
            let mut fleet = Fleet::new(options);
            let mut events = Vec::new();
            fleet.start(0, |host, event| events.push((host, event)));
            for second in 1..=20 {
                fleet.advance(second * SECOND_NS, |host, event| events.push((host, event)));
            }
            (events, fleet.books())
        };
        let (events, books) = run();
        assert_eq!(events.len() as u64, books.events);
        assert_eq!(events, run().0, "the same seed gives the same events");
        let per_second = events.len() as f64 / 20.0;
        assert!((1_600.0..2_400.0).contains(&per_second), "{per_second} events a second");
        let accepts = events.iter().filter(|(_, event)| event.kind == Kind::Accept).count() as u64;
        assert_eq!(accepts, books.connections);
        let closes = events.iter().filter(|(_, event)| event.kind == Kind::Close).count() as u64;
        assert_eq!(closes, 2 * (books.connections - books.open));
    }
}
