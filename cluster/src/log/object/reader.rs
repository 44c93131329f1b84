//! Reads the chain and the logs out of their objects, in order, each fetched once for all readers of the process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Io;
use super::format::{Kind, Object};
use super::objects::Folder;
use super::shelf::Shelf;
use crate::log::{LogError, Pace, Reader};

/// A position among numbered objects: what chain and logs have in common.
struct Objects {
    io: Arc<Io>,
    folder: Folder,
    shelf: Arc<Shelf>,
    /// The number of the object that comes next.
    next: u64,
    /// The nonce of the object before; none: it was not read here.
    before: Option<u128>,
    /// How many are fetched ahead while there is much to read.
    ahead: u64,
    /// Objects in a row that were there at once.
    streak: u64,
    pace: Pace,
    /// When the one before was last seen to be there.
    sure: Option<Instant>,
}

/// What comes next.
enum Next {
    Object(Arc<Object>),
    /// It is not there yet.
    Nothing,
    /// What comes next was forgotten; the oldest that is left has this number.
    Forgotten(u64),
}

impl Objects {
    fn next(&mut self) -> Result<Next, LogError> {
        let is_sure = self.sure.is_some_and(|at| at.elapsed() < SURE_FOR);
        let Some(object) = self.shelf.take(&self.folder, self.next, self.pace)? else {
            self.streak = 0;
            if is_sure && self.pace == Pace::Polling {
                return Ok(Next::Nothing);
            }
            return Ok(self.oldest_if_forgotten()?.map_or(Next::Nothing, Next::Forgotten));
        };
        // Where all has been forgotten another sleeper may have created something: nobody who slept reads that.
        if !is_sure
            && self.before.is_some()
            && let Some(oldest) = self.oldest_if_forgotten()?
        {
            return Ok(Next::Forgotten(oldest));
        }
        if self.before.is_some_and(|before| before != object.head.before) {
            let object = self.folder.object(self.next).to_string();
            return Err(LogError::Damaged { object, why: "it does not follow the one below it" });
        }
        (self.before, self.sure) = (Some(object.head.nonce), Some(Instant::now()));
        self.next += 1;
        self.streak += 1;
        // At the end of what there is nothing is asked for that is not there.
        if self.streak > 1 {
            (self.next..self.next + self.ahead).for_each(|number| self.shelf.fetch_ahead(&self.folder, number));
        }
        Ok(Next::Object(object))
    }

    /// The oldest number that there is, if the next one was forgotten, or may have been: the one below is gone.
    fn oldest_if_forgotten(&mut self) -> Result<Option<u64>, LogError> {
        let (folder, before, next) = (self.folder.clone(), self.before, self.next);
        let oldest = self.io.wait(async move {
            // As long as the one below is there, the next one has not been forgotten.
            if let (Some(before), Some(below)) = (before, next.checked_sub(1))
                && folder.head(below).await?.is_some_and(|head| head.nonce == before)
            {
                return Ok::<_, LogError>(None);
            }
            let oldest = folder.numbers().await?.map(|numbers| *numbers.start());
            Ok(oldest.filter(|oldest| before.is_some() || *oldest > next))
        })?;
        self.sure = Some(Instant::now());
        Ok(oldest)
    }

    fn seek(&mut self, next: u64) {
        (self.next, self.before, self.streak, self.sure) = (next, None, 0, None);
    }
}

/// Reads the chain: the number of a record is that of its object.
pub(crate) struct ChainReader(Objects);

impl ChainReader {
    pub(crate) fn new(io: Arc<Io>, shelf: Arc<Shelf>, from: u64, pace: Pace) -> Self {
        let folder = Folder::chain(io.store());
        Self(Objects { io, folder, shelf, next: from, before: None, ahead: CHAIN_AHEAD, streak: 0, pace, sure: None })
    }
}

impl Reader for ChainReader {
    fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>, LogError> {
        let at = self.0.next;
        match self.0.next()? {
            Next::Object(object) => {
                let record = object.record(at).filter(|_| object.head.kind == Kind::Chain);
                let wrong =
                    || LogError::Damaged { object: self.0.folder.object(at).to_string(), why: "it is no record of the chain" };
                Ok(Some((at, record.ok_or_else(wrong)?.to_vec())))
            }
            Next::Forgotten(first) => Err(LogError::Forgotten { asked: at, first }),
            Next::Nothing => Ok(None),
        }
    }

    fn at(&self) -> u64 {
        self.0.next
    }

    fn seek(&mut self, to: u64) {
        self.0.seek(to);
    }

    fn durable(&mut self) -> Result<u64, LogError> {
        let (folder, from) = (self.0.folder.clone(), self.0.next);
        let numbers = self.0.io.wait(async move { folder.numbers().await })?;
        Ok(numbers.map_or(from, |numbers| numbers.end() + 1).max(from))
    }
}

/// Reads a log: its records lie in segments.
pub(crate) struct LogReader {
    objects: Objects,
    /// Whether `objects` stands at the segment with the next record.
    found: Found,
    segment: Option<Arc<Object>>,
    /// The next record.
    at: u64,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Yes,
    NotYet,
}

/// How far the log is durable, as last looked.
#[derive(Debug, Clone, Copy)]
enum End {
    /// Nobody has looked.
    Unknown,
    /// The next segment to look for, and the number of the record behind the last.
    Open { next: u64, records: u64 },
    /// Nothing comes any more.
    Closed { records: u64 },
}

impl LogReader {
    pub(crate) fn new(io: Arc<Io>, folder: Folder, shelf: Arc<Shelf>, from: u64) -> Self {
        // Whoever reads a log was told by the chain how far.
        let pace = Pace::UpToNow;
        let objects = Objects { io, folder, shelf, next: 0, before: None, ahead: SEGMENTS_AHEAD, streak: 0, pace, sure: None };
        Self { objects, found: Found::NotYet, segment: None, at: from, end: End::Unknown }
    }

    fn find(&mut self) -> Result<(), LogError> {
        let (folder, at) = (self.objects.folder.clone(), self.at);
        self.objects.seek(self.objects.io.wait(async move { folder.segment_of(at).await })?);
        self.found = Found::Yes;
        Ok(())
    }
}

impl Reader for LogReader {
    fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>, LogError> {
        if self.found == Found::NotYet {
            self.find()?;
        }
        loop {
            if let Some(record) = self.segment.as_ref().and_then(|segment| segment.record(self.at)) {
                let (at, record) = (self.at, record.to_vec());
                self.at += 1;
                return Ok(Some((at, record)));
            }
            self.segment = None;
            match self.objects.next()? {
                Next::Object(segment) if segment.head.first > self.at => {
                    self.found = Found::NotYet;
                    return Err(LogError::Gap { from: self.at, to: segment.head.first });
                }
                Next::Object(segment) => self.segment = Some(segment),
                Next::Forgotten(_) => self.find()?,
                Next::Nothing => return Ok(None),
            }
        }
    }

    fn at(&self) -> u64 {
        self.at
    }

    fn seek(&mut self, to: u64) {
        if to != self.at {
            (self.at, self.found, self.segment) = (to, Found::NotYet, None);
        }
    }

    fn durable(&mut self) -> Result<u64, LogError> {
        let (folder, mut end) = (self.objects.folder.clone(), self.end);
        self.end = self.objects.io.wait(async move {
            loop {
                let (next, records) = match end {
                    End::Closed { .. } => return Ok::<End, LogError>(end),
                    End::Open { next, records } => (next, records),
                    End::Unknown => match folder.numbers().await? {
                        Some(numbers) => (*numbers.end(), 0),
                        None => (0, 0),
                    },
                };
                end = match folder.head(next).await? {
                    Some(head) if head.kind == Kind::Tombstone => End::Closed { records: head.first },
                    Some(head) => End::Open { next: next + 1, records: head.end() },
                    None => return Ok(End::Open { next, records }),
                };
            }
        })?;
        match self.end {
            End::Open { records, .. } | End::Closed { records } => Ok(records),
            End::Unknown => Ok(0),
        }
    }
}

/// Records of the chain that are fetched ahead: they are small, and each costs a round trip.
const CHAIN_AHEAD: u64 = 16;
/// Segments that are fetched ahead: they may be large.
const SEGMENTS_AHEAD: u64 = 3;
/// Nothing is forgotten so soon after the one before it was there: of two checkpoints that must be behind it none is younger.
const SURE_FOR: Duration = Duration::from_secs(2);
