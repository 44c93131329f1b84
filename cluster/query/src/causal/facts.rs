//! What is known of causes and effects: who made which process, who wrote and who executed which file, who called whom.
//!
//! A set: what is told twice or in another order is the same. Ids hold their tenant's name inside, so nothing crosses tenants.
//! - A process is made by the parent that its first event names, at the fork that the parent tells of, else at its first event.
//! - A path means one file within (tenant, host, container). It is compared as it was told; links are not followed.
//! - Two ends are one connection if their initial sequence numbers mirror each other; where one end does not know them, if their
//!   addresses are equal and only one such end is near. See [`NEAR_NS`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A process id, an address, a path.
pub(super) type Id = Arc<str>;

/// A process, as the record tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Process {
    pub(super) id: Id,
    pub(super) pid: i64,
    /// The parent that its first event with one names.
    pub(super) maker: Option<Id>,
    /// Its first event, nanoseconds since the epoch.
    pub(super) first: i64,
    /// It ran a program, and not only its parent's.
    pub(super) executed: bool,
    pub(super) host: Id,
    pub(super) region: Option<Id>,
    pub(super) container_id: Option<Id>,
    pub(super) exe: Option<Id>,
    pub(super) cmdline: Option<Id>,
    /// What it says of its maker.
    pub(super) parent_exe: Option<Id>,
    pub(super) parent_cmdline: Option<Id>,
}

/// Where a path means one file, and the path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct File {
    pub(super) tenant: Id,
    pub(super) host: Id,
    pub(super) container_id: Option<Id>,
    pub(super) path: Id,
}

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Client,
    Server,
}

/// Addresses; source is the client at both ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tuple {
    pub(super) udp: bool,
    pub(super) src: (Id, i64),
    pub(super) dst: (Id, i64),
}

/// What a process said of a connection when it began.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct End {
    pub(super) time: i64,
    pub(super) event_id: Id,
    pub(super) tenant: Id,
    pub(super) host: Id,
    pub(super) boot_id: Id,
    pub(super) process: Id,
    pub(super) side: Side,
    pub(super) socket: Option<i64>,
    /// The client's and the server's initial sequence numbers.
    pub(super) isns: Option<(u32, u32)>,
    pub(super) tuple: Option<Tuple>,
}

impl End {
    /// As `connections` names it, when its sequence numbers are known.
    pub(super) fn connection_id(&self) -> Option<Id> {
        let (client, server) = self.isns?;
        let place = weir_dataflow::connections::Place::new(Arc::clone(&self.tenant), "".into(), "".into());
        let mut bytes = place.tenant_key.to_le_bytes().to_vec();
        for number in [client, server, 0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        Some(format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes)).into())
    }

    /// The address at the other end.
    pub(super) fn peer_address(&self) -> Option<Id> {
        let tuple = self.tuple.as_ref()?;
        let (ip, port) = if self.side == Side::Client { &tuple.dst } else { &tuple.src };
        Some(if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }.into())
    }

    fn meets(&self, other: &Self) -> bool {
        let known = self.isns.is_some() && other.isns.is_some();
        let same = if known { self.isns == other.isns } else { self.tuple.is_some() && self.tuple == other.tuple };
        let mut tuples = [self, other].into_iter().filter_map(|end| end.tuple.as_ref());
        let local = tuples.any(|tuple| is_local(&tuple.src.0) || is_local(&tuple.dst.0));
        let near = self.time.abs_diff(other.time) <= NEAR_NS;
        same && near && self.side != other.side && self.tenant == other.tenant && (!local || self.host == other.host)
    }
}

fn is_local(ip: &str) -> bool {
    weir_dataflow::connections::parse_ip(ip).is_some_and(|ip| weir_dataflow::connections::is_local(&ip))
}

/// The set of facts.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) processes: BTreeMap<Id, Process>,
    children: BTreeMap<Id, BTreeSet<Id>>,
    forks: BTreeMap<(Id, i64), BTreeSet<i64>>,
    pub(super) writes: BTreeMap<File, BTreeSet<(i64, Id)>>,
    pub(super) written: BTreeMap<Id, BTreeMap<File, BTreeSet<i64>>>,
    pub(super) runs: BTreeMap<File, BTreeSet<(i64, Id)>>,
    pub(super) ran: BTreeMap<Id, BTreeSet<(i64, File)>>,
    /// By process: clients' and servers' ends.
    pub(super) ends: BTreeMap<Id, BTreeSet<Arc<End>>>,
    by_isns: BTreeMap<(u32, u32), BTreeSet<Arc<End>>>,
    by_tuple: BTreeMap<Tuple, BTreeSet<Arc<End>>>,
    closes: BTreeMap<(Id, Id, Id, i64), i64>,
}

impl Facts {
    pub(super) fn process(&mut self, process: Process) {
        if let Some(maker) = &process.maker {
            self.children.entry(Arc::clone(maker)).or_default().insert(Arc::clone(&process.id));
        }
        self.processes.insert(Arc::clone(&process.id), process);
    }

    pub(super) fn fork(&mut self, parent: Id, pid: i64, time: i64) {
        self.forks.entry((parent, pid)).or_default().insert(time);
    }

    pub(super) fn write(&mut self, process: &Id, file: File, time: i64) {
        self.writes.entry(file.clone()).or_default().insert((time, Arc::clone(process)));
        self.written.entry(Arc::clone(process)).or_default().entry(file).or_default().insert(time);
    }

    pub(super) fn run(&mut self, process: &Id, file: File, time: i64) {
        self.runs.entry(file.clone()).or_default().insert((time, Arc::clone(process)));
        self.ran.entry(Arc::clone(process)).or_default().insert((time, file));
    }

    pub(super) fn end(&mut self, end: End) {
        let end = Arc::new(end);
        if let Some(isns) = end.isns {
            self.by_isns.entry(isns).or_default().insert(Arc::clone(&end));
        }
        if let Some(tuple) = &end.tuple {
            self.by_tuple.entry(tuple.clone()).or_default().insert(Arc::clone(&end));
        }
        self.ends.entry(Arc::clone(&end.process)).or_default().insert(end);
    }

    pub(super) fn close(&mut self, (tenant, host, boot_id): (Id, Id, Id), socket: i64, time: i64) {
        let last = self.closes.entry((tenant, host, boot_id, socket)).or_insert(time);
        *last = time.max(*last);
    }

    pub(super) fn children(&self, maker: &Id) -> impl Iterator<Item = &Process> {
        // A fact that was corrected leaves the old maker behind.
        let of = self.children.get(maker).into_iter().flatten().filter_map(|id| self.processes.get(id));
        of.filter(move |process| process.maker.as_ref() == Some(maker) && process.id != *maker)
    }

    /// A process; one without events of its own as a child tells of it.
    pub(super) fn known(&self, id: &Id) -> Option<Process> {
        let told = |child: &Process| Process {
            id: Arc::clone(id),
            host: Arc::clone(&child.host),
            region: child.region.clone(),
            exe: child.parent_exe.clone(),
            cmdline: child.parent_cmdline.clone(),
            ..Process::default()
        };
        self.processes.get(id).cloned().or_else(|| self.children(id).next().map(told))
    }

    /// When a process was made.
    pub(super) fn made(&self, process: &Process) -> i64 {
        let forks = process.maker.as_ref().and_then(|maker| self.forks.get(&(Arc::clone(maker), process.pid)));
        forks.and_then(|forks| forks.range(..=process.first).next_back()).copied().unwrap_or(process.first)
    }

    /// The other end, when it is known and no other fits as well.
    pub(super) fn other_end(&self, end: &End) -> Option<&Arc<End>> {
        let by_isns = end.isns.and_then(|isns| self.by_isns.get(&isns)).into_iter().flatten();
        let exact: BTreeSet<_> = by_isns.filter(|other| other.isns == end.isns && other.meets(end)).collect();
        if let Some(near) = exact.iter().min_by_key(|other| (other.time.abs_diff(end.time), (**other).clone())) {
            return Some(near);
        }
        let by_tuple = end.tuple.as_ref().and_then(|tuple| self.by_tuple.get(tuple)).into_iter().flatten();
        let mut loose = by_tuple.filter(|other| other.meets(end));
        let found = loose.next()?;
        loose.next().is_none().then_some(found)
    }

    /// The last event of an end's socket; none while it is open.
    pub(super) fn closed(&self, end: &End) -> Option<i64> {
        let socket = end.socket.filter(|socket| *socket != 0)?;
        let key = (Arc::clone(&end.tenant), Arc::clone(&end.host), Arc::clone(&end.boot_id), socket);
        self.closes.get(&key).copied()
    }
}

/// How far apart the clocks of two hosts may be when they tell of one connection: the largest `views.skew_ms` that can be set.
pub(super) const NEAR_NS: u64 = 600_000_000_000;
