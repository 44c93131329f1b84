//! A small scripted fleet: what its agents send, tick by tick, and a feed that hands it to workers. By seed, without a clock.
#![allow(dead_code, unreachable_pub)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use weir_dataflow::{Arrived, Command, Feed, FeedStep, Tick, ViewSettings};
use weir_schema::{
    AgentIdentity, BatchBuilder, BootId, Container, Epoch, Event, Fields, Host, Kind, Lane, Name, Process, Seq, StampedFrame,
    Text,
};

/// First tick, milliseconds.
pub const START_MS: u64 = 1_795_000_000_000;
/// Between two ticks.
pub const TICK_MS: u64 = 500;
/// How the views look in tests.
pub const SETTINGS: ViewSettings = ViewSettings {
    retention_ms: 60_000,
    skew_ms: 5_000,
    window_grace_ms: 1_000,
    tail_rows_max: 1_000_000,
    tail_bytes_max: 64 << 20,
    ends_max: 100_000,
    new_containers_per_minute_max: 6_000,
    chain_events_per_key_max: 4_096,
};

/// The whole chain: per tick, per log, the frames.
#[derive(Clone, Default)]
pub struct World {
    pub ticks: Vec<(u64, Vec<Vec<StampedFrame>>)>,
    /// Connections begun, failed, closed.
    pub begun: usize,
    pub failed: usize,
    pub closed: usize,
}

struct Agent {
    identity: AgentIdentity,
    host: Arc<Host>,
    address: String,
    seqs: [u64; 4],
    containers: Vec<Arc<Container>>,
    /// When the images of its containers become known.
    described_ms: u64,
    process: Arc<Process>,
}

struct Open {
    client: usize,
    server: usize,
    fields: Fields,
    opened_ms: u64,
}

/// xorshift: the same numbers for the same seed, for ever.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % n
    }
}

impl World {
    /// Six hosts in three regions that connect to each other and are sampled every second, for some ticks, over two logs.
    pub fn new(seed: u64, ticks: usize) -> Self {
        Self::described(seed, ticks, u64::MAX)
    }

    /// The same, where events name the images of containers from a moment on: `image-N` of the N-th container of a host.
    pub fn described(seed: u64, ticks: usize, described_ms: u64) -> Self {
        let (mut random, mut world) = (Random(seed | 1), Self::default());
        let agent = |number| Agent { described_ms, ..Agent::new(number) };
        let mut agents: Vec<_> = (0..6).map(agent).collect();
        let mut open: Vec<Open> = Vec::new();
        for number in 0..ticks {
            let tick = START_MS + TICK_MS * number as u64;
            let mut events: Vec<Vec<Event>> = vec![Vec::new(); agents.len()];
            for (agent, events) in agents.iter().zip(&mut events) {
                if number == 0 {
                    events.push(agent.started(tick));
                }
                if number % 2 == 0 {
                    events.extend(agent.samples(tick - random.below(400), &mut random));
                }
            }
            world.connect(tick, &agents, &mut events, &mut open, &mut random);
            world.close(tick, &agents, &mut events, &mut open, &mut random);
            let mut logs = vec![Vec::new(); 2];
            for (place, events) in events.iter().enumerate() {
                // Agents move between nodes now and then.
                let log = (place + number / 7) % 2;
                logs[log].extend(agents[place].frames(events, tick));
            }
            world.ticks.push((tick, logs));
        }
        world
    }

    /// The same events on a bad way: frames come twice, late, too late for any view, or ahead of their time.
    pub fn disturbed(mut self, seed: u64) -> Self {
        let mut random = Random(seed | 1);
        let last = self.ticks.len() - 1;
        for place in 0..self.ticks.len() {
            for log in 0..self.ticks[place].1.len() {
                let frames = std::mem::take(&mut self.ticks[place].1[log]);
                for frame in frames {
                    let (times, to) = match random.below(20) {
                        0 => (2, (place + random.below(20) as usize).min(last)),
                        1 | 2 => (1, (place + random.below(8) as usize).min(last)),
                        3 => (1, (place + 130).min(last)),
                        4 => (1, place.saturating_sub(random.below(30) as usize)),
                        _ => (1, place),
                    };
                    let again = |world: &mut Self, to: usize, log: usize| {
                        // What is put into a place that is still to be looked at would be moved again and again.
                        let log = if to > place { log + 2 } else { log };
                        let logs = &mut world.ticks[to].1;
                        logs.resize(logs.len().max(log + 1), Vec::new());
                        logs[log].push(frame.clone());
                    };
                    again(&mut self, if times == 2 { place } else { to }, log);
                    if times == 2 {
                        again(&mut self, to, 1 - log % 2);
                    }
                }
            }
        }
        self
    }

    /// The last tick.
    pub fn end(&self) -> u64 {
        self.ticks.last().map_or(0, |tick| tick.0)
    }

    /// One feed per worker of a mesh; then they end.
    pub fn feeds(&self, workers: usize) -> Vec<Box<dyn Feed>> {
        (0..workers).map(|worker| Box::new(self.feed(worker, workers)) as Box<dyn Feed>).collect()
    }

    /// The feed of one worker.
    pub fn feed(&self, worker: usize, workers: usize) -> Script {
        let step = |(place, (tick, logs)): (usize, &(u64, Vec<Vec<StampedFrame>>))| {
            let commands = if place == 0 { vec![Command::Configure(SETTINGS)] } else { vec![] };
            let ours = logs.iter().enumerate().filter(|(log, _)| log % workers == worker);
            let frames = ours.flat_map(|(log, frames)| {
                let arrived = move |(offset, stamped): (usize, &StampedFrame)| Arrived {
                    log: log as u32,
                    offset: (place * 1_000 + offset) as u64,
                    stamped: stamped.clone(),
                };
                frames.iter().enumerate().map(arrived)
            });
            Tick { tick: *tick, commands, frames: frames.collect() }
        };
        Script { ticks: self.ticks.iter().enumerate().map(step).collect() }
    }

    fn connect(&mut self, tick: u64, agents: &[Agent], events: &mut [Vec<Event>], open: &mut Vec<Open>, random: &mut Random) {
        for _ in 0..random.below(6) {
            let (client, server) = (random.below(6) as usize, random.below(6) as usize);
            let number = self.begun as u32;
            let at = tick - random.below(900);
            let fields = Fields {
                src_ip: Some(agents[client].address.as_str().into()),
                src_port: Some(20_000 + (number % 40_000) as u16),
                dst_ip: Some(agents[server].address.as_str().into()),
                dst_port: Some([80, 443, 5432][random.below(3) as usize]),
                proto: Some("tcp".into()),
                ..Fields::default()
            };
            self.begun += 1;
            let refused = random.below(10) == 0;
            let isns = (!refused).then_some((number * 7 + 1, number * 11 + 3));
            let connect = Fields {
                direction: Some("out".into()),
                socket_id: Some(u64::from(number) * 2 + 1),
                result: Some(if refused { 111 } else { 0 }),
                isn_local: isns.map(|isns| isns.0),
                isn_peer: isns.map(|isns| isns.1),
                ..fields.clone()
            };
            events[client].push(agents[client].event(Kind::Connect, at, connect.clone(), number));
            if refused {
                self.failed += 1;
                continue;
            }
            let accept = mirrored(&connect, u64::from(number) * 2 + 2);
            events[server].push(agents[server].event(Kind::Accept, at + random.below(3), accept, number));
            open.push(Open { client, server, fields: connect, opened_ms: at });
        }
    }

    fn close(&mut self, tick: u64, agents: &[Agent], events: &mut [Vec<Event>], open: &mut Vec<Open>, random: &mut Random) {
        open.retain(|open| {
            let keep = open.opened_ms + 1_000 > tick || random.below(8) != 0;
            if !keep {
                self.closed += 1;
                let (sent, received) = (random.below(100_000), random.below(1_000_000));
                let duration = Some(tick - open.opened_ms);
                let number = (open.fields.socket_id.unwrap_or(0) / 2) as u32;
                let end = Fields {
                    bytes_sent: Some(sent),
                    bytes_received: Some(received),
                    duration_ms: duration,
                    result: None,
                    ..open.fields.clone()
                };
                events[open.client].push(agents[open.client].event(Kind::Close, tick - 100, end.clone(), number));
                let mut other = mirrored(&end, open.fields.socket_id.unwrap_or(0) + 1);
                (other.bytes_sent, other.bytes_received) = (Some(received), Some(sent));
                events[open.server].push(agents[open.server].event(Kind::Close, tick - 90, other, number));
            }
            keep
        });
    }
}

/// The same connection as its other end sees it.
fn mirrored(fields: &Fields, socket: u64) -> Fields {
    Fields {
        direction: Some("in".into()),
        socket_id: Some(socket),
        isn_local: fields.isn_peer,
        isn_peer: fields.isn_local,
        ..fields.clone()
    }
}

impl Agent {
    fn new(number: u64) -> Self {
        let name = |text: String| Name::new(text).expect("a plain name");
        let region = ["eu-west-1", "us-east-1", "ap-south-1"][number as usize % 3];
        let host = Host {
            host: format!("host-{number}").into(),
            cloud: Some("aws".into()),
            zone: Some(format!("{region}a").into()),
            boot_id: BootId([number as u8 + 1; 16]),
            simulated: true,
        };
        let container = |which: u64| {
            let app: Option<Text> = (which != 2).then(|| ["web", "db"][which as usize].into());
            Arc::new(Container { app, container_id: Some(format!("{number:02}{which:062}").into()), ..Container::default() })
        };
        let identity =
            AgentIdentity { tenant: name("acme".into()), region: name(region.into()), agent: name(format!("agent-{number}")) };
        let process = Process { pid: 100, start_ns: 5, exe: Some("/usr/bin/app".into()), ..Process::default() };
        Self {
            identity,
            host: Arc::new(host),
            address: format!("10.0.0.{}", number + 1),
            seqs: [0; 4],
            containers: (0..3).map(container).collect(),
            described_ms: u64::MAX,
            process: Arc::new(process),
        }
    }

    fn event(&self, kind: Kind, at_ms: u64, fields: Fields, number: u32) -> Event {
        let mut container = Arc::clone(&self.containers[number as usize % 3]);
        if at_ms >= self.described_ms {
            Arc::make_mut(&mut container).image = Some(format!("image-{}", number % 3).into());
        }
        Event {
            time: at_ms as i64 * 1_000_000,
            kind,
            process: Some(Arc::clone(&self.process)),
            container: Some(container),
            fields,
        }
    }

    fn started(&self, at_ms: u64) -> Event {
        let fields = Fields { addresses: Some(format!("[\"{}\"]", self.address).into()), ..Fields::default() };
        Event { container: None, process: None, ..self.event(Kind::HostStart, at_ms, fields, 0) }
    }

    fn samples(&self, at_ms: u64, random: &mut Random) -> Vec<Event> {
        let mut sample = |container: Option<Arc<Container>>| {
            let fields = Fields {
                interval_ms: Some(1_000),
                cpu_ms: Some(random.below(500)),
                mem_bytes: Some(1_000_000 + random.below(1_000_000)),
                net_sent_bytes: Some(random.below(10_000)),
                net_received_bytes: Some(random.below(10_000)),
                ..Fields::default()
            };
            Event { time: at_ms as i64 * 1_000_000, kind: Kind::Sample, process: None, container, fields }
        };
        let hosts = sample(None);
        self.containers.iter().map(|container| sample(Some(Arc::clone(container)))).chain([hosts]).collect()
    }

    fn frames(&mut self, events: &[Event], tick: u64) -> Vec<StampedFrame> {
        let mut frames = Vec::new();
        for lane in Lane::ALL {
            let first = Seq(self.seqs[lane as usize]);
            let mut builder = BatchBuilder::new(Arc::clone(&self.host), Epoch(7), lane, first);
            for event in events.iter().filter(|event| event.kind.lane() == lane) {
                builder.push(event).expect("a small batch has room");
            }
            if !builder.is_empty() {
                self.seqs[lane as usize] += builder.len() as u64;
                let frame = builder.finish().expect("a batch becomes a frame").bytes;
                frames.push(StampedFrame { identity: self.identity.clone(), received_ms: tick, frame });
            }
        }
        frames
    }
}

/// A feed that hands out what it has, then says that it has ended.
pub struct Script {
    ticks: VecDeque<Tick>,
}

impl Script {
    /// With a checkpoint commanded at each of these ticks.
    pub fn with_checkpoints(mut self, at: &[u64]) -> Self {
        self.ticks.iter_mut().filter(|tick| at.contains(&tick.tick)).for_each(|tick| tick.commands.push(Command::Checkpoint));
        self
    }

    /// With this command at a tick, after those that are there.
    pub fn with_command(mut self, at: u64, command: &Command) -> Self {
        self.ticks.iter_mut().filter(|tick| tick.tick == at).for_each(|tick| tick.commands.push(command.clone()));
        self
    }

    /// Only what comes after a tick.
    pub fn after(mut self, tick: u64) -> Self {
        self.ticks.retain(|later| later.tick > tick);
        self
    }
}

impl Feed for Script {
    fn poll(&mut self) -> FeedStep {
        self.ticks.pop_front().map_or(FeedStep::Ended, FeedStep::Tick)
    }
}

/// A feed that hands out no tick beyond a bound, which may rise.
pub struct Held {
    script: Script,
    until: Arc<AtomicU64>,
}

impl Held {
    pub fn new(script: Script, until: Arc<AtomicU64>) -> Self {
        Self { script, until }
    }
}

impl Feed for Held {
    fn poll(&mut self) -> FeedStep {
        match self.script.ticks.front() {
            Some(next) if next.tick > self.until.load(Ordering::SeqCst) => FeedStep::Idle,
            _ => self.script.poll(),
        }
    }
}
