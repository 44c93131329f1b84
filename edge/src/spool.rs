//! The spool: frames that no node has acknowledged, on the disk; one journal per lane.
//!
//! ```text
//!  append ─► journal of the lane ─► sync ─► give: the backlog, most important lane first ─► session ─► settle: forgotten
//!                                    └─ over the limit: overflow says what must go ─► drop_told its told loss
//! ```
//!
//! Promises:
//! - A frame whose `sync` returned is given out again, after any crash, until it is settled or dropped.
//! - A frame is dropped only behind a durable record that tells its loss: the frame of `loss` events and the verdict *these are
//!   dropped* are one record, so both are there after a crash or neither.
//! - What is on the disk stays within the limit, by whole segments: the oldest of the least important lane go first; the newest
//!   segment of a lane is kept.
//!
//! ```text
//! record = count u8 | count × (lane u8, end u64) | frame       integers little-endian; `end`: that lane's records before it are dropped
//! ```
//!
//! Nothing here reads a clock or knows of links: the caller says when to append, sync and settle.

mod lane;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use weir_journal::{Disk, Offset, Options};
use weir_schema::{Epoch, Frame, Lane, Seq};
use weir_transport::FrameKey;

use lane::LaneSpool;

/// Un-acknowledged frames on the disk.
pub struct Spool {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    lanes: [LaneSpool; Lane::ALL.len()],
    bytes_max: u64,
    /// Verdicts whose record waits for its sync, and that record's offset in the security lane.
    unsure: Vec<(Offset, Verdict)>,
}

/// What was found when a spool was opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The last run did not stop by itself: what it had in memory only is lost, and nobody knows how much that was.
    pub killed: bool,
    /// Lanes of which the disk lost records.
    pub damaged: Vec<Lane>,
}

/// That the records of one lane before `end` go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    lane: Lane,
    end: Offset,
}

/// Events that are gone: neighbours of one run and lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The agent's run.
    pub epoch: Epoch,
    /// The class of event.
    pub lane: Lane,
    /// The first seq.
    pub first: Seq,
    /// Behind the last seq.
    pub end: Seq,
    /// How many events; seqs between them may never have been given.
    pub count: u64,
}

impl Gap {
    /// The events of one frame.
    pub fn of(key: &FrameKey) -> Self {
        let (first, count) = (key.first_seq, u64::from(key.count));
        Self { epoch: key.epoch, lane: key.lane, first, end: Seq(first.0 + count), count }
    }

    /// Adds a frame to a list of gaps: to the last one, if they are neighbours.
    fn add(gaps: &mut Vec<Self>, key: &FrameKey) {
        let gap = Self::of(key);
        match gaps.last_mut() {
            Some(last) if (last.epoch, last.lane) == (gap.epoch, gap.lane) && last.end <= gap.first => {
                last.end = gap.end;
                last.count += gap.count;
            }
            _ => gaps.push(gap),
        }
    }
}

impl Spool {
    /// Opens the spool in `dir`, made when missing, with at most `bytes_max` on the disk; what an earlier run left is in it.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, bytes_max: u64) -> Result<(Self, Found), weir_journal::Error> {
        let options = Options {
            segment_bytes_max: (bytes_max / SEGMENTS).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
            record_bytes_max: RECORD_BYTES_MAX,
            pending_bytes_max: PENDING_BYTES_MAX,
        };
        let mut found = Found::default();
        let mut lanes = Vec::new();
        for lane in Lane::ALL {
            let (opened, whole) = LaneSpool::open(&disk, &dir.join(lane.as_str()), lane, &options)?;
            lanes.push(opened);
            if !whole {
                found.damaged.push(lane);
            }
        }
        let Ok(lanes) = <[LaneSpool; Lane::ALL.len()]>::try_from(lanes) else { unreachable!("one for each lane") };
        let mut spool = Self { disk, dir: dir.to_owned(), lanes, bytes_max, unsure: Vec::new() };
        // A verdict that was told before a crash holds, also where it was not yet done.
        for told in spool.lanes[Lane::Security as usize].take_told() {
            spool.lane(told.lane).drop_before(told.end);
            spool.lane(told.lane).forget()?;
        }
        found.killed = spool.mark_running()?;
        Ok((spool, found))
    }

    /// Takes a frame. It is safe once `sync` returned. An error leaves the spool as it was.
    pub fn append(&mut self, frame: &Frame) -> Result<(), weir_journal::Error> {
        self.append_with(frame, &[]).map(|_| ())
    }

    /// Makes durable what was appended. When it fails nothing is lost that is in memory: a later call tries again.
    pub fn sync(&mut self) -> Result<(), weir_journal::Error> {
        let mut outcome = Ok(());
        for lane in &mut self.lanes {
            let synced = lane.sync();
            outcome = outcome.and(synced);
        }
        let durable = self.lanes[Lane::Security as usize].durable();
        let unsure = std::mem::take(&mut self.unsure);
        for (offset, verdict) in unsure {
            if offset < durable {
                let lane = self.lane(verdict.lane);
                lane.release();
                let forgotten = lane.forget();
                outcome = outcome.and(forgotten);
            } else {
                self.unsure.push((offset, verdict));
            }
        }
        outcome
    }

    /// Bytes appended that wait for a sync.
    pub fn unsynced_bytes(&self) -> u64 {
        self.lanes.iter().map(LaneSpool::unsynced_bytes).sum()
    }

    /// The next durable frame that was not given out; the most important lane first, each from its oldest on.
    pub fn give(&mut self) -> Option<Frame> {
        self.lanes.iter_mut().find_map(LaneSpool::next)
    }

    /// Takes back the frame that `give` gave last: it found no room.
    pub fn put_back(&mut self, key: &FrameKey) {
        self.lane(key.lane).put_back();
    }

    /// Forgets frames that were given out and that the session does not hold any more.
    pub fn settle(&mut self, holds: impl Fn(&FrameKey) -> bool) -> Result<(), weir_journal::Error> {
        for lane in &mut self.lanes {
            if lane.settle(&holds) {
                lane.forget()?;
            }
        }
        Ok(())
    }

    /// What was given out is to be given out anew: the session has lost it.
    pub fn rewind(&mut self) {
        self.lanes.iter_mut().for_each(LaneSpool::rewind);
    }

    /// Whether the spool holds this frame and has given it out.
    pub fn gave(&self, key: &FrameKey) -> bool {
        self.lanes[key.lane as usize].gave(key)
    }

    /// What must go for the spool to be within its limit, and the events in it.
    pub fn overflow(&mut self) -> Result<Option<(Verdict, Vec<Gap>)>, weir_journal::Error> {
        // One at a time: its loss is told before the next is chosen.
        if !self.unsure.is_empty() || self.bytes()? <= self.bytes_max {
            return Ok(None);
        }
        let least = self.lanes.iter().rev().find_map(|lane| lane.oldest_end().map(|end| (lane, end)));
        Ok(least.map(|(lane, end)| (Verdict { lane: lane.lane(), end }, lane.gaps_before(end))))
    }

    /// Drops what `overflow` named. `told` is the frame that tells the loss, none if there is no event in it; it is appended with the
    /// verdict, and the disk's space is given back once that is durable.
    pub fn drop_told(&mut self, told: Option<&Frame>, verdict: Verdict) -> Result<(), weir_journal::Error> {
        let Some(told) = told else {
            self.lane(verdict.lane).drop_before(verdict.end);
            return self.lane(verdict.lane).forget();
        };
        let offset = self.append_with(told, &[verdict])?;
        let lane = self.lane(verdict.lane);
        lane.hold_back();
        lane.drop_before(verdict.end);
        self.unsure.push((offset, verdict));
        Ok(())
    }

    /// The lowest seq of each run and lane that is in the spool.
    pub fn floors(&self) -> impl Iterator<Item = (Epoch, Lane, Seq)> + '_ {
        self.lanes.iter().flat_map(|lane| lane.floors().map(|(epoch, floor)| (epoch, lane.lane(), floor)))
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(LaneSpool::is_empty)
    }

    /// Events that wait, given out or not.
    pub fn events(&self) -> u64 {
        self.lanes.iter().map(LaneSpool::events).sum()
    }

    /// What the disk has lost since the last call.
    pub fn take_damaged(&mut self) -> Vec<Gap> {
        self.lanes.iter_mut().flat_map(LaneSpool::take_damaged).collect()
    }

    /// Bytes on the disk, those reserved in advance included.
    pub fn bytes(&mut self) -> Result<u64, weir_journal::Error> {
        self.lanes.iter_mut().map(LaneSpool::bytes).sum()
    }

    /// Makes durable how far frames were settled: after a crash fewer are sent again.
    pub fn mark(&mut self) -> Result<(), weir_journal::Error> {
        self.lanes.iter_mut().try_for_each(LaneSpool::mark)
    }

    /// The run ends by itself and everything of it is acknowledged, spooled or told as lost.
    pub fn close(mut self) -> Result<(), weir_journal::Error> {
        self.sync()?;
        self.mark()?;
        let path = self.dir.join(RUNNING_NAME);
        let io = |source| weir_journal::Error::Io { action: "remove", path: path.clone(), source };
        self.disk.remove(&path).map_err(io)?;
        self.disk.sync_dir(&self.dir).map_err(io)
    }

    fn append_with(&mut self, frame: &Frame, verdicts: &[Verdict]) -> Result<Offset, weir_journal::Error> {
        let key = FrameKey::of(&frame.header);
        self.lane(key.lane).append(key, encode(verdicts, &frame.bytes))
    }

    fn lane(&mut self, lane: Lane) -> &mut LaneSpool {
        &mut self.lanes[lane as usize]
    }

    /// Leaves a file behind that says *running*; true when one was there.
    fn mark_running(&self) -> Result<bool, weir_journal::Error> {
        let path = self.dir.join(RUNNING_NAME);
        let io = |action| move |source, path: &Path| weir_journal::Error::Io { action, path: path.to_owned(), source };
        if self.disk.open_read(&path).is_ok() {
            return Ok(true);
        }
        self.disk.create(&path).map_err(|source| io("create")(source, &path))?;
        self.disk.sync_dir(&self.dir).map_err(|source| io("sync")(source, &self.dir))?;
        Ok(false)
    }
}

/// A record of the journal.
fn encode(verdicts: &[Verdict], frame: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(1 + verdicts.len() * VERDICT_BYTES + frame.len());
    record.push(u8::try_from(verdicts.len()).expect("one verdict at a time"));
    for Verdict { lane, end } in verdicts {
        record.push(*lane as u8);
        record.extend(end.0.to_le_bytes());
    }
    record.extend_from_slice(frame);
    record
}

/// The parts of a record; `None` if it is none.
fn decode(record: &[u8]) -> Option<(Vec<Verdict>, Frame)> {
    let (&count, rest) = record.split_first()?;
    let (verdicts, frame) = rest.split_at_checked(usize::from(count) * VERDICT_BYTES)?;
    let verdict = |bytes: &[u8]| {
        let (&lane, end) = bytes.split_first()?;
        Some(Verdict { lane: Lane::from_u8(lane)?, end: Offset(u64::from_le_bytes(end.try_into().ok()?)) })
    };
    let verdicts = verdicts.chunks_exact(VERDICT_BYTES).map(verdict).collect::<Option<_>>()?;
    Some((verdicts, Frame::parse(frame).ok()?))
}

/// A lane and an offset.
const VERDICT_BYTES: usize = 9;
/// Present while an agent runs, and after it was killed.
const RUNNING_NAME: &str = "running";
/// Segments of a full spool: what is dropped at once is about this share of it.
const SEGMENTS: u64 = 64;
const SEGMENT_BYTES_MIN: u64 = 256 << 10;
const SEGMENT_BYTES_MAX: u64 = 8 << 20;
/// A frame and what may stand before it.
const RECORD_BYTES_MAX: usize = (8 << 20) + 1024;
/// A disk that does not take anything must not fill the memory.
const PENDING_BYTES_MAX: usize = 8 << 20;
