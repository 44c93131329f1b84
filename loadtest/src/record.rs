//! The record, measured alone: a simulated fleet's past goes through the archivist's own path into an archive, without sockets or logs.
//!
//! Says what one event costs to flush and to compact, how many bytes it takes, and how long the questions of an analyst take.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use weir_archive::compact::{Sizes, choose, compact};
use weir_archive::{Archive, Position, Store, Writer};
use weir_cluster::record::{CONVERT, piece};
use weir_dataflow::{Admission, Arrived, Intake};
use weir_schema::{AgentIdentity, BatchBuilder, Epoch, Event, Lane, Name, Seq, StampedFrame};

use crate::fleet::{Fleet, FleetOptions};
use crate::runner::now_ns;

/// What to write.
#[derive(Debug, Clone, Copy)]
pub struct RecordOptions {
    /// Events in all.
    pub events: u64,
    /// Events per second of the fleet's own time.
    pub rate: u64,
    /// Simulated hosts.
    pub hosts: usize,
}

/// What it cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Recorded {
    /// Rows that were written.
    pub rows: u64,
    /// Flushes.
    pub flushes: u64,
    /// Bytes of fresh files.
    pub fresh_bytes: u64,
    /// Bytes of the files in the end.
    pub bytes: u64,
    /// Files in the end.
    pub files: usize,
    /// Time of all flushes.
    pub flushing: Duration,
    /// Time of all compactions.
    pub compacting: Duration,
    /// Rows that compactions have read.
    pub compacted_rows: u64,
}

/// Writes a fleet's past into the archive at `dir`, its end now.
pub async fn write(dir: &Path, options: RecordOptions) -> anyhow::Result<Recorded> {
    let store = Store::open(dir.to_str().context("the directory's name is not UTF-8")?)?;
    let archive = Archive::open(store).await?;
    anyhow::ensure!(archive.catalog().number == 0, "{} holds an archive already: name another directory", dir.display());
    let lasts_ns = i64::try_from(options.events * 1_000_000_000 / options.rate)?;
    let start_ns = now_ns() - lasts_ns;
    let mut past = Past::new(FleetOptions { hosts: options.hosts, rate: options.rate, seed: 7, start_ns })?;
    let mut intake = Intake::new(Admission { retention_ms: 600_000, skew_ms: 5_000 });
    let mut writer = Writer::new(archive.clone(), CONVERT);
    let mut done = Recorded::default();
    let sizes = Sizes::default();
    let mut flushed_ns = start_ns;
    let mut at_ns = start_ns;
    while past.fleet.books().events < options.events {
        at_ns += TICK_NS;
        let tick = (at_ns / 1_000_000) as u64;
        let taken = intake.advance(tick, past.frames(at_ns)?);
        writer.push(taken.into_iter().map(piece).collect());
        let last = past.fleet.books().events >= options.events;
        if writer.rows() >= FLUSH_ROWS || at_ns - flushed_ns >= FLUSH_NS || last {
            let begun = Instant::now();
            let position = Position { tick, chain: tick, logs: Vec::new() };
            let flush = writer.flush(position, intake.save()?, tick).await?;
            done.flushing += begun.elapsed();
            (done.rows, done.fresh_bytes, done.flushes) =
                (done.rows + flush.rows, done.fresh_bytes + flush.bytes, done.flushes + 1);
            flushed_ns = at_ns;
            upkeep(&archive, &sizes, tick, &mut done).await?;
        }
    }
    // As if a day had passed: everything finds its place.
    upkeep(&archive, &sizes, (now_ns() / 1_000_000) as u64 + 86_400_000, &mut done).await?;
    let catalog = archive.catalog();
    done.files = catalog.files.len();
    done.bytes = catalog.files.values().map(|file| file.bytes).sum();
    Ok(done)
}

async fn upkeep(archive: &Archive, sizes: &Sizes, now_ms: u64, done: &mut Recorded) -> anyhow::Result<()> {
    while let Some(job) = choose(&archive.catalog(), sizes, now_ms) {
        let begun = Instant::now();
        let compacted = compact(archive, &job, sizes, now_ms).await?;
        done.compacting += begun.elapsed();
        done.compacted_rows += compacted.rows;
    }
    Ok(())
}

/// A fleet whose agents send what is due each tick.
struct Past {
    fleet: Fleet,
    identities: Vec<AgentIdentity>,
    next: BTreeMap<(usize, Lane), u64>,
    offset: u64,
}

impl Past {
    fn new(options: FleetOptions) -> anyhow::Result<Self> {
        let fleet = Fleet::new(options);
        let identity = |host: &crate::fleet::SimHost| -> anyhow::Result<AgentIdentity> {
            Ok(AgentIdentity {
                tenant: Name::new("demo")?,
                region: Name::new(host.region)?,
                agent: Name::new(format!("sim-{}", host.host.host))?,
            })
        };
        let identities = fleet.hosts().iter().map(identity).collect::<Result<_, _>>()?;
        Ok(Self { fleet, identities, next: BTreeMap::new(), offset: 0 })
    }

    fn frames(&mut self, until_ns: i64) -> anyhow::Result<Vec<Arrived>> {
        let mut told: BTreeMap<(usize, Lane), Vec<Event>> = BTreeMap::new();
        let mut tell = |host: usize, event: Event| told.entry((host, event.kind.lane())).or_default().push(event);
        if self.offset == 0 {
            self.fleet.start(until_ns - TICK_NS, &mut tell);
        }
        self.fleet.advance(until_ns, &mut tell);
        let mut frames = Vec::new();
        for ((host, lane), events) in told {
            let next = self.next.entry((host, lane)).or_default();
            let about = Arc::clone(&self.fleet.hosts()[host].host);
            let mut builder = BatchBuilder::new(about, Epoch(1), lane, Seq(*next));
            for event in &events {
                builder.push(event).map_err(|why| anyhow::anyhow!("an event does not fit: {why:?}"))?;
            }
            *next += events.len() as u64;
            let frame = builder.finish().context("a batch that has events")?.bytes;
            let received_ms = (until_ns / 1_000_000) as u64;
            let stamped = StampedFrame { identity: self.identities[host].clone(), received_ms, frame };
            frames.push(Arrived { log: 0, offset: self.offset, stamped });
            self.offset += 1;
        }
        Ok(frames)
    }
}

/// An agent sends at least once a second.
const TICK_NS: i64 = 1_000_000_000;
/// `archive.limits.flush_ms_max` by default.
const FLUSH_NS: i64 = 30_000_000_000;
/// `archive.limits.flush_rows_max` by default.
const FLUSH_ROWS: usize = 262_144;
