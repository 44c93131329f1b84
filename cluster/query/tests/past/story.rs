//! Random stories of hosts, containers and processes: late, ahead, twice, out of order, with ties in time and parents that make no sense.

use std::sync::Arc;

use weir_schema::{Container, Event, Fields, Kind, Process, StampedFrame};

use super::{Agent, Chain, event, tick_of};
use crate::world::Random;

/// What an agent knows of.
struct Teller {
    agent: Agent,
    processes: Vec<Arc<Process>>,
    containers: Vec<Arc<Container>>,
}

/// Four agents on three hosts of two tenants.
pub fn story(seed: u64, ticks: usize) -> Chain {
    let mut random = Random(seed | 1);
    let places = [("acme", "eu", "web-1"), ("acme", "us", "web-2"), ("umbra", "eu", "web-1"), ("acme", "ap", "web-1")];
    let mut tellers: Vec<_> = places.iter().zip(1..).map(|(place, boot)| Teller::new(*place, boot)).collect();
    let mut sent: Vec<StampedFrame> = Vec::new();
    let mut chain = Chain::new();
    for place in 0..ticks {
        let tick = tick_of(place);
        let mut frames = Vec::new();
        for teller in &mut tellers {
            let events: Vec<Event> = (0..random.below(6)).map(|_| teller.tell(tick, &mut random)).collect();
            frames.extend(teller.agent.frames(&events, tick));
        }
        if !sent.is_empty() && random.below(6) == 0 {
            frames.push(sent[random.below(sent.len() as u64) as usize].clone());
        }
        sent.extend(frames.iter().cloned());
        chain.push((tick, frames));
    }
    chain
}

/// Some of it, or nothing.
fn maybe<T>(random: &mut Random, known: T) -> Option<T> {
    (random.below(3) != 0).then_some(known)
}

fn one_of<T: Clone>(random: &mut Random, all: &[T]) -> Option<T> {
    (!all.is_empty()).then(|| all[random.below(all.len() as u64) as usize].clone())
}

impl Teller {
    fn new((tenant, region, host): (&str, &str, &str), boot: u8) -> Self {
        let agent = Agent::new(tenant, region, host, boot);
        let container = |number: u64| Arc::new(Container { container_id: maybe_id(boot, number), ..Container::default() });
        Self { agent, processes: Vec::new(), containers: (0..4).map(container).collect() }
    }

    fn tell(&mut self, tick: u64, random: &mut Random) -> Event {
        let at = match random.below(10) {
            0 => tick + random.below(3_000),
            1 | 2 => tick - random.below(15_000),
            _ => tick - random.below(800),
        };
        // Often at the same time as others.
        let at = at - at % 100;
        let process = one_of(random, &self.processes);
        let container = self.contain(random);
        let contained = container.as_ref();
        let (kind, fields) = match random.below(12) {
            0..3 => return self.exec(at, None, contained, random),
            3 => return self.exec(at, process, contained, random),
            4 => (Kind::Fork, Fields { target_pid: Some(103), result: Some(0), ..Fields::default() }),
            5 => {
                let exit_code = maybe(random, 1).map(|_| random.below(3) as i32);
                (Kind::Exit, Fields { exit_code, signal: maybe(random, 15), ..Fields::default() })
            }
            6 => (Kind::Kill, Fields { signal: Some(9), target_pid: Some(101), ..Fields::default() }),
            7 => (Kind::Open, Fields { path: Some("/etc/hosts".into()), ..Fields::default() }),
            8 => (Kind::Connect, Fields { dst_ip: Some("10.0.0.7".into()), dst_port: Some(443), ..Fields::default() }),
            9 => {
                let kind = [Kind::ContainerStart, Kind::ContainerStop, Kind::ContainerUpdate][random.below(3) as usize];
                let number = random.below(9);
                let told = [
                    format!(r#"{{"image_digest":"sha256:{number}","labels":{{"app":"{number}"}}}}"#),
                    format!(r#"{{"privileged":{}}}"#, number > 4),
                    "{no JSON".to_owned(),
                ];
                let told = told[random.below(3) as usize].as_str();
                let detail = maybe(random, told.into());
                return Event { fields: Fields { detail, ..Fields::default() }, ..event(kind, at, None, contained) };
            }
            10 => {
                let kind = if random.below(3) == 0 { Kind::HostStop } else { Kind::HostStart };
                let addresses = maybe(random, format!("[\"10.0.0.{}\"]", random_octet(at)).into());
                let addresses = addresses.filter(|_| kind == Kind::HostStart);
                return Event { fields: Fields { addresses, ..Fields::default() }, ..event(kind, at, None, None) };
            }
            _ => (Kind::Sample, Fields { cpu_ms: Some(5), ..Fields::default() }),
        };
        let process = process.filter(|_| kind != Kind::Sample);
        Event { fields, ..event(kind, at, process.as_ref(), contained) }
    }

    /// A container, of which more or less is known every time.
    fn contain(&self, random: &mut Random) -> Option<Arc<Container>> {
        let container = one_of(random, &self.containers).filter(|_| random.below(5) != 0)?;
        let number = random.below(3);
        Some(Arc::new(Container {
            app: maybe(random, ["web", "db", "unassigned"][number as usize].into()),
            container_name: maybe(random, format!("name-{number}").into()),
            image: maybe(random, "registry/web:1".into()),
            pod: maybe(random, format!("pod-{number}").into()),
            ..(*container).clone()
        }))
    }

    /// A program is started, by a new process or by one that is there.
    fn exec(&mut self, at: u64, process: Option<Arc<Process>>, container: Option<&Arc<Container>>, random: &mut Random) -> Event {
        let number = random.below(1_000);
        let (pid, start_ns) = match &process {
            Some(process) => (process.pid, process.start_ns),
            // Pids are used again.
            None => (100 + random.below(8) as u32, 1_000 + number),
        };
        let parent = match random.below(8) {
            0 => Some((1, 1)),
            1 => Some((pid, start_ns)),
            2 => None,
            _ => one_of(random, &self.processes).map(|parent| (parent.pid, parent.start_ns)),
        };
        let started = Arc::new(Process {
            pid,
            start_ns,
            ppid: parent.map(|parent| parent.0),
            parent_start_ns: parent.map(|parent| parent.1),
            exe: maybe(random, format!("/bin/{number}").into()),
            comm: maybe(random, format!("{number}").into()),
            args: maybe(random, format!("[\"{number}\"]").into()),
            cmdline: maybe(random, format!("{number} -x").into()),
            cwd: maybe(random, "/".into()),
            uid: maybe(random, number as u32 % 4),
            user_name: maybe(random, "root".into()),
            login_uid: maybe(random, 1_000),
            parent_exe: parent.and_then(|_| maybe(random, format!("/bin/parent-{number}").into())),
            parent_cmdline: parent.and_then(|_| maybe(random, format!("parent {number}").into())),
            ..Process::default()
        });
        self.processes.retain(|known| (known.pid, known.start_ns) != (pid, start_ns));
        self.processes.push(Arc::clone(&started));
        let result = Some(if random.below(5) == 0 { 2 } else { 0 });
        Event { fields: Fields { result, ..Fields::default() }, ..event(Kind::Exec, at, Some(&started), container) }
    }
}

/// One of the containers has no id: an app on the bare host.
fn maybe_id(boot: u8, number: u64) -> Option<Arc<str>> {
    (number != 3).then(|| format!("{boot:02}{number:062}").into())
}

fn random_octet(at: u64) -> u64 {
    at / 100 % 250
}
