//! Utilisation: one sample per container and one for the host, every interval.
//!
//! Counters become differences between two rounds; a counter that is missing or went backwards gives no value instead of a wrong
//! one. A container first seen after the first round starts from zero, so its first interval is told too. What a container
//! used between its last round and its end (less than one interval) is not told.

pub mod cgroup;
pub mod host;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use weir_schema::{Container, Event, Fields, Kind, Text};

use crate::enrich::cgroup::{Hierarchy, Mounts};
use crate::enrich::proc::Proc;
use crate::sample::cgroup::Paths;
use crate::sample::host::Links;

/// What only grows. Absent: not supplied by this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// CPU time, nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Time throttled, nanoseconds.
    pub throttled_ns: Option<u64>,
    /// Bytes read from block devices.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub io_write_bytes: Option<u64>,
    /// Bytes sent.
    pub net_sent_bytes: Option<u64>,
    /// Bytes received.
    pub net_received_bytes: Option<u64>,
    /// Out-of-memory kills.
    pub oom_kills: Option<u64>,
}

impl Counters {
    fn each(self, old: Self, with: impl Fn(u64, u64) -> Option<u64>) -> Self {
        let both = |new: Option<u64>, old: Option<u64>| with(new?, old?);
        Self {
            cpu_ns: both(self.cpu_ns, old.cpu_ns),
            throttled_ns: both(self.throttled_ns, old.throttled_ns),
            io_read_bytes: both(self.io_read_bytes, old.io_read_bytes),
            io_write_bytes: both(self.io_write_bytes, old.io_write_bytes),
            net_sent_bytes: both(self.net_sent_bytes, old.net_sent_bytes),
            net_received_bytes: both(self.net_received_bytes, old.net_received_bytes),
            oom_kills: both(self.oom_kills, old.oom_kills),
        }
    }

    /// What was added since `old`. Times are cut to whole milliseconds before the difference, so that none is lost over rounds.
    pub fn since(self, old: Self) -> Self {
        self.whole_ms().each(old.whole_ms(), u64::checked_sub)
    }

    fn whole_ms(self) -> Self {
        let cut = |ns: Option<u64>| ns.map(|ns| ns / NS_PER_MS * NS_PER_MS);
        Self { cpu_ns: cut(self.cpu_ns), throttled_ns: cut(self.throttled_ns), ..self }
    }

    /// Zero for every counter there is.
    fn zero(self) -> Self {
        self.each(self, |_, _| Some(0))
    }
}

/// What is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gauges {
    /// Memory in use, bytes.
    pub mem_bytes: Option<u64>,
    /// Memory limit, bytes.
    pub mem_limit_bytes: Option<u64>,
    /// CPU limit in thousandths of a CPU.
    pub cpu_limit: Option<u64>,
    /// Processes.
    pub processes: Option<u64>,
}

/// One reading of a container or of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// What only grows.
    pub counters: Counters,
    /// What is now.
    pub gauges: Gauges,
    /// One process of it, to find its network.
    pub member: Option<u32>,
}

/// Takes samples, round by round.
#[derive(Debug)]
pub struct Sampler {
    mounts: Mounts,
    proc_root: PathBuf,
    round_ns: Option<u64>,
    host: Counters,
    containers: HashMap<Text, Counters>,
    /// Containers of one pod share a network: its bytes are told once, by the container with the least id.
    networks: HashMap<u32, (u64, u64)>,
}

/// A container to be sampled.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where its cgroups are.
    pub paths: Paths,
    /// What its sample is stamped with.
    pub container: Arc<Container>,
}

impl Sampler {
    /// A sampler over `mounts` and procfs at `proc_root`.
    pub fn new(mounts: Mounts, proc_root: impl Into<PathBuf>) -> Self {
        Self {
            mounts,
            proc_root: proc_root.into(),
            round_ns: None,
            host: Counters::default(),
            containers: HashMap::new(),
            networks: HashMap::new(),
        }
    }

    /// One round: reads everything, returns the samples. The first round only sets the base and returns none.
    pub fn round(&mut self, targets: &BTreeMap<Text, Target>, host: &Host, now_ns: u64) -> Vec<Event> {
        let first = self.round_ns.is_none();
        let interval_ms = now_ns.saturating_sub(self.round_ns.unwrap_or(now_ns)) / NS_PER_MS;
        let mut events = Vec::with_capacity(targets.len() + 1);
        let mut reading = host::read(&self.proc_root);
        reading.gauges.processes = Some(host.processes);
        let delta = reading.counters.since(self.host);
        self.host = reading.counters;
        let container = host.container.clone();
        events.push(sample(host.time, interval_ms, delta, reading.gauges, container));

        let own_network = Proc::new(&self.proc_root).net_ns(std::process::id());
        let mut networks = HashMap::new();
        let mut containers = HashMap::with_capacity(targets.len());
        for (id, target) in targets {
            let mut reading = cgroup::read(&self.mounts, &target.paths);
            if reading.counters == Counters::default() && reading.gauges.mem_bytes.is_none() {
                // Gone, though its rmdir is not read yet: nothing to tell.
                continue;
            }
            let old = self.containers.get(id).copied();
            let old = old.unwrap_or_else(|| if first { reading.counters } else { reading.counters.zero() });
            containers.insert(id.clone(), reading.counters);
            let mut delta = reading.counters.since(old);
            let network = reading.member.take().and_then(|pid| self.network(pid, own_network));
            if let Some((namespace, now)) = network
                && networks.insert(namespace, now).is_none()
            {
                let before = self.networks.get(&namespace).copied().unwrap_or(if first { now } else { (0, 0) });
                delta.net_sent_bytes = now.0.checked_sub(before.0);
                delta.net_received_bytes = now.1.checked_sub(before.1);
            }
            events.push(sample(host.time, interval_ms, delta, reading.gauges, Some(target.container.clone())));
        }
        (self.containers, self.networks, self.round_ns) = (containers, networks, Some(now_ns));
        if first || interval_ms == 0 {
            events.clear();
        }
        events
    }

    /// Network namespace of a process and its bytes sent and received; nothing for the host's own.
    fn network(&self, pid: u32, own: Option<u32>) -> Option<(u32, (u64, u64))> {
        let namespace = Proc::new(&self.proc_root).net_ns(pid)?;
        if own.is_none() || own == Some(namespace) {
            return None;
        }
        let text = fs::read_to_string(self.proc_root.join(pid.to_string()).join("net/dev")).ok()?;
        Some((namespace, host::network(&text, Links::All)?))
    }
}

/// What a round needs to know of the host.
#[derive(Debug, Clone)]
pub struct Host {
    /// Wall time of the round.
    pub time: i64,
    /// Live processes.
    pub processes: u64,
    /// What the host's sample is stamped with: no container id.
    pub container: Option<Arc<Container>>,
}

/// The live containers by id with their paths in both hierarchies.
pub fn targets<'a>(
    live: impl Iterator<Item = (Hierarchy, &'a crate::enrich::cgroup::Cgroup)>,
    mut container: impl FnMut(&'a crate::enrich::cgroup::Cgroup) -> Arc<Container>,
) -> BTreeMap<Text, Target> {
    let mut targets: BTreeMap<Text, Target> = BTreeMap::new();
    for (hierarchy, cgroup) in live {
        let Some(id) = cgroup.identity.container_id.clone() else { continue };
        if targets.len() >= TARGETS_MAX && !targets.contains_key(&id) {
            continue;
        }
        let target = targets.entry(id).or_insert_with(|| Target { paths: Paths::default(), container: container(cgroup) });
        let path = match hierarchy {
            Hierarchy::V2 => &mut target.paths.v2,
            Hierarchy::V1 => &mut target.paths.v1,
        };
        *path = Some(cgroup.path.to_string());
    }
    targets
}

fn sample(time: i64, interval_ms: u64, delta: Counters, now: Gauges, container: Option<Arc<Container>>) -> Event {
    let ms = |ns: Option<u64>| ns.map(|ns| ns / NS_PER_MS);
    let fields = Fields {
        interval_ms: Some(interval_ms),
        cpu_ms: ms(delta.cpu_ns),
        cpu_limit_ms: now.cpu_limit.map(|thousandths| thousandths.saturating_mul(interval_ms) / 1000),
        throttled_ms: ms(delta.throttled_ns),
        mem_bytes: now.mem_bytes,
        mem_limit_bytes: now.mem_limit_bytes,
        io_read_bytes: delta.io_read_bytes,
        io_write_bytes: delta.io_write_bytes,
        net_sent_bytes: delta.net_sent_bytes,
        net_received_bytes: delta.net_received_bytes,
        processes: now.processes,
        oom_kills: delta.oom_kills,
        ..Fields::default()
    };
    Event { time, kind: Kind::Sample, process: None, container, fields }
}

const NS_PER_MS: u64 = 1_000_000;
/// Containers sampled in a round; a host runs a few hundred.
const TARGETS_MAX: usize = 2_048;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn write(root: &std::path::Path, path: &str, text: &str) {
        let file = root.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    fn host(time: i64) -> Host {
        Host { time, processes: 3, container: None }
    }

    fn target(id: &str) -> (Text, Target) {
        let container = Arc::new(Container { container_id: Some(id.into()), ..Container::default() });
        (id.into(), Target { paths: Paths { v2: Some(format!("/{id}")), v1: None }, container })
    }

    #[test]
    fn differences_between_rounds() {
        let root = tempfile::tempdir().unwrap();
        let (proc, cgroups) = (root.path().join("proc"), root.path().join("cgroup"));
        let mounts = Mounts { v2: Some(cgroups.clone()), ..Mounts::default() };
        let mut sampler = Sampler::new(mounts, &proc);
        let mut targets = BTreeMap::from([target("old")]);
        write(&proc, "stat", "cpu 100 0 0 0 0 0 0 0\ncpu0 1\n");
        write(&cgroups, "old/cpu.stat", "usage_usec 1000000\n");
        assert!(sampler.round(&targets, &host(0), SECOND).is_empty());

        write(&proc, "stat", "cpu 150 0 0 0 0 0 0 0\ncpu0 1\n");
        write(&cgroups, "old/cpu.stat", "usage_usec 1250000\n");
        write(&cgroups, "young/cpu.stat", "usage_usec 40000\n");
        targets.extend([target("young")]);
        let events = sampler.round(&targets, &host(7), 2 * SECOND);
        let cpu: Vec<Option<u64>> = events.iter().map(|event| event.fields.cpu_ms).collect();
        assert_eq!(cpu, [Some(500), Some(250), Some(40)]);
        assert_eq!((events[0].fields.interval_ms, events[0].fields.cpu_limit_ms), (Some(1000), Some(1000)));
        assert_eq!((events[0].time, events[0].fields.processes), (7, Some(3)));

        // A counter that went back gives no value; a container that is gone gives no sample.
        write(&proc, "stat", "cpu 10 0 0 0 0 0 0 0\ncpu0 1\n");
        fs::remove_file(cgroups.join("old/cpu.stat")).unwrap();
        let events = sampler.round(&targets, &host(8), 3 * SECOND);
        let cpu: Vec<Option<u64>> = events.iter().map(|event| event.fields.cpu_ms).collect();
        assert_eq!(cpu, [None, Some(0)]);
    }
}
