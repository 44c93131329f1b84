//! One lane of the spool: its journal, and which records of it are given out.
//!
//! ```text
//!   base                base + given                            the journal's next
//!    │ given out, not settled │ durable, to be given out │ not synced │
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weir_journal::{Disk, Error, Journal, Offset, Options, Reader};
use weir_schema::{Epoch, Frame, Lane, Seq};
use weir_transport::FrameKey;

use super::{Gap, Verdict, decode};

pub(super) struct LaneSpool {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: Options,
    lane: Lane,
    /// `None` after a failed sync, until it could be opened anew.
    journal: Option<Journal>,
    reader: Reader,
    /// The first record that is neither settled nor dropped.
    base: Offset,
    /// The records from `base` on; `None`: the disk has lost it.
    keys: VecDeque<Option<FrameKey>>,
    /// How many of them are given out.
    given: usize,
    /// Records not yet durable, for the case that the journal has to be opened anew.
    unsynced: VecDeque<(Offset, Vec<u8>)>,
    sync_failed: bool,
    /// Nothing from here on is forgotten: the verdict on it is not durable.
    held_back: Option<Offset>,
    runs: BTreeMap<Epoch, Run>,
    events: u64,
    /// What the disk has lost of it.
    damaged: Vec<Gap>,
    /// Bytes on the disk, unless something has changed since they were counted.
    bytes: Option<u64>,
    /// Records were forgotten since the last mark.
    unmarked: bool,
    /// Drops told in records found at the start.
    told: Vec<Verdict>,
}

/// What the lane holds of one run of the agent.
struct Run {
    frames: u64,
    /// No held frame begins below.
    floor: Seq,
}

impl LaneSpool {
    /// The lane's journal with what it holds; false when the disk has lost some of it.
    pub(super) fn open(disk: &Arc<dyn Disk>, dir: &Path, lane: Lane, options: &Options) -> Result<(Self, bool), Error> {
        let (journal, recovery) = Journal::open(disk.clone(), dir, options.clone())?;
        let reader = Reader::open(disk.clone(), dir, recovery.first)?;
        let mut spool = Self {
            disk: disk.clone(),
            dir: dir.to_owned(),
            options: options.clone(),
            lane,
            journal: Some(journal),
            reader,
            base: recovery.first,
            keys: VecDeque::new(),
            given: 0,
            unsynced: VecDeque::new(),
            sync_failed: false,
            held_back: None,
            runs: BTreeMap::new(),
            events: 0,
            damaged: Vec::new(),
            bytes: None,
            unmarked: false,
            told: Vec::new(),
        };
        spool.scan()?;
        let lost = spool.keys.iter().filter(|key| key.is_none()).count();
        spool.rewind();
        Ok((spool, lost == 0))
    }

    pub(super) fn lane(&self) -> Lane {
        self.lane
    }

    pub(super) fn append(&mut self, key: FrameKey, record: Vec<u8>) -> Result<Offset, Error> {
        let journal = self.journal()?;
        let offset = journal.append(&record)?;
        self.unsynced.push_back((offset, record));
        self.push(Some(key));
        Ok(offset)
    }

    pub(super) fn sync(&mut self) -> Result<(), Error> {
        if self.unsynced.is_empty() && !self.sync_failed {
            return Ok(());
        }
        self.bytes = None;
        match self.journal()?.sync() {
            Ok(_) => {
                self.unsynced.clear();
                self.sync_failed = false;
                Ok(())
            }
            Err(error) => {
                // Perhaps only the readers were not told: a sync again, also when nothing waits.
                self.sync_failed = true;
                let durable = self.durable();
                self.unsynced.retain(|(offset, _)| *offset >= durable);
                // Opened anew at the next call if it is poisoned: the lock has to go first.
                if self.journal.as_ref().is_some_and(Journal::is_poisoned) {
                    self.journal = None;
                }
                Err(error)
            }
        }
    }

    /// Records before it are durable.
    pub(super) fn durable(&self) -> Offset {
        let unsynced = self.unsynced.front().map(|(offset, _)| *offset);
        self.journal.as_ref().map(Journal::durable).or(unsynced).unwrap_or_else(|| self.end())
    }

    pub(super) fn unsynced_bytes(&self) -> u64 {
        self.unsynced.iter().map(|(_, record)| record.len() as u64).sum()
    }

    pub(super) fn next(&mut self) -> Option<Frame> {
        while self.given < self.keys.len() {
            if self.base.after(self.given as u64) >= self.durable() {
                return None;
            }
            match self.reader.next() {
                Ok(Some((_, record))) => {
                    let at = self.given;
                    self.given += 1;
                    match decode(&record) {
                        Some((_, frame)) if self.keys[at].is_some() => return Some(frame),
                        _ => self.lose(at..at + 1),
                    }
                }
                Ok(None) => return None,
                Err(Error::Gap { to, .. }) => {
                    let at = self.given;
                    let records = (to.0.saturating_sub(self.reader.at().0) as usize).min(self.keys.len() - at);
                    self.lose(at..at + records);
                    self.given += records;
                    self.reader.seek(to);
                }
                Err(error) => {
                    tracing::warn!(lane = self.lane.as_str(), %error, "the spool cannot be read: trying on");
                    return None;
                }
            }
        }
        None
    }

    pub(super) fn put_back(&mut self) {
        self.given -= 1;
        self.reader.seek(self.base.after(self.given as u64));
    }

    /// Lets go of what is given out and not held any more, as far as it is in order; true if there was any.
    pub(super) fn settle(&mut self, holds: impl Fn(&FrameKey) -> bool) -> bool {
        let before = self.base;
        while self.given > 0 && !self.keys[0].as_ref().is_some_and(&holds) {
            self.given -= 1;
            self.pop();
        }
        self.base > before
    }

    pub(super) fn rewind(&mut self) {
        self.given = 0;
        self.reader.seek(self.base);
    }

    pub(super) fn gave(&self, key: &FrameKey) -> bool {
        self.keys.iter().take(self.given).any(|given| given.as_ref() == Some(key))
    }

    pub(super) fn oldest_end(&self) -> Option<Offset> {
        self.journal.as_ref()?.oldest_end()
    }

    /// The events of the records before `end` that are not given out: what is, is in the session's memory.
    pub(super) fn gaps_before(&self, end: Offset) -> Vec<Gap> {
        let records = (end.0.saturating_sub(self.base.0) as usize).min(self.keys.len());
        let mut gaps = Vec::new();
        self.keys.range(self.given.min(records)..records).flatten().for_each(|key| Gap::add(&mut gaps, key));
        gaps
    }

    /// Lets go of the records before `end`.
    pub(super) fn drop_before(&mut self, end: Offset) {
        while self.base < end && !self.keys.is_empty() {
            self.given = self.given.saturating_sub(1);
            self.pop();
        }
        self.reader.seek(self.base.after(self.given as u64));
    }

    /// Until `release` the disk keeps what is there now.
    pub(super) fn hold_back(&mut self) {
        self.held_back.get_or_insert(self.base);
    }

    pub(super) fn release(&mut self) {
        self.held_back = None;
    }

    /// Gives the disk back what was let go.
    pub(super) fn forget(&mut self) -> Result<(), Error> {
        let before = self.held_back.map_or(self.base, |held| held.min(self.base));
        (self.bytes, self.unmarked) = (None, true);
        self.journal()?.forget(before)
    }

    pub(super) fn mark(&mut self) -> Result<(), Error> {
        if self.unmarked {
            self.journal()?.mark_first()?;
            self.unmarked = false;
        }
        Ok(())
    }

    pub(super) fn floors(&self) -> impl Iterator<Item = (Epoch, Seq)> + '_ {
        self.runs.iter().map(|(&epoch, run)| (epoch, run.floor))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn events(&self) -> u64 {
        self.events
    }

    pub(super) fn take_damaged(&mut self) -> Vec<Gap> {
        std::mem::take(&mut self.damaged)
    }

    pub(super) fn take_told(&mut self) -> Vec<Verdict> {
        std::mem::take(&mut self.told)
    }

    pub(super) fn bytes(&mut self) -> Result<u64, Error> {
        if self.bytes.is_none() {
            self.bytes = Some(self.journal()?.bytes()?);
        }
        Ok(self.bytes.unwrap_or(0))
    }

    /// Reads all that an earlier run left.
    fn scan(&mut self) -> Result<(), Error> {
        let end = self.durable();
        while self.reader.at() < end {
            match self.reader.next() {
                Ok(Some((_, record))) => {
                    let decoded = decode(&record);
                    self.push(decoded.as_ref().map(|(_, frame)| FrameKey::of(&frame.header)));
                    self.told.extend(decoded.into_iter().flat_map(|(told, _)| told));
                }
                Ok(None) => break,
                Err(Error::Gap { from, to }) => {
                    (from.0..to.0.min(end.0)).for_each(|_| self.push(None));
                    self.reader.seek(to);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The journal, opened anew if it has to be.
    fn journal(&mut self) -> Result<&mut Journal, Error> {
        let journal = match self.journal.take() {
            Some(journal) => journal,
            None => {
                let (mut journal, recovery) = Journal::open(self.disk.clone(), &self.dir, self.options.clone())?;
                // Some of what waited may have reached the disk all the same.
                self.unsynced.retain(|(offset, _)| *offset >= recovery.next);
                for (_, record) in &self.unsynced {
                    journal.append(record)?;
                }
                journal
            }
        };
        Ok(self.journal.insert(journal))
    }

    fn end(&self) -> Offset {
        self.base.after(self.keys.len() as u64)
    }

    fn push(&mut self, key: Option<FrameKey>) {
        if let Some(key) = &key {
            let run = self.runs.entry(key.epoch).or_insert(Run { frames: 0, floor: key.first_seq });
            run.frames += 1;
            run.floor = run.floor.min(key.first_seq);
            self.events += u64::from(key.count);
        }
        self.keys.push_back(key);
    }

    fn pop(&mut self) {
        let key = self.keys.pop_front().flatten();
        self.base = self.base.after(1);
        if let Some(key) = key {
            self.left(key);
        }
    }

    /// The disk has lost these records.
    fn lose(&mut self, records: std::ops::Range<usize>) {
        for at in records {
            if let Some(key) = self.keys[at].take() {
                Gap::add(&mut self.damaged, &key);
                self.left(key);
            }
        }
    }

    fn left(&mut self, key: FrameKey) {
        self.events -= u64::from(key.count);
        if let Some(run) = self.runs.get_mut(&key.epoch) {
            run.frames -= 1;
            if run.frames == 0 {
                self.runs.remove(&key.epoch);
            }
        }
    }
}
