//! The asking side of a peek: what one process has asked of all workers, and what is still missing.
//!
//! Lives on the first worker of a process. Reads no clock: the server sends a beat ten times a second, and a request that has
//! seen too many of them fails.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::handle::{At, Completeness, Failure, Read, Request, Response, Stats};
use crate::mesh::{Body, Part, Peek, What};
use crate::output::digest_text;
use crate::peek::{Shelf, check_limits, resolve};
use crate::relations::relations;
use crate::server::Outbox;
use crate::subscribe;

/// What this process has asked and not yet been told.
#[derive(Debug)]
pub(crate) struct Asker {
    worker: usize,
    workers: usize,
    next: u64,
    open: BTreeMap<u64, Open>,
}

/// How far the asking worker is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    /// The newest closed tick.
    pub(crate) closed: Option<u64>,
    /// The oldest tick held.
    pub(crate) since: u64,
    /// The newest tick fed.
    pub(crate) fed: Option<u64>,
}

#[derive(Debug)]
struct Open {
    id: u64,
    outbox: Arc<Outbox>,
    tick: u64,
    what: What,
    answered: usize,
    beats: u32,
    sums: Vec<(u64, u64)>,
    completeness: Completeness,
    digests: Vec<(u128, u64)>,
    stats: Stats,
}

impl Asker {
    /// An asker at `worker` of `workers`.
    pub(crate) fn new(worker: usize, workers: usize) -> Self {
        Self { worker, workers, next: 0, open: BTreeMap::new() }
    }

    /// Takes up a request: answers it, or returns what to ask of all workers.
    pub(crate) fn request(&mut self, request: Request, outbox: Arc<Outbox>, now: Progress, shelf: &dyn Shelf) -> Option<Peek> {
        let (id, at, what) = match request {
            Request::Frontier { id } => {
                outbox.send(Response::Frontier { id, closed: now.closed, since: now.since });
                return None;
            }
            Request::Peek { id, at, reads } => (id, at, What::Rows(reads)),
            Request::Changes { id, read } => (id, At::Tick(read.upto), What::Changes(read)),
            Request::Digest { id, at } => (id, at, What::Digest),
            Request::Stats { id } => (id, At::Tick(0), What::Stats),
        };
        match self.check(&what, at, now, shelf) {
            Err(failure) => {
                outbox.send(Response::Failed { id, failure });
                None
            }
            Ok(tick) => Some(self.open(id, outbox, tick, what)),
        }
    }

    fn check(&self, what: &What, at: At, now: Progress, shelf: &dyn Shelf) -> Result<u64, Failure> {
        if self.open.len() >= OPEN_MAX {
            return Err(Failure::Busy(OPEN_MAX));
        }
        if let What::Changes(read) = what {
            subscribe::output_of(read, shelf)?;
        }
        if let What::Rows(reads) = what {
            for read in reads {
                resolve(read, shelf)?;
                // A view that is just being made has no answer yet.
                let begun = shelf.view(&read.relation).map_or(0, |view| view.created);
                if at == At::Latest && now.closed.is_some_and(|closed| closed < begun) {
                    return Err(Failure::NotReady);
                }
            }
        }
        match at {
            _ if matches!(what, What::Stats) => Ok(0),
            At::Tick(tick) if matches!(what, What::Changes(_)) => Ok(tick),
            At::Latest => now.closed.ok_or(Failure::NotReady),
            At::Tick(tick) if tick < now.since => Err(Failure::Forgotten { tick, since: now.since }),
            At::Tick(tick) => Ok(tick),
        }
    }

    fn open(&mut self, id: u64, outbox: Arc<Outbox>, tick: u64, what: What) -> Peek {
        let number = self.next;
        self.next += 1;
        let reads = match &what {
            What::Rows(reads) => reads.len(),
            What::Changes(_) => 1,
            What::Digest | What::Stats => 0,
        };
        let standing = relations().iter().filter(|info| info.standing).count();
        let open = Open {
            id,
            outbox,
            tick,
            what: what.clone(),
            answered: 0,
            beats: 0,
            sums: vec![(0, 0); reads],
            completeness: Completeness::default(),
            digests: vec![(0, 0); standing],
            stats: Stats::default(),
        };
        self.open.insert(number, open);
        Peek { asker: self.worker, number, tick, what }
    }

    /// Takes up a piece of an answer.
    pub(crate) fn part(&mut self, part: Part, now: Progress) {
        // A request that failed or timed out is gone: the rest of its answer is dropped.
        let Some(open) = self.open.get_mut(&part.number) else { return };
        match open.take(part.body) {
            Ok(()) if open.answered == self.workers => {
                let response = open.last(now);
                open.outbox.send(response);
                self.open.remove(&part.number);
            }
            Ok(()) if open.outbox.is_open() => {}
            Ok(()) => {
                self.open.remove(&part.number);
            }
            Err(failure) => {
                open.outbox.send(Response::Failed { id: open.id, failure });
                self.open.remove(&part.number);
            }
        }
    }

    /// A tenth of a second has passed.
    pub(crate) fn beat(&mut self) {
        let workers = self.workers;
        self.open.retain(|_, open| {
            open.beats += 1;
            let in_time = open.beats <= BEATS_MAX;
            if !in_time {
                let failure = Failure::TimedOut { answered: open.answered, workers };
                open.outbox.send(Response::Failed { id: open.id, failure });
            }
            in_time && open.outbox.is_open()
        });
    }
}

impl Open {
    fn take(&mut self, body: Body) -> Result<(), Failure> {
        match body {
            Body::Rows { read, rows, ipc } => return self.rows(read, rows, ipc),
            Body::Done(completeness) => self.completeness.add(completeness),
            Body::Digests(digests) => {
                for (sum, (hash, rows)) in self.digests.iter_mut().zip(digests) {
                    *sum = (sum.0.wrapping_add(hash), sum.1 + rows);
                }
            }
            Body::Stats(stats) => add_stats(&mut self.stats, stats),
            Body::Failed(failure) => return Err(failure),
        }
        self.answered += 1;
        Ok(())
    }

    fn rows(&mut self, place: u32, rows: u64, ipc: Vec<u8>) -> Result<(), Failure> {
        let reads = match &self.what {
            What::Rows(reads) => reads,
            What::Changes(read) => {
                let sum = &mut self.sums[0];
                sum.1 += ipc.len() as u64;
                subscribe::check_bytes(read, sum.1)?;
                let relation = read.relation.clone();
                self.outbox.send(Response::Rows { id: self.id, read: place, relation, tick: self.tick, ipc });
                return Ok(());
            }
            What::Digest | What::Stats => return Ok(()),
        };
        let (read, sum): (&Read, _) = match (reads.get(place as usize), self.sums.get_mut(place as usize)) {
            (Some(read), Some(sum)) => (read, sum),
            _ => return Err(Failure::Internal(format!("an answer to read {place}, which was not asked"))),
        };
        if read.limit.is_some_and(|limit| sum.0 >= limit) {
            return Ok(());
        }
        *sum = (sum.0 + rows, sum.1 + ipc.len() as u64);
        check_limits(read, sum.0, sum.1)?;
        let relation = read.relation.clone();
        self.outbox.send(Response::Rows { id: self.id, read: place, relation, tick: self.tick, ipc });
        Ok(())
    }

    fn last(&mut self, now: Progress) -> Response {
        let (id, tick) = (self.id, self.tick);
        match self.what {
            What::Rows(_) | What::Changes(_) => Response::Done { id, tick, completeness: std::mem::take(&mut self.completeness) },
            What::Digest => {
                let standing = relations().iter().filter(|info| info.standing);
                let views = standing.zip(&self.digests).map(|(info, (hash, rows))| digest_text(&info.name, *hash, *rows));
                Response::Digests { id, tick, views: views.collect() }
            }
            What::Stats => {
                let stats = std::mem::take(&mut self.stats);
                Response::Stats { id, stats: Stats { closed: now.closed, fed: now.fed, ..stats } }
            }
        }
    }
}

fn add_stats(sum: &mut Stats, more: Stats) {
    sum.workers += more.workers;
    for held in more.relations {
        match sum.relations.iter_mut().find(|other| other.relation == held.relation) {
            Some(other) => {
                other.rows += held.rows;
                other.bytes += held.bytes;
            }
            None => sum.relations.push(held),
        }
    }
    for (name, count) in more.counters {
        match sum.counters.iter_mut().find(|other| other.0 == name) {
            Some(other) => other.1 += count,
            None => sum.counters.push((name, count)),
        }
    }
}

/// Most requests of one process under way.
const OPEN_MAX: usize = 256;
/// Beats after which a request fails: 30 s.
const BEATS_MAX: u32 = 300;
